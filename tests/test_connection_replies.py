"""The reader of replies: whatever comes, in whatever pieces, the one asked for or none."""

from __future__ import annotations

import tracemalloc

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from jmcache.connection._replies import Replies, Reply
from jmcache.connection._wire import NUMBER, OK, VALUE, pack, pack_get, pack_set
from jmcache.errors import RedisConnectionError, RedisCorruptEntryError, RedisProtocolError

ROOM = 1_000_000
blobs = st.binary(max_size=200) | st.sampled_from([b"$-1\r\n", b"\r\n", b"-ERR x\r\n"])


def reader(data: bytes, sizes: list[int] | None = None, room: int = ROOM) -> Replies:
    """A reader of *data* in pieces of the given *sizes*, then at once, then the end."""
    left = [data]
    pieces = list(sizes or [])

    def recv(size: int) -> bytes:
        take = min(size, pieces.pop(0) if pieces else size)
        piece, left[0] = left[0][:take], left[0][take:]
        return piece

    replies = Replies(recv)
    replies.begin(room)
    return replies


def bulk(blob: bytes | None) -> bytes:
    return b"$-1\r\n" if blob is None else b"$%d\r\n%b\r\n" % (len(blob), blob)


sizes = st.lists(st.integers(1, 40), max_size=60)


@given(st.none() | blobs, sizes)
def test_a_value_is_read_whole_in_whatever_pieces_it_comes(blob: bytes | None, cuts: list[int]):
    """The network cuts where it likes, also between \\r and \\n."""
    replies = reader(bulk(blob), cuts)
    assert replies.read(VALUE) == blob
    assert not replies.unread


@given(st.lists(st.none() | blobs, max_size=20), sizes)
def test_many_values_are_read_whole_in_whatever_pieces_they_come(
    items: list[bytes | None], cuts: list[int]
):
    """The same for get_many."""
    replies = reader(b"".join(map(bulk, items)), cuts)
    found: list[Reply] = []
    replies.read_all((VALUE,) * len(items), found)
    assert found == items
    assert not replies.unread


@given(st.lists(st.sampled_from(["ok", "error", "value"]), max_size=10), sizes)
def test_replies_one_after_the_other_stay_apart(kinds: list[str], cuts: list[int]):
    """A pipeline's answers would move by one."""
    wire = {"ok": b"+OK\r\n", "error": b"-OOM no\r\n", "value": b"$2\r\n\r\n\r\n"}
    replies = reader(b"".join(wire[kind] for kind in kinds), cuts)
    for kind in kinds:
        reply = replies.read(VALUE if kind == "value" else OK)
        if kind == "error":
            assert isinstance(reply, redis.ResponseError)
            assert str(reply) == "OOM no"
        else:
            assert reply == (b"OK" if kind == "ok" else b"\r\n")
    assert not replies.unread


@given(st.binary(max_size=60), st.sampled_from([VALUE, NUMBER, OK]), sizes)
def test_of_any_bytes_only_the_asked_reply_is_read(data: bytes, asked: bytes, cuts: list[int]):
    """Bytes of a stranger, or of a stream out of step, must be no value and no crash."""
    try:
        reply = reader(data, cuts).read(asked)
    except (RedisProtocolError, RedisConnectionError, RedisCorruptEntryError):
        return
    if isinstance(reply, redis.ResponseError):
        assert data.startswith(b"-")
    elif asked == NUMBER:
        assert data.startswith(b":")
    else:
        assert data.startswith(b"+OK\r\n" if asked == OK else bulk(reply))


