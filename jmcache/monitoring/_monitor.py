"""The counters of one cache, and its log lines about single values."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

from jmcache.errors import RedisError
from jmcache.fork import renew_in_child
from jmcache.monitoring._delivery import Delivery
from jmcache.monitoring._metrics import (
    Metrics,
    report_bundle,
    report_event,
    report_operation,
    report_retry,
    report_transition,
)
from jmcache.monitoring._outage import Transition
from jmcache.monitoring._stats import UNTIMED, CacheStats, Slot, summarize
from jmcache.monitoring._voice import say
from jmcache.outcome import Outcome

_log = logging.getLogger("jmcache.cache")

QUIET_S = 10.0  # between two lines that say the same
LINES = 32  # different ones within QUIET_S: a flood of bad values is no flood of lines
RARE_QUIET_S = 60.0  # the same for what is not the caller's doing, and comes in floods
RARE_LINES = 2
DIGESTS = 1024  # of corrupt entries already spoken of
PATH_LENGTH = 200  # characters of a path that are kept and logged


class Monitor:
    """Counts every operation of one cache once, and tells the sinks.

    The counters are this process's own; a forked child begins at zero, so that the sum over all
    processes is right. Sinks are called on a thread of ours that starts with the first
    measurement. The methods may be called from any thread, and wait for no sink and no log handler
    while they hold a lock.
    """

    def __init__(
        self,
        namespace: str,
        sinks: Sequence[Metrics] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count from zero.

        Args:
            namespace: The cache's, for labels and log lines.
            sinks: Who else gets the measurements.
            clock: Seconds, never going back.
        """
        self._namespace = namespace
        self._clock = clock
        self._begin()
        self._delivery = Delivery(sinks, clock) if sinks else None
        if self._delivery is not None:
            self._delivery.end_with(self)  # nobody may have closed it
        renew_in_child(self._begin)

    def _begin(self) -> None:
        # No loop stands directly in a `with` on it: from 3.12 on, an exception from a signal
        # handler that lands on the jump at the loop's end can leave the lock held for ever.
        self._lock = threading.Lock()
        self._cells: dict[Slot, _Cell] = {}  # guarded by _lock
        self._retries = 0  # guarded by _lock
        self._events: dict[str, int] = {}  # guarded by _lock
        self._throttle = _Throttle(QUIET_S, LINES)  # guarded by _lock
        self._rare = _Throttle(RARE_QUIET_S, RARE_LINES)  # guarded by _lock
        self._known_digests: OrderedDict[str, None] = OrderedDict()  # guarded by _lock
        self._not_served: set[tuple[str, str]] = set()  # guarded by _lock; few of either

    def record(self, operation: str, outcome: Outcome, reason: str, seconds: float) -> None:
        """Count one operation: how it ended, and how long the caller waited for it.

        Args:
            operation: The public method's name: "get", "set_many", ...
            outcome: How it ended.
            reason: Why, as one word out of few; empty for HIT and DONE.
            seconds: From the call to its return.
        """
        slot = (operation, outcome, reason, int(seconds * 1e6).bit_length())
        with self._lock:
            # Not _add: the call would cost a quarter of it all.
            cell = self._cells.get(slot)
            if cell is None:
                cell = self._cells[slot] = _Cell()
            cell.count += 1
            if seconds > cell.max_s:
                cell.max_s = seconds
        if self._delivery is not None:
            self._delivery.put(
                partial(report_operation, self._namespace, operation, outcome, reason, seconds)
            )

    def record_many(
        self, operation: str, endings: Iterable[tuple[Outcome, str]], seconds: float
    ) -> None:
        """Count one call about several keys: an outcome and a reason for each, one latency.

        Without any key there is nothing to count.
        """
        counts = Counter(endings)
        with self._lock:
            self._add_all(operation, counts, seconds)
        if counts and self._delivery is not None:
            self._delivery.put(partial(report_bundle, self._namespace, operation, counts, seconds))

    def _add_all(
        self, operation: str, counts: Mapping[tuple[Outcome, str], int], seconds: float
    ) -> None:
        bits = int(seconds * 1e6).bit_length()
        added: dict[Slot, _Cell] = {}
        for (outcome, reason), count in counts.items():
            if bits != UNTIMED:
                self._add((operation, outcome, reason, bits), 1, seconds, added)
                bits = UNTIMED
                count -= 1
            if count:
                self._add((operation, outcome, reason, UNTIMED), count, 0.0, added)
        # In one step: a call that is interrupted has counted all of its keys, or none.
        self._cells.update(added)

    def _add(self, slot: Slot, count: int, seconds: float, added: dict[Slot, _Cell]) -> None:
        cell = self._cells.get(slot) or _Cell()
        added[slot] = _Cell(cell.count + count, max(cell.max_s, seconds))

    def note_retry(self, error: RedisError, wait_s: float) -> None:  # noqa: ARG002
        """Count an attempt that is made again after *error*; what Retry calls before it waits."""
        with self._lock:
            self._retries += 1
        if self._delivery is not None:
            self._delivery.put(partial(report_retry, self._namespace, error.reason))

    def note(self, event: str) -> None:
        """Count one of the things that happen while values are computed, such as "load"."""
        with self._lock:
            self._events[event] = self._events.get(event, 0) + 1
        if self._delivery is not None:
            self._delivery.put(partial(report_event, self._namespace, event))

    def on_change(self, transition: Transition) -> None:
        """Tell the sinks that the circuit breaker changed its state."""
        if self._delivery is not None:
            self._delivery.put(
                partial(
                    report_transition,
                    self._namespace,
                    transition.before,
                    transition.after,
                    transition.reason,
                )
            )

    def note_refused(self, path: str, type_name: str, reason: str) -> None:
        """Log that a value is not cached: where in it, which type, why; never the value.

        The same at most once in ``QUIET_S`` seconds.
        """
        path = path[:PATH_LENGTH]
        now = self._clock()
        with self._lock:
            suppressed = self._throttle.admit((path, type_name, reason), now)
        if suppressed is not None:
            fields = {
                "namespace": self._namespace,
                "path": _one_line(path) or "the value itself",
                "type": type_name,
                "reason": reason,
                "suppressed": suppressed,
            }
            say(
                _log,
                logging.WARNING,
                "%(namespace)s: value not cached: %(path)s, of type %(type)s: %(reason)s"
                + _suffix(suppressed),
                fields,
            )

    def note_corrupt(self, key_digest_hex: str, reason: str) -> None:
        """Log that what is stored under a key is not ours, once per key.

        An ERROR for "wrong_key": another key's value arrived, which nothing but a fault explains.
        One line a reason in ``RARE_QUIET_S`` seconds stands for all keys.
        """
        now = self._clock()
        with self._lock:
            if key_digest_hex in self._known_digests:
                self._known_digests.move_to_end(key_digest_hex)
                return
            suppressed = self._rare.admit(reason, now)
            if suppressed is None:
                return
            self._known_digests[key_digest_hex] = None
            if len(self._known_digests) > DIGESTS:
                self._known_digests.popitem(last=False)
        fields = {
            "namespace": self._namespace,
            "key_digest": key_digest_hex,
            "reason": reason,
            "suppressed": suppressed,
        }
        say(
            _log,
            logging.ERROR if reason == "wrong_key" else logging.WARNING,
            "%(namespace)s: entry is not ours, read as a miss: key digest %(key_digest)s:"
            " %(reason)s" + _suffix(suppressed),
            fields,
        )

    def note_not_served(self, operation: str, reason: str, message: str) -> None:
        """Log, once for each operation and reason, that Redis does not serve it for us.

        Later when there is no room for the line now.

        Args:
            message: What to look at; holds no key, value or password.
        """
        what = operation, reason
        now = self._clock()
        with self._lock:
            if what in self._not_served or not self._rare.take(what, now):
                return
            self._not_served.add(what)
        fields = {
            "namespace": self._namespace,
            "operation": operation,
            "reason": reason,
            "what": message,
        }
        say(
            _log,
            logging.ERROR,
            "%(namespace)s: Redis does not serve %(operation)s (%(reason)s): %(what)s",
            fields,
        )

    def note_overflow(self) -> None:
        """Log that more is owed to Redis than is kept, so that all of the namespace is a miss."""
        with self._lock:
            suppressed = self._rare.admit("overflow", self._clock())
        if suppressed is not None:
            say(
                _log,
                logging.WARNING,
                "%(namespace)s: more invalidations are owed to Redis than are kept: the whole"
                " namespace is invalid in their place" + _suffix(suppressed),
                {"namespace": self._namespace, "suppressed": suppressed},
            )

    def stats(self) -> CacheStats:
        """Return all counters as they are now."""
        with self._lock:
            cells = self._copy()
            retries = self._retries
            events = self._events.copy()
        delivery = self._delivery
        return summarize(
            cells,
            retries=retries,
            events=events,
            sink_errors=0 if delivery is None else delivery.sink_errors,
            dropped=0 if delivery is None else delivery.dropped,
        )

    def _copy(self) -> dict[Slot, tuple[int, float]]:
        return {slot: (cell.count, cell.max_s) for slot, cell in self._cells.items()}

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait until the sinks have every measurement so far; False after *timeout_s* seconds."""
        return self._delivery is None or self._delivery.flush(timeout_s)

    def close(self) -> None:
        """Give the sinks what is left, within 0.3 s, and end the thread. Idempotent.

        Counting goes on; the sinks get nothing more.
        """
        if self._delivery is not None:
            self._delivery.close()


class _Cell:
    """One slot's count and longest latency in seconds."""

    __slots__ = ("count", "max_s")

    def __init__(self, count: int = 0, max_s: float = 0.0) -> None:
        self.count = count
        self.max_s = max_s


