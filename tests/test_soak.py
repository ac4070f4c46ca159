"""The soak's own judge: a cache that does wrong must not get past it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from soak import faults, judge, report, saboteur
from soak import run as soak_run
from soak.judge import OwnKey, Tally, compose, is_of, total
from soak.load import Script, callers_script, drive
from soak.punctuality import Lag, Punctuality
from soak.run import Plan, run
from soak.trace import MARKER, Request, requests
from soak.worker import LogBook

TESTS = Path(__file__).parent


class RightCache:
    """A cache that does what it says, in a dict."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return copy.deepcopy(self.entries.get(key))

    def get_many(self, keys: list[str]) -> dict[str, Any]:
        return {key: self.get(key) for key in keys if key in self.entries}

    def set(self, key: str, value: Any, ttl: float) -> bool:
        self.entries[key] = copy.deepcopy(value)
        return True

    def delete(self, key: str) -> bool:
        self.entries.pop(key, None)
        return True


class SwapsAnswers(RightCache):
    """Answers with another key's value now and then, as a connection out of step does."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count(1)
        self._last: Any = None

    def get(self, key: str) -> Any:
        found = super().get(key)
        if next(self._count) % 50 == 0 and self._last is not None:
            return self._last
        self._last = found or self._last
        return found


class CutsValues(RightCache):
    """Loses the end of a value."""

    def get(self, key: str) -> Any:
        found = super().get(key)
        if found and found["version"] % 10 == 0:
            found["text"] = found["text"][:-1] + "?"
        return found


class LosesWrites(RightCache):
    """Says a write is stored, and keeps the old value."""

    def set(self, key: str, value: Any, ttl: float) -> bool:
        if key in self.entries and value["version"] % 5 == 0:
            return True
        return super().set(key, value, ttl)


class LosesDeletes(RightCache):
    """Says a value is gone, and keeps it."""

    def delete(self, key: str) -> bool:
        return True


class Raises(RightCache):
    """Lets an error through."""

    def set(self, key: str, value: Any, ttl: float) -> bool:
        if value["version"] % 5 == 0:
            raise ConnectionResetError
        return super().set(key, value, ttl)


class ComesLate(RightCache):
    """Takes its time once."""

    late = True

    def get(self, key: str) -> Any:
        if self.late:
            self.late = False
            time.sleep(0.2)
        return super().get(key)


def used(cache: RightCache, steps: int = 3_000, deadline_s: float = 0.1) -> dict[str, Any]:
    """What a caller of *cache* saw, all judged."""
    punctuality = Punctuality(deadline_s, Lag())
    tally = Tally(punctuality, own_thread=True)
    few = [Request(f"k{number}-{MARKER}", 300, 60.0) for number in range(40)]
    script = callers_script("caller", itertools.cycle(few), tally, random.Random(7))
    left = iter(range(steps))
    drive(hastily(script), cache, tally, lambda: next(left, None) is not None)
    punctuality.settle(float("inf"))
    return {**total([tally], time.monotonic()), "late": punctuality.late}


def hastily(script: Script) -> Script:
    answer = None
    while True:
        answer = yield script.send(answer)._replace(think_s=0.0)


def test_a_cache_that_does_what_it_says_has_nothing_held_against_it() -> None:
    """A judge who cries wolf is switched off."""
    found = used(RightCache(), deadline_s=60.0)
    assert found["hits"] > 1_000
    assert found["calls"] == 3_000
    faults_found = ("wrong", "broken", "late", "in_call", "exceptions", "examples")
    assert not any(found[name] for name in faults_found), found


@pytest.mark.parametrize(
    ("cache", "what"),
    [
        (SwapsAnswers, "wrong"),
        (CutsValues, "wrong"),
        (LosesWrites, "broken"),
        (LosesDeletes, "broken"),
        (ComesLate, "late"),
    ],
)
def test_what_a_broken_cache_does_is_counted(cache: type[RightCache], what: str) -> None:
    """A soak that cannot fail proves nothing, however long it runs."""
    found = used(cache())
    assert found[what] > 0, found
    if what != "late":
        assert found["examples"]


def test_an_exception_that_reaches_a_caller_is_counted_by_its_name() -> None:
    """The promise is that there is none, and a caller that died of it would see no second one."""
    found = used(Raises())
    assert found["exceptions"]["ConnectionResetError"] > 1
    assert found["calls"] == 3_000


@pytest.mark.parametrize(
    "value",
    [
        compose("other", 3, 100),
        {**compose("k", 3, 100), "version": 4},
        {**compose("k", 3, 100), "text": compose("k", 3, 100)["text"][1:]},
        {"key": "k"},
        b"k",
        42,
        ["k"],
    ],
)
def test_a_value_that_is_not_whole_and_of_its_key_is_wrong(value: object) -> None:
    """Half of one value and half of another is not a value of either."""
    assert is_of("k", compose("k", 3, 100))
    assert not is_of("k", value)


def test_a_write_that_was_not_confirmed_may_show_or_not() -> None:
    """A timeout tells nothing about the server: to insist on either would be wrong."""
    key = OwnKey("k")
    key.wrote(1, True)
    key.wrote(2, False)
    assert key.accepts(1)
    assert key.accepts(2)
    assert not key.accepts(1)  # what was seen to land does not unland
    assert not key.accepts(3)


def test_a_write_that_was_confirmed_ends_what_was_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An old value after an acknowledged write is what read-your-writes is about."""
    key = OwnKey("k")
    key.wrote(1, False)
    key.wrote(2, True)
    assert key.accepts(1)  # it was still under way, and landed late
    monkeypatch.setattr(judge, "LANDS_WITHIN_S", -1.0)
    key.wrote(3, False)
    key.wrote(4, True)
    assert key.accepts(4)
    assert not key.accepts(3)
    assert not key.accepts(2)
    key.deleted(False)
    assert key.accepts(4)
    key.deleted(True)
    assert not key.accepts(4)


