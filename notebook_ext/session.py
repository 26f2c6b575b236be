"""Session: one background loop, the known endpoints, the journal, and the watcher of every job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from notebook_ext import providers, references
from notebook_ext.connection import Submission
from notebook_ext.directory import Directory
from notebook_ext.errors import (
    ConfigurationError,
    EndpointError,
    InputError,
    JournalError,
)
from notebook_ext.events import Stopped
from notebook_ext.handle import JobHandle
from notebook_ext.journal import Journal
from notebook_ext.journal_file import open_journal
from notebook_ext.journal_path import default_path
from notebook_ext.loop import LoopThread, wait
from notebook_ext.protocol import Operation
from notebook_ext.recovery import Recovered, Recovery
from notebook_ext.stopping import stop_all
from notebook_ext.watcher import COLLECT_EVERY, Watcher

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Coroutine, Sequence

    from notebook_ext.client import Endpoint
    from notebook_ext.config import Config
    from notebook_ext.connection import Connection
    from notebook_ext.entry import Entry
    from notebook_ext.pruning import Pruned
    from notebook_ext.types import Job

__all__ = ["Session", "default_session"]

T = TypeVar("T")

CLOSING = 3.0
"""Seconds for everything that a session ends, after the cancels' own."""


class Session:
    """Everything that is alive on the notebook side; made by `%load_ext`, or by the first `connect`.

    Args:
        journal: The journal, or the path of its SQLite file; ":memory:" forgets with the kernel.
        config: The saved endpoints; None reads the user's and the project's files.
        wait_step: Waits for a future, at most so many seconds (None: for ever), and tells whether
            it is done; the notebook injects one that hears clicks meanwhile.
    """

    def __init__(
        self,
        *,
        journal: str | Journal = ":memory:",
        config: Config | None = None,
        wait_step: Callable[[concurrent.futures.Future[Any], float | None], bool] | None = None,
    ) -> None:
        self.loop = LoopThread(at_exit=self._exit)  # which ends what is served in its own order
        self._process = os.getpid()
        self.notebook = os.environ.get("JPY_SESSION_NAME")
        """The notebook's path, where its server tells it."""
        self.journal = journal if isinstance(journal, Journal) else Journal(journal)
        self.endpoints = Directory(self, config)
        self.wait_step = wait_step or wait
        self.handles: dict[int, JobHandle] = {}
        self._asked: dict[int, Endpoint] = {}
        self._watcher = Watcher(self.journal, self._collect_later)
        self._recovery = Recovery(self.journal, self._watcher, self._handle, self._endpoint)
        self._elsewhere: set[int] = set()
        """Jobs that are shown here while another living session follows them: they are its to stop."""
        self._left: list[JobHandle] = []
        self._listeners: list[Callable[[JobHandle], None]] = []
        self._closed = False

    # ------------------------------------------------------------------ endpoints

    def connect(self, name: str, endpoint_id: str | None = None, **options: Any) -> Connection:
        """Find an endpoint by its name, or give a name to one; the arguments are `Directory.connect`'s."""
        return self.endpoints.connect(name, endpoint_id, **options)

    def serve(self, name: str, handler: Any, **options: Any) -> Connection:
        """Serve a handler on an embedded endpoint; the arguments are those of `Directory.serve`."""
        return self.endpoints.serve(name, handler, **options)

    def log(self, handle: JobHandle) -> str:
        """What the handler of a job that is served here has printed; empty for any other job."""
        queue = self.endpoints.queue(handle.endpoint)
        record = queue.records.get(handle.id) if queue is not None else None
        return record.log.text if record is not None else ""

    # ------------------------------------------------------------------ jobs

    def submit(
        self, connection: Connection, submission: Submission, *, profile: str | None = None
    ) -> JobHandle:
        """Write a job down, submit it, and follow it; returns at once.

        Whatever goes wrong after this is told by the handle.

        Args:
            connection: The endpoint.
            submission: What it is to do.
            profile: How its output is read; None means as the connection says.
        """
        return self.on_loop(self._submit, connection, submission, profile or connection.profile)

    def _submit(self, connection: Connection, submission: Submission, profile: str) -> JobHandle:
        entry = self.entry(connection, submission, profile=profile)
        try:
            number = self.journal.add(entry)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the input is not JSON: {error}; nothing was sent") from error
        except JournalError as error:
            raise JournalError(
                f"{error}; nothing was sent, as nothing would remember it. `%config EndpointMagics.journal = "
                "':memory:'` goes on without a file"
            ) from error
        handle = self._handle(replace(entry, number=number))
        self._keep(handle, connection.endpoint)
        self._watcher.submit(handle, connection.endpoint, submission)
        return handle

    def entry(self, connection: Connection, submission: Submission, *, profile: str | None = None) -> Entry:
        """A submission as the journal will know it; its `body_hash` tells whether it was made before."""
        return connection.entry(submission, profile=profile, notebook=self.notebook)

    def _handle(self, entry: Entry) -> JobHandle:
        routes = providers.PROVIDERS.get(entry.provider, providers.RUNPOD).routes
        has_retry = entry.operation != Operation.OPENAI and Operation.RETRY in routes
        return JobHandle(self, entry, has_retry=has_retry)

    def adopt(self, connection: Connection, job_id: str) -> JobHandle:
        """Follow a job that was submitted elsewhere, or by an earlier kernel.

        One that is known here already keeps its handle: two readers would share its chunks.

        Args:
            connection: Whose job it is.
            job_id: The server's id.

        Raises:
            JobLost: The server does not know it.
        """
        known = self._handle_of(connection, job_id)
        if known is not None:
            self.resume(known)
            return known
        job = self.ask(connection.endpoint.status(job_id))
        return self.on_loop(self._adopt, connection, job)

    def _handle_of(self, connection: Connection, job_id: str) -> JobHandle | None:
        place = connection.provider.base_url, connection.endpoint.id
        for entry in self.journal.find(job_id):
            if entry.job.id == job_id and (entry.base_url, entry.endpoint_id) == place:
                return self._mine(self.recall(entry))
        return None

    def _mine(self, handle: JobHandle) -> JobHandle:
        """Show a job that was recalled among this session's."""
        self.handles[handle.number] = handle
        self._announce(handle)
        return handle

    def _endpoint(self, handle: JobHandle) -> Endpoint:
        """Where a job is."""
        found = self._asked.get(handle.number)
        if found is None:
            entry = self.journal.get(handle.number)
            if entry is None:
                raise JournalError(f"@{handle.number} is no longer in the journal")
            found = self._asked[handle.number] = self.endpoints.connection_of(entry).endpoint
        return found

    def _adopt(self, connection: Connection, job: Job) -> JobHandle:
        known = self._handle_of(connection, job.id)
        if known is not None:
            return known
        # Who submitted it may want it to outlive this kernel.
        entry = self.entry(connection, Submission(input=job.input, detached=True))
        handle = self._handle(replace(entry, number=self.journal.add(entry)))
        self._keep(handle, connection.endpoint)
        handle.saw(replace(entry.job, id=job.id))  # only its id: how it ended comes after what it streamed
        self._watcher.follow(handle, connection.endpoint)
        return handle

    def find(self, reference: str) -> JobHandle:
        """The handle of a job reference: `@last`, `@17`, an id or its beginning.

        An id that nobody here knows is looked for at the default endpoint.

        Raises:
            InputError: There is no such job, or more than one.
        """
        return references.find(self, reference)

    def recall(self, entry: Entry) -> JobHandle:
        """The handle of a job that the journal knows; it is not followed by that."""
        return self.handles.get(entry.number) or self._recovery.recall(entry)

    def recover(self) -> Recovered:
        """Take over the jobs whose session is gone: each is followed to its end, and its result kept.

        Those of this notebook are this session's from then on; the others are only looked after.
        """
        recovered = self.on_loop(self._take_over)
        self._left += [*recovered.handles, *recovered.ended]
        for handle in recovered.handles:
            handle.detached = True  # its kernel was left without stopping it: neither is it by the next one
            entry = self.journal.get(handle.number)
            if entry is not None and entry.notebook is not None and entry.notebook == self.notebook:
                self.on_loop(self._mine, handle)
        return recovered

    def _take_over(self) -> Recovered:
        from notebook_ext.pacing import in_background

        with in_background():  # nobody looks at these just now
            return self._recovery.take_over()

    def left_behind(self) -> list[JobHandle]:
        """What earlier sessions left and this one took over, until `told` of its end."""
        self.recover()
        return list(self._left)

    def told(self, handles: list[JobHandle]) -> None:
        """Somebody has been shown these; those that are over are left behind no longer."""
        self._left = [handle for handle in self._left if handle not in handles or not handle.is_over]

    def entries(
        self, *, active: bool = False, since: float | None = None, limit: int | None = None
    ) -> list[JobHandle]:
        """The jobs of the journal, this session's among them, oldest first.

        Args:
            active: Only those that have not ended.
            since: Only those submitted after this (seconds since the epoch).
            limit: The newest so many; None means all.
        """
        entries = self.journal.entries(active=active, since=since, limit=limit)
        return [self.recall(entry) for entry in entries]

    def prune(self, days: float, megabytes: float) -> Pruned | None:
        """Remove what the journal need not keep; one that cannot be written now is left for another time."""
        with contextlib.suppress(JournalError):
            return self.journal.prune(days=days, megabytes=megabytes)
        return None

    def active(self) -> list[JobHandle]:
        """The jobs that are not over, oldest first; those that are no longer followed are among them."""
        return [
            handle
            for number, handle in sorted(self.handles.items())
            if not handle.is_over and number not in self._elsewhere
        ]

    def look(self, handle: JobHandle) -> Job:
        """Ask the server once how a job stands."""
        return self.ask(self._look(handle))

    async def _look(self, handle: JobHandle) -> Job:
        return await self._watcher.look(handle, self._endpoint(handle), lambda: self._resume(handle))

    def look_at_all(self, handles: list[JobHandle], timeout: float) -> None:
        """Ask the servers how jobs stand; what has not answered in time stays as it was.

        Args:
            handles: The jobs.
            timeout: Seconds to wait for all answers.
        """

        async def look() -> None:
            looks = [self._look(handle) for handle in handles]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await asyncio.gather(*looks, return_exceptions=True)

        self.ask(look())

    def stop(self, handle: JobHandle) -> concurrent.futures.Future[Stopped]:
        """Stop a remote job and see that it stopped; the one way in which anything here stops a job."""
        return self.loop.submit(self._stop(handle))

    def stop_all(self, handles: Sequence[JobHandle]) -> concurrent.futures.Future[list[Stopped]]:
        """Stop remote jobs together; those in the queue first, so that none of them begins meanwhile."""
        return self.loop.submit(stop_all(handles, self._stop))

    def resume(self, handle: JobHandle) -> None:
        """Follow a job again that could no longer be followed; what was seen of it stays.

        Nothing is done where it is over, or still followed.
        """
        self.on_loop(self._resume, handle)

    def _resume(self, handle: JobHandle) -> None:
        if self._follow_again(handle):
            self._mine(handle)

    def _follow_again(self, handle: JobHandle) -> bool:
        if self._recovery.resume(handle):
            if self.journal.owner_of(handle.number) != self.journal.owner:
                self._elsewhere.add(handle.number)
            return True
        return self._watcher.resume(handle, self._endpoint(handle))

    def _collect_later(self, handle: JobHandle) -> None:
        """A job that could no longer be followed is looked for again, before its result expires."""
        self.loop.loop.call_later(COLLECT_EVERY, self._collect, handle)

    def _collect(self, handle: JobHandle) -> None:
        if not self._closed and self._follow_again(handle) and handle.number in self.handles:
            self._announce(handle)

    def retry(self, handle: JobHandle) -> None:
        """Queue a failed job again, and follow it again; interrupting only ends the waiting.

        Raises:
            InputError: It has not ended, or ended well.
            EndpointError: The server did not take it; the handle is as it was.
        """
        self.ask(self.queue_again(handle))

    async def queue_again(self, handle: JobHandle) -> None:
        """What `retry` does, for code on the session's loop."""
        if handle.status.is_final:
            await handle.ended()  # its last state may be there a moment before its last chunks
        earlier = handle.job
        take_back = handle.begin_again()
        queued = self._watcher.retry(handle, self._endpoint(handle), earlier, take_back)
        self._mine(handle)
        await queued

    def watch(self, listener: Callable[[JobHandle], None]) -> Callable[[], None]:
        """Call a function with each job that there is, and with each that is new or begins again.

        Args:
            listener: Called on the loop, from where this is called too; it must be quick, and not raise.

        Returns:
            A function that ends that.
        """
        self._listeners.append(listener)
        for handle in list(self.handles.values()):
            listener(handle)
        return lambda: self._listeners.remove(listener)

    def _keep(self, handle: JobHandle, endpoint: Endpoint) -> None:
        self.handles[handle.number] = handle
        self._asked[handle.number] = endpoint
        self._announce(handle)

    def _announce(self, handle: JobHandle) -> None:
        for listener in list(self._listeners):
            listener(handle)

    # ------------------------------------------------------------------ waiting and ending

    @property
    def closed(self) -> bool:
        """Whether it is over; its handles keep what they have seen."""
        return self._closed

    def wait_for(self, future: concurrent.futures.Future[Any], timeout: float | None) -> bool:
        """Wait for a future in the session's way; tells whether it is done."""
        if self.loop.in_thread:
            raise ConfigurationError(
                "waiting on the session's own thread would never end; `await` it instead"
            )
        return self.wait_step(future, timeout)

    def ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for what it returns; interrupting cancels it."""
        future = self.loop.submit(coroutine)
        try:
            self.wait_for(future, None)
        except BaseException:
            future.cancel()
            raise
        return future.result()

    def on_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a quick function on the loop thread, where all state changes, and return what it returns."""
        if self.loop.in_thread:
            return function(*arguments)

        async def call() -> T:
            return function(*arguments)

        return self.loop.submit(call()).result()

    def close(self, *, cancel: bool = False, timeout: float = 1.5) -> list[Stopped]:
        """End everything: the loop's thread, its sockets, what is served.

        Args:
            cancel: First stop the remote jobs that have not ended, except detached ones; else they go on.
            timeout: Seconds to wait for the jobs to stop.

        Returns:
            What became of the jobs that were to be stopped.
        """
        if self._closed or os.getpid() != self._process:  # a forked child has neither the thread nor the jobs
            return []
        stopped: list[Stopped] = []
        with contextlib.suppress(Exception):  # whatever fails here, the thread must end
            running = [handle for handle in self.active() if not handle.detached] if cancel else []
            if running:
                stopped = self.loop.submit(self._stop_all(running, timeout)).result(timeout + 0.5)
        self._closed = True
        deadline = time.monotonic() + CLOSING
        with contextlib.suppress(Exception):
            if self.endpoints.is_open:
                self.loop.submit(self._close()).result(CLOSING)
        self.loop.close(max(0.2, (deadline - time.monotonic()) / 2))
        for handle in self.handles.values():
            if not handle.done:  # its thread hangs
                self._watcher.leave(handle)
        self.journal.close()
        return stopped

    def _exit(self) -> None:
        """The interpreter ends: so do its jobs, and what became of them is said."""
        for stopped in self.close(cancel=True):
            print(f"notebook_ext: {stopped}", file=sys.stderr)

    # ------------------------------------------------------------------ on the loop

    async def _stop(self, handle: JobHandle) -> Stopped:
        with contextlib.suppress(JournalError):  # its end is for somebody to see; it is stopped all the same
            self._resume(handle)
        with handle.stopping():
            return await self._watcher.stop(handle, self._endpoint(handle))

    async def _stop_all(self, handles: list[JobHandle], timeout: float) -> list[Stopped]:
        deadline = asyncio.get_running_loop().time() + timeout

        async def stop(handle: JobHandle) -> Stopped:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._stop(handle)
            except (TimeoutError, EndpointError) as error:
                told = error if isinstance(error, EndpointError) else None
                return Stopped(handle, False, told)

        return await stop_all(handles, stop, patience=timeout / 3)

    async def _close(self) -> None:
        await self._watcher.close()
        await self.endpoints.close()


_default: Session | None = None


def default_session(journal: str | None = None) -> Session:
    """The process's session; the first call makes it.

    Args:
        journal: Path of its journal; None means the user's. What is there already keeps its own.
    """
    global _default  # noqa: PLW0603 - one session in a process is the point of it
    if _default is None or _default.closed:
        _default = Session(journal=open_journal(journal or default_path()))
    return _default


def close_default_session(*, cancel: bool = False) -> None:
    """Close the process's session, if there is one; `cancel` as in `Session.close`."""
    if _default is not None:
        _default.close(cancel=cancel)
