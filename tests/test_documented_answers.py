"""Answers such as the providers' documentation and SDKs describe, said by a server, read by our client.

Each example was written by hand from the facts: its fields, their units, their shapes. Whatever the
provider, they come out as the same values.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rude import KEY, always, answer, rude, script

from notebook_ext.client import Endpoint
from notebook_ext.errors import (
    AuthenticationError,
    BadRequest,
    JobCancelled,
    JobFailed,
    JobLost,
    JobTimedOut,
    NotFoundError,
    PermissionDenied,
    RateLimitError,
    ServerError,
)
from notebook_ext.types import Counts, Job, JobStatus, Progress, StreamChunk, WorkerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rude import Respond

    Ask = Callable[[Endpoint], Awaitable[Any]]

ID = "5f3c1c1e-7d5b-4f0e-9f43-0b8f6f4f2a11-u1"
TIMES = {"delayTime": 812, "executionTime": 3391, "workerId": "w4k7zq"}
TAKEN = {"delay_time": 0.812, "worker_id": "w4k7zq"}
ENDED = {**TAKEN, "execution_time": 3.391}


def ask(respond: Respond, question: Ask, provider: str | None = None) -> Any:
    """What our client makes of the server's answers."""

    async def scenario() -> Any:
        async with rude(respond) as server, Endpoint("ep", provider or server.url, KEY) as endpoint:
            return await question(endpoint)

    return asyncio.run(scenario())


def job(status: str, **fields: Any) -> Job:
    """What is expected of an answer about the job, seen at no time."""
    known = {"id": ID, "endpoint": "ep", "has_output": "output" in fields}
    return Job(**{**known, "status": JobStatus(status), **fields})


def at_no_time(seen: Job) -> Job:
    return replace(seen, seen_at=0.0)


async def _all(events: Any) -> list[Any]:
    return [event async for event in events]


# ---------------------------------------------------------------------------------- the job document

RAISED = json.dumps(
    {
        "error_type": "<class 'torch.cuda.OutOfMemoryError'>",
        "error_message": "no memory is left",
        "error_traceback": "Traceback (most recent call last):\n  File ...",
        "hostname": "w4k7zq-host",
        "worker_id": "w4k7zq",
        "runpod_version": "1.12.0",
    }
)
GENERATOR = "handler: no luck \ntraceback: Traceback (most recent call last):\nValueError: no luck\n"
PICTURE = {"images": [{"filename": "a.png", "type": "base64", "data": "iVBORw0KGgo="}]}

