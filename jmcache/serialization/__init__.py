"""Values <-> bytes: lossless or refused, never altered, and nothing in the bytes is ever executed.

JSON knows six types; ujson, given more, changes them without a word. So every type in a value is
looked at before ujson sees it, and what JSON does not know is kept beside the JSON, not inside it:

    value   {"score": 0.5, "posted": datetime(2026, 11, 23, tzinfo=UTC)}
    tree    {"score": 0.5, "posted": 1795392000000000}                      what JSON can hold
    marks   {"posted": "utc"}                                   where the tree needs work, and which
    body    a tab, then [tree,marks];     for a value that is plain JSON anyway: a space, then that

Both are whitespace to a JSON parser, so a body is read as it is, without a copy of it.

A value cannot imitate a mark, whatever it looks like, because the tree is never searched for any.
Reading costs what ujson costs, and then only as much as there are typed values. Many dicts with the
same keys, such as matches, are written by columns: see _marking.

    _refusal   the way to what cannot be written
    _kinds     one payload and back for each typed scalar
    _marking   value -> tree and marks -> value
    _classes   the application's enums and dataclasses
"""

from __future__ import annotations

from typing import Any, TypeVar

import ujson

from jmcache.errors import (
    RedisConfigurationError,
    RedisCorruptEntryError,
    RedisError,
    RedisSerializationError,
)
from jmcache.serialization._classes import Classes
from jmcache.serialization._marking import Marker, restore
from jmcache.serialization._refusal import Refusal

__all__ = ["RedisSerializer"]

_PLAIN = b" "
_TYPED = b"\t"

# The walk takes up to three of Python's 1,000 frames a level; ujson reads 1,024 levels, and marks
# nest twice as deep as the value, in a list with it.
_DEEPEST = 200
_DEEPEST_BODY = 2 * _DEEPEST + 1

# What ujson and the constructors make of bytes that are not ours.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

C = TypeVar("C", bound=type)


