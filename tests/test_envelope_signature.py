"""With a secret, an entry is ours or a miss, whoever else can write to Redis."""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
import traceback
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmcache.envelope as envelope_module
from jmcache.envelope import Entry, Envelope
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisExpiredEntryError,
    RedisForeignVersionError,
)

MINE, OTHERS = b"a" * 16, b"b" * 16
NOW_MS = 1_760_000_000_000
LATER_MS = NOW_MS + 300_000
LIMIT = 64 * 1024
TEXT = b'{"matches": [{"id": 1, "score": 0.5}]}' * 100
CURRENT, FORMER, FOREIGN = "current-" + "c" * 32, "former-" + "f" * 32, "foreign-" + "x" * 32
TRAILER = 24  # bytes: expiry and signature


def envelope_of(*secrets: str, now_ms: float = NOW_MS) -> Envelope:
    return Envelope(
        max_body_bytes=LIMIT,
        compress_above_bytes=100,
        secrets=secrets,
        now=lambda: now_ms / 1000,
    )


@pytest.fixture(scope="module")
def envelope() -> Envelope:
    return envelope_of(CURRENT)


def reason_of(envelope: Envelope, blob: bytes, digest: bytes = MINE) -> str:
    """Return why *blob* is refused; fails when it is not, or in any other way."""
    with pytest.raises(
        (RedisCorruptEntryError, RedisExpiredEntryError, RedisForeignVersionError)
    ) as caught:
        envelope.unseal(blob, digest)
    return caught.value.reason


def forged(rest: bytes, *, flags: int = 0b100, digest: bytes = MINE, end: bytes = b"") -> bytes:
    """Return what somebody who knows all but the secret can write: everything else is right."""
    head = struct.pack(">2sBBQIIQ", b"\xabJ", 1, flags, NOW_MS, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(head + digest + rest))
    return head + checksum + digest + rest + (end or struct.pack(">Q", LATER_MS) + b"s" * 16)


# What is signed


entries = st.builds(
    Entry,
    body=st.binary(max_size=300) | st.integers(1, 4000).map(b"compressible ".__mul__),
    created_ms=st.integers(0, 2**64 - 1),
    soft_ttl_ms=st.integers(0, 2**32 - 1),
    load_cost_ms=st.just(0),
    generation=st.integers(0, 2**64 - 1),
    tags=st.lists(st.text("añ", max_size=20), max_size=5).map(tuple),
    negative=st.booleans(),
    expires_ms=st.just(0) | st.integers(NOW_MS + 1, 2**64 - 1),
)


@given(entry=entries)
def test_what_is_signed_comes_back_equal(entry):
    """Signing must cost nothing but time."""
    envelope = envelope_of(CURRENT)
    assert envelope.unseal(envelope.seal(entry, MINE), MINE) == entry


def test_the_signed_format_is_the_documented_one(envelope):
    """Another release, or another language, has to come to the same signature."""
    entry = Entry(b"body", NOW_MS, 2, 3, 4, ("a",), negative=True, expires_ms=LATER_MS)
    front = struct.pack(">2sBBQIIQ", b"\xabJ", 1, 0b110, NOW_MS, 2, 3, 4)
    rest = MINE + b"\x00\x03\x00\x01a" + b"body"
    message = front + struct.pack(">I", zlib.crc32(front + rest)) + rest
    message += struct.pack(">Q", LATER_MS)
    key = hmac.new(CURRENT.encode(), b"jmcache entry", hashlib.sha256).digest()
    signature = hmac.new(key, message, hashlib.sha256).digest()[:16]
    assert envelope.seal(entry, MINE) == message + signature


def test_a_signature_takes_24_bytes(envelope):
    """What every entry in Redis costs on top."""
    plain = envelope_of().seal(Entry(b"", NOW_MS), MINE)
    assert len(envelope.seal(Entry(b"", NOW_MS), MINE)) == len(plain) + TRAILER


def test_a_release_without_signatures_reads_a_signed_entry_as_a_miss(envelope):
    """In a rolling deploy it must neither hand out nor remove what it can't judge."""
    known_to_the_first_format = 0b11
    assert envelope.seal(Entry(b"body", NOW_MS), MINE)[3] & ~known_to_the_first_format


# What is refused


