"""The example service: does its matcher rank as it says, and is the demo as clean as it says?"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jmcache import RedisCacheFactory

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "job_matching"
OURS = ("app", "showcase", "tasks", "worker", "demo")  # its top-level modules
MARK = "JOBS_EXAMPLE_TEST"  # a variable that everything the demo starts inherits


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its modules are imported from its folder, as by hand, and read the environment anew."""
    monkeypatch.syspath_prepend(EXAMPLE)
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in OURS:
            del sys.modules[name]
    RedisCacheFactory.shutdown()


def posting(number: int, skills: str, **changes: Any) -> Any:
    from app.libs.job_matcher.catalogue import Posting

    fields: dict[str, Any] = {
        "id": f"p{number}",
        "title": "Engineer",
        "category": "Data Engineer",
        "company": "",
        "location": "Berlin",
        "country": "Germany",
        "remote": False,
        "posted": "2023-01-01T00:00:00",
        "salary_year_usd": None,
        "skills": tuple(sorted(skills.split())),
    }
    return Posting(**{**fields, **changes})


def ranked(postings: list[Any], skills: str, limit: int = 20, **filters: Any) -> list[Any]:
    from app.libs.job_matcher.matcher import Filters, JobMatcher

    return JobMatcher(postings).rank(skills.split(), Filters(**filters), limit=limit)


def ids(matches: list[Any]) -> list[str]:
    return [match["posting_id"] for match in matches]


def test_a_rare_skill_in_common_counts_for_more_than_a_common_one() -> None:
    """Otherwise everybody who knows SQL gets the same list."""
    postings = [posting(n, "sql excel") for n in range(5)] + [posting(9, "sql kafka")]
    assert ids(ranked(postings, "kafka excel"))[0] == "p9"


def test_the_score_is_the_cosine_of_the_rarity_weights() -> None:
    """Worked out by hand: three postings, python in two, redis in one, sql in one."""
    postings = [posting(1, "python redis"), posting(2, "python"), posting(3, "sql")]
    # ln(1 + 3/2) = 0.9163, ln(1 + 3/1) = 1.3863; p1 has length 1.6618
    matches = ranked(postings, "python redis")
    assert [(match["posting_id"], match["score"]) for match in matches] == [
        ("p1", 1.0),
        ("p2", 0.5514),
    ]


def test_asking_for_much_else_lowers_a_score() -> None:
    """A posting that lists every skill there is would otherwise be everybody's best match."""
    postings = [posting(1, "python redis scala kafka spark"), posting(2, "python redis")]
    assert ids(ranked(postings, "python redis")) == ["p2", "p1"]


def test_a_match_says_what_is_shared_and_what_is_missing_rarest_first() -> None:
    """The reason is what the candidate reads."""
    postings = [posting(1, "python redis kafka"), posting(2, "python kafka"), posting(3, "python")]
    best = ranked(postings, "python redis")[0]
    assert best["skills_shared"] == ["python"] or best["posting_id"] == "p1"
    full = next(match for match in ranked(postings, "python redis") if match["posting_id"] == "p1")
    assert full["skills_shared"] == ["redis", "python"]
    assert full["skills_missing"] == ["kafka"]
    assert full["reason"] == "has 2 of 3 skills asked for, above all redis, python; lacks kafka"


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"country": "GERMANY"}, {"p1", "p3"}),
        ({"category": "data scientist"}, {"p2"}),
        ({"remote": True}, {"p3"}),
        ({"remote": False}, {"p1", "p2"}),
        ({"min_salary_usd": 90_000}, {"p2"}),
        ({"min_salary_usd": 0}, {"p1", "p2", "p3"}),
        ({"country": "Germany", "remote": True}, {"p3"}),
        ({"country": "Atlantis"}, set()),
    ],
)
def test_filters_leave_out_what_is_not_wanted(filters: dict[str, Any], kept: set[str]) -> None:
    """A candidate who can't move must not be shown jobs elsewhere, however well they fit."""
    postings = [
        posting(1, "python"),
        posting(2, "python", country="France", category="Data Scientist", salary_year_usd=90_000),
        posting(3, "python", remote=True, salary_year_usd=89_999),
    ]
    assert set(ids(ranked(postings, "python", **filters))) == kept


def test_of_equals_the_newest_comes_first_and_then_the_first_given() -> None:
    """Replicas that broke ties differently would seem to serve wrong data."""
    postings = [
        posting(1, "python"),
        posting(2, "python"),
        posting(3, "python", posted="2023-02-01T00:00:00"),
    ]
    assert ids(ranked(postings, "python")) == ["p3", "p1", "p2"]
    assert ids(ranked(postings, "python", limit=2)) == ["p3", "p1"]


