"""The OpenAI route, `/v2/{endpoint}/openai/v1/...`: each call is a job of the endpoint's queue.

The job's input is `{"openai_route": "/v1/chat/completions", "openai_input": BODY}`, without
`openai_input` for a GET, as Runpod's platform hands such calls to workers. What the handler
answers goes back as it is: documents, or with `stream: true` server-sent events.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from notebook_ext.protocol import JobRequest, read_worker_error
from notebook_ext.server.gate import json_response, openai_error, parse_json, read_json
from notebook_ext.server.job import ABSENT, RESULT_LIMIT
from notebook_ext.server.outbound import is_openai_route
from notebook_ext.server.polls import NOBODY_THERE, hold
from notebook_ext.types import JobStatus, whole_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from notebook_ext.server.job import JobRecord
    from notebook_ext.server.queue import Queue

__all__ = ["answer_openai"]

DONE = b"data: [DONE]\n\n"
ERROR_READ = 64 * 1024
"""Characters of a job's error beyond which it is not looked into."""
_WANTED = {"chat/completions": "choices", "completions": "choices", "embeddings": "data", "models": "data"}
"""What a document of these routes has; others are not looked into."""
_FIELDS = ("data:", "event:", "id:", "retry:", ":")
_BLANK_LINE = re.compile(r"\r\n\r\n|\n\n|\r\r")
_SEAM = 3
"""Characters of a blank line that may have come already when its last one comes."""
_KEY_ERROR = re.compile(r"KeyError: '(?P<field>\w+)'\Z")
_START = 16
"""Characters by which an event is known, and those that may be left of the blank line before it."""


async def answer_openai(request: Request, queue: Queue, route: str, limit: int) -> Response:
    """Run one call as a job, and answer with what its handler gives.

    A caller who goes away cancels the job. Until the handler's first event, or its end, nothing
    is sent, so that a job which fails before has its own HTTP status.

    Args:
        request: The call.
        queue: Its endpoint's jobs.
        route: What follows `/openai/v1/`.
        limit: Bytes that the body may have.

    Raises:
        HTTPException: The call cannot be made a job.
    """
    if request.method == "HEAD":  # which comes with GET
        raise HTTPException(405, "this route is asked with GET or POST", {"Allow": "GET, POST"})
    if not is_openai_route(f"/v1/{route}"):
        raise HTTPException(404, "there is no such route")
    body = None if request.method == "GET" else await _read_body(request, limit)
    job_input = {"openai_route": f"/v1/{route}", **({} if body is None else {"openai_input": body})}
    if queue.closed:  # removed while the body was on its way
        raise HTTPException(404, f"there is no endpoint {queue.name!r}")
    record = queue.submit(JobRequest(job_input), sync=True)
    headers = {"x-request-id": record.id}
    with contextlib.ExitStack() as leaving:
        leaving.callback(queue.cancel, record)  # where it has not ended
        reader = _Reader(request, record, route)
        try:
            if not (body or {}).get("stream"):
                return json_response(*await reader.whole(), headers)
            first = await reader.events()
        except _JobEnded as ended:
            # A client that repeats the call by itself would run the job once more.
            return json_response(ended.document, ended.status, {**headers, "x-should-retry": "false"})
        except ClientDisconnect:
            return Response(status_code=NOBODY_THERE)
        return _EventStream(reader, first, leaving.pop_all(), headers)


async def _read_body(request: Request, limit: int) -> dict[str, Any]:
    body = await read_json(request, limit)
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    if not isinstance(body.get("stream"), bool | None):
        raise HTTPException(400, "'stream' must be true or false")
    return body


