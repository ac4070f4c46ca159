"""The verbs of a cache: what a caller may ask, and what is handed out however it ends.

Whatever way an operation goes, it ends in exactly one outcome, which is counted once.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, Never, NoReturn, ParamSpec, Self, TypeVar, Unpack

from jmcache.background import Background
from jmcache.cache._adapting import Adapting
from jmcache.cache._cached import CachedFunction, KeySpec, TagsSpec, check_cached, decorator
from jmcache.cache._compute import Computation, Spawn
from jmcache.cache._guard import LoadGuard
from jmcache.cache._keeper import Keeper
from jmcache.cache._lead import Looks, Order, Results, Workshop
from jmcache.cache._loaders import check_plain, for_many, for_one
from jmcache.cache._look import NEAR, Kept, Key, Look
from jmcache.cache._plan import (
    FunctionOptions,
    Options,
    Plan,
    check_callable,
    check_tags,
    check_validate,
    is_limit,
)
from jmcache.cache._steps import Steps, run
from jmcache.cache._stops import Stops, Validate, check_time
from jmcache.deadline import Deadline
from jmcache.errors import (
    LoaderOverloadedError,
    LoaderTimeoutError,
    RedisError,
    RedisSerializationError,
)
from jmcache.flight import Flights
from jmcache.health import Health
from jmcache.keys import KeySpace, generate_key
from jmcache.monitoring import CacheStats
from jmcache.outcome import Lookup, Outcome
from jmcache.settings import CacheSettings, check_ttl, read_settings, without_frames

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Ending = tuple[Outcome, str]
_HIT = Outcome.HIT  # looking a member up in its class costs 3.11 as much as a dict
Timeout = float | Deadline | None

NO_DEFAULT: Final = object()  # "no default was given", where None may be one
_KEYS_KNOWN = 2048  # names of keys, some 0.5 KB each
_SHORT_KEY = 128  # characters; generate_key's have 73
_BACKGROUND_THREADS = 4  # refreshes at one time
_BACKGROUND_QUEUE = 64  # refreshes waiting for one of them; more are skipped
_RETURNS_QUEUE = 10_000  # leases to be given back, a round trip each; more end by themselves
_LOAD_THREADS = 32  # loads at one time that may outlive their caller's patience
_LOAD_QUEUE = 64  # such loads waiting for a thread; more run on their caller's own

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
    "invalidate_tags": lambda error: False,
    "clear": lambda error: False,
}


class Cache:
    """What every cache here can do. Use RedisCache or LocalCache.

    Thread-safe. Values are copied in and out: changing one does not change what is cached; with a
    near cache they come out read-only, one for all. No operation raises because Redis is away, and
    each ends within its deadline; what the caller gets then is None, False, 0 or an empty dict, and
    ``lookup`` and ``stats`` tell why.

    Wrong arguments do raise: TypeError for a key that is no text, ValueError for a TTL or timeout
    that is no number of seconds above 0.

    Every operation takes ``timeout``: seconds, a Deadline that runs already, or None for the
    setting ``operation_timeout``.
    """

    def __init__(
        self,
        stops: Stops,
        *,
        flights: Flights | None = None,
        guard: LoadGuard | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._stops = stops
        self._settings = stops.settings
        self._shop = Workshop(
            stops,
            Flights() if flights is None else flights,
            LoadGuard() if guard is None else guard,
            Background(_BACKGROUND_THREADS, _BACKGROUND_QUEUE),
            Background(1, _RETURNS_QUEUE),
            Keeper(stops.renew),
            stops.monitor.note,
        )
        # Apart from refreshes: those may wait, while somebody waits for each of these.
        self._loads = Background(_LOAD_THREADS, _LOAD_QUEUE)
        self._monitor = stops.monitor
        self._keys = stops.keys
        # A hot key's name is looked up in a tenth of the time that it takes to reckon.
        self._lately = lru_cache(_KEYS_KNOWN)(partial(_key_of, stops.keys))
        self._nearby = stops.nearby
        self._on_close = on_close

    # Reading ------------------------------------------------------------------------------------

    def get(
        self, key: str, *, validate: Validate | None = None, timeout: Timeout = None
    ) -> Any | None:
        """Return the cached value, or None for anything but a fresh one.

        Args:
            key: As generate_key returns it, or any text.
            validate: Checked before the value is handed out, see lookup.
        """
        found = self._find(key, validate, timeout)
        return found.value if found.outcome is _HIT else None

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
        return self._find(key, validate, timeout).told()

    def _find_near(
        self,
        key: str,
        validate: Validate | None,
        timeout: Timeout,
        *,
        at_once: bool = False,
    ) -> Look | None:
        started = time.perf_counter()
        if timeout is not None:
            self._deadline(timeout)  # a wrong one is not to depend on what is kept
        if validate is not None:
            check_validate(validate)
        look = self._stops.look_near(self._key(key).name, validate, at_once=at_once)
        if look is not None:
            self._monitor.record("get", _HIT, NEAR, time.perf_counter() - started)
        return look

    def _find(self, key: str, validate: Validate | None, timeout: Timeout) -> Look:
        if self._nearby.is_on:
            near = self._find_near(key, validate, timeout)
            if near is not None:
                return near
        started = time.perf_counter()
        if (refused := self._refused(key, validate, timeout, started)) is not None:
            return refused
        deadline = self._deadline(timeout)
        slot = self._key(key)
        if validate is not None:
            check_validate(validate)
        try:
            look = self._stops.accepted(self._stops.look_at(slot, deadline), validate)
            if isinstance(look, RedisError):
                raise look
        except RedisError as error:
            self._stops.discard_corrupt({slot: error}, deadline)
            look = error
        return self._found(look, started)

    def _found(self, look: Look | RedisError, started: float) -> Look:
        """Count a get that *started* then, by time.perf_counter, and ended in *look*."""
        if isinstance(look, RedisError):
            self.give_up("lookup", look, started)
            return Look(look.outcome, look.reason)
        self._monitor.record("get", look.outcome, look.reason, time.perf_counter() - started)
        return look

    def _refused(
        self, key: str, validate: Validate | None, timeout: Timeout, started: float
    ) -> Look | None:
        """Return how a get ends that cannot be asked for now, counted; None when it can."""
        look = self._stops.refused()
        if look is None:
            return None
        if type(key) is not str:
            self._key(key)  # or it is refused
        if timeout is not None:
            self._deadline(timeout)
        if validate is not None:
            check_validate(validate)
        self._monitor.record("get", look.outcome, look.reason, time.perf_counter() - started)
        return look

    def get_many(
        self, keys: Iterable[str], *, validate: Validate | None = None, timeout: Timeout = None
    ) -> dict[str, Any]:
        """Return the fresh values among *keys*, by key, in one round trip.

        A key without a fresh value is left out; so a cached None is there, as None.
        """
        started = time.perf_counter()
        deadline = self._deadline(timeout)
        slots = {key: self._key(key) for key in _texts(keys)}
        check_validate(validate)
        near = self._near_looks(slots, validate)
        asked = {key: slot for key, slot in slots.items() if key not in near} if near else slots
        wanted = list(asked.values())
        try:
            if wanted or not near:
                self._stops.check_usable()
            judged = self._stops.look_together(wanted, deadline) if wanted else []
        except RedisError as error:
            if error.outcome is Outcome.CORRUPT and len(wanted) > 1:
                # One of them spoils the common reply, as a foreign giant does: each by itself.
                return self._get_each(slots, validate, deadline)
            self._stops.discard_corrupt(dict.fromkeys(wanted, error), deadline)
            self._count_near(near, started)
            self.give_up("get_many", error, started, len(wanted))
            return {key: look.value for key, look in near.items()}
        looks = dict(zip(asked, judged, strict=True))
        if validate is not None or self._stops.validates:
            looks = {key: self._stops.accepted(look, validate) for key, look in looks.items()}
        errors = {asked[key]: look for key, look in looks.items() if isinstance(look, RedisError)}
        self._stops.discard_corrupt(errors, deadline)
        endings = [(_HIT, NEAR)] * len(near)
        endings += [(look.outcome, look.reason) for look in looks.values()]
        self._monitor.record_many("get_many", endings, time.perf_counter() - started)
        answers = {key: near.get(key) or looks[key] for key in slots} if near else looks
        return {
            key: look.value
            for key, look in answers.items()
            if isinstance(look, Look) and look.outcome is _HIT
        }

    def _near_looks(self, slots: Mapping[str, Key], validate: Validate | None) -> dict[str, Look]:
        """Return the hits that are kept in this process."""
        if not self._nearby.is_on:
            return {}
        looks = {key: self._stops.look_near(slot.name, validate) for key, slot in slots.items()}
        return {key: look for key, look in looks.items() if look is not None}

    def _count_near(self, near: Mapping[str, Look], started: float) -> None:
        endings: list[Ending] = [(_HIT, NEAR)] * len(near)
        self._monitor.record_many("get_many", endings, time.perf_counter() - started)

    def exists(self, key: str, *, timeout: Timeout = None) -> bool:
        """Return True when get would find something: the entry is read and judged, not decoded."""
        slot = self._key(key)

        def look(deadline: Deadline) -> bool:
            if self._stops.look_near(slot.name, None) is not None:
                return True
            self._stops.check_usable()
            try:
                found = self._stops.look_alone(slot, deadline, decode=False)
            except RedisError as error:
                self._stops.discard_corrupt({slot: error}, deadline)
                if error.outcome is Outcome.MISS:
                    return False
                raise
            return found.outcome is _HIT

        return self._operate("exists", timeout, look)

    # Writing ------------------------------------------------------------------------------------

    def set(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        timeout: Timeout = None,
    ) -> bool:
        """Keep *value* for *ttl* seconds; return True when Redis confirmed it.

        False means not confirmed: a write that was sent may still land after a timeout. A value
        that would not come back equal, or is too large, is refused and logged by its path.

        Args:
            ttl: Seconds, above 0; cut by up to the setting ``ttl_jitter`` so that entries written
                together do not expire together. None: the setting ``ttl``.
            tags: What the entry can be invalidated by, see invalidate_tags. Costs a round trip.

        Raises:
            ValueError: *ttl* is no number of seconds above 0, or a tag is empty.
            TypeError: *tags* are not several texts.
        """
        kept = Kept(self._ttl(ttl))
        slot = self._key(key)
        labels = check_tags(tags)

        def write(deadline: Deadline) -> bool:
            self._stops.check_usable()
            check_time(deadline)
            body = self._stops.pack(value)
            [refusal] = self._stops.write([(slot, body, kept)], labels, deadline)
            if refusal is not None:
                raise refusal
            return True

        return self._operate("set", timeout, write)

    def set_many(
        self,
        mapping: Mapping[str, Any],
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        timeout: Timeout = None,
    ) -> bool:
        """Keep several values in one round trip; return True when all of them were kept.

        Not atomic: values that can be kept are kept, also when others are refused.

        Raises:
            ValueError: As set.
            TypeError: As set.
        """
        started = time.perf_counter()
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping: values by key, as a dict; not {type(mapping).__name__}")
        kept = Kept(self._ttl(ttl))
        labels = check_tags(tags)
        deadline = self._deadline(timeout)
        wanted = [(self._key(key), value, kept) for key, value in mapping.items()]
        try:
            answers = self._set_each(wanted, labels, deadline)
        except RedisError as error:
            return bool(self.give_up("set_many", error, started, len(wanted)))
        problems = [answer for answer in answers if answer is not None]
        for problem in problems:
            self._stops.note("set_many", problem)
        endings: list[Ending] = [(problem.outcome, problem.reason) for problem in problems]
        endings += [(Outcome.DONE, "")] * (len(wanted) - len(problems))
        self._monitor.record_many("set_many", endings, time.perf_counter() - started)
        return not problems

    def _set_each(
        self,
        wanted: Sequence[tuple[Key, Any, Kept]],
        labels: tuple[str, ...],
        deadline: Deadline,
        sizes: list[int] | None = None,
    ) -> list[RedisError | None]:
        """Keep values in one round trip, uncounted; None for each, or why not.

        Args:
            sizes: Filled with the bytes of each, 0 for one that cannot be kept.

        Raises RedisError when none could be kept, for the same reason.
        """
        self._stops.check_usable()
        answers: list[RedisError | None] = []
        entries = []
        for key, value, kept in wanted:
            check_time(deadline)
            body = b""
            try:
                body = self._stops.pack(value)
                entries.append((key, body, kept))
                answers.append(None)
            except RedisSerializationError as error:
                answers.append(error)
            if sizes is not None:
                sizes.append(len(body))
        if entries:
            written = iter(self._stops.write(entries, labels, deadline))
            answers = [next(written) if answer is None else answer for answer in answers]
        return answers

    def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        """Remove *key*; return True when Redis confirmed that it is gone, there before or not.

        False means not confirmed: it is kept, counts as gone in this process from now on, and is
        repeated as soon as Redis is back. Either way a load that is under way will not be stored.
        """
        slot = self._key(key)

        def remove(deadline: Deadline) -> bool:
            self._shop.flights.void(slot.name)
            self._stops.delete((slot,), deadline)
            return True

        return self._operate("delete", timeout, remove)

    def delete_many(self, keys: Iterable[str], *, timeout: Timeout = None) -> int:
        """Remove *keys* in one round trip; return how many of them were there. See delete.

        More than 5,000 take one more for each 5,000.
        """
        timeout = self._deadline(timeout)  # naming many takes its time, too
        slots = [self._key(key) for key in _texts(keys)]

        def remove(deadline: Deadline) -> int:
            for slot in slots:
                self._shop.flights.void(slot.name)
            return self._stops.delete(slots, deadline)

        return self._operate("delete_many", timeout, remove, len(slots))

    def invalidate_tags(self, *tags: str, timeout: Timeout = None) -> bool:
        """Make every entry with one of *tags* a miss, in all processes at once.

        Costs the same for one entry or a million: a counter for each tag is moved on. Returns
        True when Redis confirmed it; after False it holds in this process, and is repeated as
        soon as Redis is back.

        Raises:
            TypeError: A tag is not text.
            ValueError: A tag is empty.
        """
        counters = [self._keys.tag_counter(tag) for tag in check_tags(tags)]

        def move(deadline: Deadline) -> bool:
            if counters:
                self._shop.flights.void_all(self._keys.prefix)
                self._stops.move(counters, deadline)
            return True

        return self._operate("invalidate_tags", timeout, move)

    def clear(self, *, timeout: Timeout = None) -> bool:
        """Make every entry of this namespace a miss, in all processes at once; as invalidate_tags.

        Nothing is searched for or removed: what is there ends with its TTL.
        """

        def move(deadline: Deadline) -> bool:
            self._shop.flights.void_all(self._keys.prefix)
            self._stops.move(self._stops.spaces, deadline)
            return True

        return self._operate("clear", timeout, move)

    # Computing ----------------------------------------------------------------------------------

    def get_or_set(
        self,
        key: str,
        loader: Callable[..., T],
        *,
        default: Any = NO_DEFAULT,
        refresher: Callable[[str], object] | None = None,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> T:
        """Return the cached value, or compute it once and keep it.

        Whoever asks for the same key meanwhile, in this process or another, waits for the one that
        computes, and gets a copy of its value. An old value within ``stale_ttl`` is handed out at
        once while one caller's request refreshes it in the background. With Redis away values are
        computed and not kept, still once at a time in each process.

        Args:
            loader: Computes the value, on the calling thread and outside every lock, for as long as
                it takes; in the background for a refresh or with ``loader_timeout``. Called with a
                LoadContext if it takes an argument. May use the cache itself, for the same key too.
            default: Returned in place of LoaderOverloadedError.
            refresher: Has a stale value refreshed elsewhere, by a Celery task say: called with the
                key, in place of a refresh in this process.
            validate: See lookup.
            timeout: Seconds for looking, leasing and storing together.
            ttl, tags: As for set.
            stale_ttl: Seconds after its TTL in which a value is handed out while it is refreshed.
            early_refresh: Share of the TTL, such as 0.8, after which it is refreshed ahead of time;
                or "xfetch": the sooner the longer it takes to compute (Vattani et al., 2015).
            stale_if_error: Seconds after its TTL in which a value is handed out when the loader
                fails. The next attempt is made 5 s later.
            no_stale_for: Exceptions of the loader that come out all the same. Celery's time limits
                and everything that is no Exception always do.
            negative_ttl: Seconds that a value is kept which stands for "there is none".
            negative: Says which value does; None: the value None.
            lock_timeout: Seconds for which the loader may hold off others at most, and the longest
                wait for somebody else's; then the caller computes it too. None: the setting.
            soft_timeout: Seconds after which an old value within stale_ttl or stale_if_error is
                returned while the loader goes on.
            loader_timeout: Seconds after which LoaderTimeoutError is raised while the loader goes
                on; its result is kept.
            refresh: "background", or "inline" on the time of the caller who finds it stale.
            force: Compute it whatever is cached, and keep it in its place.
            read_only: Keep nothing. write_only: do not look, and wait for nobody.

        Raises:
            TypeError, ValueError: An argument is wrong. Names it.
            LoaderTimeoutError: See loader_timeout.
            LoaderOverloadedError: Redis is away, ``max_outage_loads`` run already, and none ended
                within lock_timeout.

        What *loader* raises reaches the callers that wait for it, and is not cached.
        """
        check_plain("loader", loader)
        check_plain("refresher", refresher)
        steps: Steps[T] = self.computing(
            key, loader, self._spawn, default, refresher, validate, timeout, options
        )
        return run(steps)

    def get_or_set_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Mapping[str, T]],
        *,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[Options],
    ) -> dict[str, T]:
        """Return the cached values of *keys*, and compute those that are missing in one call.

        One round trip to look, one to lease, one to store. A key for which *loader* returns
        nothing is left out.

        Args:
            loader: Given the keys to compute; returns values by key, as a dict.

        The rest is that of get_or_set.
        """
        check_plain("loader", loader)
        return run(self.computing_many(keys, loader, self._spawn, validate, timeout, options))

    def cached(
        self,
        *bare: Never,
        key: KeySpec = None,
        tags: TagsSpec = (),
        refresher: Callable[..., object] | None = None,
        default: Any = NO_DEFAULT,
        validate: Validate | None = None,
        timeout: Timeout = None,
        **options: Unpack[FunctionOptions],
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
        """Return a decorator: results of the function are cached, as by get_or_set.

        The function gets ``invalidate``, ``refresh`` and ``key``, called with its own arguments.

        Args:
            bare: Nothing: it is written with parentheses, also without options.
            key: None: module, qualified name and all arguments, which have to be what generate_key
                takes; a template such as "{self.id}:{limit}"; or a callable that is given the
                arguments and returns what tells calls apart. A method needs one of the latter two.
            tags: Templates such as "job:{job_id}", or a callable that returns tags.
            refresher: Called with the arguments to have a stale result refreshed elsewhere, such as
                the ``delay`` of a Celery task that calls ``refresh``.

        Raises:
            TypeError, ValueError: The function, key or tags do not fit. When it decorates; for
                arguments without a place in a key, when it is called.
        """
        check_cached(bare, validate, timeout, options, self._settings)
        check_plain("refresher", refresher)
        compute = partial(
            self.get_or_set, default=default, validate=validate, timeout=timeout, **options
        )
        check = partial(check_plain, "cached")
        return decorator(CachedFunction, compute, self.delete, key, tags, refresher, check)

    def computing(
        self,
        key: str,
        loader: Callable[..., Any],
        spawn: Spawn,
        default: Any,
        refresher: Callable[[str], object] | None,
        validate: Validate | None,
        timeout: Timeout,
        options: Options,
        *,
        detached: bool = False,
    ) -> Steps[Any]:
        """Return get_or_set as steps, for adapters that wait in a way of their own.

        Args:
            spawn: Takes steps in the background; False when it cannot.
            detached: Load in the background, so that a load outlives a caller who is cancelled.
        """
        slot, plan = self._key(key), Plan.of(options, self._settings)
        order = self._order("get_or_set", for_one(loader, slot, plan), plan, timeout, validate)
        check_callable("refresher", refresher)
        hook = None if refresher is None else partial(refresher, key)
        work = Computation(self._shop, order, spawn, hook, detached=detached)
        try:
            results = yield from self._counted(work, order, (slot,))
        except LoaderOverloadedError:
            if default is NO_DEFAULT:
                raise
            return default
        return results[slot].value

    def computing_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Any],
        spawn: Spawn,
        validate: Validate | None,
        timeout: Timeout,
        options: Options,
        *,
        detached: bool = False,
    ) -> Steps[dict[str, Any]]:
        """Return get_or_set_many as steps, see computing."""
        slots = {self._key(key): key for key in _texts(keys)}
        plan = Plan.of(options, self._settings)
        order = self._order("get_or_set_many", for_many(loader, slots), plan, timeout, validate)
        work = Computation(self._shop, order, spawn, detached=detached)
        results = yield from self._counted(work, order, tuple(slots))
        return {slots[slot]: landed.value for slot, landed in results.items()}

    def _counted(self, work: Computation, order: Order, slots: tuple[Key, ...]) -> Steps[Results]:
        started = time.perf_counter()
        endings: list[Ending]
        try:
            results = yield from work.steps(slots)
        except Exception as error:
            if not is_limit(error):
                ending: Ending = (Outcome.MISS, "loader_failed")
                if isinstance(error, (LoaderOverloadedError, LoaderTimeoutError)):
                    ending = (error.outcome, error.reason)
                endings = [ending] * len(slots)
                self._monitor.record_many(order.operation, endings, time.perf_counter() - started)
            raise
        endings = [
            (landed.outcome, "computed" if landed.outcome is Outcome.MISS else landed.reason)
            for landed in results.values()
        ]
        endings += [(Outcome.MISS, "absent")] * (len(slots) - len(results))
        self._monitor.record_many(order.operation, endings, time.perf_counter() - started)
        return results

    def _order(
        self,
        operation: str,
        loader: Callable[[Looks], Any],
        plan: Plan,
        timeout: Timeout,
        validate: Validate | None,
    ) -> Order:
        check_validate(validate)
        return Order(operation, loader, plan, self._deadline(timeout).remaining(), validate)

    def _spawn(self, steps: Steps[Any], *, awaited: bool = False) -> bool:
        context = contextvars.copy_context()
        pool = self._loads if awaited else self._shop.background
        return pool.submit(partial(context.run, run, steps))

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
        if not self._stops.closed:
            self._move(chosen)

    @property
    def adapting(self) -> Adapting:
        """The same in pieces, for adapters that wait in a way of their own."""
        return Adapting(self, self._stops)

    @property
    def answers_at_once(self) -> bool:
        """True when an operation would not wait for anything outside this process right now."""
        return self._stops.answers_at_once

    def stats(self) -> CacheStats:
        """Return what this cache counted in this process since it was made."""
        return self._monitor.stats()

    def health(self) -> Health:
        """Return how it is, from what is known already: asks nobody, waits for nothing."""
        return Health(status="degraded", reasons=("closed",)) if self._stops.closed else Health()

    def give_up(
        self, operation: str, error: RedisError, started: float | None = None, keys: int = 1
    ) -> Any:
        """Count *operation* as ended by *error*, and return what its caller is handed then.

        For adapters too, when they could not begin: their queue is full.

        Args:
            started: When it began, by ``time.perf_counter``; None: it did not.
            keys: How many it was about.
        """
        self._stops.note(operation, error)
        seconds = 0.0 if started is None else time.perf_counter() - started
        counted_as = "get" if operation == "lookup" else operation
        self._monitor.record_many(counted_as, [(error.outcome, error.reason)] * keys, seconds)
        return _NOTHING[operation](error)

    def close(self) -> None:
        """Let go of everything; later operations end at once as unavailable. Idempotent."""
        self._stops.closed = True
        self._nearby.close()
        if self._on_close is not None:
            self._on_close()
        self._monitor.close()
        self._shop.dismiss()
        self._loads.dismiss()

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

    # --------------------------------------------------------------------------------------------

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
            result = body(deadline)
        except RedisError as error:
            nothing: T = self.give_up(operation, error, started, keys)
            return nothing
        seconds = time.perf_counter() - started
        if keys == 1:
            self._monitor.record(operation, Outcome.DONE, "", seconds)
        else:
            self._monitor.record_many(operation, [(Outcome.DONE, "")] * keys, seconds)
        return result

    def _key(self, key: str) -> Key:
        if type(key) is str and len(key) <= _SHORT_KEY:
            return self._lately(key)
        return _key_of(self._keys, key)

    def _deadline(self, timeout: Timeout) -> Deadline:
        return Deadline.of_call(timeout, self.settings.operation_timeout)

    def _ttl(self, ttl: float | None) -> float:
        return self._settings.ttl if ttl is None else check_ttl(ttl)


def _key_of(keys: KeySpace, key: str) -> Key:
    name, digest = keys.name(key)
    return Key(name, digest, keys.lease(name))


def _texts(keys: Iterable[str]) -> Iterable[str]:
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise TypeError(f"keys: several keys as a list or the like, not {type(keys).__name__}")
    return keys
