"""Stopping a remote job, and seeing that it has stopped."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from notebook_ext.errors import AnswerLost, EndpointError, JobLost, ProtocolError, ServerError
from notebook_ext.events import Stopped
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from notebook_ext.client import Endpoint
    from notebook_ext.handle import JobHandle
    from notebook_ext.keeping import Keeper
    from notebook_ext.types import Job

__all__ = ["stop", "stop_all"]

ID_PATIENCE = 45.0
"""Seconds to wait for the id of a job that is to be cancelled; longer than a submission may take."""
STOP_PATIENCE = 12.0
"""Seconds to wait for a cancelled job to be final."""
QUEUED_FIRST = 3.0
"""Seconds that jobs which run wait to be stopped until those in the queue are: else these would begin."""
ENDING = 2.0
"""Seconds to wait for the watcher of a job whose state is known to be final."""


async def stop(handle: JobHandle, endpoint: Endpoint, keeper: Keeper) -> Stopped:
    """Ask the server to cancel a job, and look until it is final.

    Args:
        handle: The job.
        endpoint: Where it is.
        keeper: Told what is seen of it.
    """
    # A submission whose answer is outstanding goes on, so that there is an id to cancel.
    try:
        async with asyncio.timeout(ID_PATIENCE):
            await handle.id_known()
    except TimeoutError:
        keeper.doubt(handle)
        return Stopped(
            handle,
            False,
            AnswerLost(f"its submission was not answered within {ID_PATIENCE:g} s; it may have been queued"),
        )
    if handle.is_over:
        return _outcome(handle, handle.error)
    try:
        async with asyncio.timeout(STOP_PATIENCE):
            await _cancel(handle, endpoint)
            job = await endpoint.status(handle.id)
            while not job.status.is_final:
                keeper.saw(handle, job)
                job = await endpoint.status_sync(handle.id, wait=1.0)
    except JobLost as error:
        job = error.job
    except (EndpointError, TimeoutError) as error:
        return _outcome(handle, error if isinstance(error, EndpointError) else None)
    await _end_of(handle, job, keeper)
    return _outcome(handle, None)


async def stop_all(
    handles: Sequence[JobHandle],
    stop_one: Callable[[JobHandle], Coroutine[None, None, Stopped]],
    patience: float = QUEUED_FIRST,
) -> list[Stopped]:
    """Stop jobs together, those in the queue first: none is to begin in the place of one that was stopped.

    Args:
        handles: The jobs.
        stop_one: Stops one of them.
        patience: Seconds to wait for those in the queue.
    """
    stopping = {
        handle.number: asyncio.ensure_future(stop_one(handle))
        for handle in handles
        if handle.status is JobStatus.IN_QUEUE
    }
    if stopping:
        await asyncio.wait(stopping.values(), timeout=patience)
    for handle in handles:
        if handle.number not in stopping:
            stopping[handle.number] = asyncio.ensure_future(stop_one(handle))
    if stopping:
        await asyncio.wait(stopping.values())
    return [stopping[handle.number].result() for handle in handles]


async def _end_of(handle: JobHandle, job: Job, keeper: Keeper) -> None:
    """See to it that a handle has ended: its watcher sees the same, and has the last chunks."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENDING):
            await handle.ended()
    if not handle.status.is_final:
        keeper.saw(handle, job)


async def _cancel(handle: JobHandle, endpoint: Endpoint) -> None:
    before = handle.was_stopped
    handle.was_stopped = True  # already now: the watcher may see the end before this answer comes
    try:
        await endpoint.cancel(handle.id)
    except (AnswerLost, ServerError, ProtocolError):
        raise  # it was sent
    except EndpointError:
        handle.was_stopped = before
        raise


def _outcome(handle: JobHandle, error: EndpointError | None) -> Stopped:
    confirmed = handle.status.is_final or handle.never_submitted
    return Stopped(handle, confirmed, None if confirmed else error)
