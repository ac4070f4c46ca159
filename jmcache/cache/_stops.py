"""The order of the stops. Only this module knows it.

read    key ─▶ name ─▶ near cache ─▶ retry ─▶ circuit breaker ─▶ connection ─▶ Redis
        value ◀─ validity ◀─ serialization ◀─ envelope ◀─ blob ─────┘
write   the same, mirrored
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, TypeVar

from jmcache.cache._awaited import AwaitedLook
from jmcache.cache._keeper import Hold
from jmcache.cache._look import SEALED, Kept, Key, Look
from jmcache.cache._nearby import Nearby, Reading
from jmcache.cache._plan import check_validate
from jmcache.circuit_breaker import CircuitBreaker
from jmcache.combining import Combiner
from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.envelope import Entry, Envelope
from jmcache.errors import (
    RedisCircuitBreakerOpenError,
    RedisClosedError,
    RedisCorruptEntryError,
    RedisError,
    RedisHurriedError,
    RedisNotServedError,
    RedisRejectedError,
    RedisSerializationError,
    RedisWriteRefusedError,
)
from jmcache.health import HealthThread
from jmcache.invalidation import COUNTER_ROOM, Journal, generation_of, read_counter
from jmcache.keys import KeySpace, digest_text
from jmcache.monitoring import Monitor, OutageLog
from jmcache.near import Coherence, NearCache
from jmcache.outcome import Outcome
from jmcache.retry import Retry
from jmcache.serialization import RedisSerializer
from jmcache.settings import CacheSettings
from jmcache.signals import signals_as_before
from jmcache.store import Found, Item, Store

T = TypeVar("T")
Validate = Callable[[Any], object] | type | Any
Problems = dict[int, RedisError]  # by the place of what they are about
Counters = dict[bytes, int | RedisError | None]  # an error: where it is kept is away

# Looking a member up in its class costs 3.11 as much as a dict.
_HIT, _STALE = Outcome.HIT, Outcome.STALE
_CLOSED = Look(Outcome.UNAVAILABLE, RedisClosedError.reason, reached=False)
_BREAKER_OPEN = Look(Outcome.UNAVAILABLE, RedisCircuitBreakerOpenError.reason, reached=False)
_ABSENT, _INVALIDATED = Look(Outcome.MISS, "absent"), Look(Outcome.MISS, "invalidated")

_PIECE = 5000  # keys that are deleted in one round trip
_TAGS_SHARE = 0.8  # of the time that is left, for the counters of tags in a cluster

# What a validator raises to say no. Anything else it raises is the caller's business.
_NO = (ValueError, TypeError, LookupError, AttributeError, AssertionError)


class Stops:
    """Every stop of one cache, in order. Thread-safe; raises RedisError when an operation fails."""

    def __init__(
        self,
        store: Store,
        settings: CacheSettings,
        *,
        monitor: Monitor,
        journal: Journal,
        serializer: RedisSerializer | None = None,
        validate: Validate | None = None,
        now: Callable[[], float] = time.time,
        coherence: Coherence | None = None,
        near: NearCache | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.monitor = monitor
        self.journal = journal
        self.keys = KeySpace(settings.namespace, settings.schema_version)
        self._serializer = serializer or RedisSerializer(max_bytes=settings.max_value_bytes)
        self._envelope = Envelope(
            max_body_bytes=settings.max_value_bytes,
            compress_above_bytes=settings.compress_above_bytes,
            secrets=settings.entry_secrets,
            now=now,
        )
        self.nearby = Nearby(coherence, near, self._serializer.deserialize, now)
        self._validate = validate
        self._now = now
        self._space = self.keys.space_counter
        self._seen: dict[bytes, int] = {}  # the namespace's counters, when they were seen last
        self.closed = False

    @property
    def spaces(self) -> tuple[bytes, ...]:
        """The namespace's counters. Each entry depends on one of them."""
        return self.keys.piece_counters if self.store.in_parts else (self._space,)

    def _space_of(self, key: Key) -> bytes:
        return self.keys.piece_counter(key.name) if self.store.in_parts else self._space

    def _spaces_of(self, keys: Iterable[Key]) -> tuple[bytes, ...]:
        return tuple(dict.fromkeys(map(self._space_of, keys)))

    # What may wait ------------------------------------------------------------------------------

    def ask(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        """Carry out a verb of the store; its last argument is the deadline."""
        return verb(*args, **options)

    def ask_to_write(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        """The same, for one that stores something."""
        return self.ask(verb, *args, **options)

    @property
    def answers_at_once(self) -> bool:
        """True when an operation would not wait for anything outside this process right now."""
        return True

    def check_usable(self) -> None:
        """Raise what an operation ends with before it began, so that none waits or works for it."""
        if self.closed:
            raise RedisClosedError("the cache is closed")

    def refused(self) -> Look | None:
        """Return how a read ends that cannot be asked for now; as `check_usable`, at less cost."""
        return _CLOSED if self.closed else None

    def check_writable(self) -> None:
        """Raise what a write ends with before it began."""

    def ring(self) -> None:
        """Have what is owed told as soon as it can be."""

    # Reading ------------------------------------------------------------------------------------

    def look_near(
        self, name: bytes, validate: Validate | None, *, at_once: bool = False
    ) -> Look | None:
        """Return a fresh hit on *name* if it is kept in this process; waits for nobody.

        Args:
            at_once: Not one that would keep an event loop from its work, as a lot to decode does,
                and code of the application's.
        """
        if at_once and (validate is not None or self._validate is not None):
            return None
        since = self.journal.settled
        found = self.nearby.find(name, at_once=at_once)
        if found is None or self.closed:
            return None
        entry, look = found
        journal = self.journal
        if (journal.debts or journal.settled != since) and journal.voids(
            (name, self._space, *entry.counters), since
        ):
            return None
        if validate is not None or self._validate is not None:
            answer = self.accepted(look, validate)
            if isinstance(answer, RedisError):  # it is Redis's copy that is judged, and removed
                self.nearby.forget(entry)
                return None
        return look

    def look_at(self, key: Key, deadline: Deadline) -> Look:
        """Look at one *key*, in a round trip that others may share. Raises what ends it."""
        return self.look_alone(key, deadline)

    def look_alone(self, key: Key, deadline: Deadline, *, decode: bool = True) -> Look:
        """Look at one *key*, in a round trip of its own. Raises what ends it."""
        space = self._space_of(key)
        since = self.journal.settled
        reading = self.nearby.begin()
        found = self._read((key.name,), (space,), (), deadline, reading)
        stored = found.counters[0]
        counter = stored if isinstance(stored, RedisError) else read_counter(stored)
        self.remember(space, counter)
        known = {space: counter}
        entry = self.unseal(key, found.blobs[0])
        if isinstance(entry, Entry) and entry.tags:
            self._learn_tags((entry,), known, deadline)
        look = self.weigh(key, entry, space, known, since, deadline, decode)
        if reading is not None:
            self.keep(reading, key, entry, look, found.lives_ms[0])
        return look

    def begin_look(self, keys: Sequence[Key], deadline: Deadline) -> AwaitedLook | None:  # noqa: ARG002
        """Begin to look at *keys* without a wait; None where a thread has to."""
        return None

    def look_together(
        self, keys: Sequence[Key], deadline: Deadline, *, decode: bool = True
    ) -> list[Look | RedisError]:
        """Look at *keys* in one round trip, and one more if an entry has tags.

        Returns an error for each that ended in one; raises what ends all.
        """
        spaces = self._spaces_of(keys)
        since = self.journal.settled
        reading = self.nearby.begin()
        found = self._read([key.name for key in keys], spaces, (), deadline, reading)
        known = _known(spaces, found.counters)
        return self._judge(keys, found, known, spaces, since, deadline, decode, reading)

    def _read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        deadline: Deadline,
        reading: Reading | None,
    ) -> Found:
        if reading is None:
            return self.ask(self.store.read, names, counters, leases, deadline)
        return self.ask(self.store.read, names, counters, leases, deadline, lives=True)

    def keep(
        self,
        reading: Reading,
        key: Key,
        entry: Entry | RedisError | None,
        look: Look,
        life_ms: int,
    ) -> None:
        """Keep *entry* in this process if it can be, which was read as *look* says."""
        if look.outcome is _HIT and isinstance(entry, Entry):
            counters = tuple(map(self.keys.tag_counter, entry.tags))
            self.nearby.keep(reading, key.name, entry, life_ms, counters)

    def look(
        self,
        keys: Sequence[Key],
        deadline: Deadline,
        *,
        validate: Validate | None = None,
        tags: tuple[str, ...] = (),
        holders: bool = False,
    ) -> list[Look]:
        """Look at *keys* for somebody who may compute them; as `look_together`, with all there is.

        Args:
            tags: Those of what would be computed.
            holders: Say who holds the leases.
        """
        names = [key.name for key in keys]
        spaces, labels = self._spaces_of(keys), tuple(map(self.keys.tag_counter, tags))
        leases = [key.lease for key in keys] if holders else ()
        asked_at, since = time.monotonic(), self.journal.settled
        reading = self.nearby.begin()
        found = self._read(names, spaces + labels, leases, deadline, reading)
        return self._look_into(
            keys, found, asked_at, since, spaces, labels, deadline, validate, reading
        )

    def _look_into(
        self,
        keys: Sequence[Key],
        found: Found,
        asked_at: float,
        since: int,
        spaces: tuple[bytes, ...],
        labels: tuple[bytes, ...],
        deadline: Deadline,
        validate: Validate | None,
        reading: Reading | None = None,
    ) -> list[Look]:
        """Say what *found* means for each of *keys*; it has *spaces*, then *labels*."""
        known = _known(spaces + labels, found.counters)
        judged = self._judge(keys, found, known, spaces, since, deadline, reading=reading)
        away = {id(error) for error in (*found.blobs, *known.values()) if _is_away(error)}
        holders = found.holders or (None,) * len(keys)
        looks = []
        corrupt = {}
        for key, look, holder in zip(keys, judged, holders, strict=True):
            answer = self.accepted(look, validate)
            if isinstance(answer, RedisError):
                corrupt[key] = answer
                answer = Look(answer.outcome, answer.reason, reached=id(answer) not in away)
            generation = _generation((self._space_of(key), *labels), known)
            looks.append(answer._replace(holder=holder, generation=generation, asked_at=asked_at))
        self.discard_corrupt(corrupt, deadline)
        return looks

    def _judge(
        self,
        keys: Sequence[Key],
        found: Found,
        known: Counters,
        spaces: Iterable[bytes],
        since: int,
        deadline: Deadline,
        decode: bool = True,
        reading: Reading | None = None,
    ) -> list[Look | RedisError]:
        for space in spaces:
            self.remember(space, known[space])
        entries = [self.unseal(key, blob) for key, blob in zip(keys, found.blobs, strict=True)]
        # Before anything is decoded, which may use up the time of those with tags.
        self._learn_tags(entries, known, deadline)
        judged: list[Look | RedisError] = []
        homes = map(self._space_of, keys) if self.store.in_parts else repeat(self._space)
        for number, (key, entry, home) in enumerate(zip(keys, entries, homes, strict=False)):
            try:
                look = self.weigh(key, entry, home, known, since, deadline, decode)
                judged.append(look)
            except RedisError as error:
                judged.append(error)
            else:
                if reading is not None:
                    self.keep(reading, key, entry, look, found.lives_ms[number])
        return judged

    def decoded(self, look: Look, deadline: Deadline) -> Look:
        """Return *look* with its value. Raises RedisError when that is not to be had."""
        if look.value is not SEALED or look.body is None:
            return look
        check_time(deadline)
        value = self.nearby.decode(look.body)
        return Look(look.outcome, look.reason, value, look.body, look.age_s, look.ttl_s)

    @property
    def validates(self) -> bool:
        """Has the cache a validation of its own?"""
        return self._validate is not None

    def accepted(self, look: Look | RedisError, validate: Validate | None) -> Look | RedisError:
        """Return *look*, or why its value does not pass; None: by the cache's own validation."""
        validate = self._validate if validate is None else validate
        if validate is None or isinstance(look, RedisError) or not look.is_there:
            return look
        try:
            self._check(look, validate)
        except RedisError as error:
            return error
        return look

    def _check(self, look: Look, validate: Validate) -> None:
        try:
            _check(look.value, validate)
        except RedisCorruptEntryError:
            if not self.settings.near or look.body is None:
                raise
            # It may have tried to change what nobody can, and say so in words of its own.
            _check(self._serializer.deserialize(look.body), validate)

    def remember(self, space: bytes, counter: int | RedisError | None) -> None:
        """Note what a counter of the namespace was seen to be; an error for one that was not."""
        if isinstance(counter, int):
            self._seen[space] = counter
        else:
            self._seen.pop(space, None)

    def unseal(self, key: Key, blob: bytes | RedisError | None) -> Entry | RedisError | None:
        """Return the entry in *blob*, or why there is none; None for nothing."""
        if blob is None or isinstance(blob, RedisError):  # a cluster's node gave no answer
            return blob
        try:
            return self._envelope.unseal(blob, key.digest)
        except RedisError as error:
            return error

    def _learn_tags(
        self, entries: Iterable[Entry | RedisError | None], known: Counters, deadline: Deadline
    ) -> None:
        unknown = {
            counter
            for entry in entries
            if isinstance(entry, Entry)
            for counter in map(self.keys.tag_counter, entry.tags)
            if counter not in known
        }
        if unknown:
            names = tuple(unknown)
            # A node that hangs must leave the others' entries the time to be made something of.
            within = deadline.part(_TAGS_SHARE) if self.store.in_parts else deadline
            try:
                found = self.ask(self.store.read, (), names, (), within)
                known.update(_known(names, found.counters))
            except RedisError as error:
                known.update(dict.fromkeys(names, error))  # and costs entries with tags alone

    def weigh(
        self,
        key: Key,
        entry: Entry | RedisError | None,
        space: bytes,
        known: Counters,
        since: int,
        deadline: Deadline,
        decode: bool = True,
    ) -> Look:
        """Say what *entry* is worth now that the counters it depends on are *known*.

        Raises RedisError when it is worth nothing for a reason other than an invalidation.

        Args:
            since: The journal's latest settlement before Redis was asked for any of it.
        """
        if entry is None:
            return _ABSENT
        if isinstance(entry, RedisError):
            raise entry
        if not self._holds(key, entry, space, known, since):
            return _INVALIDATED
        value = SEALED
        if decode:
            if deadline.expired:  # decoding takes its time too
                raise _hurried()
            value = self.nearby.decode(entry.body)
        age_s = self._now() - entry.created_ms / 1000
        if age_s < 0.0:  # another machine's clock
            age_s = 0.0
        ttl_s = entry.soft_ttl_ms / 1000 or math.inf
        fresh = age_s < ttl_s
        return Look(
            _HIT if fresh else _STALE,
            "" if fresh else "expired",
            value,
            entry.body,
            age_s,
            ttl_s,
            entry.load_cost_ms / 1000,
        )

    def _holds(self, key: Key, entry: Entry, space: bytes, known: Counters, since: int) -> bool:
        counters = (space, *map(self.keys.tag_counter, entry.tags)) if entry.tags else (space,)
        journal = self.journal
        if (journal.debts or journal.settled != since) and journal.voids(
            (key.name, *counters), since
        ):
            return False  # invalid, though Redis did not know it yet
        total = 0
        for counter in counters:
            value = known.get(counter)
            if value is None:
                return False
            if isinstance(value, RedisError):
                raise value
            total += value
        return total % COUNTER_ROOM == entry.generation

    # Writing ------------------------------------------------------------------------------------

    def seal(self, key: Key, body: bytes, kept: Kept) -> Item:
        """Return what is to be stored for a serialized value."""
        return self._seal(key, body, kept, kept.tags, kept.generation)

    def _seal(
        self, key: Key, body: bytes, kept: Kept, tags: tuple[str, ...], generation: int
    ) -> Item:
        fresh_s = kept.ttl_s * (1.0 - self.settings.ttl_jitter * random.random())
        ttl_ms = max(1, int((fresh_s + kept.after_s) * 1000))
        now_ms = max(0, int(self._now() * 1000))
        entry = Entry(
            body=body,
            created_ms=now_ms,
            expires_ms=now_ms + ttl_ms,
            # Where nobody has to know it, Redis's own expiry says it without any clock.
            soft_ttl_ms=max(1, int(fresh_s * 1000)) if kept.after_s or kept.timed else 0,
            load_cost_ms=int(kept.load_cost_s * 1000),
            generation=generation,
            tags=tags,
            negative=kept.negative,
        )
        return Item(key.name, self._envelope.seal(entry, key.digest), ttl_ms, key.lease)

    def _look_up(self, counters: tuple[bytes, ...], deadline: Deadline) -> Counters:
        """Return *counters*, begun where they are not there; an error for those that are away."""
        for _ in range(2):
            found = self.ask(self.store.read, (), counters, (), deadline)
            known = _known(counters, found.counters)
            absent = [counter for counter, value in known.items() if value is None]
            if not absent:
                return known
            self.ask_to_write(self.store.seed, absent, deadline)
        raise RedisWriteRefusedError(
            "the counters that entries depend on do not stay", reason="oom"
        )

    def write(
        self,
        entries: Sequence[tuple[Key, bytes, Kept]],
        tags: tuple[str, ...],
        deadline: Deadline,
    ) -> list[RedisError | None]:
        """Store serialized values whatever is there; for each None, or why it was refused."""
        names = [key.name for key, _, _ in entries]
        with self.nearby.writing(names), self.journal.overtaking(names, deadline) as owed:
            problems = self._write_all(entries, tags, deadline)
            if not problems:
                self.journal.forgive(owed)
        return [problems.get(place) for place in range(len(entries))]

    def _write_all(
        self,
        entries: Sequence[tuple[Key, bytes, Kept]],
        tags: tuple[str, ...],
        deadline: Deadline,
    ) -> Problems:
        labels = tuple(map(self.keys.tag_counter, tags))
        homes = [self._space_of(key) for key, _, _ in entries]
        counters = (*dict.fromkeys(homes), *labels)
        known: Counters = {**self._seen}
        problems: Problems = {}
        for _ in range(2):
            known = {counter: known.get(counter) for counter in counters}
            if not all([isinstance(value, int) for value in known.values()]):
                self.check_writable()  # or writes that are held back would each be a question
                known = self._look_up(counters, deadline)
            items: dict[bytes, dict[int, Item]] = {home: {} for home in homes}
            stamps = {home: _stamp((home, *labels), known) for home in items}
            problems = {}
            for place, ((key, body, kept), home) in enumerate(zip(entries, homes, strict=True)):
                stamp = stamps[home]
                try:
                    if isinstance(stamp, RedisError):
                        raise stamp
                    items[home][place] = self._seal(key, body, kept, tags, stamp)
                except RedisError as error:
                    problems[place] = error
            if len(problems) == len(entries):
                raise problems[0]
            refused, now = self.ask_to_write(self._write, items, deadline)
            problems |= refused
            if not [home for home in now if _has_moved(known[home], now[home])]:
                break
            # Cleared or flushed since a counter was looked at, before this write: once more.
            known = now
        return problems

    def _write(
        self, items: Mapping[bytes, Mapping[int, Item]], deadline: Deadline
    ) -> tuple[Problems, Counters]:
        """Store *items*, by their counters; return what went wrong, and the counters after that."""
        spaces = tuple(items)
        every = [(space, place) for space in spaces for place in items[space]]
        replies, found = self.store.write(
            [items[space][place] for space, place in every], spaces, deadline
        )
        refused = [error for error in replies if error is not None]
        if len(refused) == len(every):  # else there is a part of Redis that takes them
            for error in refused:
                if error.trips or error.trips_writes:
                    raise error  # the breakers have to see it
        now = _known(spaces, found)
        for space in spaces:
            self.remember(space, now[space])
        problems: Problems = {}
        for (space, place), reply in zip(every, replies, strict=True):
            value = now[space]
            if reply is not None:
                problems[place] = reply
            elif isinstance(value, RedisError):
                problems[place] = value  # stored, but nobody can say whether it still counts
        return problems, now

    def delete(self, keys: Sequence[Key], deadline: Deadline) -> int:
        """Remove *keys*, or keep that they are to be removed; return how many were there."""
        names = [key.name for key in keys]
        leases = [key.lease for key in keys]
        removed = done = 0
        with self.nearby.writing(names):
            try:
                self.check_usable()
                # What was confirmed is not owed: of many, not all is lost with the last of them.
                while done < len(names):
                    piece = slice(done, done + _PIECE)
                    removed += self.ask(
                        self.store.delete, names[piece], deadline, leases=leases[piece]
                    )
                    done += _PIECE
            except RedisError as error:
                if _is_owed(error):
                    journal = self.journal
                    if not journal.owe_deletes(self.spaces, names[done:], leases[done:]):
                        self.monitor.note_overflow()
                    self.ring()
                raise
        return removed

    def move(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """Make everything invalid that depends on *counters*, now or when Redis is back."""
        with self.nearby.writing(counters):
            try:
                self.check_usable()
                self.ask_to_write(self.store.move, counters, deadline)
            except RedisError as error:
                if _is_owed(error):
                    if not self.journal.owe_moves(self.spaces, counters):
                        self.monitor.note_overflow()
                    self.ring()
                raise

    # Computing ----------------------------------------------------------------------------------

    def take(
        self,
        keys: Sequence[Key],
        token: bytes,
        lease_s: float,
        deadline: Deadline,
        *,
        tags: tuple[str, ...] = (),
        validate: Validate | None = None,
        steal: bool = False,
    ) -> list[tuple[bool, Look]]:
        """Try to become the holder of each lease, then look, in this order."""
        spaces, labels = self._spaces_of(keys), tuple(map(self.keys.tag_counter, tags))
        asked_at, since = time.monotonic(), self.journal.settled
        taken, found = self.ask_to_write(
            self.store.take,
            [key.name for key in keys],
            [key.lease for key in keys],
            token,
            max(1, int(lease_s * 1000)),
            spaces + labels,
            deadline,
            steal=steal,
        )
        looks = self._look_into(keys, found, asked_at, since, spaces, labels, deadline, validate)
        if any([look.generation is None for look in looks]):
            known = self._look_up(spaces + labels, deadline)
            looks = [
                look._replace(generation=_generation((self._space_of(key), *labels), known))
                for key, look in zip(keys, looks, strict=True)
            ]
        # It may be held already: the answer to an earlier attempt was lost.
        return [
            (is_taken or look.holder == token, look)
            for is_taken, look in zip(taken, looks, strict=True)
        ]

    def pack(self, value: Any) -> bytes:
        """Serialize a value. Raises RedisSerializationError for one that cannot be kept."""
        return self._serializer.serialize(value)

    def copy(self, body: bytes) -> Any:
        """Return the value again, as a copy that nobody else has."""
        return self.nearby.decode(body)

    def own(self, value: Any) -> Any:
        """Return a value that was computed as it is handed out to whoever computed it."""
        return self.nearby.own(value)

    def store_held(
        self, entries: Sequence[tuple[Key, bytes, Kept]], token: bytes, deadline: Deadline
    ) -> Sequence[bool]:
        """Store each serialized value whose lease *token* still holds, and free the lease."""
        items = [self.seal(*entry) for entry in entries]
        with self.nearby.writing([item.name for item in items]):
            return self.ask_to_write(self.store.write_held, items, token, deadline)

    def free(self, keys: Sequence[Key], token: bytes, cool_s: float, deadline: Deadline) -> None:
        """Give back the leases that *token* holds; nobody has them for *cool_s* more seconds."""
        leases = [key.lease for key in keys]
        self.ask(self.store.free, leases, token, int(cool_s * 1000), deadline)

    def renew(self, hold: Hold) -> None:
        """Let the leases of *hold* last anew."""
        deadline = Deadline(min(self.settings.operation_timeout, hold.every_s))
        lease_ms = max(1, int(hold.lease_s * 1000))
        self.ask_to_write(self.store.renew, hold.leases, hold.token, lease_ms, deadline)

    # Telling ------------------------------------------------------------------------------------

    def discard_corrupt(self, entries: Mapping[Key, RedisError], deadline: Deadline) -> None:
        """Note those that are corrupt, and remove them if there is time."""
        names = []
        for key, error in entries.items():
            if error.outcome is Outcome.CORRUPT:
                names.append(key.name)
                self.monitor.note_corrupt(digest_text(key.digest), error.reason)
                if error.reason == "wrong_key":
                    # A whole answer to somebody else's question: no connection is above suspicion.
                    self.store.drop_connections()
        if names and not deadline.expired:
            try:
                with self.nearby.writing(names):
                    self.ask(self.store.delete, names, deadline)
            except RedisError as error:
                self.monitor.record("discard", Outcome.UNAVAILABLE, error.reason, 0.0)

    def note(self, operation: str, error: RedisError) -> None:
        """Log what an operator has to know of *error*."""
        if isinstance(error, RedisNotServedError):
            self.monitor.note_not_served(operation, error.reason, str(error))
        elif isinstance(error, RedisSerializationError) and error.outcome is Outcome.REFUSED:
            self.monitor.note_refused(error.path, error.type_name, error.reason)


class RedisStops(Stops):
    """The stops on the way to a Redis: retry and circuit breakers around the connection."""

    def __init__(
        self,
        store: RedisConnectionManager,
        settings: CacheSettings,
        *,
        retry: Retry,
        breaker: CircuitBreaker,
        write_breaker: CircuitBreaker,
        health: HealthThread,
        outage: OutageLog,
        write_outage: OutageLog,
        **options: Any,
    ) -> None:
        """Put the parts in order.

        Args:
            breaker: Guards every question to Redis.
            write_breaker: Guards writes besides: open while Redis answers, but takes none.
        """
        super().__init__(store, settings, **options)
        self._retry = retry
        self._breaker = breaker
        self._write_breaker = write_breaker
        self._health = health
        self._outage = outage
        self._write_outage = write_outage
        self._store = store
        self._combiner = Combiner[Key, Look](_size_of)

    @property
    def answers_at_once(self) -> bool:
        return self.closed or self._breaker.is_open

    def check_usable(self) -> None:
        super().check_usable()
        if self._breaker.is_open:
            self._outage.skipped()
            raise RedisCircuitBreakerOpenError(
                "Redis is not asked while the circuit breaker is open",
                retry_after_s=self._breaker.retry_after_s,
            )

    def refused(self) -> Look | None:
        if self.closed:
            return _CLOSED
        if self._breaker.is_open:
            self._outage.skipped()
            return _BREAKER_OPEN
        return None

    def check_writable(self) -> None:
        if self._write_breaker.is_open:
            self._write_outage.skipped()
            raise RedisWriteRefusedError("Redis took no writes lately", reason="writes_paused")

    def ring(self) -> None:
        self._health.start()
        # While it is not closed the probes have their rhythm, and every invalidation of an outage
        # would hasten them: where it is our login that Redis refuses, until the account is locked.
        if self._breaker.state == "closed":
            self._health.ring()

    def ask(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        self._health.start()
        deadline: Deadline = args[-1]
        try:
            return self._retry.run(lambda: self._breaker.call(verb, *args, **options), deadline)
        except RedisCircuitBreakerOpenError:
            self._outage.skipped()
            raise

    def look_at(self, key: Key, deadline: Deadline) -> Look:
        if self.store.in_parts:  # of which one may be slow, or away, for its own keys alone
            return self.look_alone(key, deadline)
        look = self._combiner.get(key, deadline, self.look_alone, self._look_for_all)
        return self.decoded(look, deadline)

    def _look_for_all(self, keys: Sequence[Key], deadline: Deadline) -> list[Look | RedisError]:
        # Those who want the same share it, and each decodes on its own thread: what is taken apart
        # right away, and not kept until all the others are, takes two thirds of the time.
        different = tuple(dict.fromkeys(keys))
        looks = self.look_together(different, deadline, decode=False)
        if len(different) == len(keys):
            return looks
        found = dict(zip(different, looks, strict=True))
        return [found[key] for key in keys]

    def begin_look(self, keys: Sequence[Key], deadline: Deadline) -> AwaitedLook | None:
        self._health.start()
        leave = self._breaker.begin()
        if leave is None:
            return None
        look = AwaitedLook(keys, self, self._store, partial(self._breaker.end, leave), deadline)
        return look if look.begin(self._space) else None

    def ask_to_write(self, verb: Callable[..., T], *args: Any, **options: Any) -> T:
        # Outside the other breaker: a write that is held back here is no news of Redis.
        let_through = False

        def ask() -> T:
            nonlocal let_through
            let_through = True
            return self.ask(verb, *args, **options)

        try:
            return self._write_breaker.call(ask)
        except RedisCircuitBreakerOpenError as error:
            if let_through:
                raise
            self._write_outage.skipped()
            raise RedisWriteRefusedError(
                "Redis took no writes lately", reason="writes_paused"
            ) from error


def _known(names: Iterable[bytes], found: Iterable[bytes | RedisError | None]) -> Counters:
    """Return the counters *names* as they were *found*."""
    return {
        name: stored if isinstance(stored, RedisError) else read_counter(stored)
        for name, stored in zip(names, found, strict=True)
    }


def _is_away(answer: object) -> bool:
    """Is *answer* an error of a part of Redis that gave none?"""
    return isinstance(answer, RedisError) and not isinstance(answer, RedisRejectedError)


def _size_of(look: Look) -> int:
    return len(look.body or b"")


def _has_moved(before: int | RedisError | None, after: int | RedisError | None) -> bool:
    return after != before and not isinstance(after, RedisError)


def _generation(counters: Iterable[bytes], known: Counters) -> int | None:
    """Return what an entry that depends on *counters* has to carry; None if that is not known."""
    values = [known.get(counter) for counter in counters]
    return generation_of([None if isinstance(value, RedisError) else value for value in values])


def _stamp(counters: Iterable[bytes], known: Counters) -> int | RedisError:
    """Return the generation of what is written now; an error where a counter is away."""
    values = [known[counter] for counter in counters]
    for value in values:
        if isinstance(value, RedisError):
            return value
    return _generation(counters, known) or 0


def check_time(deadline: Deadline) -> None:
    """Raise RedisHurriedError when *deadline* is over."""
    if deadline.expired:
        raise _hurried()


def _hurried() -> RedisHurriedError:
    return RedisHurriedError("the deadline was over before the work on the value was done")


def _is_owed(error: RedisError) -> bool:
    """Is an invalidation that ended in *error* to be repeated when Redis is back?"""
    return not isinstance(error, (RedisClosedError, RedisNotServedError))


def _check(value: Any, validate: Validate) -> None:
    check_validate(validate)
    ask = getattr(validate, "model_validate", None) or getattr(validate, "validate_python", None)
    try:
        with signals_as_before():
            accepted = (ask or validate)(value)
    except _NO as error:
        raise RedisCorruptEntryError(
            "the value did not pass its validation", reason="invalid"
        ) from error
    if ask is None and accepted is False:
        raise RedisCorruptEntryError("the value did not pass its validation", reason="invalid")
