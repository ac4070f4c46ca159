"""fakeredis as a TCP server: what the demo falls back to without any real server.

Run as `python -m showcase.fake_server PORT`; ends when it is killed.
"""

from __future__ import annotations

import sys

from fakeredis import TcpFakeServer


def main() -> None:
    """Serve on the loopback until killed."""
    TcpFakeServer(("127.0.0.1", int(sys.argv[1])), server_type="redis").serve_forever()


if __name__ == "__main__":
    main()
