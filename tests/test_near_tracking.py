"""Whoever listens to Redis hears everything, or says that it hears nothing."""

from __future__ import annotations

import _thread
import errno
import gc
import logging
import os
import socket
import threading
import time

import pytest
from near_kit import LAG_S, MIB, PATIENCE_S, nearby

from jmcache.connection._pushes import Pushes, Said
from jmcache.connection._tracking import Tracking
from jmcache.errors import RedisProtocolError
from jmcache.near import Coherence, NearCache
from jmcache.settings import CacheSettings
from jmcache.testing import FaultProxy, PrivateSentinel, PrivateServer

INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$2\r\nbc\r\n"


@pytest.fixture
def near(settings):
    """On, with one server for everything."""
    with nearby(settings()) as near:
        near.turn_on()
        yield near


@pytest.fixture
def proxied(redis_server):
    """On, with a proxy between the listener and the server; and the proxy."""
    with FaultProxy(redis_server) as proxy:
        pool = CacheSettings.from_url(redis_server.url)
        with nearby(pool, proxy.settings()) as near:
            near.turn_on()
            yield near, proxy


def test_without_a_descriptor_it_is_tried_until_there_is_one(settings, monkeypatch):
    """The thread would end with a traceback, and the near cache be off until a restart."""
    pairs, refused = socket.socketpair, []

    def none_left(*_args):
        refused.append(1)
        if len(refused) <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return pairs()

    monkeypatch.setattr(socket, "socketpair", none_left)
    with nearby(settings()) as near:
        near.turn_on()
    assert len(refused) == 3


# What is heard


@pytest.mark.parametrize(
    "command", ["SET {} new", "DEL {}", "UNLINK {}", "PEXPIRE {} 1", "APPEND {} x"]
)
def test_what_a_foreign_writer_does_is_heard(near, redis_server, command):
    """An operator with redis-cli changes what users see."""
    redis_server.command("SET", near.name("key"), "old")
    assert near.coherence.wait_for(lambda: near.name("key") in near.coherence.names)
    assert near.use_until(lambda: near.keep("key"))
    redis_server.command(*command.replace("{}", near.name("key").decode()).split())
    assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)


def test_expiry_is_heard(near, redis_server):
    """An entry that Redis does not have any more."""
    redis_server.command("SET", near.name("key"), "old", "PX", "30")
    assert near.coherence.wait_for(lambda: near.coherence.names.count(near.name("key")) == 1)
    near.keep("key")
    assert near.coherence.wait_for(lambda: near.coherence.names.count(near.name("key")) == 2)


def test_eviction_is_heard():
    """A full Redis makes room by itself, also of what somebody has deleted by hand meanwhile."""
    with PrivateServer() as server, nearby(CacheSettings.from_url(server.url)) as near:
        near.turn_on()
        server.command("SET", near.name("key"), "old")
        assert near.coherence.wait_for(lambda: near.name("key") in near.coherence.names)
        assert near.use_until(lambda: near.keep("key"))
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        server.command("CONFIG", "SET", "maxmemory", "3mb")
        for number in range(2_000):
            server.command("SET", f"other-{number}", "x" * 10_000)
            if not server.command("EXISTS", near.name("key")):
                break
        assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)
        assert near.coherence.names.count(near.name("key")) == 2


@pytest.mark.parametrize("command", ["FLUSHDB", "FLUSHALL"])
def test_a_flush_is_heard(near, redis_server, command):
    """It names nothing, and means everything."""
    assert near.use_until(lambda: near.keep("key"))
    redis_server.command(command)
    assert near.coherence.wait_for(lambda: near.coherence.flushes)
    assert near.get("key") is None


def test_moving_a_counter_is_heard(near, redis_server):
    """invalidate_tags() and clear() of another process."""
    counter = near.keys.tag_counter("tag")
    assert near.use_until(lambda: near.keep("key", counters=(counter,)))
    assert near.use_until(lambda: near.keep("other"))
    redis_server.command("INCR", counter)
    assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)
    assert near.use_until(lambda: near.get("other") is not None)
    redis_server.command("INCR", near.keys.space_counter)
    assert near.coherence.wait_for(lambda: near.get("other") is None, LAG_S)


