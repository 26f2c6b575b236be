"""What may be in flight: a provider's documented limits, what its 429s teach, and who goes first.

One `Limits` is shared by everything in a process that calls the same endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from notebook_ext.pacing import Pace, Polls, is_in_background
from notebook_ext.protocol import Operation
from notebook_ext.providers import Limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

__all__ = ["Limits", "Slot"]

CONNECTIONS = 256
"""Connections of one endpoint, as many as `transport` opens."""
FREE_OF_HELD, FREE_FOR_CANCEL = 32, 8
"""How many of them what the server holds leaves free; how many everything but a cancel does."""
CANCEL_SHARE = 0.02
"""Share of a rate that counts cancels together with others, and is kept for them."""
BACKGROUND_SHARE = 5
"""One request in so many is one of the background, where both wait: it is slowed, never stopped."""
LONGEST_PAUSE = 60.0
"""Seconds that one answer may silence an operation, whatever it says, unless its limit is known to count
by a longer time: a clock may be wrong."""
POLL_ARRIVES = 3.0
"""Seconds after its leave by which a long poll has been counted by the server, however busy our loop is."""
LEAST_SHARE, RISE_SHARE = 0.1, 0.1
"""Shares of the full rate: below the one it is never halved, and by the other it rises in each window
that is used up."""
LEAST_LEARNED = 30.0
"""Requests per window below which an undocumented rate is not halved: a person's clicks never wait."""

_FIRST = frozenset({Operation.CANCEL, Operation.PURGE_QUEUE})
_LONG_POLLS = frozenset({Operation.STATUS_SYNC, Operation.STREAM})
_HELD = _LONG_POLLS | {Operation.RUNSYNC, Operation.OPENAI}
_UNDOCUMENTED = Limit(0)


class Limits:
    """Holds requests back so that one endpoint's limits are kept, and lets the urgent ones go first.

    A refusal halves the rate of its operation, and good answers raise it again: to the documented
    rate, or without end where none is documented. A provider that allows more where more workers
    run does not say how much more per worker, so that is not made use of.

    Attributes:
        polls: What is known of how the endpoint answers long polls.

    Args:
        documented: The provider's limit per operation; any other is free until it is refused.
    """

    def __init__(self, documented: Mapping[Operation, Limit]) -> None:
        shared: dict[str, _Gate] = {}
        self._gates = {
            operation: shared.setdefault(limit.budget or operation, _Gate(limit))
            for operation in Operation
            for limit in [documented.get(operation, _UNDOCUMENTED)]
        }
        for operation in _FIRST:
            gate = self._gates[operation]
            if any(self._gates[other] is gate for other in Operation if other not in _FIRST):
                gate.keep_some_for_cancels()
        self.polls = Polls(self._gates[Operation.STREAM].pace)
        self._lines: dict[
            _Line, deque[asyncio.Future[None]]
        ] = {}  # the one that was let through last is last
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def slot(self, operation: Operation) -> AsyncIterator[Slot]:
        """Wait until one more request of this kind may be sent, and count it while it is open.

        A block that ends without an exception and without `Slot.refuse` was answered well.
        """
        gate = self._gates[operation]
        await self._enter(_Line(gate, _rank(operation), operation))
        slot = Slot(time.monotonic())
        try:
            yield slot
        except BaseException:
            self._leave(slot, gate, operation)
            raise
        if slot.is_refused:
            gate.fall(slot.sent)
            gate.pause(slot.retry_after)
        else:
            gate.rise()
        self._leave(slot, gate, operation)

    def paused(self, operation: Operation) -> float:
        """Seconds for which the server wants no more requests of this kind."""
        return max(0.0, self._gates[operation].not_before - time.monotonic())

    # ------------------------------------------------------------------ inside: who is next

    async def _enter(self, line: _Line) -> None:
        passes = asyncio.get_running_loop().create_future()
        self._lines.setdefault(line, deque()).append(passes)
        self._admit()
        try:
            await passes
        except asyncio.CancelledError:
            if not passes.cancelled():  # it was let through, and had no time to begin
                line.gate.open -= 1
                self._open -= 1
                self._admit()
            raise

    def _leave(self, slot: Slot, gate: _Gate, operation: Operation) -> None:
        self._open -= 1
        gate.open -= 1
        if slot.retry_after is None:  # a server that says when to come back has not counted it
            gate.count(slot.sent, is_long_poll=operation in _LONG_POLLS)
        self._admit()

    def _admit(self) -> None:
        """Let through whoever may pass; then wait for time, or for who leaves."""
        while (line := self._next()) is not None:
            waiting = self._lines.pop(line)
            waiting.popleft().set_result(None)
            if waiting:
                self._lines[line] = waiting
            line.gate.passed(line.rank, line.operation)
            self._open += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (delay := min(map(self._delay, self._lines), default=math.inf)) < math.inf:
            self._timer = asyncio.get_running_loop().call_later(delay, self._admit)

    def _next(self) -> _Line | None:
        """The most urgent line that may pass; among equals, the one that has not been served for longest."""
        found: _Line | None = None
        for line, waiting in list(self._lines.items()):
            while waiting and waiting[0].done():  # who waited for it has gone
                waiting.popleft()
            if not waiting:
                del self._lines[line]
            elif self._delay(line) <= 0 and (found is None or line.urgency < found.urgency):
                found = line
        return found

    def _delay(self, line: _Line) -> float:
        """Seconds until it may pass; infinite where one that is open must end first."""
        return line.gate.delay(line.rank) if self._open < _most_open(line.operation) else math.inf


