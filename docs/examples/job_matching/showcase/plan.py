"""How much one run of the demo does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much the demo does.

    Attributes:
        candidates: Whose rankings are asked for, cold and warm; 12 or more.
        before_s: Seconds of steady traffic before the server is killed.
        outage_s: Seconds without a server; long enough for every process to notice, 2 or more.
        after_s: Seconds of traffic after the server is back; above the 2 s it may take to notice.
        pace_s: Seconds between the questions of each of the seven askers around the outage.
    """

    candidates: int = 240
    before_s: float = 2.0
    outage_s: float = 6.0
    after_s: float = 4.0
    pace_s: float = 0.1