def test_other_namespaces_are_not_heard(near, redis_server):
    """Everybody's writes would keep this process busy."""
    redis_server.command("SET", "tests:v1:x", "1")
    redis_server.command("SET", "test:v11:x", "1")
    redis_server.command("SET", near.name("last"), "1")
    assert near.coherence.wait_for(lambda: near.name("last") in near.coherence.names)
    assert [name for name in near.coherence.names if b"#near" not in name] == [near.name("last")]


def test_it_stays_on_while_it_is_used(near):
    """What goes off between two PINGs is no cache."""
    near.turn_on()
    misses = []
    ends_at = time.monotonic() + 10 * LAG_S
    while time.monotonic() < ends_at:
        near.near.get(b"")
        misses += [None] * (not near.is_on())
        time.sleep(0.005)
    assert len(misses) < 40, "of 200 at most"


# What is not


def test_a_connection_that_is_cut_is_found_out_at_once(proxied):
    """What happens meanwhile, nobody tells."""
    near, proxy = proxied
    assert near.use_until(lambda: near.keep("key"))
    proxy.disconnect()
    assert near.coherence.wait_for(lambda: near.coherence.closed)
    assert near.get("key") is None
    near.turn_on()
    assert near.get("key") is None, "flushed"
    assert near.use_until(lambda: near.keep("key")), "and back in use"
    assert near.tracking.sessions == 2


@pytest.mark.parametrize("fault", ["blackhole", "stall"])
def test_silence_is_not_taken_for_peace(proxied, redis_server, fault):
    """A cable that was pulled out says nothing, and no invalidation comes through it."""
    near, proxy = proxied
    assert near.use_until(lambda: near.keep("key"))
    getattr(proxy, fault)()
    redis_server.command("SET", near.name("key"), "new")
    written_at = latest = began = time.monotonic()
    while near.get("key") is not None:
        latest, began = began, time.monotonic()
    assert latest - written_at < LAG_S, "began so late, and was answered"
    assert near.coherence.wait_for(lambda: near.coherence.closed), "given up"
    proxy.heal()
    near.turn_on()
    assert near.get("key") is None


def test_a_short_pause_costs_no_entry(proxied):
    """What was pushed meanwhile comes before the answer: nothing was missed."""
    near, proxy = proxied
    assert near.use_until(lambda: near.keep("key"))
    fault = proxy.stall()
    assert near.use_until(lambda: not near.is_on())
    fault.remove()
    near.turn_on()
    assert near.get("key") == b"body"
    assert near.tracking.sessions == 1


def test_a_link_slower_than_the_bound_is_never_trusted(redis_server):
    """Its last word is older than what was promised."""
    with FaultProxy(redis_server) as proxy:
        proxy.latency(1.5 * LAG_S)
        with nearby(CacheSettings.from_url(redis_server.url), proxy.settings()) as near:
            assert near.use_until(lambda: near.coherence.extended > 2)
            assert not near.is_on()
            assert near.coherence.begin() is None


def test_another_server_than_the_pools_is_found_out(redis_server, tcp_server):
    """After a failover the pool may be at the new master, and the listener at the old one."""
    here, there = (CacheSettings.from_url(server.url) for server in (redis_server, tcp_server))
    with nearby(here, there) as near:
        assert near.use_until(lambda: near.tracking.missed >= 2)
        assert near.coherence.extended == 0


def test_processes_share_the_prefixes_of_their_canaries_and_no_canary():
    """At each change Redis looks at every prefix, and tells all who listen to the one that fits."""

    def never(*_args):
        raise AssertionError

    every = [
        Tracking(
            *(never, never, Coherence(b"test:v1:#"), b"test:v1:"),
            lag_s=LAG_S,
            connect_s=2.0,
            place=str,
        )
        for _ in range(3000)
    ]
    assert 200 < len({one._canaries for one in every}) <= 256
    assert len({one._canary for one in every}) == 3000
    assert all(one._canary.startswith(one._canaries) for one in every)


