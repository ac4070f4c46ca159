"""The cache in a FastAPI application: opened, handed out and closed, with Redis and without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from jmcache import AsyncRedisCache, Cache, CacheSettings, RedisCacheFactory
from jmcache.integrations.fastapi import cache_lifespan, get_cache, get_sync_cache, health_router
from jmcache.testing import PrivateServer

MEMORY = CacheSettings.from_url("memory://")
REFUSED = CacheSettings(port=1, password="hunter2", operation_timeout=0.2)  # nobody listens on 1


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    RedisCacheFactory.shutdown()


def application(**arguments: Any) -> FastAPI:
    """An application with an endpoint of each kind, counting up what is cached."""
    app = FastAPI(lifespan=cache_lifespan(**arguments))
    app.include_router(health_router())

    @app.get("/awaited")
    async def awaited(cache: Annotated[AsyncRedisCache, Depends(get_cache)]) -> dict[str, Any]:
        value = await cache.get("count")
        return {"found": value, "kept": await cache.set("count", (value or 0) + 1)}

    @app.get("/called")
    def called(cache: Annotated[Cache, Depends(get_sync_cache)]) -> dict[str, Any]:
        value = cache.get("count")
        return {"found": value, "kept": cache.set("count", (value or 0) + 1)}

    return app


def test_both_kinds_of_endpoint_share_one_cache() -> None:
    """A report that can't see what the page computed computes it again."""
    with TestClient(application(settings=MEMORY)) as client:
        assert client.get("/awaited").json() == {"found": None, "kept": True}
        assert client.get("/called").json() == {"found": 1, "kept": True}
        assert client.get("/awaited").json() == {"found": 2, "kept": True}


def test_replicas_share_what_is_in_redis(tcp_server: PrivateServer) -> None:
    """Settings without jmcache: any object with redis_host and redis_port, as services have."""
    settings = SimpleNamespace(
        redis_host="127.0.0.1", redis_port=str(tcp_server.port), redis_db=0, redis_password=None
    )
    with TestClient(application(settings=settings)) as one:
        one.get("/awaited")
    with TestClient(application(settings=settings)) as other:
        assert other.get("/called").json()["found"] == 1


