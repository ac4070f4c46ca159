"""What the demo shows: progress while it runs, one screen of figures at the end. Text only."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TextIO

BAR = 30  # characters
WIDTH = 100
BLOCKS = " ▁▂▃▄▅▆▇█"
BLOCKS_ASCII = " .:-=+*#@"


class Progress:
    """A bar that is drawn over itself in a terminal, and a plain line a phase when piped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._title = ""
        self._total = 1.0
        self._unit = ""

    def begin(self, title: str, total: float, unit: str) -> None:
        """Start a phase of *total* units."""
        self._title, self._total, self._unit = title, total, unit
        self.at(0)

    def at(self, done: float) -> None:
        """Show how far the phase is."""
        if self._live:
            self._draw(done)

    def end(self, done: float) -> None:
        """Finish the phase with *done* units."""
        if self._live:
            self._draw(done)
            self._write("\n")
        else:
            self._write(f"{self._title:<12} {done:.0f} {self._unit}\n")

    def clear(self) -> None:
        """Leave the terminal at the beginning of a line."""
        if self._live:
            self._write("\r\x1b[K")

    def _draw(self, done: float) -> None:
        full = int(BAR * min(1.0, done / self._total))
        bar = "#" * full + "." * (BAR - full)
        self._write(
            f"\r\x1b[K  {self._title:<12} [{bar}] {done:.0f}/{self._total:.0f} {self._unit}"
        )

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def screen(report: dict[str, Any], stream: TextIO = sys.stdout) -> str:
    """Return the report as text, drawn with what *stream* can show."""
    blocks = BLOCKS if "utf" in (stream.encoding or "").lower() else BLOCKS_ASCII
    parts = (_head(report), _table(report), _outage(report, blocks), _promises(report))
    return "\n\n".join("\n".join(part) for part in parts)


def _head(report: dict[str, Any]) -> list[str]:
    server, data = report["server"], report["data"]
    ranking = (
        f"one ranking over {data['postings']:,} postings takes {ms(data['ranking_ms'])} at rest"
    )
    return [
        f"server    {server['kind']} {server['version']} at {server['address']}, private",
        *(f"          {limit}" for limit in server["limits"]),
        "service   2 uvicorn replicas, 1 synchronous worker, 1 Celery worker with 2 children",
        f"work      {ranking}",
    ]


def _table(report: dict[str, Any]) -> list[str]:
    cold, warm, work = report["cold"], report["warm"], report["matches"]
    lines = [
        f"{'':18}{'---------- cold ----------':>28}{'---------- warm ----------':>30}",
        f"{'asked through':18}{'p50':>9}{'p99':>10}{'hits':>9}{'p50':>11}{'p99':>10}{'hits':>9}",
    ]
    for user in cold["by_user"]:
        row = f"{user:18}"
        for phase, first in ((cold, 9), (warm, 11)):
            figures = phase["by_user"][user]
            hits = f"{figures['hit_ratio']:.1%}"
            row += f"{ms(figures['p50_ms']):>{first}}{ms(figures['p99_ms']):>10}{hits:>9}"
        lines.append(row)
    everyone = "by all processes together: what one computes, all find"
    lines += [
        "",
        f"rankings  {work['asked']:,} asked for, {work['computed']:,} computed, {everyone}",
    ]
    return lines


def _outage(report: dict[str, Any], blocks: str) -> list[str]:
    outage, slots = report["outage"], report["timeline"]["slots"]
    all_users, seconds_to_hits = outage["all"], report["recovery"]["seconds_to_hits"]
    worst = max(slot["worst_ms"] for slot in slots)
    # Logarithms: beside a request that waited for a deadline all others would look alike.
    latencies = _bars([math.log1p(slot["worst_ms"]) / math.log1p(worst) for slot in slots], blocks)
    hits = _bars([slot["hit_ratio"] for slot in slots], blocks)
    asked = f"{all_users['asked']} asked, {all_users['failed']} failed in {outage['seconds']:.1f} s"
    share = f"p50 {ms(outage['cache_p50_ms'])}, worst {ms(outage['cache_worst_ms'])}"
    breakers = f"open in {len(outage['breakers_opened'])} of {len(outage['processes'])} processes"
    return [
        f"latency   {latencies}  worst of each 1/4 s, up to {ms(worst)}, log scale",
        f"hits      {hits}  0 to 100 %",
        f"          {_marks(report['timeline'])}",
        "",
        f"outage    {asked}; p50 {ms(all_users['p50_ms'])}, worst {ms(all_users['worst_ms'])}",
        f"          of which the cache: {share}",
        f"          breaker {breakers}",
        *_wrapped("", f"log lines: {_list(outage['log_lines'], str)}"),
        *_wrapped("recovery", f"s to hits: {_list(seconds_to_hits, _seconds)}"),
    ]


def _promises(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for promise in report["promises"]:
        verdict = "kept" if promise["held"] else "BROKEN"
        lines += _wrapped(verdict, f"{promise['promise']}: {promise['measured']}")
    return lines


def _marks(timeline: dict[str, Any]) -> str:
    killed, back = (int(timeline[name] / timeline["step_s"]) for name in ("killed_s", "back_s"))
    return f"{'':{killed}}{'^ kill -9':{back - killed}}^ started again"


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(f"{head:10}{text}", WIDTH, subsequent_indent=" " * 10)


def _list(figures: dict[str, Any], show: Callable[[Any], str]) -> str:
    return ", ".join(f"{name} {show(figure)}" for name, figure in figures.items())


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _bars(shares: Sequence[float], blocks: str) -> str:
    # Something above nothing always shows, however small.
    top = len(blocks) - 1
    return "".join(blocks[max(share > 0, round(share * top))] for share in shares)


def ms(value: float) -> str:
    """Return milliseconds as a person reads them."""
    digits = 0 if value >= 100 else 1 if value >= 1 else 2
    return f"{value:.{digits}f} ms"
