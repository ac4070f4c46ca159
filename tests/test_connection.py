"""The verbs of the connection manager, and what each of Redis's refusals becomes."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from scripted_server import END, Client, ScriptedServer, answering

from jmcache.connection import RedisConnectionManager
from jmcache.connection._slots import Redirected
from jmcache.connection._translate import translate
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisConnectionError,
    RedisError,
    RedisHurriedError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisNotServedError,
    RedisPoolExhaustedError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisRejectedError,
    RedisTimeoutError,
    RedisUnreachableError,
    RedisWriteRefusedError,
    RedisWrongTypeError,
)
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer, fake_manager

SECRET = "s3cr3t-pa55"
VALUE = b"a stored value"
MINUTE_MS = 60_000

Verb = Callable[[RedisConnectionManager, Deadline], object]
VERBS: dict[str, Verb] = {
    "get": lambda manager, deadline: manager.get(b"k", deadline),
    "get_many": lambda manager, deadline: manager.get_many([b"k", b"l"], deadline),
    "set": lambda manager, deadline: manager.set(b"k", VALUE, MINUTE_MS, deadline),
    "set_many": lambda manager, deadline: manager.set_many(
        [(b"k", VALUE, MINUTE_MS), (b"l", VALUE, MINUTE_MS)], deadline
    ),
    "delete": lambda manager, deadline: manager.delete([b"k"], deadline),
    "ping": lambda manager, deadline: manager.ping(deadline),
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def soon() -> Deadline:
    return Deadline(5.0)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[PrivateServer]:
    """A server that asks for a password and knows the ACL user "jobs" with the same one."""
    with PrivateServer(tcp=True, password=SECRET) as server:
        commands = ("+get", "+set", "+get", "+unlink", "-ping")
        server.command("ACL", "SETUSER", "jobs", "on", f">{SECRET}", "~*", *commands)
        yield server


@pytest.fixture
def own_server() -> Iterator[PrivateServer]:
    """A server whose configuration the test may change."""
    with PrivateServer() as server:
        yield server


@pytest.fixture
def manage() -> Iterator[Callable[..., RedisConnectionManager]]:
    """Make managers that are closed after the test."""
    made: list[RedisConnectionManager] = []

    def make(settings: CacheSettings | None = None, **changes: Any) -> RedisConnectionManager:
        manager = RedisConnectionManager(settings or CacheSettings(**changes))
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.close()


Manage = Callable[..., RedisConnectionManager]


@pytest.fixture(params=["unix", "tcp", "db 3", "password", "ACL user", "fake"])
def manager(request: pytest.FixtureRequest, manage: Manage) -> RedisConnectionManager:
    """A manager for each way to reach a Redis."""
    if request.param == "fake":
        return fake_manager()
    if request.param == "unix":
        return manage(CacheSettings.from_url(request.getfixturevalue("redis_server").url))
    if request.param in ("tcp", "db 3"):
        db = 3 if request.param == "db 3" else 0
        return manage(CacheSettings.from_url(request.getfixturevalue("tcp_server").url, db=db))
    guarded = request.getfixturevalue("guarded_server")
    guarded.command("FLUSHALL")
    user = "jobs" if request.param == "ACL user" else None
    return manage(port=guarded.port, username=user, password=SECRET)


# The verbs -------------------------------------------------------------------------------------


def test_what_was_set_is_what_get_returns(manager: RedisConnectionManager) -> None:
    """Everybody: it is what the rest is built on."""
    assert manager.get(b"k", soon()) is None
    for value in (b"", b"\x00\r\n$5\xff", bytes(range(256)) * 4096):
        manager.set(b"k", value, MINUTE_MS, soon())
        assert manager.get(b"k", soon()) == value


def test_many_come_back_in_the_order_they_were_asked_for(manager: RedisConnectionManager) -> None:
    """Every caller of get_many would get its neighbour's value."""
    items = [(b"k%d" % n, b"v%d" % n * n * 1000, MINUTE_MS) for n in range(50)]
    assert manager.set_many(items, soon()) == [None] * 50
    names = [b"k7", b"absent", b"k0", b"k49", b"k7"]
    expected = [items[7][1], None, b"", items[49][1], items[7][1]]
    assert manager.get_many(names, soon()) == expected


