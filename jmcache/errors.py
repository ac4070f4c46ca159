"""Everything the library raises on purpose.

RedisError
├── RedisConfigurationError           a setting cannot work; start-up only (a ValueError too)
├── RedisConnectionError              asked, no answer                  retryable, trips
│   ├── RedisUnreachableError         no connection can be made now     trips
│   ├── RedisTimeoutError             no answer within the deadline     trips
│   │   └── RedisHurriedError         too little time was left to ask   trips nothing
│   ├── RedisNotReadyError            LOADING, MASTERDOWN, ...          retryable, trips
│   ├── RedisReadOnlyError            a replica was asked to write      retryable once, trips both
│   ├── RedisProtocolError            the reply is not one we asked for trips
│   ├── RedisMisconfiguredError       credentials, database or TLS      opens at once
│   └── RedisPoolExhaustedError       no connection came free: our scarcity, trips nothing
├── RedisCircuitBreakerOpenError      we chose not to ask
├── RedisNodeDownError                the same, of one node of a cluster
├── RedisClosedError                  the cache was closed
├── RedisRejectedError                Redis answered, and said no
│   ├── RedisWriteRefusedError        out of memory, cannot persist     trips writes
│   ├── RedisNotServedError           this command or key is not for us
│   └── RedisWrongTypeError           the key holds something foreign
├── LoaderOverloadedError             Redis is away, and too many load already
├── LoaderTimeoutError                a load took longer than its caller waits (a TimeoutError too)
└── RedisSerializationError           a value that cannot be written
    ├── RedisCorruptEntryError        bytes that cannot be trusted
    ├── RedisExpiredEntryError        bytes that were kept beyond their time
    └── RedisForeignVersionError      bytes of another version of the format

An error knows its own nature, so that retry and circuit breaker keep no lists of types, and the
outcome it means for the caller, so that the cache keeps none either.
"""

from __future__ import annotations

from typing import ClassVar

from jmcache.outcome import Outcome


