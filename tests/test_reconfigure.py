"""Another Redis, another password, another pool size, while calls are under way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import RESET, Client, ScriptedServer, answering

from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import RedisClosedError, RedisConnectionError, RedisError
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer

MINUTE_MS = 60_000
NAMES = [b"k%02d" % number for number in range(50)]

Manage = Callable[..., RedisConnectionManager]


def soon() -> Deadline:
    return Deadline(5.0)


def value_of(name: bytes) -> bytes:
    return b"value of " + name


@pytest.fixture
def manage() -> Iterator[Manage]:
    """Make managers that are closed after the test."""
    with contextlib.ExitStack() as opened:

        def make(settings: CacheSettings) -> RedisConnectionManager:
            manager = RedisConnectionManager(settings)
            opened.callback(manager.close)
            return manager

        yield make


@pytest.fixture(scope="module")
def servers() -> Iterator[list[PrivateServer]]:
    """Three servers: a Unix socket, a port, and a port with a password; all hold the same."""
    with (
        PrivateServer() as first,
        PrivateServer(tcp=True) as second,
        PrivateServer(tcp=True, password="hemlig") as third,
    ):
        for server in (first, second, third):
            manager = RedisConnectionManager(CacheSettings.from_url(server.url))
            manager.set_many([(name, value_of(name), 3_600_000) for name in NAMES], soon())
            manager.close()
        yield [first, second, third]


def clients(server: PrivateServer) -> int:
    """How many connections there are besides the one that asks."""
    listed = server.command("CLIENT", "LIST", "TYPE", "normal")
    assert isinstance(listed, bytes)
    return len(listed.splitlines()) - 1


def wait_for(true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


# Under traffic ---------------------------------------------------------------------------------


def test_traffic_does_not_notice(servers: list[PrivateServer], manage: Manage) -> None:
    """A password that is changed, or a server that is moved, must not cost a single request."""
    ways = [
        CacheSettings.from_url(server.url, max_connections=limit)
        for limit in (10, 1, 3)
        for server in servers
    ]
    manager = manage(ways[0])
    over = threading.Event()
    calls, failed, wrong = [0] * 8, [], []

    def work(number: int) -> None:
        while not over.is_set():
            name = NAMES[(number + calls[number]) % len(NAMES)]
            try:
                found = [manager.get(name, soon()), *manager.get_many([name], soon())]
                manager.set(name, value_of(name), 3_600_000, soon())
            except RedisError as error:
                failed.append(error)
            else:
                calls[number] += 1
                wrong.extend(value for value in found if value != value_of(name))

    with ThreadPoolExecutor(8) as threads:
        at_work = [threads.submit(work, number) for number in range(8)]
        for turn in range(60):
            manager.reconfigure(ways[turn % len(ways)])
            before = sum(calls)
            wait_for(lambda before=before: sum(calls) > before + 8)
        over.set()
        for thread in at_work:
            thread.result(timeout=10)
    assert (failed, wrong) == ([], [])
    assert manager.usage().in_use == 0
    # What was in use is closed, wherever it was.
    last = ways[59 % len(ways)]
    wait_for(lambda: sum(map(clients, servers)) <= last.max_connections)


@pytest.mark.parametrize("change", [{"password": "new"}, {"max_connections": 3}])
def test_new_connections_are_made_as_the_new_settings_say(
    change: dict[str, Any], manage: Manage
) -> None:
    """A setting that has no effect until the process is started anew is worse than a refusal."""
    with ScriptedServer(answering(b"$1\r\nv\r\n")) as server:
        manager = manage(server.settings(password="old"))
        manager.get(b"k", soon())
        changed = dataclasses.replace(manager.settings, **change)
        manager.reconfigure(changed)
        assert manager.settings == changed
        assert server.clients[0].ended.wait(timeout=5), "an idle connection of the old settings"
        manager.get(b"k", soon())
        passwords = [words[-1] for words in server.commands if words[0] == b"AUTH"]
        assert passwords == [b"old", change.get("password", "old").encode()]
        assert manager.usage().limit == change.get("max_connections", 10)


def test_the_same_settings_again_change_nothing(
    servers: list[PrivateServer], manage: Manage
) -> None:
    """A configuration that is read every minute would drop all connections every minute."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    manager.ping(soon())
    kept = manager._server.pool._idle[0]
    manager.reconfigure(CacheSettings.from_url(servers[0].url))
    assert manager._server.pool._idle[0] is kept


# The call that is under way ---------------------------------------------------------------------

