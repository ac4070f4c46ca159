"""One replica: a process in which callers use a cache. `crew` starts it and tells it what to do.

    python -m soak.worker '{"contender": "jmcache", "host": ..., ...}'

It reads one command a line from stdin (go, interrupt, fork, rest, check, close) and ends when
stdin does; it writes JSON lines: "progress" each second, and one with the command's name when that
is done.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from soak.callers import Tasks, Threads
from soak.contenders import CONTENDERS, DEADLINE_S
from soak.punctuality import Lag, Punctuality, Ticker
from soak.trace import MARKER

_PROGRESS_S = 1.0
_QUIET_WITHIN_S = 3.0  # threads and sockets of a closed cache are gone by then
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FDS = Path("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd")


class LogBook(logging.Handler):
    """Counts what is logged in this process, and looks for what must not be in it."""

    def __init__(self, secrets: list[str]) -> None:
        super().__init__()
        self._secrets = secrets
        self._times: list[float] = []  # monotonic seconds
        self.leaks = 0
        self.last: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of one line."""
        text = self.format(record)
        self._times.append(time.monotonic())
        self.leaks += any(secret in text for secret in self._secrets)
        self.last = [*self.last[-9:], text]

    def most_in_a_minute(self) -> int:
        """Return the lines of the minute that had most."""
        times = tuple(self._times)
        most = first = 0
        for number, at in enumerate(times):
            while times[first] <= at - 60.0:
                first += 1
            most = max(most, number - first + 1)
        return most

    def figures(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "lines": len(self._times),
            "most_in_a_minute": self.most_in_a_minute(),
            "leaks": self.leaks,
            "last": self.last,
        }


def resources() -> dict[str, Any]:
    """Return what this process holds of the machine."""
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "fds": sum(1 for _ in _FDS.iterdir()) - 1,  # one of them is that of the listing
        "rss_bytes": _rss_bytes(),
    }


def _rss_bytes() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * _PAGE_BYTES if statm.exists() else 0


class Worker:
    """Carries out commands, and tells how it goes."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._secrets = [options["password"], MARKER]
        self.log = LogBook(self._secrets)
        logging.basicConfig(level=logging.INFO, handlers=[self.log])
        self._lag = Lag()
        self._punctuality = Punctuality(DEADLINE_S, self._lag)
        self._ticker = Ticker(self._lag, self._punctuality)
        kind = Tasks if CONTENDERS[options["contender"]].awaited else Threads  # type: ignore[attr-defined]
        self._callers = kind(options, self._punctuality)
        self._say_lock = threading.Lock()
        threading.Thread(target=self._report, name="soak-report", daemon=True).start()

    def run(self) -> None:
        """Carry out what stdin says, to its end."""
        before = resources()
        self._callers.prepare()
        self._say("ready", resources=before)
        for line in sys.stdin:
            command = line.strip()
            self._say(command, **getattr(self, f"_{command}")())

    def _go(self) -> dict[str, Any]:
        self._callers.start()
        return {}

    def _interrupt(self) -> dict[str, Any]:
        self._callers.interrupt()
        return {}

    def _fork(self) -> dict[str, Any]:
        self._callers.fork()
        return {}

    def _rest(self) -> dict[str, Any]:
        self._callers.rest()
        return {"resources": resources(), **self._figures()}

    def _check(self) -> dict[str, Any]:
        return {"right": self._callers.check()}

    def _close(self) -> dict[str, Any]:
        self._ticker.stop()
        final = self._figures()
        self._callers.close()
        self._callers.cache = None
        return {**final, "resources": self._when_quiet()}

    def _when_quiet(self) -> dict[str, Any]:
        """Return the resources of the process once they no longer change, or it takes too long."""
        over = time.monotonic() + _QUIET_WITHIN_S
        found = resources()
        while time.monotonic() < over:
            gc.collect()
            time.sleep(0.2)
            before, found = found, resources()
            if (found["fds"], found["threads"]) == (before["fds"], before["threads"]):
                break
        return found

    def _figures(self) -> dict[str, Any]:
        cache = self._callers.cache
        return {
            "total": {
                **self._callers.total(),
                "late": self._punctuality.late,
                "latest_s": self._punctuality.latest_s,
                "late_examples": self._punctuality.examples,
                "machine_lag_s": self._lag.worst_s,
            },
            "log": self.log.figures(),
            "rss_bytes": _rss_bytes(),
            **(cache.figures() if hasattr(cache, "figures") else {}),
        }

    def _report(self) -> None:
        while True:
            time.sleep(_PROGRESS_S)
            self._say("progress", **self._figures())

    def _say(self, what: str, **more: Any) -> None:
        line = json.dumps({"what": what, **more})
        with self._say_lock:
            print(line, flush=True)


def main() -> None:
    """Run one worker."""
    try:
        Worker(json.loads(sys.argv[1])).run()
    finally:
        os._exit(0)  # whatever still hangs in a call


if __name__ == "__main__":
    main()
