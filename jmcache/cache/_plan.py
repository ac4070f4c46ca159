"""What a call of get_or_set asks for, checked once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict

from jmcache.settings import LONGEST_TTL_S, CacheSettings, check_ttl
from jmcache.signals import signals_as_before

# An ordinary Exception, but no failure of the loader: the caller's time is over.
_LIMITS = frozenset({"SoftTimeLimitExceeded", "TimeLimitExceeded"})

_MAX_TAGS = 2**16 - 1  # bytes; an entry has room for no more

EarlyRefresh = float | Literal["xfetch"] | None


class FunctionOptions(TypedDict, total=False):
    """What cached may be told by name; see Plan."""

    ttl: float | None
    stale_ttl: float
    early_refresh: EarlyRefresh
    stale_if_error: float
    no_stale_for: tuple[type[Exception], ...]
    negative: Callable[[Any], object] | None
    negative_ttl: float | None
    lock_timeout: float | None
    soft_timeout: float | None
    loader_timeout: float | None
    refresh: Literal["background", "inline"]
    force: bool
    read_only: bool
    write_only: bool


class Options(FunctionOptions, total=False):
    """What get_or_set and get_or_set_many may be told by name; see Plan."""

    tags: Iterable[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one value is looked for, computed and kept.

    Attributes:
        ttl: Seconds it is fresh.
        tags: What it can be invalidated by.
        stale_ttl: Seconds after that in which it is handed out while one refreshes it.
        early_refresh: Share of the TTL after which one refreshes it ahead of time; "xfetch": the
            sooner the longer it takes to load; None: nobody does.
        stale_if_error: Seconds after the TTL in which it is handed out when the loader fails.
        no_stale_for: Exceptions of the loader that always pass.
        negative: Says of a value that it stands for "there is none".
        negative_ttl: Seconds such a value is fresh; None: as any other.
        lock_timeout: Seconds for which a load may hold off others at most.
        soft_timeout: Seconds after which an old value is handed out instead; None: no limit.
        loader_timeout: Seconds a caller waits for a load at most; None: no limit.
        force: Compute it whatever is cached, and store it in its place.
        refresh: Where a refresh runs: "background", or "inline" on the caller's time.
        read_only: Store nothing.
        write_only: Look at nothing, and wait for nobody: compute and store.
    """

    ttl: float
    tags: tuple[str, ...] = ()
    stale_ttl: float = 0.0
    early_refresh: EarlyRefresh = None
    stale_if_error: float = 0.0
    no_stale_for: tuple[type[Exception], ...] = ()
    negative: Callable[[Any], object] | None = None
    negative_ttl: float | None = None
    lock_timeout: float = 10.0
    soft_timeout: float | None = None
    loader_timeout: float | None = None
    refresh: Literal["background", "inline"] = "background"
    force: bool = False
    read_only: bool = False
    write_only: bool = False

    def __post_init__(self) -> None:
        check_ttl(self.ttl)
        object.__setattr__(self, "tags", check_tags(self.tags))
        for name in ("stale_ttl", "stale_if_error"):
            _seconds(name, getattr(self, name), least=0.0)
        for name in ("negative_ttl", "soft_timeout", "loader_timeout"):
            if getattr(self, name) is not None:
                _seconds(name, getattr(self, name))
        _seconds("lock_timeout", self.lock_timeout)
        early = self.early_refresh
        if early not in (None, "xfetch") and not (isinstance(early, float) and 0.0 < early < 1.0):
            raise ValueError(
                f'early_refresh: a share of the TTL between 0 and 1, or "xfetch"; not {early!r}'
            )
        if self.refresh not in ("background", "inline"):
            raise ValueError(f'refresh: "background" or "inline"; not {self.refresh!r}')
        check_callable("negative", self.negative)
        if inspect.iscoroutinefunction(self.negative):
            raise TypeError(
                "negative: a plain function, not a coroutine function: nobody awaits it"
            )
        _check_exceptions("no_stale_for", self.no_stale_for)
        for name in ("force", "read_only", "write_only"):
            if not isinstance(getattr(self, name), bool):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name}: True or False, not {kind}")
        if self.read_only and (self.write_only or self.force):
            raise ValueError("read_only: not together with write_only or force")

    @classmethod
    def of(cls, options: Options | FunctionOptions, settings: CacheSettings) -> Self:
        """Return the plan of *options*; what they leave out or give as None is the settings'.

        Raises:
            TypeError: An option is unknown, or of a wrong type.
            ValueError: An option is out of its range. Names it.
        """
        unknown = options.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise TypeError(
                f"{min(unknown)}: no option of get_or_set; there are"
                f" {', '.join(cls.__dataclass_fields__)}"
            )
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        return cls(**{"ttl": settings.ttl, "lock_timeout": settings.lock_timeout, **given})

    @property
    def computes_anyway(self) -> bool:
        """Is it computed whatever is cached, and whoever computes it already?"""
        return self.force or self.write_only

    @property
    def after_s(self) -> float:
        """Seconds an entry has to be kept in Redis, beyond its TTL."""
        return max(self.stale_ttl, self.stale_if_error)

    def may_cover(self, error: Exception) -> bool:
        """May an old value stand in for what the loader raised?"""
        return not (is_limit(error) or isinstance(error, self.no_stale_for))

    def is_negative(self, value: Any) -> bool:
        """Does *value* stand for "there is none"?"""
        if self.negative is not None:
            with signals_as_before():
                return bool(self.negative(value))
        return value is None


