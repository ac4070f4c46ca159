"""A master, its replicas and the sentinels that watch them, of our own: broken at will."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

from jmcache.testing.certificates import Certificate, Certificates
from jmcache.testing.resp import ReplyError
from jmcache.testing.server import PrivateServer

T = TypeVar("T")

_NAME = "mymaster"
_READY_WITHIN_S = 30.0  # a start takes 1 s
_LOOK_AGAIN_S = 0.02
_FAILOVER_TIMEOUT_MS = 1500  # twice this passes before the same master is failed over again

# A sentinel tries to connect once a second. One that tried to reach the dead master just before it
# hears of the new one has no link to that for a second, which counts as silence; and for 5 s the
# others' votes about the dead one count against it too. With 1.0 s a new master was deposed at once
# in one failover of twenty on a busy machine.
_DOWN_AFTER_S = 1.5

# Milliseconds between what sentinels do all the time, so that they find each other and the replicas
# in a second instead of ten; and how long they may be held up without distrusting their clock. How
# often they PING stays as it is: the more often, the more often two want to lead a failover at the
# same moment, and it has to wait for the next election. For four publish-periods a sentinel lets a
# replica believe to be a master before it puts that right, and for a second the one that leads a
# failover may not see that its replica has become one: with 200, another one undid what it did.
_PACE = {"info-period": 200, "publish-period": 500, "tilt-trigger": 60_000}


class PrivateSentinel:
    """Several servers that belong to this object: one master, its replicas, and their sentinels.

        with PrivateSentinel() as watched:
            cache = RedisCacheFactory.create_cache(CacheSettings.from_url(watched.url))
            watched.master().kill()
            watched.wait_for_failover()

    Each of them is a `PrivateServer`: kill, pause, resume and start it by that one's methods; all
    are ended whatever happens. To be used from one thread at a time, by the process that made it.

    Attributes:
        servers: Redis, in no order that lasts: `master` tells which is which.
        sentinels: Sentinels.
    """

    def __init__(
        self,
        *,
        sentinels: int = 3,
        replicas: int = 1,
        down_after_s: float = _DOWN_AFTER_S,
        password: str | None = None,
        sentinel_password: str | None = None,
        tls: Certificates | None = None,
        args: Sequence[str] = (),
    ) -> None:
        """Choose what it will be, start nothing yet.

        Args:
            sentinels: How many; more than half of them have to agree on a failover.
            replicas: How many there are beside the master.
            down_after_s: Seconds of silence after which a sentinel holds a server to be down. A
                replica takes its place about 1 s later. Below 1.2 a sentinel now and then holds
                that one to be down as well, before it has connected to it.
            password: Redis asks clients for it.
            sentinel_password: The sentinels do.
            tls: All of them speak TLS only, also with each other, with a certificate of these.
            args: More of redis-server's own options, for every server but the sentinels.

        Raises:
            RedisServerNotFound: This machine has no server to start.
        """
        self._password = password
        self._sentinel_password = sentinel_password
        self._started = False
        issued = tls.issue() if tls else None
        secure = (
            ("--tls-replication", "yes", "--tls-ca-cert-file", str(tls.authority)) if tls else ()
        )
        options = (
            "--repl-diskless-sync-delay", "0",
            *(("--masterauth", password) if password else ()),
            *secure,
            *args,
        )  # fmt: skip
        self.servers = [
            PrivateServer(tcp=True, tls=issued or False, password=password, args=options)
            for _ in range(1 + replicas)
        ]
        self.sentinels: list[PrivateServer] = [
            _Sentinel(
                tls=issued or False,
                password=sentinel_password,
                watch=self._watch_list(down_after_s, quorum=sentinels // 2 + 1),
                args=secure,
            )
            for _ in range(sentinels)
        ]

    def __enter__(self) -> PrivateSentinel:
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
    def url(self) -> str:
        """Its address as a URL that names every sentinel, with the passwords if it has any."""
        user = "" if self._password is None else f":{quote(self._password, safe='')}@"
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        scheme = self.sentinels[0].url.partition("://")[0]
        theirs = self._sentinel_password
        query = "" if theirs is None else f"?sentinel_password={quote(theirs, safe='')}"
        return f"{scheme}+sentinel://{user}{places}/{_NAME}/0{query}"

    def start(self) -> None:
        """Start all, and wait until every sentinel knows all others, and every replica is fed.

        Later: start those that were ended, resume those that were paused, and wait likewise.

        Raises:
            RuntimeError: It did not come to that in 30 s.
        """
        try:
            for server in (*self.servers, *self.sentinels):
                server.start()
                server.resume()
            if not self._started:
                for server in self.servers[1:]:
                    server.command("REPLICAOF", "127.0.0.1", self.servers[0].port)
                self._started = True
            for sentinel in self.sentinels:
                for what, milliseconds in _PACE.items():
                    with contextlib.suppress(ReplyError):  # Redis 7.0 and later
                        sentinel.command("SENTINEL", "DEBUG", what, milliseconds)
            self.wait_until_well()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all of them. Does nothing the second time, and nothing in a forked child."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def master(self) -> PrivateServer:
        """Return the server that most of the sentinels that answer hold to be the master."""
        ports = [port for sentinel in self.sentinels if (port := _master_port(sentinel))]
        if not ports:
            raise RuntimeError("no sentinel answers")
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)

    def replicas(self) -> list[PrivateServer]:
        """Return the other servers."""
        master = self.master()
        return [server for server in self.servers if server is not master]

    def fail_over(self) -> PrivateServer:
        """Have a replica take the master's place in good order; return it when it has."""
        before = self.master()
        return self._wait(lambda: self._asked_to_replace(before), "a failover")

    def wait_for_failover(self, before: PrivateServer | None = None) -> PrivateServer:
        """Wait until another server than *before* is the master, and return that.

        Args:
            before: None: the one that is it now, as the sentinels see it.
        """
        old = before or self.master()
        return self._wait(lambda: self._successor(old), "a new master")

    def wait_until_well(self) -> None:
        """Wait until all sentinels agree that all are well, and every replica has all data.

        Raises:
            RuntimeError: It did not come to that in 30 s.
        """
        self._wait(self._is_well, "a state in which all are well")

    def _watch_list(self, down_after_s: float, quorum: int) -> Callable[[], list[str]]:
        def lines() -> list[str]:
            master = self.servers[0] if not self._started else self.master()
            about = {
                "monitor": f"127.0.0.1 {master.port} {quorum}",
                "down-after-milliseconds": str(int(down_after_s * 1000)),
                "failover-timeout": str(_FAILOVER_TIMEOUT_MS),
            }
            if self._password is not None:
                about["auth-pass"] = self._password
            return [f"sentinel {what} {_NAME} {value}" for what, value in about.items()] + (
                [f"sentinel sentinel-pass {self._sentinel_password}"]
                if self._sentinel_password
                else []
            )

        return lines

    def _asked_to_replace(self, old: PrivateServer) -> PrivateServer | None:
        # Again if it was given up, which a slow replica is enough for. Not while it goes on, nor
        # when it has succeeded: that would put the old master back.
        seen = _fields(self.sentinels[0].command("SENTINEL", "MASTER", _NAME))
        if int(seen["port"]) == old.port and "failover_in_progress" not in seen["flags"]:
            self.sentinels[0].command("SENTINEL", "FAILOVER", _NAME)
        return self._successor(old)

    def _successor(self, old: PrivateServer) -> PrivateServer | None:
        master = self.master()
        return master if master is not old and _is_master(master) else None

    def _is_well(self) -> bool:
        ports = set()
        for sentinel in self.sentinels:
            master = _fields(sentinel.command("SENTINEL", "MASTER", _NAME))
            others = sentinel.command("SENTINEL", "REPLICAS", _NAME)
            if not isinstance(others, list) or len(others) != len(self.servers) - 1:
                return False
            if master["flags"] != "master" or any(
                _fields(other)["flags"] != "slave" or _fields(other)["master-link-status"] != "ok"
                for other in others
            ):
                return False
            if int(master["num-other-sentinels"]) != len(self.sentinels) - 1:
                return False
            ports.add(master["port"])
        return len(ports) == 1 and _is_master(self.master())

    def _wait(self, until: Callable[[], T | None], what: str) -> T:
        over = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < over:
            with contextlib.suppress(OSError, ReplyError):  # not up yet, or loading
                if found := until():
                    return found
            time.sleep(_LOOK_AGAIN_S)
        raise RuntimeError(f"the sentinels did not come to {what} in {_READY_WITHIN_S:.0f} s")


