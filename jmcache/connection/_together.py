"""Exchanges with several servers at the same time, from one thread.

Everything is sent before anything is read, and who answers first is read first, so that the whole
takes as long as the slowest of them; one that is silent costs the others nothing. As in _node, a
connection on its way is in a loan, here one for each server, and whatever is still in one at the
end is closed.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any

from jmcache.connection._node import Node
from jmcache.connection._replies import Reply
from jmcache.connection._translate import ABSORBED, is_foreign
from jmcache.connection._wire import ASKING, OK
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisTimeoutError

# Of the time that is left: what one server may use up while others are still to be read, or to be
# sent to, and what is waited for the silent ones when others have answered. The rest is for them,
# and for the caller to make something of the answers.
_SHARE = 0.8


class Question:
    """One command for one server, and what it answered."""

    __slots__ = ("asked", "asking", "packed", "reply")

    def __init__(self, packed: bytes, asked: bytes) -> None:
        """Ask for what *packed* says; *asked* is what the reply must be, as _wire says."""
        self.packed = packed
        self.asked = asked
        self.asking = False  # of a cluster's node: for a key that is just moving there
        self.reply: Reply = None


class Part:
    """What one server is asked: a pipeline.

    Attributes:
        answered: How many of the questions have their reply. The others have none because of
            *error*, which is None when all have one.
    """

    def __init__(self, node: Node, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.answered = 0
        self.error: RedisError | None = None
        self._node = node
        self._loan: list[Any] = []
        self._clean = False  # there is a connection, and nothing of an exchange on its way
        self._left_s = 0.0
        packed = [ASKING + one.packed if one.asking else one.packed for one in questions]
        self._packed = b"".join(packed)
        self._unsent = memoryview(b"")

    @property
    def done(self) -> bool:
        return self.error is not None or self.answered == len(self.questions)

    @property
    def holds_connection(self) -> bool:
        return bool(self._loan)

    def fileno(self) -> int:
        number: int = self._loan[0].fileno()
        return number

    @property
    def awaits(self) -> int:
        return select.POLLOUT if self._unsent else select.POLLIN

    def begin_at_once(self, deadline: Deadline) -> bool:
        """Send, if that takes no wait. False: `begin` has to."""
        try:
            self._borrow(deadline, 0.0)
        except RedisError:
            return False
        if not self._loan[0].ready:
            return False
        self._attempt(self._send_first, deadline, deadline)
        return True

    def begin(self, deadline: Deadline, within: Deadline) -> None:
        """Send, after as much of *within* as it takes to get there."""
        self._attempt(self._send_first, deadline, within)

    def go_on(self, deadline: Deadline) -> None:
        """Do what it was waited for: send more, or read all."""
        if self._unsent:
            self._attempt(self._send)
        else:
            self._attempt(self._read, deadline)

    def give_up(self) -> None:
        """The time is over."""
        self._attempt(_too_late)

    def give_back(self) -> None:
        """Give the connection back, or close it when it is not as it was."""
        if self._loan and self._clean:
            self._node.pool.give_back(self._loan)
        else:
            self.discard()

    def discard(self) -> None:
        """Close what connection there is. May be repeated."""
        self._node.pool.discard(self._loan)

    def _borrow(self, deadline: Deadline, wait_share: float) -> None:
        self._node.pool.borrow(self._loan, deadline, wait_share=wait_share)
        self._clean = True

    def _send_first(self, deadline: Deadline, within: Deadline) -> None:
        if not self._loan:
            self._borrow(deadline, _share_of(within, deadline))
        self._left_s = within.remaining()
        if self._left_s <= 0.0:
            raise RedisTimeoutError("the deadline is over")
        self._clean = False
        room = len(self.questions) * self._node.value_room
        self._unsent = self._loan[0].begin(self._packed, room, within)
        self._left_s = deadline.remaining()
        self._send()

    def _send(self) -> None:
        self._unsent = self._loan[0].send_some(self._unsent)

    def _read(self, deadline: Deadline) -> None:
        for question in self.questions:
            if question.asking:
                self._loan[0].receive(OK, deadline)
            question.reply = self._loan[0].receive(question.asked, deadline)
            self.answered += 1
        self._clean = True

    def _attempt(self, step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except (RedisError, *ABSORBED) as error:
            if is_foreign(error):
                raise
            self.error = self._node.judge(error, self._left_s)
            # It is kept, and its traceback would keep all of this.
            self.error.__traceback__ = self.error.__context__ = self.error.__cause__ = None


def exchange(parts: Sequence[Part], deadline: Deadline) -> None:
    """Carry out all *parts*; each knows afterwards what came of it. Raises nothing of ours."""
    try:
        try:
            _send(parts, deadline)
            _read(parts, deadline)
        finally:
            for part in parts:
                part.give_back()
    finally:
        interrupt: BaseException | None = None
        while any([part.holds_connection for part in parts]):  # interrupted in the lines above
            try:
                for part in parts:
                    part.discard()
            except BaseException as error:  # noqa: BLE001 - raised below
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _send(parts: Sequence[Part], deadline: Deadline) -> None:
    # Whoever has to be connected to, or waited for, comes when the others are at work.
    slow = [part for part in parts if not part.begin_at_once(deadline)]
    for left in range(len(slow), 0, -1):
        alone = len(parts) == 1
        slow[-left].begin(deadline, deadline if alone else deadline.part(_SHARE / left))


def _read(parts: Sequence[Part], deadline: Deadline) -> None:
    poll = select.poll()
    waiting = {part.fileno(): part for part in parts if not part.done}
    for descriptor, part in waiting.items():
        poll.register(descriptor, part.awaits)
    patience = deadline
    while waiting:
        ready = poll.poll(patience.remaining() * 1000)
        if not ready:
            break
        for descriptor, _ in ready:
            part = waiting[descriptor]
            part.go_on(patience if len(waiting) == 1 else patience.part(_SHARE))
            if part.done:
                del waiting[descriptor]
                poll.unregister(descriptor)
                patience = deadline.part(_SHARE)
            else:
                poll.modify(descriptor, part.awaits)
    for part in waiting.values():
        part.give_up()


def _share_of(within: Deadline, deadline: Deadline) -> float:
    left_s = deadline.remaining()
    return _SHARE * within.remaining() / left_s if left_s > 0.0 else 0.0


def _too_late() -> None:
    raise RedisTimeoutError("no answer within the deadline")
