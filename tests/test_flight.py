"""One load of a key at a time in this process: who flies, who waits, and for how long."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from computing_kit import SOON_S

from jmcache.aio import _driver
from jmcache.deadline import Deadline
from jmcache.flight import Crew, Flight, Flights

CREW = Crew()  # of leaders that nothing happens to


@pytest.fixture
def flights() -> Flights:
    return Flights()


def test_the_first_to_board_leads_and_the_others_are_on_its_flight(flights: Flights) -> None:
    """Two leaders are two loads."""
    mine, theirs = Flight(CREW), Flight(CREW)
    assert flights.board(b"k", mine) is mine
    assert flights.board(b"k", theirs) is mine
    assert flights.board(b"other", theirs) is theirs
    flights.leave(b"k", mine)
    assert flights.board(b"k", theirs) is theirs


def test_of_many_threads_exactly_one_leads(flights: Flights) -> None:
    """The race that single-flight is there for."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            for turn in range(200):
                start = threading.Barrier(8)

                def board(name: bytes = b"%d" % turn, start: threading.Barrier = start) -> bool:
                    mine = Flight(CREW)
                    start.wait(SOON_S)
                    return flights.board(name, mine) is mine

                leads = [threads.submit(board) for _ in range(8)]
                assert sum(lead.result(SOON_S) for lead in leads) == 1
    finally:
        sys.setswitchinterval(before)


def test_a_result_reaches_whoever_waits() -> None:
    """A waiter that is not woken waits until its deadline."""
    flight = Flight(CREW)
    with ThreadPoolExecutor(4) as threads:
        waits = [threads.submit(flight.wait, Deadline(SOON_S)) for _ in range(4)]
        flight.land(None)
        assert [wait.result(SOON_S) for wait in waits] == [True] * 4
    assert (flight.result, flight.error) == ((None,), None), "a None is a result"


def test_only_the_first_end_counts() -> None:
    """A result that turns into another one, or into an error, was handed out already."""
    flight = Flight(CREW)
    flight.land(1)
    flight.land(2)
    flight.crash(ValueError())
    flight.end()
    assert (flight.result, flight.error, flight.ended) == ((1,), None, True)
    crashed = Flight(CREW)
    error = ValueError()
    crashed.crash(error)
    crashed.land(1)
    assert (crashed.result, crashed.error) == (None, error)


def test_a_leader_that_gives_up_tells_so(flights: Flights) -> None:
    """Whoever waits has to see for itself, at once."""
    flight = Flight(CREW)
    flights.board(b"k", flight)
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(flight.wait, Deadline(SOON_S))
        flights.leave(b"k", flight)
        assert wait.result(SOON_S) is True
    assert (flight.result, flight.error) == (None, None)
    assert len(flights) == 0


def test_a_wait_ends_with_its_deadline() -> None:
    """A loader that hangs must not hang everybody."""
    began = time.monotonic()
    assert Flight(CREW).wait(Deadline(0.05)) is False
    assert time.monotonic() - began >= 0.05
    assert Flight(CREW).wait(Deadline.over()) is False


def test_who_comes_after_the_end_does_not_wait() -> None:
    """Between a look at *ended* and the bell, the flight may have landed."""
    flight = Flight(CREW)
    flight.land(1)
    assert flight.wait(Deadline.over()) is True
    rung = []
    flight.when_ended(lambda: rung.append(1))
    assert rung == [1]


def test_leaving_takes_off_no_flight_but_ones_own(flights: Flights) -> None:
    """A leader that was overtaken would let a third one begin beside the second."""
    old, new = Flight(CREW), Flight(CREW)
    flights.board(b"k", old)
    flights.replace(b"k", new)
    flights.leave(b"k", old)
    assert old.ended
    assert flights.board(b"k", Flight(CREW)) is new
    flights.leave(b"k", new)
    flights.leave(b"k", new)
    assert len(flights) == 0


def test_a_voided_flight_goes_on_for_who_is_on_it_and_takes_nobody_else(flights: Flights) -> None:
    """Whoever comes after a delete must not get what was loaded before it."""
    old, new = Flight(CREW), Flight(CREW)
    flights.board(b"k", old)
    flights.void(b"k")
    flights.void(b"nobody")
    assert flights.board(b"k", new) is new
    assert not old.ended
    flights.void_all(b"other:")
    assert len(flights) == 1
    flights.void_all(b"k")
    assert len(flights) == 0


def test_a_forked_child_waits_for_no_flight_of_its_parent(flights: Flights) -> None:
    """The thread that leads it is not there: it would wait for ever."""
    flights.board(b"k", Flight(CREW))
    pid = os.fork()
    if pid == 0:
        mine = Flight(CREW)
        os._exit(0 if flights.board(b"k", mine) is mine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(flights) == 1


def test_a_flight_whose_leader_was_torn_away_has_ended(flights: Flights) -> None:
    """A signal handler's exception may come before any clean-up: who waits would wait on."""
    crew = Crew()
    crew["k"] = Flight(crew)
    flights.board(b"k", crew["k"])
    joined = flights.board(b"k", Flight(CREW))
    assert joined is crew["k"]
    assert len(flights) == 1
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(joined.wait, Deadline(SOON_S))
        del crew
        assert wait.result(SOON_S) is True
    assert (joined.result, joined.error) == (None, None)
    assert len(flights) == 0
    mine = Flight(CREW)
    assert flights.board(b"k", mine) is mine


def test_a_flight_that_was_handed_on_lasts_with_its_new_crew() -> None:
    """A load that outlives its caller is led on another thread."""
    crew = Crew()
    crew["k"] = flight = Flight(crew)
    others = Crew().lead(crew)
    del crew
    assert not flight.ended
    del others
    assert flight.ended


def test_a_coroutine_waits_for_no_leader_that_was_torn_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody rings: it would wait as long as it may."""
    monkeypatch.setattr(_driver, "_LOOK_AGAIN_S", 0.01)

    async def use() -> bool:
        crew = Crew()
        flight = Flight(crew)
        waiting = asyncio.ensure_future(_driver._join(flight, SOON_S))
        await asyncio.sleep(0)
        del crew
        return await asyncio.wait_for(waiting, SOON_S / 2)

    assert asyncio.run(use()) is True


def test_an_error_is_the_same_to_all_who_waited(flights: Flights) -> None:
    """A hundred waiters: the last one's traceback had a thousand lines of the others' ways."""
    flight = flights.board(b"k", Flight(CREW))
    flight.check()
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        flight.crash(error)
    for _ in range(10):
        with pytest.raises(ZeroDivisionError) as caught:
            flight.check()
        assert [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)] == [
            "test_an_error_is_the_same_to_all_who_waited",
            "check",
            "test_an_error_is_the_same_to_all_who_waited",
        ]
