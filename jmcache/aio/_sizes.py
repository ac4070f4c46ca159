"""How large values are, as far as one can tell before one has them."""

from __future__ import annotations

from jmcache.cache import Key

_MOST_BYTES = 512 * 1024  # in one flight
_LARGE = 64 * 1024  # bytes; whose value had so many last time leaves alone
_LARGE_KEYS = 1_024  # known at most
_UP, _DOWN = 2, 8  # what is expected follows larger values by a half, smaller ones by an eighth


class Sizes:
    """What was learnt from the values that one loop read and wrote; for its thread alone."""

    def __init__(self) -> None:
        self._large: dict[Key, None] = {}
        self._expected = 0.0  # bytes of a value that is not large

    def is_large(self, key: Key) -> bool:
        """Did its value take long, when it was seen last?"""
        return bool(self._large) and key in self._large

    def most(self, limit: int) -> int:
        """Return how many may leave in one flight: 1 or more, and *limit* at most."""
        return min(limit, int(_MOST_BYTES / (self._expected + 1)) or 1)

    def takes_long(self, count: int) -> bool:
        """May the answer for *count* keys that are not large take its time?"""
        return self._expected * count > _LARGE

    def learn(self, key: Key, size: int) -> None:
        """Take in that the value of *key* has *size* bytes, serialized."""
        if size >= _LARGE:
            if len(self._large) >= _LARGE_KEYS:
                self._large.clear()
            self._large[key] = None
            return
        if self._large:
            self._large.pop(key, None)
        more = size - self._expected
        self._expected += more / (_UP if more > 0 else _DOWN)
