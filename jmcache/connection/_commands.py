"""The commands behind the verbs on leases and counters.

Scripts are sent as they are: they are short, Redis keeps what it compiled, and there is none to be
missing after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jmcache.connection._wire import (
    LIFE,
    NUMBER,
    OK,
    OK_OR_NOTHING,
    VALUE,
    pack,
    pack_get,
    pack_set,
)
from jmcache.store import COOLING, Item

_COUNTER_TTL_MS = b"%d" % (90 * 86_400_000)  # a tag that nobody uses any more goes

# Stores a value if the lease is held by who asks, and frees it.
_STORE_HELD = b"""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('UNLINK', KEYS[2])
return 1
"""

# Frees a lease if it is held by who asks; for some time it is nobody's to take, if wanted.
_FREE = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('UNLINK', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
return 1
"""


# Lets a lease last if it is held by who asks.
_RENEW = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class Command(NamedTuple):
    """One command, and the name that says which node of a cluster it is for."""

    name: bytes
    packed: bytes
    asked: bytes


def get(name: bytes) -> Command:
    """Look."""
    return Command(name, pack_get(name), VALUE)


def life(name: bytes) -> Command:
    """Ask for the milliseconds that a blob has left."""
    return Command(name, pack(b"PTTL", name), LIFE)


def void(*leases: bytes) -> Command:
    """Take leases, one at least, from whoever holds them."""
    return Command(leases[0], pack(b"UNLINK", *leases), NUMBER)


def store(item: Item) -> Command:
    """Store a blob."""
    return Command(item.name, pack_set(item.name, item.blob, item.ttl_ms), OK)


def remove(name: bytes) -> Command:
    """Remove a blob."""
    return Command(name, pack(b"UNLINK", name), NUMBER)


def take(lease: bytes, token: bytes, lease_ms: int, *, steal: bool) -> Command:
    """Become the holder of a lease; OK, or nothing where somebody else is."""
    words = [b"SET", lease, token, b"PX", b"%d" % lease_ms]
    return Command(lease, pack(*words, *(() if steal else (b"NX",))), OK_OR_NOTHING)


def store_held(item: Item, token: bytes) -> Command:
    """Store a blob if *token* holds the lease, and free that; 1 if so."""
    names = (item.name, item.lease)
    return _script(_STORE_HELD, names, token, item.blob, b"%d" % item.ttl_ms)


def free(lease: bytes, token: bytes, cool_ms: int) -> Command:
    """Free a lease if *token* holds it."""
    return _script(_FREE, (lease,), token, b"%d" % cool_ms, COOLING)


def renew(lease: bytes, token: bytes, lease_ms: int) -> Command:
    """Let a lease last if *token* holds it."""
    return _script(_RENEW, (lease,), token, b"%d" % lease_ms)


def seed(counter: bytes, now_us: int) -> Command:
    """Begin a counter that is not there at *now_us*, microseconds; OK, or nothing."""
    words = (b"SET", counter, b"%d" % now_us, b"PX", _COUNTER_TTL_MS, b"NX")
    return Command(counter, pack(*words), OK_OR_NOTHING)


def count_up(counter: bytes) -> Command:
    """Add one to a counter."""
    return Command(counter, pack(b"INCR", counter), NUMBER)


def keep(counter: bytes) -> Command:
    """Let a counter live on."""
    return Command(counter, pack(b"PEXPIRE", counter, _COUNTER_TTL_MS), NUMBER)


def _script(script: bytes, keys: Sequence[bytes], *words: bytes) -> Command:
    packed = pack(b"EVAL", script, b"%d" % len(keys), *keys, *words)
    return Command(keys[0], packed, NUMBER)
