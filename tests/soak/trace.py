"""The look-ups to replay. Where they come from is in data/NOTICE.md."""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).parent / "data" / "trace.csv.gz"

MARKER = "Zu6rai"  # in every key and value: a log line that shows it shows too much


class Request(NamedTuple):
    """One look-up, and what would be stored were it a miss."""

    key: str
    value_bytes: int
    ttl_s: float


def requests() -> list[Request]:
    """Return the look-ups in their order."""
    with gzip.open(_FILE, "rt", encoding="ascii", newline="") as lines:
        return [
            Request(f"{row['key']}-{MARKER}", int(row["value_bytes"]), float(row["ttl_s"]))
            for row in csv.DictReader(lines)
        ]


def replay() -> Iterator[Request]:
    """Return the look-ups without end. Threads may share it: ``next`` is one step, in C."""
    found = requests()
    # Not itertools.cycle: it keeps a list of its own, which looks like a leak as it grows.
    return map(found.__getitem__, map(len(found).__rmod__, itertools.count()))