def test_time_in_which_the_machine_slept_is_no_lateness_of_a_call() -> None:
    """Two cores and eight programs: the soak would fail for want of processors."""
    lag = Lag()
    punctual = Punctuality(0.25, lag)
    lag.note(10.20, 10.55)
    punctual.took("get", 10.0, 10.54)  # 0.29 s of lag after the deadline
    punctual.settle(20.0)
    assert punctual.late == 0
    assert punctual.latest_s == pytest.approx(0.25)
    punctual.took("get", 10.0, 10.65)
    punctual.settle(20.0)
    assert punctual.late == 1


def test_lag_before_the_deadline_excuses_nothing() -> None:
    """The deadline is a moment: who was slept through it had the rest of the time all the same."""
    lag = Lag()
    punctual = Punctuality(0.25, lag)
    lag.note(10.0, 10.25)
    punctual.took("get", 10.0, 10.4)
    punctual.settle(20.0)
    assert punctual.late == 1


def test_a_call_that_kept_the_others_from_running_has_no_excuse() -> None:
    """A call that computes for a second holds the interpreter, and looks like a busy machine."""
    lag = Lag()
    punctual = Punctuality(0.25, lag)
    lag.note(10.3, 11.0)
    punctual.took("get", 10.0, 11.0, cpu_s=0.95)
    punctual.settle(20.0)
    assert punctual.late == 1


def test_time_in_the_queue_for_a_processor_is_no_lateness_of_a_call() -> None:
    """Who sleeps most is served first: a thread that does work waits longer than one that ticks."""
    punctual = Punctuality(0.25, Lag())
    punctual.took("get", 10.0, 10.45, queued_s=0.16)
    punctual.took("get", 10.0, 10.45, queued_s=0.14)
    punctual.settle(20.0)
    assert punctual.late == 1


def test_a_call_that_never_comes_back_is_seen() -> None:
    """What has not ended has no time to be judged by."""
    tally = Tally(Punctuality(0.25, Lag()), own_thread=True)
    started = tally.begin()
    found = total([tally], started + 60.0)
    assert found["in_call"] == 1
    assert found["slowest_s"] == pytest.approx(60.0)


GOOD_REPLICA: dict[str, Any] = {
    "total": {
        **total([], 0.0),
        "hits": 10,
        "late": 0,
        "latest_s": 0.0,
        "machine_lag_s": 0.0,
    },
    "growth_bytes": 1 << 20,
    "log": {"most_in_a_minute": 3, "leaks": 0},
    "right": 50,
    "died": False,
    "connections_in_use": 0,
    "breaker": {"opened": 4, "closed": 4, "state": "closed"},
    "before": {"fds": 5, "threads": ["MainThread"]},
    "after": {"fds": 5, "threads": ["MainThread"]},
}


