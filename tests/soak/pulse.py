"""Whether this machine lets anybody ask Redis at all, seen on a socket that is nobody's client."""

from __future__ import annotations

import threading
import time

from jmcache.testing.resp import Link

CALM_S = 0.05  # a PING on a machine that is not swamped takes a hundredth of that

_EVERY_S = 0.01
_ANSWER_WITHIN_S = 30.0


class Pulse:
    """Asks for a PING again and again, while it is entered.

    Attributes:
        slowest_s: The longest one took.
    """

    def __init__(self, port: int, password: str) -> None:
        self._address = ("127.0.0.1", port)
        self._password = password
        self._over = False
        self._thread = threading.Thread(target=self._run, name="soak-pulse", daemon=True)
        self.slowest_s = 0.0

    @property
    def calm(self) -> bool:
        """Was every answer there soon?"""
        return self.slowest_s <= CALM_S

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        asked = time.monotonic()
        link = Link(self._address, _ANSWER_WITHIN_S)
        try:
            link.ask("AUTH", self._password)
            while not self._over:
                asked = time.monotonic()
                link.ask("PING")
                self.slowest_s = max(self.slowest_s, time.monotonic() - asked)
                time.sleep(_EVERY_S)
        except OSError:
            self.slowest_s = max(self.slowest_s, time.monotonic() - asked)
        finally:
            link.close()
