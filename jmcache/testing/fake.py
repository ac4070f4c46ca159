"""Our own connection code on a Redis that exists only in this process's memory."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fakeredis import FakeServer

    from jmcache.connection import RedisConnectionManager
    from jmcache.settings import CacheSettings

_log = logging.getLogger("jmcache.testing")


def fake_manager(
    settings: CacheSettings | None = None, *, server: FakeServer | None = None
) -> RedisConnectionManager:
    """Return a manager whose connections end in fakeredis instead of a socket.

    Pool, exchange and error translation are the real ones. What needs a network or a real server
    cannot be shown on it: slow or broken replies, memory limits, a fork. Without ``fakeredis[lua]``
    there is no EVAL, and `get_or_set` stores nothing: a warning in the log says so.

    Args:
        settings: As for a real manager; where the server is does not matter. None: the defaults.
        server: What managers that share it see of each other; its ``connected = False`` is an
            outage. None: a server of this manager's own.

    Raises:
        ImportError: The fakeredis package is not installed.
    """
    try:
        import fakeredis
    except ImportError as error:
        raise ImportError(
            "fake_manager needs the fakeredis package. Run: pip install 'fakeredis[lua]'"
        ) from error
    if find_spec("lupa") is None:
        _log.warning(
            "fakeredis has no EVAL here: get_or_set computes, and stores nothing."
            " Run: pip install 'fakeredis[lua]'"
        )
    from jmcache.connection import RedisConnectionManager
    from jmcache.settings import CacheSettings

    return RedisConnectionManager(
        settings or CacheSettings(),
        connection_class=fakeredis.FakeRedisConnection,
        connection_options={"server": server or fakeredis.FakeServer()},
    )
