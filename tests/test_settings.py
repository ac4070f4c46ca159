"""Settings say no at start-up, by name, and never show a password."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import inspect
import json
import logging
import math
import operator
import pickle
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import ujson
from hypothesis import example, given
from hypothesis import strategies as st

from jmcache.errors import RedisConfigurationError
from jmcache.settings import CacheSettings, check_ttl
from jmcache.settings._rules import RULES

SECRET = "Tr0ub4dor_3"  # could be the name of a query parameter
TEN_YEARS_S = 10 * 365 * 24 * 3600

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=8)
    | st.just(10**400)
    | st.just(datetime.timedelta(seconds=5))
)


class Secret:
    """What settings libraries hand a password over in."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        return self._text

    def __str__(self) -> str:
        return "**********"


def refusal(build: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Return what a person would see of the error, in any log: message, repr, chain, traceback."""
    with pytest.raises(RedisConfigurationError) as caught:
        build(*args, **kwargs)
    return "\n".join(everything_seen_of(caught.value))


def attempt(build: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
    """Return what was built, or the refusal."""
    try:
        return build(*args, **kwargs)
    except RedisConfigurationError as error:
        return error


def everything_seen_of(error: BaseException) -> Iterator[str]:
    yield from traceback.format_exception(error)
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None:
            yield f"{link}\n{link!r}\n{vars(link)!r}\n{link.args!r}"
            todo += [link.__cause__, link.__context__]


# The constructor


def test_the_defaults_are_the_documented_ones():
    """Operators size their timeouts and pools by the documentation."""
    assert CacheSettings() == CacheSettings(
        host="127.0.0.1", port=6379, db=0, username=None, password=None, unix_socket_path=None,
        tls=False, tls_ca_certs=None, tls_certfile=None, tls_keyfile=None,
        tls_check_hostname=True, tls_verify=True, memory=False, namespace="jmcache",
        schema_version=1, ttl=300.0, ttl_jitter=0.1, operation_timeout=0.25,
        connection_timeout=2.0, max_connections=10, health_check_interval=30.0, max_retries=3,
        initial_backoff_ms=100, max_backoff_ms=30000, failure_threshold=5, reset_timeout=30.0,
        failure_rate_threshold=0.75, slow_call_threshold=None, slow_call_rate_threshold=0.5,
        rate_window=10.0, rate_min_calls=20,
        max_value_bytes=1048576, compress_above_bytes=262144, entry_secrets=(), max_entries=1000,
        near=False, near_max_bytes=67_108_864, near_ttl=30.0, near_lag=0.1,
    )  # fmt: skip


def test_every_setting_has_a_rule_and_a_line_in_the_docstring():
    """A setting without a rule would take nonsense; one without a line has no unit."""
    names = [field.name for field in dataclasses.fields(CacheSettings)]
    assert list(RULES) == names
    docstring = inspect.getdoc(CacheSettings) or ""
    assert [name for name in names if f"\n    {name}: " not in docstring] == []


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("host", ["localhost", "10.0.0.1", "::1", "fe80::1%eth0", "my_redis", "r-1.example"],
         ["", "h:6379", "[::1]", "a b", "a\nb", "u@h", "redis://h", "h/0", None, 1, b"h"]),
        ("port", [1, 6379, 65535], [0, -1, 65536, True, "6379", 6379.0, None, 10**400]),
        ("db", [0, 1, 15], [-1, True, "0", 0.0, None]),
        ("username", [None, "", "app", "ü\x01"], [1, b"app", "\ud800"]),
        ("password", [None, "", "p@ss #/?\n\x00"], [1, b"p", "\udcff", Secret("p")]),
        ("unix_socket_path", [None, "/run/redis.sock"], ["redis.sock", "/" * 108, "/a\0b", 5]),
        ("tls", [False, True], [0, 1, "yes", None]),
        ("memory", [False, True], [0, 1, "yes", None]),
        ("namespace", ["a", "Jobs_1.v-2:x", "a" * 64],
         ["", "a" * 65, "a b", "a{b}", "a*", "a?", "a[b]", "é", "a\n", None, 1]),
        ("schema_version", [1, 2], [0, -1, True, 1.0, "1", None]),
        ("ttl", [0.001, 1, 300, TEN_YEARS_S],
         [0, -1, TEN_YEARS_S + 1, math.nan, math.inf, True, "300", None,
          datetime.timedelta(seconds=5)]),
        ("ttl_jitter", [0, 0.0, 0.1, 0.999], [1, 1.0, -0.1, math.nan, True, "0.1", None]),
        ("operation_timeout", [0.001, 1, 86400],
         [0, -1, 86401, math.nan, math.inf, True, "1", None]),
        ("connection_timeout", [0.001, 1, 86400], [0, -1, math.nan, math.inf, True, "1", None]),
        ("max_connections", [1, 10], [0, -1, 1.0, True, "1", None]),
        ("health_check_interval", [0.1, 30], [0, -1, math.nan, math.inf, True, "1", None]),
        ("max_retries", [0, 3], [-1, 1.0, True, "1", None, math.inf]),
        ("initial_backoff_ms", [0, 100], [-1, 1.5, True, "1", None]),
        ("max_backoff_ms", [100, 30000], [99, -1, 1000.5, True, "1", None]),
        ("failure_threshold", [1, 5], [0, -1, 1.0, True, "1", None]),
        ("reset_timeout", [0.1, 30], [0, -1, math.nan, math.inf, True, "1", None]),
        ("failure_rate_threshold", [None, 0.001, 0.5, 1, 1.0],
         [0, 0.0, 1.001, 50, -0.1, math.nan, math.inf, True, "0.5"]),
        ("slow_call_threshold", [None, 0.001, 1, 86400],
         [0, -1, 86401, math.nan, math.inf, True, "1"]),
        ("slow_call_rate_threshold", [0.001, 0.5, 1],
         [0, 0.0, 1.001, 50, -0.1, math.nan, math.inf, True, "0.5", None]),
        ("rate_window", [0.1, 10, 86400], [0, -1, 86401, math.nan, math.inf, True, "1", None]),
        ("rate_min_calls", [1, 20], [0, -1, 1.0, True, "1", None]),
        ("max_value_bytes", [1, 512 * 2**20], [0, 512 * 2**20 + 1, True, 1.0, None]),
        ("compress_above_bytes", [0, 1], [-1, True, 1.0, None]),
        ("entry_secrets", [(), ("s" * 32,), ("s" * 1024, "!~" * 16)],
         ["s" * 32, None, ("s" * 31,), ("s" * 1025,), ("s" * 32, ""), ("é" * 32,), ("s," * 16,),
          ("s " * 16,), ("s" * 32 + "\n",), (b"s" * 32,), {"s" * 32}]),
        ("max_entries", [1, 1000], [0, -1, True, 1.0, None]),
        ("near", [False, True], [0, 1, "yes", None]),
        ("near_max_bytes", [1, 2**31 - 1], [0, -1, 2**31, True, 1.0, None]),
        ("near_ttl", [0.1, 30], [0, -1, math.nan, math.inf, True, "1", None]),
        ("near_lag", [0.01, 0.1, 60], [0, 0.009, 61, math.nan, math.inf, True, "0.1", None]),
    ],
)  # fmt: skip
def test_each_setting_takes_its_range_and_names_itself_beyond(name, good, bad):
    """Nonsense that gets past here fails at the first request instead, at night."""
    for value in good:
        assert getattr(CacheSettings(**{name: value}), name) == (None if value == "" else value)
    for value in bad:
        with pytest.raises(RedisConfigurationError, match=f"^{name}: ") as caught:
            CacheSettings(**{name: value})
        assert isinstance(caught.value, ValueError)


@example(name="cluster_nodes", value="")
@example(name="username", value="")
@given(name=st.sampled_from(sorted(RULES)), value=anything)
def test_any_value_is_kept_or_refused_by_name(name, value):
    """An OverflowError from deep inside tells an operator nothing."""
    built = attempt(CacheSettings, **{name: value})
    if isinstance(built, RedisConfigurationError):
        assert name in str(built).partition(";")[0]
    else:
        assert getattr(built, name) == (getattr(CacheSettings(), name) if value == "" else value)


def test_an_empty_user_or_password_is_none():
    """`AUTH ""` is refused by a server without a password, and compose files write empty ones."""
    settings = CacheSettings(username="", password="")
    assert (settings.username, settings.password) == (None, None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"initial_backoff_ms": 200, "max_backoff_ms": 199}, "max_backoff_ms"),
        ({"tls_ca_certs": "/ca.pem"}, "tls_ca_certs"),
        ({"tls_verify": False}, "tls_verify"),
        ({"tls_check_hostname": False}, "tls_check_hostname"),
        ({"tls": True, "tls_keyfile": "/key.pem"}, "tls_keyfile"),
        ({"tls": True, "unix_socket_path": "/run/redis.sock"}, "tls"),
        ({"near": True, "cluster": True}, "near"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, named):
    """Whoever names a certificate believes to be encrypted."""
    with pytest.raises(RedisConfigurationError, match=f"^{named}: "):
        CacheSettings(**settings)


def test_settings_cannot_be_changed():
    """A cache that is told half of a change works on a mixture."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheSettings().port = 1  # type: ignore[misc]


def test_a_number_too_long_to_be_written_is_refused_all_the_same():
    """Python raises a ValueError of its own when such a number is printed."""
    with pytest.raises(RedisConfigurationError, match=r"^port: "):
        CacheSettings(port=10**5000)
    with pytest.raises(ValueError, match=r"^ttl: "):
        check_ttl(10**5000)


def test_a_message_shows_what_came_in_unless_it_may_be_a_secret():
    """A url pasted in place of a host has its password with it."""
    assert "not 70000" in refusal(CacheSettings, port=70000)
    assert SECRET not in refusal(CacheSettings, host=f"redis://:{SECRET}@h")
    assert SECRET not in refusal(CacheSettings, host=f"{SECRET}@h")
    assert SECRET not in refusal(CacheSettings, password=SECRET + "\ud800")
    assert SECRET not in refusal(CacheSettings, password=SECRET.encode())


# The password, when nothing is wrong


@given(password=texts.map(lambda text: f"<{text}>"))
def test_no_text_of_the_settings_shows_the_password(password):
    """A settings object is logged at start-up sooner or later."""
    settings = CacheSettings(username="app", password=password)
    record = logging.LogRecord("app", logging.INFO, "", 1, "%s %r", (settings, settings), None)
    identity = settings.connection_identity()
    seen = [
        repr(settings), str(settings), f"{settings}", f"{settings!r}", record.getMessage(),
        settings.endpoint, repr(identity), str(identity), repr({identity: 1}),
    ]  # fmt: skip
    assert not any(password in text for text in seen)


# check_ttl


@pytest.mark.parametrize("ttl", [1, 0.5, 300, TEN_YEARS_S])
def test_check_ttl_returns_seconds(ttl):
    """The cache computes milliseconds from it."""
    checked = check_ttl(ttl)
    assert checked == ttl
    assert type(checked) is float


@pytest.mark.parametrize(
    "ttl",
    [0, 0.0, -1, math.nan, math.inf, -math.inf, True, False, "10", b"1", None, 2**63, 10**400,
     TEN_YEARS_S + 1, datetime.timedelta(seconds=5), [1]],
)  # fmt: skip
def test_check_ttl_refuses_everything_else_by_name(ttl):
    """Redis refuses 0 with an error, takes text, and an entry without an end stays for ever."""
    with pytest.raises(ValueError, match=r"^ttl: seconds"):
        check_ttl(ttl)


# endpoint and identity


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({}, "redis://127.0.0.1:6379/0"),
        ({"username": "u", "password": "p", "db": 3}, "redis://127.0.0.1:6379/3"),
        ({"host": "::1", "tls": True}, "rediss://[::1]:6379/0"),
        ({"host": "fe80::1%eth0"}, "redis://[fe80::1%25eth0]:6379/0"),
        ({"unix_socket_path": "/run/a b.sock", "password": "p"}, "unix:///run/a%20b.sock?db=0"),
        ({"memory": True, "password": "p"}, "memory://"),
        ({"cluster": True, "port": 7000}, "redis+cluster://127.0.0.1:7000"),
        (
            {"cluster": True, "cluster_nodes": "b:1,[fe80::1%eth0]:2", "tls": True},
            "rediss+cluster://127.0.0.1:6379,b:1,[fe80::1%25eth0]:2",
        ),
        (
            {"sentinels": "a,b:1", "sentinel_master": "main", "sentinel_password": "p", "db": 2},
            "redis+sentinel://a:26379,b:1/main/2",
        ),
        (
            {"sentinels": "[fe80::1%eth0]", "sentinel_master": "m", "password": "p", "tls": True},
            "rediss+sentinel://[fe80::1%25eth0]:26379/m/0",
        ),
    ],
)
def test_the_endpoint_is_a_url_without_user_and_password(settings, endpoint):
    """It is written into logs and metric labels."""
    built = CacheSettings(**settings)
    assert built.endpoint == endpoint
    assert CacheSettings.from_url(endpoint).endpoint == endpoint


