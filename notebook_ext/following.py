"""Following one job: long polls of its stream back to back, and a look at its status while nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from notebook_ext.errors import (
    AnswerLost,
    ConnectionFailed,
    EndpointError,
    JobLost,
    ProtocolError,
    RateLimitError,
    ServerError,
    TransportError,
)
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["TRANSIENT", "Following", "Patience", "differs"]

MOST_FAILURES = 6
"""How many answers in a row may be lost before a job is no longer followed."""
LONGEST_ASKED = 60.0
"""Seconds that a server's wish to be left alone is heeded."""
PATIENCE, LONGEST_REST = 300.0, 10.0
"""Seconds without a connection (nothing is lost by that) before a job is no longer followed; the
longest pause between two attempts."""
TRANSIENT = (AnswerLost, ServerError, ProtocolError, ConnectionFailed, RateLimitError)
"""Failures that may pass."""

HELD = 0.25
"""Seconds from which on an answer counts as held by the server."""
SHORTEST_PAUSE, PAUSE_SHARE, LONGEST_PAUSE = 0.005, 0.02, 1.0
"""Between two empty answers that were not held: seconds, share of the time since anything came, seconds."""
FIRST_LOOK, BUSY_LOOK, LONGEST_LOOK = 0.2, 1.0, 10.0
"""Seconds until the first look at the status beside an open stream. Each that tells nothing new doubles the
pause, up to the longest; one that does halves it, down to the busy one."""
MOST_HELD, MOST_HELD_IDLY = 224, 128
"""Streams of one endpoint that are held at once; and those among them of jobs that wait in the queue. The
other connections stay free for what must not wait for them: submissions, cancels and looks."""
AGE_SHARE, LONGEST_ROUND, ROUNDS_RATE, ROUND = 0.1, 10.0, 100.0, 0.25
"""Between two looks at a job whose stream cannot be held: share of its age, seconds at most; how many of all
of them are looked at in a second; and the clock on which that is done together: the loop wakes less often."""
QUIET = 10.0
"""Seconds without a chunk after which the status is asked: some streams never say that the job has ended."""


class _Source(Protocol):
    id: str

    held: int
    rounds: int

    async def status(self, job_id: str) -> Job: ...

    async def read_stream(
        self, job_id: str, *, hold: float, first_index: int
    ) -> tuple[JobStatus | None, list[StreamChunk]]: ...


class Patience:
    """Lets time pass after a failure, or gives up.

    Args:
        what: The job, in words.
        job_id: The server's id.
    """

    def __init__(self, what: str, job_id: str) -> None:
        self._what = what
        self._job_id = job_id
        self.renew()

    def renew(self) -> None:
        """A good answer came."""
        self._losses = self._failures = 0
        self._failing_since = time.monotonic()

    async def after(self, error: EndpointError) -> None:
        """Wait a little.

        Raises:
            AnswerLost: It was one answer too many that was lost.
            TransportError: There has been no connection for too long; nothing was lost by that.
        """
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        is_loss = not isinstance(error, (ConnectionFailed, RateLimitError))
        self._losses += is_loss
        if self._losses >= MOST_FAILURES or now - self._failing_since >= PATIENCE:
            last = str(error).rstrip(".?")
            raise (AnswerLost if self._losses else TransportError)(
                f"following {self._what} failed {self._failures} times in a row; the last time: {last}. "
                "The job itself may go on: attach to it again, or cancel it",
                job_id=self._job_id,
            ) from error
        most = min(0.1 * 2 ** min(self._failures, 10), LONGEST_REST)
        asked = error.retry_after if isinstance(error, RateLimitError) else None
        jitter = random.uniform(most / 2, most)  # noqa: S311 - no secret
        await asyncio.sleep(min(asked, LONGEST_ASKED) if asked else jitter)


