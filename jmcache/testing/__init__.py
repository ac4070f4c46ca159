"""For your own tests: a clock, a Redis server and a network that do what they are told.

Importing this loads nothing but the standard library and starts nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jmcache.testing.certificates import Certificate, Certificates
    from jmcache.testing.clock import ManualClock
    from jmcache.testing.cluster import PrivateCluster
    from jmcache.testing.fake import fake_manager
    from jmcache.testing.find import RedisServerNotFound, ServerBinary, find_server
    from jmcache.testing.proxy import Fault, FaultProxy
    from jmcache.testing.resp import Reply, ReplyError
    from jmcache.testing.sentinel import PrivateSentinel
    from jmcache.testing.server import Change, PrivateServer

__all__ = [
    "Certificate",
    "Certificates",
    "Change",
    "Fault",
    "FaultProxy",
    "ManualClock",
    "PrivateCluster",
    "PrivateSentinel",
    "PrivateServer",
    "RedisServerNotFound",
    "Reply",
    "ReplyError",
    "ServerBinary",
    "fake_manager",
    "find_server",
]

if not TYPE_CHECKING:

    def __getattr__(name):  # as in jmcache
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jmcache.testing import (
            certificates,
            clock,
            cluster,
            fake,
            find,
            proxy,
            resp,
            sentinel,
            server,
        )

        parts = (certificates, clock, cluster, fake, find, proxy, resp, sentinel, server)
        for part in parts:
            globals().update({n: value for n, value in vars(part).items() if n in __all__})
        return globals()[name]