def test_a_pool_that_moves_on_is_found_out(near, tcp_server):
    """The same, in the middle of things."""
    assert near.use_until(lambda: near.keep("key"))
    near.manager.reconfigure(CacheSettings.from_url(tcp_server.url))
    assert near.use_until(lambda: near.tracking.missed == 1)
    assert near.get("key") is None
    near.turn_on()
    assert near.tracking.sessions == 2


def test_a_pool_that_cannot_write_turns_it_off_and_breaks_nothing(near, redis_server):
    """A full Redis takes no canary: nothing proves any more where the pool leads."""
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    assert near.use_until(lambda: not near.is_on())
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    near.turn_on()
    assert near.tracking.sessions == 1
    assert near.tracking.missed == 0


def test_a_redis_that_cannot_save_is_listened_to_all_the_while(tmp_path, caplog):
    """It refuses PING, too: to be told of missing rights, and wait a minute, helps nobody."""
    with PrivateServer(directory=tmp_path) as server:
        pool = CacheSettings.from_url(server.url)
        with nearby(pool) as near:
            near.turn_on()
            in_the_way = tmp_path / "dump.rdb"
            in_the_way.mkdir()
            server.command("CONFIG", "SET", "save", "3600 1")
            server.command("BGSAVE")
            assert near.use_until(lambda: not near.is_on())
            in_the_way.rmdir()
            server.command("BGSAVE")
            near.turn_on()
            assert near.tracking.sessions == 1
            assert caplog.records == []


def test_a_forbidden_ping_is_answered_as_well(redis_server, caplog):
    """Its answer comes behind the pushes, whatever it says."""
    redis_server.command(
        *("ACL", "SETUSER", "near", "reset", "on", ">pass", "~test:*", "+@all", "-ping")
    )
    with nearby(CacheSettings.from_url(redis_server.url_for("near", "pass"))) as near:
        near.turn_on()
        assert near.use_until(lambda: near.keep("key"))
        redis_server.command("SET", near.name("key"), "new")
        assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)
    assert caplog.records == []


@pytest.mark.parametrize("what", ["kill the client", "restart", "pause"])
def test_it_comes_back_by_itself(near, redis_server, what):
    """Nobody restarts a service because its cache was restarted."""
    assert near.use_until(lambda: near.keep("key"))
    if what == "kill the client":
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    elif what == "restart":
        redis_server.kill()
        redis_server.start()
    else:
        redis_server.pause()
        assert near.use_until(lambda: not near.is_on())
        redis_server.resume()
    assert what == "pause" or near.coherence.wait_for(lambda: near.coherence.closed)
    near.turn_on()
    assert what == "pause" or near.get("key") is None
    assert near.use_until(lambda: near.keep("key"))
    redis_server.command("SET", near.name("key"), "new")
    assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)


@pytest.mark.parametrize("missing", ["-client", "-pttl"])
def test_a_server_that_does_not_track_is_said_once(redis_server, caplog, missing):
    """The operator turned something on that is off: he has to hear of it, not all day long."""
    caplog.set_level(logging.WARNING, "jmcache.near")
    redis_server.command("ACL", "SETUSER", "near", "on", ">pass", "~test:*", "+@all", missing)
    pool = CacheSettings.from_url(redis_server.url_for("near", "pass"))
    with nearby(pool) as near:
        assert near.use_until(lambda: caplog.records)
        near.tracking.restart()
        assert near.use_until(lambda: near.coherence.closed >= 3)
        assert near.coherence.begin() is None
    (line,) = caplog.records
    assert "noperm" in line.getMessage()
    assert "+client|tracking +pttl" in line.getMessage()


def test_the_rights_that_the_warning_names_are_enough(redis_server):
    """An operator who follows it is done."""
    redis_server.command(
        *("ACL", "SETUSER", "near", "reset", "on", ">pass", "~test:v[0-9]*"),
        *("+get", "+set", "+ping", "+client|tracking", "+pttl"),
    )
    with nearby(CacheSettings.from_url(redis_server.url_for("near", "pass"))) as near:
        near.turn_on()


