"""Passwords that change while the service runs: functions that give them, files that hold them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import UsernamePasswordCredentialProvider
from scripted_server import Client, ScriptedServer, answering

from jmcache import RedisCacheFactory
from jmcache.connection import RedisConnectionManager, _credentials
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConfigurationError,
    RedisConnectionError,
    RedisError,
    RedisMisconfiguredError,
)
from jmcache.settings import CacheSettings
from jmcache.testing import PrivateServer, fake_manager

SECRET = "hemlig-6d1"
VALUE = b"$1\r\nv\r\n"

Manage = Callable[..., RedisConnectionManager]


def soon() -> Deadline:
    return Deadline(5.0)


@pytest.fixture
def manage() -> Iterator[Manage]:
    """Make managers that are closed after the test."""
    with contextlib.ExitStack() as opened:

        def make(settings: CacheSettings) -> RedisConnectionManager:
            manager = RedisConnectionManager(settings)
            opened.callback(manager.close)
            return manager

        yield make


class Vault:
    """Gives passwords as the test wants it."""

    def __init__(self) -> None:
        self.answer: Any = SECRET  # what it gives; raised, when it is an exception
        self.asked = 0
        self.threads: set[int] = set()
        self.let_go = threading.Event()  # every question waits for it
        self.let_go.set()

    def __call__(self) -> Any:
        self.asked += 1
        self.threads.add(threading.get_ident())
        assert self.let_go.wait(timeout=30)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault()
    yield made
    made.let_go.set()


def logins(server: ScriptedServer) -> list[list[bytes]]:
    return [words[1:] for words in server.commands if words[0] == b"AUTH"]


# What may give them -----------------------------------------------------------------------------

GIVEN = {
    "a password": (lambda: SECRET, [SECRET.encode()]),
    "a user and a password": (lambda: ("app", SECRET), [b"app", SECRET.encode()]),
    "a password alone, as redis-py's providers": (lambda: (SECRET,), [SECRET.encode()]),
    "an empty user": (lambda: ("", SECRET), [SECRET.encode()]),
    "a provider": (UsernamePasswordCredentialProvider("app", SECRET), [b"app", SECRET.encode()]),
    "a provider without user": (
        UsernamePasswordCredentialProvider(password=SECRET),
        [SECRET.encode()],
    ),
}


@pytest.mark.parametrize(("gives", "login"), GIVEN.values(), ids=GIVEN)
def test_what_it_gives_is_what_we_log_in_with(
    gives: Any, login: list[bytes], manage: Manage
) -> None:
    """Another form than the service's own library gives would be a wrapper in every service."""
    with ScriptedServer(answering(VALUE)) as server:
        assert manage(server.settings(password=gives)).get(b"k", soon()) == b"v"
        assert logins(server) == [login]


def test_a_password_alone_goes_with_the_user_of_the_settings(manage: Manage) -> None:
    """The user stays when the password changes."""
    with ScriptedServer(answering(VALUE)) as server:
        manage(server.settings(username="app", password=lambda: SECRET)).get(b"k", soon())
        assert logins(server) == [[b"app", SECRET.encode()]]


@pytest.mark.parametrize("nothing", ["", ("",), ("", "")])
def test_nothing_given_is_no_log_in(nothing: Any, manage: Manage) -> None:
    """A development machine has a Redis without a password and the same code."""
    with ScriptedServer(answering(VALUE)) as server:
        assert manage(server.settings(password=lambda: nothing)).get(b"k", soon()) == b"v"
        assert logins(server) == []


def test_a_foreign_connection_class_asks_too(vault: Vault) -> None:
    """Tests on the fake would not see that the service's own function is never called."""
    manager = fake_manager(CacheSettings(password=vault))
    assert failure(manager).reason == "auth"  # the fake has no password to compare
    vault.answer = RuntimeError("vault is away")
    assert failure(manager).reason == "credentials", "what was refused served on"
    assert vault.asked == 2


async def awaited() -> str:
    return SECRET


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> str:
        return SECRET


