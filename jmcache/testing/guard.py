"""Ends a process when ours is gone, however ours ended."""

from __future__ import annotations

import contextlib
import os
import subprocess

# Reads on until the pipe breaks, which it does when the last process holding our end is gone.
_SCRIPT = """
pid=
while read -r line; do pid=$line; done
[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null
[ -z "$1" ] || rm -rf -- "$1"
"""


class Guard:
    """A small shell that sees to it that nothing outlives us, not even our SIGKILL.

    Linux's parent-death signal would be less, and wrong: it is sent when the *thread* that
    started the process ends.
    """

    def __init__(self, folder: str) -> None:
        """Watch over *folder*, which is removed when we are gone; empty text for none."""
        theirs, self._ours = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "guard", folder],
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

    def watch(self, pid: int | None) -> None:
        """Kill the process *pid* when we are gone, instead of the one before; None for none."""
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard
            os.write(self._ours, b"\n" if pid is None else b"%d\n" % pid)

    def dismiss(self) -> None:
        """There is nothing left to guard. Call once."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._ours)

    def forget_in_child(self) -> None:
        """In a forked child: let go of the pipe, or it would not break before the child ends."""
        os.close(self._ours)
        self._shell.returncode = 0  # not this process's to wait for, or to warn about
