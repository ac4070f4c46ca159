"""A caller's loader as a computation calls it: given looks, returning what was loaded."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from jmcache.cache._lead import Loaded, Looks
from jmcache.cache._look import Key, Look
from jmcache.cache._plan import Plan
from jmcache.settings import check_ttl


class LoadContext:
    """For a loader that takes an argument: what it may know, and say of its result.

    Attributes:
        ttl: Seconds the result is fresh; may be set.
        stored: Is the result to be kept? May be set to False.
        has_stale: Is there an old value?
        stale: The old value; None without.
    """

    __slots__ = ("has_stale", "stale", "stored", "ttl")

    def __init__(self, plan: Plan, look: Look) -> None:
        self.ttl = plan.ttl
        self.stored = True
        self.has_stale = look.is_there
        self.stale = look.value


_current: contextvars.ContextVar[LoadContext | None] = contextvars.ContextVar(
    "jmcache_load_context", default=None
)


def load_context() -> LoadContext | None:
    """Return the context of the load that the caller is part of; None outside of one.

    For cached functions, whose arguments are their own.
    """
    return _current.get()


def for_one(loader: Callable[..., Any], key: Key, plan: Plan) -> Callable[[Looks], Any]:
    """Return *loader*, which returns one value, as one of looks. What it awaits is awaited.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(loader):
        raise TypeError(f"loader: a callable, not {type(loader).__name__}")

    def load(looks: Looks) -> Any:
        context = LoadContext(plan, looks[key])
        before = _current.set(context)
        try:
            value = loader(context) if _wants_argument(loader) else loader()
        finally:
            _current.reset(before)
        if inspect.isawaitable(value):
            return _awaited(value, lambda value: loaded(value, context), context)
        return loaded(value, context)

    def loaded(value: Any, context: LoadContext) -> Loaded:
        chosen = None if context.ttl == plan.ttl else check_ttl(context.ttl)
        return Loaded({key: value}, chosen, context.stored)

    load.is_async = inspect.iscoroutinefunction(loader)  # type: ignore[attr-defined]
    return load


def for_many(loader: Callable[[list[str]], Any], keys: Mapping[Key, str]) -> Callable[[Looks], Any]:
    """Return *loader*, which returns values by key, as one of looks. As for_one."""
    if not callable(loader):
        raise TypeError(f"loader: a callable, not {type(loader).__name__}")

    def load(looks: Looks) -> Any:
        before = _current.set(None)  # one of an outer load is none of this one
        try:
            values = loader([keys[key] for key in looks])
        finally:
            _current.reset(before)
        if inspect.isawaitable(values):
            return _awaited(values, lambda values: loaded(values, looks))
        return loaded(values, looks)

    def loaded(values: Any, looks: Looks) -> Loaded:
        if not isinstance(values, Mapping):
            raise TypeError(
                f"loader: returns values by key, as a dict; not {type(values).__name__}"
            )
        return Loaded({key: values[keys[key]] for key in looks if keys[key] in values})

    load.is_async = inspect.iscoroutinefunction(loader)  # type: ignore[attr-defined]
    return load


async def _awaited(
    value: Awaitable[Any], then: Callable[[Any], Loaded], context: LoadContext | None = None
) -> Loaded:
    before = _current.set(context)
    try:
        return then(await value)
    finally:
        # Closed where that was never set: by the collector, as its loop ended and nobody awaits it.
        with contextlib.suppress(ValueError):
            _current.reset(before)


def check_plain(option: str, given: object) -> None:
    """Raise TypeError for a coroutine function, where nobody would await it."""
    if inspect.iscoroutinefunction(given):
        raise TypeError(f"{option}: a plain function; for a coroutine function use AsyncRedisCache")


def _wants_argument(loader: Callable[..., Any]) -> bool:
    # Asked for a load, not for a hit: it takes longer than all the rest of a hit.
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return any(
        [
            parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            for parameter in parameters
        ]
    )
