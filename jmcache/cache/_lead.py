"""Whoever leads the flights of some keys: finds their values after all, or loads and stores them.

    lease ──▶ another process loads it: look again, and again ──▶ its value
      ▼ ours, and the look that came with it found nothing new
    load  ──▶ land it for whoever waits ──▶ store it, if the lease is still ours
      ▼ the loader failed
    an old value within stale_if_error, or what the loader raised

The lease keeps the promise about deletes: any delete voids it, and a load whose lease was voided
is not stored (leases: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013). Trouble with it
costs its protection and never the result.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from jmcache.background import Background
from jmcache.cache._guard import LoadGuard, Permit
from jmcache.cache._keeper import Hold, Keeper
from jmcache.cache._look import Kept, Key, Look
from jmcache.cache._plan import Plan, is_limit
from jmcache.cache._steps import Ask, Load, Name, Pause, Steps, Work, names_loading
from jmcache.cache._stops import Stops, Validate
from jmcache.deadline import Deadline
from jmcache.errors import LoaderOverloadedError, RedisError
from jmcache.flight import Flight, Flights
from jmcache.outcome import Outcome
from jmcache.store import COOLING

_FIRST_PAUSE_S = 0.004  # between looks at what another process is loading
_LONGEST_PAUSE_S = 0.016  # whoever waits has the value less than 30 ms after it was stored
_GUARD_PAUSE_S = 0.01  # between attempts to be one of those who may load without Redis
_COOL_S = 5.0  # without a new attempt after a load failed, where an old value is at hand
HOLDERS = 2  # waited for, one after the other: the first may have died
_PLACE: Name = (0, b"")  # among the names of a load that has a place of a guard's
_ATTEMPTS = 2  # to lease, while Redis is not known to be away
_LEAST_S = 0.001  # to store a result with, whatever looking for it took

Looks = dict[Key, Look]


class Landed(NamedTuple):
    """What a flight brought.

    Attributes:
        value: As it was loaded, or read.
        body: The same, serialized, to copy it for others; None: it cannot be, and is shared.
        outcome: HIT or STALE when it was cached, MISS when it was computed.
        asked_at: When the store was asked for what was cached; by time.monotonic.
        reason: NEAR for what this process had.
    """

    value: Any
    body: bytes | None
    outcome: Outcome
    asked_at: float = math.inf
    reason: str = ""

    @classmethod
    def of(cls, look: Look, outcome: Outcome | None = None) -> Landed:
        """What *look* found, to be handed out as it is, or as *outcome*."""
        reason = look.reason if look.outcome is Outcome.HIT else ""
        return cls(look.value, look.body, outcome or look.outcome, look.asked_at, reason)


Results = dict[Key, Landed]


class Mark(NamedTuple):
    """What a flight is marked with once its load begins.

    Attributes:
        holder: The token of the lease that protects the load; empty without.
        generation: What its entry will carry; None without a lease.
        at: When, by time.monotonic.
    """

    holder: bytes
    generation: int | None
    at: float


class Loaded(NamedTuple):
    """What a loader returned.

    Attributes:
        values: By key; those that are missing have none.
        ttl_s: Seconds they are fresh, as the loader chose; None: as planned.
        stored: Are they to be kept?
    """

    values: Mapping[Key, Any]
    ttl_s: float | None = None
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all computations of one cache share.

    Attributes:
        stops: The way to the store.
        flights: The loads under way in this process, for all caches of the store.
        guard: Who may load while Redis is away; of all those caches, too.
        background: Where stale values are refreshed.
        returns: Where leases are given back: apart from refreshes, which may take long, while
            everybody else waits for a lease that nobody uses any more.
        keeper: Who renews the leases of loads that take long.
        note: Told what happened, in a word.
        clock: Seconds, never going back.
    """

    stops: Stops
    flights: Flights
    guard: LoadGuard
    background: Background
    returns: Background
    keeper: Keeper
    note: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic

    def dismiss(self) -> None:
        """Let threads end that nobody gives work any more."""
        for one in (self.background, self.returns, self.keeper):
            one.dismiss()

    def name(self, name: bytes) -> Name:
        """Return *name* as that of a load: another cache's load of the same name is none of ours.

        Caches of one store are the same: the lease of one would hold off the other.
        """
        return id(self.stops.store), name

    @property
    def space(self) -> bytes:
        """The counter of the namespace, which stands for it."""
        return self.stops.keys.space_counter


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done for a caller.

    Attributes:
        operation: The verb it came by, for the log.
        loader: Given the looks of the keys that are to be computed.
        plan: How.
        timeout_s: Seconds for looking, leasing and storing together.
        validate: As for lookup.
    """

    operation: str
    loader: Callable[[Looks], Any]
    plan: Plan
    timeout_s: float
    validate: Validate | None = None


class Asking:
    """Questions to the store on behalf of one order, within its time."""

    def __init__(self, shop: Workshop, order: Order) -> None:
        self._shop = shop
        self._order = order
        self._left_s = order.timeout_s

    def renew(self) -> None:
        """Begin the time anew: Redis answered, and what took long was something else."""
        self._left_s = self._order.timeout_s

    def ask(self, work: Callable[[Deadline], Any]) -> Steps[Any]:
        """Do *work* within what is left of the time."""
        clock = self._shop.clock
        began = clock()
        try:
            answer = yield Ask(work, Deadline(max(self._left_s, _LEAST_S)))
            return answer
        finally:
            self._left_s -= clock() - began

    def look(self, keys: Iterable[Key]) -> Steps[Looks]:
        """Look; without an answer, every look says so."""
        keys, stops, order = tuple(keys), self._shop.stops, self._order

        def look(deadline: Deadline) -> list[Look]:
            try:
                stops.check_usable()
                return stops.look(
                    keys, deadline, validate=order.validate, tags=order.plan.tags, holders=True
                )
            except RedisError as error:
                stops.discard_corrupt(dict.fromkeys(keys, error), deadline)
                raise

        try:
            looks = yield from self.ask(look)
            return dict(zip(keys, looks, strict=True))
        except RedisError as error:
            self.note(error)
            return dict.fromkeys(keys, Look(error.outcome, error.reason, reached=False))

    def note(self, error: RedisError) -> None:
        """Log what an operator has to know of *error*."""
        self._shop.stops.note(self._order.operation, error)


class Lead:
    """Leads *flights* for one order. For one thread or task."""

    def __init__(self, shop: Workshop, order: Order, flights: Mapping[Key, Flight]) -> None:
        self._shop = shop
        self._order = order
        self._plan = order.plan
        self._flights = flights
        self._asking = Asking(shop, order)
        self._token = secrets.token_bytes(16)
        self._held: set[Key] = set()  # whose leases may be ours
        self._results: Results = {}
        self._failure = 0  # what the loader raised, as its id

    def is_failure(self, error: BaseException) -> bool:
        """Is *error* what the loader raised, or one of ours?"""
        return id(error) == self._failure or isinstance(error, RedisError)

    def steps(
        self, looks: Looks, *, wait: bool = True, waited_for: Iterable[bytes] = ()
    ) -> Steps[Results]:
        """Return the values, where there are any.

        Args:
            looks: What was seen so far.
            wait: For what others load, up to lock_timeout; and then load it too.
            waited_for: Holders of leases that have had their time.
        """
        try:
            if self._plan.read_only:
                yield from self._load(looks, leased=False)
            else:
                yield from self._lead(looks, wait, set(waited_for))
            return self._results
        finally:
            self._free(self._held, 0.0)

    def hand_over(self, looks: Looks, refresher: Callable[[], object]) -> Steps[None]:
        """Take the leases for whoever refreshes elsewhere, and have that begun by *refresher*.

        Not if others have them all. Nobody gives them back: who loads by force, or sets, voids
        them, or they end.
        """
        try:
            taken = yield from self._take(looks, False)
            if any([ours for ours, _ in taken.values()]):
                self._shop.note("refresh")
                yield from self._call(Load(lambda _: refresher(), looks, ()))
            self._held.clear()
        finally:
            self._free(self._held, 0.0)

    def _lead(self, looks: Looks, wait: bool, waited_for: set[bytes]) -> Steps[None]:
        until = Deadline.over() if waited_for else Deadline(self._plan.lock_timeout)
        steal: set[Key] = set(looks) if self._plan.computes_anyway else set()
        attempts, turns = _ATTEMPTS, HOLDERS
        while looks:
            away = {key: look for key, look in looks.items() if look.is_away or not attempts}
            if away:
                yield from self._load(away, leased=False)
                looks = {key: look for key, look in looks.items() if key not in away}
            looks = yield from self._win(looks, steal)
            if not looks or not wait:
                return
            holders = {look.holder for look in looks.values() if look.holder} - waited_for
            if holders and turns:
                # Begun only now: the lease of one that dies ends before the wait for it does.
                until = Deadline(self._plan.lock_timeout)
                waited_for |= holders
                turns -= 1
            if until.expired:
                yield from self._load(looks, leased=False)
                return
            if all([look.reached for look in looks.values()]):
                looks, steal = yield from self._wait(looks, until)
            else:
                attempts -= 1

    def _win(self, looks: Looks, steal: set[Key]) -> Steps[Looks]:
        """Take the leases that are to be had, and load what they are for; return the other keys."""
        others: Looks = {}
        for stealing in (False, True):
            part = {key: look for key, look in looks.items() if (key in steal) is stealing}
            if not part:
                continue
            try:
                taken = yield from self._take(part, stealing)
            except RedisError as error:
                self._asking.note(error)
                for key, look in part.items():
                    others[key] = look._replace(reason=error.reason, reached=False)
                continue
            ours: Looks = {}
            for key, (is_ours, look) in taken.items():
                if not is_ours:
                    self._held.discard(key)
                if self._is_new(looks[key], look):
                    self._land(key, Landed.of(look))
                elif is_ours:
                    self._flights[key].mark = Mark(self._token, look.generation, time.monotonic())
                    ours[key] = look
                else:
                    others[key] = look
            if ours:
                yield from self._load(ours, leased=True)
        return others

    def _wait(self, looks: Looks, until: Deadline) -> Steps[tuple[Looks, set[Key]]]:
        """Look until something changes; return the keys that are still to be had, and how."""
        pause_s = _FIRST_PAUSE_S
        while looks:
            free = {key for key, look in looks.items() if look.holder is None or look.is_away}
            cooling = {key for key, look in looks.items() if look.holder == COOLING}
            for key in cooling:
                if looks[key].is_within(self._plan.after_s):
                    self._land(key, Landed.of(looks[key], Outcome.STALE))
                    del looks[key]
            steal = cooling.intersection(looks)
            if free or steal or until.expired:
                return looks, steal
            yield Pause(random.uniform(0.5, 1.0) * min(pause_s, until.remaining()))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._asking.renew()
            seen = yield from self._asking.look(looks)
            for key, look in seen.items():
                if look.outcome is Outcome.HIT and not self._plan.computes_anyway:
                    self._land(key, Landed.of(look))
                    del looks[key]
                elif look.reached or look.is_away:
                    looks[key] = look
        return looks, set()

    # Loading ------------------------------------------------------------------------------------

    def _load(self, looks: Looks, *, leased: bool) -> Steps[None]:
        """Load the values, land them, and store those whose leases are still ours."""
        shop = self._shop
        if not leased:
            for key in looks:
                self._flights[key].mark = Mark(b"", None, time.monotonic())
        permit = Permit(shop.space)
        hold = Hold(
            [key.lease for key in looks] if leased else [], self._token, self._plan.lock_timeout
        )
        if leased:
            shop.keeper.keep(hold)
        try:
            yield from self._load_held(looks, permit, leased)
        finally:
            hold.end()

    def _load_held(self, looks: Looks, permit: Permit, leased: bool) -> Steps[None]:
        shop = self._shop
        try:
            away = not all([look.reached or look.is_scarce for look in looks.values()])
            if away and not (yield from self._enter(permit)):
                self._overloaded(looks)
                return
            began = shop.clock()
            names = [shop.name(key.name) for key in looks]
            if away:
                names.append(_PLACE)
            try:
                loaded: Loaded = yield from self._call(
                    Load(self._order.loader, looks, tuple(names))
                )
            except Exception as error:
                if is_limit(error) or not self.is_failure(error):
                    raise  # whoever waits tries for himself
                yield from self._failed(looks, error, leased)
                return
            cost_s = shop.clock() - began
        finally:
            shop.guard.leave(permit)
        shop.note("load")
        bodies: dict[Key, bytes] = yield Work(lambda: self._pack(loaded.values))
        for key, value in loaded.values.items():
            self._land(key, Landed(shop.stops.own(value), bodies.get(key), Outcome.MISS))
        for key in looks:
            if key not in loaded.values:
                self._flights[key].land(None)  # whoever waits need not load it again
        if loaded.stored and leased:
            entries = [
                (key, body, self._kept(loaded, key, looks[key], cost_s / len(looks)))
                for key, body in bodies.items()
            ]
            if entries:
                yield from self._store(entries)

    def _call(self, load: Load) -> Steps[Any]:
        try:
            answer = yield load
            return answer
        finally:
            self._failure = load.failure

    def _pack(self, values: Mapping[Key, Any]) -> dict[Key, bytes]:
        bodies = {}
        for key, value in values.items():
            try:
                bodies[key] = self._shop.stops.pack(value)
            except RedisError as error:
                self._asking.note(error)
        return bodies

    def _kept(self, loaded: Loaded, key: Key, look: Look, cost_s: float) -> Kept:
        plan = self._plan
        negative_ttl = plan.negative_ttl if plan.is_negative(loaded.values[key]) else None
        negative = negative_ttl is not None
        return Kept(
            ttl_s=loaded.ttl_s or negative_ttl or plan.ttl,  # the loader knows best
            after_s=plan.after_s,
            timed=plan.early_refresh is not None,
            load_cost_s=cost_s,
            tags=plan.tags,
            generation=look.generation or 0,
            negative=negative,
        )

    def _failed(self, looks: Looks, error: Exception, leased: bool) -> Steps[None]:
        """Go on with what the loader raised: hand out the old values, or raise it."""
        plan = self._plan
        may_cover = plan.may_cover(error)
        covered = may_cover and all(
            [look.is_within(plan.stale_if_error) for look in looks.values()]
        )
        for key, look in looks.items():
            if covered:
                # Again from its bytes: the loader was shown this one, and may have changed it.
                old = yield Work(partial(self._shop.stops.copy, look.body or b""))
                self._land(key, Landed.of(look._replace(value=old), Outcome.STALE))
            else:
                self._flights[key].crash(error)
        if leased:
            cooled = {
                key
                for key, look in looks.items()
                if may_cover and look.is_there and look.over_s <= plan.after_s
            }
            yield from self._give_back(cooled, _COOL_S)
            yield from self._give_back(looks.keys() - cooled, 0.0)
        if not covered:
            raise error
        self._shop.note("stale_on_error")

    def _overloaded(self, looks: Looks) -> None:
        """Go on without a place to load in: hand out the old values, or raise."""
        plan = self._plan
        self._shop.note("overloaded")
        error = LoaderOverloadedError(
            "max_outage_loads: Redis is away, and no place to load in came free for"
            f" {plan.lock_timeout} s"
        )
        for key, look in looks.items():
            if look.is_there:
                self._land(key, Landed.of(look, Outcome.STALE))
            else:
                self._flights[key].crash(error)
        if not all([look.is_there for look in looks.values()]):
            raise error

    def _enter(self, permit: Permit) -> Steps[bool]:
        """Wait for a place among those that load without Redis; False when there was none."""
        if _PLACE in names_loading():
            return True  # for a load that has one: waiting for another could take all of them
        until = Deadline(self._plan.lock_timeout)
        limit = self._shop.stops.settings.max_outage_loads
        while not self._shop.guard.enter(permit, limit):
            if until.expired:
                return False
            yield Pause(min(_GUARD_PAUSE_S, until.remaining()))
        return True

    # Asking -------------------------------------------------------------------------------------

    def _take(self, looks: Looks, steal: bool) -> Steps[dict[Key, tuple[bool, Look]]]:
        keys, plan, order = tuple(looks), self._plan, self._order
        self._asking.renew()
        self._held.update(keys)  # before they are: an answer may be lost

        def take(deadline: Deadline) -> list[tuple[bool, Look]]:
            return self._shop.stops.take(
                keys,
                self._token,
                plan.lock_timeout,
                deadline,
                tags=plan.tags,
                validate=order.validate,
                steal=steal,
            )

        taken = yield from self._asking.ask(take)
        return dict(zip(keys, taken, strict=True))

    def _store(self, entries: list[tuple[Key, bytes, Kept]]) -> Steps[None]:
        stops, token = self._shop.stops, self._token

        def store(deadline: Deadline) -> int:
            return sum(stops.store_held(entries, token, deadline))

        stored = 0
        try:
            stored = yield from self._asking.ask(store)
            self._held.difference_update([key for key, _, _ in entries])
        except RedisError as error:
            self._asking.note(error)
        for number in range(len(entries)):
            self._shop.note("stored" if number < stored else "not_stored")

    def _free(self, keys: Iterable[Key], cool_s: float) -> None:
        """Give leases back that may be ours, without waiting for that; they end by themselves."""
        keys, token = tuple(keys), self._token
        if keys:
            self._held.difference_update(keys)
            free, timeout_s = self._shop.stops.free, self._order.timeout_s
            self._shop.returns.submit(
                lambda: _quietly(lambda: free(keys, token, cool_s, Deadline(timeout_s)))
            )

    def _give_back(self, keys: Iterable[Key], cool_s: float) -> Steps[None]:
        """Give leases back that are ours, before anything else.

        In the background that may be never: a process often ends with what its loader raised, and
        every other one would wait for it.
        """
        keys, token, free = tuple(keys), self._token, self._shop.stops.free
        if not keys:
            return
        try:
            yield from self._asking.ask(lambda deadline: free(keys, token, cool_s, deadline))
            self._held.difference_update(keys)
        except RedisError:
            self._free(keys, cool_s)

    def _land(self, key: Key, landed: Landed) -> None:
        self._flights[key].land(landed)
        self._results[key] = landed

    def _is_new(self, before: Look, look: Look) -> bool:
        """Has somebody else done the work since the look *before*?"""
        if look.outcome is not Outcome.HIT or self._plan.computes_anyway:
            return False
        return not before.is_there or (look.age_s or 0.0) < (before.age_s or 0.0)


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except RedisError:
        pass  # the lease ends by itself
