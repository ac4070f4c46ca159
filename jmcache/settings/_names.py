"""Reads settings by the names that environments and other settings objects give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jmcache.errors import RedisConfigurationError
from jmcache.settings._rules import RULES, convert, did_you_mean
from jmcache.settings._secret import FileSecret, read_secret
from jmcache.settings._url import read_url

_PREFIX = "JMCACHE_"
_URLS = ("JMCACHE_URL", "REDIS_URL")  # the first one wins
_ENDPOINT = {
    "REDIS_HOST": "host",
    "REDIS_PORT": "port",
    "REDIS_DB": "db",
    "REDIS_USERNAME": "username",
    "REDIS_PASSWORD": "password",
    "REDIS_TLS": "tls",
    "REDIS_SSL": "tls",
}
# Variables that name a file: which other variable could hold the same, and which setting it is.
_FILES = {
    "REDIS_PASSWORD_FILE": ("REDIS_PASSWORD", "password"),
    "JMCACHE_SENTINEL_PASSWORD_FILE": ("JMCACHE_SENTINEL_PASSWORD", "sentinel_password"),
    "JMCACHE_ENTRY_SECRETS_FILE": ("JMCACHE_ENTRY_SECRETS", "entry_secrets"),
}
_ENDPOINT_FIELDS = {*_ENDPOINT.values(), "unix_socket_path", "memory"}
_PLAIN = {_PREFIX + name.upper(): name for name in RULES if name not in _ENDPOINT_FIELDS}
_KNOWN = (*_PLAIN, *_URLS, *_FILES)

# Looks a name up: what it is called there, and what is there; None for nothing.
Finder = Callable[[str], tuple[str, Any] | None]


def in_environment(environ: Mapping[str, str]) -> Finder:
    """Return a finder for variables. An empty one counts as not set, as compose files write it."""
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in _KNOWN:
            _refuse_variable(name)

    def find(name: str) -> tuple[str, Any] | None:
        text = environ.get(name)
        return (name, text) if text else None

    return find


def in_object(source: object) -> Finder:
    """Return a finder for attributes, in lower or upper case. None and "" count as not set."""

    def find(name: str) -> tuple[str, Any] | None:
        for label in (name.lower(), name):
            value = getattr(source, label, None)
            reveal = getattr(value, "get_secret_value", None)
            if reveal is not None:
                value = reveal()
            if value is not None and value != "":
                # The url types of settings libraries are no text, but write themselves as one.
                return label, str(value) if name in _URLS else value
        return None

    return find


def read_names(find: Finder) -> dict[str, Any]:
    """Return the settings that *find* finds, each checked; what is not found is left out.

    Raises:
        RedisConfigurationError: One of them is not right; with the name it is called by there.
    """
    settings = _read_endpoint(find)
    for name, field in _PLAIN.items():
        found = find(name)
        if found is not None:
            label, value = found
            settings[field] = convert(field, value, label)
    for name in ("JMCACHE_SENTINEL_PASSWORD_FILE", "JMCACHE_ENTRY_SECRETS_FILE"):
        settings |= _read_file(find, name)
    return settings


def names_endpoint(find: Finder) -> bool:
    """Return whether a url or a host is there."""
    return any(find(name) is not None for name in (*_URLS, "REDIS_HOST"))


def _read_endpoint(find: Finder) -> dict[str, Any]:
    for name in _URLS:
        found = find(name)
        if found is not None:
            label, url = found
            return read_url(url, label)
    endpoint: dict[str, Any] = {}
    for name, field in _ENDPOINT.items():
        found = find(name)
        if found is not None:
            label, value = found
            if field == "port" and isinstance(value, str) and value.startswith("tcp://"):
                raise RedisConfigurationError(
                    f"{label}: a port; Kubernetes puts an address there for a service named redis:"
                    " set JMCACHE_URL, or enableServiceLinks: false"
                )
            if field in endpoint:
                raise RedisConfigurationError(f"{label}: {field} is given twice")
            endpoint[field] = convert(field, value, label)
    return endpoint | _read_file(find, "REDIS_PASSWORD_FILE")


def _read_file(find: Finder, name: str) -> dict[str, Any]:
    """Return the setting that is in the file that *name* names; nothing where it names none."""
    found = find(name)
    if found is None:
        return {}
    label, path = found
    variable, field = _FILES[name]
    if find(variable) is not None:
        raise RedisConfigurationError(f"{label}: {field} is given twice")
    text = read_secret(path, label, field)
    value = convert(field, text, label)
    if field != "entry_secrets" and value is not None:
        value = FileSecret(text, path, label)  # its file is read again for each connection
    return {field: value}


def _refuse_variable(name: str) -> None:
    if name.removeprefix(_PREFIX).lower() in _ENDPOINT_FIELDS:
        hint = "; the endpoint comes from JMCACHE_URL, REDIS_URL or REDIS_HOST, REDIS_PORT, ..."
    else:
        hint = did_you_mean(name, _KNOWN)
    raise RedisConfigurationError(f"{name}: unknown variable{hint}")
