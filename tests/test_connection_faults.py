"""Broken networks and lying servers: the time each call takes, and the data nobody gets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificates
from scripted_server import END, GREETINGS, RESET, Client, ScriptedServer, answering

from jmcache.connection import RedisConnectionManager, _wire
from jmcache.connection._together import Part, Question, exchange
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConnectionError,
    RedisCorruptEntryError,
    RedisError,
    RedisMisconfiguredError,
    RedisPoolExhaustedError,
    RedisProtocolError,
    RedisTimeoutError,
    RedisUnreachableError,
)
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer

pytestmark = pytest.mark.faults

D = 0.25  # seconds: the default of operation_timeout
ALLOWED_S = 0.30  # D and what the scheduler may add
MINUTE_MS = 60_000
MEGABYTE = b"m" * 1_000_000

Verb = Callable[[RedisConnectionManager, Deadline], object]
VERBS: dict[str, Verb] = {
    "get": lambda manager, deadline: manager.get(b"k", deadline),
    "get_many": lambda manager, deadline: manager.get_many([b"k", b"l"], deadline),
    "set": lambda manager, deadline: manager.set(b"k", b"v", MINUTE_MS, deadline),
    "set_many": lambda manager, deadline: manager.set_many([(b"k", b"v", MINUTE_MS)], deadline),
    "delete": lambda manager, deadline: manager.delete([b"k"], deadline),
    "ping": lambda manager, deadline: manager.ping(deadline),
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def soon() -> Deadline:
    return Deadline(5.0)


def fails(
    call: Callable[[Deadline], object],
    kind: type[RedisError],
    *,
    within_s: float = ALLOWED_S,
    seconds: float = D,
) -> RedisError:
    """Return the error of *kind* that *call* raised within *within_s*.

    A slow one is tried twice more: a busy machine is late at times, a missing bound always.
    """
    for _ in range(3):
        began = time.perf_counter()
        with pytest.raises(kind) as caught:
            call(Deadline(seconds))
        took_s = time.perf_counter() - began
        assert type(caught.value) is kind
        if took_s <= within_s:
            break
    assert took_s <= within_s
    return caught.value


@pytest.fixture
def manage() -> Iterator[Callable[..., RedisConnectionManager]]:
    """Make managers that are closed after the test."""
    with contextlib.ExitStack() as opened:

        def make(settings: CacheSettings | None = None, **changes: Any) -> RedisConnectionManager:
            manager = RedisConnectionManager(settings or CacheSettings(**changes))
            opened.callback(manager.close)
            return manager

        yield make


Manage = Callable[..., RedisConnectionManager]


# The deadline ----------------------------------------------------------------------------------


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """A port that refuses: bound, not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def swallowing_port() -> Iterator[int]:
    """A port that swallows connection requests: its queue of one is full."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@every_verb
def test_a_refused_connection_fails_at_once(verb: Verb, refusing_port: int, manage: Manage) -> None:
    """A local outage would cost each caller its whole deadline."""
    manager = manage(port=refusing_port)
    error = fails(lambda d: verb(manager, d), RedisUnreachableError, within_s=0.05)
    assert error.reason == "refused"


def test_a_unix_socket_that_is_gone_is_refused_too(tmp_path: Path, manage: Manage) -> None:
    """A stopped server takes its socket with it: the same outage must have the same name."""
    manager = manage(unix_socket_path=str(tmp_path / "none.sock"))
    error = fails(lambda d: manager.get(b"k", d), RedisUnreachableError, within_s=0.05)
    assert error.reason == "refused"


@every_verb
def test_a_swallowed_connection_request_costs_the_deadline(
    verb: Verb, swallowing_port: int, manage: Manage
) -> None:
    """A firewall that drops: 59.7 s with redis-py's defaults."""
    manager = manage(port=swallowing_port)
    error = fails(lambda d: verb(manager, d), RedisTimeoutError)
    assert error.reason == "timeout"