class Following:
    """Follows one job over its stream.

    Args:
        endpoint: Whose job it is.
        job_id: The server's id.
        hold: Seconds that the server may hold one answer.
        look: Also look at the status now and then until the first chunk comes, and fetch the
            final snapshot; without it, only chunks are asked for, and the final snapshot only
            where the job ended in anything but COMPLETED.
        first_index: How many chunks were seen before, by somebody who gave up.
        has_gap: Whether answers were lost then.
        grace: Seconds for the outstanding answer when it is cancelled: what the server has put into
            it is nowhere else. Its chunks are yielded before the cancellation is raised.
    """

    def __init__(
        self,
        endpoint: _Source,
        job_id: str,
        *,
        hold: float,
        look: bool,
        first_index: int = 0,
        has_gap: bool = False,
        grace: float = 0.0,
    ) -> None:
        self._endpoint = endpoint
        self._job_id = job_id
        self._hold = hold
        self._look = look
        self._status: JobStatus | None = None
        self._last: Job | None = None
        self._seen = first_index
        self._lost = int(has_gap)
        self._grace = grace
        self._is_outstanding = False
        self._held: list[StreamChunk] = []  # what came after a gap: only the aggregate knows its place
        self._patience = Patience(f"job {job_id} on {endpoint.id}", job_id)
        self._since = time.monotonic()
        self._look_pause = FIRST_LOOK
        self._look_at = self._since + FIRST_LOOK
        self._final: JobStatus | None = None  # that a look has told, and not yet the stream
        self._idle_since = self._quiet_since = time.monotonic()

    @property
    def has_gap(self) -> bool:
        """Whether answers were lost, or may have been: the last one was not waited for."""
        return self._lost > 0 or self._is_outstanding

    async def events(self) -> AsyncGenerator[StreamChunk | Job]:
        """Yield snapshots where the state changed, chunks, and the final snapshot last.

        Raises:
            AnswerLost: Too many answers in a row were lost; or, after the final snapshot, some
                were lost and the server keeps no aggregate to repair the text from.
        """
        try:
            async with contextlib.aclosing(self._live()) as live:
                async for event in live:
                    yield event
            if not self._look and not self._lost and self._status is JobStatus.COMPLETED:
                return
            final = await self._looked()
        except JobLost as error:
            yield error.job
            return
        for chunk in self._repaired(final):
            yield chunk
        yield final
        if self._lost and not _aggregate(final) and (self._seen or self._held or final.output == []):
            raise AnswerLost(
                f"{self._lost} answer(s) of the stream of job {self._job_id} on {self._endpoint.id} were "
                f"lost on the way: the job is {final.status}, but text may be missing, and the server keeps "
                "no copy of what was streamed",
                job_id=self._job_id,
            )

    async def _live(self) -> AsyncGenerator[StreamChunk | Job]:
        while self._status is None or not self._status.is_final:
            if self._look and not self._has_room():
                async with contextlib.aclosing(self._in_turn()) as looks:
                    async for job in looks:
                        yield job
            async with contextlib.aclosing(self._held_answer()) as events:
                async for event in events:
                    yield event

    async def _held_answer(self) -> AsyncGenerator[StreamChunk | Job]:
        """One held answer of the stream, and looks at the status until it comes."""
        poll = asyncio.ensure_future(self._poll())
        self._endpoint.held += 1
        self._is_outstanding, cancelled = True, None
        try:
            if self._look and not self._seen:
                async with contextlib.aclosing(self._looks_until(poll)) as looks:
                    async for job in looks:
                        yield job
            await asyncio.wait({poll})
        except asyncio.CancelledError as error:
            cancelled = error
            await asyncio.wait({poll}, timeout=self._grace)
            if not poll.done():
                raise
        finally:
            self._endpoint.held -= 1
            await _stopped(poll)
        chunks = poll.result()
        if self._look and chunks and (started := self._changed_to(self._status)) is not None:
            yield started
        for chunk in chunks:
            yield chunk
        self._is_outstanding = False
        if cancelled is not None:
            raise cancelled

    async def _poll(self) -> list[StreamChunk]:
        """One answer of the stream: its chunks, or none where it was lost or is held back."""
        asked, final = time.monotonic(), self._final  # an answer that is older than the end may lack chunks
        try:
            status, chunks = await self._endpoint.read_stream(
                self._job_id, hold=self._hold, first_index=self._seen + len(self._held)
            )
        except TRANSIENT as error:
            self._lost += not isinstance(error, (ConnectionFailed, RateLimitError))  # they drain nothing
            await self._patience.after(error)
            return []
        except JobLost:  # perhaps only its stream is unknown: not every job has one
            status, chunks = (await self._looked()).status, []
        self._patience.renew()
        if status is None:  # the documentation's own example is a list without a status: ask for it
            with contextlib.suppress(EndpointError):  # the chunks are not to be lost with it
                status = (await self._endpoint.status(self._job_id)).status
        if final is not None and not chunks:
            status = final
        self._status = await self._confirmed(status, chunks)
        if self._status is None or not self._status.is_final:
            await self._pause(time.monotonic() - asked, chunks)
        if self._lost:
            self._held += chunks
            return []
        self._seen += len(chunks)
        return chunks

    async def _confirmed(self, status: JobStatus | None, chunks: list[StreamChunk]) -> JobStatus | None:
        """What the stream says of the state; where it has been quiet for long, what `status` says."""
        now = time.monotonic()
        if chunks or (status is not None and status.is_final):
            self._quiet_since = now
        elif self._look and not self._seen:
            return status  # it is looked at anyway
        elif now - self._quiet_since >= QUIET:
            self._quiet_since = now
            with contextlib.suppress(EndpointError):
                return (await self._endpoint.status(self._job_id)).status
        return status

    async def _looked(self) -> Job:
        """How the job stands, as soon as the server can be asked."""
        while True:
            try:
                return await self._endpoint.status(self._job_id)
            except TRANSIENT as error:
                await self._patience.after(error)

    async def _pause(self, took: float, chunks: list[StreamChunk]) -> None:
        """Not at all where the server holds or chunks come; else the longer, the longer nothing has come."""
        now = time.monotonic()
        if chunks or took > HELD:
            self._idle_since = now
            return
        await asyncio.sleep(min(max(SHORTEST_PAUSE, PAUSE_SHARE * (now - self._idle_since)), LONGEST_PAUSE))

    async def _looks_until(self, poll: asyncio.Future[list[StreamChunk]]) -> AsyncGenerator[Job]:
        while not (await asyncio.wait({poll}, timeout=max(0.0, self._look_at - time.monotonic())))[0]:
            look = asyncio.ensure_future(self._endpoint.status(self._job_id))
            both: set[asyncio.Future[Any]] = {poll, look}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not look.done():  # the first chunk must not wait for a slow look
                    return
                with contextlib.suppress(EndpointError):  # the open stream tells what is wrong
                    job = look.result()
                    if self._is_news(job):
                        yield job
            finally:
                self._look_at = time.monotonic() + self._look_pause
                await _stopped(look)

    def _is_news(self, job: Job) -> bool:
        """Take in what a look has told; whether that is to be passed on: the final snapshot comes last."""
        is_new = differs(self._last, job)
        has_changed = is_new and self._last is not None
        self._look_pause = (
            max(BUSY_LOOK, self._look_pause / 2) if has_changed else min(2 * self._look_pause, LONGEST_LOOK)
        )
        if job.status.is_final:
            self._final = job.status
            return False
        self._last = job
        return is_new

    def _has_room(self) -> bool:
        """Whether its stream may be held: not where too many are already, those of running jobs first."""
        known = self._last.status if self._last is not None else self._status
        most = MOST_HELD_IDLY if known is JobStatus.IN_QUEUE else MOST_HELD
        return bool(self._seen) or self._endpoint.held < most

    async def _in_turn(self) -> AsyncGenerator[Job]:
        """Look now and then, until its stream may be held or the job has ended."""
        pause = FIRST_LOOK
        self._endpoint.rounds += 1
        try:
            while not self._has_room() and self._final is None:
                due = time.monotonic() + random.uniform(0.8, 1.2) * pause  # noqa: S311 - jitter, not a secret
                await asyncio.sleep(due + ROUND - due % ROUND - time.monotonic())
                age = time.monotonic() - self._since
                pause = max(min(AGE_SHARE * age, LONGEST_ROUND), self._endpoint.rounds / ROUNDS_RATE)
                try:
                    job = await self._endpoint.status(self._job_id)
                except TRANSIENT as error:
                    await self._patience.after(error)
                    continue
                self._patience.renew()
                if self._is_news(job):
                    yield job
        finally:
            self._endpoint.rounds -= 1

    def _changed_to(self, status: JobStatus | None) -> Job | None:
        """A snapshot for a state that only the stream has told so far."""
        if status is None or status.is_final or (self._last is not None and self._last.status == status):
            return None
        known = self._last or Job(id=self._job_id, endpoint=self._endpoint.id, status=status)
        self._last = replace(known, status=status, seen_at=time.time())
        return self._last

    def _repaired(self, final: Job) -> list[StreamChunk]:
        """What a gap swallowed: from the aggregate where the server keeps one, else what came after it."""
        if not self._lost:
            return []
        aggregate = _aggregate(final)
        chunks = [StreamChunk(output, index) for index, output in enumerate(aggregate)]
        return chunks[self._seen :] if aggregate else self._held


def differs(last: Job | None, job: Job) -> bool:
    """Whether a snapshot tells anything that the last one did not."""
    return last is None or replace(last, seen_at=0.0) != replace(job, seen_at=0.0)


def _aggregate(job: Job) -> list[object]:
    return job.output if isinstance(job.output, list) else []


async def _stopped(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, EndpointError):  # also of one that has just failed
        await task
