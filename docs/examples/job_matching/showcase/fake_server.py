"""fakeredis as a TCP server: what the demo falls back to without any real server.

Run as `python -m showcase.fake_server PORT`; ends when it is killed.
"""

from __future__ import annotations

import sys
from typing import Any

from fakeredis import TcpFakeServer

STATUSES = (b"OK", b"PONG")


def main() -> None:
    """Serve on the loopback until killed."""
    server = TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis")
    server.RequestHandlerClass = _like_redis(server.RequestHandlerClass)
    server.serve_forever()


def _like_redis(handler_class: Any) -> Any:
    """Have values answered as bulk strings, as Redis does.

    fakeredis answers them as status lines, which jmcache takes for an answer to something else.
    """

    class Handler(handler_class):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            dump = self.writer.dump

            def dump_like_redis(value: Any) -> None:
                if isinstance(value, bytes) and value not in STATUSES:
                    self.wfile.write(b"$%d\r\n%s\r\n" % (len(value), value))
                    self.wfile.flush()
                else:
                    dump(value)

            self.writer.dump = dump_like_redis

    return Handler


if __name__ == "__main__":
    main()
