"""Why a job waits in its queue: what counters and earlier cold starts say, and no more than that."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.types import Health

__all__ = ["wait_reason"]

STARTS_WITHIN = 15.0
"""Seconds within which an endpoint that had no worker usually begins to start one."""
_ABLE = ("running", "initializing", "idle", "ready")


def wait_reason(health: Health, waited: float | None = None, cold_starts: Sequence[float] = ()) -> str:
    """Say why a job may be waiting; "" where the counters tell nothing.

    Args:
        health: The endpoint's counters.
        waited: Seconds that the job has waited; None speaks of no job in particular.
        cold_starts: Seconds that earlier jobs here waited for a worker to start.
    """
    workers = health.workers
    if not any(workers.values()):
        return _no_worker(waited, cold_starts) if workers else ""
    reasons = []
    if workers["unhealthy"]:
        whose = "its" if workers["unhealthy"] == 1 else "their"
        reasons.append(f"{_count(workers['unhealthy'], 'worker')} unhealthy: look at {whose} logs")
    if workers["running"] and waited is not None:
        reasons.append(_ahead(health))
    if workers["initializing"]:
        reasons.append(f"{_count(workers['initializing'], 'worker')} initializing")
        reasons += _cold_starts(waited, cold_starts)
    if workers["throttled"]:
        reasons.append(_throttled(health))
    idle = workers["idle"] or workers["ready"]
    if idle and waited is not None and not reasons:
        reasons.append(f"{_count(idle, 'worker')} idle, and the job not taken yet")
    return "; ".join(reasons)


def _no_worker(waited: float | None, cold_starts: Sequence[float]) -> str:
    if waited is None or waited > max((STARTS_WITHIN, *cold_starts)):
        return "no worker at all: is max workers 0, or has none attached?"
    return "; ".join(["no worker yet", *_cold_starts(waited, cold_starts)])


def _ahead(health: Health) -> str:
    """How many others wait is told, and not which of them came earlier."""
    running, others = health.workers["running"], health.jobs["in_queue"] - 1
    if others > 0:
        return f"up to {_count(others, 'job')} ahead on {_count(running, 'running worker')}"
    alone = "no other job waits, " if others == 0 else ""
    return f"{alone}{_count(running, 'worker')} running"


def _throttled(health: Health) -> str:
    workers = health.workers
    if not any(workers[name] for name in (*_ABLE, "unhealthy")):
        return "all hosts throttled: the provider has no free machine now"
    return f"{_count(workers['throttled'], 'worker')} throttled"


def _cold_starts(waited: float | None, cold_starts: Sequence[float]) -> list[str]:
    if not cold_starts:
        return []
    usual, longest, seen = statistics.median(cold_starts), max(cold_starts), f"{len(cold_starts)} seen"
    if waited is not None and waited > longest:
        return [f"longer than every cold start here so far (at most {_about(longest)}, {seen})"]
    if longest > 2 * usual:
        return [f"cold starts here take about {_about(usual)}, at most {_about(longest)} ({seen})"]
    return [f"cold starts here take about {_about(usual)} ({seen})"]


def _about(seconds: float) -> str:
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.0f} h"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
