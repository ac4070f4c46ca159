"""Two questions never share a key, and one question has the same key everywhere."""

from __future__ import annotations

import bisect
import dataclasses
import decimal
import enum
import itertools
import os
import re
import subprocess
import sys
from collections import Counter, OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jmcache.connection._slots import key_slot
from jmcache.keys import KeySpace, digest_text, generate_key

BERLIN = ZoneInfo("Europe/Berlin")
PLUS_ONE = timezone(timedelta(hours=1))
SECRET = "s3cret-value"

# Structures of structures are slow to draw, and how slow depends on the machine.
patient = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Level(enum.Enum):
    JUNIOR = 1
    SENIOR = 2


class Rank(enum.IntEnum):
    FIRST = 1


class Field(enum.StrEnum):
    SKILLS = "skills"


class Perm(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


@dataclasses.dataclass(frozen=True)
class Filters:
    city: str
    radius: float = 10.0


@dataclasses.dataclass(frozen=True)
class OtherFilters:
    city: str
    radius: float = 10.0


for named in (Level, Rank, Field, Perm, Filters, OtherFilters):
    named.__module__ = "jobs"  # as in an application: the golden keys hold the full names


class PlainChild(Filters):
    pass


@dataclasses.dataclass
class NamedList(list[int]):
    name: str = ""


class Text(str):
    pass


Point = namedtuple("Point", "x y")

# Any difference here empties every cache in production at the next deploy.
GOLDEN: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "key:6165e4a433e089d43433644068ae22aa"),
    (
        ("candidate-42",),
        {"skills": ["python", "redis"], "location": "Berlin"},
        "candidate-42:65a56135dea186f7475f5415239c8546",
    ),
    (
        (None, True, False, 0, -1, 10**30, 0.0, -0.0, 1e300, float("nan"), float("-inf")),
        {},
        "key:3ca6531f42fd48ca1b1f2c8dc42bd0a7",
    ),
    (
        ("Zürich/\n{*}", "\ud83d\ude00", "\U0001f600", b"\x00\xff"),
        {},
        "Z_rich_____:7ee9196b4156899397535a099eedb22f",
    ),
    (
        ([1, "1", [2, 1]], (1, 2), {3, 1, 2}, frozenset({"b", "a"}), {"b": 1, 2: None}),
        {},
        "key:d03c9abe1c8f2a26c2ce6e209649a708",
    ),
    (
        (Decimal("1.50"), Decimal("1E+3"), UUID(int=7), Level.SENIOR, Rank.FIRST),
        {},
        "key:ec99c4c310c8164582c6d745eb114caa",
    ),
    (
        (Perm.READ | Perm.WRITE, Perm(0), Field.SKILLS, Filters("Bonn")),
        {},
        "key:492386d66f19a3b885a5a5f52cf87baa",
    ),
    (
        (datetime(2026, 11, 23, 8, 5, 1, 7), datetime(2026, 11, 23, tzinfo=UTC)),
        {},
        "key:803bb41b745b8e89104b6b38c12e570b",
    ),
    (
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), date(2026, 11, 23)),
        {},
        "key:84e4549136dbac97b97a4dd441f21f88",
    ),
    (
        (time(8, 5, tzinfo=PLUS_ONE), timedelta(days=-1, microseconds=3)),
        {},
        "key:65422bae190856aa2d24f27d334cbcf3",
    ),
    (
        (),
        {"b": 1, "a": [3, "x", 3, None], "dropped": None},
        "key:05ddd2e92055802e96baa17f2f9fb352",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "key"), GOLDEN)