@pytest.mark.parametrize("name", sorted(RULES))
def test_settings_share_connections_unless_they_connect_in_another_way(name):
    """Sharing too much sends one tenant's password for another; too little doubles connections."""
    per_cache = {
        "namespace": "other", "schema_version": 2, "ttl": 1.0, "ttl_jitter": 0.0,
        "compress_above_bytes": 1, "entry_secrets": ("s" * 32,),
        "lock_timeout": 1.0, "max_outage_loads": 1,
        "near": True, "near_max_bytes": 1, "near_ttl": 1.0,
    }  # fmt: skip
    per_connection = {
        "near_lag": 1.0,
        "max_value_bytes": 1, "max_entries": 1,
        "host": "other", "port": 1, "db": 1, "username": "u", "password": "p",
        "unix_socket_path": "/x", "tls": True, "memory": True, "operation_timeout": 1.0,
        "connection_timeout": 1.0, "max_connections": 1, "health_check_interval": 1.0,
        "max_retries": 0, "initial_backoff_ms": 1, "max_backoff_ms": 101, "failure_threshold": 1,
        "reset_timeout": 1.0, "failure_rate_threshold": None, "slow_call_threshold": 1.0,
        "slow_call_rate_threshold": 0.25, "rate_window": 1.0, "rate_min_calls": 1,
        "cluster": True, "cluster_nodes": "other:7000",
    }  # fmt: skip
    sentinel = {
        "sentinels": "other", "sentinel_master": "other", "sentinel_username": "u",
        "sentinel_password": "p",
    }  # fmt: skip
    tls = {
        "tls_ca_certs": "/x", "tls_certfile": "/x", "tls_keyfile": "/x",
        "tls_check_hostname": False, "tls_verify": False,
    }  # fmt: skip
    base = {"tls": True, "tls_certfile": "/c"} if name in tls else {}
    base |= {"cluster": True} if name == "cluster_nodes" else {}
    base |= {"sentinels": "s", "sentinel_master": "m"} if name in sentinel else {}
    other = base | {name: (per_cache | per_connection | tls | sentinel)[name]}
    first, second = CacheSettings(**base), CacheSettings(**other)
    identities = {first.connection_identity(), second.connection_identity()}
    assert len(identities) == (1 if name in per_cache else 2)


