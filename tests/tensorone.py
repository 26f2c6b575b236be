"""A server that follows TensorOne's public pages: the routes of its API reference, and those of its SDK guide.

It knows nothing of the client under test. What the pages leave open is answered as they come closest to it.
The input of a job says how it goes:

- `{"prompt": text}` ends with `{"text": text}`,
- `looks` (2): so many looks at its status find it unfinished, the first of them in the queue,
- `error`: the message with which it fails,
- `word`: a status that no page knows, while it runs,
- `seconds` (0): for so long `runsync` keeps its answer back.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rude import answer, listening, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rude import Asked

KEY = "tpo_planted0key1that2must3not4show"
ENDPOINT = "ep-1"
CREATED, STARTED = "2026-01-15T10:30:00Z", "2026-01-15T10:30:02Z"
WORDS = {"FAILED": "failed", "COMPLETED": "completed", "IN_QUEUE": "queued", "IN_PROGRESS": "running"}
ERRORS = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    409: "CONFLICT",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMIT_EXCEEDED",
}


@dataclass
class Job:
    """One job, which gets on whenever it is looked at."""

    id: str
    input: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    looked: int = 0
    is_cancelled: bool = False
    streamed: int = 0

    @property
    def looks(self) -> int:
        return self.input.get("looks", 2)

    @property
    def state(self) -> str:
        """Where it stands, in the guide's words."""
        if self.is_cancelled:
            return "CANCELLED"
        if self.looked >= self.looks:
            return "FAILED" if "error" in self.input else "COMPLETED"
        return "IN_PROGRESS" if self.looked else "IN_QUEUE"

    @property
    def result(self) -> Any:
        return {"text": self.input["prompt"]} if self.state == "COMPLETED" else None

    def look(self) -> str:
        """Where it stands; the next look finds it further."""
        state = self.state
        self.looked += 1
        return state


class TensorOne:
    """What the server has seen, and what it is to refuse.

    Attributes:
        url: Its base URL.
        asked: The requests, in order.
        jobs: By id.
        refuse: What the next requests are answered with, instead of what they ask for.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.jobs: dict[str, Job] = {}
        self.refuse: list[bytes] = []

    @property
    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read(reader, writer)
            self.asked.append(asked)
            await asked.send(self.refuse.pop(0) if self.refuse else await self._respond(asked))

    async def _respond(self, asked: Asked) -> bytes:
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, "The API key is not valid")
        match asked.method, *asked.path.removeprefix("/v2/").split("/"):
            case "GET", "endpoints", endpoint if endpoint == ENDPOINT:
                return answer(_details())
            case "POST", "endpoints", endpoint, "runsync" if endpoint == ENDPOINT:
                return await self._runsync(asked.body)
            case "POST", "endpoints", endpoint, "runasync" if endpoint == ENDPOINT:
                return self._runasync(asked.body)
            case "POST", "jobs", "status", "batch":
                jobs = [self.jobs[known] for known in asked.body["jobIds"] if known in self.jobs]
                return answer({"jobs": [_document(job, asked.body.get("include", [])) for job in jobs]})
            case "GET", "jobs", id, "status" if id in self.jobs:
                include = asked.query.get("include", "").split(",")
                return answer(_document(self.jobs[id], include, asked.query.get("format", "json")))
            case method, endpoint, *rest if endpoint == ENDPOINT:
                return await self._guide(method, rest, asked)
        return refusal(404, f"{asked.path} does not exist")

    # ------------------------------------------------------------------ the API reference

    async def _runsync(self, body: Any) -> bytes:
        if set(body) != {"input"}:
            return refusal(422, "Only input is known here", {"fields": sorted(body)})
        job = self._job(body["input"], looked=99)
        await asyncio.sleep(job.input.get("seconds", 0))
        del self.jobs[job.id]  # nobody is told its id
        metadata = {"model": "m", "tokensUsed": 5, "cost": 0.001}
        if job.state == "FAILED":
            error = {"code": "EXECUTION_FAILED", "message": job.input["error"]}
            return answer({"error": error, "status": "failed", "executionTime": 0.5})
        return answer(
            {"output": job.result, "status": "completed", "executionTime": 1.23, "metadata": metadata}
        )

    def _runasync(self, body: Any) -> bytes:
        if set(body) - {"input", "async", "callbackUrl", "priority", "tags"} or body.get("async") is not True:
            return refusal(422, "Unknown fields", {"fields": sorted(body)})
        if body.get("priority", "normal") not in ("low", "normal", "high"):
            return refusal(422, "priority is low, normal or high")
        job = self._job(body["input"])
        job.tags = body.get("tags", {})
        return answer({"jobId": job.id, "status": "queued"})

    # ------------------------------------------------------------------ the SDK guide

    async def _guide(self, method: str, rest: list[str], asked: Asked) -> bytes:
        match method, *rest:
            case "POST", "run":
                return answer({"id": self._job(asked.body["input"]).id, "status": "IN_QUEUE"})
            case "POST", "runsync":
                await asyncio.sleep(asked.body["input"].get("seconds", 0))
                return answer(_guided(self._job(asked.body["input"], looked=99)))
            case "GET", "status", id if id in self.jobs:
                return answer(_guided(self.jobs[id]))
            case "GET", "stream", id if id in self.jobs:
                return answer(_chunk(self.jobs[id]))
            case "POST", "cancel", id if id in self.jobs:
                self.jobs[id].is_cancelled = True
                return answer({"id": id, "status": "CANCELLED"})
            case "POST", "purge-queue":
                queued = [job for job in self.jobs.values() if job.state == "IN_QUEUE"]
                for job in queued:
                    del self.jobs[job.id]
                return answer({"removed": len(queued), "status": "completed"})
            case "GET", "health":
                states = [job.state for job in self.jobs.values()]
                jobs = {"completed": states.count("COMPLETED"), "inQueue": states.count("IN_QUEUE")}
                return answer({"jobs": jobs, "workers": {"idle": 1}})
        return refusal(404, f"{asked.path} does not exist")

    def _job(self, input: Any, *, looked: int = 0) -> Job:
        job = Job(f"job_{len(self.jobs) + 1}", input, looked=looked)
        self.jobs[job.id] = job
        return job


def refusal(status: int, message: str, details: Any = None, **headers: str) -> bytes:
    """An error as the reference has it."""
    document = {
        "error": ERRORS[status],
        "message": message,
        "code": status,
        "details": details or {},
        "request_id": "req_123",
        "timestamp": CREATED,
    }
    return answer(document, status, **headers)


def limited(retry_after: float) -> bytes:
    """The hour's requests are used up."""
    return refusal(
        429,
        "Hourly limit reached",
        X_RateLimit_Limit="500",
        X_RateLimit_Remaining="0",
        X_RateLimit_Reset="1768474800",
        Retry_After=str(retry_after),
    )


