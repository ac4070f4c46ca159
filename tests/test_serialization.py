"""What comes back is what went in, by type and value; or it was refused. Never anything between."""

from __future__ import annotations

import array
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import gc
import json
import math
import random
import struct
import sys
import threading
import time
import traceback
import tracemalloc
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jmcache.errors import (
    RedisConfigurationError,
    RedisCorruptEntryError,
    RedisError,
    RedisSerializationError,
)
from jmcache.serialization import RedisSerializer, _kinds, _marking

SECRET = "s3cret-value"
BERLIN = ZoneInfo("Europe/Berlin")
NAN = float("nan")
DIGITS = sys.get_int_max_str_digits()

# Structures of structures are slow to draw, and how slow depends on the machine.
patient = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ── The application's classes ───────────────────────────────────────────────────────────────────


class Level(enum.Enum):
    JUNIOR = 1
    SENIOR = "two"
    LEAD = 1  # noqa: PIE796 - another name for JUNIOR


class Rank(enum.IntEnum):
    FIRST = 1


class Field(enum.StrEnum):
    SKILLS = "skills"


class Open(enum.IntEnum):
    """Makes members up, as some enums of protocols do."""

    KNOWN = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        member = int.__new__(cls, value)  # type: ignore[call-overload]
        member._name_, member._value_ = "UNKNOWN", value
        return member


class Perm(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3
    EXECUTE = 4


class Mode(enum.IntFlag, boundary=enum.KEEP):
    A = 1
    B = 6
    C = 12


@dataclasses.dataclass(frozen=True)
class Match:
    score: Any
    posted: Any = None


@dataclasses.dataclass(slots=True, kw_only=True)
class Slotted:
    inner: Any


class PlainChild(Match):
    pass


Point = namedtuple("Point", "x y")


def new_serializer(**limits: Any) -> RedisSerializer:
    serializer = RedisSerializer(**limits)
    for cls in (Level, Rank, Field, Open, Perm, Mode, Match, Slotted):
        serializer.register(cls, cls.__name__)
    return serializer


@pytest.fixture
def serializer() -> RedisSerializer:
    return new_serializer()


SHARED = new_serializer()  # for property tests, which must not take function fixtures


# ── An oracle: equal exactly if two values are the same by type and value ───────────────────────


def image(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind in (list, tuple):
        return kind, tuple(map(image, value))
    if kind in (set, frozenset):
        return kind, frozenset(Counter(map(image, value)).items())
    if kind is dict:
        return kind, tuple((image(key), image(item)) for key, item in value.items())
    if kind in (dt.datetime, dt.time):
        wall = value.replace(tzinfo=None, fold=0)
        return kind, wall, value.fold, type(value.tzinfo), repr(value.tzinfo)
    if kind is uuid.UUID:
        return kind, value.int, value.is_safe
    if dataclasses.is_dataclass(kind):
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return kind, tuple(map(image, fields))
    return kind, value


def comes_back(serializer: RedisSerializer, value: Any) -> bool:
    return image(serializer.deserialize(serializer.serialize(value))) == image(value)


def refusal_of(serializer: RedisSerializer, value: Any) -> RedisSerializationError:
    """Return why *value* cannot be written; fails when it can, or is not said in our words."""
    with pytest.raises(RedisSerializationError) as caught:
        serializer.serialize(value)
    assert not isinstance(caught.value, RedisCorruptEntryError)
    return caught.value


def reason_of(serializer: RedisSerializer, body: bytes) -> str:
    """Return why *body* cannot be read; fails when it can, or in any other way."""
    with pytest.raises(RedisCorruptEntryError) as caught:
        serializer.deserialize(body)
    return caught.value.reason


# ── Lossless ────────────────────────────────────────────────────────────────────────────────────

any_text = st.text(st.characters(exclude_categories=[]), max_size=8)
zones = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]).map(ZoneInfo),
    st.builds(
        dt.timezone,
        st.timedeltas(dt.timedelta(days=-1, microseconds=1), dt.timedelta(days=1, microseconds=-1)),
    ),
    st.builds(dt.timezone, st.timedeltas(-dt.timedelta(hours=2), dt.timedelta(hours=2)), any_text),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    any_text,
    st.binary(max_size=8),
    st.decimals(),
    st.sampled_from([Decimal("sNaN1"), Decimal("-NaN"), Decimal("-0E+9"), Decimal("1E-99999")]),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.builds(dt.datetime.replace, st.datetimes(), tzinfo=zones, fold=st.integers(0, 1)),
    st.builds(dt.time.replace, st.times(), tzinfo=zones, fold=st.integers(0, 1)),
    st.sampled_from([*Level, *Rank, *Field]),
    st.integers(0, 7).map(Perm),
    st.sampled_from([0, 1, 6, 7, 12, 13, 14, 15]).map(Mode),  # what its members make
)


def is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # a signalling NaN, also inside a tuple
        return False
    return True


keys = st.recursive(
    leaves.filter(is_hashable),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Match, inner, inner),
    ),
    max_leaves=3,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.lists(st.fixed_dictionaries({"id": inner, "tags": inner}), max_size=4),
        st.builds(Match, inner, inner),
        st.builds(Slotted, inner=inner),
    ),
    max_leaves=12,
)


@patient
@given(values)
@example({1: "a", "1": "b", True + 1: "c", None: "d", 1.5: "e", "None": "f"})
@example([NAN, -NAN, math.inf, -math.inf, -0.0, 1e16, 5e-324, 1.7976931348623157e308])
@example(struct.unpack(">d", bytes.fromhex("fff8000000abcdef"))[0])
@example(
    ["\ud83d\ude00", "\U0001f600", "\ud83d", "\ude00\ud83d", "\ud83d\\ude00", "</\u2028\x7f\0"]
)
@example(("\ud83d\ude00", {"\ud83d\ude00": ()}))
@example([{"a": 1, "b": [1]}, {"a": 1, "b": [(1,)]}])
@example([{"a": 1, "b": [1]}, {"a": 1, 2: [1]}])
@example([{"when": dt.datetime(2026, 1, 1)}, {"when": None}, None])
@example([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10 ** (DIGITS - 1)])
def test_every_value_comes_back_with_the_same_types_and_values(value):
    """A score of Decimal("0.1") that comes back as 0.1 is wrong data nobody ever notices."""
    before = image(value)
    body = SHARED.serialize(value)
    assert image(SHARED.deserialize(body)) == before
    assert image(value) == before


