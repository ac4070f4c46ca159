"""What is right and what is wrong.

Every value carries its key and a version, and is whole or not of ours. A key that only one caller
writes must show the version it was last told is stored, or one whose write was not confirmed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from soak.punctuality import Processor, Punctuality
from soak.trace import MARKER

# A write that was not confirmed may land later, also after a write that was: no client can prevent
# that. The proxy lets go of what it holds when a fault ends, and no fault here takes so long.
LANDS_WITHIN_S = 3.0

_EXAMPLES = 5

Value = dict[str, Any]


def compose(key: str, version: int, size_bytes: int) -> Value:
    """Return a value of about *size_bytes* that tells whose it is and whether it is whole."""
    return {"key": key, "version": version, "text": _text(key, version, size_bytes)}


def is_of(key: str, value: Any) -> bool:
    """Is this a value of *key*, as it was composed?"""
    if not isinstance(value, dict) or value.get("key") != key:
        return False
    text = value.get("text")
    version = value.get("version")
    return isinstance(text, str) and text == _text(key, version, len(text))


def _text(key: str, version: Any, length: int) -> str:
    word = f"{version} {MARKER} {key} "
    return (word * (length // len(word) + 1))[:length]


class OwnKey:
    """A key that only one caller writes, and what a read of it may show. Not thread-safe."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._stored = 0  # version known to be stored; 0: none
        self._unconfirmed: dict[int, float] = {}  # version -> monotonic seconds of its write's end

    def wrote(self, version: int, confirmed: bool) -> None:
        """Take note of a write."""
        if confirmed:
            self._settle(version)
        else:
            self._unconfirmed[version] = time.monotonic()

    def deleted(self, confirmed: bool) -> None:
        """Take note of a delete; one that is not confirmed changes nothing that may be seen."""
        if confirmed:
            self._settle(0)

    def accepts(self, version: int) -> bool:
        """May a read show this *version*? What was seen is stored from then on."""
        if version != self._stored:
            if version not in self._unconfirmed:
                return False
            self._stored = version
        return version != 0

    def _settle(self, version: int) -> None:
        self._stored = version
        earliest = time.monotonic() - LANDS_WITHIN_S
        for other, ended in tuple(self._unconfirmed.items()):
            if ended < earliest:
                del self._unconfirmed[other]


class Tally:
    """What one caller saw. Written by that caller alone, read by whoever sums up."""

    def __init__(self, punctuality: Punctuality, *, own_thread: bool) -> None:
        """Begin at zero.

        Args:
            own_thread: Its calls are the only work of the thread they are made on.
        """
        self._punctuality = punctuality
        self._cpu_s = time.thread_time if own_thread else float
        self._cpu_began_s = 0.0
        self._processor: Processor | None = None
        self._queued_s = 0.0  # when the call began
        self.calls = 0
        self.hits = 0  # verified
        self.misses = 0
        self.confirmed = 0  # writes and deletes
        self.unconfirmed = 0
        self.wrong = 0
        self.broken = 0  # read-your-writes
        self.slowest_s = 0.0  # with everything, also the machine's lag
        self.broken_off = 0  # calls, by a timer or a cancellation
        self.exceptions: Counter[str] = Counter()
        self.examples: list[str] = []
        self.in_call_since = 0.0  # monotonic seconds; 0.0: not in a call

    def begin(self) -> float:
        """A call begins now, on this thread. Returns monotonic seconds."""
        if self._processor is None:
            self._processor = Processor()
        self._queued_s = self._processor.queued_s()
        self._cpu_began_s = self._cpu_s()
        self.in_call_since = started = time.monotonic()
        return started

    def end(self, verb: str, started: float) -> None:
        """It has ended, one way or the other."""
        ended = time.monotonic()
        self.in_call_since = 0.0
        self.calls += 1
        self.slowest_s = max(self.slowest_s, ended - started)
        if self._punctuality.is_suspect(ended - started) and self._processor is not None:
            cpu_s = self._cpu_s() - self._cpu_began_s
            queued_s = self._processor.queued_s() - self._queued_s
            self._punctuality.took(verb, started, ended, cpu_s, queued_s)

    def close(self) -> None:
        """There will be no further calls."""
        if self._processor is not None:
            self._processor.close()
        self._processor = None

    def raised(self, error: Exception) -> None:
        """An exception reached the caller."""
        self.exceptions[type(error).__name__] += 1

    def read(self, key: str, value: Any, own: OwnKey | None = None) -> bool:
        """Judge the answer to a read; return True for a hit, be it right or wrong."""
        if value is None:
            self.misses += 1
            return False
        if not is_of(key, value):
            self.wrong += 1
            self._note(f"wrong value for {key}: {_shape(value)}")
        elif own is not None and not own.accepts(value["version"]):
            self.broken += 1
            self._note(f"{key} shows version {value['version']}, which it cannot have any more")
        else:
            self.hits += 1
        return True

    def wrote(self, confirmed: bool) -> None:
        """Count the answer to a write or a delete."""
        if confirmed:
            self.confirmed += 1
        else:
            self.unconfirmed += 1

    def _note(self, what: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(what)


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return f"key {str(value.get('key'))[:40]!r}, version {str(value.get('version'))[:20]}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def total(tallies: Iterable[Tally], now: float) -> dict[str, Any]:
    """Return the sum of *tallies* as plain types; calls still going at *now* included."""
    tallies = list(tallies)
    exceptions: Counter[str] = Counter()
    for tally in tallies:
        exceptions.update(dict(tally.exceptions))
    going = [now - since for tally in tallies if (since := tally.in_call_since)]
    counted = (
        "calls",
        "hits",
        "misses",
        "confirmed",
        "unconfirmed",
        "wrong",
        "broken",
        "broken_off",
    )
    return {
        **{name: sum(getattr(tally, name) for tally in tallies) for name in counted},
        "slowest_s": max([tally.slowest_s for tally in tallies] + going, default=0.0),
        "exceptions": dict(exceptions),
        "in_call": len(going),
        "in_call_longest_s": max(going, default=0.0),
        "examples": [text for tally in tallies for text in tally.examples][:_EXAMPLES],
    }


def add(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two totals as one."""
    summed: dict[str, Any] = {}
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if a is None or b is None:
            summed[name] = b if a is None else a
        elif name.endswith("_s"):
            summed[name] = max(a, b)
        elif isinstance(a, dict):
            summed[name] = dict(Counter(a) + Counter(b))
        elif isinstance(a, list):
            summed[name] = (a + b)[:_EXAMPLES]
        else:
            summed[name] = a + b
    return summed
