"""The wrapping of an entry: bytes that prove whose they are and that they are whole.

    head       28  magic 2, version 1, flags 1, created 8, soft TTL 4, load cost 4, generation 8
    checksum    4  CRC-32 of everything else
    digest     16  of the key that the entry was written for
    tags      2+n  size of all of them, then each as its size (2 bytes) and UTF-8 text
    body           to the end, or to what follows; compressed where the flags say so
    expires     8  only in a signed entry
    signature  16  only in a signed entry: of everything before it

Big-endian; times in milliseconds, moments since 1970. Flags: bit 0 compressed, bit 1 negative,
bit 2 signed, bits 4 to 7 the codec of the body, of which there is one, 0. Bits without a meaning
yet belong to a later writer.

A checksum finds accidents, not somebody who can write to Redis: a signature finds both. What is
signed expires by itself, too, or whoever can write could keep an old entry of a key for ever.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from jmcache.envelope._signature import SIZE, Signer
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisError,
    RedisExpiredEntryError,
    RedisForeignVersionError,
    RedisSerializationError,
)

__all__ = ["VERSION", "Entry", "Envelope"]

VERSION = 1

# Neither UTF-8, JSON, pickle nor a compressed stream starts like this.
_MAGIC = b"\xabJ"
_START = _MAGIC + bytes((VERSION,))
_COMPRESSED = 0b01
_NEGATIVE = 0b10
_SIGNED = 0b100
_UNKNOWN_FLAGS = 0xFF & ~(_COMPRESSED | _NEGATIVE | _SIGNED)

_HEAD = struct.Struct(">2sBBQIIQ")
_FRONT = struct.Struct(">3xBQIIQI16sH")  # the head after _START, and what always follows it
_CHECKSUM = struct.Struct(">I")
_SIZE = struct.Struct(">H")
_EXPIRES = struct.Struct(">Q")
_DIGEST_BYTES = 16
_AFTER_CHECKSUM = _HEAD.size + _CHECKSUM.size
_U16_MAX = 2**16 - 1
_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1

# zlib's fastest level: half the default's time or less, for a fifth of the size instead of a
# sixth (job postings of 20 to 200 KB).
_LEVEL = 1


class Entry(NamedTuple):
    """One decoded slot of the cache.

    Attributes:
        body: The serialized value, uncompressed. Left out of the repr.
        created_ms: Milliseconds since 1970 that its age counts from.
        soft_ttl_ms: Milliseconds of age up to which it is fresh; 0: as long as Redis keeps it.
        load_cost_ms: Milliseconds that loading the value took.
        generation: The counter that an invalidation moves on, as it was then.
        tags: What it can be invalidated by, in this order.
        negative: It stands for "there is none".
        expires_ms: Milliseconds since 1970 from which on it is no good. Kept in signed entries
            only, which need it; 0 in all others, whose end is Redis's to keep.
    """

    body: bytes
    created_ms: int
    soft_ttl_ms: int = 0
    load_cost_ms: int = 0
    generation: int = 0
    tags: tuple[str, ...] = ()
    negative: bool = False
    expires_ms: int = 0

    def __repr__(self) -> str:
        return f"<Entry of {len(self.body)} bytes>"


_entry = partial(tuple.__new__, Entry)  # of all its fields; at half the cost of Entry()


class Envelope:
    """Wraps entries for Redis, and judges what comes back. Immutable; free for any thread."""

    __slots__ = ("_compress_above", "_max_blob", "_max_body", "_now", "_signer")

    def __init__(
        self,
        *,
        max_body_bytes: int,
        compress_above_bytes: int,
        secrets: Sequence[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Keep the limits.

        Args:
            max_body_bytes: Bytes of the largest body, uncompressed, both ways.
            compress_above_bytes: Bytes above which compressing a body is tried.
            secrets: Entries are signed with the first, and accepted if one of them signed them.
                Without any, nothing is signed and nothing signed is accepted.
            now: Seconds since 1970, which decide whether a signed entry has expired.
        """
        self._max_body = max_body_bytes
        self._max_blob = _FRONT.size + _U16_MAX + max_body_bytes + _EXPIRES.size + SIZE
        self._compress_above = compress_above_bytes
        self._signer = Signer(secrets) if secrets else None
        self._now = now

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
        if self._signer is not None:
            flags |= _SIGNED
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
        parts = (head, _CHECKSUM.pack(checksum), rest, stored)
        if self._signer is None:
            return b"".join(parts)
        expires = _EXPIRES.pack(_counted("expires_ms", entry.expires_ms))
        signed = b"".join((*parts, expires))
        return signed + self._signer.sign(signed)

    def unseal(self, blob: bytes, digest: bytes) -> Entry:
        """Return the entry in *blob*.

        Takes any bytes at all, and never more memory than a few times the limit of a body.

        Args:
            digest: 16 bytes, of the key that was asked for.

        Raises:
            RedisForeignVersionError: Another version of the format, older or newer; or "signed",
                where there is no secret to judge it by.
            RedisExpiredEntryError: A signed entry that Redis should not have any more.
            RedisCorruptEntryError: Not an entry of ours ("magic"), cut short ("truncated"),
                altered ("checksum"), signed with no secret of ours ("signature") or not at all
                ("unsigned"), whole but of another key ("wrong_key"), above the limit
                ("too_large"), or wrong inside ("undecodable").
        """
        end = len(blob)
        if end < _FRONT.size or blob[:3] != _START or blob[3] & _UNKNOWN_FLAGS:
            raise _unlike_ours(blob)
        if end > self._max_blob:
            raise _corrupt("too_large")
        flags, created_ms, soft_ttl_ms, load_cost_ms, generation, checksum, owner, tags_size = (
            _FRONT.unpack_from(blob)
        )
        view = memoryview(blob)
        if flags & _SIGNED:
            end -= _EXPIRES.size + SIZE
            if end < _FRONT.size:
                raise _corrupt("truncated")
        if zlib.crc32(view[_AFTER_CHECKSUM:end], zlib.crc32(blob[: _HEAD.size])) != checksum:
            raise _corrupt("checksum")
        # Before anything is made of what is inside: nothing but this stands between a decoder and
        # somebody who writes what he likes.
        expires_ms = 0
        if self._signer is not None or flags & _SIGNED:
            expires_ms = self._authenticate(view, flags & _SIGNED)
        # After the checksum: whole, it tells that the answer belonged to somebody else.
        if owner != digest:
            raise _corrupt("wrong_key")
        if expires_ms and self._now() * 1000 >= expires_ms:
            raise RedisExpiredEntryError("a signed entry was kept beyond its time")
        start = _FRONT.size + tags_size
        if start > end:
            raise _corrupt("undecodable")
        tags = _unpack_tags(blob[_FRONT.size : start], tags_size) if tags_size else ()
        if flags & _COMPRESSED:
            body = self._decompress(view[start:end])
        else:
            body = blob[start:end]
            if len(body) > self._max_body:
                raise _corrupt("too_large")
        negative = bool(flags & _NEGATIVE)
        return _entry(
            (
                body,
                created_ms,
                soft_ttl_ms,
                load_cost_ms,
                generation,
                tags,
                negative,
                expires_ms,
            )
        )

    def _authenticate(self, view: memoryview, signed: int) -> int:
        """Return when an entry expires, of which it is now certain that we wrote it."""
        if self._signer is None:
            if signed:
                raise RedisForeignVersionError(
                    "signed, and there are no entry_secrets to judge it by", reason="signed"
                )
            return 0
        if not signed:
            raise _corrupt("unsigned")
        if not self._signer.accepts(view[:-SIZE], view[-SIZE:]):
            raise _corrupt("signature")
        expires_ms: int
        (expires_ms,) = _EXPIRES.unpack_from(view, len(view) - SIZE - _EXPIRES.size)
        return expires_ms

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


def _unlike_ours(blob: bytes) -> RedisError:
    """Return what *blob*, whose head is not of this version or not whole, is to be taken for."""
    if len(blob) < 4:
        return _corrupt("truncated")
    if blob[:2] != _MAGIC:
        return _corrupt("magic")
    # Before everything that another version may do in another way.
    if blob[2] != VERSION or blob[3] & _UNKNOWN_FLAGS:
        return RedisForeignVersionError(f"written by version {blob[2]}, flags {blob[3]:#04x}")
    return _corrupt("truncated")


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
