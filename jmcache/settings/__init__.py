"""What a cache is told when it is made: where Redis is, and every limit that holds.

From keywords, a url, the environment or another settings object. Whatever the way, nonsense is
refused when the settings are built, by the name of the setting, and no repr or message shows a
password.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self
from urllib.parse import quote

from jmcache.errors import RedisConfigurationError
from jmcache.settings._names import in_environment, in_object, names_endpoint, read_names
from jmcache.settings._quiet import without_frames
from jmcache.settings._rules import RULES, TEN_YEARS_S, Seconds, check, read_places, shown
from jmcache.settings._secret import FileSecret
from jmcache.settings._url import read_url

__all__ = [
    "LONGEST_TTL_S",
    "CacheSettings",
    "FileSecret",
    "check_ttl",
    "read_settings",
    "without_frames",
]

_TLS_DETAILS = (
    "tls_ca_certs",
    "tls_certfile",
    "tls_keyfile",
    "tls_check_hostname",
    "tls_verify",
)
_SENTINEL_DETAILS = ("sentinel_master", "sentinel_username", "sentinel_password")
# Where Redis is, who we are there, and what a call and its connections may take.
_ACCESS = (
    "host",
    "port",
    "db",
    "username",
    "password",
    "unix_socket_path",
    "tls",
    *_TLS_DETAILS,
    "cluster",
    "cluster_nodes",
    "sentinels",
    *_SENTINEL_DETAILS,
    "operation_timeout",
    "connection_timeout",
    "max_connections",
)
# What caches on one connection manager may differ in.
_PER_CACHE = (
    "namespace",
    "schema_version",
    "ttl",
    "ttl_jitter",
    "compress_above_bytes",
    "entry_secrets",
    "lock_timeout",
    "max_outage_loads",
    "near",
    "near_max_bytes",
    "near_ttl",
)
LONGEST_TTL_S = TEN_YEARS_S
_TTL = Seconds(LONGEST_TTL_S)


class GivesCredentials(Protocol):
    """An object such as redis-py's CredentialProvider."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (password,) or (user, password)."""


Credentials = str | tuple[str] | tuple[str, str]  # a password; (password,); (user, password)
Password = str | Callable[[], Credentials] | GivesCredentials


