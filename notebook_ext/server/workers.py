"""The workers of this process: they take jobs from a queue and run its handler."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Any

from notebook_ext.server import prints
from notebook_ext.server.handlers import Reporter, call, call_async, is_async
from notebook_ext.server.job import Attempt, Handler, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.server.queue import Queue

__all__ = ["REHEARSED", "THROTTLED_FOR", "Pool"]

REHEARSED = "rehearsed by the endpoint's `fail` dial"
THROTTLED_FOR = 1.0
"""Seconds until a throttled worker tries again."""
JOIN_TIMEOUT = 0.5
"""Seconds for a thread that has said its last word to be gone."""


class Pool:
    """The in-process workers of one queue, and the threads that they use.

    Args:
        queue: Where the jobs come from.
        capture_prints: Whether what handlers print goes to their jobs' logs.
    """

    def __init__(self, queue: Queue, *, capture_prints: bool = True) -> None:
        self.queue = queue
        self._capture_prints = capture_prints
        self._workers: list[_Worker] = []
        self._born = 0
        self._loop: _HandlerLoop | None = None
        self._executions: set[_Execution] = set()

    def resize(self, count: int) -> None:
        """Have `count` workers; one that is busy leaves after its job."""
        while len(self._workers) > count:
            self._workers.pop().retire()
        while len(self._workers) < count:
            self._born += 1
            self._workers.append(_Worker(self, f"{self.queue.name}-{self._born}"))

    def refresh(self) -> None:
        """After a new handler or new dials: cold again, and without those stuck in a stopped job."""
        stuck = [worker for worker in self._workers if worker.is_stuck]
        for worker in stuck:
            self._workers.remove(worker)
            worker.abandon()
        self.resize(len(self._workers) + len(stuck))
        if self.queue.dials.cold_start:
            for worker in self._workers:
                worker.cool_down()

    def start(self, attempt: Attempt) -> _Execution:
        """Begin to run a job's handler."""
        if self._capture_prints:
            prints.divert(self)
        reporter = Reporter(self.queue, attempt)
        handler = _rehearsed_failure if self.queue.happens(self.queue.dials.fail) else attempt.handler
        assert handler is not None, "an endpoint without a handler has no workers in this process"
        execution: _Execution
        if is_async(handler):
            self._loop = self._loop or _HandlerLoop(f"notebook_ext handlers of {self.queue.name}")
            execution = _TaskExecution(self._loop, handler, reporter)
        else:
            execution = _ThreadExecution(handler, reporter, f"notebook_ext {attempt.record.id}")
        self._executions.add(execution)
        execution.done.add_done_callback(lambda _: self._executions.discard(execution))
        return execution

    async def close(self, grace: float) -> None:
        """Stop everything. The queue is closed already, so every handler has been told to stop.

        Args:
            grace: Seconds to wait for handlers to end; one that does not is left to its (daemon)
                thread.
        """
        executions = list(self._executions)
        if executions:
            await asyncio.wait([execution.done for execution in executions], timeout=grace)
        tasks = [worker.abandon() for worker in self._workers]
        self._workers.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        for execution in executions:
            execution.join()
        if self._loop is not None:
            await self._loop.close(JOIN_TIMEOUT)
        prints.restore(self)


def _rehearsed_failure(_job: dict[str, Any]) -> None:
    raise RuntimeError(REHEARSED)


