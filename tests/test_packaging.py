"""What somebody who installs jmcache gets: the package, all of it, and nothing else."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked(*paths):
    """What git has under *paths*; for a copy without git, what is there."""
    if not (ROOT / ".git").exists():
        pytest.fail("run the tests in a git clone: they compare what is built with what is tracked")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return {name for name in listed.decode().split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def clean_copy(tmp_path_factory):
    """A clone as a stranger has it: no build leftovers, no files that git does not know."""
    copy = tmp_path_factory.mktemp("clone")
    for name in tracked():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return copy


@pytest.fixture(scope="module")
def built(clean_copy, tmp_path_factory):
    """(sdist, wheel made from it, what the build said)."""
    where = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", where, clean_copy],
        env={name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = where.glob("*.tar.gz"), where.glob("*.whl")
    return sdist, wheel, done.stdout + done.stderr


def test_the_wheel_holds_exactly_the_package(built):
    """A test module or an example in a wheel lands in the user's site-packages."""
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    inside = {name for name in names if not re.match(r"jmcache-[^/]+\.dist-info/", name)}
    assert inside == tracked("jmcache")
    assert "jmcache/py.typed" in inside
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_the_package_and_what_builds_it(built):
    """A stray file of a developer's machine, a key perhaps, must not be published."""
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    written = {name for name in names if name.startswith("jmcache.egg-info/")} | {"PKG-INFO"}
    # setuptools takes the test modules along unasked.
    tests = {name for name in tracked("tests") if re.fullmatch(r"tests/test[^/]*\.py", name)}
    build = tracked("setup.py", "setup.cfg", "LICENSE", "README.md")
    assert names - written == tracked("jmcache") | build | tests


def test_the_build_warns_of_nothing(built):
    """setuptools warns for a year or two, and then no release can be built any more."""
    assert not re.search(r"warn|deprecat", built[2], re.IGNORECASE)


def test_the_metadata_says_what_setup_cfg_says(built):
    """pip decides by it which Python and which redis-py a user gets."""
    with zipfile.ZipFile(built[1]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = metadata.get_all("Requires-Dist")
    core = {line.split("<")[0].split(">")[0] for line in wanted if "extra ==" not in line}
    assert core == {"backoff", "circuitbreaker", "redis", "ujson"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(setup["options.extras_require"])
    [version] = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "jmcache/__init__.py").read_text(), re.M
    )
    assert metadata["Version"] == version


def test_the_top_level_is_what_the_layout_allows():
    """The user fixed the top level; one more file there is one more thing to explain."""
    top = {name.partition("/")[0] for name in tracked()}
    visible = {name for name in top if not name.startswith(".")}
    assert visible <= {
        "setup.cfg", "setup.py", "jmcache", "tests", "docs", "tox.ini", "Makefile",
        "README.md", "LICENSE", "CHANGELOG.md",
    }  # fmt: skip
