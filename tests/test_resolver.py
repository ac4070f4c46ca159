"""Names to addresses: never later than the deadline, never more than one look-up at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import ScriptedServer, answering

from jmcache.connection import RedisConnectionManager, _look_up
from jmcache.connection._look_up import LookUp
from jmcache.connection._resolver import Found, Resolver
from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError, RedisTimeoutError
from jmcache.settings import CacheSettings

D = 0.25
ALLOWED_S = 0.30
HOST = "redis.example"


class Names:
    """The system's look-up, under the test's thumb."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] | Exception = [("10.0.0.1", 6379)]
        self.let_go = threading.Event()  # every look-up waits for it
        self.let_go.set()
        self.started = threading.Semaphore(0)
        self.count = 0

    def __call__(self, host: str, port: int, **_: object) -> list[Any]:
        self.count += 1
        self.started.release()
        assert self.let_go.wait(timeout=30)
        if isinstance(self.answers, Exception):
            raise self.answers
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address or (host, port))
            for address in self.answers
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    fake = Names()
    monkeypatch.setattr(socket, "getaddrinfo", fake)
    yield fake
    fake.let_go.set()


@pytest.fixture
def resolver(names: Names) -> Resolver:
    return Resolver(HOST, 6379)


def soon() -> Deadline:
    return Deadline(5.0)


def hosts(found: Found) -> list[str]:
    return [address.place[0] for address in found]


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)],
)
def test_an_address_is_not_looked_up(host: str, family: int, names: Names) -> None:
    """A thread for each connection, for nothing."""
    assert Resolver(host, 6379).get(soon()) == [(family, (host, 6379), host)]
    assert names.count == 0


def test_a_name_has_all_its_addresses_in_their_order(resolver: Resolver, names: Names) -> None:
    """With one alone, a dead server behind the name would be an outage."""
    names.answers = [("10.0.0.2", 6379), ("10.0.0.1", 6379)]
    assert hosts(resolver.get(soon())) == ["10.0.0.2", "10.0.0.1"]


def test_a_name_is_looked_up_anew_for_each_connection(resolver: Resolver, names: Names) -> None:
    """After a failover by DNS, kept addresses would lead to the old master for ever."""
    resolver.get(soon())
    names.answers = [("10.0.0.9", 6379)]
    assert hosts(resolver.get(soon())) == ["10.0.0.9"]


def test_an_unknown_name_is_a_connection_error(resolver: Resolver, names: Names) -> None:
    """A typing error in the settings must not look like a timeout."""
    names.answers = socket.gaierror(socket.EAI_NONAME, "unknown")
    with pytest.raises(RedisConnectionError) as caught:
        resolver.get(soon())
    assert caught.value.reason == "dns"


@pytest.mark.parametrize("host", ["." * 3, "a" * 70 + ".example"])
def test_a_name_that_cannot_be_one_is_a_connection_error(host: str) -> None:
    """The codec for names raises ValueErrors, which nobody catches."""
    with pytest.raises(RedisConnectionError) as caught:
        Resolver(host, 6379).get(soon())
    assert caught.value.reason == "dns"


def test_a_look_up_that_is_late_costs_the_deadline(resolver: Resolver, names: Names) -> None:
    """10 to 28 s, whatever the timeouts of the client."""
    names.let_go.clear()
    began = time.perf_counter()
    with pytest.raises(RedisConnectionError) as caught:
        resolver.get(Deadline(D))
    assert time.perf_counter() - began <= ALLOWED_S
    assert caught.value.reason == "dns"


def test_callers_at_once_share_one_look_up(resolver: Resolver, names: Names) -> None:
    """A name server in trouble would get a thread and a query for each caller."""
    names.let_go.clear()
    start = threading.Barrier(20)

    def ask(_: int) -> list[str]:
        start.wait(timeout=10)
        return hosts(resolver.get(Deadline(10.0)))

    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(ask, number) for number in range(20)]
        assert names.started.acquire(timeout=10)
        time.sleep(0.05)  # for a second one to start, if there is one
        assert names.count == 1
        names.let_go.set()
        assert all(call.result(timeout=10) == ["10.0.0.1"] for call in asked)