class RedisSerializer:
    """Turns values into bytes and back into equal values of the same types.

    Written as they are: None, bool, int, float (NaN and infinities too), str (lone surrogates too),
    bytes, list, tuple, set, frozenset, dict with any of these as keys, datetime (naive, with a
    fixed offset or a ZoneInfo; fold kept), date, time, timedelta, UUID, Decimal, and the enums and
    dataclasses that were registered. Any other type and any subclass is refused.

    Safe on any thread and after a fork: it holds no lock. Register classes at import time, in every
    process that reads or writes them.
    """

    def __init__(self, *, max_bytes: int = 1_048_576, max_depth: int = 128) -> None:
        """Set the limits for writing and reading.

        Args:
            max_bytes: Largest body, in bytes, 1 or more.
            max_depth: Most containers inside one another, 1 to 200.

        Raises:
            RedisConfigurationError: A limit is none of these.
        """
        if type(max_bytes) is not int or max_bytes < 1:
            raise RedisConfigurationError("max_bytes: a whole number of bytes, 1 or more")
        if type(max_depth) is not int or not 1 <= max_depth <= _DEEPEST:
            raise RedisConfigurationError(f"max_depth: a whole number from 1 to {_DEEPEST}")
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._classes = Classes()

    def register(self, cls: C, name: str | None = None) -> C:
        """Let instances of an Enum or dataclass be written and read. Usable as a decorator.

        Enum members are stored by name, combinations of flags by their parts' names. A dataclass is
        stored as its fields and built again through its constructor, so ``__post_init__`` runs at
        every read; an instance that it leaves with other values than were stored is not handed out.
        Fields are matched by name: after one was added, removed or renamed, older entries read as
        corrupt, which a caller sees as a miss.

        Args:
            cls: The class itself; its subclasses need a registration of their own.
            name: What stands for it in stored bytes. None: module and qualified name; give one if
                the module may move or is run as ``__main__``. A class registered twice is read
                under both names and written under the later.

        Returns:
            cls.

        Raises:
            TypeError: Neither Enum nor dataclass, or the constructor does not take exactly the
                fields.
            ValueError: Another class has that name already.
        """
        self._classes.add(cls, name)
        return cls

    def serialize(self, value: Any) -> bytes:
        """Return the body for *value*, which is left as it is and must not change meanwhile.

        Raises:
            RedisSerializationError: It would not come back equal ("unserializable"), nests too deep
                or contains itself ("too_deep"), or is larger than max_bytes ("too_large"). Says
                where in the value and which type, never what.
        """
        try:
            return self._write(value)
        except Refusal as error:
            refusal = error
        except TypeError:  # a class that cannot be hashed, so not looked up either
            refusal = Refusal("unserializable", type(value), "holds a type of an unknown kind")
        except RecursionError:
            refusal = Refusal("too_deep", type(value), "nested too deep for the stack that is left")
        except MemoryError:
            refusal = Refusal("too_large", type(value), "too large for the memory that is left")
        # Out here, so that no traceback leads from it to frames that hold the value.
        raise RedisSerializationError(
            refusal.message(),
            reason=refusal.reason,
            path=refusal.path(),
            type_name=refusal.type_name,
        )

    def deserialize(self, body: bytes) -> Any:
        """Return the value that *body* was made of.

        Nothing is imported by name and only registered classes are called. What such a constructor
        raises beyond the usual (ValueError, TypeError, ...) reaches the caller.

        Raises:
            RedisCorruptEntryError: Not a body of ours, or it needs a class that is not registered
                here ("undecodable"), or larger than max_bytes ("too_large"). Whether a body that
                can be read is the one that was written is the envelope's checksum to say.
            RedisError: The caller's stack ("no_stack") or the memory ("no_memory") that is left is
                too little; that is nothing against the body.
        """
        if len(body) > self._max_bytes:
            raise RedisCorruptEntryError(
                f"the body has {len(body)} bytes, more than max_bytes={self._max_bytes}",
                reason="too_large",
            )
        form = body[:1]
        lacking = ""
        try:
            if form == _PLAIN:
                return ujson.loads(body)
            if form == _TYPED:
                tree, mark = ujson.loads(body)
                return restore([tree], mark, self._classes.decoders)[0]
        except _MALFORMED:
            pass
        except RecursionError:
            # Its own doing only where it nests as nothing does that is written: marks in marks.
            lacking = "" if _nests_deeper(ujson.loads(body), _DEEPEST_BODY) else "no_stack"
        except MemoryError:
            lacking = "no_memory"
        if lacking:
            raise RedisError(
                "too little stack or memory is left to decode the body", reason=lacking
            )
        raise RedisCorruptEntryError(
            "the body is not one of ours, or needs a class that is not registered here",
            reason="undecodable",
        )

    def _write(self, value: Any) -> bytes:
        text = self._plain_or_typed(value, careful=False)
        if text is None:
            text = self._plain_or_typed(value, careful=True)
        if text is None:
            raise Refusal("unserializable", type(value), "holds a number that JSON cannot")
        if len(text) <= self._max_bytes:
            # Lone surrogates, and pairs of them that are not one character, are kept as they are.
            body = text.encode("utf-8", "surrogatepass")
            if len(body) <= self._max_bytes:
                return body
        raise Refusal("too_large", type(value), f"more than max_bytes={self._max_bytes}")

    def _plain_or_typed(self, value: Any, *, careful: bool) -> str | None:
        """Return the body's text; None if it takes a careful walk, which looks at each number."""
        marker = Marker(
            self._classes.encoders,
            max_depth=self._max_depth,
            max_nodes=self._max_bytes,
            careful=careful,
        )
        tree, mark = marker.mark(value)
        try:
            # Not escaped to ASCII: in that form ujson joins two lone surrogates to one character.
            if mark is None:
                return " " + ujson.dumps(tree, ensure_ascii=False, allow_nan=False)
            return "\t" + ujson.dumps([tree, mark], ensure_ascii=False, allow_nan=False)
        except (OverflowError, ValueError):  # NaN, infinity, or an int of too many digits
            return None


def _nests_deeper(node: Any, levels: int) -> bool:
    """Are there containers in more than so many? Takes no stack for it."""
    level = [node]
    for _ in range(levels):
        inside = [inner for one in level for inner in (one.values() if type(one) is dict else one)]
        level = [inner for inner in inside if type(inner) in (dict, list)]
    return bool(level)
