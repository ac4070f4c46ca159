"""What `entry_secrets` cost: python tests/benchmarks/signing.py [bytes of a body]"""

from __future__ import annotations

import os
import sys
from timeit import timeit

from jmcache.envelope import Entry, Envelope

DIGEST = bytes(16)
LOOPS = 2000
ROUNDS = 25  # plain and signed in turn, and the best of each: a busy machine slows both


def main(size: int = 5000) -> None:
    entry = Entry(os.urandom(size), created_ms=0)
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        for kind, secrets in (("plain", ()), ("signed", ("s" * 32,))):
            envelope = Envelope(max_body_bytes=size, compress_above_bytes=size, secrets=secrets)
            blob = envelope.seal(entry, DIGEST)
            for verb, call in (
                ("write", lambda: envelope.seal(entry, DIGEST)),  # noqa: B023 - called here
                ("read", lambda: envelope.unseal(blob, DIGEST)),  # noqa: B023
            ):
                us = timeit(call, number=LOOPS) / LOOPS * 1e6
                best[verb, kind] = min(us, best.get((verb, kind), us))
    print(f"{size} bytes, Python {sys.version.split()[0]}, us for one entry")
    for verb in ("write", "read"):
        plain, signed = best[verb, "plain"], best[verb, "signed"]
        print(
            f"{verb:6} plain {plain:5.1f}  signed {signed:5.1f}  difference {signed - plain:5.1f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
