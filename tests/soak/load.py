"""What a caller does: real look-ups as a cache-aside reader makes them, and keys of its own.

The script says what to ask next and judges the answer. Who carries it out is a thread or a task.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from soak.judge import OwnKey, Tally, compose
from soak.trace import MARKER, Request

THINK_S = 0.002  # before a call; callers without any starve each other for the interpreter
COMPUTE_S = 0.01  # what a miss costs besides: not much, for a service that caches
CHECKS = 50  # round trips that have to be right when it is all over

_OWN_KEYS = 20
_OWN_TTL_S = 600.0
_BUNDLE = 5  # keys of a get_many
_LARGEST_OWN = 2_000  # bytes


class Call(NamedTuple):
    """What to ask of the cache next.

    Attributes:
        verb: Name of the contender's method.
        args: Its arguments.
        think_s: Seconds that the caller is busy with something else before.
    """

    verb: str
    args: tuple[Any, ...]
    think_s: float = THINK_S


Script = Generator[Call, Any, None]

# What stands in for an answer when an exception came instead.
NOTHING: dict[str, Any] = {"get": None, "get_many": {}, "set": False, "delete": False}


def callers_script(
    caller: str, look_ups: Iterator[Request], tally: Tally, rand: random.Random
) -> Script:
    """Return what *caller* does, without end. *look_ups* may be shared with others."""
    own = [OwnKey(f"own-{caller}-{number}-{MARKER}") for number in range(_OWN_KEYS)]
    version = 0
    while True:
        version += 1
        draw = rand.random()
        if draw < 0.60:
            yield from _look_up(next(look_ups), version, tally)
        elif draw < 0.65:
            bundle = [next(look_ups).key for _ in range(_BUNDLE)]
            found = yield Call("get_many", (bundle,))
            for key in bundle:
                tally.read(key, found.get(key))
        elif draw < 0.80:
            yield from _write_own(rand.choice(own), version, tally, rand)
        elif draw < 0.97:
            mine = rand.choice(own)
            tally.read(mine.key, (yield Call("get", (mine.key,))), mine)
        else:
            mine = rand.choice(own)
            gone = yield Call("delete", (mine.key,))
            mine.deleted(gone)
            tally.wrote(gone)


def _look_up(request: Request, version: int, tally: Tally) -> Script:
    found = yield Call("get", (request.key,))
    if not tally.read(request.key, found):
        value = compose(request.key, version, request.value_bytes)
        tally.wrote((yield Call("set", (request.key, value, request.ttl_s), COMPUTE_S)))


def _write_own(own: OwnKey, version: int, tally: Tally, rand: random.Random) -> Script:
    value = compose(own.key, version, rand.randrange(_LARGEST_OWN))
    stored = yield Call("set", (own.key, value, _OWN_TTL_S))
    own.wrote(version, stored)
    tally.wrote(stored)


def checking_script(caller: str, right: list[str]) -> Script:
    """Return CHECKS round trips, each to end with what was written; *right* gets those that did."""
    for version in range(1, CHECKS + 1):
        key = f"check-{caller}-{version}-{MARKER}"
        stored = yield Call("set", (key, compose(key, version, 1000), _OWN_TTL_S), 0.0)
        found = yield Call("get", (key,), 0.0)
        if stored and found == compose(key, version, 1000):
            right.append(key)


def drive(script: Script, cache: Any, tally: Tally, going: Callable[[], bool]) -> None:
    """Carry out *script* on this thread while it is *going*, or to its end."""
    try:
        verb, args, think_s = next(script)
        while going():
            time.sleep(think_s)
            started = tally.begin()
            try:
                answer = getattr(cache, verb)(*args)
            except Exception as error:  # noqa: BLE001 - counted: none may reach a caller
                tally.raised(error)
                answer = NOTHING[verb]
            tally.end(verb, started)
            verb, args, think_s = script.send(answer)
    except StopIteration:
        pass
    finally:
        tally.close()


async def drive_async(script: Script, cache: Any, tally: Tally, going: Callable[[], bool]) -> None:
    """Carry out *script* in this task while it is *going*, or to its end."""
    try:
        verb, args, think_s = next(script)
        while going():
            await asyncio.sleep(think_s)
            started = tally.begin()
            try:
                answer = await getattr(cache, verb)(*args)
            except Exception as error:  # noqa: BLE001 - counted: none may reach a caller
                tally.raised(error)
                answer = NOTHING[verb]
            tally.end(verb, started)
            verb, args, think_s = script.send(answer)
    except StopIteration:
        pass
    finally:
        tally.close()