@pytest.mark.parametrize("what", [awaited, Unhashable(), object(), [SECRET], 5])
def test_what_cannot_give_any_is_refused_at_once_and_not_shown(what: Any) -> None:
    """It would be found out by the first customer."""
    with pytest.raises(RedisConfigurationError, match=r"^password: ") as caught:
        CacheSettings(password=what)
    assert SECRET not in str(caught.value)


def test_settings_with_a_function_compare_by_it() -> None:
    """Caches of one Redis share its connections: those with the same function, no others."""

    def gives() -> str:
        return SECRET

    def other() -> str:
        return SECRET

    one, same = (CacheSettings(password=gives, namespace=name) for name in ("a", "b"))
    assert one.connection_identity() == same.connection_identity()
    assert hash(one.connection_identity()) == hash(same.connection_identity())
    assert one != CacheSettings(password=other, namespace="a")
    assert dataclasses.replace(one, ttl=5).password is gives
    assert "password" not in repr(one)


# When it is asked ---------------------------------------------------------------------------------


def test_it_is_asked_for_each_connection_and_not_before(vault: Vault, manage: Manage) -> None:
    """A password that is read once at the start is no rotation."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(server.settings(password=vault))
        assert vault.asked == 0
        manager.get(b"k", soon())
        manager.get(b"k", soon())
        assert vault.asked == 1
        vault.answer = "another"
        manager.drop_connections()
        manager.get(b"k", soon())
        assert logins(server) == [[SECRET.encode()], [b"another"]]


def test_it_is_asked_on_a_thread_of_its_own(vault: Vault, manage: Manage) -> None:
    """On the caller's it would take the time it takes, whatever the caller's deadline is."""
    with ScriptedServer(answering(VALUE)) as server:
        manage(server.settings(password=vault)).get(b"k", soon())
    assert threading.get_ident() not in vault.threads


def test_connections_made_at_once_share_one_answer(vault: Vault, manage: Manage) -> None:
    """After a restart of Redis a vault would be asked by every thread of every process."""
    with ScriptedServer(answering(VALUE)) as server, ThreadPoolExecutor(10) as threads:
        manager = manage(server.settings(password=vault))
        vault.let_go.clear()
        calls = [threads.submit(manager.get, b"k", soon()) for _ in range(10)]
        while len(server.clients) < 10:
            time.sleep(0.001)
        time.sleep(0.05)  # for a second one to be asked, if there is one
        assert vault.asked == 1
        vault.let_go.set()
        assert {call.result(timeout=5) for call in calls} == {b"v"}


def test_nobody_is_asked_while_redis_is_away(vault: Vault, manage: Manage) -> None:
    """An outage of Redis must not become one of the vault."""
    manager = manage(CacheSettings(unix_socket_path="/nonexistent", password=vault))
    with pytest.raises(RedisConnectionError):
        manager.get(b"k", soon())
    assert vault.asked == 0


# When it is late, fails, or is wrong --------------------------------------------------------------


def failure(manager: RedisConnectionManager, deadline: Deadline | None = None) -> RedisError:
    with pytest.raises(RedisError) as caught:
        manager.get(b"k", deadline or soon())
    return caught.value


def test_one_that_is_late_costs_the_deadline_and_serves_the_next(
    vault: Vault, manage: Manage
) -> None:
    """A vault that takes 2 s would hold up requests that have 250 ms."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(server.settings(password=vault))
        vault.let_go.clear()
        for _ in range(3):
            began = time.monotonic()
            error = failure(manager, Deadline(0.25))
            took_s = time.monotonic() - began
            if took_s <= 0.3:
                break
        assert took_s <= 0.3
        assert (type(error), error.reason) == (RedisConnectionError, "credentials")
        assert error.trips
        assert vault.asked == 1
        vault.let_go.set()
        assert manager.get(b"k", soon()) == b"v"
        assert logins(server) == [[SECRET.encode()]]


