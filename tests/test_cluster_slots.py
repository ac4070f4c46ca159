"""What a cluster says of its slots, read strictly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmcache.connection._replies import Replies
from jmcache.connection._slots import (
    SLOTS,
    Redirected,
    key_slot,
    read_redirection,
    read_slots,
)
from jmcache.connection._wire import TREE
from jmcache.errors import RedisError, RedisNotReadyError, RedisProtocolError
from jmcache.testing.cluster import slot_of

branches = st.recursive(
    st.binary(max_size=20) | st.none() | st.integers(0, 2**40),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


def packed(tree: Any) -> bytes:
    if isinstance(tree, list):
        return b"*%d\r\n" % len(tree) + b"".join(map(packed, tree))
    if isinstance(tree, int):
        return b":%d\r\n" % tree
    return b"$-1\r\n" if tree is None else b"$%d\r\n%b\r\n" % (len(tree), tree)


def depth(tree: Any) -> int:
    return 1 + max(map(depth, tree), default=0) if isinstance(tree, list) else 0


def reader(data: bytes, piece: int, room: int = 100_000) -> Replies:
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    replies = Replies(lambda _size: pieces.pop(0) if pieces else b"")
    replies.begin(room)
    return replies


@given(tree=st.lists(branches, max_size=5), piece=st.integers(1, 50))
def test_a_tree_is_read_whole_in_whatever_pieces_it_comes(tree: Any, piece: int) -> None:
    """Half of a map would send half of the keys astray."""
    replies = reader(packed(tree), piece)
    if depth(tree) <= 4:
        assert replies.read(TREE) == tree
        assert not replies.unread
    else:
        with pytest.raises(RedisProtocolError):
            replies.read(TREE)


@pytest.mark.parametrize(
    "data",
    [
        b"*2147483647\r\n",
        b"*1\r\n" * 100_000,
        b"*1\r\n+OK\r\n",
        b"*-1\r\n",
        b"*1\r\n-ERR\r\n",
        b"$1\r\n1\r\n",
    ],
)
def test_a_tree_that_is_none_reserves_nothing(data: bytes) -> None:
    """A hostile or broken server would take the memory, or the stack, of every process."""
    with pytest.raises(RedisProtocolError):
        reader(data, 65536).read(TREE)


def test_the_room_is_for_all_branches() -> None:
    """A list that never ends would be read until the deadline, and kept."""
    endless = b"*1000000\r\n" + b":1\r\n" * 1000
    with pytest.raises(RedisProtocolError):
        reader(endless, 65536, room=1000).read(TREE)


@given(
    st.lists(
        st.lists(
            st.integers(-5, SLOTS + 5) | st.lists(branches, max_size=4) | branches, max_size=5
        ),
        max_size=4,
    )
)
def test_of_any_tree_only_a_map_is_taken(tree: Any) -> None:
    """An exception that nobody foresaw would reach the callers."""
    try:
        found = read_slots(tree, "asked")
    except RedisError:
        return
    assert len(found.owners) == SLOTS
    assert set(found.owners) - {None} <= set(found.masters)


def test_a_map_has_an_owner_for_every_slot_that_is_served() -> None:
    """Replicas answer with a redirection, and slots that nobody has with an error."""
    found = read_slots(
        [
            [0, 99, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.2", 7001, b"id", []]],
            [200, 200, [b"", 7002, b"id"], [None, 7003, b"id"], [b"?", 7004, b"id"]],
            [201, SLOTS - 1, [b"cache-3.example", 7000, b"id", [b"ip", b"10.0.0.3"]]],
        ],
        "::1",
    )
    assert found.owners[0] == found.owners[99] == ("10.0.0.1", 7000)
    assert found.owners[100] is found.owners[199] is None
    assert found.owners[200] == ("::1", 7002), "one that does not know its host is where we asked"
    assert found.owners[SLOTS - 1] == ("cache-3.example", 7000)
    assert found.masters == (("10.0.0.1", 7000), ("::1", 7002), ("cache-3.example", 7000))
    assert found.replicas == (("10.0.0.2", 7001), ("::1", 7003), ("::1", 7004))


def test_a_node_that_knows_of_no_slot_tells_nothing() -> None:
    """One that was reset would make us forget all the others."""
    with pytest.raises(RedisNotReadyError):
        read_slots([], "asked")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381, False)),
        ("ASK 16383 cache-1.example:1", (16383, "cache-1.example", 1, True)),
        ("MOVED 0 2001:db8::1:6381", (0, "2001:db8::1", 6381, False)),
        ("MOVED 0 :6381", (0, "", 6381, False)),
        ("MOVED 0 ?:6381", (0, "", 6381, False)),
        ("MOVED 16384 h:1", None),
        ("MOVED -1 h:1", None),
        ("MOVED 1 h:0", None),
        ("MOVED 1 h:65536", None),
        ("MOVED 1 h", None),
        ("MOVED 1", None),
        ("MOVED 1 a b:1", None),
        ("MOVED 1 user:secret@h:1", None),
    ],
)
def test_a_redirection_is_read_whole_or_not_at_all(text: str, expected: Any) -> None:
    """A call would go, and with it the password, to wherever a broken text seems to point."""
    found = read_redirection(text, "message")
    if expected is None:
        assert found is None
    else:
        assert isinstance(found, Redirected)
        assert (found.slot, found.host, found.port, found.asking) == expected
        assert str(found) == "message"


@given(st.binary(max_size=50).filter(lambda name: b"{" not in name))
def test_slots_are_counted_as_redis_does(name: bytes) -> None:
    """Every call would be sent on first. (tests/test_cluster_failover.py asks Redis itself.)"""
    assert key_slot(name) == slot_of(name)
