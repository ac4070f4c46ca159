"""The way to each slot of a cluster, and how it is found out.

Any node tells the whole map. One caller at a time asks for it, when there is reason to doubt the
one there is, and everybody else goes on with that. What it has wrong the nodes put right
themselves, slot by slot, so an old map costs a round trip and never an answer.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from jmcache.connection._members import Member, Members
from jmcache.connection._slots import SLOTS, Address, Redirected, SlotMap, read_slots
from jmcache.connection._wire import CLUSTER_SLOTS, TREE
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisError,
    RedisMisconfiguredError,
    RedisProtocolError,
    RedisRejectedError,
)

# Between two look-ups, however much reason for doubt there is: a hundred processes that look for a
# failover's end ask 400 times a second together, and find it within a quarter of a second.
LOOK_AGAIN_S = 0.25
# Of the time that is left, for a look-up; the rest is for what it is for.
_SHARE = 0.5
_SHARE_WITHOUT_MAP = 0.8
_ASKED = 3  # nodes at most, in one look-up
_ROOM = 8  # times what one value may have; a map of 1,000 ranges has 0.2 MB
_NO_CLUSTER = "ERR This instance has cluster support disabled"


class _Turn:
    """Leave to look up, known by a weak reference: lost with its frame, it is back."""

    __slots__ = ("__weakref__", "over_at")

    def __init__(self, over_at: float) -> None:
        self.over_at = over_at


class Guide:
    """Leads to the node of a slot. Thread-safe."""

    def __init__(self, seeds: Sequence[Address], members: Members) -> None:
        """Know nothing yet.

        Args:
            seeds: Nodes to ask first, at least one.
        """
        self._seeds = tuple(seeds)
        self._members = members
        # Replaced as a whole; a slot that moved is put right in it.
        self._map = SlotMap([None] * SLOTS, (), ())
        self._doubted = True
        self._look_at = 0.0  # monotonic seconds of the next look-up, not before
        self._hint: Address | None = None  # who knows better than the map
        self._lock = threading.Lock()
        self._turn: weakref.ref[_Turn] | None = None  # under _lock

    @property
    def masters(self) -> tuple[Address, ...]:
        """The nodes that have slots, as far as is known; none before the first look-up."""
        return self._map.masters

    @property
    def alone(self) -> bool:
        """Is there one node only, as far as is known?"""
        return len(self.masters or self._seeds) == 1

    def member_for(self, slot: int, deadline: Deadline) -> Member:
        """Return the node that has *slot*, or else one that will say who has.

        Looks up first if there is reason to and nobody does already.

        Raises:
            RedisError: Nothing is known, and nobody could be asked.
        """
        if self._doubted and (not self.masters or time.monotonic() >= self._look_at):
            self.look_up(deadline)
        known = self._map
        return self._members[known.owners[slot] or random.choice(known.masters or self._seeds)]

    def follow(self, redirected: Redirected, member: Member) -> Address:
        """Return where *member* sent us, and remember it if it is for good."""
        to = (redirected.host or member.address[0], redirected.port)
        if not redirected.asking:
            self._map.owners[redirected.slot] = to
            self._hint = to
            self._doubted = True
        return to

    def doubt(self) -> None:
        """A node failed, so another one may have taken its place."""
        self._doubted = True

    def look_up(self, deadline: Deadline, *, probing: bool = False) -> None:
        """Get a new map within half of *deadline*, unless somebody is about it already.

        Args:
            probing: Ask nodes, too, that are not asked at the moment.

        Raises:
            RedisError: There is no map, and nobody gave one.
        """
        turn = self._take_turn(deadline)
        if turn is None:
            return
        self._doubted = False  # what comes up from now on the new map may not know
        found: SlotMap | None = None
        try:
            share = _SHARE if self.masters else _SHARE_WITHOUT_MAP
            found = self._ask(deadline.part(share), probing)
        except RedisError:
            if not self.masters:
                raise
        finally:
            if found is None:
                self._doubted = True
            turn.over_at = 0.0  # a traceback may keep it
        if found is not None:
            self._map = found
            self._members.keep({*found.masters, *self._seeds})

    def _take_turn(self, deadline: Deadline) -> _Turn | None:
        now = time.monotonic()
        mine = _Turn(now + deadline.remaining())
        with self._lock:
            turn = None if self._turn is None else self._turn()
            if turn is not None and now < turn.over_at:
                return None
            self._turn = weakref.ref(mine)
        self._look_at = now + LOOK_AGAIN_S
        return mine

    def _ask(self, deadline: Deadline, probing: bool) -> SlotMap:
        candidates = self._candidates()[:_ASKED]
        for left in range(len(candidates), 0, -1):
            member = self._members[candidates[-left]]
            guard = member.guard
            ask = guard.probe if probing and not guard.is_closed else guard.call
            within = deadline.part(0.5 if left > 1 else 1.0)
            try:
                reply: list[Any] = ask(member.node.ask, CLUSTER_SLOTS, TREE, within, _ROOM)
                found = read_slots(reply, member.address[0])
            except RedisError as error:
                problem = _explained(error)
                self._members.note(member, problem)
                if left == 1 or problem.opens_at_once:
                    raise problem from error
            else:
                self._members.note(member, None)
                return found
        raise AssertionError("there is at least one seed")

    def _candidates(self) -> list[Address]:
        """Whom to ask, the most promising first."""
        hint, self._hint = self._hint, None
        places = [*self._map.masters, *self._map.replicas, *self._seeds]
        random.shuffle(places)
        places.sort(key=self._is_shut)
        return list(dict.fromkeys([hint, *places] if hint else places))

    def _is_shut(self, address: Address) -> bool:
        member = self._members.get(address)
        return member is not None and not member.guard.is_closed


def _explained(error: RedisError) -> RedisError:
    if isinstance(error, RedisCorruptEntryError):
        return RedisProtocolError("the list of the cluster's slots is too long")
    if isinstance(error, RedisRejectedError) and str(error.__cause__).startswith(_NO_CLUSTER):
        return RedisMisconfiguredError(
            "cluster: the server is no node of a cluster", reason="no_cluster"
        )
    return error
