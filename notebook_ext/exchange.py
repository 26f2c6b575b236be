"""One request to an endpoint and its answer: the key, the limits, safe repetition, true errors.

With `transport` and the server's `outbound` the only module that imports httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from notebook_ext import config, transport
from notebook_ext.errors import (
    AnswerLost,
    APIError,
    AuthenticationError,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    EndpointError,
    InputError,
    NotFoundError,
    PermissionDenied,
    ProtocolError,
    RateLimitError,
    RequestTimeout,
    ServerError,
    TransportError,
)
from notebook_ext.protocol import Operation
from notebook_ext.types import whole_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.limits import Limits
    from notebook_ext.providers import Provider

__all__ = ["HOLD_MARGIN", "JOB_ID", "REQUEST_TIMEOUT", "Exchange"]

JOB_ID = re.compile(r"[\w.-]+", re.ASCII)
"""Ids are opaque, but they stand in a path."""

REQUEST_TIMEOUT = 30.0
"""Seconds to wait for the answer to one request that the server does not hold."""
CONNECT_TIMEOUT = 10.0
HOLD_MARGIN = 15.0
"""Seconds beyond a hold after which the answer is given up."""
ATTEMPTS = 5
"""How often a request that is safe to repeat is tried."""
FRESH_JOB = 5.0
"""Seconds during which a 404 for a job that we submitted ourselves may mean "not yet"."""
SHORTEST_SECRET = 16
"""Characters: a shorter key is a local server's "test" or "none", and is part of many a text."""
IDLE_BEFORE_SUBMIT = 1.0
"""Seconds: a submission does not use a connection that was idle for longer. The server may be
closing it just then, and nobody could tell whether the job was queued."""

