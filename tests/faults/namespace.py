"""Runs a scenario of the fault matrix in a network of its own, without root.

    python namespace.py NAME        inside of the namespace: prints what was observed, as JSON

There an address vanishes with all packets to it, name servers are ours, and hosts move.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SWALLOWED = "10.99.0.9"  # in the network, and nobody is there: every packet vanishes
_OURS = ("unshare", "--user", "--map-root-user", "--net", "--mount")


def run(name: str) -> dict[str, Any]:
    """Run the scenario *name* of namespace_scenarios; return what it saw, as `Observation.include`.

    Where no namespace can be made, the test fails in CI, and is skipped elsewhere.
    """
    reason = _missing()
    if reason:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"no network namespace: {reason}", pytrace=False)
        pytest.skip(f"NOT TESTED, no network namespace: {reason}")
    root = str(HERE.parent.parent)
    done = subprocess.run(
        [*_OURS, sys.executable, str(HERE / "namespace.py"), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def _missing() -> str:
    for program in ("unshare", "ip"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"there is no program {program} (packages util-linux, iproute2)"
    tried = subprocess.run([*_OURS, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


class Network:
    """The namespace this process is in."""

    def __init__(self, folder: Path) -> None:
        self._hosts = folder / "hosts"
        self._resolv = folder / "resolv.conf"
        ip("link", "set", "lo", "up")
        ip("route", "add", "10.99.0.0/24", "dev", "lo")
        nsswitch, multi = folder / "nsswitch.conf", folder / "host.conf"
        nsswitch.write_text("hosts: files dns\n")
        multi.write_text("multi on\n")
        self.name_server(SWALLOWED)
        self.names()
        for path in (self._hosts, self._resolv, nsswitch, multi):
            target = Path("/etc", path.name)
            if target.exists():
                subprocess.run(["mount", "--bind", str(path), str(target.resolve())], check=True)

    def name_server(self, address: str) -> None:
        """Where names are asked for that `names` does not have."""
        self._resolv.write_text(f"nameserver {address}\n")

    def names(self, *lines: str) -> None:
        """What is known without a name server: "10.99.0.2 redis.test"."""
        self._hosts.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *lines)))

    def appear(self, address: str) -> None:
        """From now on there is somebody at *address*."""
        ip("addr", "add", f"{address}/32", "dev", "lo")

    def vanish(self, address: str) -> None:
        """From now on every packet to and from *address* is swallowed."""
        ip("addr", "del", f"{address}/32", "dev", "lo")


def ip(*words: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(["ip", *words], check=True, capture_output=True, env={"PATH": path})


def main() -> None:
    import namespace_scenarios
    from observation import Observation
    from stopwatch import Stopwatch

    scenario: Callable[[Observation, Network], None] = getattr(namespace_scenarios, sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, Stopwatch() as stopwatch:
        network = Network(Path(folder))
        observe = Observation(stopwatch)
        try:
            scenario(observe, network)
        finally:
            observe.close()
        observe.check()
        print(json.dumps(observe.as_dict()))


if __name__ == "__main__":
    main()
