"""The jobs panel: what a session's jobs tell of themselves; nothing is asked for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from notebook_ext import prompts, render
from notebook_ext.handle import Ended
from notebook_ext.pane import Pane, count_jobs, time_of_day
from notebook_ext.protocol import Operation
from notebook_ext.providers import PROVIDERS
from notebook_ext.types import JobStatus, StreamChunk
from notebook_ext.watching import Steady

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notebook_ext.handle import Event, JobHandle
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session
    from notebook_ext.widgets.jobs import JobLine

    Result = Callable[[JobHandle], Sequence[render.Bundle]]

__all__ = ["JobsPane", "job_row", "unfollowed"]

SHOWN_ROWS = 200
"""Jobs in the table that is saved, the newest."""
LIVE_RESULT = 20_000
"""Characters up to which the result of a running job is drawn again while it grows."""


class JobsPane(Pane):
    """Shows the session's jobs, as they themselves tell how they are."""

    def __init__(self, session: Session, front_end: FrontEnd, result: Result) -> None:
        from notebook_ext.widgets.jobs import PAGE, JobsPanel

        self._page = PAGE
        self._result = result
        self._first: int | None = None  # of the page; None: where the newest are
        self._prompts: dict[int, str] = {}
        self._queued: dict[int, float] = {}  # seconds in the queue, as seen from here
        self._kept: dict[int, float | None] = {}  # seconds for which their provider keeps results
        self._cancelling: set[int] = set()
        self._shown: JobHandle | None = None
        self._leave: dict[int, Callable[[], None]] = {}
        self._forget: Callable[[], None] | None = None
        self._drawing, self._showing = Steady(self._draw, 0.5), Steady(self._show_result, 1.0)
        widget = JobsPanel(self, clicks_heard_while_busy=front_end.clicks_heard_while_busy)
        super().__init__(session, front_end, widget, None)

    def begin(self) -> None:
        self._forget = self.session.watch(self._follow)
        self._drawing.soon()

    def rest(self) -> None:
        if self._forget is not None:
            self._forget()
        for leave in self._leave.values():
            leave()
        self._leave.clear()
        self._drawing.stop()
        self._showing.stop()

    def _follow(self, handle: JobHandle) -> None:
        """A job is new, or begins again."""
        self._drawing.soon()
        if handle.is_over:
            return

        def heard(event: Event) -> None:
            if not isinstance(event, StreamChunk):
                self._drawing.soon()
            if handle is self._shown:
                self._showing.soon()
            if isinstance(event, Ended):
                self._leave.pop(handle.number, None)

        self._leave[handle.number] = handle.subscribe(heard)

    # ------------------------------------------------------------------ drawing

    def _handles(self) -> list[JobHandle]:
        handles = self.session.handles
        return [handles[number] for number in sorted(handles) if not handles[number].never_submitted]

    def _draw(self) -> None:
        from notebook_ext.widgets.jobs import JobsView

        handles = self._handles()
        first = self._start(len(handles))
        lines = [self._line(handle) for handle in handles[first : first + self._page]]
        counts = Counter(_word(handle) for handle in handles)
        self.widget.update(
            JobsView(
                lines=lines,
                first=first,
                total=len(handles),
                active=sum(not handle.is_over for handle in handles),
                summary=" · ".join(f"{count} {word}" for word, count in counts.items()),
            )
        )
        if any(line.can_cancel or line.is_cancelling for line in lines):  # their times go on
            self._drawing.soon(within=1.0)

    def _start(self, total: int) -> int:
        """Where the page begins. It moves on by half pages: a row is not another job's all the time."""
        if self._first is not None:
            return self._first
        half = self._page // 2
        return max(0, -(-(total - self._page) // half) * half)

    def _line(self, handle: JobHandle) -> JobLine:
        from notebook_ext.widgets.jobs import JobLine

        job, number = handle.job, handle.number
        if number not in self._prompts:
            self._prompts[number] = prompts.first_words(handle.input)
        waits = not handle.done and job.status is JobStatus.IN_QUEUE
        runs = not handle.done and job.status is JobStatus.IN_PROGRESS
        if waits:
            self._queued[number] = handle.elapsed
        # while a job streams, only our own clock tells how long it had been queued
        queue = job.delay_time if job.delay_time is not None else self._queued.get(number)
        return JobLine(
            number=number,
            endpoint=handle.endpoint,
            status=job.status,
            prompt=self._what_is_left(handle) or self._prompts[number],
            submitted=time_of_day(handle.submitted_at),
            queue=_coarse(handle.elapsed) if waits else queue,
            run=_coarse(handle.elapsed - (queue or 0.0)) if runs else job.execution_time,
            can_cancel=not handle.is_over,
            can_retry=handle.done and job.status in (JobStatus.FAILED, JobStatus.TIMED_OUT),
            is_cancelling=number in self._cancelling,
            is_shown=handle is self._shown,
        )

    def _what_is_left(self, handle: JobHandle) -> str:
        """How to follow a job again whose follower gave up; "" for any other."""
        if not handle.done or handle.is_over:
            return ""
        if handle.number not in self._kept:
            entry = self.session.journal.get(handle.number)
            known = PROVIDERS.get(entry.provider) if entry is not None else None
            kept = known.retention.get(Operation(handle.operation)) if known is not None else None
            self._kept[handle.number] = kept
        return unfollowed(handle, self._kept[handle.number])

    def static(self, reason: str) -> render.Bundle:
        handles = self._handles()
        bundle = render.jobs([job_row(handle) for handle in handles[-SHOWN_ROWS:]])
        left = len(handles) - SHOWN_ROWS
        more = f"; {left} older ones are not shown" if left > 0 else ""
        note = f"as at {time_of_day(time.time())}{more}; {reason}"
        return {
            "text/html": f"{bundle['text/html']}{render.note(note)['text/html']}",
            "text/plain": f"{bundle['text/plain']}\n{note}",
        }

    def _show_result(self) -> None:
        handle = self._shown
        if handle is None:
            return
        if not handle.done and sum(len(str(chunk.output)) for chunk in handle.streamed()) > LIVE_RESULT:
            self.widget.show_result(f"@{handle.number} is long: it is shown when it has ended", ())
            return
        so_far = "" if handle.done else ", so far"
        self.widget.show_result(f"The result of @{handle.number}{so_far}", self._result(handle))

    # ------------------------------------------------------------------ clicks

    def cancel(self, number: int) -> None:
        self.later(lambda: self.do(self._cancel(number)))

    def retry(self, number: int) -> None:
        self.later(lambda: self.do(self._retry(number)))

    def show(self, number: int) -> None:
        self.later(self._show, number)

    def hide(self) -> None:
        self.later(self._hide)

    def turn(self, pages: int) -> None:
        self.later(self._turn, pages)

    def ask_cancel_all(self) -> None:
        self.later(self._ask_cancel_all)

    def cancel_all(self) -> None:
        self.later(lambda: self.do(self._cancel_all()))

    async def _cancel(self, number: int) -> None:
        handle = self.session.handles[number]
        if handle.done:
            self.widget.say(f"@{number} had already ended: {_word(handle)}.")
            self._drawing.soon()
            return
        self._cancelling.add(number)
        self._drawing.soon()
        try:
            stopped = await asyncio.wrap_future(self.session.stop(handle))
        finally:
            self._cancelling.discard(number)
            self._drawing.soon()
        self.widget.say(str(stopped), is_bad=not stopped.confirmed)

    async def _retry(self, number: int) -> None:
        handle = self.session.handles[number]
        self.widget.say(f"@{number} is queued again…")
        try:
            await self.session.queue_again(handle)
        finally:
            self._drawing.soon()
        self.widget.say(f"@{number} is queued again.")

    def _show(self, number: int) -> None:
        self._shown = self.session.handles[number]
        self._drawing.soon()
        self._showing.soon()

    def _hide(self) -> None:
        self._shown = None
        self.widget.hide_result()
        self._drawing.soon()

    def _turn(self, pages: int) -> None:
        total = len(self._handles())
        first = max(0, self._start(total) + pages * self._page)
        self._first = None if first + self._page >= total else first
        self._drawing.soon()

    def _ask_cancel_all(self) -> None:
        running = len(self.session.active())
        if running:
            self.ask(f"Really cancel {count_jobs(running)}?")
        else:
            self.widget.rest()
            self.widget.say("None of yours is running.")

    async def _cancel_all(self) -> None:
        self.answered()
        handles = self.session.active()
        numbers = {handle.number for handle in handles}
        self._cancelling |= numbers
        self.widget.say(f"cancelling {count_jobs(len(handles))}…")
        self._drawing.soon()
        try:
            stopping = [asyncio.wrap_future(self.session.stop(handle)) for handle in handles]
            stopped = await asyncio.gather(*stopping)
        finally:
            self._cancelling -= numbers
            self.widget.rest()
            self._drawing.soon()
        failed = [end for end in stopped if not end.confirmed]
        ended = f"{count_jobs(len(stopped) - len(failed))} ended"
        self.widget.say("; ".join([ended, *map(str, failed[:2])]), is_bad=bool(failed))


def _coarse(seconds: float) -> float:
    """Seconds that go on, in steps that grow: the older a job, the more rarely its row is drawn."""
    step = 1.0 if seconds < 60 else 5.0 if seconds < 600 else 60.0
    return seconds // step * step


def unfollowed(handle: JobHandle, kept: float | None) -> str:
    """How to follow a job again whose follower gave up, and until when that surely finds its result.

    Args:
        handle: The job.
        kept: Seconds for which its provider keeps the result of a job that has ended, where known.
    """
    attach = f"%endpoint attach @{handle.number}"
    if kept is None:
        return f"no longer followed: {attach}"
    left = handle.job.seen_at + kept - time.time()  # it may have ended when it had just been seen
    if left <= 0:
        return f"its result may have expired: {attach}"
    return f"its result is kept {render.duration(left)} at least: {attach}"


def job_row(handle: JobHandle) -> render.JobRow:
    """What a static table tells of a job."""
    return render.JobRow(
        number=handle.number,
        endpoint=handle.endpoint,
        job_id=handle.id,
        status=handle.status,
        prompt=prompts.first_words(handle.input),
        submitted_at=handle.submitted_at,
        queue=handle.job.delay_time,
        run=handle.job.execution_time,
    )


def _word(handle: JobHandle) -> str:
    words = {JobStatus.IN_QUEUE: "queued", JobStatus.IN_PROGRESS: "running", JobStatus.TIMED_OUT: "timed out"}
    return words.get(handle.status, str(handle.status).lower())
