"""The routes below `/v2/{endpoint}/` that workers of other processes use, over `attached`."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from notebook_ext.server.attached import NotHeld, TooManyWorkers
from notebook_ext.server.gate import TAKE_REFUSAL_PAUSE, json_response, parse_json, read_body
from notebook_ext.server.job import ABSENT, CHUNK_LIMIT, RESULT_LIMIT, Outcome, Unsendable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from notebook_ext.server.attached import AttachedWorkers
    from notebook_ext.server.job import Attempt

__all__ = ["worker_routes"]

FRAME = 1024
"""Bytes around a chunk or a result in the body that brings it."""
MOST_AT_ONCE = 100
COME_BACK = {"Retry-After": "5"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")


def worker_routes(attached: Mapping[str, AttachedWorkers]) -> list[Route]:
    """The routes for the workers of these endpoints, as they are at each request."""

    def route(path: str, method: str, function: Callable[[_Call], Awaitable[Response]]) -> Route:
        async def answer(request: Request) -> Response:
            try:
                call = _Call(request, attached)
            except HTTPException:
                await asyncio.sleep(TAKE_REFUSAL_PAUSE)
                raise
            try:
                return await function(call)
            except TooManyWorkers as error:
                raise HTTPException(429, str(error), COME_BACK) from None
            except NotHeld as error:
                raise HTTPException(404, str(error)) from None

        found = Route(f"/v2/{{endpoint}}/{path}", answer)
        found.methods = {method}  # a HEAD, which Starlette would add, must take no job
        return found

    return [
        route("job-take/{worker}", "GET", _take),
        route("job-take-batch/{worker}", "GET", _take_batch),
        route("job-stop/{worker}", "GET", _stop),
        route("job-done/{worker}/{job}", "POST", _done),
        route("job-stream/{worker}/{job}", "POST", _stream),
        route("ping/{worker}", "GET", _ping),
    ]


class _Call:
    """One request of a worker, with who it is already looked up."""

    def __init__(self, request: Request, attached: Mapping[str, AttachedWorkers]) -> None:
        self.request = request
        self.query = request.query_params
        name, self.worker = request.path_params["endpoint"], request.path_params["worker"]
        self.job = request.path_params.get("job", "")
        workers = attached.get(name)
        if workers is None:
            raise HTTPException(404, f"there is no endpoint {name!r} that takes workers")
        if not _ID.match(self.worker):
            raise HTTPException(400, "a worker's id has letters, digits, '.', '_', ':' and '-'")
        self.workers = workers

    async def taken(self, most: int) -> list[dict[str, Any]]:
        is_busy = self.query.get("job_in_progress") == "1"
        attempts = await self.workers.take(self.worker, self.request, most=most, is_busy=is_busy)
        return [_job(attempt) for attempt in attempts]


def _job(attempt: Attempt) -> dict[str, Any]:
    asked = attempt.record.request
    job: dict[str, Any] = {"id": attempt.record.id, "input": asked.input}
    return {**job, "s3Config": dict(asked.s3_config)} if asked.s3_config else job


async def _take(call: _Call) -> Response:
    jobs = await call.taken(1)
    return json_response(jobs[0]) if jobs else Response(status_code=204)


async def _take_batch(call: _Call) -> Response:
    asked = call.query.get("batch_size", "")
    # An answer of 400 would be asked again at once, and for ever.
    most = min(max(int(asked), 1), MOST_AT_ONCE) if re.fullmatch("[0-9]{1,9}", asked) else 1
    jobs = await call.taken(most)
    return json_response(jobs) if jobs else Response(status_code=204)


async def _stop(call: _Call) -> Response:
    jobs = await call.workers.stops(call.worker, call.request)
    return json_response({"jobsToStop": jobs}) if jobs else Response(status_code=204)


async def _done(call: _Call) -> Response:
    try:
        body, _ = await _report(call, "result", RESULT_LIMIT)
    except Unsendable as error:
        call.workers.finish(call.worker, call.job, Outcome(error=str(error)))
        raise HTTPException(400, str(error)) from None
    if body.get("status") == "IN_PROGRESS":
        call.workers.progress(call.worker, call.job, body.get("output"))
        return json_response({})
    failure, refresh = body.get("error") or None, bool(body.get("stopPod"))
    output = body.get("output")
    # A handler that returns None has no output: of a job that has ended, `null` is not told.
    outcome = Outcome(ABSENT if output is None else output, failure, refresh_worker=refresh)
    call.workers.finish(call.worker, call.job, outcome)
    return json_response({})


async def _stream(call: _Call) -> Response:
    try:
        body, size = await _report(call, "chunk", CHUNK_LIMIT)
        call.workers.push(call.worker, call.job, body.get("output"), size)
    except Unsendable as error:
        call.workers.fail(call.worker, call.job, str(error))
        raise HTTPException(400, str(error)) from None
    return json_response({})


async def _ping(call: _Call) -> Response:
    jobs = frozenset(filter(None, call.query.get("job_id", "").split(",")))
    trouble = None
    if call.query.get("status") == "unhealthy":
        trouble = call.query.get("reason") or call.query.get("check") or "it says so"
    call.workers.ping(call.worker, jobs, trouble)
    return json_response({})


async def _report(call: _Call, what: str, limit: int) -> tuple[dict[str, Any], int]:
    """A worker's JSON, which it labels as a form, and its size in bytes.

    Raises:
        Unsendable: It is none, or too large.
    """
    try:
        body = await read_body(call.request, limit + FRAME)
    except HTTPException as error:
        if error.status_code != 413:
            raise
        limit_told = f"{limit // 1024**2} MB as JSON, the limit"
        raise Unsendable(f"the {what} of the worker has more than {limit_told}") from None
    try:
        document = parse_json(body)
    except ValueError as error:
        raise Unsendable(f"the {what} of the worker is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Unsendable(f"the {what} of the worker is not a JSON object")
    return document, len(body)