# Columns and looking ahead are for larger values than anyone can draw: here they start at once.
EARLY = {"_CELLS": 1, "_MANY": 1}


@patient
@given(values | st.lists(st.fixed_dictionaries({"id": leaves, "tags": values}), min_size=1))
@example([{"when": dt.datetime(2026, 1, 1)}, {"when": None}])
@example([{"a": 1, "b": [1]}, {"a": 1, "b": [(1,)]}])
@example([{"a": 1, "b": [[]]}, {"a": 1, "b": [{2: 3}]}])
@example([{"a": 1, "b": 2}, {"b": 1, "a": 2}])
@example([{"a": NAN, "b": [NAN]}] * 2)
@example([{str(key): key for key in range(width)} for width in (19, 19)])
def test_rows_of_every_kind_come_back_with_the_same_types_and_values(value):
    """They are written by columns, and a match must not get another match's date."""
    before = image(value)
    with mock.patch.multiple(_marking, **EARLY):
        body = SHARED.serialize(value)
    assert image(SHARED.deserialize(body)) == before
    assert image(value) == before


def test_rows_without_any_key_come_back_when_there_was_too_much_to_look_ahead_at():
    """Written as columns, of which there are none, they could not be read."""
    deep = [0] * 400 + [()]
    for _ in range(4):
        deep = [[], [], [], [], deep]
    value = [deep, [{} for _ in range(5)]]
    serializer = RedisSerializer(max_bytes=1000)
    assert serializer.deserialize(serializer.serialize(value)) == value


@pytest.mark.parametrize(
    "column",
    [
        [dt.datetime(2026, 1, 1, hour, tzinfo=dt.UTC) for hour in range(24)],
        [dt.datetime(2026, 1, 1, hour) for hour in range(24)],
        [dt.date(2026, 1, day) for day in range(1, 25)],
        [Decimal(number) / 8 for number in range(24)],
        [uuid.UUID(int=number) for number in range(24)],
    ],
    ids=["utc", "naive", "date", "decimal", "uuid"],
)
@pytest.mark.parametrize(
    "odd",
    [
        None,
        0,
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "named")),
        dt.datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC, fold=1),
        dt.datetime(2026, 1, 1, fold=1),
        dt.datetime(2026, 1, 1),
        uuid.UUID(int=7, is_safe=uuid.SafeUUID.unsafe),
        Decimal("sNaN"),
        [Decimal(1)],
    ],
    ids=str,
)
@pytest.mark.parametrize("place", [0, 5, 23])
def test_one_odd_value_in_a_column_of_one_kind_stays_what_it_is(serializer, column, odd, place):
    """All are written with one mark as long as all are of one kind; UTC by another name is none."""
    rows = [{"id": number, "a": 0, "b": 0, "it": it} for number, it in enumerate(column)]
    assert b'"rows"' in serializer.serialize(rows)
    assert comes_back(serializer, rows)
    rows[place]["it"] = odd
    assert comes_back(serializer, rows)


def test_ids_that_were_read_before_are_handed_out_again(serializer):
    """The hottest results are read a thousand times; their ids need not be made anew."""
    body = serializer.serialize([uuid.UUID(int=4711)])
    assert serializer.deserialize(body)[0] is serializer.deserialize(body)[0]


def test_ids_and_times_that_were_read_before_take_bounded_memory(serializer, monkeypatch):
    """A worker reads millions of ids in its life."""
    monkeypatch.setattr(_kinds, "_REMEMBERED", 10)
    memos = [_kinds.DECODERS[tag]._values for tag in ("uuid", "utc", "naive")]
    for number in range(100):
        moment = dt.datetime(2026, 1, 1) + dt.timedelta(number)
        assert comes_back(
            serializer, [uuid.UUID(int=number), moment, moment.replace(tzinfo=dt.UTC)]
        )
    assert all(1 <= len(memo) <= 10 for memo in memos)
    assert comes_back(serializer, [uuid.UUID(int=number) for number in range(100)])
    assert len(memos[0]) <= 10


def test_floats_of_every_bit_pattern_come_back():
    """Scores are floats: one wrong last digit reorders matches."""
    bits = random.Random(1)
    floats = [struct.unpack(">d", bits.randbytes(8))[0] for _ in range(20_000)]
    floats += [bits.random() * 10 ** bits.randint(-20, 20) for _ in range(20_000)]
    assert comes_back(SHARED, floats)


def test_every_code_point_comes_back_alone_and_beside_surrogates():
    """Profiles are scraped: half an emoji in a name must not cost the whole entry."""
    for start in range(0, 0x110000, 0x1000):
        text = "".join(map(chr, range(start, start + 0x1000)))
        assert comes_back(SHARED, [text, f"\udc00{text}\ud800", {text: text}])


@pytest.mark.parametrize(
    "value",
    [
        {"$t": "datetime", "v": 0},
        {"__type__": "tuple", "items": [1]},
        [1795392000000000, "utc"],
        [{"posted": 1}, {"posted": "utc"}],
        ["*", "utc"],
        {"*": ["tuple", 0, "utc"]},
        't[1,"utc"]',
        "j1",
        ("@Level", ["@Level", "JUNIOR"]),
        {"posted": dt.date(2026, 1, 1), "marks": {"posted": "utc"}},
    ],
)
def test_a_value_that_looks_like_the_format_stays_what_it_is(serializer, value):
    """A user who fills in a profile must not be able to plant a date, or a class, in a result."""
    assert comes_back(serializer, value)
    assert comes_back(serializer, serializer.serialize(value))
    assert comes_back(serializer, serializer.serialize(value).decode("latin-1"))
    assert comes_back(serializer, json.loads(json.dumps([str(serializer.serialize(value))])))


def test_a_uuid_keeps_what_its_maker_said_about_safety(serializer):
    """uuid1() says whether it was made in a way that is safe between processes."""
    made = [uuid.UUID(int=7, is_safe=safety) for safety in uuid.SafeUUID]
    assert comes_back(serializer, made)
    # The short cut of the decoder must make what the constructor makes.
    (plain,) = serializer.deserialize(serializer.serialize([uuid.UUID(int=7)]))
    assert copy.copy(plain) == uuid.UUID(int=7)
    assert hash(plain) == hash(uuid.UUID(int=7))
    assert str(plain) == str(uuid.UUID(int=7))
    with pytest.raises(TypeError):
        plain.int = 8


