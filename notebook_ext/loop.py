"""The background event loop: one plain daemon thread per session, which does all the I/O.

Neither a busy cell nor a nested loop can stall what runs here.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoopThread", "wait"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own; started by the first `submit`, ended by `close`.

    Args:
        name: The thread's name.
        at_exit: What is called when the interpreter exits, in place of `close`.
    """

    def __init__(self, name: str = "notebook_ext", *, at_exit: Callable[[], Any] | None = None) -> None:
        self._name = name
        self._at_exit = at_exit or self.close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._starting = threading.Lock()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop.

        Raises:
            RuntimeError: It has been closed.
        """
        with self._starting:
            if self._closed:
                raise RuntimeError("this session is closed: %load_ext notebook_ext starts another one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
                _before_exit(self._at_exit)
            return self._loop

    @property
    def in_thread(self) -> bool:
        """Whether the caller runs on the loop's own thread, where waiting for it would never end."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop; cancelling the future cancels it."""
        try:
            loop = self.loop
        except RuntimeError:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def close(self, timeout: float = 2.0) -> None:
        """Cancel what still runs, wait for it, and end the thread.

        Args:
            timeout: Seconds that the cancelled tasks have to finish.
        """
        with self._starting:
            already, self._closed = self._closed, True
            loop, thread = self._loop, self._thread
        if already or loop is None or thread is None or self.in_thread:
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(_cancel_all(timeout), loop).result(timeout + 1.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while not self._closed:
            # A task that raises SystemExit or KeyboardInterrupt would end the thread, and every
            # later submit would wait for ever.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _before_exit(end: Callable[[], Any]) -> None:
    """Call a method when the interpreter exits, while threads can still be started.

    `atexit` is later than that: a name could no longer be resolved then, so no job be cancelled.
    """
    import concurrent.futures.thread  # noqa: F401 - it registers its end first, so that comes after ours

    reference = weakref.WeakMethod(end)

    def call() -> None:
        method = reference()
        if method is not None:
            method()

    getattr(threading, "_register_atexit", atexit.register)(call)


async def _cancel_all(timeout: float) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)


def wait(future: concurrent.futures.Future[Any], timeout: float | None) -> bool:
    """Wait for what is done on the loop, from another thread; tells whether it is done.

    Args:
        future: What is waited for.
        timeout: Seconds to wait; None waits for as long as it takes.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not future.done():  # in slices: on some platforms an endless wait cannot be interrupted
        left = 0.1 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        concurrent.futures.wait([future], min(0.1, left))
    return True
