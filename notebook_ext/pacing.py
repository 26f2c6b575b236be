"""How the followed jobs of one endpoint share it: whose turn it is, and how long an answer may be held.

All of it is learned by any of them and known to all of them: it belongs to the endpoint's `Limits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["HELD", "Pace", "Polls", "in_background", "is_in_background", "tell_pause", "telling_pauses"]

HELD = 0.25
"""Seconds from which on an answer counts as held by the server."""
PACED_SHARE, BURST_SHARE = 0.9, 0.05
"""Shares of a rate: what polls use up evenly, and what may go at once before that begins. The rest is for
what is not paced: first polls, looks, and whatever else is counted together with them."""
RISE_SHARE = 0.1
"""Share of itself by which a learned pace rises in each window."""
LEAST_POLLS = 2.0
"""Polls per window below which the pace is not halved."""
BACKGROUND_TIMES = 2
"""So many times as far apart as the others' are the polls of jobs that nobody looks at."""
SHORT_APART = 0.005
"""Seconds between two polls, over all streams, of a server that does not hold them."""
EMPTY, WITH_CHUNKS, IS_SHORT, MOST_SHORT = 4, -1, 8, 16
"""What an empty answer that came at once says for a server that does not hold, and one with chunks against
it; from which sum on it is taken to be one, and how sure of that one can be."""
SHORTEST_CUT = 1.0
"""Seconds: what breaks sooner was not cut for having been held; and no hold is asked to be shorter."""
SAME_CUT, BELOW_CUT = 0.25, 0.8
"""By which share two cuts may differ that are one proxy's; the share of its limit that is asked for then."""

_is_background: ContextVar[bool] = ContextVar("is_background", default=False)
_listener: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Let requests that are made in here, and in tasks that are begun in here, give way to all others.

    For what nobody looks at just now. Do not yield inside it: begin a task inside it instead.
    """
    token = _is_background.set(True)
    try:
        yield
    finally:
        _is_background.reset(token)


def is_in_background() -> bool:
    """Whether what is done here gives way to all others."""
    return _is_background.get()


@contextlib.contextmanager
def telling_pauses(listener: Callable[[float], None]) -> Iterator[None]:
    """Let somebody know for how long a server makes wait what is asked in here, and in tasks begun in here.

    Args:
        listener: Called with seconds.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_pause(seconds: float) -> None:
    """A server has too many requests: what is done here waits for so long."""
    listener = _listener.get()
    if listener is not None:
        listener(seconds)


class Pace:
    """Spreads polls over a rate: used up at once, it would let them wait for the rest of its window.

    Args:
        rate: Requests per window; infinite until a refusal where none is documented.
        window: Seconds.
    """

    def __init__(self, rate: float, window: float) -> None:
        self._window = window
        self._full = self._rate = PACED_SHARE * rate / window if window else math.inf
        self._burst = BURST_SHARE * window
        self._due = self._background_due = self._last = -math.inf

    def spend(self) -> None:
        """Something is asked that does not wait for its turn, and is counted together with the polls.

        It uses up what may go at once, and no more: a thousand looks must not silence a stream.
        """
        now = time.monotonic()
        self._due = max(self._due, min(max(self._due, now) + 1 / self._rate, now + self._burst))

    def reserve(self, apart: float = 0.0) -> float:
        """Take the next turn, and return in how many seconds it is.

        Args:
            apart: Seconds that have to be between any two.
        """
        now = time.monotonic()
        start = self._last = max(now, self._due - self._burst, self._last + apart)
        self._due = max(self._due, now) + 1 / self._rate
        return start - now

    def step_back(self, apart: float = 0.0) -> float:
        """Let others go first: in how many seconds one in the background may take its turn."""
        now = time.monotonic()
        start = max(now, self._background_due)
        self._background_due = start + BACKGROUND_TIMES * max(apart, 1 / self._rate)
        return start - now

    def fall(self, used: float) -> None:
        """One was refused.

        Args:
            used: Requests that were let through in the last window.
        """
        if not self._window:
            return
        self._rate = max(LEAST_POLLS, min(self._rate * self._window, used) / 2) / self._window
        self._due = min(self._due, time.monotonic())  # turns that were taken at another pace

    def rise(self) -> None:
        """One was answered well."""
        if self._rate < self._full:
            self._rate = min(self._full, self._rate + RISE_SHARE / self._window)


class Polls:
    """What is known of one endpoint's long polls.

    Attributes:
        held: How many followed jobs have their stream held.
        rounds: How many are looked at in turn instead.

    Args:
        pace: Of its streams.
    """

    def __init__(self, pace: Pace) -> None:
        self.held = self.rounds = 0
        self._pace = pace
        self._shortness = 0
        self._longest = math.inf
        self._cut: tuple[float, float] | None = None  # when, and how long it had been held

    @property
    def is_short(self) -> bool:
        """Whether the server answers at once, whether or not it has anything to tell."""
        return self._shortness >= IS_SHORT

    async def turn(self, *, is_first: bool) -> None:
        """Wait until a stream may be asked for.

        Args:
            is_first: For the first time; nothing waits for that.
        """
        if is_first:
            self._pace.spend()
            return
        apart = SHORT_APART if self.is_short else 0.0
        if _is_background.get() and (pause := self._pace.step_back(apart)) > 0:
            await asyncio.sleep(pause)
        if (pause := self._pace.reserve(apart)) > 0:
            await asyncio.sleep(pause)

    def streamed(self, took: float, *, has_chunks: bool) -> None:
        """A stream was answered.

        Args:
            took: Seconds.
            has_chunks: Whether with chunks: then it says little of the server.
        """
        if took > HELD:
            self._shortness = 0
        else:
            says = WITH_CHUNKS if has_chunks else EMPTY
            self._shortness = min(max(self._shortness + says, 0), MOST_SHORT)

    def hold(self, wanted: float) -> float:
        """Seconds for which an answer may be held, so that nothing on the way cuts it off."""
        return min(wanted, self._longest)

    def answered(self, took: float) -> None:
        """A whole answer came, after so many seconds."""
        if self._cut is not None and took > self._cut[1]:
            self._cut = None  # whatever cut that one off, its time was not the reason

    def broke(self, asked: float, took: float) -> None:
        """An answer that was held was cut off; the second time after as long, that is taken for a rule.

        Args:
            asked: When it was asked for, by the monotonic clock.
            took: Seconds until it broke.
        """
        if took < SHORTEST_CUT:
            return
        earlier, self._cut = self._cut, (asked + took, took)
        if earlier is None:
            return
        when, held = earlier
        if asked < when:
            self._cut = earlier  # they fell together, as when a server goes down
        elif abs(took - held) <= SAME_CUT * max(took, held):
            self._longest = max(SHORTEST_CUT, min(self._longest, BELOW_CUT * min(took, held)))
            self._cut = None
