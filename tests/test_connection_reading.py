"""An exchange that an event loop waits for: the same replies as the blocking way, or none."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from certificates import Certificates
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import END, GREETINGS, RESET, Client, ScriptedServer, answering

from jmcache.connection import RedisConnectionManager
from jmcache.connection._reading import Reading
from jmcache.connection._replies import Replies
from jmcache.connection._socket import DeadlineSocket
from jmcache.connection._wire import LIFE, VALUE
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConnectionError,
    RedisCorruptEntryError,
    RedisError,
    RedisHurriedError,
    RedisNotReadyError,
    RedisProtocolError,
    RedisTimeoutError,
)

NAMES = [b"a", b"b", b"c"]
THREE = b"$1\r\nx\r\n$-1\r\n$6\r\na\r\nb\r\n\r\n"
READ = [b"x", None, b"a\r\nb\r\n"]


def bulk(blob: bytes | None) -> bytes:
    return b"$-1\r\n" if blob is None else b"$%d\r\n%b\r\n" % (len(blob), blob)


class Pieces:
    """What comes over a wire: *data* cut at random places, with nothing there between them."""

    def __init__(self, data: bytes, cuts: Sequence[int]) -> None:
        self._data = data
        self._cuts = list(cuts)
        self._pause = False

    def recv(self, size: int) -> bytes:
        take = min(size, self._cuts.pop(0) if self._cuts else 7)
        piece, self._data = self._data[:take], self._data[take:]
        return piece

    def recv_now(self, size: int) -> bytes:
        self._pause = not self._pause
        if self._pause:
            raise BlockingIOError
        return self.recv(size)


def told(replies: list[Any]) -> list[Any]:
    return [str(one) if isinstance(one, Exception) else one for one in replies]


def blocking(asked: Sequence[bytes], data: bytes, cuts: Sequence[int], room: int) -> Any:
    reader = Replies(Pieces(data, cuts).recv)
    reader.begin(room)
    replies: list[Any] = []
    try:
        reader.read_all(asked, replies)
    except RedisError as error:
        return type(error), error.reason, told(replies)
    return told(replies), reader.unread


def awaited(asked: Sequence[bytes], data: bytes, cuts: Sequence[int], room: int) -> Any:
    reader = Replies(lambda size: pytest.fail("it waited"))
    reader.begin(room, Pieces(data, cuts).recv_now)
    replies: list[Any] = []
    while True:
        try:
            reader.read_all(asked, replies)
        except BlockingIOError:
            continue
        except RedisError as error:
            return type(error), error.reason, told(replies)
        return told(replies), reader.unread


whole = st.one_of(
    (st.none() | st.binary(max_size=90)).map(bulk),
    st.sampled_from([b"-ERR no\r\n", b"-WRONGTYPE x\r\n", b":12\r\n", b":-1\r\n", b"+OK\r\n"]),
    st.sampled_from([b"$5\r\nabc\r\n\r\n", b"$03\r\nabc\r\n", b"$\r\n", b"\r\n", b"*1\r\n"]),
)


@given(
    st.lists(whole, max_size=8),
    st.lists(st.sampled_from([VALUE, VALUE, VALUE, LIFE]), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), max_size=40),
    st.integers(0, 8),
    st.sampled_from([50, 1_000]),
)
def test_in_whatever_pieces_replies_come_they_are_what_the_blocking_way_reads(
    replies: list[bytes], asked: list[bytes], cuts: list[int], missing: int, room: int
) -> None:
    """A head, a body or a line's end that was cut in two must not become another value."""
    data = b"".join(replies)
    data = data[: len(data) - missing]
    assert awaited(asked, data, cuts, room)[:3] == blocking(asked, data, cuts, room)[:3]


# Over a wire --------------------------------------------------------------------------------------


@pytest.fixture
def managers() -> Iterator[list[RedisConnectionManager]]:
    made: list[RedisConnectionManager] = []
    yield made
    for manager in made:
        manager.close()


Managers = list[RedisConnectionManager]


def warm(made: Managers, server: ScriptedServer, **options: Any) -> RedisConnectionManager:
    """A manager of one connection, which is open."""
    manager = RedisConnectionManager(server.settings(max_connections=1, **options))
    made.append(manager)
    manager.ping(Deadline(5.0))
    return manager


