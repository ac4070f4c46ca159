"""What somebody who can write to Redis can do to us: cause misses, and nothing else.

Whether the page that says so, docs/security.md, names tests that are there is the last test.
"""

from __future__ import annotations

import ast
import itertools
import marshal
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from forged import entry, name_of

import jmcache
from jmcache import CacheSettings, Lookup, Outcome, RedisCache, RedisCacheFactory
from jmcache.testing import PrivateServer

ROOT = Path(__file__).parent.parent
PACKAGE = Path(jmcache.__file__).parent
MIB = 1024 * 1024
SECRET = "s" * 32

MakeSettings = Callable[..., CacheSettings]


@pytest.fixture
def cache(settings: MakeSettings) -> Iterator[RedisCache]:
    # The work that hostile bytes make is looked at here, not the deadline.
    with RedisCacheFactory.create_cache(settings(operation_timeout=10.0)) as made:
        assert isinstance(made, RedisCache)
        yield made


# Does what it is told, line by line.
PROCESS = """
import re, sys
from pathlib import Path
from jmcache import CacheSettings, RedisCacheFactory

def kib(what):
    return int(re.search(what + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

settings = CacheSettings.from_url(sys.argv[1], namespace="test", operation_timeout=30.0)
with RedisCacheFactory.create_cache(settings) as cache:
    for line in sys.stdin:
        verb, key = line.split()
        if verb == "set":
            print(cache.set(key, "mine"), flush=True)
        elif verb == "get":
            found = cache.lookup(key)
            print(found.outcome, found.reason, found.value, cache.stats().corrupt, flush=True)
        else:  # the most memory that the process had meanwhile
            Path("/proc/self/clear_refs").write_text("5")
            before = kib("VmRSS")
            found = cache.lookup(key)
            grown = (kib("VmHWM") - before) // 1024
            print(found.outcome, found.reason or "-", grown, cache.health().breaker, flush=True)
"""


@contextmanager
def a_process(home: Path, server: PrivateServer) -> Iterator[Callable[[str], str]]:
    """Run it with the jmcache that is in *home*; yields what tells it a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, server.url],
        cwd=home,  # comes before everything else on the path
        env={**os.environ, "PYTHONPATH": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout

    def ask(line: str) -> str:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with process:
        yield ask
        process.stdin.close()
        assert process.wait(60) == 0


def assert_misses(cache: RedisCache, server: PrivateServer, blob: bytes) -> None:
    """No way to read finds a value in *blob*, and every way puts it out of the way."""
    name = name_of(cache, "k")
    for read, nothing in (
        (lambda: cache.lookup("k").outcome, Outcome.CORRUPT),
        (lambda: cache.get("k"), None),
        (lambda: cache.get_many(["k", "other"]), {}),
    ):
        server.command("SET", name, blob)
        assert read() == nothing
        assert server.command("EXISTS", name) == 0
    assert cache.health().breaker == "closed"


# Nothing is executed ----------------------------------------------------------------------------


class Executed:
    """Pickled, an order to run a command: what an attacker puts into a cache that unpickles."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def orders(path: Path) -> dict[str, bytes]:
    """Ways to say "create this file" to what reads bytes carelessly."""
    code = compile(f"open({str(path)!r}, 'w')", "", "exec")
    return {
        **{
            f"pickle {protocol}": pickle.dumps(Executed(path), protocol)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        },
        "marshal": marshal.dumps(code),
        "yaml": f"!!python/object/apply:os.system ['touch {path}']".encode(),
        "python": f"__import__('os').system('touch {path}')".encode(),
    }


def test_bytes_that_are_orders_are_not_followed(
    cache: RedisCache, redis_server: PrivateServer, tmp_path: Path
) -> None:
    """Three of four peers run a pickle that they find in Redis: then the attacker is in."""
    path = tmp_path / "executed"
    pickle.loads(orders(path)["pickle 2"])
    assert path.exists(), "these orders would work"
    path.unlink()
    for order in orders(path).values():
        for blob in (
            order,
            zlib.compress(order),
            *(
                entry(cache, "k", front + order, compress=compress)
                for front in (b"", b" ", b"\t")
                for compress in (False, True)
            ),
            entry(cache, "k", b'\t["%b","@os.system"]' % order.hex().encode()),
        ):
            assert_misses(cache, redis_server, blob)
    assert not path.exists()


