"""The manager that needs no Redis: the real pool, ending in fakeredis."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import fakeredis
import pytest

from jmcache.connection import RedisConnectionManager
from jmcache.deadline import Deadline
from jmcache.errors import RedisConnectionError
from jmcache.settings import CacheSettings
from jmcache.testing import fake_manager


def test_it_is_the_real_manager():
    """A fake with code of its own proves nothing about ours."""
    manager = fake_manager()
    assert type(manager) is RedisConnectionManager
    manager.set(b"name", b"blob", 10_000, Deadline(5))
    assert manager.get(b"name", Deadline(5)) == b"blob"
    assert manager.usage().idle == 1
    manager.close()


def test_managers_share_a_server_only_when_they_are_given_one():
    """Two tests that see each other's keys fail in turns."""
    server = fakeredis.FakeServer()
    writer, reader, stranger = (
        fake_manager(server=server),
        fake_manager(CacheSettings(max_connections=1), server=server),
        fake_manager(),
    )
    writer.set(b"name", b"blob", 10_000, Deadline(5))
    assert reader.get(b"name", Deadline(5)) == b"blob"
    assert stranger.get(b"name", Deadline(5)) is None
    assert reader.usage().limit == 1


def test_an_outage_can_be_shown_on_it():
    """Users test their own degradation with it."""
    server = fakeredis.FakeServer()
    manager = fake_manager(server=server)
    server.connected = False
    with pytest.raises(RedisConnectionError):
        manager.get(b"name", Deadline(5))
    server.connected = True
    assert manager.get(b"name", Deadline(5)) is None


def test_without_fakeredis_it_says_what_to_install(monkeypatch):
    """It comes with no extra of ours: users have their own test dependencies."""
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(ImportError, match=r"pip install 'fakeredis\[lua\]'"):
        fake_manager()


@pytest.mark.parametrize("is_there", [True, False])
def test_without_lua_it_says_what_to_install(is_there, monkeypatch, caplog):
    """Each test of a computation would end in a miss, and nobody would know why."""
    monkeypatch.setitem(sys.modules, "lupa", types.ModuleType("lupa") if is_there else None)
    if is_there:
        sys.modules["lupa"].__spec__ = importlib.machinery.ModuleSpec("lupa", None)
    fake_manager()
    said = [record.getMessage() for record in caplog.records if record.name == "jmcache.testing"]
    assert ["pip install 'fakeredis[lua]'" in line for line in said] == [True] * (not is_there)