def test_every_named_node_of_a_cluster_is_a_seed():
    """A cluster whose first node is away at start would not be found by the others."""
    settings = CacheSettings.from_url("rediss+cluster://u,1:p,2@a,[::1]:7001,c:7002?ttl=5")
    assert settings.seeds == (("a", 6379), ("::1", 7001), ("c", 7002))
    assert (settings.username, settings.password, settings.ttl) == ("u,1", "p,2", 5.0)
    assert settings.cluster
    assert settings.tls
    assert CacheSettings(cluster=True, host="a").seeds == (("a", 6379),)


def test_a_url_with_sentinels_says_where_they_are_and_whom_they_watch():
    """One of them alone, or the wrong master, would be found out in the first failover."""
    settings = CacheSettings.from_url(
        "rediss+sentinel://u,1:p,2@a,[::1]:1,c:2/my-master/3?sentinel_password=q&ttl=5"
    )
    assert settings.sentinel_places == (("a", 26379), ("::1", 1), ("c", 2))
    assert (settings.sentinel_master, settings.db, settings.ttl) == ("my-master", 3, 5.0)
    assert (settings.username, settings.password) == ("u,1", "p,2")
    assert settings.sentinel_password == "q"
    assert settings.tls
    assert CacheSettings.from_url("redis+sentinel://a/m").sentinels == "a:26379"


@pytest.mark.parametrize(
    ("valkey", "redis"),
    [
        ("valkey://u:p@h:1/2", "redis://u:p@h:1/2"),
        ("VALKEYS://h", "rediss://h"),
        ("valkey+cluster://h,i:1", "redis+cluster://h,i:1"),
        ("valkeys+cluster://h", "rediss+cluster://h"),
        ("valkey+sentinel://h/m", "redis+sentinel://h/m"),
        ("valkeys+sentinel://h/m/1", "rediss+sentinel://h/m/1"),
    ],
)
def test_a_valkey_url_means_the_same(valkey, redis):
    """Platforms hand over the url of the server that they run; it must not be edited by hand."""
    assert CacheSettings.from_url(valkey) == CacheSettings.from_url(redis)


def test_a_password_for_the_sentinels_may_come_from_a_function_or_a_file(tmp_path):
    """They have one of their own, and it is rotated as well."""
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    env = {
        "JMCACHE_SENTINELS": "s-1, s-2".replace(" ", ""),
        "JMCACHE_SENTINEL_MASTER": "main",
        "JMCACHE_SENTINEL_PASSWORD_FILE": str(file),
    }
    settings = CacheSettings.from_env(env)
    assert settings.sentinel_password == SECRET
    assert settings.endpoint == "redis+sentinel://s-1:26379,s-2:26379/main/0"
    assert SECRET not in repr(settings)
    given = CacheSettings(sentinels="s", sentinel_master="m", sentinel_password=file.read_text)
    assert given.sentinel_password == file.read_text


def test_a_host_given_by_hand_takes_the_place_of_the_sentinels():
    """Tests that point a deployment's settings at a server of theirs would ask its sentinels."""
    url = "redis+sentinel://a,b/main/0?sentinel_username=u&sentinel_password=p"
    for mine in ({"host": "mine"}, {"unix_socket_path": "/run/mine.sock"}):
        settings = CacheSettings.from_url(url, **mine)
        assert settings.sentinels == ""
        assert settings.sentinel_master is None
    settings = CacheSettings.from_url("redis+cluster://a,b:1", sentinels="s", sentinel_master="m")
    assert settings.endpoint == "redis+sentinel://s:26379/m/0"


def test_a_host_given_by_hand_takes_the_place_of_all_nodes():
    """Tests that point a deployment's settings at a server of theirs would ask its cluster too."""
    url = "redis+cluster://a:7000,b:7000"
    assert CacheSettings.from_url(url, host="mine").seeds == (("mine", 7000),)
    assert not CacheSettings.from_url(url, unix_socket_path="/run/mine.sock").cluster


