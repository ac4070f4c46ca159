"""Invalidations that did not reach Redis: they count here at once, and there when it is back."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from computing_kit import SOON_S, wait_until

from jmcache import AsyncRedisCache, Cache, CacheSettings, Outcome, RedisCacheFactory, invalidation
from jmcache.cache import _stops
from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError
from jmcache.invalidation import Journal
from jmcache.testing import FaultProxy, PrivateServer

MakeSettings = Callable[..., CacheSettings]

SPACE = b"test:v1:#"


class Told:
    """Redis as a journal sees it: notes what it is told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[bytes, ...]]] = []
        self.fails = False
        self.before: Callable[[], object] = lambda: None

    def delete(self, names: Sequence[bytes], leases: Sequence[bytes]) -> None:
        assert [b"lease " + name for name in names] == list(leases)
        self._tell("delete", names)

    def move(self, counters: Sequence[bytes]) -> None:
        self._tell("move", counters)

    def _tell(self, verb: str, names: Sequence[bytes]) -> None:
        self.before()
        if self.fails:
            raise RedisConnectionError
        self.calls.append((verb, tuple(names)))


def owe_deletes(journal: Journal, *names: bytes, space: bytes = SPACE) -> None:
    journal.owe_deletes((space,), names, [b"lease " + name for name in names])


@pytest.fixture
def told() -> Told:
    return Told()


# The journal by itself --------------------------------------------------------------------------


def test_everything_is_told_in_the_order_it_was_owed(told: Told) -> None:
    """What is told before its time can be undone by what is told after it."""
    journal = Journal()
    owe_deletes(journal, b"a", b"b")
    owe_deletes(journal, b"c")
    journal.owe_moves((SPACE,), [b"tag"])
    owe_deletes(journal, b"d")
    journal.owe_moves((SPACE,), [SPACE])
    journal.settle(told.delete, told.move)
    assert told.calls == [
        ("delete", (b"a", b"b", b"c")),
        ("move", (b"tag",)),
        ("delete", (b"d",)),
        ("move", (SPACE,)),
    ]
    assert len(journal) == 0
    journal.settle(told.delete, told.move)
    assert len(told.calls) == 4


def test_what_could_not_be_told_is_owed_still(told: Told) -> None:
    """Redis comes up and goes again: nothing may get lost on the way."""
    journal = Journal()
    journal.owe_moves((SPACE,), [b"tag"])
    owe_deletes(journal, b"a")
    told.before = lambda: setattr(told, "fails", len(told.calls) == 1)
    with pytest.raises(RedisConnectionError):
        journal.settle(told.delete, told.move)
    assert (b"tag" in journal.debts, b"a" in journal.debts) == (False, True)
    told.before = lambda: None
    told.fails = False
    journal.settle(told.delete, told.move)
    assert told.calls == [("move", (b"tag",)), ("delete", (b"a",))]


def test_what_is_owed_anew_while_it_is_told_is_told_again(told: Told) -> None:
    """The second delete came after the first reached Redis, perhaps after a new value did."""
    journal = Journal()
    owe_deletes(journal, b"a")
    again = iter([lambda: owe_deletes(journal, b"a")])
    told.before = lambda: next(again, lambda: None)()
    journal.settle(told.delete, told.move)
    assert told.calls == [("delete", (b"a",))] * 2


def test_a_long_journal_is_told_in_pieces(told: Told) -> None:
    """Ten thousand names in one command hold up everybody else's, and run into the deadline."""
    journal = Journal()
    names = [b"%d" % number for number in range(1200)]
    owe_deletes(journal, *names)
    journal.settle(told.delete, told.move)
    assert [len(told_names) for _, told_names in told.calls] == [500, 500, 200]
    assert [name for _, told_names in told.calls for name in told_names] == names


def test_more_than_its_limit_becomes_one_move_of_each_namespace(told: Told) -> None:
    """An outage of a day must not take the memory; and nothing that was deleted may come back."""
    journal = Journal(limit=3)
    owe_deletes(journal, b"a", b"b", b"c")
    assert journal.overflows == 0
    owe_deletes(journal, b"d", space=b"other")
    assert (len(journal), journal.overflows) == (2, 1)
    assert SPACE in journal.debts
    assert b"other" in journal.debts
    journal.settle(told.delete, told.move)
    assert told.calls == [("move", (SPACE, b"other"))]


