"""One job: what is known of it, what a try at it gives, and what may be in it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from notebook_ext.server.nesting import DEPTH_LIMIT, is_too_deep
from notebook_ext.types import Job, JobStatus, WorkerError

if TYPE_CHECKING:
    from notebook_ext.protocol import JobRequest

__all__ = [
    "ABSENT",
    "CHUNK_LIMIT",
    "RESULT_LIMIT",
    "Attempt",
    "Handler",
    "JobLog",
    "JobRecord",
    "Outcome",
    "Unsendable",
    "as_json",
]

Handler = Callable[[dict[str, Any]], Any]
"""`handler(job)` with `job = {"id": ..., "input": ...}`: plain or async, returning or yielding."""

ABSENT: Final = object()
"""No `output` at all, which the wire tells apart from `null`."""

CHUNK_LIMIT = 1024 * 1024
"""Bytes of one streamed chunk as JSON; the platform's documented 1 MB."""
RESULT_LIMIT = 20 * 1024 * 1024
"""Bytes of a whole result as JSON; the platform's documented 20 MB."""
LOG_LIMIT = 64 * 1024


class Unsendable(ValueError):
    """A value that a handler gave cannot go over the wire; the message says why."""


def as_json(value: Any, what: str, limit: int) -> tuple[Any, int]:
    """Take a copy of `value` as JSON has it, so that its handler may go on changing it.

    Returns:
        The copy, and its size in bytes.

    Raises:
        Unsendable: It is not JSON (NaN included), is nested too deeply, or has more than `limit` bytes.
    """
    try:
        text = json.dumps(value, allow_nan=False)
        copied = json.loads(text) if len(text) <= limit else None
    except (TypeError, ValueError, RecursionError) as error:
        raise Unsendable(f"{what} is not JSON: {error}") from None
    if len(text) > limit:
        raise Unsendable(f"{what} has {len(text) / 1e6:.1f} MB as JSON; the limit is {limit // 1024**2} MB")
    if is_too_deep(copied, text.count("[") + text.count("{")):
        raise Unsendable(f"{what} is nested deeper than {DEPTH_LIMIT} levels")
    return copied, len(text)


class JobLog:
    """What a job's handler printed: the last 64 KB; written from any thread."""

    def __init__(self, limit: int = LOG_LIMIT) -> None:
        self._limit = limit
        self._pieces: deque[str] | None = None  # most jobs print nothing, and there may be 100,000
        self._size = 0
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        text = text[-self._limit :]
        with self._lock:
            pieces = self._pieces = deque() if self._pieces is None else self._pieces
            pieces.append(text)
            self._size += len(text)
            while self._size > self._limit:
                oldest = pieces.popleft()
                kept = oldest[self._size - self._limit :]
                self._size -= len(oldest) - len(kept)
                if kept:
                    pieces.appendleft(kept)

    @property
    def text(self) -> str:
        with self._lock:
            return "".join(self._pieces or ())


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended.

    Args:
        output: What the handler returned, or ABSENT.
        error: What it raised or returned as an error, as the wire has it; None means it went well.
        streamed: The handler was a generator: its output is what it has pushed.
        refresh_worker: The handler asks for a fresh worker.
    """

    output: Any = ABSENT
    error: Any = None
    streamed: bool = False
    refresh_worker: bool = False


@dataclass(eq=False, slots=True)
class JobRecord:
    """One job, from its submission until it is deleted."""

    id: str
    request: JobRequest
    sync: bool
    status: JobStatus = JobStatus.IN_QUEUE
    output: Any = ABSENT
    error: Any = None
    worker_id: str | None = None
    retries: int = 0
    was_lost: bool = False
    """A worker was lost with it already."""
    deleted: bool = False
    queued_at: float = 0.0
    taken_at: float | None = None
    ended_at: float | None = None
    attempt: Attempt | None = None
    log: JobLog = field(default_factory=JobLog)
    bells: set[asyncio.Event] = field(default_factory=set)
    """Set at every change; long polls wait on them."""
    _chunks: list[Any] = field(default_factory=list)
    _unread: list[Any] = field(default_factory=list)
    _held_bytes: int = 0
    _timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def has_unread(self) -> bool:
        return bool(self._unread)

    def drain(self) -> list[Any]:
        """The chunks that nobody has read yet; each is given once."""
        unread, self._unread = self._unread, []
        if not self._chunks:
            self._held_bytes = 0
        return unread

    def snapshot(self, endpoint: str, now: float) -> Job:
        taken, ended = self.taken_at, self.ended_at
        tells_execution = ended is not None or self.output is not ABSENT
        return Job(
            id=self.id,
            endpoint=endpoint,
            status=self.status,
            output=None if self.output is ABSENT else self.output,
            has_output=self.output is not ABSENT,
            error=None if self.error is None else WorkerError("", raw=self.error),
            delay_time=None if taken is None else taken - self.queued_at,
            execution_time=(ended or now) - taken if taken is not None and tells_execution else None,
            worker_id=self.worker_id,
            retries=self.retries or None,
        )

    def ring(self) -> None:
        for bell in self.bells:
            bell.set()

    def set_timer(self, name: str, seconds: float, callback: Callable[[JobRecord], None]) -> None:
        self.cancel_timer(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, callback, self)

    def cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def cancel_timers(self) -> None:
        for name in list(self._timers):
            self.cancel_timer(name)

    def add_chunk(self, chunk: Any, size: int, *, keep: bool) -> None:
        self._held_bytes += size
        if self._held_bytes > RESULT_LIMIT:
            kept = "streamed" if keep else "unread"
            raise Unsendable(
                f"the job has more than {RESULT_LIMIT // 1024**2} MB of {kept} chunks, the limit"
            )
        self._unread.append(chunk)
        if keep:
            self._chunks.append(chunk)

    def take_chunks(self) -> list[Any]:
        """All chunks of a job that keeps them, to be its output."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def forget_output(self) -> None:
        """Make it ready to run once more."""
        self.output, self.error, self.worker_id = ABSENT, None, None
        self.taken_at = self.ended_at = self.attempt = None
        self._chunks, self._unread, self._held_bytes = [], [], 0


@dataclass(eq=False, slots=True)
class Attempt:
    """One try at a job by one worker. Once it is over, whatever else that worker says is ignored."""

    record: JobRecord
    worker_id: str
    handler: Handler | None
    keeps_chunks: bool
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the job was cancelled, timed out or deleted: its worker should give up."""
