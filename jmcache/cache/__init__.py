"""A cache: its verbs, the order of the stops below them, and how a value is computed through it.

_cache    the verbs
_redis    the cache in Redis
_local    the cache in this process
_stops    the order of the stops; only it knows them
_look     what a look finds
_adapting what an adapter asks besides the verbs
_awaited  a look that an event loop waits for
_nearby   what is kept in this process of what was looked at
_cached   functions whose results are cached
_compute  values from the cache, or computed once and kept
_lead     the one who computes
_loaders  how the caller's loader is called
_plan     what a computation is asked for
_steps    what it may wait for
_guard    how many may compute while Redis is away
_keeper   whose lease lasts while they compute
"""

from jmcache.cache._adapting import Adapting
from jmcache.cache._awaited import AwaitedLook
from jmcache.cache._cache import NO_DEFAULT, Cache, Timeout
from jmcache.cache._cached import (
    AsyncCachedFunction,
    CachedFunction,
    KeySpec,
    TagsSpec,
    check_cached,
    decorator,
)
from jmcache.cache._guard import LoadGuard
from jmcache.cache._loaders import LoadContext, load_context
from jmcache.cache._local import LocalCache
from jmcache.cache._look import Kept, Key, Look
from jmcache.cache._plan import FunctionOptions, Options, Plan, is_limit
from jmcache.cache._redis import RedisCache
from jmcache.cache._steps import Ask, Join, Load, Loading, Pause, Step, Steps, Work, loading
from jmcache.cache._stops import Validate

__all__ = [
    "NO_DEFAULT",
    "Adapting",
    "Ask",
    "AsyncCachedFunction",
    "AwaitedLook",
    "Cache",
    "CachedFunction",
    "FunctionOptions",
    "Join",
    "Kept",
    "Key",
    "KeySpec",
    "Load",
    "LoadContext",
    "LoadGuard",
    "Loading",
    "LocalCache",
    "Look",
    "Options",
    "Pause",
    "Plan",
    "RedisCache",
    "Step",
    "Steps",
    "TagsSpec",
    "Timeout",
    "Validate",
    "Work",
    "check_cached",
    "decorator",
    "is_limit",
    "load_context",
    "loading",
]
