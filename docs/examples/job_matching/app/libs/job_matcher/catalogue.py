"""The postings and candidates of the service, read once per process from data/."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[3] / "data"
HOURS_A_YEAR = 2080  # 52 weeks of 40 hours: how hourly pay is compared with yearly pay


@dataclass(frozen=True, slots=True)
class Posting:
    """A job on offer.

    Attributes:
        posted: Local date and time, ISO 8601.
        salary_year_usd: US dollars a year, also for hourly pay; None when not stated.
        skills: Lower-case words, sorted.
    """

    id: str
    title: str
    category: str
    company: str
    location: str
    country: str
    remote: bool
    posted: str
    salary_year_usd: int | None
    skills: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody looking for a job.

    Attributes:
        skills: Lower-case words, sorted, mostly those that postings use.
    """

    id: str
    skills: tuple[str, ...]


@functools.cache
def postings() -> tuple[Posting, ...]:
    """Return every posting, oldest first."""
    return tuple(
        Posting(
            id=row["id"],
            title=row["title"],
            category=row["category"],
            company=row["company"],
            location=row["location"],
            country=row["country"],
            remote=row["remote"],
            posted=row["posted"],
            salary_year_usd=_salary_a_year(row),
            skills=tuple(row["skills"]),
        )
        for row in _rows(DATA / "postings" / "jobs_postings.jsonl.gz")
    )


@functools.cache
def candidates() -> dict[str, Candidate]:
    """Return every candidate by id, in the order of the file."""
    rows = _rows(DATA / "candidates" / "candidates_survey.jsonl.gz")
    return {row["id"]: Candidate(id=row["id"], skills=tuple(row["skills"])) for row in rows}


def _salary_a_year(row: dict[str, Any]) -> int | None:
    a_year: float | None = row["salary_year_usd"]
    an_hour: float | None = row["salary_hour_usd"]
    if a_year is None and an_hour is not None:
        a_year = an_hour * HOURS_A_YEAR
    return None if a_year is None else round(a_year)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
