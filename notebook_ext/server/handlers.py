"""Running a user's handler, in the shape that Runpod's workers use, and putting its end into words.

A handler runs away from the server's event loop: plain ones in a thread of their own, async ones
on an event loop that belongs to their endpoint. `Reporter` is its way back to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import threading
import traceback
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import InputError
from notebook_ext.protocol import worker_error_to_json
from notebook_ext.server.job import CHUNK_LIMIT, RESULT_LIMIT, Attempt, Handler, Outcome, Unsendable, as_json
from notebook_ext.server.prints import current_log
from notebook_ext.types import WorkerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from notebook_ext.server.queue import Queue

__all__ = ["Reporter", "call", "call_async", "check_takes_job", "is_async", "progress_update"]

_STOPPED = Outcome()
"""Of an attempt that is over already: the queue ignores it."""


def progress_update(job: dict[str, Any], progress: Any) -> None:
    """Tell how far a job is, from inside its handler; readers see it as its `output` meanwhile.

    Like `runpod.serverless.progress_update`, from any thread. It never changes a job that has
    ended, and does nothing outside an embedded handler.

    Args:
        job: What the handler was given.
        progress: Any JSON value.
    """
    reporter = _current.get()
    job_id = job.get("id")
    if reporter is None or reporter.job_id != job_id:
        reporter = _running.get(str(job_id))  # a thread that the handler has started itself
    if reporter is not None:
        reporter.progress(progress)


class Reporter:
    """A running handler's way back to the queue, from whatever thread it runs in."""

    def __init__(self, queue: Queue, attempt: Attempt) -> None:
        self._queue = queue
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self.job_id = attempt.record.id
        self.worker_id = attempt.worker_id
        self.log = attempt.record.log

    @property
    def stopped(self) -> bool:
        return self._attempt.stop.is_set()

    def job(self) -> dict[str, Any]:
        """What the handler gets: a copy, since a retry runs with the same input."""
        return {"id": self.job_id, "input": copy.deepcopy(self._attempt.record.request.input)}

    def push(self, chunk: Any) -> Future[bool]:
        """Stream a chunk; the future is False when the handler should stop.

        Waiting for it keeps a handler from running ahead of the server.

        Raises:
            Unsendable: It is not JSON or over 1 MB; the future may also raise it.
        """
        value, size = as_json(chunk, "a chunk of the handler", CHUNK_LIMIT)
        accepted: Future[bool] = Future()

        def deliver() -> None:
            if accepted.set_running_or_notify_cancel():
                try:
                    accepted.set_result(self._queue.push(self._attempt, value, size))
                except Unsendable as error:
                    accepted.set_exception(error)

        if not self.tell(deliver):
            accepted.set_result(False)
        return accepted

    def progress(self, value: Any) -> None:
        try:
            value, _ = as_json(value, "the progress", CHUNK_LIMIT)
        except Unsendable as error:
            self.log.write(f"progress_update was ignored: {error}\n")
        else:
            self.tell(self._queue.progress, self._attempt, value)

    def tell(self, callback: Any, *args: Any) -> bool:
        """Call something on the server's loop; False when that is closed."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return False
        return True

    @contextlib.contextmanager
    def at_work(self) -> Generator[None]:
        """Mark the calling context as this job's: its prints, its progress."""
        current_log.set(self.log)
        _current.set(self)
        with _registry:
            _running[self.job_id] = self
        try:
            yield
        finally:
            with _registry:
                if _running.get(self.job_id) is self:
                    del _running[self.job_id]


_current: ContextVar[Reporter | None] = ContextVar("notebook_ext_reporter", default=None)
_running: dict[str, Reporter] = {}
_registry = threading.Lock()


def is_async(handler: Handler) -> bool:
    """Whether calling it gives something to await or to iterate asynchronously."""
    function: Any = handler
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def check_takes_job(name: str, handler: Handler) -> None:
    """Refuse a handler that every job would fail to call.

    Args:
        name: The endpoint's name, for the sentence.
        handler: What is to be served; one whose signature cannot be known is let pass.

    Raises:
        InputError: It cannot be called with one positional argument.
    """
    try:
        # What a decorator calls inside may take more than what it gives out.
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind({})
    except TypeError as error:
        raise InputError(
            f"the handler of {name!r} cannot be called with one argument, the job, as `def handler(job)` "
            f"can: {error}"
        ) from None


