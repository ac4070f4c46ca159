"""For your own tests: a clock you turn by hand, a Redis server of your own, a manager without one.

Importing this loads nothing but the standard library and starts nothing.
"""

from __future__ import annotations

from jmcache.testing.clock import ManualClock
from jmcache.testing.fake import fake_manager
from jmcache.testing.find import RedisServerNotFound, ServerBinary, find_server
from jmcache.testing.resp import Reply, ReplyError
from jmcache.testing.server import PrivateServer

__all__ = [
    "ManualClock",
    "PrivateServer",
    "RedisServerNotFound",
    "Reply",
    "ReplyError",
    "ServerBinary",
    "fake_manager",
    "find_server",
]