# from_url


@given(username=texts, password=texts)
def test_any_user_and_password_come_through_a_url(username, password):
    """A generated password holds every character there is."""
    user, secret = quote(username, safe=""), quote(password, safe="")
    for url in (
        f"redis://{user}:{secret}@example:6380/2",
        f"rediss://{user}:{secret}@[::1]:6380/2",
        f"unix://{user}:{secret}@/run/redis.sock?db=2",
        f"redis://example:6380/2?username={user}&password={secret}",
    ):
        settings = CacheSettings.from_url(url)
        assert (settings.username or "", settings.password or "") == (username, password)
        assert settings.db == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {}),
        ("redis://redis.example", {"host": "redis.example"}),
        (" redis://h:6390/0\n", {"host": "h", "port": 6390}),
        ("REDIS://h/", {"host": "h"}),
        ("redis://:p@h", {"host": "h", "password": "p"}),
        ("redis://:p@q:r@h", {"host": "h", "password": "p@q:r"}),
        ("redis://u@h/15", {"host": "h", "username": "u", "db": 15}),
        ("redis://u:@h", {"host": "h", "username": "u"}),
        ("redis://[::1]:6390/1", {"host": "::1", "port": 6390, "db": 1}),
        ("redis://[fe80::1%25eth0]", {"host": "fe80::1%eth0"}),
        ("rediss://h", {"host": "h", "tls": True}),
        ("unix:///run/redis.sock", {"unix_socket_path": "/run/redis.sock"}),
        ("unix:///run/a%20b.sock?db=1", {"unix_socket_path": "/run/a b.sock", "db": 1}),
        ("unix://u@/r.sock", {"unix_socket_path": "/r.sock", "username": "u"}),
        ("memory://", {"memory": True}),
        ("memory://?ttl=5&max_entries=7", {"memory": True, "ttl": 5.0, "max_entries": 7}),
        ("redis://?ttl=0.5&operation_timeout=250ms&reset_timeout=30s&ttl_jitter=0",
         {"ttl": 0.5, "operation_timeout": 0.25, "reset_timeout": 30.0, "ttl_jitter": 0.0}),
        ("redis://?namespace=jobs&max_connections=4", {"namespace": "jobs", "max_connections": 4}),
        ("rediss://?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=false",
         {"tls": True, "tls_ca_certs": "/ca", "tls_certfile": "/c", "tls_keyfile": "/k",
          "tls_check_hostname": False}),
        ("rediss://?ssl_cert_reqs=required", {"tls": True}),
        ("rediss://?ssl_cert_reqs=CERT_REQUIRED", {"tls": True}),
        ("rediss://?ssl_cert_reqs=none", {"tls": True, "tls_verify": False}),
        ("rediss://?ssl_cert_reqs=CERT_NONE", {"tls": True, "tls_verify": False}),
        ("rediss://?tls_verify=no", {"tls": True, "tls_verify": False}),
    ],
)  # fmt: skip
def test_a_url_means(url, expected):
    """One url is shared with Celery and other clients: it must mean the same here."""
    assert CacheSettings.from_url(url) == CacheSettings(**expected)


BAD_URLS = [
    ("redis+cluster://h/1", "db: 0, a cluster has no other"),
    ("redis+cluster://h,", "a comma without another node"),
    ("redis+cluster://h,i", "cluster_nodes: host:port of each"),
    ("redis+cluster://h,i:0", "cluster_nodes: host:port of each"),
    ("redis+cluster://h,i:7000,,j:7000", "cluster_nodes: host:port of each"),
    ("redis+cluster://h,i:7000?cluster_nodes=j:1", '"cluster_nodes" is given twice'),
    ("redis+cluster://h?cluster=no", '"cluster" is given twice'),
    ("redis://h?cluster_nodes=j:1", "cluster_nodes: only with cluster=True"),
    ("unix:///run/redis.sock?cluster=yes", "cluster: not over a unix socket"),
    ("redis+sentinel://a:1", "the form with sentinels is"),
    ("redis+sentinel://a:1/", "the form with sentinels is"),
    ("redis+sentinel:///main/0", "the form with sentinels is"),
    ("redis+sentinel://a:0/main", "sentinels: host:port of each"),
    ("redis+sentinel://a:1,,b/main", "sentinels: host:port of each"),
    ("redis+sentinel://a::1/main", "sentinels: host:port of each"),
    ("redis+sentinel://a/ma%20in/0", "sentinel_master: letters, digits"),
    ("redis+sentinel://a/main/x", "db: a whole number"),
    ("redis+sentinel://a/main/0/1", "db: a whole number"),
    ("redis+sentinel://a/main?sentinel_master=other", '"sentinel_master" is given twice'),
    ("redis+sentinel://a/main?cluster=yes", "sentinels: not with a cluster"),
    ("redis://h?sentinel_master=m", "sentinel_master: only with sentinels"),
    ("redis://h?sentinel_password=p", "sentinel_password: only with sentinels"),
    ("redis://h?sentinel_username=u", "sentinel_username: only with sentinels"),
    ("redis://h?sentinels=s", "sentinels: only with sentinel_master"),
    ("unix:///run/r.sock?sentinels=s&sentinel_master=m", "sentinels: not with a unix socket"),
    ("valkeyx://h", "unknown scheme"),
    ("reddis://h", 'did you mean "redis"'),
    ("http://h", "unknown scheme"),
    ("h:6379", "unknown scheme"),
    ("", "unknown scheme"),
    (None, "text"),
    (b"redis://h", "text"),
    ("redis://h/abc", "db: a whole number"),
    ("redis://h/5abc", "db: a whole number"),
    ("redis://h/-1", "db: a whole number"),
    ("redis://h/5/", "db: a whole number"),
    ("redis://h//", "db: a whole number"),
    ("redis://h/" + "1" * 5000, "db: a whole number"),
    ("redis://h/٣", "db: a whole number"),
    ("redis://h:0", "port: a whole number"),
    ("redis://h:70000", "port: a whole number"),
    ("redis://h:x", "host and port"),
    ("redis://::1/0", "host and port"),
    ("redis://[::1/0", "host and port"),
    ("redis://[h]", "host and port"),
    ("redis://a%20b", "host: "),
    ("redis://a%2Fb", "host: "),
    ("redis://h?max_conections=4", 'did you mean "max_connections"'),
    ("redis://h?decode_responses=false", '"decode_responses"'),
    ("redis://h?encoding=utf-8", '"encoding"'),
    ("redis://h?protocol=3", '"protocol"'),
    ("redis://h?socket_timeout=1", '"operation_timeout"'),
    ("redis://h?host=other", '"host" is said by the address'),
    ("redis://h?tls=true", '"tls" is said by the address'),
    ("redis://h?ttl=1&ttl=2", '"ttl" is given twice'),
    ("redis://h/1?db=2", '"db" is given twice'),
    ("redis://u@h?username=v", '"username" is given twice'),
    ("rediss://h?ssl_cert_reqs=none&tls_verify=no", '"tls_verify" is given twice'),
    ("rediss://h?ssl_cert_reqs=optional", "ssl_cert_reqs: required or none"),
    ("redis://h?ssl_ca_certs=/ca", "tls_ca_certs: only with"),
    ("redis://h?ttl", '"ttl" has no value'),
    ("redis://h?ttl=", "ttl: seconds"),
    ("redis://h?ttl=nan", "ttl: seconds"),
    ("redis://h?ttl=1e999", "ttl: seconds"),
    ("redis://h?ttl=5m", "ttl: seconds"),
    ("redis://h?max_retries=1.5", "max_retries: a whole number"),
    ("redis://h?=5", "without a name"),
    ("unix://host/run/redis.sock", "a unix url has a path and no host"),
    ("unix://", "a unix url has a path and no host"),
    ("unix:///a%00b", "unix_socket_path: "),
    ("memory://host", "a memory url has no address"),
    ("memory:///0", "a memory url has no address"),
    ("redis://h/0#part", 'unescaped "#"'),
    ("redis://h\n/0", "control character"),
    ("redis://\ud800", "control character"),
    ("redis://h%zz", "two hexadecimal digits"),
    ("redis://h%ff", "not UTF-8"),
]


