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
    RateLimitError,
)
from notebook_ext.mending import MISSING, Received
from notebook_ext.pacing import HELD
from notebook_ext.patience import TRANSIENT, Patience
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from notebook_ext.pacing import Polls

__all__ = ["Following", "differs", "look_pause", "looks"]

SHORTEST_PAUSE, PAUSE_SHARE, LONGEST_PAUSE = 0.005, 0.02, 1.0
"""From one empty answer that was not held to the next: seconds, share of the time since anything came,
seconds at most."""
FIRST_LOOK, BUSY_LOOK, LONGEST_LOOK = 0.2, 1.0, 10.0
"""Seconds until the first look at the status beside an open stream. Each that tells nothing new doubles the
pause, up to the longest; one that does halves it, down to the busy one."""
MOST_HELD, MOST_HELD_IDLY = 224, 128
"""Streams of one endpoint that are held at once; and those among them of jobs that wait in the queue. The
other connections stay free for what must not wait for them: submissions, cancels and looks."""
SHORTEST_ROUND, AGE_SHARE, LONGEST_ROUND = 0.01, 0.1, 10.0
"""From one look at a job that cannot be long-polled to the next: seconds, share of its age, seconds."""
_TOLD_BY_STREAM = (JobStatus.COMPLETED, JobStatus.CANCELLED)
"""Ends of which a status tells nothing that a reader of the stream alone is waiting for."""
ROUNDS_RATE, ROUND = 100.0, 0.25
"""How many jobs that wait for their stream to be held are looked at in a second; and the clock on which that
is done together: the loop wakes less often."""
QUIET = 10.0
"""Seconds without a chunk after which the status is asked: some streams never say that the job has ended."""


class _Source(Protocol):
    id: str

    @property
    def polls(self) -> Polls: ...

    async def status(self, job_id: str) -> Job: ...

    async def read_stream(
        self, job_id: str, *, hold: float, first_index: int
    ) -> tuple[JobStatus | None, list[StreamChunk]]: ...


