"""What we say to Redis: few commands, all of them bounded, none that reaches beyond our names."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forged import entry, name_of
from observation import wait_for

import jmcache
from jmcache import (
    Cache,
    CacheSettings,
    RedisCache,
    RedisCacheFactory,
)
from jmcache.connection import _commands
from jmcache.testing import PrivateServer

ROOT = Path(__file__).parent.parent
PACKAGE = Path(jmcache.__file__).parent

# What a connection begins with, see docs/security.md. It reaches no key.
GREETING = {"AUTH", "SELECT", "CLIENT SETINFO", "PING"}

OPERATIONS: dict[str, Callable[[Cache], Any]] = {
    "set": lambda cache: cache.set("a", {"score": 0.5}),
    "set_many": lambda cache: cache.set_many({"b": 2, "c": 3, "d": 4}),
    "get": lambda cache: cache.get("a"),
    "lookup": lambda cache: cache.lookup("b").value,
    "get_many": lambda cache: cache.get_many(["a", "b", "no"]),
    "exists": lambda cache: cache.exists("c"),
    "delete": lambda cache: cache.delete("c"),
    "delete_many": lambda cache: cache.delete_many(["b", "d", "no"]),
    "get_or_set": lambda cache: (cache.get_or_set("e", lambda: 5, tags=("t",)), cache.get("e")),
    "get_or_set_many": lambda cache: (
        cache.get_or_set_many(["e", "f"], lambda keys: dict.fromkeys(keys, 6), stale_ttl=60),
        cache.get_many(["e", "f"]),
    ),
    "cached": lambda cache: cache.cached(ttl=60)(sum)([1, 2]),
    "invalidate_tags": lambda cache: (cache.invalidate_tags("t"), cache.get("e")),
    "clear": lambda cache: (cache.clear(), cache.get("f")),
}
RESULTS = {
    "set": True,
    "set_many": True,
    "get": {"score": 0.5},
    "lookup": 2,
    "get_many": {"a": {"score": 0.5}, "b": 2},
    "exists": True,
    "delete": True,
    "delete_many": 2,
    "get_or_set": (5, 5),
    "get_or_set_many": ({"e": 5, "f": 6}, {"e": 5, "f": 6}),
    "cached": 3,
    "invalidate_tags": (True, None),
    "clear": (True, None),
}
# What a cache has besides, and asks Redis nothing.
OTHERS = {
    *(
        "adapting",
        "answers_at_once",
        "close",
        "generate_key",
        "give_up",
        "health",
        "reconfigure",
        "settings",
    ),
    *("stats", "computing", "computing_many"),  # the steps of get_or_set and get_or_set_many
}


def test_every_operation_is_looked_at_here() -> None:
    """A new one might send what no one has looked at."""
    public = {name for name in dir(RedisCache) if not name.startswith("_")}
    assert public == OPERATIONS.keys() | OTHERS


class CommandLog:
    """What a server was told by anybody but the test, from MONITOR on a connection of its own."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        info = server.command("CLIENT", "INFO")
        assert isinstance(info, bytes)
        self._own = re.search(rb"\baddr=(\S+)", info)[1]  # type: ignore[index]
        self._sock = socket.create_connection(("127.0.0.1", server.port), timeout=10.0)
        self._sock.sendall(b"MONITOR\r\n")
        self._lines = self._sock.makefile("rb")
        assert self._lines.readline() == b"+OK\r\n"

    def commands(self) -> list[list[str]]:
        """Every command since the last time; the arguments as MONITOR escapes them."""
        mark = uuid.uuid4().hex.encode()
        self._server.command("ECHO", mark)
        found = []
        for line in self._lines:
            if mark in line:
                return found
            if b" " + self._own + b"]" not in line:
                found.append(re.findall(r'"((?:[^"\\]|\\.)*)"', line.decode()))
        raise AssertionError("MONITOR ended")

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


@pytest.fixture
def log(tcp_server: PrivateServer) -> Iterator[CommandLog]:
    log = CommandLog(tcp_server)
    yield log
    log.close()


