"""What tests of awaited reads and writes share: a scripted server with real entries, and a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

from scripted_server import GREETINGS, Client

from jmcache import AsyncRedisCache, RedisCacheFactory
from jmcache.deadline import Deadline
from jmcache.errors import RedisPoolExhaustedError
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer

MakeSettings = Callable[..., CacheSettings]


def bulk(blob: bytes | None) -> bytes:
    return b"$-1\r\n" if blob is None else b"$%d\r\n%b\r\n" % (len(blob), blob)


class Shelf:
    """A script for a ScriptedServer: answers GET from what a real Redis has, as a test likes it.

    Attributes:
        stored: What is there, by name.
        opened: Clear it, and answers wait until it is set.
        waits: Released for each reply that waits.
        answer: Given the client and the answers to a flight, in place of sending them.
    """

    def __init__(self, stored: dict[bytes, bytes]) -> None:
        self.stored = stored
        self.opened = threading.Event()
        self.opened.set()
        self.asked = threading.Semaphore(0)
        self.answer: Callable[[Client, bytes], object] = Client.send
        self.flights: list[int] = []  # how many GETs came together

    def __call__(self, client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] in GREETINGS:
                client.send(b"+OK\r\n")
            elif words[0] == b"PING":
                client.send(b"+PONG\r\n")
            elif words[0] == b"GET":
                replies = [bulk(self.stored.get(words[1]))]
                while client._data and (words := client.command()) is not None:
                    replies.append(bulk(self.stored.get(words[1])))
                self.flights.append(len(replies) - 1)  # one is the namespace's counter
                self.asked.release()
                assert self.opened.wait(timeout=20)
                self.answer(client, b"".join(replies))
            else:
                client.send(b":0\r\n")


def stored_in(server: PrivateServer) -> dict[bytes, bytes]:
    """Everything that *server* has."""
    names: Any = server.command("KEYS", "*")
    return {name: server.command("GET", name) for name in names}  # type: ignore[misc]


def shelf_of(
    server: PrivateServer, values: dict[str, Any], tags: Iterable[str] = (), **settings: Any
) -> Shelf:
    """A shelf with *values*, of the namespace "test"."""
    given = CacheSettings.from_url(server.url, namespace="test", operation_timeout=5.0, **settings)
    with RedisCacheFactory.create_cache(given) as cache:
        assert cache.set_many(values, ttl=600.0, tags=tags)
    return Shelf(stored_in(server))


def made(settings: CacheSettings, connections: int = 1) -> AsyncRedisCache:
    """An adapter with so many connections that are open."""
    cache = RedisCacheFactory.create_async_cache(settings)
    connect(cache, connections)
    return cache


def connect(cache: AsyncRedisCache, connections: int) -> None:
    pool = pool_of(cache)
    loans: list[list[Any]] = [[] for _ in range(connections)]
    deadline = Deadline(5.0)
    for loan in loans:
        pool.borrow(loan, deadline)
        if not loan[0].ready:
            loan[0]._open_anew(deadline)
    for loan in loans:
        pool.give_back(loan)


def pool_of(cache: AsyncRedisCache) -> Any:
    store: Any = cache.sync._stops.store
    return store._present.server.pool


def usable(cache: AsyncRedisCache) -> int:
    """How many connections can be borrowed at the same time, right now."""
    pool = pool_of(cache)
    loans: list[list[Any]] = []
    try:
        while True:
            loan: list[Any] = []
            pool.borrow(loan, Deadline(1.0), wait_share=0.0)
            loans.append(loan)
    except RedisPoolExhaustedError:
        return len(loans)
    finally:
        for loan in loans:
            pool.give_back(loan)


def own_threads() -> set[str]:
    """The threads of adapters."""
    return {one.name for one in threading.enumerate() if one.name.startswith("jmcache-aio")}


def ended(cache: AsyncRedisCache, operation: str) -> dict[tuple[str, str], int]:
    """How the operations of that name ended, by outcome and reason."""
    return {
        (str(outcome), reason): count
        for (name, outcome, reason), count in cache.sync.stats().operations.items()
        if name == operation
    }


async def turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def asked(shelf: Shelf) -> None:
    """Return when a flight more has come to *shelf*; the loop turns meanwhile."""
    assert await asyncio.to_thread(shelf.asked.acquire, timeout=20)
