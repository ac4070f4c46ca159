"""What importing jmcache costs and does: little, and nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jmcache
import jmcache.testing

PROBE = """
import json, logging, sys, threading, time

events = []
def watch(event, args):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        events.append(event)
sys.addaudithook(watch)
loggers = set(logging.root.manager.loggerDict)

began = time.process_time()
IMPORT
seconds = time.process_time() - began

handlers = [
    (name, str(handler))
    for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]
    for handler in getattr(logger, "handlers", ())
    if not isinstance(handler, logging.NullHandler)
]
print(json.dumps({
    "seconds": seconds,
    "threads": [thread.name for thread in threading.enumerate()],
    "events": events,
    "handlers": handlers,
    "packages": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def imported(statement):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("IMPORT", statement)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def after_import():
    return imported("from jmcache import *")


def test_import_starts_no_thread(after_import):
    """A thread at import is lost in every gunicorn or Celery child, and warns on fork."""
    assert after_import["threads"] == ["MainThread"]


def test_import_opens_no_socket_and_starts_no_process(after_import):
    """Importing must work in a build container that has no network."""
    assert after_import["events"] == []


def test_import_adds_no_log_handler(after_import):
    """Where log lines go is the application's to say."""
    assert after_import["handlers"] == []


def test_import_does_not_import_redis(after_import):
    """redis-py takes 0.15 s to import; who imports us for `memory://` should not pay it."""
    assert "redis" not in after_import["packages"]


def test_import_takes_less_than_a_quarter_of_a_second(after_import):
    """Every worker start and every command-line tool pays it.

    CPU time, and the best of five: what else the machine does is not the package's fault. asyncio
    alone takes 0.03 s where nothing else runs, and three times that where much does.
    """
    seconds, asyncios = [after_import["seconds"]], [imported("import asyncio")["seconds"]]
    while min(seconds) >= 0.25 and len(seconds) < 5:
        seconds.append(imported("from jmcache import *")["seconds"])
        asyncios.append(imported("import asyncio")["seconds"])
    assert min(seconds) < 0.25 * max(1.0, min(asyncios) / 0.03)


def test_the_test_kit_imports_no_further_package(after_import):
    """A plug-in that loads fakeredis or a server early would slow down every pytest start."""
    more = set(imported("from jmcache.testing import *")["packages"]) - set(
        after_import["packages"]
    )
    assert more <= sys.stdlib_module_names


def test_the_bare_packages_import_next_to_nothing():
    """pytest imports them at every start wherever they are installed, for the plugin."""
    bare = imported("import jmcache, jmcache.testing")
    assert set(bare["packages"]) <= set(imported("import typing")["packages"]) | {"jmcache"}


@pytest.mark.parametrize("package", [jmcache, jmcache.testing])
def test_every_public_name_is_what_type_checkers_take_it_for(package):
    """They read one list of imports, and the program another."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jmcache.")
        for alias in node.names
        if alias.name in package.__all__
    }
    assert set(told) == set(package.__all__)
    for name, module in told.items():
        assert getattr(package, name) is getattr(sys.modules[module], name), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018
