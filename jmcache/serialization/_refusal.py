"""The way to what cannot be written, gathered while the walk unwinds."""

from __future__ import annotations

_MAX_STEP = 40  # characters of a dict key that a path repeats
_MAX_PATH = 200  # characters; a list that contains itself has a path without end
_MAX_NAME = 100  # characters


class Refusal(Exception):  # noqa: N818 - it becomes an error only in serialize()
    """Something in a value cannot be written. Names its place and type, never itself."""

    def __init__(self, reason: str, kind: type, complaint: str, *steps: str) -> None:
        self.reason = reason
        self.type_name = type_name(kind)
        self.complaint = complaint
        self.steps = list(steps)  # innermost first

    def path(self) -> str:
        """Return the way from the value to the place, as one would write it in Python."""
        path = "".join(reversed(self.steps)).removeprefix(".")
        return path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}..."

    def message(self) -> str:
        return f"{self.path() or 'the value'} ({self.type_name}): {self.complaint}"


def type_name(kind: type) -> str:
    """Return the name as in a traceback: with its module unless it is built in."""
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return name[:_MAX_NAME]


def step(key: object) -> str:
    """Return the step through a dict's key: the key if it is text, else only its type."""
    if type(key) is not str:
        return f"[<{type_name(type(key))}>]"
    if len(key) > _MAX_STEP:
        return f"[{key[:_MAX_STEP] + '...'!r}]"
    return f".{key}" if key.isidentifier() else f"[{key!r}]"