def test_order_is_kept_in_dicts_of_any_keys(serializer):
    """Facets are shown in the order in which they were counted."""
    for value in ({"b": 1, "a": 2}, {2: 1, "a": (), 1: 3}, {"z": dt.date.max, "a": None}):
        assert list(serializer.deserialize(serializer.serialize(value))) == list(value)


def test_decimals_come_back_in_any_decimal_context(serializer):
    """A library that lowers the precision in its thread would round every cached price there."""
    value = [Decimal("1234567.8901234567890123456789E-20"), Decimal("1E+999")]
    with decimal.localcontext() as context:
        context.prec, context.Emax, context.Emin, context.capitals = 2, 2, -2, 0
        body = serializer.serialize(value)
        back = serializer.deserialize(body)
    assert image(back) == image(value)


def test_the_caller_s_value_is_left_as_it_was(serializer):
    """It is about to be returned to a user, with its dates."""
    inner = {"posted": dt.date(2026, 1, 1), "skills": ["a"]}
    value = {"matches": [inner, (inner,)], 1: {2}}
    matches, before = value["matches"], copy.deepcopy(value)
    serializer.serialize(value)
    assert image(value) == image(before)
    assert value["matches"] is matches
    assert matches[0] is inner


def test_what_is_read_shares_nothing_between_two_readers(serializer):
    """One request sorts its matches in place; the next one must not see that."""
    body = serializer.serialize({"matches": [{"at": dt.date.max, "skills": ["a"]}]})
    one, other = serializer.deserialize(body), serializer.deserialize(body)
    one["matches"][0]["skills"].append("b")
    assert other["matches"][0]["skills"] == ["a"]


GOLDEN: list[tuple[bytes, Any]] = [
    (
        b' {"matches":[{"score":0.5,"title":"Z\xc3\xbcrich\\/\xf0\x9f\x98\x80"}],"next":null}',
        {"matches": [{"score": 0.5, "title": "Zürich/\U0001f600"}], "next": None},
    ),
    (
        b'\t[[{"id":"7","at":1795392000000000},{"id":"7","at":1795392000000000}],["*",{"id":"uuid","at":"utc"}]]',
        [{"id": uuid.UUID(int=7), "at": dt.datetime(2026, 11, 23, tzinfo=dt.UTC)}] * 2,
    ),
    (
        b'\t[[[1792895400000000,1,"Europe\\/Berlin"],1767225600000000],[0,"datetime",1,"naive"]]',
        [dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), dt.datetime(2026, 1, 1)],
    ),
    (
        b'\t[[[1767225600000000,0,[3600000000,"CET"]],["01:02:03.000004",0,null]],[0,"datetime",1,"time"]]',
        [
            dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
            dt.time(1, 2, 3, 4),
        ],
    ),
    (
        b'\t[[739943,-86397999997,"1.50","AP8=","7ff0000000000000"],[0,"date",1,"timedelta",2,"decimal",3,"bytes",4,"float"]]',
        [dt.date(2026, 11, 23), dt.timedelta(-1, 2, 3), Decimal("1.50"), b"\x00\xff", math.inf],
    ),
    (
        b'\t[[1,[1,[[]]],"1",[2],null,[]],["dict",[1,["tuple",[1,["*","tuple"]]],3,"set",5,"frozenset"]]]',
        {1: (1, [()]), "1": {2}, None: frozenset()},
    ),
    (
        (
            b'\t[["SENIOR",["READ","EXECUTE"],["READ","WRITE"],{"score":0.5,"posted":739943}],'
            b'[0,"@Level",1,"@Perm",2,"@Perm",3,["@Match",{"posted":"date"}]]]'
        ),
        [
            Level.SENIOR,
            Perm.READ | Perm.EXECUTE,
            Perm.BOTH,
            Match(0.5, posted=dt.date(2026, 11, 23)),
        ],
    ),
]


TWELVE = range(12)
GOLDEN += [
    (
        b'\t[[["id","at","0","1","2","3","4","tags"],['
        + b",".join(b'"%x"' % number for number in TWELVE)
        + b"],["
        + b",".join([b"1795392000000000"] * 12)
        + (b"],[" + b",".join([b"0"] * 12)) * 5
        + b"],["
        + b",".join([b'["a"]'] * 12)
        + b']],["rows",[1,["*","uuid"],2,["*","utc"]]]]',
        [
            {"id": uuid.UUID(int=number), "at": dt.datetime(2026, 11, 23, tzinfo=dt.UTC)}
            | {str(key): 0 for key in range(5)}
            | {"tags": ["a"]}
            for number in TWELVE
        ],
    ),
    (
        b'\t[{"rows":[["0","1","2","3","4","5","6","7"]'
        + (b",[" + b",".join([b"0"] * 45) + b"]") * 8
        + b']},{"rows":"rows"}]',
        {"rows": [{str(key): 0 for key in range(8)} for _ in range(45)]},
    ),
    (
        b' {"rows":['
        + b",".join([b'{"0":0,"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0}'] * 44)
        + b"]}",
        {"rows": [{str(key): 0 for key in range(8)} for _ in range(44)]},
    ),
]


@pytest.mark.parametrize(("body", "value"), GOLDEN)
def test_the_format_never_changes_between_versions(serializer, body, value):
    """In a rolling deploy each version reads what the other writes; neither may misread it."""
    assert serializer.serialize(value) == body
    assert image(serializer.deserialize(body)) == image(value)


# ── Refused ─────────────────────────────────────────────────────────────────────────────────────


class Hijacks:
    """ujson asks such an object what it wants to be, and believes it."""

    def __json__(self) -> str:
        return "true"

    def toDict(self) -> dict[str, int]:
        return {}

    def __repr__(self) -> str:
        return SECRET


class LikeNumpy(float):
    __module__ = "numpy"
    __qualname__ = "float64"


