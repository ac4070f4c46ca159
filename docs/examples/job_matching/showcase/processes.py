"""The processes the demo starts, all of which it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from showcase.interrupts import Interrupts

EXAMPLE = Path(__file__).resolve().parents[1]
END_GRACE_S = 1.0  # what a process gets to end by itself before it is killed

# Reads session numbers until the pipe breaks, as it does when the demo itself was killed. One kill
# for each: not every shell's takes "--", which several would need.
_GUARD = """
while read -r session; do sessions="$sessions $session"; done
for session in $sessions; do kill -KILL "-$session"; done
rm -rf -- "$1"
"""


class Fleet:
    """Processes, each in a session of its own and with its log in a file of *folder*.

    A session of its own keeps the terminal's Ctrl-C away from it: ending it is for `end()`, which
    takes its children along. A small shell ends them all, and the folder, if we are killed.
    """

    def __init__(self, interrupts: Interrupts, folder: Path) -> None:
        self._interrupts = interrupts
        self._folder = folder
        self._running: dict[str, subprocess.Popen[str]] = {}
        with interrupts.held():
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", str(folder)],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a process in the example's folder.

        Args:
            environ: All of its environment; None: ours.
            piped: Leave its stdin and stdout to the caller.
        """
        with self._interrupts.held(), self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=EXAMPLE,
                env=environ,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            self._running[name] = process
            print(process.pid, file=self._guard.stdin, flush=True)
        return process

    def log(self, name: str) -> Path:
        """Return the file with everything the process of that name wrote to stderr."""
        return self._folder / f"{name.replace(' ', '-')}.log"

    def last_words(self, name: str) -> str:
        """Return the end of what the process of that name wrote."""
        return self.log(name).read_text(encoding="utf-8", errors="replace")[-2000:]

    def has_ended(self, name: str) -> bool:
        """Say whether the process of that name is gone, by itself or killed."""
        return _has_ended(self._running[name])

    def kill(self, name: str) -> None:
        """End a process with SIGKILL, and its children with it."""
        with self._interrupts.held():
            process = self._running.pop(name)
            _end_session(process)
            process.wait()

    def end(self) -> None:
        """End every process: asked first, killed when it takes longer than a second.

        Does nothing the second time.
        """
        with self._interrupts.held():
            for process in self._running.values():
                if not _has_ended(process):
                    process.terminate()
            give_up = time.monotonic() + END_GRACE_S
            for process in self._running.values():
                while not _has_ended(process) and time.monotonic() < give_up:
                    time.sleep(0.02)
                _end_session(process)
                process.wait()
                _close(process.stdin)
                _close(process.stdout)
            self._running.clear()
            self._guard.kill()
            self._guard.wait()
            _close(self._guard.stdin)


def free_ports(count: int) -> list[int]:
    """Return different TCP ports of the loopback that nobody listens on at this moment."""
    with contextlib.ExitStack() as listeners:
        opened = [listeners.enter_context(socket.socket()) for _ in range(count)]
        for listener in opened:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in opened]


def _has_ended(process: subprocess.Popen[str]) -> bool:
    if process.returncode is None and process.poll() is not None:
        # Now, while its number cannot be anybody else's yet: what it left behind ends with it.
        _signal_session(process.pid)
    return process.returncode is not None


def _end_session(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        _signal_session(process.pid)


def _signal_session(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it (macOS says PermissionError for that)


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            pass  # what was still to be written has no reader left
