"""One run of a job as it was seen from here: from its being queued to its end; a retry begins another one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from notebook_ext.streamed import Streamed
from notebook_ext.types import JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from notebook_ext.events import Ended

__all__ = ["OVER", "Chunks", "News", "Run", "news", "tell"]

ONE_ANSWER = 0.01
"""Seconds within which what was seen came in one answer, and says nothing of the time between."""

News = concurrent.futures.Future[None]


def news() -> News:
    """A future for many waiters: one that stops waiting does not cancel it for the others."""
    future = News()
    future.set_running_or_notify_cancel()
    return future


def tell(future: News) -> None:
    """Wake all who wait, once."""
    if not future.done():
        future.set_result(None)


OVER = news()
"""What is known already: of the many runs of a long list nobody waits for anything."""
tell(OVER)


@dataclass(slots=True, eq=False)
class Run:
    """What was seen of a run; its moments are seconds since it was submitted.

    Args:
        streamed: What was streamed.
        started: When it was submitted, on the monotonic clock.
        is_queued: Whether it was seen in the queue: only then can its beginning be seen.
        is_recalled: Whether it began before anybody here looked: nobody knows when its chunks came.
        began: When it was first seen to run; None where it was not seen to begin.
        first_chunk: When the first chunk came.
        last_chunk: When the last one came.
        ended: How it ended.
        done: Whether nothing more will come.
        changed: Whether there is anything new.
        id_known: Whether its id is known, or surely will not be.
    """

    streamed: Streamed = field(default_factory=Streamed)
    started: float = field(default_factory=time.monotonic)
    is_queued: bool = True
    is_recalled: bool = False
    began: float | None = None
    first_chunk: float | None = None
    last_chunk: float | None = None
    ended: Ended | None = None
    done: News = field(default_factory=news)
    changed: News = field(default_factory=news)
    id_known: News = field(default_factory=news)

    def saw_status(self, status: JobStatus, at: float) -> None:
        """Take in where it stood at a moment."""
        if status is JobStatus.IN_QUEUE:
            self.is_queued = True
        elif status is JobStatus.IN_PROGRESS:
            self._begin(at)

    def saw_chunk(self, chunk: StreamChunk, at: float) -> None:
        """Take in what came at a moment."""
        self._begin(at)
        self.last_chunk = at
        if self.first_chunk is None:
            self.first_chunk = at
        self.streamed.append(chunk)

    def _begin(self, at: float) -> None:
        if self.is_queued and self.began is None:
            self.began = at

    def first_token(self, queue: float | None) -> float | None:
        """Seconds from its beginning to its first chunk; None where that is not known.

        Args:
            queue: Seconds in the queue, as the server tells them.
        """
        if self.first_chunk is None or self.is_recalled:
            return None
        if queue is not None:
            return max(0.0, self.first_chunk - queue)
        if self.began is None or self.first_chunk - self.began < ONE_ANSWER:
            return None
        return self.first_chunk - self.began

    @property
    def chunk_rate(self) -> float | None:
        """Chunks per second since the first one; None before the second."""
        seconds = self.streaming_time
        return None if seconds is None else (len(self.streamed) - 1) / seconds

    @property
    def streaming_time(self) -> float | None:
        """Seconds from the first chunk to the newest; None before the second."""
        if self.is_recalled or self.first_chunk is None or self.last_chunk is None:
            return None
        return self.last_chunk - self.first_chunk or None

    def change(self) -> None:
        """Wake whoever waits for anything new."""
        changed, self.changed = self.changed, news()
        tell(changed)


class Chunks:
    """The chunks of a run, from the first one on, as they come; for both kinds of loop.

    Args:
        run: What was seen of it.
        wait: Waits for a future, for those who do not await.
    """

    def __init__(self, run: Run, wait: Callable[[News], None]) -> None:
        self._run = run
        self._wait = wait

    def __iter__(self) -> Iterator[StreamChunk]:
        for step in self._steps():
            if isinstance(step, StreamChunk):
                yield step
            else:
                self._wait(step)

    async def __aiter__(self) -> AsyncIterator[StreamChunk]:
        for step in self._steps():
            if isinstance(step, StreamChunk):
                yield step
            else:
                await asyncio.wrap_future(step)

    def _steps(self) -> Iterator[StreamChunk | News]:
        """Each chunk that there is, and, before those that there are not yet, what is to be waited for."""
        index = 0
        while True:
            change, ended = self._run.changed, self._run.ended  # before the chunks: one may come meanwhile
            for chunk in self._run.streamed.since(index):
                index += 1
                yield chunk
            if ended is not None:
                break
            yield change
        if ended.error is not None:
            raise ended.error