def test_the_key_of_a_question_never_changes_between_versions(args, kwargs, key):
    """Two replicas on different versions or Pythons would each compute what the other has."""
    assert generate_key(*args, **kwargs) == key


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_the_hash_seed_of_a_process_is_nowhere_in_a_key(seed):
    """Sets and dicts iterate differently in each worker; their keys would never meet."""
    code = (
        "from jmcache.keys import generate_key as g\n"
        "words = 'python redis sql spark java go rust c'.split()\n"
        "print(g(set(words), frozenset(words), {w: {w} for w in words}, skills=words))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    words = ["python", "redis", "sql", "spark", "java", "go", "rust", "c"]
    here = generate_key(set(words), frozenset(words), {w: {w} for w in words}, skills=words)
    assert result.stdout.strip() == here


# Each of these is another question than every other of these.
DIFFERENT: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (args, {})
    for args in [
        (),
        (None,),
        (None, None),
        ("a_b",),
        ("a", "b"),
        ("ab", ""),
        ("", "ab"),
        ("a:b",),
        ("t1", "a:b"),
        ("t1:a", "b"),
        ("s1:a",),
        (("a", "b"),),
        (["a", "b"],),
        (["b", "a"],),
        ({"a", "b"},),
        (frozenset({"a", "b"}),),
        ({"a": "b"},),
        ({"a": None, "b": None},),
        ({},),
        ([],),
        ((),),
        (set(),),
        (frozenset(),),
        ([[], []],),
        ([[[]]],),
        ("",),
        (b"",),
        (b"a_b",),
        (0,),
        ("0",),
        (False,),
        (0.0,),
        (-0.0,),
        (Decimal("0"),),
        (Decimal("0.0"),),
        (Decimal("-0"),),
        (Decimal("1E+3"),),
        (Decimal("1000"),),
        (Decimal("NaN"),),
        (Decimal("sNaN"),),
        (Decimal("NaN7"),),
        (float("nan"),),
        (float("inf"),),
        (float("-inf"),),
        (1,),
        ("1",),
        (True,),
        (1.0,),
        (-1,),
        (16,),
        ("i1;",),
        (timedelta(1),),
        (timedelta(0, 1),),
        (timedelta(0, 0, 1),),
        (UUID(int=1),),
        (str(UUID(int=1)),),
        (Level.JUNIOR,),
        (Level.SENIOR,),
        (Rank.FIRST,),
        ("FIRST",),
        (Perm.READ,),
        (Perm.BOTH,),
        (Perm(0),),
        (Field.SKILLS,),
        ("skills",),
        (Filters("Bonn"),),
        (Filters("Bonn", 11.0),),
        (OtherFilters("Bonn"),),
        ("é",),
        ("e\u0301",),
        ("\U0001f600",),
        ("\ud83d\ude00",),
        ("\ud83d",),
        (date(2026, 10, 25),),
        ("2026-10-25",),
        (datetime(2026, 10, 25),),
        (datetime(2026, 10, 25, 2, 30),),
        (datetime(2026, 10, 25, 2, 30, fold=1),),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),),
        (datetime(2026, 10, 25, 2, 30, tzinfo=PLUS_ONE),),
        (datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=1), "CET")),),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC),),
        (datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo("UTC")),),
        (time(2, 30),),
        (time(2, 30, fold=1),),
        (time(2, 30, tzinfo=UTC),),
    ]
] + [
    ((), {"a": "b"}),
    ((), {"a": ["b"]}),
    ((), {"a": ("b",)}),
    ((), {"a": {"b"}}),
    ((), {"a": ["b", "b"]}),
    ((), {"a": [["b", "c"]]}),
    ((), {"a": [["c", "b"]]}),
    ((), {"a": [None]}),
    ((), {"a": []}),
    ((), {"b": "a"}),
    ((), {"a": "b", "b": "a"}),
    (("a", "b"), {"a": "b"}),
    (("a",), {"b": "a"}),
]


def test_questions_that_differ_in_anything_have_different_keys():
    """Somebody would be shown the matches of somebody else."""
    digests = Counter(generate_key(*args, **kwargs)[-32:] for args, kwargs in DIFFERENT)
    assert [digest for digest, times in digests.items() if times > 1] == []
    assert len(digests) == len(DIFFERENT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1, "b": None}, {"a": 1}),
        ({"skills": ["x", "y", "x"]}, {"skills": ["x", "x", "y"]}),
        ({"skills": [1, "1", None, 1.0, (2,)]}, {"skills": [(2,), 1.0, "1", None, 1]}),
        ({"f": {"a": 1, 2: "b"}}, {"f": {2: "b", "a": 1}}),
        ({"f": {1, "1", None}}, {"f": {None, "1", 1}}),
        ({"skills": 1}, {Field.SKILLS: 1}),
    ],
)
def test_what_is_no_difference_to_the_question_is_none_to_the_key(one, other):
    """The same search typed in another order would be computed again."""
    assert generate_key("c", **one) == generate_key("c", **other)


def test_the_thread_s_decimal_context_does_not_change_a_key():
    """One library that sets capitals=0 in its threads would split the cache in two."""
    ours = generate_key(Decimal("1E+9"))
    with decimal.localcontext() as context:
        context.capitals = 0
        assert generate_key(Decimal("1E+9")) == ours