def check_ttl(ttl: object) -> float:
    """Return *ttl* in seconds.

    Raises:
        ValueError: It is no int or float above 0 and at most ten years; a bool or a timedelta
            is none either.
    """
    if not _TTL.holds(ttl):
        raise ValueError(f"ttl: {_TTL.wants}; not {shown(ttl)}")
    return _TTL.normal(ttl)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Everything a cache is told. Immutable, hashable, free to be read from any thread.

    The constructor takes the right types only; text that stands for a number is read by
    `from_url`, `from_env` and `from_object`.

    Attributes:
        host: Name or address of the server; IPv6 without brackets.
        port: TCP port, 1 to 65535.
        db: Number of the database, 0 or more.
        username: ACL user; None or "" for the default user.
        password: None or "" for none. Kept as a text that shows as "***"; its ``encode()`` and
            ``get_secret_value()`` give what it stands for. Settings with one are not pickled.
            Or a function that returns it, or the pair of user and password; or an object whose
            ``get_credentials()`` does, as redis-py's CredentialProvider: asked for each new
            connection, on a thread of its own, within the deadline.
        unix_socket_path: Absolute path of the server's socket, at most 107 bytes. Where given,
            host and port are not used.
        tls: Encrypt. There is no fall-back to an open connection, and the other ``tls_``
            settings are refused without it.
        tls_ca_certs: File of the authorities to trust, PEM; None: the system's own.
        tls_certfile: File of the certificate to show, PEM; None: none is shown.
        tls_keyfile: File of its key, PEM; None: the key is in *tls_certfile*.
        tls_check_hostname: The server's certificate must name *host*. Without *tls_verify* it
            is not looked at.
        tls_verify: The server's certificate must be trusted. False protects from nobody who can
            answer in the server's place.
        memory: No Redis: keep everything in this process. No other endpoint setting is used then.
        cluster: *host* and *port* are one node of a Redis Cluster; the others are asked of it.
        cluster_nodes: More nodes to ask when that one is away: ``cache-2:7000,cache-3:7000``.
        sentinels: Sentinels to ask where the master is, ``sentinel-1:26379,sentinel-2:26379``;
            where given, host and port are not used. TLS is spoken with them as with the master.
        sentinel_master: What the sentinels call the master; only with *sentinels*, and needed.
        sentinel_username: ACL user at the sentinels; None or "" for the default user.
        sentinel_password: Password at the sentinels; as *password*, which is the master's.
        namespace: Keeps caches on one Redis apart; 1 to 64 letters, digits or any of ``_.:-``.
        schema_version: Number of the form of your values, 1 or more; entries of another one are
            not seen.
        ttl: Seconds an entry lives, above 0, at most ten years.
        ttl_jitter: Share of its TTL that an entry's life is cut short by at most, at random; from
            0 to below 1. Lives are never lengthened.
        operation_timeout: Seconds one call may take, with everything it waits for; above 0, at
            most a day.
        connection_timeout: Seconds one new connection may take within that; above 0, at most a
            day.
        max_connections: Connections at one time, 1 to 65535, in each process.
        health_check_interval: Seconds between two health checks, above 0, at most ten years.
        max_retries: Further attempts after a first one that failed, 0 or more.
        initial_backoff_ms: Milliseconds that the first wait between attempts lasts at most, 0 or
            more.
        max_backoff_ms: Milliseconds that any of those waits lasts at most, not below the first.
        failure_threshold: Failures in a row that open the circuit breaker, 1 or more.
        reset_timeout: Seconds it stays open before a probe is let through; above 0, at most ten
            years.
        failure_rate_threshold: Share of the latest calls that opens it by failing, above 0, at
            most 1; None: failures in a row alone do.
        slow_call_threshold: Seconds above which a call is slow, above 0, at most a day; None: none
            is, however long it takes.
        slow_call_rate_threshold: Share of the latest calls that opens it by being slow, above 0, at
            most 1. Without *slow_call_threshold* it is not looked at.
        rate_window: Seconds that both shares look back, above 0, at most a day.
        rate_min_calls: Calls in that time below which neither opens it, 1 or more.
        max_value_bytes: Bytes of the largest value, serialized and before compression; 1 to
            512 MiB.
        compress_above_bytes: Bytes above which a serialized value is compressed, 0 or more. To
            about a quarter, for a fifth more time to read 50 KB and a third more to write it.
        entry_secrets: Secrets that entries are signed with, for a Redis that others can write to:
            the first one signs, all are accepted. Empty: nothing is signed, and nothing signed
            is accepted. Each of 32 characters or more; kept like *password*. How to change them
            is in docs/security.md.
        max_entries: Entries of a cache in *memory*, 1 or more.
        lock_timeout: Seconds for which one load may hold off others at most, and the longest that
            those wait for it; above 0, at most a day.
        max_outage_loads: Loads that may run at one time in a process while Redis is away, for
            each namespace, 1 or more.
        near: Keep entries in this process too, and have Redis tell what changes; see
            docs/near_cache.md. Not with a cluster; *memory* is in this process anyway.
        near_max_bytes: Bytes that those may take in each process, 1 or more.
        near_ttl: Seconds that each of them is kept at most, above 0, at most ten years.
        near_lag: Seconds that what is kept may be behind Redis, 0.01 to 60; what this process
            itself writes is never behind.

    Raises:
        RedisConfigurationError: A setting cannot work. A ValueError too.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: Password | None = field(default=None, repr=False)
    unix_socket_path: str | None = None
    tls: bool = False
    tls_ca_certs: str | None = None
    tls_certfile: str | None = None
    tls_keyfile: str | None = None
    tls_check_hostname: bool = True
    tls_verify: bool = True
    memory: bool = False
    cluster: bool = False
    cluster_nodes: str = ""
    sentinels: str = ""
    sentinel_master: str | None = None
    sentinel_username: str | None = None
    sentinel_password: Password | None = field(default=None, repr=False)
    namespace: str = "jmcache"
    schema_version: int = 1
    ttl: float = 300.0
    ttl_jitter: float = 0.1
    operation_timeout: float = 0.25
    connection_timeout: float = 2.0
    max_connections: int = 10
    health_check_interval: float = 30.0
    max_retries: int = 3
    initial_backoff_ms: int = 100
    max_backoff_ms: int = 30_000
    failure_threshold: int = 5
    reset_timeout: float = 30.0
    failure_rate_threshold: float | None = 0.75
    slow_call_threshold: float | None = None
    slow_call_rate_threshold: float = 0.5
    rate_window: float = 10.0
    rate_min_calls: int = 20
    max_value_bytes: int = 1_048_576
    compress_above_bytes: int = 262_144
    entry_secrets: tuple[str, ...] = field(default=(), repr=False)
    max_entries: int = 1_000
    lock_timeout: float = 10.0
    max_outage_loads: int = 32
    near: bool = False
    near_max_bytes: int = 67_108_864
    near_ttl: float = 30.0
    near_lag: float = 0.1

    def __post_init__(self) -> None:
        for name in RULES:
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.max_backoff_ms < self.initial_backoff_ms:
            raise RedisConfigurationError(
                f"max_backoff_ms: not below initial_backoff_ms ({self.initial_backoff_ms});"
                f" not {self.max_backoff_ms}"
            )
        if not self.memory:
            self._check_tls()
            self._check_cluster()
            self._check_sentinels()

    def _check_tls(self) -> None:
        if self.tls and self.unix_socket_path is not None:
            raise RedisConfigurationError("tls: not over a unix socket, which needs none")
        if self.tls_keyfile is not None and self.tls_certfile is None:
            raise RedisConfigurationError("tls_keyfile: only with tls_certfile")
        for name in () if self.tls else _TLS_DETAILS:
            if getattr(self, name) != _DEFAULTS[name]:
                raise RedisConfigurationError(f"{name}: only with tls=True (rediss://)")

    def _check_cluster(self) -> None:
        if not self.cluster:
            if self.cluster_nodes:
                raise RedisConfigurationError("cluster_nodes: only with cluster=True")
        elif self.unix_socket_path is not None:
            raise RedisConfigurationError(
                "cluster: not over a unix socket, which leads to one node"
            )
        elif self.near:
            raise RedisConfigurationError(
                "near: not with a cluster, each of whose nodes tells of its own names only"
            )
        elif self.db != 0:
            raise RedisConfigurationError(f"db: 0, a cluster has no other; not {self.db}")

    def _check_sentinels(self) -> None:
        if not self.sentinels:
            for name in _SENTINEL_DETAILS:
                if getattr(self, name) is not None:
                    raise RedisConfigurationError(f"{name}: only with sentinels")
        elif self.unix_socket_path is not None:
            raise RedisConfigurationError("sentinels: not with a unix socket, which says it all")
        elif self.cluster:
            raise RedisConfigurationError("sentinels: not with a cluster, which looks after itself")
        elif self.sentinel_master is None:
            raise RedisConfigurationError(
                "sentinels: only with sentinel_master: they may know several masters"
            )

    @classmethod
    @without_frames
    def from_url(cls, url: str, **overrides: Any) -> Self:
        """Return the settings that a url names.

        ``redis://user:password@host:6379/0?ttl=60``, ``rediss://`` for TLS,
        ``redis+cluster://host-1:7000,host-2:7000`` (``rediss+cluster://``),
        ``redis+sentinel://sentinel-1:26379,sentinel-2:26379/mymaster/0`` (``rediss+sentinel://``),
        ``unix:///run/redis.sock?db=1``, ``memory://``. ``valkey`` may stand for ``redis`` in all
        of them. The query takes every setting that the address does not say, durations also as
        ``250ms`` or ``30s``, and redis-py's ``ssl_`` names. Special characters in user and password
        are percent-encoded.

        Args:
            overrides: Settings that beat the url's.

        Raises:
            RedisConfigurationError: The url is not understood, as a whole or in a part, or a
                setting cannot work. Shows nothing of the url but a parameter's name.
        """
        return cls._build(read_url(url, "url"), overrides)

    @classmethod
    @without_frames
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Return the settings that the environment names, or else the defaults.

        The endpoint is that of the first one set: JMCACHE_URL; REDIS_URL; or REDIS_HOST,
        REDIS_PORT, REDIS_DB, REDIS_USERNAME, REDIS_PASSWORD (or REDIS_PASSWORD_FILE, the path of
        a file that holds it), REDIS_TLS. Every other setting has a variable of its own, such as
        JMCACHE_OPERATION_TIMEOUT=250ms, that beats the url's query. Secrets may be in files that
        JMCACHE_ENTRY_SECRETS_FILE and JMCACHE_SENTINEL_PASSWORD_FILE name. Empty is not set.

        Args:
            environ: Variables; None: those of this process.
            overrides: Settings that beat them all.

        Raises:
            RedisConfigurationError: A variable is not understood, one that starts with JMCACHE_
                is unknown, or a setting cannot work. Names the variable.
        """
        find = in_environment(os.environ if environ is None else environ)
        return cls._build(read_names(find), overrides)

    @classmethod
    @without_frames
    def from_object(cls, source: object, **overrides: Any) -> Self:
        """Return the settings that another settings object holds, such as an application's own.

        It has ``redis_url`` or ``redis_host``, and may have ``redis_port``, ``redis_db``,
        ``redis_username``, ``redis_password``, ``redis_tls`` or ``redis_ssl``, and
        ``jmcache_<setting>``, in lower or upper case. Numbers may be text, and the password an
        object with ``get_secret_value()``. None and "" are not set. A CacheSettings is returned
        as it is, with *overrides*.

        Args:
            overrides: Settings that beat those of the object.

        Raises:
            RedisConfigurationError: It has neither url nor host, or an attribute is not right.
        """
        if isinstance(source, cls):
            return replace(source, **overrides) if overrides else source
        find = in_object(source)
        if not names_endpoint(find):
            raise RedisConfigurationError(
                "settings: a CacheSettings, or an object with the attributes redis_host,"
                " redis_port, redis_db and redis_password, or redis_url;"
                f" not {type(source).__name__} without redis_host and redis_url"
            )
        return cls._build(read_names(find), overrides)

    @classmethod
    def _build(cls, found: dict[str, Any], overrides: dict[str, Any]) -> Self:
        # An address given by hand replaces the one found, also where that is of another kind.
        replaced: tuple[str, ...] = ()
        sentinels = ("sentinels", *_SENTINEL_DETAILS)
        if overrides.get("host") is not None:
            replaced = ("unix_socket_path", "memory", "cluster_nodes", *sentinels)
        elif overrides.get("unix_socket_path") is not None:
            replaced = ("memory", "cluster", "cluster_nodes", "tls", *_TLS_DETAILS, *sentinels)
        elif overrides.get("sentinels"):
            replaced = ("unix_socket_path", "memory", "cluster", "cluster_nodes")
        kept = {name: value for name, value in found.items() if name not in replaced}
        return cls(**kept | overrides)

    @property
    def endpoint(self) -> str:
        """Where Redis is, as a url without user and password: for people, logs and metrics."""
        if self.memory:
            return "memory://"
        if self.unix_socket_path is not None:
            return f"unix://{quote(self.unix_socket_path)}?db={self.db}"
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        scheme = "rediss" if self.tls else "redis"
        if self.sentinels:
            places = self.sentinels.replace("%", "%25")
            return f"{scheme}+sentinel://{places}/{self.sentinel_master}/{self.db}"
        if self.cluster:
            more = f",{self.cluster_nodes.replace('%', '%25')}" if self.cluster_nodes else ""
            return f"{scheme}+cluster://{host}:{self.port}{more}"
        return f"{scheme}://{host}:{self.port}/{self.db}"

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every node of a cluster that is named here."""
        more = read_places(self.cluster_nodes) if self.cluster_nodes else ()
        return ((self.host, self.port), *filter(None, more))

    @property
    def sentinel_places(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every sentinel."""
        return tuple(filter(None, read_places(self.sentinels))) if self.sentinels else ()

    def moved_to(self, other: CacheSettings) -> Self:
        """Return these settings with the access to Redis that *other* describes.

        That is where Redis is, who we are there, and ``operation_timeout``, ``connection_timeout``
        and ``max_connections``. Everything else stays.

        Raises:
            RedisConfigurationError: One of the two is in memory, and the other is not.
        """
        if self.memory != other.memory:
            raise RedisConfigurationError(
                "memory: a cache in this process and one in Redis do not turn into each other; make"
                " another cache"
            )
        return replace(self, **{name: getattr(other, name) for name in _ACCESS})

    def connection_identity(self) -> CacheSettings:
        """Return a hashable that is equal for settings that can share one connection manager.

        The largest value belongs to it: no reply may be larger than the largest value of ours.
        Its repr shows no password either.
        """
        return replace(self, **{name: _DEFAULTS[name] for name in _PER_CACHE})


# The one that dataclass wrote has the password among its variables.
CacheSettings.__init__ = without_frames(CacheSettings.__init__)  # type: ignore[method-assign]
_DEFAULTS: dict[str, Any] = {setting.name: setting.default for setting in fields(CacheSettings)}


def read_settings(source: object, **overrides: Any) -> CacheSettings:
    """Return the settings that *source* is: settings, a url, another settings object.

    Args:
        source: None: the environment.
        overrides: Settings that beat those.

    Raises:
        RedisConfigurationError: A setting cannot work; the message names it.
    """
    if source is None:
        return CacheSettings.from_env(**overrides)
    if isinstance(source, str):
        return CacheSettings.from_url(source, **overrides)
    return CacheSettings.from_object(source, **overrides)
