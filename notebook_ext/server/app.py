"""The routes below `/v2/{endpoint}/`, over the queues."""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from notebook_ext.errors import InputError
from notebook_ext.protocol import JobRequest, Operation, chunks_to_json, health_to_json
from notebook_ext.server.gate import json_response, read_json, refuse
from notebook_ext.server.openai_route import answer_openai
from notebook_ext.server.outbound import check_url
from notebook_ext.server.polls import NOBODY_THERE, hold
from notebook_ext.server.worker_routes import worker_routes
from notebook_ext.types import StreamChunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from notebook_ext.server.addresses import WebhookRules
    from notebook_ext.server.attached import AttachedWorkers
    from notebook_ext.server.job import JobRecord
    from notebook_ext.server.queue import Queue

__all__ = ["build_app"]

RUN_BODY_LIMIT = 10 * 1024 * 1024
RUNSYNC_BODY_LIMIT = 20 * 1024 * 1024
WAIT_RANGE = (1000, 300_000)
"""Milliseconds that a long poll may ask for; outside it, the nearer end counts."""
WAIT_FOR_JOB = 90_000
WAIT_FOR_CHUNK = 10_000
RATE_WINDOW = 10.0
"""Seconds over which the `rate_limit` dial counts."""
REQUESTS_SHOWN = 100
INPUT_SHOWN = 64 * 1024