class Following:
    """Follows one job over its stream.

    Args:
        endpoint: Whose job it is.
        job_id: The server's id.
        hold: Seconds that the server may hold one answer.
        look: Also look at the status now and then until the first chunk comes, and fetch the
            final snapshot; without it, only chunks are asked for, and the final snapshot only
            where the job ended in anything but COMPLETED.
        received: What was shown before, by somebody who gave up.
        losses: How many answers were lost on the wire then.
        has_gap: Whether more may have come then than is known here.
        grace: Seconds for the outstanding answer when it is cancelled: what the server has put into
            it is nowhere else. Its chunks are yielded before the cancellation is raised.

    Attributes:
        note: What a reader of the result should know, once all events have come: that text was lost
            and repaired, or may be missing; empty where there is nothing.
    """

    def __init__(
        self,
        endpoint: _Source,
        job_id: str,
        *,
        hold: float,
        look: bool,
        received: Received | None = None,
        losses: int = 0,
        has_gap: bool = False,
        grace: float = 0.0,
    ) -> None:
        self.note = ""
        self._endpoint = endpoint
        self._job_id = job_id
        self._hold = hold
        self._look = look
        self._status: JobStatus | None = None
        self._last: Job | None = None
        self._received = received or Received()
        self._has_asked = False
        self._lost = losses + has_gap
        self._lost_elsewhere = int(has_gap)
        self._grace = grace
        self._is_outstanding = False
        self._held: list[StreamChunk] = []  # what came after a gap: only the aggregate knows its place
        self._patience = Patience(f"job {job_id} on {endpoint.id}", job_id)
        self._since = time.monotonic()
        self._look_pause = FIRST_LOOK
        self._look_at = self._since + max(FIRST_LOOK, endpoint.polls.held / ROUNDS_RATE)
        self._final: Job | None = None  # how it ended, where a look has told that
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
            if not self._look and not self._lost and self._status in _TOLD_BY_STREAM:
                if self._status is not JobStatus.COMPLETED:
                    yield Job(id=self._job_id, endpoint=self._endpoint.id, status=self._status)
                return
            final = self._final or await self._looked()
        except JobLost as error:
            yield error.job
            return
        has_begun = bool(self._received or self._held or final.output == [])
        has_missing = self._lost > 0 and has_begun and not _aggregate(final)
        for chunk in self._rest(final):
            yield chunk
        yield final
        if has_missing:
            self.note = MISSING
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
        self._endpoint.polls.held += 1
        self._is_outstanding, cancelled = True, None
        try:
            if self._look and not self._received:
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
            self._endpoint.polls.held -= 1
            await _stopped(poll)
        chunks = poll.result()
        if self._look and chunks and (started := self._changed_to(self._status)) is not None:
            yield started
        for chunk in chunks:
            self._received.add(chunk.output)
            yield chunk
        self._is_outstanding = False
        if cancelled is not None:
            raise cancelled

    async def _poll(self) -> list[StreamChunk]:
        """One answer of the stream: its chunks, or none where it was lost or is held back."""
        await self._endpoint.polls.turn(is_first=not self._has_asked)
        self._has_asked = True
        asked, final = time.monotonic(), self._final  # an answer that is older than the end may lack chunks
        try:
            status, chunks = await self._endpoint.read_stream(
                self._job_id,
                hold=self._patience.hold(self._hold),
                first_index=len(self._received) + len(self._held),
            )
        except TRANSIENT as error:
            await self._patience.after(error)
            is_drained = not isinstance(error, (ConnectionFailed, RateLimitError))
            self._lost += is_drained and not await self._is_untouched()
            return []
        except JobLost:  # perhaps only its stream is unknown: not every job has one
            status, chunks = (await self._looked()).status, []
        self._patience.renew()
        took = time.monotonic() - asked
        if status is None:  # the documentation's own example is a list without a status: ask for it
            with contextlib.suppress(EndpointError):  # the chunks are not to be lost with it
                status = (await self._endpoint.status(self._job_id)).status
        if final is not None and not chunks:
            status = final.status
        self._status = await self._confirmed(status, chunks)
        if self._status is None or not self._status.is_final:
            await self._pause(asked, took, chunks)
        if self._lost:
            self._held += chunks
            return []
        return chunks

    async def _is_untouched(self) -> bool:
        """Whether a lost answer surely had nothing in it: its job is still in the queue."""
        if self._received or self._lost:
            return False
        with contextlib.suppress(EndpointError):
            return (await self._endpoint.status(self._job_id)).status is JobStatus.IN_QUEUE
        return False

    async def _confirmed(self, status: JobStatus | None, chunks: list[StreamChunk]) -> JobStatus | None:
        """What the stream says of the state; where it has been quiet for long, what `status` says."""
        now = time.monotonic()
        if chunks or (status is not None and status.is_final):
            self._quiet_since = now
        elif self._look and not self._received:
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

    async def _pause(self, asked: float, took: float, chunks: list[StreamChunk]) -> None:
        """Not at all where the server holds or chunks come; else the longer, the longer nothing has come."""
        now = time.monotonic()
        self._endpoint.polls.streamed(took, has_chunks=bool(chunks))
        if chunks or took > HELD:
            self._idle_since = now
            return
        shortest = 0.0 if self._endpoint.polls.is_short else SHORTEST_PAUSE  # they take turns then
        apart = min(max(shortest, PAUSE_SHARE * (now - self._idle_since)), LONGEST_PAUSE)
        await asyncio.sleep(max(0.0, asked + apart - now))

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
            self._final = job
            return False
        self._last = job
        return is_new

    def _has_room(self) -> bool:
        """Whether its stream may be held: not where too many are already, those of running jobs first."""
        known = self._last.status if self._last is not None else self._status
        most = MOST_HELD_IDLY if known is JobStatus.IN_QUEUE else MOST_HELD
        return bool(self._received) or self._endpoint.polls.held < most

    async def _in_turn(self) -> AsyncGenerator[Job]:
        """Look now and then, until its stream may be held or the job has ended."""
        self._endpoint.polls.rounds += 1
        pause = max(FIRST_LOOK, self._endpoint.polls.rounds / ROUNDS_RATE)
        try:
            while not self._has_room() and self._final is None:
                due = time.monotonic() + random.uniform(0.8, 1.2) * pause  # noqa: S311 - jitter, not a secret
                await asyncio.sleep(due + ROUND - due % ROUND - time.monotonic())
                age = time.monotonic() - self._since
                pause = max(min(AGE_SHARE * age, LONGEST_ROUND), self._endpoint.polls.rounds / ROUNDS_RATE)
                try:
                    job = await self._endpoint.status(self._job_id)
                except TRANSIENT as error:
                    await self._patience.after(error)
                    continue
                self._patience.renew()
                if self._is_news(job):
                    yield job
        finally:
            self._endpoint.polls.rounds -= 1

    def _changed_to(self, status: JobStatus | None) -> Job | None:
        """A snapshot for a state that only the stream has told so far."""
        if status is None or status.is_final or (self._last is not None and self._last.status == status):
            return None
        known = self._last or Job(id=self._job_id, endpoint=self._endpoint.id, status=status)
        self._last = replace(known, status=status, seen_at=time.time())
        return self._last

    def _rest(self, final: Job) -> list[StreamChunk]:
        """What is still to be shown: what came after a gap, or what the server has kept from there on."""
        kept, later = _aggregate(final), [chunk.output for chunk in self._held]
        if not (self._lost or self._received or later):  # it streamed nothing: the list is what it returned
            return []
        if not kept or not (self._lost or final.status is JobStatus.COMPLETED):
            return self._held
        mended = self._received.mended(later, kept, is_suspect=self._lost > 0)
        is_theirs = self._lost_elsewhere > 0 and self._lost == self._lost_elsewhere
        self.note = "" if is_theirs and mended.is_whole else mended.note
        if mended.rest is later:
            return self._held
        return [StreamChunk(output, index) for index, output in enumerate(mended.rest, len(self._received))]


