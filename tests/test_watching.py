"""What feeds the panels: who is asked how often, and what a long time leaves behind."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    EndpointError,
    NotFoundError,
    RateLimitError,
    RequestTimeout,
    ServerError,
)
from notebook_ext.types import Counts, Health
from notebook_ext.watching import MOST_PAUSE, HealthFeed, Record, Steady, is_hopeless

BUSY = RateLimitError("slow down", retry_after=30.0)
SOON = 0.002


class Source:
    """An endpoint's counters: gives what it was told to, then the last of it again."""

    def __init__(self, *answers: Health | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Health:
        self.asked += 1
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Listener:
    """Keeps what it is told, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[Health | EndpointError] = []
        self._news = asyncio.Event()

    def __call__(self, told: Health | EndpointError) -> None:
        self.heard.append(told)
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                self._news.clear()
                await self._news.wait()


def health(**jobs: int) -> Health:
    return Health(jobs=Counts(jobs))


# ---------------------------------------------------------------------------------- the feed


def test_a_listener_hears_of_the_counters_again_and_again():
    async def run() -> None:
        source, listener = Source(health(in_queue=1), health(in_queue=2)), Listener()
        feed = HealthFeed(source)
        assert feed.is_idle
        feed.listen(listener, SOON)
        await listener.until(3)
        feed.leave(listener)
        assert listener.heard[:3] == [health(in_queue=1), health(in_queue=2), health(in_queue=2)]

    asyncio.run(run())


def test_nothing_is_asked_while_nobody_listens():
    async def run() -> None:
        source, listener = Source(health()), Listener()
        feed = HealthFeed(source)
        feed.listen(listener, SOON)
        await listener.until(2)
        feed.leave(listener)
        asked = source.asked
        assert feed.is_idle
        await asyncio.sleep(20 * SOON)
        assert source.asked == asked
        assert asyncio.all_tasks() == {asyncio.current_task()}
        feed.listen(listener, SOON)
        await listener.until(len(listener.heard) + 1)
        assert source.asked > asked
        feed.leave(listener)

    asyncio.run(run())


def test_two_listeners_share_each_question_and_the_second_hears_at_once_what_is_known():
    async def run() -> None:
        source, first, second = Source(health(in_queue=1)), Listener(), Listener()
        feed = HealthFeed(source)
        feed.listen(first, 60.0)
        await first.until(1)
        feed.listen(second, 60.0)
        assert second.heard == first.heard
        feed.hurry()
        await first.until(2)
        assert (source.asked, len(second.heard)) == (2, 2)
        feed.leave(first)
        assert not feed.is_idle
        feed.leave(second)
        feed.leave(second)
        assert feed.is_idle

    asyncio.run(run())


def test_of_two_listeners_the_more_curious_one_decides():
    async def run() -> None:
        source, first, second = Source(health()), Listener(), Listener()
        feed = HealthFeed(source)
        feed.listen(first, 60.0)
        feed.listen(second, SOON)
        await first.until(3)
        feed.leave(second)
        await first.until(len(first.heard) + 1)
        assert feed.pause == 60.0
        feed.leave(first)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (ConnectionFailed("gone"), [2.0, 4.0, 8.0]),
        (BUSY, [30.0, 30.0, 30.0]),
        (RateLimitError("slow down"), [2.0, 4.0, 8.0]),
    ],
)
def test_each_failure_makes_the_next_question_wait_longer_until_one_is_answered(error, pauses):
    async def run() -> None:
        source, listener = Source(error, error, error, health()), Listener()
        feed = HealthFeed(source)
        feed.listen(listener, 1.0)
        seen = []
        for count in range(1, 5):
            await listener.until(count)
            seen.append(feed.pause)
            feed.hurry()
        assert seen == [*pauses, 1.0]
        assert listener.heard[:3] == [error] * 3
        feed.leave(listener)

    asyncio.run(run())


def test_however_often_it_failed_it_is_asked_once_a_minute():
    async def run() -> None:
        source, listener = Source(ConnectionFailed("gone")), Listener()
        feed = HealthFeed(source)
        feed.listen(listener, 5.0)
        for count in range(1, 15):
            await listener.until(count)
            feed.hurry()
        assert feed.pause == MOST_PAUSE
        feed.leave(listener)

    asyncio.run(run())


def test_a_question_that_stays_open_is_told_of_and_its_answer_is_still_taken():
    async def run() -> None:
        source, listener = Source(health(in_queue=1)), Listener()
        source.gate.clear()
        feed = HealthFeed(source, patience=SOON)
        feed.listen(listener, 60.0)
        await listener.until(1)
        assert isinstance(listener.heard[0], RequestTimeout)
        source.gate.set()
        await listener.until(2)
        assert listener.heard[1] == health(in_queue=1)
        assert source.asked == 1
        feed.leave(listener)

    asyncio.run(run())


def test_leaving_while_a_question_is_open_leaves_nothing_behind():
    async def run() -> None:
        source, listener = Source(health()), Listener()
        source.gate.clear()
        feed = HealthFeed(source)
        feed.listen(listener, 1.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert source.asked == 1
        feed.leave(listener)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_bug_in_a_question_is_told_like_an_error():
    async def run() -> None:
        listener = Listener()
        feed = HealthFeed(Source(KeyError("odd")))
        feed.listen(listener, 60.0)
        await listener.until(1)
        assert "KeyError('odd')" in str(listener.heard[0])
        feed.leave(listener)

    asyncio.run(run())


def test_a_listener_that_raises_is_dropped_and_the_others_go_on(caplog):
    async def run() -> None:
        def bad(_: object) -> None:
            raise ValueError("a bad panel")

        listener = Listener()
        feed = HealthFeed(Source(health()))
        feed.listen(bad, SOON)
        feed.listen(listener, SOON)
        await listener.until(2)
        feed.leave(listener)
        assert feed.is_idle

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("error", "hopeless"),
    [
        (AuthenticationError("no", status_code=401), True),
        (NotFoundError("no", status_code=404), True),
        (ConfigurationError("no key"), True),
        (ServerError("oops", status_code=502), False),
        (BUSY, False),
        (ConnectionFailed("gone"), False),
    ],
)
def test_asking_again_helps_only_where_something_may_change(error, hopeless):
    assert is_hopeless(error) is hopeless


# ---------------------------------------------------------------------------------- the record


def test_a_counter_that_appears_late_or_goes_has_gaps():
    record = Record()
    record.add(health(in_queue=1))
    record.add(health(in_queue=2, odd=7))
    record.add(Health(workers=Counts(idle=1)))
    assert record.series == {
        ("jobs", "in_queue"): [1, 2, None],
        ("jobs", "odd"): [None, 7, None],
        ("workers", "idle"): [None, None, 1],
    }


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300), st.integers(2, 16))
def test_a_long_time_takes_no_more_room_and_keeps_its_peak(values, most):
    record = Record(most=most)
    for value in values:
        record.add(health(in_queue=value))
    (series,) = record.series.values()
    assert len(series) <= most
    assert max(series) == max(values)
    assert len(series) >= min(len(values), most // 2)


def test_after_thinning_each_value_stands_for_as_long_as_the_others():
    record = Record(most=4)
    for value in range(16):
        record.add(health(in_queue=value))
    assert record.series["jobs", "in_queue"] == [3, 7, 11, 15]


# ---------------------------------------------------------------------------------- the brake


def test_many_changes_are_one_call_and_calls_keep_their_distance():
    async def run() -> None:
        loop, calls, called = asyncio.get_running_loop(), [], asyncio.Event()

        def call() -> None:
            calls.append(loop.time())
            called.set()

        steady = Steady(call, 0.05)
        for _ in range(100):
            steady.soon()
        await called.wait()
        assert len(calls) == 1
        called.clear()
        for _ in range(100):
            steady.soon()
        await called.wait()
        assert len(calls) == 2
        assert calls[1] - calls[0] >= 0.049

    asyncio.run(run())


def test_what_is_called_for_sooner_counts_and_stop_calls_nothing():
    async def run() -> None:
        called = asyncio.Event()
        steady = Steady(called.set, 0.0)
        steady.soon(within=60.0)
        steady.soon()
        steady.soon(within=60.0)
        async with asyncio.timeout(1):
            await called.wait()
        called.clear()
        steady.soon()
        steady.stop()
        await asyncio.sleep(0.01)
        assert not called.is_set()

    asyncio.run(run())
