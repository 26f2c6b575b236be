"""Keeping what is seen of jobs: first the journal, then everybody else; what it cannot take, later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import JournalError
from notebook_ext.streamed import weight
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal

__all__ = ["ChunkWriter", "Keeper"]

_log = logging.getLogger(__name__)

DELAY = 0.25
"""Seconds that streamed chunks may be late in the journal."""
FULL = 1_000_000
"""Characters of streamed chunks that are written at once: a larger write would hold up the loop."""
AGAIN, AGAIN_LATER = 1.0, 60.0
"""Seconds until what the journal could not take is offered to it again: at first, and at most."""

_LACKS = "the journal lacks some of this job: it could not be written"


class Keeper:
    """Writes down what is seen of jobs, and passes it on to their handles; on the loop thread.

    Args:
        journal: Where it is kept.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._behind: dict[int, JobHandle] = {}  # the journal lacks something of these

    def chunks(self, handle: JobHandle) -> ChunkWriter:
        """A writer for what a job streams."""
        return ChunkWriter(lambda rows: self._append(handle, rows))

    def _append(self, handle: JobHandle, rows: list[StreamChunk]) -> None:
        if rows and self._journal.append(handle.number, rows):
            handle.kept(rows[-1].index + 1)

    def saw(self, handle: JobHandle, job: Job) -> None:
        """First the journal, then everybody else."""
        if handle.status.is_final and (not job.status.is_final or job.status is JobStatus.LOST):
            return  # an answer that another one has overtaken, or an expiry after the end
        if job.status is JobStatus.LOST and not job.id:
            job = replace(job, id=handle.id)
        if not job.status.is_final:  # the end is kept at the end, with all that belongs to it
            self.write(handle, self._journal.update, handle.number, job)
        handle.saw(job)

    def doubt(self, handle: JobHandle) -> None:
        """Nobody knows whether a job without an id was queued."""
        if not handle.id and not handle.status.is_final:
            self.saw(handle, replace(handle.job, status=JobStatus.AMBIGUOUS, seen_at=time.time()))

    def write(self, handle: JobHandle, write: Callable[..., None], *what: Any) -> None:
        """Tell the journal; a job goes on without it, and what it could not take is offered again."""
        try:
            write(*what)
        except JournalError as error:
            self._fell_behind(handle, error, AGAIN)

    def _fell_behind(self, handle: JobHandle, error: JournalError, pause: float) -> None:
        if _LACKS not in handle.notes:
            _log.warning("@%s: %s", handle.number, error)
            handle.note(_LACKS)
        if handle.number not in self._behind:
            self._behind[handle.number] = handle
            with contextlib.suppress(RuntimeError):  # no loop: the session is closing
                asyncio.get_running_loop().call_later(pause, self._try_again, handle, pause)

    def _try_again(self, handle: JobHandle, pause: float) -> None:
        try:
            self._catch_up(handle)
        except JournalError as error:
            self._fell_behind(handle, error, min(2 * pause, AGAIN_LATER))

    def _catch_up(self, handle: JobHandle) -> None:
        """Tell the journal all that is known of a job."""
        del self._behind[handle.number]
        if handle.never_submitted:
            self._journal.discard(handle.number)
        elif handle.done and handle.is_settled:
            self._pack(handle)
        else:
            self._append(handle, handle.lacking)
            if not handle.status.is_final:
                self._journal.update(handle.number, handle.job)
        handle.notes[:] = [note for note in handle.notes if note != _LACKS]

    def finish(self, handle: JobHandle) -> None:
        """Keep how a job ended, with all that belongs to it."""
        self.write(handle, self._pack, handle)

    def release(self, handle: JobHandle) -> None:
        """Let another session follow a job from here on as if nothing had happened."""
        if handle.number not in self._behind:
            self.write(handle, self._journal.release, handle.number)

    def catch_up(self) -> None:
        """Offer the journal once more what it could not take."""
        for handle in list(self._behind.values()):
            with contextlib.suppress(JournalError):
                self._catch_up(handle)

    def _pack(self, handle: JobHandle) -> None:
        notes = [note for note in handle.notes if note != _LACKS]
        if handle.is_large:
            self._append(handle, handle.lacking)
            self._journal.finish(handle.number, handle.job, notes, packs=False)
        else:
            self._journal.finish(handle.number, handle.job, notes, handle.streamed())


class ChunkWriter:
    """Writes chunks to the journal in batches, at most `DELAY` late; those it cannot take, again.

    Args:
        write: Writes a batch, or raises.
    """

    def __init__(self, write: Callable[[list[StreamChunk]], None]) -> None:
        self._write = write
        self._waiting: list[StreamChunk] = []
        self._weight = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, chunk: StreamChunk) -> None:
        """Take one more chunk, to be written soon."""
        self._waiting.append(chunk)
        self._weight += weight(chunk.output)
        if self._weight >= FULL:
            self.try_flush()
        elif self._timer is None:
            self._start_timer(DELAY)

    def try_flush(self) -> None:
        """Write what waits, now or later."""
        try:
            self.flush()
        except JournalError as error:
            _log.warning("chunks wait for the journal: %s", error)
            self._weight = 0  # not again with each chunk
            self._start_timer(AGAIN)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            JournalError: It could not be written, and still waits.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._write(self._waiting)
            self._waiting, self._weight = [], 0

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.try_flush)
