"""One job as a cell shows it: its events, decoded, go to the display and the strip.

A view is made and subscribed on the session's loop thread; only the strip is made before, on the
main thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

from notebook_ext import excerpts, render
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.events import Ended, Queued
from notebook_ext.footer import Facts, footer_bundle, speed
from notebook_ext.streamed import weight
from notebook_ext.types import Job, JobStatus, StreamChunk
from notebook_ext.waiting import wait_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notebook_ext.events import Event
    from notebook_ext.handle import JobHandle
    from notebook_ext.profiles import Decoder, Final
    from notebook_ext.widgets.job import StripView

__all__ = ["JobView", "Reading", "facts", "final_bundles"]

_log = logging.getLogger(__name__)

TICK = 0.5
"""Seconds between two drawings of the strip while nothing but time goes on."""
LEAST_PAUSE = 0.5
"""Seconds that a server wants no requests for, below which that is not worth a word."""
LEAST_OUTAGE = 2.0
"""Seconds without a good answer, below which that is not worth one either: the next attempt may get it."""
NEWS = 20.0
"""Seconds after which an endpoint's counters no longer say why a job waits."""
LIVE_FORMATS = frozenset({"auto", "markdown", "text"})
"""Formats whose text is shown while it comes; the others need all of it."""
LEAST_CHUNKS, LEAST_SECONDS = 3, 0.1
"""Chunks, and seconds between the first and the last of them, below which their rate says nothing:
those of one answer come at once, however slowly they were made."""


class Display(Protocol):
    """A job's place: `display.JobDisplay`, or what stands in for it in a panel."""

    def add(self, text: str) -> None: ...

    def leave_out(self, rest: Mapping[str, Any]) -> None: ...

    def finish(
        self, bundles: Sequence[Mapping[str, Any]] = (), footer: Mapping[str, Any] | None = None
    ) -> None: ...


class Strip(Protocol):
    """What shows a running job's state: `widgets.job.JobStrip`, or a panel."""

    def update(self, view: StripView) -> None: ...


class Reading:
    """A job's output on its way into a notebook: decoded, and cut where it is too large for one.

    Args:
        number: The job's.
        decoder: Reads its chunks; used by nobody else.
        output_format: What `-f` asked for.
        most: Bytes of its text that are shown.
    """

    def __init__(self, number: int, decoder: Decoder, output_format: str, most: int = excerpts.TEXT) -> None:
        self._number, self._decoder, self._format = number, decoder, output_format
        self._is_text = output_format in LIVE_FORMATS
        self._beginning = excerpts.Beginning(most)
        self._length = self._weight = 0
        self._forgets = False

    @property
    def tokens(self) -> int | None:
        """Tokens made so far, where the worker counts them."""
        return self._decoder.tokens

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return self._length > 0

    @property
    def is_cut(self) -> bool:
        """Whether there is more text than is shown."""
        return self._is_text and self._beginning.is_cut

    def feed(self, chunk: StreamChunk) -> str:
        """The text to show that a chunk adds."""
        text = self._decoder.feed(chunk)
        self._length += len(text)
        self._weight += weight(chunk.output)
        shown = self._beginning.take(text)
        if not self._forgets and (self.is_cut or self._weight > excerpts.MEDIA):
            self._forgets = True
            self._decoder.forget()
        return shown

    def finish(self, output: Any) -> tuple[str, Final]:
        """The text to show that the stream's end still held back, and what a job that is not large came to.

        Args:
            output: The finished job's.
        """
        final = self._decoder.finish(None if self._forgets else output)
        text = final.text or ""
        return self._beginning.take(text if self._forgets else text[self._length :]), final

    def bundles(self, handle: JobHandle, final: Final) -> list[dict[str, Any]]:
        """All that came as bundles, where it was not shown as text."""
        if self._forgets and self._format != "none":
            said = f"{excerpts.in_words(self._weight)} of output are not shown"
            return [render.left_out(self._number, said)]
        return final_bundles(handle, final, self._format)

    def rest(self, *, goes_on: bool = False) -> dict[str, Any]:
        """What stands for the text that is not shown.

        Args:
            goes_on: Whether more is still to come.
        """
        if goes_on:
            return render.left_out(self._number, "what follows is not shown here")
        more = f"{excerpts.in_words(self._beginning.left_out)} more"
        return render.left_out(self._number, more, self._beginning.ending)

    def so_far(self) -> list[str]:
        """How much has come, where not all of it is shown."""
        left_out = self._beginning.left_out
        return [f"{excerpts.in_words(left_out)} more than is shown"] if self.is_cut else []