def test_a_connection_may_take_less_than_the_deadline(swallowing_port: int, manage: Manage) -> None:
    """connection_timeout would be a setting without an effect."""
    manager = manage(port=swallowing_port, connection_timeout=0.1)
    fails(lambda d: manager.get(b"k", d), RedisTimeoutError, within_s=0.15)


@every_verb
@pytest.mark.parametrize("password", [None, "hemlig"])
def test_a_server_that_accepts_and_is_silent_costs_the_deadline(
    verb: Verb, password: str | None, silent_port: int, manage: Manage
) -> None:
    """A hung server: 58.7 s with redis-py's defaults, and one wait for each part of a log-in."""
    manager = manage(port=silent_port, password=password)
    fails(lambda d: verb(manager, d), RedisTimeoutError)


SLOW: dict[str, Callable[[Client], None]] = {
    "drips a long value": lambda client: client.drip(b"$5000\r\n" + b"a" * 5000),
    "drips an endless error": lambda client: client.drip(b"-ERR " + b"a" * 5000),
    "drips an endless number": lambda client: client.drip(b"$" + b"0" * 5000),
    "stalls in the head": lambda client: client.send(b"$4"),
    "stalls in the value": lambda client: client.send(b"$4\r\naa"),
    "sends 200 kB/s": lambda client: client.drip(b"$1000000\r\n" + MEGABYTE, size=4000),
}


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_slow_answer_costs_the_deadline_and_no_value(
    answer: Callable[[Client], None], manage: Manage
) -> None:
    """A socket's own timeout starts anew with each byte: 41.5 s with one of 0.25 s."""
    with ScriptedServer(answering(answer)) as server:
        manager = manage(server.settings())
        fails(lambda d: manager.get(b"k", d), RedisTimeoutError)
        assert server.clients[0].ended.wait(timeout=5)


def test_the_greeting_shares_the_deadline(manage: Manage) -> None:
    """Each answer of the log-in would have a wait of its own."""
    slow = answering(b"$1\r\nv\r\n", greeting=lambda client: client.drip(b"+OK\r\n", every_s=0.05))
    with ScriptedServer(slow) as server:
        manager = manage(server.settings(password="hemlig", db=1))
        fails(lambda d: manager.get(b"k", d), RedisTimeoutError)


def test_a_stopped_server_costs_the_deadline_and_mixes_nothing_up(
    redis_server: PrivateServer, manage: Manage
) -> None:
    """Its answers come late, all at once: each would be the next caller's."""
    manager = manage(CacheSettings.from_url(redis_server.url, max_connections=2))
    names = [b"k%d" % number for number in range(8)]
    manager.set_many([(name, b"value of " + name, MINUTE_MS) for name in names], soon())
    redis_server.pause()
    for name in names[:2]:
        fails(lambda d, name=name: manager.get(name, d), RedisTimeoutError)
    redis_server.resume()
    for name in names * 20:
        assert manager.get(name, soon()) == b"value of " + name


def test_a_name_that_is_not_resolved_in_time_costs_the_deadline(
    manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's look-up takes 10 to 28 s and knows no timeout."""
    over = threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        over.wait(timeout=30)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    manager = manage(host="redis.example", port=6390)
    try:
        error = fails(lambda d: manager.get(b"k", d), RedisConnectionError)
        assert error.reason == "dns"
    finally:
        over.set()


def test_a_server_that_does_not_read_costs_the_deadline(manage: Manage) -> None:
    """A large value would wait in send, where the timeout of a plain socket starts anew."""
    over = threading.Event()

    def deaf(client: Client) -> None:
        client.command()
        client.send(b"+OK\r\n")
        over.wait(timeout=10)

    with ScriptedServer(deaf, receive_buffer=4096) as server:
        manager = manage(server.settings())
        giant = b"g" * 12_000_000  # more than the system takes, little enough to pack in time
        try:
            fails(lambda d: manager.set(b"k", giant, MINUTE_MS, d), RedisTimeoutError)
        finally:
            over.set()


def test_a_pool_used_up_by_slow_calls_is_no_evidence_against_redis(
    silent_port: int, manage: Manage
) -> None:
    """200 threads on 10 connections would open the breaker on a healthy server."""
    manager = manage(port=silent_port, max_connections=2)
    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(manager.get, b"k", Deadline(1.5)) for _ in range(2)]
        while manager.usage().in_use < 2:
            time.sleep(0.001)
        error = fails(lambda d: manager.get(b"k", d), RedisPoolExhaustedError)
        assert not error.trips
        for call in slow:
            with pytest.raises(RedisTimeoutError):
                call.result(timeout=5)
    assert manager.usage().in_use == 0


