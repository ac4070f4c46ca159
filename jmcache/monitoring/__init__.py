"""What happened, for machines and for people: counters, measurements, log lines.

Every operation is counted here exactly once. Nothing here knows a value, and no key but as a
digest.
"""

from jmcache.monitoring._metrics import Metrics
from jmcache.monitoring._monitor import Monitor
from jmcache.monitoring._outage import OutageLog, Transition
from jmcache.monitoring._stats import CacheStats, LatencySummary

__all__ = ["CacheStats", "LatencySummary", "Metrics", "Monitor", "OutageLog", "Transition"]
