"""The watcher: one reader for each job, from its submission to its end, on the session's loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import (
    AnswerLost,
    EndpointError,
    JobLost,
    JournalError,
    ProtocolError,
    ServerError,
    job_error,
)
from notebook_ext.following import TRANSIENT, Following, Patience, differs
from notebook_ext.handle import Ended, JobHandle, Stopped
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from notebook_ext.client import Endpoint
    from notebook_ext.connection import Submission
    from notebook_ext.journal import Journal

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)

_PERHAPS_QUEUED = (AnswerLost, ServerError, ProtocolError)

RUNSYNC_HOLD = 5.0
"""Seconds that one `/runsync` may be held while a cell waits, so that an id to cancel is known soon."""
STREAM_HOLD = 10.0
"""Seconds that the server may hold one answer of a stream that is followed again."""
ID_PATIENCE = 45.0
"""Seconds to wait for the id of a job that is to be cancelled; longer than a submission may take."""
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
        self._tasks: set[asyncio.Task[EndpointError | None]] = set()

    def submit(self, handle: JobHandle, endpoint: Endpoint, submission: Submission) -> None:
        """Begin to submit a job, and then to follow it."""
        self._start(handle, self._submit(handle, endpoint, submission))

    def follow(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """Begin to follow a job whose id is known."""
        self._start(handle, self._follow(handle, endpoint))

    def resume(self, handle: JobHandle, endpoint: Endpoint) -> bool:
        """Follow a job again whose following was given up, from behind the chunks that were seen.

        Returns:
            Whether there was anything to do.
        """
        if not handle.done or handle.is_over:
            return False
        has_gap = isinstance(handle.error, AnswerLost)
        handle.go_on()
        self._start(handle, self._follow(handle, endpoint, has_gap=has_gap))
        return True

    def retry(
        self, handle: JobHandle, endpoint: Endpoint, earlier: Job, take_back: Callable[[], None]
    ) -> asyncio.Future[None]:
        """Begin to queue a job again, whose handle has begun again, and then to follow it.

        Args:
            handle: The job.
            endpoint: Where it is.
            earlier: How it had ended.
            take_back: What a refusal calls, so that the handle is as it was.

        Returns:
            Is done when the server took it, and raises where it did not. Cancelling it changes nothing.
        """
        queued: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start(handle, self._retry(handle, endpoint, earlier, take_back, queued))
        return asyncio.shield(queued)

    async def close(self) -> None:
        """Follow no longer; the jobs go on, except those that are served here."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def leave(self, handle: JobHandle) -> None:
        """End a handle because its session closes."""
        was = handle.status
        if handle.served and not was.is_final:
            fate = "it ended with its endpoint, which was served here"
            self._saw(handle, replace(handle.job, status=JobStatus.LOST, seen_at=time.time()))
        else:
            fate = "the job itself may go on"
            self._doubt(handle)
        error = EndpointError(
            f"the session closed while @{handle.number} was {was}: {fate}", job_id=handle.id or None
        )
        handle.saw(Ended(error))

    def _start(self, handle: JobHandle, work: Coroutine[Any, Any, EndpointError | None]) -> None:
        """Do a job's work in a task; however that ends, whoever waits for the job hears of its end."""

        def ended(task: asyncio.Task[EndpointError | None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                self.leave(handle)
                return
            bug = task.exception()
            if bug is None:
                handle.saw(Ended(task.result()))
                return
            _log.error("the watcher of @%s broke", handle.number, exc_info=bug)
            self._doubt(handle)
            handle.saw(
                Ended(EndpointError(f"watching @{handle.number} broke: {bug!r}", job_id=handle.id or None))
            )

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(ended)

    # ----------------------------------------------------------------what a task does; it returns the error

    async def _submit(
        self, handle: JobHandle, endpoint: Endpoint, submission: Submission
    ) -> EndpointError | None:
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
        except _PERHAPS_QUEUED as error:
            self._doubt(handle)
            return error
        except EndpointError as error:
            self._write(handle, self._journal.discard, handle.number)
            return error
        self._saw(handle, job)
        return await self._follow(handle, endpoint)

    async def _retry(
        self,
        handle: JobHandle,
        endpoint: Endpoint,
        earlier: Job,
        take_back: Callable[[], None],
        queued: asyncio.Future[None],
    ) -> EndpointError | None:
        try:
            job = await self._queued_again(handle, endpoint, earlier)
            queued.set_result(None)
        except EndpointError as error:
            take_back()
            handle.saw(handle.job)
            queued.set_exception(error)
            return handle.error
        finally:
            queued.cancel()  # no more than that where it is done: nobody is to wait for ever
        self._write(handle, self._journal.restart, handle.number)
        self._saw(handle, job)
        return await self._follow(handle, endpoint)

    async def _queued_again(self, handle: JobHandle, endpoint: Endpoint, earlier: Job) -> Job:
        try:
            return await endpoint.retry(handle.id)
        except _PERHAPS_QUEUED:
            job = handle.job
            with contextlib.suppress(*TRANSIENT):  # else following it will show
                job = await endpoint.status(handle.id)
            if not differs(earlier, job):
                raise
            return job

    async def _follow(
        self, handle: JobHandle, endpoint: Endpoint, *, has_gap: bool = False
    ) -> EndpointError | None:
        """The watcher: the one reader of a job, from its id to its end."""
        chunks = _ChunkWriter(lambda rows: self._write(handle, self._journal.append, handle.number, rows))
        reasons = asyncio.ensure_future(self._read_health(handle, endpoint))
        try:
            if not handle.status.is_final:
                await self._read(handle, endpoint, chunks, has_gap=has_gap)
            return _error(handle)
        except AnswerLost as lost:
            if handle.status is not JobStatus.COMPLETED:
                return _error(handle) or lost
            handle.note("text may be missing: answers were lost on the way")
            return None
        except JobLost as lost:
            self._saw(handle, lost.job)
            return _error(handle)
        except EndpointError as failure:
            return failure
        finally:
            reasons.cancel()
            chunks.flush()

    async def _read(
        self, handle: JobHandle, endpoint: Endpoint, chunks: _ChunkWriter, *, has_gap: bool
    ) -> None:
        if handle.operation == "runsync":
            patience = Patience(f"@{handle.number} on {handle.endpoint}", handle.id)
            while not handle.status.is_final:
                try:
                    self._saw(handle, await endpoint.status_sync(handle.id, wait=RUNSYNC_HOLD))
                    patience.renew()
                except TRANSIENT as error:
                    await patience.after(error)
            return
        seen = len(handle.streamed())
        if seen or has_gap:
            following = Following(
                endpoint, handle.id, hold=STREAM_HOLD, look=True, first_index=seen, has_gap=has_gap
            )
            source = following.events()
        else:
            source = endpoint.follow(handle.id)
        async with contextlib.aclosing(source) as events:
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
        if handle.status.is_final and (not job.status.is_final or job.status is JobStatus.LOST):
            return  # an answer that another one has overtaken, or an expiry after the end
        if job.status is JobStatus.LOST and not job.id:
            job = replace(job, id=handle.id)
        self._write(handle, self._journal.update, handle.number, job)
        handle.saw(job)

    def _doubt(self, handle: JobHandle) -> None:
        """Nobody knows whether a job without an id was queued."""
        if not handle.id and not handle.status.is_final:
            self._saw(handle, replace(handle.job, status=JobStatus.AMBIGUOUS, seen_at=time.time()))

    def _write(self, handle: JobHandle, write: Callable[..., None], *what: Any) -> None:
        """Tell the journal; a job goes on without it."""
        try:
            write(*what)
        except JournalError as error:
            _log.warning("@%s: %s", handle.number, error)
            handle.note("the journal lacks some of this job: it could not be written")

    # ------------------------------------------------------------------ asked for

    async def look(self, handle: JobHandle, endpoint: Endpoint) -> Job:
        """Ask the server once how a job stands."""
        if not handle.id:
            return handle.job
        try:
            job = await endpoint.status(handle.id)
        except JobLost as error:
            if handle.status.is_final:
                return handle.job  # it has expired there, but we have seen how it ended
            job = error.job
        if handle.is_over:
            return job
        if handle.done and job.status.is_final:
            self.resume(handle, endpoint)  # it has more to tell than its state
            await self._end_of(handle, job)
        else:
            self._saw(handle, job)
        return job

    async def stop(self, handle: JobHandle, endpoint: Endpoint) -> Stopped:
        """Ask the server to cancel a job, and look until it is final."""
        # A submission whose answer is outstanding goes on, so that there is an id to cancel.
        try:
            async with asyncio.timeout(ID_PATIENCE):
                await handle.id_known()
        except TimeoutError:
            self._doubt(handle)
            return Stopped(
                handle,
                False,
                AnswerLost(
                    f"its submission was not answered within {ID_PATIENCE:g} s; it may have been queued"
                ),
            )
        if handle.is_over:
            return _outcome(handle, handle.error)
        try:
            async with asyncio.timeout(STOP_PATIENCE):
                await self._cancel(handle, endpoint)
                job = await endpoint.status(handle.id)
                while not job.status.is_final:
                    self._saw(handle, job)
                    job = await endpoint.status_sync(handle.id, wait=1.0)
        except JobLost as error:
            job = error.job
        except (EndpointError, TimeoutError) as error:
            return _outcome(handle, error if isinstance(error, EndpointError) else None)
        await self._end_of(handle, job)
        return _outcome(handle, None)

    async def _cancel(self, handle: JobHandle, endpoint: Endpoint) -> None:
        before = handle.was_stopped
        handle.was_stopped = True  # already now: the watcher may see the end before this answer comes
        try:
            await endpoint.cancel(handle.id)
        except (AnswerLost, ServerError, ProtocolError):
            raise  # it was sent
        except EndpointError:
            handle.was_stopped = before
            raise

    async def _end_of(self, handle: JobHandle, job: Job) -> None:
        """See to it that a handle has ended: its watcher sees the same, and has the last chunks."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await handle.ended()
        if not handle.status.is_final:
            self._saw(handle, job)


class _ChunkWriter:
    """Writes chunks to the journal in batches, at most `JOURNAL_DELAY` late."""

    def __init__(self, write: Callable[[list[StreamChunk]], None]) -> None:
        self._write = write
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
            waiting, self._waiting = self._waiting, []
            self._write(waiting)


def _error(handle: JobHandle) -> EndpointError | None:
    return job_error(handle.job, f"@{handle.number} on {handle.endpoint}")


def _outcome(handle: JobHandle, error: EndpointError | None) -> Stopped:
    confirmed = handle.status.is_final or handle.never_submitted
    return Stopped(handle, confirmed, None if confirmed else error)
