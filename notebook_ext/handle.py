"""JobHandle: one live job, from the moment it is submitted; the object behind `-o`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from notebook_ext.errors import (
    ConfigurationError,
    EndpointError,
    InputError,
    JournalError,
    WaitTimeout,
    job_error,
)
from notebook_ext.events import Ended, Stopped, Subscribers
from notebook_ext.protocol import Operation
from notebook_ext.run import OVER, Chunks, Run, news, tell
from notebook_ext.streamed import Streamed
from notebook_ext.types import Job, JobStatus, StreamChunk

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Generator, Iterator

    from notebook_ext.entry import Entry
    from notebook_ext.errors import JobError
    from notebook_ext.events import Event
    from notebook_ext.journal import Journal
    from notebook_ext.patience import Outage

__all__ = ["JobHandle"]

T = TypeVar("T")

_RETRIABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})


class _Owner(Protocol):
    """What a handle needs of its session."""

    @property
    def closed(self) -> bool: ...

    @property
    def journal(self) -> Journal: ...

    def wait_for(self, future: concurrent.futures.Future[Any], timeout: float | None) -> bool: ...

    def stop(self, handle: JobHandle) -> concurrent.futures.Future[Stopped]: ...

    def retry(self, handle: JobHandle) -> None: ...

    def on_loop(self, function: Callable[..., T], *arguments: Any) -> T: ...


class JobHandle:
    """A job that is being followed; sync, safe to use from any thread, and awaitable.

    Args:
        owner: The session that follows it.
        entry: The job as the journal has it.
        has_retry: Whether its provider has a route for that.

    Attributes:
        number: The journal's number, shown as `@17`.
        endpoint: The name of its endpoint.
        profile: How its input was laid out and its output is read.
        input: What the worker receives.
        job: The newest snapshot.
        submitted_at: Seconds since the epoch.
        served: Whether this session serves its endpoint, so that both end together.
        detached: Whether it goes on when the kernel or the interpreter ends.
        was_stopped: Whether its cancel was sent from here, so that its end is no surprise.
        body_hash: The hash of what was asked of whom; equal for equal requests.
        notes: What a reader of the result should know, such as text that may be missing.
    """

    def __init__(self, owner: _Owner, entry: Entry, *, has_retry: bool = True) -> None:
        self._owner = owner
        self._has_retry = has_retry
        self._policy = entry.policy
        self.body_hash = entry.body_hash
        self.number = entry.number
        self.endpoint = entry.endpoint
        self.profile = entry.profile
        self.input = entry.input
        self.operation = entry.operation
        self.rate = entry.rate
        self.served = entry.served
        self.submitted_at = entry.submitted_at
        self.job = entry.job
        self.detached = entry.detached
        self.was_stopped = False
        self.notes: list[str] = []
        self._run = Run(Streamed(self._in_journal), is_queued=self.job.status is JobStatus.IN_QUEUE)
        self.paused_for = 0.0
        """Seconds in which the server had too many requests, and what was asked about it waited."""
        self._paused_until = 0.0
        self.outage: Outage | None = None
        """Since when its server gives no good answer; None where it does."""
        self._stops = 0  # asked for, and not yet answered
        self._subscribers = Subscribers(f"@{self.number}")

    def __repr__(self) -> str:
        name = self.id or ("by the OpenAI route" if self.is_call else "no id yet")
        return f"<JobHandle @{self.number} {self.endpoint} {self.status} {name}>"

    # ------------------------------------------------------------------ what is known

    @property
    def id(self) -> str:
        """The server's id; empty until the answer to the submission is there."""
        return self.job.id

    @property
    def status(self) -> JobStatus:
        """Where it stands, as far as it was seen."""
        return self.job.status

    @property
    def done(self) -> bool:
        """Whether nothing more will come: it is over, or could no longer be followed."""
        return self._run.ended is not None

    @property
    def never_submitted(self) -> bool:
        """Whether it ended before the server had it."""
        return self.done and not self.id and self.status is JobStatus.IN_QUEUE

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to follow or to stop.

        A job that could no longer be followed is `done` and yet not over: it may still run.
        """
        is_unknown = self.done and not self.id and self.status is JobStatus.AMBIGUOUS
        return self.status.is_final or self.never_submitted or is_unknown

    @property
    def is_call(self) -> bool:
        """Whether it is one open connection, by the OpenAI route: it has no id, and ends with that."""
        return self.operation == Operation.OPENAI

    @property
    def is_settled(self) -> bool:
        """Whether its state will not change: the server will not, or there is nobody to ask."""
        return self.status.is_final or (self.is_call and self.status is JobStatus.AMBIGUOUS)

    @property
    def error(self) -> EndpointError | None:
        """Why it did not end well; None while it runs, and for a COMPLETED job."""
        return self._run.ended.error if self._run.ended else None

    def failure(self) -> JobError | None:
        """What its last snapshot says of a job that did not end well; None for any other."""
        age = self.job.seen_at - self.submitted_at if self.job.seen_at else None
        return job_error(self.job, f"@{self.number} on {self.endpoint}", policy=self._policy, age=age)

    @property
    def cost(self) -> float | None:
        """Dollars for its running time, at least; None where no rate or no time is known."""
        seconds = self.job.execution_time
        return None if self.rate is None or seconds is None else self.rate * seconds

    @property
    def can_retry(self) -> bool:
        """Whether it can be queued again: it has failed, and its provider has a route for that."""
        return self._has_retry and self.done and self.status in _RETRIABLE

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for, by whatever way, and its outcome is not known yet."""
        return self._stops > 0 and not self.status.is_final

    @property
    def pause_left(self) -> float:
        """Seconds that the server wants no requests for now; 0 where it takes them."""
        return 0.0 if self.done else max(0.0, self._paused_until - time.monotonic())

    @property
    def queue_time(self) -> float | None:
        """Seconds in the queue: the server's where it tells them, else as seen from here.

        None where its beginning was not seen.
        """
        if self.job.delay_time is not None:
            return self.job.delay_time
        waits = not self.done and self.status is JobStatus.IN_QUEUE
        return self.elapsed if waits else self._run.began

    @property
    def run_time(self) -> float | None:
        """Seconds on a worker: as seen from here while it runs, then the server's; None where not known."""
        if self.done or self.status is not JobStatus.IN_PROGRESS:
            return self.job.execution_time
        queue = self.queue_time
        return None if queue is None else max(0.0, self.elapsed - queue)

    @property
    def first_token(self) -> float | None:
        """Seconds from the end of its time in the queue to its first chunk; None where that is not known.

        Where the server tells the time in the queue only at the end, a first chunk that came together
        with the news that the job runs has none until then.
        """
        if self.is_call:  # whose time in the queue nobody tells: since it was submitted
            return None if self._run.is_recalled else self._run.first_chunk
        return self._run.first_token(self.job.delay_time)

    @property
    def streaming_time(self) -> float | None:
        """Seconds from its first chunk to the newest; None where that was not seen."""
        return self._run.streaming_time

    @property
    def chunk_rate(self) -> float | None:
        """Chunks per second since the first one; None before the second."""
        return self._run.chunk_rate

    @property
    def elapsed(self) -> float:
        """Seconds since it was submitted, as seen from here."""
        return time.monotonic() - self._run.started

    def streamed(self, first: int = 0) -> list[StreamChunk]:
        """What has come so far, from the chunk of that index on.

        Raises:
            EndpointError: It is large, so that it is in the journal only, and cannot be read there.
        """
        return list(self._run.streamed.since(first))

    def each_streamed(self) -> Iterator[StreamChunk]:
        """The same one by one, so that a large job need not be in memory as a whole."""
        return self._run.streamed.since()

    @property
    def streamed_count(self) -> int:
        """How many chunks have come so far."""
        return len(self._run.streamed)

    @property
    def streamed_weight(self) -> int:
        """About how many characters they have."""
        return self._run.streamed.weight

    @property
    def value(self) -> Any:
        """Its result: what the handler returned, or what it yielded.

        Yielded strings are joined into one; whether the endpoint keeps an aggregate makes no
        difference. None where there is none (yet).
        """
        output = self.job.output if self.job.has_output and self.job.status.is_final else None
        if self.is_call and output is not None:
            return output  # the chunks are no more than its pieces
        if self._run.streamed:
            kept = output if isinstance(output, list) and output else None
            values = kept if kept is not None else [chunk.output for chunk in self.each_streamed()]
            return "".join(values) if all(isinstance(value, str) for value in values) else values
        return output

    # ------------------------------------------------------------------ wait

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until it has ended, and return its last snapshot, whatever its state.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            WaitTimeout: It has not ended; it goes on.
            EndpointError: It could not be submitted, or could no longer be followed.
        """
        if not self.done:
            self._check_session()
            if not self._owner.wait_for(self._run.done, timeout):
                raise WaitTimeout(
                    f"@{self.number} on {self.endpoint} was still {self.status} after {timeout:g} s; it goes "
                    "on. Wait longer, or cancel it.",
                    job_id=self.id or None,
                )
        if self.error is not None and not self.status.is_final:
            raise self.error
        return self.job

    def output(self, timeout: float | None = None) -> Any:
        """Wait for its result and return it.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            JobError: It ended in anything but COMPLETED.
            WaitTimeout: It has not ended; it goes on.
        """
        self.wait(timeout)
        if self.error is not None:
            raise self.error
        return self.value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.wrap_future(self._run.done).__await__()
        if self.error is not None:
            raise self.error
        return self.value

    def chunks(self) -> Chunks:
        """Its chunks from the first, as they come; serves `for` and `async for`.

        A loop that began before a retry ends with what the job was then.

        Raises:
            JobError: After the last chunk, where the job ended in anything but COMPLETED.
        """
        return Chunks(self._run, self._wait_for)

    # ------------------------------------------------------------------ change

    def cancel(self, timeout: float | None = 15.0) -> Stopped:
        """Stop the remote job, and return what was confirmed.

        Args:
            timeout: Seconds to wait for the confirmation.
        """
        self._check_session()
        stopping = self._owner.stop(self)
        if not self._owner.wait_for(stopping, timeout):
            return Stopped(self, confirmed=False)
        return stopping.result()

    def cancel_soon(self) -> concurrent.futures.Future[Stopped] | None:
        """Stop the remote job without waiting here: what a button does.

        Returns:
            What became of it, later; None where nothing is left to stop.
        """
        if self.is_over or self._owner.closed:
            return None
        return self._owner.stop(self)

    def retry(self) -> JobHandle:
        """Queue it again, under the same id, and follow it again.

        Raises:
            InputError: It has not ended, or ended well.
            EndpointError: The server did not take it; it is as it was.
        """
        self._check_session()
        self._owner.retry(self)
        return self

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call a function with every event, beginning with all that has been.

        Args:
            subscriber: It is called on the session's loop thread, which does all the I/O: it must
                be quick, and must not wait for anything of the session. If it raises while it is
                told what has been, that is raised here; later, it is logged and dropped.

        Returns:
            A function that ends the subscription.
        """
        self._on_loop(self._tell_all, subscriber)
        return lambda: self._on_loop(self._subscribers.drop, subscriber)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._owner.closed:
            function(*arguments)  # nothing comes there any more
        else:
            self._owner.on_loop(function, *arguments)

    def _tell_all(self, subscriber: Callable[[Event], None]) -> None:
        run = self._run
        subscriber(self.job)
        for chunk in run.streamed.since():
            subscriber(chunk)
        if run.ended is None:
            self._subscribers.add(subscriber)
        else:
            subscriber(run.ended)

    # ------------------------------------------------------------------ the session's side

    def saw(self, event: Event) -> None:
        """Take an event in and pass it on; called by the session, on its loop thread."""
        run = self._run
        if isinstance(event, Job):
            self.job = event
            run.saw_status(event.status, self.elapsed)
        elif isinstance(event, StreamChunk):
            run.saw_chunk(event, self.elapsed)
        elif isinstance(event, Ended):
            run.ended = event
        self._subscribers.tell(event)
        if isinstance(event, Ended):
            tell(run.done)
        if self.job.id or isinstance(event, Ended):
            tell(run.id_known)
        run.change()

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """What the session stops it in, on its loop thread; whoever watches hears of both ends."""
        self._stops += 1
        self.saw(self.job)
        try:
            yield
        finally:
            self._stops -= 1
            self.saw(self.job)

    def paused(self, seconds: float) -> None:
        """The server has too many requests: what is asked about it waits for so long."""
        now = time.monotonic()
        until = max(self._paused_until, now + seconds)
        self.paused_for += until - max(self._paused_until, now)
        self._paused_until = until

    def troubled(self, outage: Outage | None) -> None:
        """Its server gives no good answer, or does again; it is asked again until then."""
        self.outage = outage

    def note(self, text: str) -> None:
        """Keep what a reader of the result should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def lacking(self) -> list[StreamChunk]:
        """What has come, and the journal has not yet got."""
        return self.streamed(self._run.streamed.kept)

    @property
    def is_large(self) -> bool:
        """Whether it has streamed so much that only the journal has all of it."""
        return self._run.streamed.is_large

    def kept(self, count: int) -> None:
        """The journal has its first so many chunks."""
        self._run.streamed.keep(count)

    def _in_journal(self, first: int) -> Iterator[StreamChunk]:
        """Its chunks, from that index on, as the journal has them."""
        self._check_session()
        yield from self._owner.journal.each_chunk(self.number, first)

    def _recalled(self, first: int) -> Iterator[StreamChunk]:
        """The same of a job that was recalled: what cannot be read of it is told, and hides nothing else."""
        try:
            yield from self._in_journal(first)
        except JournalError as unreadable:
            self.note(f"its text could not be read: {unreadable}")

    def recall(self, ended: Ended, *, age: float) -> None:
        """Know again what the journal kept of it.

        Args:
            ended: How it ended, or was left.
            age: Seconds since it was submitted.
        """
        streamed = Streamed(self._recalled, is_recalled=True)
        started = time.monotonic() - max(0.0, age)
        self._run = Run(
            streamed,
            started=started,
            is_queued=False,
            is_recalled=True,
            ended=ended,
            done=OVER,
            changed=OVER,
            id_known=OVER,
        )

    def go_on(self) -> None:
        """Be followed again after the follower gave up; what was seen stays."""
        self._run.ended = None
        self._run.done, self._run.changed = news(), news()
        if not self.id:
            self._run.id_known = news()

    def begin_again(self) -> Callable[[], None]:
        """Forget what was streamed, and how it ended: it is being retried.

        Returns:
            A function that takes that back, because the retry was refused.

        Raises:
            InputError: It has not ended, or ended well.
        """
        if self.never_submitted:
            raise InputError(f"@{self.number} was never submitted; run it anew instead")
        if self.is_call:
            raise InputError(
                f"@{self.number} was asked by the OpenAI route, which has no retry; run it anew instead"
            )
        if not self.done or self.status not in _RETRIABLE:
            raise InputError(
                f"@{self.number} is {self.status}: only a FAILED or TIMED_OUT job can be retried; "
                "run it anew instead"
            )
        with contextlib.suppress(JournalError):  # what is gone already cannot be lost by this
            self._run.streamed.hold()
        earlier = self._run, self.job, self.notes, self.was_stopped
        queued = Job(id=self.id, endpoint=self.job.endpoint, status=JobStatus.IN_QUEUE, seen_at=time.time())
        self._run, self.job, self.notes, self.was_stopped = Run(Streamed(self._in_journal)), queued, [], False
        tell(self._run.id_known)

        def take_back() -> None:
            refused = self._run
            self._run, self.job, self.notes, self.was_stopped = earlier
            refused.ended = self._run.ended
            tell(refused.done)
            refused.change()

        return take_back

    async def id_known(self) -> None:
        """Return when the id is known, or surely will not be."""
        await asyncio.wrap_future(self._run.id_known)

    async def ended(self) -> None:
        """Return when nothing more will come."""
        await asyncio.wrap_future(self._run.done)

    def _wait_for(self, future: concurrent.futures.Future[Any]) -> None:
        """Let the session wait, so that clicks are heard meanwhile."""
        self._check_session()
        self._owner.wait_for(future, None)

    def _check_session(self) -> None:
        if not self._owner.closed:
            return
        if self.served:
            then = " starts another one; this job was served here, and ended with it"
        else:
            then = f", then `%endpoint attach {self.id}`" if self.id else " starts another one"
        raise ConfigurationError(f"the session of @{self.number} is closed; %load_ext notebook_ext{then}")
