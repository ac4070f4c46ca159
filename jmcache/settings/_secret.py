"""Text that is written down nowhere by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from jmcache.errors import RedisConfigurationError

T = TypeVar("T")

_LONGEST_FILE = 64 * 1024  # bytes; it may turn out to be a device without end


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


class FileSecret(Secret):
    """A password that a file holds: what it held when the settings were read.

    Equals texts as a Secret does, but of other secrets only one of the same file.
    """

    __slots__ = ("_label", "_path")

    _label: str
    _path: Path

    def __new__(cls, text: str, path: Any, label: str) -> Self:
        """Hide *text*, which was read from *path*; *label* is what named the file."""
        made = super().__new__(cls, text)
        made._path = Path(path).absolute()  # the process may change its directory
        made._label = label
        return made

    def read(self) -> str:
        """Return what the file holds now.

        Raises:
            RedisConfigurationError: It cannot be read, or holds no text.
        """
        return read_secret(self._path, self._label, "password")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Secret):
            other_path = getattr(other, "_path", None)
            return self._text == other._text and self._path == other_path
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = Secret.__hash__


def read_secret(path: Any, label: str, field: str) -> str:
    """Return the first 64 KiB of a file without the newline at its end.

    Raises:
        RedisConfigurationError: It cannot be read, or is something else. Names *label* and *field*.
    """
    # No message shows the path: the secret itself is put there by mistake now and then. And each
    # is raised outside the handler, for a chained error would show it.
    trouble = "not UTF-8"
    try:
        with Path(path).open("rb") as file:
            secret = file.read(_LONGEST_FILE + 1)
        if len(secret) <= _LONGEST_FILE:
            return secret.decode().removesuffix("\n").removesuffix("\r")
        trouble = f"longer than {_LONGEST_FILE} bytes"
    except OSError as error:
        trouble = error.strerror or "not readable"
    except UnicodeDecodeError:
        pass
    except (TypeError, ValueError):
        trouble = "no path"
    raise RedisConfigurationError(f"{label}: a file that holds the {field}; this one: {trouble}")


def reveal(text: T) -> T | str:
    """Return what *text* stands for; anything but a Secret stands for itself."""
    return text.get_secret_value() if isinstance(text, Secret) else text
