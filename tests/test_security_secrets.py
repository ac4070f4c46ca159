"""Passwords, keys and values stay out of everything that is written down.

What an attacker who runs code in the process can find is no matter of these: docs/security.md.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from certificates import Certificates
from fastapi import FastAPI
from fastapi.testclient import TestClient
from interrupter import Interrupt, Interrupter
from scripted_server import END, RESET, Client, ScriptedServer, answering

import jmcache
from jmcache import (
    AsyncRedisCache,
    Cache,
    CacheSettings,
    Deadline,
    RedisCache,
    RedisCacheFactory,
    RedisConnectionManager,
    RedisError,
)
from jmcache.integrations.fastapi import cache_lifespan, health_router
from jmcache.settings._secret import Secret
from jmcache.testing import PrivateServer

PACKAGE = str(Path(jmcache.__file__).parent)
PASSWORD = "Tr0ub4dor-3-correct-horse"
USER = "jobs-service-account"
SIGNING = "signing-" + "Battery-Staple-" * 3
KEY = "jane.doe@example.com"
VALUE = "salary-expectation-87500"
SECRETS = (PASSWORD, SIGNING)

pytestmark = pytest.mark.faults


def shows(text: str, *secrets: str) -> list[str]:
    """Which of *secrets* are in *text*, plain or as its bytes are written."""
    return [secret for secret in secrets if secret in text or repr(secret)[1:-1] in text]


class Sink:
    """A metrics system, which keeps everything it is told as text."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def increment(self, name: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None:
        self.heard.append(f"{name} {value} {labels}")

    timing = gauge = increment  # type: ignore[assignment]


# Everything that is said of a cache in every trouble ---------------------------------------------


def wrong_password(certificates: Certificates) -> Iterator[CacheSettings]:
    with PrivateServer(tcp=True, password="another") as server:
        yield CacheSettings(port=server.port, password=PASSWORD)


def right_password(certificates: Certificates) -> Iterator[CacheSettings]:
    with PrivateServer(tcp=True) as server:
        server.command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "+@all")
        yield CacheSettings(port=server.port, password=PASSWORD)


def narrow_rights(certificates: Certificates) -> Iterator[CacheSettings]:
    with PrivateServer(tcp=True) as server:
        server.command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "+ping")
        yield CacheSettings(port=server.port, password=PASSWORD)


def nobody_there(certificates: Certificates) -> Iterator[CacheSettings]:
    with PrivateServer(tcp=True) as server:
        port = server.port
    yield CacheSettings(port=port, password=PASSWORD)


def scripted(script: Any, **options: Any) -> Iterator[CacheSettings]:
    with ScriptedServer(script) as server:
        yield server.settings(password=PASSWORD, **options)


def quoting(client: Client) -> None:
    """A server that knows no command, and repeats what it was told, as Redis does."""
    while (words := client.command()) is not None:
        quoted = b" ".join(b"`%b`," % word for word in words[1:])
        client.send(
            b"-ERR unknown command `%b`, with args beginning with: %b\r\n" % (words[0], quoted)
        )


def untrusted(certificates: Certificates) -> Iterator[CacheSettings]:
    context = certificates.context(certificates.good)
    with ScriptedServer(answering(b"$-1\r\n"), tls=context) as server:
        yield server.settings(password=PASSWORD, tls=True, tls_ca_certs=certificates.stranger)


