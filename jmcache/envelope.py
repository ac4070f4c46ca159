"""The wrapping of an entry: bytes that prove whose they are and that they are whole.

    head       28  magic 2, version 1, flags 1, created 8, soft TTL 4, load cost 4, generation 8
    checksum    4  CRC-32 of everything else
    digest     16  of the key that the entry was written for
    tags      2+n  size of all of them, then each as its size (2 bytes) and UTF-8 text
    body           to the end; compressed where the flags say so

Big-endian. A checksum is no signature: it finds accidents, not somebody who can write to Redis.
Flags: bit 0 compressed, bit 1 negative, bits 4 to 7 the codec of the body, of which there is one,
0. Bits without a meaning yet belong to a later writer.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from jmcache.errors import (
    RedisCorruptEntryError,
    RedisForeignVersionError,
    RedisSerializationError,
)

VERSION = 1

# Neither UTF-8, JSON, pickle nor a compressed stream starts like this.
_MAGIC = b"\xabJ"
_COMPRESSED = 0b01
_NEGATIVE = 0b10
_UNKNOWN_FLAGS = 0xFF & ~(_COMPRESSED | _NEGATIVE)

_HEAD = struct.Struct(">2sBBQIIQ")
_FRONT = struct.Struct(">2sBBQIIQI16sH")  # the head and what always follows it
_CHECKSUM = struct.Struct(">I")
_SIZE = struct.Struct(">H")
_DIGEST_BYTES = 16
_AFTER_CHECKSUM = _HEAD.size + _CHECKSUM.size
_U16_MAX = 2**16 - 1
_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1

# zlib's fastest level: half the default's time or less, for a fifth of the size instead of a
# sixth (job postings of 20 to 200 KB).
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One decoded slot of the cache.

    Attributes:
        body: The serialized value, uncompressed. Left out of the repr.
        created_ms: Milliseconds since 1970 that its age counts from.
        soft_ttl_ms: Milliseconds of age up to which it is fresh; 0: as long as Redis keeps it.
        load_cost_ms: Milliseconds that loading the value took.
        generation: The counter that an invalidation moves on, as it was then.
        tags: What it can be invalidated by, in this order.
        negative: It stands for "there is none".
    """

    body: bytes = field(repr=False)
    created_ms: int
    soft_ttl_ms: int = 0
    load_cost_ms: int = 0
    generation: int = 0
    tags: tuple[str, ...] = ()
    negative: bool = False


