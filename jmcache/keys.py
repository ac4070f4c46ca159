"""Arguments -> key -> name in Redis: the same in every process, and never shared by two questions.

Two calls mean the same question when their arguments have the same canonical form, a text in which
every part says its type and its length, so that no part can imitate another or reach into the next:

    generate_key("a_b", 1, skills=["x", "y"])     s3:a_b  i1;      by position
                                                  k6:skills  m2:s1:xs1:y     by name, sorted

The form is part of the promise to caches that are already filled: tests hold it to fixed vectors.
"""

from __future__ import annotations

import binascii
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from jmcache.frozen import FrozenDict, FrozenList, FrozenSet

_MAX_DEPTH = 64  # containers inside one another; also what ends a list that holds itself
_MAX_FORM = 16 * 1024 * 1024  # characters of one container; lists that share lists grow by doubling
_MAX_NAME = 199  # bytes of a name in Redis
_MAX_HEAD = 80  # bytes; a key of generate_key stays whole: 40 + 1 + 32
_LEASE = b"%b#lease{%b}"  # of a prefix and a name: a cluster keeps it where the name is
_MAX_KEY_HEAD = 40  # characters
_SLOTS = 16384  # of a cluster
# Counters of a namespace in a cluster. Slots are shared out in equal ranges, and this many pieces
# end where the ranges of 2, 3, 4, 5, 6, 10, 12, 15, 20 or 30 masters do.
_PIECES = 60

_HASHER = blake2b(digest_size=16, person=b"jmcache.key")

# What a person may read in a name: the rest could mean something to Redis, a shell or a log.
_READABLE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
_CLEAN = bytes(code if code in _READABLE else ord("_") for code in range(256))


def generate_key(*args: Any, **kwargs: Any) -> str:
    """Return the key for these arguments: a readable head, ":" and 32 hexadecimal digits.

    The same in every process, Python version and hash seed. Values are told apart by type (``1``,
    ``"1"``, ``True`` and ``1.0`` are four keys), arguments by position or name. A None given by
    name counts as not given; given by position it counts. The order of names is irrelevant, and so
    is that of a list given by name (``skills=["a", "b"]``); everywhere else order counts. The head
    is taken from the first text among the positional arguments and is for people only.

    Text is compared as it is: "é" in one code point and in two are two keys. Datetimes are told
    apart by wall clock, fold and zone, not merged by instant. Both cost a miss at worst.

    Args:
        args: None, bool, int, float, str, bytes, Decimal, UUID, datetime (naive, or with a
            datetime.timezone or ZoneInfo), date, time, timedelta, Enum members, dataclass
            instances; list, tuple, set, frozenset and dict of these.
        kwargs: The same.

    Raises:
        TypeError: Another type, or a subclass of these. Names the argument (positions from 1) and
            the place in it, never the value.
        ValueError: Nested deeper than 64 levels, as anything is that contains itself, or larger
            than 16 MiB.

    Safe on any thread; asks nobody.
    """
    form = [f"{len(args)}:"]
    head = ""
    unfit = None
    where: int | str = 0
    try:
        for where, value in enumerate(args, 1):  # noqa: B007 - the handler's message names it
            form.append(_SCALARS.get(type(value), _encode_argument)(value))
            if not head and type(value) is str:
                head = value
        for where in sorted(kwargs):
            value = kwargs[where]
            if value is None:
                continue
            # The name as a piece of its own: a text enum in an f-string is not the same everywhere.
            form += (f"k{len(where)}:", where, _BY_NAME.get(type(value), _encode_argument)(value))
    except _UnfitError as error:
        unfit = error
    except RecursionError:
        unfit = _UnfitError(ValueError, "is nested too deep for the stack that is left")
    if unfit is not None:
        raise unfit.kind(f"argument {where!r}{''.join(reversed(unfit.path))} {unfit.complaint}")

    canonical = "".join(form).encode("utf-8", "surrogatepass")
    hasher = _HASHER.copy()
    hasher.update(canonical)
    return f"{_readable(head, _MAX_KEY_HEAD) or 'key'}:{hasher.hexdigest()}"