@pytest.mark.parametrize("skills", ["", "cobol"])
def test_without_a_known_skill_there_is_no_match(skills: str) -> None:
    """And no division by zero."""
    assert ranked([posting(1, "python"), posting(2, "")], skills) == []


def test_the_order_in_which_skills_are_named_does_not_matter() -> None:
    """Sums of floats depend on their order; two processes must agree to the last digit."""
    from app.libs.job_matcher.catalogue import candidates
    from app.libs.job_matcher.matcher import job_matcher

    for candidate in list(candidates().values())[:20]:
        there = job_matcher().rank(candidate.skills)
        assert job_matcher().rank(candidate.skills[::-1]) == there
        assert len(there) == 20


RANK_ALL = """
import hashlib, json
from app.libs.job_matcher.catalogue import candidates
from app.libs.job_matcher.matcher import job_matcher
found = [job_matcher().rank(one.skills) for one in list(candidates().values())[:20]]
print(hashlib.sha256(json.dumps(found).encode()).hexdigest())
"""


def test_processes_with_different_hash_seeds_rank_alike() -> None:
    """The demo compares every answer with its own process's ranking."""
    answers = {
        subprocess.run(
            [sys.executable, "-c", RANK_ALL],
            cwd=EXAMPLE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


# The service ------------------------------------------------------------------------------------


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TestClient]:
    """The application with its own environment: `service(REDIS_URL="memory://")`."""

    def make(**environ: str) -> TestClient:
        for name in [name for name in os.environ if name.startswith(("REDIS", "JMCACHE"))]:
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        from app.core import logs

        monkeypatch.setattr(logs, "configure_logging", lambda: None)  # pytest has its own
        from app.main import app

        return TestClient(app)

    return make


def test_the_two_endpoints_share_what_one_of_them_computed(service: Any) -> None:
    """And what they answer is the matcher's ranking, from the cache or not."""
    with service(REDIS_URL="memory://") as client:
        first = client.get("/candidates/c00001/matches")
        second = client.get("/candidates/c00001/report")
        stats = client.get("/stats").json()
    from app.libs.job_matcher.catalogue import candidates
    from app.libs.job_matcher.matcher import job_matcher

    ranking = job_matcher().rank(candidates()["c00001"].skills)
    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("miss", "hit")
    assert first.json()["matches"] == second.json()["matches"] == ranking
    assert second.headers["Server-Timing"].endswith("match;dur=0.000")
    assert len(second.json()["skills_to_learn"]) == 5
    assert stats["cache"]["hits"] == 1


def test_other_filters_are_another_question(service: Any) -> None:
    """A remote-only candidate must not get the list of one who wants an office."""
    with service(REDIS_URL="memory://") as client:
        client.get("/candidates/c00001/matches")
        remote = client.get("/candidates/c00001/matches?remote=true&min_salary_usd=90000")
        again = client.get("/candidates/c00001/report?min_salary_usd=90000&remote=true")
    assert remote.headers["X-Cache"] == "miss"
    assert again.headers["X-Cache"] == "hit"
    assert all(match["remote"] for match in remote.json()["matches"])
    assert all(match["salary_year_usd"] >= 90_000 for match in remote.json()["matches"])


def test_it_answers_while_redis_is_down(service: Any) -> None:
    """What the cache is not allowed to cost."""
    with service(REDIS_HOST="127.0.0.1", REDIS_PORT="1") as client:
        for endpoint in ("matches", "report") * 2:
            answer = client.get(f"/candidates/c00002/{endpoint}")
            assert answer.status_code == 200
            assert answer.headers["X-Cache"] == "unavailable"
            assert len(answer.json()["matches"]) == 20
        health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")


def test_an_unknown_candidate_is_404_and_nonsense_is_422(service: Any) -> None:
    """Neither is worth a traceback at night."""
    with service(REDIS_URL="memory://") as client:
        assert client.get("/candidates/nobody/matches").status_code == 404
        assert client.get("/candidates/c00001/matches?min_salary_usd=-1").status_code == 422


def test_the_worker_answers_each_line_of_its_input() -> None:
    """A bad line must not end a worker that has others to do."""
    done = subprocess.run(
        [sys.executable, "worker.py"],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": "memory://"},
        input="c00001\n\nnobody\nc00001\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    one, bad, two = map(json.loads, done.stdout.splitlines())
    assert (one["outcome"], two["outcome"]) == ("miss", "hit")
    assert one["matches"] == two["matches"]
    assert bad == {"candidate_id": "nobody", "error": "no such candidate"}
    assert "Traceback" not in done.stderr


def test_a_message_in_the_folder_queue_appears_whole(tmp_path: Path) -> None:
    """Kombu's own writer lets a reader take an empty file: the task is lost for good."""
    import kombu
    from app.core import folder_queue

    options = folder_queue.settings(tmp_path)["broker_transport_options"]
    seen = []
    replace = Path.replace

    def look_then_replace(self: Path, target: Path) -> Path:
        seen.append([path.name for path in self.parent.iterdir() if path.suffix == ".msg"])
        assert json.loads(self.read_bytes())
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", look_then_replace)
        with kombu.Connection(
            transport=folder_queue.Transport, transport_options=options
        ) as connection:
            queue = connection.SimpleQueue("jobs")
            queue.put({"candidate": "c00001"})
            message = queue.get(timeout=5)
            message.ack()
            queue.close()
    assert message.payload == {"candidate": "c00001"}
    assert seen == [[]]


# The demo ---------------------------------------------------------------------------------------

SHORT_DEMO = """
import sys, demo
from showcase.plan import Plan
plan = Plan(candidates=24, before_s=1.0, outage_s=2.5, after_s=3.0)
sys.exit(demo.main(sys.argv[1:], plan=plan))
"""


class Demo:
    """A short demo in a process of its own, whose temporary files go to a folder of the test."""

    def __init__(self, *arguments: str) -> None:
        # Not pytest's: its path is too long for the server, which would go elsewhere.
        self.folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder),
            MARK: self.folder.name,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHORT_DEMO, *arguments],
            cwd=EXAMPLE,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def family(self) -> list[int]:
        """Processes that inherited the mark, the demo itself among them."""
        marked = f"{MARK}={self.folder.name}".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marked in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
            except OSError:
                pass  # ended meanwhile
        return found

    def clear(self) -> None:
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.folder.rmdir()