def test_it_starts_serves_and_stops_while_redis_is_down() -> None:
    """A service that can't be deployed during an outage of its cache makes that outage its own."""
    with TestClient(application(settings=REFUSED)) as client:
        for path in ("/awaited", "/called"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.json() == {"found": None, "kept": False}


async def _start_and_stop(settings: CacheSettings) -> tuple[float, float]:
    app = application(settings=settings)
    began = time.perf_counter()
    async with app.router.lifespan_context(app):
        started = time.perf_counter()
    return started - began, time.perf_counter() - started


def test_starting_and_stopping_wait_for_nothing() -> None:
    """A rolling deploy that waits for a timeout in each replica takes minutes."""
    unroutable = CacheSettings(host="192.0.2.1")
    took = [asyncio.run(_start_and_stop(settings)) for settings in (REFUSED, unroutable) * 2]
    assert min(start for start, _ in took) < 0.1
    assert min(stop for _, stop in took) < 0.5


def test_starting_asks_redis_nothing(tcp_server: PrivateServer) -> None:
    """A server that hangs would hang the start."""
    before = _connections_received(tcp_server)
    with TestClient(application(settings=CacheSettings.from_url(tcp_server.url))) as client:
        assert _connections_received(tcp_server) == before
        client.get("/awaited")
        assert _connections_received(tcp_server) > before


def _connections_received(server: PrivateServer) -> int:
    info = server.command("INFO", "stats")
    assert isinstance(info, bytes)
    return int(info.partition(b"total_connections_received:")[2].split()[0])


def test_ours_opens_before_and_closes_after_the_users_own_lifespan() -> None:
    """Theirs may want to warm the cache at the start and to write to it at the end."""
    seen: list[Any] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        cache = app.state.jmcache
        seen.append(await cache.set("greeting", "hello"))
        yield {"answer": 42}
        seen.append(await cache.get("greeting"))

    app = application(settings=MEMORY, lifespan=own)

    @app.get("/state")
    async def state(request: Request) -> int:
        answer: int = request.state.answer
        return answer

    with TestClient(app) as client:
        cache = app.state.jmcache
        assert client.get("/state").json() == 42
    assert seen == [True, "hello"]
    assert not hasattr(app.state, "jmcache")
    assert cache.sync.lookup("greeting").reason == "closed"


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_what_the_users_lifespan_raises_comes_out_and_the_cache_is_closed(moment: str) -> None:
    """An application that fails to start says why, and leaves no thread behind."""
    caches: list[AsyncRedisCache] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        caches.append(app.state.jmcache)
        if moment == "start":
            raise LookupError("no catalogue")
        yield
        raise LookupError("no catalogue")

    app = application(settings=MEMORY, lifespan=own)
    with pytest.raises(LookupError, match="no catalogue"), TestClient(app):
        pass
    assert caches[0].sync.lookup("anything").reason == "closed"
    assert not hasattr(app.state, "jmcache")


def test_one_application_can_be_started_twice() -> None:
    """Test suites do that for every test."""
    app = application(settings=MEMORY)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/awaited").json() == {"found": None, "kept": True}


def test_a_cache_of_the_users_own_is_used_and_stays_open() -> None:
    """It is shared with code outside of the application, which goes on."""
    cache = RedisCacheFactory.create_async_cache(MEMORY)
    app = application(cache=cache)
    with TestClient(app) as client:
        client.get("/awaited")
        assert app.state.jmcache is cache
    assert cache.sync.get("count") == 1


def test_settings_and_a_cache_at_once_are_refused() -> None:
    """One of them would be ignored without a word."""
    with pytest.raises(ValueError, match="not both"):
        cache_lifespan(MEMORY, cache=RedisCacheFactory.create_async_cache(MEMORY))


def test_an_override_reaches_both_kinds_of_endpoint_and_the_health_route() -> None:
    """That is how users test their own endpoints, without any lifespan."""
    app = application(settings=REFUSED)
    own = RedisCacheFactory.create_async_cache(MEMORY)
    app.dependency_overrides[get_cache] = lambda: own
    client = TestClient(app)
    assert client.get("/awaited").json() == {"found": None, "kept": True}
    assert client.get("/called").json() == {"found": 1, "kept": True}
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("path", ["/awaited", "/called", "/health"])
def test_without_the_lifespan_an_endpoint_says_what_is_missing(path: str) -> None:
    """Forgetting `with TestClient` is the first thing that happens to everybody."""
    with pytest.raises(RuntimeError, match=r"cache_lifespan\(\.\.\.\).*TestClient"):
        TestClient(application(settings=MEMORY)).get(path)


def test_a_websocket_gets_the_cache_too() -> None:
    """Its connection is no request."""
    app = application(settings=MEMORY)

    @app.websocket("/live")
    async def live(
        socket: WebSocket, cache: Annotated[AsyncRedisCache, Depends(get_cache)]
    ) -> None:
        await socket.accept()
        await cache.set("seen", "by a socket")
        await socket.send_json(await cache.get("seen"))
        await socket.close()

    with TestClient(app) as client, client.websocket_connect("/live") as socket:
        assert socket.receive_json() == "by a socket"


def test_health_is_200_and_degraded_without_redis_and_names_neither_host_nor_secret() -> None:
    """A balancer that took every replica out because of Redis would end the service."""
    with TestClient(application(settings=REFUSED)) as client:
        for _ in range(3):
            client.get("/awaited")
        answer = client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "degraded"
    assert body["ready"] is True
    assert body["breaker"] == "open"
    assert "hunter2" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_health_may_stand_elsewhere() -> None:
    """Some balancers insist on a path."""
    app = FastAPI(lifespan=cache_lifespan(MEMORY))
    app.include_router(health_router("/healthz"))
    with TestClient(app) as client:
        assert client.get("/healthz").json()["status"] == "ok"


def test_the_settings_are_read_when_the_application_starts(monkeypatch: Any) -> None:
    """Importing an application must not need its environment."""
    app = application()
    monkeypatch.setenv("REDIS_URL", "memory://")
    with TestClient(app) as client:
        assert client.get("/awaited").json()["kept"] is True
