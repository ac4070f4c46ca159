"""What somebody who can write to Redis, and knows the format, can put there."""

from __future__ import annotations

import struct
import time
import zlib

from jmcache.cache import Cache
from jmcache.deadline import Deadline
from jmcache.keys import KeySpace

COMPRESSED = 0b001


def name_of(cache: Cache, key: str) -> bytes:
    """Where *key* is kept: names are no secret."""
    return _spelt(cache, key)[0]


def entry(cache: Cache, key: str, body: bytes, *, compress: bool = False) -> bytes:
    """An entry of *cache* for *key* in which everything is right but the body."""
    _, digest = _spelt(cache, key)
    flags = COMPRESSED if compress else 0
    stored = zlib.compress(body, 9) if compress else body
    space = cache._keys.space_counter
    generation = cache._stops._look_up((space,), Deadline(5.0))[space]  # it is no secret
    now_ms = int(time.time() * 1000)
    head = struct.pack(">2sBBQIIQ", b"\xabJ", 1, flags, now_ms, 0, 0, generation)
    rest = digest + b"\0\0" + stored
    return head + struct.pack(">I", zlib.crc32(head + rest)) + rest


def _spelt(cache: Cache, key: str) -> tuple[bytes, bytes]:
    return KeySpace(cache.settings.namespace, cache.settings.schema_version).name(key)