def test_the_package_has_nothing_that_makes_code_of_data() -> None:
    """What is not there cannot be reached by bytes that nobody thought of."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names.append(f"{node.func.id}()")
            found += [(name, path.relative_to(PACKAGE)) for name in names]
    forbidden = re.compile(
        r"(pickle|cPickle|_pickle|marshal|shelve|dill|cloudpickle|jsonpickle|yaml|runpy|code|codeop"
        r"|imp|pty)(\..*)?|(eval|exec|compile|__import__)\(\)"
    )
    assert found
    assert [(name, path) for name, path in found if forbidden.fullmatch(name)] == []
    # The kit for tests starts servers; nothing else starts anything.
    starts = re.compile(r"(subprocess|multiprocessing|os\.system|importlib)(\..*)?")
    elsewhere = [(n, p) for n, p in found if starts.fullmatch(n) and p.parts[0] != "testing"]
    assert elsewhere == []


# Nothing exhausts memory or the stack -----------------------------------------------------------

FORGED_BODIES = {
    "a depth of 1025": b" " + b"[" * 1025 + b"]" * 1025,
    "a million brackets": b" " + b"[" * 1_000_000,
    "a million braces": b" " + b'{"a":' * 200_000,
    "marks in marks": b"\t[1," + b'["*",' * 100_000,
    "5000 digits": b" " + b"9" * 5000,
    "5000 digits, negative": b" -" + b"9" * 5000,
    "5000 digits in a list": b" [1," + b"9" * 5000 + b"]",
    "a byte order mark": b' \xef\xbb\xbf{"a":1}',
    "a byte after the value": b' {"a":1}x',
    "a second value": b' {"a":1}{"a":2}',
    "a NUL after the value": b' {"a":1}\0',
    "no UTF-8": b' "\xff\xfe"',
    "UTF-16": b" " + '{"a":1}'.encode("utf-16"),
    "a key that is no text": b" {1:2}",
    "a class nobody registered": b'\t[{"a":1},"@builtins.object"]',
}


@pytest.mark.parametrize("body", FORGED_BODIES.values(), ids=FORGED_BODIES)
@pytest.mark.parametrize("compress", [False, True])
def test_a_forged_body_is_a_miss(
    cache: RedisCache, redis_server: PrivateServer, body: bytes, compress: bool
) -> None:
    """RecursionError, ValueError or UnicodeError would come out of `get` in every request."""
    assert_misses(cache, redis_server, entry(cache, "k", body, compress=compress))


@pytest.mark.parametrize(
    "text", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", '{"a":1,"a":2}', '"\x01"', "null"]
)
def test_json_that_was_not_written_by_us_is_a_miss(
    cache: RedisCache, redis_server: PrivateServer, text: str
) -> None:
    """Parsers differ on each of these, and an infinite score is the best one."""
    assert_misses(cache, redis_server, text.encode())
    assert_misses(cache, redis_server, b" " + text.encode())


def test_an_entry_that_the_stack_that_is_left_is_too_short_for_stays(cache: RedisCache) -> None:
    """One caller deep in a recursion of his own would take it from everybody."""
    value: object = datetime(2026, 11, 23)
    for _ in range(60):
        value = (value,)
    assert cache.set("k", value)

    def dive() -> Lookup:
        found = cache.lookup("k", timeout=60.0)
        return dive() if found.is_hit else found

    found = dive()
    assert (found.outcome, found.reason) == ("unavailable", "no_stack")
    assert cache.lookup("k", timeout=60.0).value == value


BRACES = b"[" + b",".join([b"{}"] * 3_000_000) + b"]"  # 9 MB; as objects 170
GIANTS: dict[str, tuple[Callable[[RedisCache], bytes], str, int]] = {
    "bare": (lambda cache: BRACES, "too_large", 8),
    "in an entry": (lambda cache: entry(cache, "k", b" " + BRACES), "too_large", 8),
    "compressed": (lambda cache: entry(cache, "k", b" " + BRACES, compress=True), "too_large", 8),
    "a bomb": (
        lambda cache: entry(cache, "k", b" " + bytes(64 * MIB), compress=True),
        "too_large",
        8,
    ),
    "64 MB": (lambda cache: b"x" * 64 * MIB, "too_large", 8),
    # What our own limit lets through: 349,000 of them in 1 MiB.
    "within the limit": (
        lambda cache: entry(cache, "k", b" " + BRACES[: MIB - 4] + b"x"),
        "undecodable",
        64,
    ),
    # The most that it does, some 110 MB: each all made before the 1 is found that is no set.
    "columns": (
        lambda cache: entry(
            cache, "k", b'\t[[[["a"],[%b]],1],[0,"rows",1,"set"]]' % _as_many_as_fit(b"1")
        ),
        "undecodable",
        160,
    ),
    "sets": (
        lambda cache: entry(
            cache, "k", b'\t[[[%b],1],[0,["*","set"],1,"set"]]' % _as_many_as_fit(b"[]")
        ),
        "undecodable",
        160,
    ),
}


def _as_many_as_fit(part: bytes) -> bytes:
    return b",".join([part] * ((MIB - 100) // (len(part) + 1)))


def test_the_memory_that_hostile_bytes_take_is_bounded(
    cache: RedisCache, redis_server: PrivateServer
) -> None:
    """9 MB of `{},{},...` are 3 million objects and 170 MB: a few of them end a worker."""
    with a_process(PACKAGE.parent, redis_server) as ask:
        ask("set k")
        ask("measure k")
        for name, (make, reason, at_most_mib) in GIANTS.items():
            redis_server.command("SET", name_of(cache, "k"), make(cache))
            outcome, why, grown_mib, breaker = ask("measure k").split()
            assert (outcome, why, breaker) == ("corrupt", reason, "closed"), name
            assert int(grown_mib) <= at_most_mib, name
            assert redis_server.command("EXISTS", name_of(cache, "k")) == 0, name


def test_a_value_above_the_limit_is_not_even_sent(
    cache: RedisCache, redis_server: PrivateServer
) -> None:
    """64 MB on their way would hold up every other call on the network."""
    before = received(redis_server)
    assert cache.set("k", "x" * 64 * MIB) is False
    assert cache.set_many({"k": "x" * (MIB + 1)}) is False
    assert received(redis_server) - before < 10_000
    assert cache.stats().operations[("set", "refused", "too_large")] == 1


def received(server: PrivateServer) -> int:
    """Bytes that came to the server."""
    stats = server.command("INFO", "stats")
    assert isinstance(stats, bytes)
    found = re.search(rb"total_net_input_bytes:(\d+)", stats)
    assert found
    return int(found[1])


# Signed entries ---------------------------------------------------------------------------------


@pytest.fixture
def signed(settings: MakeSettings) -> Iterator[RedisCache]:
    with RedisCacheFactory.create_cache(settings(entry_secrets=(SECRET,))) as made:
        assert isinstance(made, RedisCache)
        yield made


def test_every_flipped_byte_of_a_signed_entry_is_a_miss(
    signed: RedisCache, redis_server: PrivateServer
) -> None:
    """Of an entry in a Redis that others can write to, nothing may be taken on trust."""
    signed.set("k", {"score": 0.5})
    blob = redis_server.command("GET", name_of(signed, "k"))
    assert isinstance(blob, bytes)
    for position in range(len(blob)):
        altered = bytearray(blob)
        altered[position] ^= 0xFF
        redis_server.command("SET", name_of(signed, "k"), bytes(altered))
        found = signed.lookup("k")
        assert found.value is None, position
        assert found.outcome in (Outcome.CORRUPT, Outcome.MISS), position
    redis_server.command("SET", name_of(signed, "k"), blob)
    assert signed.get("k") == {"score": 0.5}


def test_a_forged_entry_is_a_miss_for_a_cache_with_a_secret(
    signed: RedisCache, cache: RedisCache, redis_server: PrivateServer
) -> None:
    """The one without believes it: nothing but the signature is in a forger's way."""
    blob = entry(signed, "k", b' {"score":1}')
    redis_server.command("SET", name_of(signed, "k"), blob)
    assert cache.get("k") == {"score": 1}
    found = signed.lookup("k")
    assert (found.outcome, found.reason, found.value) == (Outcome.CORRUPT, "unsigned", None)
    assert signed.stats().corrupt == 1
    assert redis_server.command("EXISTS", name_of(signed, "k")) == 0


