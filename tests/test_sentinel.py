"""A master that sentinels watch: found, made sure of, and found again."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import Client, ScriptedServer

from jmcache import RedisCacheFactory
from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisError,
    RedisMisconfiguredError,
    RedisReadOnlyError,
    RedisUnreachableError,
)
from jmcache.settings import CacheSettings
from jmcache.testing import Certificates, PrivateSentinel

SECRET = "hemlig-46"
MINUTE_MS = 60_000

Manage = Callable[..., RedisConnectionManager]


def soon() -> Deadline:
    return Deadline(5.0)


@pytest.fixture
def manage() -> Iterator[Manage]:
    """Make managers that are closed after the test."""
    with contextlib.ExitStack() as opened:

        def make(settings: CacheSettings) -> RedisConnectionManager:
            manager = RedisConnectionManager(settings)
            opened.callback(manager.close)
            return manager

        yield make


class Master(ScriptedServer):
    """Says its name for every key, and which role it has."""

    def __init__(self, name: str) -> None:
        super().__init__(self._answer)
        self.name = name
        self.role = "master"
        self.silent = threading.Event()

    def _answer(self, client: Client) -> None:
        while (words := client.command()) is not None:
            if self.silent.is_set():
                continue
            match words[0]:
                case b"GET":
                    client.send(b"$%d\r\n%b\r\n" % (len(self.name), self.name.encode()))
                case b"INFO":
                    info = f"# Replication\r\nrole:{self.role}\r\n".encode()
                    client.send(b"$%d\r\n%b\r\n" % (len(info), info))
                case b"PING":
                    client.send(b"+PONG\r\n")
                case _:
                    client.send(b"+OK\r\n")


class Sentinel(ScriptedServer):
    """Names the master it is told to name."""

    def __init__(self, master: ScriptedServer, epoch: int = 0) -> None:
        super().__init__(self._answer)
        self.named = master.port  # also when that one is no more
        self.epoch = epoch
        self.answer: bytes | None = None  # instead of the master
        self.login = b"+OK\r\n"
        self.silent = threading.Event()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def questions(self) -> int:
        return len([words for words in self.commands if words[0] == b"SENTINEL"])

    def _answer(self, client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] != b"SENTINEL":
                client.send(self.login)
            elif not self.silent.is_set():
                assert words[1:] == [b"MASTER", b"main"]
                client.send(self.answer or self._master())

    def _master(self) -> bytes:
        said = ("name", "main", "ip", "127.0.0.1", "port", self.named, "flags", "master",
                "config-epoch", self.epoch)  # fmt: skip
        words = [str(word).encode() for word in said]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def of(*sentinels: Sentinel | str, **more: Any) -> CacheSettings:
    places = [one if isinstance(one, str) else one.place for one in sentinels]
    return CacheSettings(sentinels=",".join(places), sentinel_master="main", **more)


def failure(manager: RedisConnectionManager, deadline: Deadline | None = None) -> RedisError:
    with pytest.raises(RedisError) as caught:
        manager.get(b"k", deadline or soon())
    return caught.value


@pytest.fixture
def refusing() -> Iterator[str]:
    """A place where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A place where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def old() -> Iterator[Master]:
    with Master("old") as master:
        yield master


@pytest.fixture
def new() -> Iterator[Master]:
    with Master("new") as master:
        yield master


# Where it is ------------------------------------------------------------------------------------


def test_the_master_is_where_a_sentinel_says(old: Master, manage: Manage) -> None:
    """host and port would be asked, where nobody is."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        assert manager.get(b"k", soon()) == b"old"
        assert manager.get(b"k", soon()) == b"old"
        assert sentinel.questions == 1


def test_a_sentinel_keeps_no_connection_of_ours(old: Master, manage: Manage) -> None:
    """A thousand processes with three idle connections each are the sentinels' outage."""
    with Sentinel(old) as sentinel:
        manage(of(sentinel)).get(b"k", soon())
        assert sentinel.clients[0].ended.wait(timeout=5)


@pytest.mark.parametrize("first", ["refusing", "silent", "wrong", "unknown", "unwilling"])
def test_one_good_sentinel_is_enough(
    first: str, old: Master, manage: Manage, request: pytest.FixtureRequest
) -> None:
    """They are three so that two may be gone."""
    with Sentinel(old) as other, Sentinel(old) as good:
        if first in ("refusing", "silent"):
            bad = request.getfixturevalue(first)
        else:
            bad = other
            other.answer = {
                "wrong": b"-ERR unknown command 'SENTINEL'\r\n",
                "unknown": b"-ERR No such master with that name\r\n",
                "unwilling": b"-NOAUTH no\r\n",
            }[first]
        manager = manage(of(bad, good))
        assert manager.get(b"k", soon()) == b"old"
        manager.drop_connections()
        before = other.questions
        assert manager.get(b"k", soon()) == b"old"
        assert other.questions == before, "the one that is of use comes first from now on"


