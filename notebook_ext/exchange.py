"""One request to an endpoint and its answer: the key, the limits, safe repetition, true errors.

With `transport` and the server's `outbound` the only module that imports httpx.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import tenacity

from notebook_ext import keys, transport
from notebook_ext.answers import is_refusal, retry_after, without_key
from notebook_ext.asking import SUBMITS, Asking
from notebook_ext.clocks import HOLD_MARGIN, REQUEST_TIMEOUT, SUBMIT_TIMEOUT
from notebook_ext.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailed,
    InputError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    ServerError,
    TransportError,
)
from notebook_ext.failures import NEVER_SENT, Failures
from notebook_ext.pacing import tell_pause
from notebook_ext.protocol import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.limits import Limits
    from notebook_ext.providers import Provider

__all__ = ["JOB_ID", "Exchange"]

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


class Exchange:
    """Sends the requests of one endpoint; belongs to the event loop that first uses it.

    Args:
        endpoint: The endpoint's id.
        provider: Where it is and how it is asked.
        api_key: The key, a function that gives it, or None for where `keys` finds it.
        limits: What may be in flight.
        name: The name under which a person knows it: for messages, and for its own key. None
            means the id.
    """

    _failures_class: ClassVar[type[Failures]] = Failures

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
        self._closed = False
        self._submitted: dict[str, float] = {}
        self._failures = self._failures_class(endpoint, provider, name)

    async def aclose(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def submitted(self, job_id: str) -> None:
        """Remember that this job is ours and young: a 404 may mean that it is not known everywhere yet."""
        now = time.monotonic()
        while self._submitted and now - next(iter(self._submitted.values())) >= FRESH_JOB:
            del self._submitted[next(iter(self._submitted))]
        self._submitted.pop(job_id, None)  # the youngest is last
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
            raise self._failures.no_id(operation, job_id)
        content = None if body is None else self._encode(operation, body)
        if timeout is None:
            own = SUBMIT_TIMEOUT if operation in SUBMITS else REQUEST_TIMEOUT
            timeout = own if hold is None else hold + HOLD_MARGIN
        if hold is not None and self.provider.route(operation).takes_wait:
            hold = self._limits.polls.hold(hold)
        asking = Asking(operation, job_id, content, hold, timeout)
        client = self._open_client(asking)

        def again(error: BaseException) -> bool:
            return not client.is_closed and self._may_repeat(asking, error)

        started = time.monotonic()
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(again),
            stop=lambda state: _is_over(asking, state),
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
        if isinstance(error, NotFoundError):  # of a long poll it may mean that there is no such route
            return self._is_fresh(asking.job_id) and asking.operation is not Operation.STATUS_SYNC
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
        self._refuse_long_pause(asking)
        key = await self._key()
        connect_timeout = min(asking.connect_timeout, timeout)
        came = time.monotonic()
        if (pause := self._limits.paused(asking.operation)) > 0:
            tell_pause(pause)
        async with self._limits.slot(asking.operation) as slot:
            asking.held_back += slot.sent - came
            if client.is_closed:
                raise self._failures.closed(asking)
            clocks = httpx.Timeout(timeout, connect=connect_timeout, pool=None)
            request = self._build_request(client, asking, key, clocks)
            try:
                # the transport's timeouts are per read; a server that drips must end as well
                async with asyncio.timeout(timeout + connect_timeout):
                    response = await client.send(request)
            except (httpx.TransportError, TimeoutError) as error:
                if not isinstance(error, NEVER_SENT):
                    self._broke(asking, slot.sent)
                raise self._failures.unreached(asking, error, time.monotonic() - slot.sent) from error
            except httpx.DecodingError as error:
                raise self._failures.garbled(asking, error) from error
            if is_refusal(response):
                slot.refuse(retry_after(response))
            elif response.status_code in _CUT_OFF:
                self._broke(asking, slot.sent)
            else:
                self._limits.polls.answered(time.monotonic() - slot.sent)
        return self._answer(asking, response, key)

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
        if asking.submits:
            request.extensions["fresh_after"] = IDLE_BEFORE_SUBMIT
        return request

    def _refuse_long_pause(self, asking: Asking) -> None:
        """Tell at once what the server has told before, where waiting for its end would be too long."""
        pause = self._limits.paused(asking.operation)
        if pause > asking.timeout:
            raise self._failures.paused(asking, pause)

    def _open_client(self, asking: Asking) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._closed:  # connections that were made now would be closed by nobody
            raise self._failures.closed(asking)
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
                at_once = keys.find_at_once(self.provider, name=self._saved_name)
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
        key = keys.find_or_require(self.provider, name=self._saved_name)
        return key() if key is not None else None

    def _answer(self, asking: Asking, response: httpx.Response, key: str | None) -> Any:
        if response.is_success:
            try:
                return json.loads(without_key(response.content, key))
            except (ValueError, UnicodeDecodeError, RecursionError):
                raise self._failures.not_json(asking, response, key) from None
        error = self._failures.refused(asking, response, key)
        if isinstance(error, AuthenticationError):
            keys.doubt_keyring()
        raise error


_jitter = tenacity.wait_random_exponential(multiplier=0.1, max=5.0)


def _is_over(asking: Asking, state: tenacity.RetryCallState) -> bool:
    """Whether it was tried too often, or another attempt could not begin before the caller's deadline."""
    spent = asking.spent(state.start_time)
    return state.attempt_number >= ATTEMPTS or spent + state.upcoming_sleep >= asking.timeout


def _tell(state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and isinstance(state.outcome.exception(), RateLimitError):
        tell_pause(state.upcoming_sleep)


def _pause_before_retry(state: tenacity.RetryCallState) -> float:
    """Seconds: what the server asked for, else exponential with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, RateLimitError):
        return _jitter(state)
    return REFUSED_PAUSE * _jitter(state) if error.retry_after is None else error.retry_after
