"""What feeds the panels: an endpoint's counters, read again and again; and jobs, as they tell.

Everything here runs on the session's loop. Nothing is read while nobody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from notebook_ext.errors import (
    APIError,
    ConfigurationError,
    EndpointError,
    RateLimitError,
    RequestTimeout,
    ServerError,
)
from notebook_ext.types import Health

__all__ = ["MOST_PAUSE", "HealthFeed", "Record", "Steady", "is_hopeless"]

_log = logging.getLogger(__name__)

MOST_PAUSE = 60.0
"""Seconds between two questions at most, however often they failed."""
PATIENCE = 10.0
"""Seconds without an answer after which the listeners are told so; the question stays open."""

Told = Health | EndpointError
Listener = Callable[[Told], None]


def is_hopeless(error: EndpointError) -> bool:
    """Whether asking again will give the same answer: a wrong key, no such endpoint."""
    if isinstance(error, (RateLimitError, ServerError)):
        return False
    return isinstance(error, (APIError, ConfigurationError))


class HealthFeed:
    """One endpoint's counters for all who listen: one question at a time, whoever asked for it.

    Args:
        read: Asks the endpoint once.
        patience: Seconds after which a question without an answer is told of.
    """

    def __init__(self, read: Callable[[], Awaitable[Health]], *, patience: float = PATIENCE) -> None:
        self.newest: Health | None = None
        self.pause = 0.0
        """Seconds until the next question, as decided after the last one."""
        self._read = read
        self._patience = patience
        self._listeners: dict[Listener, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether nobody listens, so that nothing is asked."""
        return not self._listeners

    def listen(self, listener: Listener, every: float) -> None:
        """Tell somebody what is read, and what went wrong, from now on.

        Args:
            listener: Called on the loop; if it raises, it is logged and dropped.
            every: Seconds between two questions; of several listeners the shortest counts.
        """
        self._listeners[listener] = every
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self.newest is not None:
            listener(self.newest)

    def leave(self, listener: Listener) -> None:
        """Tell somebody nothing more; after the last one nothing is asked any more."""
        self._listeners.pop(listener, None)
        if not self._listeners and self._task is not None:
            self._task.cancel()
            self._task = None

    def hurry(self) -> None:
        """Ask now: something has changed."""
        self._hurry.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._hurry.clear()
            told = await self._ask()
            every = min(self._listeners.values(), default=MOST_PAUSE)
            failures = 0 if isinstance(told, Health) else failures + 1
            self.pause = _pause(told, failures, every)
            self._tell(told)
            try:
                async with asyncio.timeout(self.pause):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> Told:
        question = asyncio.ensure_future(self._read())
        try:
            done, _ = await asyncio.wait({question}, timeout=self._patience)
            if not done:
                self._tell(RequestTimeout(f"no answer for {self._patience:g} s"))
            self.newest = await question
        except EndpointError as error:
            return error
        except Exception as bug:  # noqa: BLE001 - whoever watches must hear of it
            return EndpointError(f"reading the counters broke: {bug!r}")
        finally:
            question.cancel()
        return self.newest

    def _tell(self, told: Told) -> None:
        for listener in list(self._listeners):
            try:
                listener(told)
            except Exception:  # noqa: BLE001 - one bad panel must not stop the others
                _log.exception("a listener to an endpoint's counters failed and is dropped")
                self.leave(listener)


def _pause(told: Told, failures: int, every: float) -> float:
    """Seconds until the next question: twice as long after each failure, or as long as the server asks."""
    if not failures:
        return every
    asked = told.retry_after if isinstance(told, RateLimitError) else None
    return max(every, asked or 0.0, min(MOST_PAUSE, every * 2.0 ** min(failures, 10)))


class Record:
    """Each counter over the watched time; a long time is kept in as little room as a short one.

    Args:
        most: Values per counter at most. When there are more, two neighbours become one.
    """

    def __init__(self, most: int = 240) -> None:
        self.series: dict[tuple[str, str], list[int | None]] = {}
        self._most = most
        self._length = 0
        self._each = 1  # readings that one value stands for
        self._in_last = 1

    def add(self, health: Health) -> None:
        """Take the next reading; a counter that it does not tell has a gap there."""
        now = {("jobs", key): count for key, count in health.jobs.items()}
        now |= {("workers", key): count for key, count in health.workers.items()}
        if self._in_last >= self._each and self._length >= self._most:
            self._thin()
        opens = self._in_last >= self._each
        self._in_last = 1 if opens else self._in_last + 1
        for name in now:
            self.series.setdefault(name, [None] * self._length)
        for name, values in self.series.items():
            count = now.get(name)
            if opens:
                values.append(count)
            elif count is not None:
                values[-1] = max(count, values[-1] or 0)
        self._length += opens

    def _thin(self) -> None:
        for name, values in self.series.items():
            pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
            self.series[name] = [
                max((value for value in pair if value is not None), default=None) for pair in pairs
            ]
        self._in_last = self._each * (1 if self._length % 2 else 2)
        self._length = (self._length + 1) // 2
        self._each *= 2


class Steady:
    """Calls a function soon after something has changed, but never more often than so.

    Args:
        function: Called on the loop.
        seconds: Between two calls at least.
    """

    def __init__(self, function: Callable[[], Any], seconds: float = 0.5) -> None:
        self._function = function
        self._seconds = seconds
        self._free_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def soon(self, within: float = 0.0) -> None:
        """See to it that the function is called: now if that is allowed, else when it is.

        Args:
            within: Seconds that it may be late; what is called for sooner counts.
        """
        loop = asyncio.get_running_loop()
        due = max(self._free_at, loop.time() + within)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._call)

    def stop(self) -> None:
        """Call it no more, until it is asked for again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call(self) -> None:
        self._timer = None
        self._free_at = asyncio.get_running_loop().time() + self._seconds
        self._function()
