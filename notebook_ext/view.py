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

from notebook_ext import render
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.footer import Facts, footer_bundle, speed
from notebook_ext.handle import Ended, Queued
from notebook_ext.types import Job, JobStatus, StreamChunk
from notebook_ext.waiting import wait_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from notebook_ext.handle import Event, JobHandle
    from notebook_ext.profiles import Decoder, Final
    from notebook_ext.widgets.job import StripView

__all__ = ["JobView", "facts", "final_bundles"]

_log = logging.getLogger(__name__)

TICK = 0.5
"""Seconds between two drawings of the strip while nothing but time goes on."""
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

    def finish(
        self, bundles: Sequence[Mapping[str, Any]] = (), footer: Mapping[str, Any] | None = None
    ) -> None: ...


class Strip(Protocol):
    """What shows a running job's state: `widgets.job.JobStrip`, or a panel."""

    def update(self, view: StripView) -> None: ...


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
    ) -> None:
        self.handle = handle
        self.final: Final | None = None
        """What the job came to; None until `finished`."""
        self.error: EndpointError | None = None
        """Why the job could not be drawn; the job itself knows nothing of it."""
        self.finished: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done when the job has ended, and its static end is shown, if it can be."""
        self._decoder = decoder
        self._display = display
        self._strip = strip
        self._format = output_format
        self._is_live = output_format in LIVE_FORMATS and not is_quiet
        self._is_background = is_background
        self._is_quiet = is_quiet
        self._queued: Queued | None = None
        self._queued_at = 0.0
        self._shown = 0
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
            self._add(self._decoder.feed(event))
        elif isinstance(event, Queued):
            self._queued, self._queued_at = event, self.handle.elapsed
        elif isinstance(event, Job):
            self._draw_strip()
        elif isinstance(event, Ended):
            self._finish(event)

    def _add(self, text: str) -> None:
        self._shown += len(text)
        if self._is_live:
            self._display.add(text)

    def _finish(self, ended: Ended) -> None:
        self._stop_timer()
        job = self.handle.job
        completed = job.status is JobStatus.COMPLETED
        self.final = self._decoder.finish(job.output if completed else None)
        bundles = self._bundles(self.final) if completed and not self._is_quiet else []
        if self._is_background and ended.error is not None and not self.handle.was_stopped:
            bundles = [*bundles, render.error(ended.error)]
        has_footer = not (self._is_quiet or self.handle.never_submitted)
        footer = footer_bundle(facts(self.handle, self.final)) if has_footer else None
        self._display.finish(bundles, footer)

    def _bundles(self, final: Final) -> Sequence[dict[str, Any]]:
        """What is shown beside the text that was streamed."""
        if self._is_live and self._shown and final.text is not None:
            self._display.add(final.text[self._shown :])  # what the stream's end still held back
            return []
        if self._is_live and self._shown:
            return []
        return final_bundles(self.handle, final, self._format)

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
                rate=" · ".join(speed(facts(handle, None, tokens=self._decoder.tokens))),
                progress=job.progress,
                reason=self._reason() if job.status is JobStatus.IN_QUEUE else "",
                is_cancelling=handle.is_stopping,
            )
        )

    def _reason(self) -> str:
        """Why it waits, as long as that is news."""
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
        tokens_per_second=tokens / seconds if tokens and seconds else None,
        chunks_per_second=_chunk_rate(handle),
        cost=handle.cost,
        notes=(*handle.notes, *_next_step(handle)),
    )


def _next_step(handle: JobHandle) -> list[str]:
    """What can still be done about a job, to copy: a button would be saved, and lead nowhere then."""
    if not handle.done or not handle.id:
        return []
    if not handle.is_over:
        return [f"follow it again: %endpoint attach @{handle.number}"]
    return [f"queue it again: %endpoint retry @{handle.number}"] if handle.can_retry else []


def _chunk_rate(handle: JobHandle) -> float | None:
    count, rate = len(handle.streamed()), handle.chunk_rate
    if rate is None or count < LEAST_CHUNKS or (count - 1) / rate < LEAST_SECONDS:
        return None
    return rate


def final_bundles(handle: JobHandle, final: Final, output_format: str) -> list[dict[str, Any]]:
    """A finished job's output as bundles, in the format that was asked for."""
    job = handle.job
    if final.value is None and not job.has_output and not handle.streamed():
        return [render.no_output()] if output_format != "none" else []
    value = final.text if final.text is not None and output_format in LIVE_FORMATS else final.value
    try:
        return render.outputs(value, output_format)
    except ValueError as error:  # the job was paid for: its output is shown all the same
        return [render.error(InputError(str(error))), *render.outputs(value)]
