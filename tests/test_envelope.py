"""Bytes from Redis are an entry of ours for this key, or they are refused. Never anything else."""

from __future__ import annotations

import pickle
import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jmcache.envelope import Entry, Envelope
from jmcache.errors import (
    RedisCorruptEntryError,
    RedisForeignVersionError,
    RedisSerializationError,
)

MINE, OTHERS = b"a" * 16, b"b" * 16
NOW_MS = 1_760_000_000_000
LIMIT = 64 * 1024
TEXT = b'{"matches": [{"id": 1, "score": 0.5}]}' * 100

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
entries = st.builds(
    Entry,
    body=st.binary(max_size=300) | st.integers(1, 4000).map(b"compressible ".__mul__),
    created_ms=u64,
    soft_ttl_ms=u32,
    load_cost_ms=u32,
    generation=u64,
    tags=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5).map(
        tuple
    ),
    negative=st.booleans(),
    expires_ms=st.just(0),
)


@pytest.fixture(scope="module")
def envelope() -> Envelope:
    return Envelope(max_body_bytes=LIMIT, compress_above_bytes=100)


def crafted(rest: bytes, *, flags: int = 0, digest: bytes = MINE) -> bytes:
    """Return what somebody who knows the format can write: *rest* follows a valid front."""
    head = struct.pack(">2sBBQIIQ", b"\xabJ", 1, flags, NOW_MS, 0, 0, 0)
    checksum = zlib.crc32(head + digest + rest)
    return head + struct.pack(">I", checksum) + digest + rest


def reason_of(envelope: Envelope, blob: bytes, digest: bytes = MINE) -> str:
    """Return why *blob* is refused; fails when it is not, or in any other way."""
    with pytest.raises((RedisCorruptEntryError, RedisForeignVersionError)) as caught:
        envelope.unseal(blob, digest)
    return caught.value.reason


# Round trips


@given(entry=entries, compress_above=st.sampled_from([0, 100, LIMIT]))
def test_what_is_sealed_comes_back_equal(entry, compress_above):
    """The value, its age and its tags decide what a customer is shown."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=compress_above)
    back = envelope.unseal(envelope.seal(entry, MINE), MINE)
    assert back == entry
    assert [type(part) for part in (back.body, back.tags, back.negative)] == [bytes, tuple, bool]


def test_the_format_is_the_documented_one(envelope):
    """Another release reads it: a change that nobody meant is a cold cache on every deploy."""
    entry = Entry(b"body", NOW_MS, 2, 3, 4, ("a", "é"), negative=True)
    front = struct.pack(">2sBBQIIQ", b"\xabJ", 1, 0b10, NOW_MS, 2, 3, 4)
    rest = MINE + b"\x00\x07" + b"\x00\x01a" + b"\x00\x02\xc3\xa9" + b"body"
    checksum = struct.pack(">I", zlib.crc32(front + rest))
    assert envelope.seal(entry, MINE) == front + checksum + rest


def test_a_plain_entry_takes_50_bytes_around_its_body(envelope):
    """What every entry in Redis costs on top."""
    assert len(envelope.seal(Entry(b"", NOW_MS), MINE)) == 50


def test_the_repr_of_an_entry_does_not_show_its_body():
    """Bodies are candidates' data, and a repr ends in a log."""
    assert "secret" not in repr(Entry(b"secret", NOW_MS))


# Compression


def test_a_body_above_the_threshold_is_compressed(envelope):
    """Redis's memory and the network are the dear part of a large value."""
    assert len(envelope.seal(Entry(TEXT, NOW_MS), MINE)) < len(TEXT) / 4
    at, above = (Entry(b"x" * size, NOW_MS) for size in (100, 101))
    assert len(envelope.seal(at, MINE)) == 150
    assert len(envelope.seal(above, MINE)) < 100


def test_a_body_that_does_not_get_smaller_is_stored_as_it_is(envelope):
    """Random bytes grow when compressed, and cost time to read."""
    body = random.Random(1).randbytes(2000)
    blob = envelope.seal(Entry(body, NOW_MS), MINE)
    assert blob.endswith(body)
    assert blob[3] == 0


# Whose it is, and whether it is whole