def test_one_silent_sentinel_does_not_use_up_the_deadline(
    old: Master, silent: str, manage: Manage
) -> None:
    """A machine that is gone took a sentinel with it; nobody may wait for that one."""
    with Sentinel(old) as good:
        manager = manage(of(silent, good, operation_timeout=0.1))
        for _ in range(3):
            began = time.monotonic()
            assert manager.get(b"k", Deadline(1.0)) == b"old"
            took_s = time.monotonic() - began
            manager.drop_connections()
        assert took_s < 0.1


NO_GOOD = {
    "no such master": (b"-ERR No such master with that name\r\n", "no_master", "sentinel_master: "),
    "no sentinel": (b"-ERR unknown command `SENTINEL`\r\n", "no_sentinel", "sentinels: "),
    "not let in": (b"-NOAUTH no\r\n", "sentinel_auth", "sentinel_password, sentinel_username: "),
    "not allowed": (b"-NOPERM no\r\n", "sentinel_auth", "sentinel_password, sentinel_username: "),
}


@pytest.mark.parametrize(("answer", "reason", "names"), NO_GOOD.values(), ids=NO_GOOD)
def test_a_wrong_setting_is_told_by_its_name(
    answer: bytes, reason: str, names: str, old: Master, refusing: str, manage: Manage
) -> None:
    """A typing error in the name of the master must not look like an outage."""
    with Sentinel(old) as sentinel:
        sentinel.answer = answer
        error = failure(manage(of(refusing, sentinel)))
        assert isinstance(error, RedisMisconfiguredError)
        assert (error.reason, str(error).startswith(names)) == (reason, True)


def test_a_wrong_password_for_the_sentinels_is_not_taken_for_the_masters(
    old: Master, manage: Manage
) -> None:
    """Whoever reads "password" changes the one that is right."""
    with Sentinel(old) as sentinel:
        sentinel.login = b"-WRONGPASS no\r\n"
        error = failure(manage(of(sentinel, sentinel_password="no")))
        assert error.reason == "sentinel_auth"
        assert str(error).startswith("sentinel_password, sentinel_username: ")


def test_a_refused_login_is_tried_once_at_each_sentinel(old: Master, manage: Manage) -> None:
    """They lock the account of whoever tries again at once."""
    with Sentinel(old) as one, Sentinel(old) as two:
        one.login = two.login = b"-WRONGPASS no\r\n"
        assert failure(manage(of(one, two, sentinel_password="no"))).reason == "sentinel_auth"
        logins = [[words[0] for words in at.commands].count(b"AUTH") for at in (one, two)]
        assert logins == [1, 1]


def test_no_sentinel_at_all_is_told_too(refusing: str, manage: Manage) -> None:
    """It is another thing to look at than Redis."""
    error = failure(manage(of(refusing)))
    assert isinstance(error, RedisUnreachableError)
    assert (error.reason, "refused" in str(error)) == ("sentinel", True)


def test_silent_sentinels_cost_the_deadline(silent: str, manage: Manage) -> None:
    """redis-py asks them one after the other, each with a timeout of its own."""
    manager = manage(of(silent, silent, silent))
    for _ in range(3):
        began = time.monotonic()
        error = failure(manager, Deadline(0.25))
        took_s = time.monotonic() - began
        if took_s <= 0.3:
            break
    assert took_s <= 0.3
    assert error.reason in ("sentinel", "hurried")