DOCUMENTS = {
    "queued": ({"status": "IN_QUEUE"}, job("IN_QUEUE")),
    "taken": ({"status": "IN_PROGRESS", "delayTime": 812, "workerId": "w4k7zq"}, job("IN_PROGRESS", **TAKEN)),
    "a word of the job-states page": ({"status": "RUNNING"}, job("IN_PROGRESS")),
    "progress": (
        {"status": "IN_PROGRESS", **TIMES, "output": {"step": 2, "of": 5}},
        job("IN_PROGRESS", **ENDED, output={"step": 2, "of": 5}),
    ),
    "completed": (
        {"status": "COMPLETED", **TIMES, "output": {"text": "hi"}},
        job("COMPLETED", **ENDED, output={"text": "hi"}),
    ),
    "completed, as in the documentation's examples": (
        {
            "status": "COMPLETED",
            "delayTime": 31618,
            "executionTime": 1437,
            "output": [{"image": "https://x"}],
        },
        job("COMPLETED", delay_time=31.618, execution_time=1.437, output=[{"image": "https://x"}]),
    ),
    "completed without an output": ({"status": "COMPLETED", **TIMES}, job("COMPLETED", **ENDED)),
    "completed with null": (
        {"status": "COMPLETED", **TIMES, "output": None},
        job("COMPLETED", **ENDED, output=None),
    ),
    "streamed without an aggregate": (
        {"status": "COMPLETED", **TIMES, "output": []},
        job("COMPLETED", **ENDED, output=[]),
    ),
    "a picture": (
        {"status": "COMPLETED", **TIMES, "output": PICTURE},
        job("COMPLETED", **ENDED, output=PICTURE),
    ),
    "restarted": ({"status": "IN_PROGRESS", "retries": 2}, job("IN_PROGRESS", retries=2)),
    "with its input, as in 2023": (
        {"status": "IN_QUEUE", "input": {"prompt": "x"}},
        job("IN_QUEUE", input={"prompt": "x"}),
    ),
    "what a webhook carries": (
        {"status": "COMPLETED", **TIMES, "output": 1, "input": {"prompt": "x"}, "webhook": "https://x/y"},
        job("COMPLETED", **ENDED, output=1, input={"prompt": "x"}),
    ),
    "cancelled": ({"status": "CANCELLED"}, job("CANCELLED")),
    "cancelled while it ran": ({"status": "CANCELLED", **TIMES}, job("CANCELLED", **ENDED)),
    "expired in the queue": ({"status": "TIMED_OUT"}, job("TIMED_OUT")),
    "a plain handler raised": (
        {"status": "FAILED", **TIMES, "error": RAISED},
        job(
            "FAILED",
            **ENDED,
            error=WorkerError(
                "no memory is left",
                type="OutOfMemoryError",
                traceback="Traceback (most recent call last):\n  File ...",
                worker_id="w4k7zq",
                raw=RAISED,
            ),
        ),
    ),
    "a handler returned a text": (
        {"status": "FAILED", **TIMES, "error": "no such model", "output": {"tried": 3}},
        job("FAILED", **ENDED, error=WorkerError("no such model", raw="no such model"), output={"tried": 3}),
    ),
    "a handler returned an object": (
        {"status": "FAILED", "error": {"message": "too long", "type": "BadRequestError"}},
        job(
            "FAILED",
            error=WorkerError(
                "too long", type="BadRequestError", raw={"message": "too long", "type": "BadRequestError"}
            ),
        ),
    ),
    "a handler returned a list": (
        {"status": "FAILED", "error": ["no a", "no b"]},
        job("FAILED", error=WorkerError("no a; no b", raw=["no a", "no b"])),
    ),
    "a generator raised": (
        {"status": "FAILED", "error": GENERATOR},
        job(
            "FAILED",
            error=WorkerError(
                "no luck",
                type="ValueError",
                traceback="Traceback (most recent call last):\nValueError: no luck",
                raw=GENERATOR,
            ),
        ),
    ),
    "a generator yielded an error": (
        {"status": "FAILED", "error": "{'message': 'too long'}"},
        job("FAILED", error=WorkerError("too long", raw="{'message': 'too long'}")),
    ),
    "a word that nobody knows": ({"status": "PAUSED"}, job("PAUSED")),
    "a batch that was started": ({"status": "FINALIZED", "requestTotal": 2}, job("FINALIZED")),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_job_document(name: str) -> None:
    document, expected = DOCUMENTS[name]
    seen = ask(script(status={"id": ID, **document}), lambda endpoint: endpoint.status(ID))
    assert at_no_time(seen) == expected


def test_which_states_are_final() -> None:
    final = {str(expected.status) for _, expected in DOCUMENTS.values() if expected.status.is_final}
    assert final == {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


def test_progress_is_what_a_running_job_says_and_no_result() -> None:
    said = {name: expected.progress for name, (_, expected) in DOCUMENTS.items() if expected.progress}
    assert said == {"progress": Progress(0.4, "2/5")}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"status": "FAILED", "error": RAISED}, JobFailed),
        ({"status": "CANCELLED"}, JobCancelled),
        ({"status": "TIMED_OUT"}, JobTimedOut),
    ],
    ids=["FAILED", "CANCELLED", "TIMED_OUT"],
)
def test_who_waits_is_told_how_it_ended(document: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"job {ID} on ep"):
        ask(script(runsync={"id": ID, **document}), lambda endpoint: endpoint.run_sync({}))


# ---------------------------------------------------------------------------------- other operations


def test_a_submission_and_what_changes_it() -> None:
    respond = script(
        run={"id": ID, "status": "IN_QUEUE"},
        cancel={"id": ID, "status": "CANCELLED", "delayTime": 812, "executionTime": 3391},
        retry={"id": ID, "status": "IN_QUEUE"},
        purge_queue={"removed": 2, "status": "completed"},
    )
    queued = job("IN_QUEUE")
    assert at_no_time(ask(respond, lambda endpoint: endpoint.run({"prompt": "x"}))) == queued
    cancelled = job("CANCELLED", delay_time=0.812, execution_time=3.391)
    assert at_no_time(ask(respond, lambda endpoint: endpoint.cancel(ID))) == cancelled
    assert at_no_time(ask(respond, lambda endpoint: endpoint.retry(ID))) == queued
    assert ask(respond, lambda endpoint: endpoint.purge_queue()) == 2