@given(entry=entries, bit=st.integers(0))
def test_any_flipped_bit_is_refused(entry, bit):
    """Memory and disks flip bits; a score of 0.9 read as 0.1 is wrong data."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=100)
    blob = bytearray(envelope.seal(entry, MINE))
    byte, bit = divmod(bit % (len(blob) * 8), 8)
    blob[byte] ^= 1 << bit
    reasons = {"magic", "checksum", "version"}
    if (byte, bit) == (3, 2):  # it seems signed, and perhaps too short for that
        reasons.add("truncated")
    assert reason_of(envelope, bytes(blob)) in reasons


@pytest.mark.parametrize("body", [b"", b"body", TEXT])
def test_every_single_flipped_bit_of_an_entry_is_refused(envelope, body):
    """Each byte of the head too, not only those a generator happens to choose."""
    sealed = envelope.seal(Entry(body, NOW_MS, 1, 2, 3, ("tag",)), MINE)
    for position in range(len(sealed) * 8):
        blob = bytearray(sealed)
        blob[position // 8] ^= 1 << position % 8
        reason = reason_of(envelope, bytes(blob))
        byte, bit = divmod(position, 8)
        if byte < 2:
            assert reason == "magic"
        elif byte == 2 or (byte == 3 and bit > 2):
            assert reason == "version"
        elif byte == 3 and bit == 2:  # it seems signed, and so its last bytes seem a signature
            assert reason in ("checksum", "truncated")
        else:
            assert reason == "checksum"


@given(entry=entries, cut=st.integers(0))
def test_any_truncation_is_refused(entry, cut):
    """A connection that broke off, a SETRANGE, a proxy with a limit."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=100)
    blob = envelope.seal(entry, MINE)
    length = cut % len(blob)
    assert reason_of(envelope, blob[:length]) == ("truncated" if length < 50 else "checksum")


@given(entry=entries, more=st.binary(min_size=1, max_size=40))
def test_anything_appended_is_refused(entry, more):
    """APPEND by another program, or two replies read as one."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=100)
    assert reason_of(envelope, envelope.seal(entry, MINE) + more) == "checksum"


@given(entry=entries)
def test_an_entry_of_another_key_is_refused_as_that(entry):
    """One candidate shown another's matches; the word tells that a connection is out of step."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=100)
    assert reason_of(envelope, envelope.seal(entry, OTHERS), MINE) == "wrong_key"


def test_a_flipped_bit_in_the_digest_is_no_wrong_key(envelope):
    """It would accuse the connections of what a disk did."""
    blob = bytearray(envelope.seal(Entry(b"body", NOW_MS), MINE))
    blob[32] ^= 1
    assert reason_of(envelope, bytes(blob)) == "checksum"


# Bytes that are not ours


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "truncated"),
        (b"1", "truncated"),
        (b"\xabJ\x01", "truncated"),
        (b"\xabJ\x01\x00", "truncated"),
        (b"1234", "magic"),
        (b'{"matches": []}' * 10, "magic"),
        (pickle.dumps({"a": 1}) * 10, "magic"),
        (zlib.compress(b"a" * 1000), "magic"),
        (b"\xabJ\x02\x00", "version"),
        (b"\xabJ\x00\x00", "version"),
        (b"\xabJ\x02" + b"\xff" * (LIMIT * 4), "version"),
        (b"\xabJ\x01" + b"\x00" * (LIMIT * 4), "too_large"),
    ],
)
def test_foreign_bytes_are_refused_with_what_gave_them_away(envelope, blob, reason):
    """The reason is a metric label: it is how an operator finds the other writer."""
    assert reason_of(envelope, blob) == reason


@pytest.mark.parametrize("bit", [3, 4, 5, 6, 7])
def test_a_flag_of_a_later_writer_is_a_miss_and_not_corrupt(envelope, bit):
    """During a rolling deploy the old release would remove the entries of the new one."""
    with pytest.raises(RedisForeignVersionError):
        envelope.unseal(crafted(b"\0\0body", flags=1 << bit), MINE)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_a_miss_whatever_follows(envelope, version):
    """A later version may check, and measure, in another way: nothing else is judged."""
    sealed = bytearray(envelope.seal(Entry(b"body", NOW_MS), MINE))
    sealed[2] = version
    for blob in (bytes(sealed), bytes(sealed[:4]), bytes(sealed) + b"more"):
        with pytest.raises(RedisForeignVersionError):
            envelope.unseal(blob, MINE)


@given(blob=st.binary(max_size=200))
@example(blob=b"\xabJ\x01\x00" + bytes(46))
def test_any_bytes_are_refused_in_one_of_two_ways(blob):
    """Another exception from here would reach the application, or be taken for an outage."""
    envelope = Envelope(max_body_bytes=100, compress_above_bytes=10)
    reason_of(envelope, blob)


@given(
    rest=st.binary(max_size=200), flags=st.integers(0, 255), digest=st.sampled_from([MINE, OTHERS])
)
@example(rest=b"", flags=0, digest=MINE)
@example(rest=b"\0\1", flags=0, digest=MINE)
@example(rest=b"\0\1x", flags=0, digest=MINE)
@example(rest=b"\0\3\0\1\xff", flags=0, digest=MINE)
@example(rest=b"\0\3\0\2x", flags=0, digest=MINE)
@example(rest=b"\0\3\0\2xy", flags=0, digest=MINE)
@example(rest=b"\0\x09\0\1x", flags=0, digest=MINE)
@example(rest=b"\0\0", flags=1, digest=MINE)
@example(rest=b"\0\0" + zlib.compress(b"x"), flags=1, digest=MINE)
def test_any_crafted_bytes_are_an_entry_or_refused(rest, flags, digest):
    """A checksum is no signature: whoever can write to Redis gets past it."""
    envelope = Envelope(max_body_bytes=100, compress_above_bytes=10)
    try:
        entry = envelope.unseal(crafted(rest, flags=flags, digest=digest), MINE)
    except (RedisCorruptEntryError, RedisForeignVersionError):
        return
    assert digest == MINE
    assert len(entry.body) <= 100
    assert all(isinstance(tag, str) for tag in entry.tags)