class JobView:
    """Draws one job until it has ended.

    Args:
        handle: The job.
        decoder: Reads its chunks; used by nobody else.
        display: Its place in the cell.
        strip: The live line; None where there are no widgets.
        output_format: What `-f` asked for.
        is_background: Whether nobody waits for the job, so that its error has to be shown here.
        is_quiet: Whether only errors are shown.
        most: Bytes of its text that are shown.
    """

    def __init__(
        self,
        handle: JobHandle,
        decoder: Decoder,
        display: Display,
        *,
        strip: Strip | None = None,
        output_format: str = "auto",
        is_background: bool = False,
        is_quiet: bool = False,
        most: int = excerpts.TEXT,
    ) -> None:
        self.handle = handle
        self.final: Final | None = None
        """What the job came to; None until `finished`."""
        self.error: EndpointError | None = None
        """Why the job could not be drawn; the job itself knows nothing of it."""
        self.finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done when the job has ended, and its static end is shown, if it can be."""
        self._reading = Reading(handle.number, decoder, output_format, most)
        self._is_cut = False
        self._display = display
        self._strip = strip
        self._is_live = output_format in LIVE_FORMATS and not is_quiet
        self._is_background = is_background
        self._is_quiet = is_quiet
        self._queued: Queued | None = None
        self._queued_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Subscribe to the job's events; called on the loop thread."""
        if self._strip is not None:
            self._tick()
        self.handle.subscribe(self)

    def __call__(self, event: Event) -> None:
        self._try(lambda: self._draw(event))
        if isinstance(event, Ended) and not self.finished.done():
            self.finished.set_result(None)

    def _try(self, draw: Callable[[], None]) -> None:
        """Draw, until drawing has failed once: a job that cannot be drawn is waited for all the same."""
        if self.error is not None:
            return
        try:
            draw()
        except Exception as bug:  # noqa: BLE001 - untrusted output may break any drawing
            self._give_up(bug)

    def _give_up(self, bug: Exception) -> None:
        number = self.handle.number
        _log.exception("job @%s can no longer be drawn", number)
        self.error = EndpointError(
            f"@{number} could not be drawn ({type(bug).__name__}: {bug}); the job itself is not touched: "
            f"`%endpoint status @{number}` tells how it stands",
            job_id=self.handle.id or None,
        )
        self.error.__cause__ = bug
        self._stop_timer()
        with contextlib.suppress(Exception):  # it may be this that has failed
            self._display.finish([render.error(self.error)])

    def _draw(self, event: Event) -> None:
        if isinstance(event, StreamChunk):
            self._add(self._reading.feed(event))
        elif isinstance(event, Queued):
            self._queued, self._queued_at = event, self.handle.elapsed
        elif isinstance(event, Job):
            self._draw_strip()
        elif isinstance(event, Ended):
            self._finish(event)

    def _add(self, text: str) -> None:
        if not self._is_live:
            return
        self._display.add(text)
        if self._reading.is_cut and not self._is_cut:
            self._is_cut = True
            self._display.leave_out(self._reading.rest(goes_on=True))

    def _finish(self, ended: Ended) -> None:
        self._stop_timer()
        job = self.handle.job
        completed = job.status is JobStatus.COMPLETED
        held_back, self.final = self._reading.finish(job.output if completed else None)
        if completed and self._reading.has_text:
            self._add(held_back)
        if self._is_cut:
            self._display.leave_out(self._reading.rest())
        bundles = self._bundles(self.final) if completed and not self._is_quiet else []
        if self._is_background and ended.error is not None and not self.handle.was_stopped:
            bundles = [*bundles, render.error(ended.error)]
        has_footer = not (self._is_quiet or self.handle.never_submitted)
        footer = footer_bundle(facts(self.handle, self.final)) if has_footer else None
        self._display.finish(bundles, footer)

    def _bundles(self, final: Final) -> Sequence[dict[str, Any]]:
        """What is shown where no text was streamed."""
        if self._is_live and self._reading.has_text:
            return []
        return self._reading.bundles(self.handle, final)

    def _tick(self) -> None:
        self._try(self._draw_strip)
        if self.error is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _draw_strip(self) -> None:
        if self._strip is None:
            return
        from notebook_ext.widgets.job import StripView  # it is imported already: there is a strip

        handle, job = self.handle, self.handle.job
        self._strip.update(
            StripView(
                status=job.status,
                queue=handle.queue_time,
                run=handle.run_time,
                first_token=handle.first_token,
                rate=" · ".join(
                    [*speed(facts(handle, None, tokens=self._reading.tokens)), *self._reading.so_far()]
                ),
                progress=job.progress,
                reason=self._reason(),
                is_cancelling=handle.is_stopping,
            )
        )

    def _reason(self) -> str:
        """Why it waits, or is not heard of, as long as that is news."""
        if (pause := self.handle.pause_left) >= LEAST_PAUSE:
            return f"rate limited, waiting {pause:.0f} s"
        if (outage := self.handle.outage) is not None and (lasts := outage.lasts) >= LEAST_OUTAGE:
            what = "no good answer" if outage.has_connection else "no connection"
            return f"{what} for {lasts:.0f} s, trying again"
        if self.handle.status is not JobStatus.IN_QUEUE:
            return ""
        queued, waited = self._queued, self.handle.elapsed
        if queued is None or waited - self._queued_at > NEWS:
            return ""
        return wait_reason(queued.health, waited, queued.cold_starts)