@pytest.mark.parametrize("body", [b"", b"body", TEXT], ids=["empty", "short", "compressed"])
def test_every_flipped_bit_of_a_signed_entry_is_refused(envelope, body):
    """Each byte of it decides something: whose, how old, how long good, what."""
    sealed = envelope.seal(Entry(body, NOW_MS, 1, 2, 3, ("tag",), expires_ms=LATER_MS), MINE)
    for position in range(len(sealed) * 8):
        blob = bytearray(sealed)
        blob[position // 8] ^= 1 << position % 8
        expected = {"magic", "version", "checksum", "truncated"}
        if position // 8 >= len(sealed) - TRAILER:
            expected = {"signature"}
        assert reason_of(envelope, bytes(blob)) in expected


@pytest.mark.parametrize("body", [b"", b"body", TEXT], ids=["empty", "short", "compressed"])
def test_every_change_with_its_checksum_put_right_is_refused(envelope, body):
    """A checksum anybody can compute: what holds here is the signature alone."""
    sealed = envelope.seal(Entry(body, NOW_MS, 1, 2, 3, ("tag",), expires_ms=LATER_MS), MINE)
    for position in range(2 * 8, (len(sealed) - TRAILER) * 8):
        blob = bytearray(sealed)
        blob[position // 8] ^= 1 << position % 8
        content, end = blob[:-TRAILER], blob[-TRAILER:]
        if not blob[3] & 0b100:  # now it seems unsigned, and has no end of its own
            content, end = blob, b""
        checksum = zlib.crc32(content[32:], zlib.crc32(content[:28]))
        content[28:32] = struct.pack(">I", checksum)
        if content + end == sealed:  # it was the checksum that was flipped
            continue
        reason = reason_of(envelope, bytes(content + end))
        assert reason in {"signature", "version", "unsigned"}


@given(entry=entries, cut=st.integers(1), more=st.binary(min_size=1, max_size=40))
def test_any_truncation_and_anything_added_is_refused(entry, cut, more):
    """A signature found at another place must not fit what is before it."""
    envelope = envelope_of(CURRENT)
    blob = envelope.seal(entry, MINE)
    length = len(blob) - 1 - cut % len(blob)
    assert reason_of(envelope, blob[:length]) in {"truncated", "checksum"}
    assert reason_of(envelope, blob + more) in {"checksum", "signature"}


@pytest.mark.parametrize("size", range(TRAILER + 1))
def test_an_entry_that_only_says_it_is_signed_is_refused(envelope, size):
    """Its last bytes would be read before their place was known to be there."""
    blob = forged(b"\0\0", end=b"e" * size) if size else forged(b"\0\0")[:-TRAILER]
    assert reason_of(envelope, blob) in {"truncated", "signature"}
    assert reason_of(envelope_of(), blob) in {"truncated", "signed", "checksum"}


def test_an_entry_of_another_key_is_refused_though_its_signature_is_right(envelope):
    """Whoever can write can copy: one candidate's matches under another's key."""
    blob = envelope.seal(Entry(b"body", NOW_MS, expires_ms=LATER_MS), OTHERS)
    assert reason_of(envelope, blob) == "wrong_key"
    moved = bytearray(blob)
    moved[32:48] = MINE
    moved[28:32] = struct.pack(">I", zlib.crc32(moved[32:-TRAILER], zlib.crc32(moved[:28])))
    assert reason_of(envelope, bytes(moved)) == "signature"


def test_an_unsigned_entry_is_refused_where_there_is_a_secret(envelope):
    """Otherwise a forger would leave the signature out, and nothing would be gained."""
    assert reason_of(envelope, envelope_of().seal(Entry(b"body", NOW_MS), MINE)) == "unsigned"


def test_a_signed_entry_is_a_miss_where_there_is_no_secret(envelope):
    """A process that was not given the secret must not remove what the others can read."""
    blob = envelope.seal(Entry(b"body", NOW_MS, expires_ms=LATER_MS), MINE)
    with pytest.raises(RedisForeignVersionError) as caught:
        envelope_of().unseal(blob, MINE)
    assert caught.value.reason == "signed"


def test_the_end_of_a_signed_entry_is_part_of_it(envelope):
    """An old entry that is put back again and again would be answered with for ever."""
    blob = envelope.seal(Entry(b"body", NOW_MS, expires_ms=LATER_MS), MINE)
    assert envelope_of(CURRENT, now_ms=LATER_MS - 1).unseal(blob, MINE).body == b"body"
    for now_ms in (LATER_MS, LATER_MS + 1, 2 * LATER_MS):
        assert reason_of(envelope_of(CURRENT, now_ms=now_ms), blob) == "expired"


def test_nothing_inside_is_looked_at_before_the_signature(envelope, monkeypatch):
    """A decompressor or decoder with a hole in it must not meet a forger's bytes."""

    def never(*args: object) -> None:
        pytest.fail("a forged entry was taken apart")

    monkeypatch.setattr(envelope_module.zlib, "decompressobj", never)
    monkeypatch.setattr(envelope_module, "_unpack_tags", never)
    bomb = zlib.compress(bytes(10_000_000), 9)
    for rest in (b"\0\0" + bomb, b"\0\4\0\2ab" + bomb, b"\xff\xff", b"\0\1"):
        assert reason_of(envelope, forged(rest, flags=0b101)) == "signature"
        assert reason_of(envelope, forged(rest, flags=0b001)) in {"unsigned", "checksum"}


def test_tags_cannot_reach_into_the_signature(envelope):
    """Two readings of the same bytes are one too many, even of bytes of our own."""
    moment = b"\0\6abcdef"  # in the far future, and a tag as well
    blob = forged(b"\0\x0b\0\1a", end=moment)
    blob += envelope._signer.sign(blob)
    assert reason_of(envelope, blob) == "undecodable"


# Secrets


def test_any_of_the_secrets_is_accepted_and_the_first_one_signs():
    """Rotation: while a deploy rolls, both sides have to read what both sides write."""
    entry = Entry(b"body", NOW_MS, expires_ms=LATER_MS)
    before, during, after = envelope_of(FORMER), envelope_of(CURRENT, FORMER), envelope_of(CURRENT)
    assert during.unseal(before.seal(entry, MINE), MINE) == entry
    assert after.unseal(during.seal(entry, MINE), MINE) == entry
    assert reason_of(after, before.seal(entry, MINE)) == "signature"
    assert reason_of(before, during.seal(entry, MINE)) == "signature"
    assert reason_of(envelope_of(FOREIGN), during.seal(entry, MINE)) == "signature"


def test_every_signature_is_compared_in_constant_time(envelope, monkeypatch):
    """The time of a plain comparison tells how many bytes were right, and so the next one."""
    compared = []

    def compare(one, other):
        compared.append((bytes(one), bytes(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    blob = envelope.seal(Entry(b"body", NOW_MS, expires_ms=LATER_MS), MINE)
    envelope.unseal(blob, MINE)
    assert compared == [(blob[-16:], blob[-16:])]
    assert reason_of(envelope, blob[:-16] + b"s" * 16) == "signature"
    assert compared[1] == (blob[-16:], b"s" * 16)


def test_no_frame_of_an_interrupted_call_holds_a_secret_or_its_key(envelope):
    """A time limit may strike anywhere; error trackers keep the variables of every frame."""
    key = hmac.digest(CURRENT.encode(), b"jmcache entry", "sha256")
    entry = Entry(b"body", NOW_MS, expires_ms=LATER_MS)
    blob = envelope.seal(entry, MINE)
    for call in (lambda: envelope.seal(entry, MINE), lambda: envelope.unseal(blob, MINE)):
        strikes = 0
        while shown := frames_when_struck(strikes, call):
            assert CURRENT not in shown
            assert repr(key) not in shown
            strikes += 1
        assert strikes > 20


def frames_when_struck(after, call):
    """The variables of every frame when an exception comes after so many lines; "" if none came."""
    lines = 0
    files = ("envelope/__init__.py", "_signature.py", "hmac.py")

    def strike(frame, event, arg):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(files):
            return None
        lines += event == "line"
        if lines > after:
            sys.settrace(None)
            raise TimeoutError
        return strike

    before = sys.gettrace()
    sys.settrace(strike)
    try:
        call()
    except TimeoutError as error:
        frames = traceback.walk_tb(error.__traceback__)
        summary = traceback.StackSummary.extract(frames, capture_locals=True)
        return str([frame.locals for frame in summary[1:]])
    finally:
        sys.settrace(before)
    return ""