def build_app(
    queues: Mapping[str, Queue], attached: Mapping[str, AttachedWorkers], webhooks: WebhookRules
) -> Starlette:
    """The ASGI application that serves these queues, and the workers of some, as they are at each request."""
    door = _Door(queues)
    app = Starlette(
        routes=[
            *worker_routes(attached),
            Route("/v2/{endpoint}/openai/v1/{route:path}", door.answer_openai, methods=["GET", "POST"]),
            Route("/v2/{endpoint}/{operation}", door.answer, methods=["GET", "POST"]),
            Route("/v2/{endpoint}/{operation}/{job}", door.answer, methods=["GET", "POST"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )
    app.router.redirect_slashes = False
    app.state.webhooks = webhooks
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Starlette's own routing says only the status's phrase.
    detail = "there is no such route" if error.detail == "Not Found" else error.detail
    return refuse(request.scope["path"], detail, error.status_code, error.headers)


async def _bug(request: Request, _error: Exception) -> Response:
    return refuse(request.scope["path"], "the embedded server failed; its log has the traceback", 500)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, with what it is about already looked up."""

    request: Request
    queue: Queue
    record: JobRecord | None = field(default=None)

    @property
    def job(self) -> JobRecord:
        if self.record is None or self.record.deleted:
            raise HTTPException(404, "job not found: it is unknown, or it has expired")
        return self.record

    def milliseconds(self, name: str) -> float | None:
        """A query parameter, in seconds."""
        text = self.request.query_params.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise HTTPException(400, f"{name!r} must be a number of milliseconds")
        return int(text) / 1000

    def wait(self, default: int) -> float:
        low, high = WAIT_RANGE
        asked = self.milliseconds("wait")
        return default / 1000 if asked is None else min(max(asked, low / 1000), high / 1000)


class _Door:
    """Finds who is asked for, and applies the dials that concern requests."""

    def __init__(self, queues: Mapping[str, Queue]) -> None:
        self._queues = queues
        self._recent: dict[str, deque[float]] = {}

    async def answer(self, request: Request) -> Response:
        name, operation = request.path_params["endpoint"], request.path_params["operation"]
        job_id = request.path_params.get("job")
        rule = _RULES.get((operation, job_id is not None))
        if rule is None:
            raise HTTPException(404, "there is no such route")
        queue = self._find(name)
        if request.method not in rule.methods:
            allowed = ", ".join(rule.methods)
            raise HTTPException(405, f"{operation} is asked with {allowed}", {"Allow": allowed})
        self._limit_rate(queue)
        call = _Call(request, queue, queue.records.get(job_id) if job_id else None)
        if rule.drains:  # late, but not with chunks in hand that a client who leaves would lose
            await asyncio.sleep(queue.dials.latency)
            return await rule.function(call)
        try:
            return await rule.function(call)
        finally:
            await asyncio.sleep(queue.dials.latency)

    async def answer_openai(self, request: Request) -> Response:
        queue = self._find(request.path_params["endpoint"])
        self._limit_rate(queue)
        await asyncio.sleep(queue.dials.latency)
        return await answer_openai(request, queue, request.path_params["route"], RUNSYNC_BODY_LIMIT)

    def _find(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            raise HTTPException(404, f"there is no endpoint {name!r}")
        return queue

    def _limit_rate(self, queue: Queue) -> None:
        limit = queue.dials.rate_limit
        if limit is None:
            return
        now = asyncio.get_running_loop().time()
        recent = self._recent.setdefault(queue.name, deque())
        while recent and recent[0] <= now - RATE_WINDOW:
            recent.popleft()
        if len(recent) >= limit:
            pause = RATE_WINDOW - (now - recent[0]) if recent else RATE_WINDOW
            raise HTTPException(
                429,
                f"more than {limit} requests in {RATE_WINDOW:g} s",
                {"Retry-After": str(max(1, math.ceil(pause)))},
            )
        recent.append(now)


# ---------------------------------------------------------------------------------- operations


async def _run(call: _Call) -> Response:
    record = await _submit(call, RUN_BODY_LIMIT, sync=False)
    return json_response({"id": record.id, "status": "IN_QUEUE"})


async def _runsync(call: _Call) -> Response:
    wait = call.wait(WAIT_FOR_JOB)
    record = await _submit(call, RUNSYNC_BODY_LIMIT, sync=True)
    return await _when_ended(_Call(call.request, call.queue, record), wait)


async def _submit(call: _Call, limit: int, *, sync: bool) -> JobRecord:
    document = await read_json(call.request, limit)
    try:
        request = JobRequest.from_json(document)
        if request.webhook is not None:
            call.request.app.state.webhooks.check(check_url(request.webhook, "'webhook'"))
    except InputError as error:
        raise HTTPException(400, str(error)) from None
    if call.queue.closed:  # removed while the body was on its way
        raise HTTPException(404, f"there is no endpoint {call.queue.name!r}")
    return call.queue.submit(request, sync=sync)


async def _status(call: _Call) -> Response:
    record = call.job
    ttl = call.milliseconds("ttl")
    if ttl is not None:
        call.queue.expire_after(record, ttl)
    return json_response(call.queue.document(record))


async def _status_sync(call: _Call) -> Response:
    return await _when_ended(call, call.wait(WAIT_FOR_JOB))


async def _when_ended(call: _Call, wait: float) -> Response:
    record = call.job
    if not await hold(call.request, record, lambda: record.status.is_final, wait):
        return Response(status_code=NOBODY_THERE)
    return json_response(call.queue.document(call.job))


async def _stream(call: _Call) -> Response:
    record = call.job
    wait = call.wait(WAIT_FOR_CHUNK)
    if not await hold(call.request, record, lambda: record.has_unread or record.status.is_final, wait):
        return Response(status_code=NOBODY_THERE)
    record = call.job
    return json_response(chunks_to_json(record.status, map(StreamChunk, record.drain())))


async def _cancel(call: _Call) -> Response:
    call.queue.cancel(call.job)
    return json_response(call.queue.document(call.job))


async def _retry(call: _Call) -> Response:
    try:
        call.queue.retry(call.job)
    except InputError as error:
        raise HTTPException(400, str(error)) from None
    return json_response({"id": call.job.id, "status": "IN_QUEUE"})


async def _purge_queue(call: _Call) -> Response:
    return json_response({"removed": await call.queue.purge(), "status": "completed"})


async def _health(call: _Call) -> Response:
    return json_response(health_to_json(call.queue.health()))


async def _requests(call: _Call) -> Response:
    newest = list(reversed(call.queue.records.values()))[:REQUESTS_SHOWN]
    return json_response([{**call.queue.document(record), **_shown_input(record)} for record in newest])


def _shown_input(record: JobRecord) -> dict[str, Any]:
    """What a list tells of a job's input, by which a client finds a job whose id never reached it."""
    is_short = len(json.dumps(record.request.input)) <= INPUT_SHOWN
    return {"input": record.request.input} if is_short else {}


@dataclass(frozen=True, slots=True)
class _Rule:
    function: Callable[[_Call], Awaitable[Response]]
    methods: tuple[str, ...]
    drains: bool = False


_READ = ("GET", "POST")  # the Go SDK and older documentation read with POST
_RULES: Mapping[tuple[Any, bool], _Rule] = {
    (Operation.RUN, False): _Rule(_run, ("POST",)),
    (Operation.RUNSYNC, False): _Rule(_runsync, ("POST",)),
    (Operation.STATUS, True): _Rule(_status, _READ),
    (Operation.STATUS_SYNC, True): _Rule(_status_sync, _READ),
    (Operation.STREAM, True): _Rule(_stream, _READ, drains=True),
    (Operation.CANCEL, True): _Rule(_cancel, ("POST",)),
    (Operation.RETRY, True): _Rule(_retry, ("POST",)),
    (Operation.PURGE_QUEUE, False): _Rule(_purge_queue, ("POST",)),
    (Operation.HEALTH, False): _Rule(_health, ("GET",)),
    (Operation.REQUESTS, False): _Rule(_requests, ("GET",)),
}
