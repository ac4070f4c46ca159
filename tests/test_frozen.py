"""What several callers share: read like anything else, and nobody's to change."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
import ujson

from jmcache.frozen import UNFIT, FrozenDict, FrozenList, FrozenSet, freeze
from jmcache.keys import generate_key
from jmcache.serialization import RedisSerializer

PLAIN = {"matches": [{"job": 1, "skills": ["a", "b"]}, {"job": 2, "skills": []}], "next": None}


ODD = {
    "list": [1, {2, 3}, (4, [5])],
    "typed": [
        {"at": datetime(2026, 1, 2, tzinfo=UTC), "id": UUID(int=1)},
        {"at": None, "id": None},
    ],
    7: frozenset({1}),
    "none": [],
}


class Level(enum.Enum):
    HIGH = 1


@dataclass
class Match:
    score: float = 0.5


def kinds(value: object) -> set[type]:
    """Return the types of all containers in *value*."""
    if isinstance(value, dict):
        inside = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = [*value]
    else:
        return set()
    return {type(value)}.union(*map(kinds, inside))


def test_a_frozen_value_reads_like_the_plain_one():
    """Callers are not to notice, unless they change it."""
    frozen = freeze(PLAIN)
    assert frozen == PLAIN
    assert isinstance(frozen, dict)
    assert isinstance(frozen["matches"], list)
    assert repr(frozen) == repr(PLAIN)
    assert json.dumps(frozen) == json.dumps(PLAIN)
    assert ujson.dumps(frozen) == ujson.dumps(PLAIN)
    assert [*frozen["matches"][0]["skills"], "c"] == ["a", "b", "c"]
    assert {**frozen} == PLAIN


def test_the_original_stays_as_it_was():
    """It may be the caller's own."""
    value = {"list": [1, {2}], "tuple": ([3],)}
    freeze(value)
    assert kinds(value) == {dict, list, set, tuple}


CHANGES = [
    "value['d']['x'] = 1",
    "del value['d']['k']",
    "value['d'].clear()",
    "value['d'].pop('k')",
    "value['d'].popitem()",
    "value['d'].setdefault('x', 1)",
    "value['d'].update(x=1)",
    "value['d'] |= {'x': 1}",
    "d = value['d']; d |= {'x': 1}",
    "value['l'][0] = 1",
    "value['l'][:] = []",
    "del value['l'][0]",
    "value['l'].append(1)",
    "value['l'].clear()",
    "value['l'].extend([1])",
    "value['l'].insert(0, 1)",
    "value['l'].pop()",
    "value['l'].remove(2)",
    "value['l'].reverse()",
    "value['l'].sort()",
    "l = value['l']; l += [1]",
    "l = value['l']; l *= 2",
    "value['s'].add(1)",
    "value['s'].clear()",
    "value['s'].discard(2)",
    "value['s'].pop()",
    "value['s'].remove(2)",
    "value['s'].update([1])",
    "value['s'].difference_update([2])",
    "value['s'].intersection_update([1])",
    "value['s'].symmetric_difference_update([1])",
    "s = value['s']; s |= {1}",
    "s = value['s']; s &= {1}",
    "s = value['s']; s -= {2}",
    "s = value['s']; s ^= {1}",
    "value['d'].new = 1",
    "value['t'][0].append(1)",
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_through(change):
    """The next caller would be shown it."""
    plain = {"d": {"k": 1}, "l": [2, 3], "s": {2, 3}, "t": ([1],)}
    value = freeze(plain)
    with pytest.raises((TypeError, AttributeError)):
        exec(change, {"value": value})
    assert value == plain


def test_every_method_that_changes_a_plain_one_is_refused():
    """One that a later Python brings would be a way in."""
    for frozen, plain in ((FrozenDict, dict), (FrozenList, list), (FrozenSet, set)):
        reading = {
            *("copy", "get", "items", "keys", "values", "fromkeys", "count", "index"),
            *("difference", "intersection", "isdisjoint", "issubset", "issuperset"),
            *("symmetric_difference", "union"),
        }
        methods = {name for name in vars(plain) if not name.startswith("_")} - reading
        assert methods <= vars(frozen).keys()
        in_place = {name for name in vars(plain) if name.startswith("__i")}
        assert in_place - {"__init__", "__iter__"} <= vars(frozen).keys()


def test_the_message_says_what_to_do():
    """Whoever meets it did not write the cache."""
    with pytest.raises(TypeError, match=r"read-only.*copy\.deepcopy\(value\)"):
        freeze(PLAIN)["matches"].append(1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_deep_copy_is_plain_all_the_way_down(duplicate):
    """That is what callers are told to change."""
    value = freeze({"l": [{"s": {1}}, ([2],)], (1, 2): 3})
    copied = duplicate(value)
    assert copied == value
    assert kinds(copied) == {dict, list, set, tuple}
    copied["l"][0]["s"].add(2)
    assert value["l"][0]["s"] == {1}


def test_a_shallow_copy_is_plain():
    """As copy() of a plain one: what is inside stays shared, and read-only."""
    for value in (freeze({"a": [1]}), freeze([[1]]), freeze({1})):
        for copied in (copy.copy(value), value.copy()):
            assert copied == value
            assert type(copied) in (dict, list, set)
    with pytest.raises(TypeError):
        copy.copy(freeze([[1]]))[0].append(2)


@pytest.mark.parametrize("value", [PLAIN, ODD, [], {}, set(), [[1], [2]], [{"a": 1}] * 3])
def test_it_can_be_cached_again_as_what_it_looks_like(value):
    """Code that takes a result from one cache and puts it into another, changed or not."""
    serializer = RedisSerializer()
    frozen = freeze(value)
    assert serializer.serialize(frozen) == serializer.serialize(value)
    assert serializer.serialize([frozen, value]) == serializer.serialize([value, value])
    assert kinds(serializer.deserialize(serializer.serialize(frozen))) == kinds(value)


@pytest.mark.parametrize("value", [PLAIN, ODD, [], {}, {1, 2}, ["b", "a"], [[1], [2]]])
def test_it_makes_the_key_of_what_it_looks_like(value):
    """A result that is an argument of the next question."""
    frozen = freeze(value)
    assert generate_key(frozen) == generate_key(value)
    assert generate_key(x=frozen) == generate_key(x=value)
    assert generate_key([frozen]) == generate_key([value])


def test_what_cannot_change_is_kept_as_it_is():
    """Copying it would cost, and gain nothing."""
    for value in (None, True, 1, 0.5, "a", b"a", Decimal(1), UUID(int=1), datetime.now(UTC)):
        assert freeze(value) is value
    for value in (Level.HIGH, (1, "a"), freeze([1])):
        assert freeze(value) is value
    assert freeze(frozenset({(1,)})) == frozenset({(1,)})


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: [m], lambda m: {"a": ({"b": m},)}])
def test_a_value_with_an_instance_of_a_class_is_unfit(wrap):
    """Its attributes can be set by anybody."""
    assert freeze(wrap(Match())) is UNFIT


def test_a_key_that_can_change_makes_it_unfit():
    """It is reached through the dict like any value."""

    class Key:
        name = "a"

    assert freeze({Key(): 1}) is UNFIT
    assert freeze({(1, (Key(),)): 1}) is UNFIT
    assert freeze({Level.HIGH: [1]}) == {Level.HIGH: [1]}
