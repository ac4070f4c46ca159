"""The proxy: every fault as it looks on the wire, to a plain socket that shares no code with it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

from jmcache.testing import FaultProxy, PrivateServer

pytestmark = pytest.mark.faults

SET = (b"SET", b"k", b"hello")
GET = (b"GET", b"k")
HELLO = b"$5\r\nhello\r\n"
SHORT_S = 0.05  # of a fault that a test waits for


class Wire:
    """A client's end of a connection, byte by byte."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.sock.close()

    def send(self, *words):
        body = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self.sock.sendall(b"*%d\r\n" % len(words) + body)

    def read(self, size):
        """Exactly *size* bytes, or what came before the end."""
        data = b""
        while len(data) < size and (more := self.sock.recv(size - len(data))):
            data += more
        return data

    def ask(self, *words, size):
        self.send(*words)
        return self.read(size)

    def get(self):
        return self.ask(*GET, size=len(HELLO))

    def silent(self, seconds=SHORT_S):
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(5)
        return False


@pytest.fixture
def proxy(redis_server):
    redis_server.command(*SET)
    with FaultProxy(redis_server) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy):
    with contextlib.ExitStack() as opened:

        def make():
            wire = Wire(proxy.port)
            opened.callback(wire.sock.close)
            return wire

        yield make


@pytest.fixture
def wire(connect):
    return connect()


def took(call, *args):
    began = time.monotonic()
    result = call(*args)
    return time.monotonic() - began, result


def test_without_a_fault_everything_passes(wire, proxy):
    """A proxy that changes anything by itself would blame Redis for it."""
    big = os.urandom(3_000_000)
    assert wire.ask(b"SET", b"big", big, size=5) == b"+OK\r\n"
    assert wire.ask(b"GET", b"big", size=len(big) + 12) == b"$3000000\r\n" + big + b"\r\n"
    assert wire.get() == HELLO
    assert proxy.triggered == 0


def test_commands_of_a_pipeline_are_told_apart(wire, proxy):
    """A bundle is sent in one piece, and only one of it may be meant."""
    proxy.garbage(b":42\r\n", on=b"two")
    wire.sock.sendall(
        b"".join(b"*2\r\n$4\r\nECHO\r\n$3\r\n%b\r\n" % w for w in (b"one", b"two")) * 2
    )
    assert wire.read(26) == b"$3\r\none\r\n:42\r\n$3\r\none\r\n:42\r\n"[:26]


def test_lists_in_lists_are_one_reply(wire, proxy):
    """A reply that is cut in two shifts everything that follows it."""
    proxy.duplicate(on=b"nested")
    script = b"return {1, {2, {'nested', {}}}, 'end'}"
    reply = b"*3\r\n:1\r\n*2\r\n:2\r\n*2\r\n$6\r\nnested\r\n*0\r\n$3\r\nend\r\n"
    assert wire.ask(b"EVAL", script, b"0", size=2 * len(reply)) == 2 * reply
    assert wire.get() == HELLO


def test_resp3_is_understood_and_pushes_belong_to_nobody(wire, proxy, redis_server):
    """An invalidation taken for a reply would put every later fault on the wrong one."""
    wire.send(b"HELLO", b"3")
    assert wire.read(4) == b"%7\r\n"
    wire.send(b"CLIENT", b"TRACKING", b"ON", b"BCAST")
    marker = b"+OK\r\n"
    data = b""
    while not data.endswith(marker):
        data += wire.read(1)
    redis_server.command(*SET)
    pushed = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
    assert wire.read(len(pushed)) == pushed
    proxy.garbage(b":42\r\n", on=b"GET")
    assert wire.ask(*GET, size=5) == b":42\r\n"


def test_what_is_no_redis_protocol_passes_as_it_is():
    """TLS begins with other bytes, and is to be slowed down like everything else."""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxy = opened.enter_context(FaultProxy(listening.getsockname()))
        proxy.garbage()
        proxy.latency(SHORT_S)
        client = opened.enter_context(Wire(proxy.port).sock)
        server = opened.enter_context(listening.accept()[0])
        server.settimeout(5)
        client.sendall(b"\x16\x03\x01hello")
        assert server.recv(100) == b"\x16\x03\x01hello"
        server.sendall(b"\x16\x03\x03world")
        seconds, data = took(client.recv, 100)
        assert data == b"\x16\x03\x03world"
        assert seconds >= SHORT_S - 0.005


