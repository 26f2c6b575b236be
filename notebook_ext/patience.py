"""How long failures are put up with, before a job is no longer followed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_ext.errors import (
    AnswerLost,
    ConnectionFailed,
    ProtocolError,
    RateLimitError,
    ServerError,
    TransportError,
)
from notebook_ext.pacing import tell_pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from notebook_ext.errors import EndpointError

__all__ = ["TRANSIENT", "Outage", "Patience", "telling_outages"]

MOST_LOSSES, LOSSES_LAST = 6, 60.0
"""How many answers in a row may be lost, and for how many seconds at least, before a job is no longer
followed: a load balancer that is restarted, or a server that is deployed anew, comes back sooner."""
LONGEST_ASKED = 60.0
"""Seconds that a server's wish to be left alone is heeded."""
PATIENCE, LONGEST_REST = 300.0, 10.0
"""Seconds without a connection (nothing is lost by that) before a job is no longer followed; the
longest pause between two attempts."""
TRANSIENT = (AnswerLost, ServerError, ProtocolError, ConnectionFailed, RateLimitError)
"""Failures that may pass."""
HOLD_AFTER_FAILURE = 1.0
"""Seconds for which the first answer after a failure may be held: that it comes is the news."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without a good answer.

    Args:
        since: When its first failure was seen, by the monotonic clock.
        has_connection: Whether it is answers that are lost or broken: else nobody can be asked.
    """

    since: float
    has_connection: bool

    @property
    def lasts(self) -> float:
        """Seconds until now."""
        return time.monotonic() - self.since


_listener: ContextVar[Callable[[Outage | None], None] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def telling_outages(listener: Callable[[Outage | None], None]) -> Iterator[None]:
    """Let somebody know of failures that are waited out in here, and in tasks begun in here.

    Args:
        listener: Called with None when a good answer has come.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _tell(outage: Outage | None) -> None:
    listener = _listener.get()
    if listener is not None:
        listener(outage)


class Patience:
    """Lets time pass after a failure, or gives up.

    Args:
        what: The job, in words.
        job_id: The server's id.
    """

    def __init__(self, what: str, job_id: str) -> None:
        self._what = what
        self._job_id = job_id
        self.renew()

    def renew(self) -> None:
        """A good answer came."""
        self._losses = self._failures = 0
        self._failing_since = time.monotonic()
        _tell(None)

    def hold(self, wanted: float) -> float:
        """Seconds for which the next answer may be held."""
        return min(wanted, HOLD_AFTER_FAILURE) if self._failures else wanted

    async def after(self, error: EndpointError) -> None:
        """Wait a little.

        Raises:
            AnswerLost: It was one answer too many that was lost.
            TransportError: There has been no connection for too long; nothing was lost by that.
        """
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        is_loss = not isinstance(error, (ConnectionFailed, RateLimitError))
        self._losses += is_loss
        lasts = now - self._failing_since
        if (self._losses >= MOST_LOSSES and lasts >= LOSSES_LAST) or lasts >= PATIENCE:
            last = str(error).rstrip(".?")
            hope = "Attach" if "The job goes on" in last else "The job itself may go on: attach"
            raise (AnswerLost if self._losses else TransportError)(
                f"following {self._what} failed {self._failures} times in {lasts:.0f} s; "
                f"the last time: {last}. {hope} to it again, or cancel it",
                job_id=self._job_id,
            ) from error
        most = min(0.1 * 2 ** min(self._failures, 10), LONGEST_REST)
        asked = error.retry_after if isinstance(error, RateLimitError) else None
        jitter = random.uniform(most / 2, most)  # noqa: S311 - no secret
        pause = min(asked, LONGEST_ASKED) if asked else jitter
        if isinstance(error, RateLimitError):
            tell_pause(pause)
            _tell(None)
        else:
            _tell(Outage(self._failing_since, has_connection=is_loss))
        await asyncio.sleep(pause)
