"""What is broken, in which order, and how it is put right again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jmcache.testing import Fault, FaultProxy, PrivateServer, ReplyError

_MEMORY = {"maxmemory": "256mb", "maxmemory-policy": "allkeys-lru"}
_BLOCK = """
    local function now() local t = redis.call('TIME') return t[1] + t[2] / 1000000 end
    local over = now() + tonumber(ARGV[1])
    while now() < over do end
"""


class Lab:
    """A server and, before it, a proxy: everything there is to break. A context manager.

    Attributes:
        tell: Gives an order to everybody who uses the server, and waits until it was carried out.
    """

    def __init__(self, password: str) -> None:
        self.password = password
        self.tell: Callable[[str], object] = lambda order: None
        args = [word for name, value in _MEMORY.items() for word in (f"--{name}", value)]
        self.server = PrivateServer(tcp=True, password=password, args=args)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.server)
            self.proxy = stack.enter_context(FaultProxy(self.server))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def config(self, **settings: str) -> None:
        """CONFIG SET; a name's ``_`` stands for ``-``."""
        for name, value in settings.items():
            self.server.command("CONFIG", "SET", name.replace("_", "-"), value)

    def kick(self) -> None:
        """Close the connections of all clients but ours."""
        self.server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def clients(self) -> int:
        """Return how many clients the server has beside us."""
        listed = self.server.command("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        return len(listed.splitlines()) - 1

    def heal(self) -> None:
        """See to it that everything works, whatever was broken."""
        self.proxy.heal()
        try:
            self.server.start()
            self.server.command("PING")
        except (OSError, ReplyError):  # not even we get in: a new one has the old settings
            self.server.kill()
            self.server.start()


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
def _stopped(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.pause()
    try:
        yield
    finally:
        lab.server.resume()


@contextlib.contextmanager
def _paused(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.command("CLIENT", "PAUSE", rand.randint(300, 900), "ALL")
    yield


@contextlib.contextmanager
def _writes_paused(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.command("CLIENT", "PAUSE", rand.randint(300, 900), "WRITE")
    yield


@contextlib.contextmanager
def _blocked(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.command("EVAL", _BLOCK, 0, f"{rand.uniform(0.3, 0.8):.3f}")
    yield


@contextlib.contextmanager
def _busy(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.config(lua_time_limit="50")
    try:
        lab.server.command("EVAL", _BLOCK, 0, f"{rand.uniform(0.3, 0.8):.3f}")
        yield
    finally:
        lab.config(lua_time_limit="5000")


@contextlib.contextmanager
def _read_only(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        lab.server.command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def _master_down(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.config(replica_serve_stale_data="no")
    try:
        with _read_only(lab, rand):
            yield
    finally:
        lab.config(replica_serve_stale_data="yes")


@contextlib.contextmanager
def _full(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.config(maxmemory_policy="noeviction", maxmemory="1")
    try:
        yield
    finally:
        lab.config(**{name.replace("-", "_"): value for name, value in _MEMORY.items()})


@contextlib.contextmanager
def _clients_killed(lab: Lab, rand: random.Random) -> Iterator[None]:
    for _ in range(rand.randint(1, 3)):
        lab.kick()
        time.sleep(0.05)
    yield


@contextlib.contextmanager
def _max_clients(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.config(maxclients="1")  # we are that one
    lab.kick()
    try:
        yield
    finally:
        lab.config(maxclients="10000")


@contextlib.contextmanager
def _password_changed(lab: Lab, rand: random.Random) -> Iterator[None]:
    lab.config(requirepass=f"other-{rand.random()}")
    lab.kick()
    try:
        yield
    finally:
        lab.config(requirepass=lab.password)


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
    "read-only": _read_only,
    "master down": _master_down,
    "full": _full,
    "max clients": _max_clients,
    "password changed": _password_changed,
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
    "busy": _busy,
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

KINDS: dict[str, Kind] = {**LINE, **SETTINGS, **LIFE, **USERS}

COMBINED_EVERY = 4


@dataclass(frozen=True, slots=True)
class Episode:
    """Something that is broken for a while.

    Attributes:
        kinds: What, in the order it happens; put right in the opposite one.
        hold_s: Seconds from each of them to the next, and from the last to the end.
        rest_s: Seconds without a fault after it.
    """

    kinds: tuple[str, ...]
    hold_s: float
    rest_s: float

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join(self.kinds)


def episodes(rand: random.Random) -> Iterator[Episode]:
    """Yield what is to happen, without end.

    Every kind has its turn before any has a second one. Some episodes combine one of each sort,
    such as slow replies, then another password, then a kill.
    """
    while True:
        bag = list(KINDS)
        rand.shuffle(bag)
        for number, kind in enumerate(bag, 1):
            kinds: tuple[str, ...] = (kind,)
            if number % COMBINED_EVERY == 0:
                kinds = tuple(
                    kind if kind in sort else rand.choice(tuple(sort))
                    for sort in (LINE, SETTINGS, USERS if kind in USERS else LIFE)
                )
            yield Episode(kinds, rand.uniform(0.2, 0.8), rand.uniform(0.6, 1.6))


class Saboteur:
    """Breaks one thing after the other, on a thread of its own. A context manager.

    Leaving it puts everything right; from then on nothing is broken.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab = lab
        self._rand = random.Random(seed)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="soak-saboteur", daemon=True)
        self.current = ""  # name of the episode at this moment
        self.done: list[Episode] = []
        self._begun: list[tuple[str, float]] = []  # names, monotonic seconds
        self.troubles: list[str] = []  # episodes that did not go as they should

    def __enter__(self) -> Saboteur:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._lab.heal()

    def check(self) -> None:
        """Raise what ended it early."""
        if self._failure is not None:
            raise RuntimeError("nothing is broken any more") from self._failure

    def count(self) -> dict[str, int]:
        """Return how often each kind has happened."""
        counts = dict.fromkeys(KINDS, 0)
        for episode in self.done:
            for kind in episode.kinds:
                counts[kind] += 1
        return counts

    def explain(self, moment: float) -> str:
        """Return what was, or had just been, broken at that *moment*, in monotonic seconds."""
        before = [name for name, began in self._begun if began <= moment]
        return before[-1] if before else "no fault"

    def _run(self) -> None:
        try:
            for episode in episodes(random.Random(self._rand.random())):
                if self._over.wait(episode.rest_s):
                    return
                self._break(episode)
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits for us
            self._failure = error

    def _break(self, episode: Episode) -> None:
        self._begun.append((episode.name, time.monotonic()))
        self.current = episode.name
        try:
            with contextlib.ExitStack() as stack:
                for kind in episode.kinds:
                    stack.enter_context(KINDS[kind](self._lab, self._rand))
                    self._over.wait(episode.hold_s)
        except (OSError, ReplyError) as error:  # a command of ours met what we broke
            self.troubles.append(f"{episode.name}: {type(error).__name__}: {error}")
            self._lab.heal()
        self.current = ""
        self.done.append(episode)
