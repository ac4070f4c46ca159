"""A Redis server of our own: started for a test or a demo, broken at will, gone afterwards."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from jmcache import fork
from jmcache.testing.certificates import Certificate
from jmcache.testing.find import ServerBinary, find_server
from jmcache.testing.resp import Link, Reply, ReplyError
from jmcache.testing.server._endpoint import Endpoint
from jmcache.testing.server._faults import Breakable, Change, positive
from jmcache.testing.server._process import ServerProcess

__all__ = ["Change", "PrivateServer"]

_READY_WITHIN = 10.0  # seconds; a start takes 0.01, on a starved machine 1
_PORT_ATTEMPTS = 5
_FILLER = "jmcache:filler:%d"  # names of the entries that make loading slow
_FILLERS = 200


class PrivateServer(Breakable):
    """A redis-server or valkey-server process that belongs to this object.

    It keeps nothing on disk, listens on a Unix socket in a folder only we may enter, or on a free
    port of 127.0.0.1, and never on port 6379. It is ended by its process id, whatever happens:
    with the ``with`` block, at exit, and also when this process is killed.

        with PrivateServer() as server:
            cache = RedisCacheFactory.create_cache(CacheSettings.from_url(server.url))
            with server.fill():
                assert cache.set("key", "value") is False

    `command` may be called from any thread, everything else from one at a time. A forked child
    may call `command`; to start, signal or end the server is left to the process that made it.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        tls: bool | Certificate = False,
        password: str | None = None,
        args: Sequence[str] = (),
        directory: str | os.PathLike[str] | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        """Choose a server, start none yet.

        Args:
            tcp: Listen on a port instead of a Unix socket.
            tls: The same, and only encrypted. True: with a certificate for localhost and
                127.0.0.1 of an authority of its own, which *url* names.
            password: Ask clients for it.
            args: More of the server's own options, such as ``("--maxmemory", "10mb")``.
            directory: Where its socket, log and data go; it stays. None: a folder that goes too.
            binary: What to start, such as ``find_server("valkey")``; None: what that finds.

        Raises:
            RedisServerNotFound: This machine has no server to start.
        """
        super().__init__()
        self.binary: ServerBinary = binary or find_server()
        self._endpoint = Endpoint(on_port=tcp, tls=tls)
        self._password = self._first_password = password
        self._args = tuple(args)
        self._process = ServerProcess(directory)
        self._link_lock = threading.Lock()
        self._link: Link | None = None  # guarded by _link_lock
        self._as_started: dict[str, str] = {}  # its configuration
        self._users_as_started: dict[str, list[str]] = {}
        fork.renew_in_child(self._renew_in_child)

    def __repr__(self) -> str:
        where = self._endpoint.known_port or self._process.directory
        return f"<PrivateServer {self.binary.kind} {self.binary.version} at {where}>"

    def __enter__(self) -> PrivateServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """It was started, and has not ended; it may be paused."""
        return self._process.runs

    @property
    def socket_path(self) -> Path:
        """The Unix socket it listens on, the same after a restart.

        Raises:
            RuntimeError: It listens on a port, or was never started.
        """
        if self._endpoint.on_port:
            return self._endpoint.socket_path(Path())  # which raises: before the folder does
        return self._endpoint.socket_path(self._folder())

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 it listens on, the same after a restart.

        Raises:
            RuntimeError: It listens on a Unix socket, or was never started.
        """
        return self._endpoint.port

    @property
    def url(self) -> str:
        """Its address as a URL, with the password if it has one, and whom to trust if with TLS."""
        return self._endpoint.url(self._folder(), "", self._password)

    def url_for(self, user: str, password: str) -> str:
        """The same for another user, such as one made by `add_user`."""
        return self._endpoint.url(self._folder(), user, password)

    def start(self) -> None:
        """Start it and wait until it answers; again on the same address after a stop or kill.

        Does nothing while it runs.

        Raises:
            RuntimeError: It did not start; the message ends in what it wrote.
        """
        self._process.insist_on_owner()
        if not self._process.runs:
            self._start(())
            self._note_as_started()

    def stop(self) -> None:
        """Ask it to end (SIGTERM), also if it is paused, and wait. Nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would, and wait. Nothing if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing is answered. Returns once frozen."""
        self._process.pause()

    def resume(self) -> None:
        """Let it go on where it was paused (SIGCONT)."""
        self._process.resume()

    def load(self, seconds: float) -> Change:
        """Kill it and start it with what it had, which takes it about so many seconds (LOADING).

        Its entries are there when it has loaded, and 200 besides that make the loading slow, until
        the change is undone. Returns once it is loading; undoing it ends that early.
        """
        positive("seconds", seconds)
        for number in range(_FILLERS):
            self.command("SET", _FILLER % number, os.urandom(2048))  # nothing to compress
        self.command("SAVE")
        self.kill()
        delay_us = int(seconds * 1e6 / _FILLERS)
        slowly = ("--key-load-delay", delay_us, "--loading-process-events-interval-bytes", 1024)
        self._start([str(word) for word in slowly], loading=True)
        (self._folder() / "dump.rdb").unlink()  # it has it open; the next start finds nothing

        def undo() -> None:
            self._do("CONFIG", "SET", "key-load-delay", 0)
            self._await(lambda: not self.runs or b"\nloading:0" in self._persistence())
            self._do("DEL", *(_FILLER % number for number in range(_FILLERS)))

        return self._changed("load", undo)

    def restore(self) -> None:
        """Make it a server as it was started: running, and with nothing changed but its entries.

        Undoes every Change, and what ``CONFIG SET`` and ``ACL SETUSER`` changed by other ways. A
        server that cannot be reached for that any more is killed and started: it is empty then.
        """
        if time.monotonic() < self._deaf_until:
            self.kill()
        self.start()
        self.resume()
        try:
            self._undo_changes()
            if self._as_started:
                self._undo_unnoted()
        except (OSError, ReplyError):
            self.kill()
            self._undo_changes()
            self._password = self._first_password
            self.start()

    def close(self) -> None:
        """End it, and remove its folder if that was ours.

        Does nothing the second time, and nothing in a forked child.
        """
        if self._process.ours:
            self._forget()
            self._process.close()
            self._endpoint.forget_certificates()
            self._as_started = {}
            atexit.unregister(self.close)

    def command(self, *args: str | bytes | float) -> Reply:
        """Send one command on a connection of this object's own, and return the reply.

        Each wait ends after 5 s. The connection stays open, so it counts as one client, and
        still gets through when a lowered ``maxclients`` keeps new ones out.

        Raises:
            ReplyError: The server answered with an error.
            OSError: It gave no answer.
        """
        with self._link_lock:
            link, self._link = self._link, None
            if link is not None and link.stale:
                link.close()
                link = None
            if link is None:
                link = self._connect()
            try:
                reply = link.ask(*args)
            except ReplyError:
                self._link = link
                raise
            except BaseException:
                link.close()
                raise
            self._link = link
            return reply

    def _connect(self) -> Link:
        link = self._endpoint.link(self._folder())
        if self._password is not None:
            try:
                link.ask("AUTH", self._password)
            except BaseException:
                link.close()
                raise
        return link

    def _start(self, more: Sequence[str], *, loading: bool = False) -> None:
        self._forget()
        atexit.register(self.close)
        self._process.prepare()
        self._let_saves_succeed()
        known_port = self._endpoint.known_port
        for _ in range(_PORT_ATTEMPTS):
            if known_port is None:
                self._endpoint.draw_port()
            try:
                self._launch(more, loading)
                return
            except _AddressTakenError:
                # Chosen and lost within milliseconds: choose again. Or, known to clients from
                # before and now held by one of them: an outgoing connection got that number.
                if known_port is not None:
                    time.sleep(0.5)
        raise RuntimeError(
            f"port {self._endpoint.known_port} of 127.0.0.1 is taken, and stays taken"
        )

    def _launch(self, more: Sequence[str], loading: bool) -> None:
        log_path = self._folder() / "server.log"
        self._process.launch([*self._command_line(self._folder()), *more], log_path)
        try:
            self._wait_until_ready(log_path, loading)
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def _command_line(self, directory: Path) -> list[str]:
        line = [str(self.binary.path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
        line += self._endpoint.options(directory)
        if int(self.binary.version.partition(".")[0]) >= 7:  # it is always there before
            line += ["--enable-debug-command", "local"]
        if self._password is not None:
            line += ["--requirepass", self._password]
        return [*line, *self._args]

    def _wait_until_ready(self, log_path: Path, loading: bool) -> None:
        over = time.monotonic() + _READY_WITHIN
        while time.monotonic() < over and self._process.runs:
            try:
                # It may be somebody else's server that answers on a port we lost.
                info = self.command("INFO", "server")
                if isinstance(info, bytes) and f"process_id:{self.pid}\r".encode() in info:
                    if loading == (b"\nloading:1" in self._persistence()):
                        return
            except (OSError, ReplyError, RuntimeError):
                pass  # not listening yet, or just ended
            time.sleep(0.005)
        said = log_path.read_text(errors="replace")
        if "ddress already in use" in said:
            raise _AddressTakenError(f"port {self._endpoint.known_port} is in use")
        raise RuntimeError(f"{self.binary.path} did not start:\n{said[-2000:]}")

    def _note_as_started(self) -> None:
        if self._as_started:  # a later start is with a changed password, perhaps
            return
        try:
            self._as_started = self._configuration("*")
            self._users_as_started = self._users()
        except ReplyError:
            pass  # a sentinel has neither, and CONFIG may be renamed

    def _undo_changes(self) -> None:
        while self._changes:
            self._changes[-1].undo()

    def _undo_unnoted(self) -> None:
        now = self._configuration("*")
        self._set({n: value for n, value in self._as_started.items() if now.get(n) != value})
        users = self._users()
        for name in users.keys() - self._users_as_started.keys():
            self._do("ACL", "DELUSER", name)
        for name, rules in self._users_as_started.items():
            if users.get(name) != rules:
                self._do("ACL", "SETUSER", name, "reset", *rules)

    def _folder(self) -> Path:
        return self._process.folder

    def _use_password(self, password: str | None) -> None:
        self._password = password

    def _end(self, how: signal.Signals) -> None:
        self._deaf_until = 0.0
        self._process.end(how)
        self._forget()

    def _forget(self) -> None:
        with self._link_lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _renew_in_child(self) -> None:
        self._link_lock = threading.Lock()
        if self._link is not None:
            self._link.close()  # its replies are the parent's
            self._link = None
        self._process.forget_in_child()


class _AddressTakenError(RuntimeError):
    """Somebody else was faster to take the port."""