@pytest.mark.parametrize(
    ("path", "value", "broken"),
    [
        (("total", "hits"), 0, "verified hits"),
        (("total", "wrong"), 1, "wrong values"),
        (("total", "broken"), 1, "own writes not read back"),
        (("total", "exceptions"), {"OSError": 1}, "exceptions"),
        (("total", "late"), 1, "over their deadline"),
        (("total", "in_call"), 1, "over their deadline"),
        (("died",), True, "died"),
        (("right",), 49, "round trips right"),
        (("connections_in_use",), 1, "connections in use"),
        (("after", "fds"), 6, "file descriptors"),
        (("after", "threads"), ["MainThread", "jmcache-health"], "threads"),
        (("growth_bytes",), 10 << 20, "resident memory"),
        (("breaker", "opened"), 5, "breakers"),
        (("breaker", "state"), "open", "breakers"),
        (("log", "most_in_a_minute"), 11, "lines logged"),
        (("log", "leaks"), 1, "lines that show"),
        (("clients_at_rest",), 11, "clients of the server at rest"),
        (("clients_at_end",), 1, "clients of the server after closing"),
    ],
)
def test_each_promise_is_broken_by_its_own_figure(
    path: tuple[str, ...], value: object, broken: str
) -> None:
    """A leak that nobody subtracts is found out by the operators."""
    good = {"replicas": [GOOD_REPLICA], "clients_at_rest": 10, "clients_at_end": 0}
    assert all(promise.held for promise in report.promises(good))
    bad = copy.deepcopy(good)
    where: Any = bad if path[0].startswith("clients") else bad["replicas"][0]
    for name in path[:-1]:
        where = where[name]
    where[path[-1]] = value
    [promise] = [promise for promise in report.promises(bad) if not promise.held]
    assert broken in promise.text


def test_log_lines_are_counted_by_the_fullest_minute_and_searched_for_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of a minute disappears in the average of a night."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    book = LogBook(["pass-word", MARKER])
    for now in (0.0, 59.5, 60.0, 100.0, 110.0, 119.0, 500.0):  # noqa: B007 - read by the clock
        book.handle(logging.makeLogRecord({"msg": "nothing to see"}))
    assert book.most_in_a_minute() == 5
    assert book.leaks == 0
    book.handle(logging.makeLogRecord({"msg": "%s is wrong", "args": (f"k1-{MARKER}",)}))
    try:
        raise ValueError("pass-word")
    except ValueError:
        book.handle(logging.makeLogRecord({"msg": "ouch", "exc_info": sys.exc_info()}))
    assert book.leaks == 2


def test_one_seed_is_one_plan_and_every_kind_has_its_turn() -> None:
    """A run that cannot be repeated explains nothing, and a fault that never came tests nothing."""
    first, second = (
        list(itertools.islice(saboteur.episodes(random.Random(7)), 200)) for _ in range(2)
    )
    assert first == second
    assert first != list(itertools.islice(saboteur.episodes(random.Random(8)), 200))
    counted = [kind for episode in first for kind in episode.kinds]
    turns = len(first) // len(faults.KINDS)
    assert len(faults.KINDS) >= 21
    assert all(counted.count(kind) >= turns for kind in faults.KINDS)
    assert any(len(episode.kinds) == 3 for episode in first)


def test_the_page_names_every_kind_of_fault_there_is() -> None:
    """Who decides by the list would not know what was tried, or believe what was not."""
    page = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    broken = page.partition("## What is broken")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in broken.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == set(faults.KINDS)


def test_the_trace_is_the_real_one() -> None:
    """Invented keys have no popular ones, and hide what only popular ones show."""
    found = requests()
    assert len(found) == 60_000
    assert len({request.key for request in found}) == 28_890
    assert max(request.value_bytes for request in found) <= 65_536


LEAKY = """
import os, threading
from soak import contenders, worker

class Leaky:
    awaited = False
    def __init__(self, host, port, password):
        self.kept = [os.pipe(), os.pipe()]
        threading.Thread(target=threading.Lock().acquire, daemon=True)
        lock = threading.Lock()
        lock.acquire()
        threading.Thread(target=lock.acquire, name="left-over", daemon=True).start()
    def get(self, key):
        return None
    def get_many(self, keys):
        return {}
    def set(self, key, value, ttl):
        return False
    delete = get
    def close(self):
        Leaky.kept = self.kept

contenders.CONTENDERS["leaky"] = Leaky
worker.main()
"""