def test_callers_that_share_a_failure_have_an_error_each(resolver: Resolver, names: Names) -> None:
    """A traceback grows with everybody who raises the error, and keeps all their frames."""
    names.let_go.clear()
    names.answers = socket.gaierror(socket.EAI_NONAME, "unknown")
    start = threading.Barrier(2)

    def ask(_: int) -> BaseException:
        start.wait(timeout=10)
        with pytest.raises(RedisConnectionError) as caught:
            resolver.get(Deadline(10.0))
        return caught.value

    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, number) for number in range(2)]
        assert names.started.acquire(timeout=10)
        time.sleep(0.02)  # for the second to join
        names.let_go.set()
        first, second = (call.result(timeout=10) for call in asked)
    assert first is not second
    assert str(first) == str(second)


def test_callers_one_after_the_other_share_a_late_look_up(resolver: Resolver, names: Names) -> None:
    """Each call of an outage would leave one more thread behind."""
    names.let_go.clear()
    for _ in range(5):
        with pytest.raises(RedisConnectionError):
            resolver.get(Deadline(0.01))
    assert names.count == 1
    names.let_go.set()
    assert hosts(resolver.get(soon())) == ["10.0.0.1"]


@pytest.mark.parametrize("trouble", ["late", "failing"])
def test_the_last_good_addresses_serve_on(trouble: str, resolver: Resolver, names: Names) -> None:
    """An outage of the name server would be one of the cache."""
    resolver.get(soon())
    if trouble == "late":
        names.let_go.clear()
    else:
        names.answers = socket.gaierror(socket.EAI_AGAIN, "no answer")
    began = time.perf_counter()
    assert hosts(resolver.get(Deadline(D))) == ["10.0.0.1"]
    # Half of the deadline is left to connect with.
    assert time.perf_counter() - began <= D / 2 + 0.05


def test_a_look_up_that_ends_after_its_caller_serves_the_next(
    resolver: Resolver, names: Names
) -> None:
    """A name server that takes longer than the deadline would never be of use."""
    names.let_go.clear()
    with pytest.raises(RedisConnectionError):
        resolver.get(Deadline(0.01))
    names.let_go.set()
    while not resolver._last_found:
        time.sleep(0.001)
    names.let_go.clear()
    assert hosts(resolver.get(Deadline(0.1))) == ["10.0.0.1"]


