"""Commands as Redis reads them (RESP2), and the heads of the replies to them.

Our own few lines, because hiredis's packer crashes the process when a signal handler raises while
it converts a number; it is never used. Bytes only.
"""

from __future__ import annotations

# What a reply must be: one of these, or an error.
VALUE = b"$"  # bytes or nothing
NUMBER = b":"
LIFE = b":-"  # a number, or -1 or -2
OK = b"+OK"
PONG = b"+PONG"

OK_OR_NOTHING = b"+$"
TREE = b"*"  # a list of texts, numbers and such lists

PING = b"*1\r\n$4\r\nPING\r\n"

ASKING = b"*1\r\n$6\r\nASKING\r\n"
CLUSTER_SLOTS = b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n"
CLUSTER_INFO = b"*2\r\n$7\r\nCLUSTER\r\n$4\r\nINFO\r\n"

_AUTH = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n"
_AUTH_AS = b"*3\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_GET = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
_SET = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n"


def pack(*words: bytes) -> bytes:
    """Return any command."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(w), w) for w in words])


def pack_auth(username: str | None, password: str) -> memoryview:
    """Return AUTH. Its bytes are in a view, whose repr does not show them.

    Nor are they, or the password's, the value of a variable at any time: error trackers keep the
    variables of every frame that an exception passes through, and time limits strike anywhere.
    """
    if username:
        user = username.encode()
        return memoryview(_AUTH_AS % (len(user), user, len(password.encode()), password.encode()))
    return memoryview(_AUTH % (len(password.encode()), password.encode()))


def pack_get(name: bytes) -> bytes:
    """Return GET."""
    return _GET % (len(name), name)


def pack_set(name: bytes, blob: bytes, ttl_ms: int) -> bytes:
    """Return SET with a TTL in milliseconds; there is none without."""
    ttl = b"%d" % ttl_ms
    return _SET % (len(name), name, len(blob), blob, len(ttl), ttl)
