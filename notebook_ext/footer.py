"""What is told of one job in a line: under its output, and by one look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_ext.render import NO_OUTPUT, duration, lines, note
from notebook_ext.types import Job, JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.render import Bundle
    from notebook_ext.types import Progress, WorkerError

__all__ = ["Facts", "error_text", "footer", "footer_bundle", "job", "speed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the line under a job's output tells; None leaves a fact out.

    Args:
        endpoint: The endpoint's name.
        status: Where the job stands.
        number: This notebook's number of the job, shown as `@17`.
        queue: Seconds in the queue.
        run: Seconds on the worker.
        first_token: Seconds until the first piece of text was there.
        tokens: How many tokens the worker counted.
        tokens_per_second: How fast they came.
        chunks_per_second: How fast pieces came, where tokens were not counted.
        cost: Dollars at least: the run time at the endpoint's saved rate.
        notes: Further short remarks.
    """

    endpoint: str
    status: JobStatus
    number: int | None = None
    queue: float | None = None
    run: float | None = None
    first_token: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    chunks_per_second: float | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()


def footer(facts: Facts) -> str:
    """One line: `@17 · demo · COMPLETED · 0.8 s queue · 3.4 s run · first token 0.4 s · >= $0.0011`."""
    parts = [
        None if facts.number is None else f"@{facts.number}",
        facts.endpoint,
        str(facts.status),
        None if facts.queue is None else f"{duration(facts.queue)} queue",
        None if facts.run is None else f"{duration(facts.run)} run",
        None if facts.first_token is None else f"first token {duration(facts.first_token)}",
        *speed(facts),
        None if facts.cost is None else f">= ${_dollars(facts.cost)}",
        *facts.notes,
    ]
    return " · ".join(part for part in parts if part)


def speed(facts: Facts) -> list[str]:
    """How much came and how fast, in tokens where the worker counts them, else in chunks."""
    parts = [] if facts.tokens is None else [f"{facts.tokens} tokens"]
    if facts.tokens_per_second is not None:
        parts.append(f"{facts.tokens_per_second:.0f} tokens/s")
    elif facts.chunks_per_second is not None:
        parts.append(f"{facts.chunks_per_second:.0f} chunks/s")
    return parts


def _dollars(cost: float) -> str:
    return f"{cost:.4f}" if cost >= 0.001 or cost == 0 else f"{cost:.2g}"


def footer_bundle(facts: Facts) -> Bundle:
    """The footer as a small grey line."""
    return note(footer(facts))


def job(job: Job, number: int | None = None, remarks: Sequence[str] = ()) -> Bundle:
    """One look at a job: a line, and what its worker said if it failed.

    Args:
        job: What was seen.
        number: This notebook's number of it.
        remarks: What a reader should know beside that.
    """
    notes = (job.id, *([_progress(job.progress)] if job.progress else []), *remarks)
    line = footer(
        Facts(
            endpoint=job.endpoint,
            status=job.status,
            number=number,
            queue=job.delay_time,
            run=job.execution_time,
            notes=notes + ((f"{job.retries} retries",) if job.retries else ()),
        )
    )
    if job.status == JobStatus.COMPLETED and not job.has_output:
        line = f"{line}\n{NO_OUTPUT}"
    if job.error is not None:
        line = f"{line}\n{error_text(job.error)}"
    return lines(line, "var(--jp-ui-font-color1, inherit)")


def _progress(progress: Progress) -> str:
    """What was said of it, and how far that is, where the words have no number."""
    if progress.fraction is None or any(map(str.isdigit, progress.text)):
        return progress.text
    return f"{100 * progress.fraction:.0f} % · {progress.text}"


def error_text(error: WorkerError) -> str:
    """A worker's failure as plain text: its traceback where it told one, and its message."""
    worker = f" (worker {error.worker_id})" if error.worker_id else ""
    traceback = (error.traceback or "").rstrip()
    if traceback.endswith(error.message):
        return f"{traceback}{worker}"
    return f"{traceback}\n{error}{worker}".lstrip("\n")
