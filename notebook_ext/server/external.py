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
        self.is_served = False
        """Whether `serve` was called; until then it is there for processes that are being tried."""
        self._prepared: set[Starter] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._name = queue.name
        self._folder = runtime_folder()
        self.attachment = Attachment.write(self._folder, queue.name, self.token, base_url, outside_url)

    def serve(self, rules: LossRules, start: Sequence[str] | Starter | None, count: int) -> None:
        """Take workers by these rules, and keep processes running; None keeps none.

        Those that run already are ended: the program may have changed since.

        Args:
            rules: When a worker is lost.
            start: The command of the processes, or what `prepare` gave.
            count: How many of them.
        """
        self.workers.rules, self.is_served = rules, True
        running, self.starter = self.starter, None
        if running is not None:
            self._end(running)
        if isinstance(start, Starter):
            self._prepared.discard(start)
            self.starter = start
        elif start is not None:
            self.starter = self._start(start, count)

    def prepare(self, command: Sequence[str], count: int) -> Starter:
        """Start processes beside those that run already, for `serve` or `discard`."""
        starter = self._start(command, count)
        self._prepared.add(starter)
        return starter

    def discard(self, starter: Starter) -> None:
        """End processes that have proved to be no good; what is served already stays."""
        if starter in self._prepared:
            self._prepared.discard(starter)
            self._end(starter)

    def forbid(self) -> None:
        """Send the workers home, and tell no more how to come."""
        self.workers.close()
        self.attachment.remove()

    async def close(self) -> None:
        """End the workers that were started here."""
        for starter in self._started():
            self._end(starter)
        await asyncio.gather(*self._endings)

    def _start(self, command: Sequence[str], count: int) -> Starter:
        return Starter(
            self._name,
            command,
            count,
            variables=self.attachment.variables,
            folder=self._folder,
            workers=self.workers,
        )

    def _end(self, starter: Starter) -> None:
        ending = asyncio.get_running_loop().create_task(starter.close())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _started(self) -> list[Starter]:
        return [*self._prepared, *([self.starter] if self.starter is not None else [])]

    def _refresh(self, worker_id: str) -> None:
        for starter in self._started():
            starter.refresh(worker_id)
