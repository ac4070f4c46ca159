"""Our own connection code on a Redis that exists only in this process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fakeredis import FakeServer

    from jmcache.connection import RedisConnectionManager
    from jmcache.settings import CacheSettings


def fake_manager(
    settings: CacheSettings | None = None, *, server: FakeServer | None = None
) -> RedisConnectionManager:
    """Return a manager whose connections end in fakeredis instead of a socket.

    Pool, exchange and error translation are the real ones. What needs a network or a real server
    cannot be shown on it: slow or broken replies, memory limits, a fork.

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
            "fake_manager needs the fakeredis package. Run: pip install fakeredis"
        ) from error
    from jmcache.connection import RedisConnectionManager
    from jmcache.settings import CacheSettings

    return RedisConnectionManager(
        settings or CacheSettings(),
        connection_class=fakeredis.FakeRedisConnection,
        connection_options={"server": server or fakeredis.FakeServer()},
    )
