"""The other clients: installed once, each with what it needs, away from this project's packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from soak.run import Plan

PINNED = (
    "redis==8.1.0",
    "cashews==7.6.0",
    "aiocache==0.12.3",
    "dogpile.cache==1.5.0",
    "django-redis==7.0.0",
    "Django==5.2.19",
    "cachelib==0.17.0",
    "Flask-Caching==2.5.1",
    # What jmcache itself needs, so that one process can measure all (benchmarks.bench).
    "ujson==6.1.0",
    "circuitbreaker==2.1.3",
    "backoff==2.2.1",
)
PEERS = (
    "redis-py",
    "redis-py-tuned",
    "cashews",
    "aiocache",
    "dogpile.cache",
    "django-redis",
    "django-redis-forgiving",
)

_FOLDER = Path(__file__).parents[2] / "build" / "soak-peers"


def plans(plan: Plan) -> Iterator[Plan]:
    """Yield jmcache's plan and then the same for each peer."""
    python = str(installed())
    yield plan
    for peer in PEERS:
        yield replace(plan, contenders=(peer, peer), python=python)


def installed() -> Path:
    """Return the interpreter that has them all, after making it where it is not there yet."""
    python = _FOLDER / "bin" / "python"
    stamp = _FOLDER / "pinned.txt"
    pinned = "\n".join(PINNED)
    if not stamp.exists() or stamp.read_text() != pinned:
        print(f"installing {', '.join(PINNED)} into {_FOLDER}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", _FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
        stamp.write_text(pinned)
    return python
