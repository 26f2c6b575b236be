"""Who may come in: the checks that every request passes before anything else looks at it."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from notebook_ext.server.nesting import DEPTH_LIMIT, is_too_deep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Gate", "json_response", "openai_error", "parse_json", "read_body", "read_json", "refuse"]

URL_LIMIT = 16 * 1024
HEADER_LIMIT = 32 * 1024
"""Bytes."""
MOST_OPEN = 10_000
"""Requests that are open at the same time, long polls included."""
TAKE_REFUSAL_PAUSE = 0.5
"""Seconds until a `job-take` is refused: workers ask again at once, whatever they are told."""
_WORKER_PATH = re.compile(r"/v2/([^/]+)/(?:job-take|job-take-batch|job-stop|job-done|job-stream|ping)/")
_TAKE_PATH = re.compile(r"/v2/[^/]+/job-take(-batch)?/")
_OPENAI_PATH = re.compile(r"/v2/[^/]+/openai/")
_ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON document, whatever strings it holds."""
    try:
        body = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair is legal in JSON, but only escaped
        body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers or {}), media_type="application/json")


def refuse(path: str, problem: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a problem, in the shape that callers of this path read."""
    is_openai = _OPENAI_PATH.match(path)
    return json_response(openai_error(problem, status) if is_openai else {"error": problem}, status, headers)


def openai_error(message: str, status: int, kind: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it; `code` is the HTTP status, as vLLM has it."""
    kind = kind or _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class Gate:
    """Lets only requests through that were meant for us, and come from a program with the right token.

    Callers have one token, and the workers of each endpoint another one: a worker gets at nothing
    but the worker routes of its own endpoint, and a caller at everything else.

    A web page cannot pass: it can neither send the token nor leave out its `Origin`, and one that
    points its own host name at this machine (DNS rebinding) fails the check of `Host`.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, worker_tokens: Mapping[str, str], hosts: Iterable[str]
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._worker_tokens = worker_tokens
        self._hosts = frozenset(host.encode() for host in hosts)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        self._open += 1
        try:
            if refusal is not None and _TAKE_PATH.match(scope["path"]):
                await asyncio.sleep(TAKE_REFUSAL_PAUSE)
            await (refusal or self._app)(scope, receive, send)
        finally:
            self._open -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        rows: list[tuple[bytes, bytes]] = list(scope["headers"])
        hosts = [value.lower() for name, value in rows if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return refuse(path, "this server does not answer for that Host; --allow-host adds one", 421)
        if any(name == b"origin" for name, _ in rows):
            return refuse(path, "requests from web pages are not accepted", 403)
        sent = next((value for name, value in rows if name == b"authorization"), b"")
        if sent[:7].lower() == b"bearer ":
            sent = sent[7:]
        sent = sent.strip()
        is_caller = hmac.compare_digest(sent, self._token)
        works_for = self._works_for(sent)
        if not is_caller and works_for is None:
            problem = "wrong API key" if sent else "no API key: send `Authorization: Bearer KEY`"
            return refuse(path, problem, 401, {"WWW-Authenticate": "Bearer"})
        workplace = _WORKER_PATH.match(path)
        if (workplace[1] if workplace else None) != works_for:
            problem = (
                "this key is for callers, not for workers" if is_caller else "this key is for workers only"
            )
            return refuse(path, problem, 403)
        return self._oversize(scope, rows)

    def _works_for(self, sent: bytes) -> str | None:
        """The endpoint whose workers have this token; all are compared, so that the time tells nothing."""
        found = None
        for name, token in self._worker_tokens.items():
            if hmac.compare_digest(sent, token.encode()):
                found = name
        return found

    def _oversize(self, scope: Scope, rows: list[tuple[bytes, bytes]]) -> Response | None:
        path: str = scope["path"]
        if len(scope["raw_path"]) + len(scope["query_string"]) > URL_LIMIT:
            return refuse(path, f"the URL is over the limit of {URL_LIMIT // 1024} KB", 414)
        if sum(len(name) + len(value) for name, value in rows) > HEADER_LIMIT:
            return refuse(path, f"the headers are over the limit of {HEADER_LIMIT // 1024} KB", 431)
        if self._open >= MOST_OPEN:
            return refuse(path, f"{MOST_OPEN} requests are open already", 429, {"Retry-After": "5"})
        return None


async def read_json(request: Request, limit: int) -> Any:
    """Read a JSON body of at most `limit` bytes.

    Raises:
        HTTPException: 413 when it is larger, 400 when it is not JSON (NaN included).
    """
    body = await read_body(request, limit)
    try:
        return parse_json(body)
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None


def parse_json(body: bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: It is none (NaN included), has numbers out of range, or is nested too deeply.
    """
    try:
        document = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if is_too_deep(document, body.count(b"[") + body.count(b"{")):
        raise ValueError(f"it is nested deeper than {DEPTH_LIMIT} levels")
    return document


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises:
        HTTPException: 413 when it is larger, 400 when it breaks off.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size <= limit:
                pieces.append(piece)
            elif size > 2 * limit:
                break  # enough; a sender that is only a little over the limit gets to read the answer
            else:
                pieces.clear()
    except ClientDisconnect:
        raise HTTPException(400, "the body broke off") from None
    if size > limit:
        message = f"the body is over the limit of {limit // 1024**2} MB"
        raise HTTPException(413, message, {"Connection": "close"})
    return b"".join(pieces)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # it could not be written back
        raise ValueError(f"{text[:20]} is out of the range of numbers")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
