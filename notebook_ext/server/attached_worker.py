"""What is known of one worker of another process, and of the jobs in its hands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from notebook_ext.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio

    from notebook_ext.server.job import Attempt

__all__ = ["AttachedWorker", "HeldJob", "LossRules"]

LOST_AFTER = 30.0
"""Seconds of silence after which a worker that holds a job is lost."""


@dataclass(frozen=True, slots=True)
class LossRules:
    """When a worker is lost, and what then becomes of its job.

    Args:
        on_lost: "requeue" queues the job once more (a second time it fails), "fail" fails it.
        lost_after: Seconds of silence; None means 30.
    """

    on_lost: str = "requeue"
    lost_after: float | None = None

    def __post_init__(self) -> None:
        if self.on_lost not in ("requeue", "fail"):
            raise ConfigurationError(f"a lost worker's job can 'requeue' or 'fail', not {self.on_lost!r}")
        if self.lost_after is not None and not 0 < self.lost_after < float("inf"):
            raise ConfigurationError("the silence after which a worker is lost is more than 0 seconds")

    @property
    def silence(self) -> float:
        return LOST_AFTER if self.lost_after is None else self.lost_after


@dataclass(eq=False, slots=True)
class HeldJob:
    """A job in a worker's hands; once its attempt is over, the worker has yet to let go of it."""

    attempt: Attempt
    taken_at: float
    watcher: asyncio.Task[None] | None = None
    stop_due: float | None = None
    """When the worker is to be told to stop, again where it was told already."""


@dataclass(eq=False, slots=True)
class AttachedWorker:
    """One worker of another process, as far as its requests tell."""

    id: str
    held: dict[str, HeldJob] = field(default_factory=dict)
    bells: set[asyncio.Event] = field(default_factory=set)
    deleted: bool = False
    is_managed: bool = False
    """Its process is ours: that it runs is known otherwise."""
    has_asked: bool = False
    has_worked: bool = False
    """It has ended a job."""
    trouble: str | None = None
    is_throttled: bool = False
    open_takes: int = 0
    open_stops: int = 0
    knows_stops: bool | None = None
    """Whether it has the stop channel (since SDK 1.10); None while nobody knows."""
    was_cut: bool = False
    """Its stop channel has broken off while it held a job: its process may be another one since."""
    changes: int = 0
    silence: asyncio.TimerHandle | None = None
    leaving: asyncio.TimerHandle | None = None

    def has_changed(self, seen: int) -> bool:
        return self.changes != seen

    def ring(self) -> None:
        self.changes += 1
        for bell in self.bells:
            bell.set()

    def cancel_timers(self) -> None:
        for timer in (self.silence, self.leaving):
            if timer is not None:
                timer.cancel()

    @property
    def state(self) -> str:
        """The word for it in the endpoint's health."""
        if self.trouble is not None:
            return "unhealthy"
        if self.held:
            return "running"
        if self.is_throttled:
            return "throttled"
        return "idle" if self.has_asked else "initializing"

    @property
    def is_leaving(self) -> bool:
        """Whether it has nothing to do, and does not ask for anything either."""
        return bool(self.open_stops and self.has_asked and not (self.open_takes or self.held))

    def release(self, job_id: str) -> None:
        """It has no longer anything to do with a job."""
        held = self.held.pop(job_id)
        if held.watcher is not None:
            held.watcher.cancel()

    def due_stops(self, now: float, repeat: float) -> list[str]:
        """The jobs that it is to be told to stop now; the next time will be `repeat` seconds later."""
        due = [held for held in self.held.values() if held.stop_due is not None and held.stop_due <= now]
        for held in due:
            held.stop_due = now + repeat
        return [held.attempt.record.id for held in due]

    def next_stop(self, now: float) -> float | None:
        """Seconds until it is to be told to stop a job; None where it runs none that is to stop."""
        dues = [held.stop_due for held in self.held.values() if held.stop_due is not None]
        return min(dues) - now if dues else None