def test_a_runsync_that_is_not_over_is_gone_on_with() -> None:
    identity = f"sync-{ID}"
    respond = script(
        runsync={"id": identity, "status": "IN_QUEUE"},
        status_sync=[
            {"id": identity, "status": "IN_PROGRESS", "delayTime": 812},
            {"id": identity, "status": "COMPLETED", **TIMES, "output": "hi"},
        ],
    )
    seen = ask(respond, lambda endpoint: endpoint.run_sync({"prompt": "x"}))
    assert at_no_time(seen) == job("COMPLETED", id=identity, **ENDED, output="hi")


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ({"idle": 0, "running": 0}, {"idle": 0, "running": 0}),  # the documentation's own example
        (
            {"idle": 1, "initializing": 2, "ready": 1, "running": 3, "throttled": 4, "unhealthy": 5},
            {"idle": 1, "initializing": 2, "ready": 1, "running": 3, "throttled": 4, "unhealthy": 5},
        ),
    ],
    ids=["two counters", "all counters"],
)
def test_health(workers: dict[str, int], expected: dict[str, int]) -> None:
    jobs = {"completed": 1, "failed": 5, "inProgress": 0, "inQueue": 2, "retried": 3}
    health = ask(script(health={"jobs": jobs, "workers": workers}), lambda endpoint: endpoint.health())
    assert health.jobs == Counts(completed=1, failed=5, in_progress=0, in_queue=2, retried=3)
    assert health.workers == Counts(expected)
    assert health.workers["outdated"] == 0


def test_the_requests_of_a_batch_read_like_jobs() -> None:
    listed = {
        "requests": [
            {"id": "r1", "status": "COMPLETED", "output": 1, "startedAt": "2026-08-01T10:00:00Z"},
            {"id": "r2", "status": "FAILED", "error": "no luck", "completedAt": "2026-08-01T10:00:01Z"},
        ],
        "total": 2,
        "offset": 0,
        "limit": 100,
        "hasMore": False,
    }
    seen = ask(script(requests=listed), lambda endpoint: endpoint.requests())
    assert [at_no_time(row) for row in seen] == [
        job("COMPLETED", id="r1", output=1),
        job("FAILED", id="r2", error=WorkerError("no luck", raw="no luck")),
    ]


# ---------------------------------------------------------------------------------- streams

OLD_TOKENS = {"choices": [{"tokens": ["He", "llo"]}], "usage": {"input": 3, "output": 2}}
EVENTS = [
    'data: {"choices": [{"delta": {"content": "He"}}]}\n\nda',
    'ta: {"choices": []}\n\ndata: [DONE]\n\n',
]


@pytest.mark.parametrize(
    ("outputs", "status"),
    [
        (["Hel", "lo"], "COMPLETED"),
        ([None, 0, "", False, [], {}], "COMPLETED"),
        ([OLD_TOKENS], "COMPLETED"),
        (EVENTS, "COMPLETED"),
        ([], "COMPLETED"),
    ],
    ids=["text", "whatever was yielded", "tokens of an older worker", "events cut anywhere", "nothing"],
)
def test_a_stream(outputs: list[Any], status: str) -> None:
    respond = script(
        stream=[
            {"status": "IN_PROGRESS", "stream": []},
            {"status": "IN_PROGRESS", "stream": [{"output": output} for output in outputs[:1]]},
            {"status": status, "stream": [{"output": output} for output in outputs[1:]]},
        ]
    )
    chunks = ask(respond, lambda endpoint: _all(endpoint.stream(ID)))
    assert chunks == [StreamChunk(output, index) for index, output in enumerate(outputs)]


def test_metrics_stand_beside_a_chunk() -> None:
    metrics = {"avg_gen_throughput": 12.5}
    respond = script(stream={"status": "COMPLETED", "stream": [{"output": "a", "metrics": metrics}]})
    assert ask(respond, lambda endpoint: _all(endpoint.stream(ID))) == [StreamChunk("a", 0, metrics)]


def test_a_naked_list_is_the_documentations_own_example() -> None:
    """No SDK can read it, and it tells no state: that is asked for."""
    respond = script(
        stream=[[{"output": "a"}, {"output": "b"}], []],
        status={"id": ID, "status": "COMPLETED", "output": []},
    )
    chunks = ask(respond, lambda endpoint: _all(endpoint.stream(ID)))
    assert [chunk.output for chunk in chunks] == ["a", "b"]


