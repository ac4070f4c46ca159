"""Rank postings for a candidate by the skills they share, the rare ones counting for more.

Knows nothing of caches: it is the work that a cache saves.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from app.libs.job_matcher.catalogue import Posting, postings


class Match(TypedDict):
    """A posting that fits, as the service answers it.

    `score` is 1.0 when posting and candidate name the same skills, towards 0.0 the less they share.
    """

    posting_id: str
    title: str
    company: str
    location: str
    country: str
    remote: bool
    posted: str
    salary_year_usd: int | None
    score: float
    skills_shared: list[str]
    skills_missing: list[str]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a posting has to be, beside a fit; None means that it does not matter.

    Attributes:
        country: English name, any case.
        category: Role such as "Data Engineer", any case.
        remote: True for remote postings only, False for those on site only.
        min_salary_usd: US dollars a year; leaves out postings that state none.
    """

    country: str | None = None
    category: str | None = None
    remote: bool | None = None
    min_salary_usd: int | None = None

    def admit(self, posting: Posting) -> bool:
        """Say whether *posting* is wanted at all."""
        if self.country is not None and posting.country.casefold() != self.country.casefold():
            return False
        if self.category is not None and posting.category.casefold() != self.category.casefold():
            return False
        if self.remote is not None and posting.remote is not self.remote:
            return False
        if self.min_salary_usd is not None:
            return (posting.salary_year_usd or 0) >= self.min_salary_usd
        return True


class JobMatcher:
    """An inverted index over postings. Read-only once built: any number of threads may rank.

    A skill that stands in few postings says more about a job than one that stands in most. Each
    weighs ln(1 + postings / postings naming it), and a posting's score is the cosine between its
    weights and the candidate's: sharing a lot counts, and so does asking for little else.
    """

    def __init__(self, postings: Iterable[Posting]) -> None:
        self._postings = tuple(postings)
        naming: defaultdict[str, list[int]] = defaultdict(list)
        for number, posting in enumerate(self._postings):
            for skill in posting.skills:
                naming[skill].append(number)
        self._naming = dict(naming)  # skill -> numbers of the postings naming it
        self._weight = {
            skill: math.log(1 + len(self._postings) / len(numbers))
            for skill, numbers in self._naming.items()
        }
        self._length = [self._norm(posting.skills) for posting in self._postings]

    def rank(
        self, skills: Sequence[str], filters: Filters | None = None, *, limit: int = 20
    ) -> list[Match]:
        """Return the best matches, best first; of equals the newest, then the one given first.

        The same arguments give the same list in every process. Skills that no posting names are
        passed over; without any that one does, the list is empty.

        Args:
            limit: At most so many matches, 1 or more.
        """
        known = sorted({skill for skill in skills if skill in self._weight})
        filters = filters or Filters()
        shared = [0.0] * len(self._postings)
        for skill in known:
            weight = self._weight[skill] ** 2
            for number in self._naming[skill]:
                shared[number] += weight
        length = self._norm(known)
        scored = (
            (weight / (length * self._length[number]), posting.posted, number)
            for number, (weight, posting) in enumerate(zip(shared, self._postings, strict=True))
            if weight and filters.admit(posting)
        )
        # Negated, because the largest win and the first posting has the lowest number.
        best = heapq.nlargest(limit, ((score, posted, -number) for score, posted, number in scored))
        mine = frozenset(known)
        return [self._match(self._postings[-negated], score, mine) for score, _, negated in best]

    def _norm(self, skills: Iterable[str]) -> float:
        return math.sqrt(sum(self._weight[skill] ** 2 for skill in sorted(skills)))

    def _match(self, posting: Posting, score: float, mine: frozenset[str]) -> Match:
        rarest_first = sorted(posting.skills, key=lambda skill: (-self._weight[skill], skill))
        shared = [skill for skill in rarest_first if skill in mine]
        missing = [skill for skill in rarest_first if skill not in mine]
        return Match(
            posting_id=posting.id,
            title=posting.title,
            company=posting.company,
            location=posting.location,
            country=posting.country,
            remote=posting.remote,
            posted=posting.posted,
            salary_year_usd=posting.salary_year_usd,
            score=round(score, 4),
            skills_shared=shared,
            skills_missing=missing,
            reason=_reason(shared, missing),
        )


def _reason(shared: list[str], missing: list[str]) -> str:
    asked = len(shared) + len(missing)
    text = f"has {len(shared)} of {asked} skills asked for, above all {', '.join(shared[:3])}"
    return text + (f"; lacks {', '.join(missing[:3])}" if missing else "")


@functools.cache
def job_matcher() -> JobMatcher:
    """Return this process's matcher over all postings; the first call takes about half a second."""
    return JobMatcher(postings())
