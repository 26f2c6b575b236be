"""The watcher: one reader for each job, from its submission to its end, on the session's loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import AnswerLost, EndpointError, JobLost, ProtocolError, ServerError, job_error
from notebook_ext.handle import Ended, JobHandle, Stopped
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from notebook_ext.client import Endpoint
    from notebook_ext.connection import Submission
    from notebook_ext.journal import Journal

__all__ = ["Watcher"]

RUNSYNC_HOLD = 5.0
"""Seconds that one `/runsync` may be held while a cell waits, so that an id to cancel is known soon."""
STOP_PATIENCE = 12.0
"""Seconds to wait for a cancelled job to be final."""
JOURNAL_DELAY = 0.25
"""Seconds that streamed chunks may be late in the journal."""
HEALTH_AFTER, HEALTH_EVERY = 2.0, 5.0
"""Seconds in the queue after which, and intervals at which, health is read to say why a job waits."""


class Watcher:
    """Submits, follows and stops jobs; everything here runs on the loop thread.

    Args:
        journal: Told everything first.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, handle: JobHandle, endpoint: Endpoint, submission: Submission) -> None:
        """Begin to submit a job, and then to follow it."""
        self._start(self._submit(handle, endpoint, submission))

    def follow(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """Begin to follow a job whose id is known."""
        self._start(self._follow(handle, endpoint))

    def follow_again(self, handle: JobHandle, endpoint: Endpoint, job: Job) -> None:
        """Begin to follow a job that was retried, whose handle has begun again."""
        self._journal.restart(handle.number)
        self._saw(handle, job)
        self.follow(handle, endpoint)

    async def close(self) -> None:
        """Follow no longer; the jobs go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, handle: JobHandle, endpoint: Endpoint, submission: Submission) -> None:
        options: dict[str, Any] = {
            "policy": submission.policy,
            "webhook": submission.webhook,
            "s3_config": submission.s3_config,
        }
        try:
            if submission.sync:
                job = await endpoint.start_sync(submission.input, wait=RUNSYNC_HOLD, **options)
            else:
                job = await endpoint.run(submission.input, **options)
        except (AnswerLost, ServerError, ProtocolError) as error:
            self._saw(handle, replace(handle.job, status=JobStatus.AMBIGUOUS, seen_at=time.time()))
            handle.saw(Ended(error))
        except EndpointError as error:
            self._journal.discard(handle.number)
            handle.saw(Ended(error))
        except asyncio.CancelledError:
            self._saw(handle, replace(handle.job, status=JobStatus.AMBIGUOUS, seen_at=time.time()))
            handle.saw(Ended(_closed_while(handle, endpoint)))
            raise
        except Exception as bug:  # noqa: BLE001 - whoever waits for this job must hear of it
            self._saw(handle, replace(handle.job, status=JobStatus.AMBIGUOUS, seen_at=time.time()))
            handle.saw(Ended(EndpointError(f"submitting @{handle.number} broke: {bug!r}")))
        else:
            self._saw(handle, job)
            await self._follow(handle, endpoint)

    async def _follow(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """The watcher: the one reader of a job, from its id to its end."""
        chunks = _ChunkWriter(self._journal, handle.number)
        reasons = asyncio.ensure_future(self._read_health(handle, endpoint))
        error: EndpointError | None = None
        try:
            if not handle.status.is_final:
                await self._read(handle, endpoint, chunks)
            error = _error(handle)
        except AnswerLost as lost:
            if handle.status is JobStatus.COMPLETED:
                handle.notes.append("text may be missing: answers were lost on the way")
            else:
                error = _error(handle) or lost
        except JobLost as lost:
            self._saw(handle, lost.job)
            error = _error(handle)
        except EndpointError as failure:
            error = failure
        except asyncio.CancelledError:
            error = _closed_while(handle, endpoint)
            raise
        except Exception as bug:  # noqa: BLE001 - whoever waits for this job must hear of it
            error = EndpointError(f"following @{handle.number} broke: {bug!r}", job_id=handle.id)
        finally:
            reasons.cancel()
            chunks.flush()
            handle.saw(Ended(error))

    async def _read(self, handle: JobHandle, endpoint: Endpoint, chunks: _ChunkWriter) -> None:
        if handle.operation == "runsync":
            while not handle.status.is_final:
                self._saw(handle, await endpoint.status_sync(handle.id, wait=RUNSYNC_HOLD))
            return
        async with contextlib.aclosing(endpoint.follow(handle.id)) as events:
            async for event in events:
                if isinstance(event, StreamChunk):
                    handle.saw(event)
                    chunks.add(event)
                else:
                    chunks.flush()
                    self._saw(handle, event)

    async def _read_health(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """While a job is queued, ask now and then how the workers are, so that somebody can say why."""
        await asyncio.sleep(HEALTH_AFTER)
        while handle.status is JobStatus.IN_QUEUE:
            with contextlib.suppress(EndpointError):
                handle.saw(await endpoint.health())
            await asyncio.sleep(HEALTH_EVERY)

    def _saw(self, handle: JobHandle, job: Job) -> None:
        """First the journal, then everybody else."""
        if job.status is JobStatus.LOST and not job.id:
            job = replace(job, id=handle.id)
        self._journal.update(handle.number, job)
        handle.saw(job)

    async def look(self, handle: JobHandle, endpoint: Endpoint) -> Job:
        """Ask the server once how a job stands."""
        if handle.id:
            try:
                job = await endpoint.status(handle.id)
            except JobLost as error:
                if handle.status.is_final:
                    return handle.job  # it has expired there, but we have seen how it ended
                job = error.job
            if not handle.done:
                self._saw(handle, job)
            return job
        return handle.job

    async def stop(self, handle: JobHandle, endpoint: Endpoint) -> Stopped:
        """Ask the server to cancel a job, and look until it is final."""
        # A submission whose answer is outstanding goes on, so that there is an id to cancel.
        await handle.id_known()
        if handle.done:
            return _outcome(handle, handle.error)
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await endpoint.cancel(handle.id)
                job = await endpoint.status(handle.id)
                while not job.status.is_final:
                    if not handle.status.is_final:
                        self._saw(handle, job)
                    job = await endpoint.status_sync(handle.id, wait=1.0)
        except JobLost as error:
            job = error.job
        except (EndpointError, TimeoutError) as error:
            return Stopped(handle, False, error if isinstance(error, EndpointError) else None)
        with contextlib.suppress(TimeoutError):  # the watcher sees the same, and has the last chunks
            async with asyncio.timeout(2.0):
                await handle.ended()
        if not handle.status.is_final:
            self._saw(handle, job)
        return _outcome(handle, None)


class _ChunkWriter:
    """Writes chunks to the journal in batches, at most `JOURNAL_DELAY` late."""

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal = journal
        self._number = number
        self._waiting: list[StreamChunk] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, chunk: StreamChunk) -> None:
        self._waiting.append(chunk)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(JOURNAL_DELAY, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._journal.append(self._number, self._waiting)
            self._waiting = []


def _error(handle: JobHandle) -> EndpointError | None:
    return job_error(handle.job, f"@{handle.number} on {handle.endpoint}")


def _outcome(handle: JobHandle, error: EndpointError | None) -> Stopped:
    confirmed = handle.status.is_final or handle.never_submitted
    return Stopped(handle, confirmed, None if confirmed else error)


def _closed_while(handle: JobHandle, endpoint: Endpoint) -> EndpointError:
    is_served_here = endpoint.provider.key_source is not None
    fate = (
        "it ended with its endpoint, which was served here" if is_served_here else "the job itself may go on"
    )
    return EndpointError(
        f"the session closed while @{handle.number} was {handle.status}: {fate}", job_id=handle.id or None
    )
