"""make bench: start a server, and measure where all contenders are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from soak.peers import installed

from jmcache.testing import PrivateServer

_ROOT = Path(__file__).parents[3]


def main() -> int:
    """Pass the command line on; return the exit code of the process that measured."""
    path = os.pathsep.join([str(_ROOT / "tests"), str(_ROOT)])
    # Here, because only this interpreter may have a server among its packages.
    with PrivateServer(tcp=True) as server:
        where = [f"--port={server.port}", f"--server={server.binary.kind} {server.binary.version}"]
        measuring = [str(installed()), "-m", "benchmarks.bench.run", *where, *sys.argv[1:]]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(measuring, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
