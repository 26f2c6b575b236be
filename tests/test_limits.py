"""What may be in flight: rate, window, concurrency, shared budgets, what a refusal teaches, and who goes first.

A window of an hour is one that does not pass while a test runs; in a window of no length, the rate is
how many may be open at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from notebook_ext import limits as limits_module
from notebook_ext import transport
from notebook_ext.limits import Limits
from notebook_ext.pacing import in_background
from notebook_ext.protocol import Operation
from notebook_ext.providers import Limit

HOUR = 3600.0
LOOKS = Limit(4, window=HOUR, budget="looks")


class Crowd:
    """Requests that stay open until they are told to end.

    Attributes:
        passed: The names of those that were let through, in order.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.passed: list[str] = []
        self._open: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def send(
        self, operation: Operation, count: int = 1, name: str = "", *, refused: bool = False
    ) -> int:
        """Begin so many, and return how many of them were let through at once."""
        before = len(self.passed)
        self._tasks += [
            asyncio.create_task(self._hold(operation, name, refused=refused)) for _ in range(count)
        ]
        await settled()
        return len(self.passed) - before

    async def end(self, count: int | None = None) -> None:
        """End those that were let through first, or all that are open now."""
        ending, self._open = self._open[:count], self._open[len(self._open[:count]) :]
        for end in ending:
            end.set()
        await settled()

    async def answer(self, operation: Operation, count: int, *, refused: bool = False) -> None:
        """Send so many, one after another, and end each."""
        for _ in range(count):
            assert await self.send(operation, refused=refused) == 1
            await self.end()

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._open.clear()

    async def _hold(self, operation: Operation, name: str, *, refused: bool) -> None:
        async with self.limits.slot(operation) as slot:
            self.passed.append(name)
            self._open.append(end := asyncio.Event())
            await end.wait()
            if refused:
                slot.refuse()