# Where Redis is


def test_over_tls(certificates):
    """Invalidations are as secret as names are."""
    with PrivateServer(tls=True) as server, nearby(CacheSettings.from_url(server.url)) as near:
        near.turn_on()
        assert near.use_until(lambda: near.keep("key"))
        server.command("SET", near.name("key"), "new")
        assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)


def test_with_valkey_and_a_password(valkey_server):
    """It speaks the same."""
    with nearby(CacheSettings.from_url(valkey_server.url)) as near:
        near.turn_on()
        assert near.use_until(lambda: near.keep("key"))
        valkey_server.command("SET", near.name("key"), "new")
        assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)


def test_it_follows_the_master_that_sentinels_watch():
    """After a failover everybody writes to another server."""
    with PrivateSentinel() as watched, nearby(CacheSettings.from_url(watched.url)) as near:
        near.turn_on()
        assert near.use_until(lambda: near.keep("key"))
        before = watched.master()
        before.kill()
        assert near.use_until(lambda: near.coherence.closed)
        assert near.get("key") is None
        master = watched.wait_for_failover(before)
        assert near.use_until(near.is_on, within_s=30.0)
        assert near.use_until(lambda: near.keep("key"))
        master.command("SET", near.name("key"), "new")
        assert near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)


# Its thread


def test_nothing_starts_before_it_is_wanted(settings, redis_server):
    """Importing, making a cache and forking must cost nothing."""
    before = redis_server.command("INFO", "clients")
    with nearby(settings()) as near:
        assert not near.tracking.running
        assert near.touches == []
    assert before == redis_server.command("INFO", "clients")


def test_it_rests_while_nobody_reads(proxied):
    """A thousand idle processes must not keep Redis busy."""
    near, proxy = proxied
    near.coherence.used_at = -1e9
    assert near.coherence.wait_for(lambda: near.tracking._awake is False)
    before = proxy.commands_total, len(near.touches)
    time.sleep(0.5)
    assert proxy.commands_total - before[0] <= 2
    assert len(near.touches) == before[1]
    began = time.monotonic()
    near.turn_on()
    assert time.monotonic() - began < 0.9, "woken by the first reader, not by the next PING"


def test_it_ends_when_it_is_stopped(near):
    """A closed cache leaves no thread and no connection."""
    near.tracking.stop()
    near.tracking.stop()
    assert near.coherence.begin() is None
    _wait(lambda: not near.tracking._connections)
    near.near.get(b"")
    assert not near.tracking.running


def test_a_restart_is_not_undone_by_the_thread_that_ends(near):
    """Each closes what it opened: else the new one would listen, and nobody believe it."""
    for _ in range(20):
        near.tracking.restart()
        near.turn_on()
    _wait(lambda: len(near.tracking._connections) == 1)


def test_a_thread_that_a_restart_met_in_its_handshake_turns_nothing_off_for_good(settings):
    """Its session came last, and nobody believed who listens: off without a word, for ever."""
    with nearby(settings()) as near:
        new_session, late = near.coherence.open, [threading.Event()]
        in_handshake = threading.Event()

        def open_late():
            if late:
                restarted = late.pop()
                in_handshake.set()
                assert restarted.wait(PATIENCE_S)
            return new_session()

        near.coherence.open = open_late
        (restarted,) = late
        assert near.use_until(in_handshake.is_set)
        near.tracking.restart()
        near.turn_on()
        restarted.set()
        assert near.coherence.wait_for(lambda: near.coherence.opened == 2)
        near.turn_on()
        _wait(lambda: len(near.tracking._connections) == 1)


def test_it_ends_when_nobody_is_left_to_listen_for(near):
    """A cache that was dropped and never closed must not be listened for until the end of days."""
    near.near = None
    gc.collect()
    _wait(lambda: not near.tracking.running)
    assert not near.tracking._connections
    near.near = NearCache(near.coherence, MIB, 30.0)
    near.turn_on()