@pytest.mark.parametrize(
    "rest",
    [
        b"\0\1",  # tags beyond the end
        b"\0\1x",  # half a size
        b"\0\5\0\3xy",  # a tag beyond the end
        b"\0\3\0\2x",  # a tag beyond the size of all of them
        b"\0\3\0\2xy",  # a tag that reaches into the body
        b"\0\3\0\1\xff",  # no UTF-8
    ],
)
def test_tags_that_do_not_fit_are_undecodable(envelope, rest):
    """Read past their end they would take a piece of the value for a tag."""
    assert reason_of(envelope, crafted(rest)) == "undecodable"


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"no zlib stream",
        zlib.compress(TEXT)[:-1],
        zlib.compress(TEXT)[:40],
        zlib.compress(TEXT) + b"x",
        zlib.compress(TEXT) + zlib.compress(TEXT),
        zlib.compress(TEXT)[:-4] + b"\0\0\0\0",
    ],
    ids=["empty", "no_stream", "one_byte_less", "half", "one_byte_more", "twice", "wrong_sum"],
)
def test_a_compressed_body_is_one_whole_stream(envelope, stored):
    """Half a stream gives half a value, a second one is nobody's."""
    assert reason_of(envelope, crafted(b"\0\0" + stored, flags=1)) == "undecodable"


# Size


@pytest.mark.parametrize("compress_above", [0, 2 * LIMIT])
def test_the_limit_holds_both_ways(compress_above):
    """A value above it would fill Redis, or the memory of whoever reads it."""
    generous = Envelope(max_body_bytes=2 * LIMIT, compress_above_bytes=compress_above)
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=compress_above)
    fits, above = Entry(b"x" * LIMIT, NOW_MS), Entry(b"x" * (LIMIT + 1), NOW_MS)
    assert envelope.unseal(envelope.seal(fits, MINE), MINE) == fits
    with pytest.raises(RedisSerializationError) as caught:
        envelope.seal(above, MINE)
    assert caught.value.reason == "too_large"
    assert reason_of(envelope, generous.seal(above, MINE)) == "too_large"


def test_the_largest_tags_leave_room_for_the_largest_body():
    """An entry that could be written must be readable."""
    envelope = Envelope(max_body_bytes=LIMIT, compress_above_bytes=LIMIT)
    entry = Entry(b"x" * LIMIT, NOW_MS, tags=("t" * (2**16 - 3),))
    assert envelope.unseal(envelope.seal(entry, MINE), MINE) == entry


def test_a_decompression_bomb_takes_no_memory(envelope):
    """64 KB that turn into 64 MB would end a worker that has 200 requests at hand."""
    bomb = crafted(b"\0\0" + zlib.compress(bytes(64 * 1024 * 1024), 9), flags=1)
    tracemalloc.start()
    try:
        reason = reason_of(envelope, bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason == "too_large"
    assert peak < 4 * LIMIT + 2 * len(bomb)


# What a program gets wrong


@pytest.mark.parametrize("name", ["created_ms", "soft_ttl_ms", "load_cost_ms", "generation"])
@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_out_of_range_is_an_error_of_the_program(envelope, name, number):
    """Cut down without a word it would be another generation, and an old value valid again."""
    numbers = {"created_ms": NOW_MS} | {name: number}
    with pytest.raises(ValueError, match=f"^{name}: "):
        envelope.seal(Entry(b"body", **numbers), MINE)


def test_a_long_soft_ttl_or_load_cost_is_cut_to_49_days(envelope):
    """Ten years are a legal TTL; refreshed after 49 days such an entry is only too fresh."""
    entry = Entry(b"body", NOW_MS, soft_ttl_ms=2**32, load_cost_ms=2**63)
    back = envelope.unseal(envelope.seal(entry, MINE), MINE)
    assert (back.soft_ttl_ms, back.load_cost_ms) == (2**32 - 1, 2**32 - 1)


def test_tags_or_a_digest_that_do_not_fit_are_an_error_of_the_program(envelope):
    """They would be written so that nobody can read them."""
    with pytest.raises(ValueError, match=r"^tags: "):
        envelope.seal(Entry(b"body", NOW_MS, tags=("t" * (2**16 - 2),)), MINE)
    with pytest.raises(ValueError, match="surrogates"):
        envelope.seal(Entry(b"body", NOW_MS, tags=("\ud800",)), MINE)
    with pytest.raises(ValueError, match=r"^digest: "):
        envelope.seal(Entry(b"body", NOW_MS), b"short")
