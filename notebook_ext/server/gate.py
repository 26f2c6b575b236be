"""Who may come in: the checks that every request passes before anything else looks at it."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Gate", "json_response", "read_json"]


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON document, whatever strings it holds."""
    try:
        body = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair is legal in JSON, but only escaped
        body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers or {}), media_type="application/json")


class Gate:
    """Lets only requests through that were meant for us, and come from a program with the token.

    A web page cannot pass: it can neither send the token nor leave out its `Origin`, and one that
    points its own host name at this machine (DNS rebinding) fails the check of `Host`.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(host.encode() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["headers"])
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> Response | None:
        rows = list(headers)
        hosts = [value.lower() for name, value in rows if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return json_response({"error": "this server does not answer for that Host"}, 421)
        if any(name == b"origin" for name, _ in rows):
            return json_response({"error": "requests from web pages are not accepted"}, 403)
        sent = next((value for name, value in rows if name == b"authorization"), b"")
        if sent[:7].lower() == b"bearer ":
            sent = sent[7:]
        if not hmac.compare_digest(sent.strip(), self._token):
            problem = "wrong API key" if sent else "no API key: send `Authorization: Bearer KEY`"
            return json_response({"error": problem}, 401, {"WWW-Authenticate": "Bearer"})
        return None


async def read_json(request: Request, limit: int) -> Any:
    """Read a JSON body of at most `limit` bytes.

    Raises:
        HTTPException: 413 when it is larger, 400 when it is not JSON (NaN included).
    """
    body = await _read(request, limit)
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None


async def _read(request: Request, limit: int) -> bytes:
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
