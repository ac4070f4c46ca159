"""Reads of several threads, made one round trip.

Whoever comes while few others ask, asks at once, alone, and pays nothing for this. In a crowd one
asks at a time: whoever comes meanwhile waits, and when that answer is there, one of those that wait
asks for all of them. Under a GIL that is most of what a read costs: one thread sends and receives,
where each would have had to fight for the interpreter at every step.

Nobody is held up by another's bad luck: who has waited for ``_PATIENCE_S`` asks, whoever else is
still out, so a slow answer is waited for by those alone that asked for it.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisError,
    RedisPoolExhaustedError,
    RedisTimeoutError,
)
from jmcache.fork import renew_in_child
from jmcache.sizes import Sizes

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")
Ask = Callable[[K, Deadline], A]
AskTogether = Callable[[Sequence[K], Deadline], Sequence[A | RedisError]]

_LANES = 4  # that many ask side by side before anybody waits, while there is no crowd
_CROWD = 3.0  # callers in one round trip, of late, from which on waiting for each other pays
_PATIENCE_S = 0.002  # of whoever is next
_LOOK_AGAIN_S = 0.02  # of those behind, and of those that are asked for: was somebody torn away?
_MOST = 64  # keys in one round trip
_SHARE = 8  # the crowd follows the latest round trip by an eighth
_WANT_OF_TIME = (RedisTimeoutError, RedisPoolExhaustedError)


class _Want(Generic[K, A]):
    """What one thread waits for.

    Attributes:
        answer: There is one when *answered*; an error stands for none.
        alone: It has to ask by itself: what was asked for all says nothing about it.
        turn: Of whoever asks for it; None while nobody does.
    """

    __slots__ = ("alone", "answer", "answered", "bell", "deadline", "error", "key", "turn")

    answer: A

    def __init__(self, key: K, deadline: Deadline) -> None:
        self.key = key
        self.deadline = deadline
        self.answered = False
        self.error: RedisError | None = None
        self.alone = False
        self.turn: object | None = None
        self.bell = threading.Lock()
        self.bell.acquire()

    def is_over(self) -> bool:
        return self.answered or self.alone or self.error is not None

    def ring(self) -> None:
        try:
            self.bell.release()
        except RuntimeError:  # rung already, and not heard yet
            pass


class Combiner(Generic[K, A]):
    """Lets threads that ask for single keys at the same time ask for them together.

    Thread-safe without a lock of its own: each step is one operation of a deque or dict, so what a
    signal handler raises leaves nobody waiting for ever. A forked child begins anew.
    """

    def __init__(self, size_of: Callable[[A], int]) -> None:
        """Ask nothing yet; *size_of*: bytes of an answer."""
        self._size_of = size_of
        self._renew_in_child()
        renew_in_child(self._renew_in_child)

    def _renew_in_child(self) -> None:
        self._out: dict[object, None] = {}  # the turns of those who ask right now
        self._waiting: deque[_Want[K, A]] = deque()  # the first is the next to ask
        self._sizes = Sizes()
        self._crowd = 0.0  # callers in one round trip

    def get(self, key: K, deadline: Deadline, ask: Ask[K, A], ask_together: AskTogether[K, A]) -> A:
        """Return the answer for *key*.

        Args:
            ask: Given a key and a deadline; returns the answer or raises RedisError.
            ask_together: The same in one round trip, for keys one of which may be there twice: an
                answer for each. What it raises counts for all of them.

        Raises:
            RedisError: There was none, as the one who asked was told. RedisTimeoutError also when
                *deadline* was over before that.
        """
        if (not self._waiting and self._has_room()) or self._sizes.is_large(key):
            return self._get_alone(key, deadline, ask)
        want: _Want[K, A] = _Want(key, deadline)
        try:
            self._waiting.append(want)
            self._wait(want, ask_together)
        finally:
            self._leave(want)
        if want.answered:
            return want.answer
        if want.alone:
            return self._get_alone(key, deadline, ask)
        raise want.error or RedisTimeoutError("no answer within the deadline")

    def _get_alone(self, key: K, deadline: Deadline, ask: Ask[K, A]) -> A:
        turn = object()
        try:
            self._out[turn] = None
            answer = ask(key, deadline)
        finally:
            self._out.pop(turn, None)
            if self._waiting:
                self._ring_first()
        self._sizes.learn(key, self._size_of(answer))
        return answer

    def _wait(self, want: _Want[K, A], ask: AskTogether[K, A]) -> None:
        """Until it has its answer, or its time is over; or ask for all that wait, in its turn."""
        if self._has_room():  # whoever it was to wait for has come back meanwhile
            self._lead(want, ask)
        patient_until = time.monotonic() + _PATIENCE_S
        while not want.is_over() and (left_s := want.deadline.remaining()) > 0.0:
            look_again_s = _PATIENCE_S if self._is_first(want) else _LOOK_AGAIN_S
            rung = want.bell.acquire(timeout=min(left_s, look_again_s))
            if want.is_over():
                if self._waiting and self._has_room():
                    self._ring_first()
                return
            if want in self._waiting:
                # Behind somebody who was torn away, and will never lead, after some time too.
                is_next = self._is_first(want) or not rung
                if is_next and (rung or time.monotonic() >= patient_until):
                    self._lead(want, ask)
            elif not rung and want.turn not in self._out and not want.is_over():
                want.alone = True  # taken by somebody who was torn away

    def _has_room(self) -> bool:
        return len(self._out) < (_LANES if self._crowd < _CROWD else 1)

    def _is_first(self, want: _Want[K, A]) -> bool:
        try:
            return self._waiting[0] is want
        except IndexError:
            return False

    def _leave(self, want: _Want[K, A]) -> None:
        if want.turn is None:
            try:
                self._waiting.remove(want)
            except ValueError:  # taken
                return
            self._ring_first()

    def _ring_first(self) -> None:
        try:
            self._waiting[0].ring()
        except IndexError:  # nobody is
            pass

    def _lead(self, mine: _Want[K, A], ask: AskTogether[K, A]) -> None:
        """Ask for those that wait, with the time of *mine*, unless somebody was faster."""
        turn = object()
        flock: list[_Want[K, A]] = []
        try:
            self._out[turn] = None
            self._take(flock, turn)
            if flock:
                self._ask_for(flock, mine.deadline, ask)
        finally:
            self._out.pop(turn, None)
            for want in flock:
                if not want.is_over():  # interrupted
                    want.alone = True
                if want is not mine:
                    want.ring()
            # Else the members do, unless this thread is back by then and leads again.
            if self._waiting and len(flock) < 2:
                self._ring_first()

    def _take(self, flock: list[_Want[K, A]], turn: object) -> None:
        most = self._sizes.most(_MOST)
        try:
            while len(flock) < most:
                flock.append(self._waiting.popleft())
                flock[-1].turn = turn
        except IndexError:  # that is all
            pass
        self._crowd += (len(flock) - self._crowd) / _SHARE

    def _ask_for(
        self, flock: Sequence[_Want[K, A]], deadline: Deadline, ask: AskTogether[K, A]
    ) -> None:
        try:
            answers = ask([want.key for want in flock], deadline)
        except RedisError as error:
            for want in flock:
                self._fail(want, error, deadline, len(flock))
            return
        for want, answer in zip(flock, answers, strict=True):
            if isinstance(answer, RedisError):
                self._fail(want, answer, deadline, 1)
            else:
                want.answer = answer
                want.answered = True
                self._sizes.learn(want.key, self._size_of(answer))

    def _fail(self, want: _Want[K, A], error: RedisError, asked: Deadline, keys: int) -> None:
        if error.retryable or isinstance(error, _WANT_OF_TIME):
            # It may have been for want of time: of whoever asked, who had less than half as much.
            want.alone = want.deadline.remaining() > 2 * asked.remaining()
        else:  # one value spoils the common reply, as a foreign giant does
            want.alone = keys > 1 and isinstance(error, RedisCorruptEntryError)
        # One for each thread, as each adds its own traceback.
        want.error = None if want.alone else copy.copy(error)
