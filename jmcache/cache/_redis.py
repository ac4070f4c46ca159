"""The cache in Redis."""

from __future__ import annotations

from collections.abc import Callable

from jmcache.cache._cache import Cache
from jmcache.cache._guard import LoadGuard
from jmcache.cache._stops import RedisStops, Validate
from jmcache.circuit_breaker import CircuitBreaker
from jmcache.connection import RedisConnectionManager
from jmcache.flight import Flights
from jmcache.health import Health, HealthThread
from jmcache.invalidation import Journal
from jmcache.monitoring import Monitor, OutageLog
from jmcache.near import Coherence, NearCache
from jmcache.retry import Retry
from jmcache.serialization import RedisSerializer
from jmcache.settings import CacheSettings


class RedisCache(Cache):
    """A cache in Redis, shared by every process that uses the same Redis and namespace.

    Made by RedisCacheFactory. Safe to make before a fork: the child starts with its own
    connections, breaker and threads.
    """

    def __init__(
        self,
        connection: RedisConnectionManager,
        settings: CacheSettings,
        *,
        retry: Retry,
        breaker: CircuitBreaker,
        write_breaker: CircuitBreaker,
        health: HealthThread,
        outage: OutageLog,
        write_outage: OutageLog,
        journal: Journal,
        flights: Flights | None = None,
        guard: LoadGuard | None = None,
        monitor: Monitor,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        on_close: Callable[[], None] | None = None,
        on_reconfigure: Callable[[CacheSettings], None] | None = None,
        coherence: Coherence | None = None,
    ) -> None:
        """Put the parts in order.

        Args:
            breaker: Guards every question to Redis.
            write_breaker: Guards writes besides: open while Redis answers, but takes none.
            journal: Of the invalidations that this Redis is owed.
            flights: Of the loads under way in this process, for all caches of this Redis.
            guard: Of the loads while it is away, for all of them, too.
            on_close: Called when the cache is closed, each time it is.
            on_reconfigure: Called with new settings; None: *connection* alone turns to them.
            coherence: What is known in this process of the names of the namespace, and is told
                of every write; with the setting ``near``, entries are kept as long as it says.
        """
        near = None
        if settings.near and coherence is not None:
            near = NearCache(coherence, settings.near_max_bytes, settings.near_ttl)
        super().__init__(
            RedisStops(
                connection,
                settings,
                retry=retry,
                breaker=breaker,
                write_breaker=write_breaker,
                health=health,
                outage=outage,
                write_outage=write_outage,
                monitor=monitor,
                journal=journal,
                serializer=serializer,
                validate=validate,
                now=connection.now,
                coherence=coherence,
                near=near,
            ),
            flights=flights,
            guard=guard,
            on_close=on_close,
        )
        self._connection = connection
        self._access = connection.settings  # as far as _settings know it
        self._on_reconfigure = on_reconfigure
        self._breaker = breaker
        self._write_breaker = write_breaker
        self._health = health

    @property
    def settings(self) -> CacheSettings:
        """The settings in use: those it was made with, until it or a neighbour was reconfigured."""
        access = self._connection.settings
        if access is not self._access:
            self._settings = self._settings.moved_to(access)
            self._access = access
        return self._settings

    def health(self) -> Health:
        """Return how it is, from the breaker's state and the last health check."""
        usage = self._connection.usage()
        state = self._breaker.state
        reasons = []
        if self._stops.closed or self._connection.closed:
            reasons.append("closed")
        if state != "closed":
            reasons.append(f"breaker_{state}")
        if self._connection.impaired:
            reasons.append("node_down")
        if self._write_breaker.state != "closed":
            reasons.append("writes_refused")
        if self._stops.journal:
            reasons.append("invalidations_owed")
        return Health(
            status="degraded" if reasons else "ok",
            breaker=str(state),
            reasons=tuple(reasons),
            last_ok_age_s=self._health.last_ok_age_s,
            connections_in_use=usage.in_use,
            connections_limit=usage.limit,
            last_error_reason=self._health.last_error_reason,
        )

    def _move(self, settings: CacheSettings) -> None:
        if self._on_reconfigure is None:
            self._connection.reconfigure(self._connection.settings.moved_to(settings))
        else:
            self._on_reconfigure(settings)
