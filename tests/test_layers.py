"""The contract on who may import whom: that it covers everything, and that it bites."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jmcache"


LINT_IMPORTS = """
import sys
from importlinter.cli import lint_imports_command
sys.exit(lint_imports_command(["--no-cache", "--no-logo"]))
"""


def lint_imports(where):
    """Run import-linter in *where*; (kept?, what it said)."""
    done = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    """The package, free to be broken."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "jmcache", ignore=ignore)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_imports_point_down(copy):
    """A stop that imports another can be understood and replaced no longer by itself."""
    kept, said = lint_imports(copy)
    assert kept, said


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("retry.py", "from jmcache.circuit_breaker import CircuitBreaker"),  # sideways
        ("errors.py", "from jmcache.cache import RedisCache"),  # up
        ("connection/_pool.py", "import jmcache"),  # up, through the front door
        ("cache/_stops.py", "import redis"),
        ("aio/_cache.py", "import ujson"),
        ("helpers.py", "X = 1"),  # a module that stands in no layer
    ],
)
def test_a_wrong_import_is_found(copy, module, line):
    """A contract that nothing can break protects nothing."""
    target = copy / "jmcache" / module
    text = target.read_text() if target.exists() else ""
    head, future, body = text.partition("from __future__ import annotations\n")
    target.write_text(f"{head}{future}{line}\n{body}" if future else f"{line}\n{text}")
    kept, said = lint_imports(copy)
    assert not kept
    assert "1 broken" in said, said


def test_every_foreign_package_has_a_contract():
    """A package imported in passing is one that nobody declared, and a user does not have."""
    foreign = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                foreign |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                foreign.add((node.module or "").partition(".")[0])
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    covered = set()
    for section in contracts.values():
        if section.get("type") == "protected":
            covered |= set(section["protected_modules"].split())
    assert foreign - sys.stdlib_module_names - {"jmcache"} == covered


def test_nothing_is_imported_by_a_name_in_a_string():
    """importlib.import_module would pass below the contract."""
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"import_module|__import__\(", path.read_text()), path
