"""Jobs in cells: each is drawn where it was started, waited for, and stopped when the cell is."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from notebook_ext import profiles, render
from notebook_ext.display import job_display
from notebook_ext.errors import EndpointError, JobCancelled, WaitTimeout
from notebook_ext.footer import footer_bundle
from notebook_ext.provenance import provenance
from notebook_ext.view import JobView, Reading, facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.events import Stopped
    from notebook_ext.handle import JobHandle
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["JobCells"]

Finished = concurrent.futures.Future[None]


class JobCells:
    """Shows the jobs of a session in a front end, and waits for them there.

    Args:
        session: Whose jobs they are.
        front_end: Where they are shown.
    """

    def __init__(self, session: Session, front_end: FrontEnd) -> None:
        self._session = session
        self._front_end = front_end

    # ------------------------------------------------------------------ show

    def get_ready(self, *, is_quiet: bool) -> None:
        """Import what `show` needs: from a job's submission until it is waited for nothing may be slow."""
        if self._has_strip(is_quiet):
            from notebook_ext.widgets import job  # noqa: F401 - brings ipywidgets; it is the import that counts

    def _has_strip(self, is_quiet: bool) -> bool:
        return self._front_end.has_widgets and not self._front_end.is_headless and not is_quiet

    def show(
        self,
        handle: JobHandle,
        *,
        output_format: str = "auto",
        owns_cell: bool = False,
        is_background: bool = False,
        is_quiet: bool = False,
        keeps_place: bool = False,
    ) -> JobView:
        """Draw a job in the present cell, from its beginning, until it has ended.

        Args:
            handle: The job.
            output_format: As `-f`.
            owns_cell: Whether the cell holds nothing else, so that it may be cleared at the end.
            is_background: Whether nobody will wait for it.
            is_quiet: Whether only errors are shown.
            keeps_place: Whether others are drawn in the cell meanwhile; one in the background expects that.
        """
        front_end = self._front_end
        decoder = profiles.get(handle.profile).decoder()
        cell: Any = front_end.cell()
        is_live = not front_end.is_headless
        strip = None
        if front_end.is_voila and front_end.has_widgets:
            from notebook_ext.widgets.output import WidgetCell

            cell = WidgetCell(cell)
        if self._has_strip(is_quiet):
            from notebook_ext.widgets.job import JobStrip

            strip = JobStrip(
                f"@{handle.number} {handle.endpoint}",
                handle,
                clicks_heard_while_busy=front_end.clicks_heard_while_busy,
            )
            front_end.let_through(strip.buttons)
        view = JobView(
            handle,
            decoder,
            job_display(
                cell,
                self._session.loop.loop,
                strip=strip,
                owns_cell=owns_cell,
                is_live=is_live,
                keeps_place=(is_background or keeps_place) and not is_quiet,
                metadata=lambda: provenance(handle),
            ),
            strip=strip,
            output_format=output_format,
            is_background=is_background and is_live,
            is_quiet=is_quiet or (front_end.is_terminal and is_background),
        )
        if is_live or not is_background:
            self._session.on_loop(view.start)
        return view

    def show_end(self, handle: JobHandle, output_format: str = "auto") -> None:
        """A job as it is now, static, in whatever cell asks for it."""
        cell = self._front_end.cell()
        for bundle in self.end_bundles(handle, output_format):
            cell.show(bundle, metadata=provenance(handle))

    def end_bundles(self, handle: JobHandle, output_format: str = "auto") -> list[dict[str, Any]]:
        """What a job has come to so far, as bundles: its output, its error, its footer."""
        decoder = profiles.get(handle.profile).decoder()
        reading = Reading(handle.number, decoder, output_format)
        shown = [reading.feed(chunk) for chunk in handle.each_streamed()]
        held_back, final = reading.finish(handle.job.output if handle.done else None)
        bundles = []
        if reading.is_cut:
            text = "".join([*shown, held_back])
            bundles += render.outputs(text, "text" if output_format == "text" else "markdown")
            bundles.append(reading.rest())
        elif handle.streamed_count or (handle.done and handle.error is None):
            bundles += reading.bundles(handle, final)
        if handle.error is not None:
            bundles.append(render.error(handle.error))
        if handle.never_submitted:
            return [*bundles, render.note(f"@{handle.number} was never submitted")]
        return [*bundles, footer_bundle(facts(handle, final))]

    def final(self, handle: JobHandle) -> profiles.Final:
        """What a job has come to so far, read as its profile reads it."""
        decoder = profiles.get(handle.profile).decoder()
        for chunk in handle.each_streamed():
            decoder.feed(chunk)
        return decoder.finish(handle.job.output if handle.done else None)

    # ------------------------------------------------------------------ wait

    def wait(self, view: JobView, *, timeout: float | None, cancels: bool) -> None:
        """Wait until a job has ended and its end is shown.

        Args:
            view: The job's view.
            timeout: Seconds to wait; None waits for as long as it takes.
            cancels: Whether the stop button and the timeout stop the remote job.

        Raises:
            JobError: It ended badly.
            EndpointError: It could not be drawn.
            WaitTimeout: It did not end in time.
            KeyboardInterrupt: The stop button; its text says what became of the job.
        """
        self._wait([view.handle], [view.finished], timeout=timeout, cancels=cancels)
        if view.handle.error is not None:
            raise view.handle.error
        if view.error is not None:
            raise view.error

    def wait_for_all(
        self,
        handles: Sequence[JobHandle],
        *,
        timeout: float | None,
        cancels: bool,
        views: Sequence[JobView] = (),
    ) -> None:
        """Wait until jobs have ended, however they ended, and their views are done; errors as in `wait`."""
        self._wait(handles, [view.finished for view in views], timeout=timeout, cancels=cancels)

    def leave(self, view: JobView, *, timeout: float | None, cancels: bool) -> None:
        """Let a `--bg` job go on without its cell, except where its later output would be lost.

        In a headless run it is waited for at the end of its own cell.

        Raises:
            KeyboardInterrupt: The stop button, since the job was submitted.
        """
        try:
            self._front_end.wait(lambda: True)
        except KeyboardInterrupt:
            cancels = cancels and not self._front_end.restart_follows()
            raise _interrupt(self._stop_or_detach([view.handle], [], cancels=cancels)) from None
        if self._front_end.is_headless:
            self._front_end.at_end_of_cell(lambda: self._waited(view, timeout, cancels))
        elif timeout is not None:
            threading.Thread(
                target=self._stop_after,
                args=(view, timeout, cancels),
                name="notebook_ext timeout",
                daemon=True,
            ).start()

    def stop(self, handles: Sequence[JobHandle]) -> list[Stopped]:
        """Stop remote jobs together, and wait until each is confirmed or given up.

        Raises:
            KeyboardInterrupt: The stop button; they are being stopped all the same.
        """
        if not handles:
            return []
        with self._front_end.stop_button_held():
            stopping = self._session.stop_all(handles)
            try:
                self._front_end.wait(stopping)
            except KeyboardInterrupt:
                fates = (
                    f"@{handle.number}: stopping was interrupted; its state is not confirmed"
                    for handle in handles
                )
                raise _interrupt("; ".join(fates)) from None
        return stopping.result()

    def _wait(
        self,
        handles: Sequence[JobHandle],
        finished: Sequence[Finished],
        *,
        timeout: float | None,
        cancels: bool,
    ) -> None:
        def over() -> bool:
            return all(handle.done for handle in handles) and all(future.done() for future in finished)

        try:
            done = self._front_end.wait(finished[0] if len(handles) == len(finished) == 1 else over, timeout)
        except KeyboardInterrupt:
            cancels = cancels and not self._front_end.restart_follows()
            raise _interrupt(self._stop_or_detach(handles, finished, cancels=cancels)) from None
        if not done:
            fate = self._stop_or_detach(handles, finished, cancels=cancels)
            raise WaitTimeout(
                f"not ended within --timeout {timeout:g} s: {fate}", job_id=handles[0].id or None
            )

    def _stop_or_detach(
        self, handles: Sequence[JobHandle], finished: Sequence[Finished], *, cancels: bool
    ) -> str:
        """What the stop button and a timeout do; returns what became of the jobs, in words."""
        running = [handle for handle in handles if not handle.is_over]
        if not cancels:
            return "; ".join(f"@{handle.number} goes on" for handle in running) or "it had just ended"
        stopped = self.stop(running)
        with contextlib.suppress(KeyboardInterrupt):  # they have stopped: only their end is not drawn yet
            self._front_end.wait(lambda: all(future.done() for future in finished), 2.0)
        return "; ".join(map(str, stopped)) or "it had just ended"

    def _waited(self, view: JobView, timeout: float | None, cancels: bool) -> BaseException | None:
        self._session.on_loop(view.start)  # only now, so that the job's end is not amid the cell's own prints
        try:
            self.wait(view, timeout=timeout, cancels=cancels)
        except JobCancelled as error:
            return None if view.handle.was_stopped else error
        except (EndpointError, KeyboardInterrupt) as error:
            return error
        return None

    def _stop_after(self, view: JobView, timeout: float, cancels: bool) -> None:
        concurrent.futures.wait([view.finished], timeout)
        if not view.finished.done() and not self._session.closed:
            view.handle.notes.append(f"--timeout {timeout:g} s is over")
            if cancels:
                view.handle.cancel_soon()


def _interrupt(fate: str) -> KeyboardInterrupt:
    """What the stop button raises; its text says what became of the jobs."""
    interrupt = KeyboardInterrupt(fate)
    # IPython asks an exception how it wants to be drawn; a traceback of ours helps nobody
    interrupt._render_traceback_ = lambda: [f"KeyboardInterrupt: {fate}"]  # type: ignore[attr-defined]
    return interrupt
