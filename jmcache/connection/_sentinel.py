"""The master that sentinels watch: where it is, and that what is there is it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jmcache.connection._connection import TcpConnection
from jmcache.connection._look_up import LookUp
from jmcache.connection._node import Limits, Node
from jmcache.connection._resolver import Found, literal, look_up
from jmcache.connection._together import Part, Question, exchange
from jmcache.connection._wire import TREE, VALUE, pack
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisError,
    RedisMisconfiguredError,
    RedisProtocolError,
    RedisReadOnlyError,
    RedisUnreachableError,
)

_LONGEST_S = 1.0  # for one round of questions to the sentinels
_INFO = pack(b"INFO", b"replication")
_INFO_ROOM = 64 * 1024  # bytes; a thousand replicas
_PING_SHARE = 0.5  # of its time for the look-up, and of the rest for the PING
_REFUSALS = ("auth", "noperm", "denied")


class _Answer(NamedTuple):
    """Where the master is, as one sentinel says."""

    epoch: int  # grows with each failover
    host: str
    port: int


class Sentinels(LookUp[Found]):
    """Asks where the master is, anew for each connection. Thread-safe.

    The sentinel that was right last is asked first, and alone as long as there is no doubt. Where
    its answer led to nothing, all are asked at the same time, and the latest configuration counts:
    one that is cut off from the others goes on to name the old master. While none can be asked,
    the master they named last serves on.
    """

    def __init__(self, nodes: Sequence[Node], master: str, seconds: float) -> None:
        """Ask nothing yet.

        Args:
            nodes: The sentinels, at least one.
            master: What they call it.
            seconds: That a round of questions may take.
        """
        super().__init__()
        self._nodes = list(nodes)  # the one that was right last comes first; of the asking thread
        self._question = pack(b"SENTINEL", b"MASTER", master.encode())
        self._seconds = min(seconds, _LONGEST_S)
        self._doubted = False
        self.on_move: Callable[[], None] = lambda: None

    def doubt(self) -> None:
        """What they said led to nothing, or to a replica."""
        self._doubted = True

    def _ask(self) -> Found:
        answers = [] if self._doubted else self._ask_these(self._nodes[:1])
        if not _good(answers):
            self._doubted = False  # what comes up from now on the answers may not know
            # Who said no is not asked again: accounts are locked by those who try again and again.
            answers = [pair for pair in answers if isinstance(pair[1], RedisMisconfiguredError)]
            answers += self._ask_these(self._nodes[len(answers) :])
        good = _good(answers)
        if not good:
            raise _problem([answer for _, answer in answers if isinstance(answer, RedisError)])
        right, (_, host, port) = max(good, key=lambda pair: pair[1].epoch)
        self._nodes.sort(key=lambda node: node is not right)
        found = literal(host, port) or look_up(host, port)
        before = self._last_found
        if before and {one.place for one in before}.isdisjoint([one.place for one in found]):
            self.on_move()
        return found

    def _ask_these(self, nodes: Sequence[Node]) -> list[tuple[Node, _Answer | RedisError]]:
        questions = [Question(self._question, TREE) for _ in nodes]
        parts = [Part(node, [question]) for node, question in zip(nodes, questions, strict=True)]
        try:
            exchange(parts, Deadline(self._seconds))
        finally:
            for node in nodes:
                node.drop_connections()  # rarely needed, and each is one of the sentinel's
        answers = map(_read, parts, questions)
        return list(zip(nodes, answers, strict=True))

    def _vain(self, why: str) -> RedisError:
        return RedisUnreachableError(f"sentinels: {why}", reason="sentinel")


class MasterConnection(TcpConnection):
    """A connection that makes sure it leads to a master: the sentinels may know it too late."""

    def __init__(self, *, resolver: Sentinels, **options: Any) -> None:
        super().__init__(resolver=resolver, **options)
        self._sentinels = resolver

    def _open(self, deadline: Deadline) -> None:
        try:
            super()._open(deadline)
            self._insist_on_master()
        except (RedisError, OSError):
            self._sentinels.doubt()
            raise

    def _insist_on_master(self) -> None:
        self._replies.begin(_INFO_ROOM)
        self._sock.sendall(_INFO)
        reply = self._replies.read(VALUE)
        # An ACL may forbid the question.
        if isinstance(reply, bytes) and b"role:master" not in reply.splitlines():
            raise RedisReadOnlyError("Redis is a replica, and a sentinel takes it for the master")


class MasterNode(Node):
    """The master, wherever it is."""

    def __init__(self, sentinels: Sentinels, options: dict[str, Any], limits: Limits) -> None:
        """Connect to nothing yet. *options* are those of a TcpConnection without its resolver."""
        super().__init__(MasterConnection, options | {"resolver": sentinels}, limits)
        self._sentinels = sentinels
        sentinels.on_move = self.drop_connections

    def ping(self, deadline: Deadline) -> None:
        """Ask for a sign of life, of what is the master now.

        A connection to an old master may stay open, when that one is frozen or cut off.
        """
        self._sentinels.get(deadline.part(_PING_SHARE))  # without them, what they said last
        super().ping(deadline.part(_PING_SHARE))


def _good(answers: Sequence[tuple[Node, _Answer | RedisError]]) -> list[tuple[Node, _Answer]]:
    return [(node, answer) for node, answer in answers if isinstance(answer, _Answer)]


def _read(part: Part, question: Question) -> _Answer | RedisError:
    if part.error is not None:
        if part.error.reason in _REFUSALS:
            return RedisMisconfiguredError(
                "sentinel_password, sentinel_username: a sentinel does not let us in",
                reason="sentinel_auth",
            )
        return part.error
    reply = question.reply
    if isinstance(reply, Exception):
        return _refusal(str(reply))
    try:
        said = dict(zip(reply[::2], reply[1::2], strict=True))  # type: ignore[index]
        return _Answer(int(said.get(b"config-epoch", 0)), said[b"ip"].decode(), int(said[b"port"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return RedisProtocolError("sentinels: one gave an answer that is none")


def _refusal(text: str) -> RedisError:
    if text.startswith("ERR No such master"):
        return RedisMisconfiguredError(
            "sentinel_master: the sentinels know no master of that name", reason="no_master"
        )
    if text.startswith(("NOAUTH", "NOPERM")):
        return RedisMisconfiguredError(
            "sentinel_password, sentinel_username: a sentinel does not let us ask it",
            reason="sentinel_auth",
        )
    return RedisMisconfiguredError(
        "sentinels: what answers there is no sentinel", reason="no_sentinel"
    )


def _problem(problems: Sequence[RedisError]) -> RedisError:
    for problem in problems:
        if isinstance(problem, RedisMisconfiguredError):
            return problem
    reasons = ", ".join(sorted({problem.reason for problem in problems}))
    return RedisUnreachableError(f"sentinels: none answered: {reasons}", reason="sentinel")
