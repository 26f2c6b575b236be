"""The serverless endpoint protocol, without any I/O; the client and the embedded server meet here.

Milliseconds and camelCase live in this module only, and the providers' own words in `dialects`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import reprlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from notebook_ext.dialects import (
    RUNPOD_DIALECT,
    RUNPOD_ROUTES,
    TENSORONE_DIALECT,
    TENSORONE_REST_DIALECT,
    TENSORONE_REST_ROUTES,
    TENSORONE_ROUTES,
    Dialect,
    Operation,
    Route,
)
from notebook_ext.errors import InputError, ProtocolError
from notebook_ext.types import (
    Counts,
    ExecutionPolicy,
    Health,
    Job,
    JobStatus,
    StreamChunk,
    WorkerError,
    whole,
)

__all__ = [
    "RUNPOD_DIALECT",
    "RUNPOD_ROUTES",
    "TENSORONE_DIALECT",
    "TENSORONE_REST_DIALECT",
    "TENSORONE_REST_ROUTES",
    "TENSORONE_ROUTES",
    "Dialect",
    "JobRequest",
    "Operation",
    "Route",
    "chunks_to_json",
    "health_to_json",
    "job_to_json",
    "read_health",
    "read_job",
    "read_purged",
    "read_requests",
    "read_stream",
    "read_worker_error",
    "worker_error_to_json",
]


_HUGE = 1e15  # JSON's integers have no bound, and its readers take NaN and Infinity
_TEN_YEARS = 10 * 365 * 86_400.0
_MOST_RETRIES = 2**31
_LONGEST_WORD = 40


# ---------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job as it is submitted.

    Args:
        input: What the handler receives: any JSON value.
        policy: The server's clocks for it.
        webhook: http(s) URL that gets the result.
        webhook_v2: Passed on as given; its meaning is undocumented.
        s3_config: Bucket credentials for the worker; never shown.
    """

    input: Any
    policy: ExecutionPolicy = field(default_factory=ExecutionPolicy)
    webhook: str | None = None
    webhook_v2: str | None = None
    s3_config: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_json(self, dialect: Dialect = RUNPOD_DIALECT, *, queued: bool = True) -> dict[str, Any]:
        """The request body.

        Args:
            dialect: The provider's wording.
            queued: Whether it is answered at once; else when its result is there.

        Raises:
            InputError: This dialect has no documented field for something that was asked.
        """
        known = dialect.request_fields if queued or dialect.has_sync_options else {}
        where = dialect.name if queued or known else f"{dialect.name}'s runsync"
        document: dict[str, Any] = {"input": self.input, **(dialect.constants if queued else {})}
        for name, value in self._options().items():
            theirs = known.get(name)
            if theirs is None:
                typed = " (--exec-timeout)" if name == "execution_timeout" else ""
                raise InputError(f"{name}{typed} is not documented for {where}; nothing was sent.")
            *parents, leaf = theirs.split(".")
            target = document
            for parent in parents:
                target = target.setdefault(parent, {})
            if name in ("execution_timeout", "ttl"):
                target[leaf] = round(value / dialect.time_unit)
            else:
                target[leaf] = "low" if leaf == "priority" else value
        return document

    def _options(self) -> dict[str, Any]:
        options = {
            "webhook": self.webhook,
            "webhook_v2": self.webhook_v2,
            "s3_config": dict(self.s3_config) if self.s3_config else None,
            "execution_timeout": self.policy.execution_timeout,
            "ttl": self.policy.ttl,
            "low_priority": self.policy.low_priority or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    @classmethod
    def from_json(cls, document: Any) -> JobRequest:
        """Read a request body, as the embedded server does.

        Raises:
            InputError: It is not an object with an `input`, or a field has the wrong type.
        """
        if not isinstance(document, Mapping):
            raise InputError("the body must be a JSON object with the key 'input'")
        if "input" not in document:
            raise InputError("the body has no 'input'")
        policy = document.get("policy") or {}
        if not isinstance(policy, Mapping):
            raise InputError("'policy' must be an object")
        for name in ("webhook", "webhookV2"):
            if document.get(name) is not None and not isinstance(document[name], str):
                raise InputError(f"'{name}' must be a URL")
        s3_config = document.get("s3Config")
        if s3_config is not None and not isinstance(s3_config, Mapping):
            raise InputError("'s3Config' must be an object")
        return cls(
            input=document["input"],
            policy=ExecutionPolicy(
                execution_timeout=_milliseconds(policy, "executionTimeout"),
                ttl=_milliseconds(policy, "ttl"),
                low_priority=bool(policy.get("lowPriority")),
            ),
            webhook=document.get("webhook"),
            webhook_v2=document.get("webhookV2"),
            s3_config=s3_config,
        )


def _milliseconds(policy: Mapping[str, Any], name: str) -> float | None:
    value = policy.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _HUGE:
        raise InputError(f"'policy.{name}' must be a positive number of milliseconds below 1e15")
    return value / 1000


# ---------------------------------------------------------------------------------- answers


def read_job(
    document: Any,
    *,
    endpoint: str,
    dialect: Dialect = RUNPOD_DIALECT,
    job_id: str = "",
    seen_at: float | None = None,
) -> Job:
    """Read a job document: half characters are mended, and numbers that no job can have are left out.

    Args:
        document: The answer's JSON.
        endpoint: Whose job it is.
        dialect: The provider's wording.
        job_id: The id where the answer carries none. The answer to a submission has none to stand
            in for it: what cannot be read there may be the news of a job that runs.
        seen_at: Seconds since the epoch; None means now.

    Raises:
        ProtocolError: It is not a job document.
    """
    fate = "" if job_id else "; the job may have been queued all the same"
    if not isinstance(document, Mapping):
        raise ProtocolError(f"expected a job document, got {_excerpt(document)}{fate}", job_id=job_id or None)
    document = {dialect.fields.get(key, key): value for key, value in _whole(document, job_id).items()}
    status = _status_word(document.get("status"))
    if not status:
        raise ProtocolError(
            f"a job document without a status: {_excerpt(document)}{fate}", job_id=job_id or None
        )
    known = JobStatus(dialect.words.get(status, status))
    if document.get("output") is None and (progress := _progress(document, known, dialect)):
        document["output"] = progress
    identity = document.get("id")
    error = document.get("error")
    retries = document.get("retries")
    return Job(
        id=identity if isinstance(identity, str) and identity else job_id,
        endpoint=endpoint,
        status=known,
        output=document.get("output"),
        has_output="output" in document,
        error=None if error in (None, "") else read_worker_error(error),
        delay_time=_duration(document.get("delayTime"), dialect),
        execution_time=_duration(document.get("executionTime"), dialect),
        worker_id=_text(document.get("workerId")),
        retries=retries if isinstance(retries, int) and 0 <= retries < _MOST_RETRIES else None,
        seen_at=time.time() if seen_at is None else seen_at,
        input=document.get("input"),
    )


def _progress(document: Mapping[str, Any], status: JobStatus, dialect: Dialect) -> dict[str, Any]:
    """What a running job said of its progress in fields of their own, as a worker's update has it."""
    if status.is_final or status is JobStatus.IN_QUEUE:
        return {}
    fields = dialect.progress_fields.items()
    return {ours: document[theirs] for theirs, ours in fields if document.get(theirs) not in (None, "")}


def read_stream(
    document: Any, *, first_index: int = 0, dialect: Dialect = RUNPOD_DIALECT
) -> tuple[JobStatus | None, list[StreamChunk]]:
    """Read one answer of `/stream`: the status (None where the answer tells none) and its chunks.

    The documented shape is `{"status", "stream": [{"output"}]}`; the documentation's own example
    is a naked list of chunks, and a missing or null `stream` means no chunks.

    A character that was cut in two between two strings of the same answer is joined in the later
    one. Between two answers it cannot be: what each of them has of it becomes U+FFFD.

    Raises:
        ProtocolError: It is neither.
    """
    if isinstance(document, Mapping):
        status = _status_word(document.get("status"))
        rows = document.get("stream")
        known = JobStatus(_whole(dialect.words.get(status, status))) if status else None
        if known is None and rows is None:
            raise ProtocolError(f"expected a stream answer, got {_excerpt(document)}")
        rows = [] if rows is None else rows
    else:
        known, rows = None, document
    if not isinstance(rows, list):
        raise ProtocolError(f"expected a list of chunks, got {_excerpt(rows)}")
    outputs = _whole([row["output"] if _is_wrapped(row) else row for row in rows])
    return known, [
        StreamChunk(output, index, _metrics(row))
        for index, (output, row) in enumerate(zip(outputs, rows, strict=True), first_index)
    ]


def _is_wrapped(row: Any) -> bool:
    return isinstance(row, Mapping) and "output" in row


def _metrics(row: Any) -> Mapping[str, Any] | None:
    metrics = row.get("metrics") if _is_wrapped(row) else None
    return _whole(metrics) if isinstance(metrics, Mapping) else None


def read_health(document: Any, *, seen_at: float | None = None) -> Health:
    """Read the counters of `/health`; those that are missing count as 0, unknown ones are kept.

    Raises:
        ProtocolError: It is not an object.
    """
    if not isinstance(document, Mapping):
        raise ProtocolError(f"expected health counters, got {_excerpt(document)}")
    return Health(
        jobs=_counts(_whole(document.get("jobs"))),
        workers=_counts(_whole(document.get("workers"))),
        seen_at=time.time() if seen_at is None else seen_at,
    )


def _counts(value: Any) -> Counts:
    rows = value.items() if isinstance(value, Mapping) else ()
    return Counts(
        {
            _snake(str(key)): int(number)
            for key, number in rows
            if isinstance(number, (int, float)) and abs(number) < _HUGE
        }
    )


def read_purged(document: Any) -> int:
    """Read how many queued jobs a purge removed.

    Raises:
        ProtocolError: The answer has no `removed`, or one that no queue can have had.
    """
    removed = document.get("removed") if isinstance(document, Mapping) else None
    if isinstance(removed, bool) or not isinstance(removed, int) or not 0 <= removed < _HUGE:
        raise ProtocolError(f"expected the number of removed jobs, got {_excerpt(document)}")
    return removed


def read_requests(document: Any, *, endpoint: str, dialect: Dialect = RUNPOD_DIALECT) -> list[Job]:
    """Read the list of `/requests`, whose shape is undocumented: a list, or one under any key."""
    rows = document
    if isinstance(document, Mapping):
        rows = next((value for value in document.values() if isinstance(value, list)), [])
    if not isinstance(rows, list):
        raise ProtocolError(f"expected a list of requests, got {_excerpt(document)}")
    return [
        read_job(row, endpoint=endpoint, dialect=dialect)
        for row in rows
        if isinstance(row, Mapping) and isinstance(row.get("status"), str)
    ]


_GENERATOR_ERROR = re.compile(r"\Ahandler: (?P<message>.*?)\s*\n\s*traceback: (?P<traceback>.*)\Z", re.DOTALL)
_CLASS = re.compile(r"\A<class '(?:.*\.)?(?P<name>\w+)'>\Z")
_MESSAGE_KEYS = ("error_message", "message", "error", "detail", "msg", "reason")


def read_worker_error(value: Any) -> WorkerError:
    """Read `error` in any of the shapes that workers send.

    A string that holds JSON (a plain handler raised), any other string, an object or a list (a
    handler returned it), `handler: MESSAGE traceback: ...` (a generator raised), or the Python
    repr of an object (a generator yielded it). Whatever it is, `raw` keeps it.
    """
    try:
        return _read_error(whole(value))
    except RecursionError:
        return WorkerError(message="the worker's error is nested too deeply to be read", raw=value)


def _read_error(value: Any) -> WorkerError:
    if isinstance(value, str):
        parsed = _parsed(value)
        if isinstance(parsed, Mapping):
            return _from_mapping(parsed, value)
        match = _GENERATOR_ERROR.match(value)
        if match:
            return WorkerError(
                message=match["message"].strip() or "the handler raised",
                type=_traceback_type(match["traceback"]),
                traceback=match["traceback"].strip(),
                raw=value,
            )
        return WorkerError(message=value.strip() or "the worker gave an empty error", raw=value)
    if isinstance(value, Mapping):
        return _from_mapping(value, value)
    if isinstance(value, Sequence) and value:
        return WorkerError(message="; ".join(_read_error(item).message for item in value), raw=value)
    return WorkerError(message=_excerpt(value), raw=value)


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return whole(json.loads(text))
    with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return whole(ast.literal_eval(text.strip()))
    return None


def _from_mapping(value: Mapping[Any, Any], raw: Any) -> WorkerError:
    told = (value.get(key) for key in _MESSAGE_KEYS)
    message = next((text for text in told if text and not (isinstance(text, str) and text.isspace())), None)
    if isinstance(message, Mapping):
        inner = _from_mapping(message, raw)
        return WorkerError(inner.message, inner.type, inner.traceback, _text(value.get("worker_id")), raw)
    kind = next(filter(None, (_text(value.get(key)) for key in ("error_type", "type", "code"))), None)
    match = _CLASS.match(kind or "")
    return WorkerError(
        message=message if isinstance(message, str) else _excerpt(value if message is None else message),
        type=match["name"] if match else kind,
        traceback=_text(value.get("error_traceback")) or _text(value.get("traceback")),
        worker_id=_text(value.get("worker_id")),
        raw=raw,
    )


def _traceback_type(text: str) -> str | None:
    last = text.strip().rpartition("\n")[2]
    name = last.partition(":")[0].rpartition(".")[2]
    return name if name.isidentifier() else None


# ---------------------------------------------------------------------------------- the server's side


def job_to_json(job: Job) -> dict[str, Any]:
    """The job document of a snapshot; fields that are not known yet are left out."""
    document: dict[str, Any] = {"id": job.id, "status": str(job.status)}
    if job.delay_time is not None:
        document["delayTime"] = round(job.delay_time * 1000)
    if job.execution_time is not None:
        document["executionTime"] = round(job.execution_time * 1000)
    if job.worker_id is not None:
        document["workerId"] = job.worker_id
    if job.has_output:
        document["output"] = job.output
    if job.error is not None:
        document["error"] = job.error.raw if job.error.raw is not None else job.error.message
    if job.retries is not None:
        document["retries"] = job.retries
    return document


def chunks_to_json(status: JobStatus, chunks: Iterable[StreamChunk]) -> dict[str, Any]:
    """One answer of `/stream`."""
    return {"status": str(status), "stream": [{"output": chunk.output} for chunk in chunks]}


def health_to_json(health: Health) -> dict[str, Any]:
    """The answer of `/health`."""
    return {
        "jobs": {_camel(name): count for name, count in sorted(health.jobs.items())},
        "workers": {_camel(name): count for name, count in sorted(health.workers.items())},
    }


def worker_error_to_json(error: WorkerError, *, version: str = "") -> str:
    """The `error` string that a worker sends when its plain handler raised: JSON in a string."""
    return json.dumps(
        {
            "error_type": f"<class '{error.type or 'Exception'}'>",
            "error_message": error.message,
            "error_traceback": error.traceback or "",
            "hostname": "localhost",
            "worker_id": error.worker_id or "",
            "runpod_version": version,
        }
    )


# ---------------------------------------------------------------------------------- small parts


def _whole(value: Any, job_id: str = "") -> Any:
    try:
        return whole(value)
    except RecursionError:
        raise ProtocolError("the answer is nested too deeply to be read", job_id=job_id or None) from None


def _duration(value: Any, dialect: Dialect) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return round(value * dialect.time_unit, 6) if abs(value) < _TEN_YEARS / dialect.time_unit else None


def _status_word(value: Any) -> str:
    """An unknown word is shown wherever a known one is: it is kept, but as one short line."""
    return " ".join(value.split())[:_LONGEST_WORD] if isinstance(value, str) else ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _excerpt(value: Any, length: int = 200) -> str:
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that JSON does not have, or too deep
        text = reprlib.repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)
