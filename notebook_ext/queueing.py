"""Why jobs wait in a queue: its endpoint's counters, asked once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from notebook_ext.errors import EndpointError, JournalError
from notebook_ext.events import Queued
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from notebook_ext.client import Endpoint
    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal
    from notebook_ext.keeping import Keeper

__all__ = ["QueueWatch"]

HEALTH_AFTER, HEALTH_EVERY = 2.0, 5.0
"""Seconds in the queue after which, and intervals at which, health is read to say why a job waits."""
UP = ("idle", "ready", "running")
"""Workers in these states need not be started."""


class QueueWatch:
    """Tells the handles of queued jobs what is known of their queues; on the loop thread.

    Args:
        journal: Knows earlier cold starts.
        keeper: Told which jobs waited for a worker to start.
    """

    def __init__(self, journal: Journal, keeper: Keeper) -> None:
        self._journal = journal
        self._keeper = keeper
        self._looks: dict[Endpoint, tuple[float, asyncio.Task[Queued]]] = {}

    def cancel(self) -> list[asyncio.Task[Queued]]:
        """Cancel every look; those are returned."""
        looks = [look for _, look in self._looks.values()]
        for look in looks:
            look.cancel()
        return looks

    async def watch(self, handle: JobHandle, endpoint: Endpoint) -> None:
        """While a job is queued, ask now and then how the workers are, so that somebody can say why."""
        await asyncio.sleep(HEALTH_AFTER)
        was_cold = False
        while handle.status is JobStatus.IN_QUEUE:
            with contextlib.suppress(EndpointError):
                queued = await self._look(endpoint)
                handle.saw(queued)
                if not was_cold and not any(map(queued.health.workers.get, UP)):
                    was_cold = True  # it waits for a worker to start
                    self._keeper.write(handle, self._journal.was_cold, handle.number)
            await asyncio.sleep(HEALTH_EVERY)

    async def _look(self, endpoint: Endpoint) -> Queued:
        """What is known of a queue: asked once for all jobs that wait in it."""
        asked, look = self._looks.get(endpoint, (float("-inf"), None))
        if look is None or time.monotonic() - asked >= HEALTH_EVERY / 2:
            look = asyncio.get_running_loop().create_task(self._ask(endpoint))
            look.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
            self._looks[endpoint] = time.monotonic(), look
        return await asyncio.shield(look)

    async def _ask(self, endpoint: Endpoint) -> Queued:
        health = await endpoint.health()
        cold_starts: tuple[float, ...] = ()
        with contextlib.suppress(JournalError):
            cold_starts = self._journal.cold_starts(endpoint.provider.base_url, endpoint.id)
        return Queued(health, cold_starts)
