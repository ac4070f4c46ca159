"""Who hears of a circuit breaker's changes of state."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable

from jmcache.circuit_breaker._states import Transition

Listener = Callable[[Transition], None]


class Listeners:
    """Told of every change once, one at a time and in order, with no lock held."""

    def __init__(self) -> None:
        """Begin with none."""
        self._listeners: tuple[Listener, ...] = ()  # replaced under _lock
        self.renew()

    def renew(self) -> None:
        """Forget what was not told yet, and who was telling: another process does that."""
        self._lock = threading.Lock()
        self._untold: deque[tuple[Listener, Transition]] = deque()
        self._teller: object | None = None  # taken under _lock

    def add(self, listener: Listener) -> None:
        """Tell *listener* too, from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def noting(self, transition: Transition) -> Callable[[], None]:
        """Return a call that has it told by the next `tell`. Holds up nobody.

        It is one step: an exception from a signal handler comes before it or after it.
        """
        news = [(listener, transition) for listener in self._listeners]
        return functools.partial(self._untold.extend, news)

    def tell(self) -> None:
        """Tell what is not told yet, unless another thread is doing so."""
        me = object()
        while self._untold:
            # Known before it is taken: an exception from a signal handler between the taking and
            # a try would leave nobody to tell.
            try:
                with self._lock:
                    if self._teller is None:
                        self._teller = me
                if self._teller is not me:
                    return  # whoever is telling looks again when done
                # A call, not a loop: CPython leaves the last jump back of a while loop that ends
                # a try uncovered by its finally.
                self._tell_all()
            finally:
                if self._teller is me:
                    self._teller = None

    def _tell_all(self) -> None:
        while self._untold:
            # One by one: who is interrupted in a listener leaves the rest to the next.
            listener, transition = self._untold.popleft()
            listener(transition)
