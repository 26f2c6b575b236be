"""The watcher: one reader for each job, from its submission to its end, on the session's loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from notebook_ext.calls import CUT_SHORT, Calls, cut_short
from notebook_ext.clocks import RUNSYNC_HOLD, STREAM_HOLD
from notebook_ext.errors import (
    AnswerLost,
    EndpointError,
    InputError,
    JobLost,
    JournalError,
    ProtocolError,
    ServerError,
)
from notebook_ext.events import HUNG_UP, Ended, Stopped
from notebook_ext.following import Following, differs
from notebook_ext.keeping import ChunkWriter, Keeper
from notebook_ext.mending import Received
from notebook_ext.pacing import telling_pauses
from notebook_ext.patience import TRANSIENT, Patience, telling_outages
from notebook_ext.protocol import Operation
from notebook_ext.queueing import QueueWatch
from notebook_ext.seeking import seek
from notebook_ext.stopping import stop
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from notebook_ext.client import Endpoint
    from notebook_ext.connection import Submission
    from notebook_ext.entry import Entry
    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)

_PERHAPS_QUEUED = (AnswerLost, ServerError, ProtocolError)

LOOKING = 2.0
"""Seconds to wait, after a look at a job that has ended, for its follower to come to its end too."""
LEAVING = 0.3
"""Seconds to wait, when a session closes, for the answer that a job's stream owes."""
JOURNAL_EVERY = 0.25
"""Seconds between two looks at what another session has written of a job."""
OWNER_EVERY = 2.0
"""Seconds between two looks at whether the session that follows a job is still there."""
SERVER_ENDED = "its endpoint was served by a kernel that has ended"
TOLD_PAUSE = 1.0
"""Seconds of waiting for a server that has too many requests from which on they are told at the end."""
COLLECT_EVERY = 60.0
"""Seconds until a job that could no longer be followed is looked for again, so that its result is kept."""


