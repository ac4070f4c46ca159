"""A service as it might be yours: matches of a candidate, computed once and kept in Redis."""

from __future__ import annotations

from jmcache import RedisCache


def rank(candidate: str) -> list[dict[str, object]]:
    """Stands for work that takes a second."""
    return [{"job": f"{candidate}-{number}", "score": 1.0 / number} for number in range(1, 6)]


def matches_for(candidate: str, *, cache: RedisCache) -> list[dict[str, object]]:
    key = cache.generate_key("matches", candidate)
    found = cache.lookup(key)
    if found.is_hit:
        return found.value
    ranked = rank(candidate)
    cache.set(key, ranked)
    return ranked
