"""Worker processes that the server starts itself, again when they die, and ends with their endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from notebook_ext.errors import ConfigurationError
from notebook_ext.server import keeper
from notebook_ext.server.attachment import foreign_key, open_private
from notebook_ext.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from notebook_ext.server.attached import AttachedWorkers

__all__ = ["Starter", "read_command"]

_log = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL."""
FIRST_PAUSE = 0.5
MOST_PAUSE = 30.0
"""Seconds before a process that has died is started again; they double from the first to the most,
as long as none ends a job."""
STEADY = 30.0
"""Seconds that a process must live to count as well again."""
TAIL_LINES = 8
TAIL_BYTES = 4096
OURS = "NOTEBOOK_EXT_"
"""How variables begin that are the server's own, its token among them; workers do not get them."""


def read_command(command: str | Sequence[str]) -> tuple[str, ...]:
    """A command as its words, where `python` is the Python that runs this.

    Raises:
        ConfigurationError: There is no command, a quote is not closed, or workers that are started on
            this machine would come with another key than the endpoint's.
    """
    foreign = foreign_key()
    if foreign is not None:
        raise ConfigurationError(
            f"{foreign} has a key, which the runpod package sends in place of the endpoint's own; "
            "move that file away, or start this with another HOME"
        )
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigurationError(f"the worker's command cannot be read: {str(error).lower()}") from None
    if not words:
        raise ConfigurationError("the worker's command is empty; such as `python handler.py` is expected")
    if words[0] == "python":
        words[0] = sys.executable
    return tuple(words)


class Starter:
    """Keeps a number of worker processes running for one endpoint.

    Args:
        name: The endpoint's name.
        command: What is started, as its words.
        count: How many of them.
        variables: What their environment has beside the server's own.
        folder: Where their logs are written.
        workers: Where they are shown, and told as lost when they die.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        count: int,
        *,
        variables: Mapping[str, str],
        folder: Path,
        workers: AttachedWorkers,
    ) -> None:
        self.command = tuple(command)
        self.count = count
        self.trouble: str | None = None
        """What became of the process that died last, with the end of its log."""
        self._name = name
        self._variables = variables
        self._folder = folder
        self._workers = workers
        self._directory = os.path.realpath(".")
        self._is_awaited = False
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._refreshed: set[str] = set()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(slot), context=Context()) for slot in range(1, count + 1)]

    def log(self, slot: int = 1) -> Path:
        """The file with what the processes in this place have printed."""
        port = urlsplit(self._variables["RUNPOD_WEBHOOK_PING"]).port
        return self._folder / f"{self._name}-{port}-{slot}.log"

    async def settled(self, timeout: float) -> None:
        """Wait until a worker has asked for a job, but no longer than `timeout` seconds.

        Raises:
            ConfigurationError: One has died before any did; with the end of its log.
        """
        self._is_awaited = True
        try:
            async with asyncio.timeout(timeout):
                while not any(map(self._workers.has_asked, self._processes)):
                    if self.trouble is not None:
                        raise ConfigurationError(self.trouble)
                    self._workers.asked.clear()
                    await self._workers.asked.wait()
        except TimeoutError:
            pass
        finally:
            self._is_awaited = False

    def refresh(self, worker_id: str) -> None:
        """Replace a worker by a fresh process."""
        process = self._processes.get(worker_id)
        if process is not None:
            self._refreshed.add(worker_id)
            self._workers.dismiss(worker_id)
            _ask_to_end(process)

    async def close(self) -> None:
        """End all of them: asked first, killed after a second. What they still ran is run elsewhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker_id in self._processes:
            self._workers.dismiss(worker_id)
        await asyncio.gather(*map(_end, self._processes.values()))
        for worker_id in self._processes:
            self._workers.lose(worker_id)
        self._processes.clear()

    # ------------------------------------------------------------------ one place

    async def _keep(self, slot: int) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            open_private(self.log(slot)).close()
        while True:
            worker_id, started = self._workers.expect(), loop.time()
            status = await self._run(worker_id, slot)
            lived = loop.time() - started
            has_asked = self._workers.has_asked(worker_id) or worker_id in self._refreshed
            has_worked = self._workers.has_worked(worker_id)
            self._workers.lose(worker_id)
            if has_asked and (status == "0" or worker_id in self._refreshed or lived > STEADY):
                failures = 0
                self._refreshed.discard(worker_id)
                continue
            self.trouble = self._told(slot, status, lived, has_asked=has_asked)
            if not (failures or self._is_awaited):  # then it is raised
                _log.warning("%s", self.trouble)
            failures = 1 if has_worked else failures + 1  # what has ended a job does not crash in a loop
            self._workers.asked.set()  # who waits for that is to know
            self._workers.mark(worker_id, self.trouble)
            try:
                await asyncio.sleep(min(FIRST_PAUSE * 2 ** (failures - 1), MOST_PAUSE))
            finally:
                self._workers.lose(worker_id)

    async def _run(self, worker_id: str, slot: int) -> str:
        """Run one process to its end; returns its exit status, or why there was none."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        chosen = {name: os.environ[name] for name in ("RUNPOD_LOG_LEVEL",) if name in os.environ}
        own = {"RUNPOD_POD_ID": worker_id, "PYTHONUNBUFFERED": "1"}
        try:
            with self.log(slot).open("ab") as log:
                starting = asyncio.ensure_future(
                    asyncio.create_subprocess_exec(
                        *(sys.executable, "-I", "-S", keeper.__file__, str(GRACE), *self.command),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=log,
                        env={**inherited, **self._variables, **chosen, **own},
                        cwd=self._directory,
                        start_new_session=True,
                    )
                )
                try:
                    process = await asyncio.shield(starting)
                except asyncio.CancelledError:  # it must be known, to be ended
                    try:
                        self._processes[worker_id] = await starting
                    except OSError:
                        self._workers.lose(worker_id)
                    raise
        except OSError as error:
            return str(error)
        self._processes[worker_id] = process
        assert process.stdout is not None
        status = (await process.stdout.read()).decode("ascii", "replace").strip()
        await _bury(process)
        del self._processes[worker_id]
        return status or "unknown"

    def _told(self, slot: int, status: str, lived: float, *, has_asked: bool) -> str:
        early = "" if has_asked else " before it asked for a job"
        hint = "" if has_asked or status != "0" else " (it is to end in runpod.serverless.start)"
        path = self.log(slot)
        told = (
            f"a worker process of {self._name} ended after {lived:.1f} s{early}, "
            f"{_ended(status)}{hint}; its log is {path}"
        )
        tail = self._tail(path)
        if tail.endswith("No module named 'runpod'"):
            tail += "\nThe Python that runs it needs that package: pip install runpod"
        return f"{told}, and ends with:\n{tail}" if tail else told

    def _tail(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        token = self._variables["RUNPOD_AI_API_KEY"]
        lines = deque(text.replace(token, "***").strip().splitlines(), TAIL_LINES)
        return visible("\n".join(lines))


def _ended(status: str) -> str:
    if status.startswith("-"):
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-int(status)).name}"
    return f"with exit status {status}"


def _ask_to_end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    _ask_to_end(process)
    try:
        async with asyncio.timeout(GRACE + 0.5):
            await process.wait()
    except TimeoutError:
        _kill(process)
    await _bury(process)


async def _bury(process: asyncio.subprocess.Process) -> None:
    """Wait for a process that ends; where it was killed, what it kept is still there."""
    await process.wait()
    _kill(process)
    _ask_to_end(process)
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            await process.stdin.wait_closed()


def _kill(process: asyncio.subprocess.Process) -> None:
    """End what is left of a process and its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
