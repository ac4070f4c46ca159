"""Which node of a cluster has which key, as its nodes tell it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from jmcache.errors import RedisNotReadyError, RedisNotServedError, RedisProtocolError

__all__ = [
    "SLOTS",
    "Address",
    "Redirected",
    "SlotMap",
    "key_slot",
    "read_redirection",
    "read_slots",
]

SLOTS = REDIS_CLUSTER_HASH_SLOTS

Address = tuple[str, int]  # as the cluster announces it, which need not be a number

_REDIRECTION = re.compile(r"(MOVED|ASK) ([0-9]{1,5}) (.{0,255}):([0-9]{1,5})")
_UNKNOWN = ("", "?")  # hosts that mean: the one you are asking
_HOST = re.compile(r"[0-9A-Za-z_.-]{1,255}|(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]{2,45}")
_PORTS = range(1, 65_536)


class SlotMap(NamedTuple):
    """The owner of every slot, None for one that nobody serves; and everybody there is."""

    owners: list[Address | None]
    masters: tuple[Address, ...]
    replicas: tuple[Address, ...]


class Redirected(RedisNotServedError):  # noqa: N818 - it says where to go on
    """MOVED or ASK: another node has the key.

    Attributes:
        slot: The slot it is about.
        host: Of the node that has it; "" for the host that said so.
        port: Of that node.
        asking: For this once (ASK); otherwise from now on.
    """

    reason = "cluster"

    def __init__(self, message: str, slot: int, host: str, port: int, *, asking: bool) -> None:
        super().__init__(message)
        self.slot = slot
        self.host = host
        self.port = port
        self.asking = asking


def read_redirection(text: str, message: str) -> Redirected | None:
    """Return the redirection that the error *text* of a server is, None if it is not whole."""
    match = _REDIRECTION.fullmatch(text)
    if match is None or int(match[2]) >= SLOTS or int(match[4]) not in _PORTS:
        return None
    host = "" if match[3] in _UNKNOWN else match[3]
    if host and not _HOST.fullmatch(host):
        return None
    return Redirected(message, int(match[2]), host, int(match[4]), asking=match[1] == "ASK")


def read_slots(reply: list[Any], asked: str) -> SlotMap:
    """Return the map that the *reply* to CLUSTER SLOTS is.

    Args:
        asked: The host that was asked, for nodes that do not know their own.

    Raises:
        RedisProtocolError: It is no such reply.
        RedisNotReadyError: It knows of no slot that is served.
    """
    owners: list[Address | None] = [None] * SLOTS
    masters: dict[Address, None] = {}  # in the order they came
    replicas: dict[Address, None] = {}
    try:
        for first, last, master, *others in reply:
            owner = _read_address(master, asked)
            if not 0 <= first <= last < SLOTS:
                raise ValueError
            owners[first : last + 1] = [owner] * (last + 1 - first)
            masters[owner] = None
            for other in others:
                replicas[_read_address(other, asked)] = None
    except (ValueError, TypeError) as error:
        raise RedisProtocolError("the reply is no list of a cluster's slots") from error
    if not masters:
        raise RedisNotReadyError("the node knows of no slot that is served", reason="clusterdown")
    return SlotMap(owners, tuple(masters), tuple(replicas))


def _read_address(node: Any, asked: str) -> Address:
    host, port, *_ = node
    if not isinstance(host, bytes | None) or port not in _PORTS:
        raise ValueError
    text = "" if host is None else host.decode()
    if text in _UNKNOWN:
        return asked, port
    if not _HOST.fullmatch(text):
        raise ValueError
    return text, port