class Unhashable(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


class OwnZone(dt.tzinfo):
    def utcoffset(self, _: dt.datetime | None) -> None:
        return None


STRANGERS: list[Any] = [
    Point(1, 2),
    OrderedDict(a=1),
    Counter("a"),
    defaultdict(int),
    deque([1]),
    type("Text", (str,), {})("a"),
    type("Number", (int,), {})(1),
    LikeNumpy(0.5),
    type("Items", (list,), {})(),
    type("Pair", (tuple,), {})(),
    type("Bag", (set,), {})(),
    type("Day", (dt.date,), {})(2026, 1, 1),
    type("Moment", (dt.datetime,), {})(2026, 1, 1),
    type("Money", (Decimal,), {})(1),
    type("Id", (uuid.UUID,), {})(int=1),
    enum.Enum("Unregistered", "A").A,
    enum.IntEnum("UnregisteredInt", "A").A,
    enum.StrEnum("UnregisteredText", "A").A,
    PlainChild(1),
    Mode(16),
    Open(7),
    Hijacks(),
    types.SimpleNamespace(a=1),
    array.array("d", [0.5]),
    bytearray(b"a"),
    memoryview(b"a"),
    1j,
    range(3),
    ...,
    print,
    Match,
    Level,
    int,
    sys,
    Unhashable("Odd", (), {})(),
    (number for number in [1]),
    dt.datetime(2026, 1, 1, tzinfo=OwnZone()),
    dt.datetime(2026, 1, 1, tzinfo=ZoneInfo.no_cache("Europe/Berlin")),
    dt.time(1, tzinfo=OwnZone()),
    10**DIGITS,
    -(10**DIGITS),
]


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda value: type(value).__name__)
def test_what_would_come_back_different_is_refused_wherever_it_is(serializer, stranger):
    """ujson writes most of these without a word, as something else."""
    places: list[Any] = [
        stranger,
        [stranger],
        (stranger,),
        {"a": stranger},
        {1: stranger},
        [{"a": 1, "b": []}, {"a": stranger, "b": []}],
        [{"a": 1, "b": []}, {"a": 1, "b": [stranger]}],
        [[1], [stranger]],
        [NAN, stranger],
        [dt.date.max, stranger],
        Match(stranger),
        Slotted(inner=[stranger]),
        [{"a": 1, "b": []}] * 50 + [{"a": stranger, "b": []}],
        [{"a": 1, "b": []}] * 50 + [{"a": 1, "b": [stranger]}],
        [{"a": stranger, "b": 1}] * 50,
        [[1]] * 9 + [[stranger]],
        {key: [{"a": [1]}, {"a": [stranger]}] for key in "abcdefgh"},
    ]
    if is_hashable(stranger):
        places += [{stranger}, frozenset({stranger}), {stranger: 1}, {"b": 1, stranger: 1}]
        places += [[{"b": 1, "c": 1}, {"b": 1, stranger: 1}], Match({stranger: 1})]
        places += [[{"b": 1, stranger: 1}] * 50, [[{"b": 1}]] * 9 + [[{stranger: 1}]]]
    for value in places:
        error = refusal_of(serializer, value)
        assert error.reason == "unserializable"
        assert error.type_name


def test_a_key_that_equals_text_but_is_none_is_refused_among_rows_with_text(serializer):
    """The keys of one row are no proof for those of the next: these two are equal."""
    unregistered = enum.StrEnum("Unregistered", {"A": "a"}).A
    rows = [{"a": 1, "b": 2}, {unregistered: 1, "b": 2}]
    refusal_of(serializer, rows)
    registered = [{"skills": 1, "b": 2}, {Field.SKILLS: 1, "b": 2}]
    assert comes_back(serializer, registered)
    plain = [{"a": 1, "b": 2}, {"skills": 1, "b": 2}] * 50
    refusal_of(serializer, plain[::2] + rows[1:])
    assert comes_back(serializer, plain[1::2] + registered[1:])
    assert comes_back(serializer, {"x": plain[1::2], "y": {str(n): registered for n in range(9)}})


# By number: hypothesis prints what it samples from, and some of these do not print.
odd_values = st.recursive(
    leaves | st.integers(0, len(STRANGERS) - 1).map(lambda number: STRANGERS[number]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(any_text | st.just("a"), inner, max_size=4),
        st.lists(st.fixed_dictionaries({"a": inner, "b": inner}), max_size=3),
        st.builds(Match, inner),
    ),
    max_leaves=8,
)


@patient
@given(odd_values, st.sampled_from([{"_MANY": 8}, EARLY]))
def test_odd_things_in_any_structure_are_refused_or_come_back_the_same(value, early):
    """There is no third way for a value, however it is put together."""
    reason = ""
    try:
        with mock.patch.multiple(_marking, **early):
            body = SHARED.serialize(value)
    except RedisSerializationError as error:
        reason = error.reason
    assert reason in ("", "unserializable")
    assert reason or image(SHARED.deserialize(body)) == image(value)


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (LikeNumpy(1), "", "numpy.float64"),
        ({"matches": [{}, {}, {}, {"score": LikeNumpy(1)}]}, "matches[3].score", "numpy.float64"),
        ([{"a": 1, "b": 1}] * 2 + [{"a": 1, "b": {1j}}], "[2].b{element}", "complex"),
        ({"jane@example.com": {"x": 1j}}, "[<str>].x", "complex"),
        ({"candidate-42": 1j}, "[<str>]", "complex"),
        ({"line\nbreak": 1j}, "[<str>]", "complex"),
        ({"k" * 40: 1j}, "k" * 40, "complex"),
        ({"k" * 41: 1j}, "[<str>]", "complex"),
        ({"m": {7: [1j]}}, "m[<int>][0]", "complex"),
        ({"m": {7: 0, 1j: 0}}, "m{key}", "complex"),
        ((0, [1j]), "[1][0]", "complex"),
        ({"best": Match(1, posted=[1j])}, "best.posted[0]", "complex"),
        ({"at": dt.datetime(2026, 1, 1, tzinfo=OwnZone())}, "at.tzinfo", f"{__name__}.OwnZone"),
        ({"n": [1, 10**DIGITS]}, "n[1]", "int"),
        ({"n": {10**DIGITS: NAN}}, "n{key}", "int"),
        ({"m": [{"a": 1, "b": 1}] * 50 + [{"a": 1, "b": (1j,)}]}, "m[50].b[0]", "complex"),
        (
            [{"x": 1, "candidate-42": 1}] * 50 + [{"x": 1, "candidate-42": 1j}],
            "[50][<str>]",
            "complex",
        ),
    ],
)
def test_a_refusal_says_where_and_which_type(serializer, value, path, type_name):
    """Somebody has to find the one numpy score among two hundred matches."""
    error = refusal_of(serializer, value)
    assert (error.path, error.type_name) == (path, type_name)
    assert str(error).startswith(f"{path or 'the value'} ({type_name}): ")


