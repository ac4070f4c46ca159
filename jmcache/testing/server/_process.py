"""The process of a private server: started, signalled, and gone whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jmcache.testing.guard import Guard

_STOPPED_WITHIN = 5.0  # seconds until SIGTERM becomes SIGKILL
_LONGEST_TEMPORARY = 70  # bytes: leaves room for our folder and the socket's name


class ServerProcess:
    """One process at a time in one folder, ended by its process id and never by a name."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        """Start nothing yet.

        Args:
            directory: Where it is to run; it stays. None: a folder that goes with it.
        """
        self._kept_directory = None if directory is None else Path(directory).resolve()
        self.directory: Path | None = None  # None: never started, or closed
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._owner = os.getpid()

    @property
    def ours(self) -> bool:
        """This process made it, and may signal it."""
        return os.getpid() == self._owner

    @property
    def runs(self) -> bool:
        """It has been launched and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        self.insist_on_owner()
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Where it runs."""
        if self.directory is None:
            raise RuntimeError("the server was never started, or is closed")
        return self.directory

    def insist_on_owner(self) -> None:
        """Raise RuntimeError in a forked child."""
        if not self.ours:
            raise RuntimeError("the server belongs to the process that made it")

    def prepare(self) -> None:
        """Make its folder, and what removes it when we are gone. Nothing the second time."""
        if self.directory is None:
            self.directory = self._kept_directory or _temporary_folder()
            self._guard = Guard("" if self._kept_directory else str(self.directory))

    def launch(self, line: Sequence[str], log_path: Path) -> None:
        """Start the program *line*, whose output goes to *log_path*."""
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal goes to the whole foreground group: not to this one, which
                # whoever was interrupted still ends.
                start_new_session=True,
            )
        try:
            self._watch(self._process.pid)
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def end(self, how: signal.Signals) -> None:
        """Send *how*, also if it is paused, and wait. Nothing if it does not run."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # a paused one would not hear of it
            try:
                process.wait(_STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._watch(None)  # its process id may soon be somebody else's
        self._process = None

    def pause(self) -> None:
        """Freeze it, and return once it is."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its folder if that was ours. Nothing the second time."""
        self.end(signal.SIGKILL)  # there is nothing to save, and SIGTERM takes it 0.1 s
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()
        if self.directory is not None and self._kept_directory is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = None

    def _watch(self, pid: int | None) -> None:
        if self._guard is not None:
            self._guard.watch(pid)

    def forget_in_child(self) -> None:
        """In a forked child: it is the parent's."""
        if self._guard is not None:
            self._guard.forget_in_child()
            self._guard = None
        if self._process is not None:
            self._process.returncode = 0  # not this process's to wait for, or to warn about
            self._process = None


def _temporary_folder() -> Path:
    usual = tempfile.gettempdir()
    parent = usual if len(os.fsencode(usual)) <= _LONGEST_TEMPORARY else "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="jmc-", dir=parent))
