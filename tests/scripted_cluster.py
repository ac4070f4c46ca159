"""A cluster of scripted servers: what each says of the slots, and does with keys, is the test's."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any

from scripted_server import RESET, Answer, Client, ScriptedServer

from jmcache.settings import CacheSettings
from jmcache.testing.cluster import SLOTS, slot_of

Words = list[bytes]
Node = Callable[[Client, Words], Answer]


class ScriptedCluster:
    """Masters with an equal share of the slots each, that keep values and redirect as Redis does.

    Attributes:
        nodes: The servers.
        owners: Who has which slot in truth.
        told: Who has which slot as CLUSTER SLOTS says it; None: in truth.
        instead: By number of a node: what it does instead of what it should; None from it: that.
        stored: By number of a node: its values.
    """

    def __init__(self, count: int = 3) -> None:
        self.owners = [slot * count // SLOTS for slot in range(SLOTS)]
        self.told: list[int] | None = None
        self.instead: dict[int, Node] = {}
        self.stored: list[dict[bytes, bytes]] = [{} for _ in range(count)]
        self._opened = contextlib.ExitStack()
        self.nodes = [
            ScriptedServer(lambda client, number=number: self._serve(client, number))
            for number in range(count)
        ]
        self.ports = [node.port for node in self.nodes]

    def __enter__(self) -> ScriptedCluster:
        for node in self.nodes:
            self._opened.enter_context(node)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def settings(self, *seeds: int, **overrides: Any) -> CacheSettings:
        """Settings that name the nodes *seeds*, or else the first."""
        first, *more = seeds or (0,)
        places = ",".join(f"127.0.0.1:{self.ports[number]}" for number in more)
        return CacheSettings(
            cluster=True, port=self.ports[first], cluster_nodes=places, **overrides
        )

    def end(self, number: int) -> None:
        """End a node: nobody listens there any more, and its connections are closed."""
        self.nodes[number].__exit__(None, None, None)

    def name_on(self, number: int, start: int = 0) -> bytes:
        """A name that node *number* has; another one from another *start* on."""
        return next(
            name
            for name in (b"k%d" % n for n in range(start, start + 10_000))
            if self.owners[slot_of(name)] == number
        )

    def keep(self, *names: bytes) -> None:
        """Have each of *names* stored, with a value that says so."""
        for name in names:
            self.stored[self.owners[slot_of(name)]][name] = b"value of " + name

    def asked(self, number: int, word: bytes | None = None) -> list[Words]:
        """The commands that came to a node, all or those that begin with *word*."""
        commands = self.nodes[number].asked()
        return [words for words in commands if word is None or words[0] == word]

    def look_ups(self) -> int:
        """How often the map was asked for, of anyone."""
        return sum(len(self._slots_asked(number)) for number in range(len(self.nodes)))

    def _slots_asked(self, number: int) -> list[Words]:
        return [words for words in self.asked(number, b"CLUSTER") if words[1] == b"SLOTS"]

    def moved(self, name: bytes, to: int, word: bytes = b"MOVED") -> bytes:
        """The redirection of *name* to a node."""
        return b"-%b %d 127.0.0.1:%d\r\n" % (word, slot_of(name), self.ports[to])

    def _serve(self, client: Client, number: int) -> None:
        asking = False
        while (words := client.command()) is not None:
            if words[0] in (b"AUTH", b"CLIENT", b"ASKING"):
                asking = words[0] == b"ASKING"
                client.give(b"+OK\r\n")
                continue
            instead = self.instead.get(number)
            answer = None if instead is None else instead(client, words)
            client.give(self._right(number, words, asking) if answer is None else answer)
            if answer is RESET:
                return  # what came with it is answered by nobody
            asking = False

    def _right(self, number: int, words: Words, asking: bool) -> bytes:
        if words[0] == b"CLUSTER":
            return self.slots() if words[1] == b"SLOTS" else bulk(b"cluster_state:ok\r\n")
        if words[0] == b"PING":
            return b"+PONG\r\n"
        name = words[1]
        owner = self.owners[slot_of(name)]
        if owner != number and not asking:
            return self.moved(name, owner)
        values = self.stored[number]
        if words[0] == b"GET":
            return bulk(values.get(name))
        if words[0] == b"UNLINK":
            return b":%d\r\n" % (values.pop(name, None) is not None)
        if b"NX" in words and name in values:
            return bulk(None)
        values[name] = words[2]
        return b"+OK\r\n"

    def slots(self) -> bytes:
        """The reply to CLUSTER SLOTS."""
        owners = self.owners if self.told is None else self.told
        spans: list[tuple[int, int, int]] = []
        first = 0
        for owner, slots in itertools.groupby(owners):
            end = first + sum(1 for _ in slots)
            spans.append((first, end - 1, owner))
            first = end
        return b"*%d\r\n" % len(spans) + b"".join(
            b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$40\r\n%b\r\n"
            % (first, last, self.ports[owner], b"%040d" % owner)
            for first, last, owner in spans
        )


def bulk(blob: bytes | None) -> bytes:
    """*blob* as a reply."""
    return b"$-1\r\n" if blob is None else b"$%d\r\n%b\r\n" % (len(blob), blob)
