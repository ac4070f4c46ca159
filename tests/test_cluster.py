"""A cluster's keys at their nodes: redirected, looked up, bounded, whatever single nodes do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_cluster import ScriptedCluster, Words
from scripted_server import END, RESET, Client, ScriptedServer, answering

from jmcache.connection import RedisConnectionManager, _guide
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisUnreachableError,
)
from jmcache.testing.cluster import slot_of

MINUTE_MS = 60_000
Manage = Callable[..., RedisConnectionManager]


def soon() -> Deadline:
    return Deadline(5.0)


def value(name: bytes) -> bytes:
    return b"value of " + name


@pytest.fixture
def cluster() -> Iterator[ScriptedCluster]:
    with ScriptedCluster() as running:
        yield running


@pytest.fixture
def manage(cluster: ScriptedCluster) -> Iterator[Manage]:
    made: list[RedisConnectionManager] = []

    def make(*seeds: int, **overrides: Any) -> RedisConnectionManager:
        made.append(RedisConnectionManager(cluster.settings(*seeds, **overrides)))
        return made[-1]

    yield make
    for manager in made:
        assert manager.usage().in_use == 0
        manager.close()


@pytest.fixture
def manager(manage: Manage) -> RedisConnectionManager:
    return manage()


@pytest.fixture
def three(cluster: ScriptedCluster) -> list[bytes]:
    """A name on each node, with its value stored."""
    names = [cluster.name_on(number) for number in range(3)]
    cluster.keep(*names)
    return names


# The way to a node ------------------------------------------------------------------------------


def test_every_name_is_asked_for_at_its_own_node(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """A redirection for each call would double the time of every read."""
    for name in three:
        assert manager.get(name, soon()) == value(name)
        manager.set(name, b"new", MINUTE_MS, soon())
        assert manager.delete([name], soon()) == 1
    for number, name in enumerate(three):
        commands = [words for words in cluster.asked(number) if words[0] != b"CLUSTER"]
        assert [words[:2] for words in commands] == [
            [b"GET", name],
            [b"SET", name],
            [b"UNLINK", name],
        ]
    assert cluster.look_ups() == 1


def test_a_slot_that_moved_is_followed_and_remembered(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """Each of its keys would be a miss, or cost two round trips from then on."""
    manager.get(three[0], soon())
    cluster.told = list(cluster.owners)  # not heard of everywhere yet
    cluster.owners[slot_of(three[0])] = 2
    cluster.keep(three[0])
    assert manager.get(three[0], soon()) == value(three[0])
    assert manager.get(three[0], soon()) == value(three[0])
    assert len(cluster.asked(0, b"GET")) == 2
    assert len(cluster.asked(2, b"GET")) == 2


@pytest.mark.parametrize("verb", ["set", "get_many", "set_many", "delete"])
def test_every_verb_follows(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes], verb: str
) -> None:
    """A migration would lose writes, or deletes, without a word."""
    manager.get(three[0], soon())
    cluster.owners[slot_of(three[0])] = 1
    cluster.keep(three[0])
    if verb == "set":
        manager.set(three[0], b"new", MINUTE_MS, soon())
        assert cluster.stored[1][three[0]] == b"new"
    elif verb == "set_many":
        items = [(name, b"new", MINUTE_MS) for name in three]
        assert manager.set_many(items, soon()) == [None, None, None]
        assert cluster.stored[1][three[0]] == b"new"
    elif verb == "delete":
        assert manager.delete(three, soon()) == 3
        assert three[0] not in cluster.stored[1]
    else:
        assert manager.get_many(three, soon()) == list(map(value, three))


def test_a_redirection_without_a_host_means_the_one_that_gave_it(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """Nodes that know no address of their own announce none."""
    manager.get(three[0], soon())
    cluster.instead[0] = lambda _client, words: (
        b"-MOVED %d :%d\r\n" % (slot_of(words[1]), cluster.ports[1])
    )
    cluster.owners[slot_of(three[0])] = 1
    cluster.keep(three[0])
    assert manager.get(three[0], soon()) == value(three[0])


def test_a_key_on_its_way_is_asked_for_there_once(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """ASK is no news of the slot: what is remembered of it would send the next key astray."""
    name = three[0]
    manager.get(name, soon())
    cluster.stored[2][name] = b"moved ahead"
    cluster.instead[0] = lambda _client, words: (
        cluster.moved(name, 2, b"ASK") if words[0] == b"GET" else None
    )
    assert manager.get(name, soon()) == b"moved ahead"
    assert manager.get_many(three, soon()) == [b"moved ahead", *map(value, three[1:])]
    del cluster.instead[0]
    assert manager.get(name, soon()) == value(name)
    asked = [words[0] for words in cluster.nodes[2].asked() if words[0] != b"CLUSTER"]
    assert asked == [b"ASKING", b"GET", b"GET", b"ASKING", b"GET"]
    assert cluster.look_ups() == 1


def test_nodes_that_send_each_other_on_are_left_in_the_end(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """While the word spreads two nodes may do so; a call would turn round until its deadline."""
    manager.get(three[0], soon())
    for number in (0, 1):
        cluster.instead[number] = lambda _client, words, to=1 - number: (
            cluster.moved(words[1], to) if words[0] == b"GET" else None
        )
    began = time.monotonic()
    with pytest.raises(RedisNotReadyError) as caught:
        manager.get(three[0], soon())
    assert (caught.value.reason, caught.value.retryable) == ("tryagain", True)
    assert len(cluster.asked(0, b"GET") + cluster.asked(1, b"GET")) == 8
    assert time.monotonic() - began < 2.0
    assert manager.get_many([three[0], three[2]], soon())[1] == value(three[2])


@pytest.mark.parametrize("text", ["CLUSTERDOWN The cluster is down", "TRYAGAIN Multiple keys"])
def test_a_cluster_in_transition_is_worth_another_attempt(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes], text: str
) -> None:
    """It is over in a second; the caller's retry gets the value."""
    manager.get(three[0], soon())
    cluster.instead[0] = lambda _client, _words: f"-{text}\r\n".encode()
    for call in (
        lambda: manager.get(three[0], soon()),
        lambda: manager.get_many(three[:1], soon()),
    ):
        with pytest.raises(RedisNotReadyError) as caught:
            call()
        assert caught.value.retryable
        assert caught.value.reason == text.partition(" ")[0].lower()


