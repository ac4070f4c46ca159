"""The cluster of our own: whole when it says so, broken as told, gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from observation import wait_for

from jmcache.testing import PrivateCluster, ReplyError
from jmcache.testing.resp import Link


@pytest.fixture(scope="module")
def _small() -> Iterator[PrivateCluster]:
    """Three masters alone, with a password: up in half the time."""
    with PrivateCluster(replicas=0, password="s3cret & more") as cluster:
        yield cluster


@pytest.fixture
def small(_small: PrivateCluster) -> PrivateCluster:
    _small.start()
    return _small


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_serves_every_slot_when_start_returns(small: PrivateCluster) -> None:
    """Tests would begin with errors that are not theirs."""
    owners = small.owners()
    assert sorted(owners) == list(range(16384))
    for number in range(50):
        name = f"name {number}"
        node = owners[small.slot_of(name)]
        assert node.command("CLUSTER", "KEYSLOT", name) == small.slot_of(name)
        assert node.command("SET", name, number) == "OK"
        other = next(other for other in small.nodes if other is not node)
        with pytest.raises(ReplyError, match="MOVED"):
            other.command("GET", name)
    assert small.master_of("name 1") is owners[small.slot_of("name 1")]
    for name in ("a{b}c", "a{}b", "{b", "}{b}", "{b}{c}", "{{b}}"):
        assert owners[0].command("CLUSTER", "KEYSLOT", name) == small.slot_of(name)


def test_slots_move_with_their_keys(small: PrivateCluster) -> None:
    """A test of migrations would test an empty cluster."""
    first, second, _ = small.masters()
    owners = small.owners()
    names = [name for name in map(str, range(300)) if owners[small.slot_of(name)] is first]
    for name in names:
        first.command("SET", name, "kept")
    slots = small.slots_of(first)
    small.migrate(slots[:200], second)
    assert set(small.slots_of(first)) == set(slots[200:])
    owners = small.owners()
    for name in names:
        assert owners[small.slot_of(name)].command("GET", name) == b"kept"
    small.migrate(slots[:200], first)
    assert small.slots_of(first) == slots


def test_a_migration_can_stand_half_way(small: PrivateCluster) -> None:
    """What ASK does could not be tried."""
    slot = small.slot_of("half way")
    source = small.master_of(slot)
    target = next(master for master in small.masters() if master is not source)
    small.begin_migration(slot, target)
    with pytest.raises(ReplyError, match=rf"ASK {slot} 127.0.0.1:{target.port}"):
        source.command("GET", "half way")
    small.end_migration(slot, target)
    assert small.master_of(slot) is target
    assert target.command("GET", "half way") is None


def test_a_replica_takes_over_in_good_order(redis_cluster: PrivateCluster) -> None:
    """A planned failover loses nothing; an unplanned one takes three seconds to make."""
    master = redis_cluster.masters()[0]
    slots = redis_cluster.slots_of(master)
    replica = redis_cluster.replica_of(master)
    assert redis_cluster.fail_over(master) is replica
    assert redis_cluster.slots_of(replica) == slots
    redis_cluster.wait_until_well()
    assert redis_cluster.replica_of(replica) is master


def test_start_brings_back_what_was_broken(redis_cluster: PrivateCluster) -> None:
    """Each test would need a cluster of its own, three seconds each."""
    paused, killed = redis_cluster.masters()[0], redis_cluster.masters()[1]
    killed = redis_cluster.replica_of(killed)
    paused.pause()
    killed.kill()
    redis_cluster.start()
    assert len(redis_cluster.masters()) == 3
    assert killed.command("PING") == "PONG"
    assert paused.command("PING") == "PONG"


def test_the_url_names_every_node_and_the_password_is_asked_for(small: PrivateCluster) -> None:
    """A test against it would be one against an open door."""
    scheme, _, places = small.url.partition("://:s3cret%20%26%20more@")
    assert scheme == "redis+cluster"
    assert places == ",".join(f"127.0.0.1:{node.port}" for node in small.nodes)
    link = Link(("127.0.0.1", small.nodes[0].port), 5.0)
    with pytest.raises(ReplyError, match="NOAUTH"):
        link.ask("GET", "k")
    link.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_killed_run_leaves_no_node_behind() -> None:
    """Six servers for each test run that somebody gave up."""
    program = textwrap.dedent(
        """
        import time
        from jmcache.testing import PrivateCluster
        cluster = PrivateCluster(masters=1, replicas=0)
        cluster.start()
        print(*[node.pid for node in cluster.nodes], flush=True)
        time.sleep(60)
        """
    )
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert run.stdout is not None
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert pids
    assert all(map(is_running, pids))
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=10)
    run.stdout.close()
    wait_for(lambda: not any(map(is_running, pids)))


def test_what_cannot_become_a_cluster_says_so_and_ends_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A test run would wait for ever, or leave six servers."""
    monkeypatch.setattr("jmcache.testing.cluster._READY_WITHIN_S", 0.2)
    cluster = PrivateCluster(masters=2, replicas=0)
    monkeypatch.setattr(cluster, "_is_well", lambda: False)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="did not come to"):
        cluster.start()
    assert time.monotonic() - began < 20
    for node in cluster.nodes:
        with pytest.raises(RuntimeError):
            _ = node.pid