@pytest.mark.parametrize("trouble", ["late", "failing"])
def test_the_last_ones_serve_on(trouble: str, vault: Vault, manage: Manage) -> None:
    """An outage of the vault would be one of the cache, though the password is still right."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(server.settings(password=vault))
        manager.get(b"k", soon())
        manager.drop_connections()
        if trouble == "late":
            vault.let_go.clear()
        else:
            vault.answer = RuntimeError("vault is away")
        assert manager.get(b"k", Deadline(1.0)) == b"v"
        assert vault.asked == 2
        assert logins(server) == [[SECRET.encode()]] * 2


@pytest.fixture
def picky() -> Iterator[tuple[ScriptedServer, set[bytes]]]:
    """A server, and the passwords that it refuses."""
    refused: set[bytes] = set()

    def script(client: Client) -> None:
        while (words := client.command()) is not None:
            if words[0] == b"AUTH" and words[-1] in refused:
                client.send(b"-WRONGPASS no\r\n")
            else:
                client.send(VALUE if words[0] == b"GET" else b"+OK\r\n")

    with ScriptedServer(script) as server:
        yield server, refused


Picky = tuple[ScriptedServer, set[bytes]]


def test_refused_ones_do_not_serve_on(picky: Picky, vault: Vault, manage: Manage) -> None:
    """Log-in after log-in with a password that is known to be wrong locks the account."""
    server, refused = picky
    manager = manage(server.settings(password=vault))
    manager.get(b"k", soon())
    manager.drop_connections()
    refused.add(SECRET.encode())
    assert failure(manager).reason == "auth"
    vault.answer = RuntimeError("vault is away")
    error = failure(manager)
    assert error.reason == "credentials"
    assert "RuntimeError" in str(error)
    assert len(logins(server)) == 2


def test_refused_ones_are_tried_again_after_a_while_and_others_at_once(
    picky: Picky, vault: Vault, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each health check would be a failed log-in, or a new password would wait for its turn."""
    server, refused = picky
    refused.add(SECRET.encode())
    manager = manage(server.settings(password=vault))
    assert [failure(manager).reason for _ in range(3)] == ["auth", "credentials", "credentials"]
    vault.answer = "new"
    assert manager.get(b"k", soon()) == b"v"
    manager.drop_connections()
    vault.answer = SECRET
    assert failure(manager).reason == "credentials"
    assert len(logins(server)) == 2
    refused.clear()
    late = time.monotonic() + _credentials._NOT_AGAIN_S
    monkeypatch.setattr(_credentials.time, "monotonic", lambda: late)
    assert manager.get(b"k", soon()) == b"v"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