# ── Injective, for all values ───────────────────────────────────────────────────────────────────

# Few letters, so that structures that could be mistaken for one another do come up.
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, float("nan")])
    | st.text("as1:;,", max_size=3)
    | st.binary(max_size=1)
    | st.sampled_from([Decimal(1), Decimal("1.0"), UUID(int=1), date(1, 1, 1), timedelta(1)])
    | st.sampled_from([Level.JUNIOR, Rank.FIRST, Perm.READ, Perm.BOTH])
)
hashable = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Filters, inner, inner)
    ),
    max_leaves=4,
)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=6,
)
calls = st.tuples(
    st.lists(values, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["a", "s1", "k1:a"]), values, max_size=2),
)


def meaning(value: Any) -> Any:
    """What a value means, said without any text format: equal exactly if the values are."""
    kind = type(value)
    if kind is float:
        return kind, repr(value)
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind in (list, tuple):
        return kind, tuple(map(meaning, value))
    if kind in (set, frozenset):
        return kind, multiset(value)
    if kind is dict:
        return kind, multiset(value.items())
    if dataclasses.is_dataclass(value):
        return kind, meaning(value.city), meaning(value.radius)
    return kind, value


def multiset(values: Any) -> Any:
    return frozenset(Counter(map(meaning, values)).items())


def call_meaning(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = call
    named = {
        name: multiset(value) if type(value) is list else meaning(value)
        for name, value in kwargs.items()
        if value is not None
    }
    return meaning(args), frozenset(named.items())


@patient
@given(calls, calls)
@example((("",), {}), ((), {}))
@example(((), {"a": [1, True]}), ((), {"a": [True, 1]}))
def test_keys_are_equal_exactly_if_the_questions_are(one, other):
    """A form that two questions share is wrong data with no error anywhere."""
    keys = [generate_key(*args, **kwargs) for args, kwargs in (one, other)]
    assert (keys[0][-32:] == keys[1][-32:]) == (call_meaning(one) == call_meaning(other))


def test_forty_thousand_argument_tuples_have_as_many_keys():
    """What a generator of random values rarely hits, counting through hits for sure."""
    atoms = [None, True, 1, "1", 1.0, b"1", "", "1;", ("1",), ["1"], [], {"1"}, {1: 1}, {"1": 1}]
    several = itertools.chain.from_iterable(
        itertools.product(atoms, repeat=count) for count in range(5)
    )
    named = ({"x": a, "y": b} for a in atoms[1:] for b in atoms[1:])
    keys = [generate_key(*args) for args in several]
    keys += [generate_key(**kwargs) for kwargs in named]
    assert len({key[-32:] for key in keys}) == len(keys) > 40_000


# ── What has no place in a key ──────────────────────────────────────────────────────────────────


class Opaque:
    def __repr__(self) -> str:
        return SECRET

    __str__ = __repr__


ZONELESS = datetime(2026, 1, 1, tzinfo=type("OwnZone", (timezone.__base__,), {})())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "kwargs", "place"),
    [
        ((Opaque(),), {}, "argument 1 "),
        ((1, Opaque()), {}, "argument 2 "),
        ((), {"skills": Opaque()}, "argument 'skills' "),
        ((), {"skills": ["a", "b", "c", Opaque()]}, "argument 'skills'[3] "),
        ((), {"f": {"city": (1, [Opaque()])}}, "argument 'f'['city'][1][0] "),
        ((), {"f": {SECRET * 9: Opaque()}}, "argument 'f'[<str>] "),
        ((), {"f": {7: Opaque()}}, "argument 'f'[<int>] "),
        ((), {"f": {Opaque(): 7}}, "argument 'f'{key} "),
        (({Opaque()},), {}, "argument 1{element} "),
        ((Filters(Opaque()),), {}, "argument 1.city "),  # type: ignore[arg-type]
        ((ZONELESS,), {}, "argument 1.tzinfo "),
        ((Opaque,), {}, "argument 1 "),
        ((Filters,), {}, "argument 1 "),
        ((Level,), {}, "argument 1 "),
    ],
)
def test_a_type_without_a_canonical_form_is_refused_by_place(args, kwargs, place):
    """repr() holds a memory address for most objects: such a key would never hit again."""
    with pytest.raises(TypeError) as caught:
        generate_key(*args, **kwargs)
    assert str(caught.value).startswith(place)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        Text("a"),
        Point(1, 2),
        OrderedDict(a=1),
        Counter("a"),
        PlainChild("Bonn"),
        NamedList(),
        bytearray(b"a"),
        memoryview(b"a"),
        1j,
        range(3),
        iter([1]),
        print,
        sys,
        ...,
        type("Day", (date,), {})(2026, 1, 1),
        type("Sub", (int,), {})(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_or_stranger_is_refused_though_it_looks_familiar(value):
    """A subclass may hold or mean more than its base: two of them would share a key."""
    for call in (lambda: generate_key(value), lambda: generate_key(x=[value])):
        with pytest.raises(TypeError, match="argument"):
            call()


def test_what_contains_itself_is_a_clear_error():
    """A worker would die of a stack overflow, or never come back."""
    loop: list[Any] = []
    loop += [loop, loop]
    mapping: dict[str, Any] = {}
    mapping["me"] = mapping
    for value in (loop, mapping, (loop,)):
        with pytest.raises(ValueError, match=r"argument 'x'.* is nested deeper"):
            generate_key(x=value)


def test_lists_that_double_themselves_end_in_an_error_not_in_hours():
    """Forty lines of memory can stand for a trillion elements."""
    value: list[Any] = ["x" * 1000]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(ValueError, match="too large"):
        generate_key(value)


def test_a_key_can_be_made_near_the_end_of_the_stack_or_says_why_not():
    """RecursionError is no error that callers of a cache expect."""
    value: Any = "end"
    for _ in range(60):
        value = [value]

    def dive(depth: int) -> None:
        try:
            generate_key(value)
        except ValueError:
            return
        dive(depth + 1)

    dive(0)


# ── The key itself ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "head"),
    [
        (("candidate-42", "x"), "candidate-42"),
        ((7, "candidate-42"), "candidate-42"),
        (("", "x"), "x"),
        ((7,), "key"),
        (("a b\r\n{c}*é",), "a_b___c___"),
        (("x" * 500,), "x" * 40),
    ],
)
def test_the_head_of_a_key_is_readable_and_bounded(args, head):
    """People find a candidate's entries by it; nobody else should stumble over it."""
    assert re.fullmatch(re.escape(head) + ":[0-9a-f]{32}", generate_key(*args))


