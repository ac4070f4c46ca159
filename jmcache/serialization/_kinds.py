"""Typed scalars: what stands for each in JSON, and the way back.

An encoder returns the payload and its tag; the decoder of that tag gets the payload, or whatever
else was stored in its place, and must return the value or raise one of the errors that mean
malformed. Times are counted in microseconds: exact, shorter than ISO 8601, and faster to write.
"""

from __future__ import annotations

import struct
from binascii import a2b_base64, b2a_base64
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import repeat
from math import isfinite
from operator import add, mul
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from jmcache.serialization._refusal import Refusal

_TICK = timedelta(microseconds=1)
_TICKS = repeat(_TICK)
_EPOCH = datetime(1970, 1, 1)  # for naive values
_EPOCH_UTC = _EPOCH.replace(tzinfo=UTC)

# The payloads of a column -> its values: at C's speed where there is one of it for each match.
Decoder = Callable[[list[Any]], list[Any]]

_ANY_UUID = SafeUUID.unknown
_UUID_DIGITS = 32

_REMEMBERED = 4096  # values of one kind: those of 200 results of 20 matches, in about 1 MB


class _Memo:
    """Decodes what it has not decoded lately: hot results have the same ids and times.

    Only for immutable values that are true, of small payloads. Where payloads are equal, so must
    their values be. Threads may decode a value twice and keep one; it goes on after a fork.
    """

    def __init__(self, decode: Decoder) -> None:
        self._decode = decode
        self._values: dict[Any, Any] = {}

    def __call__(self, payloads: list[Any]) -> list[Any]:
        values = list(map(self._values.get, payloads))
        if not all(values):
            values = self._decode(payloads)
            if len(self._values) + len(values) > _REMEMBERED:
                self._values.clear()
            if len(values) <= _REMEMBERED:
                self._values.update(zip(payloads, values, strict=True))
        return values