def test_a_process_that_keeps_threads_and_descriptors_is_found_out() -> None:
    """One descriptor an hour is a service that dies in its sixth week."""
    options = {
        "name": "r0",
        "contender": "leaky",
        "host": "",
        "port": 0,
        "password": "-",
        "seed": 1,
        "callers": 2,
    }
    done = subprocess.run(
        [sys.executable, "-c", LEAKY, json.dumps(options)],
        input="go\nrest\ncheck\nclose\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        timeout=60,
        check=True,
    )
    said = {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert said["check"]["right"] == 0
    replica = copy.deepcopy(GOOD_REPLICA)
    replica |= {"before": said["ready"]["resources"], "after": said["close"]["resources"]}
    found = {"replicas": [replica], "clients_at_rest": 0, "clients_at_end": 0}
    broken = [promise for promise in report.promises(found) if not promise.held]
    assert [promise.figure for promise in broken] == ["4", "1"], broken


# With a real server and real processes --------------------------------------------------------


@pytest.mark.soak
def test_a_client_that_believes_every_answer_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way, from a surplus reply on the wire to a line in the report."""
    kinds = {name: faults.KINDS[name] for name in ("late duplicate", "stopped")}
    monkeypatch.setattr(saboteur, "KINDS", kinds)
    monkeypatch.setattr(saboteur, "COMBINED_EVERY", 100)
    plain = Plan(
        seconds=6, calls=0, seed=3, processes=0, threads=8, contenders=("redis-py", "redis-py")
    )
    found = run(plain, lambda progress: None, 1.0)
    broken = {
        promise.text: promise.figure for promise in report.promises(found) if not promise.held
    }
    assert int(broken["wrong values"].replace(",", "")) > 0, report.text(found, [])
    assert found["faults"]["stopped"] > 0


HANGS = """
import itertools, threading
from soak import contenders, worker

class Hangs:
    awaited = False
    def __init__(self, host, port, password):
        self._count = itertools.count()
        self._never = threading.Lock()
        self._never.acquire()
    def get(self, key):
        if next(self._count) > 20:
            self._never.acquire()
    def get_many(self, keys):
        return {}
    def set(self, key, value, ttl):
        return False
    delete = get
    def close(self):
        pass

contenders.CONTENDERS["hangs"] = Hangs
worker.main()
"""


@pytest.mark.soak
def test_a_client_that_hangs_does_not_hang_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others that are to be compared would wait for it all night."""
    monkeypatch.setattr(soak_run, "_CHECKED_WITHIN_S", 1.0)
    monkeypatch.setattr(soak_run, "_ANSWER_WITHIN_S", 4.0)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{HANGS}' \"$3\"\n")
    python.chmod(0o755)
    hanging = Plan(
        seconds=2,
        calls=0,
        seed=3,
        processes=0,
        threads=2,
        contenders=("hangs", "hangs"),
        python=str(python),
    )
    found = run(hanging, lambda progress: None, 1.0)
    broken = [promise.text for promise in report.promises(found) if not promise.held]
    assert "calls over their deadline" in broken
    assert report.summed(found)["in_call"] >= 2


@pytest.mark.soak
def test_a_short_soak_holds_every_promise(tmp_path: Path) -> None:
    """What the long one asks, in a few seconds."""
    path = tmp_path / "report.json"
    asked = ["--seconds", "8", "--seed", "7", "--processes", "1", "--threads", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "soak", *asked, "--json", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert all(promise["held"] for promise in found["promises"])
    assert found["about"]["seed"] == 7
    assert sum(found["faults"].values()) > 0


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running_when_the_soak_is_interrupted(how: signal.Signals) -> None:
    """A server that nobody knows of holds its port and its memory until somebody reboots."""
    soak = subprocess.Popen(
        [sys.executable, "-m", "soak", "--processes", "1", "--threads", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    with soak:
        assert soak.stderr is not None
        soak.stderr.readline()  # it is going on
        started = descendants(soak.pid)
        assert len(started) >= 3, "two replicas and a server"
        soak.send_signal(how)
        soak.communicate(timeout=30)
    assert soak.returncode != 0
    over = time.monotonic() + 10.0
    while (left := [pid for pid in started if alive(pid)]) and time.monotonic() < over:
        time.sleep(0.05)
    assert left == []


def descendants(pid: int) -> set[int]:
    found = set()
    for tasks in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            children = {int(child) for child in (tasks / "children").read_text().split()}
            found |= children.union(*map(descendants, children))
    return found


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_threads_may_share_the_look_ups() -> None:
    """Two threads at one iterator must not end it, nor get stuck at it."""
    from soak.trace import replay

    look_ups = replay()
    seen: list[int] = []

    def take() -> None:
        seen.append(sum(1 for _ in range(5_000) if next(look_ups)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [5_000] * 4