def test_without_a_thread_there_is_an_error_and_no_wait(
    resolver: Resolver, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its limit of threads a process would get RuntimeErrors from its cache."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(_look_up._thread, "start_new_thread", refuse)
        began = time.perf_counter()
        with pytest.raises(RedisConnectionError) as caught:
            resolver.get(soon())
        assert time.perf_counter() - began < 1.0
        assert caught.value.reason == "dns"
    assert hosts(resolver.get(soon())) == ["10.0.0.1"]


class Hanging(LookUp[str]):
    """Comes back from its first question when it may, and from the others at once."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.asked = 0

    def _ask(self) -> str:
        self.asked += 1
        number = self.asked
        self.begun.set()
        assert number > 1 or self.may_end.wait(10)
        return f"answer {number}"

    def _vain(self, why: str) -> RedisConnectionError:
        return RedisConnectionError(why)


def test_one_that_never_comes_back_is_given_up() -> None:
    """A password function that hung once left the cache without Redis for good."""
    look_up = Hanging()
    first = look_up._start()
    assert look_up.begun.wait(10)
    with pytest.raises(RedisConnectionError):
        look_up.get(Deadline(0.01))
    assert look_up.asked == 1
    first.given_up_at = time.monotonic()
    assert look_up._start().patience_s == 2 * first.patience_s
    assert look_up.get(soon()).startswith("answer")
    assert look_up.asked > 1
    look_up.may_end.set()
    _look_up.wait(first, soon())
    assert first.found == "answer 1"
    assert look_up._last_found != "answer 1", "it is older than what came after it"


class Interrupt(Exception):  # noqa: N818 - it is no error
    """What a signal handler raises."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_starter_that_is_interrupted_holds_nobody_up(
    when: str, resolver: Resolver, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would wait for a look-up that nobody ever started, each for its whole deadline."""
    start = _look_up._thread.start_new_thread

    def interrupted(*args: Any) -> int:
        if when == "after":
            start(*args)
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(_look_up._thread, "start_new_thread", interrupted)
        with pytest.raises(Interrupt):
            resolver.get(soon())
    began = time.perf_counter()
    assert hosts(resolver.get(soon())) == ["10.0.0.1"]
    assert time.perf_counter() - began < 1.0


def test_a_waiter_that_is_interrupted_holds_nobody_up(resolver: Resolver, names: Names) -> None:
    """One that took the gate and could not open it again would stop all the others."""
    names.let_go.clear()
    look_up = resolver._start()
    names.let_go.set()
    assert look_up.gate.acquire(timeout=5)  # and never released
    began = time.perf_counter()
    _look_up.wait(look_up, soon())
    assert time.perf_counter() - began < 1.0


def in_child(work: Callable[[], bool]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        right = False
        try:
            right = work()
        finally:
            os._exit(0 if right else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_waits_for_no_look_up_of_its_parent(resolver: Resolver, names: Names) -> None:
    """The thread that looks up exists in the parent only; the child would wait for ever."""
    names.let_go.clear()
    with pytest.raises(RedisConnectionError):
        resolver.get(Deadline(0.01))
    names.answers = [("10.0.0.5", 6379)]

    def child() -> bool:
        names.let_go = threading.Event()
        names.let_go.set()
        return hosts(resolver.get(soon())) == ["10.0.0.5"]

    assert in_child(child)


def test_a_child_answers_though_the_lock_was_held_at_the_fork(
    resolver: Resolver, names: Names
) -> None:
    """One held lock is one dead worker."""
    with resolver._lock:
        assert in_child(lambda: hosts(resolver.get(soon())) == ["10.0.0.1"])


# Several addresses -----------------------------------------------------------------------------


@contextlib.contextmanager
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that swallows connection requests."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()


def test_a_dead_address_before_a_living_one_still_leads_to_redis(names: Names) -> None:
    """Half of a name's addresses dead would be an outage of all."""
    with swallowing() as dead, ScriptedServer(answering(b"$1\r\nv\r\n")) as server:
        names.answers = [dead, ("127.0.0.1", server.port)]
        manager = RedisConnectionManager(CacheSettings(host=HOST))
        try:
            assert manager.get(b"k", Deadline(D)) == b"v"
        finally:
            manager.close()


def test_refusing_addresses_before_a_living_one_cost_nothing(names: Names) -> None:
    """`localhost` is often ::1 first, where nobody listens."""
    with socket.socket() as bound, ScriptedServer(answering(b"$1\r\nv\r\n")) as server:
        bound.bind(("127.0.0.1", 0))
        names.answers = [bound.getsockname()] * 3 + [("127.0.0.1", server.port)]
        manager = RedisConnectionManager(CacheSettings(host=HOST))
        began = time.perf_counter()
        try:
            assert manager.get(b"k", soon()) == b"v"
        finally:
            manager.close()
        assert time.perf_counter() - began < 0.5


def test_four_dead_addresses_share_the_deadline(names: Names) -> None:
    """Each would have the whole of it: 1.0 s with a timeout of 0.25 s."""
    with swallowing() as dead:
        names.answers = [dead] * 4
        manager = RedisConnectionManager(CacheSettings(host=HOST))
        for _ in range(3):
            began = time.perf_counter()
            with pytest.raises(RedisTimeoutError):
                manager.get(b"k", Deadline(D))
            took_s = time.perf_counter() - began
            if took_s <= ALLOWED_S:
                break
        assert took_s <= ALLOWED_S
