"""All that one endpoint has for workers in other processes: their token, their environment, their life."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from notebook_ext.server.attached import AttachedWorkers
from notebook_ext.server.attachment import Attachment, runtime_folder
from notebook_ext.server.starter import Starter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.server.attached_worker import LossRules
    from notebook_ext.server.queue import Queue

__all__ = ["External"]


class External:
    """Lets workers of other processes attach to one endpoint.

    Args:
        queue: The endpoint's jobs.
        base_url: Where the server is reached on this machine.
        outside_url: Where others reach it; None where they do not.

    Raises:
        ConfigurationError: The environment for workers cannot be written.
    """

    def __init__(self, queue: Queue, base_url: str, outside_url: str | None) -> None:
        self.token = secrets.token_urlsafe()
        self.workers = AttachedWorkers(queue, on_refresh=self._refresh)
        self.starter: Starter | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._name = queue.name
        self._folder = runtime_folder()
        self.attachment = Attachment.write(self._folder, queue.name, self.token, base_url, outside_url)

    def serve(self, rules: LossRules, command: Sequence[str] | None, count: int) -> None:
        """Take workers by these rules, and keep processes of a command running; None keeps none.

        Those that run already are ended: the program may have changed since.
        """
        self.workers.rules = rules
        running, self.starter = self.starter, None
        if running is not None:
            ending = asyncio.get_running_loop().create_task(running.close())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        if command is not None:
            self.starter = Starter(
                self._name,
                command,
                count,
                variables=self.attachment.variables,
                folder=self._folder,
                workers=self.workers,
            )

    def forbid(self) -> None:
        """Send the workers home, and tell no more how to come."""
        self.workers.close()
        self.attachment.remove()

    async def close(self) -> None:
        """End the workers that were started here."""
        if self.starter is not None:
            await self.starter.close()
        await asyncio.gather(*self._endings)

    def _refresh(self, worker_id: str) -> None:
        if self.starter is not None:
            self.starter.refresh(worker_id)
