"""What is broken when, and who does it."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from jmcache.testing import ReplyError
from soak.faults import ALONE, KINDS, LIFE, LINE, SETTINGS, USERS, Lab

COMBINED_EVERY = 4


@dataclass(frozen=True, slots=True)
class Episode:
    """Something that is broken for a while.

    Attributes:
        kinds: What, in the order it happens; put right in the opposite one.
        hold_s: Seconds from each of them to the next, and from the last to the end.
        rest_s: Seconds without a fault after it.
    """

    kinds: tuple[str, ...]
    hold_s: float
    rest_s: float

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join(self.kinds)


def episodes(rand: random.Random) -> Iterator[Episode]:
    """Yield what is to happen, without end.

    Every kind has its turn before any has a second one. Some episodes combine one of each sort,
    such as slow replies, then another password, then a kill.
    """
    while True:
        bag = list(KINDS)
        rand.shuffle(bag)
        for number, kind in enumerate(bag, 1):
            kinds: tuple[str, ...] = (kind,)
            if number % COMBINED_EVERY == 0 and kind not in ALONE:
                kinds = tuple(
                    kind if kind in sort else rand.choice(tuple(sort))
                    for sort in (LINE, SETTINGS, USERS if kind in USERS else LIFE)
                )
            yield Episode(kinds, rand.uniform(0.2, 0.8), rand.uniform(0.6, 1.6))


class Saboteur:
    """Breaks one thing after the other, on a thread of its own. A context manager.

    Leaving it puts everything right; from then on nothing is broken.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab = lab
        self._rand = random.Random(seed)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="soak-saboteur", daemon=True)
        self.current = ""  # name of the episode at this moment
        self.done: list[Episode] = []
        self._begun: list[tuple[str, float]] = []  # names, monotonic seconds
        self.troubles: list[str] = []  # episodes that did not go as they should

    def __enter__(self) -> Saboteur:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._lab.heal()

    def check(self) -> None:
        """Raise what ended it early."""
        if self._failure is not None:
            raise RuntimeError("nothing is broken any more") from self._failure

    def count(self) -> dict[str, int]:
        """Return how often each kind has happened."""
        counts = dict.fromkeys(KINDS, 0)
        for episode in self.done:
            for kind in episode.kinds:
                counts[kind] += 1
        return counts

    def explain(self, moment: float) -> str:
        """Return what was, or had just been, broken at that *moment*, in monotonic seconds."""
        before = [name for name, began in self._begun if began <= moment]
        return before[-1] if before else "no fault"

    def _run(self) -> None:
        try:
            for episode in episodes(random.Random(self._rand.random())):
                if self._over.wait(episode.rest_s):
                    return
                self._break(episode)
        except BaseException as error:  # noqa: BLE001 - raised where somebody waits for us
            self._failure = error

    def _break(self, episode: Episode) -> None:
        self._begun.append((episode.name, time.monotonic()))
        self.current = episode.name
        try:
            with contextlib.ExitStack() as stack:
                for kind in episode.kinds:
                    stack.enter_context(KINDS[kind](self._lab, self._rand))
                    self._over.wait(episode.hold_s)
        except (OSError, ReplyError, RuntimeError) as error:  # a command of ours met what we broke
            self.troubles.append(f"{episode.name}: {type(error).__name__}: {error}")
            self._lab.heal()
        self.current = ""
        self.done.append(episode)