def test_nothing_about_a_refusal_shows_the_value(serializer):
    """Logs and error trackers are read by people who may not see profiles."""
    for value in (
        {"name": SECRET, "odd": Hijacks()},
        [SECRET, 10**DIGITS],
        {SECRET * 9: {SECRET * 9: Hijacks()}, 7: SECRET},
        {Hijacks(): SECRET},
        Match(SECRET, Hijacks()),
    ):
        error = refusal_of(serializer, value)
        assert error.__cause__ is None
        assert error.__context__ is None
        text = "".join(traceback.format_exception(error)) + repr(vars(error))
        assert SECRET not in text


# ── Depth and size ──────────────────────────────────────────────────────────────────────────────


def nested(wrap: Any, depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS = {
    "list": lambda inner: [inner],
    "mixed list": lambda inner: ["", inner],
    "dict": lambda inner: {"a": inner},
    "odd dict": lambda inner: {1: inner},
    "tuple": lambda inner: (inner,),
    "frozenset": lambda inner: frozenset({inner}),
    "dataclass": lambda inner: Match(inner),
    "row": lambda inner: [{"a": inner, "b": 1}],
    "table": lambda inner: [{"a": inner, "b": 1}] + [{"a": 1, "b": 1}] * 50,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("limit", [1, 2, 3, 128, 200])
def test_values_of_the_greatest_depth_come_back_and_deeper_ones_are_refused(wrap, limit):
    """What is written has to be readable, and a stack overflow is nobody's error."""
    serializer = new_serializer(max_depth=limit)
    levels = 2 if isinstance(wrap(1), list) and isinstance(wrap(1)[0], dict) else 1
    fits = limit // levels
    if fits:
        assert comes_back(serializer, nested(wrap, fits))
    for depth in (fits + 1, fits + 50):
        error = refusal_of(serializer, nested(wrap, depth))
        assert error.reason == "too_deep"
        assert len(str(error)) < 500


@pytest.mark.parametrize("limit", [2, 3])
def test_a_list_in_a_column_counts_for_the_depth_as_it_does_in_a_row(limit):
    """Columns are how a value is written; what may be written does not depend on it."""
    serializer = RedisSerializer(max_depth=limit)
    value = [{"a": 1, "b": [1]} for _ in range(60)]
    if limit == 3:
        assert comes_back(serializer, value)
    else:
        assert refusal_of(serializer, value).reason == "too_deep"


def test_what_contains_itself_is_refused(serializer):
    """A worker must not die of a parent that points to its children."""
    in_list: list[Any] = [1]
    in_list += [in_list, in_list]
    in_dict: dict[Any, Any] = {}
    in_dict["me"] = in_dict
    in_odd: dict[Any, Any] = {}
    in_odd[1] = in_odd
    in_tuple = ([],)
    in_tuple[0].append(in_tuple)
    for value in (in_list, in_dict, in_odd, in_tuple):
        assert refusal_of(serializer, value).reason == "too_deep"


def test_lists_that_double_themselves_are_refused_in_no_time(serializer):
    """Sixty lists that share one another stand for 10**18 elements."""
    inner: Any = ["x"] * 1000
    big = {"rows": [{"a": inner, "b": inner}] * 100_000}
    for wrap in (lambda x: [x, x], lambda x: {"a": x, "b": x}, lambda x: (x, {1: x})):
        value: Any = inner
        for _ in range(60):
            value = wrap(value)
        assert refusal_of(serializer, value).reason == "too_large"
    assert refusal_of(serializer, big).reason == "too_large"
    wide = [dict.fromkeys(map(str, range(1000)), 0)] * 100_000
    lists = [[0] * 1000] * 100_000
    tables = [wide[:5]] * 4_000
    for value in (wide, lists, tables, [{"a": lists[0], "b": 0}] * 100_000):
        tracemalloc.start()
        assert refusal_of(RedisSerializer(max_bytes=100_000), value).reason == "too_large"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50_000_000


@pytest.mark.parametrize("fill", ["x", "é", "\U0001f600"])
def test_the_size_limit_is_exact_both_ways(fill):
    """The limit protects Redis, so it counts bytes; what one replica may write, each may read."""
    body = RedisSerializer().serialize([fill * 100])
    at, below = RedisSerializer(max_bytes=len(body)), RedisSerializer(max_bytes=len(body) - 1)
    assert at.deserialize(at.serialize([fill * 100])) == [fill * 100]
    assert refusal_of(below, [fill * 100]).reason == "too_large"
    assert reason_of(below, body) == "too_large"


@pytest.mark.parametrize(
    "value",
    [
        [0] * 1000,
        [[0] * 10 for _ in range(100)],
        [[]] * 500,
        [{"a": 0, "b": [0] * 10} for _ in range(100)],
        [{"a": 0, "b": (0,) * 10} for _ in range(100)],
        [{"": 0}] * 300,
        [{"": [0, 0]}, {"": {0: 0}}] * 100,
        {number: {number: 0} for number in range(300)},
        {str(number): {0: [0, {0: 0}]} for number in range(100)},
        [(0, {0: (0, 0)})] * 100,
        [{"": 0, "a": (0,)}] * 100,
        [{"": [], "a": dt.date.min}] * 100,
        [{"": [{"": 0}] * 100}] * 100,
        [{"": [{"": [0]}]}] * 100,
        [[[0]]] * 100,
        {str(number): [[]] for number in range(100)},
    ],
)
def test_no_value_is_called_too_large_that_fits(value):
    """The walk stops early on a count of elements; it must never count what is not there."""
    body = RedisSerializer().serialize(value)
    assert comes_back(RedisSerializer(max_bytes=len(body)), value)


def test_refusals_near_the_end_of_the_stack_stay_refusals(serializer):
    """RecursionError is no error that callers of a cache expect."""
    value = nested(lambda inner: {"a": (inner,)}, 50)
    body = serializer.serialize(value)
    outcomes = set()

    def dive(depth: int) -> None:
        try:
            serializer.serialize(value)
            serializer.deserialize(body)
        except RedisError as error:
            outcomes.add(error.reason)
        if len(outcomes) < 2:
            dive(depth + 1)

    try:
        dive(0)
    except RecursionError:
        pass
    assert outcomes <= {"too_deep", "no_stack"}
    assert outcomes


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_near_the_end_of_the_stack_the_deepest_body_is_not_called_corrupt(wrap):
    """It would be removed, for everybody, because one caller is deep in a call of his own."""
    serializer = new_serializer(max_depth=200)
    levels = 2 if isinstance(wrap(1), list) and isinstance(wrap(1)[0], dict) else 1
    body = serializer.serialize(nested(wrap, 200 // levels, dt.datetime(2026, 11, 23)))

    def dive() -> RedisError:
        try:
            serializer.deserialize(body)
        except RedisError as error:
            return error
        return dive()

    error = dive()
    assert (type(error), error.outcome, error.reason) == (RedisError, "unavailable", "no_stack")
    serializer.deserialize(body)


def test_a_body_for_which_there_is_no_memory_is_not_called_corrupt():
    """As above: the worker next to it has memory enough."""
    serializer = RedisSerializer()

    @serializer.register
    @dataclasses.dataclass
    class Large:
        a: int

        def __post_init__(self) -> None:
            if self.a == 1:
                raise MemoryError

    value = Large(0)
    value.a = 1
    with pytest.raises(RedisError) as caught:
        serializer.deserialize(serializer.serialize(value))
    assert (type(caught.value), caught.value.reason) == (RedisError, "no_memory")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"max_bytes": True},
        {"max_depth": 0},
        {"max_depth": 201},
        {"max_depth": "9"},
    ],
)
def test_limits_that_cannot_work_are_refused_by_name(limits):
    """A typo in a setting shows at start-up, not as a cache that refuses everything."""
    with pytest.raises(RedisConfigurationError, match=next(iter(limits))):
        RedisSerializer(**limits)


# ── Bytes that are not ours ─────────────────────────────────────────────────────────────────────


def only_corrupt(body: bytes) -> None:
    told = None
    try:
        SHARED.deserialize(body)
    except RedisCorruptEntryError as error:
        told = error.reason, error.__context__
    assert told in (None, ("undecodable", None))


@patient
@given(st.binary(max_size=60), st.sampled_from([b"", b" ", b"\t", b"\t[", b' "']))
def test_random_bytes_are_a_value_or_corrupt_and_nothing_else(body, front):
    """Anything else would reach the caller as an error that no cache promised."""
    only_corrupt(front + body)


@patient
@given(values, st.randoms(use_true_random=False))
def test_damaged_bodies_are_a_value_or_corrupt_and_nothing_else(value, chance):
    """The envelope finds damage first; a second line must not fall over."""
    body = bytearray(SHARED.serialize(value))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(4):
            case 0:
                body[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del body[at : at + chance.randint(1, 4)]
            case 2:
                body[at:at] = chance.choice([b"[", b"]", b'"', b",", b"null", b"-", b"0", b"{}"])
            case 3:
                body[at:at] = body[: chance.randrange(len(body) + 1)]
    only_corrupt(bytes(body))


TAGS = (
    "utc naive datetime date time timedelta uuid uuid-safety decimal bytes float tuple set "
    "frozenset dict rows @Level @Perm @Match @no"
)
tags = st.sampled_from(TAGS.split())
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=6,
)
marks = st.recursive(
    tags,
    lambda inner: st.one_of(
        st.tuples(tags | st.just("*"), inner).map(list),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        st.tuples(st.integers(-1, 2), inner, st.integers(-1, 3), inner).map(list),
        trees,
    ),
    max_leaves=6,
)


@patient
@given(trees, marks)
@example(1e308, "utc")
@example(10**400, "timedelta")
@example([1, 2, "Europe/Berlin"], "datetime")
@example([0, 0, "../../etc/passwd"], "datetime")
@example([0, 0, "Europe"], "datetime")
@example([0, 0, "/etc/passwd"], "datetime")
@example([0, 0, "\ud800"], "datetime")
@example([0, 0, [10**30]], "datetime")
@example(["-1", "safe"], "uuid-safety")
@example("f" * 33, "uuid")
@example("-1", "uuid")
@example("aa", "float")
@example("1e999999999999999999999", "decimal")
@example([[]], "set")
@example([], "rows")
@example([["a"], ["b"]], "rows")
@example([["a"], [[1]]], ["rows", [1, ["*", "set"]]])
@example([[], 1], "dict")
@example([1, 1], "set")
@example([1, 2, 1, 3], "dict")
@example("abc", "tuple")
@example("X", "@Level")
@example(["X"], "@Perm")
@example({"score": 1}, "@Match")
@example({"score": 1, "posted": 2, "more": 3}, "@Match")
@example([1], ["*"])
@example({"a": 1}, ["*", "utc"])
@example([1], [])
def test_forged_marks_are_a_value_or_corrupt_and_nothing_else(tree, mark):
    """Who can write to Redis may at most cause a miss."""
    only_corrupt(b"\t" + json.dumps([tree, mark]).encode())


# As deep as ujson reads: a thousand lists, and as many marks for them.
DEEP = b"[%b1%b,%b0%b]" % (b"[" * 1000, b"]" * 1000, b'["*",' * 1000, b"]" * 1000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\t",
        b"x1",
        b"1",
        b"[1]",
        b"\x80\x04K\x01.",  # pickle
        b" [1",
        b" [1]]",
        b" {1:2}",
        b' "\xff"',
        b" " + b"[" * 5000 + b"]" * 5000,
        b" " + b"[" * 1_000_000,
        b" " + b"9" * (DIGITS + 1),
        b"\t1",
        b"\t[1]",
        b"\t[1,null]",
        b"\t[1,[]]",
        b'\t[1,"no-such-tag"]',
        b'\t[1,["*","utc"]]',
        b'\t[["a"],[0,"utc"]]',
        b'\t[[1],[1,"utc"]]',
        b'\t["x","@os.system"]',
        b'\t["id",["@subprocess.run",{"args":"x"}]]',
        b'\t[{"score":1},"@Match"]',
        b'\t["LEAD ","@Level"]',
        b'\t[[1,1],"set"]',
        b'\t[[1,1,1,2],"dict"]',
        b'\t[[0,0,"Nowhere/Land"],"datetime"]',
        b'\t[{"1":1},["*","decimal"]]',
        b'\t["abc","tuple"]',
        b'\t[{"a":1},"set"]',
        b'\t[{"a":1},"dict"]',
        b'\t["1%032x","uuid"]' % 0,
        b'\t["-1","uuid"]',
        b'\t[1.5,"decimal"]',
        b'\t[[0,[1],0],"decimal"]',
        b'\t["%033x","uuid"]' % 7,
        b'\t["AP 8=","bytes"]',
        b'\t[[],"rows"]',
        b'\t[[[]],"rows"]',
        b'\t[["a",[1]],"rows"]',
        b'\t[[["a"]],"rows"]',
        b'\t[[["a"],1],"rows"]',
        b'\t[[["a"],"x"],"rows"]',
        b'\t[[[1],[1]],"rows"]',
        b'\t[[["a","a"],[1],[1]],"rows"]',
        b'\t[[["a","b"],[1],[1,2]],"rows"]',
        b'\t[[["a"],[1],[2]],"rows"]',
        b'\t[{"a":[1]},"rows"]',
        b'\t[[["1","2","3","4"],[1],[],[],[]],"rows"]',
        b'\t[[["1","2","3","4","5","6","7","8"],[],[],[],[],[],[],[]],"rows"]',
        b'\t["00","float"]',
        b'\t[[1],"@Match"]',
        b"\t" + DEEP,
        b'\t[[0,0,"../../../../etc/passwd"],"datetime"]',
    ],
)
def test_what_we_did_not_write_is_undecodable(serializer, body):
    """Handed out, it would be somebody else's data, or code."""
    assert reason_of(serializer, body) == "undecodable"