# ── Names in Redis ──────────────────────────────────────────────────────────────────────────────

NAME = re.compile(rb"jobs:v7:[A-Za-z0-9_.-]*:[0-9a-f]{32}")


@patient
@given(st.text(st.characters(), max_size=300))
@example("")
@example("\ud800")
@example("\r\nFLUSHALL\r\n\0 {slot}*?[a]\\")
@example("x" * (8 * 1024 * 1024))
def test_any_text_becomes_a_short_printable_name(key):
    """A CR LF, a brace or eight megabytes in a key would reach Redis, or break the call."""
    name, digest = KeySpace("jobs", 7).name(key)
    assert NAME.fullmatch(name)
    assert len(name) < 200
    assert len(digest) == 16
    assert name.endswith(digest.hex().encode())


def test_the_longest_namespace_still_leaves_a_short_name():
    """64 characters are allowed, and so is the largest schema version."""
    space = KeySpace("n" * 64, 2**31 - 1)
    name, _ = space.name(generate_key("x" * 99))
    assert len(name) < 200
    assert len(space.lease(name)) < 200
    assert len(space.tag_counter("x" * 99)) < 200


def test_a_generated_key_is_found_whole_in_its_name():
    """An operator who has a key from a log of the application looks for it in Redis."""
    head, _, digest = generate_key("c" * 99).partition(":")
    name, _ = KeySpace("n" * 38, 1).name(f"{head}:{digest}")
    assert f":{head}_{digest}:".encode() in name


def test_keys_that_look_alike_have_different_names():
    """What is cut or cleaned away from the head must still count."""
    alike = ["a:b", "a_b", "a b", "a" * 80, "a" * 81, "\ud83d\ude00", "\U0001f600", "", "_"]
    space = KeySpace("jobs", 1)
    assert len({space.name(key) for key in alike}) == len(alike)
    assert len({space.name(key)[1] for key in alike}) == len(alike)


def test_namespaces_and_versions_never_share_a_digest():
    """An entry copied between two of them would pass for the other's own."""
    spaces = [("a", 1), ("a", 11), ("a1", 1), ("a:v1", 1), ("a", 2), ("b", 1), ("1", 1), ("11", 1)]
    keys = ["k", "1:k", "v1:k", ":v1:k", "1", "11:"]
    digests = {KeySpace(*space).name(key)[1] for space in spaces for key in keys}
    assert len(digests) == len(spaces) * len(keys)


