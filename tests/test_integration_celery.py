"""The cache in a real prefork worker: two children, one Redis, and a worker that goes away."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from billiard.exceptions import TimeLimitExceeded
from celery.signals import worker_process_init, worker_process_shutdown

from jmcache import CacheSettings, RedisCache, RedisCacheFactory
from jmcache.integrations.celery import install
from jmcache.testing import PrivateServer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "job_matching"  # its folder queue is used here too

WAIT_S = 60.0  # for what takes a second: a busy machine may take that for a worker's start alone

JOBS = """
import os, random, threading, time
from pathlib import Path
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from app.core import folder_queue
from jmcache import CacheSettings, Deadline, RedisCacheFactory
from jmcache.integrations.celery import install

app = Celery("jobs")
app.conf.update(
    folder_queue.settings(Path(os.environ["QUEUE"])),
    worker_prefetch_multiplier=16,
    worker_proc_alive_timeout=60,  # a child that a busy machine starts late is killed after 4 s
)
cache = RedisCacheFactory.create_cache(CacheSettings.from_env(), namespace="jobs")
install(app)

@app.task
def remember(key, value):
    return os.getpid(), cache.set(key, value)

@app.task
def recall(key):
    found = cache.lookup(key)
    return os.getpid(), str(found.outcome), found.value

@app.task(soft_time_limit=1)
def read_until_told(key):
    reads = 0
    try:
        while cache.get(key) == "right":
            reads += 1
    except SoftTimeLimitExceeded:
        return reads
    return "wrong value"

KEYS = ["k%d" % number for number in range(20)]

def one_call(chance, wrong):
    key, what = chance.choice(KEYS), chance.random()
    if what < 0.3:
        cache.set(key, [key, "x" * chance.randrange(3000)])
    elif what < 0.7:
        found = {key: cache.get(key)}
    elif what < 0.9:
        found = cache.get_many(chance.sample(KEYS, 5))
    else:
        cache.delete(key)
    if 0.3 <= what < 0.9:
        wrong += [key for key, value in found.items() if value is not None and value[0] != key]

@app.task
def work_until_told(seed, at_most_s=10):
    # Nothing but cache calls: whoever swallows the limit in one of them is not told again.
    calls, wrong, chance = 0, [], random.Random(seed)
    ends_at = time.monotonic() + at_most_s
    try:
        while time.monotonic() < ends_at:
            one_call(chance, wrong)
            calls += 1
    except SoftTimeLimitExceeded:
        return os.getpid(), "told", calls, wrong
    return os.getpid(), "never told", calls, wrong

@app.task
def work_on(seed):
    wrong, chance = [], random.Random(seed)
    while True:
        try:
            one_call(chance, wrong)
        except SoftTimeLimitExceeded:
            pass

