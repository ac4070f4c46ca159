"""Reads a url, and refuses what other readers guess at or ignore.

No message shows a piece of the url but the name of a query parameter, and that only once it is
sure that it is no part of a password. Each error is raised outside the handler of the error that
led to it: a chained one would carry the url along.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from jmcache.errors import RedisConfigurationError
from jmcache.settings._rules import RULES, did_you_mean

_SYNONYM = re.compile(r"valkey(?=s?(?:\+|$))")  # Valkey's own schemes mean the same
_FORM = "redis://user:password@host:6379/0"
_SENTINEL_FORM = "redis+sentinel://host-1:26379,host-2:26379/mymaster/0"

_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\s\ud800-\udfff]")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLACE = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]*))(?::([0-9]*))?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")

# What the address of a url says already.
_IN_THE_ADDRESS = ("host", "port", "unix_socket_path", "tls", "memory")
_IN_THE_QUERY = tuple(name for name in RULES if name not in _IN_THE_ADDRESS)
# redis-py's and Celery's names for settings of ours.
_ALIASES = {
    "ssl_ca_certs": "tls_ca_certs",
    "ssl_certfile": "tls_certfile",
    "ssl_keyfile": "tls_keyfile",
    "ssl_check_hostname": "tls_check_hostname",
    "ssl_cert_reqs": "tls_verify",
}
_CERT_REQS = {"required": "yes", "cert_required": "yes", "none": "no", "cert_none": "no"}
_BYTES_ONLY = "; what jmcache stores is bytes of its own format"
_NOT_OURS = {
    "decode_responses": _BYTES_ONLY,
    "encoding": _BYTES_ONLY,
    "encoding_errors": _BYTES_ONLY,
    "protocol": "; jmcache always speaks RESP2",
    "socket_timeout": '; the setting is "operation_timeout"',
    "socket_connect_timeout": '; the setting is "connection_timeout"',
    "timeout": '; the setting is "operation_timeout"',
    "retry_on_timeout": '; the setting is "max_retries"',
}


def read_url(url: object, label: str) -> dict[str, Any]:
    """Return the settings that *url* names, each checked; what it leaves out is left out.

    Args:
        label: What the messages call it: the argument, variable or attribute it came from.

    Raises:
        RedisConfigurationError: Any part of it is not understood; with the name of that part.
    """
    if not isinstance(url, str):
        raise _refusal(label, f"text such as {_FORM}; not {type(url).__name__}")
    url = url.strip()
    if _NOT_IN_A_URL.search(url):
        raise _refusal(label, 'a space or control character; write it percent-encoded, as "%20"')
    if "#" in url:
        raise _refusal(label, 'an unescaped "#"; in a user or password write it as "%23"')
    if _BROKEN_ESCAPE.search(url):
        raise _refusal(label, 'a "%" without two hexadecimal digits; write "%" itself as "%25"')
    scheme, separator, rest = url.partition("://")
    scheme = _SYNONYM.sub("redis", scheme.lower())
    if not separator or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise _refusal(label, f"unknown scheme; known are {known}{did_you_mean(scheme, _SCHEMES)}")

    before_query, _, query = rest.partition("?")
    address, slash, path = before_query.partition("/")
    if "@" in path or "@" in query:
        # The user and password end at an "@", so something in them was taken for an end.
        raise _refusal(
            label, 'an unescaped "/", "?" or "@"; in a user or password: "%2F", "%3F", "%40"'
        )
    found = _ADDRESS_READERS[scheme](address, slash + path, label)
    _read_query(query, found, label)
    return found


def _read_redis(address: str, path: str, label: str) -> dict[str, Any]:
    found, place = _read_user(address, label)
    match = _PLACE.fullmatch(place)
    if match is None:
        raise _refusal(
            label, f"host and port are not understood; the form is {_FORM}, IPv6 as [::1]:6379"
        )
    host = match[1] or match[2]
    if host:
        found["host"] = _take("host", _decode(host, label), label)
    if match[3]:
        found["port"] = _take("port", match[3], label)
    if path not in ("", "/"):
        found["db"] = _take("db", path[1:], label)
    return found


def _read_rediss(address: str, path: str, label: str) -> dict[str, Any]:
    return _read_redis(address, path, label) | {"tls": True}


def _read_unix(address: str, path: str, label: str) -> dict[str, Any]:
    found, place = _read_user(address, label)
    if place or not path:
        raise _refusal(label, "a unix url has a path and no host: unix:///run/redis.sock?db=0")
    found["unix_socket_path"] = _take("unix_socket_path", _decode(path, label), label)
    return found


def _read_memory(address: str, path: str, label: str) -> dict[str, Any]:
    if address or path:
        raise _refusal(label, "a memory url has no address: memory://")
    return {"memory": True}


def _read_cluster(address: str, path: str, label: str) -> dict[str, Any]:
    credentials, at, places = address.rpartition("@")
    first, comma, others = places.partition(",")
    found = _read_redis(credentials + at + first, path, label) | {"cluster": True}
    if comma and not others:
        raise _refusal(label, "a comma without another node after it")
    if comma:
        found["cluster_nodes"] = _take("cluster_nodes", _decode(others, label), label)
    return found


def _read_clusters(address: str, path: str, label: str) -> dict[str, Any]:
    return _read_cluster(address, path, label) | {"tls": True}


def _read_sentinel(address: str, path: str, label: str) -> dict[str, Any]:
    found, places = _read_user(address, label)
    _, _, master = path.partition("/")
    master, _, db = master.partition("/")
    if not places or not master:
        raise _refusal(label, f"the form with sentinels is {_SENTINEL_FORM}")
    found["sentinels"] = _take("sentinels", _decode(places, label), label)
    found["sentinel_master"] = _take("sentinel_master", _decode(master, label), label)
    if db:
        found["db"] = _take("db", db, label)
    return found


def _read_sentinels(address: str, path: str, label: str) -> dict[str, Any]:
    return _read_sentinel(address, path, label) | {"tls": True}


_ADDRESS_READERS = {
    "redis": _read_redis,
    "rediss": _read_rediss,
    "redis+cluster": _read_cluster,
    "rediss+cluster": _read_clusters,
    "redis+sentinel": _read_sentinel,
    "rediss+sentinel": _read_sentinels,
    "unix": _read_unix,
    "memory": _read_memory,
}
_SCHEMES = tuple(_ADDRESS_READERS)


def _read_user(address: str, label: str) -> tuple[dict[str, Any], str]:
    """Return the credentials in *address*, and what follows them."""
    credentials, _, place = address.rpartition("@")
    user, _, password = credentials.partition(":")
    named = {"username": user, "password": password}
    return {name: _decode(text, label) for name, text in named.items() if text}, place


def _read_query(query: str, found: dict[str, Any], label: str) -> None:
    secret_before = False
    for parameter in filter(None, query.split("&")):
        word, equals, text = parameter.partition("=")
        name = _ALIASES.get(word, word)
        if name not in _IN_THE_QUERY:
            raise _unknown_after_secret(label) if secret_before else _unknown(word, label)
        secret_before = secret_before or RULES[name].secret
        if name in found:
            raise _refusal(label, f'"{name}" is given twice')
        if not equals:
            raise _refusal(label, f'"{word}" has no value; write {word}=...')
        text = _decode(text, label)
        if word == "ssl_cert_reqs":
            if text.lower() not in _CERT_REQS:
                raise _refusal(label, "ssl_cert_reqs: required or none")
            text = _CERT_REQS[text.lower()]
        found[name] = _take(name, text, label)


def _unknown(word: str, label: str) -> RedisConfigurationError:
    if not _WORD.fullmatch(word):
        return _refusal(label, "a query parameter without a name; the form is ?name=value")
    if word in _IN_THE_ADDRESS:
        return _refusal(label, f'"{word}" is said by the address of a url, not by its query')
    hint = _NOT_OURS.get(word) or did_you_mean(word, (*_IN_THE_QUERY, *_ALIASES))
    return _refusal(label, f'unknown query parameter "{word}"{hint}')


def _unknown_after_secret(label: str) -> RedisConfigurationError:
    # What follows an unescaped "&" in the password looks like a parameter.
    return _refusal(
        label, 'an unknown query parameter, or an unescaped "&" in a user or password: write "%26"'
    )


def _decode(text: str, label: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        pass
    raise _refusal(label, "percent-encoded bytes that are not UTF-8")


def _take(name: str, text: str, label: str) -> Any:
    rule = RULES[name]
    value = rule.read(text)
    if not rule.holds(value):
        raise _refusal(label, f"{name}: {rule.wants}")
    return rule.normal(value)


def _refusal(label: str, what: str) -> RedisConfigurationError:
    return RedisConfigurationError(f"{label}: {what}")