class _Worker:
    def __init__(self, pool: Pool, worker_id: str) -> None:
        self._pool = pool
        self._queue = pool.queue
        self._id = worker_id
        self._cold = self._queue.dials.cold_start > 0
        self._retiring = False
        self._attempt: Attempt | None = None
        self._show_rest()
        # A context of its own: the caller's would carry its cell's output along.
        self._task = asyncio.get_running_loop().create_task(self._work(), context=Context())

    @property
    def is_stuck(self) -> bool:
        return self._attempt is not None and self._attempt.stop.is_set()

    def retire(self) -> None:
        self._retiring = True
        if self._attempt is None:
            self._task.cancel()

    def abandon(self) -> asyncio.Task[None]:
        self._task.cancel()
        return self._task

    def cool_down(self) -> None:
        self._cold = True
        if self._attempt is None:
            self._show_rest()

    async def _work(self) -> None:
        try:
            while not self._retiring:
                self._show_rest()
                await self._queue.work_waiting(cold=self._cold)
                await self._get_ready()
                self._attempt = self._queue.take(self._id)
                if self._attempt is not None:
                    self._show("running")
                    await self._execute(self._attempt)
                    self._attempt = None
        finally:
            self._queue.workers.pop(self._id, None)

    async def _get_ready(self) -> None:
        if self._cold:
            self._show("initializing")
            await self._queue.pause(self._queue.dials.cold_start)
            self._cold = False
        while self._queue.happens(self._queue.dials.throttle):
            self._show("throttled")
            self._queue.wake_worker()  # another host may have room
            await self._queue.pause(THROTTLED_FOR)

    async def _execute(self, attempt: Attempt) -> None:
        try:
            execution = self._pool.start(attempt)
        except RuntimeError as error:  # the system gives no more threads
            self._queue.finish(attempt, Outcome(error=f"the handler could not be started: {error}"))
            return
        stop = asyncio.ensure_future(attempt.stop.wait())
        try:
            await asyncio.wait((execution.done, stop), return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                execution.stop()
            # The worker is not free before its handler has really ended: with one worker, a
            # handler that is not made for it never runs twice at once.
            outcome = await asyncio.shield(execution.done)
        finally:
            stop.cancel()
            execution.stop()
        self._queue.finish(attempt, outcome)
        self._cold = self._cold or (outcome.refresh_worker and self._queue.dials.cold_start > 0)

    def _show(self, state: str) -> None:
        self._queue.workers[self._id] = state

    def _show_rest(self) -> None:
        if self._cold:  # scaled to zero until a job comes
            self._queue.workers.pop(self._id, None)
        else:
            self._show("idle")


class _Execution:
    """A handler at work; `done` gets its outcome, on the server's loop."""

    def __init__(self, reporter: Reporter) -> None:
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._reporter = reporter

    def stop(self) -> None:
        """Ask the handler to end; more than once is fine."""

    def join(self) -> None:
        """Wait shortly for what is left of it, where it has ended."""

    def _report(self, outcome: Outcome) -> None:
        self._reporter.tell(self._set, outcome)

    def _set(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


class _ThreadExecution(_Execution):
    """A plain handler: a generator stops at its next yield, a plain function cannot be stopped."""

    def __init__(self, handler: Handler, reporter: Reporter, name: str) -> None:
        super().__init__(reporter)
        # A context of its own, as for async handlers; and as a daemon it cannot hold the process.
        self._thread = threading.Thread(
            target=Context().run, args=(self._run, handler, reporter), name=name, daemon=True
        )
        self._thread.start()

    def _run(self, handler: Handler, reporter: Reporter) -> None:
        self._report(call(handler, reporter))

    def join(self) -> None:
        if self.done.done():
            self._thread.join(JOIN_TIMEOUT)


class _TaskExecution(_Execution):
    """An async handler: stopped by cancelling its task."""

    def __init__(self, loop: _HandlerLoop, handler: Handler, reporter: Reporter) -> None:
        super().__init__(reporter)
        self._loop = loop
        self._task: asyncio.Task[Outcome] | None = None
        loop.call(self._start, handler, reporter)

    def _start(self, handler: Handler, reporter: Reporter) -> None:
        self._task = asyncio.get_running_loop().create_task(call_async(handler, reporter), context=Context())
        self._task.add_done_callback(
            lambda task: self._report(Outcome() if task.cancelled() else task.result())
        )

    def stop(self) -> None:
        if not self.done.done():
            self._loop.call(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()


class _HandlerLoop:
    """An event loop in a thread, for the async handlers of one endpoint.

    It stays from job to job, since handlers keep clients and engines that belong to a loop; and
    it is not the server's, which a handler that blocks would stop.
    """

    def __init__(self, name: str) -> None:
        self._server_loop = asyncio.get_running_loop()
        self._ended = self._server_loop.create_future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # closed: there is nothing left to call it for
            self._loop.call_soon_threadsafe(callback, *args, context=Context())

    async def close(self, timeout: float) -> None:
        """End the thread; one that is blocked by its handler is left behind."""
        self.call(self._cancel_all)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), timeout)
            self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            with contextlib.suppress(RuntimeError):
                self._server_loop.call_soon_threadsafe(self._mark_ended)

    def _mark_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if not tasks:
            self._loop.stop()
            return
        rest = self._loop.create_task(_settle(tasks))
        rest.add_done_callback(lambda _: self._loop.stop())


async def _settle(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
