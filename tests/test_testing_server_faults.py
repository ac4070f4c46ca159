"""What the private server can be made to do wrong: as a stranger's socket sees it, and undone."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest

from jmcache import CacheSettings
from jmcache.testing import Certificates, PrivateServer, ReplyError
from jmcache.testing.resp import Link

pytestmark = [pytest.mark.redis, pytest.mark.faults]


@pytest.fixture
def server(redis_server):
    redis_server.command("SET", "k", "v")
    yield redis_server
    redis_server.restore()


@pytest.fixture
def connect(server):
    made = []

    def make():
        made.append(Link(str(server.socket_path), 5.0))
        return made[-1]

    yield make
    for link in made:
        link.close()


@pytest.fixture
def client(connect):
    """A stranger, connected before anything happens."""
    link = connect()
    assert link.ask("PING") == "PONG"
    return link


def no(link, *words):
    """The word with which the server refuses."""
    with pytest.raises(ReplyError) as refused:
        link.ask(*words)
    return str(refused.value).partition(" ")[0]


# The words with which a SET and a GET are refused.
REFUSALS = {
    "fill": (PrivateServer.fill, "OOM", None),
    "make_read_only": (PrivateServer.make_read_only, "READONLY", None),
    "lose_master": (PrivateServer.lose_master, "READONLY", "MASTERDOWN"),
    "require_replicas": (PrivateServer.require_replicas, "NOREPLICAS", None),
    "fail_saves": (PrivateServer.fail_saves, "MISCONF", None),
    "run_busy_script": (PrivateServer.run_busy_script, "BUSY", "BUSY"),
}


@pytest.mark.parametrize("how", ["undo", "with", "restore"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_the_servers_own_and_ends(server, client, name, how):
    """A client branches on the first word, and a fault that stays breaks the next test."""
    break_it, to_set, to_get = REFUSALS[name]
    change = break_it(server)
    try:
        assert no(client, "SET", "k", "w") == to_set
        if to_get is None:
            assert client.ask("GET", "k") == b"v"
        else:
            assert no(client, "GET", "k") == to_get
    finally:
        if how == "undo":
            change.undo()
        elif how == "with":
            with change:
                pass
        else:
            server.restore()
    assert client.ask("GET", "k") == b"v"
    assert client.ask("SET", "k", "w") == "OK"
    assert "undone" in repr(change)
    change.undo()


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_is_killed_in_the_middle_starts_as_new(server, name):
    """Faults come together: one that could not save could not be started again either."""
    break_it, _, _ = REFUSALS[name]
    with break_it(server):
        server.kill()
        server.start()
        assert server.command("SET", "k", "w") == "OK"
    assert server.command("GET", "k") == b"w"


def test_changes_are_undone_in_any_order(server, client):
    """A test that ends in the middle leaves the rest to the fixture."""
    full, alone = server.fill(), server.require_replicas()
    full.undo()
    assert no(client, "SET", "k", "w") == "NOREPLICAS"
    assert server.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"0"]
    alone.undo()
    assert client.ask("SET", "k", "w") == "OK"


def test_any_setting_can_be_changed_for_a_while(server):
    """There are more of them than faults with a name."""
    with server.configure(timeout=7, slowlog_max_len="9"):
        assert server.command("CONFIG", "GET", "timeout") == [b"timeout", b"7"]
        assert server.command("CONFIG", "GET", "slowlog-max-len") == [b"slowlog-max-len", b"9"]
    assert server.command("CONFIG", "GET", "timeout") == [b"timeout", b"0"]
    assert server.command("CONFIG", "GET", "slowlog-max-len") == [b"slowlog-max-len", b"128"]


@pytest.mark.parametrize("wrong", [{"nonsense": 1}, {"maxmemory_policy": "nonsense"}])
def test_a_setting_that_is_refused_changes_nothing(server, wrong):
    """Half a change would be nobody's to undo."""
    with pytest.raises(ReplyError):
        server.configure(timeout=7, **wrong)
    assert server.command("CONFIG", "GET", "timeout") == [b"timeout", b"0"]