def use_everything(settings: CacheSettings, server: PrivateServer) -> None:
    """Every operation, and whatever else makes a cache talk to Redis."""
    with RedisCacheFactory.create_cache(settings) as cache:
        RedisCacheFactory.warm_up()
        for name, operation in OPERATIONS.items():
            assert operation(cache) == RESULTS[name], name
        for foreign in (b"garbage", entry(cache, "k", b"j[")):
            server.command("SET", name_of(cache, "k"), foreign)
            assert cache.get("k") is None
        server.command("RPUSH", name_of(cache, "k"), "a list")
        assert cache.get("k") is None
        assert cache.get_many(["k", "l"]) == {}
        server.command("CLIENT", "KILL", "ID", other_client(server))
        assert cache.set("again", 1, ttl=315_360_000)
        assert cache.set_many({f"k{n}": n for n in range(100)}, ttl=60)

    async def awaited() -> None:
        async with RedisCacheFactory.create_async_cache(settings) as cache:
            assert await cache.set("a", 1)
            assert await cache.get_many(["a"]) == {"a": 1}
            assert await cache.delete("a")

    asyncio.run(awaited())


def other_client(server: PrivateServer) -> str:
    """The id of a connection of ours."""
    clients = server.command("CLIENT", "LIST")
    assert isinstance(clients, bytes)
    found = re.search(r"^id=(\d+).*cmd=(?:get|set|unlink)\b", clients.decode(), re.MULTILINE)
    assert found
    return found[1]


def documented_user() -> list[str]:
    """The words of the ACL user in docs/security.md, with the rights that it is given."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ACL SETUSER (.*)$", page, re.MULTILINE)
    return line.split()


RIGHTS = [word for word in documented_user() if word.startswith("+")]


@pytest.mark.parametrize("secrets", [(), ("s" * 32,)], ids=["plain", "signed"])
def test_nothing_but_the_documented_commands_is_sent(
    tcp_server: PrivateServer, log: CommandLog, secrets: tuple[str, ...]
) -> None:
    """FLUSHDB has emptied databases that others shared; KEYS and SCAN stop a server of millions."""
    settings = CacheSettings.from_url(tcp_server.url, namespace="test", entry_secrets=secrets)
    use_everything(settings, tcp_server)
    sent = log.commands()
    spoken = {" ".join(words[:2] if words[0] == "CLIENT" else words[:1]) for words in sent}
    assert spoken <= {right.removeprefix("+").upper() for right in RIGHTS} | GREETING
    assert {"GET", "SET", "UNLINK", "INCR", "PEXPIRE", "EVAL"} <= spoken


def test_a_near_cache_sends_no_more_than_is_said_of_it(
    tcp_server: PrivateServer, log: CommandLog
) -> None:
    """What its connection says reaches no key but canaries, which end after a second."""
    settings = CacheSettings.from_url(tcp_server.url, namespace="test", near=True)
    with RedisCacheFactory.create_cache(settings) as cache:
        cache.set("a", 1)
        wait_for(lambda: cache.get("a") and ("get", "hit", "near") in cache.stats().operations)
    sent = log.commands()
    spoken = {" ".join(words[:2] if words[0] == "CLIENT" else words[:1]) for words in sent}
    documented = {right.removeprefix("+").upper() for right in RIGHTS} | GREETING
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for word in ("+client|tracking", "+pttl", "HELLO 3"):
        assert f"`{word}`" in page
    assert spoken - documented == {"HELLO", "CLIENT TRACKING", "PTTL"}
    (canary, *_) = [words for words in sent if words[0] == "SET" and "#near:" in words[1]]
    assert canary[1].startswith("test:v1#near:")
    assert canary[3:] == ["PX", "1000"]


def test_no_script_has_anything_of_a_user_in_it(tcp_server: PrivateServer, log: CommandLog) -> None:
    """A key or value in the text of a script is a program that a candidate's name can write."""
    use_everything(CacheSettings.from_url(tcp_server.url, namespace="test"), tcp_server)
    sent = {words[1].replace("\\n", "\n") for words in log.commands() if words[0] == "EVAL"}
    assert sent
    assert sent <= {_commands._STORE_HELD.decode(), _commands._FREE.decode()}


def test_no_key_is_written_without_a_ttl_and_none_outside_our_names(
    tcp_server: PrivateServer, log: CommandLog
) -> None:
    """A key without a TTL is personal data for ever; one outside is somebody else's."""
    settings = CacheSettings.from_url(tcp_server.url, namespace="test")
    use_everything(settings, tcp_server)
    sent = log.commands()
    writes = [words for words in sent if words[0] == "SET"]
    assert len(writes) > 100
    for words in writes:
        assert words[3] == "PX"
        assert 0 < int(words[4]) <= 315_360_000_000
    names = {
        name
        for command, *arguments in sent
        for name in {"GET": arguments[:1], "SET": arguments[:1]}.get(
            command, arguments if command == "UNLINK" else []
        )
    }
    assert len(names) > 100
    for words in sent:
        if words[0] == "EVAL":
            names.update(words[3:][: int(words[2])])
    assert [name for name in names if not name.startswith("test:v1:")] == []
    stored = tcp_server.command("KEYS", "*")
    assert isinstance(stored, list)
    assert len(stored) > 100
    assert [name for name in stored if tcp_server.command("PTTL", name) <= 0] == []


