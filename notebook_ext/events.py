"""What is told of a job: to its subscribers while it lives, and to whoever stopped it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_ext.types import Health, Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.errors import EndpointError
    from notebook_ext.handle import JobHandle

__all__ = ["HUNG_UP", "Ended", "Event", "Queued", "Stopped", "Subscribers"]

_log = logging.getLogger(__name__)

HUNG_UP = "its connection was closed; whether its worker stopped, the OpenAI route does not tell"
"""What is known of a job by that route that was stopped."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a job: nothing more will come.

    Args:
        error: Why it did not end well; None for a COMPLETED job.
    """

    error: EndpointError | None


@dataclass(frozen=True, slots=True)
class Queued:
    """Why a job may still be waiting in the queue.

    Args:
        health: The endpoint's counters.
        cold_starts: Seconds that earlier jobs here waited for a worker to start, newest first.
    """

    health: Health
    cold_starts: tuple[float, ...] = ()


Event = Job | StreamChunk | Queued | Ended
"""What a subscriber gets: a snapshot when the job changed or is being stopped, a chunk, what is known of
the queue while the job waits in it, and `Ended` last."""


class Subscribers:
    """Those who are told a job's events; changed and called on the session's loop thread alone.

    Args:
        name: The job, in words.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: list[Callable[[Event], None]] = []

    def add(self, subscriber: Callable[[Event], None]) -> None:
        """Tell this one, too, until the job has ended."""
        self._told.append(subscriber)

    def drop(self, subscriber: Callable[[Event], None]) -> None:
        """Tell this one no longer."""
        if subscriber in self._told:
            self._told.remove(subscriber)

    def tell(self, event: Event) -> None:
        """Tell all of them; after the end nobody is told any more."""
        for subscriber in list(self._told):
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001 - one bad view must not stop the job's watcher
                _log.exception("a subscriber of %s failed and is dropped", self._name)
                self.drop(subscriber)
        if isinstance(event, Ended):
            self._told.clear()


@dataclass(frozen=True, slots=True)
class Stopped:
    """What became of a job that was to be stopped.

    Args:
        handle: The job.
        confirmed: Whether its remote state was seen to be final.
        error: Why it could not be confirmed.
    """

    handle: JobHandle
    confirmed: bool
    error: EndpointError | None = None

    def __repr__(self) -> str:
        return str(self)  # the last line of a cell is often `job.cancel()`

    def __str__(self) -> str:
        job = self.handle.job
        name = f"@{self.handle.number}"
        if self.handle.never_submitted:
            return f"{name} was never submitted"
        if self.handle.is_call and self.handle.was_stopped and not self.confirmed:
            return f"{name}: {HUNG_UP}"
        if not self.confirmed:
            why = f": {self.error}" if self.error else f": still {job.status}"
            return f"{name} could not be confirmed as stopped{why}"
        ran = f" after {job.execution_time:.1f} s of execution" if job.execution_time else ""
        if job.status is JobStatus.CANCELLED:
            return f"{name} CANCELLED{ran or ' before it ran'}"
        if job.status is JobStatus.LOST:
            return f"{name} LOST: the server no longer knows it"
        if self.handle.was_stopped:
            return f"{name} ended while it was being cancelled: {job.status}{ran}; what came of it is kept"
        return f"{name} was already {job.status}{ran}"
