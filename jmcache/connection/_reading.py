"""An exchange with one server that an event loop waits for, in place of a thread.

As in _node, a connection on its way is in a loan; one that is not read to its end is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jmcache.connection._node import Node
from jmcache.connection._replies import Reply
from jmcache.connection._translate import ABSORBED, is_foreign
from jmcache.connection._wire import LIFE, VALUE, pack, pack_get
from jmcache.deadline import Deadline
from jmcache.errors import RedisError, RedisTimeoutError


class Reading:
    """Reads names over one connection. Used by one thread; raises RedisError.

    Attributes:
        found: What is stored under each of the names, once `step` says so; an error in the place
            of a reply that is one.
        lives_ms: What each of the names that it was wanted of has left, as Found.lives_ms.
    """

    def __init__(
        self, node: Node, names: Sequence[bytes], deadline: Deadline, lives: Sequence[bytes] = ()
    ) -> None:
        self.found: list[bytes | RedisError | None] = []
        self.lives_ms: list[int] = []
        self._node = node
        self._packed = b"".join(map(pack_get, names))
        self._asked = (VALUE,) * len(names)
        if lives:
            self._packed += b"".join([pack(b"PTTL", name) for name in lives])
            self._asked += (LIFE,) * len(lives)
        self._count = len(names)
        self._replies: list[Reply] = []
        self._loan: list[Any] = []
        self._left_s = deadline.remaining()
        self._deadline = deadline

    def begin(self) -> bool:
        """Send. False where that takes a wait: there is no connection that is free and ready."""
        pool = self._node.pool
        try:
            self._attempt(self._borrow)
            if not self._loan[0].ready:
                pool.give_back(self._loan)  # as it is: whoever can wait connects it
                return False
            room = len(self._asked) * self._node.value_room
            if self._attempt(lambda: self._loan[0].send_now(self._packed, room)):
                return True
            self.close()
        except RedisError:  # whoever asks by a thread is told
            pass
        return False

    def _borrow(self) -> None:
        self._node.pool.borrow(self._loan, self._deadline, wait_share=0.0)

    def fileno(self) -> int:
        """Return the descriptor that tells when there is more to read."""
        number: int = self._loan[0].fileno()
        return number

    def step(self) -> bool:
        """Read what is there; return whether that is all."""
        whole: bool = self._attempt(lambda: self._loan[0].receive_now(self._asked, self._replies))
        if whole:
            node = self._node
            node.pool.give_back(self._loan)
            self.found = node.values(self._replies[: self._count])
            lives = self._replies[self._count :]
            self.lives_ms = [life if isinstance(life, int) else -1 for life in lives]
        return whole

    def give_up(self) -> RedisError:
        """Close the connection, as the answer took too long; return what that is."""
        self.close()
        return self.too_late(self._deadline)

    def too_late(self, deadline: Deadline) -> RedisError:
        """Return what it is that no answer came within *deadline*, one that ran all the time."""
        left_s = self._left_s - (self._deadline.at - deadline.at)
        return self._node.judge(RedisTimeoutError("no answer within the deadline"), left_s)

    def close(self) -> None:
        """Let go of the connection, and close it unless all was read. Idempotent."""
        self._node.pool.discard(self._loan)

    def _attempt(self, step: Callable[[], Any]) -> Any:
        clean = False
        try:
            result = step()
            clean = True
        except (RedisError, *ABSORBED) as error:
            if is_foreign(error):
                raise
            raise self._node.judge(error, self._left_s) from error
        finally:
            if not clean:
                self.close()
        return result