def drive(reading: Reading | None, within_s: float = 5.0) -> Any:
    """What comes of *reading*, as an event loop finds out; True in the end when it has to wait."""
    assert reading is not None
    deadline = Deadline(within_s)
    while not deadline.expired:
        poll = select.poll()
        poll.register(reading.fileno(), select.POLLIN)
        if poll.poll(deadline.remaining() * 1000) and reading.step():
            return reading.found
    raise AssertionError("it does not end")


def serving(data: bytes, count: int, how: Any = None) -> Any:
    """A script that answers *count* GETs with *data*, in a way of its own."""

    def script(client: Client) -> None:
        gets = 0
        while (words := client.command()) is not None:
            if words[0] in GREETINGS:
                client.send(b"+OK\r\n")
            elif words[0] == b"PING":
                client.send(b"+PONG\r\n")
            elif words[0] == b"GET":
                gets += 1
                if gets % count == 0:
                    (how or Client.send)(client, data)

    return script


def byte_by_byte(client: Client, data: bytes) -> None:
    for place in range(len(data)):
        client.send(data[place : place + 1])


@pytest.mark.parametrize("tls", [False, True])
def test_what_comes_byte_by_byte_is_read(
    tls: bool, managers: Managers, certificates: Certificates
) -> None:
    """Over TLS each byte is a record of its own, which a socket that can be read need not hold."""
    context = certificates.context(certificates.good) if tls else None
    options = {"tls": True, "tls_ca_certs": certificates.authority} if tls else {}
    with ScriptedServer(serving(THREE, 3, byte_by_byte), tls=context) as server:
        manager = warm(managers, server, **options)
        for _ in range(3):
            assert drive(manager.begin_reading(NAMES, Deadline(5.0))) == READ
        assert len(server.clients) == 1
        assert manager.usage().idle == 1


@pytest.mark.parametrize("tls", [False, True])
def test_very_much_is_read_over_several_turns(
    tls: bool, managers: Managers, certificates: Certificates
) -> None:
    """What TLS has taken from the socket already, no poll tells of: nothing may be left in it."""
    context = certificates.context(certificates.good) if tls else None
    options = {"tls": True, "tls_ca_certs": certificates.authority} if tls else {}
    megabyte = bytes(range(256)) * 4096
    with ScriptedServer(serving(bulk(megabyte) * 8, 8), tls=context) as server:
        manager = warm(managers, server, max_value_bytes=1 << 21, **options)
        assert drive(manager.begin_reading([b"k"] * 8, Deadline(9.0)), 9.0) == [megabyte] * 8


def test_one_turn_reads_no_more_than_a_loop_can_be_spared_for() -> None:
    """A server that sends as fast as we read would keep everybody else's coroutines from going on.

    The next turn goes on where this one stopped.
    """

    class Endless:
        reads = 0

        def recv(self, size: int) -> bytes:
            self.reads += 1
            return b"x" * size

    sock, wire = DeadlineSocket(), Endless()
    sock._sock = wire
    for turn in range(1, 3):
        sock.begin_turn()
        with suppress(BlockingIOError):
            while wire.reads < 1000:
                sock.recv_now(65536)
        assert wire.reads == 16 * turn


def test_what_tls_has_taken_from_the_socket_is_read_in_the_same_turn() -> None:
    """No poll would tell of it in the next one: a reply that is there would never be read."""

    class Holding:
        left = 40

        def read(self, size: int) -> bytes | None:
            self.left -= 1
            return b"x" * size if self.left >= 0 else None

        def to_send(self) -> bytes:
            return b""

        def received(self, data: bytes) -> None:
            pytest.fail("there is nothing on the wire")

    class Empty:
        def recv(self, size: int) -> bytes:
            raise BlockingIOError

    sock: Any = DeadlineSocket()
    sock._sock, sock._tls = Empty(), Holding()
    sock.begin_turn()
    assert [sock.recv_now(9) for _ in range(40)] == [b"x" * 9] * 40
    with pytest.raises(BlockingIOError):
        sock.recv_now(9)


wrong = pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"$1\r\nx\r\n:3\r\n$-1\r\n", RedisProtocolError),
        (b"$1\r\nx\r\n+OK\r\n$-1\r\n", RedisProtocolError),
        (b"$1\r\nxx\r\n$-1\r\n$-1\r\n", RedisProtocolError),
        (b"$" + b"1" * 40 + b"\r\n", RedisProtocolError),
        (b"$999999999999\r\n", RedisCorruptEntryError),
        (b"$5\r\nab", RedisConnectionError),
        (b"", RedisConnectionError),
        (RESET, RedisConnectionError),
    ],
    ids=["number", "text", "longer", "head", "giant", "half", "nothing", "reset"],
)


