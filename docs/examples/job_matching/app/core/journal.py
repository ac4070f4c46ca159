"""A line for each ranking asked for: what the demo adds up over all processes.

A service would count this in its metrics; a file needs nothing installed and also reaches Celery's
children, which answer no HTTP.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from app.core.config import settings

_files: dict[str, int] = {}  # path -> descriptor, opened at the first line


@dataclass(frozen=True, slots=True)
class Line:
    """One ranking asked for.

    Attributes:
        at: Seconds since 1970 when it was answered.
        pid: Process that answered.
        outcome: jmcache's word for how the look-up ended; "hit" means nothing was computed.
        cache_s: Seconds spent on the cache, look-up and store together.
        match_s: Seconds spent on ranking; 0.0 for a hit.
    """

    at: float
    pid: int
    outcome: str
    cache_s: float
    match_s: float


def note(outcome: str, cache_s: float, match_s: float) -> None:
    """Append a line to the journal, if the service keeps one.

    Any thread, any process: a short append to one file is not torn by another.
    """
    path = settings.journal_path
    if not path:
        return
    if path not in _files:
        _files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    text = f"{time.time():.6f} {os.getpid()} {outcome} {cache_s:.6f} {match_s:.6f}\n"
    os.write(_files[path], text.encode())


def read(path: str | os.PathLike[str]) -> list[Line]:
    """Return every line of a journal, oldest first; a journal nobody wrote to has none."""
    try:
        with Path(path).open(encoding="ascii") as file:
            rows = [row.split() for row in file]
    except FileNotFoundError:
        return []
    return [
        Line(float(at), int(pid), outcome, float(cache_s), float(match_s))
        for at, pid, outcome, cache_s, match_s in rows
    ]
