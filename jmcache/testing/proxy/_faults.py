"""What can be made to go wrong, and the handle on it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from jmcache.testing.proxy._frames import Command

Trigger: TypeAlias = "bytes | Callable[[list[bytes]], bool] | None"
"""Bytes that the command contains, or a function of its words."""

# How a client introduces itself: spared unless it is named.
GREETING = frozenset({b"AUTH", b"HELLO", b"SELECT", b"CLIENT", b"READONLY"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """At most *size* bytes in every *every_s* seconds."""

    size: int
    every_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a fault does, in words that the connections know.

    Attributes:
        line: Holds for all that passes, the greeting included, not for single commands.
        blackhole: Nothing passes.
        refuse: Nobody is let in.
        command_lost: The command reaches nobody.
        command_delay_s: Seconds that the command takes longer to the server.
        command_pace: How fast the command goes to the server.
        answer: Goes to the client in place of the reply; b"" for nothing.
        cut_after: Bytes of the reply that go to the client; the rest goes where *then* says.
        then: "end", "reset" or "hold".
        extra: Follows the reply.
        twice: The reply itself follows the reply.
        late: What follows waits for the next command.
        delay_s: Seconds that the reply takes longer to the client.
        jitter_s: Seconds that it takes longer still, at most, at random.
        pace: How fast the reply goes to the client.
    """

    line: bool = False
    blackhole: bool = False
    refuse: bool = False
    command_lost: bool = False
    command_delay_s: float = 0.0
    command_pace: Pace | None = None
    answer: bytes | None = None
    cut_after: int | None = None
    then: str = "end"
    extra: bytes | None = None
    twice: bool = False
    late: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    pace: Pace | None = None


class Fault:
    """A fault that is in place, until it is removed. From any thread; a context manager, too.

        with proxy.latency(0.3) as slow:
            cache.get("key")
            assert slow.triggered == 1

    Attributes:
        name: What it is called, such as "latency".
        triggered: How many commands it was done to.
        active: It has not been removed.
    """

    def __init__(
        self,
        name: str,
        effect: Effect,
        on: Trigger,
        times: int | None,
        *,
        changed: threading.Condition,
        remove: Callable[[Fault], None],
    ) -> None:
        """For FaultProxy to make."""
        self.name = name
        self.effect = effect
        self.triggered = 0
        self.active = True
        self._on = on
        self._times = times
        self._changed = changed
        self._remove = remove

    def __repr__(self) -> str:
        state = "active" if self.active else "removed"
        return f"<{self.name}, {state}, triggered {self.triggered} times>"

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Let everything pass again, also what it still held back. Nothing the second time."""
        self._remove(self)

    def wait(self, times: int = 1, *, timeout_s: float = 5.0) -> None:
        """Wait until it has been triggered *times* times since it was put in place.

        Raises:
            TimeoutError: It was not within *timeout_s* seconds.
        """
        check_count("times", times, least=1)
        wait_until(self._changed, lambda: self.triggered >= times, timeout_s, lambda: repr(self))

    def takes(self, command: Command) -> bool:
        """Whether it is done to *command*; counted if so. For the proxy's own thread."""
        if not self.active or (self._times is not None and self.triggered >= self._times):
            return False
        name = command.words[0].upper()
        if self._on is None:
            taken = self.effect.line or name not in GREETING
        elif isinstance(self._on, bytes):
            # b"SET" is in CLIENT SETINFO, too, and not meant.
            spared = name in GREETING and name not in self._on.upper()
            taken = self._on in command.raw and not spared
        else:
            taken = bool(self._on(command.words))
        self.triggered += taken
        return taken


def wait_until(
    changed: threading.Condition,
    condition: Callable[[], object],
    timeout_s: float,
    describe: Callable[[], str],
) -> None:
    """Wait for *condition*, looked at whenever the proxy saw something.

    Raises:
        TimeoutError: It did not hold within *timeout_s* seconds.
    """
    check_seconds("timeout_s", timeout_s)
    with changed:
        if not changed.wait_for(condition, timeout_s):
            raise TimeoutError(f"not within {timeout_s} s: {describe()}")


def check_trigger(on: object) -> None:
    """Raise ValueError if it is no trigger."""
    if not (on is None or (on != b"" and (isinstance(on, bytes) or callable(on)))):
        raise ValueError(f'on: bytes of the command, such as b"GET", or a function; not {on!r}')


def check_seconds(
    name: str, value: object, *, above_zero: bool = False, unit: str = "seconds"
) -> float:
    """Return *value*, or raise ValueError by the *name* of the argument."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        if value > 0 or (value == 0 and not above_zero):
            return float(value)
    raise ValueError(f"{name}: {unit}, {'above 0' if above_zero else '0 or more'}; not {value!r}")


def check_count(name: str, value: object, *, least: int) -> int:
    """Return *value*, or raise ValueError by the *name* of the argument."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ValueError(f"{name}: a whole number, {least} or more; not {value!r}")


def check_bytes(name: str, value: object) -> bytes:
    """Return *value*, or raise ValueError by the *name* of the argument."""
    if isinstance(value, bytes) and value:
        return value
    raise ValueError(f"{name}: bytes, at least one; not {value!r}")
