"""One way to log for every process of the service, so that their lines can be read together."""

from __future__ import annotations

import logging

# Seconds since 1970, process, level, logger: what demo.py cuts an outage out of the logs with.
LINE = "%(created).3f %(process)d %(levelname)s %(name)s: %(message)s"


def configure_logging(level: int = logging.INFO) -> None:
    """Send every logger's lines to stderr. jmcache itself never sets up logging."""
    logging.basicConfig(level=level, format=LINE, force=True)
