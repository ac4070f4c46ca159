"""What happens in a network of its own; run by namespace.py, asked for by test_rows_of_networks."""

from __future__ import annotations

import os
import socket
import time

from namespace import SWALLOWED, Network
from observation import Observation, wait_for

from jmcache import CacheSettings
from jmcache.testing import PrivateServer

OLD, NEW = "10.99.0.2", "10.99.0.3"
PORT = 7000


def server_at(network: Network, address: str) -> PrivateServer:
    """A server for clients at *address*; its admin connection is a Unix socket."""
    network.appear(address)
    return PrivateServer(args=("--port", str(PORT), "--bind", address, "--protected-mode", "no"))


def cut(server: PrivateServer) -> None:
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def swallowed_syn(observe: Observation, network: Network) -> None:
    cache = observe.cache(CacheSettings(host=SWALLOWED, port=PORT))
    with observe.fault():
        observe.nothing(cache, "timeout")
        network.appear(SWALLOWED)
        with PrivateServer(
            args=("--port", str(PORT), "--bind", SWALLOWED, "--protected-mode", "no")
        ):
            observe.back(cache)


def swallowed_packets(observe: Observation, network: Network) -> None:
    with server_at(network, OLD):
        cache = observe.cache(CacheSettings(host=OLD, port=PORT))
        with observe.traffic(cache, threads=4):
            for _ in range(2):
                assert cache.set_many({"k": 1, "kept": 1})
                with observe.fault():
                    network.vanish(OLD)
                    observe.nothing(cache, "timeout")
                    network.appear(OLD)
                observe.back(cache)
                assert cache.get("kept") == 1
                # It was deleted meanwhile, which Redis is told as soon as it is back.
                wait_for(lambda: "invalidations_owed" not in cache.health().reasons)
                assert cache.get("k") is None


def _name_server_trouble(observe: Observation, network: Network, name_server: str) -> None:
    with server_at(network, OLD) as server:
        network.names(f"{OLD} redis.test")
        cache = observe.cache(CacheSettings(host="redis.test", port=PORT))
        stranger = observe.cache(CacheSettings(host="nobody.test", port=PORT))
        assert cache.set("k", 1)
        with observe.fault():
            network.name_server(name_server)
            network.names()
            tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208
            for _ in range(5):  # the address that was good last is used
                cut(server)
                assert cache.get("k") == 1
            observe.nothing(stranger, "dns")
            # One look-up for each name at a time, however many calls want it; and health threads.
            assert len(os.listdir("/proc/self/task")) <= tasks + 4  # noqa: PTH208


def silent_name_server(observe: Observation, network: Network) -> None:
    _name_server_trouble(observe, network, SWALLOWED)


def refusing_name_server(observe: Observation, network: Network) -> None:
    _name_server_trouble(observe, network, "127.0.0.1")


def four_dead_addresses(observe: Observation, network: Network) -> None:
    network.names(*[f"10.99.0.{last} redis.test" for last in range(11, 15)])
    # The system puts an address of its own host first, so the living one would be no matter of
    # shares. As a name server gives them, the dead ones come first.
    look_up = socket.getaddrinfo
    socket.getaddrinfo = lambda *args, **options: sorted(look_up(*args, **options))
    cache = observe.cache(CacheSettings(host="redis.test", port=PORT))
    with observe.fault():
        observe.nothing(cache, "timeout")
        with server_at(network, "10.99.0.13"):
            observe.back(cache)


def failover_by_name(observe: Observation, network: Network) -> None:
    with server_at(network, OLD) as old, server_at(network, NEW) as new:
        network.names(f"{OLD} redis.test")
        cache = observe.cache(CacheSettings(host="redis.test", port=PORT))
        assert cache.set("k", 1)
        with observe.traffic(cache, threads=4):
            with observe.fault():
                old.command("REPLICAOF", NEW, PORT)
                time.sleep(0.3)  # a name server is told later
                network.names(f"{NEW} redis.test")
            observe.back(cache)
        assert new.command("INFO", "keyspace") != b"# Keyspace\r\n"
        assert any(ending.endswith("readonly") for ending in observe.outcomes)
