"""Replies as Redis writes them (RESP2), read strictly: the one that was asked for, or none.

redis-py's parsers take whatever comes, and hiredis reserves what a head announces: `*2147483647`
was 16 GB and 13 s. Here each head is held against what was asked for before anything is reserved,
and bytes that nobody asked for are seen. No error's text shows a byte of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis

from jmcache.connection._wire import LIFE, NUMBER, OK, OK_OR_NOTHING, TREE, VALUE
from jmcache.errors import RedisConnectionError, RedisCorruptEntryError, RedisProtocolError

Reply = bytes | int | list[Any] | redis.ResponseError | None

_END = b"\r\n"
_ERROR = ord("-")
_LONGEST_HEAD = 32  # bytes; of any head but an error's, which is its text
_LONGEST_ERROR = 16 * 1024  # bytes
_BRANCHES = VALUE + NUMBER + TREE
_DEEPEST = 4  # levels of a tree
_NO_LIVES = (b":-1", b":-2")  # without an end, and not there
_LEAST_BRANCH = 4  # bytes that any branch of a tree has at least
_CHUNK = 64 * 1024  # bytes a read reserves, whatever size was announced


class Replies:
    """Reads one connection. Used by one thread at a time.

    Of no use after any exception but a BlockingIOError of *recv*, which leaves everything as it was
    before the reply that is not whole yet.
    """

    __slots__ = ("_at", "_data", "_recv", "_room", "_usual")

    def __init__(self, recv: Callable[[int], bytes]) -> None:
        """Read from *recv*, which is given a number of bytes and returns b"" at the end."""
        self._usual = self._recv = recv
        self._data = b""
        self._at = 0  # of _data was read
        self._room = 0  # bytes that values may still have

    @property
    def unread(self) -> bool:
        """True when more came than was asked for."""
        return self._at < len(self._data)

    def begin(self, room: int, recv: Callable[[int], bytes] | None = None) -> None:
        """Start an exchange whose values have at most *room* bytes together.

        What was unread is forgotten: it came over a connection that has been closed since.

        Args:
            recv: Read from this one until the next; it may raise BlockingIOError.
        """
        self._room = room
        self._recv = recv or self._usual
        self._data = b""
        self._at = 0

    def read(self, asked: bytes) -> Reply:
        """Return one whole reply, *asked* as _wire says. Redis's errors are returned, not raised.

        Raises:
            RedisProtocolError: It is another one than was asked for.
            RedisCorruptEntryError: There is no room for its values; reason "too_large".
            RedisConnectionError: It ended before it was whole; reason "eof".
        """
        head = self._head(asked if asked == OK_OR_NOTHING else asked[:1])
        if head[0] == _ERROR:
            return redis.ResponseError(_without_arguments(head))
        if asked == VALUE:
            return self._value(head)
        if asked == NUMBER:
            return _number(head)
        if asked == LIFE:
            return int(head[1:]) if head in _NO_LIVES else _number(head)
        if asked == TREE:
            return self._tree(head, _DEEPEST)
        if asked == OK_OR_NOTHING:
            return _ok_or_nothing(head)
        if head != asked:
            raise _out_of_step()
        return head[1:]

    def read_all(self, asked: Sequence[bytes], replies: list[Reply]) -> None:
        """Read what is missing in *replies*: one for each of *asked*, as `read` would.

        May be repeated after a BlockingIOError of *recv*; *asked* is all VALUE then.
        """
        while len(replies) < len(asked):
            # The usual: a head of a few bytes that is there whole, with all that it announces.
            data, at = self._data, self._at
            one = asked[len(replies)]
            end = data.find(_END, at, at + _LONGEST_HEAD)
            if one is OK and end > at and data[at:end] == OK:
                self._at = end + len(_END)
                replies.append(OK[1:])
                continue
            digits = data[at + 1 : end] if end > at else b""
            if one is VALUE and data[at : at + 1] == VALUE and digits.isdigit():
                size = int(digits)
                start = end + len(_END)
                stop = start + size
                if size <= self._room and data[stop : stop + len(_END)] == _END:
                    self._room -= size
                    self._at = stop + len(_END)
                    replies.append(data[start:stop])
                    continue
            if at == len(data):
                self._data, self._at = self._more(), 0
            else:
                replies.append(self.read(one))

    def _tree(self, head: bytes, levels: int) -> list[Any]:
        count = _number(head)
        self._room -= count * _LEAST_BRANCH
        if self._room < 0 or levels == 0:
            raise _out_of_step()
        return [self._branch(self._head(_BRANCHES), levels - 1) for _ in range(count)]

    def _branch(self, head: bytes, levels: int) -> Any:
        if head[:1] == TREE:
            return self._tree(head, levels)
        return _number(head) if head[:1] == NUMBER else self._value(head)

    def _head(self, kinds: bytes) -> bytes:
        data, at = self._data, self._at
        while True:
            end = data.find(_END, at)
            length = (len(data) if end < 0 else end) - at
            first = data[at : at + 1]
            if first and first in kinds:
                whole = length <= _LONGEST_HEAD
            else:
                whole = first in (b"-", b"") and length <= _LONGEST_ERROR
            if not whole:
                raise _out_of_step()
            if end >= 0:
                self._data, self._at = data, end + len(_END)
                return data[at:end]
            self._data, self._at = data[at:], 0  # as much as there is, should there be no more yet
            data = self._data = data[at:] + self._more()
            at = 0

    def _value(self, head: bytes) -> bytes | None:
        if head == b"$-1":
            return None
        size = _number(head)
        self._room -= size
        if self._room < 0:
            raise RedisCorruptEntryError(
                "the reply is larger than any value of ours", reason="too_large"
            )
        missing = self._at + size + len(_END) - len(self._data)
        if missing > 0:
            parts = [self._data[self._at :]]
            try:
                while missing > 0:
                    parts.append(self._more())
                    missing -= len(parts[-1])
            except BlockingIOError:  # to be read from its head on, when there is more
                self._data, self._at = b"".join((head, _END, *parts)), 0
                self._room += size
                raise
            self._data, self._at = b"".join(parts), 0
        start, end = self._at, self._at + size
        if not self._data.startswith(_END, end):
            raise _out_of_step()
        self._at = end + len(_END)
        return self._data[start:end]

    def _more(self) -> bytes:
        data = self._recv(_CHUNK)
        if not data:
            raise RedisConnectionError("Redis closed the connection", reason="eof")
        return data


def _ok_or_nothing(head: bytes) -> bytes | None:
    if head not in (OK, b"$-1"):
        raise _out_of_step()
    return head[1:] if head == OK else None


def _number(head: bytes) -> int:
    digits = head[1:]
    if not digits.isdigit() or head[0] == _ERROR:  # an error where a value was asked for
        raise _out_of_step()
    return int(digits)


def _without_arguments(head: bytes) -> str:
    # Redis quotes the arguments of a command it does not know: passwords, names, values.
    return head[1:].decode("utf-8", "replace").partition(", with args beginning with")[0]


def _out_of_step() -> RedisProtocolError:
    return RedisProtocolError("the reply is none that was asked for")
