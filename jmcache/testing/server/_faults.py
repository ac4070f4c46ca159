"""What a server can be made to do wrong, and how that ends."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from jmcache.testing.resp import Link, Reply, ReplyError

_SEEN_WITHIN = 10.0  # seconds until a change must show


class Change:
    """Something that was changed in a server. A context manager that undoes it at the end."""

    def __init__(
        self, name: str, undo: Callable[[], None], undone: Callable[[Change], None]
    ) -> None:
        """For PrivateServer to make."""
        self.name = name
        self._undo: Callable[[], None] | None = undo
        self._undone = undone

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self._undo else ', undone'}>"

    def __enter__(self) -> Change:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def undo(self) -> None:
        """Bring back what was. Nothing the second time, or when the server has restarted since."""
        undo, self._undo = self._undo, None
        if undo is not None:
            self._undone(self)
            undo()


class Breakable:
    """The faults of a PrivateServer that are commands to it.

    Each returns a Change: ``with server.fill(): ...`` or ``server.fill().undo()`` ends that one,
    `PrivateServer.restore` ends all.
    """

    def __init__(self) -> None:
        """Nothing is changed yet."""
        self._changes: list[Change] = []
        self._deaf_until = 0.0  # on the monotonic clock

    @property
    @abstractmethod
    def runs(self) -> bool:
        """The server has been started and has not ended."""

    @abstractmethod
    def command(self, *args: str | bytes | float) -> Reply:
        """Ask the server."""

    @abstractmethod
    def _connect(self) -> Link:
        """Open another connection to it."""

    @abstractmethod
    def _folder(self) -> Path:
        """Where it runs."""

    @abstractmethod
    def _use_password(self, password: str | None) -> None:
        """Use another one from now on."""

    def configure(self, **settings: str | float) -> Change:
        """Change its configuration: ``configure(maxmemory="1mb", timeout=1)``; _ stands for -.

        Raises:
            ReplyError: It has no such setting, or not that value. Nothing is changed then.
        """
        wanted = {name.replace("_", "-"): str(value) for name, value in settings.items()}
        before: dict[str, str] = {}
        try:
            for name, value in wanted.items():
                was = self._configuration(name)
                self.command("CONFIG", "SET", name, value)
                before |= was
        except ReplyError:
            self._set(before)
            raise
        return self._changed("configure", lambda: self._set(before))

    def fill(self) -> Change:
        """Let no memory be left: writes are refused (OOM), reads and deletes go on."""
        return self.configure(maxmemory="1", maxmemory_policy="noeviction")

    def make_read_only(self) -> Change:
        """Make it a replica whose master is away: writes are refused (READONLY), reads go on."""
        self.command("REPLICAOF", "127.0.0.1", "1")
        return self._changed("make_read_only", self._make_master)

    def lose_master(self) -> Change:
        """Make it a replica that answers nothing (MASTERDOWN) while its master is away."""
        serving = self.configure(replica_serve_stale_data="no")
        self.command("REPLICAOF", "127.0.0.1", "1")

        def undo() -> None:
            self._make_master()
            serving.undo()

        return self._changed("lose_master", undo)

    def require_replicas(self) -> Change:
        """Let it refuse writes (NOREPLICAS) because it has no replica."""
        return self.configure(min_replicas_to_write=1)

    def fail_saves(self) -> Change:
        """Let saving to disk fail, so that writes are refused (MISCONF); reads go on."""
        # A folder stands where the file is to go. Rights would not stop root.
        (self._folder() / "dump.rdb").mkdir()
        configured = self.configure(save="3600 1", stop_writes_on_bgsave_error="yes")

        def undo() -> None:
            self._let_saves_succeed()
            configured.undo()

        change = self._changed("fail_saves", undo)
        self.command("BGSAVE")
        # Also over: a save that goes on would find the folder gone, and succeed.
        self._await(lambda: b"bgsave_in_progress:0" in self._persistence())
        self._await(lambda: b"last_bgsave_status:err" in self._persistence())
        return change

    def _let_saves_succeed(self) -> None:
        """Clear the way that `fail_saves` barred, which is also the way of a start."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self._folder() / "dump.rdb").rmdir()

    def change_password(self, password: str | None, *, kick: bool = True) -> Change:
        """Ask for another password from now on; `url` has it, and a restart keeps it.

        Args:
            password: None: none is asked for.
            kick: End the connections of everybody who is logged in. Redis itself lets them stay.
        """
        before = self._configuration("requirepass")["requirepass"] or None

        def use(new: str | None) -> None:
            self._do("CONFIG", "SET", "requirepass", new or "")
            self._use_password(new)

        use(password)
        change = self._changed("change_password", lambda: use(before))
        if kick:
            self.kill_clients()
        return change

    def add_user(self, name: str, password: str, *rules: str) -> Change:
        """Let a user log in who may do what *rules* say, such as ``"~jobs:*", "+get", "+set"``."""
        self.command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rules)
        return self._changed("add_user", lambda: self._do("ACL", "DELUSER", name))

    def limit_clients(self, most: int = 1) -> Change:
        """Refuse new connections (ERR max number of clients) while *most* or more are open.

        Those that are open stay, and the connection that `command` uses is one of them.
        """
        return self.configure(maxclients=most)

    def kill_clients(self) -> None:
        """Close the connections of all others once, as an administrator or a proxy may."""
        for kind in ("normal", "pubsub"):
            self.command("CLIENT", "KILL", "TYPE", kind)

    def pause_clients(self, seconds: float) -> None:
        """Answer nobody for so many seconds (CLIENT PAUSE). Connecting works.

        Redis has even CLIENT UNPAUSE wait for the end; `restore` starts another server.
        """
        self.command("CLIENT", "PAUSE", int(positive("seconds", seconds) * 1000))
        self._deaf_until = time.monotonic() + seconds

    def block(self, seconds: float) -> None:
        """Do nothing at all for so many seconds (DEBUG SLEEP). Returns once that has begun.

        It cannot be ended early; `restore` starts another server.
        """
        until = time.monotonic() + positive("seconds", seconds)
        sleep = self._connect()
        ear = self._connect()
        try:
            sleep.send("DEBUG", "SLEEP", seconds)
            while time.monotonic() < until and ear.answers_within(0.02):
                if sleep.stale:
                    raise RuntimeError("the server does not know DEBUG SLEEP")
            self._deaf_until = until
        finally:
            sleep.close()
            ear.close()

    def run_busy_script(self) -> Change:
        """Run a script without end: whatever is asked is refused (BUSY)."""
        limited = self.configure(lua_time_limit=5)
        running = self._connect()
        running.send("EVAL", "while true do end", 0)

        def busy() -> bool:
            try:
                self.command("PING")
            except ReplyError as error:
                return str(error).startswith("BUSY")
            return False

        def undo() -> None:
            running.close()
            with contextlib.suppress(ReplyError):  # somebody killed it already
                self._do("SCRIPT", "KILL")
            self._await(lambda: not (self.runs and busy()))
            limited.undo()

        change = self._changed("run_busy_script", undo)
        self._await(busy)
        return change

    def _configuration(self, pattern: str) -> dict[str, str]:
        words = _texts(self.command("CONFIG", "GET", pattern))
        return dict(zip(words[::2], words[1::2], strict=True))

    def _set(self, configuration: dict[str, str]) -> None:
        for name, value in configuration.items():
            self._do("CONFIG", "SET", name, value)

    def _users(self) -> dict[str, list[str]]:
        lines = [line.split() for line in _texts(self.command("ACL", "LIST"))]
        return {name: rules for _, name, *rules in lines}

    def _persistence(self) -> bytes:
        reply = self.command("INFO", "persistence")
        return reply if isinstance(reply, bytes) else b""

    def _make_master(self) -> None:
        self._do("REPLICAOF", "NO", "ONE")

    def _do(self, *args: str | bytes | float) -> None:
        """Undo something, unless the server ended: a new one knows nothing of it."""
        if self.runs:
            self.command(*args)

    def _changed(self, name: str, undo: Callable[[], None]) -> Change:
        change = Change(name, undo, self._changes.remove)
        self._changes.append(change)
        return change

    def _await(self, seen: Callable[[], bool]) -> None:
        over = time.monotonic() + _SEEN_WITHIN
        while not seen():
            if time.monotonic() > over:
                raise RuntimeError(f"not seen within {_SEEN_WITHIN:g} s")
            time.sleep(0.002)


def _texts(reply: Reply) -> list[str]:
    return (
        [word.decode() for word in reply if isinstance(word, bytes)]
        if isinstance(reply, list)
        else []
    )


def positive(name: str, seconds: object) -> float:
    """Return *seconds*, or raise ValueError by the *name* of the argument."""
    if not (isinstance(seconds, (int, float)) and 0 < seconds < 86_400):
        raise ValueError(f"{name}: above 0, at most a day; not {seconds!r}")
    return float(seconds)