@pytest.mark.parametrize(("url", "words"), BAD_URLS)
def test_a_url_that_is_not_understood_is_refused_with_the_name_of_the_part(url, words):
    """redis-py takes /abc as database 0 and finds a typo at the first command, or never."""
    with pytest.raises(RedisConfigurationError) as caught:
        CacheSettings.from_url(url)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}#x@h:6379/0",
        "redis://:x#{}@h:6379/0",
        "redis://:x/{}@h:6379/0",
        "redis://:{}/x@h:6379/0",
        "redis://:x?{}@h:6379/0",
        "redis://:x?{}=1@h:6379/0",
        "redis://:1?{}=1@h:6379/0",
        "redis://:1/{}@h:6379/0",
        "redis://:x?ttl={}@h:6379/0",
        "redis://:{}%@h:6379/0",
        "redis://:{}%ff@h:6379/0",
        "redis://:{} @h:6379/0",
        "redis://:{}\n@h:6379/0",
        "redis://:{}\ud800@h:6379/0",
        "redis://:{}",
        "redis://user:{}/0",
        "redis://:{}@h:port",
        "redis://:{}@h:99999",
        "redis://:{}@h/abc",
        "redis://:{}@[::1/0",
        "redis://:{}@[v1.x]/0",
        "redis://:{}@h℀x/0?ttl=x",
        "redis://:{}@h?max_conections=4",
        "redis://:{}@h?ssl_ca_certs=/ca",
        "redis://:{}@h?password=y",
        "redis://h?password=x&{}",
        "redis://h?password=x&{}=1",
        "redis://h?password={}&password=x",
        "redis://h?password={}%ff",
        "rediss://h?ssl_cert_reqs={}",
        "redis://h?ttl={}",
        "reddis://:{}@h",
        ":{}@h:6379",
        "{}",
        "unix://:{}@host/x",
        "unix://:x/{}@/run/redis.sock",
        "memory://:{}@",
    ],
)
def test_no_refused_url_shows_its_password(url):
    """The error of a failed start-up goes to everybody who reads the deployment's log."""
    full = url.format(SECRET)
    for seen in (
        refusal(CacheSettings.from_url, full),
        refusal(CacheSettings.from_env, {"REDIS_URL": full}),
        refusal(CacheSettings.from_object, SimpleNamespace(redis_url=Secret(full))),
    ):
        assert SECRET not in seen
        assert full not in seen


@given(
    middle=st.text(max_size=10),
    bad=st.sampled_from([str(url) for url, _ in BAD_URLS if "://" in str(url)]),
)
def test_no_refused_input_shows_a_piece_of_its_password(middle, bad):
    """Whatever the characters in it, raw, and whatever else is wrong."""
    password = SECRET + middle + SECRET
    for url in (bad.replace("://", f"://:{password}@", 1), f"redis://h?password={password}&x=1"):
        built = attempt(CacheSettings.from_url, url)
        if isinstance(built, RedisConfigurationError):
            assert not any(SECRET in seen for seen in everything_seen_of(built))


@given(
    url=st.text(max_size=60) | st.text("redis:/@[]?=&%#u12ab.", max_size=60).map("redis://".__add__)
)
def test_any_text_is_a_url_or_refused(url):
    """A ValueError of urllib's prints the host with the password."""
    built = attempt(CacheSettings.from_url, url)
    if isinstance(built, RedisConfigurationError):
        assert str(built)
        assert built.__context__ is None


def test_keywords_beat_the_query():
    """With redis-py it is the other way round, and code could not fix a value."""
    settings = CacheSettings.from_url("redis://h/1?ttl=5&namespace=a", ttl=7, db=2)
    assert (settings.ttl, settings.db, settings.namespace) == (7.0, 2, "a")


@pytest.mark.parametrize(
    ("url", "override", "endpoint"),
    [
        ("unix:///run/redis.sock", {"host": "h"}, "redis://h:6379/0"),
        ("memory://", {"host": "h"}, "redis://h:6379/0"),
        ("rediss://h?tls_verify=no", {"unix_socket_path": "/r.sock"}, "unix:///r.sock?db=0"),
        ("rediss://h?tls_verify=no", {"unix_socket_path": None}, "rediss://h:6379/0"),
        ("unix:///run/redis.sock", {"memory": True}, "memory://"),
    ],
)
def test_an_address_by_keyword_replaces_one_of_another_kind(url, override, endpoint):
    """Otherwise the keyword would be ignored without a word."""
    assert CacheSettings.from_url(url, **override).endpoint == endpoint


