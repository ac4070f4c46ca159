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
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from jmcache.cache._plan import (
    FunctionOptions,
    Plan,
    check_callable,
    check_tags,
    check_validate,
)
from jmcache.deadline import Deadline
from jmcache.keys import generate_key
from jmcache.settings import CacheSettings

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")

KeySpec = str | Callable[..., Any] | None
TagsSpec = Iterable[str] | Callable[..., Iterable[str]]

_FORMATTER = string.Formatter()
# What a template asks for is not there. Whatever else a property raises is its own.
_NOT_THERE = (AttributeError, LookupError, TypeError, ValueError)


class CallKeys:
    """The keys and tags of one function's calls. Immutable; safe on any thread."""

    def __init__(self, func: Callable[..., Any], key: KeySpec, tags: TagsSpec) -> None:
        """Settle how; checks what can be checked before the first call.

        Raises:
            TypeError: What is no function with a name; a method without an explicit key; a key or
                tag that is no template.
            ValueError: A template names what the function has no argument for, or is none.
        """
        _check_function(func)
        self._signature = inspect.signature(func)
        self._name = f"{func.__module__}.{func.__qualname__}"
        self._key = key
        self._tags = tags if callable(tags) else _templates("tags", tags)
        if not (key is None or isinstance(key, str) or callable(key)):
            raise TypeError(f"key: a template or a callable, not {type(key).__name__}")
        if key is None and func.__qualname__.endswith("<lambda>"):
            raise TypeError(
                "key: all lambdas of a place have one name, and would share their results; say what"
                " tells this one apart, or write a function"
            )
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
            arguments = {name: self._field(name, arguments) for name in self._fields}
        try:
            return generate_key(self._name, self._key, *arguments.values())
        except (TypeError, ValueError):
            for name, value in arguments.items():
                self._check(name, value)
            raise

    def tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call."""
        if callable(self._tags):
            return check_tags(self._tags(*args, **kwargs))
        if not self._tags:
            return ()
        arguments = self._bind(args, kwargs)
        return tuple([self._filled(tag, arguments) for tag in self._tags])

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _field(self, name: str, arguments: dict[str, Any]) -> Any:
        try:
            return _FORMATTER.get_field(name, (), arguments)[0]
        except _NOT_THERE as error:
            raise ValueError(
                f"key: {self._name} has no {{{name}}} in this call: {error}"
            ) from error

    def _filled(self, tag: str, arguments: dict[str, Any]) -> str:
        try:
            return _FORMATTER.vformat(tag, (), arguments)
        except _NOT_THERE as error:
            raise ValueError(f"tags: {self._name} cannot fill in {tag!r}: {error}") from error

    def _check(self, name: str, value: Any) -> None:
        try:
            generate_key(value)
        except (TypeError, ValueError) as error:
            text = str(error).replace("argument 1", f"argument {name!r}", 1)
            raise type(error)(f"{self._name}: {text}") from error

    def _fields_of(self, option: str, template: str) -> tuple[str, ...]:
        try:
            parts = list(_FORMATTER.parse(template))
        except ValueError as error:
            raise ValueError(f"{option}: {template!r} is no template: {error}") from error
        fields: list[str] = []
        for _, field, spec, _ in parts:
            if field is None:
                continue
            if field.partition(".")[0].partition("[")[0] not in self._signature.parameters:
                raise ValueError(f"{option}: {self._name} has no argument for {{{field}}}")
            # A field within a field, {x:>{width}}, tells calls apart, too.
            fields += (field, *self._fields_of(option, spec or ""))
        return tuple(dict.fromkeys(fields))


class _Function(Generic[P, T]):
    """What the cached functions of both kinds of caches have in common."""

    __name__: str  # of what it wraps
    __qualname__: str

    def __init__(
        self,
        func: Callable[P, Any],
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
        functools.update_wrapper(self, func)  # first: it brings the attributes of an object
        self._func = func
        self._keys = keys
        self._compute = compute
        self._delete = delete
        self._refresher = refresher
        self._bound: tuple[object, ...] = ()  # the object of which it is a method

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the cached result of this call, or compute it once and keep it."""
        result: T = self._call(args, kwargs)
        return result

    def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Compute this call's result whatever is cached, keep it and return it."""
        result: T = self._call(args, kwargs, force=True)
        return result

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which this call's result is kept."""
        return self._keys.key((*self._bound, *args), kwargs)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle it as any function: by its name; a method, with its object."""
        return (getattr, (*self._bound, self.__name__)) if self._bound else self.__qualname__

    def _call(self, given: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
        args = (*self._bound, *given)
        refresher = self._refresher
        return self._compute(
            self._keys.key(args, kwargs),
            _loader(self._func, args, kwargs),
            tags=self._keys.tags(args, kwargs),
            refresher=None if refresher is None else lambda _: refresher(*args, **kwargs),
            **options,
        )

    def _bound_to(self, instance: object) -> Self:
        if instance is None or self._bound:  # a method of another class's object stays its method
            return self
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound._bound = (instance,)
        bound.__dict__["__wrapped__"] = MethodType(self._func, instance)  # for its signature
        return bound


class CachedFunction(_Function[P, T]):
    """A function with a cache before it. Call it as the function; it does as get_or_set."""

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget this call's result; as delete of the cache."""
        return bool(self._delete(self.key(*args, **kwargs)))

    # Any for what is taken from the class: to mypy a function below @classmethod and one below
    # @staticmethod are the same here, and an error too many is worse than one too few.
    @overload
    def __get__(self, instance: None, owner: type) -> Any: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[Any, Q], T], instance: object, owner: type | None = None
    ) -> CachedFunction[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bound_to(instance)


class AsyncCachedFunction(_Function[P, Coroutine[Any, Any, T]]):
    """A coroutine function with a cache before it; its result is awaited."""

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, bool]:
        """Forget this call's result; as delete of the cache, awaited."""
        deleted: Coroutine[Any, Any, bool] = self._delete(self.key(*args, **kwargs))
        return deleted

    @overload
    def __get__(self, instance: None, owner: type) -> Any: ...  # see CachedFunction
    @overload
    def __get__(
        self: AsyncCachedFunction[Concatenate[Any, Q], T],
        instance: object,
        owner: type | None = None,
    ) -> AsyncCachedFunction[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._bound_to(instance)


def check_cached(
    bare: tuple[object, ...],
    validate: object,
    timeout: float | Deadline | None,
    options: FunctionOptions,
    settings: CacheSettings,
) -> None:
    """Refuse at once what every call of the function would be refused for.

    Args:
        bare: What was given by position: the function, where the parentheses are missing.

    Raises:
        TypeError, ValueError: Names it.
    """
    if bare:
        raise TypeError("cached: write @cache.cached(), with parentheses; options go by name")
    check_validate(validate)
    Deadline.of_call(timeout, settings.operation_timeout)
    Plan.of(options, settings)


def decorator(
    kind: type[_Function[..., Any]],
    compute: Callable[..., Any],
    delete: Callable[[str], Any],
    key: KeySpec,
    tags: TagsSpec,
    refresher: Callable[..., object] | None,
    check: Callable[[object], None] = lambda func: None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return what makes a function a cached one; *check* raises for one that cannot be.

    Args:
        kind: Of a cached function.

    Raises:
        TypeError: *refresher* or *tags* are nothing that can be called, or filled in.
    """
    check_callable("refresher", refresher)

    def decorate(func: Callable[..., Any]) -> Any:
        check(func)
        return kind(func, CallKeys(func, key, tags), compute, delete, refresher)

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


def _check_function(func: object) -> None:
    if isinstance(func, (staticmethod, classmethod)):
        kind = type(func).__name__
        raise TypeError(f"cached: put @{kind} above @cache.cached(), not below it")
    if not callable(func):
        raise TypeError(f"cached: a function, not {type(func).__name__}")
    # Not even one that was given a name: two of one function would share it, and their results.
    if isinstance(func, partial) or not isinstance(getattr(func, "__qualname__", None), str):
        raise TypeError(
            f"key: a {type(func).__name__} has no name of its own that a key could begin with;"
            " write a function that calls it"
        )


def _templates(option: str, templates: Iterable[str]) -> tuple[str, ...]:
    if isinstance(templates, str):
        raise TypeError(f"{option}: several texts as a tuple or the like, not one")
    if not isinstance(templates, Iterable):
        raise TypeError(
            f"{option}: several texts as a tuple or the like, or a callable;"
            f" not {type(templates).__name__}"
        )
    given = tuple(templates)
    for template in given:
        if not isinstance(template, str):
            raise TypeError(f"{option}: text, each of them, not {type(template).__name__}")
    return given


def _is_method(func: Callable[..., Any], signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters), "")
    place = func.__qualname__.rpartition(".")[0]
    return first in ("self", "cls") and bool(place) and not place.endswith("<locals>")