def test_a_place_that_is_named_twice_is_refused_before_any_work(serializer):
    """Half a megabyte of "0" would have us walk the other half a hundred thousand times."""
    assert reason_of(serializer, b'\t[["1",2],[0,"decimal",0,["*",{}]]]') == "undecodable"
    assert reason_of(serializer, b'\t[["1","2"],[1,"decimal",0,"decimal"]]') == "undecodable"


ONE_HASH = 2**61 - 1  # the hash of an int is its rest by this: all multiples have one


@pytest.mark.parametrize(
    "body",
    [
        b'\t[[%b],"set"]' % b",".join(b"%d" % (n * ONE_HASH) for n in range(5000)),
        b'\t[[%b],"frozenset"]' % b",".join(b"%d" % (n * ONE_HASH) for n in range(5000)),
        b'\t[[%b],"dict"]' % b",".join(b"%d,0" % (n * ONE_HASH) for n in range(5000)),
        b'\t[["%b"],["set",["*","uuid"]]]'
        % b'","'.join(b"%x" % (n * ONE_HASH) for n in range(5000)),
    ],
    ids=["set", "frozenset", "dict", "uuids"],
)
def test_elements_chosen_to_share_their_hash_are_undecodable(serializer, body):
    """40,000 of them in one body would hold up every thread of the process for 18 s."""
    assert reason_of(serializer, body) == "undecodable"


