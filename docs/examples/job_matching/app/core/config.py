"""Where the service finds what it needs, read from the environment once, at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The service's own settings; jmcache reads the `redis_*` attributes as they are.

    Attributes:
        redis_url: Wins over the other four when given; `memory://` needs no Redis at all.
        redis_port: Text as it stands in the environment; jmcache checks it.
        matches_ttl_s: Seconds a ranking stays good. Postings change a few times a day.
        journal_path: File that gets a line for each ranking asked for; empty for none.
    """

    redis_url: str | None = None
    redis_host: str = "127.0.0.1"
    redis_port: str = "6379"
    redis_db: str = "0"
    redis_password: str | None = field(default=None, repr=False)
    matches_ttl_s: float = 300.0
    journal_path: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read `REDIS_URL` or `REDIS_HOST`, `_PORT`, `_DB`, `_PASSWORD`, and `JOB_MATCHING_*`."""
        return cls(
            redis_url=environ.get("REDIS_URL") or None,
            redis_host=environ.get("REDIS_HOST", "127.0.0.1"),
            redis_port=environ.get("REDIS_PORT", "6379"),
            redis_db=environ.get("REDIS_DB", "0"),
            redis_password=environ.get("REDIS_PASSWORD") or None,
            matches_ttl_s=float(environ.get("JOB_MATCHING_TTL_S", "300")),
            journal_path=environ.get("JOB_MATCHING_JOURNAL", ""),
        )


settings = Settings.from_env()
