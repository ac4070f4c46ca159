"""What the end of a call says about Redis."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from jmcache.errors import RedisError, RedisRejectedError


class Verdict(enum.Enum):
    """For or against Redis."""

    SUCCESS = enum.auto()
    ANSWERED = enum.auto()  # it said no, so it is alive
    FAILURE = enum.auto()
    FATAL = enum.auto()  # a failure that needs no second one
    NEUTRAL = enum.auto()  # nothing


class News(NamedTuple):
    """The end of one call."""

    verdict: Verdict
    reason: str
    type_name: str = ""


SUCCESS = News(Verdict.SUCCESS, "success")
NEUTRAL = News(Verdict.NEUTRAL, "neutral")
FAILURE = News(Verdict.FAILURE, "failure", "failure")


def judge(error: BaseException, counts: Callable[[RedisError], bool]) -> News:
    """Return the news that *error* is; *counts*: is it evidence against Redis?"""
    if not isinstance(error, RedisError):
        return NEUTRAL
    if counts(error):
        verdict = Verdict.FATAL if error.opens_at_once else Verdict.FAILURE
    elif isinstance(error, RedisRejectedError):
        verdict = Verdict.ANSWERED
    else:
        return NEUTRAL
    return News(verdict, error.reason, type(error).__name__)
