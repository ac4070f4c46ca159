"""The way to what cannot be written, gathered while the walk unwinds."""

from __future__ import annotations

_MAX_STEP = 40  # characters of a dict key that a path repeats; a field's name is shorter
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
    """Return the step through a dict's key: a name as of a field, or else only the key's type.

    A path is logged, and whatever is not the name of a field may be an id or an address.
    """
    if type(key) is str and len(key) <= _MAX_STEP and key.isidentifier():
        return f".{key}"
    return f"[<{type_name(type(key))}>]"