def test_restore_finds_what_nobody_noted(server):
    """CONFIG SET by hand is how everybody breaks a server who has not read the manual."""
    server.command("CONFIG", "SET", "maxmemory", "1")
    server.command("ACL", "SETUSER", "stranger", "on", "nopass", "~*", "+@all")
    server.command("ACL", "SETUSER", "default", "-set")
    server.restore()
    assert server.command("SET", "k", "w") == "OK"
    assert server.command("ACL", "USERS") == [b"default"]


@pytest.mark.parametrize("end", [PrivateServer.kill, PrivateServer.pause, PrivateServer.stop])
def test_restore_brings_a_server_back_from_anywhere(server, end):
    """Whatever a test did last, the next one finds a server that answers."""
    server.fill()
    end(server)
    server.restore()
    assert server.command("SET", "k", "w") == "OK"


def test_a_server_that_lets_nobody_in_is_made_anew(server):
    """It cannot be asked to undo anything."""
    pid = server.pid
    server.command("ACL", "SETUSER", "default", "resetpass", ">other")
    server.kill_clients()
    server._link.close()
    server._link = None
    server.restore()
    assert server.pid != pid
    assert server.command("SET", "k", "w") == "OK"


def test_a_change_outlived_by_its_server_has_nothing_to_undo(server):
    """The new process was never changed."""
    with server.fill(), server.make_read_only():
        server.kill()
    server.start()
    assert server.command("SET", "k", "w") == "OK"


def test_a_password_is_changed_under_everybodys_feet(server, client, connect):
    """Rotation: who is logged in is thrown out, and who comes needs the new one."""
    with server.change_password("n3w/pass"):
        with pytest.raises(OSError, match=r"closed|reset|Broken"):
            client.ask("PING")
        assert no(connect(), "PING") == "NOAUTH"
        assert connect().ask("AUTH", "n3w/pass") == "OK"
        assert CacheSettings.from_url(server.url).password == "n3w/pass"
        server.kill()
        server.start()
        assert no(connect(), "PING") == "NOAUTH"
        assert server.command("PING") == "PONG"
    assert connect().ask("PING") == "PONG"
    assert server.url.startswith("unix:///")


def test_who_is_logged_in_may_be_let_stay(server, client):
    """It is what Redis does, and why a rotation is noticed only at the next connection."""
    with server.change_password("new", kick=False):
        assert client.ask("PING") == "PONG"


def test_a_user_may_do_what_was_said_and_goes(server, connect):
    """An account with narrow rights is what production has."""
    with server.add_user("reader", "p/w", "~k", "+get"):
        settings = CacheSettings.from_url(server.url_for("reader", "p/w"))
        assert (settings.username, settings.password) == ("reader", "p/w")
        link = connect()
        assert link.ask("AUTH", "reader", "p/w") == "OK"
        assert link.ask("GET", "k") == b"v"
        assert no(link, "SET", "k", "w") == "NOPERM"
    assert no(connect(), "AUTH", "reader", "p/w") == "WRONGPASS"


def test_more_clients_than_it_takes_are_turned_away(server, client, connect):
    """Those that are connected go on, and the owner still gets in to end it."""
    with server.limit_clients():
        assert client.ask("PING") == "PONG"
        with pytest.raises(ReplyError, match="max number of clients"):
            connect()._read()
        assert server.command("PING") == "PONG"
    assert connect().ask("PING") == "PONG"


def test_clients_are_killed_once(server, client, connect):
    """What an idle connection meets after a failover of the load balancer."""
    server.kill_clients()
    with pytest.raises(OSError, match=r"closed|reset|Broken"):
        client.ask("PING")
    assert connect().ask("PING") == "PONG"


def test_a_server_that_loads_says_so_and_has_everything_afterwards(server, connect):
    """A restart of a big server is a minute of refusals, on a connection that works."""
    loading = server.load(30.0)
    assert no(connect(), "GET", "k") == "LOADING"
    assert server.command("CONFIG", "GET", "timeout")
    loading.undo()
    assert connect().ask("GET", "k") == b"v"
    assert server.command("DBSIZE") == 1
    server.kill()
    server.start()
    assert server.command("DBSIZE") == 0