def test_the_code_has_no_command_that_reaches_beyond_one_key() -> None:
    """What is not in the source cannot be sent by a way that no test takes."""
    forbidden = re.compile(
        r"\s*(FLUSH\w*|KEYS|SCAN|RANDOMKEY|EVALSHA\w*|SCRIPT|FUNCTION|FCALL\w*|CONFIG|DEBUG|SHUTDOWN"
        r"|SAVE|BGSAVE|MIGRATE|REPLICAOF|SLAVEOF|MODULE|ACL|SWAPDB|PERSIST|RENAME\w*|MONITOR)\b.*"
    )
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "testing":
            continue  # it commands servers of its own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if forbidden.fullmatch(text):
                    found.append((path.name, node.lineno, text))
    assert found == []


# A user with no more rights than that ----------------------------------------------------------


def restricted(server: PrivateServer, *without: str) -> CacheSettings:
    """Settings for the documented user, in the namespace that it is for."""
    words = [word for word in documented_user() if word not in without]
    server.command("ACL", "SETUSER", *words)
    return CacheSettings.from_url(
        server.url, username=words[0], password=words[2].removeprefix(">"), namespace="jobs"
    )


@pytest.fixture
def own_server() -> Iterator[PrivateServer]:
    """A server whose users may be changed."""
    with PrivateServer(tcp=True) as server:
        yield server


@pytest.mark.parametrize("secrets", [(), ("s" * 32,)], ids=["plain", "signed"])
def test_the_documented_user_can_do_everything_and_is_refused_nothing(
    own_server: PrivateServer, secrets: tuple[str, ...]
) -> None:
    """A right that is missing is a cache that is never filled; a refusal is an alarm at night."""
    settings = dataclasses.replace(restricted(own_server), entry_secrets=secrets)
    use_everything(settings, own_server)
    denied = own_server.command("ACL", "LOG")
    # From 7.2 on the name that a connection gives itself is a right of its own: a courtesy.
    assert [
        entry for entry in denied if entry[entry.index(b"object") + 1] != b"client|setinfo"
    ] == []


@pytest.mark.parametrize("right", [right for right in RIGHTS if right != "+ping"])
def test_the_documented_user_has_no_right_to_spare(own_server: PrivateServer, right: str) -> None:
    """A right that nobody needs is there for somebody else."""
    settings = restricted(own_server, right)
    with RedisCacheFactory.create_cache(settings) as cache:
        results = {name: operation(cache) for name, operation in OPERATIONS.items()}
        assert results != RESULTS
        assert cache.health().breaker == "closed", "a missing right is no outage"
        stats = cache.stats()
        if right == "+eval":  # asked for behind a caller's back, who has the value
            assert stats.events["not_stored"]
        else:
            assert {slot[2] for slot in stats.operations} >= {"noperm"}


def test_a_redis_that_knows_no_scripts_costs_the_hits_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cache that is never filled, in silence: nobody would look for the command that is gone."""
    with PrivateServer(args=("--rename-command", "EVAL", "HIDDEN")) as server:
        settings = CacheSettings.from_url(server.url)
        with RedisCacheFactory.create_cache(settings) as cache:
            assert cache.get_or_set("k", lambda: 1) == 1
            assert cache.stats().events["not_stored"] == 1
            assert cache.set("l", 2) is True
            assert cache.get("l") == 2
            assert cache.health().breaker == "closed"
            wait_for(lambda: "get_or_set (unknown_command)" in caplog.text)


def test_the_documented_user_reaches_no_other_name(own_server: PrivateServer) -> None:
    """Another application on the same Redis has its own user and its own names."""
    own_server.command("SET", "other:v1:k", "theirs")
    settings = dataclasses.replace(restricted(own_server), namespace="other")
    with RedisCacheFactory.create_cache(settings) as cache:
        assert cache.lookup("k").reason == "noperm"
        assert cache.set("k", 1) is False
        assert cache.delete("k") is False
    assert own_server.command("GET", "other:v1:k") == b"theirs"
