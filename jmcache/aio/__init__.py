"""The same cache, awaited.

_cache    the verbs: every call hops to a thread of the adapter's own
_threads  those threads, and their queue
_driver   takes the steps of a computation on a loop
"""

from jmcache.aio._cache import AsyncRedisCache

__all__ = ["AsyncRedisCache"]
