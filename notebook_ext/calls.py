"""Jobs that are one open connection, as the OpenAI route has them: they have no id, and end with it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import (
    AnswerLost,
    EndpointError,
    JobCancelled,
    ProtocolError,
    ServerError,
)
from notebook_ext.events import HUNG_UP, Stopped
from notebook_ext.types import StreamChunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.client import Endpoint
    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal
    from notebook_ext.keeping import Keeper
    from notebook_ext.queueing import QueueWatch

__all__ = ["CUT_SHORT", "Calls", "cut_short"]

CUT_SHORT = "its answer ended with the kernel that read it: text may be missing"
"""What is noted of one whose session is gone."""
_CUT_OFF, _NO_ANSWER = "its answer was cut short: text may be missing", "no answer came"

_PERHAPS_RAN = (AnswerLost, ServerError, ProtocolError)


def cut_short(name: str, notes: Sequence[str]) -> EndpointError:
    """Why no more is known of one that has ended without an end; `notes` are what was noted of it."""
    told = "; ".join(notes) or "its answer ended early"
    return AnswerLost(f"{name}: {told}. The OpenAI route gives an answer once: run it again for another one")


class Calls:
    """Makes such jobs and ends them; on the loop thread.

    Args:
        journal: Forgets those that were never sent.
        keeper: Told what is seen of them.
        queues: Tells why they wait.
    """

    def __init__(self, journal: Journal, keeper: Keeper, queues: QueueWatch) -> None:
        self._journal, self._keeper, self._queues = journal, keeper, queues
        self._open: dict[int, asyncio.Task[EndpointError | None]] = {}

    async def make(self, handle: JobHandle, endpoint: Endpoint, body: Any) -> EndpointError | None:
        """Ask, and read the answer to its end; returns why that did not go well."""
        reading = asyncio.ensure_future(self._read(handle, endpoint, body))
        self._open[handle.number] = reading
        try:
            return await reading
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the session closes
                raise
            if handle.status.is_final:  # its end was just there
                return handle.failure()
            self._leave_open(handle, HUNG_UP)
            return JobCancelled(f"@{handle.number} on {handle.endpoint}: {HUNG_UP}", handle.job)
        finally:
            del self._open[handle.number]

    async def hang_up(self, handle: JobHandle) -> Stopped:
        """Close the connection of one, which is all that can be done to stop it."""
        reading = self._open.get(handle.number)
        if reading is not None:
            handle.was_stopped = True
            reading.cancel()
            await handle.ended()
        elif not handle.done:
            told = f"@{handle.number} is read by another notebook, which alone can stop it"
            return Stopped(handle, confirmed=False, error=EndpointError(told))
        return Stopped(handle, confirmed=handle.status.is_final or handle.never_submitted)

    async def _read(self, handle: JobHandle, endpoint: Endpoint, body: Any) -> EndpointError | None:
        chunks = self._keeper.chunks(handle)
        reasons = asyncio.ensure_future(self._queues.watch(handle, endpoint))
        try:
            async with contextlib.aclosing(endpoint.chat(body)) as events:
                async for event in events:
                    if isinstance(event, StreamChunk):
                        handle.saw(event)
                        chunks.add(event)
                    else:
                        self._keeper.saw(handle, event)
        except _PERHAPS_RAN as lost:
            if not handle.status.is_final:
                self._leave_open(handle, _CUT_OFF if handle.streamed_count else _NO_ANSWER)
                return lost
            handle.note(str(lost))  # the end came, without what tells that it is the end
        except EndpointError as error:
            self._keeper.write(handle, self._journal.discard, handle.number)
            return error
        finally:
            reasons.cancel()
            self._keeper.write(handle, chunks.flush)
        return handle.failure()

    def _leave_open(self, handle: JobHandle, why: str) -> None:
        """Nobody will know what became of it."""
        handle.note(why)
        self._keeper.doubt(handle)