def facts(handle: JobHandle, final: Final | None, *, tokens: int | None = None) -> Facts:
    """What a job's footer tells.

    Args:
        handle: The job.
        final: What it came to; None while it runs.
        tokens: Tokens made so far, where the worker counts them.
    """
    job = handle.job
    tokens = final.tokens if final is not None else tokens
    seconds = job.execution_time
    return Facts(
        number=handle.number,
        endpoint=handle.endpoint,
        status=job.status,
        queue=job.delay_time,
        run=seconds,
        first_token=handle.first_token,
        tokens=tokens,
        tokens_per_second=_token_rate(handle, tokens),
        chunks_per_second=_chunk_rate(handle),
        cost=handle.cost,
        notes=(*handle.notes, *_next_step(handle)),
    )


def _token_rate(handle: JobHandle, tokens: int | None) -> float | None:
    """By the server's time; where it tells none, by the time in which they were seen to come."""
    seconds = handle.job.execution_time
    if seconds is None and handle.is_call and (seen := handle.streaming_time or 0.0) >= LEAST_SECONDS:
        seconds = seen
    return tokens / seconds if tokens and seconds else None


def _next_step(handle: JobHandle) -> list[str]:
    """What can still be done about a job, to copy: a button would be saved, and lead nowhere then."""
    if not handle.done or not handle.id:
        return []
    if not handle.is_over:
        return [f"follow it again: %endpoint attach @{handle.number}"]
    return [f"queue it again: %endpoint retry @{handle.number}"] if handle.can_retry else []


def _chunk_rate(handle: JobHandle) -> float | None:
    rate = handle.chunk_rate
    if rate is None or (count := handle.streamed_count) < LEAST_CHUNKS or (count - 1) / rate < LEAST_SECONDS:
        return None
    return rate


def final_bundles(handle: JobHandle, final: Final, output_format: str) -> list[dict[str, Any]]:
    """A finished job's output as bundles, in the format that was asked for."""
    job = handle.job
    if final.value is None and not job.has_output and not handle.streamed_count:
        return [render.no_output()] if output_format != "none" else []
    value = final.text if final.text is not None and output_format in LIVE_FORMATS else final.value
    try:
        return render.outputs(value, output_format, number=handle.number)
    except ValueError as error:  # the job was paid for: its output is shown all the same
        return [render.error(InputError(str(error))), *render.outputs(value, number=handle.number)]