def test_an_override_is_held_to_the_constructors_types():
    """Text is converted where text is all there is; in code it is a mistake."""
    with pytest.raises(RedisConfigurationError, match=r"^port: "):
        CacheSettings.from_url("redis://h", port="6380")
    with pytest.raises(TypeError):
        CacheSettings.from_url("redis://h", prot=6380)


# from_env


def test_without_variables_the_defaults_hold():
    """The first minute of every newcomer."""
    assert CacheSettings.from_env({"PATH": "/bin"}) == CacheSettings()


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    """What the container sets is what the service gets."""
    monkeypatch.setenv("JMCACHE_URL", "redis://from-env:1")
    assert CacheSettings.from_env().endpoint == "redis://from-env:1/0"


def test_the_endpoint_comes_from_the_first_that_is_set():
    """Half of one and half of another would send a password to the wrong server."""
    variables = {
        "JMCACHE_URL": "redis://first",
        "REDIS_URL": "redis://second",
        "REDIS_HOST": "third",
        "REDIS_PASSWORD": SECRET,
    }
    for host in ("first", "second", "third"):
        settings = CacheSettings.from_env(variables)
        assert settings.host == host
        assert settings.password == (SECRET if host == "third" else None)
        del variables[next(iter(variables))]
    assert CacheSettings.from_env(variables | {"REDIS_HOST": "x"}, host="given").host == "given"


def test_each_part_of_the_endpoint_has_a_variable():
    """The names that the old service is deployed with."""
    variables = {
        "REDIS_HOST": "h", "REDIS_PORT": "6390", "REDIS_DB": "2", "REDIS_USERNAME": "u",
        "REDIS_PASSWORD": " p#@ ", "REDIS_TLS": "true",
    }  # fmt: skip
    assert CacheSettings.from_env(variables) == CacheSettings(
        host="h", port=6390, db=2, username="u", password=" p#@ ", tls=True
    )


@pytest.mark.parametrize(
    ("text", "flag"),
    [("1", True), ("true", True), ("Yes", True), ("0", False), ("FALSE", False), ("no", False)],
)
def test_a_flag_is_written_in_words_or_digits(text, flag):
    """REDIS_TLS=false must not be true for being a text."""
    assert CacheSettings.from_env({"REDIS_TLS": text}).tls is flag
    assert CacheSettings.from_env({"REDIS_SSL": text}).tls is flag


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.25", 0.25), ("250ms", 0.25), ("30s", 30.0), ("5", 5.0), (".5", 0.5), ("1e-3", 0.001),
     (" 1 ", 1.0), ("0.5ms", 0.0005)],
)  # fmt: skip
def test_a_duration_is_seconds_or_says_its_unit(text, seconds):
    """250 read as seconds would be four minutes."""
    assert CacheSettings.from_env({"JMCACHE_OPERATION_TIMEOUT": text}).operation_timeout == seconds


@pytest.mark.parametrize("text", ["none", "None", " NONE "])
def test_what_can_be_off_is_switched_off_by_the_word_none(text):
    """An empty variable is not set, so a deployment would have no way to say off."""
    variable = {"JMCACHE_FAILURE_RATE_THRESHOLD": text}
    assert CacheSettings.from_env(variable).failure_rate_threshold is None
    assert CacheSettings.from_env(dict.fromkeys(variable, "")).failure_rate_threshold == 0.75
    word = quote(text)
    assert CacheSettings.from_url(f"memory://?slow_call_threshold={word}") == CacheSettings(
        memory=True
    )
    with pytest.raises(RedisConfigurationError, match=r"at most 1, or None; not 'off'"):
        CacheSettings.from_env({"JMCACHE_FAILURE_RATE_THRESHOLD": "off"})


def test_every_setting_that_is_no_endpoint_has_a_variable():
    """A setting that only code can change is a deployment for every change."""
    texts_of = {
        "namespace": "jobs", "schema_version": "2", "ttl": "60", "ttl_jitter": "0.2",
        "operation_timeout": "1", "connection_timeout": "3", "max_connections": "4",
        "health_check_interval": "5", "max_retries": "6", "initial_backoff_ms": "7",
        "max_backoff_ms": "8", "failure_threshold": "9", "reset_timeout": "10",
        "failure_rate_threshold": "0.9", "slow_call_threshold": "0.2",
        "slow_call_rate_threshold": "0.8", "rate_window": "14", "rate_min_calls": "15",
        "max_value_bytes": "11", "compress_above_bytes": "12", "max_entries": "13",
        "tls_ca_certs": "/a", "tls_certfile": "/b", "tls_keyfile": "/c",
        "tls_check_hostname": "no", "tls_verify": "no", "entry_secrets": "s" * 32,
        "cluster": "yes", "cluster_nodes": "other:7000",
        "lock_timeout": "16", "max_outage_loads": "18",
        "near_max_bytes": "19", "near_ttl": "20", "near_lag": "21",
    }  # fmt: skip
    with_sentinels = {
        "sentinels": "s:26379", "sentinel_master": "m", "sentinel_username": "u",
        "sentinel_password": "p",
    }  # fmt: skip
    endpoint = {"host", "port", "db", "username", "password", "unix_socket_path", "tls", "memory"}
    assert {*texts_of, *with_sentinels, *endpoint, "near"} == set(RULES)
    assert CacheSettings.from_env({"JMCACHE_NEAR": "yes"}).near is True  # not with a cluster
    variables = {f"JMCACHE_{name.upper()}": text for name, text in with_sentinels.items()}
    settings = CacheSettings.from_env(variables)
    assert {name: getattr(settings, name) for name in with_sentinels} == with_sentinels
    variables = {f"JMCACHE_{name.upper()}": text for name, text in texts_of.items()}
    settings = CacheSettings.from_env(variables | {"REDIS_TLS": "1"})
    defaults = CacheSettings()
    for name, text in texts_of.items():
        value = getattr(settings, name)
        assert value != getattr(defaults, name), name
        assert value in (text, (text,), text == "yes") or float(value) == float(text), name


def test_a_variable_of_its_own_beats_the_query_of_the_url():
    """The url is the whole platform's, the variable is this service's."""
    settings = CacheSettings.from_env({"REDIS_URL": "redis://h?ttl=5", "JMCACHE_TTL": "7"})
    assert settings.ttl == 7.0
    assert CacheSettings.from_env({"JMCACHE_TTL": "7"}, ttl=9).ttl == 9.0


