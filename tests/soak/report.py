"""What a run came to: the promises, each held or broken, and the same as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from soak.judge import add
from soak.load import CHECKS

GROWTH_BYTES = 10 * 1024 * 1024  # resident memory of a process, from the first tenth on
LINES_A_MINUTE = 10  # of log, in a process
CONNECTIONS = 10  # of a process: jmcache's default

Run = Mapping[str, Any]


class Promise(NamedTuple):
    """One line of the verdict."""

    text: str
    figure: str
    held: bool


def summed(run: Run) -> dict[str, Any]:
    """Return the totals of all replicas as one."""
    totals: dict[str, Any] = {}
    for replica in run["replicas"]:
        totals = add(totals, replica["total"])
    return totals


def promises(run: Run) -> list[Promise]:
    """Hold *run* against everything that is promised."""
    replicas = run["replicas"]
    total = summed(run)
    late = total["late"] + total["in_call"]
    exceptions = sum(total["exceptions"].values())
    right = [replica["right"] for replica in replicas]
    fds = [_more(replica, "fds") for replica in replicas]
    threads = [_more(replica, "threads") for replica in replicas]
    in_use = sum(replica.get("connections_in_use", 0) for replica in replicas)
    growth = max(replica["growth_bytes"] for replica in replicas)
    growth_room = GROWTH_BYTES + max(replica.get("near_bytes", 0) for replica in replicas)
    lines = max(replica["log"]["most_in_a_minute"] for replica in replicas)
    leaks = sum(replica["log"]["leaks"] for replica in replicas)
    breakers = [replica["breaker"] for replica in replicas if "breaker" in replica]
    opened, closed = (sum(b[what] for b in breakers) for what in ("opened", "closed"))
    shut = all(b["opened"] == b["closed"] and b["state"] == "closed" for b in breakers)
    died = sum(replica["died"] for replica in replicas)
    at_rest, at_end = run["clients_at_rest"], run["clients_at_end"]
    most = sum(CONNECTIONS + replica.get("listeners", 0) for replica in replicas)
    return [
        Promise("verified hits, above 0", f"{total['hits']:,}", total["hits"] > 0),
        Promise("wrong values", f"{total['wrong']:,}", not total["wrong"]),
        Promise("own writes not read back", f"{total['broken']:,}", not total["broken"]),
        Promise("exceptions that reached a caller", f"{exceptions:,}", not exceptions),
        Promise("calls over their deadline", f"{late:,}", not late),
        Promise("processes that died", f"{died}", not died),
        Promise(
            f"round trips right 2 s after the last fault, {CHECKS} of {CHECKS} a process",
            " ".join(map(str, right)),
            all(count == CHECKS for count in right),
        ),
        Promise("connections in use at rest", f"{in_use}", not in_use),
        Promise(
            f"clients of the server at rest, at most {most}", f"{at_rest}", 0 <= at_rest <= most
        ),
        Promise("clients of the server after closing", f"{at_end}", at_end == 0),
        Promise("file descriptors leaked", f"{sum(fds)}", not any(fds)),
        Promise("threads leaked", f"{sum(threads)}", not any(threads)),
        Promise(
            f"resident memory grown since the first tenth, below {growth_room >> 20} MB a process",
            f"{growth / (1 << 20):.1f} MB",
            growth < growth_room,
        ),
        Promise("breakers closed as often as opened", f"{opened} = {closed}", shut),
        Promise(
            f"lines logged a minute, at most {LINES_A_MINUTE} a process",
            f"{lines}",
            lines <= LINES_A_MINUTE,
        ),
        Promise("lines that show a password, key or value", f"{leaks}", not leaks),
    ]


def _more(replica: Run, what: str) -> int:
    before, after = replica["before"].get(what), replica["after"].get(what)
    if before is None or after is None:
        return 0  # it died, which is counted by itself
    if isinstance(before, list):
        return sum((Counter(after) - Counter(before)).values())  # by name: others may have ended
    return max(0, int(after) - int(before))


def text(run: Run, verdict: Iterable[Promise]) -> str:
    """Return the report for people."""
    total = summed(run)
    about = run["about"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(run["faults"].items()) if count)
    never = ", ".join(kind for kind, count in sorted(run["faults"].items()) if not count)
    figures = (
        f"{total['calls']:,} calls, {total['hits']:,} verified hits, {total['misses']:,} misses,"
        f" {total['confirmed']:,} writes confirmed, {total['unconfirmed']:,} not"
    )
    broken_off = f"{total['broken_off']:,} calls broken off, {total.get('forks', 0)} forks"
    times = (
        f"slowest call {total['slowest_s']:.3f} s, without the machine's lag {_own(total)};"
        f" longest lag {total['machine_lag_s']:.3f} s"
    )
    lines = [
        f"{about['contender']}, seed {about['seed']}: {run['seconds']:.0f} s, {about['load']}",
        f"python {about['python']}, redis-py {about['redis-py']}, {about['server']}",
        "",
        figures,
        f"{sum(run['faults'].values())} faults in {run['episodes']} episodes: {kinds}",
        *([f"no time was left for: {never}"] if never else []),
        broken_off,
        times,
        "",
    ]
    if run["troubles"]:
        lines[-1:] = [f"{len(run['troubles'])} episodes did not go as planned", ""]
    if run["checked"] > 1:
        lines[-1:] = [f"checked {run['checked']} times, until the machine was less busy", ""]
    lines += [
        f"{'held  ' if promise.held else 'BROKEN'}  {promise.text}: {promise.figure}"
        for promise in verdict
    ]
    for kind, count in total["exceptions"].items():
        lines.append(f"        {kind} {count:,} times")
    for example in [*total["examples"], *run["late"]]:
        lines.append(f"        {example}")
    return "\n".join(lines)


def _own(total: Mapping[str, Any]) -> str:
    return f"{total['latest_s']:.3f} s" if total["latest_s"] else "the same"


def table(runs: Iterable[Run]) -> str:
    """Return several contenders side by side, as Markdown."""
    head = (
        "| | calls | verified hits | wrong values | own writes not read back | exceptions"
        " | over 0.25 s | slowest | died | right after |"
    )
    rows = [head, "| --- |" + " ---: |" * 9]
    for run in runs:
        total = summed(run)
        replicas = run["replicas"]
        hung = f", {total['in_call']} not back" if total["in_call"] else ""
        rows.append(
            f"| {run['about']['contender']} | {total['calls']:,} | {total['hits']:,}"
            f" | {total['wrong']:,} | {total['broken']:,}"
            f" | {sum(total['exceptions'].values()):,} | {total['late']:,}{hung}"
            f" | {total['slowest_s']:.2f} s | {sum(r['died'] for r in replicas)}"
            f" | {sum(r['right'] for r in replicas)} of {CHECKS * len(replicas)} |"
        )
    return "\n".join(rows)