def _document(job: Job, include: list[str], form: str = "json") -> dict[str, Any]:
    state = job.look()
    running = job.input.get("word", "running")
    document = {
        "jobId": job.id,
        "status": running if state == "IN_PROGRESS" else WORDS[state],
        "progress": min(100, 100 * (job.looked - 1) // max(1, job.looks)),
    }
    if form == "summary":
        return document
    failed = {"code": "EXECUTION_FAILED", "message": job.input.get("error")}
    return document | {
        "result": job.result if state == "COMPLETED" else None,
        "error": failed if state == "FAILED" else None,
        "endpointId": ENDPOINT,
        "createdAt": CREATED,
        "startedAt": None if state == "IN_QUEUE" else STARTED,
        "estimatedCompletion": None,
        "currentStep": "Generating" if state == "IN_PROGRESS" else None,
        "metadata": {},
        "tags": job.tags,
        **{part: [] for part in ("logs", "metrics", "resources") if part in include},
    }


def _guided(job: Job) -> dict[str, Any]:
    state = job.look()
    document: dict[str, Any] = {"id": job.id, "status": state}
    if state != "IN_QUEUE":
        document |= {"delayTime": 250}
    if state in ("COMPLETED", "FAILED"):
        document |= {"executionTime": 1500}
        document |= {"error": job.input["error"]} if state == "FAILED" else {"output": job.result}
    return document


def _chunk(job: Job) -> dict[str, Any]:
    words = job.input.get("prompt", "").split()
    rows = [{"output": word} for word in words[job.streamed : job.streamed + 1]]
    job.streamed += len(rows)
    if job.streamed >= len(words):
        job.looked = max(job.looked, job.looks)
    return {"status": "IN_PROGRESS" if rows else job.state, "stream": rows}


def _details() -> dict[str, Any]:
    return {
        "id": ENDPOINT,
        "status": "active",
        "url": f"https://api.tensorone.ai/v2/{ENDPOINT}/runsync",
        "metrics": {},
        "configuration": {"workerCount": 1, "maxConcurrency": 1, "timeoutSeconds": 300},
    }


@contextlib.asynccontextmanager
async def tensorone() -> AsyncIterator[TensorOne]:
    """Listen."""
    server = TensorOne()
    async with listening(server.talk) as server.url:
        yield server
