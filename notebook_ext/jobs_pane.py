"""The jobs panel: what a session's jobs tell of themselves, and what the journal knows of others.

No endpoint is asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

from notebook_ext import prompts, render, tables
from notebook_ext.errors import JournalError
from notebook_ext.events import Ended
from notebook_ext.pane import Pane, count_jobs, time_of_day
from notebook_ext.protocol import Operation
from notebook_ext.providers import PROVIDERS
from notebook_ext.types import JobStatus, StreamChunk
from notebook_ext.watching import Steady

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from notebook_ext.events import Event
    from notebook_ext.handle import JobHandle
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session
    from notebook_ext.widgets.jobs import JobLine

    Result = Callable[[JobHandle], Sequence[render.Bundle]]

__all__ = ["JobsPane", "job_row", "unfollowed"]

EARLIER = 50
"""Jobs of the journal among which those of others are shown, the newest."""
LOOK_EVERY = 5.0
"""Seconds between two looks into the journal for what others saw of their jobs."""
SHOWN_ROWS = 200
"""Jobs in the table that is saved, the newest."""
LIVE_RESULT = 20_000
"""Characters up to which the result of a running job is drawn again while it grows."""


class JobsPane(Pane):
    """Shows the session's jobs, as they themselves tell how they are; and others, as the journal tells."""

    def __init__(self, session: Session, front_end: FrontEnd, result: Result) -> None:
        from notebook_ext.widgets.jobs import PAGE, JobsPanel

        self._page = PAGE
        self._result = result
        self._first = 0  # of the page
        self._prompts: dict[int, str] = {}
        self._kept: dict[int, float | None] = {}  # seconds for which their provider keeps results
        self._elsewhere: set[int] = set()  # jobs that another session follows
        self._shown: JobHandle | None = None
        self._leave: dict[int, Callable[[], None]] = {}
        self._forget: Callable[[], None] | None = None
        self._known: dict[int, JobHandle] = {}  # what the journal had, the newest first
        with contextlib.suppress(JournalError):
            self._known = {handle.number: handle for handle in session.entries(limit=EARLIER)[::-1]}
        self._drawing, self._showing = Steady(self._draw, 0.5), Steady(self._show_result, 1.0)
        self._looking = Steady(self._look, LOOK_EVERY)
        widget = JobsPanel(self, clicks_heard_while_busy=front_end.clicks_heard_while_busy)
        super().__init__(session, front_end, widget, None)

    def begin(self) -> None:
        self._forget = self.session.watch(self._follow)
        for handle in self._earlier():
            if not handle.done:  # this session looks after it
                self._follow(handle)
        self._look()

    def rest(self) -> None:
        if self._forget is not None:
            self._forget()
        for leave in self._leave.values():
            leave()
        self._leave.clear()
        for steady in (self._drawing, self._showing, self._looking):
            steady.stop()

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

        if handle.number in self._leave:
            self._leave[handle.number]()
        self._leave[handle.number] = handle.subscribe(heard)

    def _look(self) -> None:
        """Read what others have written of jobs that had not ended."""
        is_open = False
        for handle in self._earlier():
            if handle.done and not handle.status.is_final:
                is_open = True
                with contextlib.suppress(JournalError):
                    self._read_again(handle)
        self._drawing.soon()
        if is_open:
            self._looking.soon()

    def _read_again(self, handle: JobHandle) -> None:
        entry, before = self.session.journal.get(handle.number), handle.job
        if entry is None:
            return
        self.session.recall(entry)
        is_alive = entry.owner is not None and self.session.journal.is_alive(entry.owner)
        (self._elsewhere.add if is_alive else self._elsewhere.discard)(handle.number)
        if handle is self._shown and handle.job != before:
            self._showing.soon()

    # ------------------------------------------------------------------ drawing

    def _mine(self) -> list[JobHandle]:
        """What runs, then the others; the newest first."""
        shown = [handle for handle in self.session.handles.values() if not handle.never_submitted]
        return sorted(shown, key=lambda handle: (not _runs(handle), -handle.number))

    def _earlier(self) -> list[JobHandle]:
        return [handle for number, handle in self._known.items() if number not in self.session.handles]

    def _handle(self, number: int) -> JobHandle:
        return self.session.handles.get(number) or self._known[number]

    def _draw(self) -> None:
        from notebook_ext.widgets.jobs import JobsView

        mine, earlier = self._mine(), self._earlier()
        first = self._first
        page = [*mine, *earlier][first : first + self._page]
        lines = [self._line(handle, is_mine=at < len(mine)) for at, handle in enumerate(page, first)]
        counts = Counter(_word(handle) for handle in mine)
        told = [f"{count} {word}" for word, count in counts.items()] or ["none yet"]
        self.widget.update(
            JobsView(
                lines=lines,
                first=first,
                total=len(mine) + len(earlier),
                active=sum(not handle.is_over for handle in mine),
                summary=" · ".join([*told, *([f"{len(earlier)} from earlier"] if earlier else [])]),
            )
        )
        if any(line.can_cancel or line.is_cancelling for line in lines):  # their times go on
            self._drawing.soon(within=1.0)

    def _line(self, handle: JobHandle, *, is_mine: bool) -> JobLine:
        from notebook_ext.widgets.jobs import JobLine

        number, queue, run = handle.number, handle.queue_time, handle.run_time
        if number not in self._prompts:
            self._prompts[number] = prompts.first_words(handle.input)
        if not handle.done and handle.status is JobStatus.IN_QUEUE:
            queue = _coarse(queue)
        elif not handle.done and handle.status is JobStatus.IN_PROGRESS:
            run = _coarse(run)
        is_followed = is_mine or not handle.done
        return JobLine(
            number=number,
            endpoint=handle.endpoint,
            status=handle.status,
            prompt=self._what_is_left(handle) or self._prompts[number],
            submitted=_moment(handle.submitted_at),
            queue=queue,
            run=run,
            can_cancel=is_followed and not handle.is_over,
            can_retry=handle.can_retry and (is_mine or not handle.served),
            is_cancelling=handle.is_stopping,
            is_shown=handle is self._shown,
            is_earlier=not is_mine,
        )

    def _what_is_left(self, handle: JobHandle) -> str:
        """How to follow a job again whose follower gave up; "" for any other."""
        if not handle.done or handle.is_over:
            return ""
        if handle.number in self._elsewhere:
            return f"another kernel follows it: %endpoint attach @{handle.number}"
        if handle.number not in self._kept:
            entry = self.session.journal.get(handle.number)
            known = PROVIDERS.get(entry.provider) if entry is not None else None
            kept = known.retention.get(Operation(handle.operation)) if known is not None else None
            self._kept[handle.number] = kept
        return unfollowed(handle, self._kept[handle.number])

    def static(self, reason: str) -> render.Bundle:
        """This session's jobs: what other notebooks asked is not for the readers of this one."""
        handles = self._mine()
        left = len(handles) - SHOWN_ROWS
        more = f"; {left} older ones are not shown" if left > 0 else ""
        table = tables.jobs([job_row(handle) for handle in handles[:SHOWN_ROWS]])
        return tables.noted(table, f"as at {time_of_day(time.time())}{more}; {reason}")

    def _show_result(self) -> None:
        handle = self._shown
        if handle is None:
            return
        if not handle.done and handle.streamed_weight > LIVE_RESULT:
            self.widget.show_result(f"@{handle.number} is long: it is shown when it has ended", ())
            return
        so_far = "" if handle.is_over else ", so far"
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
        handle = self._handle(number)
        if handle.is_over:
            self.widget.say(f"@{number} had already ended: {_word(handle)}.")
            self._drawing.soon()
            return
        stopped = await asyncio.wrap_future(self.session.stop(handle))
        self._drawing.soon()
        self.widget.say(str(stopped), is_bad=not stopped.confirmed)

    async def _retry(self, number: int) -> None:
        handle = self._handle(number)
        self.widget.say(f"@{number} is queued again…")
        try:
            await self.session.queue_again(handle)
        finally:
            self._drawing.soon()
        self.widget.say(f"@{number} is queued again.")

    def _show(self, number: int) -> None:
        self._shown = self._handle(number)
        self._drawing.soon()
        self._showing.soon()

    def _hide(self) -> None:
        self._shown = None
        self.widget.hide_result()
        self._drawing.soon()

    def _turn(self, pages: int) -> None:
        first = max(0, self._first + pages * self._page)
        if first < len(self._mine()) + len(self._earlier()):
            self._first = first
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
        self.widget.say(f"cancelling {count_jobs(len(handles))}…")
        try:
            stopped = await asyncio.wrap_future(self.session.stop_all(handles))
        finally:
            self.widget.rest()
            self._drawing.soon()
        failed = [end for end in stopped if not end.confirmed]
        ended = f"{count_jobs(len(stopped) - len(failed))} ended"
        self.widget.say("; ".join([ended, *map(str, failed[:2])]), is_bad=bool(failed))


def _runs(handle: JobHandle) -> bool:
    return handle.status is JobStatus.IN_PROGRESS and not handle.is_over


def _coarse(seconds: float | None) -> float | None:
    """Seconds that go on, in steps that grow: the older a job, the more rarely its time is drawn."""
    if seconds is None:
        return None
    step = 1.0 if seconds < 60 else 5.0 if seconds < 600 else 60.0
    return seconds // step * step


def _moment(seconds: float) -> str:
    """The time of day if it was today, else the day too."""
    then = time.localtime(seconds)
    is_today = then[:3] == time.localtime()[:3]
    return time_of_day(seconds) if is_today else time.strftime("%m-%d %H:%M", then)


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


def job_row(handle: JobHandle) -> tables.JobRow:
    """What a static table tells of a job."""
    return tables.JobRow(
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
