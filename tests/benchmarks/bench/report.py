"""The report as text, as JSON, and as the page in docs/ with its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.bench import bars, beside
from benchmarks.bench.beside import Case
from benchmarks.bench.contenders import OURS, REFERENCE, WRITES
from benchmarks.bench.plots import Chart, svg
from benchmarks.bench.replay import LOAD_S
from benchmarks.bench.rounds import Spread, Turns, ratio, spread
from benchmarks.bench.session import Report, turns_of

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_DOCS = Path(__file__).parents[3] / "docs"

_CALLED, _AWAITED = beside.PARTS["called"], beside.PARTS["awaited"]
GROUPS = {
    "get, one thread": [case for case in _CALLED if case.operation == "get"],
    "set, and bundles of 100 keys (a key), one thread": [
        case for case in _CALLED if case.operation != "get"
    ],
    "get of 5 KB, threads at once": [_CALLED[1], *beside.PARTS["threads"]],
    "await get of 5 KB, tasks at once": beside.PARTS["tasks"],
    "await get, 16 tasks at once": [case for case in _AWAITED if case.operation == "get"],
    "await set, and bundles of 100 keys (a key)": [
        case for case in _AWAITED if case.operation != "get"
    ],
}
_HOW_TO_READ = """\
Medians of rounds in turn. The first line is what one operation takes, in microseconds of wall and
CPU time (the whole process, all its threads); below it the ratio to that, taken round by round:
wall time, its middle half, CPU time. Lower is better."""

Rows = list[Sequence[str]]


def as_text(report: Report) -> str:
    """Return everything as tables of Markdown, wide enough to be read as they are."""
    blocks = [_about(report)]
    if any(row["side"] != "inside" for row in report["contests"]):
        blocks += [_HOW_TO_READ, WRITES]
    for title, cases in GROUPS.items():
        if found := _held(report, cases):
            blocks += [f"**{title}**", _table(list(_beside(found)))]
    for title, rows in (
        ("Single calls of 5 KB, microseconds", _latency(report)),
        ("Inside jmcache", _inside(report)),
        (f"Real look-ups, a loader of {LOAD_S:g} s", _replay(report)),
        ("What must hold", _verdicts(report)),
    ):
        if len(rows) > 1:
            blocks += [f"**{title}**", _table(rows)]
    return "\n\n".join(blocks) + "\n"


def as_json(report: Report) -> str:
    """Return it with every round of it, and the verdicts."""
    verdicts = [verdict._asdict() for verdict in bars.judge(report)]
    return json.dumps({**report, "verdicts": verdicts}) + "\n"


def charts(report: Report) -> dict[str, Chart]:
    """Return a picture for each curve that was measured, by the name of its file."""
    found: dict[str, Chart] = {}
    for name, group, title in (
        ("threads", "get of 5 KB, threads at once", "get of 5 KB on threads at once"),
        ("tasks", "await get of 5 KB, tasks at once", "await get of 5 KB in tasks at once"),
    ):
        if held := _held(report, GROUPS[group]):
            places = [_callers(case) for case, _ in held]
            lines = _lines(held, lambda turns, who, _: 1e6 / _wall(turns, who).median)
            found[f"bench-{name}"] = Chart(title, "calls a second, higher is better", places, lines)
    for name, group, title in (
        ("sizes", "get, one thread", "get on one thread, by size"),
        ("sizes-awaited", "await get, 16 tasks at once", "await get in 16 tasks at once, by size"),
    ):
        if held := _held(report, GROUPS[group]):
            places = [f"{case.kb:g} KB" for case, _ in held]
            lines = _lines(held, lambda turns, who, other: ratio(turns, who, other).median)
            side = f"wall time beside {REFERENCE[held[0][0].side]}, lower is better"
            found[f"bench-{name}"] = Chart(title, side, places, lines)
    return found


def write(report: Report, docs: Path = _DOCS) -> None:
    """Put the text and its pictures into docs/performance.md, between the marks."""
    pictures = docs / "images"
    pictures.mkdir(exist_ok=True)
    links = []
    for name, chart in charts(report).items():
        (pictures / f"{name}.svg").write_text(svg(chart), "utf-8")
        links.append(f"![{chart.title}](images/{name}.svg)")
    page = docs / "performance.md"
    text = page.read_text("utf-8")
    page.write_text(replaced(text, "\n\n".join([as_text(report), *links])), "utf-8")


def replaced(page: str, text: str) -> str:
    """Return *page* with *text* between the marks.

    Raises:
        ValueError: It has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def _about(report: Report) -> str:
    about = report["about"]
    packages = ", ".join([f"{name} {version}" for name, version in about["packages"].items()])
    rounds = f"{about['plan']['rounds']} rounds of {1e3 * about['plan']['round_s']:g} ms or more"
    load = f"load average {about['load']:.1f} before it began"
    where = f"{about['machine']}, {load}. Python {about['python']}, {about['server']}"
    return f"{rounds}. {where}. {packages}."


