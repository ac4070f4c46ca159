"""Refusals without the variables of the code that refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jmcache.errors import RedisConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


def without_frames(build: Callable[P, T]) -> Callable[P, T]:
    """Return *build*, but what it refuses is raised from here, where nothing is left of it.

    Its frames hold the url, the environment or a file's text, and error trackers keep the
    variables of every frame.
    """

    @functools.wraps(build)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return build(*args, **kwargs)
        except RedisConfigurationError as error:
            refusal = error.with_traceback(None)
        del args, kwargs
        raise refusal

    return quiet
