"""Wires one of everything: one connection manager per Redis, any number of caches on it."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from jmcache.aio import AsyncRedisCache
from jmcache.cache import Cache, LoadGuard, LocalCache, RedisCache, Validate
from jmcache.circuit_breaker import CircuitBreaker, Transition
from jmcache.connection import RedisConnectionManager, waited_s
from jmcache.deadline import Deadline
from jmcache.errors import RedisConfigurationError, RedisError
from jmcache.flight import Flights
from jmcache.fork import renew_in_child
from jmcache.health import HealthThread
from jmcache.invalidation import Journal
from jmcache.keys import KeySpace
from jmcache.local import LocalStore
from jmcache.monitoring import Metrics, Monitor, OutageLog
from jmcache.near import Coherence, nobody
from jmcache.node_guard import NodeGuard
from jmcache.retry import Retry
from jmcache.serialization import RedisSerializer
from jmcache.settings import CacheSettings, read_settings, without_frames

if TYPE_CHECKING:
    from jmcache.connection import Tracking

_log = logging.getLogger("jmcache.factory")

_PROBE_S = 1.0  # at most; with the rest between probes it keeps "back within 2 s"
_LEASE_DEADLINES = 4  # a call that a thread was torn out of is not waited for any longer,
_LEASE_PROBES = 2  # nor a health check
_WRITES_AGAIN_S = 1.0  # a write that Redis will not take costs one round trip: try often


class _Backend:
    """One Redis as this process sees it: connections, breakers and health, shared by its caches."""

    def __init__(
        self, settings: CacheSettings, connection: RedisConnectionManager | None = None
    ) -> None:
        self.connection = connection or RedisConnectionManager(
            settings, make_guard=self._guard_node
        )
        _warn_of_trust(settings)
        self.journal = Journal()
        self.flights = Flights()
        self.guard = LoadGuard()
        self.outage = OutageLog(settings.endpoint)
        self.write_outage = OutageLog(f"{settings.endpoint} for writes", lines=2)
        self._settings = settings
        # No call is slow for the others: around that for writes are all attempts and their waits,
        # and a bundle that several nodes of a cluster answer takes each as long as the slowest.
        self.breaker = self._new_breaker(
            settings.endpoint,
            self.connection.holds_against,
            slow_call_threshold=settings.slow_call_threshold,
        )
        self.write_breaker = self._new_breaker(
            f"{settings.endpoint} writes",
            lambda error: error.trips_writes,
            reset_timeout=min(settings.reset_timeout, _WRITES_AGAIN_S),
        )
        self.health = HealthThread(
            self._probe,
            self._wants_probes,
            interval=settings.health_check_interval,
        )
        # Each with the prefix of the names it keeps something of, if any. Guarded by the factory's
        # lock, and so are the two below, by prefix.
        self.users: dict[object, bytes | None] = {}
        # One for all caches of the namespace: for each other they are the same writer, as long as
        # one of their writes may be on its way, and so for longer than a cache is open. Without
        # callbacks: see jmcache.fork.
        self._coherences: dict[bytes, weakref.ref[Coherence]] = {}
        self.trackings: dict[bytes, Tracking] = {}  # where somebody keeps something
        self._operation_timeout_s = settings.operation_timeout
        self._probe_timeout_s = min(settings.connection_timeout, _PROBE_S)
        self.breaker.on_change(self.outage.on_change)
        self.breaker.on_change(self._on_change)
        self.write_breaker.on_change(self.write_outage.on_change)

    def _on_change(self, transition: Transition) -> None:
        if transition.before == "closed":
            self.health.ring()

    def _new_breaker(
        self,
        whose: str,
        counts: Callable[[RedisError], bool],
        *,
        reset_timeout: float | None = None,
        slow_call_threshold: float | None = None,
    ) -> CircuitBreaker:
        settings = self._settings
        return CircuitBreaker(
            settings.failure_threshold,
            reset_timeout or settings.reset_timeout,
            failure_rate_threshold=settings.failure_rate_threshold,
            slow_call_threshold=slow_call_threshold,
            slow_call_rate_threshold=settings.slow_call_rate_threshold,
            rate_window=settings.rate_window,
            rate_min_calls=settings.rate_min_calls,
            probe_lease=max(
                _LEASE_DEADLINES * settings.operation_timeout,
                _LEASE_PROBES * min(settings.connection_timeout, _PROBE_S),
            ),
            waited=waited_s,
            name=f"jmcache {whose}",
            counts=counts,
        )

    def _guard_node(self, node: str, counts: Callable[[RedisError], bool]) -> NodeGuard:
        breaker = self._new_breaker(node, counts)
        breaker.on_change(self._on_change)
        return NodeGuard(breaker, OutageLog(node, lines=2))

    def _wants_probes(self) -> bool:
        return bool(self.breaker.state != "closed" or self.connection.impaired or len(self.journal))

    def _probe(self) -> None:
        # Its own time, not a caller's: a connection that takes longer than operation_timeout to
        # be made is made here, and waits in the pool.
        self.breaker.probe(self.connection.ping, Deadline(self._probe_timeout_s))
        if self.journal:
            self.breaker.call(self._settle, Deadline(self._probe_timeout_s))

    def _settle(self, deadline: Deadline) -> None:
        def delete(names: Sequence[bytes], leases: Sequence[bytes]) -> None:
            self.connection.delete(names, deadline, leases)
            self._invalidate(names)

        def move(counters: Sequence[bytes]) -> None:
            self.connection.move(counters, deadline)
            self._invalidate(counters)

        self.journal.settle(delete, move)

    def _invalidate(self, names: Sequence[bytes]) -> None:
        # Before they are owed no more: from then on nothing else keeps what was read meanwhile.
        for reference in tuple(self._coherences.values()):
            coherence = reference()
            if coherence is not None:
                coherence.invalidate(names)

    def coherence(self, settings: CacheSettings, user: object) -> Coherence:
        """Return what all caches of a namespace share; somebody listens if one keeps something."""
        keys = KeySpace(settings.namespace, settings.schema_version)
        reference = self._coherences.get(keys.prefix)
        known = None if reference is None else reference()
        if known is None:
            for prefix, gone in tuple(self._coherences.items()):
                if gone() is None:
                    del self._coherences[prefix]
            known = Coherence(keys.space_counter)
            self._coherences[keys.prefix] = weakref.ref(known)
        if settings.near:
            self._listen_for_users()  # who left may have been interrupted in it
            self.users[user] = keys.prefix
            if keys.prefix not in self.trackings:
                tracking = self.connection.tracking(known, keys.prefix, settings.near_lag)
                known.wake = tracking.wake
                self.trackings[keys.prefix] = tracking
        return known

    def leave(self, user: object) -> None:
        """Have nobody listen for *user* any more. May be repeated."""
        self.users.pop(user, None)
        self._listen_for_users()

    def _listen_for_users(self) -> None:
        for prefix in self.trackings.keys() - self.users.values():
            self.trackings[prefix].stop()
            known = self._coherences[prefix]()
            if known is not None:
                known.wake = nobody  # else the two would keep each other
            del self.trackings[prefix]

    def warm_up(self) -> None:
        self.health.start()
        with contextlib.suppress(RedisError):
            self.breaker.call(self.connection.ping, Deadline(self._operation_timeout_s))

    def reconfigure(self, settings: CacheSettings) -> None:
        """Turn to the Redis that *settings* name, with everything that is shared here."""
        before = self.connection.settings
        after = before.moved_to(settings)
        if after.cluster and self.trackings:
            raise RedisConfigurationError("cluster: a near cache is in use, and cannot move to one")
        self.connection.reconfigure(after)
        if after != before:
            for tracking in tuple(self.trackings.values()):
                tracking.restart()
        self._operation_timeout_s = after.operation_timeout
        self._probe_timeout_s = min(after.connection_timeout, _PROBE_S)
        if after != before:
            self.outage.move(after.endpoint)
            self.write_outage.move(f"{after.endpoint} for writes")
            self.breaker.move(f"jmcache {after.endpoint}")
            self.write_breaker.move(f"jmcache {after.endpoint} writes")
        self.health.ring()

    def close(self) -> None:
        self.health.stop()
        for tracking in tuple(self.trackings.values()):
            tracking.stop()
        if self.journal:
            _log.warning(
                "%d invalidations did not reach %s: entries may be served until their TTL is over",
                len(self.journal),
                self.connection.settings.endpoint,
            )
        self.connection.close()
        self.breaker.close()
        self.write_breaker.close()


def _warn_of_trust(settings: CacheSettings) -> None:
    if settings.tls and not settings.tls_verify:
        _log.warning(
            "tls_verify is off: whoever answers in the place of %s is believed", settings.endpoint
        )


class _LocalBackend:
    """The same for memory://: one store, so that all caches of a process see the same entries."""

    def __init__(self, settings: CacheSettings) -> None:
        self.store = LocalStore(settings.max_entries)
        self.users: dict[object, None] = {}  # guarded by the factory's lock

    def leave(self, user: object) -> None:
        self.users.pop(user, None)

    def warm_up(self) -> None:
        """Nothing is far away."""

    def close(self) -> None:
        self.store.close()