def test_a_server_on_a_port_and_its_password_are_reached():
    """The address and the password of a private server are the proxy's business."""
    with PrivateServer(tcp=True, password="s3cret/@") as server, FaultProxy(server) as proxy:
        settings = proxy.settings(namespace="other")
        assert (settings.host, settings.port) == ("127.0.0.1", proxy.port)
        assert (settings.password, settings.namespace) == ("s3cret/@", "other")
        assert "s3cret" not in repr(proxy)
        with Wire(proxy.port) as wire:
            assert wire.ask(b"AUTH", b"s3cret/@", size=5) == b"+OK\r\n"


def test_latency_holds_replies_back(wire, proxy):
    """The greeting too: a network does not know what a greeting is."""
    proxy.latency(SHORT_S)
    seconds, reply = took(lambda: wire.ask(b"CLIENT", b"ID", size=1))
    assert reply == b":"
    assert seconds >= SHORT_S
    wire.read(3)
    proxy.heal()


def test_jitter_comes_on_top_and_differs(wire, proxy):
    """Calls that are all late by the same time never overtake each other."""
    proxy.latency(0.01, jitter_s=0.04)
    times = [took(wire.get)[0] for _ in range(8)]
    assert min(times) >= 0.01
    assert max(times) - min(times) > 0.002


def test_a_delayed_command_arrives_late_though_its_sender_has_gone(connect, proxy, redis_server):
    """A write that timed out may land after the delete that followed it."""
    delayed = proxy.delay(0.3, on=b"late")
    wire = connect()
    wire.send(b"SET", b"k", b"late")
    delayed.wait()
    wire.sock.close()
    assert redis_server.command("GET", "k") == b"hello"
    proxy.wait_until(lambda: proxy.connections == 0)
    assert redis_server.command("GET", "k") == b"hello"
    eventually(lambda: redis_server.command("GET", "k") == b"late")


def test_bandwidth_slows_both_ways_down(wire, proxy):
    """A megabyte over a bad line takes seconds, in whatever direction."""
    value = b"v" * 20_000
    proxy.bandwidth(200_000)
    seconds, _ = took(lambda: wire.ask(b"SET", b"big", value, size=5))
    assert seconds >= 0.09
    seconds, reply = took(lambda: wire.ask(b"GET", b"big", size=len(value) + 10))
    assert reply.endswith(value + b"\r\n")
    assert seconds >= 0.09


def test_drip_gives_bytes_one_by_one(wire, proxy):
    """Every byte comes within the socket's timeout, the reply does not."""
    proxy.drip(size=2, every_s=0.02, on=b"GET")
    wire.send(*GET)
    sizes = []
    while sum(sizes) < len(HELLO):
        sizes.append(len(wire.sock.recv(100)))
        if sum(sizes) == 2:
            began = time.monotonic()
    assert time.monotonic() - began >= 0.02 * 4
    assert max(sizes) <= 4, "pieces of two; a busy reader may find two at once"


def test_faults_add_up_and_the_slowest_pace_holds(wire, proxy):
    """A slow line to a server that is slow itself is the usual case."""
    proxy.latency(0.05)
    proxy.latency(0.05, on=b"GET")
    proxy.bandwidth(1_000_000)
    proxy.drip(size=1, every_s=0.01)
    seconds, reply = took(wire.get)
    assert reply == HELLO
    assert seconds >= 0.1 + 0.01 * (len(HELLO) - 1)


def test_a_stalled_reply_goes_on_when_the_fault_is_removed(wire, proxy):
    """TCP loses no bytes from the middle of a stream."""
    stalled = proxy.stall(after=3, on=b"GET")
    assert wire.ask(*GET, size=3) == HELLO[:3]
    assert wire.silent()
    stalled.remove()
    assert wire.read(len(HELLO) - 3) == HELLO[3:]
    assert wire.get() == HELLO


@pytest.mark.parametrize("after", [0, 3])
def test_a_reset_is_a_reset(wire, proxy, after):
    """An end of the stream in its place would test another branch of the client."""
    proxy.reset(after=after, on=b"GET")
    wire.send(*GET)
    assert wire.read(after) == HELLO[:after]
    with pytest.raises(ConnectionResetError):
        wire.sock.recv(1)