class _JobEnded(Exception):
    """There is nothing to answer but an error."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.document = document


class _Reader:
    """Reads one job for one caller."""

    def __init__(self, request: Request, record: JobRecord, route: str) -> None:
        self._request = request
        self._record = record
        self._events = _Events(route)
        self._taken_at: float | None = None
        self._said = self._closed = False

    async def whole(self) -> tuple[Any, int]:
        """What a job that does not stream gave, with its HTTP status.

        Raises:
            _JobEnded: It gave no such thing.
            ClientDisconnect: Nobody waits any more.
        """
        record = self._record
        if not await hold(self._request, record, lambda: record.status.is_final):
            raise ClientDisconnect
        self._check_end()
        document = self._events.document(record.drain() or self._output())
        return document, _status_of(document)

    async def events(self) -> bytes:
        """What has come since the last time, in whole events; nothing when the job has completed.

        Raises:
            _JobEnded: It did not complete.
            ClientDisconnect: Nobody waits any more.
        """
        record = self._record
        while not self._closed:
            if not await hold(self._request, record, lambda: record.has_unread or record.status.is_final):
                raise ClientDisconnect
            if values := record.drain():
                self._check_attempt()
            else:
                self._check_end()
                self._closed = True
                values = self._output() if self._taken_at is None else []  # of a plain handler
            if said := self._events.feed(values, last=self._closed):
                self._said = True
                return said
        if not self._said:
            raise _unfit("it answered with nothing")
        return b""

    def _output(self) -> list[Any]:
        return [] if self._record.output is ABSENT else [self._record.output]

    def _check_attempt(self) -> None:
        """Nothing from a second worker is added to what a first one has said."""
        taken_at = self._record.taken_at
        if self._taken_at not in (None, taken_at):
            raise _ended("the job was started again after a part of its answer had been sent", 502)
        self._taken_at = taken_at

    def _check_end(self) -> None:
        record = self._record
        if record.deleted:
            raise _ended("the job is gone: its ttl has passed, or its endpoint was removed", 504)
        if record.status is JobStatus.CANCELLED:
            raise _ended("the job was cancelled", 409)
        if record.status is JobStatus.TIMED_OUT:
            raise _ended(str(record.error), 504)
        if record.status is JobStatus.FAILED:
            if not self._said and (failure := _missing_field(record)):
                raise _unfit(f"it failed with {failure}, a field that its input does not have")
            raise _failed(record.error)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(
        self, reader: _Reader, first: bytes, leaving: contextlib.ExitStack, headers: dict[str, str]
    ) -> None:
        self.status_code = 200
        self.background = None
        self._reader = reader
        self._first = first
        self._leaving = leaving
        self.init_headers({**headers, "Cache-Control": "no-store"})

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        with self._leaving:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            said, last = self._first, DONE
            try:
                while said:
                    await send({"type": "http.response.body", "body": said, "more_body": True})
                    said = await self._reader.events()
            except _JobEnded as ended:
                last = _event(ended.document)  # and no [DONE]: a cut answer must not look whole
            except ClientDisconnect:
                return
            await send({"type": "http.response.body", "body": last, "more_body": False})


# ---------------------------------------------------------------------------------- what handlers give


class _Events:
    """Reads what a handler gives: documents, lists of them, or text that is cut anywhere."""

    def __init__(self, route: str) -> None:
        self._wanted = _WANTED.get(route)
        self._waiting: list[str] = []  # of an event that has not ended; the last piece may hold a seam
        self._size = 0

    def document(self, values: list[Any]) -> Any:
        """The one document that all of it makes."""
        items = list(_flat(values))
        if items and all(isinstance(item, str) for item in items):
            try:
                items = [parse_json(whole_text("".join(items)).encode())]
            except ValueError:
                raise _unfit("it answered with text") from None
        if len(items) != 1:
            pieces = f"{len(items)} pieces instead of one document" if items else "nothing"
            raise _unfit(f"it answered with {pieces}")
        return self._checked(items[0])

    def feed(self, values: list[Any], *, last: bool) -> bytes:
        """The whole events in it; at the `last` also text that lacks the blank line behind it.

        A [DONE] of the handler's own is left out: that is said when the job has ended.
        """
        said = [
            self._read(item) if isinstance(item, str) else _event(self._checked(item))
            for item in _flat(values)
        ]
        return b"".join([*said, self._read("\n\n") if last and self._waiting else b""])

    def _read(self, text: str) -> bytes:
        events = [event.strip("\r\n") for event in self._ended(text)]
        start = "".join(piece[:_START] for piece in self._waiting[:_START]).lstrip("\r\n")
        may_become_one = start.startswith(_FIELDS) or any(field.startswith(start) for field in _FIELDS)
        if not (may_become_one and all(event.startswith(_FIELDS) for event in events if event)):
            raise _unfit("it answered with text")
        return b"".join(
            whole_text(event).encode() + b"\n\n"
            for event in events
            if event and event.removeprefix("data:").strip() != "[DONE]"
        )

    def _ended(self, text: str) -> list[str]:
        """The events that this text ends.

        Of what waits, only the end is searched again: a large event comes in thousands of pieces.
        """
        seam = self._waiting.pop() if self._waiting else ""
        *ended, rest = _BLANK_LINE.split(seam + text)
        if ended:
            ended[0] = "".join([*self._waiting, ended[0]])
            self._waiting.clear()
        self._waiting += filter(None, (rest[:-_SEAM], rest[-_SEAM:]))
        self._size = len(rest) if ended else self._size + len(text)
        if self._size > RESULT_LIMIT:
            raise _ended(f"an event of the answer has more than {RESULT_LIMIT // 1024**2} MB, the limit", 502)
        return ended

    def _checked(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise _unfit(f"it answered with {'text' if isinstance(item, str) else type(item).__name__}")
        if self._wanted and self._wanted not in item and not _error_in(item):
            raise _unfit(f"it answered with an object without {self._wanted!r}")
        return item


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


# ---------------------------------------------------------------------------------- errors


def _unfit(what: str) -> _JobEnded:
    return _ended(
        f"the handler was not made for OpenAI calls, so call it by its own input: {what}; one that is reads "
        "'openai_route' and 'openai_input' from its input, and gives OpenAI's documents or event streams",
        400,
    )


def _missing_field(record: JobRecord) -> str | None:
    """The KeyError of a handler that looked for what its input has nowhere; None for any other failure."""
    error = record.error
    if isinstance(error, str) and len(error) > ERROR_READ:
        return None
    last = (read_worker_error(error).traceback or "").strip().rpartition("\n")[2]
    match = _KEY_ERROR.match(last)
    if match is None:
        return None
    fields = record.request.input
    known = {*fields, *(fields.get("openai_input") or ())}
    return last if match["field"] not in known else None


def _ended(message: str, status: int) -> _JobEnded:
    return _JobEnded(status, openai_error(message, status))


def _failed(error: Any) -> _JobEnded:
    """A failed job in OpenAI's words: its handler's own ones, where they are such."""
    if isinstance(error, str) and error.startswith("{'") and len(error) <= ERROR_READ:
        # What a generator yields as `error` arrives as Python writes it.
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            error = ast.literal_eval(error)
    told = read_worker_error(error)
    code = error.get("code") if isinstance(error, dict) else None
    status = _error_status(code)
    document = openai_error(told.message, status, told.type)
    if isinstance(code, str):
        document["error"]["code"] = code
    return _JobEnded(status, document)


def _error_in(document: dict[str, Any]) -> Any:
    """What a document says went wrong; older vLLM has it in the document itself."""
    return document if document.get("object") == "error" else document.get("error")


def _status_of(document: dict[str, Any]) -> int:
    error = _error_in(document)
    if not error:
        return 200
    code = error.get("code") if isinstance(error, dict) else None
    return _error_status(code)


def _error_status(code: Any) -> int:
    return code if isinstance(code, int) and 400 <= code <= 599 else 500
