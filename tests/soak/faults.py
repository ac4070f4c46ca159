"""What can be broken, and how it is put right again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from jmcache.testing import Fault, FaultProxy, PrivateServer

_MEMORY = ("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")


class Lab:
    """A server and, before it, a proxy: everything there is to break. A context manager.

    Attributes:
        tell: Gives an order to everybody who uses the server, and waits until it was carried out.
    """

    def __init__(self, password: str) -> None:
        self.password = password
        self.tell: Callable[[str], object] = lambda order: None
        self.server = PrivateServer(tcp=True, password=password, args=_MEMORY)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.server)
            self.proxy = stack.enter_context(FaultProxy(self.server))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clients(self) -> int:
        """Return how many clients the server has beside us."""
        listed = self.server.command("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        return len(listed.splitlines()) - 1

    def heal(self) -> None:
        """See to it that everything works, whatever was broken."""
        self.proxy.heal()
        self.server.restore()


Kind = Callable[[Lab, random.Random], AbstractContextManager[object]]


@contextlib.contextmanager
def _killed(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.kill()
    yield
    lab.server.start()


@contextlib.contextmanager
def _restarted(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.stop()
    lab.server.start()
    yield


@contextlib.contextmanager
def _loading(lab: Lab, rand: random.Random) -> Iterator[None]:
    # Nobody writes between its last save and its end: what was confirmed then would be lost, and
    # the old value be back, which is no client's fault.
    with lab.proxy.refuse():
        change = lab.server.load(rand.uniform(0.5, 1.5))
    with change:
        yield


@contextlib.contextmanager
def _stopped(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.pause()
    try:
        yield
    finally:
        lab.server.resume()


@contextlib.contextmanager
def _paused(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.pause_clients(rand.uniform(0.3, 0.9))
    yield


@contextlib.contextmanager
def _writes_paused(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.command("CLIENT", "PAUSE", rand.randint(300, 900), "WRITE")
    yield


@contextlib.contextmanager
def _blocked(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.block(rand.uniform(0.3, 0.8))
    yield


@contextlib.contextmanager
def _clients_killed(lab: Lab, rand: random.Random) -> Iterator[None]:
    for _ in range(rand.randint(1, 3)):
        lab.server.kill_clients()
        time.sleep(0.05)
    yield


@contextlib.contextmanager
def _max_clients(lab: Lab, rand: random.Random) -> Iterator[None]:
    with lab.server.limit_clients():  # we are that one
        lab.server.kill_clients()
        yield


@contextlib.contextmanager
def _not_permitted(lab: Lab, rand: random.Random) -> Iterator[None]:
    command = rand.choice(["get", "set", "mget"])
    lab.server.command("ACL", "SETUSER", "default", f"-{command}")
    try:
        yield
    finally:
        lab.server.command("ACL", "SETUSER", "default", f"+{command}")


def _on_line(put: Callable[[FaultProxy, random.Random], Fault]) -> Kind:
    return lambda lab, rand: put(lab.proxy, rand)


@contextlib.contextmanager
def _disconnected(lab: Lab, rand: random.Random) -> Iterator[None]:
    for _ in range(rand.randint(1, 3)):
        lab.proxy.disconnect()
        time.sleep(0.05)
    yield


def _reads(words: list[bytes]) -> bool:
    # Only replies that hold values are sent twice: a forged "stored" would fool everybody.
    return words[0] in (b"GET", b"MGET")


# What happens to commands and replies on their way.
LINE: dict[str, Kind] = {
    "slow": _on_line(lambda proxy, rand: proxy.latency(rand.uniform(0.02, 0.08))),
    "too slow": _on_line(lambda proxy, rand: proxy.latency(rand.uniform(0.26, 0.5))),
    "jitter": _on_line(lambda proxy, rand: proxy.latency(0.0, jitter_s=rand.uniform(0.1, 0.5))),
    "commands delayed": _on_line(lambda proxy, rand: proxy.delay(rand.uniform(0.1, 0.4))),
    "narrow": _on_line(lambda proxy, rand: proxy.bandwidth(rand.randint(5_000, 100_000))),
    "dripping": _on_line(lambda proxy, rand: proxy.drip(every_s=rand.uniform(0.01, 0.2))),
    "stalled": _on_line(lambda proxy, rand: proxy.stall(after=rand.randrange(60))),
    "reset": _on_line(lambda proxy, rand: proxy.reset()),
    "reset in the reply": _on_line(lambda proxy, rand: proxy.reset(after=rand.randint(1, 60))),
    "half-closed": _on_line(lambda proxy, rand: proxy.half_close()),
    "truncated": _on_line(lambda proxy, rand: proxy.truncate(after=rand.randint(1, 60))),
    "an HTTP answer": _on_line(lambda proxy, rand: proxy.garbage()),
    "garbage": _on_line(lambda proxy, rand: proxy.garbage(rand.randbytes(rand.randint(1, 300)))),
    "request lost": _on_line(lambda proxy, rand: proxy.swallow_request()),
    "reply lost": _on_line(lambda proxy, rand: proxy.swallow_reply()),
    "surplus": _on_line(lambda proxy, rand: proxy.surplus(on=_reads)),
    "late surplus": _on_line(lambda proxy, rand: proxy.surplus(late=True, on=_reads)),
    "duplicate": _on_line(lambda proxy, rand: proxy.duplicate(on=_reads)),
    "late duplicate": _on_line(lambda proxy, rand: proxy.duplicate(late=True, on=_reads)),
    "blackhole": _on_line(lambda proxy, rand: proxy.blackhole()),
    "refused": _on_line(lambda proxy, rand: proxy.refuse()),
    "disconnected": _disconnected,
}

# What the server does not do for clients.
SETTINGS: dict[str, Kind] = {
    "read-only": lambda lab, rand: lab.server.make_read_only(),
    "master down": lambda lab, rand: lab.server.lose_master(),
    "full": lambda lab, rand: lab.server.fill(),
    "no replicas": lambda lab, rand: lab.server.require_replicas(),
    "saves fail": lambda lab, rand: lab.server.fail_saves(),
    "max clients": _max_clients,
    "password changed": lambda lab, rand: lab.server.change_password(f"other-{rand.random()}"),
    "not permitted": _not_permitted,
}

# Whether, and how, it lives.
LIFE: dict[str, Kind] = {
    "killed": _killed,
    "restarted": _restarted,
    "stopped": _stopped,
    "paused": _paused,
    "writes paused": _writes_paused,
    "blocked": _blocked,
    "busy": lambda lab, rand: lab.server.run_busy_script(),
    "clients killed": _clients_killed,
}


@contextlib.contextmanager
def _interrupted(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.tell("interrupt")
    yield


@contextlib.contextmanager
def _forked(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.tell("fork")
    yield


# What happens in the processes that use it.
USERS: dict[str, Kind] = {"calls broken off": _interrupted, "forked": _forked}

# What goes together with no other: it takes a server that is well to begin with.
ALONE: dict[str, Kind] = {"loading": _loading}

KINDS: dict[str, Kind] = {**LINE, **SETTINGS, **LIFE, **USERS, **ALONE}
