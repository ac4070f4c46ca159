"""Ctrl-C at any moment, without leaving half-started processes behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked the demo to end.

    Attributes:
        signal: Number of the signal that said so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into one `Stopped`, and swallows those after it.

    Raised in the main thread, except inside `held()`, where it waits for the end of the block: a
    process that was started is then always one that is known.
    """

    def __init__(self) -> None:
        self._held = 0
        self._arrived: int | None = None
        self._raised = False

    def install(self) -> None:
        """Take the signals over for the rest of the process. Main thread only."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """Let the signals do nothing any more. Python gives our handlers up when it exits, and the
        second Ctrl-C of the impatient would then decide the exit code.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the block finish before `Stopped` is raised."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._raise_if_due()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._arrived is None:
            self._arrived = number
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._arrived is not None and not self._held and not self._raised:
            self._raised = True
            raise Stopped(self._arrived)