class RedisCacheFactory:
    """Makes caches. Thread-safe; everything is per process, and a forked child starts anew.

    Caches whose settings name the same Redis share its connections, circuit breaker and health
    thread, whatever their namespaces and TTLs; the last one to be closed closes those.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _default: ClassVar[CacheSettings | None] = None  # guarded by _lock
    _kept: ClassVar[Callable[[], None] | None] = None  # the default's release; guarded by _lock
    _backends: ClassVar[dict[Hashable, _Backend | _LocalBackend]] = {}  # guarded by _lock

    @classmethod
    @without_frames
    def initialize(cls, settings: object = None) -> CacheSettings:
        """Prepare access to the Redis that *settings* name, and make them the default.

        Connects to nothing: works just the same while Redis is away. Idempotent; with other
        settings, those are the default from then on, and caches made before are untouched.

        Args:
            settings: CacheSettings, a url, or any object with ``redis_host``, ``redis_port``,
                ``redis_db`` and ``redis_password``; None: from the environment.

        Raises:
            RedisConfigurationError: A setting cannot work; the message names it.
        """
        chosen = read_settings(settings)
        with cls._lock:
            if cls._default == chosen:
                return chosen
            cls._default = chosen
            user = object()
            release = partial(cls._release, cls._acquire(chosen, user), user)
            previous, cls._kept = cls._kept, release
        if previous is not None:
            previous()
        return chosen

    @classmethod
    @without_frames
    def create_cache(
        cls,
        settings: object = None,
        *,
        ttl: float | None = None,
        namespace: str | None = None,
        validate: Validate | None = None,
        serializer: RedisSerializer | None = None,
        metrics: Sequence[Metrics] = (),
        connection: RedisConnectionManager | None = None,
    ) -> Cache:
        """Return a new cache: a RedisCache, or a LocalCache for ``memory://``.

        Args:
            settings: As for initialize; None: what initialize was given, else the environment.
            ttl: Seconds a value stays, above 0; None: the setting.
            namespace: Caches with different ones see nothing of each other; None: the setting.
            validate: See Cache.lookup.
            serializer: One that knows the application's enums and dataclasses.
            metrics: Where figures go besides ``stats()``.
            connection: One to use instead of the shared one, such as
                ``jmcache.testing.fake_manager()``; closed with the cache.

        Raises:
            RedisConfigurationError: A setting cannot work; the message names it.
        """
        overrides = {"ttl": ttl, "namespace": namespace}
        given = {name: value for name, value in overrides.items() if value is not None}
        with cls._lock:
            base = cls._default if settings is None else settings
        chosen = read_settings(base, **given)
        monitor = Monitor(chosen.namespace, metrics)
        user = object()
        try:
            release: Callable[[], None]
            backend: _Backend | _LocalBackend
            if connection is not None:
                backend = _Backend(chosen, connection)
                release = backend.close
            else:
                with cls._lock:
                    backend = cls._acquire(chosen, user)
                release = partial(cls._release, backend, user)
            if isinstance(backend, _LocalBackend):
                return LocalCache(
                    settings=chosen,
                    store=backend.store,
                    monitor=monitor,
                    serializer=serializer,
                    validate=validate,
                    on_close=release,
                )
            with cls._lock:
                coherence = backend.coherence(chosen, user)
            move = backend.reconfigure if connection else partial(cls._reconfigure, backend)
            if metrics:
                backend.breaker.on_change(_while_alive(monitor))
            return RedisCache(
                backend.connection,
                chosen,
                retry=Retry(
                    max_retries=chosen.max_retries,
                    initial_backoff_ms=chosen.initial_backoff_ms,
                    max_backoff_ms=chosen.max_backoff_ms,
                    on_retry=monitor.note_retry,
                ),
                breaker=backend.breaker,
                write_breaker=backend.write_breaker,
                health=backend.health,
                journal=backend.journal,
                # With a codec or a validation of its own, what others load may be nothing to it.
                flights=backend.flights if serializer is validate is None else None,
                guard=backend.guard,
                outage=backend.outage,
                write_outage=backend.write_outage,
                monitor=monitor,
                serializer=serializer,
                validate=validate,
                on_close=release,
                on_reconfigure=move,
                coherence=coherence,
            )
        except BaseException:
            cls._disown(user)  # nobody closes what nobody was handed
            raise

    @classmethod
    @without_frames
    def create_async_cache(cls, settings: object = None, **options: Any) -> AsyncRedisCache:
        """Return a new cache for coroutines. Arguments and errors are those of create_cache."""
        return AsyncRedisCache(cls.create_cache(settings, **options))

    @classmethod
    def warm_up(cls) -> None:
        """Connect to every Redis that is in use here, so that the first call need not.

        Never raises because Redis is away; waits at most ``operation_timeout`` for each.
        """
        with cls._lock:
            backends = list(cls._backends.values())
        for backend in backends:
            backend.warm_up()

    @classmethod
    def shutdown(cls) -> None:
        """Close every connection and health thread of this process. Idempotent, never blocks long.

        Caches made before answer as unavailable from then on; new ones may be made.
        """
        with cls._lock:
            backends = list(cls._backends.values())
            cls._backends.clear()
            cls._default = cls._kept = None
        for backend in backends:
            backend.close()

    @classmethod
    def _acquire(cls, settings: CacheSettings, user: object) -> _Backend | _LocalBackend:
        identity = settings.connection_identity()
        backend = cls._backends.get(identity)
        if backend is None:
            backend = _LocalBackend(settings) if settings.memory else _Backend(settings)
            cls._backends[identity] = backend
        backend.users[user] = None
        return backend

    @classmethod
    def _release(cls, backend: _Backend | _LocalBackend, user: object) -> None:
        # May be repeated: who is interrupted in it closes again.
        with cls._lock:
            backend.leave(user)
            if backend.users:
                return
            cls._forget(backend)
        backend.close()

    @classmethod
    def _disown(cls, user: object) -> None:
        for backend in tuple(cls._backends.values()):
            if user in backend.users:
                cls._release(backend, user)

    @classmethod
    def _forget(cls, backend: _Backend | _LocalBackend, but: Hashable = None) -> None:
        # No loop directly in the `with`: see jmcache.fork.
        for identity, known in tuple(cls._backends.items()):
            if known is backend and identity is not but:
                del cls._backends[identity]

    @classmethod
    def _reconfigure(cls, backend: _Backend, settings: CacheSettings) -> None:
        before = backend.connection.settings
        with cls._lock:
            cls._move(backend, settings)
        after = backend.connection.settings
        if after is not before:
            _log.info(
                "Redis %s is asked from now on, as new settings say; it was %s until now",
                after.endpoint,
                before.endpoint,
            )
            _warn_of_trust(after)

    @classmethod
    def _move(cls, backend: _Backend, settings: CacheSettings) -> None:
        if backend not in cls._backends.values():
            return  # closed meanwhile
        default = cls._default
        is_default = (
            default is not None and cls._backends.get(default.connection_identity()) is backend
        )
        # Whoever asks for the former Redis must not be led to the new one, also if this is
        # interrupted: it is known by itself only until it has moved.
        cls._backends[backend] = backend
        cls._forget(backend, but=backend)
        backend.reconfigure(settings)
        if default is not None and is_default:
            cls._default = default.moved_to(settings)
        identity = backend.connection.settings.connection_identity()
        if identity not in cls._backends:  # else the one that was there first stays there
            cls._backends[identity] = backend
            del cls._backends[backend]

    @classmethod
    def _renew_in_child(cls) -> None:
        cls._lock = threading.Lock()


def _while_alive(monitor: Monitor) -> Callable[[Transition], None]:
    # The breaker outlives the caches on it; it must not keep what they counted.
    reference = weakref.ref(monitor)

    def tell(transition: Transition) -> None:
        alive = reference()
        if alive is not None:
            alive.on_change(transition)

    return tell


renew_in_child(RedisCacheFactory._renew_in_child)  # noqa: SLF001  a classmethod, so here
