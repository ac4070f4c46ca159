"""The only place that speaks to Redis, and the only one that imports redis-py.

_manager     the front: the verbs, whatever Redis is behind them, and the change of it
_cluster     a Redis Cluster: the same verbs over several nodes
_guide       which node has which slot, found out and kept right
_members     the nodes, each with what guards it
_slots       what a cluster says of itself
_together    exchanges with several servers at the same time
_node        one server: each verb an exchange: borrow, send, read whole, give back
_pool        connections and who has them
_usage       how many there are, and how long one was waited for
_connection  one connection: opening it, one exchange over it
_foreign     the same over a connection class of redis-py's kind, fakeredis's say
_socket      every wait cut to the deadline
_tls         whom to trust
_sentinel    the master that sentinels watch
_look_up     what is asked of somebody else before, within the deadline
_resolver    a name to addresses
_credentials who we are, when it may change
_tracking    whether somebody listens to what changes in Redis
_listening   a connection that does
_pushes      what Redis says by itself
_wire        commands
_replies     replies, strictly
_translate   their errors into ours
"""

from typing import TYPE_CHECKING

from jmcache.connection._manager import RedisConnectionManager
from jmcache.connection._usage import PoolUsage, waited_s

if TYPE_CHECKING:
    from jmcache.connection._tracking import Tracking

__all__ = ["PoolUsage", "RedisConnectionManager", "Tracking", "waited_s"]
