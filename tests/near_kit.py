"""A near cache without a cache around it: what is known, what is kept, and who listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jmcache.connection import RedisConnectionManager
from jmcache.connection._tracking import Tracking
from jmcache.deadline import Deadline
from jmcache.keys import KeySpace
from jmcache.near import Coherence, NearCache, NearEntry
from jmcache.settings import CacheSettings

LAG_S = 0.1
PATIENCE_S = 15.0  # on a busy machine
MIB = 1024 * 1024


class Watched(Coherence):
    """Tells whoever waits for it what it was told."""

    def __init__(self, space_counter: bytes) -> None:
        self.changed = threading.Condition()
        self.flushes = 0
        self.opened = 0
        self.closed = 0
        self.extended = 0
        self.names: list[bytes] = []
        super().__init__(space_counter)

    def _note(self, what: str, names: Sequence[bytes] = ()) -> None:
        with self.changed:
            setattr(self, what, getattr(self, what) + 1)
            self.names += names
            self.changed.notify_all()

    def invalidate(self, names: Sequence[bytes]) -> None:
        super().invalidate(names)
        with self.changed:
            self.names += names
            self.changed.notify_all()

    def flush(self) -> None:
        super().flush()
        self._note("flushes")

    def open(self) -> int:
        session = super().open()
        self._note("opened")
        return session

    def extend(self, session: int, until: float) -> bool:
        is_current = super().extend(session, until)
        self._note("extended")
        return is_current

    def close(self, session: int | None = None) -> None:
        super().close(session)
        self._note("closed")

    def wait_for(self, condition: Callable[[], object], within_s: float = PATIENCE_S) -> bool:
        """Wait until *condition* holds, which is looked at whenever something was told."""
        with self.changed:
            return bool(self.changed.wait_for(condition, within_s))


class Nearby:
    """One of everything, for the namespace "test".

    *pool* is the way of the cache, *listener* that of its ears; they may lead to the same server by
    different ways, such as through a proxy.
    """

    def __init__(
        self, pool: CacheSettings, listener: CacheSettings | None = None, *, lag_s: float = LAG_S
    ) -> None:
        keys = KeySpace("test", 1)
        self.keys = keys
        self.manager = RedisConnectionManager(pool)
        self.ears = self.manager if listener is None else RedisConnectionManager(listener)
        self.touches: list[bytes] = []
        self.coherence = Watched(keys.space_counter)
        self.near = NearCache(self.coherence, MIB, 30.0)
        self.tracking = Tracking(
            self.ears.new_connection,
            self.touch,
            self.coherence,
            keys.prefix,
            lag_s=lag_s,
            connect_s=2.0,
            place=lambda: "the server",
        )
        self.coherence.wake = self.tracking.wake

    def touch(self, name: bytes, blob: bytes, ttl_ms: int, deadline: Deadline) -> None:
        self.touches.append(name)
        self.manager.set(name, blob, ttl_ms, deadline)

    def name(self, key: str) -> bytes:
        return self.keys.name(key)[0]

    def keep(self, key: str, body: bytes = b"body", **options: Any) -> bool:
        """Keep an entry as it would have been read just now."""
        token = self.coherence.begin()
        options = {"until": time.monotonic() + 30.0, "created_s": 0.0, **options}
        return token is not None and self.near.insert(
            token, NearEntry(self.name(key), body, **options)
        )

    def get(self, key: str) -> bytes | None:
        found = self.near.get(self.name(key))
        return None if found is None else found.body

    def use_until(self, condition: Callable[[], object], within_s: float = PATIENCE_S) -> bool:
        """Use it, as readers do, until *condition* holds."""
        until = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > until:
                return False
            self.near.get(b"")
            with self.coherence.changed:
                self.coherence.changed.wait(0.01)
        return True

    def is_on(self) -> bool:
        return time.monotonic() < self.coherence.until

    def turn_on(self) -> None:
        assert self.use_until(self.is_on), "the near cache did not come on"

    def close(self) -> None:
        self.tracking.stop()
        self.manager.close()
        self.ears.close()


@contextmanager
def nearby(*args: Any, **options: Any) -> Iterator[Nearby]:
    near = Nearby(*args, **options)
    try:
        yield near
    finally:
        near.close()
