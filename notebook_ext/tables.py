"""Tables of jobs and of an endpoint's counters, as mime bundles."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_ext.render import aligned, duration, note
from notebook_ext.waiting import wait_reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.render import Bundle
    from notebook_ext.types import Counts, Health, JobStatus

__all__ = ["JobRow", "health", "history", "in_order", "jobs", "noted"]

_CELL = "text-align:left;padding:2px 12px 2px 0"
_ONE_LINE = 24  # a shorter cell of a table is not broken: a number keeps its unit
_EXCERPT = 120  # characters
_SHORT_ID = 8  # so much of a job's id names it in a notebook
_ORDER = (
    ("in_queue", "in_progress", "completed", "failed", "retried"),
    ("running", "idle", "ready", "initializing", "throttled", "unhealthy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One line of a table of jobs.

    Args:
        number: This notebook's number of the job.
        endpoint: The endpoint's name.
        job_id: The server's id.
        status: Where it stands.
        prompt: What was asked; its first words are shown.
        submitted_at: Seconds since the epoch.
        queue: Seconds in the queue.
        run: Seconds on the worker.
    """

    number: int | None
    endpoint: str
    job_id: str
    status: JobStatus
    prompt: str
    submitted_at: float
    queue: float | None
    run: float | None


def jobs(rows: Sequence[JobRow]) -> Bundle:
    """A table of jobs, in the order given."""
    if not rows:
        return note("No jobs.")
    lines = [["", "endpoint", "id", "status", "prompt", "submitted", "queue", "run"]]
    lines += [
        [
            "" if row.number is None else f"@{row.number}",
            row.endpoint,
            row.job_id[:_SHORT_ID],
            str(row.status),
            _first_words(row.prompt),
            _moment(row.submitted_at),
            "" if row.queue is None else duration(row.queue),
            "" if row.run is None else duration(row.run),
        ]
        for row in rows
    ]
    return {"text/html": _html_table(lines), "text/plain": aligned(lines)}


def history(rows: Sequence[JobRow], excerpts: Sequence[str] = ()) -> Bundle:
    """A table of journaled jobs, in the order given.

    Args:
        rows: The jobs.
        excerpts: Where what was searched for stands in each; none where nothing was searched for.
    """
    if not rows:
        return note("No jobs.")
    lines = [["", "endpoint", "when", "status", "prompt", *(["found"] if excerpts else [])]]
    lines += [
        [f"@{row.number}", row.endpoint, _moment(row.submitted_at), str(row.status), _first_words(row.prompt)]
        for row in rows
    ]
    for line, excerpt in zip(lines[1:], excerpts, strict=False):
        line.append(_first_words(excerpt, _EXCERPT))
    return {"text/html": _html_table(lines), "text/plain": aligned(lines)}


def _moment(seconds: float) -> str:
    """The time of day if it was today, else the date too."""
    then = time.localtime(seconds)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", then)


def _first_words(text: str, limit: int = 48) -> str:
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _html_table(lines: Sequence[Sequence[str]]) -> str:
    def drawn(cell: str, tag: str) -> str:
        style = f"{_CELL};white-space:nowrap" if len(cell) <= _ONE_LINE else _CELL
        return f'<{tag} style="{style}">{html.escape(cell)}</{tag}>'

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(drawn(cell, tag) for cell in cells)}</tr>"

    body = "".join(row(line, "td") for line in lines[1:])
    style = "border-collapse:collapse;color:var(--jp-ui-font-color1, inherit)"
    return f'<table style="{style}"><thead>{row(lines[0], "th")}</thead><tbody>{body}</tbody></table>'


def in_order(health: Health) -> dict[str, dict[str, int]]:
    """An endpoint's counters of jobs and of workers: the known ones as a job meets them, then the others."""
    jobs, workers = _ORDER
    return {"jobs": _ordered(health.jobs, jobs), "workers": _ordered(health.workers, workers)}


def _ordered(counts: Counts, names: Sequence[str]) -> dict[str, int]:
    known = [name for name in names if name in counts]
    return {name: counts[name] for name in [*known, *(name for name in counts if name not in names)]}


def health(health: Health, name: str) -> Bundle:
    """An endpoint's counters, and what they mean for jobs that wait."""
    lines = [[name, "counters"]]
    for group, counts in in_order(health).items():
        told = " · ".join(f"{count} {key.replace('_', ' ')}" for key, count in counts.items())
        lines.append([group, told or "not told"])
    bundle = {"text/html": _html_table(lines), "text/plain": aligned(lines)}
    reason = wait_reason(health) if health.jobs["in_queue"] else ""
    return noted(bundle, f"{health.jobs['in_queue']} in the queue: {reason}") if reason else bundle


def noted(table: Bundle, text: str) -> Bundle:
    """A table with a remark of ours below it."""
    remark = note(text)
    return {
        kind: f"{table[kind]}{sep}{remark[kind]}" for kind, sep in (("text/html", ""), ("text/plain", "\n"))
    }
