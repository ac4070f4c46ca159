"""Who we are to Redis: fixed, or asked for anew for each connection."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from jmcache.connection._look_up import LookUp
from jmcache.deadline import Deadline
from jmcache.errors import (
    RedisConfigurationError,
    RedisConnectionError,
    RedisError,
    RedisMisconfiguredError,
)
from jmcache.settings import CacheSettings, FileSecret
from jmcache.signals import signals_as_before

_log = logging.getLogger("jmcache.connection")

_NOT_AGAIN_S = 5.0  # some servers lock an account after a few log-ins that failed

Pair = tuple[str | None, str | None]  # user and password


class Credentials(LookUp[Pair]):
    """What a connection logs in with.

    A function of the application's, or a file, is asked for each new connection, so that a
    password can be changed while the service runs. On a thread of its own, because it may take its
    time; the caller waits within its deadline, and what it gave last serves on while it is late or
    fails, until Redis refuses that. What Redis refused is tried again now and then; anything else
    at once.
    """

    def __init__(self, username: str | None, password: Any) -> None:
        """Log in as *username* with *password*, which is as CacheSettings says."""
        super().__init__()
        self._username = username
        self._fixed: Pair | None = None
        self._source: Callable[[], Any]
        self._complaint = ""  # what was said last, by whoever asks: one at a time
        self._refused: tuple[Pair, float] | None = None  # and until when it is not tried again
        if isinstance(password, FileSecret):
            self._source = password.read
        elif password is None or isinstance(password, str):
            self._fixed = username, password
        else:
            self._source = getattr(password, "get_credentials", password)

    def get(self, deadline: Deadline) -> Pair:
        """Return user and password, None for none.

        Raises:
            RedisMisconfiguredError: There are none, or only what was refused a moment ago; reason
                "credentials".
            RedisConnectionError: They were not there in time; the same reason.
        """
        if self._fixed is not None:
            return self._fixed
        pair = super().get(deadline)
        if self._refused is not None:
            refused, until = self._refused
            if pair == refused and time.monotonic() < until:
                raise RedisMisconfiguredError(
                    "password: its function still gives what Redis refuses", reason="credentials"
                )
        return pair

    def refused(self, pair: Pair) -> None:
        """Take note that Redis did not accept *pair*."""
        self._refused = pair, time.monotonic() + _NOT_AGAIN_S
        if pair == self._last_found:
            self._last_found = None

    def _ask(self) -> Pair:
        pair: Pair = self._username, None
        trouble = ""
        try:
            with signals_as_before():
                answer = self._source()
            pair = self._judge(answer)
        except RedisConfigurationError as error:
            trouble = str(error)
        except Exception as error:  # noqa: BLE001
            # The application's own, on a thread of ours, where nobody would hear of it. Its text
            # may hold the secret.
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            trouble = f"password: its function raised {type(error).__name__} at {where}"
        if trouble and trouble != self._complaint:
            with signals_as_before():
                _log.error("no credentials for a new connection: %s", trouble)
        self._complaint = trouble
        if trouble:
            raise RedisMisconfiguredError(trouble, reason="credentials")
        return pair

    def _judge(self, answer: Any) -> Pair:
        given = answer if isinstance(answer, tuple) else (answer,)
        if len(given) not in (1, 2) or not all([isinstance(one, str) for one in given]):
            raise RedisConfigurationError(
                "password: its function returns the password, or the pair of user and password, as"
                f" text; not {type(answer).__name__}"
            )
        *user, password = given
        # By the same rules as those in the settings, and as well hidden.
        checked = CacheSettings(username=user[0] if user else self._username, password=password)
        return checked.username, cast("str | None", checked.password)

    def _vain(self, why: str) -> RedisError:
        return RedisConnectionError(f"password: its function: {why}", reason="credentials")
