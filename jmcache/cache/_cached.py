"""Functions whose results are cached: how a call becomes a key, and what a caller may ask besides.

@cache.cached(ttl=300, tags=("job:{job_id}",))
def match(job_id: str, limit: int = 10) -> list[dict]: ...

match("p00017")              from the cache, or computed once
match.key("p00017")          its key
match.invalidate("p00017")   computed anew by the next call
match.refresh("p00017")      computed anew now
"""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from jmcache.keys import generate_key

P = ParamSpec("P")
T = TypeVar("T")

KeySpec = str | Callable[..., Any] | None
TagsSpec = Iterable[str] | Callable[..., Iterable[str]]

_FORMATTER = string.Formatter()


class CallKeys:
    """The keys and tags of one function's calls. Immutable; safe on any thread."""

    def __init__(self, func: Callable[..., Any], key: KeySpec, tags: TagsSpec) -> None:
        """Settle how; checks what can be checked before the first call.

        Raises:
            TypeError: A method without an explicit key; a key or tag that is no template.
            ValueError: A template names what the function has no argument for.
        """
        self._signature = inspect.signature(func)
        self._name = f"{func.__module__}.{func.__qualname__}"
        self._key = key
        self._tags = tags if callable(tags) else _templates("tags", tags)
        if not (key is None or isinstance(key, str) or callable(key)):
            raise TypeError(f"key: a template or a callable, not {type(key).__name__}")
        if key is None and _is_method(func, self._signature):
            raise TypeError(
                f"key: {self._name} is a method, and an object has no place in a key; name what"
                ' tells objects apart, such as key="{self.id}:{limit}"'
            )
        self._fields = self._fields_of("key", key) if isinstance(key, str) else ()
        if not callable(self._tags):
            for tag in self._tags:
                self._fields_of("tags", tag)

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the key of a call.

        Raises:
            TypeError, ValueError: The call does not fit the function, or an argument has no place
                in a key. Names the argument.
        """
        arguments = self._bind(args, kwargs)  # a callable key may be content with less
        if callable(self._key):
            return generate_key(self._name, None, self._key(*args, **kwargs))
        if self._key is not None:
            arguments = {name: _field(name, arguments) for name in self._fields}
        try:
            return generate_key(self._name, self._key, *arguments.values())
        except (TypeError, ValueError):
            for name, value in arguments.items():
                self._check(name, value)
            raise

    def tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call."""
        if callable(self._tags):
            return tuple(self._tags(*args, **kwargs))
        if not self._tags:
            return ()
        arguments = self._bind(args, kwargs)
        return tuple([_FORMATTER.vformat(tag, (), arguments) for tag in self._tags])

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _check(self, name: str, value: Any) -> None:
        try:
            generate_key(value)
        except (TypeError, ValueError) as error:
            text = str(error).replace("argument 1", f"argument {name!r}", 1)
            raise type(error)(f"{self._name}: {text}") from error

    def _fields_of(self, option: str, template: str) -> tuple[str, ...]:
        fields = tuple(name for _, name, _, _ in _FORMATTER.parse(template) if name is not None)
        for field in fields:
            if field.partition(".")[0].partition("[")[0] not in self._signature.parameters:
                raise ValueError(f"{option}: {self._name} has no argument for {{{field}}}")
        return fields


class CachedFunction(Generic[P, T]):
    """A function with a cache before it. Call it as the function; it does as get_or_set."""

    def __init__(
        self,
        func: Callable[P, T],
        keys: CallKeys,
        compute: Callable[..., Any],
        delete: Callable[[str], Any],
        refresher: Callable[..., object] | None,
    ) -> None:
        """Put it together.

        Args:
            compute: get_or_set of a cache, with the options that hold for all calls.
            delete: Its delete.
            refresher: Called as the function, to have a stale result refreshed elsewhere.
        """
        self._func = func
        self._keys = keys
        self._compute = compute
        self._delete = delete
        self._refresher = refresher
        functools.update_wrapper(self, func)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the cached result of this call, or compute it once and keep it."""
        result: T = self._call(args, kwargs)
        return result

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Compute this call's result whatever is cached, keep it and return it."""
        result: T = self._call(args, kwargs, force=True)
        return result

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which this call's result is kept."""
        return self._keys.key(args, kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Forget this call's result; as delete of the cache, awaited where that is."""
        return self._delete(self._keys.key(args, kwargs))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else _Bound(self, instance)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
        refresher = self._refresher
        return self._compute(
            self._keys.key(args, kwargs),
            _loader(self._func, args, kwargs),
            tags=self._keys.tags(args, kwargs),
            refresher=None if refresher is None else lambda _: refresher(*args, **kwargs),
            **options,
        )


class _Bound:
    """A cached function as a method of one object."""

    def __init__(self, function: CachedFunction[..., Any], instance: object) -> None:
        self.__wrapped__ = function
        self.refresh = partial(function.refresh, instance)
        self.key = partial(function.key, instance)
        self.invalidate = partial(function.invalidate, instance)
        self._instance = instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(self._instance, *args, **kwargs)


def decorator(
    compute: Callable[..., Any],
    delete: Callable[[str], Any],
    key: KeySpec,
    tags: TagsSpec,
    refresher: Callable[..., object] | None,
    check: Callable[[object], None] = lambda func: None,
) -> Callable[[Callable[P, T]], CachedFunction[P, T]]:
    """Return what makes a function a cached one; *check* raises for one that cannot be."""

    def decorate(func: Callable[P, T]) -> CachedFunction[P, T]:
        check(func)
        return CachedFunction(func, CallKeys(func, key, tags), compute, delete, refresher)

    return decorate


def _loader(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    """Return the call as a loader. Its arguments are all there; none is a LoadContext."""
    if inspect.iscoroutinefunction(func):

        async def load_soon() -> Any:
            return await func(*args, **kwargs)

        return load_soon
    return lambda: func(*args, **kwargs)


def _field(name: str, arguments: dict[str, Any]) -> Any:
    return _FORMATTER.get_field(name, (), arguments)[0]


def _templates(option: str, templates: Iterable[str]) -> tuple[str, ...]:
    if isinstance(templates, str):
        raise TypeError(f"{option}: several texts as a tuple or the like, not one")
    return tuple(templates)


def _is_method(func: Callable[..., Any], signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters), "")
    return first in ("self", "cls") and "." in func.__qualname__
