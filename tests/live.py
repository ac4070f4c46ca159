"""What is alive in this process and belongs to a cache: its objects, and every lock of theirs."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any, NamedTuple

LOCK = type(threading.Lock())
LOCKS = (LOCK, type(threading.RLock()))

# The interpreter's and the standard library's own.
_NOT_OURS = (ModuleType, FrameType, threading.Thread, logging.Logger)

# Locks that serve as bells and gates: held is their ordinary state.
SIGNS = ("bell", "gate")


class OwnedLock(NamedTuple):
    """A lock, and where it is."""

    owner: Any
    name: str
    lock: Any

    def __str__(self) -> str:
        owner = self.owner if isinstance(self.owner, (type, ModuleType)) else type(self.owner)
        return f"{owner.__name__}.{self.name}"

    @property
    def guards(self) -> bool:
        """True for a lock that somebody would wait for; False for a bell or gate."""
        return not any(sign in self.name for sign in SIGNS)


def objects_of(*roots: Any) -> Iterator[Any]:
    """Everything that *roots* lead to, whatever containers, closures and methods are between.

    Not into modules, nor into classes that are not jmcache's.
    """
    seen = {id(vars(module)) for module in tuple(sys.modules.values()) if module is not None}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, _NOT_OURS):
            continue
        if isinstance(thing, type) and not is_ours(thing):
            continue
        seen.add(id(thing))
        yield thing
        waiting += gc.get_referents(thing)


def is_ours(kind: type) -> bool:
    """True for a class of the library, or one that was built on such a class."""
    return any(base.__module__.partition(".")[0] == "jmcache" for base in kind.__mro__)


def locks_of(*roots: Any) -> list[OwnedLock]:
    """Every lock in an attribute of anything that *roots* lead to, each once."""
    found = {}
    for thing in objects_of(*roots):
        for name, value in _attributes(thing).items():
            if isinstance(value, LOCKS):
                found[id(value)] = OwnedLock(thing, name, value)
    return list(found.values())


def locks_of_modules() -> list[OwnedLock]:
    """Every lock in a module of the library."""
    return [
        OwnedLock(module, name, value)
        for module_name, module in tuple(sys.modules.items())
        if module_name.partition(".")[0] == "jmcache"
        for name, value in tuple(vars(module).items())
        if isinstance(value, LOCKS)
    ]


def held_locks_of(*roots: Any) -> list[str]:
    """The locks of *roots* that stay held; bells and gates are no such locks."""
    return [
        str(owned)
        for owned in locks_of(*roots)
        if owned.guards and isinstance(owned.lock, LOCK) and not _comes_free(owned.lock)
    ]


def _comes_free(lock: Any) -> bool:
    """Threads in the background may hold it for a moment."""
    free: bool = lock.acquire(timeout=1.0)
    if free:
        lock.release()
    return free


def _attributes(thing: Any) -> dict[str, Any]:
    attributes = dict(getattr(thing, "__dict__", None) or {})
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__"):
                try:
                    attributes[name] = getattr(thing, name)
                except AttributeError:  # nothing in it yet
                    pass
    return attributes