NONSENSE = {
    "a text": b"$3\r\nabc\r\n",
    "an odd list": b"*1\r\n$2\r\nip\r\n",
    "no port": b"*2\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n",
    "a port that is none": b"*4\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n$4\r\nport\r\n$1\r\nx\r\n",
    "a host that is none": b"*4\r\n$2\r\nip\r\n$1\r\n\xff\r\n$4\r\nport\r\n$1\r\n1\r\n",
    "numbers": b"*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n",
    "no text": b"*4\r\n$2\r\nip\r\n$-1\r\n$4\r\nport\r\n$1\r\n1\r\n",
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_leads_nowhere(answer: bytes, old: Master, manage: Manage) -> None:
    """Whatever answers there, our thread has to live on and to say that it got nothing."""
    with Sentinel(old) as sentinel:
        sentinel.answer = answer
        assert failure(manage(of(sentinel))).reason == "sentinel"
        sentinel.answer = None
        manager = manage(of(sentinel))
        assert manager.get(b"k", soon()) == b"old"


def test_while_no_sentinel_can_be_asked_the_master_they_named_serves_on(
    old: Master, manage: Manage
) -> None:
    """An outage of the sentinels would be one of the cache."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        manager.get(b"k", soon())
    manager.drop_connections()
    assert manager.get(b"k", soon()) == b"old"


def test_the_sentinels_have_a_password_of_their_own(old: Master, manage: Manage) -> None:
    """Each of the two passwords would be sent to the wrong side."""
    with Sentinel(old) as sentinel:
        settings = of(
            sentinel,
            username="app",
            password="theirs",
            sentinel_username="watcher",
            sentinel_password=lambda: SECRET,
            db=3,
        )
        manage(settings).get(b"k", soon())
        assert [words[1:] for words in sentinel.commands if words[0] == b"AUTH"] == [
            [b"watcher", SECRET.encode()]
        ]
        assert [b"SELECT", b"3"] not in sentinel.commands
        assert [words[1:] for words in old.commands if words[0] == b"AUTH"] == [[b"app", b"theirs"]]
        assert [b"SELECT", b"3"] in old.commands


# That it is the master -------------------------------------------------------------------------


def test_a_replica_that_a_sentinel_takes_for_the_master_is_not_used(
    old: Master, new: Master, manage: Manage
) -> None:
    """Reads would come from a demoted master for as long as nobody writes."""
    with Sentinel(old, epoch=1) as late, Sentinel(new, epoch=2) as informed:
        old.role = "slave"
        manager = manage(of(late, informed))
        error = failure(manager)
        assert isinstance(error, RedisReadOnlyError)
        assert old.asked() == [[b"INFO", b"replication"]]
        # Doubt has come up: all of them are asked, and the latest configuration counts.
        assert manager.get(b"k", soon()) == b"new"
        manager.drop_connections()
        before = late.questions
        assert manager.get(b"k", soon()) == b"new"
        assert late.questions == before


def test_an_answer_about_a_dead_master_does_not_pin_us(new: Master, manage: Manage) -> None:
    """A sentinel that is cut off from the others goes on to name it for ever."""
    with Master("dead") as dead, Sentinel(dead, 6) as late, Sentinel(new, epoch=7) as informed:
        manager = manage(of(late, informed))
        assert manager.get(b"k", soon()) == b"dead"
        dead.close()
        manager.drop_connections()
        assert failure(manager).reason == "refused"
        assert manager.get(b"k", soon()) == b"new"


def test_a_master_that_does_not_tell_its_role_is_believed(old: Master, manage: Manage) -> None:
    """An ACL user without INFO must be able to use it."""
    script = old._answer

    def unwilling(client: Client) -> None:
        command = client.command

        def without_info() -> list[bytes] | None:
            words = command()
            while words is not None and words[0] == b"INFO":
                client.send(b"-NOPERM no\r\n")
                words = command()
            return words

        client.command = without_info  # type: ignore[method-assign]
        script(client)

    old._script = unwilling
    with Sentinel(old) as sentinel:
        assert manage(of(sentinel)).get(b"k", soon()) == b"old"


def test_one_new_connection_that_finds_another_master_ends_all_old_ones(
    old: Master, new: Master, manage: Manage
) -> None:
    """Ten idle connections to a frozen master are ten calls that take their whole deadline."""
    with Sentinel(old) as sentinel, ThreadPoolExecutor(4) as threads:
        manager = manage(of(sentinel))
        together = threading.Barrier(4)

        def connect() -> None:
            together.wait(timeout=5)
            manager.get(b"k", soon())

        for done in [threads.submit(connect) for _ in range(4)]:
            done.result(timeout=5)
        wide = manager.usage().idle
        sentinel.named = new.port
        pool = manager._server.pool  # type: ignore[union-attr]
        loans: list[list[Any]] = [[] for _ in range(wide)]
        for loan in loans:
            pool.borrow(loan, soon())
        assert manager.get(b"k", soon()) == b"new"
        for loan in loans:
            pool.give_back(loan)
        assert {manager.get(b"k", soon()) for _ in range(10)} == {b"new"}
        assert all(client.ended.wait(timeout=5) for client in old.clients)


def test_the_health_check_asks_the_sentinels_and_leaves_a_frozen_master(
    old: Master, new: Master, manage: Manage
) -> None:
    """A connection to the old master stays open; nothing but time would tell."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        manager.ping(soon())
        manager.ping(soon())
        assert len(old.clients) == 1
        old.silent.set()
        sentinel.named = new.port
        manager.ping(Deadline(1.0))
        assert manager.get(b"k", soon()) == b"new"


def test_the_health_check_of_a_frozen_master_takes_half_its_time_at_most(
    old: Master, manage: Manage
) -> None:
    """The failover that comes meanwhile would be found as much later."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        manager.ping(soon())
        old.silent.set()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(RedisError):
                manager.ping(Deadline(1.0))
            took_s = time.monotonic() - began
            if took_s <= 0.6:
                break
        assert took_s <= 0.6


def test_trouble_of_the_sentinels_is_none_of_the_master(old: Master, manage: Manage) -> None:
    """The breaker would open, and cut off a master that is well."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        manager.ping(soon())
    manager.ping(soon())
    assert len(old.clients) == 1


def test_a_child_finds_the_master_by_itself(old: Master, manage: Manage) -> None:
    """The thread that asks the sentinels exists in the parent only."""
    with Sentinel(old) as sentinel:
        manager = manage(of(sentinel))
        sentinel.silent.set()
        failure(manager, Deadline(0.05))
        sentinel.silent.clear()
        pid = os.fork()
        if pid == 0:
            right = False
            try:
                right = manager.get(b"k", soon()) == b"old"
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_many_connections_at_once_are_one_question(old: Master, manage: Manage) -> None:
    """After a failover every process connects anew, with all its threads."""
    with Sentinel(old) as sentinel, ThreadPoolExecutor(10) as threads:
        manager = manage(of(sentinel))
        sentinel.silent.set()
        calls = [threads.submit(manager.get, b"k", soon()) for _ in range(10)]
        while sentinel.questions == 0:
            time.sleep(0.001)
        sentinel.silent.clear()
        assert {call.result(timeout=5) for call in calls} == {b"old"}
        assert sentinel.questions <= 3  # one that was not answered, and the next round


# Real ones --------------------------------------------------------------------------------------


def test_with_passwords_and_tls_all_the_way(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each of the three parties has its own idea of who it talks to."""
    made = Certificates(tmp_path_factory.mktemp("tls"))
    with PrivateSentinel(
        password="theirs", sentinel_password=SECRET, tls=made, sentinels=1, replicas=0
    ) as watched:
        assert watched.url.startswith("rediss+sentinel://:theirs@")
        settings = CacheSettings.from_url(watched.url, tls_ca_certs=str(made.authority))
        with RedisCacheFactory.create_cache(settings, namespace="t") as cache:
            assert cache.set("k", 1)
            assert cache.get("k") == 1
            assert watched.master().command("DBSIZE") == 2, "the entry and a counter"
        wrong = CacheSettings.from_url(
            watched.url, tls_ca_certs=str(made.authority), sentinel_password="no"
        )
        with RedisCacheFactory.create_cache(wrong) as cache:
            assert cache.lookup("k").reason == "sentinel_auth"
        other = Certificates(tmp_path_factory.mktemp("other"))
        stranger = CacheSettings.from_url(watched.url, tls_ca_certs=str(other.authority))
        with RedisCacheFactory.create_cache(stranger) as cache:
            assert cache.lookup("k").reason == "tls"


@pytest.mark.parametrize("info", [True, False])
def test_the_rights_in_the_docs_are_enough(info: bool) -> None:
    """Whoever gives no more than what is asked for must not find out later what was missing."""
    with PrivateSentinel(sentinels=1, replicas=0) as watched:
        rights = ["~jobs:*", "+get", "+set", "+unlink", *(["+info"] if info else [])]
        watched.master().command("ACL", "SETUSER", "app", "on", ">one", *rights)
        watched.sentinels[0].command(
            "ACL", "SETUSER", "watcher", "on", ">two", "-@all", "+sentinel|master"
        )
        settings = CacheSettings.from_url(
            watched.url,
            namespace="jobs",
            operation_timeout=5.0,
            username="app",
            password="one",
            sentinel_username="watcher",
            sentinel_password="two",
        )
        with RedisCacheFactory.create_cache(settings) as cache:
            assert cache.set_many({"a": 1, "b": 2})
            assert cache.get_many(["a", "b"]) == {"a": 1, "b": 2}
            assert cache.delete("a")
            cache._health._probe()  # type: ignore[attr-defined]
            assert cache.health().status == "ok"


def test_the_answer_of_a_real_sentinel_is_read_whole() -> None:
    """What we ask for and what it says are a protocol that no scripted server can vouch for."""
    with PrivateSentinel(sentinels=1, replicas=0) as watched:
        settings = CacheSettings.from_url(watched.url)
        manager = RedisConnectionManager(settings)
        manager.set(b"k", b"v", MINUTE_MS, soon())
        assert manager.get(b"k", soon()) == b"v"
        found = manager._server._sentinels.get(soon())  # type: ignore[union-attr]
        assert found == [(socket.AF_INET, ("127.0.0.1", watched.master().port), "127.0.0.1")]
        manager.close()
        manager = RedisConnectionManager(CacheSettings.from_url(watched.url, sentinel_master="no"))
        assert failure(manager).reason == "no_master"
        manager.close()
