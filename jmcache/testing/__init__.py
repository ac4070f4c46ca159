"""For your own tests: a clock, a Redis server and a network that do what they are told.

Importing this loads nothing but the standard library and starts nothing.
"""

from __future__ import annotations

from jmcache.testing.certificates import Certificate, Certificates
from jmcache.testing.clock import ManualClock
from jmcache.testing.cluster import PrivateCluster
from jmcache.testing.fake import fake_manager
from jmcache.testing.find import RedisServerNotFound, ServerBinary, find_server
from jmcache.testing.proxy import Fault, FaultProxy
from jmcache.testing.resp import Reply, ReplyError
from jmcache.testing.server import Change, PrivateServer

__all__ = [
    "Certificate",
    "Certificates",
    "Change",
    "Fault",
    "FaultProxy",
    "ManualClock",
    "PrivateCluster",
    "PrivateServer",
    "RedisServerNotFound",
    "Reply",
    "ReplyError",
    "ServerBinary",
    "fake_manager",
    "find_server",
]
