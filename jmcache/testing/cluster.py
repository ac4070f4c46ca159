"""A Redis Cluster of our own: masters and replicas on this machine, broken at will, gone after."""

from __future__ import annotations

import binascii
import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from urllib.parse import quote

from jmcache.testing.resp import Link, Reply, ReplyError
from jmcache.testing.server import PrivateServer

SLOTS = 16384

_READY_WITHIN_S = 30.0  # a start takes 3 s
_BUS_ABOVE = 10_000  # the port of the nodes' own talk, above that for clients
_PORTS = range(20_000, 65_536 - _BUS_ABOVE)
_ATTEMPTS = 5
_KEYS_AT_A_TIME = 100
_SLOTS_AT_A_TIME = 50
_ANSWER_WITHIN_S = 10.0
_LOOK_AGAIN_S = 0.02
_PATIENCE_S = 0.5  # with a node that may be paused


class PrivateCluster:
    """Several servers that belong to this object, and form a cluster.

        with PrivateCluster() as cluster:
            cache = RedisCacheFactory.create_cache(CacheSettings.from_url(cluster.url))
            cluster.masters()[0].kill()

    Each node is a `PrivateServer`: kill, pause, resume and start it by that one's methods; all are
    ended whatever happens. What a node was told by ``CONFIG SET`` stays until it ends. To be used
    from one thread at a time, by the process that made it.
    """

    def __init__(
        self,
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout_s: float = 1.5,
        password: str | None = None,
        args: Sequence[str] = (),
    ) -> None:
        """Choose what it will be, start nothing yet.

        Args:
            masters: How many share the slots; below 3 none is ever replaced by its replica.
            replicas: How many each of them has.
            node_timeout_s: Seconds of silence after which the others hold a node to be dead. A
                replica takes its place 1 to 2 s later.
            password: Ask clients for it.
            args: More of redis-server's own options, for every node.

        Raises:
            RedisServerNotFound: This machine has no server to start.
        """
        self._masters = masters
        self._password = password
        self._args = (
            "--cluster-enabled", "yes",
            "--cluster-node-timeout", str(int(node_timeout_s * 1000)),
            # However old its data is, a replica here is better than none.
            "--cluster-replica-validity-factor", "0",
            "--repl-diskless-sync-delay", "0",
            *(("--masterauth", password) if password else ()),
            *args,
        )  # fmt: skip
        self.nodes: list[PrivateServer] = [
            PrivateServer(tcp=True, password=password, args=self._args)
            for _ in range(masters * (1 + replicas))
        ]
        self._names: list[str] = []  # of the nodes, among themselves

    def __enter__(self) -> PrivateCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its address as a URL that names every node, with the password if it has one."""
        user = "" if self._password is None else f":{quote(self._password, safe='')}@"
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://{user}{places}"

    def start(self) -> None:
        """Start all nodes, and wait until the cluster serves all slots and every replica is fed.

        Later: start those that were ended, resume those that were paused, and wait likewise.

        Raises:
            RuntimeError: It did not come to that in 30 s.
        """
        if self._names:
            for node in self.nodes:
                node.start()
                node.resume()
            self.wait_until_well()
            return
        try:
            for node in self.nodes:
                _start(node)
            self._names = [str(_text(node.command("CLUSTER", "MYID"))) for node in self.nodes]
            self._form()
            self.wait_until_well()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all nodes. Does nothing the second time, and nothing in a forked child."""
        for node in self.nodes:
            node.close()

    def masters(self) -> list[PrivateServer]:
        """Return the nodes that have slots now, as those that answer see it."""
        return list(dict.fromkeys(self.owners().values()))

    def replica_of(self, master: PrivateServer) -> PrivateServer:
        """Return a replica of *master* that answers."""
        name = self._names[self.nodes.index(master)]
        for line in self._view():
            if line[3] == name and "fail" not in line[2]:
                return self._node(line[0])
        raise LookupError("it has no replica that is well")

    def owners(self) -> dict[int, PrivateServer]:
        """Return the master of every slot that has one, as those nodes that answer see it."""
        owners: dict[int, PrivateServer] = {}
        for line in self._view():
            for span in line[8:]:
                if not span.startswith("["):  # that is a slot on its way
                    first, _, last = span.partition("-")
                    for slot in range(int(first), int(last or first) + 1):
                        owners[slot] = self._node(line[0])
        return owners

    def master_of(self, key: str | bytes | int) -> PrivateServer:
        """Return the node that has a name in Redis, or a slot, now."""
        return self.owners()[key if isinstance(key, int) else self.slot_of(key)]

    @staticmethod
    def slot_of(name: str | bytes) -> int:
        """Return the slot of a name in Redis."""
        return slot_of(name)

    def slots_of(self, master: PrivateServer) -> list[int]:
        """Return the slots that *master* has now."""
        return [slot for slot, owner in self.owners().items() if owner is master]

    def begin_migration(self, slot: int, to: PrivateServer) -> None:
        """From now on *slot* is on its way to *to*: its keys are asked for here and there (ASK)."""
        self._begin_migration([slot], self.master_of(slot), to)

    def end_migration(self, slot: int, to: PrivateServer) -> None:
        """Move the keys of *slot*, and then the slot itself."""
        self._end_migration([slot], self.master_of(slot), to)

    def migrate(self, slots: Iterable[int], to: PrivateServer) -> None:
        """Move *slots* with their keys to the master *to*, some at a time."""
        owners = self.owners()
        for source in dict.fromkeys(owners.values()):
            leaving = [slot for slot in slots if owners[slot] is source is not to]
            for start in range(0, len(leaving), _SLOTS_AT_A_TIME):
                some = leaving[start : start + _SLOTS_AT_A_TIME]
                self._begin_migration(some, source, to)
                self._end_migration(some, source, to)

    def _begin_migration(
        self, slots: Sequence[int], source: PrivateServer, to: PrivateServer
    ) -> None:
        for node, state, other in ((to, "IMPORTING", source), (source, "MIGRATING", to)):
            name = self._name(other)
            self._ask_all(node, [("CLUSTER", "SETSLOT", slot, state, name) for slot in slots])

    def _end_migration(
        self, slots: Sequence[int], source: PrivateServer, to: PrivateServer
    ) -> None:
        auth = () if self._password is None else ("AUTH", self._password)
        head = ("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "REPLACE", *auth, "KEYS")
        left = slots
        while left:
            asked = [("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_A_TIME) for slot in left]
            found = dict(zip(left, self._ask_all(source, asked), strict=True))
            left = [slot for slot in left if found[slot]]
            self._ask_all(source, [(*head, *_texts(found[slot])) for slot in left])
        name = self._name(to)
        for node in dict.fromkeys([to, source, *self.masters()]):
            self._ask_all(node, [("CLUSTER", "SETSLOT", slot, "NODE", name) for slot in slots])

    def _ask_all(
        self, node: PrivateServer, commands: Sequence[Sequence[str | bytes | float]]
    ) -> list[Reply]:
        link = Link(("127.0.0.1", node.port), _ANSWER_WITHIN_S)
        try:
            if self._password is not None:
                link.ask("AUTH", self._password)
            return link.ask_all(commands)
        finally:
            link.close()

    def fail_over(self, master: PrivateServer) -> PrivateServer:
        """Have a replica take the place of *master* in good order; return it when it has."""
        replica = self.replica_of(master)
        replica.command("CLUSTER", "FAILOVER")
        self._wait(lambda: master not in self.masters(), "a failover")
        return replica

    def wait_until_well(self) -> None:
        """Wait until all nodes agree that all are well, and every replica has its master's data.

        Raises:
            RuntimeError: It did not come to that in 30 s.
        """
        self._wait(self._is_well, "a cluster that is well")

    def _form(self) -> None:
        share = SLOTS / self._masters
        masters, replicas = self.nodes[: self._masters], self.nodes[self._masters :]
        for number, node in enumerate(masters):
            first, end = round(number * share), round((number + 1) * share)
            node.command("CLUSTER", "ADDSLOTS", *range(first, end))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            for other in self.nodes[: self.nodes.index(node)]:
                other.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        self._wait(self._all_met, "nodes that know each other")
        for number, node in enumerate(replicas):
            node.command("CLUSTER", "REPLICATE", self._names[number % self._masters])

    def _all_met(self) -> bool:
        wanted = set(self._names)
        return all(
            {line[0] for line in self._view_of(node) if "handshake" not in line[2]} == wanted
            for node in self.nodes
        )

    def _is_well(self) -> bool:
        for node in self.nodes:
            lines = self._view_of(node)
            roles = [line[2] for line in lines]
            if any("fail" in role or "handshake" in role for role in roles):
                return False
            if any(line[7] != "connected" for line in lines):
                return False
            if sum("slave" in role for role in roles) != len(self.nodes) - self._masters:
                return False
            if "cluster_state:ok" not in _text(node.command("CLUSTER", "INFO")):
                return False
            info = _text(node.command("INFO", "replication"))
            if "role:slave" in info and "master_link_status:up" not in info:
                return False
        return True

    def _wait(self, until: Callable[[], bool], what: str) -> None:
        over = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < over:
            with contextlib.suppress(OSError, ReplyError):  # not up yet, or loading
                if until():
                    return
            time.sleep(_LOOK_AGAIN_S)
        raise RuntimeError(f"the cluster did not come to {what} in {_READY_WITHIN_S:.0f} s")

    def _view(self) -> list[list[str]]:
        """What the best informed node that answers has to say, see CLUSTER NODES."""
        views: list[tuple[int, int, list[list[str]]]] = []
        for node in self.nodes:
            if _answers(node):
                epoch = _text(node.command("CLUSTER", "INFO")).partition("cluster_current_epoch:")
                views.append((int(epoch[2].split()[0]), len(views), self._view_of(node)))
        if not views:
            raise RuntimeError("no node of the cluster answers")
        return max(views)[2]

    def _view_of(self, node: PrivateServer) -> list[list[str]]:
        return [line.split() for line in _text(node.command("CLUSTER", "NODES")).splitlines()]

    def _node(self, name: str) -> PrivateServer:
        return self.nodes[self._names.index(name)]

    def _name(self, node: PrivateServer) -> str:
        return self._names[self.nodes.index(node)]


def slot_of(name: str | bytes) -> int:
    """Return the slot of a name in Redis: that of its hash tag, where it has one."""
    text = name.encode() if isinstance(name, str) else name
    tag, end, _ = text.partition(b"{")[2].partition(b"}")
    return binascii.crc_hqx(tag if tag and end else text, 0) % SLOTS


def _start(node: PrivateServer) -> None:
    for attempt in range(_ATTEMPTS):
        node._endpoint.known_port = _free_pair()  # noqa: SLF001 - the same package's
        try:
            node.start()
            return
        except RuntimeError:
            if attempt == _ATTEMPTS - 1:
                raise


def _free_pair() -> int:
    """Return a free port whose bus port is free as well."""
    while True:
        port = random.choice(_PORTS)
        try:
            with socket.socket() as client, socket.socket() as bus:
                client.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + _BUS_ABOVE))
        except OSError:
            continue
        return port


def _texts(reply: Reply) -> list[bytes]:
    return [one for one in reply if isinstance(one, bytes)] if isinstance(reply, list) else []


def _answers(node: PrivateServer) -> bool:
    try:
        link = Link(("127.0.0.1", node.port), _PATIENCE_S)
    except OSError:
        return False
    try:
        link.ask("PING")
    except ReplyError:  # it wants a password, so it is there
        return True
    except OSError:  # it is paused
        return False
    finally:
        link.close()
    return True


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
