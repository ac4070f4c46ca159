"""One run: a server to break, replicas that use it, a plan of faults, a report."""

from __future__ import annotations

import contextlib
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from soak.crew import Crew, Replica
from soak.faults import Lab
from soak.judge import add
from soak.load import CHECKS
from soak.pulse import Pulse
from soak.report import CONNECTIONS, Run
from soak.saboteur import Saboteur

_LOOK_EVERY_S = 0.5
_BACK_WITHIN_S = 2.0  # after the last fault everything works again
_ANSWER_WITHIN_S = 10.0
_CARRIED_OUT_WITHIN_S = 3.0
_CHECKED_WITHIN_S = 30.0
_ATTEMPTS = 5  # at most, on a machine that is too busy
_GONE_WITHIN_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of a run.

    Attributes:
        seconds: How long there are faults.
        calls: Until so many calls were made, instead; 0: for *seconds*.
        seed: Decides the faults, and what callers do.
        processes: Replicas with threads; one more has an event loop.
        threads: Callers in each.
        contenders: One for the replicas with threads, one for that with the loop.
        python: The interpreter of the replicas.
    """

    seconds: float
    calls: int
    seed: int
    processes: int
    threads: int
    contenders: tuple[str, str] = ("jmcache", "jmcache-awaited")
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    share: float  # of it that is done, 0 to 1
    left_s: float
    totals: dict[str, Any]
    episodes: int
    fault: str  # the one at this moment; "" for none


def run(plan: Plan, show: Callable[[Progress], None], every_s: float) -> Run:
    """Carry it out; *show* is told how far it is, every so many seconds."""
    password = f"Pw-{secrets.token_hex(8)}"
    with Lab(password) as lab, Crew() as crew:
        crew.hire(plan.python, _options(plan, lab, password))
        clients = crew.replicas
        lab.tell = lambda order: crew.order(order, _CARRIED_OUT_WITHIN_S)
        crew.all("go", _ANSWER_WITHIN_S)
        began = time.monotonic()
        tenth: dict[str, int] = {}
        with Saboteur(lab, plan.seed) as saboteur:
            share, shown = 0.0, -every_s
            while share < 1.0:
                time.sleep(_LOOK_EVERY_S)
                saboteur.check()
                passed = time.monotonic() - began
                totals = _totals(clients)
                share = totals["calls"] / plan.calls if plan.calls else passed / plan.seconds
                left = passed / share - passed if share else plan.seconds
                if passed >= shown + every_s:
                    shown = passed
                    show(Progress(share, left, totals, len(saboteur.done), saboteur.current))
                if share >= 0.1 and not tenth:
                    tenth = {r.options["name"]: r.latest.get("rss_bytes", 0) for r in clients}
        seconds = time.monotonic() - began
        checks, attempts = _checked(lab, crew)
        at_rest = _clients(lab, CONNECTIONS * len(clients))
        ends = crew.all("close", _ANSWER_WITHIN_S)
        at_end = _clients(lab, 0)
        died = [replica.died for replica in clients]
        ready = crew.all("ready", 0.0, told=False)
    found = [
        _replica(*each, tenth) for each in zip(clients, died, ready, checks, ends, strict=True)
    ]
    return {
        "about": _about(plan, lab),
        "seconds": seconds,
        "episodes": len(saboteur.done),
        "faults": saboteur.count(),
        "replicas": found,
        "clients_at_rest": at_rest,
        "clients_at_end": at_end,
        "checked": attempts,
        "troubles": saboteur.troubles,
        "late": [
            f"{replica['name']}: {late['verb']} took {late['took_s']:.3f} s, of which the machine"
            f" {late['lag_s']:.3f} s, during or after: {saboteur.explain(late['ended'])}"
            for replica in found
            for late in replica["late"]
        ],
    }


def _checked(lab: Lab, crew: Crew) -> tuple[list[dict[str, Any] | None], int]:
    """Return what the check that follows the last fault says, and which one counted.

    One that fails while even a bare PING takes long says nothing about a cache. It is made again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        with Pulse(lab.proxy.port, lab.password) as pulse:
            time.sleep(_BACK_WITHIN_S)
            if attempt == 1:
                crew.all("rest", _ANSWER_WITHIN_S)
            checks = crew.all("check", _CHECKED_WITHIN_S)
        right = [check and check["right"] for check in checks]
        # One that does not answer hangs, and will not at the next attempt either.
        if pulse.calm or None in right or min(right) == CHECKS:
            break
    return checks, attempt


def _options(plan: Plan, lab: Lab, password: str) -> Iterable[dict[str, Any]]:
    for number in range(plan.processes + 1):
        awaited = number == plan.processes
        yield {
            "name": f"r{number}",
            "contender": plan.contenders[awaited],
            "host": "127.0.0.1",
            "port": lab.proxy.port,
            "password": password,
            "seed": plan.seed,
            "callers": plan.threads,
        }


def _totals(replicas: Iterable[Replica]) -> dict[str, Any]:
    totals: dict[str, Any] = {"calls": 0, "hits": 0, "wrong": 0, "broken": 0, "late": 0}
    for replica in replicas:
        totals = add(totals, replica.latest.get("total", {}))
    return totals


def _clients(lab: Lab, most: int) -> int:
    """Return how many clients the server has when they are no more than *most*, or stay more."""
    over = time.monotonic() + _GONE_WITHIN_S
    while (clients := lab.clients()) > most and time.monotonic() < over:
        time.sleep(0.05)
    return clients


def _replica(
    replica: Replica,
    died: bool,
    ready: dict[str, Any] | None,
    check: dict[str, Any] | None,
    end: dict[str, Any] | None,
    tenth: dict[str, int],
) -> dict[str, Any]:
    latest = replica.latest
    rss = latest.get("rss_bytes", 0)
    return {
        **latest,
        "name": replica.options["name"],
        "contender": replica.options["contender"],
        "late": latest["total"]["late_examples"],
        "growth_bytes": rss - tenth.get(replica.options["name"], rss),
        "right": check["right"] if check else 0,
        "died": died,
        "before": ready["resources"] if ready else {},
        "after": end["resources"] if end else {},
    }


def _about(plan: Plan, lab: Lab) -> dict[str, Any]:
    first, last = plan.contenders
    redis_py = ""
    with contextlib.suppress(ImportError):
        import redis

        redis_py = redis.__version__
    return {
        "contender": first,
        "seed": plan.seed,
        "load": f"{plan.processes} processes of {plan.threads} threads, one of {plan.threads} tasks"
        if first != last
        else f"{plan.processes + 1} processes of {plan.threads} callers",
        "python": platform.python_version(),
        "redis-py": redis_py,
        "server": f"{lab.server.binary.kind} {lab.server.binary.version}",
    }