async def looks(endpoint: _Source, job_id: str) -> AsyncGenerator[Job]:
    """Follow a job that has no stream: yield its snapshot whenever it has changed, the final one last.

    Args:
        endpoint: Whose job it is.
        job_id: The server's id.

    Raises:
        AnswerLost: Too many answers in a row were lost.
    """
    patience = Patience(f"job {job_id} on {endpoint.id}", job_id)
    since = time.monotonic()
    last: Job | None = None
    while last is None or not last.status.is_final:
        asked = time.monotonic()
        try:
            job = await endpoint.status(job_id)
        except JobLost as lost:
            job = lost.job
        except TRANSIENT as error:
            await patience.after(error)
            continue
        patience.renew()
        if differs(last, job):
            yield job
        last = job
        if not job.status.is_final:
            await asyncio.sleep(look_pause(since, asked))


def look_pause(since: float, asked: float) -> float:
    """Seconds until the next look at a job whose end the server does not wait for.

    Its end is seen at most a tenth of its age late, or as late as an answer takes.

    Args:
        since: When it was first known, by the monotonic clock.
        asked: When the last look began.
    """
    now = time.monotonic()
    return min(max(AGE_SHARE * (now - since) - (now - asked), SHORTEST_ROUND), LONGEST_ROUND)


def differs(last: Job | None, job: Job) -> bool:
    """Whether a snapshot tells anything that the last one did not."""
    return last is None or replace(last, seen_at=0.0) != replace(job, seen_at=0.0)


def _aggregate(job: Job) -> list[object]:
    return job.output if isinstance(job.output, list) else []


async def _stopped(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, EndpointError):  # also of one that has just failed
        await task
