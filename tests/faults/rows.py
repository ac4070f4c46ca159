"""The fault matrix: what each row breaks, and what the cache has to do then.

Every row has tests marked ``fault_row(number)``. Of all of them ``observe`` asks besides: nothing
raised to the caller, no wrong value, no call longer than its time (D, 250 ms), at most 1 ms while
the breaker is open, back within 2 s, and nothing of the cache left behind.

level: U scripted socket or clock, R real server, N network namespace, S part of the soak too.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    number: int
    fault: str
    bar: str  # beyond what is asked of every row
    level: str


ROWS = (
    Row(1, "nobody listens", "refused, 30 ms, counts; works with the first call after", "U R"),
    Row(2, "SYN swallowed, no connection yet", "timeout, D, counts", "R N"),
    Row(3, "established, then every packet vanishes", "timeout, D, counts; first call after", "N"),
    Row(4, "connects, never answers", "timeout, D, counts", "U R"),
    Row(5, "kill -9 under traffic, back after 2 s", "counts; outage 1 s longer at most", "R S"),
    Row(6, "kill -9 while idle", "as row 1", "R"),
    Row(7, "restarted while a connection is idle", "the first call works", "R"),
    Row(8, "SIGSTOP while connected", "timeout, D, counts; right values after", "R S"),
    Row(9, "CLIENT PAUSE", "timeout, D, counts; back when it ends", "R S"),
    Row(10, "latency of 50 ms, of 300 ms", "50 ms: all works; 300 ms: opens, recovers", "R S"),
    Row(11, "a reply that drips byte by byte", "D", "U R S"),
    Row(12, "1 MB at 200 kB/s", "D, connection closed", "R"),
    Row(13, "a reply that stops half way", "D", "U R S"),
    Row(14, "half-closed before the reply", "reset or eof, counts, one retry", "U R S"),
    Row(15, "TCP reset before and in the reply", "reset, counts", "U R S"),
    Row(16, "reply cut short, then the end", "reset or eof, counts", "U R S"),
    Row(17, "garbage, a web server's answer", "protocol, counts", "U R S"),
    Row(18, "a reply too many before the next call", "refused, counted", "U R S"),
    Row(19, "a reply too many after the check", "wrong_key, ERROR once, all dropped", "U R S"),
    Row(20, "every reply twice", "as row 18", "U R S"),
    Row(21, "the reply after our timeout", "belongs to nobody", "U R"),
    Row(22, "a reply of another kind", "a miss", "U"),
    Row(23, "absurd sizes and depths", "refused before anything is reserved", "U"),
    Row(24, "out of memory", "oom, reads go on", "R S"),
    Row(25, "read-only replica", "readonly, counts, connections dropped", "R S"),
    Row(26, "MASTERDOWN, NOREPLICAS, MISCONF", "the first counts, the others for writes only", "R"),
    Row(27, "LOADING", "loading, counts, back when loaded", "R"),
    Row(28, "busy with a script", "busy, counts", "R"),
    Row(29, "server blocked for 2 s", "timeout, D, counts", "R"),
    Row(30, "password switched on later", "auth, opens at once, one login a probe", "R"),
    Row(31, "wrong password", "auth, opens at once, one login a probe", "R"),
    Row(32, "no rights for key or command", "noperm, counts nothing; forbidden PING is alive", "R"),
    Row(33, "a user with only the commands needed", "all works", "R"),
    Row(34, "as many clients as the server takes", "maxclients, counts; then works", "R S"),
    Row(35, "server closes idle connections", "the next call works", "R"),
    Row(36, "CLIENT KILL", "the next call works", "R S"),
    Row(37, "200 threads on 10 connections", "counts nothing, first come first served", "R S"),
    Row(38, "no file descriptor left", "descriptors, 30 ms, counts", "R"),
    Row(39, "fork after use, with threads busy", "child starts anew, parent goes on", "R S"),
    Row(40, "task cancelled in the middle of a call", "0 wrong, every connection back", "R S"),
    Row(41, "1,000 awaits on a silent server", "D each, loop lag 50 ms", "R"),
    Row(42, "an exception at any bytecode", "passes through; 0 wrong, all capacity back", "R S"),
    Row(43, "name server silent, or refusing", "D, last good address used", "N"),
    Row(44, "a name with four dead addresses", "D", "N"),
    Row(45, "failover by DNS, old master now replica", "looked up anew, writes within 2 s", "N"),
    Row(46, "sentinel failover", "its own time and 1 s", "R"),
    Row(47, "cluster: slots move", "nothing lost, or told", "R"),
    Row(48, "cluster: master killed, stopped", "D", "R"),
    Row(49, "another type under the name", "wrong_type, counts nothing, next set works", "U R"),
    Row(50, "corrupt, cut, empty, foreign bytes", "a miss, counts nothing, runs nothing", "U R"),
    Row(51, "64 MB under the name", "too_large, D, next call works", "R"),
    Row(52, "TLS: unknown, misnamed, expired", "tls, opens at once, ERROR once, never plain", "R"),
    Row(53, "TLS port silent; TLS to a plain port", "D", "R"),
    Row(54, "interpreter ends while all runs", "1 s, silent, atexit gets an answer", "R"),
    Row(55, "a write that timed out lands later", "False is not confirmed; the TTL holds", "R"),
    Row(56, "no thread can be started", "works without it; one caller probes", "U"),
    Row(57, "wall clock jumps", "nothing notices", "U"),
)  # fmt: skip

# The module of jmcache in which the guard of a row is: without it the row's tests fail.
KEPT_BY = {
    1: "errors",  # what is refused is not retried
    2: "connection._socket",  # every wait is cut to the deadline
    3: "connection._socket",
    4: "connection._socket",
    5: "health",  # the probe while the breaker is open
    6: "errors",
    7: "connection._connection",  # an idle connection is looked at before it is used
    8: "connection._socket",
    9: "connection._socket",
    10: "connection._socket",
    11: "connection._socket",  # one deadline for all receives
    12: "connection._socket",
    13: "connection._socket",
    14: "connection._replies",  # an end before a reply is whole
    15: "connection._translate",
    16: "connection._replies",
    17: "connection._replies",  # a reply must be the one that was asked for
    18: "connection._connection",  # nobody asks over a connection with something unread
    19: "envelope",  # the digest of the key
    20: "connection._connection",
    21: "connection._node",  # an exchange that was broken off closes its connection
    22: "connection._replies",
    23: "connection._replies",  # a head is held against what was asked before anything is reserved
    24: "connection._translate",  # what the word means: for writes only
    25: "connection._node",  # connections dropped after READONLY
    26: "connection._translate",
    27: "connection._translate",
    28: "connection._translate",
    29: "connection._socket",
    30: "health",  # pauses that grow
    31: "health",
    32: "errors",  # a right that is missing counts nothing
    33: "connection._connection",  # the name of the client is a courtesy
    34: "connection._connection",  # what the server said is read also when it takes nothing
    35: "connection._connection",
    36: "connection._connection",
    37: "connection._pool",  # a queue in which nobody is overtaken
    38: "errors",
    39: "fork",
    40: "connection._pool",  # a connection is given back by the thread that has it
    41: "aio",  # the deadline starts at the await
    42: "connection._pool",  # nothing needs a second step to be right
    43: "connection._resolver",
    44: "connection._connection",  # each address has its share
    45: "connection._node",  # connections dropped after READONLY
    46: "connection._sentinel",
    47: "connection._cluster",  # MOVED and ASK are followed
    48: "node_guard",  # a breaker for each node
    49: "connection._translate",
    50: "envelope",  # magic, checksum, and the key's digest
    51: "connection._replies",  # more than any value of ours may have is left unread
    52: "connection._tls",
    53: "connection._socket",
    54: "health",  # a daemon thread, waited for by nobody
    55: "connection._wire",  # no SET without a TTL
    56: "health",  # a thread that cannot be started is no error
    57: "deadline",  # the monotonic clock
}
