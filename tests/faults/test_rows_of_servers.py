"""Servers that are gone, hang, refuse or come back: the rows of the fault matrix about them."""

from __future__ import annotations

import pytest
from observation import Observation

from jmcache import CacheSettings
from jmcache.testing import PrivateServer


@pytest.mark.fault_row(4)
def test_a_server_that_never_answers_costs_the_deadline(
    observe: Observation, silent_port: int
) -> None:
    """A hung server would take every request with it: 58.7 s each with redis-py's defaults."""
    cache = observe.cache(CacheSettings(port=silent_port))
    with observe.fault():
        observe.nothing(cache, "timeout")
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(8)
def test_a_stopped_server_costs_the_deadline_and_mixes_nothing_up(
    observe: Observation, server: PrivateServer
) -> None:
    """SIGSTOP is what a hung machine looks like; its late answers are to nobody's questions."""
    cache = observe.cache(CacheSettings.from_url(server.url))
    cache.set("k", "right")
    with observe.fault():
        server.pause()
        observe.nothing(cache, "timeout")
        server.resume()
    observe.back(cache)
