"""Errors without the variables of the code that they came out of."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def without_frames(build: Callable[P, T]) -> Callable[P, T]:
    """Return *build*, but of what comes out as an error the frames from here on are empty.

    They held the url, the environment or a file's text, and error trackers keep the variables of
    every frame. Whatever the error: a misspelt argument is a TypeError of Python's own.
    """

    @functools.wraps(build)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return build(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            traceback.clear_frames(error.__traceback__)
            raise

    return quiet
