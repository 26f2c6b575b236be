"""The workers of other processes: who they are, what they hold, and how long they are believed in.

A worker is alive while one of its long polls is open: the system closes them when its process dies,
and `job-stop` is held open for as long as a job runs, also by a handler that blocks its process.
Reports on a job show life as well. A ping does not: the process that sends them outlives its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import OrderedDict
from contextvars import Context
from typing import TYPE_CHECKING, Literal

from notebook_ext.errors import EndpointError
from notebook_ext.server.attached_worker import AttachedWorker, HeldJob, LossRules
from notebook_ext.server.job import Outcome
from notebook_ext.server.polls import disconnected, hold
from notebook_ext.server.workers import REHEARSED, THROTTLED_FOR

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

    from starlette.requests import Request

    from notebook_ext.server.job import Attempt
    from notebook_ext.server.queue import Queue

__all__ = ["AttachedWorkers", "NotHeld", "TooManyWorkers"]

GONE_AFTER = 5.0
"""Seconds of silence after which a worker without a job is gone: nothing is lost with it."""
TAKE_HOLD = 5.0
"""Seconds that a `job-take` is held: so long a worker that is told to end may take over it, too."""
LEAVING_AFTER = 2.5
"""Seconds without a `job-take` after which a worker with nothing to do is taken to be leaving: its
`job-stop` is answered, since it waits for that. A worker pauses for 1 s between two jobs."""
STOP_CHANNEL_WAIT = 2.0
FIRST_STOP_CHANNEL_WAIT = 0.5
"""Seconds to wait for a `job-stop` before a job is handed over; the SDK pauses for up to 1 s between
two, and workers of older ones never ask."""
STOP_DELAY = 0.5
"""Seconds from `job-take` to the first stop: the SDK drops one that comes within 0.1 s."""
STOP_REPEAT = 3.0
"""Seconds between repeats; each cancels the handler again, which may just be cleaning up."""
MOST_WORKERS = 1000
NOTICE_TURNS = 4
"""Turns of the loop in which the end of a connection reaches the request that waits on it."""


class NotHeld(EndpointError):
    """A worker reports on a job that it does not hold."""


class TooManyWorkers(EndpointError):
    """More worker ids than any endpoint has."""


class AttachedWorkers:
    """The workers of one endpoint that run in processes of their own.

    Args:
        queue: Where their jobs come from.
        rules: What to do when one is silent.
        on_refresh: Called with the id of a worker that asks to be replaced by a fresh one.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        rules: LossRules | None = None,
        on_refresh: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.rules = rules or LossRules()
        self.on_refresh = on_refresh
        self.closed = False
        self.asked = asyncio.Event()
        """Set whenever a worker asks for its first job."""
        self._expected = 0
        self._queue = queue
        self._workers: dict[str, AttachedWorker] = {}
        self._departed: OrderedDict[str, None] = OrderedDict()
        self._dismissed: OrderedDict[str, None] = OrderedDict()

    # ------------------------------------------------------------------ what workers ask and tell

    async def take(self, worker_id: str, request: Request, *, most: int, is_busy: bool) -> list[Attempt]:
        """Hold a worker's request for jobs until there is one; empty where there is none.

        Args:
            worker_id: Who asks.
            request: By which it does; jobs are never handed to one whose sender has gone.
            most: How many it takes at once.
            is_busy: Whether it says that it still runs a job.

        Raises:
            TooManyWorkers: This would be one more than there may be.
        """
        worker = self._known(worker_id)
        if worker.was_cut and not is_busy:
            worker.was_cut = False
            if worker.held:  # by a process that has died; this one has come with the same id
                self._lose(worker)
                worker = self._known(worker_id)
        if not worker.has_asked:
            self.asked.set()
        worker.has_asked, worker.trouble = True, None
        if not is_busy:
            self._let_go_of_stopped(worker)
        gone = asyncio.ensure_future(disconnected(request.receive))
        try:
            with self._polling(worker, "open_takes"):
                return await self._take(worker, gone, most)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def stops(self, worker_id: str, request: Request) -> list[str]:
        """Hold a worker's request for jobs to stop, until there is one or the worker leaves.

        Raises:
            TooManyWorkers: This would be one more than there may be.
        """
        worker = self._known(worker_id)
        worker.knows_stops = True
        loop = asyncio.get_running_loop()
        with self._polling(worker, "open_stops"):
            worker.ring()  # a job may have waited for this
            is_here, released = True, False
            while is_here and not (self.closed or worker.deleted or released):
                if due := worker.due_stops(loop.time(), STOP_REPEAT):
                    return due
                wait = worker.next_stop(loop.time())
                has_changed = functools.partial(worker.has_changed, worker.changes)
                is_here = await hold(request, worker, has_changed, wait)
                worker.was_cut = worker.was_cut or bool(worker.held and not is_here)
                released = worker.is_leaving and worker.leaving is None
        return []

    def push(self, worker_id: str, job_id: str, chunk: Any, size: int) -> None:
        """Add a chunk that a worker streams; one that comes late is ignored.

        Raises:
            NotHeld: It never had that job.
            Unsendable: The job holds too many bytes already.
        """
        held = self._held(worker_id, job_id)
        if held is not None:
            self._queue.push(held.attempt, chunk, size)

    def fail(self, worker_id: str, job_id: str, error: str) -> None:
        """End a job that its worker goes on with, and tell it to stop.

        Raises:
            NotHeld: The worker never had that job.
        """
        held = self._held(worker_id, job_id)
        if held is not None:
            self._queue.finish(held.attempt, Outcome(error=error))
            held.attempt.stop.set()

    def progress(self, worker_id: str, job_id: str, value: Any) -> None:
        """Show how far a job is; what comes late is ignored.

        Raises:
            NotHeld: The worker never had that job.
        """
        held = self._held(worker_id, job_id)
        if held is not None:
            self._queue.progress(held.attempt, value)

    def finish(self, worker_id: str, job_id: str, outcome: Outcome) -> None:
        """Take the outcome of a job; one that comes late is ignored.

        Raises:
            NotHeld: The worker never had that job.
        """
        held = self._held(worker_id, job_id)
        if held is None:
            return
        self._queue.finish(held.attempt, outcome)
        worker = self._workers[worker_id]
        worker.has_worked = True
        self._let_go(worker, job_id)
        if outcome.refresh_worker and not worker.held:
            self._remove(worker)
            self.on_refresh(worker_id)

    def ping(self, worker_id: str, job_ids: Collection[str], trouble: str | None) -> None:
        """A worker's process says that it is there.

        Args:
            worker_id: Whose.
            job_ids: What it says that the worker runs.
            trouble: Why the worker cannot start, where it cannot.

        Raises:
            TooManyWorkers: This would be one more than there may be.
        """
        if worker_id in self._departed and worker_id not in self._workers:
            return
        worker = self._known(worker_id)
        worker.trouble = trouble or worker.trouble
        now = asyncio.get_running_loop().time()
        for job_id, held in list(worker.held.items()):
            # A ping may have been on its way when the job was taken.
            if job_id not in job_ids and held.attempt.stop.is_set() and now - held.taken_at > 1:
                self._let_go(worker, job_id)
        has_no_other_way = not worker.has_asked or worker.knows_stops is False
        if has_no_other_way and (not worker.held or not worker.held.keys().isdisjoint(job_ids)):
            self._restart_clocks(worker)
        self._show(worker)

    # ------------------------------------------------------------------ what the server knows otherwise

    def expect(self) -> str:
        """A process is started that is to become a worker; returns the id that is new to it."""
        self._expected += 1
        worker = self._known(f"{self._queue.name}-process-{self._expected}")
        worker.is_managed = True
        self._show(worker)
        return worker.id

    def mark(self, worker_id: str, trouble: str) -> None:
        """Show a worker as unhealthy, until it is lost or asks for a job."""
        worker = self._known(worker_id)
        worker.trouble, worker.is_managed = trouble, True
        self._show(worker)

    def has_asked(self, worker_id: str) -> bool:
        """Whether a worker that is known has ever asked for a job."""
        worker = self._workers.get(worker_id)
        return worker is not None and worker.has_asked

    def has_worked(self, worker_id: str) -> bool:
        """Whether a worker that is known has ended a job."""
        worker = self._workers.get(worker_id)
        return worker is not None and worker.has_worked

    def dismiss(self, worker_id: str) -> None:
        """Hand this worker no job any more: it is about to be ended."""
        _remember(self._dismissed, worker_id)
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.ring()

    def lose(self, worker_id: str) -> None:
        """A worker is not there any more: what it held is queued again, or fails."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._lose(worker)

    def close(self) -> None:
        """Send every poll home; the queue ends the jobs."""
        self.closed = True
        for worker in list(self._workers.values()):
            self._lose(worker)

    # ------------------------------------------------------------------ taking

    async def _take(self, worker: AttachedWorker, gone: asyncio.Future[None], most: int) -> list[Attempt]:
        try:
            async with asyncio.timeout(TAKE_HOLD):
                while not (gone.done() or self._is_refused(worker)):
                    if not await self._job_waits(worker, gone):
                        continue
                    if self._queue.happens(self._queue.dials.throttle):
                        await self._throttle(worker)
                        continue
                    await self._wait_for_stop_channel(worker)
                    for _ in range(NOTICE_TURNS):
                        await asyncio.sleep(0)
                    if gone.done():
                        break
                    if attempts := self._hand_over(worker, most):
                        return attempts
                    self._queue.wake_worker()  # all that waits is what this one still runs itself
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        self._queue.wake_worker()  # it may have been woken for a job that it does not take
        return []

    async def _job_waits(self, worker: AttachedWorker, gone: asyncio.Future[None]) -> bool:
        """Wait for a job, or until this poll is no longer to get one."""
        bell = asyncio.Event()
        worker.bells.add(bell)
        work = asyncio.ensure_future(self._queue.work_waiting())
        rung = asyncio.ensure_future(bell.wait())
        try:
            await asyncio.wait((work, rung, gone), return_when=asyncio.FIRST_COMPLETED)
            return work.done()
        finally:
            worker.bells.discard(bell)
            for task in (work, rung):
                task.cancel()
            await asyncio.gather(work, rung, return_exceptions=True)

    async def _wait_for_stop_channel(self, worker: AttachedWorker) -> None:
        """See to it that `job-stop` is open: while its handler blocks, a worker cannot ask for it."""
        if worker.open_stops or worker.knows_stops is False:
            return
        self._queue.wake_worker()  # another one may have it open
        limit = STOP_CHANNEL_WAIT if worker.knows_stops else FIRST_STOP_CHANNEL_WAIT
        bell = asyncio.Event()
        worker.bells.add(bell)
        try:
            async with asyncio.timeout(limit):
                while not worker.open_stops:
                    bell.clear()
                    await bell.wait()
        except TimeoutError:
            worker.knows_stops = False  # until it asks
        finally:
            worker.bells.discard(bell)

    async def _throttle(self, worker: AttachedWorker) -> None:
        worker.is_throttled = True
        self._show(worker)
        self._queue.wake_worker()
        try:
            await self._queue.pause(THROTTLED_FOR)
        finally:
            worker.is_throttled = False
            self._show(worker)

    def _hand_over(self, worker: AttachedWorker, most: int) -> list[Attempt]:
        attempts: list[Attempt] = []
        if self._is_refused(worker):
            return attempts
        while len(attempts) < most:
            attempt = self._queue.take(worker.id, keep_chunks=False, unless=worker.held)
            if attempt is None:
                break
            if self._queue.happens(self._queue.dials.fail):
                self._queue.finish(attempt, Outcome(error=REHEARSED))
                continue
            held = HeldJob(attempt, asyncio.get_running_loop().time())
            # A context of its own: a request's would carry its caller's along.
            held.watcher = asyncio.get_running_loop().create_task(
                self._watch(worker, held), context=Context()
            )
            worker.held[attempt.record.id] = held
            attempts.append(attempt)
        self._show(worker)
        return attempts

    def _is_refused(self, worker: AttachedWorker) -> bool:
        return self.closed or worker.deleted or worker.id in self._dismissed

    # ------------------------------------------------------------------ what a worker holds

    def _held(self, worker_id: str, job_id: str) -> HeldJob | None:
        """What a worker reports on; None for a job that it had, and has no more."""
        worker = self._workers.get(worker_id)
        held = worker.held.get(job_id) if worker is not None else None
        if worker is not None and held is not None:
            self._restart_clocks(worker)
            return held
        record = self._queue.records.get(job_id)
        if record is None or record.worker_id != worker_id:
            raise NotHeld(f"the worker {worker_id} does not hold the job {job_id}")
        return None

    async def _watch(self, worker: AttachedWorker, held: HeldJob) -> None:
        await held.attempt.stop.wait()
        held.stop_due = max(asyncio.get_running_loop().time(), held.taken_at + STOP_DELAY)
        worker.ring()

    def _let_go(self, worker: AttachedWorker, job_id: str) -> None:
        worker.release(job_id)
        self._restart_clocks(worker)
        self._show(worker)

    def _let_go_of_stopped(self, worker: AttachedWorker) -> None:
        for job_id, held in list(worker.held.items()):
            if held.attempt.stop.is_set():
                self._let_go(worker, job_id)

    # ------------------------------------------------------------------ life

    def _known(self, worker_id: str) -> AttachedWorker:
        worker = self._workers.get(worker_id)
        if worker is None:
            if len(self._workers) >= MOST_WORKERS:
                raise TooManyWorkers(f"the endpoint {self._queue.name!r} has {MOST_WORKERS} workers already")
            self._departed.pop(worker_id, None)
            worker = self._workers[worker_id] = AttachedWorker(worker_id)
            self._restart_clocks(worker)
        return worker

    @contextlib.contextmanager
    def _polling(self, worker: AttachedWorker, kind: Literal["open_takes", "open_stops"]) -> Iterator[None]:
        setattr(worker, kind, getattr(worker, kind) + 1)
        self._restart_clocks(worker)
        self._show(worker)
        try:
            yield
        finally:
            setattr(worker, kind, getattr(worker, kind) - 1)
            self._restart_clocks(worker)

    def _restart_clocks(self, worker: AttachedWorker) -> None:
        """Count its silence from now, where it is silent, and its idleness, where it takes nothing."""
        worker.cancel_timers()
        worker.silence = worker.leaving = None
        if worker.deleted:
            return
        loop = asyncio.get_running_loop()
        if not (worker.open_takes or worker.open_stops or worker.is_managed):
            is_starting = not worker.has_asked
            limit = self.rules.silence if worker.held or is_starting else min(GONE_AFTER, self.rules.silence)
            worker.silence = loop.call_later(limit, self._lose, worker)
        if worker.is_leaving:
            worker.leaving = loop.call_later(LEAVING_AFTER, self._release, worker)

    @staticmethod
    def _release(worker: AttachedWorker) -> None:
        worker.leaving = None
        worker.ring()

    def _lose(self, worker: AttachedWorker) -> None:
        holds = list(worker.held.values())
        self._remove(worker)
        for held in holds:
            record = held.attempt.record
            if self.rules.on_lost == "requeue" and not record.was_lost:
                self._queue.requeue(held.attempt)
            else:
                again = ", after another one with the same job" if record.was_lost else ""
                error = f"the worker {worker.id} was lost while it ran the job{again}"
                self._queue.finish(held.attempt, Outcome(error=error))

    def _remove(self, worker: AttachedWorker) -> None:
        worker.deleted = True
        worker.cancel_timers()
        if self._workers.get(worker.id) is worker:
            del self._workers[worker.id]
            self._queue.workers.pop(_key(worker.id), None)
        for job_id in list(worker.held):
            worker.release(job_id)
        _remember(self._departed, worker.id)
        worker.ring()

    def _show(self, worker: AttachedWorker) -> None:
        if not worker.deleted:
            self._queue.workers[_key(worker.id)] = worker.state


def _key(worker_id: str) -> str:
    """Its place among the endpoint's workers: ids from outside may be those of workers of this process."""
    return f"attached {worker_id}"


def _remember(ids: OrderedDict[str, None], worker_id: str) -> None:
    ids[worker_id] = None
    while len(ids) > MOST_WORKERS:
        ids.popitem(last=False)