def test_a_name_never_changes_between_versions():
    """Every entry in production would be out of reach."""
    digest = "f9a49beb5d32e0f21c9bea9fb8f89950"
    name = b"jobs:v1:candidate-42:" + digest.encode()
    assert KeySpace("jobs", 1).name("candidate-42") == (name, bytes.fromhex(digest))


def test_a_key_that_is_no_text_is_refused_and_the_error_says_what_is_right():
    """b"k", 1 and None would have to be turned into text, and "None" is a key that people share."""
    for key in (None, 1, b"k", ("k",), Opaque()):
        with pytest.raises(TypeError, match=r"key: text, as generate_key\(\.\.\.\) returns it"):
            KeySpace("jobs", 1).name(key)  # type: ignore[arg-type]


def test_a_text_subclass_counts_as_the_text_it_is():
    """A StrEnum of well-known keys is used by many; its own encode() must not matter."""

    class Loud(str):
        def encode(self, *args: Any) -> bytes:
            return b"LOUD"

    space = KeySpace("jobs", 1)
    assert space.name(Field.SKILLS) == space.name(Loud("skills")) == space.name("skills")


def test_a_namespace_that_leaves_no_room_is_refused():
    """A name of 200 bytes and more is promised never to happen."""
    for namespace in ("n" * 200, "é", "a\nb"):
        with pytest.raises(ValueError, match="namespace"):
            KeySpace(namespace, 1)


def test_all_names_begin_with_the_prefix():
    """ACL rules for Redis are written with it."""
    space = KeySpace("jobs", 3)
    assert space.prefix == b"jobs:v3:"
    assert space.name("x")[0].startswith(space.prefix)


def test_a_digest_in_a_log_is_twelve_digits():
    """Long enough to find the entry, and nothing of the key."""
    assert digest_text(bytes(range(16))) == "000102030405"


def test_the_module_knows_nobody():
    """A stop that imports another one cannot be replaced alone."""
    source = Path(sys.modules[generate_key.__module__].__file__).read_text()  # type: ignore[arg-type]
    assert not re.search(r"^\s*(?:from|import) jmcache(?!\.frozen )", source, re.MULTILINE)


# Counters in a cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize("masters", [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30])
def test_the_node_that_has_an_entry_has_its_counter(masters: int) -> None:
    """Else a node that is away takes entries of the others with it."""
    space = KeySpace("jobs", 1)
    ends = [round(16384 / masters * (number + 1)) for number in range(masters)]  # as redis-cli

    def node_of(name: bytes) -> int:
        return bisect.bisect_right(ends, key_slot(name))

    for number in range(5000):
        name, _ = space.name(f"key {number}")
        assert node_of(space.piece_counter(name)) == node_of(name)


@pytest.mark.parametrize("masters", [7, 8, 9, 11])
def test_few_entries_have_their_counter_on_another_node(masters: int) -> None:
    """Where the pieces do not fit: counters stand in the middle of theirs."""
    space = KeySpace("jobs", 1)
    ends = [round(16384 / masters * (number + 1)) for number in range(masters)]
    names = [space.name(f"key {number}")[0] for number in range(5000)]
    nodes = [
        [bisect.bisect_right(ends, key_slot(each)) for each in (name, space.piece_counter(name))]
        for name in names
    ]
    assert sum(entry != counter for entry, counter in nodes) < 0.05 * len(names)


def test_counters_in_a_cluster_are_names_of_the_namespace_and_no_others() -> None:
    """An ACL user may use them; no entry, lease or tag is in their place."""
    space = KeySpace("jobs", 1)
    counters = space.piece_counters
    assert len(set(counters)) == len(counters) == 60
    assert all(re.fullmatch(rb"jobs:v1:#\{\d+\}", counter) for counter in counters)
    assert counters == KeySpace("jobs", 1).piece_counters, "the same in every process"
    assert counters[:3] == (b"jobs:v1:#{2973}", b"jobs:v1:#{2491}", b"jobs:v1:#{2841}")
    assert not set(counters) & set(KeySpace("jobs", 2).piece_counters)
    assert {space.piece_counter(space.name(f"{n}")[0]) for n in range(5000)} == set(counters)