def test_delete_counts_what_was_there(manager: RedisConnectionManager) -> None:
    """cache.delete tells its caller whether there was something."""
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert manager.delete([b"k", b"absent"], soon()) == 1
    assert manager.get(b"k", soon()) is None


def test_nothing_asked_is_nothing_sent(manage: Manage) -> None:
    """Redis refuses an MGET of nothing, and the refusal would count as a corrupt entry."""
    with ScriptedServer(answering(b"")) as server:
        manager = manage(server.settings())
        assert manager.get_many([], soon()) == []
        assert manager.set_many([], soon()) == []
        assert manager.delete([], soon()) == 0
        assert server.clients == []


def test_a_value_expires_when_its_ttl_is_over(redis_server: PrivateServer, manage: Manage) -> None:
    """A value without a TTL stays for ever."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    manager.set(b"k", VALUE, 50_000, soon())
    manager.set_many([(b"l", VALUE, 70_000)], soon())
    assert 40_000 < int(str(redis_server.command("PTTL", "k"))) <= 50_000
    assert 60_000 < int(str(redis_server.command("PTTL", "l"))) <= 70_000


def test_ping_is_quiet_while_redis_answers(redis_server: PrivateServer, manage: Manage) -> None:
    """The health check would call a healthy server dead."""
    manage(CacheSettings.from_url(redis_server.url)).ping(soon())


def test_one_refused_item_of_many_says_why_and_the_others_are_stored(
    guarded_server: PrivateServer, manage: Manage
) -> None:
    """One bad key would lose a whole batch, or hide that it is lost."""
    guarded_server.command("ACL", "SETUSER", "partial", "on", f">{SECRET}", "~ok:*", "+set", "+get")
    manager = manage(port=guarded_server.port, username="partial", password=SECRET)
    results = manager.set_many(
        [(b"ok:1", VALUE, MINUTE_MS), (b"other", VALUE, MINUTE_MS), (b"ok:2", VALUE, MINUTE_MS)],
        soon(),
    )
    assert results[0] is results[2] is None
    assert isinstance(results[1], RedisNotServedError)
    assert manager.get_many([b"ok:1", b"ok:2"], soon()) == [VALUE, VALUE]


def test_a_connection_chooses_its_database(tcp_server: PrivateServer, manage: Manage) -> None:
    """Two services that share a server by number would read each other's data."""
    third = manage(CacheSettings.from_url(tcp_server.url, db=3))
    third.set(b"k", b"in 3", MINUTE_MS, soon())
    assert manage(CacheSettings.from_url(tcp_server.url, db=0)).get(b"k", soon()) is None
    third.drop_connections()
    assert third.get(b"k", soon()) == b"in 3"


def test_a_user_without_a_password_is_that_user(
    guarded_server: PrivateServer, manage: Manage
) -> None:
    """It would be the default user instead, with that one's rights."""
    guarded_server.command("ACL", "SETUSER", "open", "on", "nopass", "~open:*", "+@all")
    manager = manage(port=guarded_server.port, username="open")
    manager.set(b"open:k", VALUE, MINUTE_MS, soon())
    with pytest.raises(RedisNotServedError):
        manager.set(b"k", VALUE, MINUTE_MS, soon())


# Connections -----------------------------------------------------------------------------------


