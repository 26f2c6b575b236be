"""How followed jobs share an endpoint: no burst that leaves nothing for the rest of a window, holds that fit, turns."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext import pacing
from notebook_ext.limits import Limits
from notebook_ext.pacing import IS_SHORT, SHORT_APART, SHORTEST_CUT, Pace, Polls, in_background
from notebook_ext.protocol import Operation
from notebook_ext.providers import RUNPOD


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def turns(pace: Pace, clock: Clock, streams: int, seconds: float, *, trip: float = 0.001) -> list[float]:
    """When the polls go out of so many streams that ask again as soon as they are answered."""
    began, went = clock.now, []
    ready = [clock.now] * streams
    while (soonest := min(ready)) < began + seconds:
        clock.now = soonest
        start = clock.now + pace.reserve()
        went.append(start)
        ready[ready.index(soonest)] = start + trip
    return sorted(at for at in went if at < began + seconds)


@pytest.mark.parametrize("streams", [1, 8, 100])
def test_streams_use_a_rate_up_evenly(clock: Clock, streams: int) -> None:
    went = turns(Pace(2000, 10.0), clock, streams, 30.0)
    windows = [sum(at <= other < at + 10 for other in went) for at in went[::97]]
    assert max(windows) <= 1920  # the rest is for looks and first polls
    assert len(went) >= 3 * 1800 - 5
    assert max(later - at for at, later in itertools.pairwise(went)) < 0.01


def test_without_a_limit_nothing_waits(clock: Clock) -> None:
    pace = Pace(math.inf, 10.0)
    assert [pace.reserve() for _ in range(1000)] == [0.0] * 1000
    pace.rise()
    assert pace.reserve() == 0.0


def test_a_few_go_at_once_and_looks_take_no_more_than_that_away(clock: Clock) -> None:
    pace = Pace(2000, 10.0)
    assert sum(pace.reserve() == 0.0 for _ in range(90)) == 90
    thronged = Pace(2000, 10.0)
    for _ in range(10_000):
        thronged.spend()
    assert thronged.reserve() < 0.01


def test_jobs_that_nobody_looks_at_give_way(clock: Clock) -> None:
    pace = Pace(2000, 10.0)
    waits = [pace.step_back() for _ in range(1000)]
    assert waits[-1] > 8
    assert pace.reserve() < 0.01


def test_a_refusal_slows_all_polls_down_and_good_answers_let_them_rise_again(clock: Clock) -> None:
    pace = Pace(math.inf, 10.0)
    pace.fall(20)
    slow = turns(pace, clock, 3, 20.0)
    assert 18 <= len(slow) <= 22  # 10 in 10 s: half of what had been let through
    for _ in range(100):
        pace.rise()
    assert 30 <= len(turns(pace, clock, 3, 20.0)) <= 42


def test_a_documented_rate_is_reached_again_and_not_exceeded(clock: Clock) -> None:
    pace = Pace(2000, 10.0)
    pace.fall(2000)
    for _ in range(1_000_000):
        pace.rise()
    assert 1795 <= len(turns(pace, clock, 1, 10.0, trip=0.0)) - 90 <= 1812


def test_however_often_it_is_refused_something_is_asked(clock: Clock) -> None:
    pace = Pace(math.inf, 10.0)
    for _ in range(50):
        pace.fall(0)
    assert len(turns(pace, clock, 1, 60.0)) >= 12


# ---------------------------------------------------------------------------------- which kind of server


def polls() -> Polls:
    return Polls(Pace(math.inf, 10.0))


def waits(known: Polls, clock: Clock, count: int) -> list[float]:
    """How long each of so many turns waits that are asked for at once; those that do not are left out."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> None:
        for _ in range(count):
            await known.turn(is_first=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing.asyncio, "sleep", sleep)
        asyncio.run(main())
    return slept


def test_a_server_that_answers_at_once_with_nothing_is_known_by_it_to_all(clock: Clock) -> None:
    known = polls()
    assert waits(known, clock, 3) == []
    for _ in range(2):
        assert not known.is_short
        known.streamed(0.001, has_chunks=False)
    assert known.is_short
    clock.now += 1
    assert waits(known, clock, 4) == pytest.approx([SHORT_APART, 2 * SHORT_APART, 3 * SHORT_APART])


def test_one_that_holds_or_always_has_something_to_tell_is_not_taken_for_one(clock: Clock) -> None:
    known = polls()
    for _ in range(50):
        known.streamed(0.001, has_chunks=True)
        known.streamed(10.0, has_chunks=False)
        assert not known.is_short
    for _ in range(5):
        known.streamed(0.001, has_chunks=False)
    assert known.is_short
    for _ in range(IS_SHORT + 1):
        known.streamed(0.001, has_chunks=True)
    assert not known.is_short


# ---------------------------------------------------------------------------------- how long it may hold


def cut(known: Polls, clock: Clock, held: float) -> None:
    asked = clock.now
    clock.now += held
    known.broke(asked, held)


def test_what_cuts_twice_after_as_long_is_a_rule(clock: Clock) -> None:
    known = polls()
    cut(known, clock, 6.0)
    assert known.hold(10.0) == 10.0
    cut(known, clock, 6.2)
    assert known.hold(10.0) == pytest.approx(4.8)
    assert known.hold(3.0) == 3.0


def test_what_falls_together_or_at_random_or_early_is_none(clock: Clock) -> None:
    known = polls()
    asked = clock.now
    clock.now += 6.0
    for _ in range(100):  # a server goes down, and with it all that it held
        known.broke(asked, 6.0)
    for held in (2.0, 9.0, 4.0, 8.0):
        cut(known, clock, held)
    for _ in range(100):
        cut(known, clock, SHORTEST_CUT / 2)
    assert known.hold(10.0) == 10.0


def test_an_answer_that_was_held_for_longer_clears_it(clock: Clock) -> None:
    known = polls()
    cut(known, clock, 6.0)
    known.answered(9.0)
    cut(known, clock, 6.0)
    assert known.hold(10.0) == 10.0


@given(st.lists(st.floats(0.0, 300.0), max_size=60))
def test_no_hold_is_asked_to_be_shorter_than_the_shortest(cuts: list[float]) -> None:
    known, clock = polls(), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing, "time", clock)
        for held in cuts:
            cut(known, clock, held)
    assert SHORTEST_CUT <= known.hold(10.0) <= 10.0


# ---------------------------------------------------------------------------------- together with the limits


def test_what_is_refused_slows_the_streams_of_that_budget_down() -> None:
    async def main() -> None:
        limits = Limits(RUNPOD.limits)
        for _ in range(3):
            async with limits.slot(Operation.STATUS) as slot:
                slot.refuse()
        with in_background():
            for _ in range(5):
                async with asyncio.timeout(30):
                    await limits.polls.turn(is_first=True)
        assert limits.polls._pace.reserve() < limits.polls._pace.reserve()

    asyncio.run(main())
