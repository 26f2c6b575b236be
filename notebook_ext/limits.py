"""What may be in flight: a provider's documented rate and concurrency, per operation.

One `Limits` is shared by everything in a process that calls the same endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from notebook_ext.protocol import Operation
    from notebook_ext.providers import Limit

__all__ = ["Limits"]


class Limits:
    """Holds requests back so that the documented limits of one endpoint are kept.

    Args:
        documented: The provider's limit per operation; an operation without one is free.
    """

    def __init__(self, documented: Mapping[Operation, Limit]) -> None:
        shared: dict[str, _Gate] = {}
        self._gates = {
            operation: shared.setdefault(limit.budget or operation, _Gate(limit))
            for operation, limit in documented.items()
        }

    @contextlib.asynccontextmanager
    async def slot(self, operation: Operation) -> AsyncIterator[None]:
        """Wait until one more request of this kind may be sent, and count it while it is open."""
        gate = self._gates.get(operation)
        if gate is None:
            yield
            return
        async with gate.concurrency:
            sent = await gate.enter()
            try:
                yield
            finally:
                gate.leave(sent)

    def pause(self, operation: Operation, seconds: float) -> None:
        """Send nothing of this kind for so long: the server answered 429."""
        gate = self._gates.get(operation)
        if gate is not None:
            gate.not_before = max(gate.not_before, time.monotonic() + seconds)


class _Gate:
    """A sliding window over what was answered, and a semaphore over what is in flight.

    The server counts a request when it arrives, which is somewhere between our send and its
    answer; so a slot is given back one window after the *answer* (at most a second after the
    send for a request that the server held). Freeing it one window after the send earns 429s:
    a burst over new connections arrives later than it left.
    """

    def __init__(self, limit: Limit) -> None:
        self.rate, self.window = limit.rate, limit.window
        self.concurrency = asyncio.Semaphore(limit.concurrency or 1_000_000)
        self.not_before = 0.0
        self._answered: deque[float] = deque()
        self._open = 0

    async def enter(self) -> float:
        while (delay := self._delay()) > 0:  # noqa: ASYNC110 - it is time itself that is waited for
            await asyncio.sleep(delay)
        self._open += 1
        return time.monotonic()

    def leave(self, sent: float) -> None:
        self._open -= 1
        self._answered.append(min(time.monotonic(), sent + 1.0))

    def _delay(self) -> float:
        now = time.monotonic()
        while self._answered and self._answered[0] <= now - self.window:
            self._answered.popleft()
        if now < self.not_before:
            return self.not_before - now
        if len(self._answered) + self._open < self.rate:
            return 0.0
        return max(0.001, self._answered[0] + self.window - now) if self._answered else 0.05
