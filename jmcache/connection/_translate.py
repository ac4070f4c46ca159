"""redis-py's and the operating system's errors, put into the words of this library.

The one table of what is absorbed. What is not in it is not ours, and passes through.
"""

from __future__ import annotations

import errno
import socket
import ssl

import redis
from redis import exceptions

from jmcache.errors import (
    RedisConnectionError,
    RedisError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisRejectedError,
    RedisTimeoutError,
    RedisWriteRefusedError,
    RedisWrongTypeError,
)

# Caught around every exchange; everything else is somebody else's.
ABSORBED = (redis.RedisError, OSError)

# First match wins, so a subclass stands before its base: in redis-py wrong credentials and a
# loading server are connection errors too.
_REPLIES: tuple[tuple[type[Exception], type[RedisError], str, str], ...] = (
    (
        exceptions.AuthenticationError,
        RedisMisconfiguredError,
        "auth",
        "password, username: Redis does not accept the credentials",
    ),
    (
        exceptions.AuthorizationError,
        RedisMisconfiguredError,
        "auth",
        "password, username: Redis does not accept the credentials",
    ),
    (
        exceptions.NoPermissionError,
        RedisMisconfiguredError,
        "noperm",
        "username: its ACL rights do not cover a command or key that is needed",
    ),
    (exceptions.BusyLoadingError, RedisNotReadyError, "loading", "Redis is loading its data"),
    (exceptions.MasterDownError, RedisNotReadyError, "masterdown", "the replica lost its master"),
    (exceptions.TryAgainError, RedisNotReadyError, "tryagain", "the slot is being moved"),
    (exceptions.ClusterDownError, RedisNotReadyError, "clusterdown", "the cluster is down"),
    (exceptions.ReadOnlyError, RedisReadOnlyError, "readonly", "Redis is a read-only replica"),
    (exceptions.OutOfMemoryError, RedisWriteRefusedError, "oom", "Redis is out of memory"),
    (exceptions.InvalidResponse, RedisProtocolError, "protocol", "the reply is not Redis's"),
)

# Replies that redis-py 6.4 to 8.1 have no class for, by the first word of their text.
_CODES: dict[str, tuple[type[RedisError], str, str]] = {
    "MISCONF": (RedisWriteRefusedError, "misconf", "Redis cannot save to its disk"),
    "NOREPLICAS": (RedisWriteRefusedError, "noreplicas", "Redis has too few replicas to write"),
    "BUSY": (RedisNotReadyError, "busy", "Redis is busy with a script"),
    "WRONGTYPE": (RedisWrongTypeError, "wrong_type", "the key holds another type than text"),
    "NOAUTH": (RedisMisconfiguredError, "auth", "password: Redis asks for one"),
    "NOPERM": (RedisMisconfiguredError, "noperm", "username: its ACL rights are too narrow"),
}


def translate(error: Exception) -> RedisError:
    """Return our error for one of :data:`ABSORBED`; the caller raises it ``from`` the original."""
    if isinstance(error, RedisError):
        return error
    for theirs, ours, reason, message in _REPLIES:
        if isinstance(error, theirs):
            return ours(message, reason=reason)
    if isinstance(error, redis.ResponseError):
        code = str(error).partition(" ")[0]
        known, reason, message = _CODES.get(
            code, (RedisRejectedError, "rejected", "Redis rejected the command")
        )
        return known(message, reason=reason)
    return _translate_transport(error)


def _translate_transport(error: Exception) -> RedisError:
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, RedisError):
        return cause  # redis-py wrapped one that was ours already
    if isinstance(error, (redis.TimeoutError, TimeoutError)) or isinstance(cause, TimeoutError):
        return RedisTimeoutError("no answer within the deadline")
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return RedisConnectionError("the TLS connection was cut", reason="eof")
    if isinstance(cause, ssl.SSLError):
        return RedisMisconfiguredError(
            f"tls: the connection could not be secured: {cause.reason or 'unknown reason'}",
            reason="tls",
        )
    if isinstance(cause, socket.gaierror):
        return RedisConnectionError("host: its name is unknown", reason="dns")
    if isinstance(cause, ConnectionRefusedError):
        return RedisConnectionError("nothing listens at the address", reason="refused")
    if isinstance(cause, (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)):
        return RedisConnectionError("the connection was reset", reason="reset")
    if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
        return RedisConnectionError("no file descriptor is left", reason="descriptors")
    if "max number of clients" in str(error):
        return RedisConnectionError("Redis serves its maximum of clients", reason="maxclients")
    if isinstance(cause, OSError):
        name = errno.errorcode.get(cause.errno or 0, "unknown")
        return RedisConnectionError(f"the system said {name}", reason="connection")
    return RedisConnectionError("Redis closed the connection", reason="eof")
