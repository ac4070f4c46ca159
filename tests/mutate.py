"""Breaks a package in small ways, one at a time, and tells which ones its tests do not notice.

    python tests/mutate.py                                      the circuit breaker, half an hour
    python tests/mutate.py jmcache/retry.py tests/test_retry.py
    python tests/mutate.py --list                               what would be broken

Each mutant runs in a copy, with the test files in the order given until the first failure; so the
quick ones belong in front. A survivor ("pass") is a line of code that no test needs: a test is
missing, or the line is too much, or both mean the same. A hang is noticed, too, if less politely.
Exit code 1 when there are survivors.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
BREAKER = "jmcache/circuit_breaker"
# The quick ones first.
THEMES = ("", "_rates", "_probes", "_late_news", "_listeners", "_monitor", "_fork", "_interrupts",
          "_races", "_model", "_traffic")  # fmt: skip
BREAKER_TESTS = [f"tests/test_circuit_breaker{theme}.py" for theme in THEMES]

OTHER: dict[type[ast.AST], type[ast.AST]] = {}
for one, other in [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn), (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div),
]:  # fmt: skip
    OTHER |= {one: other, other: one}


@dataclass(frozen=True)
class Mutant:
    """One way to break one file."""

    path: Path
    line: int
    change: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    total = len(list(_places(tree)))
    for number in range(total):
        broken = copy.deepcopy(tree)
        node, mutate = list(_places(broken))[number]
        before, line = ast.unparse(node), node.lineno
        after = mutate()
        source = ast.unparse(ast.fix_missing_locations(broken))
        yield Mutant(path, line, f"{_short(before)}  ->  {_short(after)}", source)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, object]]:
    """What can be broken: a node, and a function that breaks it and says what it is now.

    Not the texts of errors: they are for people, who forgive.
    """
    for parent, name, node in _walk(tree):
        for mutate in _ways(parent, name, node):
            yield node, mutate


def _walk(parent: ast.AST) -> Iterator[tuple[ast.AST, tuple[str, int | None], ast.AST]]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list") or isinstance(parent, ast.Raise):
            continue
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, node in items:
            if not isinstance(node, ast.AST) or _says_nothing(node):
                continue
            yield parent, (field, index), node
            yield from _walk(node)


def _says_nothing(node: ast.AST) -> bool:
    """Docstrings, imports, names of types and slots, what is there for type checkers only."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Assign):
        text = ast.unparse(node)
        return (
            text.startswith(("__slots__", "__all__")) or "TypeVar(" in text or "ParamSpec(" in text
        )
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _ways(parent: ast.AST, place: tuple[str, int | None], node: ast.AST) -> Iterator[object]:
    def put(new: ast.AST) -> str:
        field, index = place
        if index is None:
            setattr(parent, field, new)
        else:
            getattr(parent, field)[index] = new
        return ast.unparse(ast.fix_missing_locations(ast.copy_location(new, node)))

    def change(**fields: object) -> str:
        for field, value in fields.items():
            setattr(node, field, value)
        return ast.unparse(node)

    match node:
        case ast.Compare(ops=[op]) if type(op) in OTHER:
            yield lambda: change(ops=[OTHER[type(op)]()])
        case ast.Compare(ops=ops) if len(ops) > 1:
            for number, op in enumerate(ops):
                new = [*ops[:number], OTHER[type(op)](), *ops[number + 1 :]]
                yield lambda new=new: change(ops=new)
        case ast.BoolOp(op=op):
            yield lambda: change(op=OTHER[type(op)]())
            for value in node.values:
                yield lambda value=value: put(value)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            yield lambda: change(op=OTHER[type(op)]())
        case ast.UnaryOp(op=ast.Not()):
            yield lambda: put(node.operand)
        case ast.IfExp():
            yield lambda: put(node.body)
            yield lambda: put(node.orelse)
        case ast.If() | ast.While():
            yield lambda: change(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Constant(value=bool(value)):
            yield lambda: change(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield lambda: change(value=value + 1)
        case ast.Constant(value=str(value)):
            yield lambda: change(value=f"{value}?")
        case ast.Return(value=ast.AST()):
            yield lambda: put(ast.Return(ast.Constant(None)))
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise)):
        yield lambda: put(ast.Pass())


class Desk:
    """A copy of the code and its tests, to break and to try."""

    def __init__(self, where: Path, tests: list[str]) -> None:
        self.where, self.tests = where, tests
        for name in ("jmcache", "tests"):
            shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "setup.cfg", where)

    def run(self, limit_s: float) -> str:
        """How the tests end as things are: "pass", "fail" or "hang"."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *self.tests],
                cwd=self.where,
                env={**os.environ, "PYTHONPATH": str(self.where), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            return "hang"
        return "fail" if done.returncode else "pass"

    def run_with(self, mutant: Mutant, limit_s: float) -> str:
        """The same with *mutant* in the place of its file."""
        target = self.where / mutant.path
        whole = target.read_text(encoding="utf-8")
        target.write_text(mutant.source, encoding="utf-8")
        try:
            return self.run(limit_s)
        finally:
            target.write_text(whole, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("code", nargs="?", default=BREAKER, help="a module or a package")
    parser.add_argument("tests", nargs="*", default=BREAKER_TESTS, help="test files, quick first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="mutants whose line of output contains this")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    code = Path(chosen.code)
    paths = sorted((ROOT / code).rglob("*.py")) if (ROOT / code).is_dir() else [ROOT / code]
    mutants = [m for path in paths for m in mutants_of(path.relative_to(ROOT))]
    mutants = [mutant for mutant in mutants if chosen.only in str(mutant)]
    if chosen.list:
        print(*mutants, sep="\n")
        sys.exit(f"{len(mutants)} mutants")

    desks: SimpleQueue[Desk] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.jobs):
            desks.put(Desk(Path(folder) / str(number), chosen.tests))
        desk = desks.get()
        began = time.monotonic()
        if desk.run(600) != "pass":
            sys.exit("the tests fail before anything is broken")
        limit_s = 10 + 2 * (time.monotonic() - began)
        desks.put(desk)

        def try_one(mutant: Mutant) -> str:
            desk = desks.get()
            try:
                return desk.run_with(mutant, limit_s)
            finally:
                desks.put(desk)

        ends: Counter[str] = Counter()
        with ThreadPoolExecutor(chosen.jobs) as threads:
            for mutant, end in zip(mutants, threads.map(try_one, mutants), strict=True):
                ends[end] += 1
                if end != "fail":
                    print(f"{end} [{ends.total()}/{len(mutants)}] {mutant}", flush=True)
    print(f"{len(mutants)} mutants, {ends['pass']} survived, {ends['hang']} hung")
    sys.exit(ends["pass"] > 0)


if __name__ == "__main__":
    main()