def test_places_chosen_to_share_their_hash_are_refused_in_no_time(serializer):
    """As above, in the marks; CPU time, which a busy machine does not lengthen."""
    marks = b",".join(b'%d,"utc"' % (n * ONE_HASH) for n in range(20_000))
    began = time.thread_time()
    assert reason_of(serializer, b"\t[[1],[%b]]" % marks) == "undecodable"
    assert time.thread_time() - began < 1.0


def test_a_set_whose_elements_share_their_hash_comes_back_or_is_refused(serializer):
    """What is written and can't be read again is a miss for ever, and nobody knows why."""
    few, many = ({n * ONE_HASH for n in range(count)} for count in (100, 500))
    assert comes_back(serializer, few)
    assert comes_back(serializer, dict.fromkeys(few))
    for value in (many, frozenset(many), dict.fromkeys(many), {"a": [many]}):
        assert refusal_of(serializer, value).reason == "unserializable"
    assert comes_back(serializer, tuple(many))


def test_reading_never_imports_a_module(serializer, monkeypatch):
    """A name in stored bytes must not choose what runs in our process."""
    monkeypatch.setattr("builtins.__import__", lambda *args, **_: pytest.fail(f"import {args[0]}"))
    for name in (b"@os.system", b"@antigravity.fly", b"os.system", b"@tests.evil.Match"):
        with pytest.raises(RedisCorruptEntryError):
            serializer.deserialize(b'\t["x","%s"]' % name)


# ── Registered classes ──────────────────────────────────────────────────────────────────────────


def test_a_class_is_registered_by_a_decorator():
    """The line above the class is where the next reader looks."""
    serializer = RedisSerializer()

    @serializer.register
    @dataclasses.dataclass
    class Local:
        x: int

    @serializer.register
    class Colour(enum.Enum):
        RED = 1

    assert comes_back(serializer, {"a": Local(1), "b": Colour.RED, Colour.RED: (Local(2),)})


def test_members_are_stored_by_name_so_renumbering_changes_nothing():
    """auto() renumbers when somebody inserts a member; READ must not turn into WRITE."""
    writer, reader = RedisSerializer(), RedisSerializer()
    old = [enum.Enum("Level", "JUNIOR SENIOR"), enum.Flag("Perm", "READ WRITE")]
    new = [enum.Enum("Level", "TRAINEE SENIOR JUNIOR"), enum.Flag("Perm", "X WRITE Y READ")]
    for serializer, classes in ((writer, old), (reader, new)):
        for cls in classes:
            serializer.register(cls, cls.__name__)
    body = writer.serialize([old[0].SENIOR, old[1].READ, old[1].READ | old[1].WRITE, old[1](0)])
    read = reader.deserialize(body)
    assert read == [new[0].SENIOR, new[1].READ, new[1].READ | new[1].WRITE, new[1](0)]


def test_a_reader_that_does_not_know_the_class_gets_a_miss_and_not_an_error():
    """In a rolling deploy the old replicas meet the new replicas' classes."""
    body = new_serializer().serialize([Level.SENIOR])
    assert reason_of(RedisSerializer(), body) == "undecodable"


def test_a_dataclass_with_other_fields_than_stored_is_not_made_up():
    """A default in place of what was never stored is a guess, not a value."""
    writer, reader = RedisSerializer(), RedisSerializer()
    writer.register(dataclasses.make_dataclass("Job", ["a", "b"]), "Job")
    bodies = [
        writer.serialize(cls(1, 2)) for cls in writer._classes.encoders if cls.__name__ == "Job"
    ]
    for fields in (["a"], ["a", "b", ("c", int, 3)], ["a", "c"]):
        reader = RedisSerializer()
        reader.register(dataclasses.make_dataclass("Job", fields), "Job")
        assert [reason_of(reader, body) for body in bodies] == ["undecodable"]