@app.task
def capacity():
    # As many connections at a time as there may be, each of them good for a call.
    limit = cache.settings.max_connections
    pool = cache._connection._server.pool
    together, answers = threading.Barrier(limit), []
    def call():
        together.wait(10)
        answers.append(str(cache.lookup("certain", timeout=5).outcome))
    threads = [threading.Thread(target=call) for _ in range(limit)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    loans = [[] for _ in range(limit)]
    for loan in loans:
        pool.borrow(loan, Deadline(0.5))
    for loan in loans:
        pool.discard(loan)
    usage = cache._connection.usage()
    return os.getpid(), answers.count("hit") - limit, len(loans) - limit, usage.in_use
"""


class Worker:
    """A Celery worker with two children, and the queue to it."""

    def __init__(self, folder: Path, redis: dict[str, str]) -> None:
        (folder / "jobs.py").write_text(JOBS)
        self._log = folder / "worker.log"
        environ = {
            **{name: value for name, value in os.environ.items() if "REDIS" not in name},
            **redis,
            "QUEUE": str(folder / "queue"),
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, EXAMPLE, folder))),
        }
        command = [sys.executable, "-m", "celery", "-A", "jobs", "worker", "--loglevel", "INFO"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--pool", "prefork", "--concurrency", "2", *quiet],
                cwd=folder,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._queue = celery.Celery("test")
        sys.path.insert(0, str(EXAMPLE))
        try:
            from app.core import folder_queue
        finally:
            sys.path.remove(str(EXAMPLE))
        self._queue.conf.update(folder_queue.settings(folder / "queue"))

    def send(self, task: str, *arguments: Any, **limits: float) -> Any:
        return self._queue.send_task(f"jobs.{task}", arguments, **limits)

    def run(self, task: str, *arguments: Any) -> Any:
        return self.send(task, *arguments).get(timeout=WAIT_S, interval=0.01)

    def run_in_both_children(self, task: str, *arguments: Any) -> dict[int, Any]:
        """Run a task until each child had it; results by process id."""
        results: dict[int, Any] = {}
        over = time.monotonic() + WAIT_S
        while len(results) < 2 and time.monotonic() < over:
            for sent in [self.send(task, *arguments) for _ in range(4)]:
                pid, *result = sent.get(timeout=WAIT_S, interval=0.01)
                results[pid] = result
        return results

    def said(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """Ask for a warm shutdown; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=WAIT_S)

    def leftovers(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        if self.leftovers():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Worker]]:
    workers: list[Worker] = []

    def begin(redis: dict[str, str]) -> Worker:
        workers.append(Worker(tmp_path, redis))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_S) -> bool:
    over = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > over:
            return False
        time.sleep(0.02)
    return True


def connected(server: PrivateServer) -> int:
    """Clients that are connected, without the one that asks."""
    clients = server.command("CLIENT", "LIST")
    assert isinstance(clients, bytes)
    return clients.count(b"\n") - 1


def test_a_worker_from_its_start_to_its_end(
    start: Callable[[dict[str, str]], Worker], tcp_server: PrivateServer
) -> None:
    """Forked children that shared a socket would read each other's answers.

    One test, because a worker takes two seconds to come up.
    """
    worker = start({"REDIS_URL": tcp_server.url})
    # Warm before any task, and each child over a connection of its own.
    assert wait_until(lambda: connected(tcp_server) >= 2), worker.said()

    wrote = worker.run_in_both_children("remember", "who", {"name": "Ada", "skills": ("sql", 7)})
    assert len(wrote) == 2, worker.said()
    assert all(result == [True] for result in wrote.values())
    read = worker.run_in_both_children("recall", "who")
    assert set(read) == set(wrote)
    assert all(result[0] == "hit" for result in read.values())
    assert all(result[1]["name"] == "Ada" for result in read.values())

    # The soft time limit raises in the middle of whatever runs: it must come through, and what
    # is read afterwards must still be right.
    worker.run("remember", "certain", "right")
    for _ in range(2):
        assert worker.run("read_until_told", "certain") > 0
    assert worker.run("recall", "certain")[1:] == ["hit", "right"]

    # Celery by itself takes some five seconds over it.
    assert worker.stop() == 0, worker.said()
    assert not worker.leftovers()
    assert wait_until(lambda: connected(tcp_server) == 0, seconds=10)
    for word in ("Traceback", "ERROR", "CRITICAL"):
        assert word not in worker.said()