# The map ----------------------------------------------------------------------------------------


def test_the_next_seed_is_asked_when_one_is_away(
    cluster: ScriptedCluster, manage: Manage, three: list[bytes]
) -> None:
    """A service that starts while one node is down would stay without its cache."""
    for _ in range(5):  # in random order
        manager = manage(0, 1)
        cluster.end(0)
        assert manager.get(three[1], soon()) == value(three[1])


def test_without_anybody_the_error_says_so(cluster: ScriptedCluster, manage: Manage) -> None:
    """The outage's reason is how an operator finds the wrong port."""
    manager = manage(0, 1)
    for number in range(3):
        cluster.end(number)
    with pytest.raises(RedisUnreachableError):
        manager.get(b"k", soon())
    with pytest.raises(RedisUnreachableError):
        manager.get_many([b"k", b"l"], soon())


def test_a_server_that_is_no_cluster_is_a_wrong_setting() -> None:
    """It would serve until somebody makes it a cluster, and nobody would know why it ends."""
    refusal = b"-ERR This instance has cluster support disabled\r\n"
    with ScriptedServer(answering(refusal)) as server:
        manager = RedisConnectionManager(server.settings(cluster=True))
        for _ in range(2):
            with pytest.raises(RedisMisconfiguredError) as caught:
                manager.get(b"k", soon())
            assert caught.value.reason == "no_cluster"
        manager.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n*2\r\n:0\r\n:1\r\n",
        b"$2\r\n[]\r\n",
        b"*0\r\n",
        RESET,
        END,
    ],
)
def test_nonsense_in_place_of_the_map_is_an_error_of_ours(reply: object) -> None:
    """An exception that nobody foresaw would reach the callers."""
    with ScriptedServer(answering(reply)) as server:
        manager = RedisConnectionManager(server.settings(cluster=True))
        with pytest.raises(RedisError):
            manager.get(b"k", soon())
        manager.close()