@pytest.mark.parametrize("seconds", [0.001, 0.03])
def test_little_time_is_no_evidence_against_redis(
    seconds: float, silent_port: int, manage: Manage
) -> None:
    """One impatient caller would open the breaker for all."""
    manager = manage(port=silent_port)
    with pytest.raises(RedisTimeoutError) as caught:
        manager.get(b"k", Deadline(seconds))
    assert not caught.value.trips


# Wrong data ------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, bytes]] = {
    "a number for a value": ("get", b":42\r\n"),
    "a status for a value": ("get", b"+OK\r\n"),
    "a list for a value": ("get", b"*1\r\n$1\r\nv\r\n"),
    "a list too short": ("get_many", b"*1\r\n$1\r\nv\r\n"),
    "a list too long": ("get_many", b"*3\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n"),
    "a list of numbers": ("get_many", b"*2\r\n:1\r\n:2\r\n"),
    "a value for a status": ("set", b"$2\r\nOK\r\n"),
    "another status": ("set", b"+PONG\r\n"),
    "nothing for a status": ("set_many", b"$-1\r\n"),
    "a status for a number": ("delete", b"+OK\r\n"),
    "a value for a pong": ("ping", b"$4\r\nPONG\r\n"),
    "garbage": ("get", b"\x00\xffgarbage"),
    "a web server's answer": ("get", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a list without end": ("get_many", b"*2147483647\r\n"),
    "a list without end inside": ("get_many", b"*2\r\n*2147483647\r\n"),
    "100,000 lists in each other": ("get", b"*1\r\n" * 100_000),
}


@pytest.mark.parametrize(("verb", "answer"), WRONG.values(), ids=WRONG)
def test_an_answer_of_another_kind_is_refused_and_its_connection_closed(
    verb: str, answer: bytes, manage: Manage
) -> None:
    """It is somebody else's answer, and the next one on that connection would be too."""

    def script(client: Client) -> None:
        if client.number:
            answering(b"$1\r\nv\r\n")(client)
        while (words := client.command()) is not None:
            client.send(b"+OK\r\n" if words[0] in GREETINGS else answer)

    with ScriptedServer(script) as server:
        manager = manage(server.settings())
        tracemalloc.start()
        try:
            error = fails_once(lambda: VERBS[verb](manager, soon()), RedisProtocolError)
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        assert error.trips
        assert not error.retryable
        assert server.clients[0].ended.wait(timeout=5)
        assert manager.get(b"k", soon()) == b"v"
        assert len(server.clients) == 2


def fails_once(call: Callable[[], object], kind: type[RedisError]) -> RedisError:
    began = time.perf_counter()
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert time.perf_counter() - began < 1.0
    return caught.value


def test_one_answer_out_of_step_makes_all_connections_suspect(manage: Manage) -> None:
    """What mixed one connection up, a proxy say, has mixed its neighbours up as well."""
    with ScriptedServer(answering(b"+PONG\r\n", b"+PONG\r\n", b":42\r\n")) as server:
        manager = manage(server.settings())
        first, second = [], []
        pool = manager._server.pool
        pool.borrow(first, soon())
        pool.borrow(second, soon())
        for loan in (first, second):
            loan[0].exchange(b"*1\r\n$4\r\nPING\r\n", (b"+PONG",), soon(), 0)
            pool.give_back(loan)
        assert manager.usage().idle == 2
        with pytest.raises(RedisProtocolError):
            manager.get(b"k", soon())
        assert manager.usage().idle == 0