def test_it_never_holds_more_than_its_limit_of_names(told: Told) -> None:
    """Bounded is bounded, however long the outage."""
    journal = Journal(limit=100)
    for number in range(5000):
        owe_deletes(journal, b"%d" % number)
        assert len(journal) <= 100
    assert SPACE in journal.debts


def test_what_was_written_anew_is_not_owed_any_more(told: Told) -> None:
    """The delete of the old value would remove the new one."""
    journal = Journal()
    owe_deletes(journal, b"a", b"b")
    journal.forgive(journal.owed_for([b"a", b"never owed"]))
    journal.settle(told.delete, told.move)
    assert told.calls == [("delete", (b"b",))]


def test_what_is_owed_anew_while_it_is_written_anew_stays_owed(told: Told) -> None:
    """A delete that failed during a set is the younger of the two, and would be lost."""
    journal = Journal()
    owe_deletes(journal, b"a")
    owed = journal.owed_for([b"a", b"b"])
    owe_deletes(journal, b"a", b"b")
    journal.forgive(owed)
    journal.settle(told.delete, told.move)
    assert told.calls == [("delete", (b"a", b"b"))]


def test_what_redis_is_being_told_does_not_come_behind_what_is_written_anew(told: Told) -> None:
    """The set was confirmed, and the delete from before it removed the new value."""
    journal = Journal()
    owe_deletes(journal, b"a")
    telling, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        telling.set()
        assert go_on.wait(SOON_S)

    told.before = hold

    def write() -> None:
        with journal.overtaking([b"a"], Deadline(SOON_S)) as owed:
            told.calls.append(("write", tuple(owed)))

    with ThreadPoolExecutor(2) as threads:
        settling = threads.submit(journal.settle, told.delete, told.move)
        assert telling.wait(SOON_S)
        writing = threads.submit(write)
        with pytest.raises(TimeoutError):
            writing.result(0.05)
        go_on.set()
        writing.result(SOON_S)
        settling.result(SOON_S)
    assert told.calls == [("delete", (b"a",)), ("write", ())]


def test_while_something_owed_is_written_anew_redis_is_told_nothing(told: Told) -> None:
    """What begins to be told in the middle of the write comes behind it just as well."""
    journal = Journal()
    owe_deletes(journal, b"a", b"b")
    with ThreadPoolExecutor(1) as thread:
        with journal.overtaking([b"a"], Deadline(SOON_S)) as owed:
            settling = thread.submit(journal.settle, told.delete, told.move)
            with pytest.raises(TimeoutError):
                settling.result(0.05)
            assert told.calls == []
            journal.forgive(owed)
        settling.result(SOON_S)
    assert told.calls == [("delete", (b"b",))]


def test_what_is_settled_voids_what_was_read_before_that(told: Told) -> None:
    """Who asked before Redis was told may be answered after that, with what was deleted."""
    journal = Journal()
    owe_deletes(journal, b"a")
    before = journal.settled
    assert (journal.voids([b"a"], before), journal.voids([b"b"], before)) == (True, False)
    journal.settle(told.delete, told.move)
    assert (journal.voids([b"b", b"a"], before), journal.voids([b"b"], before)) == (True, False)
    assert not journal.voids([b"a"], journal.settled)
    owe_deletes(journal, b"b")
    before = journal.settled
    journal.forgive(journal.owed_for([b"b"]))
    assert journal.voids([b"b"], before)
    assert not journal.voids([b"a", b"b"], journal.settled)


