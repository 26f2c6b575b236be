"""The jobs of one endpoint: their states, their clocks, and how workers get at them.

Everything here runs on the server's event loop. Workers, whatever they are (this process's own
in `workers`, those of other processes in `attached`), use five calls: `work_waiting` and `take` to
get an `Attempt`, then `push`, `progress` and `finish` with it, or `requeue` where its worker is lost;
`Attempt.stop` tells them to give up. Waiting and taking are two steps, so that a worker at the far
end of a connection can be checked in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import InputError
from notebook_ext.protocol import job_to_json
from notebook_ext.server.job import ABSENT, Attempt, Handler, JobRecord, Outcome
from notebook_ext.types import Counts, Health, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from notebook_ext.protocol import JobRequest

__all__ = ["Dials", "Queue"]

EXECUTION_TIMEOUT = 600.0
"""Seconds on a worker where a job does not say; documented."""
TTL = 24 * 3600.0
"""Seconds from submission to deletion where a job does not say; documented."""
RETENTION = 30 * 60.0
RETENTION_SYNC = 60.0
"""Seconds that a result is kept after `run` and after `runsync`; documented."""
PURGED_AT_ONCE = 500
"""Jobs that a purge ends before others have their turn: 7 ms (measured)."""


@dataclass(frozen=True, slots=True)
class Dials:
    """Trouble to rehearse. Each acts through the real queue, never as a canned answer.

    Args:
        cold_start: Seconds that a worker of this process initializes before its first job.
        fail: Probability (0 to 1) that a run of the handler raises.
        throttle: Probability (0 to 1) that a worker is throttled for a second when it wants a job.
        latency: Seconds added to every HTTP answer to a caller.
        expire: Seconds that a finished job is kept; None means 30 minutes (`runsync`: 1 minute).
        rate_limit: Requests of callers per 10 seconds, beyond which the answer is 429; None means no limit.
    """

    cold_start: float = 0.0
    fail: float = 0.0
    throttle: float = 0.0
    latency: float = 0.0
    expire: float | None = None
    rate_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("fail", "throttle"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"the dial {name!r} is a probability, from 0 to 1")
        for name in ("cold_start", "latency", "expire", "rate_limit"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"the dial {name!r} cannot be negative or infinite")


class Queue:
    """The jobs and the worker states of one endpoint.

    Args:
        name: The endpoint's name in the URL.
        handler: What jobs that are taken from now on run in this process; None leaves them to others.
        dials: Trouble to rehearse.
        return_aggregate_stream: Whether the `output` of a generator's job is the list of its
            chunks; otherwise it is empty, and only the stream has them.
        notify: Called with the URL and the payload when a job with a webhook ends.
    """

    def __init__(
        self,
        name: str,
        handler: Handler | None,
        *,
        dials: Dials | None = None,
        return_aggregate_stream: bool = True,
        notify: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.name = name
        self.handler = handler
        self.return_aggregate_stream = return_aggregate_stream
        self.records: dict[str, JobRecord] = {}
        self.workers: dict[str, str] = {}
        """Each worker's state by its id: idle, initializing, running, throttled or unhealthy."""
        self.closed = False
        self._dials = dials or Dials()
        self._dials_changed = asyncio.Event()
        self._notify = notify
        self._pending: OrderedDict[str, JobRecord] = OrderedDict()
        self._running: set[str] = set()  # counted for each `/health`, while there may be 100,000 jobs
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._totals: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}: {len(self.records)} jobs, {len(self._pending)} waiting>"

    @property
    def dials(self) -> Dials:
        return self._dials

    @dials.setter
    def dials(self, dials: Dials) -> None:
        self._dials = dials
        changed, self._dials_changed = self._dials_changed, asyncio.Event()
        changed.set()

    # ------------------------------------------------------------------ for callers

    def submit(self, request: JobRequest, *, sync: bool = False) -> JobRecord:
        """Queue a job.

        The policy's clocks are taken as they come: the documented minima (5 s and 10 s) are for
        the platform's benefit, and would make every rehearsal of a timeout take that long.
        """
        job_id = f"{'sync-' if sync else ''}{uuid.uuid4()}-u1"
        record = JobRecord(job_id, request, sync)
        self.records[job_id] = record
        ttl = request.policy.ttl
        record.set_timer("ttl", TTL if ttl is None else ttl, self._delete)
        self._enqueue(record)
        return record

    def cancel(self, record: JobRecord) -> None:
        """Cancel a job; one that has ended stays as it is."""
        self._end(record, JobStatus.CANCELLED)

    def retry(self, record: JobRecord) -> None:
        """Queue a FAILED or TIMED_OUT job again, with the same id and input.

        Raises:
            InputError: It is in another state.
        """
        if record.status not in (JobStatus.FAILED, JobStatus.TIMED_OUT):
            raise InputError(f"only FAILED and TIMED_OUT jobs can be retried; this one is {record.status}")
        record.cancel_timer("retention")
        record.forget_output()
        record.was_lost = False
        record.retries += 1
        self._totals["retried"] += 1
        self._enqueue(record)

    async def purge(self) -> int:
        """Cancel what is queued now, letting others have their turn meanwhile; running jobs go on."""
        removed = 0
        for record in list(self._pending.values()):
            if record.id in self._pending:  # nobody took it in one of the pauses
                self._end(record, JobStatus.CANCELLED)
                removed += 1
                if removed % PURGED_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return removed

    def expire_after(self, record: JobRecord, seconds: float) -> None:
        """Drop a finished job's result that long from now."""
        if record.status.is_final:
            record.set_timer("retention", seconds, self._delete)

    def health(self) -> Health:
        states = Counter(self.workers.values())
        names = ("idle", "initializing", "running", "throttled", "unhealthy")
        return Health(
            jobs=Counts(
                completed=self._totals["completed"],
                failed=self._totals["failed"],
                in_progress=len(self._running),
                in_queue=len(self._pending),
                retried=self._totals["retried"],
            ),
            # "ready" is documented as a name only; here: could take a job now.
            workers=Counts({**{name: states[name] for name in names}, "ready": states["idle"]}),
        )

    def document(self, record: JobRecord) -> dict[str, Any]:
        """The job document, as `/status` answers it."""
        return job_to_json(record.snapshot(self.name, asyncio.get_running_loop().time()))

    def close(self) -> None:
        """Delete every job, running ones included, and send all waiting polls home."""
        self.closed = True
        for record in list(self.records.values()):
            self._delete(record)

    # ------------------------------------------------------------------ for workers

    async def work_waiting(self, *, cold: bool = False) -> None:
        """Wait until there is a job to take.

        Args:
            cold: The worker still has to start, so those that have are called first.
        """
        while not self._pending:
            waiter = asyncio.get_running_loop().create_future()
            (self._waiters.append if cold else self._waiters.appendleft)(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self.wake_worker()
                raise
            finally:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    def take(
        self, worker_id: str, *, keep_chunks: bool | None = None, unless: Container[str] = ()
    ) -> Attempt | None:
        """Hand the oldest queued job to a worker; None where another one was quicker.

        Args:
            worker_id: The worker.
            keep_chunks: Whether what it streams is to be the job's output; None means as the
                endpoint has it. A worker of another process collects them itself.
            unless: Ids of jobs that this worker must not get, since it still runs them.
        """
        job_id = next((job_id for job_id in self._pending if job_id not in unless), None)
        if job_id is None:
            return None
        record = self._pending.pop(job_id)
        self._running.add(job_id)
        record.status = JobStatus.IN_PROGRESS
        record.worker_id = worker_id
        record.taken_at = asyncio.get_running_loop().time()
        keeps_chunks = self.return_aggregate_stream if keep_chunks is None else keep_chunks
        record.attempt = Attempt(record, worker_id, self.handler, keeps_chunks)
        limit = record.request.policy.execution_timeout
        record.set_timer("execution", EXECUTION_TIMEOUT if limit is None else limit, self._time_out)
        record.ring()
        return record.attempt

    def push(self, attempt: Attempt, chunk: Any, size: int) -> bool:
        """Add a streamed chunk (JSON, of `size` bytes); False means: stop, nobody wants more.

        Raises:
            Unsendable: The job holds too many bytes already.
        """
        record = attempt.record
        if record.attempt is not attempt:
            return False
        record.add_chunk(chunk, size, keep=attempt.keeps_chunks)
        record.ring()
        return True

    def progress(self, attempt: Attempt, value: Any) -> None:
        """Show a progress update as the running job's output; one that comes late is ignored."""
        if attempt.record.attempt is attempt:
            attempt.record.output = value
            attempt.record.ring()

    def finish(self, attempt: Attempt, outcome: Outcome) -> None:
        """Take an attempt's outcome; one that comes late is ignored."""
        record = attempt.record
        if record.attempt is not attempt:
            return
        record.attempt = None
        output = outcome.output
        if outcome.streamed:
            output = record.take_chunks() if attempt.keeps_chunks else []
        status = JobStatus.COMPLETED if outcome.error is None else JobStatus.FAILED
        self._end(record, status, output=output, error=outcome.error)

    def requeue(self, attempt: Attempt) -> None:
        """Queue a job again whose worker is lost; what it has streamed so far will come once more."""
        record = attempt.record
        if record.attempt is not attempt:
            return
        self._running.discard(record.id)
        record.cancel_timer("execution")
        record.forget_output()
        record.was_lost = True
        record.retries += 1
        self._totals["retried"] += 1
        self._enqueue(record)

    def wake_worker(self) -> None:
        """Let one waiting worker look at the queue."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def pause(self, seconds: float) -> None:
        """Wait, as a worker that is held up does; new dials cut it short."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._dials_changed.wait(), seconds)

    def happens(self, probability: float) -> bool:
        return random.random() < probability  # noqa: S311 - a rehearsal, not a secret

    # ------------------------------------------------------------------ states

    def _enqueue(self, record: JobRecord) -> None:
        record.status = JobStatus.IN_QUEUE
        record.queued_at = asyncio.get_running_loop().time()
        self._pending[record.id] = record
        record.ring()
        self.wake_worker()

    def _time_out(self, record: JobRecord) -> None:
        limit = record.request.policy.execution_timeout or EXECUTION_TIMEOUT
        self._end(
            record, JobStatus.TIMED_OUT, error=f"the job ran longer than its executionTimeout of {limit:g} s"
        )

    def _end(self, record: JobRecord, status: JobStatus, *, output: Any = ABSENT, error: Any = None) -> None:
        if record.status.is_final or record.deleted:
            return
        self._pending.pop(record.id, None)
        self._running.discard(record.id)
        self._stop_attempt(record)
        record.cancel_timer("execution")
        record.status, record.output, record.error = status, output, error
        record.ended_at = asyncio.get_running_loop().time()
        self._totals[{"COMPLETED": "completed", "CANCELLED": "cancelled"}.get(status, "failed")] += 1
        retention = RETENTION_SYNC if record.sync else RETENTION
        record.set_timer(
            "retention", retention if self.dials.expire is None else self.dials.expire, self._delete
        )
        if record.request.webhook and self._notify:
            payload = {"input": record.request.input, "webhook": record.request.webhook}
            self._notify(record.request.webhook, {**self.document(record), **payload})
        record.ring()

    def _delete(self, record: JobRecord) -> None:
        self.records.pop(record.id, None)
        self._pending.pop(record.id, None)
        self._running.discard(record.id)
        self._stop_attempt(record)
        record.cancel_timers()
        record.deleted = True
        record.ring()

    def _stop_attempt(self, record: JobRecord) -> None:
        if record.attempt is not None:
            record.attempt.stop.set()
            record.attempt = None