def encode_datetime(value: datetime) -> tuple[Any, str]:
    zone = value.tzinfo
    if not value.fold:
        if zone is UTC:
            return (value - _EPOCH_UTC) // _TICK, "utc"
        if zone is None:
            return (value - _EPOCH) // _TICK, "naive"
    # The wall clock, not the instant: a zone's rules may change between writing and reading.
    wall = value.replace(tzinfo=None, fold=0)
    return [(wall - _EPOCH) // _TICK, value.fold, _encode_zone(zone)], "datetime"


def _encode_datetimes(column: list[datetime]) -> tuple[list[int], str]:
    if (zone := column[0].tzinfo) is not UTC:
        zone = None
    epoch, tag = (_EPOCH, "naive") if zone is None else (_EPOCH_UTC, "utc")
    return [
        (value - epoch) // _TICK for value in column if value.tzinfo is zone and not value.fold
    ], tag


def _decode_datetime(payload: Any) -> datetime:
    ticks, fold, zone = payload
    wall: datetime = _EPOCH + ticks * _TICK
    return wall.replace(tzinfo=_decode_zone(zone), fold=fold)


def encode_time(value: time) -> tuple[Any, str]:
    wall = value.replace(tzinfo=None, fold=0)
    return [wall.isoformat(), value.fold, _encode_zone(value.tzinfo)], "time"


def _decode_time(payload: Any) -> time:
    wall, fold, zone = payload
    return time.fromisoformat(wall).replace(tzinfo=_decode_zone(zone), fold=fold)


def _encode_zone(zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        unnamed = repr(zone) == repr(timezone(offset))
        return [offset // _TICK] if unnamed else [offset // _TICK, zone.tzname(None)]
    if type(zone) is ZoneInfo and _is_known(zone):
        return zone.key
    raise Refusal("unserializable", type(zone), "use datetime.timezone or ZoneInfo(key)", ".tzinfo")


def _is_known(zone: ZoneInfo) -> bool:
    """Is it what ZoneInfo(key) returns, and not one that was made from a file of its own?"""
    key: str | None = zone.key
    try:
        return key is not None and _zone(key) is zone
    except (LookupError, ValueError):
        return False


def _zone(key: str) -> ZoneInfo:
    try:
        return ZoneInfo(key)
    except OSError as error:
        if error.errno is None:  # not of the zone's file: a timer's TimeoutError, and not ours
            raise
        raise LookupError("no such time zone") from error


def _decode_zone(payload: Any) -> tzinfo | None:
    if payload is None:
        return None
    if type(payload) is str:
        return _zone(payload)
    offset, *name = payload
    return timezone(offset * _TICK, *name)


def encode_date(value: date) -> tuple[Any, str]:
    return value.toordinal(), "date"


def encode_timedelta(value: timedelta) -> tuple[Any, str]:
    return value // _TICK, "timedelta"


def encode_uuid(value: UUID) -> tuple[Any, str]:
    if value.is_safe is _ANY_UUID:
        return f"{value.int:x}", "uuid"
    return [f"{value.int:x}", value.is_safe.name], "uuid-safety"


def _encode_uuids(column: list[UUID]) -> tuple[list[str], str]:
    return [f"{value.int:x}" for value in column if value.is_safe is _ANY_UUID], "uuid"


def _decode_uuids(payloads: list[Any]) -> list[UUID]:
    numbers = list(map(int, payloads, repeat(16)))
    if min(numbers, default=0) < 0 or max(map(len, payloads), default=0) > _UUID_DIGITS:
        raise ValueError("not 128 bits")
    # As UUID(int=...) does it, in a third of the time.
    values = list(map(object.__new__, repeat(UUID, len(numbers))))
    for slot, column in (("int", numbers), ("is_safe", repeat(_ANY_UUID))):
        deque(map(vars(UUID)[slot].__set__, values, column), maxlen=0)
    return values


def _decode_uuid_safety(payload: Any) -> UUID:
    digits, safety = payload
    return UUID(int=int(digits, 16), is_safe=SafeUUID[safety])


def encode_decimal(value: Decimal) -> tuple[Any, str]:
    return str(value), "decimal"


def _decode_decimal(payload: Any) -> Decimal:
    if type(payload) is not str:
        raise TypeError("not text")
    return Decimal(payload)


def encode_bytes(value: bytes) -> tuple[Any, str]:
    return b2a_base64(value, newline=False).decode("ascii"), "bytes"


def _decode_bytes(payload: Any) -> bytes:
    return a2b_base64(payload, strict_mode=True)


def encode_float(value: float) -> tuple[Any, str | None]:
    """For a careful walk. Not "nan": a NaN has a sign and bits of its own."""
    if isfinite(value):
        return value, None
    return struct.pack(">d", value).hex(), "float"


def _decode_float(payload: Any) -> float:
    bits = bytes.fromhex(payload)
    if len(bits) != 8:  # struct.error is none of the errors that mean malformed
        raise ValueError("not 64 bits")
    return float(struct.unpack(">d", bits)[0])


def encode_int(value: int) -> tuple[Any, str | None]:
    """For a careful walk: Python limits how many digits it writes and reads."""
    try:
        str(value)
    except ValueError:
        raise Refusal("unserializable", int, "more digits than Python reads back") from None
    return value, None


ENCODERS: dict[type, Callable[[Any], tuple[Any, str | None]]] = {
    datetime: encode_datetime,
    date: encode_date,
    time: encode_time,
    timedelta: encode_timedelta,
    UUID: encode_uuid,
    Decimal: encode_decimal,
    bytes: encode_bytes,
}

# For a column of them: their payloads and one tag; fewer payloads if that tag is not for all.
COLUMNS: dict[type, Callable[[list[Any]], tuple[list[Any], str]]] = {
    datetime: _encode_datetimes,
    date: lambda column: ([value.toordinal() for value in column], "date"),
    UUID: _encode_uuids,
    Decimal: lambda column: (list(map(str, column)), "decimal"),
}


def each(decode: Callable[[Any], Any]) -> Decoder:
    """Return the decoder that makes each value on its own."""
    return lambda payloads: list(map(decode, payloads))


DECODERS: dict[str, Decoder] = {
    "utc": _Memo(lambda column: list(map(add, repeat(_EPOCH_UTC), map(mul, column, _TICKS)))),
    "naive": _Memo(lambda column: list(map(add, repeat(_EPOCH), map(mul, column, _TICKS)))),
    "datetime": each(_decode_datetime),
    "date": each(date.fromordinal),
    "time": each(_decode_time),
    "timedelta": each(lambda ticks: ticks * _TICK),
    "uuid": _Memo(_decode_uuids),
    "uuid-safety": each(_decode_uuid_safety),
    "decimal": each(_decode_decimal),
    "bytes": each(_decode_bytes),
    "float": each(_decode_float),
}
