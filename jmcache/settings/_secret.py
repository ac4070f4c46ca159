"""Text that is written down nowhere by accident."""

from __future__ import annotations

from typing import NoReturn, Self, TypeVar

T = TypeVar("T")


class Secret(str):
    """A text that is "***" to whoever does not ask for it by name.

    Logs, f-strings, JSON, ``repr``, ``vars``, ``dataclasses.asdict`` and the variables that an
    error tracker keeps of every frame see three asterisks, because that is what the text object
    holds. What it stands for comes out of ``encode()``, which is what a client needs to log in, and
    of ``get_secret_value()``. It equals and hashes as what it stands for. Pickling it is refused:
    the bytes would hold it. It hides nothing from code that wants to find it.
    """

    __slots__ = ("_text",)

    _text: str

    def __new__(cls, text: str) -> Self:
        """Hide *text*; a Secret is the same secret once more."""
        made = super().__new__(cls, "***")
        made._text = reveal(text)
        return made

    def get_secret_value(self) -> str:
        """Return what it stands for."""
        return self._text

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return what it stands for, as bytes."""
        return self._text.encode(encoding, errors)

    def __eq__(self, other: object) -> bool:
        return self._text == reveal(other)

    def __ne__(self, other: object) -> bool:
        return self._text != reveal(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a password or secret is not pickled: read the settings where they are used"
        )


def reveal(text: T) -> T | str:
    """Return what *text* stands for; anything but a Secret stands for itself."""
    return text.get_secret_value() if isinstance(text, Secret) else text
