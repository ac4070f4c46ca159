"""Watch a job-matching service get fast, survive an outage of its Redis, and heal.

Started by `make demo`, or by hand: `python demo.py [--json]`. Needs jmcache with its
`fastapi` and `celery` extras. Everything it starts is its own, on free ports of the loopback, and
ends with it.

Exit codes: 0 all promises held; 1 some did not, each is named; 2 it could not be played; 128 and
the signal's number when it was stopped, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from showcase.interrupts import Interrupts, Stopped
from showcase.plan import Plan


def main(arguments: Sequence[str] | None = None, *, plan: Plan | None = None) -> int:
    """Play the demo once and return its exit code. Main thread only.

    Takes SIGINT, SIGTERM and SIGHUP over; they are ignored once it has returned.

    Args:
        arguments: What stands on the command line; None: `sys.argv`.
        plan: How much to do; by default some 25 s of it.
    """
    interrupts = Interrupts()
    interrupts.install()
    try:
        parser = argparse.ArgumentParser(
            description="jmcache in a job-matching service, on real data"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object, no screen")
        options = parser.parse_args(arguments)
        # Here, not above: this takes a second, in which Ctrl-C should do the same as later.
        from showcase.stage import perform

        return perform(plan or Plan(), interrupts, as_json=options.json)
    except Stopped as stopped:
        print(f"stopped by {stopped}, everything started is ended", file=sys.stderr)
        return 128 + stopped.signal
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    sys.exit(main())
