"""What may be in flight: rate, window, concurrency, shared budgets, and the pause that a 429 asks for."""

from __future__ import annotations

import asyncio
import time

import pytest

from notebook_ext.limits import Limits
from notebook_ext.protocol import Operation
from notebook_ext.providers import Limit


class Traffic:
    """Sends so many requests, each held for a while, and measures."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open = self.peak = 0
        self.times: list[float] = []

    async def send(self, operation: Operation, hold: float = 0.0) -> None:
        async with self.limits.slot(operation):
            self.times.append(time.monotonic())
            self.open += 1
            self.peak = max(self.peak, self.open)
            await asyncio.sleep(hold)
            self.open -= 1

    async def burst(self, count: int, *operations: Operation, hold: float = 0.0) -> float:
        started = time.monotonic()
        await asyncio.gather(*(self.send(operations[n % len(operations)], hold) for n in range(count)))
        return time.monotonic() - started


def test_no_window_holds_more_than_the_rate() -> None:
    async def scenario() -> None:
        traffic = Traffic(Limits({Operation.RUN: Limit(5, window=0.2)}))
        assert 0.55 < await traffic.burst(20, Operation.RUN) < 2
        for first, sixth in zip(traffic.times, traffic.times[5:], strict=False):
            assert sixth - first >= 0.195

    asyncio.run(scenario())


def test_concurrency_is_kept() -> None:
    async def scenario() -> None:
        traffic = Traffic(Limits({Operation.RUN: Limit(1000, concurrency=3)}))
        assert await traffic.burst(9, Operation.RUN, hold=0.05) >= 0.14
        assert traffic.peak == 3

    asyncio.run(scenario())


def test_a_budget_is_shared_and_other_operations_are_not_held_up() -> None:
    async def scenario() -> None:
        looks = Limit(4, window=0.3, budget="looks")
        traffic = Traffic(
            Limits({Operation.STATUS: looks, Operation.STREAM: looks, Operation.CANCEL: Limit(4, window=0.3)})
        )
        assert await traffic.burst(5, Operation.STATUS, Operation.STREAM) >= 0.29
        assert await traffic.burst(4, Operation.CANCEL) < 0.2
        assert await traffic.burst(100, Operation.HEALTH) < 0.2  # no limit is documented

    asyncio.run(scenario())


def test_a_request_counts_until_a_window_after_its_answer() -> None:
    async def scenario() -> None:
        traffic = Traffic(Limits({Operation.RUN: Limit(1, window=0.2)}))
        await traffic.send(Operation.RUN, hold=0.2)
        answered = time.monotonic()
        await traffic.send(Operation.RUN)
        assert traffic.times[1] - answered >= 0.19

    asyncio.run(scenario())


def test_an_answer_that_was_held_long_counts_from_shortly_after_its_question() -> None:
    async def scenario() -> None:
        traffic = Traffic(Limits({Operation.STREAM: Limit(1, window=0.2)}))
        await traffic.send(Operation.STREAM, hold=1.25)
        assert await traffic.burst(1, Operation.STREAM) < 0.1

    asyncio.run(scenario())


def test_what_fails_or_is_cancelled_gives_its_slot_back() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(1000, concurrency=1)})
        with pytest.raises(ZeroDivisionError):
            async with limits.slot(Operation.RUN):
                raise ZeroDivisionError
        traffic = Traffic(limits)
        held = asyncio.create_task(traffic.send(Operation.RUN, hold=60))
        waiting = asyncio.create_task(traffic.send(Operation.RUN, hold=60))
        await asyncio.sleep(0.01)
        waiting.cancel()
        held.cancel()
        await asyncio.gather(held, waiting, return_exceptions=True)
        assert await traffic.burst(1, Operation.RUN) < 0.1

    asyncio.run(scenario())


def test_a_pause_stops_its_kind_and_a_shorter_one_does_not_shorten_it() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(100), Operation.CANCEL: Limit(100)})
        limits.pause(Operation.RUN, 0.2)
        limits.pause(Operation.RUN, 0.01)
        limits.pause(Operation.HEALTH, 60)  # nothing is known of it
        traffic = Traffic(limits)
        assert await traffic.burst(2, Operation.CANCEL, Operation.HEALTH) < 0.1
        assert await traffic.burst(1, Operation.RUN) >= 0.19

    asyncio.run(scenario())
