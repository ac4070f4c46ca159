"""What a connection says by itself: RESP3, read as it comes in, strictly and within bounds."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import redis

from jmcache.errors import RedisProtocolError

_END = b"\r\n"
_LONGEST_LINE = 16 * 1024  # bytes; an error's text
_LONGEST_NAME = 64 * 1024  # bytes; ours have less than 200, but others may write beside us
_MOST_NAMES = 100_000_000  # in one push; they are handed on in pieces, and never held together
_PIECE = 1_000  # names
_LONGEST_REPLY = 1_000  # values in a reply, with all that is in them; HELLO's has some 20
_DEEPEST = 4

_Reading = Generator[None, None, Any]


class Said(NamedTuple):
    """One thing that the server said.

    Attributes:
        names: Names that are not any more what they were; None: this is something else.
        everything: All names are.
        reply: The reply to a command: its head, bytes or a list; a ResponseError for an error.
    """

    names: list[bytes] | None = None
    everything: bool = False
    reply: Any = None


class Pushes:
    """Takes the bytes of one connection, and tells what they say. For one thread."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # of _data was read
        self._said: list[Said] = []
        self._room = 0
        self._reading = self._read_on()
        next(self._reading)

    def feed(self, data: bytes) -> list[Said]:
        """Return what is whole with *data*, in order.

        Raises:
            RedisProtocolError: It is nothing that a Redis says here; of no use after that.
        """
        self._data = self._data[self._at :] + data
        self._at = 0
        next(self._reading)
        said, self._said = self._said, []
        return said

    def _read_on(self) -> _Reading:
        while True:
            head = yield from self._line()
            if head[:1] == b">":
                yield from self._push(_count(head, 2))
            else:
                self._room = _LONGEST_REPLY
                reply = yield from self._value(head, _DEEPEST)
                self._said.append(Said(reply=reply))

    def _push(self, count: int) -> _Reading:
        kind = yield from self._bulk((yield from self._line()))
        if kind != b"invalidate" or count != 2:
            raise _out_of_step()
        head = yield from self._line()
        if head in (b"_", b"*-1", b"$-1"):
            self._said.append(Said(everything=True))
            return
        if head[:1] != b"*":
            raise _out_of_step()
        names: list[bytes] = []
        for _ in range(_count(head, _MOST_NAMES)):
            names.append((yield from self._bulk((yield from self._line()))))
            if len(names) == _PIECE:
                self._said.append(Said(names))
                names = []
        if names:
            self._said.append(Said(names))

    def _value(self, head: bytes, levels: int) -> _Reading:
        self._room -= 1
        if self._room < 0 or levels < 0:
            raise _out_of_step()
        kind = head[:1]
        if kind == b"$":
            return (yield from self._bulk(head))
        if kind == b"-":
            return redis.ResponseError(head[1:].decode("utf-8", "replace"))
        if kind == b"*" or kind == b"%":
            values: list[Any] = []
            while len(values) < _count(head, _LONGEST_REPLY) * (2 if kind == b"%" else 1):
                values += [(yield from self._value((yield from self._line()), levels - 1))]
            return values
        if kind in (b"+", b":", b"_", b"#", b","):
            return head
        raise _out_of_step()

    def _line(self) -> _Reading:
        while (end := self._data.find(_END, self._at)) < 0:
            if len(self._data) - self._at > _LONGEST_LINE:
                raise _out_of_step()
            yield
        line = self._data[self._at : end]
        self._at = end + len(_END)
        return line

    def _bulk(self, head: bytes) -> _Reading:
        if head[:1] != b"$":
            raise _out_of_step()
        size = _count(head, _LONGEST_NAME)
        while len(self._data) - self._at < size + len(_END):
            yield
        start, end = self._at, self._at + size
        if not self._data.startswith(_END, end):
            raise _out_of_step()
        self._at = end + len(_END)
        return self._data[start:end]


def _count(head: bytes, most: int) -> int:
    digits = head[1:]
    if not digits.isdigit() or len(digits) > 10 or int(digits) > most:
        raise _out_of_step()
    return int(digits)


def _out_of_step() -> RedisProtocolError:
    return RedisProtocolError("what Redis said is nothing that it says to a listener")
