"""Servers that are not to be trusted, or do not speak TLS: rows of the fault matrix."""

from __future__ import annotations

import pytest
from certificates import Certificates
from observation import D, Observation
from scripted_server import Client, ScriptedServer

from jmcache import CacheSettings
from jmcache.testing import PrivateServer

PASSWORD = "hemlig"  # nobody who is not trusted may get it


def never_asked(client: Client) -> None:
    """Whatever comes is too much."""
    while client.command() is not None:
        client.send(b"+OK\r\n")


UNTRUSTED = {
    "signed by a stranger": ("good", "stranger"),
    "for another host": ("other_host", "authority"),
    "expired": ("expired", "authority"),
}


@pytest.mark.fault_row(52)
@pytest.mark.parametrize(("shown", "trusted"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_server_that_is_not_trusted_gets_nothing_and_is_told_of_once(
    shown: str, trusted: str, observe: Observation, certificates: Certificates
) -> None:
    """Whoever answers in the server's place would get the password and every value."""
    authority = getattr(certificates, trusted)
    context = certificates.context(getattr(certificates, shown))
    with ScriptedServer(never_asked, tls=context) as server:
        settings = server.settings(
            tls=True, tls_ca_certs=authority, password=PASSWORD, operation_timeout=D
        )
        cache = observe.cache(settings)
        with observe.fault():
            observe.nothing(cache, "tls")
        assert server.commands == []
    assert observe.breaker == {"opens at once"}
    assert len([line for line in observe.errors() if "tls" in line]) == 1, observe.errors()
    assert not any(PASSWORD in line for line in observe.errors())


@pytest.mark.fault_row(53)
def test_a_tls_port_that_is_silent_costs_the_deadline(
    observe: Observation, silent_port: int, certificates: Certificates
) -> None:
    """A handshake without an end: 58.5 s for each read with redis-py's defaults."""
    cache = observe.cache(
        CacheSettings(port=silent_port, tls=True, tls_ca_certs=certificates.authority)
    )
    with observe.fault():
        observe.nothing(cache, "timeout")
    assert observe.breaker == {"counts"}


@pytest.mark.fault_row(53)
def test_tls_to_a_plain_port_costs_the_deadline_and_never_becomes_plain(
    observe: Observation, tcp: PrivateServer, certificates: Certificates
) -> None:
    """Falling back would send the password and every value for all to read."""
    tcp.command("CONFIG", "RESETSTAT")
    settings = CacheSettings(
        port=tcp.port, tls=True, tls_ca_certs=certificates.authority, password=PASSWORD
    )
    cache = observe.cache(settings)
    with observe.fault():
        observe.nothing(cache, "tls", "timeout", "eof", "reset")
    stats = tcp.command("INFO", "commandstats")
    assert isinstance(stats, bytes)
    for command in (b"cmdstat_get:", b"cmdstat_set:", b"cmdstat_auth:", b"cmdstat_mget:"):
        assert command not in stats
    assert PASSWORD not in str(tcp.command("ACL", "LOG"))
    assert observe.breaker <= {"counts", "opens at once"}
    assert observe.breaker