def test_loading_ends_by_itself(server, connect):
    """A test may want to see a client find its way back without help."""
    server.load(0.3)
    assert no(connect(), "GET", "k") == "LOADING"
    link = connect()
    over = time.monotonic() + 10
    while True:
        try:
            assert link.ask("GET", "k") == b"v"
            break
        except ReplyError:
            assert time.monotonic() < over
            time.sleep(0.01)


@pytest.mark.parametrize("fault", [PrivateServer.pause_clients, PrivateServer.block])
def test_a_server_answers_nobody_for_a_while(server, client, fault):
    """A failover by hand, or a slow command of somebody else's, makes everybody wait."""
    began = time.monotonic()
    fault(server, 0.4)
    client.send("GET", "k")
    assert not has_answer(client, 0.1)
    assert client._read() == b"v"
    assert time.monotonic() - began >= 0.35


@pytest.mark.parametrize("fault", [PrivateServer.pause_clients, PrivateServer.block])
def test_the_next_test_does_not_wait_for_a_deaf_server(server, fault):
    """The rest of a pause of a minute would be its time-out."""
    fault(server, 60)
    began = time.monotonic()
    server.restore()
    assert server.command("PING") == "PONG"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("seconds", [0, -1, "1", float("nan"), 1e9])
def test_a_time_that_is_none_is_refused(server, seconds):
    """It would reach the server as a pause for ever, or as none."""
    for method in (server.block, server.pause_clients, server.load):
        with pytest.raises(ValueError, match=r"^seconds: "):
            method(seconds)


def test_an_encrypted_server_is_trusted_by_its_url(tmp_path):
    """The url is all that a test wants to hand on."""
    with PrivateServer(tls=True, password="pw") as server:
        settings = CacheSettings.from_url(server.url)
        assert (settings.tls, settings.password) == (True, "pw")
        context = ssl.create_default_context(cafile=settings.tls_ca_certs)
        for host in ("localhost", "127.0.0.1"):
            raw = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            with context.wrap_socket(raw, server_hostname=host) as link:
                link.sendall(b"PING\r\n")
                assert link.recv(100).startswith(b"-NOAUTH")
        assert server.command("PING") == "PONG"
        server.kill()
        server.start()
        assert server.command("PING") == "PONG"
    assert not server.runs


@pytest.mark.parametrize(
    ("issue", "why"),
    [
        ({"expired": True}, "expired"),
        ({"hosts": ("elsewhere.example",)}, "mismatch"),
        ({}, None),
    ],
    ids=["expired", "another name", "good"],
)
def test_a_certificate_is_as_wrong_as_it_was_ordered(tmp_path, issue, why):
    """A test of a wrong certificate must not pass because of another fault in it."""
    made = Certificates(tmp_path)
    certificate = made.issue(*issue.pop("hosts", ()), **issue)
    context = ssl.create_default_context(cafile=made.authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as by default from Python 3.13 on
    with PrivateServer(tls=certificate) as server:
        assert "tls_ca_certs" not in server.url
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            if why is None:
                context.wrap_socket(raw, server_hostname="localhost").close()
            else:
                with pytest.raises(ssl.SSLCertVerificationError, match=why):
                    context.wrap_socket(raw, server_hostname="localhost")


def test_no_openssl_is_told_with_the_command_that_changes_it(tmp_path, monkeypatch):
    """Not as a missing file."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install openssl"):
        Certificates(tmp_path)


def test_faults_come_and_go_under_traffic(server, connect):
    """They are made while others talk to the server, or they prove little."""
    over, wrong = threading.Event(), []

    def traffic(link):
        while not over.is_set():
            try:
                value = link.ask("GET", "k")
            except ReplyError:
                continue
            if value != b"v":
                wrong.append(value)

    threads = [threading.Thread(target=traffic, args=(connect(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        with server.fill(), server.make_read_only(), server.change_password("x", kick=False):
            server.limit_clients().undo()
        with server.run_busy_script():
            pass
    over.set()
    for thread in threads:
        thread.join(timeout=5)
    assert wrong == []


def has_answer(link, seconds):
    link._socket.settimeout(seconds)
    try:
        link._socket.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        link._socket.settimeout(5)
    return True
