"""Connection classes that speak for themselves: redis-py's own kind, such as fakeredis's."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from jmcache.connection._connection import greeting, judge_greeting
from jmcache.connection._credentials import Credentials
from jmcache.connection._replies import Reply
from jmcache.connection._wire import LIFE, NUMBER, OK, OK_OR_NOTHING, VALUE
from jmcache.deadline import Deadline
from jmcache.errors import RedisProtocolError
from jmcache.settings import CacheSettings


class Foreign:
    """Mixed into a redis-py connection class: the exchange, through its public methods."""

    ticket: object = None  # the pool's

    def exchange(
        self: Any, packed: bytes, asked: Sequence[bytes], deadline: Deadline, room: int
    ) -> list[Reply]:
        """As Connection.exchange; *deadline* and *room* are beyond such a class."""
        del deadline, room
        if self._sock is not None and self.can_read(0):
            self.disconnect()
        self.connect()
        self.send_packed_command([packed], check_health=False)
        return [_read(self, one) for one in asked]


def made_ours(connection_class: type) -> type:
    """Return *connection_class* with what the pool and the manager ask of a connection."""
    return type(connection_class.__name__, (Foreign, connection_class), {})


def options(settings: CacheSettings, credentials: Credentials) -> dict[str, Any]:
    """Return what keeps such a class from waiting, retrying and introducing itself on its own."""
    # redis-py looks its own version up on disk for each connection (380 us) unless told not to.
    known = inspect.signature(AbstractConnection.__init__).parameters
    quiet = {"driver_info": None} if "driver_info" in known else {"lib_name": None}
    return quiet | {
        "protocol": 2,
        "socket_timeout": settings.operation_timeout,
        "socket_connect_timeout": settings.connection_timeout,
        "retry": Retry(NoBackoff(), 0),  # ours is the one place that retries
        "db": settings.db,
        "redis_connect_func": partial(_greet, credentials, settings.connection_timeout),
    }


def _greet(credentials: Credentials, seconds: float, connection: Any) -> None:
    connection._parser.on_connect(connection)  # noqa: SLF001 - there is no other way to it
    pair = credentials.get(Deadline(seconds))
    for command, packed in greeting(connection.db, *pair).items():
        connection.send_packed_command([bytes(packed)], check_health=False)
        try:
            reply = _read(connection, OK)
        except redis.AuthenticationError:
            credentials.refused(pair)
            raise
        if isinstance(reply, Exception):
            judge_greeting(command, reply, connection.db)


def _read(connection: Any, asked: bytes) -> Reply:
    try:
        reply: Reply = connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error
    if not _is_reply_to(asked, reply):
        raise RedisProtocolError("the reply is none that was asked for")
    return reply


def _is_reply_to(asked: bytes, reply: Reply) -> bool:
    if asked == VALUE:
        return reply is None or type(reply) is bytes
    if asked == OK_OR_NOTHING:
        return reply is None or reply == OK[1:]
    if asked in (NUMBER, LIFE):
        return type(reply) is int
    return type(reply) is bytes and asked == b"+" + reply