def test_an_object_that_its_constructor_changes_is_not_handed_out():
    """A __post_init__ that adds a fee would add it again at every read."""
    serializer = RedisSerializer()

    @serializer.register
    @dataclasses.dataclass
    class Price:
        amount: float
        tags: Any = ()

        def __post_init__(self) -> None:
            self.amount = float(self.amount) if self.amount >= 0 else -self.amount
            self.tags = list(self.tags)

    good = Price(1.5, ["a"])
    assert comes_back(serializer, good)
    good.amount = -1.5
    assert reason_of(serializer, serializer.serialize(good)) == "undecodable"
    good.amount, good.tags = 2, ["a"]  # type: ignore[assignment]
    assert reason_of(serializer, serializer.serialize(good)) == "undecodable"


def test_a_class_that_cannot_be_built_from_its_fields_is_refused_at_registration():
    """At import, before the first value is lost in production."""

    @dataclasses.dataclass
    class Derived:
        a: int
        b: int = dataclasses.field(init=False, default=0)

    @dataclasses.dataclass
    class WithInitVar:
        a: int
        b: dataclasses.InitVar[int] = 0

    @dataclasses.dataclass(init=False)
    class OwnInit:
        a: int

        def __init__(self, text: str) -> None:
            self.a = int(text)

    @dataclasses.dataclass
    class OnList(list):  # type: ignore[type-arg]
        a: int = 0

    for cls in (Derived, WithInitVar, OwnInit, OnList, PlainChild, int, Hijacks, Match(1)):
        with pytest.raises(TypeError, match="register: "):
            RedisSerializer().register(cls)  # type: ignore[type-var]


def test_a_name_that_is_taken_stays_with_its_class():
    """Otherwise one class's bytes would come back as the other's instances."""
    serializer = RedisSerializer()
    serializer.register(Level, "level")
    serializer.register(Level, "level")
    with pytest.raises(ValueError, match="'level' belongs to"):
        serializer.register(Rank, "level")
    assert comes_back(serializer, Level.SENIOR)
    refusal_of(serializer, Rank.FIRST)


def test_a_class_with_a_new_name_is_still_read_under_its_old_one():
    """A module moves; what was stored before the deploy is worth as much as after it."""
    serializer = RedisSerializer()
    serializer.register(Level, "old.Level")
    old = serializer.serialize(Level.SENIOR)
    serializer.register(Level, "new.Level")
    assert serializer.serialize(Level.SENIOR) != old
    assert serializer.deserialize(old) is Level.SENIOR
    assert comes_back(serializer, Level.SENIOR)


def test_no_registered_name_can_take_the_place_of_a_kind_of_ours():
    """A class called "tuple" would otherwise be built from everybody's tuples."""
    serializer = RedisSerializer()
    for name in ("tuple", "utc", "*", "@", ""):
        cls = enum.Enum("Sneaky", "A")
        serializer.register(cls, name)
        assert comes_back(serializer, [(1,), cls.A, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)])


def test_a_field_that_was_deleted_is_a_refusal_that_names_it(serializer):
    """Rare, but it must not come out of cache.set as an AttributeError."""
    broken = Slotted(inner=1)
    del broken.inner
    error = refusal_of(serializer, {"a": [broken]})
    assert (error.path, error.reason) == ("a[0].inner", "unserializable")


def test_two_serializers_know_nothing_of_each_other_s_classes():
    """Two caches in one process may use one name for two classes."""
    one, other = RedisSerializer(), RedisSerializer()
    one.register(Level, "x")
    other.register(Rank, "x")
    assert comes_back(one, Level.SENIOR)
    assert comes_back(other, Rank.FIRST)
    refusal_of(other, Level.SENIOR)


# ── Threads ─────────────────────────────────────────────────────────────────────────────────────


def test_one_serializer_serves_many_threads_while_classes_are_registered():
    """A worker imports a plugin while its other threads read and write."""
    serializer = new_serializer()
    start = threading.Barrier(6)
    value = {
        "matches": [{"id": uuid.uuid4(), "at": dt.datetime.now(dt.UTC), "l": Level.JUNIOR}] * 9
    }

    def read_and_write() -> bool:
        start.wait()
        return all(comes_back(serializer, value) for _ in range(60))

    def register() -> bool:
        start.wait()
        for number in range(60):
            cls = enum.Enum(f"Plugin{number}", "A")
            serializer.register(cls, f"{threading.get_ident()}.{number}")
            assert comes_back(serializer, cls.A)
        return True

    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(work) for work in [read_and_write, register] * 3]
        assert all(future.result(timeout=30) for future in futures)


def test_of_many_threads_that_want_one_name_exactly_one_gets_it():
    """Two winners would read each other's bytes."""
    serializer = RedisSerializer()
    start = threading.Barrier(8)
    classes = [enum.Enum("Same", f"M{number}") for number in range(8)]

    def register(cls: type) -> bool:
        start.wait()
        try:
            serializer.register(cls, "same")
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(register, classes))
    assert won.count(True) == 1
    winner = classes[won.index(True)]
    assert comes_back(serializer, list(winner))


class Two:
    def __init__(self, first: object, second: object) -> None:
        self.first = first
        self.second = second


def test_an_instances_own_dict_hides_no_key_of_another(serializer):
    """Twice as many references here and none there would make a sum as expected."""
    alive = [Two(n, (n,)) for n in range(5)]
    own = list(map(vars, alive))
    for rows in (own + [{1: "p", 2: "q"}] * 5, [[row] for row in own] + [[{1: "p", 2: "q"}]] * 5):
        assert image(serializer.deserialize(serializer.serialize(rows))) == image(rows)


def test_matches_whose_first_lacks_a_date_are_columns_too(serializer):
    """Optional dates are ordinary."""
    matches = [{"id": n, "at": dt.datetime(2026, 1, 1) if n else None} for n in range(9)]
    body = serializer.serialize({"matches": matches})
    assert b'"rows"' in body
    assert serializer.deserialize(body) == {"matches": matches}


def test_what_is_held_many_times_is_not_looked_through_at_each_level(serializer, monkeypatch):
    """100 lists inside one another that hold one of 261,144 zeros took 8 s to be refused."""
    looked_at = 0

    def referents(*objects: object) -> list[object]:
        nonlocal looked_at
        found = gc.get_referents(*objects)
        looked_at += len(found)
        return found

    monkeypatch.setattr(_marking, "get_referents", referents)
    shared = [0] * 10_000
    value = [object()]
    for _ in range(100):
        value = [value, *[shared] * 5]
    with pytest.raises(RedisSerializationError):
        serializer.serialize(value)
    assert looked_at < 3 * 1_048_576