def test_a_giant_is_refused_unread_and_the_next_call_is_fine(manage: Manage) -> None:
    """512 MB under one of our names: reserved or read, it takes the process down."""
    answers = answering(b"$536870912\r\n" + MEGABYTE, b"$1\r\nv\r\n")
    with ScriptedServer(answers) as server:
        manager = manage(server.settings())
        tracemalloc.start()
        try:
            error = fails_once(lambda: manager.get(b"k", soon()), RedisCorruptEntryError)
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        assert error.reason == "too_large"
        assert not error.trips
        assert manager.get(b"k", soon()) == b"v"


@pytest.mark.parametrize("together", [True, False], ids=["same segment", "later"])
def test_a_surplus_answer_is_nobodys(together: bool, manage: Manage) -> None:
    """With stock redis-py every later value on that connection is the one before, for ever."""
    given = threading.Semaphore(0)

    def twice(client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] in GREETINGS:
                client.send(b"+OK\r\n")
                continue
            answer = b"$2\r\n%b\r\n" % words[1]
            if together:
                client.send(answer * 2)
            else:
                client.send(answer)
                assert given.acquire(timeout=5)
                client.send(answer)

    with ScriptedServer(twice) as server:
        manager = manage(server.settings())
        for number in range(10, 20):
            name = b"%d" % number
            assert manager.get(name, soon()) == name
            given.release()
            idle = manager._server.pool._idle[0]
            while idle._sock.ready() and not idle._replies.unread:
                time.sleep(0.001)


CUT: dict[str, tuple[object, str]] = {
    "in the value, then the end": (lambda client: (client.send(b"$9\r\nabc"), client.end()), "eof"),
    "in the head, then the end": (lambda client: (client.send(b"$9"), client.end()), "eof"),
    "the end": (END, "eof"),
    "in the value, then a reset": (
        lambda client: (client.send(b"$9\r\nabc"), time.sleep(0.02), client.reset()),
        "reset",
    ),
    "a reset": (RESET, "reset"),
}


@pytest.mark.parametrize(("answer", "reason"), CUT.values(), ids=CUT)
def test_an_answer_cut_short_is_a_lost_connection(
    answer: object, reason: str, manage: Manage
) -> None:
    """Half a value must reach nobody, and another attempt may help."""
    with ScriptedServer(answering(answer, b"$1\r\nv\r\n")) as server:
        manager = manage(server.settings())
        error = fails_once(lambda: manager.get(b"k", soon()), RedisConnectionError)
        assert error.reason == reason
        assert error.retryable
        assert error.trips
        assert manager.get(b"k", soon()) == b"v"


def test_a_late_answer_is_nobodys(manage: Manage) -> None:
    """After a timeout the answer still comes: the connection must be gone by then."""
    answer = threading.Event()

    def script(client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] in GREETINGS:
                client.send(b"+OK\r\n")
            else:
                if client.number == 0:
                    answer.wait(timeout=5)
                client.send(b"$2\r\n%b\r\n" % words[1])

    with ScriptedServer(script) as server:
        manager = manage(server.settings())
        with pytest.raises(RedisTimeoutError):
            manager.get(b"aa", Deadline(0.1))
        answer.set()
        assert manager.get(b"bb", soon()) == b"bb"


def test_a_stranger_on_the_port_is_a_protocol_error(manage: Manage) -> None:
    """The wrong port in the settings: the operator has to read what it is."""

    def web(client: Client) -> None:
        client.command()
        client.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        client.end()

    with ScriptedServer(web) as server:
        error = fails_once(lambda: manage(server.settings()).get(b"k", soon()), RedisProtocolError)
        assert error.reason == "protocol"


# TLS -------------------------------------------------------------------------------------------


def echo(client: Client) -> None:
    """Every key holds one megabyte of its own name, and everything can be stored."""
    while (words := client.command()) is not None:
        if words[0] == b"GET":
            client.send(b"$1000000\r\n" + words[1] * 1_000_000 + b"\r\n")
        else:
            client.send(b"+OK\r\n")


