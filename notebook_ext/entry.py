"""One job as the journal knows it, and how that lies in a row."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from notebook_ext.journal_path import UNKNOWN_FOR
from notebook_ext.types import ExecutionPolicy, Job, JobStatus, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notebook_ext.values import Reference

__all__ = ["COLUMNS", "LARGE_COLUMNS", "Entry", "body_hash", "from_row", "job_to_row", "to_row"]

_PLAIN = (
    "number", "endpoint", "endpoint_id", "provider", "base_url", "key_variable", "served", "detached",
    "operation",
    "profile", "rate", "notebook", "cell", "owner", "submitted_at",
)  # fmt: skip
_PLAIN_OF_JOB = ("delay_time", "execution_time", "worker_id", "retries", "seen_at")
COLUMNS = (*_PLAIN, "input", "options", "notes", "job_id", "status", "output", "error", *_PLAIN_OF_JOB)
"""What `from_row` reads, in this order."""
LARGE_COLUMNS = frozenset({"input", "output", "error", "streamed"})
"""Where a reference may stand for a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One job as the journal knows it.

    Args:
        number: This journal's number for it: `@17`. 0 before it is added.
        endpoint: The name it was submitted to.
        endpoint_id: The provider's id of it.
        provider: The provider's name.
        base_url: Where it was sent.
        key_variable: The environment variable with its key; None means the provider's.
        served: Whether the session that submitted it served its endpoint, so that both ended together.
        detached: Whether it goes on when its kernel ends.
        operation: run, runsync or openai.
        profile: How its input was laid out and its output is read.
        rate: Dollars per second of running time; None where it is not known.
        input: What the worker receives.
        options: Policy, webhook and the like, as they were asked; never credentials.
        notebook: The notebook's path, where the front end tells it.
        cell: The notebook cell's id, where the front end tells it.
        owner: The session that follows it; None where none does.
        submitted_at: Seconds since the epoch.
        notes: What a reader of the result should know.
        job: The last snapshot.
    """

    number: int = 0
    endpoint: str
    endpoint_id: str
    provider: str
    base_url: str
    key_variable: str | None = None
    served: bool = False
    detached: bool = False
    operation: str = "run"
    profile: str = "raw"
    rate: float | None = None
    input: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notebook: str | None = None
    cell: str | None = None
    owner: str | None = None
    submitted_at: float
    notes: tuple[str, ...] = ()
    job: Job

    @property
    def is_given_up(self) -> bool:
        """Whether its submission was never answered, and so long ago that it is no longer looked for."""
        return not self.job.id and time.time() - self.submitted_at > UNKNOWN_FOR

    @property
    def policy(self) -> ExecutionPolicy:
        """The server's clocks that it was given."""
        return ExecutionPolicy(
            execution_timeout=self.options.get("execution_timeout"), ttl=self.options.get("ttl")
        )

    @property
    def body_hash(self) -> str:
        """A hash of what is asked of whom; equal for equal requests."""
        options = {**self.options, "route": "openai"} if self.operation == "openai" else self.options
        return body_hash(self.provider, self.endpoint_id, self.input, options)


def to_row(entry: Entry, put: Callable[[str], Reference]) -> dict[str, Any]:
    """A new job's columns.

    Args:
        entry: The job; its number is not among them.
        put: Keeps a text that may be large, and returns what stands for it.

    Raises:
        ValueError: The input is not JSON; TypeError and RecursionError say the same.
    """
    return {
        **{name: getattr(entry, name) for name in _PLAIN if name != "number"},
        "input": put(json.dumps(entry.input)),
        "options": json.dumps(dict(entry.options)),
        "body_hash": entry.body_hash,
        "notes": json.dumps(entry.notes),
        **job_to_row(entry.job, put),
    }


def job_to_row(job: Job, put: Callable[[str], Reference]) -> dict[str, Any]:
    """The columns of a snapshot; `put` as in `to_row`."""
    error = None if job.error is None else put(json.dumps(_error_to_json(job.error)))
    return {
        "job_id": job.id,
        "status": str(job.status),
        "is_final": job.status.is_final,
        "output": put(json.dumps(job.output, separators=(",", ":"))) if job.has_output else None,
        "error": error,
        **{name: getattr(job, name) for name in _PLAIN_OF_JOB},
    }


def from_row(row: Sequence[Any], get: Callable[[Reference], str]) -> Entry:
    """The job in a row of `COLUMNS`; `get` gives the text for what `put` returned."""
    values = dict(zip(COLUMNS, row, strict=True))

    gone = []

    def read(name: str) -> Any:
        try:
            return None if values[name] is None else json.loads(get(values[name]))
        except (OSError, ValueError):  # the other jobs of a list are not to be lost with it
            gone.append(f"its {name} is gone: the file beside the journal cannot be read")
            return None

    asked, output, error = read("input"), read("output"), read("error")
    job = Job(
        id=values["job_id"],
        endpoint=values["endpoint_id"],
        status=JobStatus(values["status"]),
        output=output,
        has_output=values["output"] is not None,
        error=None if error is None else WorkerError(**error),
        **{name: values[name] for name in _PLAIN_OF_JOB},
    )
    plain = {name: values[name] for name in _PLAIN} | {
        name: bool(values[name]) for name in ("served", "detached")
    }
    options, notes = json.loads(values["options"]), (*json.loads(values["notes"]), *gone)
    return Entry(**plain, input=asked, options=options, notes=notes, job=job)


def body_hash(provider: str, endpoint_id: str, input: Any, options: Mapping[str, Any]) -> str:
    """A hash of what was asked of whom: equal for equal bodies, whatever the order of their keys."""
    text = json.dumps([provider, endpoint_id, input, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _error_to_json(error: WorkerError) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": error.type,
        "traceback": error.traceback,
        "worker_id": error.worker_id,
        "raw": error.raw,
    }