Verb = Callable[[RedisConnectionManager], object]
VERBS: dict[str, tuple[Verb, bytes, object]] = {
    "get": (lambda m: m.get(b"k", soon()), b"$3\r\nnew\r\n", b"new"),
    "get_many": (lambda m: m.get_many([b"k"], soon()), b"$3\r\nnew\r\n", [b"new"]),
    "set": (lambda m: m.set(b"k", b"v", MINUTE_MS, soon()), b"+OK\r\n", None),
    "set_many": (lambda m: m.set_many([(b"k", b"v", MINUTE_MS)], soon()), b"+OK\r\n", [None]),
    "delete": (lambda m: m.delete([b"k"], soon()), b":7\r\n", 7),
    "ping": (lambda m: m.ping(soon()), b"+PONG\r\n", None),
}
every_verb = pytest.mark.parametrize(("verb", "answer", "result"), VERBS.values(), ids=VERBS)


@every_verb
@pytest.mark.parametrize("end", [RESET, b"-NOAUTH no\r\n", b"-OOM full\r\n"])
def test_a_call_that_fails_on_the_old_redis_is_carried_out_on_the_new(
    verb: Verb, answer: bytes, result: object, end: object, manage: Manage
) -> None:
    """The old Redis is shut down because it was replaced: its last calls would all be lost."""

    def last(client: Client) -> None:
        manager.reconfigure(new.settings())
        client.give(end)

    with ScriptedServer(answering(last)) as old, ScriptedServer(answering(answer)) as new:
        manager = manage(old.settings())
        if verb is VERBS["set_many"][0] and end is not RESET:
            result = [None]  # the second answer is the one that counts
        assert verb(manager) == result
        assert len(new.asked()) == 1


def test_a_call_that_fails_on_both_fails(manage: Manage) -> None:
    """Without an end to it, a call would go on until its deadline against a Redis that is gone."""

    def last(client: Client) -> None:
        manager.reconfigure(new.settings())
        client.reset()

    with ScriptedServer(answering(last)) as old, ScriptedServer(answering(RESET)) as new:
        manager = manage(old.settings())
        with pytest.raises(RedisConnectionError):
            manager.get(b"k", soon())
        assert len(new.asked()) == 1


@every_verb
def test_what_the_old_redis_still_did_is_done_by_the_new_one_too(
    verb: Verb, answer: bytes, result: object, manage: Manage
) -> None:
    """A deletion that only the old Redis has seen comes back to life on the new one."""
    manager: RedisConnectionManager

    def last(client: Client) -> None:
        manager.reconfigure(new.settings())
        client.send(answer)

    with ScriptedServer(answering(last)) as old, ScriptedServer(answering(answer)) as new:
        manager = manage(old.settings())
        assert verb(manager) == result
        reads = (VERBS["get"][0], VERBS["get_many"][0], VERBS["ping"][0])
        assert len(new.asked()) == (0 if verb in reads else 1)
        assert old.clients[0].ended.wait(timeout=5)
        assert manager.usage().in_use == 0


def test_whoever_waits_for_a_connection_gets_one_of_the_new_redis(manage: Manage) -> None:
    """More connections are asked for because callers wait: these callers, too."""
    asked, answer = threading.Event(), threading.Event()

    def hang(client: Client) -> None:
        asked.set()
        assert answer.wait(timeout=5)
        client.send(b"$3\r\nold\r\n")

    with (
        ScriptedServer(answering(hang)) as old,
        ScriptedServer(answering(b"$3\r\nnew\r\n")) as new,
        ThreadPoolExecutor(2) as threads,
    ):
        manager = manage(old.settings(max_connections=1))
        first = threads.submit(manager.get, b"k", soon())
        assert asked.wait(timeout=5)
        second = threads.submit(manager.get, b"k", soon())
        wait_for(lambda: len(manager._server.pool._waiters) == 1)
        manager.reconfigure(new.settings(max_connections=2))
        assert second.result(timeout=2) == b"new"
        answer.set()
        assert first.result(timeout=5) == b"old"


def test_nobody_connects_to_the_old_redis_any_more(manage: Manage) -> None:
    """A call that had looked where Redis is just before the change would go there all the same."""
    with (
        ScriptedServer(answering(b"$3\r\nold\r\n")) as old,
        ScriptedServer(answering(b"$3\r\nnew\r\n")) as new,
    ):
        manager = manage(old.settings())
        get = manager._server.get

        def late(*args: Any) -> bytes | None:
            manager.reconfigure(new.settings())
            return get(*args)

        manager._server.get = late  # type: ignore[method-assign]
        assert manager.get(b"k", soon()) == b"new"
        assert old.clients == []