class Envelope:
    """Wraps entries for Redis, and judges what comes back. Immutable; free for any thread."""

    __slots__ = ("_compress_above", "_max_blob", "_max_body")

    def __init__(self, *, max_body_bytes: int, compress_above_bytes: int) -> None:
        """Keep the limits.

        Args:
            max_body_bytes: Bytes of the largest body, uncompressed, both ways.
            compress_above_bytes: Bytes above which compressing a body is tried.
        """
        self._max_body = max_body_bytes
        self._max_blob = _FRONT.size + _U16_MAX + max_body_bytes
        self._compress_above = compress_above_bytes

    def seal(self, entry: Entry, digest: bytes) -> bytes:
        """Return *entry* as bytes for Redis.

        The body is compressed where that makes it smaller. A soft TTL or load cost above 2**32 - 1
        milliseconds (49 days) is written as that: such an entry is only refreshed sooner.

        Args:
            digest: 16 bytes, of the key it is written for.

        Raises:
            RedisSerializationError: The body is larger than the limit ("too_large").
            ValueError: A number is negative or above 2**64 - 1, the tags take more than 65,535
                bytes or are no Unicode text, or the digest is not 16 bytes: errors of the program.
        """
        if len(digest) != _DIGEST_BYTES:
            raise ValueError(f"digest: {_DIGEST_BYTES} bytes, not {len(digest)}")
        stored = entry.body
        if len(stored) > self._max_body:
            raise RedisSerializationError(
                f"a body of {len(stored)} bytes is above the limit of {self._max_body}",
                reason="too_large",
            )
        flags = _NEGATIVE if entry.negative else 0
        if len(stored) > self._compress_above:
            compressed = zlib.compress(stored, _LEVEL)
            if len(compressed) < len(stored):
                stored = compressed
                flags |= _COMPRESSED
        head = _HEAD.pack(
            _MAGIC,
            VERSION,
            flags,
            _counted("created_ms", entry.created_ms),
            min(_counted("soft_ttl_ms", entry.soft_ttl_ms), _U32_MAX),
            min(_counted("load_cost_ms", entry.load_cost_ms), _U32_MAX),
            _counted("generation", entry.generation),
        )
        rest = digest + _pack_tags(entry.tags)
        checksum = zlib.crc32(stored, zlib.crc32(rest, zlib.crc32(head)))
        return b"".join((head, _CHECKSUM.pack(checksum), rest, stored))

    def unseal(self, blob: bytes, digest: bytes) -> Entry:
        """Return the entry in *blob*.

        Takes any bytes at all, and never more memory than a few times the limit of a body.

        Args:
            digest: 16 bytes, of the key that was asked for.

        Raises:
            RedisForeignVersionError: Another version of the format, older or newer.
            RedisCorruptEntryError: Not an entry of ours ("magic"), cut short ("truncated"),
                altered ("checksum"), whole but of another key ("wrong_key"), above the limit
                ("too_large"), or wrong inside ("undecodable").
        """
        if len(blob) < 4:
            raise _corrupt("truncated")
        if blob[:2] != _MAGIC:
            raise _corrupt("magic")
        # Before everything that another version may do in another way.
        if blob[2] != VERSION or blob[3] & _UNKNOWN_FLAGS:
            raise RedisForeignVersionError(f"written by version {blob[2]}, flags {blob[3]:#04x}")
        if len(blob) < _FRONT.size:
            raise _corrupt("truncated")
        if len(blob) > self._max_blob:
            raise _corrupt("too_large")
        (
            _,
            _,
            flags,
            created_ms,
            soft_ttl_ms,
            load_cost_ms,
            generation,
            checksum,
            owner,
            tags_size,
        ) = _FRONT.unpack_from(blob)
        view = memoryview(blob)
        if zlib.crc32(view[_AFTER_CHECKSUM:], zlib.crc32(view[: _HEAD.size])) != checksum:
            raise _corrupt("checksum")
        # After the checksum: whole, it tells that the answer belonged to somebody else.
        if owner != digest:
            raise _corrupt("wrong_key")
        start = _FRONT.size + tags_size
        tags = _unpack_tags(blob[_FRONT.size : start], tags_size) if tags_size else ()
        if flags & _COMPRESSED:
            body = self._decompress(view[start:])
        else:
            body = blob[start:]
            if len(body) > self._max_body:
                raise _corrupt("too_large")
        return Entry(
            body,
            created_ms,
            soft_ttl_ms,
            load_cost_ms,
            generation,
            tags,
            bool(flags & _NEGATIVE),
        )

    def _decompress(self, stored: memoryview) -> bytes:
        stream = zlib.decompressobj()
        try:
            # One byte above the limit tells a body at the limit from a bomb.
            body = stream.decompress(stored, self._max_body + 1)
        except zlib.error as error:
            raise _corrupt("undecodable") from error
        if len(body) > self._max_body:
            raise _corrupt("too_large")
        if not stream.eof or stream.unused_data:
            raise _corrupt("undecodable")
        return body


def _counted(name: str, number: int) -> int:
    if not 0 <= number <= _U64_MAX:
        raise ValueError(f"{name}: from 0 to 2**64 - 1, not {number}")
    return number


def _pack_tags(tags: tuple[str, ...]) -> bytes:
    if not tags:
        return b"\0\0"
    texts = [tag.encode() for tag in tags]
    size = sum(_SIZE.size + len(text) for text in texts)
    if size > _U16_MAX:
        raise ValueError(f"tags: {_U16_MAX} bytes with 2 more for each, not {size}")
    return _SIZE.pack(size) + b"".join(_SIZE.pack(len(text)) + text for text in texts)


def _unpack_tags(packed: bytes, size: int) -> tuple[str, ...]:
    tags = []
    at = 0
    try:
        while at < size:
            (length,) = _SIZE.unpack_from(packed, at)
            at += _SIZE.size
            tags.append(packed[at : at + length].decode())
            at += length
    except (struct.error, UnicodeDecodeError) as error:
        raise _corrupt("undecodable") from error
    if at != size or size != len(packed):
        raise _corrupt("undecodable")
    return tuple(tags)


def _corrupt(reason: str) -> RedisCorruptEntryError:
    return RedisCorruptEntryError(f"a stored entry is not to be trusted: {reason}", reason=reason)
