"""redis-py's and the operating system's errors, put into the words of this library.

The one table of what is absorbed. What is not in it is not ours, and passes through.
"""

from __future__ import annotations

import errno
import ssl

import redis
from redis import exceptions

from jmcache.connection._slots import read_redirection
from jmcache.errors import (
    RedisConnectionError,
    RedisError,
    RedisMisconfiguredError,
    RedisNotReadyError,
    RedisNotServedError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisRejectedError,
    RedisTimeoutError,
    RedisUnreachableError,
    RedisWriteRefusedError,
    RedisWrongTypeError,
)

# Caught around every exchange, unless is_foreign(); everything else is somebody else's.
ABSORBED = (redis.RedisError, OSError)

_ELSEWHERE = "cluster: host is one node of a Redis Cluster, so cluster=True (redis+cluster://)"

# What Redis says, by the first word: our error, its reason, and what to tell the operator.
_REFUSALS: dict[str, tuple[type[RedisError], str, str]] = {
    "NOAUTH": (RedisMisconfiguredError, "auth", "password: Redis asks for one"),
    "WRONGPASS": (
        RedisMisconfiguredError,
        "auth",
        "password, username: Redis does not accept the credentials",
    ),
    "NOPERM": (
        RedisNotServedError,
        "noperm",
        "username: its ACL rights do not cover a command or key that is needed",
    ),
    "MOVED": (RedisNotServedError, "cluster", _ELSEWHERE),
    "ASK": (RedisNotServedError, "cluster", _ELSEWHERE),
    "CROSSSLOT": (RedisNotServedError, "cluster", _ELSEWHERE),
    "DENIED": (
        RedisMisconfiguredError,
        "denied",
        "password: without one, Redis in protected mode serves only its own machine",
    ),
    "LOADING": (RedisNotReadyError, "loading", "Redis is loading its data"),
    "MASTERDOWN": (RedisNotReadyError, "masterdown", "the replica lost its master"),
    "TRYAGAIN": (RedisNotReadyError, "tryagain", "the slot is being moved"),
    "CLUSTERDOWN": (RedisNotReadyError, "clusterdown", "the cluster is down"),
    "BUSY": (RedisNotReadyError, "busy", "Redis is busy with a script"),
    "READONLY": (RedisReadOnlyError, "readonly", "Redis is a read-only replica"),
    "OOM": (RedisWriteRefusedError, "oom", "Redis is out of memory"),
    "MISCONF": (RedisWriteRefusedError, "misconf", "Redis cannot save to its disk"),
    "NOREPLICAS": (RedisWriteRefusedError, "noreplicas", "Redis has too few replicas to write"),
    "WRONGTYPE": (RedisWrongTypeError, "wrong_type", "the key holds another type than text"),
}
_UNKNOWN_COMMAND = (
    RedisNotServedError,
    "unknown_command",
    "the server lacks one of GET, SET, UNLINK, INCR, PEXPIRE, EVAL",
)
_OTHER_REFUSAL = (RedisRejectedError, "rejected", "Redis rejected the command")

# redis-py takes the word away where it has a class for it. Such errors come only from connection
# classes that read their replies themselves, such as fakeredis's.
_WORDS: dict[type[Exception], str] = {
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
}


def is_foreign(error: BaseException) -> bool:
    """True for an OSError that the system has not raised: a timer's TimeoutError, say.

    The system's have an error number. A signal handler's do not, and are not ours to absorb.
    """
    return isinstance(error, OSError) and error.errno is None


def translate(error: Exception) -> RedisError:
    """Return our error for one of :data:`ABSORBED`; the caller raises it ``from`` the original."""
    if isinstance(error, RedisError):
        return error
    if "max number of clients" in str(error):
        return RedisConnectionError("Redis serves its maximum of clients", reason="maxclients")
    word = _WORDS.get(type(error))
    if word is None and isinstance(error, redis.ResponseError):
        word = str(error).partition(" ")[0]
    if word in ("MOVED", "ASK"):
        redirected = read_redirection(str(error), _ELSEWHERE)
        if redirected is not None:
            return redirected
    if word is not None:
        # redis-py takes ERR away.
        unknown = str(error).removeprefix("ERR ").startswith("unknown command")
        other = _UNKNOWN_COMMAND if unknown else _OTHER_REFUSAL
        ours, reason, message = _REFUSALS.get(word, other)
        return ours(message, reason=reason)
    if isinstance(error, redis.InvalidResponse):
        return RedisProtocolError("the reply is not Redis's")
    return _translate_transport(error)


def _translate_transport(error: Exception) -> RedisError:
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(error, (redis.TimeoutError, TimeoutError)) or isinstance(cause, TimeoutError):
        return RedisTimeoutError("no answer within the deadline")
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return RedisConnectionError("the TLS connection was cut", reason="eof")
    if isinstance(cause, ssl.SSLError):
        why = getattr(cause, "verify_message", "") or cause.reason or "unknown reason"
        return RedisMisconfiguredError(
            f"tls: the connection could not be secured: {why}", reason="tls"
        )
    if isinstance(cause, (ConnectionRefusedError, FileNotFoundError)):  # a Unix socket's path
        return RedisUnreachableError("nothing listens at the address", reason="refused")
    if isinstance(cause, (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)):
        return RedisConnectionError("the connection was reset", reason="reset")
    if isinstance(cause, OSError):
        if cause.errno in (errno.EMFILE, errno.ENFILE):
            return RedisUnreachableError("no file descriptor is left", reason="descriptors")
        name = errno.errorcode.get(cause.errno or 0, "unknown")
        return RedisConnectionError(f"the system said {name}", reason="connection")
    return RedisConnectionError("Redis closed the connection", reason="eof")