# Together with everything else ------------------------------------------------------------------


def test_of_changes_at_once_one_holds_and_the_others_leave_nothing(
    servers: list[PrivateServer], manage: Manage
) -> None:
    """Two threads that read the new configuration together would leave one's connections open."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            manager.get(NAMES[0], soon())

    with ThreadPoolExecutor(8) as threads:
        at_work = [threads.submit(work) for _ in range(4)]
        for turn in range(30):
            together = threading.Barrier(4)

            def change(limit: int, together: threading.Barrier = together) -> None:
                together.wait(timeout=10)
                manager.reconfigure(CacheSettings.from_url(servers[0].url, max_connections=limit))

            for done in [threads.submit(change, 10 * turn + n + 10) for n in range(4)]:
                done.result(timeout=10)
        over.set()
        for thread in at_work:
            thread.result(timeout=10)
    assert not manager._former
    assert manager.usage().limit == manager.settings.max_connections
    wait_for(lambda: clients(servers[0]) == manager.usage().idle)


def test_a_change_does_not_get_lost_between_the_lines_of_another(
    servers: list[PrivateServer], manage: Manage
) -> None:
    """What both replace is closed twice, and what the first of them put there never."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    made, make = [], manager._new_server

    def remember(settings: CacheSettings) -> Any:
        made.append(make(settings))
        return made[-1]

    together = threading.Barrier(2)

    class Former(deque[Any]):
        def append(self, server: Any) -> None:
            super().append(server)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=0.1)  # the other thread gets here, unless it is kept out

    manager._new_server = remember  # type: ignore[method-assign]
    manager._former = Former()
    with ThreadPoolExecutor(2) as threads:
        for limit in (3, 4):
            threads.submit(
                manager.reconfigure, CacheSettings.from_url(servers[0].url, max_connections=limit)
            )
    assert len(made) == 2
    assert [one.pool._closed for one in made if one is not manager._server] == [True]


def test_what_an_interrupt_left_open_the_next_health_check_closes(
    servers: list[PrivateServer], manage: Manage
) -> None:
    """An error tracker keeps the exception, the exception the frame, the frame the old pool."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    manager.ping(soon())

    class Interrupt(Exception):  # noqa: N818 - it is no error
        pass

    def interrupted() -> None:
        raise Interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "_close_former", interrupted)
        with pytest.raises(Interrupt) as kept:
            manager.reconfigure(CacheSettings.from_url(servers[1].url))
    assert clients(servers[0]) == 1
    manager.ping(soon())
    wait_for(lambda: clients(servers[0]) == 0)
    del kept


def test_a_closed_manager_stays_closed(servers: list[PrivateServer], manage: Manage) -> None:
    """A service that is going down must not connect again because its configuration changed."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    manager.ping(soon())
    manager.close()
    manager.reconfigure(CacheSettings.from_url(servers[1].url))
    assert manager.closed
    with pytest.raises(RedisClosedError):
        manager.get(NAMES[0], soon())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_close_during_the_change_closes_both(
    when: str, servers: list[PrivateServer], manage: Manage
) -> None:
    """Connections of a manager that nobody has any more are never closed."""
    manager = manage(CacheSettings.from_url(servers[0].url))
    manager.ping(soon())
    make = manager._new_server

    def slow(settings: CacheSettings) -> Any:
        if when == "before":
            manager.close()
        made = make(settings)
        if when == "after":
            manager.close()
        return made

    manager._new_server = slow  # type: ignore[method-assign]
    manager.reconfigure(CacheSettings.from_url(servers[1].url))
    assert manager._server.pool._closed
    assert manager.usage().idle == 0
    assert not manager._former
    wait_for(lambda: clients(servers[0]) == 0)


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


def test_a_child_uses_the_new_redis_and_can_change_it_again(
    servers: list[PrivateServer], manage: Manage
) -> None:
    """A worker that is forked after the change would talk to the old Redis, or hang in its own."""
    first, second, third = (CacheSettings.from_url(server.url) for server in servers)
    manager = manage(first)
    manager.ping(soon())
    manager.reconfigure(second)
    manager.ping(soon())
    with manager._lock:

        def child() -> bool:
            right = manager.settings == second and manager.get(NAMES[1], soon()) is not None
            manager.reconfigure(third)
            return right and manager.get(NAMES[1], soon()) == value_of(NAMES[1])

        assert in_child(child)
    assert manager.settings == second
    assert manager.get(NAMES[2], soon()) == value_of(NAMES[2])