async def settled() -> None:
    """Whoever may go on without time passing has done so."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def crowd_at(documented: dict[Operation, Limit] | None = None):
    crowd = Crowd(Limits(documented or {}))
    try:
        async with asyncio.timeout(20):
            yield crowd
    finally:
        await crowd.leave()


# ---------------------------------------------------------------------------------- the documented limits


def test_no_window_holds_more_than_the_rate() -> None:
    async def scenario() -> None:
        limits, times = Limits({Operation.RUN: Limit(5, window=0.2)}), []

        async def send() -> None:
            async with limits.slot(Operation.RUN):
                times.append(time.monotonic())

        async with asyncio.timeout(20):
            await asyncio.gather(*(send() for _ in range(20)))
        for first, sixth in zip(times, times[5:], strict=False):
            assert sixth - first >= 0.195

    asyncio.run(scenario())


def test_concurrency_is_kept() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(1000, concurrency=3)}) as crowd:
            assert await crowd.send(Operation.RUN, 9) == 3
            await crowd.end(2)
            assert len(crowd.passed) == 5

    asyncio.run(scenario())


def test_a_budget_is_shared_and_other_operations_are_not_held_up() -> None:
    async def scenario() -> None:
        documented = {
            Operation.STATUS: LOOKS,
            Operation.STREAM: LOOKS,
            Operation.CANCEL: Limit(4, window=HOUR),
        }
        async with crowd_at(documented) as crowd:
            assert await crowd.send(Operation.STATUS, 3) == 3
            assert await crowd.send(Operation.STREAM, 3) == 1
            assert await crowd.send(Operation.CANCEL, 9) == 4
            assert await crowd.send(Operation.HEALTH, 100) == 100  # no limit is documented

    asyncio.run(scenario())


def test_a_request_counts_until_a_window_after_its_answer() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(1, window=0.2)})
        async with limits.slot(Operation.RUN):
            await asyncio.sleep(0.2)
        answered = time.monotonic()
        async with limits.slot(Operation.RUN) as slot:
            assert slot.sent - answered >= 0.19

    asyncio.run(scenario())


def test_a_long_poll_counts_from_shortly_after_its_question(monkeypatch) -> None:
    monkeypatch.setattr(limits_module, "POLL_ARRIVES", -HOUR)  # so its window has passed at its end

    async def scenario() -> None:
        one = Limit(1, window=HOUR)
        async with crowd_at({Operation.STREAM: one, Operation.STATUS: one}) as crowd:
            await crowd.answer(Operation.STREAM, 3)
            await crowd.answer(Operation.STATUS, 1)
            assert await crowd.send(Operation.STATUS) == 0

    asyncio.run(scenario())


def test_what_fails_or_is_cancelled_gives_its_place_back() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(1000, concurrency=1)}) as crowd:
            with pytest.raises(ZeroDivisionError):
                async with crowd.limits.slot(Operation.RUN):
                    raise ZeroDivisionError
            assert await crowd.send(Operation.RUN, 3) == 1
            await crowd.leave()
            assert await crowd.send(Operation.RUN) == 1

    asyncio.run(scenario())


def test_who_is_cancelled_when_let_through_lets_the_next_one_through() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(1000, concurrency=1)})
        begun = []

        async def send(name: str) -> None:
            async with limits.slot(Operation.RUN):
                begun.append(name)

        async with asyncio.timeout(20), limits.slot(Operation.RUN):
            first, second = asyncio.create_task(send("first")), asyncio.create_task(send("second"))
            await settled()
        first.cancel()  # its place is its own by now, and it has not run since
        await asyncio.gather(first, second, return_exceptions=True)
        assert begun == ["second"]

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- what refusals teach


def test_a_refusal_halves_the_rate_once_for_all_that_were_on_their_way() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(8, window=0)}) as crowd:
            assert await crowd.send(Operation.RUN, 8, refused=True) == 8
            await crowd.end()
            assert await crowd.send(Operation.RUN, 8) == 4

    asyncio.run(scenario())


def test_good_answers_raise_it_again_to_the_documented_rate_and_no_further() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(20, window=0)}) as crowd:
            await crowd.answer(Operation.RUN, 1, refused=True)
            await crowd.answer(Operation.RUN, 11)  # a tenth of 20 with each 10 of them, about
            assert await crowd.send(Operation.RUN, 30) == 12
            await crowd.leave()
            await crowd.answer(Operation.RUN, 500)
            assert await crowd.send(Operation.RUN, 30) == 20

    asyncio.run(scenario())


def test_what_neither_was_refused_nor_answered_teaches_nothing() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(20, window=0)}) as crowd:
            await crowd.answer(Operation.RUN, 1, refused=True)
            for _ in range(50):
                with pytest.raises(ZeroDivisionError):
                    async with crowd.limits.slot(Operation.RUN):
                        raise ZeroDivisionError
            assert await crowd.send(Operation.RUN, 30) == 10

    asyncio.run(scenario())


def test_a_tenth_of_the_documented_rate_is_left() -> None:
    async def scenario() -> None:
        async with crowd_at({Operation.RUN: Limit(40, window=0)}) as crowd:
            await crowd.answer(Operation.RUN, 20, refused=True)
            assert await crowd.send(Operation.RUN, 40) == 4

    asyncio.run(scenario())


def test_an_undocumented_rate_is_learned_from_what_was_let_through() -> None:
    async def scenario() -> None:
        async with crowd_at() as crowd:
            assert await crowd.send(Operation.HEALTH, 100) == 100
            assert await crowd.send(Operation.HEALTH, refused=True) == 1
            await crowd.end()
            assert (
                await crowd.send(Operation.HEALTH) == 0
            )  # 101 are in this window, and half of it is allowed
            assert await crowd.send(Operation.REQUESTS) == 1

    asyncio.run(scenario())


def test_a_single_refusal_does_not_hold_a_person_up() -> None:
    async def scenario() -> None:
        async with crowd_at() as crowd:
            await crowd.answer(Operation.HEALTH, 1, refused=True)
            assert await crowd.send(Operation.HEALTH, 50) == 29

    asyncio.run(scenario())


def test_a_refusal_that_says_when_to_come_back_uses_nothing_up() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(4, window=HOUR)})
        async with asyncio.timeout(20):
            for _ in range(50):
                await refuse(limits, Operation.RUN, 0.001)

    asyncio.run(scenario())


async def refuse(limits: Limits, operation: Operation, retry_after: float | None) -> None:
    async with limits.slot(operation) as slot:
        slot.refuse(retry_after)


def test_a_pause_stops_its_kind_and_a_shorter_one_does_not_shorten_it() -> None:
    async def scenario() -> None:
        limits = Limits({Operation.RUN: Limit(100), Operation.CANCEL: Limit(100)})
        async with asyncio.timeout(20), limits.slot(Operation.RUN) as shorter:
            await refuse(limits, Operation.RUN, 0.3)
            ends = time.monotonic() + limits.paused(Operation.RUN)
            shorter.refuse(0.01)
        async with limits.slot(Operation.CANCEL) as slot:
            assert slot.sent < ends
        assert limits.paused(Operation.CANCEL) == limits.paused(Operation.HEALTH) == 0
        async with asyncio.timeout(20), limits.slot(Operation.RUN) as slot:
            assert slot.sent >= ends - 0.01

    asyncio.run(scenario())


def test_no_answer_silences_an_operation_for_long(monkeypatch) -> None:
    monkeypatch.setattr(limits_module, "LONGEST_PAUSE", 0.05)

    async def scenario() -> None:
        limits = Limits({})
        async with asyncio.timeout(20):
            await refuse(limits, Operation.RUN, HOUR)
            assert limits.paused(Operation.RUN) <= 0.05
            await refuse(limits, Operation.RUN, None)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- who goes first

ALL = {operation: Limit(1, window=0, budget="all") for operation in Operation}


def test_cancels_go_first_and_the_background_last_but_not_never() -> None:
    async def scenario() -> None:
        limits, order = Limits(ALL), []

        async def send(operation: Operation, name: str) -> None:
            async with limits.slot(operation):
                order.append(name)

        async with asyncio.timeout(20):
            async with limits.slot(Operation.STATUS):
                with in_background():
                    waiting = [asyncio.create_task(send(Operation.STREAM, "background")) for _ in range(1000)]
                waiting += [asyncio.create_task(send(Operation.RUN, "now")) for _ in range(8)]
                waiting += [asyncio.create_task(send(Operation.CANCEL, "cancel")) for _ in range(2)]
                waiting += [asyncio.create_task(send(Operation.PURGE_QUEUE, "purge"))]
                await settled()
            await asyncio.gather(*waiting)
        assert sorted(order[:3]) == ["cancel", "cancel", "purge"]
        assert [place for place, name in enumerate(order[3:]) if name == "now"] == [0, 1, 2, 4, 5, 6, 7, 9]

    asyncio.run(scenario())


def test_what_the_server_holds_leaves_connections_free_and_the_last_ones_are_for_cancels() -> None:
    assert limits_module.CONNECTIONS == transport.MAX_CONNECTIONS

    async def scenario() -> None:
        async with crowd_at() as crowd:
            assert await crowd.send(Operation.STREAM, 300) == 224
            assert await crowd.send(Operation.RUNSYNC, 5) == 0
            assert await crowd.send(Operation.STATUS, 300) == 24  # not behind the streams that wait
            assert await crowd.send(Operation.RUN, 5) == 0
            assert await crowd.send(Operation.CANCEL, 5) == 5
            assert await crowd.send(Operation.PURGE_QUEUE, 5) == 3

    asyncio.run(scenario())


def test_operations_that_share_a_budget_take_turns() -> None:
    async def scenario() -> None:
        async with crowd_at(ALL) as crowd:
            await crowd.send(Operation.HEALTH, name="open")
            await crowd.send(Operation.STATUS, 1000, "status")
            await crowd.send(Operation.STREAM, 3, "stream")
            for _ in range(4):
                await crowd.end()
            assert crowd.passed == ["open", "status", "stream", "status", "stream"]

    asyncio.run(scenario())


def test_a_budget_that_others_have_used_up_has_room_for_cancels() -> None:
    async def scenario() -> None:
        budget = Limit(100, window=HOUR, budget="all")
        async with crowd_at(dict.fromkeys(Operation, budget)) as crowd:
            assert await crowd.send(Operation.STATUS, 200) == 98
            assert await crowd.send(Operation.CANCEL, 5) == 2
        async with crowd_at({Operation.CANCEL: Limit(100, window=HOUR)}) as crowd:
            assert await crowd.send(Operation.CANCEL, 200) == 100

    asyncio.run(scenario())