@wrong
def test_a_wrong_reply_closes_the_connection(
    answer: Any, kind: type[RedisError], managers: Managers
) -> None:
    """What follows on it would be somebody else's value."""

    def give(client: Client, _: bytes) -> None:
        client.give(answer)
        if isinstance(answer, bytes) and kind is RedisConnectionError:
            client.give(END)

    with ScriptedServer(serving(b"", 3, give)) as server:
        manager = warm(managers, server)
        with pytest.raises(kind):
            drive(manager.begin_reading(NAMES, Deadline(5.0)))
        assert server.clients[0].ended.wait(timeout=5)
        usage = manager.usage()
        assert (usage.in_use, usage.idle) == (0, 0)
        assert manager.begin_reading(NAMES, Deadline(5.0)) is None  # a thread has to connect


def test_a_reply_that_never_ends_is_given_up_and_its_connection_closed(managers: Managers) -> None:
    """The rest of it would come later, when somebody else asks."""
    with ScriptedServer(serving(b"$5\r\nab", 3)) as server:
        manager = warm(managers, server)
        reading = manager.begin_reading(NAMES, Deadline(5.0))
        assert reading is not None
        assert reading.step() is False
        error = reading.give_up()
        assert type(error) is RedisTimeoutError
        assert server.clients[0].ended.wait(timeout=5)
        assert manager.usage().in_use == 0


def test_too_little_time_proves_nothing_against_redis(managers: Managers) -> None:
    """A caller with 10 ms must not open the breaker for everybody; nor one among patient ones."""
    with ScriptedServer(serving(b"", 3)) as server:
        manager = warm(managers, server)
        hurried = Deadline(0.01)
        reading = manager.begin_reading(NAMES, Deadline(5.0))
        assert reading is not None
        assert type(reading.too_late(hurried)) is RedisHurriedError
        assert type(reading.too_late(Deadline(1.0))) is RedisTimeoutError
        reading.close()
        reading.close()
        assert manager.usage().in_use == 0


def test_bytes_that_nobody_asked_for_end_a_connection(managers: Managers) -> None:
    """They would be read as the answer to the next question."""
    with ScriptedServer(serving(THREE + bulk(b"surplus"), 3)) as server:
        manager = warm(managers, server)
        assert drive(manager.begin_reading(NAMES, Deadline(5.0))) == READ
        assert manager.begin_reading(NAMES, Deadline(5.0)) is None
        assert manager.get_many(NAMES, Deadline(5.0)) == READ  # on a new one
        assert len(server.clients) == 2
        assert manager.usage().surplus == 1


def test_an_error_of_one_name_concerns_that_alone_and_another_all(managers: Managers) -> None:
    """A foreign list among the keys must not cost the others; a server that loads has nothing."""
    answers = [b"$1\r\nx\r\n-WRONGTYPE no\r\n$1\r\nz\r\n", b"$1\r\nx\r\n-LOADING no\r\n$1\r\nz\r\n"]

    def give(client: Client, _: bytes) -> None:
        client.send(answers.pop(0))

    with ScriptedServer(serving(b"", 3, give)) as server:
        manager = warm(managers, server)
        found = drive(manager.begin_reading(NAMES, Deadline(5.0)))
        assert (found[0], found[2]) == (b"x", b"z")
        assert isinstance(found[1], RedisError)
        with pytest.raises(RedisNotReadyError):
            drive(manager.begin_reading(NAMES, Deadline(5.0)))
        assert manager.usage().in_use == 0


def test_it_begins_only_where_nothing_has_to_be_waited_for(managers: Managers) -> None:
    """A connection takes a handshake, or somebody who gives one back; a loop waits for neither."""
    with ScriptedServer(answering(b"+PONG\r\n")) as server:
        manager = RedisConnectionManager(server.settings(max_connections=1))
        managers.append(manager)
        assert manager.begin_reading(NAMES, Deadline(5.0)) is None  # none yet
        manager.ping(Deadline(5.0))
        first = manager.begin_reading(NAMES, Deadline(5.0))
        assert first is not None
        assert manager.begin_reading(NAMES, Deadline(5.0)) is None  # all are in use
        first.close()
        manager.close()
        assert manager.begin_reading(NAMES, Deadline(5.0)) is None
