"""Warm-up and a clean close in the children of Celery's prefork pool.

    app = Celery("jobs")
    cache = RedisCacheFactory.create_cache(CacheSettings.from_env())
    install(app, cache)

Nothing of it is needed for correctness: a cache that was made before the fork starts anew in each
child by itself, at its first use, and what a child leaves open the system closes when it ends.
Installed, the first task of a child finds a connection and a running health thread, and a warm
shutdown says goodbye to Redis.
"""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from jmcache.cache import Cache
from jmcache.factory import RedisCacheFactory


def install(app: Celery, *caches: Cache) -> None:
    """Warm *caches* up in each of the worker's children, and close everything when one ends.

    Connects to signals only; call it where the app is configured. Installing the same again
    changes nothing. With Redis down a child comes up all the same, at most `operation_timeout`
    later for each cache.

    Args:
        caches: Those to warm up. What RedisCacheFactory made is closed, named here or not.
    """
    for cache in caches:
        worker_process_init.connect(
            _warm_up(cache), weak=False, dispatch_uid=f"jmcache warm-up {id(app)} {id(cache)}"
        )
    worker_process_shutdown.connect(_close)


def _warm_up(cache: Cache) -> Callable[..., None]:
    def warm_up(**_: object) -> None:
        # Any question will do. It opens a connection, starts the health thread and never raises.
        cache.exists("warm-up")

    return warm_up


def _close(**_: object) -> None:
    RedisCacheFactory.shutdown()