def test_values_go_both_ways_over_tls(certificates: Certificates, manage: Manage) -> None:
    """Large ones take many records each way, and TLS keeps bytes where poll does not see them."""
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        manager = manage(server.settings(tls=True, tls_ca_certs=certificates.authority))
        for _ in range(3):
            assert manager.get(b"a", soon()) == b"a" * 1_000_000
            manager.set(b"b", b"b" * 300_000, MINUTE_MS, soon())
        assert server.asked()[-1][2] == b"b" * 300_000
        assert len(server.clients) == 1


def test_what_is_asked_together_goes_over_tls_too(
    certificates: Certificates, manage: Manage
) -> None:
    """A cluster's pipelines are sent as far as it goes: never past the encryption."""
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        manager = manage(server.settings(tls=True, tls_ca_certs=certificates.authority))
        for _ in range(3):
            stored = _wire.pack_set(b"b", b"b" * 900_000, MINUTE_MS)
            questions = [Question(stored, _wire.OK), Question(_wire.pack_get(b"a"), _wire.VALUE)]
            part = Part(manager._server, questions)
            exchange([part], soon())
            assert part.error is None
            assert [question.reply for question in questions] == [b"OK", b"a" * 1_000_000]
        assert server.asked()[0][2] == b"b" * 900_000
        assert len(server.clients) == 1


UNTRUSTED = {
    "untrusted": ("good", {"tls_ca_certs": "stranger"}),
    "unknown to the system": ("good", {}),
    "wrong host name": ("other_host", {"tls_ca_certs": "authority"}),
    "expired": ("expired", {"tls_ca_certs": "authority"}),
}


