"""A network that fails when it is told to: a TCP proxy in front of a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jmcache.testing.proxy._engine import Address, Engine
from jmcache.testing.proxy._faults import (
    Effect,
    Fault,
    Pace,
    Trigger,
    check_bytes,
    check_count,
    check_seconds,
    check_trigger,
    wait_until,
)
from jmcache.testing.server import PrivateServer

if TYPE_CHECKING:
    from jmcache.settings import CacheSettings

__all__ = ["Fault", "FaultProxy", "Trigger"]

HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SURPLUS = b"$7\r\nsurplus\r\n"


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and leads every connection on to a real server.

        with PrivateServer() as server, FaultProxy(server) as proxy:
            cache = RedisCacheFactory.create_cache(proxy.settings())
            proxy.latency(0.3)

    Every fault returns a handle that removes it, counts it and waits for it, and `heal` removes
    them all. Those that are in place at one time add up. What a fault held back, and did not
    throw away, arrives when it is removed, as from a network that comes back.

    A *trigger* says which commands a fault is done to. *on* is bytes that the command contains as
    it is sent, or a function of its words, called on the proxy's thread; *times* is how many of
    them, None for all. The commands with which a client introduces itself (AUTH, HELLO, SELECT,
    CLIENT, READONLY) are spared unless *on* has their name, or is a function and takes them; but
    latency, bandwidth and drip with neither *on* nor *times* hold for everything that passes.
    Inside TLS no commands can be told apart, and only faults that hold for everything work.

    Every method may be called from any thread while traffic runs, and has its effect when it
    returns. Arguments that make no sense are a ValueError that names them. In a forked child
    there is no proxy. Leaving the ``with`` block ends every connection and the thread.
    """

    def __init__(self, target: PrivateServer | tuple[str, int] | str | os.PathLike[str]) -> None:
        """Choose where to lead to; start nothing yet.

        Args:
            target: A server that was started, (host, port), or the path of a Unix socket.
        """
        self._target = target
        self._engine: Engine | None = None
        if not isinstance(target, PrivateServer):
            _address_of(target)

    def __repr__(self) -> str:
        if self._engine is None:
            return "<FaultProxy, not started>"
        names = ", ".join(fault.name for fault in self._engine.faults) or "no fault"
        return f"<FaultProxy at 127.0.0.1:{self._engine.port}: {names}>"

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listen. Does nothing while it does.

        Raises:
            RuntimeError: The target is a PrivateServer that was not started.
        """
        if self._engine is None:
            engine = Engine(_address_of(self._target))
            engine.start()
            self._engine = engine

    def close(self) -> None:
        """End every connection and the thread. Does nothing the second time."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()

    # What it is

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 it listens on, the same as long as it runs."""
        return self._running().port

    @property
    def url(self) -> str:
        """The server through the proxy, as a URL, with the password of a PrivateServer."""
        user = at = ""
        if isinstance(self._target, PrivateServer):
            user, at, _ = urlsplit(self._target.url).netloc.rpartition("@")
        return f"redis://{user}{at}127.0.0.1:{self.port}/0"

    def settings(self, **overrides: Any) -> CacheSettings:
        """Return settings for a cache through the proxy."""
        from jmcache.settings import CacheSettings

        return CacheSettings.from_url(self.url, **overrides)

    # What goes wrong

    def latency(
        self,
        seconds: float,
        *,
        jitter_s: float = 0.0,
        on: Trigger = None,
        times: int | None = None,
    ) -> Fault:
        """Let replies arrive so many seconds late, and up to *jitter_s* more, at random."""
        effect = Effect(
            line=_everything(on, times),
            delay_s=check_seconds("seconds", seconds),
            jitter_s=check_seconds("jitter_s", jitter_s),
        )
        return self._add("latency", effect, on, times)

    def delay(self, seconds: float, *, on: Trigger = None, times: int | None = None) -> Fault:
        """Let commands arrive at the server so many seconds late, also if the client has gone."""
        effect = Effect(command_delay_s=check_seconds("seconds", seconds))
        return self._add("delay", effect, on, times)

    def bandwidth(
        self, bytes_per_s: float, *, on: Trigger = None, times: int | None = None
    ) -> Fault:
        """Let commands and replies pass at so many bytes per second on each connection."""
        rate = check_seconds("bytes_per_s", bytes_per_s, above_zero=True, unit="a number")
        size = max(1, int(rate / 50))
        pace = Pace(size=size, every_s=size / rate)
        effect = Effect(line=_everything(on, times), command_pace=pace, pace=pace)
        return self._add("bandwidth", effect, on, times)

    def drip(
        self,
        *,
        size: int = 1,
        every_s: float = 0.2,
        on: Trigger = None,
        times: int | None = None,
    ) -> Fault:
        """Let replies arrive *size* bytes at a time, one such piece every *every_s* seconds."""
        pace = Pace(
            size=check_count("size", size, least=1),
            every_s=check_seconds("every_s", every_s, above_zero=True),
        )
        effect = Effect(line=_everything(on, times), pace=pace)
        return self._add("drip", effect, on, times)

    def stall(self, *, after: int = 0, on: Trigger = None, times: int | None = None) -> Fault:
        """Hold replies back after their first *after* bytes, until the fault is removed."""
        return self._cut("stall", check_count("after", after, least=0), "hold", on, times)

    def reset(self, *, after: int = 0, on: Trigger = None, times: int | None = None) -> Fault:
        """Reset the connection (RST) after *after* bytes of the reply."""
        return self._cut("reset", check_count("after", after, least=0), "reset", on, times)

    def half_close(self, *, on: Trigger = None, times: int | None = None) -> Fault:
        """End the stream to the client (FIN) in place of the reply; it may still send."""
        return self._cut("half_close", 0, "end", on, times)

    def truncate(self, *, after: int = 1, on: Trigger = None, times: int | None = None) -> Fault:
        """End the stream to the client (FIN) after *after* bytes of the reply."""
        return self._cut("truncate", check_count("after", after, least=1), "end", on, times)

    def garbage(
        self, data: bytes = HTTP_ANSWER, *, on: Trigger = None, times: int | None = None
    ) -> Fault:
        """Answer *data* in place of the reply. The server has carried out the command."""
        effect = Effect(answer=check_bytes("data", data))
        return self._add("garbage", effect, on, times)

    def swallow_request(self, *, on: Trigger = None, times: int | None = None) -> Fault:
        """Let commands reach nobody. The connection stays, and later commands are answered."""
        return self._add("swallow_request", Effect(command_lost=True), on, times)

    def swallow_reply(self, *, on: Trigger = None, times: int | None = None) -> Fault:
        """Let commands be carried out and their replies be lost; later ones are answered."""
        return self._add("swallow_reply", Effect(answer=b""), on, times)

    def surplus(
        self,
        data: bytes = SURPLUS,
        *,
        late: bool = False,
        on: Trigger = None,
        times: int | None = None,
    ) -> Fault:
        """Send *data*, which nobody asked for, after the reply.

        Args:
            late: Not before the next command has come on that connection, so that it arrives in
                place of its reply, and nobody can see it before the command is sent.
        """
        effect = Effect(extra=check_bytes("data", data), late=late)
        return self._add("surplus", effect, on, times)

    def duplicate(
        self, *, late: bool = False, on: Trigger = None, times: int | None = None
    ) -> Fault:
        """Send the reply twice; *late* as in `surplus`."""
        return self._add("duplicate", Effect(twice=True, late=late), on, times)

    def blackhole(self) -> Fault:
        """Let nothing pass, not even an end. New connections are accepted, and silent.

        It is triggered once by each connection on which a client sends something.
        """
        return self._add("blackhole", Effect(line=True, blackhole=True), None, None)

    def refuse(self) -> Fault:
        """Reset every connection and refuse new ones; on the same port again when removed."""
        return self._add("refuse", Effect(line=True, refuse=True), None, None)

    def disconnect(self) -> None:
        """Reset every connection (RST) once. New ones are welcome."""
        self._running().disconnect()

    def watch(self, *, on: Trigger = None) -> Fault:
        """Do nothing to the commands, but count them and wait for them."""
        return self._add("watch", Effect(), on, None)

    def heal(self) -> None:
        """Remove every fault."""
        self._running().heal()

    # What it saw

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return self._running().connections

    @property
    def connections_total(self) -> int:
        """How many connections there have been."""
        return self._running().connections_total

    @property
    def commands(self) -> list[list[bytes]]:
        """The words of the last 1,000 commands, each word cut to 100 bytes."""
        return list(self._running().commands)

    @property
    def commands_total(self) -> int:
        """How many commands there have been."""
        return self._running().commands_total

    @property
    def triggered(self) -> int:
        """How often a fault was done to a command."""
        return self._running().triggered

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float = 5.0) -> None:
        """Wait for *condition*, which is looked at whenever the proxy has seen something.

            proxy.wait_until(lambda: proxy.connections == 0)

        Raises:
            TimeoutError: It did not hold within *timeout_s* seconds.
        """
        engine = self._running()
        wait_until(
            engine.changed,
            condition,
            timeout_s,
            lambda: (
                f"{engine.connections} connections now, {engine.connections_total} in all,"
                f" {engine.commands_total} commands"
            ),
        )

    def _running(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the proxy is not running: use it in a with block, or start it")
        return self._engine

    def _add(self, name: str, effect: Effect, on: Trigger, times: int | None) -> Fault:
        if times is not None:
            check_count("times", times, least=1)
        check_trigger(on)
        return self._running().add(name, effect, on, times)

    def _cut(self, name: str, after: int, then: str, on: Trigger, times: int | None) -> Fault:
        return self._add(name, Effect(cut_after=after, then=then), on, times)


def _everything(on: Trigger, times: int | None) -> bool:
    return on is None and times is None


def _address_of(target: PrivateServer | tuple[str, int] | str | os.PathLike[str]) -> Address:
    match target:
        case PrivateServer():
            url = urlsplit(target.url)
            return ("127.0.0.1", target.port) if url.port else str(target.socket_path)
        case (str(host), int(port)) if host and 0 < port < 65536:
            return host, port
        case str() | os.PathLike() if Path(target).is_absolute():
            return os.fspath(target)
    raise ValueError(
        f"target: a PrivateServer, (host, port) or the absolute path of a socket; not {target!r}"
    )