OTHERS = {
    VALUE: [b":42\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n", b"*-1\r\n", b"$-2\r\n", b"$ 1\r\na\r\n"],
    NUMBER: [b"$1\r\n1\r\n", b"+1\r\n", b":-1\r\n", b":1e3\r\n", b":\r\n", b"$-1\r\n"],
    OK: [b"+OKAY\r\n", b"+QUEUED\r\n", b"$2\r\nOK\r\n", b":1\r\n", b"+\r\n", b"+PONG\r\n"],
}
STRANGERS = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"\r\n\r\n",
    b"%1\r\n+a\r\n+b\r\n",
    b"_\r\n",
    b">2\r\n+message\r\n+x\r\n",
    b"*1\r\n" * 100_000,
    b"$" + b"9" * 100_000,
    b"$" + b"9" * 31 + b"\r\n",
    b"$\xc2\xb2\r\na\r\n",
]


@pytest.mark.parametrize(
    ("asked", "other"),
    [(asked, other) for asked, others in OTHERS.items() for other in others]
    + [(asked, stranger) for asked in OTHERS for stranger in STRANGERS],
    ids=lambda data: repr(data[:16])[2:-1],
)
def test_any_other_reply_is_refused_before_memory_is_reserved(asked: bytes, other: bytes):
    """`*2147483647` cost a client 16 GB and 13 s; a status for a value became the value."""
    replies = reader(other, [1, 1, 1])
    tracemalloc.start()
    try:
        with pytest.raises((RedisProtocolError, RedisCorruptEntryError)):
            replies.read(asked)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_value_beyond_the_room_is_refused_by_its_head():
    """64 MB under one of our names would be read for nothing, call after call."""
    replies = reader(b"$1000001\r\n")
    with pytest.raises(RedisCorruptEntryError) as caught:
        replies.read(VALUE)
    assert caught.value.reason == "too_large"


def test_the_room_is_for_all_values_of_an_exchange():
    """A hundred giants would each be let through."""
    with pytest.raises(RedisCorruptEntryError):
        reader(bulk(b"x" * 60) * 2, room=100).read_all((VALUE, VALUE), [])
    found: list[Reply] = []
    reader(bulk(b"x" * 50) * 2, room=100).read_all((VALUE, VALUE), found)
    assert found == [b"x" * 50] * 2


def test_a_surplus_reply_is_seen():
    """It would be the next caller's answer."""
    replies = reader(b"$1\r\na\r\n$1\r\nb\r\n")
    assert replies.read(VALUE) == b"a"
    assert replies.unread


def test_an_end_before_the_reply_is_whole_is_a_lost_connection():
    """Half a value must not be handed out, and another attempt may help."""
    for cut in range(len(b"$5\r\nhello\r\n")):
        with pytest.raises(RedisConnectionError) as caught:
            reader(b"$5\r\nhello\r\n"[:cut]).read(VALUE)
        assert caught.value.reason == "eof"


def test_a_value_that_is_longer_than_announced_is_out_of_step():
    """The rest of it would be read as the next reply."""
    with pytest.raises(RedisProtocolError):
        reader(b"$3\r\nhello\r\n").read(VALUE)


def test_a_long_error_is_read_and_an_endless_one_is_not():
    """A script's error can be some kilobytes; a hostile one would fill the memory."""
    reply = reader(b"-ERR " + b"x" * 10_000 + b"\r\n").read(VALUE)
    assert isinstance(reply, redis.ResponseError)
    with pytest.raises(RedisProtocolError):
        reader(b"-" + b"x" * 100_000).read(VALUE)


def test_quoted_arguments_are_cut_off():
    """A server that does not know AUTH would put the password into the log."""
    text = b"-ERR unknown command 'AUTH', with args beginning with: 'jobs' 'hemlig' \r\n"
    assert str(reader(text).read(OK)) == "ERR unknown command 'AUTH'"


@given(blobs, blobs, st.integers(1, 10**12))
def test_commands_are_packed_alike(name: bytes, blob: bytes, ttl_ms: int):
    """The two that are written out for speed must not drift from the general one."""
    assert pack_get(name) == pack(b"GET", name)
    assert pack_set(name, blob, ttl_ms) == pack(b"SET", name, blob, b"PX", str(ttl_ms).encode())
