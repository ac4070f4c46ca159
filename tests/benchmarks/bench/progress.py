"""A bar with the time left: one line of stderr on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time

_WIDTH = 30


class Progress:
    """So many seconds of work, as far as one can tell before.

    The time left goes by how fast the work was so far, so a slower machine is told the truth.
    """

    def __init__(self, expected_s: float) -> None:
        self._expected_s = expected_s
        self._began_s = time.monotonic()
        self._done_s = 0.0
        self._shown = sys.stderr.isatty()

    def show(self, name: str, step_s: float, share: float) -> None:
        """Say that of a step of *step_s* expected seconds *share* is done, from 0 to 1."""
        if self._shown:
            line = self.line(self._done_s + step_s * share, name, time.monotonic() - self._began_s)
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def add(self, name: str, step_s: float) -> None:
        """Say that a step is done."""
        self.show(name, step_s, 1.0)
        self._done_s += step_s

    def line(self, done_s: float, name: str, took_s: float) -> str:
        """Return what is shown when *done_s* of the expected seconds took *took_s* real ones."""
        share = min(1.0, done_s / self._expected_s) if self._expected_s else 1.0
        bar = "#" * round(_WIDTH * share)
        left_s = round(took_s / share * (1 - share)) if share else round(self._expected_s)
        return f"[{bar:<{_WIDTH}}] {left_s // 60}:{left_s % 60:02} left  {name}"

    def end(self) -> None:
        """Leave the line empty."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