@pytest.fixture
def start_demo() -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start(*arguments: str) -> Demo:
        demos.append(Demo(*arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.clear()


# Time is for the demo itself to judge: here others may be using the machine's two cores.
TIMED = ("in the outage the cache costs", "and no request takes longer", "hits again")

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@pytest.mark.redis
@needs_proc
def test_the_demo_keeps_its_promises_and_leaves_nothing_behind(start_demo: Any) -> None:
    """It is the first thing a newcomer runs."""
    demo = start_demo("--json")
    out, err = demo.process.communicate(timeout=90)
    assert out.count("\n") == 1, err
    report = json.loads(out)
    for promise in report["promises"]:
        assert promise["held"] or promise["promise"].startswith(TIMED), promise
    assert demo.process.returncode == (0 if report["ok"] else 1)
    assert report["matches"] == {"asked": 24 * 8, "computed": 24}
    assert set(report["recovery"]["seconds_to_hits"]) == set(report["outage"]["processes"])
    assert len(report["outage"]["processes"]) == 5
    assert demo.family() == []
    assert list(demo.folder.iterdir()) == []


def takes(pid: int, number: int) -> bool:
    """Has the process a handler of its own for the signal?"""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> number - 1 & 1)


@pytest.mark.redis
@needs_proc
@pytest.mark.parametrize(
    ("how", "after", "processes", "code"),
    [
        (signal.SIGINT, "", 1, 130),  # while it imports, or compares
        (signal.SIGINT, "ranking", 4, 130),  # while it starts what it needs
        (signal.SIGINT, "cold", 8, 130),
        (signal.SIGTERM, "warm", 8, 143),  # in the outage
        (signal.SIGKILL, "warm", 8, -9),
    ],
)
def test_a_demo_that_is_stopped_leaves_nothing_behind(
    start_demo: Any, how: int, after: str, processes: int, code: int
) -> None:
    """Ctrl-C is how most people leave a demo; a Redis and six Pythons would stay, unseen."""
    demo = start_demo()
    for line in demo.process.stderr if after else ():
        if line.startswith(after):
            break
    assert wait_until(lambda: len(demo.family()) >= processes)
    if not after:  # Python's own start is not ours to guard
        assert wait_until(lambda: takes(demo.process.pid, signal.SIGTERM))
    demo.process.send_signal(how)
    began = time.monotonic()
    if how == signal.SIGINT:  # the impatient press it twice
        demo.process.send_signal(how)
    _, err = demo.process.communicate(timeout=20)
    assert demo.process.returncode == code, err
    assert time.monotonic() - began < 5
    assert "Traceback" not in err
    # Only after SIGKILL does somebody else clear away, a moment later.
    assert wait_until(lambda: demo.family() == [], seconds=5 if how == signal.SIGKILL else 0)
    assert wait_until(lambda: list(demo.folder.iterdir()) == [], seconds=5)


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> bool:
    over = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > over:
            return False
        time.sleep(0.02)
    return True


def kept_report() -> dict[str, Any]:
    """A report in which every promise is kept, as small as the judge can do with."""
    users = {"worker": {"worst_ms": 40.0}}
    return {
        "answers": {"asked": 500, "wrong": 0, "failed": 0, "failures": []},
        "matches": {"asked": 300, "computed": 40},
        "cold": {"all": {"hits": 0}, "by_user": users},
        "warm": {"all": {"hit_ratio": 1.0}},
        "outage": {
            "all": {"asked": 200},
            "by_user": {"worker": {"worst_ms": 300.0}},
            "processes": ["worker"],
            "breakers_opened": ["worker"],
            "cache_worst_ms": 260.0,
            "log_lines": {"worker": 1, "Celery parent": 0},
        },
        "recovery": {"seconds_to_hits": {"worker": 0.8}},
    }


@pytest.mark.parametrize(
    ("where", "value", "broken"),
    [
        (("answers", "wrong"), 1, "every answer is the matcher's own"),
        (("answers", "failed"), 1, "no request fails"),
        (("cold", "all", "hits"), 1, "an empty cache finds nothing"),
        (("warm", "all", "hit_ratio"), 0.98, "warm hit ratio"),
        (("matches", "computed"), 300, "fewer rankings computed"),
        (("outage", "breakers_opened"), [], "the breaker opens in every process"),
        (("outage", "cache_worst_ms"), 651.0, "in the outage the cache costs"),
        (("outage", "by_user", "worker", "worst_ms"), 691.0, "and no request takes longer"),
        (("outage", "log_lines", "Celery parent"), 11, "at most 10 log lines"),
        (("recovery", "seconds_to_hits", "worker"), 2.01, "hits again in every process"),
        (("recovery", "seconds_to_hits", "worker"), None, "hits again in every process"),
    ],
)
def test_each_promise_that_is_broken_is_named(where: Any, value: Any, broken: str) -> None:
    """A demo that is always green shows nothing."""
    from showcase.promises import judge

    report = kept_report()
    assert all(promise["held"] for promise in judge(report))
    changed = inner = copy.deepcopy(report)
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    failed = [promise["promise"] for promise in judge(changed) if not promise["held"]]
    assert len(failed) == 1
    assert failed[0].startswith(broken)


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut_in_two() -> None:
    """A process that was started and not yet noted would stay behind."""
    from showcase.interrupts import SIGNALS, Interrupts, Stopped

    before = [signal.getsignal(number) for number in SIGNALS]
    interrupts, reached = Interrupts(), []

    def be_interrupted() -> None:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("inner")
            reached.append("outer")

    try:
        interrupts.install()
        with pytest.raises(Stopped) as stopped:
            be_interrupted()
        os.kill(os.getpid(), signal.SIGINT)  # once is enough: clearing away goes on
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert reached == ["inner", "outer"]
    assert stopped.value.signal == signal.SIGTERM


def test_without_any_server_an_imitation_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python 3.13 on a machine without redis-server: the demo must play there, too."""
    from showcase import servers
    from showcase.interrupts import Interrupts
    from showcase.processes import Fleet

    from jmcache import CacheSettings

    def none(**_: Any) -> None:
        raise servers.RedisServerNotFound("none")

    monkeypatch.setattr(servers, "PrivateServer", none)
    interrupts = Interrupts()
    fleet = Fleet(interrupts, tmp_path)
    try:
        server = servers.choose_server(fleet, interrupts)
        server.start()
        settings = CacheSettings.from_env(server.environ(), operation_timeout=2.0)
        cache = RedisCacheFactory.create_cache(settings)
        values = {str(number): "value" * number for number in range(1, 50)}
        assert cache.set_many(values)
        assert cache.get_many(values) == values
        assert {key: cache.get(key) for key in values} == values
        server.kill()
        assert cache.get("1") is None
        server.start()  # on the same address
        assert wait_until(lambda: cache.set("key", "again"), seconds=5)
        described = server.describe()
    finally:
        fleet.end()
    assert described["kind"] == "fakeredis"
    assert described["limits"]