def _held(report: Report, cases: Sequence[Case]) -> list[tuple[Case, Turns]]:
    """Return the turns of *cases* if all of them were measured, else nothing."""
    held = [(case, turns_of(report, **case._asdict())) for case in cases]
    found = [(case, turns) for case, turns in held if turns is not None]
    return found if len(found) == len(cases) else []


def _beside(found: list[tuple[Case, Turns]]) -> Iterator[Sequence[str]]:
    yield ["", *[_label(case, [other for other, _ in found]) for case, _ in found]]
    for name in found[0][1]:
        yield [name, *[_cell(turns, name, REFERENCE[case.side]) for case, turns in found]]


def _label(case: Case, among: Sequence[Case]) -> str:
    """Return what tells *case* from the others of its table."""
    if len({other.operation for other in among}) > 1:
        return case.operation if case.callers == 1 else f"{case.operation}, {_callers(case)}"
    return _callers(case) if len({other.kb for other in among}) == 1 else f"{case.kb:g} KB"


def _callers(case: Case) -> str:
    word = "task" if case.side == "awaited" else "thread"
    return f"{case.callers} {word}{'' if case.callers == 1 else 's'}"


def _cell(turns: Turns, name: str, reference: str) -> str:
    if name == reference:
        cpu = spread([turn.cpu_us for turn in turns[name]])
        return f"{_wall(turns, name).median:,.1f} us, {cpu.median:,.1f}"
    wall, cpu = ratio(turns, name, reference), ratio(turns, name, reference, "cpu_us")
    return f"{wall.median:.2f} ({wall.low:.2f}-{wall.high:.2f}), {cpu.median:.2f}"


def _wall(turns: Turns, name: str) -> Spread:
    return spread([turn.wall_us for turn in turns[name]])


def _latency(report: Report) -> Rows:
    rows: Rows = []
    for row in report["latency"]:
        if not rows:
            rows.append(["", "", "calls", *[f"p{share}" for share in row["us"]]])
        setting = _callers(Case(row["side"], "get", callers=row["callers"]))
        figures = [f"{us:,.0f}" for us in row["us"].values()]
        rows.append([setting, row["contender"], f"{row['calls']:,}", *figures])
    return rows


def _inside(report: Report) -> Rows:
    rows: Rows = [["", "median", "middle half", "beside"]]
    for row in report["contests"]:
        if row["side"] != "inside":
            continue
        turns = turns_of(report, side="inside", operation=row["operation"]) or {}
        name = next(name for name in turns if name != row["reference"] or len(turns) == 1)
        wall, other = _wall(turns, name), row["reference"]
        versus = ""
        if other != name:
            versus = f"{ratio(turns, name, other).median:.2f} x {other}"
        between = f"{wall.low:.2f}-{wall.high:.2f}"
        rows.append([row["operation"], f"{wall.median:.2f} us", between, versus])
    for name, row in report["figures"].items():
        if "spread" not in row:
            rows.append([name, f"{row['all'][0]:,}", "", ""])
            continue
        found = Spread(*row["spread"])
        between = f"{found.low:.2f}-{found.high:.2f}" if len(row["all"]) > 1 else ""
        worst = f"worst {row['worst']:.2f}" if len(row["all"]) > 1 else ""
        rows.append([name, f"{found.median:.2f} {row['unit']}", between, worst])
    return rows


def _replay(report: Report) -> Rows:
    rows: Rows = [["", "hits", "possible", "in the cache", "loader saved", "round trips", "late"]]
    for row in report["replay"]:
        trips = row["round_trips"]
        rows.append(
            [
                row["contender"],
                f"{row['hits'] / row['look_ups']:.1%}",
                f"{row['best_hits'] / row['look_ups']:.1%}",
                f"{row['in_cache_s']:.1f} s",
                f"{row['saved_s']:,.0f} s",
                "" if trips is None else f"{trips:,}",
                f"{row['late']:,}",
            ]
        )
    return rows


def _verdicts(report: Report) -> Rows:
    rows: Rows = [["#", "", "asked", "found (middle half)", ""]]
    for number, text, asked, found, kept in bars.judge(report):
        rows.append([str(number), text, asked, found, "kept" if kept else "MISSED"])
    return rows


def _lines(
    held: list[tuple[Case, Turns]], height: Callable[[Turns, str, str], float]
) -> dict[str, list[float]]:
    """Return a height for each case by contender, jmcache first."""
    names = sorted(held[0][1], key=lambda name: name != OURS)
    return {
        name: [height(turns, name, REFERENCE[case.side]) for case, turns in held] for name in names
    }


def _table(rows: Rows) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join([cell.ljust(w) for cell, w in zip(row, widths, strict=True)]) + " |"
        for row in rows
    ]
    lines.insert(1, "| " + " | ".join(["-" * w for w in widths]) + " |")
    return "\n".join(lines)