def test_an_empty_variable_is_not_set():
    """`${REDIS_PORT:-}` in a compose file leaves an empty one."""
    names = ("JMCACHE_URL", "REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD",
             "REDIS_PASSWORD_FILE", "REDIS_TLS", "JMCACHE_TTL", "JMCACHE_ENTRY_SECRETS",
             "JMCACHE_ENTRY_SECRETS_FILE")  # fmt: skip
    assert CacheSettings.from_env(dict.fromkeys(names, "")) == CacheSettings()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"REDIS_PORT": "abc"}, "REDIS_PORT: a whole number from 1 to 65535; not 'abc'"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, "REDIS_PORT: a port; Kubernetes"),
        ({"REDIS_DB": "one"}, "REDIS_DB: a whole number"),
        ({"REDIS_HOST": "h:6379"}, "REDIS_HOST: a host name"),
        ({"REDIS_TLS": "maybe"}, "REDIS_TLS: True or False"),
        ({"REDIS_TLS": "1", "REDIS_SSL": "0"}, "REDIS_SSL: tls is given twice"),
        ({"REDIS_PASSWORD": "a", "REDIS_PASSWORD_FILE": "/b"}, "password is given twice"),
        (
            {"JMCACHE_ENTRY_SECRETS": "s" * 32, "JMCACHE_ENTRY_SECRETS_FILE": "/b"},
            "JMCACHE_ENTRY_SECRETS_FILE: entry_secrets is given twice",
        ),
        ({"JMCACHE_ENTRY_SECRETS": "s" * 31}, "JMCACHE_ENTRY_SECRETS: secrets of 32 to 1024"),
        ({"JMCACHE_ENTRY_SECRETS": "s" * 32 + ",,"}, "JMCACHE_ENTRY_SECRETS: secrets of 32"),
        ({"REDIS_URL": "redis://h/x"}, "REDIS_URL: db: "),
        ({"JMCACHE_URL": "redis://h?tttl=1"}, "JMCACHE_URL: unknown query parameter"),
        ({"JMCACHE_TTL": "-1"}, "JMCACHE_TTL: seconds"),
        ({"JMCACHE_TTL": "1_0"}, "JMCACHE_TTL: seconds"),
        ({"JMCACHE_MAX_RETRIES": "3.0"}, "JMCACHE_MAX_RETRIES: a whole number"),
        ({"JMCACHE_OPERATION_TIMOUT": "1"}, 'did you mean "JMCACHE_OPERATION_TIMEOUT"'),
        ({"JMCACHE_HOST": "h"}, "JMCACHE_HOST: unknown variable; the endpoint comes from"),
        ({"JMCACHE_WHATEVER": ""}, "JMCACHE_WHATEVER: unknown variable"),
    ],
)
def test_a_variable_that_is_not_right_is_refused_by_its_name(variables, words):
    """The operator sees variables, not Python attributes."""
    assert words in refusal(CacheSettings.from_env, variables)


def test_no_refused_variable_shows_a_password(tmp_path):
    """Values of variables are shown where they help; a secret in the wrong one must not be."""
    (tmp_path / "binary").write_bytes(SECRET.encode() + b"\xff")
    (tmp_path / "long").write_text(SECRET * 10_000)
    for variables in (
        {"REDIS_PASSWORD": f"{SECRET}\udcff"},
        {"REDIS_USERNAME": f"{SECRET}\udcff"},
        {"REDIS_HOST": f"redis://:{SECRET}@h"},
        {"REDIS_PORT": f"tcp://:{SECRET}@h"},
        {"REDIS_DB": f":{SECRET}@h"},
        {"JMCACHE_PASSWORD": SECRET},
        {"REDIS_PASSWORD": SECRET, "REDIS_PASSWORD_FILE": SECRET},
        {"REDIS_PASSWORD_FILE": f"/run/{SECRET}"},
        {"REDIS_PASSWORD_FILE": f"{SECRET}\0"},
        {"REDIS_PASSWORD_FILE": str(tmp_path / "binary")},
        {"REDIS_PASSWORD_FILE": str(tmp_path / "long")},
        {"REDIS_PASSWORD_FILE": str(tmp_path)},
        {"JMCACHE_ENTRY_SECRETS": SECRET},
        {"JMCACHE_ENTRY_SECRETS": f"{'s' * 32},{SECRET}"},
        {"JMCACHE_ENTRY_SECRETS_FILE": f"/run/{SECRET}"},
        {"JMCACHE_ENTRY_SECRETS_FILE": str(tmp_path / "long")},
        {"REDIS_URL": f"redis://h?entry_secrets={SECRET}"},
        {"REDIS_URL": f"redis://h?entry_secrets={'s' * 32}&{SECRET}"},
    ):
        assert SECRET not in refusal(CacheSettings.from_env, variables), list(variables)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_password_may_be_in_a_file(tmp_path, end):
    """Containers mount secrets; editors and `echo` end them with a newline."""
    file = tmp_path / "password"
    file.write_bytes(f" {SECRET} é\n{end}".encode() if end else SECRET.encode())
    password = CacheSettings.from_env({"REDIS_PASSWORD_FILE": str(file)}).password
    assert password == (f" {SECRET} é\n" if end else SECRET)


def test_secrets_for_entries_may_be_in_a_file_and_parted_by_commas_or_lines(tmp_path):
    """A mounted file has lines, a variable has commas; a rotation needs two at a time."""
    current, former = "c" * 32, "f" * 40
    file = tmp_path / "secrets"
    file.write_text(f"{current}\n{former}\n")
    for variables in (
        {"JMCACHE_ENTRY_SECRETS_FILE": str(file)},
        {"JMCACHE_ENTRY_SECRETS": f"{current},{former}"},
        {"JMCACHE_ENTRY_SECRETS": f" {current} , {former} "},
        {"JMCACHE_URL": f"redis://h?entry_secrets={current},{former}"},
    ):
        assert CacheSettings.from_env(variables).entry_secrets == (current, former)
    source = SimpleNamespace(redis_host="h", jmcache_entry_secrets=Secret(current))
    assert CacheSettings.from_object(source).entry_secrets == (current,)


# Secrets, once they are in


@pytest.fixture
def guarded() -> CacheSettings:
    return CacheSettings(password=SECRET, entry_secrets=[f"{SECRET}{'x' * 32}", "y" * 32])