def test_an_error_is_not_streamed_but_told_by_the_status() -> None:
    respond = script(
        stream=[
            {"status": "IN_PROGRESS", "stream": [{"output": "a"}]},
            {"status": "FAILED", "stream": []},
        ],
        status={"id": ID, "status": "FAILED", "error": GENERATOR},
    )
    with pytest.raises(JobFailed, match="ValueError: no luck"):
        ask(respond, lambda endpoint: _all(endpoint.stream(ID)))


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer({"error": "bad input"}, 400), BadRequest),
        (answer(None, 401, text="Unauthorized"), AuthenticationError),
        (answer(None, 402, text=""), PermissionDenied),
        (answer({"error": "endpoint not found"}, 404), NotFoundError),
        (answer(None, 413, text="<html><h1>413 Request Entity Too Large</h1></html>"), BadRequest),
        (answer(None, 502, text="<html><h1>502 Bad Gateway</h1></html>"), ServerError),
    ],
    ids=["400", "401", "402", "404", "413", "502"],
)
def test_a_refused_submission_has_a_class_of_its_own(said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^run on ep: "):
        ask(script(run=said), lambda endpoint: endpoint.run({}))


def test_too_many_requests_say_when_to_come_back() -> None:
    said = answer({"error": "too many requests"}, 429, Retry_After="120")
    with pytest.raises(RateLimitError) as caught:
        ask(script(run=said), lambda endpoint: endpoint.run({}))
    assert caught.value.retry_after == 120


@pytest.mark.parametrize("look", [Endpoint.status, Endpoint.cancel, Endpoint.status_sync])
def test_a_job_that_has_expired_is_lost(look: Callable[[Endpoint, str], Awaitable[Job]]) -> None:
    with pytest.raises(JobLost, match="expired"):
        ask(always(answer({"error": "request does not exist"}, 404)), lambda endpoint: look(endpoint, ID))


# ---------------------------------------------------------------------------------- TensorOne's REST pages


def tensorone(document: Any, question: Ask, patch: pytest.MonkeyPatch, status: int = 200) -> Any:
    async def scenario() -> Any:
        async with rude(always(answer(document, status))) as server:
            patch.setenv("TENSORONE_BASE_URL", server.url)
            async with Endpoint("ep", "tensorone-rest", KEY) as endpoint:
                return await question(endpoint)

    return asyncio.run(scenario())


def test_tensorone_answers_runsync_without_an_id_and_in_seconds(monkeypatch) -> None:
    document = {
        "output": {"text": "hi"},
        "status": "completed",
        "executionTime": 1.23,
        "metadata": {"model": "m", "tokensUsed": 7, "cost": 0.01},
    }
    seen = tensorone(document, lambda endpoint: endpoint.run_sync({}), monkeypatch)
    assert at_no_time(seen) == job("COMPLETED", id="", execution_time=1.23, output={"text": "hi"})


TENSORONE = {
    "queued": ({"status": "queued", "progress": 0}, job("IN_QUEUE")),
    "running": (
        {"status": "running", "progress": 1, "currentStep": "loading", "startedAt": "2026-08-01T10:00:01Z"},
        job("IN_PROGRESS", output={"percent": 1, "step": "loading"}),
    ),
    "completed": (
        {"status": "completed", "progress": 100, "result": {"text": "hi"}, "metadata": {}},
        job("COMPLETED", output={"text": "hi"}),
    ),
    "failed": (
        {"status": "failed", "result": None, "error": {"code": "OOM", "message": "no memory"}},
        job(
            "FAILED",
            output=None,
            error=WorkerError("no memory", type="OOM", raw={"code": "OOM", "message": "no memory"}),
        ),
    ),
}


@pytest.mark.parametrize("name", TENSORONE)
def test_a_tensorone_status(name: str, monkeypatch) -> None:
    document, expected = TENSORONE[name]
    told = {"jobId": ID, "endpointId": "ep", "createdAt": "2026-08-01T10:00:00Z", **document}
    assert at_no_time(tensorone(told, lambda endpoint: endpoint.status(ID), monkeypatch)) == expected


def test_the_progress_of_tensorone_is_a_percentage() -> None:
    assert TENSORONE["running"][1].progress == Progress(0.01, "loading")


def test_a_tensorone_error_says_its_message(monkeypatch) -> None:
    document = {
        "error": "VALIDATION_ERROR",
        "message": "the input is too long",
        "code": 422,
        "details": {},
        "request_id": "r1",
        "timestamp": "2026-08-01T10:00:00Z",
    }
    with pytest.raises(BadRequest, match=r"VALIDATION_ERROR: the input is too long$"):
        tensorone(document, lambda endpoint: endpoint.run({}), monkeypatch, 422)