def is_limit(error: BaseException) -> bool:
    """True for what ends the caller's own time, and tells nothing of what it was doing."""
    return not isinstance(error, Exception) or type(error).__name__ in _LIMITS


def check_callable(option: str, given: object) -> None:
    """Raise TypeError for what is neither None nor to be called. Names the *option*."""
    if given is not None and not callable(given):
        raise TypeError(f"{option}: a callable, not {type(given).__name__}")


def check_validate(validate: object) -> None:
    """Raise TypeError for what cannot validate; before there is a value to be validated."""
    if validate is None:
        return
    ask = getattr(validate, "model_validate", None) or getattr(validate, "validate_python", None)
    if not callable(ask or validate):
        raise TypeError(
            "validate: a callable, or a type with model_validate or validate_python;"
            f" not {type(validate).__name__}"
        )
    if inspect.iscoroutinefunction(ask or validate):
        raise TypeError("validate: a plain function, not a coroutine function: nobody awaits it")


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return *tags* without repeats, in order.

    Raises:
        TypeError: They are one text, or not all of them are text.
        ValueError: One of them is empty or has half a character (a lone surrogate), or they do
            not fit in an entry together.
    """
    if tags == ():
        return ()
    if isinstance(tags, (str, bytes)):
        raise TypeError("tags: several texts as a tuple or the like, not one")
    if not isinstance(tags, Iterable):
        raise TypeError(f"tags: several texts as a tuple or the like, not {type(tags).__name__}")
    given = tuple(tags)
    for tag in given:
        if not isinstance(tag, str):
            raise TypeError(f"tags: text, each of them, not {type(tag).__name__}")
        if not tag:
            raise ValueError("tags: text that is not empty")
    found = tuple(dict.fromkeys(given))
    try:
        size = sum([len(tag.encode()) + 2 for tag in found])
    except UnicodeEncodeError as error:
        raise ValueError("tags: text without lone surrogates") from error
    if size > _MAX_TAGS:
        raise ValueError(f"tags: {_MAX_TAGS} bytes with 2 more for each, not {size}")
    return found


def _check_exceptions(name: str, given: object) -> None:
    if not isinstance(given, tuple) or not all(
        [isinstance(kind, type) and issubclass(kind, BaseException) for kind in given]
    ):
        raise TypeError(f"{name}: classes of exceptions as a tuple, such as (KeyError,)")


def _seconds(name: str, value: object, least: float | None = None) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if 0 < value <= LONGEST_TTL_S or value == least:
            return
    wants = "0 or more" if least == 0.0 else "above 0"
    raise ValueError(
        f"{name}: seconds as a number, {wants} and at most {LONGEST_TTL_S}; not {value!r}"
    )
