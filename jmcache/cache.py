"""The order of the stops. Only this module knows it.

    read    key ─▶ name ─▶ retry ─▶ circuit breaker ─▶ connection ─▶ Redis
            value ◀─ validity ◀─ serialization ◀─ envelope ◀─ blob ─────┘
    write   the same, mirrored

Whatever way an operation goes, it ends in exactly one outcome, which is counted once.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

from jmcache.circuit_breaker import CircuitBreaker
from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.envelope import Entry, Envelope
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisClosedError,
    RedisCorruptEntryError,
    RedisError,
    RedisHurriedError,
    RedisNotServedError,
    RedisSerializationError,
    RedisWriteRefusedError,
)
from jmcache.health import Health, HealthThread
from jmcache.keys import KeySpace, digest_text, generate_key
from jmcache.local import LocalStore
from jmcache.monitoring import CacheStats, Monitor, OutageLog
from jmcache.outcome import Lookup, Outcome
from jmcache.retry import Retry
from jmcache.serialization import RedisSerializer
from jmcache.settings import CacheSettings, check_ttl, read_settings, without_frames

T = TypeVar("T")
Ending = tuple[Outcome, str]
Timeout = float | Deadline | None
Validate = Callable[[Any], object] | type | Any

# What a validator raises to say no. Anything else it raises is the caller's business.
_NO = (ValueError, TypeError, LookupError, AttributeError, AssertionError)

# What the caller is handed when an operation did not get through.
_NOTHING: dict[str, Callable[[RedisError], Any]] = {
    "get": lambda error: None,
    "lookup": lambda error: Lookup(error.outcome, reason=error.reason),
    "get_many": lambda error: {},
    "set": lambda error: False,
    "set_many": lambda error: False,
    "delete": lambda error: False,
    "delete_many": lambda error: 0,
    "exists": lambda error: False,
}


class _Store(Protocol):
    """What the cache asks of whatever keeps the blobs: Redis, or this process."""

    def get(self, name: bytes, deadline: Deadline) -> bytes | None: ...
    def get_many(
        self, names: Sequence[bytes], deadline: Deadline
    ) -> Sequence[bytes | RedisError | None]: ...
    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None: ...
    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> Sequence[RedisError | None]: ...
    def delete(self, names: Sequence[bytes], deadline: Deadline) -> int: ...
    def drop_connections(self) -> None: ...


class Cache:
    """What every cache here can do. Use RedisCache or LocalCache.

    Thread-safe. Values are copied in and out: changing one does not change what is cached. No
    operation raises because Redis is away, and each ends within its deadline; what the caller gets
    then is None, False, 0 or an empty dict, and ``lookup`` and ``stats`` tell why.

    Wrong arguments do raise: TypeError for a key that is no text, ValueError for a TTL or timeout
    that is no number of seconds above 0.

    Every operation takes ``timeout``: seconds, a Deadline that runs already, or None for the
    setting ``operation_timeout``.
    """

    def __init__(
        self,
        store: _Store,
        settings: CacheSettings,
        *,
        monitor: Monitor,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        now: Callable[[], float] = time.time,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._monitor = monitor
        self._serializer = serializer or RedisSerializer(max_bytes=settings.max_value_bytes)
        self._envelope = Envelope(
            max_body_bytes=settings.max_value_bytes,
            compress_above_bytes=settings.compress_above_bytes,
            secrets=settings.entry_secrets,
            now=now,
        )
        self._keys = KeySpace(settings.namespace, settings.schema_version)
        self._validate = validate
        self._now = now
        self._on_close = on_close
        self._closed = False

    # Reading ------------------------------------------------------------------------------------

    def get(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Any | None:
        """Return the cached value, or None for anything but a fresh one.

        Args:
            key: As generate_key returns it, or any text.
            validate: Checked before the value is handed out, see lookup.
        """
        found = self.lookup(key, validate=validate, timeout=timeout)
        return found.value if found.outcome is Outcome.HIT else None

    def lookup(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Lookup:
        """Return the cached value together with how the read ended, and why.

        Args:
            validate: A callable that raises or returns False for a value it does not accept, or a
                type with ``model_validate`` or ``validate_python`` (pydantic's). A value that
                fails is corrupt: counted, logged once a key, removed. It is only checked, never
                changed. None: the cache's own. To refuse by raising, raise a ValueError,
                TypeError, LookupError, AttributeError or AssertionError; another exception might
                be a time limit's, and comes out of the call.
        """
        started = time.perf_counter()
        deadline = self._deadline(timeout)
        name, digest = self._keys.name(key)
        try:
            self._check_usable()
            found = self._judge(self._ask(self._store.get, name, deadline), digest, validate)
        except RedisError as error:
            self._discard_corrupt({name: (digest, error)}, deadline)
            nothing: Lookup = self.give_up("lookup", error, started)
            return nothing
        self._monitor.record("get", found.outcome, found.reason, time.perf_counter() - started)
        return found

    def get_many(
        self, keys: Iterable[str], *, validate: Validate | None = None, timeout: Timeout = None
    ) -> dict[str, Any]:
        """Return the fresh values among *keys*, by key, in one round trip.

        A cluster's nodes are asked at the same time, and those that answer are enough for their
        keys. A key without a fresh value is left out; so a cached None is there, as None.
        """
        started = time.perf_counter()
        deadline = self._deadline(timeout)
        names = {key: self._keys.name(key) for key in _texts(keys)}
        values: dict[str, Any] = {}
        endings: list[Ending] = []
        corrupt: dict[bytes, tuple[bytes, RedisError]] = {}
        try:
            self._check_usable()
            blobs: Sequence[bytes | RedisError | None] = ()
            if names:
                wanted = [name for name, _ in names.values()]
                blobs = self._ask(self._store.get_many, wanted, deadline)
        except RedisError as error:
            if error.outcome is Outcome.CORRUPT and len(names) > 1:
                # One of them spoils the common reply, as a foreign giant does: each by itself.
                return self._get_each(names, validate, deadline)
            self._discard_corrupt(
                {name: (digest, error) for name, digest in names.values()}, deadline
            )
            nothing: dict[str, Any] = self.give_up("get_many", error, started, len(names))
            return nothing
        for (key, (name, digest)), blob in zip(names.items(), blobs, strict=True):
            if isinstance(blob, RedisError):  # the node of a cluster that has it gave no answer
                self._note("get_many", blob)
                endings.append((blob.outcome, blob.reason))
                corrupt[name] = digest, blob
                continue
            if deadline.expired:  # decoding takes its time too
                endings.append((RedisHurriedError.outcome, RedisHurriedError.reason))
                continue
            try:
                found = self._judge(blob, digest, validate)
            except RedisError as error:
                found = Lookup(error.outcome, reason=error.reason)
                corrupt[name] = digest, error
            if found.outcome is Outcome.HIT:
                values[key] = found.value
            endings.append((found.outcome, found.reason))
        self._discard_corrupt(corrupt, deadline)
        self._monitor.record_many("get_many", endings, time.perf_counter() - started)
        return values

    def exists(self, key: str, *, timeout: Timeout = None) -> bool:
        """Return True when get would find something: the entry is read and judged, not decoded."""
        name, digest = self._keys.name(key)

        def look(deadline: Deadline) -> bool:
            try:
                blob = self._ask(self._store.get, name, deadline)
                if blob is not None:
                    self._envelope.unseal(blob, digest)
                return blob is not None
            except RedisError as error:
                if error.outcome is Outcome.MISS:
                    return False
                self._discard_corrupt({name: (digest, error)}, deadline)
                raise

        return self._operate("exists", timeout, look)

    # Writing ------------------------------------------------------------------------------------

    def set(
        self, key: str, value: Any, ttl: float | None = None, *, timeout: Timeout = None
    ) -> bool:
        """Keep *value* for *ttl* seconds; return True when Redis confirmed it.

        False means not confirmed: a write that was sent may still land after a timeout. A value
        that would not come back equal, or is too large, is refused and logged by its path.

        Args:
            ttl: Seconds, above 0; cut by up to the setting ``ttl_jitter`` so that entries written
                together do not expire together. None: the setting ``ttl``.

        Raises:
            ValueError: *ttl* is no number of seconds above 0.
        """
        ttl_ms = self._ttl_ms(ttl)
        name, digest = self._keys.name(key)

        def write(deadline: Deadline) -> bool:
            _check_time(deadline)
            blob = self._seal(value, digest, ttl_ms)
            self._ask_to_write(self._store.set, name, blob, ttl_ms, deadline)
            return True

        return self._operate("set", timeout, write)

    def set_many(
        self, mapping: Mapping[str, Any], ttl: float | None = None, *, timeout: Timeout = None
    ) -> bool:
        """Keep several values in one round trip; return True when all of them were kept.

        Not atomic: values that can be kept are kept, also when others are refused.

        Raises:
            ValueError: *ttl* is no number of seconds above 0.
        """
        started = time.perf_counter()
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping: values by key, as a dict; not {type(mapping).__name__}")
        seconds = self._settings.ttl if ttl is None else check_ttl(ttl)
        deadline = self._deadline(timeout)
        names = {key: self._keys.name(key) for key in mapping}
        items = []
        problems: list[RedisError] = []
        try:
            self._check_usable()
            for key, (name, digest) in names.items():
                _check_time(deadline)
                try:
                    # A jitter of its own for each: what is written together shall not expire so.
                    ttl_ms = self._ttl_ms(seconds)
                    items.append((name, self._seal(mapping[key], digest, ttl_ms), ttl_ms))
                except RedisSerializationError as error:
                    problems.append(error)
            if items:
                problems += self._ask_to_write(self._set_many, items, deadline)
        except RedisError as error:
            return bool(self.give_up("set_many", error, started, len(names)))
        for problem in problems:
            self._note("set_many", problem)
        endings: list[Ending] = [(problem.outcome, problem.reason) for problem in problems]
        endings += [(Outcome.DONE, "")] * (len(names) - len(problems))
        self._monitor.record_many("set_many", endings, time.perf_counter() - started)
        return not problems

    def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        """Remove *key*; return True when Redis confirmed that it is gone, there before or not."""
        name, _ = self._keys.name(key)

        def remove(deadline: Deadline) -> bool:
            self._ask(self._store.delete, (name,), deadline)
            return True

        return self._operate("delete", timeout, remove)

    def delete_many(self, keys: Iterable[str], *, timeout: Timeout = None) -> int:
        """Remove *keys* in one round trip; return how many of them were there."""
        names = [self._keys.name(key)[0] for key in _texts(keys)]

        def remove(deadline: Deadline) -> int:
            return self._ask(self._store.delete, names, deadline) if names else 0

        return self._operate("delete_many", timeout, remove, len(names))

    # About the cache ----------------------------------------------------------------------------

    @staticmethod
    def generate_key(*args: Any, **kwargs: Any) -> str:
        """Return one key for these arguments, the same in every process. See jmcache.keys."""
        return generate_key(*args, **kwargs)

    @property
    def settings(self) -> CacheSettings:
        """The settings in use: those it was made with, until `reconfigure`."""
        return self._settings

    @without_frames
    def reconfigure(self, settings: object) -> None:
        """Use the Redis that *settings* name from now on: another host, password, pool size.

        All caches of this process that share its connections go along. Taken over is the access to
        Redis: where it is, who we are there, ``operation_timeout``, ``connection_timeout`` and
        ``max_connections``. Everything else stays as each cache was made, its namespace and TTL
        too, whatever *settings* say of it.

        Returns at once and connects to nothing. Calls that are under way end on the connection
        they have; what fails there, waits for a connection, or is a write, is carried out on the
        new Redis within its deadline. An open circuit breaker is tried at once. Idempotent; without
        effect on a closed cache.

        Args:
            settings: As for RedisCacheFactory.initialize.

        Raises:
            RedisConfigurationError: A setting cannot work, or only one of the two is ``memory://``;
                nothing has changed.
        """
        chosen = read_settings(settings)
        self._settings.moved_to(chosen)  # or it is refused
        if not self._closed:
            self._move(chosen)

    @property
    def answers_at_once(self) -> bool:
        """True when an operation would not wait for anything outside this process right now."""
        return True

    def stats(self) -> CacheStats:
        """Return what this cache counted in this process since it was made."""
        return self._monitor.stats()

    def health(self) -> Health:
        """Return how it is, from what is known already: asks nobody, waits for nothing."""
        return Health(status="degraded", reasons=("closed",)) if self._closed else Health()

    def give_up(
        self, operation: str, error: RedisError, started: float | None = None, keys: int = 1
    ) -> Any:
        """Count *operation* as ended by *error*, and return what its caller is handed then.

        For adapters too, when they could not begin: their queue is full.

        Args:
            started: When it began, by ``time.perf_counter``; None: it did not.
            keys: How many it was about.
        """
        self._note(operation, error)
        seconds = 0.0 if started is None else time.perf_counter() - started
        counted_as = "get" if operation == "lookup" else operation
        self._monitor.record_many(counted_as, [(error.outcome, error.reason)] * keys, seconds)
        return _NOTHING[operation](error)

    def close(self) -> None:
        """Let go of everything; later operations end at once as unavailable. Idempotent."""
        self._closed = True
        if self._on_close is not None:
            self._on_close()
        self._monitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cache cannot be pickled: make one in each process from its settings")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.namespace!r} {self.settings.endpoint}>"

    def _move(self, settings: CacheSettings) -> None:
        """Turn to the Redis that *settings* name; here there is none."""

    # The stops ----------------------------------------------------------------------------------

    def _ask(self, verb: Callable[..., T], *args: Any) -> T:
        """Carry out a verb of the store; its last argument is the deadline."""
        return verb(*args)

    def _ask_to_write(self, verb: Callable[..., T], *args: Any) -> T:
        return self._ask(verb, *args)

    def _judge(self, blob: bytes | None, digest: bytes, validate: Validate | None) -> Lookup:
        if blob is None:
            return Lookup(Outcome.MISS, reason="absent")
        entry = self._envelope.unseal(blob, digest)
        value = self._serializer.deserialize(entry.body)
        validate = self._validate if validate is None else validate
        if validate is not None:
            _check(value, validate)
        return Lookup(Outcome.HIT, value, max(0.0, self._now() - entry.created_ms / 1000))

    def _seal(self, value: Any, digest: bytes, ttl_ms: int) -> bytes:
        body = self._serializer.serialize(value)
        now_ms = max(0, int(self._now() * 1000))
        return self._envelope.seal(
            Entry(body=body, created_ms=now_ms, expires_ms=now_ms + ttl_ms), digest
        )

    def _set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError]:
        refused = [error for error in self._store.set_many(items, deadline) if error is not None]
        if len(refused) == len(items):  # else there is a part of Redis that takes them
            for error in refused:
                if error.trips or error.trips_writes:
                    raise error  # the breakers have to see it
        return refused

    def _get_each(
        self, keys: Iterable[str], validate: Validate | None, deadline: Deadline
    ) -> dict[str, Any]:
        found = {key: self.lookup(key, validate=validate, timeout=deadline) for key in keys}
        return {key: look.value for key, look in found.items() if look.is_hit}

    def _operate(
        self, operation: str, timeout: Timeout, body: Callable[[Deadline], T], keys: int = 1
    ) -> T:
        started = time.perf_counter()
        deadline = self._deadline(timeout)
        try:
            self._check_usable()
            result = body(deadline)
        except RedisError as error:
            nothing: T = self.give_up(operation, error, started, keys)
            return nothing
        self._monitor.record_many(
            operation, [(Outcome.DONE, "")] * keys, time.perf_counter() - started
        )
        return result

    def _discard_corrupt(
        self, entries: Mapping[bytes, tuple[bytes, RedisError]], deadline: Deadline
    ) -> None:
        names = []
        for name, (digest, error) in entries.items():
            if error.outcome is Outcome.CORRUPT:
                names.append(name)
                self._monitor.note_corrupt(digest_text(digest), error.reason)
                if error.reason == "wrong_key":
                    # A whole answer to somebody else's question: no connection is above suspicion.
                    self._store.drop_connections()
        if names and not deadline.expired:
            try:
                self._ask(self._store.delete, names, deadline)
            except RedisError as error:
                self._monitor.record("discard", Outcome.UNAVAILABLE, error.reason, 0.0)

    def _deadline(self, timeout: Timeout) -> Deadline:
        return Deadline.of_call(timeout, self.settings.operation_timeout)

    def _ttl_ms(self, ttl: float | None) -> int:
        seconds = self._settings.ttl if ttl is None else check_ttl(ttl)
        kept = 1.0 - self._settings.ttl_jitter * random.random()
        return max(1, int(seconds * kept * 1000))

    def _check_usable(self) -> None:
        """Raise what an operation ends with before it began, so that none waits or works for it."""
        if self._closed:
            raise RedisClosedError("the cache is closed")

    def _note(self, operation: str, error: RedisError) -> None:
        if isinstance(error, RedisNotServedError):
            self._monitor.note_not_served(operation, error.reason, str(error))
        elif isinstance(error, RedisSerializationError) and error.outcome is Outcome.REFUSED:
            self._monitor.note_refused(error.path, error.type_name, error.reason)


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
        monitor: Monitor,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        on_close: Callable[[], None] | None = None,
        on_reconfigure: Callable[[CacheSettings], None] | None = None,
    ) -> None:
        """Put the parts in order.

        Args:
            breaker: Guards every question to Redis.
            write_breaker: Guards writes besides: open while Redis answers, but takes none.
            on_close: Called when the cache is closed, each time it is.
            on_reconfigure: Called with new settings; None: *connection* alone turns to them.
        """
        super().__init__(
            connection,
            settings,
            monitor=monitor,
            serializer=serializer,
            validate=validate,
            on_close=on_close,
        )
        self._connection = connection
        self._access = connection.settings  # as far as _settings know it
        self._on_reconfigure = on_reconfigure
        self._retry = retry
        self._breaker = breaker
        self._write_breaker = write_breaker
        self._health = health
        self._outage = outage
        self._write_outage = write_outage

    @property
    def settings(self) -> CacheSettings:
        """The settings in use: those it was made with, until it or a neighbour was reconfigured."""
        access = self._connection.settings
        if access is not self._access:
            self._settings = self._settings.moved_to(access)
            self._access = access
        return self._settings

    @property
    def answers_at_once(self) -> bool:
        """True while the circuit breaker refuses everybody, or the cache is closed."""
        return self._closed or self._breaker.is_open

    def health(self) -> Health:
        """Return how it is, from the breaker's state and the last health check."""
        usage = self._connection.usage()
        state = self._breaker.state
        reasons = []
        if self._closed or self._connection.closed:
            reasons.append("closed")
        if state != "closed":
            reasons.append(f"breaker_{state}")
        if self._connection.impaired:
            reasons.append("node_down")
        if self._write_breaker.state != "closed":
            reasons.append("writes_refused")
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

    def _check_usable(self) -> None:
        super()._check_usable()
        if self._breaker.is_open:
            self._outage.skipped()
            raise RedisCircuitBreakerOpenError(
                "Redis is not asked while the circuit breaker is open",
                retry_after_s=self._breaker.retry_after_s,
            )

    def _ask(self, verb: Callable[..., T], *args: Any) -> T:
        self._health.start()
        deadline: Deadline = args[-1]
        try:
            return self._retry.run(lambda: self._breaker.call(verb, *args), deadline)
        except RedisCircuitBreakerOpenError:
            self._outage.skipped()
            raise

    def _ask_to_write(self, verb: Callable[..., T], *args: Any) -> T:
        # Outside the other breaker: a write that is held back here is no news of Redis.
        let_through = False

        def ask() -> T:
            nonlocal let_through
            let_through = True
            return self._ask(verb, *args)

        try:
            return self._write_breaker.call(ask)
        except RedisCircuitBreakerOpenError as error:
            if let_through:
                raise
            self._write_outage.skipped()
            raise RedisWriteRefusedError(
                "Redis took no writes lately", reason="writes_paused"
            ) from error


class LocalCache(Cache):
    """The same cache in this process alone: the old in-memory ResultsCache, made thread-safe.

    For development, for tests, and where nothing is shared. Entries expire after their TTL, the
    least recently used one goes when there are more than *max_entries*. Values take the same way
    as to Redis, through serialization and envelope, so what works here works there. A forked child
    starts empty.
    """

    def __init__(
        self,
        max_entries: int = 1000,
        ttl: float = 300.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        settings: CacheSettings | None = None,
        store: LocalStore | None = None,
        monitor: Monitor | None = None,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Start empty.

        Args:
            max_entries: Entries kept at most, 1 or more.
            ttl: Seconds a value stays, above 0, where ``set`` is not told otherwise.
            clock: Seconds, never going back; decides what has expired.
            settings: Taken instead of *max_entries* and *ttl*, for namespace and limits too.
            store: Shared with other caches of this process; None: one of its own.
            on_close: Called when the cache is closed, each time it is.
        """
        if settings is None:
            settings = CacheSettings(memory=True, max_entries=max_entries, ttl=ttl, ttl_jitter=0.0)
        if store is None:
            store = LocalStore(settings.max_entries, clock)
            on_close = on_close or store.close
        super().__init__(
            store,
            settings,
            monitor=monitor or Monitor(settings.namespace),
            serializer=serializer,
            validate=validate,
            now=clock,
            on_close=on_close,
        )


def _texts(keys: Iterable[str]) -> Iterable[str]:
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise TypeError(f"keys: several keys as a list or the like, not {type(keys).__name__}")
    return keys


def _check_time(deadline: Deadline) -> None:
    if deadline.expired:
        raise RedisHurriedError("the deadline was over before the value was ready to be sent")


def _check(value: Any, validate: Validate) -> None:
    ask = getattr(validate, "model_validate", None) or getattr(validate, "validate_python", None)
    if not callable(ask or validate):
        raise TypeError(
            "validate: a callable, or a type with model_validate or validate_python;"
            f" not {type(validate).__name__}"
        )
    if inspect.iscoroutinefunction(ask or validate):
        raise TypeError("validate: a plain function, not a coroutine function: nobody awaits it")
    try:
        accepted = (ask or validate)(value)
    except _NO as error:
        raise RedisCorruptEntryError(
            "the value did not pass its validation", reason="invalid"
        ) from error
    if ask is None and accepted is False:
        raise RedisCorruptEntryError("the value did not pass its validation", reason="invalid")