def call(handler: Handler, reporter: Reporter) -> Outcome:
    """Run a plain handler to its end, in the calling thread."""
    if reporter.stopped:
        return _STOPPED
    with reporter.at_work():
        try:
            result = handler(reporter.job())
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler is that job's failure
            return Outcome(error=_raised(error, reporter))
        if inspect.isgenerator(result):
            return _exhaust(result, reporter)
        if inspect.iscoroutine(result) or inspect.isasyncgen(result):
            return Outcome(error=_handed_over(result))
        return _returned(result)


def _exhaust(generator: Generator[Any, Any, Any], reporter: Reporter) -> Outcome:
    try:
        with contextlib.closing(generator):
            for chunk in generator:
                if (failure := _yielded_error(chunk)) is not None:
                    return failure
                if not reporter.push(chunk).result():
                    return _STOPPED
    except Unsendable as error:
        return Outcome(error=str(error))
    except BaseException as error:  # noqa: BLE001 - as above
        return Outcome(error=_generator_raised(error))
    return Outcome(streamed=True)


async def call_async(handler: Handler, reporter: Reporter) -> Outcome:
    """Run an async handler to its end; cancelling the task stops it at its next await."""
    with reporter.at_work():
        try:
            result = handler(reporter.job())
            if inspect.isasyncgen(result):
                return await _exhaust_async(result, reporter)
            return _returned(await result)
        except BaseException as error:  # noqa: BLE001 - a SystemExit would end the loop of all jobs
            if isinstance(error, asyncio.CancelledError) and reporter.stopped:
                return _STOPPED
            return Outcome(error=_raised(error, reporter))


async def _exhaust_async(generator: AsyncGenerator[Any, Any], reporter: Reporter) -> Outcome:
    try:
        async with contextlib.aclosing(generator):
            async for chunk in generator:
                if (failure := _yielded_error(chunk)) is not None:
                    return failure
                if not await asyncio.wrap_future(reporter.push(chunk)):
                    return _STOPPED
    except Unsendable as error:
        return Outcome(error=str(error))
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        return Outcome(error=_generator_raised(error))
    return Outcome(streamed=True)


# ---------------------------------------------------------------------------------- the words


def _handed_over(result: Any) -> str:
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that it was never awaited
    return "the handler is a plain function that returned something async; declare it with `async def`"


def _returned(result: Any) -> Outcome:
    """What a return value means: `error` and `refresh_worker` are words to the platform."""
    error, refresh_worker = None, False
    if isinstance(result, dict):
        result = dict(result)
        error = result.pop("error", None) or None
        refresh_worker = bool(result.pop("refresh_worker", False))
    try:
        if error is not None:
            error, _ = as_json(error, "the handler's error", RESULT_LIMIT)
        if result is None or result == {}:
            return Outcome(error=error, refresh_worker=refresh_worker)
        output, _ = as_json(result, "the handler's result", RESULT_LIMIT)
    except Unsendable as unsendable:
        return Outcome(error=str(unsendable), refresh_worker=refresh_worker)
    return Outcome(output, error, refresh_worker=refresh_worker)


def _yielded_error(chunk: Any) -> Outcome | None:
    if isinstance(chunk, dict) and chunk.get("error"):
        return Outcome(error=str(chunk["error"]))
    return None


def _raised(error: BaseException, reporter: Reporter) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message, trace = _told(error)
    return worker_error_to_json(WorkerError(message, name, trace, reporter.worker_id))


def _generator_raised(error: BaseException) -> str:
    message, trace = _told(error)
    return f"handler: {message} \ntraceback: {trace}"


def _told(error: BaseException) -> tuple[str, str]:
    """The message and the traceback, without the frames of this module that lead to the handler."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    told = traceback.TracebackException(type(error), error, frames)
    return str(told) or type(error).__qualname__, "".join(told.format())