def test_one_looks_up_while_the_others_go_on(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """A node that is slow to tell the map would hold up every thread."""
    manager.get(three[0], soon())
    asked, told = threading.Event(), threading.Event()

    def hold(_client: Client, words: Words) -> None:
        if words[:2] == [b"CLUSTER", b"SLOTS"]:
            asked.set()
            told.wait(5)

    cluster.instead.update(dict.fromkeys(range(3), hold))
    manager._server._guide.doubt()
    manager._server._guide._look_at = 0.0
    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(manager.get, three[0], soon())
        assert asked.wait(5)
        before = cluster.look_ups()
        manager._server._guide.doubt()  # something else is wrong, and it takes long
        manager._server._guide._look_at = 0.0
        for name in three:
            assert manager.get(name, Deadline(1.0)) == value(name)
        assert manager.get_many(three, Deadline(1.0)) == list(map(value, three))
        assert cluster.look_ups() == before == 2
        told.set()
        assert looking.result(5) == value(three[0])


def test_who_comes_before_there_is_a_map_asks_a_seed(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """At start every thread would wait for the one that looks up."""
    asked, told = threading.Event(), threading.Event()

    def hold(_client: Client, words: Words) -> None:
        if words[0] == b"CLUSTER":
            asked.set()
            told.wait(5)

    cluster.instead[0] = hold
    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(manager.get, three[1], soon())
        assert asked.wait(5)
        assert manager.get(three[2], soon()) == value(three[2])
        told.set()
        assert looking.result(5) == value(three[1])


def test_a_look_up_that_is_interrupted_is_taken_up_by_the_next(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """Leave to look up would be lost for good, and with it every failover."""
    guide = manager._server._guide
    kept = []
    for _ in range(2):
        guide.doubt()
        guide._look_at = 0.0
        node = manager._server._members[guide._seeds[0]].node
        right, node.ask = node.ask, _interrupt
        try:
            manager.get(three[0], Deadline(0.2))
        except ZeroDivisionError as error:
            kept.append(error)  # with its frames, as an error tracker does
        finally:
            node.ask = right
    time.sleep(0.2)  # what the frames keep is over with the deadline
    guide._look_at = 0.0
    assert kept
    assert manager.get(three[0], soon()) == value(three[0])
    assert guide.masters


def _interrupt(*_: object) -> None:
    raise ZeroDivisionError


def test_a_storm_of_redirections_is_no_storm_of_look_ups(
    cluster: ScriptedCluster, manager: RedisConnectionManager
) -> None:
    """A thousand slots that move would have each process ask for the whole map a thousand times."""
    names = [cluster.name_on(0, start) for start in range(0, 3000, 10)]
    manager.get(names[0], soon())
    cluster.told = list(cluster.owners)
    for name in names:
        cluster.owners[slot_of(name)] = 1
    cluster.keep(*names)
    began = time.monotonic()
    for name in names:
        assert manager.get(name, soon()) == value(name)
    assert cluster.look_ups() <= 2 + (time.monotonic() - began) / _guide.LOOK_AGAIN_S


def test_a_node_that_failed_is_looked_for_among_the_others(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """A dead master sends nobody on: its replica would not be found."""
    manager.get(three[0], soon())
    cluster.end(0)
    cluster.owners = [2 if owner == 0 else owner for owner in cluster.owners]
    cluster.keep(three[0])
    with pytest.raises(RedisError):
        manager.get(three[0], soon())
    time.sleep(_guide.LOOK_AGAIN_S)
    assert manager.get(three[0], soon()) == value(three[0])


def test_a_node_that_left_is_let_go(
    cluster: ScriptedCluster, manage: Manage, three: list[bytes]
) -> None:
    """Connections to nodes that are gone would pile up in a cluster that is scaled now and then."""
    manager = manage(1)
    assert manager.get_many(three, soon()) == list(map(value, three))
    [kept] = [client for client in cluster.nodes[0].clients if not client.ended.is_set()]
    cluster.owners = [2 if owner == 0 else owner for owner in cluster.owners]
    cluster.keep(*three)
    manager.ping(soon())
    assert kept.ended.wait(5)
    assert manager.get_many(three, soon()) == list(map(value, three))


def test_a_call_to_a_node_that_just_left_finds_its_way(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """Between its look at the map and its asking another thread may have closed the node."""
    assert manager.get_many(three, soon()) == list(map(value, three))
    members = manager._server._members
    gone = members[("127.0.0.1", cluster.ports[0])]

    def leave(*_: object) -> None:
        members.keep([place for place in manager._server._guide.masters if place != gone.address])

    for call in (
        lambda: [manager.get(three[0], soon())],
        lambda: manager.get_many(three, soon())[:1],
    ):
        gone = members[("127.0.0.1", cluster.ports[0])]
        borrow = gone.node.pool.borrow

        def borrow_late(*args: Any, borrow: Any = borrow, **kwargs: Any) -> Any:
            leave()
            return borrow(*args, **kwargs)

        gone.node.pool.borrow = borrow_late
        assert call() == [value(three[0])]


@pytest.mark.parametrize("verb", ["get_many", "set_many"])
def test_a_cluster_that_is_closed_in_the_middle_gives_no_half_answers(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes], verb: str
) -> None:
    """Half of them would be kept, though its owner has all of them in what came in its place."""
    asked = three if verb == "get_many" else [(name, b"new", MINUTE_MS) for name in three]
    manager.get_many(three, soon())
    server = manager._server
    last = server._members[("127.0.0.1", cluster.ports[2])]
    borrow = last.node.pool.borrow

    def close_and_borrow(*args: Any, **kwargs: Any) -> Any:
        server.close()
        return borrow(*args, **kwargs)

    last.node.pool.borrow = close_and_borrow
    with pytest.raises(RedisClosedError):
        getattr(manager, verb)(asked, soon())


def test_a_bundle_in_the_middle_of_a_move_is_carried_out_where_it_moved(
    cluster: ScriptedCluster, manager: RedisConnectionManager, three: list[bytes]
) -> None:
    """Some of its names would be missed for once, without anything being wrong."""
    manager.get_many(three, soon())
    last = manager._server._members[("127.0.0.1", cluster.ports[2])]
    borrow = last.node.pool.borrow

    def move_and_borrow(*args: Any, **kwargs: Any) -> Any:
        manager.reconfigure(cluster.settings(max_connections=3))
        return borrow(*args, **kwargs)

    last.node.pool.borrow = move_and_borrow
    assert manager.get_many(three, soon()) == list(map(value, three))
