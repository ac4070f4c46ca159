"""How large values are, as far as one can tell before one has them."""

from __future__ import annotations

from collections.abc import Hashable

_MOST_BYTES = 512 * 1024  # in one round trip
_LARGE = 64 * 1024  # bytes; whose value had so many last time has a round trip of its own
_LARGE_KEYS = 1_024  # known at most
_SHARE = 8  # what is expected follows what was seen latest by an eighth


class Sizes:
    """What was learnt from the values that were read and written.

    Any thread may learn and ask at any time, without a lock: what two learn at once may count as
    one, and a guess is all it is. A forked child goes on with what its parent knew.
    """

    def __init__(self) -> None:
        self._large: dict[Hashable, None] = {}
        self._expected = 0.0  # bytes of a value

    def is_large(self, key: Hashable) -> bool:
        """Did its value take long, when it was seen last?"""
        return bool(self._large) and key in self._large

    def most(self, limit: int) -> int:
        """Return how many may share a round trip: 1 or more, and *limit* at most."""
        return min(limit, int(_MOST_BYTES / (self._expected + 1)) or 1)

    def takes_long(self, count: int) -> bool:
        """May the answer for *count* keys take its time?"""
        return self._expected * count > _LARGE

    def learn(self, key: Hashable, size: int) -> None:
        """Take in that the value of *key* has *size* bytes, serialized."""
        if size < _LARGE:
            if self._large:
                self._large.pop(key, None)
        elif key in self._large:
            return  # it shares no round trip anyway
        else:
            if len(self._large) >= _LARGE_KEYS:
                self._large.clear()
            self._large[key] = None
        self._expected += (min(size, _MOST_BYTES) - self._expected) / _SHARE
