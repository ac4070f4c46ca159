"""Runs a few actors in every order that differs, one at a time, over and over.

An actor is a plain function on a thread of its own. It runs until it comes to a *point*; there the
next one to run is chosen. Every choice is written down, and the next run makes another one: a
search, depth first, by doing everything again. Orders are bounded by how often an actor is stopped
though it could go on (preemptions); most faults need one or two (Musuvathi and Qadeer, "Iterative
Context Bounding", PLDI 2007).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_NIGHTS = 5  # after so many, whoever looks again and again looks for what will not come

Condition = Callable[[], object]


class StuckError(AssertionError):
    """Nobody can go on, and somebody is not done."""


class _Abandon(BaseException):
    """Unwinds the actors of a run that is over."""


class _Worker:
    """A thread that plays one actor in each run."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gate = threading.Lock()
        self.gate.acquire()
        self.play: Callable[[], None] | None = None
        self.idle = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            self.gate.acquire()
            if self.play is None:
                return
            self.play()
            self.idle.release()


@dataclass
class _Choice:
    options: tuple[int, ...]
    can_stay: bool  # the first option is the one that ran before
    spent: int  # preemptions before
    index: int = 0


@dataclass
class Run:
    """One order of events. Actors and what they share call `point`."""

    workers: list[_Worker]
    choices: list[_Choice]
    bound: int
    running: int = -1
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._plays: dict[int, Callable[[], None]] = {}
        self._waiting: dict[int, Condition | None] = {}
        self._names: dict[int, str] = {}
        self._depth = 0
        self._over = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.is_over = False  # then points are none
        self.moves = 0  # points passed by anybody
        self._nights = 0  # times in which everybody slept

    def start(self, name: str, actor: Callable[[], object], when: Condition | None = None) -> None:
        """Add an actor, which begins at some time after *when* holds."""
        if self.error is not None:
            raise _Abandon
        number = len(self._plays)
        if number == len(self.workers):
            self.workers.append(_Worker(number))

        def play() -> None:
            if self.error is not None:
                return
            try:
                actor()
            except _Abandon:
                return
            except BaseException as error:  # noqa: BLE001 - told by the run
                self._end(error)
                return
            del self._waiting[number]
            try:
                self._pass_on(stay=False)
            except _Abandon:
                pass

        self._names[number] = name
        self._plays[number] = play
        self._waiting[number] = when
        self.workers[number].play = play

    def point(self, what: str, when: Condition | None = None) -> None:
        """Let others run first, or not; go on once *when* holds."""
        if self.is_over:
            return
        if self.error is not None:
            raise _Abandon
        me = self.running
        self._waiting[me] = when
        self._pass_on(stay=True)
        self.moves += 1
        self.trace.append(f"{self._names[me]}: {what}")

    def is_played_here(self) -> bool:
        """Is the calling thread an actor's, and not what another test left behind?"""
        return threading.current_thread() in [worker.thread for worker in self.workers]

    def pause(self) -> None:
        """Go on after somebody else did something, or when nobody does."""
        seen, nights = self.moves, self._nights
        self.point("looks again", lambda: self.moves > seen or self._nights > nights)

    def play(self) -> None:
        """Run everything to its end; raise what went wrong."""
        self._pass_on(stay=False, first=True)
        self._over.acquire()
        if self.error is not None:
            for number in tuple(self._waiting):
                if number != self.running:
                    self.workers[number].gate.release()
        for number in tuple(self._plays):
            assert self.workers[number].idle.acquire(timeout=30.0)
        if self.error is not None:
            raise self.error

    def _pass_on(self, *, stay: bool, first: bool = False) -> None:
        me = self.running
        able = self._able()
        if not able and self._nights < _NIGHTS:
            self._nights += 1
            able = self._able()
        if not able:
            if self._waiting:
                waiting = [self._names[n] for n in self._waiting]
                self._end(StuckError(f"nobody can go on; waiting: {waiting}"))
                raise _Abandon
            self._over.release()
            return
        can_stay = stay and me in able
        if can_stay:
            able.remove(me)
            able.insert(0, me)
        self.running = self._choose(tuple(able), can_stay)
        if self.running == me and stay:
            return
        self.workers[self.running].gate.release()
        if stay:
            self.workers[me].gate.acquire()
            if self.error is not None:
                raise _Abandon

    def _able(self) -> list[int]:
        return [n for n, when in self._waiting.items() if when is None or when()]

    def _choose(self, options: tuple[int, ...], can_stay: bool) -> int:
        if self._depth == len(self.choices):
            last = self.choices[-1] if self.choices else None
            spent = last.spent + (last.can_stay and last.index > 0) if last else 0
            self.choices.append(_Choice(options, can_stay, spent))
        choice = self.choices[self._depth]
        assert choice.options == options, "the actors do not do the same in the same order"
        self._depth += 1
        return options[choice.index]

    def _end(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self._over.release()


@contextmanager
def _workers() -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.play = None
            worker.gate.release()
            worker.thread.join(timeout=30.0)


def explore(stage: Callable[[Run], Callable[[], None]], preemptions: int) -> int:
    """Play every order with so many *preemptions* at most; return how many there were.

    Args:
        stage: Sets up one run and starts its actors; returns what is checked at its end.

    Raises:
        AssertionError: What an actor or the check raised, with the order that led there.
    """
    choices: list[_Choice] = []
    runs = 0
    with _workers() as workers:
        while True:
            run = Run(workers, choices, preemptions)
            check = stage(run)
            try:
                run.play()
                check()
            except Exception as error:
                story = "\n  ".join(run.trace)
                raise AssertionError(f"{error}\nafter:\n  {story}") from error
            runs += 1
            while choices and not _has_next(choices[-1], preemptions):
                choices.pop()
            if not choices:
                return runs
            choices[-1].index += 1


def _has_next(choice: _Choice, bound: int) -> bool:
    if choice.index + 1 == len(choice.options):
        return False
    return choice.spent + choice.can_stay <= bound