@pytest.mark.parametrize("read", ["lookup", "get_many", "exists"])
def test_a_signed_entry_that_was_put_back_is_a_miss_once_its_time_is_over(
    signed: RedisCache, redis_server: PrivateServer, read: str
) -> None:
    """Redis's own expiry is in the hands of whoever can write."""
    assert signed.set("k", "old", ttl=0.2)
    name = name_of(signed, "k")
    redis_server.command("PERSIST", name)
    deadline = time.monotonic() + 5.0
    while signed.exists("k") and time.monotonic() < deadline:
        time.sleep(0.02)
    nothing = {"lookup": ("miss", "expired"), "get_many": {}, "exists": False}[read]
    if read == "lookup":
        found = signed.lookup("k")
        assert (found.outcome, found.reason) == nothing
    else:
        argument = ["k"] if read == "get_many" else "k"
        assert getattr(signed, read)(argument) == nothing
    assert signed.stats().corrupt == 0
    assert ("exists", "miss", "expired") not in signed.stats().operations, "it was asked and told"
    assert redis_server.command("EXISTS", name) == 1, "a clock that is wrong removes nothing"


def test_a_secret_is_changed_without_losing_an_entry(settings: MakeSettings) -> None:
    """The three deploys of docs/security.md, each half done: both halves read each other."""
    old, new = "old-" + "o" * 32, "new-" + "n" * 32
    steps = [(old,), (old, new), (new, old), (new,)]
    for before, after in itertools.pairwise(steps):
        with (
            RedisCacheFactory.create_cache(settings(entry_secrets=before)) as one,
            RedisCacheFactory.create_cache(settings(entry_secrets=after)) as other,
        ):
            assert one.set("of one", 1)
            assert other.set("of the other", 2)
            for cache in (one, other):
                assert cache.get_many(["of one", "of the other"]) == {
                    "of one": 1,
                    "of the other": 2,
                }
                assert cache.stats().corrupt == 0


