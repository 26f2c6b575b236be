"""How each provider words what all of them mean: routes, status words, names and units of fields.

TensorOne's two are written from its public pages; no service was asked. Where those contradict each
other or are silent, this is what is done:

- Its SDK guide is laid out as Runpod's (`/v2/ENDPOINT/run`, `id`, `output`, milliseconds), its API
  reference otherwise (`/v2/endpoints/ENDPOINT/runasync`, `jobId`, `result`, seconds): two dialects, and
  the user chooses. The `url` of an endpoint, as the reference's own example shows it, has the guide's layout.
- The guide names run, runsync, status, stream, cancel, purge-queue and health, and not the others that Runpod
  has; the reference names run, runsync and status. An endpoint's page has no counters, so it is no health.
- The guide compares with COMPLETED, the reference answers `completed`: both are read in both dialects.
  Any other word is kept as it came.
- `runsync` is shown with `input` alone, without `wait`, and its answer without an id: nothing else is sent
  with it, the answer is waited for, and such a job cannot be asked about later.
- The answer of `runasync` is not shown: `jobId` is read, as in a status, or `id`; one without a status
  is a queued job.
- The rate limit page names a route `execute` that the reference does not have: it is never called.
- `progress` and `currentStep` are read while the job runs; they are no result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "RUNPOD_DIALECT",
    "RUNPOD_ROUTES",
    "TENSORONE_DIALECT",
    "TENSORONE_REST_DIALECT",
    "TENSORONE_REST_ROUTES",
    "TENSORONE_ROUTES",
    "Dialect",
    "Operation",
    "Route",
]


class Operation(StrEnum):
    """What can be asked of an endpoint."""

    RUN = "run"
    RUNSYNC = "runsync"
    STATUS = "status"
    STATUS_SYNC = "status-sync"
    STREAM = "stream"
    CANCEL = "cancel"
    RETRY = "retry"
    PURGE_QUEUE = "purge-queue"
    HEALTH = "health"
    REQUESTS = "requests"
    OPENAI = "openai"
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Route:
    """One documented route.

    Args:
        method: GET or POST.
        path: Below the base URL, with `{endpoint}` and, where a job is meant, `{job}`.
        takes_wait: Whether its query says for how long the answer may be held (`wait`, milliseconds).
    """

    method: str
    path: str
    takes_wait: bool = False

    @property
    def is_about_a_job(self) -> bool:
        """Whether it needs a job's id."""
        return "{job}" in self.path

    def fill(self, endpoint: str, job: str = "") -> str:
        return self.path.format(endpoint=endpoint, job=job)


RUNPOD_ROUTES: Mapping[Operation, Route] = MappingProxyType(
    {
        Operation.RUN: Route("POST", "/{endpoint}/run"),
        Operation.RUNSYNC: Route("POST", "/{endpoint}/runsync", takes_wait=True),
        Operation.STATUS: Route("GET", "/{endpoint}/status/{job}"),
        Operation.STATUS_SYNC: Route("GET", "/{endpoint}/status-sync/{job}", takes_wait=True),
        Operation.STREAM: Route("GET", "/{endpoint}/stream/{job}", takes_wait=True),
        Operation.CANCEL: Route("POST", "/{endpoint}/cancel/{job}"),
        Operation.RETRY: Route("POST", "/{endpoint}/retry/{job}"),
        Operation.PURGE_QUEUE: Route("POST", "/{endpoint}/purge-queue"),
        Operation.HEALTH: Route("GET", "/{endpoint}/health"),
        Operation.REQUESTS: Route("GET", "/{endpoint}/requests"),
        Operation.OPENAI: Route("POST", "/{endpoint}/openai/v1/chat/completions"),
        Operation.MODELS: Route("GET", "/{endpoint}/openai/v1/models"),
    }
)

# What is missing in these two is not documented there.
TENSORONE_ROUTES: Mapping[Operation, Route] = MappingProxyType(
    {
        operation: RUNPOD_ROUTES[operation]
        for operation in (
            Operation.RUN,
            Operation.RUNSYNC,
            Operation.STATUS,
            Operation.STREAM,
            Operation.CANCEL,
            Operation.PURGE_QUEUE,
            Operation.HEALTH,
        )
    }
)
TENSORONE_REST_ROUTES: Mapping[Operation, Route] = MappingProxyType(
    {
        Operation.RUN: Route("POST", "/endpoints/{endpoint}/runasync"),
        Operation.RUNSYNC: Route("POST", "/endpoints/{endpoint}/runsync"),
        Operation.STATUS: Route("GET", "/jobs/{job}/status"),
    }
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one provider words what all of them mean.

    Args:
        name: For messages.
        time_unit: Seconds per unit of its time fields.
        words: Its status words that differ from ours.
        fields: Its answer fields that differ from ours, theirs to ours.
        progress_fields: Its answer fields that tell a running job's progress, theirs to ours.
        request_fields: Ours to theirs, for what a request carries beside `input`; what is not
            named here cannot be asked of this provider.
        has_sync_options: Whether a `runsync` takes those too.
        constants: What every queued request carries.
    """

    name: str
    time_unit: float
    words: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    progress_fields: Mapping[str, str] = field(default_factory=dict)
    request_fields: Mapping[str, str] = field(default_factory=dict)
    has_sync_options: bool = True
    constants: Mapping[str, Any] = field(default_factory=dict)


RUNPOD_DIALECT = Dialect(
    name="runpod",
    time_unit=0.001,
    request_fields={
        "webhook": "webhook",
        "webhook_v2": "webhookV2",
        "s3_config": "s3Config",
        "execution_timeout": "policy.executionTimeout",
        "ttl": "policy.ttl",
        "low_priority": "policy.lowPriority",
    },
)

_TENSORONE_WORDS = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
}
TENSORONE_DIALECT = replace(RUNPOD_DIALECT, name="tensorone", words=_TENSORONE_WORDS)
TENSORONE_REST_DIALECT = Dialect(
    name="tensorone-rest",
    time_unit=1.0,
    words=_TENSORONE_WORDS,
    fields={"jobId": "id", "result": "output"},
    progress_fields={"progress": "percent", "currentStep": "step"},
    request_fields={"webhook": "callbackUrl", "low_priority": "priority"},
    has_sync_options=False,
    constants={"async": True},
)