def test_a_reset_reaches_a_client_that_waits_in_a_read(connect, proxy):
    """Closing a socket that a thread of the proxy reads from would send nothing at all."""
    wires = [connect() for _ in range(5)]
    assert [wire.get() for wire in wires] == [HELLO] * 5
    found = []

    def read(wire):
        try:
            found.append(wire.sock.recv(1))
        except ConnectionResetError:
            found.append("reset")

    threads = [threading.Thread(target=read, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    proxy.disconnect()
    for thread in threads:
        thread.join(timeout=5)
    assert found == ["reset"] * 5
    assert connect().get() == HELLO


def test_half_close_ends_the_stream_and_the_client_may_go_on_sending(wire, proxy, redis_server):
    """It is an end, not a reset: what the client sends still arrives."""
    ended = proxy.half_close(on=b"GET")
    assert wire.ask(*GET, size=1) == b""
    assert ended.triggered == 1
    wire.send(b"SET", b"after", b"1")
    eventually(lambda: redis_server.command("GET", "after") == b"1")


def test_a_truncated_reply_is_cut_and_ends(wire, proxy):
    """The cut may fall anywhere, also into the line that tells the size."""
    proxy.truncate(after=7, on=b"GET")
    assert wire.ask(*GET, size=100) == HELLO[:7]


def test_a_big_reply_is_cut_at_the_byte_asked_for(wire, proxy):
    """It comes in many pieces, and only the whole of them has the byte."""
    wire.ask(b"SET", b"big", b"x" * 1_000_000, size=5)
    proxy.truncate(after=500_000, on=b"GET")
    assert len(wire.ask(b"GET", b"big", size=1_000_020)) == 500_000


def test_garbage_takes_the_place_of_the_reply(wire, proxy):
    """The command was carried out; the answer is nobody's."""
    proxy.garbage(on=b"GET", times=1)
    assert wire.ask(*GET, size=12) == b"HTTP/1.1 400"
    while not wire.sock.recv(1000).endswith(b"\r\n\r\n"):
        pass
    assert wire.get() == HELLO


def test_a_swallowed_request_reaches_nobody(wire, proxy, redis_server):
    """The write that was never made is not to be confused with the one that was."""
    proxy.swallow_request(on=b"lost")
    wire.send(b"SET", b"k", b"lost")
    assert wire.silent()
    assert redis_server.command("GET", "k") == b"hello"
    assert wire.get() == HELLO


def test_a_swallowed_reply_was_carried_out(wire, proxy, redis_server):
    """False from a write means "not confirmed", and this is why."""
    proxy.swallow_reply(on=b"kept")
    wire.send(b"SET", b"k", b"kept")
    assert wire.silent()
    assert redis_server.command("GET", "k") == b"kept"
    assert wire.ask(*GET, size=10) == b"$4\r\nkept\r\n"


def test_a_surplus_reply_is_there_before_the_next_command(wire, proxy):
    """A client that does not look shifts every later answer by one; one that looks can see it."""
    proxy.surplus(b"$1\r\nx\r\n", on=b"GET", times=1)
    wire.send(*GET)
    assert wire.sock.recv(100) == HELLO + b"$1\r\nx\r\n", "in one piece"
    assert wire.get() == HELLO


def test_a_late_surplus_waits_for_the_next_command(wire, proxy):
    """No look at the connection before the command can find it."""
    proxy.surplus(b"$1\r\nx\r\n", late=True, on=b"GET", times=1)
    assert wire.get() == HELLO
    assert wire.silent()
    assert wire.ask(*GET, size=7) == b"$1\r\nx\r\n"
    assert wire.read(len(HELLO)) == HELLO


@pytest.mark.parametrize("late", [False, True])
def test_a_duplicate_is_the_reply_again(wire, proxy, late):
    """It looks right: only its place is wrong."""
    proxy.duplicate(late=late, on=b"GET", times=1)
    assert wire.get() == HELLO
    if late:
        assert wire.silent()
        wire.send(b"PING")
        assert wire.read(len(HELLO) + 7) == HELLO + b"+PONG\r\n"
    else:
        assert wire.read(len(HELLO)) == HELLO


def test_a_black_hole_takes_everything_and_gives_it_back(connect, proxy):
    """Not even an end comes through; and what TCP holds arrives when the network is back."""
    old = connect()
    assert old.get() == HELLO
    hole = proxy.blackhole()
    old.send(*GET)
    hole.wait()
    new = connect()
    new.send(*GET)
    hole.wait(2)
    assert old.silent()
    assert new.silent()
    proxy.heal()
    assert old.read(len(HELLO)) == HELLO
    assert new.read(len(HELLO)) == HELLO


def test_a_black_hole_fills_up(wire, proxy):
    """Who writes into it is stopped by the buffers of the kernel, not by an answer."""
    proxy.blackhole()
    wire.sock.settimeout(SHORT_S)
    with pytest.raises(TimeoutError):
        wire.sock.sendall(b"x" * 50_000_000)


def test_refused_is_refused_and_the_port_stays_ours(connect, proxy):
    """A server that is gone: old connections end, and new ones are not made."""
    wire = connect()
    assert wire.get() == HELLO
    port = proxy.port
    gone = proxy.refuse()
    with pytest.raises(ConnectionResetError):
        wire.sock.recv(1)
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            connect()
    gone.remove()
    assert proxy.port == port
    assert connect().get() == HELLO


def test_a_dead_server_is_a_reset(connect, proxy, redis_server):
    """The proxy cannot refuse in its name, but it must not leave the client waiting."""
    wire = connect()
    assert wire.get() == HELLO
    redis_server.kill()
    with contextlib.suppress(ConnectionResetError):
        assert wire.sock.recv(1) == b""
    with pytest.raises(ConnectionResetError):
        connect().sock.recv(1)
    redis_server.start()
    assert connect().ask(b"PING", size=7) == b"+PONG\r\n"


def test_the_greeting_is_spared_unless_it_is_named(wire, proxy):
    """A client whose greeting fails never gets to the command that was meant."""
    fault = proxy.garbage(b":1\r\n")
    assert wire.ask(b"SELECT", b"0", size=5) == b"+OK\r\n"
    assert wire.ask(*GET, size=4) == b":1\r\n"
    fault.remove()
    fault = proxy.garbage(b":3\r\n", on=b"SET")
    assert wire.ask(b"CLIENT", b"SETNAME", b"me", size=5) == b"+OK\r\n", (
        "SET is in it, and not meant"
    )
    assert wire.ask(*SET, size=4) == b":3\r\n"
    fault.remove()
    proxy.garbage(b":2\r\n", on=b"SELECT")
    assert wire.ask(b"SELECT", b"0", size=4) == b":2\r\n"


def test_a_trigger_may_be_a_function_and_counts(wire, proxy):
    """The second write of a key is what a test may be about."""
    with proxy.garbage(b":9\r\n", on=lambda words: words[1:2] == [b"k"], times=2) as fault:
        assert wire.ask(*GET, size=4) == b":9\r\n"
        assert wire.ask(b"ECHO", b"x", size=7) == b"$1\r\nx\r\n"
        assert wire.ask(*GET, size=4) == b":9\r\n"
        assert wire.get() == HELLO
        assert fault.triggered == 2
    assert not fault.active


def test_a_removed_fault_is_gone_while_another_stays(wire, proxy):
    """Two faults that are removed together cannot be told apart."""
    one, two = proxy.garbage(b":1\r\n", on=b"ECHO"), proxy.garbage(b":2\r\n", on=b"GET")
    one.remove()
    one.remove()
    assert wire.ask(b"ECHO", b"x", size=7) == b"$1\r\nx\r\n"
    assert wire.ask(*GET, size=4) == b":2\r\n"
    assert "garbage" in repr(two)
    proxy.heal()
    assert wire.get() == HELLO
    assert (one.active, two.active) == (False, False)


def test_healing_lets_go_what_is_under_way(wire, proxy):
    """A test that heals the network is not to wait for the fault it removed."""
    slow = proxy.latency(60)
    wire.send(*GET)
    slow.wait()
    assert wire.silent()
    proxy.heal()
    assert wire.read(len(HELLO)) == HELLO


def test_it_tells_what_it_saw(connect, proxy):
    """A test wants to know that nothing was asked, not only that nothing was answered."""
    watch = proxy.watch(on=b"GET")
    first, second = connect(), connect()
    first.get()
    second.ask(b"ECHO", b"y" * 200, size=208)
    proxy.wait_until(lambda: proxy.connections == 2)
    assert (proxy.connections_total, proxy.commands_total, proxy.triggered) == (2, 2, 1)
    assert proxy.commands == [list(GET), [b"ECHO", b"y" * 100]]
    assert watch.triggered == 1
    first.sock.close()
    proxy.wait_until(lambda: proxy.connections == 1)
    assert proxy.connections_total == 2


def test_a_test_can_wait_for_a_command(connect, proxy):
    """A sleep in its place is too short on a busy machine and too long on every other."""
    watch = proxy.watch(on=b"GET")
    wire = connect()
    asked = threading.Timer(0.05, lambda: wire.send(*GET))
    asked.start()
    watch.wait()
    assert watch.triggered == 1
    with pytest.raises(TimeoutError, match="watch"):
        watch.wait(2, timeout_s=0.01)
    with pytest.raises(TimeoutError, match="connections now"):
        proxy.wait_until(lambda: False, timeout_s=0.01)
    asked.join(timeout=5)


def test_faults_come_and_go_under_traffic(connect, proxy):
    """The script of a test runs beside the traffic of many threads."""
    over = threading.Event()
    wrong = []

    def traffic():
        while not over.is_set():
            with contextlib.suppress(OSError), Wire(proxy.port) as wire:
                while not over.is_set() and (reply := wire.get()):
                    if reply != HELLO:
                        wrong.append(reply)

    threads = [threading.Thread(target=traffic) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with proxy.latency(0.001), proxy.bandwidth(1e6), proxy.drip(size=3, every_s=0.001):
            proxy.disconnect()
            with proxy.blackhole():
                pass
            with proxy.refuse():
                pass
    over.set()
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert wrong == []
    assert connect().get() == HELLO
    assert proxy.connections_total > 20


def test_nothing_is_left_after_the_block(redis_server):
    """A suite of a thousand tests cannot afford one thread or socket each."""
    before = open_things()
    with FaultProxy(redis_server) as proxy:
        wire, idle = Wire(proxy.port), Wire(proxy.port)
        proxy.latency(60)
        wire.send(*GET)
        proxy.wait_until(lambda: proxy.commands_total == 1)
        proxy.blackhole()
        port = proxy.port
    for client in (wire, idle):
        with contextlib.suppress(ConnectionResetError):
            assert client.sock.recv(1) == b""
        client.sock.close()
    assert open_things() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    eventually(lambda: b"cmd=get" not in redis_server.command("CLIENT", "LIST"))
    proxy.close()
    with pytest.raises(RuntimeError, match="not running"):
        proxy.heal()


def test_a_forked_child_has_no_proxy_and_holds_none_of_its_sockets(connect, proxy):
    """A listener or a connection that a child keeps open would outlive refused and reset."""
    wire = connect()
    assert wire.get() == HELLO
    go, wait = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            proxy.heal()
        except RuntimeError:
            ok = True
        finally:
            os.read(go, 1)
            os._exit(0 if ok else 1)
    try:
        assert wire.get() == HELLO
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            wire.sock.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect()
    finally:
        os.write(wait, b"x")
        os.close(go)
        os.close(wait)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_trigger_that_fails_is_told_where_somebody_waits(redis_server):
    """A proxy that died of it in silence would look like a dead network."""
    proxy = FaultProxy(redis_server)
    proxy.start()
    proxy.garbage(on=lambda words: words[7] == b"x")
    with Wire(proxy.port) as wire:
        wire.send(*GET)
        with contextlib.suppress(ConnectionResetError):
            assert wire.sock.recv(1) == b""
    with pytest.raises(RuntimeError, match="broke down") as told:
        proxy.heal()
    with pytest.raises(RuntimeError, match="broke down"):
        proxy.close()
    assert isinstance(told.value.__cause__, IndexError)


NONSENSE = {
    "seconds": [lambda p: p.latency(-1), lambda p: p.latency("1"), lambda p: p.delay(float("nan"))],
    "jitter_s": [lambda p: p.latency(1, jitter_s=-0.1), lambda p: p.latency(1, jitter_s=True)],
    "bytes_per_s": [lambda p: p.bandwidth(0), lambda p: p.bandwidth(float("inf"))],
    "size": [lambda p: p.drip(size=0), lambda p: p.drip(size=1.5)],
    "every_s": [lambda p: p.drip(every_s=0)],
    "after": [lambda p: p.reset(after=-1), lambda p: p.truncate(after=0)],
    "data": [lambda p: p.garbage(b""), lambda p: p.garbage("text"), lambda p: p.surplus(None)],
    "on": [lambda p: p.reset(on="GET"), lambda p: p.watch(on=b""), lambda p: p.delay(1, on=7)],
    "times": [lambda p: p.reset(times=0), lambda p: p.stall(times=1.0)],
    "timeout_s": [lambda p: p.watch().wait(timeout_s="1")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, calls in NONSENSE.items() for call in calls]
)
def test_nonsense_is_refused_by_name(proxy, name, call):
    """A fault that silently does nothing makes a test that can never fail."""
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call(proxy)


@pytest.mark.parametrize(
    "target", ["relative.sock", ("127.0.0.1", 0), ("", 1), ("h", "1"), None, 7]
)
def test_a_target_that_is_none_is_refused(target):
    """It would be found out at the first connection, as an outage."""
    with pytest.raises(ValueError, match=r"^target: "):
        FaultProxy(target)


def test_a_server_that_was_not_started_is_refused():
    """It has no address yet."""
    with pytest.raises(RuntimeError, match="never started"):
        FaultProxy(PrivateServer()).start()


def open_things():
    return set(threading.enumerate()), sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


def eventually(true, within_s=5.0):
    over = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < over, f"not within {within_s} s"
        time.sleep(0.005)