@pytest.mark.fault_row(42)
def test_tasks_that_only_cache_hear_of_every_time_limit(
    start: Callable[[dict[str, str]], Worker], tcp_server: PrivateServer
) -> None:
    """A limit that a cache call swallows lets a task run on for ever, and its worker is lost.

    Real limits in a real worker: soft ones, each at a moment of its own, and hard ones,
    which kill the child in the middle of a call.
    """
    worker = start({"REDIS_URL": tcp_server.url})
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    limits = [chance.uniform(0.03, 0.15) for _ in range(60)]
    worker.run("remember", "certain", "right")
    told = [
        worker.send("work_until_told", chance.random(), soft_time_limit=limit, time_limit=20)
        for limit in limits
    ]
    results = [sent.get(timeout=WAIT_S, interval=0.01) for sent in told]
    assert [result[1] for result in results] == ["told"] * len(limits), (seed, results)
    assert [wrong for *_, wrong in results if wrong] == [], seed
    assert sum(calls for _, _, calls, _ in results) > len(limits)  # the limits struck in calls
    assert len({pid for pid, *_ in results}) == 2  # nobody was replaced
    for result in worker.run_in_both_children("capacity").values():
        assert result == [0, 0, 0], seed

    killed = [
        worker.send("work_on", chance.random(), soft_time_limit=0.1, time_limit=0.5)
        for _ in range(4)
    ]
    for sent in killed:
        with pytest.raises(TimeLimitExceeded):
            sent.get(timeout=WAIT_S, interval=0.01)
    new = worker.run_in_both_children("capacity")
    assert not set(new) & {pid for pid, *_ in results}
    assert all(result == [0, 0, 0] for result in new.values()), new
    assert worker.run("recall", "certain")[1:] == ["hit", "right"]
    assert worker.stop() == 0, worker.said()
    assert wait_until(lambda: connected(tcp_server) == 0, seconds=10)
    assert "Exception ignored" not in worker.said()


def test_children_come_up_and_work_while_redis_is_down(
    start: Callable[[dict[str, str]], Worker],
) -> None:
    """Celery gives a child about four seconds to come up, and then starts another, for ever."""
    worker = start({"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1"})
    read = worker.run_in_both_children("recall", "who")
    assert list(read.values()) == [["unavailable", None]] * 2, worker.said()
    assert "Traceback" not in worker.said()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's signals are the whole process's: nothing of a test may stay in them."""
    for one in (worker_process_init, worker_process_shutdown):
        monkeypatch.setattr(one, "receivers", [])
        one.sender_receivers_cache.clear()


@pytest.mark.usefixtures("signals")
def test_installing_twice_is_installing_once() -> None:
    """Modules are imported twice more often than anybody thinks."""
    app = celery.Celery("jobs")
    for _ in range(2):
        install(app)
    assert len(worker_process_init.receivers) == 1
    assert len(worker_process_shutdown.receivers) == 1


@pytest.mark.usefixtures("signals")
def test_a_warm_up_opens_a_connection_and_starts_the_health_thread(
    redis_server: PrivateServer,
) -> None:
    """The first task of a child should not be the one that waits for a handshake."""
    install(celery.Celery("jobs"))
    with RedisCacheFactory.create_cache(redis_server.url) as cache:
        assert isinstance(cache, RedisCache)
        worker_process_init.send(sender=None)
        usage = cache._connection.usage()
        assert usage.idle + usage.in_use >= 1  # the health thread may be using it, or one more
        assert wait_until(lambda: cache._health.running)  # nobody waits for its start


@pytest.mark.usefixtures("signals")
def test_a_child_comes_up_in_time_while_redis_is_down() -> None:
    """Celery gives up on a child that takes more than a few seconds."""
    install(celery.Celery("jobs"))
    with RedisCacheFactory.create_cache(CacheSettings(port=1)):
        began = time.monotonic()
        worker_process_init.send(sender=None)
        assert time.monotonic() - began < 1.0


@pytest.mark.usefixtures("signals")
def test_the_end_of_a_child_closes_what_the_factory_made_at_once() -> None:
    """A child that hangs in its end holds up the deploy, also while Redis is down."""
    cache = RedisCacheFactory.create_cache(CacheSettings(port=1))
    install(celery.Celery("jobs"))
    cache.get("anything")  # its health thread runs now
    began = time.monotonic()
    worker_process_shutdown.send(sender=None)
    assert time.monotonic() - began < 1.0
    assert cache.lookup("anything").reason == "closed"
