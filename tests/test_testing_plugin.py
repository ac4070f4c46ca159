"""The pytest plugin, in runs of pytest of their own: as a user's suite has it."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.redis, pytest.mark.faults]

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(tmp_path):
    """A folder for PYTHONPATH in which jmcache is installed, whatever is in this environment."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    about = tmp_path / "site" / "jmcache_here-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: jmcache-here\nVersion: 1\n")
    [(group, lines)] = setup["options.entry_points"].items()
    (about / "entry_points.txt").write_text(f"[{group}]\n{lines.strip()}\n")
    (about / "RECORD").write_text("jmcache/__init__.py,,\n")  # pytest looks into what is in it
    return about.parent


@pytest.fixture
def run(installed, tmp_path):
    """Run pytest on a file; (how many ended in which way, what it said)."""

    def run(text, *options, conftest="", path=None):
        suite = tmp_path / "suite"
        suite.mkdir()
        (suite / "test_it.py").write_text(text)
        (suite / "conftest.py").write_text(conftest)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
        env.pop("PYTEST_XDIST_WORKER", None)
        env.pop("PYTEST_ADDOPTS", None)
        if path is not None:
            env["PATH"] = str(path)
        line = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", *options]
        done = subprocess.run(
            line, cwd=suite, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1), said
        return said

    return run


def ended(said):
    """The last line, without its time and frame."""
    return said.rstrip().splitlines()[-1].strip("= ").rpartition(" in ")[0]


DEGRADED = """
def rank(candidate):
    return [candidate, 1]

def matches_for(candidate, cache):
    key = cache.generate_key("matches", candidate)
    found = cache.get(key)
    if found is None:
        found = rank(candidate)
        cache.set(key, found)
    return found

def test_matches_are_computed_when_redis_hangs(jmcache_cache, jmcache_proxy):
    jmcache_proxy.blackhole()
    assert matches_for("c1", cache=jmcache_cache) == rank("c1")
"""


def test_a_degraded_service_is_tested_in_three_lines(run):
    """What takes more is not done, and found out in production."""
    assert ended(run(DEGRADED)) == "1 passed"


BROKEN_AND_WHOLE = """
import asyncio
import threading

import pytest

from jmcache import Outcome, RedisCacheFactory

def is_whole(cache):
    assert cache.lookup("k").outcome is Outcome.MISS
    assert cache.set("k", 1) is True
    assert cache.get("k") == 1

BREAK = {
    "kill": lambda server, proxy: server.kill(),
    "pause": lambda server, proxy: server.pause(),
    "full": lambda server, proxy: server.fill(),
    "by hand": lambda server, proxy: server.command("CONFIG", "SET", "maxmemory", "1"),
    "password": lambda server, proxy: server.change_password("x"),
    "black hole": lambda server, proxy: proxy.blackhole(),
    "refused": lambda server, proxy: proxy.refuse(),
    "garbage": lambda server, proxy: proxy.garbage(),
}

@pytest.mark.parametrize("how", BREAK)
def test_broken(how, jmcache_server, jmcache_proxy, jmcache_cache):
    is_whole(jmcache_cache)
    BREAK[how](jmcache_server, jmcache_proxy)
    assert jmcache_cache.set("k", 1) is False

def test_awaited(jmcache_async_cache, jmcache_proxy):
    async def main():
        assert await jmcache_async_cache.set("k", [1])
        assert await jmcache_async_cache.get("k") == [1]
        jmcache_proxy.garbage()
        assert await jmcache_async_cache.get("k") is None
    asyncio.run(main())

def test_settings(jmcache_settings, jmcache_proxy):
    assert jmcache_settings.port == jmcache_proxy.port
    with RedisCacheFactory.create_cache(jmcache_settings, namespace="other") as cache:
        is_whole(cache)
    assert jmcache_proxy.commands_total > 0

def test_empty(jmcache_server):
    assert jmcache_server.command("DBSIZE") == 0

def test_nothing_is_left(jmcache_server):
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("jmcache")], names
"""


def test_every_test_finds_everything_whole(run):
    """A suite whose tests break each other is worse than none."""
    assert ended(run(BROKEN_AND_WHOLE)) == "12 passed"


ONE_EACH = """
import os, pathlib, pytest

@pytest.mark.parametrize("n", range(8))
def test_it(n, jmcache_server):
    worker = os.environ["PYTEST_XDIST_WORKER"]
    with pathlib.Path(f"pids-{worker}").open("a") as file:
        file.write(f"{jmcache_server.pid}\\n")
"""


def test_every_worker_has_one_server_which_goes_with_it(run, tmp_path):
    """Workers that share a server break it for each other."""
    assert ended(run(ONE_EACH, "-n", "2", "--dist", "each")) == "16 passed"
    pids = [set(path.read_text().split()) for path in (tmp_path / "suite").glob("pids-*")]
    assert sorted(map(len, pids)) == [1, 1]
    assert pids[0] != pids[1]
    for [pid] in pids:
        assert not Path(f"/proc/{pid}").exists()


IMPORTS = """
import sys, threading

def test_it():
    ours = sorted(name for name in sys.modules if name.startswith("jmcache"))
    assert ours == ["jmcache", "jmcache.testing", "jmcache.testing._pytest_entry",
                    "jmcache.testing.pytest_plugin"]
    assert not {"redis", "circuitbreaker", "backoff", "ujson", "fakeredis"} & set(sys.modules)
    assert threading.active_count() == 1
"""


def test_who_does_not_use_it_pays_nothing(run):
    """It is loaded by every run of pytest wherever jmcache is installed."""
    assert ended(run(IMPORTS)) == "1 passed"


@pytest.mark.parametrize(
    ("options", "conftest"),
    [
        (["-p", "jmcache"], "pytest_plugins = ['jmcache.testing.pytest_plugin']"),
        (["-p", "jmcache.testing.pytest_plugin"], ""),
    ],
)
def test_asking_for_it_twice_is_no_mistake(run, options, conftest):
    """pytest refuses to start when a plugin comes under two names."""
    text = "def test_it(jmcache_server): assert jmcache_server.runs"
    assert ended(run(text, *options, conftest=conftest)) == "1 passed"


@pytest.mark.parametrize("name", ["jmcache", "jmcache.testing.pytest_plugin"])
def test_it_can_be_left_out(run, name):
    """Whoever has fixtures with these names must be able to."""
    said = run("def test_it(jmcache_server): pass", "-p", f"no:{name}")
    assert ended(said) == "1 error"
    assert "fixture 'jmcache_server' not found" in said


def test_a_missing_server_is_a_failure_that_names_the_cure(run, tmp_path):
    """A skipped test says that all is well."""
    said = run(
        "def test_it(jmcache_cache): pass",
        conftest="import importlib.util; importlib.util.find_spec = lambda name: None",
        path=tmp_path,
    )
    assert ended(said) == "1 error"
    assert "jmcache: no redis-server" in said
    assert "Run: " in said
    assert "Traceback" not in said
