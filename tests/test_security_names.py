"""Keys come from strangers: none of them reaches an entry of another key, cache or application."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jmcache import CacheSettings, RedisCacheFactory, generate_key
from jmcache.keys import KeySpace
from jmcache.testing import PrivateServer

MakeSettings = Callable[..., CacheSettings]

# Alphabets in which pieces of names are likely to come out.
namespaces = st.text("av1:-._", min_size=1, max_size=8)
versions = st.sampled_from([1, 2, 11])
keys = st.text("av1:_\0\r\n {}*é\u0301\ud800", max_size=8) | st.text(max_size=300)
spelt = st.tuples(namespaces, versions, keys)


@given(one=spelt, other=spelt)
@example(("a", 1, "v1:b"), ("a:v1", 1, "b"))
@example(("a", 1, "1"), ("a", 11, ""))
@example(("a", 1, "k"), ("a:v1", 1, "k"))
@example(("a", 1, "é"), ("a", 1, "e\u0301"))
@example(("a", 1, "\ud800"), ("a", 1, "?"))
@example(("a", 1, "x" * 300), ("a", 1, "x" * 299 + "y"))
def test_no_two_keys_share_a_name_or_a_digest(one, other):
    """A key that was chosen for it would fetch another tenant's matches."""
    first, second = (KeySpace(*space).name(key) for *space, key in (one, other))
    assert (first == second) is (one == other)
    assert (first[0] == second[0]) is (one == other)
    assert (first[1] == second[1]) is (one == other)


HOSTILE_KEYS = {
    "line breaks": "k\r\nFLUSHALL\r\n",
    "a whole command": "*1\r\n$8\r\nFLUSHALL\r\n",
    "a line feed": "k\nINFO injected",
    "NUL": "k\0admin",
    "spaces": " k  k ",
    "a terminal's orders": "\x1b[2J\x07\x7f",
    "right to left": "k\u202egnp.exe",
    "8 MB": "k" * 8_000_000,
    "a hash tag": "{slot}k}{",
    "glob characters": "*?[^k]\\",
    "another namespace's prefix": "b:v1:k",
    "a name": "a:v1:k:00112233445566778899aabbccddeeff",
    "a look-alike": "\u0430dmin",  # a Cyrillic a
    "composed": "caf\u00e9",
    "decomposed": "cafe\u0301",
    "a full width letter": "\uff4b",
    "a zero width space": "k\u200b",
    "half a pair": "\ud800",
    "the other half": "\udc00",
    "no text": "",
    "a path": "../../etc/passwd",
    "a format": "%s%n{0.__class__}${HOME}",
    "one key": "k",
}


def test_hostile_keys_reach_their_own_entry_and_no_other(
    redis_server: PrivateServer, settings: MakeSettings
) -> None:
    """Search text, user names and file names become keys; somebody always tries."""
    spaces = ("a", "b", "a:v1", "A", "a.v1")
    caches = {
        name: RedisCacheFactory.create_cache(settings(namespace=name, operation_timeout=10.0))
        for name in spaces
    }
    redis_server.command("SET", "canary", "untouched")
    for number, key in enumerate(HOSTILE_KEYS.values()):
        assert caches["a"].set(key, number)
    assert caches["a"].get_many(HOSTILE_KEYS.values()) == {
        key: number for number, key in enumerate(HOSTILE_KEYS.values())
    }
    stored = redis_server.command("KEYS", "*")
    assert isinstance(stored, list)
    names = [name for name in stored if name not in (b"canary", b"a:v1:#")]
    assert len(names) == len(HOSTILE_KEYS)
    assert [n for n in names if not re.fullmatch(rb"a:v1:[\w.-]{0,80}:[0-9a-f]{32}", n)] == []
    counter = redis_server.command("GET", b"a:v1:#")
    for name in spaces[1:]:
        assert caches[name].get_many(HOSTILE_KEYS.values()) == {}
        assert caches[name].delete_many(HOSTILE_KEYS.values()) == 0
    assert caches["a"].delete_many(HOSTILE_KEYS.values()) == len(HOSTILE_KEYS)
    assert sorted(redis_server.command("KEYS", "*")) == [b"a:v1:#", b"canary"]
    assert redis_server.command("GET", b"a:v1:#") == counter, "no key reaches it"
    for cache in caches.values():
        assert cache.stats().corrupt == 0
        cache.close()


def test_ids_that_look_alike_are_different_questions() -> None:
    """Tenant 1, tenant "1" and a tenant that was forgotten must not share their matches."""
    ids = [None, "", 0, 1, "1", True, False, 1.0, "None", b"1", "caf\u00e9", "cafe\u0301"]
    by_position = [generate_key("matches", one) for one in ids]
    assert len(set(by_position)) == len(ids)
    by_name = [generate_key("matches", tenant=one) for one in ids]
    assert len(set(by_name)) == len(ids)
    assert set(by_name).isdisjoint(by_position)
    # The old cache's rule, and the one thing to know: by name, None is not given.
    assert generate_key("matches", tenant=None) == generate_key("matches")


@pytest.mark.parametrize("key", [None, 1, True, b"k", ["k"], object()])
def test_what_is_no_text_is_no_key(settings: MakeSettings, key: object) -> None:
    """str(None) is a key that everybody shares who forgot his id."""
    with RedisCacheFactory.create_cache(settings()) as cache:
        for ask in (cache.get, cache.lookup, cache.exists, cache.delete):
            with pytest.raises(TypeError, match=r"^key: text"):
                ask(key)
        with pytest.raises(TypeError, match=r"^key: text"):
            cache.set(key, 1)  # type: ignore[arg-type]
        assert cache.stats().operations == {}