class RedisError(Exception):
    """Catch this one at the edge of a service.

    Attributes:
        retryable: May a second attempt help?
        retry_limit: At most so many retries of it, whatever the setting; None: no limit of its own.
        trips: Is it evidence against Redis? Counted by the circuit breaker.
        opens_at_once: Is one of it enough to open the circuit breaker?
        trips_writes: Is it evidence that Redis takes no writes, though it still answers reads?
        outcome: What the operation's outcome is when it ends in this error.
        reason: One lower-case word for labels and logs. Never a key, a value or a password.
    """

    retryable: ClassVar[bool] = False
    retry_limit: ClassVar[int | None] = None
    trips: ClassVar[bool] = False
    opens_at_once: ClassVar[bool] = False
    trips_writes: ClassVar[bool] = False
    outcome: ClassVar[Outcome] = Outcome.UNAVAILABLE
    reason: str = "error"

    def __init__(self, message: str = "", *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class RedisConfigurationError(RedisError, ValueError):
    """A setting cannot work. Names the setting and what would be right; raised at start-up only."""

    reason = "configuration"


class RedisConnectionError(RedisError):
    """Redis was asked and did not answer: reset, gone, or its name is unknown."""

    retryable = True
    trips = True
    reason = "connection"


class RedisUnreachableError(RedisConnectionError):
    """No connection can be made: nothing listens, or this process has no file descriptor left.

    Not retried within a call: what refuses now refuses in 100 ms as well, and the caller would
    have waited for nothing.
    """

    retryable = False
    reason = "unreachable"


class RedisTimeoutError(RedisConnectionError):
    """No answer within the deadline. Not retried: the time is used up."""

    retryable = False
    reason = "timeout"


class RedisHurriedError(RedisTimeoutError):
    """So little of the deadline was left that a healthy server might have missed it too."""

    trips = False
    reason = "hurried"


class RedisNotReadyError(RedisConnectionError):
    """The server is up but cannot serve yet: loading, master down, cluster down, try again."""

    reason = "not_ready"


class RedisReadOnlyError(RedisConnectionError):
    """The server is a replica now. Worth one retry over a new connection; reads may go on."""

    retry_limit = 1
    trips_writes = True
    reason = "readonly"


class RedisProtocolError(RedisConnectionError):
    """The reply is none that was asked for. Its connection is closed, never used again."""

    retryable = False
    reason = "protocol"


class RedisMisconfiguredError(RedisConnectionError):
    """Redis does not let us in: wrong credentials, no such database, a certificate that fails.

    No retry changes that, so one is enough to open the circuit breaker.
    """

    retryable = False
    opens_at_once = True
    reason = "misconfigured"


class RedisPoolExhaustedError(RedisConnectionError):
    """None of our own connections came free in time. Says nothing about Redis."""

    retryable = False
    trips = False
    outcome = Outcome.SATURATED
    reason = "pool_exhausted"


class RedisCircuitBreakerOpenError(RedisError):
    """The circuit breaker is open: Redis was not asked.

    Attributes:
        retry_after_s: Seconds until a caller is let through as a probe, 0.0 or more.
    """

    reason = "breaker_open"

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RedisNodeDownError(RedisError):
    """The node of a cluster that has the key failed lately: it was not asked. Others are."""

    reason = "node_down"


class RedisClosedError(RedisError):
    """The cache, or the connection manager below it, was closed by its owner."""

    reason = "closed"


class RedisRejectedError(RedisError):
    """Redis answered, and said no. It is alive, so nothing is held against it."""

    outcome = Outcome.CORRUPT
    reason = "rejected"


class RedisWriteRefusedError(RedisRejectedError):
    """Redis takes no writes for want of memory, disk or replicas. Reads go on."""

    trips_writes = True
    outcome = Outcome.REFUSED
    reason = "write_refused"


class RedisNotServedError(RedisRejectedError):
    """Redis is well, but does not do this for us.

    Rights too narrow, a key of another node, or a command that it does not know. Nothing is held
    against it, because what it does serve goes on: a user who may only read still reads. Logged
    once for each operation.
    """

    outcome = Outcome.UNAVAILABLE
    reason = "noperm"


class RedisWrongTypeError(RedisRejectedError):
    """The key holds another type than text: somebody else wrote it."""

    reason = "wrong_type"


class LoaderOverloadedError(RedisError):
    """Redis is away and as many loads run as are allowed then; this one was not begun."""

    outcome = Outcome.SATURATED
    reason = "loaders_busy"


class LoaderTimeoutError(RedisError, TimeoutError):
    """A load took longer than its caller wanted to wait. It goes on, and its result is kept."""

    reason = "loader_timeout"


class RedisSerializationError(RedisError):
    """A value cannot be written so that it comes back equal.

    Attributes:
        path: Where in the value, as one would write it in Python: ``matches[3].score``;
            empty for the value itself.
        type_name: The type found there.
    """

    outcome = Outcome.REFUSED
    reason = "unserializable"

    def __init__(
        self, message: str = "", *, reason: str | None = None, path: str = "", type_name: str = ""
    ) -> None:
        super().__init__(message, reason=reason)
        self.path = path
        self.type_name = type_name


class RedisCorruptEntryError(RedisSerializationError):
    """Stored bytes are not ours, cut short or altered. Reason: what gave them away."""

    outcome = Outcome.CORRUPT
    reason = "corrupt"


class RedisExpiredEntryError(RedisSerializationError):
    """A signed entry whose time is over, though Redis still has it: a miss.

    Its clock or ours is wrong, or somebody has put an old entry back.
    """

    outcome = Outcome.MISS
    reason = "expired"


class RedisForeignVersionError(RedisSerializationError):
    """Stored bytes are of another version of the format, as in a rolling deploy: a miss."""

    outcome = Outcome.MISS
    reason = "version"