TROUBLES: dict[str, Callable[[Certificates], Iterator[CacheSettings]]] = {
    "none": right_password,
    "wrong password": wrong_password,
    "narrow rights": narrow_rights,
    "nobody there": nobody_there,
    "a server that quotes": lambda _: scripted(quoting),
    "a server that resets": lambda _: scripted(answering(RESET)),
    "a server that ends": lambda _: scripted(answering(END, greeting=b"")),
    "a silent server": lambda _: scripted(Client.hold),
    "no Redis": lambda _: scripted(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    "a certificate nobody trusts": untrusted,
}


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def settings(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[CacheSettings]:
    for made in request.param(certificates):
        yield made.__class__(**{**vars(made), "username": USER, "entry_secrets": (SIGNING,)})


def use(cache: Cache) -> None:
    """Every operation, with a key, a value and a tag that no one else may read."""
    for _ in range(2):
        cache.set(KEY, {"note": VALUE})
        cache.set(KEY, {VALUE: object()})
        cache.set_many({KEY: VALUE, KEY + "2": object()})
        cache.get(KEY, validate=bool)
        cache.get_many([KEY, KEY + "2"])
        cache.lookup(KEY)
        cache.exists(KEY)
        cache.delete(KEY)
        cache.delete_many([KEY])


def test_nothing_that_is_written_down_holds_a_secret_a_key_or_a_value(
    settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Logs, metrics and health pages are read by many, and kept for years."""
    caplog.set_level(logging.DEBUG)
    sink = Sink()
    with RedisCacheFactory.create_cache(settings, metrics=[sink]) as cache:
        assert isinstance(cache, RedisCache)
        use(cache)
        RedisCacheFactory.warm_up()
        app = FastAPI(lifespan=cache_lifespan(cache=AsyncRedisCache(cache)))
        app.include_router(health_router())
        with TestClient(app) as client:
            health_page = client.get("/health").text
        cache._monitor.flush(5.0)
        asynchronous = AsyncRedisCache(cache)
        public = [
            health_page,
            json.dumps(cache.health().as_dict()),
            json.dumps(cache.stats().as_dict()),
            repr(cache.stats()),
            repr(cache.health()),
            *sink.heard,
        ]
        logged = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
        reprs = [f"{thing!r} {thing!s}" for thing in (cache, asynchronous, cache.settings)]
        asyncio.run(asynchronous.aclose())
    assert len(public) > 20
    for text in (*public, *logged):
        assert shows(text, *SECRETS, USER, KEY, VALUE) == []
    for text in public:
        assert shows(text, "127.0.0.1", str(settings.port)) == []
    for text in reprs:
        assert shows(text, *SECRETS) == []


# What error trackers keep ------------------------------------------------------------------------


def chain(error: BaseException) -> list[BaseException]:
    """The error and all that led to it."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is not None and link not in found:
            found.append(link)
            waiting += [link.__cause__, link.__context__]
    return found


def kept_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """What a thorough error tracker keeps: texts, and the variables of our frames, two deep."""
    for link in chain(error):
        yield "the error", f"{link} {link!r} {vars(link)} {link.args}"
        for frame, line in traceback.walk_tb(link.__traceback__):
            if not frame.f_code.co_filename.startswith(PACKAGE):
                continue
            for name, value in frame.f_locals.items():
                where = f"{frame.f_code.co_filename}:{line} {name}"
                for thing in (value, *getattr(value, "__dict__", {}).values()):
                    try:
                        yield where, repr(thing)
                    except AttributeError:
                        pass  # half made when the interrupt came


def assert_keeps_no_secret(error: BaseException) -> None:
    assert [where for where, text in kept_of(error) if shows(text, *SECRETS)] == []


def test_no_frame_of_a_failed_log_in_or_connect_holds_the_password(settings: CacheSettings) -> None:
    """Error trackers keep the variables of every frame, and mail them."""
    manager = RedisConnectionManager(settings)
    for verb in (
        lambda deadline: manager.get(b"k", deadline),
        lambda deadline: manager.set(b"k", b"v", 1000, deadline),
        lambda deadline: manager.ping(deadline),
    ):
        try:
            verb(Deadline(0.3))
        except RedisError as error:
            assert_keeps_no_secret(error)
    manager.close()


def test_no_frame_of_a_log_in_that_could_not_be_sent_holds_the_password(tmp_path: Path) -> None:
    """A server that stops in the middle of it: the bytes that were to go are still at hand."""
    long = PASSWORD + "x" * 4_000_000  # more than the system takes before somebody reads
    with ScriptedServer(
        lambda client: client._server.over.wait(), unix_path=tmp_path / "s"
    ) as server:
        manager = RedisConnectionManager(server.settings(password=long))
        with pytest.raises(RedisError) as caught:
            manager.get(b"k", Deadline(0.3))
        manager.close()
    assert caught.value.reason == "timeout"
    assert_keeps_no_secret(caught.value)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_no_frame_of_an_interrupted_log_in_holds_the_password() -> None:
    """A time limit may strike at any point of it, and its traceback is reported."""
    with PrivateServer() as server:
        server.command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "+@all")
        settings = CacheSettings.from_url(server.url, username=USER, password=PASSWORD)
        manager = RedisConnectionManager(settings)
        manager.get(b"k", Deadline(5.0))
        for point in itertools.count():
            manager.drop_connections()
            try:
                with Interrupter(point) as interrupter:
                    manager.get(b"k", Deadline(5.0))
            except Interrupt as error:
                assert_keeps_no_secret(error)
            if not interrupter.done:
                break
        manager.close()
    assert point > 50


# What is in the process --------------------------------------------------------------------------


def test_the_objects_of_a_cache_show_no_secret() -> None:
    """A debugger, a profiler, or `print(vars(...))` in a hurry; redis-py's own pools do."""
    with PrivateServer() as server:
        server.command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "+@all")
        settings = CacheSettings.from_url(
            server.url, username=USER, password=PASSWORD, entry_secrets=(SIGNING,)
        )
        with RedisCacheFactory.create_cache(settings) as cache:
            use(cache)
            # A Secret is where it is, and nowhere else: not into it, nor into the test itself.
            things = list(things_of(cache))
            assert len(things) > 200
            assert [type(one) for one in things if shows(f"{one!r:.10000}", *SECRETS)] == []


def things_of(cache: Cache) -> Iterator[Any]:
    """Everything that a cache leads to, but not into modules, code and secrets."""
    seen = {id(vars(module)) for module in tuple(sys.modules.values())}
    waiting: list[Any] = [cache]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (Secret, ModuleType, CodeType, FrameType)):
            continue
        if isinstance(thing, type) and not thing.__module__.startswith("jmcache"):
            continue
        seen.add(id(thing))
        yield thing
        waiting += gc.get_referents(thing)


