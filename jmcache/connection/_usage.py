"""How many connections there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Connections of this process to one Redis; to a cluster, those to all its nodes."""

    in_use: int
    idle: int
    limit: int