@pytest.mark.parametrize(("shown", "settings"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_server_that_is_not_trusted_gets_not_one_byte_of_ours(
    shown: str, settings: dict[str, str], certificates: Certificates, manage: Manage
) -> None:
    """Whoever can answer in the server's place would get the password and every value."""
    files = {name: getattr(certificates, which) for name, which in settings.items()}
    with ScriptedServer(echo, tls=certificates.context(getattr(certificates, shown))) as server:
        manager = manage(server.settings(tls=True, password="hemlig", **files))
        for _ in range(2):
            error = fails(
                lambda d: manager.get(b"k", d), RedisMisconfiguredError, within_s=1.0, seconds=2.0
            )
            assert error.reason == "tls"
        assert server.commands == []


@pytest.mark.parametrize("off", ["tls_verify", "tls_check_hostname"])
def test_checks_that_are_switched_off_are_off(
    off: str, certificates: Certificates, manage: Manage
) -> None:
    """A setting without an effect; the other one must still hold."""
    with ScriptedServer(echo, tls=certificates.context(certificates.other_host)) as server:
        authority = certificates.authority if off == "tls_check_hostname" else certificates.stranger
        manager = manage(server.settings(tls=True, tls_ca_certs=authority, **{off: False}))
        assert manager.get(b"a", soon()) == b"a" * 1_000_000
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        settings = server.settings(
            tls=True, tls_ca_certs=certificates.stranger, tls_check_hostname=False
        )
        fails(lambda d: manage(settings).get(b"a", d), RedisMisconfiguredError, within_s=1.0)


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_older_than_tls_1_2_is_spoken(
    verify: bool, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose OpenSSL still allows 1.0, for some other program's sake."""

    def lenient(**options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return context

    monkeypatch.setattr(ssl, "create_default_context", lenient)
    manager = manage(host="127.0.0.1", tls=True, tls_verify=verify)
    context = manager._server.pool.connection_kwargs["tls"].context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_certificate_of_ours_is_shown(certificates: Certificates, manage: Manage) -> None:
    """Servers that ask for one would refuse us; the refusal must say that it is TLS."""
    context = certificates.context(certificates.good, certificates.authority)
    with ScriptedServer(echo, tls=context) as server:
        without = server.settings(tls=True, tls_ca_certs=certificates.authority)
        with pytest.raises(RedisConnectionError) as caught:
            manage(without).get(b"a", soon())
        assert caught.value.reason in ("tls", "reset", "eof")
        shown = server.settings(
            tls=True,
            tls_ca_certs=certificates.authority,
            tls_certfile=certificates.client,
            tls_keyfile=certificates.client.replace(".pem", ".key"),
        )
        assert manage(shown).get(b"a", soon()) == b"a" * 1_000_000


def test_a_certificate_that_was_replaced_is_read_again(
    certificates: Certificates, manage: Manage, tmp_path: Path
) -> None:
    """Rotated authorities would need a restart of every service."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(certificates.stranger).read_bytes())
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        manager = manage(server.settings(tls=True, tls_ca_certs=str(trusted)))
        with pytest.raises(RedisMisconfiguredError):
            manager.get(b"a", soon())
        trusted.write_bytes(Path(certificates.authority).read_bytes())
        assert manager.get(b"a", soon()) == b"a" * 1_000_000


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_certificate_file_that_cannot_be_read_is_a_wrong_setting(
    content: bytes | None, certificates: Certificates, manage: Manage, tmp_path: Path
) -> None:
    """Taken for a network fault it would be retried for ever, and nobody told."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        manager = manage(server.settings(tls=True, tls_ca_certs=str(path)))
        error = fails(lambda d: manager.get(b"a", d), RedisMisconfiguredError)
        assert error.reason == "tls"


def test_an_encrypted_key_asks_nobody_for_its_password(
    certificates: Certificates, manage: Manage, tmp_path: Path
) -> None:
    """OpenSSL would ask on the terminal, and the service would wait there."""
    key = tmp_path / "locked.key"
    certificates._run(
        *("ec", "-in", certificates.client.replace(".pem", ".key"), "-aes256"),
        *("-passout", "pass:hemlig", "-out", str(key)),
    )
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        settings = server.settings(tls=True, tls_certfile=certificates.client, tls_keyfile=str(key))
        fails(
            lambda d: manage(settings).get(b"a", d),
            RedisMisconfiguredError,
            within_s=1.0,
            seconds=2.0,
        )


def test_a_tls_port_that_is_silent_costs_the_deadline(
    silent_port: int, certificates: Certificates, manage: Manage
) -> None:
    """58.5 s with redis-py's defaults."""
    manager = manage(port=silent_port, tls=True, tls_ca_certs=certificates.authority)
    manager._server.pool.connection_kwargs["tls"].context()
    fails(lambda d: manager.get(b"k", d), RedisTimeoutError)


def test_a_handshake_that_drips_costs_the_deadline(
    certificates: Certificates, manage: Manage
) -> None:
    """A handshake is several reads: each would have a timeout of its own."""

    def drip(client: Client) -> None:
        client.drip(b"\x16\x03\x03\x3f\xff" + b"\x02" * 1000)

    with ScriptedServer(drip) as server:
        manager = manage(server.settings(tls=True, tls_ca_certs=certificates.authority))
        began = time.perf_counter()
        with pytest.raises(RedisConnectionError):
            manager.get(b"k", Deadline(D))
        assert time.perf_counter() - began <= 2 * ALLOWED_S


def test_tls_to_a_plain_server_never_becomes_plain(
    tcp_server: PrivateServer, certificates: Certificates, manage: Manage
) -> None:
    """A fall-back would send the password in the clear, to whoever answers."""
    manager = manage(port=tcp_server.port, tls=True, tls_ca_certs=certificates.authority)
    began = time.perf_counter()
    with pytest.raises(RedisConnectionError):
        manager.set(b"k", b"v", MINUTE_MS, Deadline(D))
    assert time.perf_counter() - began <= 2 * ALLOWED_S
    assert tcp_server.command("EXISTS", "k") == 0


def test_plain_to_a_tls_server_is_told_apart(certificates: Certificates, manage: Manage) -> None:
    """rediss:// forgotten: it must fail, and fast."""
    with ScriptedServer(echo, tls=certificates.context(certificates.good)) as server:
        with pytest.raises(RedisConnectionError):
            manage(server.settings()).get(b"k", soon())
        assert server.commands == []
