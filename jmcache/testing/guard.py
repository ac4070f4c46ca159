"""Ends a process when ours is gone, however ours ended."""

from __future__ import annotations

import os
import subprocess

# Waits until the pipe breaks, which it does when the last process holding our end is gone.
_SCRIPT = 'read -r _; kill -KILL "$1" 2>/dev/null; [ -z "$2" ] || rm -rf -- "$2"'


class Guard:
    """A small shell beside a process that must not outlive us, not even our SIGKILL.

    Linux's parent-death signal would be less, and wrong: it is sent when the *thread* that
    started the process ends.
    """

    def __init__(self, pid: int, folder: str) -> None:
        """Watch over *pid* and over *folder*, which is removed too unless it is empty text."""
        theirs, self._ours = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "guard", str(pid), folder],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    def dismiss(self) -> None:
        """The process has ended: nothing is left to guard. Call once."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._ours)

    def forget_in_child(self) -> None:
        """In a forked child: let go of the pipe, or it would not break before the child ends."""
        os.close(self._ours)
        self._shell.returncode = 0  # not this process's to wait for, or to warn about
