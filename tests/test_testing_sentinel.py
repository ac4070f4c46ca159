"""Sentinels for tests: they have to do what real ones do, and to be gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jmcache.testing import PrivateSentinel


@pytest.fixture(scope="module")
def watched() -> Iterator[PrivateSentinel]:
    with PrivateSentinel() as running:
        yield running


def test_it_is_one_master_with_a_replica_that_three_sentinels_agree_on(
    watched: PrivateSentinel,
) -> None:
    """A test of a failover that begins before they know each other waits for ever."""
    watched.master().command("SET", "k", "v")
    (replica,) = watched.replicas()
    assert watched.master().command("WAIT", 1, 5000) == 1
    assert replica.command("GET", "k") == b"v"
    for sentinel in watched.sentinels:
        assert str(sentinel.command("SENTINEL", "CKQUORUM", "mymaster")).startswith("OK 3 usable")


def test_silence_counts_only_when_a_sentinel_has_had_time_to_connect(
    watched: PrivateSentinel,
) -> None:
    """A new master would be deposed by a sentinel that knocked at the dead one a moment before."""
    for sentinel in watched.sentinels:
        reply = sentinel.command("SENTINEL", "MASTER", "mymaster")
        assert isinstance(reply, list)
        down_after_ms = int(reply[reply.index(b"down-after-milliseconds") + 1])  # type: ignore[arg-type]
        assert down_after_ms >= 1000 + 300  # it connects once a second, and looks ten times


def test_no_sentinel_undoes_a_failover_that_another_has_not_told_it_of_yet(
    watched: PrivateSentinel,
) -> None:
    """It takes the new master for a replica that went astray, and has it follow the old one."""
    if int(watched.sentinels[0].binary.version.partition(".")[0]) >= 7:  # else it is 2000
        reply = watched.sentinels[0].command("SENTINEL", "DEBUG")
        assert isinstance(reply, list)
        publish_ms = int(reply[reply.index(b"PUBLISH-PERIOD") + 1])  # type: ignore[arg-type]
        assert 4 * publish_ms >= 1000 + 500  # the leader looks once a second, and then tells


def test_a_killed_master_is_replaced_and_comes_back_as_a_replica(watched: PrivateSentinel) -> None:
    """What a test of a failover begins with, and what the next test needs."""
    before = watched.master()
    before.kill()
    after = watched.wait_for_failover(before)
    assert after is not before
    watched.start()
    assert watched.master() is after
    assert watched.replicas() == [before]


def test_a_failover_in_good_order_swaps_the_two(watched: PrivateSentinel) -> None:
    """Maintenance is done so, many times a year."""
    before = watched.master()
    after = watched.fail_over()
    watched.wait_until_well()
    assert watched.master() is after
    assert watched.replicas() == [before]


def test_a_failover_that_is_given_up_is_asked_for_again(watched: PrivateSentinel) -> None:
    """On a busy machine a replica takes its time; whoever asked would wait for ever."""

    def goes_on() -> bool:
        reply = watched.sentinels[0].command("SENTINEL", "MASTER", "mymaster")
        assert isinstance(reply, list)
        return b"failover_in_progress" in reply[reply.index(b"flags") + 1]  # type: ignore[operator]

    (replica,) = watched.replicas()
    replica.pause()
    try:
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(watched.fail_over)
            try:
                watched._wait(goes_on, "a failover")
                watched._wait(lambda: not goes_on(), "the end of that")
            finally:
                replica.resume()
            assert asked.result() is replica
    finally:
        watched.wait_until_well()


def test_it_ends_with_all_its_servers() -> None:
    """Five processes for each test run would stay behind."""
    with PrivateSentinel(sentinels=1, replicas=0) as made:
        servers = [*made.servers, *made.sentinels]
        assert all(server.runs for server in servers)
    assert not any(server.runs for server in servers)
    made.close()