class KeySpace:
    """The names of one namespace and schema version in Redis. Immutable; safe on any thread.

    Attributes:
        prefix: What every name begins with, such as ``b"jobs:v1:"``.
        space_counter: The name of the counter that all entries depend on.
    """

    __slots__ = ("_hasher", "_head_bytes", "_tag_hasher", "prefix", "space_counter")

    def __init__(self, namespace: str, schema_version: int) -> None:
        """Take a namespace and a schema version as CacheSettings has checked them.

        Raises:
            ValueError: The two leave no room for a digest in a name of less than 200 bytes, or are
                not printable ASCII.
        """
        prefix = f"{namespace}:v{schema_version}:"
        # A lease has the prefix twice, a name within has ":" and the digest.
        room = _MAX_NAME - len(_LEASE) + 4 - 2 * len(prefix) - 1 - 32
        if room < 0 or not prefix.isascii() or not prefix.isprintable():
            raise ValueError("namespace: 1 to 64 printable ASCII characters")
        self.prefix = prefix.encode("ascii")
        self._head_bytes = min(room, _MAX_HEAD)
        self._hasher = blake2b(digest_size=16, person=b"jmcache.name")
        owner = f"{len(namespace)}:{namespace}{schema_version}:".encode()
        self._hasher.update(owner)
        self._tag_hasher = blake2b(owner, digest_size=16, person=b"jmcache.tag")
        self.space_counter = self.prefix + b"#"

    def name(self, key: str) -> tuple[bytes, bytes]:
        """Return the key's name in Redis and the digest that its entry has to carry.

        Any text will do as a key, of any length and with any characters: the name is printable
        ASCII without spaces, braces or glob characters and shorter than 200 bytes. The 16 bytes of
        digest tell keys apart, over the whole key, namespace and schema version; the piece of the
        key before it is for people who look into Redis.

        Raises:
            TypeError: The key is not text.
        """
        if not isinstance(key, str):
            raise TypeError(f"key: text, as generate_key(...) returns it, not {_name(type(key))}")
        # From the class: a subclass of str may have another idea of encode().
        text = str.encode(key, "utf-8", "surrogatepass")
        hasher = self._hasher.copy()
        hasher.update(text)
        digest = hasher.digest()
        return self._compose(text, digest), digest

    def lease(self, name: bytes) -> bytes:
        """Return the name of the lease of an entry's *name*."""
        return _LEASE % (self.prefix, name)

    def tag_counter(self, tag: str) -> bytes:
        """Return the name of the counter that entries with *tag* depend on."""
        text = str.encode(tag, "utf-8", "surrogatepass")
        hasher = self._tag_hasher.copy()
        hasher.update(text)
        # No name of an entry has a "#".
        return self._compose(text, hasher.digest()) + b"#"

    @property
    def piece_counters(self) -> tuple[bytes, ...]:
        """The names of the counters that a cluster has in place of *space_counter*.

        One for each piece of the slots, and in it: so the node that has an entry has its counter,
        too, and one that is away takes no counter of the others' entries with it.
        """
        return _piece_counters(self.prefix)

    def piece_counter(self, name: bytes) -> bytes:
        """Return the one of `piece_counters` that an entry's *name* depends on."""
        return self.piece_counters[_piece_of(_slot_of(name))]

    def _compose(self, text: bytes, digest: bytes) -> bytes:
        head = text[: self._head_bytes].translate(_CLEAN)
        return b"%b%b:%b" % (self.prefix, head, digest.hex().encode())


def _slot_of(name: bytes) -> int:
    """The slot of a name without braces, as a cluster reckons it."""
    return binascii.crc_hqx(name, 0) % _SLOTS