@dataclass(slots=True)
class Slot:
    """Leave for one request.

    Attributes:
        sent: When it was let through, by the monotonic clock.
        is_refused: Whether the server turned the request away.
        retry_after: Seconds that it asked to wait; None where it did not.
    """

    sent: float
    is_refused: bool = False
    retry_after: float | None = None

    def refuse(self, retry_after: float | None = None) -> None:
        """The server took nothing: it had too many requests already."""
        self.is_refused, self.retry_after = True, retry_after


class _Rank(IntEnum):
    FIRST, NOW, BACKGROUND = range(3)


class _Line(NamedTuple):
    """Those that wait for the same."""

    gate: _Gate
    rank: _Rank
    operation: Operation

    @property
    def urgency(self) -> tuple[bool, bool]:
        return self.rank is not _Rank.FIRST, self.rank is not self.gate.turn()


def _rank(operation: Operation) -> _Rank:
    if operation in _FIRST:
        return _Rank.FIRST
    return _Rank.BACKGROUND if is_in_background() else _Rank.NOW


def _most_open(operation: Operation) -> int:
    """How many requests of any kind may be open before one more of this kind."""
    if operation in _FIRST:
        return CONNECTIONS
    return CONNECTIONS - (FREE_OF_HELD if operation in _HELD else FREE_FOR_CANCEL)


class _Gate:
    """A sliding window over what was answered, at a rate that falls and rises, and what is open.

    The server counts a request when it arrives, which is somewhere between our send and its
    answer; so a slot is given back one window after the *answer* (of a long poll, after a few
    seconds at most: it is counted when it begins to be held). Freeing it one window after the
    send earns 429s: a burst over new connections arrives later than it left.
    """

    def __init__(self, limit: Limit) -> None:
        self._window = limit.window
        self._concurrency = limit.concurrency or math.inf
        self._full = limit.rate or math.inf
        self._rate: float = self._full
        self._least = max(1.0, LEAST_SHARE * limit.rate) if limit.rate else LEAST_LEARNED
        self._longest_pause = limit.longest_pause
        self._rise = RISE_SHARE * limit.rate
        self.pace = Pace(self._full, limit.window)
        self._free_at: list[float] = []  # a heap
        self._fell_at = -math.inf
        self._in_a_row = self._kept = 0
        self.open = 0
        self.not_before = 0.0

    def keep_some_for_cancels(self) -> None:
        self._kept = int(CANCEL_SHARE * self._full)

    def delay(self, rank: _Rank) -> float:
        now = time.monotonic()
        while self._free_at and self._free_at[0] <= now:
            heapq.heappop(self._free_at)
        if self.open >= self._concurrency:
            return math.inf
        if now < self.not_before:
            return self.not_before - now
        kept = 0 if rank is _Rank.FIRST else self._kept
        if len(self._free_at) + self.open + 1 <= self._rate - kept:
            return 0.0
        return self._free_at[0] - now if self._free_at else math.inf

    def count(self, sent: float, *, is_long_poll: bool) -> None:
        now = time.monotonic()
        arrived = min(now, sent + POLL_ARRIVES) if is_long_poll else now
        heapq.heappush(self._free_at, arrived + self._window)

    def rise(self) -> None:
        self.pace.rise()
        if self._rate < self._full:
            self._rate = min(self._full, self._rate + self._rise / self._rate)

    def passed(self, rank: _Rank, operation: Operation) -> None:
        self.open += 1
        if operation is not Operation.STREAM:  # whose turn has been counted
            self.pace.spend()
        if rank is not _Rank.FIRST:
            self._in_a_row = self._in_a_row + 1 if rank is _Rank.NOW else 0

    def turn(self) -> _Rank:
        """Which of those that are not first of all goes first now."""
        return _Rank.BACKGROUND if self._in_a_row >= BACKGROUND_SHARE - 1 else _Rank.NOW

    def fall(self, sent: float) -> None:
        """Halve the rate, once for all requests that were on their way together."""
        if sent <= self._fell_at:
            return
        self._fell_at = time.monotonic()
        self.pace.fall(len(self._free_at) + self.open)
        if self._rate == math.inf:  # what it let through until now is all that is known of its limit
            self._rate = len(self._free_at) + self.open
            self._rise = max(1.0, RISE_SHARE * self._rate)
        self._rate = max(self._least, self._rate / 2)

    def pause(self, seconds: float | None) -> None:
        """Let nothing pass for so long."""
        if seconds is not None:
            most = self._longest_pause or LONGEST_PAUSE
            self.not_before = max(self.not_before, time.monotonic() + min(seconds, most))
