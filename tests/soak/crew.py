"""The replicas, seen from the process that started them and ends them, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent.parent
_ENDS_WITHIN_S = 3.0


class Replica:
    """One worker process. Methods for one thread at a time."""

    def __init__(self, python: str, options: dict[str, Any]) -> None:
        """Start it.

        Args:
            python: The interpreter; one that has the contender's package.
            options: What the worker is told, see soak.worker.
        """
        self.options = options
        self.died = False
        self.latest: dict[str, Any] = {}  # progress, or the last answer that held figures
        self._answers: dict[str, dict[str, Any]] = {}
        self._told = ""
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [python, "-m", "soak.worker", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _path()},
            # Ctrl-C in a terminal goes to the whole group; this one ends when its stdin does.
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def busy(self) -> bool:
        """It has not said yet that the last command is done."""
        return self._told != "" and self._told not in self._answers

    def tell(self, command: str) -> None:
        """Send a command; nothing when it is dead."""
        assert self._process.stdin is not None
        self._answers.pop(command, None)
        self._told = command
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()

    def answer(self, command: str, within_s: float) -> dict[str, Any] | None:
        """Return what it says when *command* is done; None when it did not say so in time."""
        with self._changed:
            self._changed.wait_for(lambda: command in self._answers or self.died, within_s)
            return self._answers.get(command)

    def kill(self) -> None:
        """End it, and wait for its end. Nothing the second time."""
        self._process.kill()
        self._listener.join()
        with self._process:  # closes the pipes, and waits
            pass

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            with self._changed:
                if "total" in said:
                    self.latest = {**self.latest, **said}
                if said["what"] != "progress":
                    self._answers[said["what"]] = said
                self._changed.notify_all()
        with self._changed:
            self.died = True
            self._changed.notify_all()


class Crew:
    """All replicas of a run. A context manager; they are gone when it ends."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            replica.kill()

    def hire(self, python: str, options: Iterable[dict[str, Any]]) -> None:
        """Start one replica for each of *options*.

        Raises:
            RuntimeError: One did not get ready.
        """
        for one in options:
            self.replicas.append(Replica(python, one))
        ready = self.all("ready", 60.0, told=False)
        for replica, said in zip(self.replicas, ready, strict=True):
            if said is None:
                raise RuntimeError(f"replica {replica.options['name']} did not get ready")

    def all(
        self, command: str, within_s: float, *, told: bool = True
    ) -> list[dict[str, Any] | None]:
        """Tell every replica *command*; return what each answers within the time they share."""
        if told:
            for replica in self.replicas:
                replica.tell(command)
        over = time.monotonic() + within_s
        return [
            replica.answer(command, max(0.0, over - time.monotonic())) for replica in self.replicas
        ]

    def order(self, command: str, within_s: float) -> None:
        """Tell *command* to those who are not busy, and wait for them as long as it is worth it.

        One that hangs is not waited for again.
        """
        idle = [replica for replica in self.replicas if not replica.busy]
        for replica in idle:
            replica.tell(command)
        over = time.monotonic() + within_s
        for replica in idle:
            replica.answer(command, max(0.0, over - time.monotonic()))


def _path() -> str:
    given = os.environ.get("PYTHONPATH")
    return f"{_TESTS}{os.pathsep}{given}" if given else str(_TESTS)