class Watcher:
    """Submits, follows and stops jobs; everything here runs on the loop thread.

    Args:
        journal: Told everything first.
        gave_up: Called when a job that may still run could no longer be followed.
    """

    def __init__(self, journal: Journal, gave_up: Callable[[JobHandle], None]) -> None:
        self._journal = journal
        self._gave_up = gave_up
        self._tasks: set[asyncio.Task[EndpointError | None]] = set()
        self._keeper = Keeper(journal)
        self._queues = QueueWatch(journal, self._keeper)
        self._calls = Calls(journal, self._keeper, self._queues)
        self._left_whole: set[int] = set()  # nothing of these was lost when they were left

    def submit(self, handle: JobHandle, endpoint: Endpoint, submission: Submission) -> None:
        """Begin to submit a job, and then to follow it."""
        self._start(handle, self._submit(handle, endpoint, submission))

    def follow(self, handle: JobHandle, endpoint: Endpoint, *, has_gap: bool = False) -> None:
        """Begin to follow a job whose id is known.

        Args:
            handle: The job; the chunks that it has are not asked for again.
            endpoint: Where it is.
            has_gap: Whether later ones may have been lost already.
        """
        self._start(handle, self._follow(handle, endpoint, has_gap=has_gap))

    def follow_journal(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """Begin to follow what another session writes of a job; when that is gone, the job itself."""
        self._start(handle, self._follow_journal(handle, endpoint))

    def look_for(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """Begin to look for a job whose submission was not answered, and then to follow it."""
        self._start(handle, self._look_for(handle, endpoint))

    def resume(self, handle: JobHandle, endpoint: Endpoint) -> bool:
        """Follow a job again whose following was given up, from behind the chunks that were seen.

        Returns:
            Whether there was anything to do.
        """
        if not handle.done or handle.is_over:
            return False
        losses = int(isinstance(handle.error, AnswerLost))
        handle.go_on()
        self._start(handle, self._follow(handle, endpoint, losses=losses))
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
        await asyncio.gather(*tasks, *self._queues.cancel(), return_exceptions=True)
        self._keeper.catch_up()

    def leave(self, handle: JobHandle) -> None:
        """End a handle because its session closes."""
        was = handle.status
        if handle.served and not was.is_final:
            fate = "it ended with its endpoint, which was served here"
            self._keeper.saw(handle, replace(handle.job, status=JobStatus.LOST, seen_at=time.time()))
        else:
            fate = HUNG_UP if handle.is_call else "the job itself may go on"
            self._keeper.doubt(handle)
        if handle.is_call:
            handle.note(HUNG_UP)
        error = EndpointError(
            f"the session closed while @{handle.number} was {was}: {fate}", job_id=handle.id or None
        )
        handle.saw(Ended(error))
        if handle.is_settled and not was.is_final:
            self._keeper.finish(handle)
        elif handle.number in self._left_whole:
            self._keeper.release(handle)

    def _start(self, handle: JobHandle, work: Coroutine[Any, Any, EndpointError | None]) -> None:
        """Do a job's work in a task; however that ends, whoever waits for the job hears of its end."""

        def ended(task: asyncio.Task[EndpointError | None]) -> None:
            self._tasks.discard(task)
            handle.troubled(None)  # it is asked no more
            if task.cancelled():
                self.leave(handle)
                return
            bug = task.exception()
            error = task.result() if bug is None else self._broken(handle, bug)
            if handle.paused_for >= TOLD_PAUSE:
                handle.note(f"rate limited: waited {handle.paused_for:.0f} s")
            if handle.is_settled:
                self._keeper.finish(handle)
            handle.saw(Ended(error))
            if not handle.is_over:
                self._gave_up(handle)

        with telling_pauses(handle.paused), telling_outages(handle.troubled):
            task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(ended)

    def _broken(self, handle: JobHandle, bug: BaseException) -> EndpointError:
        _log.error("the watcher of @%s broke", handle.number, exc_info=bug)
        self._keeper.doubt(handle)
        return EndpointError(f"watching @{handle.number} broke: {bug!r}", job_id=handle.id or None)

    # --------------------------------------------------------------- what a task does; it returns the error

    async def _submit(
        self, handle: JobHandle, endpoint: Endpoint, submission: Submission
    ) -> EndpointError | None:
        if submission.route is not None:
            return await self._calls.make(handle, endpoint, submission.input)
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
            return await self._look_for(handle, endpoint, error)
        except EndpointError as error:
            self._keeper.write(handle, self._journal.discard, handle.number)
            return error
        self._keeper.saw(handle, job)
        return await self._follow(handle, endpoint)

    async def _look_for(
        self, handle: JobHandle, endpoint: Endpoint, lost: EndpointError | None = None
    ) -> EndpointError | None:
        """Find a job whose submission was not answered in the provider's list of requests, if it has one."""
        self._keeper.doubt(handle)
        found, told = await seek(handle, endpoint, self._journal)
        if found is None:
            return _unknown(handle, lost, told)
        handle.note("the answer to its submission was lost; a job of the same input was found")
        # Its id only: where it has ended already, its text is still to be read.
        self._keeper.saw(handle, replace(handle.job, id=found.id, status=JobStatus.IN_QUEUE))
        return await self._follow(handle, endpoint)

    async def _follow_journal(self, handle: JobHandle, endpoint: Endpoint) -> EndpointError | None:
        version, looked = -1, time.monotonic()
        entry: Entry | None = None
        while True:
            with contextlib.suppress(JournalError):  # it is locked: the next look tries again
                if (newest := self._journal.version()) != version:
                    entry = self._journal.get(handle.number)
                    if entry is None:
                        return JobLost(f"@{handle.number} was removed from the journal", handle.job)
                    self._take_in(handle, entry)
                    version = newest
                if handle.status.is_final:
                    return handle.failure()
                if entry is not None and time.monotonic() - looked >= OWNER_EVERY:
                    looked = time.monotonic()
                    if not self._journal.is_alive(entry.owner) and self._journal.claim(
                        handle.number, entry.owner
                    ):
                        break
            await asyncio.sleep(JOURNAL_EVERY)
        return await self._inherit(handle, endpoint, entry)

    def _take_in(self, handle: JobHandle, entry: Entry) -> None:
        """Tell a handle what another session has written of its job."""
        for chunk in self._journal.each_chunk(handle.number, handle.streamed_count):
            handle.saw(chunk)
        handle.kept(handle.streamed_count)
        if entry.job.status.is_final:
            handle.notes.extend(note for note in entry.notes if note not in handle.notes)
        if differs(handle.job, entry.job):
            handle.saw(entry.job)

    async def _inherit(self, handle: JobHandle, endpoint: Endpoint, entry: Entry) -> EndpointError | None:
        """Follow a job whose session is gone."""
        if entry.served:
            handle.note(SERVER_ENDED)
            self._keeper.saw(handle, replace(handle.job, status=JobStatus.LOST, seen_at=time.time()))
            return handle.failure()
        if handle.is_call:
            for note in entry.notes or (CUT_SHORT,):
                handle.note(note)
            self._keeper.doubt(handle)
            return cut_short(f"@{handle.number} on {handle.endpoint}", handle.notes)
        if not handle.id:
            return await self._look_for(handle, endpoint)
        return await self._follow(handle, endpoint, has_gap=entry.owner is not None)

    async def _retry(
        self,
        handle: JobHandle,
        endpoint: Endpoint,
        earlier: Job,
        take_back: Callable[[], None],
        queued: asyncio.Future[None],
    ) -> EndpointError | None:
        # Before it is sent: who is killed meanwhile must not leave a job that runs as one that has ended.
        try:
            if not self._journal.restart(handle.number, handle.job):
                raise InputError(
                    f"@{handle.number} has been retried by another notebook; "
                    f"`%endpoint attach @{handle.number}` follows it"
                )
            handle.saw(handle.job)
            job = await self._queued_again(handle, endpoint, earlier)
            queued.set_result(None)
        except EndpointError as error:
            take_back()
            handle.saw(handle.job)
            queued.set_exception(error)
            return handle.error
        finally:
            queued.cancel()  # no more than that where it is done: nobody is to wait for ever
        self._keeper.saw(handle, job)
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
        self, handle: JobHandle, endpoint: Endpoint, *, losses: int = 0, has_gap: bool = False
    ) -> EndpointError | None:
        """The watcher: the one reader of a job, from its id to its end."""
        chunks = self._keeper.chunks(handle)
        reasons = asyncio.ensure_future(self._queues.watch(handle, endpoint))
        try:
            if not handle.status.is_final:
                await self._read(handle, endpoint, chunks, losses=losses, has_gap=has_gap)
            return handle.failure()
        except AnswerLost as lost:
            if handle.status.is_final:
                return handle.failure()
            return lost
        except JobLost as lost:
            self._keeper.saw(handle, lost.job)
            return handle.failure()
        except EndpointError as failure:
            return failure
        finally:
            reasons.cancel()
            self._keeper.write(handle, chunks.flush)

    async def _read(
        self, handle: JobHandle, endpoint: Endpoint, chunks: ChunkWriter, *, losses: int, has_gap: bool
    ) -> None:
        routes = endpoint.provider.routes
        if handle.operation == "runsync" and Operation.STATUS_SYNC in routes:
            patience = Patience(f"@{handle.number} on {handle.endpoint}", handle.id)
            while not handle.status.is_final:
                try:
                    wait = patience.hold(RUNSYNC_HOLD)
                    self._keeper.saw(handle, await endpoint.status_sync(handle.id, wait=wait))
                    patience.renew()
                except TRANSIENT as error:
                    await patience.after(error)
            return
        if Operation.STREAM not in routes:
            await self._read_events(handle, endpoint.follow(handle.id), chunks)
            return
        if has_gap and not handle.streamed_count:
            with contextlib.suppress(*TRANSIENT):  # nobody can have read what has not begun
                has_gap = (await endpoint.status(handle.id)).status is not JobStatus.IN_QUEUE
        following = Following(
            endpoint,
            handle.id,
            hold=STREAM_HOLD,
            look=True,
            received=Received(chunk.output for chunk in handle.each_streamed()),
            losses=losses,
            has_gap=has_gap,
            grace=LEAVING,
        )
        try:
            await self._read_events(handle, following.events(), chunks)
        except asyncio.CancelledError:
            if not following.has_gap:
                self._left_whole.add(handle.number)
            raise
        finally:
            if following.note:
                handle.note(following.note)

    async def _read_events(
        self, handle: JobHandle, source: AsyncGenerator[StreamChunk | Job], chunks: ChunkWriter
    ) -> None:
        async with contextlib.aclosing(source) as events:
            async for event in events:
                if isinstance(event, StreamChunk):
                    handle.saw(event)
                    chunks.add(event)
                else:
                    chunks.try_flush()
                    self._keeper.saw(handle, event)

    # ------------------------------------------------------------------ asked for

    async def look(self, handle: JobHandle, endpoint: Endpoint, resume: Callable[[], object]) -> Job:
        """Ask the server once how a job stands.

        Args:
            handle: The job.
            endpoint: Where it is.
            resume: Follows it again, where nobody does: it has more to tell than its state.
        """
        if not handle.id or self._is_orphan(handle):
            return handle.job
        try:
            job = await endpoint.status(handle.id)
        except JobLost as error:
            if handle.status.is_final:
                return handle.job  # it has expired there, but we have seen how it ended
            job = error.job
        if handle.is_over:
            return job
        if not job.status.is_final:
            self._keeper.saw(handle, job)
            return job
        if handle.done:
            resume()
        with contextlib.suppress(TimeoutError):  # its end is for its follower to see, after its text
            async with asyncio.timeout(LOOKING):
                await handle.ended()
        return job

    def _is_orphan(self, handle: JobHandle) -> bool:
        """Whether the kernel that served its endpoint has ended: nobody is there to be asked."""
        entry = self._journal.get(handle.number) if handle.served else None
        if entry is None or self._journal.is_alive(entry.owner):
            return False
        if not handle.status.is_final and self._journal.claim(handle.number, entry.owner):
            handle.note(SERVER_ENDED)
            self._keeper.saw(handle, replace(handle.job, status=JobStatus.LOST, seen_at=time.time()))
            self._keeper.finish(handle)
        return True

    async def stop(self, handle: JobHandle, endpoint: Endpoint) -> Stopped:
        """Stop a remote job, and see that it has stopped."""
        if handle.is_call:
            return await self._calls.hang_up(handle)
        return await stop(handle, endpoint, self._keeper)


def _unknown(handle: JobHandle, lost: EndpointError | None, known: str) -> EndpointError:
    """What is known of a job that may have been queued, and what each choice costs."""
    if lost is not None:
        handle.note(known)
        return lost
    return AnswerLost(
        f"@{handle.number} on {handle.endpoint} was sent, and its answer never came: it may have run, and be "
        f"paid for; {known}. Submitting it again may pay twice; `%endpoint attach ID` follows a job whose id "
        "you find at the provider"
    )
