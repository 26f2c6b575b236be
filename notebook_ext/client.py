"""Endpoint: the async client of one serverless endpoint; usable with no notebook anywhere.

async with Endpoint("abc123", provider="runpod") as ep:
    job = await ep.run({"prompt": "hi"})
    async for chunk in ep.stream(job.id):
        print(chunk.output, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from notebook_ext import protocol, providers
from notebook_ext.clocks import (
    ANSWER_MARGIN,
    HOLD_MARGIN,
    LONGEST_HOLD,
    REQUEST_TIMEOUT,
    SHORTEST_HOLD,
    STREAM_HOLD,
    SUBMIT_TIMEOUT,
    SYNC_HOLD,
)
from notebook_ext.errors import (
    InputError,
    JobError,
    JobLost,
    NotFoundError,
    ProtocolError,
    RequestTimeout,
    WaitTimeout,
    job_error,
)
from notebook_ext.exchange import JOB_ID, Exchange
from notebook_ext.following import Following, look_pause, looks
from notebook_ext.limits import Limits
from notebook_ext.openai_route import OpenAIRoute
from notebook_ext.pacing import HELD
from notebook_ext.protocol import JobRequest, Operation
from notebook_ext.types import ExecutionPolicy, Health, Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from notebook_ext.pacing import Polls
    from notebook_ext.providers import Provider

__all__ = ["Endpoint"]


class Endpoint:
    """The async client of one endpoint; it belongs to the event loop that first uses it.

    Args:
        id: The endpoint's id at its provider.
        provider: "runpod", "tensorone", "tensorone-rest", a base URL ending in /v2, or a Provider.
        api_key: The key, or a function that returns it whenever a request is built. None looks
            where the notebook looks: the provider's environment variable, then the keyring.
        limits: Shared by everything that calls the same endpoint; None makes one of its own.
        name: What messages call it; a key that was remembered for this name comes first. None
            means its id.

    Raises:
        ConfigurationError: No such provider, or a base URL that a key must not be sent to.
    """

    def __init__(
        self,
        id: str,
        provider: str | Provider = "runpod",
        api_key: str | Callable[[], str | None] | None = None,
        *,
        limits: Limits | None = None,
        name: str | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w.-]+", id):
            raise InputError(f"{id!r} is not an endpoint id: letters, digits, '-', '_' and '.' only")
        self.id = id
        self.name = name or id
        self.provider = providers.resolve(provider)
        self._limits = limits or Limits(self.provider.limits)
        self._exchange = Exchange(self.id, self.provider, api_key, self._limits, name)
        self._has_status_sync = None if Operation.STATUS_SYNC in self.provider.routes else False
        self._openai = OpenAIRoute(self.id, self.provider, api_key, self._limits, name)

    def __repr__(self) -> str:
        return f"Endpoint({self.id!r}, provider={self.provider.name!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @property
    def polls(self) -> Polls:
        """What is known of its long polls."""
        return self._limits.polls

    async def aclose(self) -> None:
        """Close its connections; jobs that were submitted go on, and nothing more is sent."""
        await self._exchange.aclose()
        await self._openai.aclose()

    # ------------------------------------------------------------------ submit

    async def run(
        self,
        input: Any,
        *,
        policy: ExecutionPolicy | None = None,
        webhook: str | None = None,
        webhook_v2: str | None = None,
        s3_config: Mapping[str, Any] | None = None,
        timeout: float = SUBMIT_TIMEOUT,
    ) -> Job:
        """Queue one job and return its first snapshot, without waiting for its result.

        Args:
            input: What the worker receives: any JSON value, at most 10 MB encoded (Runpod
                operation reference).
            policy: Server-side clocks of this job. None keeps the endpoint's own.
            webhook: http(s) URL that the provider calls with the result.
            webhook_v2: Passed on as it is; undocumented.
            s3_config: Bucket credentials handed to the worker.
            timeout: Seconds to wait for the reply to *this request*, not for the job.

        Raises:
            InputError: Not JSON, too large, or a policy out of range; nothing was sent.
            ConnectionFailed: Nothing was sent; calling again is safe.
            AnswerLost: The job may have been queued, its id unknown; repeating may run it twice.
                RequestTimeout is the case in which no answer came in `timeout`.
            RateLimitError: Too many requests, nothing was queued; `retry_after` is in seconds.
        """
        request = JobRequest(input, policy or ExecutionPolicy(), webhook, webhook_v2, s3_config)
        self._check(request)
        body = request.to_json(self.provider.dialect)
        return self._submitted_job(await self._exchange.call(Operation.RUN, body=body, timeout=timeout))

    async def run_sync(
        self,
        input: Any,
        *,
        policy: ExecutionPolicy | None = None,
        webhook: str | None = None,
        webhook_v2: str | None = None,
        s3_config: Mapping[str, Any] | None = None,
        wait: float = SYNC_HOLD,
        timeout: float | None = None,
    ) -> Job:
        """Submit with one `/runsync` round, go on by id where it is unfinished, and return the final job.

        Args:
            input: What the worker receives: any JSON value, at most 20 MB encoded.
            policy: Server-side clocks of this job.
            webhook: http(s) URL that the provider calls with the result.
            webhook_v2: Passed on as it is; undocumented.
            s3_config: Bucket credentials handed to the worker.
            wait: Seconds that the server may hold the first answer (1 to 300); the id is not
                known before it comes, so a short one can be cancelled sooner.
            timeout: Seconds to wait for the result; an answer that is late may take two more.
                None waits until the job is final.

        Raises:
            JobError: It ended in anything but COMPLETED.
            WaitTimeout: Not final within `timeout`; it goes on, and `job_id` names it.
            AnswerLost: The first answer was lost: the job may run, its id unknown.
                RequestTimeout is the case in which none came in time.
        """
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        request = JobRequest(input, policy or ExecutionPolicy(), webhook, webhook_v2, s3_config)
        job = await self._start_sync(request, wait if timeout is None else min(wait, timeout), timeout)
        while not job.status.is_final:
            left = SYNC_HOLD if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(
                    f"job {job.id} on {self.name} was still {job.status} after {timeout:g} s; it goes on: "
                    f"ask for its status, or cancel it",
                    job_id=job.id,
                )
            try:
                async with asyncio.timeout(None if deadline is None else left + ANSWER_MARGIN):
                    job = await self.status_sync(job.id, wait=min(SYNC_HOLD, left))
            except RequestTimeout:
                raise
            except TimeoutError:
                continue  # the deadline has passed, and the loop says so
        if (error := self._error(job, policy, time.monotonic() - began)) is not None:
            raise error
        return job

    async def start_sync(
        self,
        input: Any,
        *,
        policy: ExecutionPolicy | None = None,
        webhook: str | None = None,
        webhook_v2: str | None = None,
        s3_config: Mapping[str, Any] | None = None,
        wait: float = SYNC_HOLD,
        timeout: float | None = None,
    ) -> Job:
        """One `/runsync` round: the job as it is after at most `wait` seconds, final or not.

        Args and errors are those of `run_sync`; `timeout` is the caller's, beyond which an answer
        is not waited for much longer.
        """
        request = JobRequest(input, policy or ExecutionPolicy(), webhook, webhook_v2, s3_config)
        return await self._start_sync(request, wait, timeout)

    async def _start_sync(self, request: JobRequest, wait: float, timeout: float | None) -> Job:
        self._check(request)
        hold = _clamped(wait)
        if not self.provider.route(Operation.RUNSYNC).takes_wait:  # the answer is the result
            hold = LONGEST_HOLD if timeout is None else timeout
        answer = await self._exchange.call(
            Operation.RUNSYNC,
            body=request.to_json(self.provider.dialect, queued=False),
            hold=hold,
            timeout=None if timeout is None else min(hold + HOLD_MARGIN, max(hold, timeout) + ANSWER_MARGIN),
        )
        return self._submitted_job(answer)

    # ------------------------------------------------------------------ the OpenAI route

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[StreamChunk | Job]:
        """Ask `/openai/v1/chat/completions`: yields a snapshot, the chunks as they come, the final snapshot.

        Such a job has no id, so it cannot be looked at, cancelled or retried: leaving this generator
        closes its connection, and whether its worker then stops the route does not tell. The chunks
        are OpenAI's documents, and the final `output` is the completion that they make.

        Args:
            body: OpenAI's own: `messages`, and `model`, `temperature`, `max_tokens` ... beside it. It is
                streamed with its usage unless it says otherwise. Where it names no model, `models` is
                asked once, and there must be one.

        Raises:
            InputError: There are no messages; nothing was sent.
            ConfigurationError: The provider documents no such route, or the model has to be named.
            ConnectionFailed: Nothing was sent; calling again is safe.
            AnswerLost: The job may have run. After the final snapshot: the stream ended without [DONE].
            RateLimitError: Too many requests; nothing was queued.
        """
        async with contextlib.aclosing(self._openai.chat(body)) as events:
            async for event in events:
                yield event

    async def models(self) -> list[str]:
        """The names of the models that its OpenAI route serves; a worker may have to start to tell them."""
        return await self._openai.models()

    # ------------------------------------------------------------------ look

    async def status(self, job_id: str, *, timeout: float = REQUEST_TIMEOUT) -> Job:
        """Look at a job once.

        Args:
            job_id: The server's id.
            timeout: Seconds to wait for the answer.

        Raises:
            JobLost: The server does not know it (any more): it expired, and its result is gone.
        """
        return await self._look(Operation.STATUS, job_id, timeout=timeout)

    async def status_sync(self, job_id: str, *, wait: float = SYNC_HOLD) -> Job:
        """Look at a job, letting the server hold the answer until it is final or `wait` seconds are over.

        Where there is no such route, or a server that does not hold, it looks at once and then again
        and again, each time a tenth of the time later, until `wait` seconds are over.
        """
        since = time.monotonic()
        while True:
            asked = time.monotonic()
            job = await self._held_look(job_id, since + wait - asked)
            now = time.monotonic()
            if job.status.is_final or now >= since + wait or (self._has_status_sync and now - asked > HELD):
                return job
            await asyncio.sleep(min(look_pause(since, asked), since + wait - now))

    async def _held_look(self, job_id: str, wait: float) -> Job:
        """Look at a job, held where the server can."""
        if self._has_status_sync is not False:
            try:
                job = await self._look(Operation.STATUS_SYNC, job_id, hold=_clamped(wait))
            except JobLost:
                if self._has_status_sync:
                    raise
            else:
                self._has_status_sync = True
                return job
        job = await self.status(job_id)
        self._has_status_sync = False  # it was the route that is unknown, and not the job
        return job

    async def stream(self, job_id: str, *, hold: float = STREAM_HOLD) -> AsyncGenerator[StreamChunk]:
        """Yield a job's chunks as they come; ends when the job is COMPLETED.

        Reading drains: two readers of one job share its chunks between them.

        Args:
            job_id: The server's id.
            hold: Seconds that the server may hold one answer (1 to 300).

        Raises:
            JobError: The job ended in anything but COMPLETED; what came before has been yielded.
            AnswerLost: Answers were lost on the wire with the chunks in them, and the server keeps
                no aggregate to repair them from.
        """
        final = None
        async with contextlib.aclosing(self._following(job_id, hold, look=False)) as events:
            async for event in events:
                if isinstance(event, StreamChunk):
                    yield event
                else:
                    final = event
        if final is not None and (error := self._error(final)) is not None:
            raise error

    async def follow(self, job_id: str, *, hold: float = STREAM_HOLD) -> AsyncGenerator[StreamChunk | Job]:
        """Yield all that can be seen of a job: snapshots when it changes, chunks, its final snapshot.

        The final snapshot is yielded, not raised, whatever its state. Where the provider has no
        stream route it follows by status alone.

        Raises:
            AnswerLost: As in `stream`; it is raised after the final snapshot.
        """
        if Operation.STREAM in self.provider.routes:
            async with contextlib.aclosing(self._following(job_id, hold, look=True)) as events:
                async for event in events:
                    yield event
            return
        async with contextlib.aclosing(looks(self, job_id)) as jobs:
            async for job in jobs:
                yield job

    async def read_stream(
        self, job_id: str, *, hold: float = STREAM_HOLD, first_index: int = 0
    ) -> tuple[JobStatus | None, list[StreamChunk]]:
        """One answer of `/stream`: the status (None where it tells none) and the chunks since the last one.

        Args:
            job_id: The server's id.
            hold: Seconds that the server may hold the answer (1 to 300).
            first_index: The index of its first chunk.

        Raises:
            AnswerLost: The answer was lost, and with it any chunks in it: reading drains.
        """
        try:
            answer = await self._exchange.call(Operation.STREAM, job_id, hold=_clamped(hold))
        except NotFoundError as error:
            raise self._lost(job_id) from error
        self._exchange.seen(job_id)
        return protocol.read_stream(answer, first_index=first_index, dialect=self.provider.dialect)

    async def health(self) -> Health:
        """The endpoint's counters of jobs and workers."""
        return protocol.read_health(await self._exchange.call(Operation.HEALTH))

    async def requests(self) -> list[Job]:
        """The provider's list of recent requests (heavily rate limited; its shape is undocumented)."""
        answer = await self._exchange.call(Operation.REQUESTS)
        return protocol.read_requests(answer, endpoint=self.id, dialect=self.provider.dialect)

    # ------------------------------------------------------------------ change

    async def cancel(self, job_id: str) -> Job:
        """Ask the server to stop a job, and return what it answered.

        The answer says that the request was taken, not that the worker has stopped; look at the
        status for that. Safe to repeat.

        Raises:
            JobLost: The server does not know it (any more).
        """
        return await self._look(Operation.CANCEL, job_id, body={})

    async def retry(self, job_id: str) -> Job:
        """Queue a FAILED or TIMED_OUT job again: the same id, the same input, its old output gone.

        Raises:
            BadRequest: It is in another state.
            JobLost: It has expired.
        """
        return await self._look(Operation.RETRY, job_id, body={})

    async def purge_queue(self) -> int:
        """Remove every queued job, whoever submitted it, and return how many; running ones go on."""
        return protocol.read_purged(await self._exchange.call(Operation.PURGE_QUEUE, body={}))

    # ------------------------------------------------------------------ inside: one request

    def _check(self, request: JobRequest) -> None:
        """Refuse what the provider is known not to take, before anything is sent."""
        for name, (least, most) in (self.provider.policy_ranges or {}).items():
            seconds = getattr(request.policy, name)
            if seconds is not None and not least <= seconds <= most:
                raise InputError(
                    f"{name} is {seconds:g} s, but {self.provider.name} takes {least:g} s to {most:g} s; "
                    "nothing was sent"
                )
        for url in (request.webhook, request.webhook_v2):
            if url is not None and not url.startswith(("https://", "http://")):
                raise InputError(f"a webhook is an http(s) URL, not {url!r}; nothing was sent")

    def _submitted_job(self, answer: Any) -> Job:
        if isinstance(answer, Mapping) and "status" not in answer:
            answer = {**answer, "status": JobStatus.IN_QUEUE}  # it was accepted, or this were an error
        job = protocol.read_job(answer, endpoint=self.id, dialect=self.provider.dialect)
        if not job.id and not job.status.is_final:
            raise ProtocolError(
                f"{self.name} took the job ({job.status}) but answered without an id; it may run"
            )
        if job.id and not JOB_ID.fullmatch(job.id):
            raise ProtocolError(f"{self.name} took the job, but {job.id[:40]!r} cannot be its id; it may run")
        self._exchange.submitted(job.id)
        return job

    async def _look(self, operation: Operation, job_id: str, **request: Any) -> Job:
        try:
            answer = await self._exchange.call(operation, job_id, **request)
        except NotFoundError as error:
            raise self._lost(job_id) from error
        self._exchange.seen(job_id)
        return protocol.read_job(answer, endpoint=self.id, dialect=self.provider.dialect, job_id=job_id)

    def _following(self, job_id: str, hold: float, *, look: bool) -> AsyncGenerator[StreamChunk | Job]:
        return Following(self, job_id, hold=hold, look=look).events()

    def _error(
        self, job: Job, policy: ExecutionPolicy | None = None, age: float | None = None
    ) -> JobError | None:
        name = f"{f'job {job.id}' if job.id else 'the job'} on {self.name}"
        return job_error(job, name, policy=policy, age=age)

    def _lost(self, job_id: str) -> JobLost:
        job = Job(id=job_id, endpoint=self.id, status=JobStatus.LOST, seen_at=time.time())
        error = self._error(job)
        assert isinstance(error, JobLost)  # LOST has no other error
        return error


def _clamped(seconds: float) -> float:
    return min(max(seconds, SHORTEST_HOLD), LONGEST_HOLD)