class _Sentinel(PrivateServer):
    """A sentinel, which is redis-server with a file that it writes to."""

    def __init__(
        self,
        *,
        tls: bool | Certificate,
        password: str | None,
        watch: Callable[[], list[str]],
        args: Sequence[str],
    ) -> None:
        super().__init__(tcp=True, tls=tls, password=password, args=args)
        self._watch = watch

    def _command_line(self, directory: Path) -> list[str]:
        file = directory / "sentinel.conf"
        if not file.exists():  # it keeps there what it finds out
            file.write_text("\n".join([f"dir {directory}", *self._watch(), ""]), "utf-8")
        line = [str(self.binary.path), str(file), "--sentinel", *self._endpoint.options(directory)]
        if self._password is not None:
            line += ["--requirepass", self._password]
        return [*line, *self._args]


def _master_port(sentinel: PrivateServer) -> int | None:
    with contextlib.suppress(OSError, ReplyError):
        reply = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _NAME)
        if isinstance(reply, list) and isinstance(reply[1], bytes):
            return int(reply[1])
    return None


def _is_master(server: PrivateServer) -> bool:
    info = server.command("INFO", "replication")
    return isinstance(info, bytes) and b"role:master" in info


def _fields(reply: object) -> dict[str, str]:
    words = [word.decode() for word in reply] if isinstance(reply, list) else []
    return dict(zip(words[::2], words[1::2], strict=True))
