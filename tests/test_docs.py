"""README.md and docs/: every code block is run or checked, and every link leads somewhere.

What a fence may say, and what is then done:

    python      run; the blocks of a page in order, as one program, `await` allowed everywhere
    console     lines after "$ " are commands: the ones we can answer for are checked
    sh          as console, every line a command
    json, ini   parsed
    text        drawings and output: nothing

Anything else fails, so that no block goes unchecked by accident.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import jmcache

ROOT = Path(__file__).parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if page.exists()]

# Commands a page may show that are not ours to check.
FOREIGN = {"apt-get", "cd", "celery", "curl", "export", "git", "gunicorn", "redis-cli",
           "redis-server", "source", "uvicorn", "."}  # fmt: skip


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line of text, counted from 1
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """The fenced blocks of a page, in order."""
    fence, found, lines = None, [], page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(.*?)\s*$", line)
        if fence is None and mark:
            fence, tag, begin = mark[1], mark[2], number + 1
        elif fence is not None and mark and mark[1].startswith(fence) and not mark[2]:
            text = textwrap.dedent("\n".join(lines[begin - 1 : number - 1]))
            found.append(Block(page, begin, tag, text))
            fence = None
    assert fence is None, f"{page}: the block that begins in line {begin} never ends"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block):
    """Each command as a list of words, without variables set for it, sudo and comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.tag == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        for part in re.split(r"&&|\|\||[;|]", line):
            words = shlex.split(part, comments=True)
            while words and (words[0] == "sudo" or re.match(r"\w+=", words[0])):
                words.pop(0)
            if words:
                yield words


def check_command(words):
    """Why a command would not work here, or None."""
    program = Path(words[0]).name
    if program == "make":
        done = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        return done.stderr if done.returncode else None
    if "pip" in words[:3] and "install" in words:
        wanted = [word for word in words[words.index("install") + 1 :] if word[0] != "-"]
        return check_requirements(wanted)
    if re.fullmatch(r"python[0-9.]*", program):
        missing = [word for word in words if word.endswith(".py") and not (ROOT / word).exists()]
        return f"no such file: {missing}" if missing else None
    if program in FOREIGN:
        return None
    return f"{program}: neither checked here nor named in FOREIGN"


def check_requirements(wanted):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for requirement in wanted:
        parts = re.fullmatch(r"(jmcache|\.)(?:\[([\w,-]+)\])?(?:[=<>!~].*)?", requirement)
        if parts is None:
            return f"{requirement}: not our package"
        unknown = set((parts[2] or "").split(",")) - {"", *setup["options.extras_require"]}
        if unknown:
            return f"{requirement}: no such extra: {unknown}"
    return None if wanted else "it installs nothing"


def test_there_is_a_readme_where_there_are_docs():
    """It is the first page that anybody reads."""
    assert not PAGES or PAGES[0].name == "README.md"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_what_it_says(block):
    """A block that nobody checks is right only on the day it is written."""
    match block.tag:
        case "python" | "text":
            pass  # the one is run below, the other is nothing to run
        case "console" | "sh":
            commands = list(commands_of(block))
            assert commands, 'no command in it: say "text", or begin lines with "$ "'
            problems = [f"{shlex.join(c)}: {why}" for c in commands if (why := check_command(c))]
            assert not problems
        case "json":
            json.loads(block.text)
        case "ini":
            configparser.ConfigParser().read_string(block.text)
        case tag:
            pytest.fail(f"a fence may not say {tag!r}: see the top of this file")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.page == p and b.tag == "python" for b in BLOCKS)],
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
def test_the_code_on_a_page_runs(page, redis_server, tmp_path):
    """Readers paste it. What fails for them should have failed here."""
    done = subprocess.run(
        [sys.executable, __file__, page],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "JMCACHE_"))},
            "REDIS_URL": redis_server.url,
            "PYTHONPATH": str(Path(jmcache.__file__).parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    """A page that was renamed leaves its readers at a dead end."""
    text = re.sub(
        r"^\s*(```|~~~).*?^\s*\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ("make test", True),
        ("make demo ARGS=--json", True),
        ("make tset", False),
        ("pip install 'jmcache[fastapi,celery]'", True),
        ("python3 -m pip install -e .[dev]", True),
        ("pip install jmcache[fastpai]", False),
        ("pip install jmcash", False),
        ("python tests/test_docs.py", True),
        ("python docs/no_such_file.py", False),
        ("git clone somewhere", True),
        ("jmcache-doctor", False),
    ],
)
def test_a_wrong_command_is_told_from_a_right_one(command, right):
    """A check that lets everything through is none."""
    assert (check_command(shlex.split(command)) is None) is right


def run(page):
    """Run the python blocks of *page* as one program; tracebacks show the page's own lines."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    with asyncio.Runner() as runner:
        for block in blocks_of(page):
            if block.tag != "python":
                continue
            source = "\n" * (block.line - 1) + block.text
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(source, str(page), "exec", flags=flags, dont_inherit=True)
            result = eval(code, vars(module))
            if inspect.iscoroutine(result):
                runner.run(result)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
