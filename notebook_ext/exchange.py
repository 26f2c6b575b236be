"""One request to an endpoint and its answer: the key, the limits, safe repetition, true errors.

With `transport` and the server's `outbound` the only module that imports httpx.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import tenacity

from notebook_ext import config, transport
from notebook_ext.answers import excerpt, is_refusal, retry_after, without_key
from notebook_ext.clocks import CONNECT_TIMEOUT, HOLD_MARGIN, REQUEST_TIMEOUT, SUBMIT_TIMEOUT
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
from notebook_ext.pacing import tell_pause
from notebook_ext.protocol import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.limits import Limits
    from notebook_ext.providers import Provider

__all__ = ["JOB_ID", "Asking", "Exchange"]

JOB_ID = re.compile(r"[\w.-]+", re.ASCII)
"""Ids are opaque, but they stand in a path."""

ATTEMPTS = 6
"""How often a request that is safe to repeat is tried at most."""
REFUSED_PAUSE = 5.0
"""How much longer than after a hiccup the pause is after a refusal that does not say how long."""
FRESH_JOB = 5.0
"""Seconds during which a 404 for a job that we submitted ourselves may mean "not yet"."""
SHORTEST_TRY = 0.1
"""Seconds that an attempt has at least: it may begin just before the deadline."""
IDLE_BEFORE_SUBMIT = 1.0
"""Seconds: a submission does not use a connection that was idle for longer. The server may be
closing it just then, and nobody could tell whether the job was queued."""

_CUT_OFF = frozenset({408, 502, 504, 520, 522, 524})
"""What a proxy answers when it no longer waits for the server."""
_PERHAPS_TAKEN = frozenset({302, 303})
"""Redirects that a server also answers with when it has done what a POST asked for."""
_SUBMITS = frozenset({Operation.RUN, Operation.RUNSYNC, Operation.RETRY, Operation.OPENAI})
_SAFE_TO_REPEAT = frozenset(
    {
        Operation.STATUS,
        Operation.STATUS_SYNC,
        Operation.STREAM,
        Operation.CANCEL,
        Operation.PURGE_QUEUE,
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


@dataclass
class Asking:
    """One thing that is asked, once or again.

    Attributes:
        held_back: Seconds for which our own limits have held it back: no clock runs in them.
    """

    operation: Operation
    job_id: str
    content: bytes | None
    hold: float | None
    timeout: float
    held_back: float = 0.0

    def spent(self, since: float) -> float:
        return time.monotonic() - since - self.held_back

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether it was tried too often, or another attempt could not begin before the caller's deadline."""
        return (
            state.attempt_number >= ATTEMPTS
            or self.spent(state.start_time) + state.upcoming_sleep >= self.timeout
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
            timeout: Seconds in which an answer must have come, or, of one that the server holds, in
                which the last attempt must have begun. None means 30, or the hold and 15 more. What
                our own limits hold back is not counted.
        """
        if self.provider.route(operation).is_about_a_job and not JOB_ID.fullmatch(job_id):
            raise InputError(f"{job_id!r} is not a job id" if job_id else self._no_id(operation))
        content = None if body is None else self._encode(operation, body)
        if timeout is None:
            own = SUBMIT_TIMEOUT if operation in _SUBMITS else REQUEST_TIMEOUT
            timeout = own if hold is None else hold + HOLD_MARGIN
        if hold is not None and self.provider.route(operation).takes_wait:
            hold = self._limits.polls.hold(hold)
        client = self._open_client()
        asking = Asking(operation, job_id, content, hold, timeout)

        def again(error: BaseException) -> bool:
            return not client.is_closed and self._may_repeat(asking, error)

        started = time.monotonic()
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(again),
            stop=asking.is_over,
            wait=_pause_before_retry,
            before_sleep=_tell,
            reraise=True,
        ):
            with attempt:
                left = timeout if hold is not None else max(timeout - asking.spent(started), SHORTEST_TRY)
                return await self._send(client, asking, left)
        raise AssertionError  # what the last attempt raised has been raised

    def _may_repeat(self, asking: Asking, error: BaseException) -> bool:
        if isinstance(error, (ConnectionFailed, RateLimitError)):
            return True  # it was not sent, or was turned away: nothing has been done
        if isinstance(error, NotFoundError):
            return self._is_fresh(asking.job_id)
        if asking.operation is Operation.STREAM:
            # a lost answer may have had chunks in it: whoever follows must know that they are gone
            return False
        return asking.operation in _SAFE_TO_REPEAT and isinstance(
            error, (TransportError, ServerError, ProtocolError)
        )

    def seen(self, job_id: str) -> None:
        """The server knows this job: a 404 from now on means that it has gone."""
        self._submitted.pop(job_id, None)

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

    async def _send(self, client: httpx.AsyncClient, asking: Asking, timeout: float) -> Any:
        operation, job_id = asking.operation, asking.job_id
        self._refuse_long_pause(asking)
        key = await self._key()
        connect_timeout = min(CONNECT_TIMEOUT, timeout)
        came = time.monotonic()
        if (pause := self._limits.paused(operation)) > 0:
            tell_pause(pause)
        async with self._limits.slot(operation) as slot:
            asking.held_back += slot.sent - came
            if client.is_closed:
                raise ConnectionFailed(
                    f"{self._what(operation, job_id)}: the endpoint was closed; nothing was sent",
                    job_id=job_id or None,
                )
            clocks = httpx.Timeout(timeout, connect=connect_timeout, pool=None)
            request = self._build_request(client, asking, key, clocks)
            try:
                # the transport's timeouts are per read; a server that drips must end as well
                async with asyncio.timeout(timeout + connect_timeout):
                    response = await client.send(request)
            except (httpx.TransportError, TimeoutError) as error:
                if not isinstance(error, _NEVER_SENT):
                    self._broke(asking, slot.sent)
                raise self._unreached(asking, error, time.monotonic() - slot.sent) from error
            except httpx.DecodingError as error:
                raise ProtocolError(
                    f"{self._what(operation, job_id)}: the answer is garbled: {error}{_fate(operation)}",
                    job_id=job_id or None,
                ) from error
            if is_refusal(response):
                slot.refuse(retry_after(response))
            elif response.status_code in _CUT_OFF:
                self._broke(asking, slot.sent)
            else:
                self._limits.polls.answered(time.monotonic() - slot.sent)
        return self._answer(operation, job_id, response, key)

    def _broke(self, asking: Asking, sent: float) -> None:
        """A held answer did not come; where it was given up here, nobody knows when it was cut off."""
        if asking.hold is None:
            return
        took = time.monotonic() - sent
        self._limits.polls.broke(sent, took if took <= asking.hold else asking.hold / 2)

    def _build_request(
        self, client: httpx.AsyncClient, asking: Asking, key: str | None, timeout: httpx.Timeout
    ) -> httpx.Request:
        route = self.provider.route(asking.operation)
        request = client.build_request(
            route.method,
            self.provider.base_url + route.fill(self.endpoint, asking.job_id),
            params={"wait": round(asking.hold * 1000)} if asking.hold and route.takes_wait else None,
            content=asking.content,
            headers={
                **({"Authorization": f"Bearer {key}"} if key else {}),
                **({"Content-Type": "application/json"} if asking.content is not None else {}),
            },
            timeout=timeout,
        )
        if asking.operation in _SUBMITS:
            request.extensions["fresh_after"] = IDLE_BEFORE_SUBMIT
        return request

    def _refuse_long_pause(self, asking: Asking) -> None:
        """Tell at once what the server has told before, where waiting for its end would be too long."""
        pause = self._limits.paused(asking.operation)
        if pause > asking.timeout:
            raise RateLimitError(
                f"{self._what(asking.operation, asking.job_id)}: the server had too many requests and "
                f"wants none for another {pause:.0f} s; nothing was sent",
                retry_after=pause,
                job_id=asking.job_id or None,
            )

    def _open_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None:
            self._client = self._make_client()
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                f"endpoint {self.name} belongs to the event loop that first used it; make another one "
                "for this loop"
            )
        return self._client

    def _make_client(self) -> httpx.AsyncClient:
        return transport.make_client(self.provider.base_url)

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

    def _unreached(self, asking: Asking, error: Exception, after: float) -> TransportError:
        what = self._what(asking.operation, asking.job_id)
        known = {"job_id": asking.job_id or None}
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            why = f"the connect timeout is {min(CONNECT_TIMEOUT, asking.timeout):g} s"
        if isinstance(error, _NEVER_SENT):
            return ConnectionFailed(
                f"{what}: no connection to {self.provider.base_url} after {after:.1f} s ({why}); nothing was "
                "sent. Is the network up, and the address right?",
                **known,
            )
        fate = _FATES.get(asking.operation, "The job goes on; it is safe to ask again")
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return RequestTimeout(
                f"{what}: no answer within {after:.1f} s ({_clock(asking)}). {fate}.", **known
            )
        return AnswerLost(
            f"{what}: the connection broke after {after:.1f} s, before a whole answer came ({why}). {fate}.",
            **known,
        )

    def _answer(self, operation: Operation, job_id: str, response: httpx.Response, key: str | None) -> Any:
        what = self._what(operation, job_id)
        if response.is_success:
            try:
                return json.loads(without_key(response.content, key))
            except (ValueError, UnicodeDecodeError, RecursionError):
                raise ProtocolError(
                    f"{what}: the answer ({response.status_code}) is not JSON: {excerpt(response, key)}"
                    f"{_fate(operation)}. Is {self.provider.base_url} the right address?",
                    job_id=job_id or None,
                ) from None
        error = self._api_error(operation, job_id, what, response, key)
        if isinstance(error, AuthenticationError):
            config.doubt_keyring()
        raise error

    def _api_error(
        self, operation: Operation, job_id: str, what: str, response: httpx.Response, key: str | None
    ) -> EndpointError:
        code, said = response.status_code, excerpt(response, key)
        known: dict[str, Any] = {"status_code": code, "body": said, "job_id": job_id or None}
        tail = f": {said}" if said else ""
        if 300 <= code < 400:
            return _redirect(operation, what, known)
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
                    f"check its id{self._name_hint()}",
                    **known,
                )
            case 421:
                return APIError(
                    f"{what}: the server does not answer for {self.provider.base_url} (421){tail}; is it "
                    "reached through another host or port than its own? Start it with that port, or connect "
                    "to the address that it names",
                    **known,
                )
            case _ if is_refusal(response):
                pause = retry_after(response)
                when = f"try again in {pause:g} s" if pause else "try again in a moment"
                why = "too many requests, or the queue is full" if code == 429 else "it takes no request now"
                return RateLimitError(
                    f"{what}: {why} ({code}){tail}; nothing was queued: {when}",
                    retry_after=pause,
                    **known,
                )
            case _ if code == 408 or code >= 500:
                return ServerError(f"{what}: the platform failed ({code}){tail}{_fate(operation)}", **known)
            case _ if code in (400, 413, 422):
                return BadRequest(f"{what}: the server did not accept the request ({code}){tail}", **known)
        return APIError(f"{what}: the server answered {code}{tail}", **known)

    def _what(self, operation: Operation, job_id: str) -> str:
        return f"{operation}{f' of job {job_id}' if job_id else ''} on {self.name}"

    def _name_hint(self) -> str:
        """For whoever typed a name where an id is meant."""
        if self._saved_name is not None:
            return ""
        return f", or take notebook_ext.connect({self.endpoint!r}) if that is a name which is saved or served"

    def _no_id(self, operation: Operation) -> str:
        return (
            f"{operation} on {self.name}: the job has no id to ask {self.provider.name} by; what its own "
            "answer told is all there is; nothing was sent"
        )

    def _key_hint(self, key: str | None) -> str:
        variable = self.provider.key_variable
        if not variable:
            return "check the key" if key else "give it one"
        return f"{'check' if key else 'set'} ${variable}, or `%endpoint login {self._saved_name or 'NAME'}`"


_PERHAPS_TWICE = (
    "The job may have been queued all the same, its id is unknown; running it again may run it twice"
)
_FATES = {
    **dict.fromkeys(_SUBMITS, _PERHAPS_TWICE),
    Operation.RETRY: "The job may have been queued again all the same; running it again may run it twice",
    Operation.CANCEL: "The job may have been cancelled all the same; it is safe to ask again",
    Operation.PURGE_QUEUE: "The queue may have been purged all the same; it is safe to ask again",
    **dict.fromkeys((Operation.HEALTH, Operation.REQUESTS), "It is safe to ask again"),
}
"""What became of the job whose request was not answered."""


def _fate(operation: Operation) -> str:
    return "; the job may have been queued all the same" if operation in _SUBMITS else ""


def _redirect(operation: Operation, what: str, known: dict[str, Any]) -> EndpointError:
    """It is the same the next time; only what a submission came to may be unknown."""
    told = (
        f"{what}: the server redirects ({known['status_code']}); it is not followed, so that the key goes to "
        "no other host"
    )
    if operation in _SUBMITS and known["status_code"] in _PERHAPS_TAKEN:
        return ProtocolError(f"{told}{_fate(operation)}. Correct the address", job_id=known["job_id"])
    return APIError(f"{told}. Correct the address", **known)


def _clock(asking: Asking) -> str:
    """Which clock has run out."""
    if asking.hold is not None:
        return f"the server may hold it for {asking.hold:g} s, and the hold timeout is {asking.timeout:g} s"
    kind = "submit" if asking.operation in _SUBMITS else "request"
    return f"the {kind} timeout is {asking.timeout:g} s"


_jitter = tenacity.wait_random_exponential(multiplier=0.1, max=5.0)


def _tell(state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and isinstance(state.outcome.exception(), RateLimitError):
        tell_pause(state.upcoming_sleep)


def _pause_before_retry(state: tenacity.RetryCallState) -> float:
    """Seconds: what the server asked for, else exponential with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, RateLimitError):
        return _jitter(state)
    return REFUSED_PAUSE * _jitter(state) if error.retry_after is None else error.retry_after
