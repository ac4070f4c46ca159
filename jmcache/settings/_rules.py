"""What each setting may be, and how text becomes one; knows nothing of where it came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Protocol

from jmcache.errors import RedisConfigurationError
from jmcache.settings._secret import Secret, reveal

TEN_YEARS_S = 10 * 365 * 86_400
_ONE_DAY_S = 86_400  # a longer wait for one answer is a mistake, and poll() counts it in an int
_INT_MAX = 2**31 - 1
_MIB = 1024 * 1024

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PER_SECOND = {"ms": 1000.0, "s": 1.0}
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

# A name, or an IPv6 address: with a single colon it would be a name with its port.
_HOST = re.compile(
    r"[^\x00-\x20\x7f\s/@?#%:\[\]\\]{1,255}"
    r"|(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z_.-]{1,32})?"
)
# A host, or an IPv6 address in brackets, and perhaps a port.
_PLACE = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?")
_PATH = re.compile(r"[^\x00]+")
_MASTER = re.compile(r"[A-Za-z0-9._-]{1,128}")  # what Sentinel itself allows
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_ENTRY_SECRET = re.compile(r"[!-+\--~]{32,1024}")  # commas and spaces stand between two of them


class Rule(Protocol):
    """What one setting may be."""

    @property
    def wants(self) -> str:
        """What would be right, to follow the name of the setting in a message."""

    @property
    def secret(self) -> bool:
        """True where a message must not show what came in."""

    def holds(self, value: object) -> bool:
        """Return whether *value* is right."""

    def normal(self, value: Any) -> Any:
        """Return the form of the right *value* that is kept."""

    def read(self, text: str) -> object:
        """Return what *text* stands for, or *text* itself, which does not hold then."""


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds, both included."""

    least: int
    most: int = _INT_MAX
    secret: bool = False

    @property
    def wants(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.least <= value <= self.most

    def normal(self, value: Any) -> int:
        return int(value)

    def read(self, text: str) -> object:
        text = text.strip()
        return int(text) if _WHOLE.fullmatch(text) else text


@dataclass(frozen=True)
class Seconds:
    """A duration above 0, and not below *least*."""

    most: int
    secret: bool = False
    least: float = 0.0

    @property
    def wants(self) -> str:
        if self.least:
            return f"seconds as a number from {self.least} to {self.most}"
        return f"seconds as a number above 0, at most {self.most}"

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return 0 < value <= self.most and value >= self.least

    def normal(self, value: Any) -> float:
        return float(value)

    def read(self, text: str) -> object:
        text = text.strip()
        unit = "ms" if text.endswith("ms") else "s"
        number = text.removesuffix(unit)
        return float(number) / _PER_SECOND[unit] if _NUMBER.fullmatch(number) else text


@dataclass(frozen=True)
class Share:
    """A part of a whole: 0 is none of it, 1 would be all."""

    wants: str = "a number from 0 to below 1"
    secret: bool = False

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return 0 <= value < 1

    def normal(self, value: Any) -> float:
        return float(value)

    def read(self, text: str) -> object:
        text = text.strip()
        return float(text) if _NUMBER.fullmatch(text) else text


@dataclass(frozen=True)
class Rate:
    """A part of a whole that is reached, or not: 0 would always be, 1 is all of it."""

    wants: str = "a number above 0, at most 1"
    secret: bool = False

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return 0 < value <= 1

    def normal(self, value: Any) -> Any:
        return float(value)

    def read(self, text: str) -> object:
        text = text.strip()
        return float(text) if _NUMBER.fullmatch(text) else text


@dataclass(frozen=True)
class OrNone:
    """What *rule* says, or None for off, for which text says ``none``."""

    rule: Rule
    secret: bool = False

    @property
    def wants(self) -> str:
        return f"{self.rule.wants}, or None"

    def holds(self, value: object) -> bool:
        return value is None or self.rule.holds(value)

    def normal(self, value: Any) -> Any:
        return None if value is None else self.rule.normal(value)

    def read(self, text: str) -> object:
        return None if text.strip().lower() == "none" else self.rule.read(text)


@dataclass(frozen=True)
class Flag:
    """Yes or no; never a number or a text that happens to be true."""

    wants: str = "True or False"
    secret: bool = False

    def holds(self, value: object) -> bool:
        return isinstance(value, bool)

    def normal(self, value: Any) -> Any:
        return value

    def read(self, text: str) -> object:
        return _FLAGS.get(text.strip().lower(), text)


@dataclass(frozen=True)
class Text:
    """Text that UTF-8 can write and *fits* accepts; where *optional*, None or "" for none.

    Where *hidden*, it is kept as a Secret.
    """

    wants: str
    fits: Callable[[str], object] = bool
    optional: bool = False
    secret: bool = False
    hidden: bool = False

    def holds(self, value: object) -> bool:
        if self.optional and (value is None or value == ""):
            return True
        return isinstance(value, str) and _is_unicode(value) and bool(self.fits(value))

    def normal(self, value: Any) -> Any:
        if self.hidden and value and not isinstance(value, Secret):
            return Secret(value)
        return value or None

    def read(self, text: str) -> object:
        return text


@dataclass(frozen=True)
class Password(Text):
    """Text to hide, or what gives it when it is wanted."""

    def holds(self, value: object) -> bool:
        if isinstance(value, (str, bytes)) or value is None:
            return super().holds(value)
        gives = value if callable(value) else getattr(value, "get_credentials", None)
        # Hashable, as settings are; and nobody would await it.
        return callable(gives) and not iscoroutinefunction(gives) and isinstance(value, Hashable)

    def normal(self, value: Any) -> Any:
        return super().normal(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Secrets:
    """Any number of long texts for a computer to keep, none of them ever shown."""

    wants: str = (
        "secrets of 32 to 1024 printable ASCII characters each, without spaces and commas, the"
        " current one first"
    )
    secret: bool = True

    def holds(self, value: object) -> bool:
        return isinstance(value, (tuple, list)) and all(
            isinstance(one, str) and _ENTRY_SECRET.fullmatch(reveal(one)) for one in value
        )

    def normal(self, value: Any) -> tuple[Secret, ...]:
        return tuple(map(Secret, value))

    def read(self, text: str) -> object:
        return tuple(re.split(r"[\s,]+", text.strip()))


@dataclass(frozen=True)
class Places:
    """Servers as text, ``cache-1:7000,[::1]:7000``; "" for none."""

    wants: str = "host:port of each, IPv6 as [::1]:7000, with commas between"
    secret: bool = False
    port: int | None = None  # of a place without one

    def holds(self, value: object) -> bool:
        return isinstance(value, str) and (not value or None not in self._places(value))

    def normal(self, value: Any) -> Any:
        if self.port is None or not value:
            return value
        return ",".join(map(write_place, filter(None, self._places(value))))

    def _places(self, text: str) -> list[tuple[str, int] | None]:
        return read_places(text, self.port)

    def read(self, text: str) -> object:
        return text


def read_places(text: str, port: int | None = None) -> list[tuple[str, int] | None]:
    """Return host and port of each place in *text*, None for one that is not understood.

    Args:
        port: Of a place without one; None: every place must have one.
    """
    return [_read_place(place, port) for place in text.split(",")]


def write_place(place: tuple[str, int]) -> str:
    """Return *place* as `read_places` reads it."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_place(place: str, default: int | None) -> tuple[str, int] | None:
    match = _PLACE.fullmatch(place)
    if match is None or not (match[3] or default):
        return None
    host, port = match[1] or match[2], int(match[3] or default or 0)
    return (host, port) if _HOST.fullmatch(host) and 1 <= port <= 65_535 else None


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_socket_path(path: str) -> bool:
    # 107 bytes are what Linux has room for; a longer one would fail at every connect.
    return path.startswith("/") and "\0" not in path and len(path.encode()) <= 107


_CREDENTIAL = "text that UTF-8 can write, or None"
_PASSWORD = Password(
    f"{_CREDENTIAL}, or a function that returns it, or an object with get_credentials()",
    optional=True,
    secret=True,
    hidden=True,
)
_FILE = Text("the path of a file, or None", _PATH.fullmatch, optional=True)

RULES: Mapping[str, Rule] = {
    "host": Text("a host name or an address, without port and no url", _HOST.fullmatch),
    "port": Whole(1, 65_535),
    "db": Whole(0),
    "username": Text(_CREDENTIAL, optional=True, secret=True),
    "password": _PASSWORD,
    "unix_socket_path": Text(
        "an absolute path of at most 107 bytes, or None", _is_socket_path, optional=True
    ),
    "tls": Flag(),
    "tls_ca_certs": _FILE,
    "tls_certfile": _FILE,
    "tls_keyfile": _FILE,
    "tls_check_hostname": Flag(),
    "tls_verify": Flag(),
    "memory": Flag(),
    "cluster": Flag(),
    "cluster_nodes": Places(),
    "sentinels": Places("host:port of each, IPv6 as [::1]:26379, with commas between", port=26_379),
    "sentinel_master": Text(
        "letters, digits or any of . _ -, as the sentinels call it, or None",
        _MASTER.fullmatch,
        optional=True,
    ),
    "sentinel_username": Text(_CREDENTIAL, optional=True, secret=True),
    "sentinel_password": _PASSWORD,
    "namespace": Text("1 to 64 letters, digits or any of _ . : -", _NAMESPACE.fullmatch),
    "schema_version": Whole(1),
    "ttl": Seconds(TEN_YEARS_S),
    "ttl_jitter": Share(),
    "operation_timeout": Seconds(_ONE_DAY_S),
    "connection_timeout": Seconds(_ONE_DAY_S),
    "max_connections": Whole(1, 65_535),
    "health_check_interval": Seconds(TEN_YEARS_S),
    "max_retries": Whole(0),
    "initial_backoff_ms": Whole(0),
    "max_backoff_ms": Whole(0),
    "failure_threshold": Whole(1),
    "reset_timeout": Seconds(TEN_YEARS_S),
    "failure_rate_threshold": OrNone(Rate()),
    "slow_call_threshold": OrNone(Seconds(_ONE_DAY_S)),
    "slow_call_rate_threshold": Rate(),
    "rate_window": Seconds(_ONE_DAY_S),
    "rate_min_calls": Whole(1),
    "max_value_bytes": Whole(1, 512 * _MIB),  # what Redis itself takes for one value
    "compress_above_bytes": Whole(0),
    "entry_secrets": Secrets(),
    "max_entries": Whole(1),
    "lock_timeout": Seconds(_ONE_DAY_S),
    "max_outage_loads": Whole(1),
    "near": Flag(),
    "near_max_bytes": Whole(1),
    "near_ttl": Seconds(TEN_YEARS_S),
    # A PING goes out 2.5 times in it, and its answer has to come back: less is no near cache.
    "near_lag": Seconds(60, least=0.01),
}


def check(name: str, value: object, label: str = "") -> Any:
    """Return the setting *name* as it is kept.

    Args:
        label: What the message calls it, such as the variable it came from; "": its own name.

    Raises:
        RedisConfigurationError: *value* is not right for it. A credential is not shown.
    """
    rule = RULES[name]
    if not rule.holds(value):
        came = f"{type(value).__name__} (not shown)" if rule.secret else shown(value)
        raise RedisConfigurationError(f"{label or name}: {rule.wants}; not {came}")
    return rule.normal(value)


def convert(name: str, value: object, label: str) -> Any:
    """Return the setting *name* from what may be text; otherwise as `check`."""
    return check(name, RULES[name].read(value) if isinstance(value, str) else value, label)


def shown(value: object) -> str:
    """Return *value* for a message: short, and nothing that may be a url with a password."""
    if isinstance(value, str):
        plain = len(value) <= 40 and "@" not in value and "//" not in value
        return repr(value) if plain else f"text of {len(value)} characters (not shown)"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return type(value).__name__


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return a sentence that suggests the closest of *words*, "" when none is close."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.8)
    return f'; did you mean "{close[0]}"?' if close else ""