def test_nothing_is_connected_before_the_first_verb(
    manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that starts before its Redis, or forks after making a cache, relies on it."""
    with ScriptedServer(answering(b"+PONG\r\n")) as server:
        settings = server.settings()
        with monkeypatch.context() as without:
            without.setattr(socket, "socket", None)
            without.setattr(socket, "getaddrinfo", None)
            manager = manage(settings)
            assert manager.usage().idle == 0
            manager.drop_connections()
        assert server.clients == []
        manager.ping(soon())
        assert len(server.clients) == 1


def test_calls_one_after_the_other_share_one_connection(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """A connection for each call costs more than the call."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    for verb in VERBS.values():
        verb(manager, soon())
    usage = manager.usage()
    assert (usage.in_use, usage.idle, usage.limit) == (0, 1, 10)


def test_usage_tells_what_is_in_use(manage: Manage) -> None:
    """Whoever sizes the pool by it would size it wrong."""
    asked, answer = threading.Event(), threading.Event()

    def late(client: Client) -> None:
        asked.set()
        assert answer.wait(timeout=5)
        client.send(b"+PONG\r\n")

    with ScriptedServer(answering(late)) as server, ThreadPoolExecutor(1) as thread:
        manager = manage(server.settings(max_connections=3))
        call = thread.submit(manager.ping, soon())
        assert asked.wait(timeout=5)
        assert (manager.usage().in_use, manager.usage().idle) == (1, 0)
        answer.set()
        call.result(timeout=5)
        assert (manager.usage().in_use, manager.usage().idle) == (0, 1)


@every_verb
def test_after_close_every_verb_says_so(
    verb: Verb, redis_server: PrivateServer, manage: Manage
) -> None:
    """A worker that shuts down must not connect again behind its owner's back."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    verb(manager, soon())
    manager.close()
    manager.close()
    assert manager.closed
    with pytest.raises(RedisClosedError):
        verb(manager, soon())
    assert (manager.usage().in_use, manager.usage().idle) == (0, 0)


@pytest.mark.parametrize("end", ["close", "drop_connections"])
def test_a_connection_in_use_is_closed_after_its_exchange(end: str, manage: Manage) -> None:
    """The call under way would fail, or its connection would stay open for ever."""
    asked, answer = threading.Event(), threading.Event()

    def late(client: Client) -> None:
        asked.set()
        assert answer.wait(timeout=5)
        client.send(b"$1\r\nv\r\n")

    with ScriptedServer(answering(late)) as server, ThreadPoolExecutor(1) as thread:
        manager = manage(server.settings())
        call = thread.submit(manager.get, b"k", soon())
        assert asked.wait(timeout=5)
        getattr(manager, end)()
        answer.set()
        assert call.result(timeout=5) == b"v"
        assert server.clients[0].ended.wait(timeout=5)
        assert (manager.usage().in_use, manager.usage().idle) == (0, 0)


def test_a_connection_that_is_made_after_close_is_not_kept(manage: Manage) -> None:
    """A call that was about to connect when the cache was closed leaves a socket for ever."""
    with ScriptedServer(answering(b"$1\r\nv\r\n")) as server:
        manager = manage(server.settings())
        pool = manager._server.pool
        grow = pool._grow

        def slow_grow(loan: list[Any]) -> bool:
            manager.close()
            return grow(loan)

        pool._grow = slow_grow
        assert manager.get(b"k", soon()) == b"v"
        assert manager.usage().idle == 0
        assert server.clients[0].ended.wait(timeout=5)


def test_drop_connections_closes_idle_ones_and_new_ones_come(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """After a failover idle connections lead to the old master."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    manager.drop_connections()
    assert (manager.usage().in_use, manager.usage().idle) == (0, 0)
    assert manager.get(b"k", soon()) == VALUE


def test_a_dropped_connection_that_comes_back_late_is_not_lent_again(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """One that was on its way back while the pool was dropped leads to the old master too."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    manager.ping(soon())
    pool = manager._server.pool
    stale = pool._idle[0]
    manager.drop_connections()
    pool._idle.append(stale)
    loan: list[Any] = []
    pool.borrow(loan, soon())
    assert loan[0] is not stale


def test_a_dropped_connection_that_comes_back_leaves_the_new_ones_alone(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """After a failover each old connection would take the new ones with it."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    pool = manager._server.pool
    old: list[Any] = []
    pool.borrow(old, soon())
    manager.drop_connections()
    manager.ping(soon())
    pool.give_back(old)
    assert (manager.usage().in_use, manager.usage().idle) == (0, 1)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_costs_an_idle_connection_nothing(
    own_server: PrivateServer, manage: Manage, how: str
) -> None:
    """The first call after each deploy of Redis would fail."""
    manager = manage(CacheSettings.from_url(own_server.url))
    manager.ping(soon())
    getattr(own_server, how)()
    own_server.start()
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert manager.get(b"k", soon()) == VALUE


def test_a_connection_that_the_server_closed_is_made_anew(
    tcp_server: PrivateServer, manage: Manage
) -> None:
    """`timeout` in redis.conf and CLIENT KILL close idle connections as a matter of course."""
    manager = manage(CacheSettings.from_url(tcp_server.url))
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    tcp_server.command("CLIENT", "KILL", "TYPE", "normal")
    assert manager.get(b"k", soon()) == VALUE


def test_a_failing_call_is_one_attempt(manage: Manage) -> None:
    """redis-py retries by itself, each time as long as the last; ours is the one place to retry."""
    with ScriptedServer(answering(END)) as server:
        manager = manage(server.settings())
        with pytest.raises(RedisConnectionError):
            manager.get(b"k", soon())
        assert len(server.clients) == len(server.asked()) == 1


def test_a_wrong_password_is_tried_once_a_call(manage: Manage) -> None:
    """Servers lock users out who try too often; stock redis-py tries eleven times."""
    denied = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    with ScriptedServer(answering(b"", greeting=denied)) as server:
        manager = manage(server.settings(password=SECRET))
        with pytest.raises(RedisMisconfiguredError):
            manager.get(b"k", soon())
        assert [words[0] for words in server.commands].count(b"AUTH") == 1


def test_a_deadline_that_is_over_costs_no_connection(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """A queue of late calls would close one healthy connection each."""
    manager = manage(CacheSettings.from_url(redis_server.url))
    manager.ping(soon())
    with pytest.raises(RedisHurriedError):
        manager.get(b"k", Deadline.over())
    assert (manager.usage().in_use, manager.usage().idle) == (0, 1)


# What Redis refuses ----------------------------------------------------------------------------

REFUSALS = [
    ("NOAUTH Authentication required.", RedisMisconfiguredError, "auth"),
    ("WRONGPASS invalid username-password pair", RedisMisconfiguredError, "auth"),
    ("NOPERM this user has no permissions", RedisNotServedError, "noperm"),
    ("DENIED Redis is running in protected mode", RedisMisconfiguredError, "denied"),
    ("LOADING Redis is loading the dataset in memory", RedisNotReadyError, "loading"),
    ("MASTERDOWN Link with MASTER is down", RedisNotReadyError, "masterdown"),
    ("TRYAGAIN Multiple keys request during rehashing", RedisNotReadyError, "tryagain"),
    ("CLUSTERDOWN The cluster is down", RedisNotReadyError, "clusterdown"),
    ("BUSY Redis is busy running a script.", RedisNotReadyError, "busy"),
    ("READONLY You can't write against a read only replica.", RedisReadOnlyError, "readonly"),
    ("OOM command not allowed when used memory > 'maxmemory'.", RedisWriteRefusedError, "oom"),
    ("MISCONF Redis is configured to save RDB snapshots", RedisWriteRefusedError, "misconf"),
    ("NOREPLICAS Not enough good replicas to write.", RedisWriteRefusedError, "noreplicas"),
    ("WRONGTYPE Operation against a key", RedisWrongTypeError, "wrong_type"),
    ("ERR max number of clients reached", RedisConnectionError, "maxclients"),
    ("ERR something new", RedisRejectedError, "rejected"),
    ("ERR unknown command 'EVAL', with", RedisNotServedError, "unknown_command"),
    ("ERR unknown command `EVAL`, with", RedisNotServedError, "unknown_command"),
    ("MOVED 3999 127.0.0.1:6381", Redirected, "cluster"),
    ("ASK 3999 127.0.0.1:6381", Redirected, "cluster"),
    ("MOVED 3999", RedisNotServedError, "cluster"),
    ("", RedisRejectedError, "rejected"),
]


@pytest.mark.parametrize(("text", "kind", "reason"), REFUSALS, ids=[r[0][:21] for r in REFUSALS])
def test_each_refusal_has_its_class_and_reason(
    text: str, kind: type[RedisError], reason: str, manage: Manage
) -> None:
    """Retry and circuit breaker go by the class, the operator by the reason."""
    with ScriptedServer(answering(f"-{text}\r\n".encode(), b"$1\r\nv\r\n")) as server:
        manager = manage(server.settings())
        with pytest.raises(RedisError) as caught:
            manager.get(b"k", soon())
        assert (type(caught.value), caught.value.reason) == (kind, reason)
        assert manager.get(b"k", soon()) == b"v"


# kind: (retryable, trips, opens at once, trips writes), as the table in the design has it
FLAGS = {
    RedisConnectionError: (True, True, False, False),
    RedisUnreachableError: (False, True, False, False),
    RedisTimeoutError: (False, True, False, False),
    RedisHurriedError: (False, False, False, False),
    RedisNotReadyError: (True, True, False, False),
    RedisReadOnlyError: (True, True, False, True),
    RedisProtocolError: (False, True, False, False),
    RedisMisconfiguredError: (False, True, True, False),
    RedisPoolExhaustedError: (False, False, False, False),
    RedisRejectedError: (False, False, False, False),
    RedisWriteRefusedError: (False, False, False, True),
    RedisWrongTypeError: (False, False, False, False),
    RedisClosedError: (False, False, False, False),
}


@pytest.mark.parametrize(("kind", "flags"), FLAGS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_each_class_says_what_it_is_evidence_of(
    kind: type[RedisError], flags: tuple[bool, ...]
) -> None:
    """One wrong flag opens the breaker on a healthy server, or never on a sick one."""
    assert (kind.retryable, kind.trips, kind.opens_at_once, kind.trips_writes) == flags


@pytest.mark.parametrize(
    ("theirs", "kind", "reason"),
    [
        (exceptions.AuthenticationError("x"), RedisMisconfiguredError, "auth"),
        (exceptions.AuthenticationWrongNumberOfArgsError(), RedisMisconfiguredError, "auth"),
        (exceptions.NoPermissionError("x"), RedisNotServedError, "noperm"),
        (exceptions.BusyLoadingError("x"), RedisNotReadyError, "loading"),
        (exceptions.MasterDownError("x"), RedisNotReadyError, "masterdown"),
        (exceptions.TryAgainError("x"), RedisNotReadyError, "tryagain"),
        (exceptions.ClusterDownError("CLUSTERDOWN x"), RedisNotReadyError, "clusterdown"),
        (exceptions.ReadOnlyError("x"), RedisReadOnlyError, "readonly"),
        (exceptions.OutOfMemoryError("x"), RedisWriteRefusedError, "oom"),
        (exceptions.InvalidResponse("x"), RedisProtocolError, "protocol"),
        (exceptions.TimeoutError("x"), RedisTimeoutError, "timeout"),
        (exceptions.ConnectionError("x"), RedisConnectionError, "eof"),
        (exceptions.ResponseError("WRONGTYPE x"), RedisWrongTypeError, "wrong_type"),
        (exceptions.ResponseError("x"), RedisRejectedError, "rejected"),
        (
            exceptions.ResponseError("unknown command 'eval'"),
            RedisNotServedError,
            "unknown_command",
        ),
        (ConnectionRefusedError(111, "x"), RedisUnreachableError, "refused"),
        (ConnectionResetError(104, "x"), RedisConnectionError, "reset"),
        (OSError(24, "x"), RedisUnreachableError, "descriptors"),
        (OSError(113, "x"), RedisConnectionError, "connection"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_redis_pys_own_errors_become_ours(
    theirs: Exception, kind: type[RedisError], reason: str
) -> None:
    """A foreign connection class, such as fakeredis's, raises these; unmapped, callers see them."""
    ours = translate(theirs)
    assert (type(ours), ours.reason) == (kind, reason)


def test_a_password_that_is_asked_for_and_not_given(
    guarded_server: PrivateServer, manage: Manage
) -> None:
    """The operator has to read which setting is missing."""
    with pytest.raises(RedisMisconfiguredError, match="password") as caught:
        manage(port=guarded_server.port).get(b"k", soon())
    assert caught.value.reason == "auth"


def test_a_wrong_password_is_told_by_name(guarded_server: PrivateServer, manage: Manage) -> None:
    """The same, for a password that was rotated."""
    with pytest.raises(RedisMisconfiguredError, match="password") as caught:
        manage(port=guarded_server.port, password="no").get(b"k", soon())
    assert caught.value.reason == "auth"


def test_a_password_for_a_server_without_one(tcp_server: PrivateServer, manage: Manage) -> None:
    """Ignored, it would send data to a server that is not the one that was meant."""
    with pytest.raises(RedisMisconfiguredError, match="password") as caught:
        manage(port=tcp_server.port, password=SECRET).get(b"k", soon())
    assert caught.value.reason == "auth"


def test_a_database_that_is_not_there(redis_server: PrivateServer, manage: Manage) -> None:
    """Data would land in database 0, somebody else's."""
    manager = manage(CacheSettings.from_url(redis_server.url, db=4711))
    with pytest.raises(RedisMisconfiguredError, match="4711") as caught:
        manager.get(b"k", soon())
    assert caught.value.reason == "db"


def test_a_busy_script_is_not_taken_for_a_missing_database(manage: Manage) -> None:
    """It would open the breaker at once, and send the operator to the wrong setting."""
    busy = answering(b"", greeting=b"-BUSY Redis is busy\r\n")
    with ScriptedServer(busy) as server, pytest.raises(RedisNotReadyError):
        manage(server.settings(db=1)).get(b"k", soon())


def test_a_missing_right(guarded_server: PrivateServer, manage: Manage) -> None:
    """The operator has to read that it is the ACL."""
    guarded_server.command("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "+get")
    manager = manage(port=guarded_server.port, username="reader", password=SECRET)
    assert manager.get(b"k", soon()) is None
    with pytest.raises(RedisNotServedError, match="ACL") as caught:
        manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert caught.value.reason == "noperm"


def test_a_forbidden_ping_is_a_sign_of_life_and_costs_no_connection(
    guarded_server: PrivateServer, manage: Manage
) -> None:
    """With a narrow ACL every health check would open the breaker, or empty the pool."""
    manager = manage(port=guarded_server.port, username="jobs", password=SECRET)
    manager.get(b"k", soon())
    manager.ping(soon())
    assert manager.usage().idle == 1


def test_a_list_under_the_key(redis_server: PrivateServer, manage: Manage) -> None:
    """Another program's data must be no value of ours, and no outage either."""
    redis_server.command("RPUSH", "k", "x")
    manager = manage(CacheSettings.from_url(redis_server.url))
    with pytest.raises(RedisWrongTypeError):
        manager.get(b"k", soon())
    (found,) = manager.get_many([b"k"], soon())
    assert isinstance(found, RedisWrongTypeError)
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert manager.get(b"k", soon()) == VALUE


def test_a_full_server_refuses_writes_only(own_server: PrivateServer, manage: Manage) -> None:
    """Counted against reads too, a full cache would stop serving what it has."""
    manager = manage(CacheSettings.from_url(own_server.url))
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    own_server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RedisWriteRefusedError) as caught:
        manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert caught.value.reason == "oom"
    (refused,) = manager.set_many([(b"l", VALUE, MINUTE_MS)], soon())
    assert isinstance(refused, RedisWriteRefusedError)
    assert manager.get(b"k", soon()) == VALUE


def test_a_replica_is_left_for_whoever_the_name_points_to_now(
    own_server: PrivateServer, manage: Manage
) -> None:
    """After a failover by DNS, idle connections to the old master refuse writes for ever."""
    manager = manage(CacheSettings.from_url(own_server.url))
    manager.ping(soon())
    own_server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(RedisReadOnlyError):
        manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert manager.usage().idle == 0


def test_too_few_replicas(own_server: PrivateServer, manage: Manage) -> None:
    """A refusal of writes only, like a full server."""
    own_server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    manager = manage(CacheSettings.from_url(own_server.url))
    with pytest.raises(RedisWriteRefusedError) as caught:
        manager.set(b"k", VALUE, MINUTE_MS, soon())
    assert caught.value.reason == "noreplicas"
    assert manager.get(b"k", soon()) is None


def test_a_server_that_takes_no_more_clients(own_server: PrivateServer, manage: Manage) -> None:
    """Told apart from a dead one, the operator looks in the right place."""
    own_server.command("CONFIG", "SET", "maxclients", "1")
    manager = manage(CacheSettings.from_url(own_server.url))
    with pytest.raises(RedisConnectionError) as caught:
        manager.get(b"k", soon())
    # The server does not wait for our greeting: now and then its word is lost in the reset.
    assert caught.value.reason in ("maxclients", "reset", "eof")
    own_server.command("CONFIG", "SET", "maxclients", "100")
    assert manager.get(b"k", soon()) is None


# Secrets ---------------------------------------------------------------------------------------

QUOTING = f"-ERR unknown command 'AUTH', with args beginning with: '{SECRET}' '{VALUE.decode()}' "
FAILING_LOGINS = {
    "refused": b"-WRONGPASS invalid username-password pair\r\n",
    "unknown command": QUOTING.encode() + b"\r\n",
    "not Redis": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "cut short": b"+O",
}


@pytest.mark.parametrize("greeting", FAILING_LOGINS.values(), ids=FAILING_LOGINS)
def test_a_failed_login_shows_no_password(greeting: bytes, manage: Manage) -> None:
    """Whoever reads the log, or the error tracker that keeps the variables of every frame."""

    def script(client: Client) -> None:
        client.command()
        client.send(greeting)
        client.end()
        client.hold()

    with ScriptedServer(script) as server:
        manager = manage(server.settings(username="jobs", password=SECRET))
        with pytest.raises(RedisError) as caught:
            VERBS["get"](manager, soon())
    texts = [text for error in chain(caught.value) for text in (str(error), repr(error))]
    frames = traceback.walk_tb(caught.value.__traceback__)
    summary = traceback.StackSummary.extract(frames, capture_locals=True)
    ours = [frame for frame in summary if "jmcache" in Path(frame.filename).parts]
    assert len(ours) > 2
    texts += [str(frame.locals) for frame in ours]
    assert not [text for text in texts if SECRET in text]


@every_verb
def test_a_quoted_command_shows_no_value(verb: Verb, manage: Manage) -> None:
    """A server that does not know a command quotes its arguments: names, values, passwords."""
    with ScriptedServer(answering(QUOTING.encode() + b"\r\n")) as server:
        manager = manage(server.settings())
        try:
            result = verb(manager, soon())
        except RedisError as error:
            shown = " ".join(str(one) for one in chain(error))
            assert "unknown command" in shown
        else:
            shown = str(result)
        assert SECRET not in shown
        assert VALUE.decode() not in shown


def test_an_answer_out_of_step_shows_nothing_of_it(manage: Manage) -> None:
    """What comes out of step is a piece of somebody's value."""
    lost = answering(VALUE + b"\r\n")
    with ScriptedServer(lost) as server, pytest.raises(RedisProtocolError) as caught:
        manage(server.settings()).get(b"k", soon())
    assert not [one for one in chain(caught.value) if "stored" in str(one)]


def test_no_repr_shows_a_password(guarded_server: PrivateServer, manage: Manage) -> None:
    """redis-py 6.4 prints it with its pool."""
    manager = manage(port=guarded_server.port, password=SECRET)
    manager.ping(soon())
    pool = manager._server.pool
    for shown in (manager, pool, pool._idle[0], pool._idle[0]._sock, manager.usage()):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)


def test_the_fakes_manager_translates_too() -> None:
    """Users' own tests of an outage see the errors that production raises."""
    import fakeredis

    server = fakeredis.FakeServer()
    manager = fake_manager(server=server)
    manager.set(b"k", VALUE, MINUTE_MS, soon())
    server.connected = False
    with pytest.raises(RedisConnectionError):
        manager.get(b"k", soon())
    server.connected = True
    assert manager.get(b"k", soon()) == VALUE