_SUBMITS = frozenset({Operation.RUN, Operation.RUNSYNC, Operation.RETRY})
_SAFE_TO_REPEAT = frozenset(
    {
        Operation.STATUS,
        Operation.STATUS_SYNC,
        Operation.STREAM,
        Operation.CANCEL,
        Operation.HEALTH,
        Operation.REQUESTS,
    }
)
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class Exchange:
    """Sends the requests of one endpoint; belongs to the event loop that first uses it.

    Args:
        endpoint: The endpoint's id.
        provider: Where it is and how it is asked.
        api_key: The key, a function that gives it, or None for where `config` finds it.
        limits: What may be in flight.
        name: The name under which a person knows it: for messages, and for its own key. None
            means the id.
    """

    def __init__(
        self,
        endpoint: str,
        provider: Provider,
        api_key: str | Callable[[], str | None] | None,
        limits: Limits,
        name: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.name = name or endpoint
        self._saved_name = name
        self.provider = provider
        self._api_key = api_key
        self._limits = limits
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitted: dict[str, float] = {}

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def submitted(self, job_id: str) -> None:
        """Remember that this job is ours and young: a 404 may mean that it is not known everywhere yet."""
        now = time.monotonic()
        self._submitted = {job: at for job, at in self._submitted.items() if now - at < FRESH_JOB}
        self._submitted[job_id] = now

    async def call(
        self,
        operation: Operation,
        job_id: str = "",
        *,
        body: Any = None,
        hold: float | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send one request, again where that is safe, and return the answer's JSON.

        Args:
            operation: What is asked.
            job_id: Of which job, where the operation is about one.
            body: JSON to send; None sends no body.
            hold: Seconds that the server may hold the answer; None sends no `wait`.
            timeout: Seconds to wait for the answer. None means 30, or the hold and 15 more.
        """
        if job_id and not JOB_ID.fullmatch(job_id):
            raise InputError(f"{job_id!r} is not a job id")
        content = None if body is None else self._encode(operation, body)
        if timeout is None:
            timeout = REQUEST_TIMEOUT if hold is None else hold + HOLD_MARGIN
        if operation not in _SAFE_TO_REPEAT:
            return await self._send(operation, job_id, content, hold, timeout)

        def again(error: BaseException) -> bool:
            if isinstance(error, NotFoundError):
                return self._is_fresh(job_id)
            if operation is Operation.STREAM:
                # a lost answer may have had chunks in it: whoever follows must know that they are gone
                return isinstance(error, (ConnectionFailed, RateLimitError))
            return isinstance(error, (TransportError, ServerError, ProtocolError, RateLimitError))

        # what the server does not hold has ended within the timeout, however often it was tried
        stop = tenacity.stop_after_attempt(ATTEMPTS)
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(again),
            stop=stop if hold is not None else stop | tenacity.stop_before_delay(timeout),
            wait=_pause_before_retry,
            reraise=True,
        ):
            with attempt:
                return await self._send(operation, job_id, content, hold, timeout)
        raise AssertionError  # what the last attempt raised has been raised

    def _is_fresh(self, job_id: str) -> bool:
        return time.monotonic() - self._submitted.get(job_id, float("-inf")) < FRESH_JOB

    def _encode(self, operation: Operation, body: Any) -> bytes:
        try:
            content = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the input is not JSON: {error}; nothing was sent") from error
        limit = self.provider.max_payload.get(operation)
        if limit is not None and len(content) > limit:
            raise InputError(
                f"the request is {len(content) / 1e6:.1f} MB, over the {limit / 1e6:g} MB that "
                f"{self.provider.name} takes for {operation}; nothing was sent. Put the data where the "
                "worker can fetch it, and send its URL"
            )
        return content

    async def _send(
        self, operation: Operation, job_id: str, content: bytes | None, hold: float | None, timeout: float
    ) -> Any:
        route = self.provider.route(operation)
        client = self._open_client()
        key = await self._key()
        request = client.build_request(
            route.method,
            self.provider.base_url + route.fill(self.endpoint, job_id),
            params=None if hold is None else {"wait": round(hold * 1000)},
            content=content,
            headers={
                **({"Authorization": f"Bearer {key}"} if key else {}),
                **({"Content-Type": "application/json"} if content is not None else {}),
            },
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout)),
        )
        if operation in _SUBMITS:
            request.extensions["fresh_after"] = IDLE_BEFORE_SUBMIT
        async with self._limits.slot(operation):
            started = time.monotonic()
            try:
                # the transport's timeouts are per read; a server that drips must end as well
                async with asyncio.timeout(timeout + min(CONNECT_TIMEOUT, timeout)):
                    response = await client.send(request)
            except (httpx.TransportError, TimeoutError) as error:
                raise self._unreached(operation, job_id, error, time.monotonic() - started) from error
            except httpx.DecodingError as error:
                raise ProtocolError(
                    f"{self._what(operation, job_id)}: the answer is garbled: {error}{_fate(operation)}",
                    job_id=job_id or None,
                ) from error
        return self._answer(operation, job_id, response, key)

    def _open_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._client = transport.make_client(self.provider.base_url)
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                f"endpoint {self.name} belongs to the event loop that first used it; make another one "
                "for this loop"
            )
        return self._client

    async def _key(self) -> str | None:
        """The key, read whenever a request is built: it may have changed since the last one."""
        key: str | None
        if isinstance(self._api_key, str):
            key = self._api_key
        elif self._api_key is not None:  # in a thread: nobody knows how long it takes
            key = await asyncio.to_thread(self._api_key)
        else:
            try:
                at_once = config.find_at_once(self.provider, name=self._saved_name)
                key = at_once() if at_once is not None else None
            except LookupError:  # in a thread, because a keyring may take seconds to answer
                key = await asyncio.to_thread(self._usual_key)
        if key and not re.fullmatch(r"[!-~]+", key):
            raise ConfigurationError(
                f"the key for {self.name} has characters that no key has (a line break, a blank, an "
                "accent): copy it again; nothing was sent"
            )
        return key

    def _usual_key(self) -> str | None:
        key = config.find_or_require(self.provider, name=self._saved_name)
        return key() if key is not None else None

    def _unreached(self, operation: Operation, job_id: str, error: Exception, after: float) -> TransportError:
        what = self._what(operation, job_id)
        known = {"job_id": job_id or None}
        why = str(error) or type(error).__name__
        if isinstance(error, _NEVER_SENT):
            return ConnectionFailed(
                f"{what}: no connection to {self.provider.base_url} after {after:.1f} s ({why}); nothing was "
                "sent. Is the network up, and the address right?",
                **known,
            )
        fate = (
            "The job may have been queued all the same, its id is unknown; running it again may run it twice"
            if operation in _SUBMITS
            else "It is safe to ask again"
        )
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return RequestTimeout(f"{what}: no answer within {after:.1f} s. {fate}.", **known)
        return AnswerLost(
            f"{what}: the connection broke after {after:.1f} s, before a whole answer came ({why}). {fate}.",
            **known,
        )

    def _answer(self, operation: Operation, job_id: str, response: httpx.Response, key: str | None) -> Any:
        what = self._what(operation, job_id)
        if response.is_success:
            try:
                return json.loads(_without_key(response.content, key))
            except (ValueError, UnicodeDecodeError, RecursionError):
                raise ProtocolError(
                    f"{what}: the answer ({response.status_code}) is not JSON: {_excerpt(response, key)}"
                    f"{_fate(operation)}. Is {self.provider.base_url} the right address?",
                    job_id=job_id or None,
                ) from None
        error = self._api_error(operation, job_id, what, response, key)
        if isinstance(error, AuthenticationError):
            config.doubt_keyring()
        if isinstance(error, RateLimitError):
            self._limits.pause(operation, min(error.retry_after or 1.0, 60.0))
        raise error

    def _api_error(
        self, operation: Operation, job_id: str, what: str, response: httpx.Response, key: str | None
    ) -> EndpointError:
        code, said = response.status_code, _excerpt(response, key)
        known: dict[str, Any] = {"status_code": code, "body": said, "job_id": job_id or None}
        tail = f": {said}" if said else ""
        if response.is_redirect:
            return ProtocolError(
                f"{what}: the server redirects ({code}); it is not followed, so that the key goes "
                "to no other host. Correct the address",
                job_id=job_id or None,
            )
        match code:
            case 401:
                why = "the key was refused" if key else "it wants a key, and none was sent"
                return AuthenticationError(f"{what}: {why} (401){tail}; {self._key_hint(key)}", **known)
            case 402 | 403:
                return PermissionDenied(f"{what}: not allowed ({code}: credit or rights){tail}", **known)
            case 404 if job_id:
                return NotFoundError(f"{what}: unknown (404){tail}", **known)
            case 404:
                return NotFoundError(
                    f"{what}: {self.provider.name} knows no endpoint {self.endpoint!r} (404){tail}; "
                    "check its id",
                    **known,
                )
            case 421:
                return APIError(
                    f"{what}: the server does not answer for {self.provider.base_url} (421){tail}; is it "
                    "reached through another host or port than its own? Start it with that port, or connect "
                    "to the address that it names",
                    **known,
                )
            case 429:
                retry_after = _retry_after(response)
                when = f"try again in {retry_after:g} s" if retry_after else "try again in a moment"
                return RateLimitError(
                    f"{what}: too many requests, or the queue is full (429){tail}; nothing was queued: "
                    f"{when}",
                    retry_after=retry_after,
                    **known,
                )
            case _ if code >= 500:
                return ServerError(f"{what}: the platform failed ({code}){tail}{_fate(operation)}", **known)
            case _ if code in (400, 413, 422):
                return BadRequest(f"{what}: the server did not accept the request ({code}){tail}", **known)
        return APIError(f"{what}: the server answered {code}{tail}", **known)

    def _what(self, operation: Operation, job_id: str) -> str:
        return f"{operation}{f' of job {job_id}' if job_id else ''} on {self.name}"

    def _key_hint(self, key: str | None) -> str:
        variable = self.provider.key_variable
        if not variable:
            return "check the key" if key else "give it one"
        return f"{'check' if key else 'set'} ${variable}, or `%endpoint login {self._saved_name or 'NAME'}`"


def _fate(operation: Operation) -> str:
    return "; the job may have been queued all the same" if operation in _SUBMITS else ""


_jitter = tenacity.wait_random_exponential(multiplier=0.1, max=5.0)


def _pause_before_retry(state: tenacity.RetryCallState) -> float:
    """Seconds: what the server asked for, else exponential with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RateLimitError) else None
    return _jitter(state) if asked is None else min(asked, 60.0)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < 86_400 else None


def _without_key(content: bytes, key: str | None) -> bytes:
    """An answer in which the server's echo of the key is blotted out: outputs are saved in notebooks."""
    if key is None or len(key) < SHORTEST_SECRET:
        return content
    return content.replace(key.encode(), b"[key]")


_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def _excerpt(response: httpx.Response, key: str | None, length: int = 200) -> str:
    """What an error's body says, as one short line: JSON's own message, or a page's text, never the key."""
    text = response.text
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
        if isinstance(document, Mapping):
            text = str(document.get("error") or document.get("message") or text)
    text = text[:20_000]  # a page's text comes early, and cleaning a huge one would hold everything up
    if "<" in text:
        text = _TAGS.sub(" ", text)
    if key:
        text = text.replace(key, "[key]")
    text = " ".join(whole_text(text).split())
    return text if len(text) <= length else text[: length - 3] + "..."
