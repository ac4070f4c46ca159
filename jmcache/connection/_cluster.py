"""A Redis Cluster: the verbs of one server over all its masters.

Not redis-py's RedisCluster. Its pools, retries and look-ups wait as long as they like (one call
took 55 s when a master was stopped), and no deadline can be put around them. From redis-py comes
which slot a name has; the rest is bounded exchanges, as with one server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jmcache.connection._commands import Command
from jmcache.connection._guide import Guide
from jmcache.connection._members import Guard, Member, Members, Unguarded
from jmcache.connection._node import Node
from jmcache.connection._slots import Address, Redirected, key_slot
from jmcache.connection._together import Part, Question, exchange
from jmcache.connection._usage import PoolUsage
from jmcache.connection._wire import CLUSTER_INFO, OK, VALUE, pack_get, pack_set
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisClosedError,
    RedisCorruptEntryError,
    RedisError,
    RedisHurriedError,
    RedisNodeDownError,
    RedisNotReadyError,
    RedisNotServedError,
    RedisRejectedError,
)

_ROUNDS = 6  # in one call at most: a redirection, or a value too large, is followed by another
# Of a health check's time, for all nodes that are not asked at the moment: that the others are well
# must not be known a second later because one hangs.
_SHUT_SHARE = 0.25
_UNKNOWN = RedisHurriedError("interrupted")  # how an exchange ended that was


def is_of_node(error: RedisError) -> bool:
    """Is *error* evidence against the node that it came from?"""
    return error.trips and error.reason != "clusterdown"  # that one would be the same anywhere


class _Errand(Question):
    """The question about one name, where it is to be asked, and what came of it."""

    __slots__ = ("answer", "slot", "to")

    def __init__(self, name: bytes, packed: bytes, asked: bytes, to: Address | None = None) -> None:
        super().__init__(packed, asked)
        self.slot = key_slot(name)
        self.to = to  # None: where the guide leads
        self.answer: Any = None


class Cluster:
    """The masters of a cluster as one server.

    Thread-safe. The verbs and promises are those of `Node`, of which there is one for each master,
    with connections of its own. Not used in a forked child, beyond `abandon`.

    Of several names, those whose node is away have the error in the place of their answer, and
    cost the others nothing. A verb raises when nobody answered.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        make_node: Callable[[Address], Node],
        make_guard: Callable[[Address], Guard | None],
    ) -> None:
        """Connect to nothing yet.

        Args:
            seeds: Nodes to ask for the others, at least one.
            make_guard: Brings a guard for each node, or none.
        """
        self._members = Members(make_node, lambda place: make_guard(place) or Unguarded())
        self._guide = Guide(seeds, self._members)
        self._closed = False

    def get(self, name: bytes, deadline: Deadline) -> bytes | None:
        """Return what is stored under *name*, or None."""
        found: bytes | None = self._one("get", name, deadline)
        return found

    def get_many(
        self, names: Sequence[bytes], deadline: Deadline
    ) -> list[bytes | RedisError | None]:
        """Return for each of *names* what is stored under it, None, or why that is not known."""
        return self._many([_Errand(name, pack_get(name), VALUE) for name in names], deadline)

    def set(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        """Store *blob* under *name* for *ttl_ms* milliseconds."""
        self._one("set", name, blob, ttl_ms, deadline)

    def set_many(
        self, items: Sequence[tuple[bytes, bytes, int]], deadline: Deadline
    ) -> list[RedisError | None]:
        """Store several (name, blob, TTL in ms); not atomic.

        Returns:
            For each item None when it was stored, or why it was not.
        """
        answers = self._many([_Errand(item[0], pack_set(*item), OK) for item in items], deadline)
        return [answer if isinstance(answer, RedisError) else None for answer in answers]

    def ask_each(self, commands: Sequence[Command], deadline: Deadline) -> list[Any]:
        """Carry out *commands*, at all nodes at the same time, in order for one name.

        Returns:
            The reply to each, or why there is none.
        """
        return self._many([_Errand(*command) for command in commands], deadline)

    def ping(self, deadline: Deadline) -> None:
        """Look up who the masters are, and ask all of them; one that is well is enough."""
        self._guide.look_up(deadline, probing=True)
        signs = self._signs_of_life(deadline)
        if None not in signs:
            raise next(filter(None, signs))

    def holds_against(self, error: RedisError) -> bool:
        """Is *error* evidence against the cluster, and not against one node of it alone?"""
        several = self._guide.alone or len(self._members.failing) > 1
        return error.trips and (several or not is_of_node(error))

    @property
    def impaired(self) -> bool:
        """Is a master not asked at the moment?"""
        members = map(self._members.get, self._guide.masters)
        return any([member is not None and not member.guard.is_closed for member in members])

    def usage(self) -> PoolUsage:
        """Return how many connections there are, to all nodes."""
        usages = [member.node.usage() for member in self._members.all()]
        return PoolUsage(
            sum(usage.in_use for usage in usages),
            sum(usage.idle for usage in usages),
            sum(usage.limit for usage in usages),
            sum(usage.surplus for usage in usages),
        )

    def drop_connections(self) -> None:
        """Close idle connections now and the others after their exchange; new ones come lazily."""
        for member in self._members.all():
            member.node.drop_connections()

    def close(self) -> None:
        """Close all connections, those in use after their exchange. Idempotent, never blocks."""
        self._closed = True
        self._members.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's sockets without a word to the servers."""
        for member in self._members.all():
            member.node.abandon()

    def _one(self, verb: str, name: bytes, *args: Any) -> Any:
        deadline: Deadline = args[-1]
        slot = key_slot(name)
        while True:
            member = self._guide.member_for(slot, deadline)
            try:
                answer = member.guard.call(getattr(member.node, verb), name, *args)
            except Redirected as error:
                redirected = error
                break
            except RedisClosedError:
                if self._closed or deadline.expired:
                    raise
                # It is no node of the cluster any more, since it was looked for.
            except RedisError as error:
                self._note(member, error)
                raise
            else:
                self._members.note(member, None)
                return answer
        if verb == "get":
            errand = _Errand(name, pack_get(name), VALUE)
        else:
            errand = _Errand(name, pack_set(name, *args[:2]), OK)
        self._send_on(errand, redirected, member)
        del redirected, member
        [answer] = self._many([errand], deadline)
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def _many(self, errands: list[_Errand], deadline: Deadline) -> list[Any]:
        waiting = errands
        for _ in range(_ROUNDS):
            if waiting:
                waiting = self._round(waiting, deadline)
        for errand in waiting:
            errand.answer = RedisNotReadyError("no node had the key in the end", reason="tryagain")
        answers = [errand.answer for errand in errands]
        if self._closed:  # its owner asks what came in its place, if anything did
            for answer in answers:
                if isinstance(answer, RedisClosedError):
                    raise answer
        problems = [one for one in answers if isinstance(one, RedisError)]
        answered = [one for one in problems if isinstance(one, RedisRejectedError)]
        if errands and len(problems) == len(answers) and not answered:
            raise [*[one for one in problems if one.trips], problems[0]][0]
        return answers

    def _round(self, errands: list[_Errand], deadline: Deadline) -> list[_Errand]:
        """Ask all nodes at the same time. Return the errands that are to go somewhere else."""
        groups: dict[Member, list[_Errand]] = {}
        for errand in errands:
            to = errand.to
            member = self._members[to] if to else self._guide.member_for(errand.slot, deadline)
            groups.setdefault(member, []).append(errand)
        parts: list[tuple[Member, Part, list[_Errand]]] = []
        sent_on: list[_Errand] = []
        try:
            for member, group in groups.items():
                refusal = member.guard.admit()
                if refusal is None:
                    parts.append((member, Part(member.node, group), group))
                else:
                    self._note(member, refusal)
                    _end(group, refusal)
            exchange([part for _, part, _ in parts], deadline)
            while parts:
                error = self._take_in(*parts[-1], sent_on)
                self._note(parts[-1][0], error)
                parts.pop()[0].guard.report(error)
        finally:
            for member, _, _ in parts:
                member.guard.report(_UNKNOWN)
        return sent_on

    def _take_in(
        self, member: Member, part: Part, errands: list[_Errand], sent_on: list[_Errand]
    ) -> RedisError | None:
        """Give each of *errands* its answer or its way. Return what is held against *member*."""
        problem = part.error
        for errand in errands[: part.answered]:
            errand.answer = errand.reply
            if isinstance(errand.reply, Exception):
                error = member.node.told(errand.reply)
                errand.answer = error
                if isinstance(error, Redirected):
                    self._send_on(errand, error, member)
                    sent_on.append(errand)
                elif error.trips:
                    problem = problem or error
        rest = errands[part.answered :]
        if isinstance(part.error, RedisClosedError) and not self._closed:
            sent_on += rest  # it is no node of the cluster any more, since it was looked for
        elif isinstance(part.error, RedisCorruptEntryError):
            _end(rest[:1], part.error)  # too large: that one is known, and those behind are not
            sent_on += rest[1:]
        elif part.error is not None:
            _end(rest, part.error)
        return problem

    def _send_on(self, errand: _Errand, redirected: Redirected, member: Member) -> None:
        errand.to = self._guide.follow(redirected, member)
        errand.asking = redirected.asking

    def _note(self, member: Member, error: RedisError | None) -> None:
        self._members.note(member, error)
        if error is not None and (error.trips or isinstance(error, RedisNodeDownError)):
            self._guide.doubt()

    def _signs_of_life(self, deadline: Deadline) -> list[RedisError | None]:
        """Ask every master how it and the cluster are; None for one that is well."""
        shut = [place for place in self._guide.masters if not self._members[place].guard.is_closed]
        errands = [
            _Errand(b"", CLUSTER_INFO, VALUE, place)
            for place in self._guide.masters
            if place not in shut
        ]
        self._round(errands, deadline)
        signs = [_sign(errand.answer) for errand in errands]
        for left in range(len(shut), 0, -1):
            member = self._members[shut[-left]]
            within = deadline.part(_SHUT_SHARE / left)
            try:
                answer = member.guard.probe(member.node.ask, CLUSTER_INFO, VALUE, within)
            except RedisError as error:
                answer = error
            signs.append(_sign(answer))
        return signs


def _end(errands: list[_Errand], error: RedisError) -> None:
    for errand in errands:
        errand.answer = error


def _sign(answer: bytes | RedisError) -> RedisError | None:
    if isinstance(answer, bytes):
        if b"cluster_state:ok" in answer:
            return None
        return RedisNotReadyError("the cluster is down", reason="clusterdown")
    return None if isinstance(answer, RedisNotServedError) else answer
