"""Warm-up and a clean close in the children of Celery's prefork pool.

    app = Celery("jobs")
    cache = RedisCacheFactory.create_cache(CacheSettings.from_env())
    install(app)

Nothing of it is needed for correctness: a cache that was made before the fork starts anew in each
child by itself, at its first use, and what a child leaves open the system closes when it ends.
Installed, the first task of a child finds a connection and a running health thread, and a warm
shutdown says goodbye to Redis.
"""

from __future__ import annotations

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from jmcache.factory import RedisCacheFactory


def install(app: Celery) -> None:
    """Warm the caches up in each of the worker's children, and close everything when one ends.

    Connects to signals only; call it where the app is configured. Installing again changes
    nothing. What RedisCacheFactory made or was initialized with before the fork is warmed up; with
    Redis down a child comes up all the same, at most `operation_timeout` later for each Redis.
    """
    worker_process_init.connect(_warm_up, weak=False, dispatch_uid=f"jmcache warm-up {id(app)}")
    worker_process_shutdown.connect(_close, weak=False, dispatch_uid=f"jmcache close {id(app)}")


def _warm_up(**_: object) -> None:
    RedisCacheFactory.warm_up()


def _close(**_: object) -> None:
    RedisCacheFactory.shutdown()
