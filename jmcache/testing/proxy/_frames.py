"""Where commands and replies begin and end in a stream of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_LONGEST_HEAD = 32  # bytes of "*<count>\r\n" or "$<size>\r\n"


@dataclass(frozen=True, slots=True)
class Command:
    """What a client asked.

    Attributes:
        raw: The bytes as they were sent.
        words: Name and arguments, such as ``[b"GET", b"key"]``.
    """

    raw: bytes
    words: list[bytes]


class NotACommandError(Exception):
    """It is another protocol, such as TLS."""


class CommandCutter:
    """Cuts what one client sends into whole commands."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Command]:
        """Yield the commands that *data* completes.

        Raises:
            NotACommandError: It is none; `rest` has it, and this object is of no use any more.
        """
        self._data += data
        while self._data:
            found = _first_command(self._data)
            if found is None:
                return
            words, size = found
            raw = bytes(self._data[:size])
            del self._data[:size]
            yield Command(raw, words)

    @property
    def rest(self) -> bytes:
        """What belongs to no whole command."""
        return bytes(self._data)


def _first_command(data: bytearray) -> tuple[list[bytes], int] | None:
    head = _head(data, 0, b"*")
    if head is None:
        return None
    count, at = head
    if count < 1:
        raise NotACommandError
    words = []
    for _ in range(count):
        head = _head(data, at, b"$")
        if head is None:
            return None
        size, at = head
        if size < 0:
            raise NotACommandError
        if len(data) < at + size + 2:
            return None
        words.append(bytes(data[at : at + size]))
        at += size + 2
    return words, at


def _head(data: bytearray, at: int, kind: bytes) -> tuple[int, int] | None:
    """The number in the head at *at* and where the head ends; None if it is not all there."""
    if len(data) == at:
        return None
    end = data.find(b"\r\n", at, at + _LONGEST_HEAD)
    number = data[at + 1 : end if end >= 0 else at + _LONGEST_HEAD]
    if data[at : at + 1] != kind:
        raise NotACommandError
    if end < 0:
        if len(data) >= at + _LONGEST_HEAD:
            raise NotACommandError
        return None
    try:
        return int(number), end + 2
    except ValueError:
        raise NotACommandError from None


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one reply.

    Attributes:
        ends: They are its last.
        pushed: Nobody asked for it: a RESP3 push.
    """

    data: bytes
    ends: bool
    pushed: bool


class ReplyCutter:
    """Tells where each reply of one server ends, and holds nothing of it back but half a line."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._half_line = b""
        self._bulk = 0  # bytes still to come of a bulk string, its line end included
        self._parts = 0  # strings, numbers, lists still to come until the reply is whole
        self._pushed = False

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Yield *data* in pieces, none of which belongs to two replies."""
        data = self._half_line + data
        self._half_line = b""
        begin = at = 0
        while at < len(data):
            if self._bulk:
                step = min(self._bulk, len(data) - at)
                self._bulk -= step
                at += step
                if not self._bulk:
                    self._parts -= 1
            else:
                end = data.find(b"\n", at) + 1
                if not end:
                    self._half_line = data[at:]
                    break
                self._take_line(data[at:end])
                at = end
            if not self._parts:
                yield Piece(data[begin:at], True, self._pushed)
                begin = at
        if begin < at:
            yield Piece(data[begin:at], False, self._pushed)

    def _take_line(self, line: bytes) -> None:
        kind, number = line[:1], line[1:].strip()
        if not self._parts:
            self._parts = 1
            self._pushed = kind == b">"
        count = int(number) if number.lstrip(b"-").isdigit() else 0
        if kind in b"$=!" and count >= 0:
            self._bulk = count + 2
        elif kind in b"*~>":
            self._parts += max(count, 0) - 1
        elif kind == b"%":
            self._parts += 2 * count - 1
        elif kind == b"|":  # an attribute goes before what it is about
            self._parts += 2 * count
        else:
            self._parts -= 1