def _piece_of(slot: int) -> int:
    # Rounded, as redis-cli does where it shares out the slots.
    return (slot * _PIECES + _PIECES // 2) // _SLOTS


@functools.cache
def _piece_counters(prefix: bytes) -> tuple[bytes, ...]:
    return tuple([b"%b#{%d}" % (prefix, tag) for tag in _piece_tags()])


@functools.cache
def _piece_tags() -> tuple[int, ...]:
    """For each piece the hash tag of a slot near its middle: the edges may be another node's."""
    nearest: dict[int, tuple[float, int]] = {}
    for tag in range(_SLOTS // 4):
        slot = _slot_of(b"%d" % tag)
        piece = _piece_of(slot)
        off = abs(slot - (piece + 0.5) * _SLOTS / _PIECES)
        nearest[piece] = min(nearest.get(piece, (off, tag)), (off, tag))
    return tuple([nearest[piece][1] for piece in range(_PIECES)])


def digest_text(digest: bytes) -> str:
    """Return a digest's first 12 hexadecimal digits: what a log line may say of a key."""
    return digest[:6].hex()


def _readable(text: str, limit: int) -> str:
    return text[:limit].encode("ascii", "replace").translate(_CLEAN).decode("ascii")


class _UnfitError(Exception):
    """An argument cannot be part of a key. Collects the way to it, innermost step first."""

    def __init__(self, kind: type[Exception], complaint: str, *path: str) -> None:
        self.kind = kind
        self.complaint = complaint
        self.path = list(path)


def _name(kind: type) -> str:
    qualname = kind.__qualname__
    return qualname if kind.__module__ == "builtins" else f"{kind.__module__}.{qualname}"


# ── The canonical form ──────────────────────────────────────────────────────────────────────────


def _encode_argument(value: Any) -> str:
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return f"s{len(value)}:{value}"
    if (encode := _SCALARS.get(kind)) is not None:
        return encode(value)
    if depth >= _MAX_DEPTH:
        raise _UnfitError(ValueError, f"is nested deeper than {_MAX_DEPTH} levels or holds itself")
    form = _encode_container(value, kind, depth + 1)
    if len(form) > _MAX_FORM:
        raise _UnfitError(ValueError, "is too large for a key")
    return form


def _encode_container(value: Any, kind: type, depth: int) -> str:
    kind = _FROZEN.get(kind, kind)
    if kind is list or kind is tuple:
        tag = "l" if kind is list else "t"
        return f"{tag}{len(value)}:{''.join(_encode_all(value, depth, '[{}]'.format))}"
    if kind is set or kind is frozenset:
        tag = "S" if kind is set else "Z"
        parts = sorted(_encode_all(value, depth, lambda _: "{element}"))
        return f"{tag}{len(value)}:{''.join(parts)}"
    if kind is dict:
        names = list(value)
        keys = _encode_all(names, depth, lambda _: "{key}")
        values = _encode_all(value.values(), depth, lambda place: _step(names[place]))
        pairs = sorted(zip(keys, values, strict=True))
        return f"D{len(value)}:{''.join(key + item for key, item in pairs)}"
    if issubclass(kind, enum.Enum):
        return f"e{_text(_name(kind))}{_encode_member(value)}"
    if "__dataclass_fields__" in kind.__dict__ and not issubclass(kind, _WITH_CONTENT):
        names = [field.name for field in dataclasses.fields(value)]
        values = _encode_all(
            (getattr(value, name) for name in names), depth, lambda place: f".{names[place]}"
        )
        fields = "".join(_text(name) + item for name, item in zip(names, values, strict=True))
        return f"c{_text(_name(kind))}{len(names)}:{fields}"
    raise _UnfitError(
        TypeError, f"is a {_name(kind)}, which has no place in a key: give its id or its fields"
    )


def _encode_unordered(values: list[Any]) -> str:
    """The form of a list given by name: how often each element occurs, not where."""
    if _TEXT.issuperset(map(type, values)):  # such as skills: in half the time
        parts = sorted([f"s{len(value)}:{value}" for value in values])
    else:
        parts = sorted(_encode_all(values, 1, "[{}]".format))
    return f"m{len(values)}:{''.join(parts)}"


def _encode_all(values: Iterable[Any], depth: int, step: Callable[[int], str]) -> list[str]:
    """Encode each; *step* says how one writes the way to the n-th of them."""
    parts: list[str] = []
    try:
        for value in values:
            parts.append(_encode(value, depth))  # noqa: PERF401 - the handler counts them
    except _UnfitError as error:
        error.path.append(step(len(parts)))
        raise
    return parts


def _encode_member(member: enum.Enum) -> str:
    if not isinstance(member, enum.Flag):
        return _text(member._name_)
    # A combination's own name is spelt differently from Python to Python; its parts are not.
    bits = member._value_
    parts = sorted(
        name
        for name, part in type(member).__members__.items()
        if part._value_ and part._value_ & bits == part._value_
    )
    return f"{len(parts)}:{''.join(map(_text, parts))}{bits:x};"


def _encode_datetime(value: datetime) -> str:
    wall = value.replace(tzinfo=None).isoformat()
    return f"d{wall};{value.fold}{_encode_zone(value.tzinfo)}"


def _encode_time(value: time) -> str:
    wall = value.replace(tzinfo=None).isoformat()
    return f"h{wall};{value.fold}{_encode_zone(value.tzinfo)}"


def _encode_zone(zone: tzinfo | None) -> str:
    if zone is None:
        return "-"
    if type(zone) is timezone:
        return f"+{_encode_timedelta(zone.utcoffset(None))}{_text(zone.tzname(None))}"
    if type(zone) is ZoneInfo and zone.key is not None:
        return f"@{_text(zone.key)}"
    raise _UnfitError(
        TypeError, f"is a {_name(type(zone))}: use datetime.timezone or ZoneInfo", ".tzinfo"
    )


def _encode_timedelta(value: timedelta) -> str:
    return f"p{value.days},{value.seconds},{value.microseconds};"


def _text(text: str) -> str:
    return f"s{len(text)}:{text}"


def _step(key: Any) -> str:
    """The step through a dict: its key if that is a short text, else only the key's type."""
    if type(key) is str and len(key) <= _MAX_KEY_HEAD:
        return f"[{key!r}]"
    return f"[<{_name(type(key))}>]"


# By exact type: a subclass may compare, print and mean something else. Integers in base 16, whose
# length Python does not limit.
_SCALARS: dict[type, Callable[[Any], str]] = {
    str: _text,
    type(None): lambda _: "n",
    bool: lambda value: "T" if value else "F",
    int: lambda value: f"i{value:x};",
    float: lambda value: f"f{value!r};",
    bytes: lambda value: f"b{len(value)}:{value.decode('latin-1')}",
    # Upper case: whether str() writes 1E+3 or 1e+3 depends on the thread's decimal context.
    Decimal: lambda value: f"#{str(value).upper()};",
    UUID: lambda value: f"u{value.int:x};",
    datetime: _encode_datetime,
    date: lambda value: f"y{value.isoformat()};",
    time: _encode_time,
    timedelta: _encode_timedelta,
}

_TEXT = frozenset({str})
_BY_NAME: dict[type, Callable[[Any], str]] = {
    **_SCALARS,
    list: _encode_unordered,
    FrozenList: _encode_unordered,
}

# What a cache with a near cache hands out means what it looks like.
_FROZEN: dict[type, type] = {FrozenDict: dict, FrozenList: list, FrozenSet: set}

# A dataclass built on one of these holds more than its fields.
_WITH_CONTENT = (list, tuple, set, frozenset, dict, *_SCALARS)