def test_switching_signatures_on_with_a_new_schema_version_disturbs_nobody(
    settings: MakeSettings,
) -> None:
    """While the deploy rolls, the old half must keep its hits, and the new half its own."""
    with (
        RedisCacheFactory.create_cache(settings()) as old,
        RedisCacheFactory.create_cache(settings(entry_secrets=(SECRET,), schema_version=2)) as new,
    ):
        assert old.set("k", "old")
        assert new.get("k") is None
        assert new.set("k", "new")
        assert (old.get("k"), new.get("k")) == ("old", "new")
        assert old.stats().corrupt == new.stats().corrupt == 0


def test_processes_with_and_without_the_secret_show_each_other_nothing_wrong(
    settings: MakeSettings,
) -> None:
    """Switched on without that, they share names: it must cost hits, not answers."""
    with (
        RedisCacheFactory.create_cache(settings()) as old,
        RedisCacheFactory.create_cache(settings(entry_secrets=(SECRET,))) as new,
    ):
        assert old.set("k", "old")
        assert new.lookup("k").reason == "unsigned"
        assert new.set("k", "new")
        assert old.lookup("k").reason == "signed"
        assert new.get("k") == "new"


# Two releases in a rolling deploy ---------------------------------------------------------------


def test_two_versions_of_the_format_leave_each_others_entries_alone(
    redis_server: PrivateServer, tmp_path: Path
) -> None:
    """In a rolling deploy: neither half may show, or remove, what it cannot read."""
    later = tmp_path / "jmcache"
    shutil.copytree(PACKAGE, later, ignore=shutil.ignore_patterns("__pycache__"))
    module = later / "envelope" / "__init__.py"
    source = module.read_text(encoding="utf-8")
    assert source.count("\nVERSION = 1\n") == 1
    module.write_text(source.replace("\nVERSION = 1\n", "\nVERSION = 2\n"), encoding="utf-8")
    with (
        a_process(PACKAGE.parent, redis_server) as one,
        a_process(tmp_path, redis_server) as two,
    ):
        for writer, reader in ((one, two), (two, one)):
            assert writer("set k") == "True"
            assert reader("get k") == "miss version None 0"
            assert writer("get k") == "hit  mine 0", "it is still there"


# The page ---------------------------------------------------------------------------------------


def test_the_page_names_tests_that_are_there() -> None:
    """A line of the checklist whose test was renamed or removed is only a claim."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"\[(test_\w+)\]\((?:\.\./)+(tests/[\w/]+\.py)\)", page)
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for _, path in named}
    assert [link for link in named if f"\ndef {link[0]}(" not in sources[link[1]]] == []
    assert len(set(named)) > 40