def test_a_url_or_environment_that_is_refused_is_in_none_of_our_frames() -> None:
    """The service does not start; its error goes to the tracker, with the variables of frames."""
    url = f"redis://{USER}:{PASSWORD}@cache-1:6379/0?entry_secrets={SIGNING}"
    for build in (
        lambda: CacheSettings.from_url(f"{url}&ttl=-1"),
        lambda: CacheSettings.from_url(f"{url}#"),
        lambda: CacheSettings.from_url(url, ttl=-1),
        lambda: CacheSettings.from_env({"REDIS_URL": f"{url}&no_such=1"}),
        lambda: CacheSettings.from_env({"REDIS_PASSWORD": PASSWORD, "REDIS_PORT": "x"}),
        lambda: CacheSettings.from_env({"JMCACHE_ENTRY_SECRETS": f"{SIGNING},short"}),
        lambda: CacheSettings.from_object(SimpleNamespace(redis_url=url, jmcache_ttl=-1)),
        lambda: RedisCacheFactory.create_cache(f"{url}#"),
        lambda: RedisCacheFactory.create_async_cache(url, ttl=-1),
        lambda: RedisCacheFactory.initialize(f"{url}#"),
        lambda: CacheSettings(password=PASSWORD, entry_secrets=(SIGNING,), port=0),
        lambda: CacheSettings(password=PASSWORD, entry_secrets=(SIGNING, "short")),
        # What Python itself refuses.
        lambda: CacheSettings.from_url(url, prot=1),
        lambda: CacheSettings.from_env({"REDIS_PASSWORD": PASSWORD}, prot=1),
        lambda: CacheSettings.from_env({"REDIS_PASSWORD": PASSWORD, 7: "x"}),
        lambda: CacheSettings.from_object(SimpleNamespace(redis_url=url), prot=1),
        lambda: RedisCacheFactory.create_cache(url, tlt=1),
        lambda: RedisCacheFactory.create_async_cache(url, tlt=1),
    ):
        with pytest.raises((RedisError, TypeError)) as caught:
            build()
        assert_keeps_no_secret(caught.value)
