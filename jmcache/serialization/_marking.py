"""Value -> tree and marks, and back: the walk that looks at every type.

A mark says what the place of the same shape in the tree needs:

    "utc"                     a typed value: this tag's decoder makes it from the payload here
    ["set", mark]             the same, once what is inside the payload has been seen to
    {"posted": mark, ...}     a dict: these of its values
    [0, mark, 7, mark]        a list: these of its elements
    ["*", mark]               a list: all of its elements

and for matches, which are dicts with the same keys in the same order:

    value   [{"id": 7, "at": datetime(...)}, {"id": 8, "at": datetime(...)}, ...]
    tree    [["id", "at"], [7, 8, ...], [1795392000000000, 1795392000000000, ...]]
    mark    ["rows", [2, ["*", "utc"]]]

Columns take a third less room, as each key is there once, and are looked at at C's speed.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Collection, Mapping
from gc import get_referents
from itertools import chain
from typing import Any

from jmcache.frozen import FrozenDict, FrozenList, FrozenSet
from jmcache.serialization import _kinds
from jmcache.serialization._kinds import Decoder, each
from jmcache.serialization._refusal import Refusal, step

_ALL = "*"
_MANY = 5  # containers beside one another that are worth a look at all of them at once
_CELLS = 360  # values in rows of plain ones; fewer are read sooner as they are
_AHEAD = 4  # levels of it: what a walk meets again at each level, it has looked at that often
_ONE_HASH = 100  # elements with the same one; by chance there are hardly two

# What is its own payload. In a careful walk numbers are looked at one by one.
_LEAVES = frozenset({str, int, float, bool, type(None)})
_CAREFUL_LEAVES = frozenset({str, bool, type(None)})
_CONTAINERS = frozenset({dict, list})
_TEXT = frozenset({str})
_DICTS = frozenset({dict})
_LISTS = frozenset({list})

# (walk, value, depth) -> (payload, mark)
Encoder = Callable[["Marker", Any, int], tuple[Any, Any]]


class Marker:
    """One walk through one value. Never changes it: a container that needs work is copied."""

    __slots__ = ("_encoders", "_leaves", "_max_depth", "_room", "_vain")

    def __init__(
        self,
        encoders: Mapping[type, Encoder],
        *,
        max_depth: int,
        max_nodes: int,
        careful: bool,
    ) -> None:
        """Start with nothing seen.

        Args:
            encoders: By exact type. May grow meanwhile.
            max_depth: Most containers inside one another.
            max_nodes: Most elements of all containers together. A list that holds another twice,
                which holds another twice, and so on, is small in memory and endless to walk.
            careful: Look at each number too. Only numbers that ujson refuses call for it.
        """
        self._encoders = encoders
        self._leaves = _CAREFUL_LEAVES if careful else _LEAVES
        self._max_depth = max_depth
        self._room = max_nodes
        self._vain = max_nodes  # that may be looked at without having been spared the walk

    def mark(self, value: Any) -> tuple[Any, Any]:
        """Return what stands for *value* in the tree, and its mark; None if it needs none.

        Raises:
            Refusal: A type that cannot be written, too deep or too many.
        """
        kind = type(value)
        if kind in self._leaves:
            return value, None
        encoder = self._encoders.get(kind)
        if encoder is None:
            raise _unknown(kind)
        return encoder(self, value, 1)

    def mark_dict(self, value: dict[Any, Any], depth: int) -> tuple[Any, Any]:
        """For a dict, or the fields of something else."""
        self._enter(value, depth)
        if not _TEXT.issuperset(map(type, value)):
            return self._mark_pairs(value, depth)
        leaves = self._leaves
        if (
            len(value) >= _MANY
            and _CONTAINERS.issuperset(map(type, value.values()))
            and self._are_plain(list(value.values()), depth + 1)
        ):
            return value, None
        encoders = self._encoders
        copy = None
        marks: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                kind = type(item)
                if kind in leaves:
                    continue
                # A list of skills, say: most containers end here and need no walk of their own.
                if kind is list and leaves.issuperset(map(type, item)):
                    self._enter(item, depth + 1)
                    continue
                encoder = encoders.get(kind)
                if encoder is None:
                    raise _unknown(kind)
                payload, mark = encoder(self, item, depth + 1)
                if mark is not None:
                    if copy is None:
                        copy = dict(value)
                    copy[key] = payload
                    marks[key] = mark
        except Refusal as error:
            error.steps.append(step(key))
            raise
        return (value, None) if copy is None else (copy, marks)

    def mark_list(
        self, value: list[Any], depth: int, where: Callable[[int], str] = "[{}]".format
    ) -> tuple[Any, Any]:
        """For a list, or the elements of something else; *where* writes the step to the n-th."""
        self._enter(value, depth)
        leaves = self._leaves
        kinds = set(map(type, value))
        if leaves.issuperset(kinds):
            return value, None
        if len(value) >= _MANY and kinds <= _CONTAINERS:
            # Columns first or last; where the first row is plain and the others are not, last.
            rows = kinds == _DICTS
            first = rows and self._is_worth_columns(value)
            if first and (table := self._mark_table(value, depth + 1)) is not None:
                return table
            if self._are_plain(value, depth + 1):
                return value, None
            if rows and not first and (table := self._mark_table(value, depth + 1)) is not None:
                return table
        encoders = self._encoders
        copy = None
        marks: list[Any] = []
        place = 0
        try:
            for place, item in enumerate(value):
                kind = type(item)
                if kind in leaves:
                    continue
                encoder = encoders.get(kind)
                if encoder is None:
                    raise _unknown(kind)
                payload, mark = encoder(self, item, depth + 1)
                if mark is not None:
                    if copy is None:
                        copy = list(value)
                    copy[place] = payload
                    marks += (place, mark)
        except Refusal as error:
            error.steps.append(where(place))
            raise
        if copy is None:
            return value, None
        if marks[1::2].count(marks[1]) == len(value):
            return copy, [_ALL, marks[1]]
        return copy, marks

    def _is_worth_columns(self, rows: list[dict[Any, Any]]) -> bool:
        inside = rows[0].values()
        return len(rows) * len(inside) >= _CELLS or not (
            set(map(type, inside)) <= self._leaves | _CONTAINERS
        )

    def _mark_table(self, rows: list[dict[Any, Any]], depth: int) -> tuple[Any, Any] | None:
        """For dicts at *depth* with the same keys in the same order; else None."""
        keys = list(rows[0])
        width = len(keys)
        size = width * len(rows)
        if not size or size > self._room or depth > self._max_depth:
            return None
        names = list(chain.from_iterable(rows))
        if names != keys * len(rows) or len(_inside(rows)) != size:
            return None
        cells = list(chain.from_iterable(map(dict.values, rows)))
        kinds = list(map(type, cells))
        of_all = kinds[:width]
        alike = kinds == of_all * len(rows)
        leaves = self._leaves
        table: list[Any] = [keys]
        marks: list[Any] = []
        for place, kind in enumerate(of_all, 1):
            column = cells[place - 1 :: width]
            if alike and kind in leaves:
                self._take(len(rows))
                table.append(column)
                continue
            payload, mark = self._mark_column(keys[place - 1], column, depth)
            table.append(payload)
            if mark is not None:
                marks += (place, mark)
        return table, tagged("rows", marks or None)

    def _mark_column(self, key: str, column: list[Any], depth: int) -> tuple[Any, Any]:
        kinds = set(map(type, column))
        if kinds <= self._leaves:
            self._take(len(column))
            return column, None
        if len(kinds) == 1:
            if (encode := _kinds.COLUMNS.get(type(column[0]))) is not None:
                payloads, tag = encode(column)
                if len(payloads) == len(column):
                    self._take(len(column))
                    return payloads, [_ALL, tag]
            elif kinds == _LISTS and self._are_flat(column, depth + 1):
                return column, None
        return self.mark_list(column, depth, lambda place: f"[{place}]{step(key)}")

    def _are_flat(self, lists: list[list[Any]], depth: int) -> bool:
        """Are these lists, at *depth*, lists of leaves? Counts them and their elements if so."""
        size = len(lists) + sum(map(len, lists))
        if depth > self._max_depth or size > self._room:
            return False
        if not set(map(type, get_referents(*lists))) <= self._leaves:
            return False
        self._take(size)
        return True

    def _are_plain(self, nodes: list[Any], depth: int) -> bool:
        """Are these containers, which are at *depth*, and all inside them plain?

        Only a shortcut, at C's speed, level by level: True spares the walk, and counts what is
        inside. False where it would take long, or too much was looked at in vain.
        """
        leaves = self._leaves
        kinds = set(map(type, nodes))
        taken = 0
        for below in range(depth, depth + _AHEAD):
            size = sum(map(len, nodes))
            taken += size
            if below > self._max_depth or taken > min(self._room, self._vain):
                break
            inside = _inside(nodes) if dict in kinds else get_referents(*nodes)
            if len(inside) != size:
                break
            if kinds == _LISTS:
                kinds = set(map(type, inside)) - leaves
                alike = False
            else:
                types = list(map(type, inside))
                # Matches have the same in the same places: one of them tells for all.
                width = size // len(nodes)
                alike = types == types[:width] * len(nodes)
                kinds = set(types[:width] if alike else types) - leaves
            if not kinds:
                self._take(taken)
                return True
            if not kinds <= _CONTAINERS:
                break
            if alike:
                columns = [inside[n::width] for n in range(width) if types[n] in kinds]
                nodes = list(chain.from_iterable(columns))
            else:
                nodes = [node for node in inside if type(node) in kinds]
        self._vain -= taken
        return False

    def _mark_pairs(self, value: dict[Any, Any], depth: int) -> tuple[Any, Any]:
        """For a dict with a key that is not text: keys and values in turn, in one list."""
        if _clashes(value):
            raise Refusal("unserializable", type(value), "too many of its keys have one hash")
        pairs = [part for pair in value.items() for part in pair]
        payload, mark = self.mark_list(
            pairs, depth, lambda place: step(pairs[place - 1]) if place % 2 else "{key}"
        )
        return payload, tagged("dict", mark)

    def _enter(self, value: dict[Any, Any] | list[Any], depth: int) -> None:
        if depth > self._max_depth:
            complaint = f"nested deeper than max_depth={self._max_depth}, or contains itself"
            raise Refusal("too_deep", type(value), complaint)
        self._take(len(value))

    def _take(self, elements: int) -> None:
        # An element takes two bytes or more and is counted twice at most.
        self._room -= elements
        if self._room < 0:
            raise Refusal("too_large", list, "more elements than max_bytes leaves room for")


if sys.version_info >= (3, 13):

    def _inside(nodes: list[Any]) -> list[Any]:
        """Return what is in *nodes*, but for keys; of another length where a key is no text."""
        # An instance's own dict refers to nothing, which another one's keys could make up for.
        parts = list(map(get_referents, nodes))
        if list(map(len, parts)) != list(map(len, nodes)):
            return []
        return list(chain.from_iterable(parts))

else:

    def _inside(nodes: list[Any]) -> list[Any]:
        """Return what is in *nodes*, but for keys; of another length where a key is no text."""
        return get_referents(*nodes)  # of a dict its values, and its keys unless all are text


def _unknown(kind: type) -> Refusal:
    return Refusal(
        "unserializable",
        kind,
        "no type that comes back the same; an enum or dataclass needs register()",
    )


def tagged(tag: str, mark: Any) -> Any:
    """Return the mark of a typed value whose payload is marked with *mark*."""
    return tag if mark is None else [tag, mark]


def restore(nodes: list[Any], mark: Any, decoders: Mapping[str, Decoder]) -> list[Any]:
    """Return the values of *nodes*, which all have this mark. Changes them in place.

    Column by column, such as all the dates of all matches, as decoders take them.
    For marks that are not ours, raises what unpacking, indexing and decoders raise.
    """
    kind = type(mark)
    if kind is str:
        return decoders[mark](nodes)
    if kind is dict:
        places = mark.items()
    elif mark[0] == _ALL:
        for node in nodes:
            if type(node) is not list:
                raise TypeError("not a list")
            node[:] = restore(node, mark[1], decoders)
        return nodes
    elif type(mark[0]) is str:
        tag, inner = mark
        return decoders[tag](restore(nodes, inner, decoders))
    else:
        # Each place once: a short body that names one place often could keep us busy for long.
        order = mark[::2]
        if order != sorted(order) or any(map(operator.eq, order, order[1:])):
            raise ValueError("places out of order")
        places = zip(order, mark[1::2], strict=True)
    for place, inner in places:
        values = restore(list(map(operator.itemgetter(place), nodes)), inner, decoders)
        for node, value in zip(nodes, values, strict=True):
            node[place] = value
    return nodes


# ── Containers that JSON does not know ──────────────────────────────────────────────────────────


def _scalar(encode: Callable[[Any], tuple[Any, str | None]]) -> Encoder:
    return lambda _walk, value, _depth: encode(value)


def _elements(tag: str, where: Callable[[int], str]) -> Encoder:
    def encode(walk: Marker, value: Any, depth: int) -> tuple[Any, Any]:
        if type(value) is not tuple and _clashes(value):
            raise Refusal("unserializable", type(value), "too many of its elements have one hash")
        payload, mark = walk.mark_list(list(value), depth, where)
        return payload, tagged(tag, mark)

    return encode


def _clashes(elements: Collection[Any]) -> bool:
    """Were they chosen to have one hash? A set of n such takes n * n steps: 18 s for a MiB."""
    return len(elements) > _ONE_HASH and (len(elements) - len(set(map(hash, elements))) > _ONE_HASH)


def _decode_tuple(payload: Any) -> tuple[Any, ...]:
    return tuple(_as_list(payload))


def _decode_set(payload: Any) -> set[Any]:
    if _clashes(_as_list(payload)):
        raise ValueError("one hash for too many")
    value = set(payload)
    if len(value) != len(payload):
        raise ValueError("an element twice")
    return value


def _decode_frozenset(payload: Any) -> frozenset[Any]:
    return frozenset(_decode_set(payload))


def _decode_pairs(payload: Any) -> dict[Any, Any]:
    parts = _as_list(payload)
    if _clashes(parts[::2]):
        raise ValueError("one hash for too many")
    value = dict(zip(parts[::2], parts[1::2], strict=True))
    if 2 * len(value) != len(parts):
        raise ValueError("a key twice")
    return value


def _decode_rows(payload: Any) -> list[Any]:
    keys, *columns = _as_list(payload)
    if not _as_list(keys) or not _TEXT.issuperset(map(type, keys)) or len(set(keys)) < len(keys):
        raise ValueError("not the keys of a row")
    if len(columns) != len(keys) or not _LISTS.issuperset(map(type, columns)):
        raise ValueError("not the columns for these keys")
    return _make_rows(keys, columns)


def _make_rows(keys: list[str], columns: list[list[Any]]) -> list[dict[str, Any]]:
    """As ``[dict(zip(keys, row)) for row in zip(*columns)]``, in half the time."""
    rows: list[dict[str, Any]]
    if len(keys) >= 8:
        done = 8
        k, l, m, n, o, p, q, r = keys[:done]
        rows = [
            {k: a, l: b, m: c, n: d, o: e, p: f, q: g, r: h}
            for a, b, c, d, e, f, g, h in zip(*columns[:done], strict=True)
        ]
    elif len(keys) >= 4:
        done = 4
        k, l, m, n = keys[:done]
        rows = [{k: a, l: b, m: c, n: d} for a, b, c, d in zip(*columns[:done], strict=True)]
    else:
        done = 1
        rows = [{keys[0]: a} for a in columns[0]]
    for key, column in zip(keys[done:], columns[done:], strict=True):
        for row, value in zip(rows, column, strict=True):
            row[key] = value
    return rows


def _as_list(payload: Any) -> list[Any]:
    if type(payload) is not list:
        raise TypeError("not a list")
    return payload


def _in_set(_place: int) -> str:
    return "{element}"


ENCODERS: dict[type, Encoder] = {
    dict: Marker.mark_dict,
    list: Marker.mark_list,
    tuple: _elements("tuple", "[{}]".format),
    set: _elements("set", _in_set),
    frozenset: _elements("frozenset", _in_set),
    # What a cache with a near cache hands out is written as what it looks like.
    FrozenDict: Marker.mark_dict,
    FrozenList: Marker.mark_list,
    FrozenSet: _elements("set", _in_set),
    float: _scalar(_kinds.encode_float),
    int: _scalar(_kinds.encode_int),
    **{kind: _scalar(encode) for kind, encode in _kinds.ENCODERS.items()},
}

DECODERS: dict[str, Decoder] = {
    "tuple": each(_decode_tuple),
    "set": each(_decode_set),
    "frozenset": each(_decode_frozenset),
    "dict": each(_decode_pairs),
    "rows": each(_decode_rows),
    **_kinds.DECODERS,
}