def test_a_forked_child_listens_for_itself(near, redis_server):
    """It hears nothing on its parent's connection, and must not end it either."""
    assert near.use_until(lambda: near.keep("key"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            empty = near.get("key") is None
            near.turn_on()
            heard = near.use_until(lambda: near.keep("key"))
            redis_server.command("SET", near.name("key"), "of the child")
            gone = near.coherence.wait_for(lambda: near.get("key") is None, LAG_S)
            status = 0 if empty and heard and gone else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert near.coherence.wait_for(lambda: near.get("key") is None)
    near.turn_on()
    assert near.tracking.sessions == 1, "the parent went on with its connection"


def test_an_error_that_nobody_foresaw_does_not_end_it(settings, caplog):
    """The near cache would be off without a word."""
    with nearby(settings()) as near:
        new = near.tracking._connect
        broken = [ZeroDivisionError()]

        def connect():
            if broken:
                raise broken.pop()
            return new()

        near.tracking._connect = connect
        near.turn_on()
    assert "ZeroDivisionError" in caplog.text


def test_a_line_that_it_logs_leaves_nothing_of_its_thread(settings, monkeypatch, caplog):
    """Each cache that comes and goes would leave a dummy in the list of all threads, for good."""

    def broken():
        raise ZeroDivisionError

    with nearby(settings()) as near:
        monkeypatch.setattr(near.tracking, "_connect", broken)
        assert near.use_until(lambda: "ZeroDivisionError" in caplog.text)
    (name,) = {record.threadName for record in caplog.records if record.name == "jmcache.near"}
    assert name == "jmcache-near"
    _wait(lambda: name not in [thread.name for thread in threading.enumerate()])


def test_without_a_thread_it_is_tried_until_there_is_one(settings, monkeypatch):
    """At the system's limit of threads the first read would turn it off for good."""
    refused = []

    def none_left(*_args):
        refused.append(1)
        raise RuntimeError("can't start new thread")

    with nearby(settings()) as near:
        with monkeypatch.context() as patched:
            patched.setattr(_thread, "start_new_thread", none_left)
            assert near.use_until(lambda: len(refused) >= 3)
        near.turn_on()


# What comes in


def feed_in_pieces(data: bytes, size: int) -> list[Said]:
    pushes = Pushes()
    said = []
    for start in range(0, len(data), size):
        said += pushes.feed(data[start : start + size])
    return said


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pushes_are_read_however_they_are_cut(size):
    """A stream has no edges."""
    data = (
        INVALIDATE
        + b"+PONG\r\n"
        + b">2\r\n$10\r\ninvalidate\r\n_\r\n-ERR no\r\n%1\r\n$1\r\nk\r\n:1\r\n"
    )
    said = feed_in_pieces(data, size)
    assert said[:3] == [Said([b"a", b"bc"]), Said(reply=b"+PONG"), Said(everything=True)]
    assert str(said[3].reply) == "ERR no"
    assert said[4] == Said(reply=[b"k", b":1"])
    assert len(said) == 5


def test_many_names_come_in_pieces():
    """A script may change a million at once, and memory is not theirs."""
    names = [b"%d" % number for number in range(2500)]
    packed = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in names)
    said = feed_in_pieces(b">2\r\n$10\r\ninvalidate\r\n*2500\r\n" + packed, 999)
    assert [len(one.names) for one in said] == [1000, 1000, 500]
    assert [name for one in said for name in one.names] == names


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b">3\r\n$7\r\nmessage\r\n",
        b">2\r\n$7\r\nmessage\r\n$1\r\nx\r\n",
        b">2\r\n$10\r\ninvalidate\r\n:1\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n:1\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nabc\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$99999999\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*99999999999\r\n",
        b"*1\r\n" * 10,
        b"*5000\r\n",
        b"x" * 20_000,
        b"+" + b"x" * 20_000,
    ],
)
def test_what_is_no_push_is_not_guessed_at(data):
    """One byte out of step, and names would be read that were never said."""
    with pytest.raises(RedisProtocolError):
        feed_in_pieces(data, 1000)


def _wait(condition) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