class _Throttle:
    """Lets a line through once in *quiet_s* seconds, and no more than *lines* different ones."""

    def __init__(self, quiet_s: float, lines: int) -> None:
        self._quiet_s = quiet_s
        self._lines = lines
        self._said: dict[Hashable, tuple[float, int]] = {}  # -> said when, suppressed since
        self._orphans = 0  # suppressed lines whose own next line will not come

    def admit(self, line: Hashable, now: float) -> int | None:
        """Return None for a line to suppress, else how many were suppressed before it."""
        said_at, suppressed = self._said.get(line, (None, 0))
        if said_at is not None and now - said_at < self._quiet_s:
            self._said[line] = (said_at, suppressed + 1)
            return None
        if said_at is None and not self._has_room(now):
            self._orphans += 1
            return None
        suppressed += self._orphans
        self._orphans = 0
        self._said[line] = (now, 0)
        return suppressed

    def take(self, line: Hashable, now: float) -> bool:
        """Return True for a line to let through; one that is not is not counted either."""
        if not self._has_room(now):
            return False
        self._said[line] = (now, 0)
        return True

    def _has_room(self, now: float) -> bool:
        if len(self._said) >= self._lines:
            self._forget_old(now)
        return len(self._said) < self._lines

    def _forget_old(self, now: float) -> None:
        for line, (said_at, suppressed) in tuple(self._said.items()):
            if now - said_at >= self._quiet_s:
                del self._said[line]
                self._orphans += suppressed


def _suffix(suppressed: int) -> str:
    return " (%(suppressed)d such lines suppressed)" if suppressed else ""


def _one_line(path: str) -> str:
    # A name from the value could hold a line break, and with it a forged log line.
    return path if path.isprintable() else ascii(path)
