"""The nodes of a cluster that are spoken to, each with what guards it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import ParamSpec, Protocol, TypeVar

from jmcache.connection._node import Node
from jmcache.connection._slots import Address
from jmcache.errors import RedisError

P = ParamSpec("P")
T = TypeVar("T")


class Guard(Protocol):
    """Keeps calls away from one node while it fails: a circuit breaker, whoever brings it.

    Of a call that it does not let through it raises RedisNodeDownError.
    """

    @property
    def is_closed(self) -> bool:
        """True while everybody is let through."""

    def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *func* returns, or refuse to call it."""

    def probe(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the same for a health check, which need not wait until somebody may try."""

    def admit(self) -> RedisError | None:
        """Return why not, or None for leave: then `report` once, on the same thread."""

    def report(self, error: RedisError | None) -> None:
        """Tell how that ended; None: well."""

    def close(self, *, replaced: bool) -> None:
        """The node is not asked any more; *replaced*: because the cluster has others."""


class Unguarded:
    """Lets everything through."""

    is_closed = True

    def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return func(*args, **kwargs)

    probe = call

    def admit(self) -> RedisError | None:
        return None

    def report(self, error: RedisError | None) -> None:
        pass

    def close(self, *, replaced: bool) -> None:
        pass


class Member:
    """One node: where it is, its connections, its guard."""

    __slots__ = ("address", "guard", "node")

    def __init__(self, address: Address, node: Node, guard: Guard) -> None:
        self.address = address
        self.node = node
        self.guard = guard

    def close(self, *, replaced: bool = False) -> None:
        self.node.close()
        self.guard.close(replaced=replaced)


class Members:
    """All of them, each made when it is first wanted. Thread-safe.

    Attributes:
        failing: Those that failed since any of them answered.
    """

    def __init__(
        self, make_node: Callable[[Address], Node], make_guard: Callable[[Address], Guard]
    ) -> None:
        self._make_node = make_node
        self._make_guard = make_guard
        self._lock = threading.Lock()
        self._members: dict[Address, Member] = {}  # added to under _lock
        self._closed = False
        self.failing: frozenset[Address] = frozenset()  # replaced as a whole

    def __getitem__(self, address: Address) -> Member:
        member = self._members.get(address)
        if member is None:
            with self._lock:
                member = self._members.get(address)
                if member is None:
                    member = Member(address, self._make_node(address), self._make_guard(address))
                    self._members[address] = member
        if self._closed:  # perhaps since the line above
            member.close()
        return member

    def get(self, address: Address) -> Member | None:
        """Return the one at *address*, None if it was never wanted, or left."""
        return self._members.get(address)

    def all(self) -> list[Member]:
        """Return those there are now."""
        return list(self._members.copy().values())

    def note(self, member: Member, error: RedisError | None) -> None:
        """Take note of how a question to *member* ended; None: well."""
        if error is None:
            if self.failing:
                self.failing = frozenset()
        elif error.trips:
            self.failing |= {member.address}

    def keep(self, addresses: Iterable[Address]) -> None:
        """Close all but those at *addresses*; calls under way there are carried out."""
        kept = set(addresses)
        for member in self.all():
            if member.address not in kept:
                self._members.pop(member.address, None)
                member.close(replaced=True)

    def close(self) -> None:
        """Close all, and those that are still to come."""
        self._closed = True
        for member in self.all():
            member.close()