WAYS_TO_WRITE_IT_DOWN = {
    "vars": lambda settings: vars(settings),
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "deepcopy": lambda settings: copy.deepcopy(vars(settings)),
    "replace": lambda settings: vars(dataclasses.replace(settings, ttl=5)),
    "format": "{0.password} {0.entry_secrets}".format,
    "percent": lambda settings: logging.LogRecord(
        "", 0, "", 0, "%s %r", (settings.password, settings.entry_secrets), None
    ).getMessage(),
    "f": lambda settings: f"redis://:{settings.password}@h",
    "join": lambda settings: "".join((settings.password, *settings.entry_secrets)),
    "json": lambda settings: json.dumps(dataclasses.asdict(settings)),
    "pure json": lambda settings: json.dumps(vars(settings), indent=1),
    "ujson": lambda settings: ujson.dumps(vars(settings)),
    "frame": lambda settings: (
        traceback.StackSummary.extract(
            [(frame_with(settings.password, settings.entry_secrets), 1)], capture_locals=True
        )[0].locals
    ),
}


def frame_with(password, secrets):
    return inspect.currentframe()


@pytest.mark.parametrize("show", WAYS_TO_WRITE_IT_DOWN.values(), ids=WAYS_TO_WRITE_IT_DOWN)
def test_no_way_to_write_settings_down_shows_a_secret(guarded, show):
    """Start-up code logs its settings; an error tracker keeps the variables of every frame."""
    shown = str(show(guarded))
    assert "***" in shown
    assert SECRET not in shown
    assert SECRET not in f"{guarded} {guarded!r} {guarded.connection_identity()!r}"


def test_settings_with_a_secret_are_not_pickled(guarded):
    """The bytes go into a queue or a file, and hold it."""
    for held in (guarded, guarded.password, guarded.entry_secrets):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(held, protocol)
    plain = CacheSettings(ttl=5)
    assert pickle.loads(pickle.dumps(plain)) == plain


def test_a_secret_is_there_for_whoever_asks_for_it(guarded):
    """Masked for the log-in, too, it would be a wrong password."""
    assert guarded.password.encode() == SECRET.encode()
    assert guarded.password.get_secret_value() == SECRET
    assert operator.eq(guarded.password, SECRET)
    assert operator.eq(SECRET, guarded.password)
    assert not operator.ne(guarded.password, SECRET)
    assert not operator.ne(SECRET, guarded.password)
    assert guarded.password != "***"
    assert hash(guarded.password) == hash(SECRET)
    assert copy.copy(guarded) == copy.deepcopy(guarded) == dataclasses.replace(guarded) == guarded
    application = SimpleNamespace(redis_host="h", redis_password=guarded.password)
    assert CacheSettings.from_object(application).password.get_secret_value() == SECRET
    assert CacheSettings(password=SECRET) != CacheSettings(password=SECRET + "x")


# from_object


def test_the_old_services_settings_object_is_enough():
    """Its users change nothing but an import."""
    source = SimpleNamespace(redis_host="h", redis_port="6390", redis_db="2", redis_password=None)
    expected = CacheSettings(host="h", port=6390, db=2)
    assert CacheSettings.from_object(source) == expected
    source.redis_port, source.redis_db = 6390, 2
    assert CacheSettings.from_object(source) == expected


def test_a_settings_object_may_say_everything():
    """pydantic-settings wraps secrets and urls in classes of its own."""

    class Url:
        def __str__(self) -> str:
            return "redis://h:1/2"

    assert CacheSettings.from_object(
        SimpleNamespace(
            redis_host="h", redis_username="u", redis_password=Secret(SECRET), redis_ssl=True,
            jmcache_ttl="60s", jmcache_max_retries=0, jmcache_namespace="jobs",
        )
    ) == CacheSettings(
        host="h", username="u", password=SECRET, tls=True, ttl=60, max_retries=0, namespace="jobs"
    )  # fmt: skip
    assert CacheSettings.from_object(SimpleNamespace(redis_tls="yes", redis_host="h")).tls
    for url in (Url(), "redis://h:1/2", Secret("redis://h:1/2")):
        settings = CacheSettings.from_object(SimpleNamespace(redis_url=url, redis_host="unused"))
        assert settings.endpoint == "redis://h:1/2"


def test_attributes_may_be_in_upper_case():
    """Django and Flask settings are."""

    class Upper:
        REDIS_HOST = "h"
        REDIS_PORT = 1
        JMCACHE_TTL = 5

    assert CacheSettings.from_object(Upper) == CacheSettings(host="h", port=1, ttl=5)


def test_overrides_beat_the_object():
    """create_cache(settings, ttl=60) says it in the call."""
    source = SimpleNamespace(redis_host="h", jmcache_ttl=5)
    assert CacheSettings.from_object(source, ttl=7).ttl == 7.0
    own = CacheSettings(host="h")
    assert CacheSettings.from_object(own) is own
    assert CacheSettings.from_object(own, ttl=7) == CacheSettings(host="h", ttl=7)


@pytest.mark.parametrize(
    "source",
    [object(), None, 5, {"redis_host": "h"}, f"redis://:{SECRET}@h",
     SimpleNamespace(redis_port=1, redis_password=SECRET), SimpleNamespace(redis_host="")],
)  # fmt: skip
def test_an_object_without_host_and_url_is_told_what_is_expected(source):
    """Falling back to 127.0.0.1 would hide the wrong object until production."""
    seen = refusal(CacheSettings.from_object, source)
    assert "redis_host" in seen
    assert "redis_url" in seen
    assert SECRET not in seen


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"redis_port": "x"}, "redis_port"),
        ({"redis_db": -1}, "redis_db"),
        ({"redis_password": 5}, "redis_password"),
        ({"redis_password": SECRET.encode()}, "redis_password"),
        ({"redis_password": Secret(f"{SECRET}\ud800")}, "redis_password"),
        ({"redis_url": f"redis://:{SECRET}#@h"}, "redis_url"),
        ({"REDIS_PORT": "x"}, "REDIS_PORT"),
        ({"jmcache_ttl": 0}, "jmcache_ttl"),
    ],
)
def test_an_attribute_that_is_not_right_is_refused_by_its_name(attributes, name):
    """It is the attribute that its owner can change."""
    source = SimpleNamespace(**{"redis_host": "h"} | attributes)
    with pytest.raises(RedisConfigurationError, match=f"^{name}: "):
        CacheSettings.from_object(source)
    assert SECRET not in refusal(CacheSettings.from_object, source)
