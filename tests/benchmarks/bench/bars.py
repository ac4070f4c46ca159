"""What has to hold, and whether it does. By medians; a part that was not run says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.bench.contenders import CALLED, OURS, PLAIN, PLAIN_AWAITED
from benchmarks.bench.rounds import Spread, ratio, spread
from benchmarks.bench.session import Report, turns_of

Find = Callable[[Report], Spread | None]


@dataclass(frozen=True)
class Bar:
    """One figure that is asked for.

    Attributes:
        number: The point of the list in the issue.
        find: Returns what was measured; None: it was not.
        bound: In *unit*; the median must not be above it, or below it if *at_least*.
    """

    number: int
    text: str
    find: Find
    bound: float
    unit: str = "x"
    at_least: bool = False


class Verdict(NamedTuple):
    """What became of a bar."""

    number: int
    text: str
    asked: str
    found: str
    kept: bool


def judge(report: Report) -> list[Verdict]:
    """Hold *report* against every bar whose figure it has."""
    found = [(bar, bar.find(report)) for bar in BARS]
    return [_verdict(bar, figure) for bar, figure in found if figure is not None]


def _verdict(bar: Bar, figure: Spread) -> Verdict:
    kept = figure.median >= bar.bound if bar.at_least else figure.median <= bar.bound
    asked = f"{'at least' if bar.at_least else 'at most'} {bar.bound:.2f} {bar.unit}"
    low, high = (f"{value:.2f}" for value in figure[1:])
    between = f" ({low}-{high})" if low != high else ""
    return Verdict(bar.number, bar.text, asked, f"{figure.median:.2f} {bar.unit}{between}", kept)


def _beside(other: str, what: str = "wall_us", ours: str = OURS, **case: Any) -> Find:
    def find(report: Report) -> Spread | None:
        turns = turns_of(report, **case)
        there = turns is not None and ours in turns and other in turns
        return ratio(turns, ours, other, what) if turns is not None and there else None

    return find


def _microseconds(operation: str) -> Find:
    def find(report: Report) -> Spread | None:
        turns = turns_of(report, side="inside", operation=operation)
        return None if turns is None else spread([turn.wall_us for turn in turns[OURS]])

    return find


def _figure(name: str, *, worst: bool = False) -> Find:
    def find(report: Report) -> Spread | None:
        row = report["figures"].get(name)
        if row is None:
            return None
        return spread([row["worst"]]) if worst else Spread(*row["spread"])

    return find


def _bars() -> Iterator[Bar]:
    one = {"side": "called", "operation": "get", "kb": 5, "callers": 1}
    yield Bar(1, "get 5 KB, one thread, wall, beside redis-py", _beside(PLAIN, **one), 1.00)
    yield Bar(1, "the same, CPU", _beside(PLAIN, "cpu_us", **one), 1.10)
    for peer in CALLED:
        if peer not in (OURS, PLAIN):
            yield Bar(1, f"the same, wall, beside {peer}", _beside(peer, **one), 1.00)
    for callers in (16, 64):
        find = _beside(PLAIN, **one | {"callers": callers})
        yield Bar(2, f"get 5 KB, {callers} threads, beside redis-py", find, 0.50)
    one |= {"side": "awaited"}
    for callers in (16, 64, 256):
        for peer, bound in ((PLAIN_AWAITED, 0.55), ("aiocache", 0.5), ("cashews", 0.4)):
            text = f"await get 5 KB, {callers} tasks, beside {peer}"
            yield Bar(3, text, _beside(peer, **one | {"callers": callers}), bound)
    yield Bar(
        3, "await get 5 KB, one task, beside redis.asyncio", _beside(PLAIN_AWAITED, **one), 1.2
    )
    find = _beside(PLAIN_AWAITED, **one | {"operation": "set", "callers": 64})
    yield Bar(3, "await set 5 KB, 64 tasks, beside redis.asyncio", find, 0.7)
    find = _figure(f"loop blocked, {OURS}", worst=True)
    yield Bar(3, "loop blocked, 256 tasks, 50 KB, longest of all", find, 5.0, "ms")
    for operation in ("get_many", "set_many"):
        many = {"side": "called", "operation": operation}
        yield Bar(4, f"{operation}, 100 keys, beside redis-py", _beside(PLAIN, **many), 1.15)
    yield Bar(5, "get, breaker open", _microseconds("get, breaker open"), 3.0, "us")
    yield Bar(5, "await get, breaker open", _microseconds("await get, breaker open"), 10.0, "us")
    yield Bar(6, "get, a near hit of 5 KB", _microseconds("get, a near hit of 5 KB"), 5.0, "us")
    key = _microseconds("generate_key, 5 arguments")
    yield Bar(7, "generate_key, 5 arguments", key, 6.0, "us")
    inside = {"side": "inside", "operation": "serialize datetimes and UUIDs"}
    text = "serialize 5 KB with datetimes and UUIDs, beside ujson on text"
    yield Bar(7, text, _beside("ujson", **inside), 1.6)
    yield Bar(8, "import jmcache", _figure("import jmcache"), 0.25, "s")
    for threads in (1, 16):
        text = f"two processes of {threads} {'thread' if threads == 1 else 'threads'}, beside one"
        find = _figure(f"two processes, {OURS} x {threads}")
        yield Bar(9, text, find, 1.8, at_least=True)
    inside = {"side": "inside", "operation": "get, 64 threads beside 4"}
    find = _beside("4 threads", ours="64 threads", **inside)
    yield Bar(9, "get 5 KB, a call on 64 threads beside one on 4", find, 1.00)
    memory = _figure("near cache bytes a byte stored")
    yield Bar(10, "near cache, 10,000 entries of 5 KB, bytes a byte stored", memory, 1.3)


BARS = list(_bars())
