"""Networks that swallow packets, names and addresses that move: rows of the fault matrix.

Each in a network namespace of its own, see namespace.py.
"""

from __future__ import annotations

import namespace
import pytest
from observation import Observation


@pytest.mark.fault_row(2)
def test_connection_requests_that_are_swallowed_cost_the_deadline(observe: Observation) -> None:
    """A firewall that drops: 59.7 s for each read with redis-py's defaults."""
    observe.include(namespace.run("swallowed_syn"))
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(3)
def test_packets_that_are_swallowed_on_open_connections_cost_the_deadline(
    observe: Observation,
) -> None:
    """A network that parts: ten minutes for one read with redis-py's defaults."""
    observe.include(namespace.run("swallowed_packets"))
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(43)
@pytest.mark.parametrize("scenario", ["silent_name_server", "refusing_name_server"])
def test_without_a_name_server_the_last_good_address_serves_on(
    scenario: str, observe: Observation
) -> None:
    """A look-up takes 10 to 28 s whatever the timeouts, and Redis is well all the time."""
    observe.include(namespace.run(scenario))


@pytest.mark.fault_row(44)
def test_a_name_with_four_dead_addresses_costs_the_deadline_once(observe: Observation) -> None:
    """Each address would get a timeout of its own."""
    observe.include(namespace.run("four_dead_addresses"))
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(45)
def test_writes_follow_a_name_that_moved_to_the_new_master(observe: Observation) -> None:
    """Idle connections to the old master, a replica now, answer READONLY for ever."""
    observe.include(namespace.run("failover_by_name"))