def test_a_turn_that_was_lost_holds_up_nobody(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler's exception tore its owner away: a lock would be held for good."""
    monkeypatch.setattr(invalidation, "_TELL_WITHIN_S", SOON_S)
    journal = Journal()
    owe_deletes(journal, b"a")
    turn = invalidation._Turn()
    journal._wait_for(turn, SOON_S)
    with ThreadPoolExecutor(1) as thread:
        settling = thread.submit(journal.settle, told.delete, told.move)
        with pytest.raises(TimeoutError):
            settling.result(0.05)
        del turn
        settling.result(SOON_S / 2)
    assert told.calls == [("delete", (b"a",))]


def test_a_write_of_what_is_not_owed_waits_for_nobody(told: Told) -> None:
    """Every write after an outage would stand behind ten thousand deletes."""
    journal = Journal()
    owe_deletes(journal, b"a")
    with (
        journal.overtaking([b"a"], Deadline(SOON_S)),
        journal.overtaking([b"b"], Deadline(SOON_S)) as owed,
    ):
        assert owed == {}


def test_nothing_is_lost_between_threads(told: Told) -> None:
    """Eight requests delete while the health thread settles."""
    journal = Journal()
    start = threading.Barrier(5)

    def owe(thread: int) -> None:
        start.wait(SOON_S)
        for number in range(300):
            owe_deletes(journal, b"%d %d" % (thread, number))

    threads = [threading.Thread(target=owe, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    start.wait(SOON_S)
    while any(thread.is_alive() for thread in threads) or len(journal):
        journal.settle(told.delete, told.move)
    names = {name for _, names in told.calls for name in names}
    assert names == {b"%d %d" % (thread, number) for thread in range(4) for number in range(300)}


def test_a_forked_child_owes_nothing() -> None:
    """Its parent tells Redis; told by every child too, what was written since goes each time."""
    journal = Journal()
    owe_deletes(journal, b"a")
    pid = os.fork()
    if pid == 0:
        os._exit(len(journal))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(journal) == 1


# With a Redis that goes away --------------------------------------------------------------------


@pytest.fixture
def cache(settings: MakeSettings) -> Iterator[Cache]:
    """In a real Redis, connected; it gives up after 0.2 s."""
    RedisCacheFactory.shutdown()
    with RedisCacheFactory.create_cache(settings(operation_timeout=0.2, max_retries=0)) as cache:
        assert cache.set("warm", 1, timeout=SOON_S)
        yield cache


def count(server: PrivateServer, key: bytes) -> int:
    """The counter as Redis has it."""
    return int(server.command("GET", key) or 0)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("invalidate", "nothing"),
    [
        (lambda cache: cache.delete("k"), False),
        (lambda cache: cache.delete_many(["k", "other"]), 0),
        (lambda cache: cache.invalidate_tags("job:42"), False),
        (lambda cache: cache.clear(), False),
    ],
    ids=["delete", "delete_many", "invalidate_tags", "clear"],
)
def test_what_did_not_reach_redis_says_so_counts_here_at_once_and_there_when_it_is_back(
    cache: Cache,
    redis_server: PrivateServer,
    invalidate: Callable[[Cache], object],
    nothing: object,
) -> None:
    """A job withdrawn during an outage is shown again by everybody after it."""
    assert cache.set("k", "withdrawn", tags=("job:42",), timeout=SOON_S)
    assert cache.set("bystander", 1, timeout=SOON_S)
    journal = cache._stops.journal
    redis_server.pause()
    try:
        assert invalidate(cache) == nothing
        assert len(journal) >= 1
        assert "invalidations_owed" in cache.health().reasons
        assert cache.health().status == "degraded"
        held = _hold_settling(cache)
    finally:
        redis_server.resume()
    wait_until(lambda: cache.lookup("bystander", timeout=SOON_S).outcome is not Outcome.UNAVAILABLE)
    found = cache.lookup("k", timeout=SOON_S)
    assert found.value is None, "before Redis knows"
    held.set()
    wait_until(lambda: not len(journal))
    assert cache.get("k", timeout=SOON_S) is None, "and after it"
    wait_until(lambda: cache.health().status == "ok")


def _hold_settling(cache: Cache) -> threading.Event:
    """Let Redis be told only when the event is set."""
    may = threading.Event()
    journal = cache._stops.journal
    settle = journal.settle

    def later(*args: object) -> None:
        if may.is_set():
            settle(*args)  # type: ignore[arg-type]

    journal.settle = later  # type: ignore[method-assign]
    return may


@pytest.fixture
def proxied(redis_server: PrivateServer) -> Iterator[tuple[FaultProxy, Cache]]:
    """The same through a proxy: what is lost there is not carried out late, as after a pause."""
    RedisCacheFactory.shutdown()
    with FaultProxy(redis_server) as proxy:
        settings = proxy.settings(namespace="test", operation_timeout=0.2, max_retries=0)
        with RedisCacheFactory.create_cache(settings) as cache:
            assert cache.set("warm", 1, timeout=SOON_S)
            yield proxy, cache
            proxy.heal()


@pytest.mark.parametrize(
    "invalidate",
    [
        lambda cache: cache.delete("k"),
        lambda cache: cache.delete_many(["k", "other"]),
        lambda cache: cache.invalidate_tags("job:42"),
        lambda cache: cache.clear(),
    ],
    ids=["delete", "delete_many", "invalidate_tags", "clear"],
)
def test_what_is_owed_is_handed_to_nobody_here(
    invalidate: Callable[[Cache], object], proxied: tuple[FaultProxy, Cache]
) -> None:
    """Redis still has the job that was withdrawn, and answers before it has heard of that."""
    proxy, cache = proxied
    assert cache.set("k", "withdrawn", tags=("job:42",), timeout=SOON_S)
    held = _hold_settling(cache)
    with proxy.swallow_request():
        assert not invalidate(cache)
    assert cache.lookup("k", timeout=SOON_S).reason == "invalidated"
    assert cache.get_or_set("k", lambda: "new", timeout=SOON_S) == "new"
    held.set()
    wait_until(lambda: not len(cache._stops.journal))
    assert cache.get("k", timeout=SOON_S) != "withdrawn"


READS: dict[str, Callable[[Cache], object]] = {
    "get": lambda cache: cache.get("k", timeout=SOON_S),
    "get_many": lambda cache: cache.get_many(["k", "l"], timeout=SOON_S).get("k"),
    "get_or_set": lambda cache: cache.get_or_set("k", lambda: "new", timeout=SOON_S),
    "await get": lambda cache: asyncio.run(AsyncRedisCache(cache).get("k", timeout=SOON_S)),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
@pytest.mark.parametrize("owed", ["delete", "tag", "clear", "delete, and written anew"])
def test_what_was_on_its_way_while_redis_was_told_is_handed_to_nobody(
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Cache], object],
    owed: str,
) -> None:
    """Redis answered with the old value, and was told before anybody looked at the answer."""
    assert cache.set_many({"k": "withdrawn", "l": 1}, tags=("job:42",), timeout=SOON_S)
    stops, slot = cache._stops, cache._key("k")
    held = _hold_settling(cache)
    if "delete" in owed:
        stops.journal.owe_deletes(stops.spaces, [slot.name], [slot.lease])
    else:
        counters = {"tag": stops.keys.tag_counter("job:42"), "clear": stops.keys.space_counter}
        stops.journal.owe_moves(stops.spaces, [counters[owed]])
    unseal = stops.unseal

    def tell_meanwhile(*args: object) -> object:
        monkeypatch.setattr(stops, "unseal", unseal)
        if "anew" in owed:
            assert cache.set("k", "new", timeout=SOON_S)
        else:
            held.set()
            cache._health.ring()
            wait_until(lambda: not len(stops.journal))
        return unseal(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(stops, "unseal", tell_meanwhile)
    assert read(cache) in (None, "new")
    assert not len(stops.journal)


def test_a_delete_that_is_owed_since_a_set_began_is_not_forgiven_by_it(
    proxied: tuple[FaultProxy, Cache],
) -> None:
    """The delete is the younger of the two: the value that it was for would stay."""
    proxy, cache = proxied
    _hold_settling(cache)
    with ThreadPoolExecutor(1) as thread:
        with proxy.stall(on=lambda words: words[0] == b"SET", times=1) as held_back:
            setting = thread.submit(cache.set, "k", "old", timeout=SOON_S)
            held_back.wait()
            with proxy.swallow_request():
                assert cache.delete("k") is False
            held_back.remove()
        assert setting.result(SOON_S) is True
    assert cache.get("k", timeout=SOON_S) is None
    assert len(cache._stops.journal) == 1


@pytest.mark.faults
def test_a_delete_with_the_breaker_open_is_told_to_the_server_that_comes_back(
    cache: Cache, redis_server: PrivateServer
) -> None:
    """The ordinary outage: nothing is sent at all, and every delete of it has to be repeated."""
    redis_server.stop()
    for _ in range(6):
        cache.get("k")
    assert cache.lookup("k").reason == "breaker_open"
    assert cache.delete("a") is False
    assert cache.invalidate_tags("t") is False
    assert cache.delete_many(["b", "c"]) == 0
    assert cache.clear() is False
    assert len(cache._stops.journal) == 5
    redis_server.start()
    wait_until(lambda: not len(cache._stops.journal))
    stats = redis_server.command("INFO", "commandstats").decode()
    assert "cmdstat_unlink:calls=6," in stats, "three names and their leases"
    assert count(redis_server, cache._keys.tag_counter("t")) > 0
    assert count(redis_server, SPACE) > 0
    wait_until(lambda: cache.health().status == "ok")
    assert cache.set("k", 1, timeout=SOON_S)
    assert cache.get("k", timeout=SOON_S) == 1


@pytest.mark.faults
def test_a_set_after_an_owed_delete_forgives_it(cache: Cache, redis_server: PrivateServer) -> None:
    """The new value would be removed by the delete of the old one, a second after it came."""
    cache.set("k", "old", timeout=SOON_S)
    held = _hold_settling(cache)
    redis_server.pause()
    try:
        assert cache.delete("k") is False
    finally:
        redis_server.resume()
    wait_until(lambda: cache.set("k", "new", timeout=SOON_S))
    assert cache.get("k", timeout=SOON_S) == "new"
    held.set()
    wait_until(lambda: not len(cache._stops.journal))
    assert cache.get("k", timeout=SOON_S) == "new"


@pytest.mark.faults
def test_more_than_the_journal_holds_becomes_one_move_of_the_namespaces_counter(
    cache: Cache, redis_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Too much is invalidated then, and never too little; and not without a word."""
    cache.set("bystander", 1, timeout=SOON_S)
    before = count(redis_server, SPACE)
    cache._stops.journal._limit = 5
    redis_server.pause()
    try:
        assert cache.delete_many([f"{number}" for number in range(6)]) == 0
        assert len(cache._stops.journal) == 1
    finally:
        redis_server.resume()
    wait_until(lambda: not len(cache._stops.journal))
    assert count(redis_server, SPACE) == before + 1
    assert cache.get("bystander", timeout=SOON_S) is None
    wait_until(lambda: "test: more invalidations are owed" in caplog.text)
    assert "WARNING" in caplog.text


def test_of_many_deletes_only_those_are_owed_that_were_not_confirmed(
    proxied: tuple[FaultProxy, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of twenty thousand, for the last of them, would be the whole namespace."""
    proxy, cache = proxied
    keys = [f"k{number}" for number in range(5)]
    assert cache.set_many(dict.fromkeys(keys, 1), timeout=SOON_S)
    monkeypatch.setattr(_stops, "_PIECE", 2)
    assert cache.delete_many(keys[:4], timeout=SOON_S) == 4
    assert cache.set_many(dict.fromkeys(keys, 1), timeout=SOON_S)
    held = _hold_settling(cache)
    with proxy.swallow_request(on=cache._key("k3").name):
        assert cache.delete_many(keys, timeout=2.0) == 0
    owed = [key for key in keys if cache._key(key).name in cache._stops.journal.debts]
    assert owed == ["k2", "k3", "k4"]
    held.set()
    wait_until(lambda: not len(cache._stops.journal))
    assert cache.get_many(keys, timeout=SOON_S) == {}


def test_what_this_user_may_not_do_is_not_owed(
    settings: MakeSettings, redis_server: PrivateServer
) -> None:
    """Repeated every second for ever, and refused every time."""
    everything = ("on", ">secret", "~*", "+@all", "-unlink", "-incr")
    redis_server.command("ACL", "SETUSER", "reader", *everything)
    try:
        url = redis_server.url_for("reader", "secret")
        with RedisCacheFactory.create_cache(CacheSettings.from_url(url, namespace="test")) as cache:
            assert cache.delete("k", timeout=SOON_S) is False
            assert cache.clear(timeout=SOON_S) is False
            assert len(cache._stops.journal) == 0
    finally:
        redis_server.command("ACL", "DELUSER", "reader")


@pytest.mark.faults
def test_a_cache_that_is_closed_while_it_owes_says_how_much(
    settings: MakeSettings, redis_server: PrivateServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has to know that withdrawn jobs may be seen until their TTL is over."""
    RedisCacheFactory.shutdown()
    cache = RedisCacheFactory.create_cache(settings())
    redis_server.stop()
    cache.delete_many(["secret-a", "secret-b"])
    caplog.clear()
    cache.close()
    redis_server.start()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 invalidations did not reach")
    assert "secret" not in line


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["delete", "invalidate_tags", "clear", "delete_many"])
def test_an_awaited_invalidation_is_never_lost(
    cache: Cache, redis_server: PrivateServer, verb: str
) -> None:
    """The customer closes the page, or all threads are busy: the job is withdrawn all the same."""
    words = {"delete": ("k",), "invalidate_tags": ("t",), "clear": (), "delete_many": (["k"],)}
    journal = cache._stops.journal

    async def use() -> None:
        adapter = AsyncRedisCache(cache, max_threads=1)
        redis_server.pause()
        reads = [asyncio.create_task(adapter.get(f"{number}")) for number in range(199)]
        await asyncio.sleep(0)  # they wait for the one thread
        cancelled = asyncio.create_task(getattr(adapter, verb)(*words[verb]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await asyncio.to_thread(wait_until, lambda: len(journal) == 1)
        journal.debts.clear()
        full = [asyncio.create_task(adapter.get(f"{number}")) for number in range(400)]
        await asyncio.sleep(0)
        assert not await getattr(adapter, verb)(*words[verb])
        assert len(journal) == 1
        redis_server.resume()
        await asyncio.gather(*reads, *full)
        adapter._threads.close()

    try:
        asyncio.run(use())
    finally:
        redis_server.resume()
    wait_until(lambda: not len(journal))


def _kept_busy(adapter: AsyncRedisCache) -> threading.Event:
    """Have the one thread of *adapter* wait until the event that is returned."""
    over = threading.Event()
    adapter._threads.begin(lambda: over.wait(SOON_S), Deadline(SOON_S))
    return over


def test_an_awaited_delete_that_was_cancelled_is_still_carried_out(cache: Cache) -> None:
    """Kept for later instead, it would be owed while Redis is well."""
    assert cache.set("k", 1)

    async def use() -> None:
        adapter = AsyncRedisCache(cache, max_threads=1)
        over = _kept_busy(adapter)
        cancelled = asyncio.create_task(adapter.delete("k"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert len(cache._stops.journal) == 0
        over.set()
        await asyncio.to_thread(wait_until, lambda: cache.get("k") is None)
        adapter._threads.close()

    asyncio.run(use())


def test_an_awaited_delete_whose_loop_ends_is_kept(cache: Cache) -> None:
    """The worker shuts down with the delete in its queue: nobody else would know of it."""

    async def use() -> tuple[AsyncRedisCache, threading.Event, asyncio.Task[bool]]:
        adapter = AsyncRedisCache(cache, max_threads=1)
        over = _kept_busy(adapter)
        left = asyncio.create_task(adapter.delete("k"))
        await asyncio.sleep(0)
        return adapter, over, left

    _hold_settling(cache)
    adapter, over, left = asyncio.run(use())
    over.set()
    assert left.cancelled()
    assert len(cache._stops.journal) == 1
    adapter._threads.close()
