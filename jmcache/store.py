"""What keeps the blobs, as the cache sees it: Redis behind its connections, or this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jmcache.deadline import Deadline
from jmcache.errors import RedisError


class Item(NamedTuple):
    """A blob to be kept."""

    name: bytes
    blob: bytes
    ttl_ms: int
    lease: bytes


class Found(NamedTuple):
    """What was there, each in the order asked for; None for nothing.

    Attributes:
        blobs: What is stored under the names; an error where a part of Redis gave no answer.
        counters: The counters, as they are stored; or an error, as with the blobs.
        holders: Who holds the leases; empty unless asked for.
        lives_ms: Milliseconds that what is stored under the names has left, or less than 0 where
            it has none or no end; empty unless asked for.
    """

    blobs: Sequence[bytes | RedisError | None]
    counters: Sequence[bytes | RedisError | None] = ()
    holders: Sequence[bytes | None] = ()
    lives_ms: Sequence[int] = ()


class Store(Protocol):
    """The verbs. Each ends within its deadline, and raises RedisError when it fails."""

    @property
    def in_parts(self) -> bool:
        """Are names shared out among several servers, any of which may be away?"""

    def read(
        self,
        names: Sequence[bytes],
        counters: Sequence[bytes],
        leases: Sequence[bytes],
        deadline: Deadline,
        *,
        lives: bool = False,
    ) -> Found:
        """Look, in one round trip.

        Args:
            leases: Those of the names, in their order; or none.
            lives: Say how long each of the names has left. Where names are shared out, nobody does.
        """

    def write(
        self, items: Sequence[Item], counters: Sequence[bytes], deadline: Deadline
    ) -> tuple[Sequence[RedisError | None], Sequence[bytes | RedisError | None]]:
        """Void the leases of *items* and keep them, in one round trip; not atomic.

        Returns:
            For each item None, or why it was refused; and *counters* as they were afterwards.
        """

    def delete(
        self, names: Sequence[bytes], deadline: Deadline, leases: Sequence[bytes] = ()
    ) -> int:
        """Void *leases*, then remove *names*; return how many of them were there."""

    def take(
        self,
        names: Sequence[bytes],
        leases: Sequence[bytes],
        token: bytes,
        lease_ms: int,
        counters: Sequence[bytes],
        deadline: Deadline,
        *,
        steal: bool = False,
    ) -> tuple[Sequence[bool], Found]:
        """Become the holder of each lease that nobody holds, then look, in one round trip.

        Args:
            token: Who becomes the holder.
            lease_ms: Milliseconds until the lease is nobody's again.
            steal: Become it also where somebody is.
        """

    def write_held(self, items: Sequence[Item], token: bytes, deadline: Deadline) -> Sequence[bool]:
        """Keep each item whose lease *token* holds, and free the lease, both in one step."""

    def free(self, leases: Sequence[bytes], token: bytes, cool_ms: int, deadline: Deadline) -> None:
        """Free those of *leases* that *token* holds.

        Args:
            cool_ms: Milliseconds for which COOLING is to hold them instead; 0: nobody.
        """

    def renew(
        self, leases: Sequence[bytes], token: bytes, lease_ms: int, deadline: Deadline
    ) -> None:
        """Let those of *leases* that *token* holds last for *lease_ms* from now."""

    def move(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """Move *counters* on: higher than they ever were."""

    def seed(self, counters: Sequence[bytes], deadline: Deadline) -> None:
        """Begin those of *counters* that are not there, higher than they ever were."""

    def drop_connections(self) -> None:
        """Trust no connection that is open now."""


COOLING = b"cooling"  # who holds the lease after a load that failed, so that nobody tries at once
