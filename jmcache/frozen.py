"""Values that several callers may share: equal to plain ones, but nobody can change them.

They are dicts, lists and sets to everybody who only reads: to isinstance, ``==``, iteration, JSON.
What would change them raises TypeError. Copies are plain again: ``copy.deepcopy(value)`` is the
way to one of your own, and pickle gives plain ones. ``value.copy()``, a slice, a sum or a union is
plain, too, while its elements are what they were.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NoReturn
from uuid import UUID

__all__ = ["UNFIT", "FrozenDict", "FrozenList", "FrozenSet", "freeze"]

UNFIT: Final = object()  # in place of a value that nothing can keep from being changed

# By exact type: a subclass may have attributes that can be changed. frozenset and tuple are looked
# into, because what they hold may be no better.
_IMMUTABLE = frozenset(
    {type(None), bool, int, float, complex, str, bytes}
    | {datetime, date, time, timedelta, UUID, Decimal}
)


class _ChangeableError(Exception):
    """The value holds something that can be changed."""


def _refuse(self: Any, *_args: Any, **_named: Any) -> NoReturn:
    raise TypeError(
        f"a cached {type(self).__name__} is read-only, because other callers have the"
        " same one: change a copy, as copy.deepcopy(value) makes it"
    )


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed. Made by freeze()."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class FrozenList(list[Any]):
    """A list that cannot be changed. Made by freeze()."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = _refuse
    pop = remove = reverse = sort = _refuse

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return copy.deepcopy(list(self), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return list, (), None, iter(self)


class FrozenSet(set[Any]):
    """A set that cannot be changed, and no frozenset, which is another type. Made by freeze()."""

    __slots__ = ()

    __iand__ = __ior__ = __isub__ = __ixor__ = _refuse
    add = clear = discard = pop = remove = update = _refuse
    difference_update = intersection_update = symmetric_difference_update = _refuse

    def __copy__(self) -> set[Any]:
        return set(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> set[Any]:
        return copy.deepcopy(set(self), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return set, (list(self),)


def freeze(value: Any) -> Any:
    """Return *value* as one that can be shared, or UNFIT where that cannot be.

    Containers are replaced by read-only ones, all the way down; *value* itself is left as it is.
    An instance of a class of the application's, other than an enum, can be changed, so a value with
    one is unfit.
    """
    try:
        return _freeze(value)
    except _ChangeableError:
        return UNFIT


def _freeze(value: Any) -> Any:
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    rebuild = _REBUILD.get(kind)
    if rebuild is not None:
        return rebuild(value)
    if isinstance(value, enum.Enum) or kind in _FROZEN:
        return value
    raise _ChangeableError


def _freeze_dict(value: dict[Any, Any]) -> FrozenDict:
    if not _IMMUTABLE.issuperset(map(type, value)):
        value = {_freeze(key): item for key, item in value.items()}
    frozen = FrozenDict(value)
    for key, item in value.items():
        if type(item) not in _IMMUTABLE:
            dict.__setitem__(frozen, key, _freeze(item))
    return frozen


def _freeze_list(value: list[Any]) -> FrozenList:
    plain = _IMMUTABLE.issuperset(map(type, value))
    return FrozenList(value if plain else map(_freeze, value))


def _freeze_tuple(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return value if _IMMUTABLE.issuperset(map(type, value)) else tuple(map(_freeze, value))


_REBUILD: dict[type, Callable[[Any], Any]] = {
    dict: _freeze_dict,
    list: _freeze_list,
    tuple: _freeze_tuple,
    set: lambda value: FrozenSet(map(_freeze, value)),
    frozenset: lambda value: frozenset(map(_freeze, value)),
}
_FROZEN = frozenset({FrozenDict, FrozenList, FrozenSet})
