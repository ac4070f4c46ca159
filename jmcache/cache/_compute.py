"""Values from the cache, or computed once and kept: one look, and what it leads to.

    look ──▶ fresh ──────────────────────────────────────────▶ value
      │ stale, within stale_ttl ──▶ one refreshes it meanwhile ▶ old value
      ▼ nothing of use
    flight ──▶ this process loads it already: wait for that ──▶ its value
      ▼ nobody does
    lead, see _lead ──────────────────────────────────────────▶ value

One key or many: each has its flight and its lease, so computations of one and of many wait for each
other, and what is missing is loaded in one call.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Protocol

from jmcache.cache._lead import (
    HOLDERS,
    Asking,
    Landed,
    Lead,
    Looks,
    Mark,
    Order,
    Results,
    Workshop,
)
from jmcache.cache._look import Key, Look
from jmcache.cache._plan import is_limit
from jmcache.cache._steps import Join, Load, Steps, Work, names_loading
from jmcache.deadline import Deadline
from jmcache.errors import LoaderTimeoutError, RedisError
from jmcache.flight import Crew, Flight
from jmcache.outcome import Outcome

_ABSENT = (None,)  # the result of a flight whose loader returned nothing for the key
_XFETCH_BETA = 1.0
_NO_LIMIT_S = 10 * 86_400.0


class Spawn(Protocol):
    """Takes steps in the background; False when it cannot."""

    def __call__(self, steps: Steps[Any], *, awaited: bool = False) -> bool:
        """Begin; *awaited* says that somebody waits for them."""


class Computation:
    """One call of get_or_set or get_or_set_many. For one thread or task."""

    def __init__(
        self,
        shop: Workshop,
        order: Order,
        spawn: Spawn,
        refresher: Callable[[], object] | None = None,
        *,
        detached: bool = False,
    ) -> None:
        """Prepare; nothing is done yet.

        Args:
            spawn: Where steps are taken in the background.
            refresher: Has a stale value refreshed elsewhere, in place of *spawn*.
            detached: Lead in the background, so that a load outlives its caller.
        """
        self._shop = shop
        self._order = order
        self._plan = order.plan
        self._spawn = spawn
        self._refresher = refresher
        self._detached = detached
        self._asking = Asking(shop, order)
        self._began = 0.0  # by time.monotonic

    def steps(self, keys: tuple[Key, ...]) -> Steps[Results]:
        """Look, and compute what is needed; return what there is, by key."""
        plan, shop = self._plan, self._shop
        self._began = time.monotonic()
        own_names = names_loading()
        early: Collection[Key] = ()
        if plan.write_only:
            looks: Looks = dict.fromkeys(keys, Look(Outcome.MISS))
        else:
            near, early = yield from self._near(keys)
            rest = [key for key in keys if key not in near]
            found = (yield from self._asking.look(rest)) if rest else {}
            looks = {key: near.get(key) or found[key] for key in keys}
        results: Results = {}
        stale: Looks = {}
        missing: Looks = {}
        own: Looks = {}
        for key, look in looks.items():
            serves = look.outcome is Outcome.HIT or look.is_within(plan.stale_ttl)
            if plan.force or not serves:
                # A loader that asks for what it is loading would wait for itself.
                (own if shop.name(key.name) in own_names else missing)[key] = look
                continue
            results[key] = Landed.of(look)
            if look.holder is None and (
                look.outcome is Outcome.STALE or key in early or self._is_early(look)
            ):
                stale[key] = look  # else somebody refreshes it already, or it failed just now
        if stale and not plan.read_only:
            yield from self._refresh_soon(stale)
        if own:
            names = tuple([shop.name(key.name) for key in own])
            loaded = yield Load(self._order.loader, own, names)
            results |= {k: Landed(v, None, Outcome.MISS) for k, v in loaded.values.items()}
        if missing:
            results |= yield from self._fly(missing)
        return results

    def _near(self, keys: tuple[Key, ...]) -> Steps[tuple[Looks, set[Key]]]:
        """Return what is kept in this process, and of which keys that is to be refreshed early.

        Those are not among it: Redis knows whether somebody does it already.
        """
        stops, validate = self._shop.stops, self._order.validate
        near: Looks = {}
        early: set[Key] = set()
        if not stops.nearby.is_on or self._plan.force:
            return near, early
        for key in keys:
            look = stops.look_near(key.name, validate, at_once=self._detached)
            if look is None and self._detached and stops.nearby.holds(key.name):
                look = yield Work(partial(stops.look_near, key.name, validate))
            if look is not None and self._is_early(look):
                early.add(key)
            elif look is not None:
                near[key] = look
        return near, early

    # Flights ------------------------------------------------------------------------------------

    def _fly(self, missing: Looks) -> Steps[Results]:
        until, turns = Deadline(self._plan.lock_timeout), HOLDERS
        limit = Deadline(self._limit_s(missing))
        mine = Crew()
        late: dict[Key, Flight] = {}  # waited for long enough
        waited_for: set[bytes] = set()  # those who hold the leases for them
        results: Results = {}
        try:
            while missing:
                joined = self._board(missing, mine, late)
                if mine:
                    looks = {key: missing[key] for key in mine}
                    results |= yield from self._lead(mine, looks, waited_for, limit)
                again: list[Key] = []
                for key, (flight, mark) in joined.items():
                    self._shop.note("coalesced")
                    yield Join(flight, min(until.remaining(), limit.remaining()))
                    landed = _landed(flight, self._began)
                    shared = None if landed is None else (yield from self._share(landed))
                    if shared is not None:
                        results[key] = shared
                        continue
                    if landed is not None:
                        late[key] = flight  # nothing that could be made of it here
                    if flight.result == _ABSENT:
                        continue
                    flight.check()
                    if not flight.ended and limit.expired:
                        results[key] = self._instead(missing[key])
                        continue
                    if not flight.ended:
                        if turns:
                            until = Deadline(self._plan.lock_timeout)  # for whoever loads now
                            turns -= 1
                        if flight.mark is mark:  # else its load has only begun
                            late[key] = flight
                            waited_for |= {
                                h for h in (mark and mark.holder, missing[key].holder) if h
                            }
                    again.append(key)  # or its leader gave up, or saw what was deleted since
                missing = {}
                for key, look in ((yield from self._asking.look(again)) if again else {}).items():
                    if (
                        look.outcome is Outcome.HIT
                    ):  # who computes anyway joins nobody, and is not here
                        results[key] = Landed.of(look)
                    else:
                        missing[key] = look
            return results
        finally:
            self._leave(mine)

    def _board(
        self, looks: Looks, mine: Crew, late: dict[Key, Flight]
    ) -> dict[Key, tuple[Flight, Mark | None]]:
        """Lead the flights that nobody else does, or that are of no use; return the others."""
        flights = self._shop.flights
        self._leave(mine)
        joined: dict[Key, tuple[Flight, Mark | None]] = {}
        for key, look in looks.items():
            mine[key] = Flight(mine)  # known before it is anybody's
            flight = flights.board(key.name, mine[key])
            if flight is mine[key]:
                continue
            if (
                self._plan.computes_anyway
                or flight is late.get(key)
                or not _serves(flight, look, self._began)
            ):
                flights.replace(key.name, mine[key])
            else:
                del mine[key]
                joined[key] = flight, flight.mark
        return joined

    def _leave(self, mine: Crew) -> None:
        while mine:
            key = next(iter(mine))
            self._shop.flights.leave(key.name, mine[key])
            del mine[key]

    def _limit_s(self, looks: Looks) -> float:
        """Seconds that the caller waits for a load at most."""
        plan = self._plan
        fallback = all([look.is_within(plan.after_s) for look in looks.values()])
        limits = [plan.loader_timeout, plan.soft_timeout if fallback else None]
        return min([limit for limit in limits if limit is not None], default=_NO_LIMIT_S)

    def _instead(self, look: Look) -> Landed:
        """Return what stands in for a value that is not there in time, or raise."""
        self._shop.note("loader_timeout")
        if look.is_within(self._plan.after_s):
            return Landed.of(look, Outcome.STALE)
        raise LoaderTimeoutError(
            f"loader_timeout: no value after {self._plan.loader_timeout} s; the load goes on"
        )

    def _lead(
        self, mine: Crew, looks: Looks, waited_for: Iterable[bytes], limit: Deadline
    ) -> Steps[Results]:
        flights: dict[Key, Flight] = dict(mine)
        limited = self._limit_s(looks) < _NO_LIMIT_S
        whole = None
        if limited or self._detached:
            whole = self._lead_elsewhere(mine, looks, waited_for)
        if whole is None:
            mine.lead(flights)
            if limited:  # on the caller's own thread it would have no limit
                return {key: self._instead(look) for key, look in looks.items()}
            lead = Lead(self._shop, self._order, mine)
            return (yield from lead.steps(looks, waited_for=waited_for))
        mine.clear()  # they are led, and left, in the background
        results: Results = {}
        for key, flight in flights.items():
            if not (yield Join(flight, limit.remaining())):
                results[key] = self._instead(looks[key])
                continue
            flight.check()
            if flight.result is not None and flight.result != _ABSENT:
                results[key] = flight.result[0]  # loaded for this caller: the others get copies
        # Who computed a value finds it in the cache afterwards, unless that takes too long.
        yield Join(whole, min(limit.remaining(), self._order.timeout_s))
        whole.check()
        return results

    def _lead_elsewhere(
        self, mine: Crew, looks: Looks, waited_for: Iterable[bytes]
    ) -> Flight | None:
        """Have the flights led in the background, if there is room.

        Returns:
            One that ends with the store, which comes after the landing; None: there was no room.
        """
        crew = Crew().lead(mine)
        whole = Flight(crew)
        unseen = self._lead_unseen(crew, whole, looks, waited_for)
        return whole if self._spawn(unseen, awaited=True) else None

    def _lead_unseen(
        self, mine: Crew, whole: Flight, looks: Looks, waited_for: Iterable[bytes]
    ) -> Steps[None]:
        """Lead in the background, for whoever waits or comes later; *whole* ends with it."""
        lead = Lead(self._shop, self._order, mine)
        try:
            yield from lead.steps(looks, waited_for=waited_for)
        except BaseException as error:
            if not (isinstance(error, Exception) or lead.is_failure(error)):
                raise
            self._shop.note("load_failed")
            whole.crash(error)  # those who wait for a flight hear only of what the loader raised
        finally:
            self._leave(mine)
            whole.end()

    def _share(self, landed: Landed) -> Steps[Landed | None]:
        """Return a copy for one more caller; None where it cannot be read."""
        if landed.body is None:
            return landed
        try:
            copy = yield Work(partial(self._shop.stops.copy, landed.body))
        except RedisError:
            return None
        return landed._replace(value=copy)

    # Refreshing ---------------------------------------------------------------------------------

    def _refresh_soon(self, stale: Looks) -> Steps[None]:
        """See to it that somebody refreshes the values, without waiting for that."""
        if self._refresher is None:
            steps = self._refresh(stale)
        else:
            steps = self._pass_on(stale, self._refresher)
        if self._plan.refresh == "inline":
            yield from steps
        elif not self._spawn(steps):
            self._shop.note("refresh_skipped")

    def _pass_on(self, stale: Looks, refresher: Callable[[], object]) -> Steps[None]:
        """Have the values refreshed elsewhere, if nobody else was asked to within lock_timeout."""
        lead = Lead(self._shop, self._order, {})
        try:
            yield from lead.hand_over(stale, refresher)
        except Exception as error:
            if is_limit(error) or not lead.is_failure(error):
                raise
            self._shop.note("refresh_failed")

    def _refresh(self, stale: Looks) -> Steps[None]:
        """Be the one who refreshes the values, if nobody is yet."""
        mine = Crew()
        lead = Lead(self._shop, self._order, mine)
        try:
            for key in stale:
                mine[key] = Flight(mine)
                if self._shop.flights.board(key.name, mine[key]) is not mine[key]:
                    del mine[key]
            if mine:
                looks = {key: stale[key] for key in mine}
                self._shop.note("refresh")
                yield from lead.steps(looks, wait=False)
        except Exception as error:
            if is_limit(error) or not lead.is_failure(error):
                raise
            self._shop.note("refresh_failed")
        finally:
            self._leave(mine)

    def _is_early(self, look: Look) -> bool:
        """Is a value that is still fresh to be refreshed?

        XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede
        Prevention", PVLDB 2015.
        """
        early = self._plan.early_refresh
        if early is None:
            return False
        ttl_s = look.ttl_s if math.isfinite(look.ttl_s) else self._plan.ttl
        age_s = look.age_s or 0.0
        if early == "xfetch":
            ahead_s = -look.load_cost_s * _XFETCH_BETA * math.log(1.0 - random.random())
            return age_s + ahead_s >= ttl_s
        return age_s >= early * ttl_s


def _serves(flight: Flight, look: Look, began: float) -> bool:
    """Is *flight* of use to a call that *began* then and has just seen *look*?

    Not if its load began before a delete or an invalidation that was over by then.
    """
    if flight.result not in (None, _ABSENT) and _landed(flight, began) is None:
        return False
    mark: Mark | None = flight.mark
    return (
        mark is None
        or mark.at >= began
        or not look.reached
        or (mark.holder, mark.generation) == (look.holder, look.generation)
    )


def _landed(flight: Flight, began: float) -> Landed | None:
    """Return what *flight* brought, if a call may have it that *began* then.

    What its leader found in the store may have been deleted since, unless it asked later.
    """
    if flight.result is None or flight.result == _ABSENT:
        return None
    landed: Landed = flight.result[0]
    return landed if landed.asked_at >= began else None