WRONG = {
    "an exception with the secret in it": ValueError(f"no such key: {SECRET}"),
    "the end of the interpreter": SystemExit(SECRET),
    "nothing": None,
    "bytes": SECRET.encode(),
    "three": ("app", SECRET, "more"),
    "a number": ("app", 5),
    "none": (),
    "half a character": SECRET + "\ud800",
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_one_that_fails_is_a_wrong_setting_that_is_said_once_without_the_secret(
    answer: Any, vault: Vault, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    """Swallowed, nobody finds out why Redis is not used; shown, the log holds the password."""
    vault.answer = answer
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(server.settings(password=vault))
        errors = [failure(manager) for _ in range(3)]
        for error in errors:
            assert error.reason == "credentials"
            assert all(SECRET not in str(one) for one in chain(error))
        if isinstance(answer, SystemExit):  # ends its thread, as it is meant to
            return
        assert all(isinstance(error, RedisMisconfiguredError) for error in errors)
        assert all(error.opens_at_once for error in errors)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "password" in record.getMessage()
        assert SECRET not in caplog.text
        if isinstance(answer, ValueError):
            assert "ValueError at test_credentials.py:" in record.getMessage()
        assert logins(server) == []


def test_after_it_worked_again_the_same_failure_is_said_again(
    vault: Vault, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    """The second outage of a vault would not be in the log."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(server.settings(password=vault))
        for answer in (RuntimeError(), RuntimeError(), SECRET, RuntimeError()):
            vault.answer = answer
            manager.drop_connections()
            with contextlib.suppress(RedisMisconfiguredError):
                manager.get(b"k", soon())
    assert len(caplog.records) == 2


# A file -----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"path-{SECRET}"
    path.write_text("first\n")
    return path


def of_file(path: Path, server: ScriptedServer) -> CacheSettings:
    return CacheSettings.from_env(
        {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "REDIS_PASSWORD_FILE": str(path),
        }
    )


def test_a_file_is_read_again_for_each_connection(file: Path, manage: Manage) -> None:
    """Kubernetes replaces the file; nobody restarts the service for it."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(of_file(file, server))
        for password in ("first", "second"):
            file.write_text(password)
            manager.drop_connections()
            manager.get(b"k", soon())
        assert logins(server) == [[b"first"], [b"second"]]


def test_a_relative_path_is_the_one_of_the_start(
    file: Path, manage: Manage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon changes its directory."""
    monkeypatch.chdir(file.parent)
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(of_file(Path(file.name), server))
        monkeypatch.chdir("/")
        manager.get(b"k", soon())
        assert logins(server) == [[b"first"]]


def test_a_file_that_is_gone_is_said_and_the_last_password_serves_on(
    file: Path, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    """For a moment in each rotation it is."""
    with ScriptedServer(answering(VALUE)) as server:
        manager = manage(of_file(file, server))
        manager.get(b"k", soon())
        file.unlink()
        manager.drop_connections()
        manager.get(b"k", soon())
        assert logins(server) == [[b"first"], [b"first"]]
        assert "REDIS_PASSWORD_FILE" in caplog.text
        assert SECRET not in caplog.text


def test_settings_of_a_file_compare_by_it_and_hide_what_it_holds(
    file: Path, tmp_path: Path
) -> None:
    """Sharing connections with settings that have the password by itself, nothing would rotate."""

    def read(path: Path) -> CacheSettings:
        return CacheSettings.from_env({"REDIS_PASSWORD_FILE": str(path)})

    settings, other = read(file), tmp_path / "other"
    other.write_text("first")
    assert settings.password == "first"
    assert settings == read(file)
    assert hash(settings) == hash(read(file))
    assert settings != read(other)
    assert settings != CacheSettings(password="first")
    assert CacheSettings(password="first") != settings
    assert dataclasses.replace(settings, ttl=5).password == settings.password
    assert "first" not in str(vars(settings))
    assert str(file) not in str(vars(settings))


# On a real server -------------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[PrivateServer]:
    with PrivateServer(tcp=True, password="old") as server:
        yield server


def test_a_password_that_is_there_in_time_costs_no_call(guarded: PrivateServer) -> None:
    """A function that knows both is how a rotation is done without any outage."""
    passwords = {"now": "old"}
    with RedisCacheFactory.create_cache(
        CacheSettings(port=guarded.port, password=lambda: passwords["now"], operation_timeout=5.0)
    ) as cache:
        for turn in range(5):
            assert cache.set("k", turn)
            passwords["now"] = f"new {turn}"
            guarded.command("CONFIG", "SET", "requirepass", passwords["now"])
            guarded.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert cache.get("k") == turn
        assert {outcome for _, outcome, _ in cache.stats().operations} == {"done", "hit"}


def test_a_child_asks_for_itself(vault: Vault, guarded: PrivateServer) -> None:
    """The thread that asks exists in the parent only: the child would wait for it in vain."""
    vault.answer = "old"
    with RedisCacheFactory.create_cache(
        CacheSettings(port=guarded.port, password=vault, operation_timeout=5.0)
    ) as cache:
        vault.let_go.clear()
        cache.get("k", timeout=0.01)
        pid = os.fork()
        if pid == 0:
            right = False
            try:
                vault.let_go = threading.Event()
                vault.let_go.set()
                right = cache.set("k", 1) and cache.get("k") == 1
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_reset_while_logging_in_is_not_taken_for_a_refusal(vault: Vault, manage: Manage) -> None:
    """What was right would be asked for again and again, and could not serve on."""

    def script(client: Client) -> None:
        client.command()
        client.reset()

    with ScriptedServer(script) as server:
        manager = manage(server.settings(password=vault))
        for answer in (SECRET, RuntimeError("vault is away")):
            vault.answer = answer
            assert failure(manager).reason in ("reset", "eof")
        assert vault.asked == 2
