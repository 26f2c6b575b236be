"""The strip of a running job: its status, one live line, and Cancel.

Made on the main thread; updated and closed from any. It decides nothing: it shows a `StripView`,
and a click asks the handle, and tells what came of it.
"""

from __future__ import annotations

import html
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from notebook_ext import render
from notebook_ext.types import JobStatus, Progress

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Mapping

__all__ = ["JobStrip", "StripView", "badge", "line"]

SECONDS_BETWEEN_UPDATES = 0.5

_RUNNING, _GOOD, _BAD, _WAITING = "running", "good", "bad", "waiting"
_TONES = {
    JobStatus.IN_QUEUE: _WAITING,
    JobStatus.IN_PROGRESS: _RUNNING,
    JobStatus.COMPLETED: _GOOD,
    JobStatus.FAILED: _BAD,
    JobStatus.TIMED_OUT: _BAD,
    JobStatus.LOST: _BAD,
    JobStatus.AMBIGUOUS: _BAD,
}
# The front end's own colours, light and dark; the second ones are for pages without its variables.
_COLOURS = {
    _WAITING: "var(--jp-ui-font-color2, #616161)",
    _RUNNING: "var(--jp-brand-color1, #1976d2)",
    _GOOD: "var(--jp-success-color1, #388e3c)",
    _BAD: "var(--jp-error-color1, #d32f2f)",
}
_WORDS = {
    JobStatus.IN_QUEUE: "queued",
    JobStatus.IN_PROGRESS: "running",
    JobStatus.TIMED_OUT: "timed out",
}
# Words and numbers are given room for their usual lengths: nothing moves while they change. When the kernel
# has gone the front end marks what it led to: nothing looks alive then.
_STYLE = """<style>
.nbx-strip { font: 12px/20px var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, inherit); font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.nbx-strip span { display: inline-block; white-space: nowrap }
.nbx-strip .nbx-text { display: inline; white-space: normal }
.nbx-strip .nbx-number { min-width: 2.5em }
.nbx-strip b { display: inline-block; min-width: 6.2em; font-weight: 600 }
.nbx-strip i { display: inline-block; width: 8px; height: 8px; margin-right: 7px; border-radius: 50%;
  border: 1px solid currentcolor; background: currentcolor }
.nbx-strip progress { width: 9em; max-width: 100%; margin: 0 2px; vertical-align: middle;
  accent-color: var(--jp-brand-color1, #1976d2) }
.nbx-job .jupyter-button:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px }
@media (forced-colors: active) { .nbx-job .jupyter-button { border: 1px solid } }
.nbx-job.jupyter-widgets-disconnected .jupyter-button { display: none }
.nbx-job .jupyter-widgets-disconnected::before,
.nbx-job.jupyter-widgets-disconnected::before { content: none }
.nbx-job.jupyter-widgets-disconnected::after { content: "The kernel has gone; this was known last.";
  font: 12px/20px var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-warn-color1, #b26a00) }
</style>"""
_DEAF = "While another cell is busy, this kernel hears a click only when that cell has ended."


_REASON = 160  # characters of an error that are shown
_JUST_A_NUMBER = re.compile(r"-?[\d.]+ ?%?")


class Stopped(Protocol):
    """What became of a job that was to be stopped, in one sentence as `str`."""

    @property
    def confirmed(self) -> bool: ...

    @property
    def error(self) -> Exception | None: ...


class Handle(Protocol):
    """The part of a job's handle that a click needs."""

    def cancel_soon(self) -> concurrent.futures.Future[Any] | None: ...


@dataclass(frozen=True, slots=True)
class StripView:
    """What the strip shows at one moment; what is None or empty is left out.

    Args:
        status: Where the job stands.
        queue: Seconds in the queue.
        run: Seconds on a worker.
        first_token: Seconds from the start of the run to the first piece of text.
        rate: Its speed and cost in words, such as `41 tok/s`.
        progress: What the job says about its progress.
        reason: Why it waits.
        is_cancelling: Whether a cancel is on its way, whoever asked for it.
    """

    status: JobStatus
    queue: float | None = None
    run: float | None = None
    first_token: float | None = None
    rate: str = ""
    progress: Progress | None = None
    reason: str = ""
    is_cancelling: bool = False


class JobStrip:
    """One line above the output of a running job.

    Args:
        name: What runs, such as the endpoint's name.
        handle: Asked to cancel by a click.
        clicks_heard_while_busy: Whether clicks are heard while another cell is busy; where they
            are known not to be, the button's tooltip says so.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        handle: Handle,
        *,
        clicks_heard_while_busy: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._handle, self._clock = name, handle, clock
        self._tooltip = f"Cancel this job of {name} on its endpoint, and wait until that is confirmed."
        if clicks_heard_while_busy is False:
            self._tooltip += f" {_DEAF}"
        self._is_stopping = False  # from a click here until it is known what came of it
        self._shown = StripView(JobStatus.IN_QUEUE)
        self._updated_at = float("-inf")
        self._is_closed = False
        fixed = "0 0 auto"
        self._badge = _html(flex=fixed)
        self._line = _html(flex="1 1 18em", min_width="0")
        self._notice = _html(flex="1 0 100%", display="none")
        self._cancel = ipywidgets.Button(
            description="Cancel",
            icon="stop",
            tooltip=self._tooltip,
            layout=ipywidgets.Layout(flex=fixed, width="auto", min_width="9em", height="26px", margin="0"),
        )
        self._cancel.on_click(self._on_cancel)
        self._box = ipywidgets.HBox(
            # the button comes second, so that a narrow page keeps it beside the status
            [self._badge, self._cancel, self._line, self._notice],
            layout=ipywidgets.Layout(
                flex_flow="row wrap", align_items="center", grid_gap="2px 10px", overflow="hidden"
            ),
        )
        self._box.add_class("nbx-job")
        self._show(self._shown)

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The buttons whose clicks must come through while a cell waits."""
        return (self._cancel,)

    def update(self, view: StripView) -> None:
        """Show another moment; a mere change of numbers at most twice a second."""
        now = self._clock()
        is_news = (view.status, view.is_cancelling) != (self._shown.status, self._shown.is_cancelling)
        if (is_news or now - self._updated_at >= SECONDS_BETWEEN_UPDATES) and not self._is_closed:
            self._show(view)
            self._updated_at = now

    def _show(self, view: StripView) -> None:
        is_stopping = (self._is_stopping or view.is_cancelling) and not view.status.is_final
        self._shown = view
        self._badge.value = badge(self._name, view.status, is_cancelling=is_stopping)
        self._line.value = line(view)
        self._cancel.disabled = is_stopping or view.status.is_final
        if is_stopping:
            self._cancel.description = "Cancelling…"
        else:
            self._cancel.description = "Cancelled" if view.status is JobStatus.CANCELLED else "Cancel"

    def _say(self, text: str) -> None:
        self._notice.value = f'<div class="nbx-strip" role="status">{_text(text)}</div>' if text else ""
        self._notice.layout.display = None if text else "none"

    def close(self) -> None:
        """Remove every widget model that was made; a second call does nothing."""
        self._is_closed = True
        for widget in (self._box, self._badge, self._line, self._notice, self._cancel):
            for model in (widget, widget.layout, getattr(widget, "style", None)):
                if model is not None:
                    model.close()

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self._box._repr_mimebundle_() or {})
        return {**bundle, "text/plain": f"{self._name}: running"}

    def _on_cancel(self, _: Any) -> None:
        if self._cancel.disabled:  # the second half of a double click
            return
        self._is_stopping = True
        self._say("")
        self._show(self._shown)
        stopping = self._handle.cancel_soon()
        if stopping is None:
            self._end_stopping("it had already ended: there was nothing to cancel")
        else:
            stopping.add_done_callback(self._on_stopped)

    def _on_stopped(self, stopping: concurrent.futures.Future[Stopped]) -> None:
        """Tell what came of a cancel, in whatever thread that got known."""
        if stopping.cancelled():
            self._end_stopping(_unconfirmed("the session closed"))
        elif (bug := stopping.exception()) is not None:
            self._end_stopping(_unconfirmed(str(bug) or type(bug).__name__))
        elif not (stopped := stopping.result()).confirmed:
            self._end_stopping(_unconfirmed(str(stopped.error or f"last seen {_word(self._shown.status)}")))
        else:
            self._end_stopping("" if self._shown.status is JobStatus.CANCELLED else str(stopped))

    def _end_stopping(self, told: str) -> None:
        self._is_stopping = False
        if not self._is_closed:
            self._say(told)
            self._show(self._shown)


def _html(**layout: str) -> Any:
    return ipywidgets.HTML(layout=ipywidgets.Layout(margin="0", **layout))


def _unconfirmed(reason: str) -> str:
    reason = reason.rstrip(".")
    reason = reason if len(reason) <= _REASON else f"{reason[: _REASON - 1]}…"
    return f"not confirmed: {reason}; Cancel asks again"


def _word(status: JobStatus) -> str:
    return _WORDS.get(status, str(status).lower())


def badge(name: str, status: JobStatus, *, is_cancelling: bool) -> str:
    """Whose job it is, and where it stands, as HTML that a screen reader tells when it changes."""
    colour = _COLOURS[_TONES.get(status, _WAITING)]
    word = "cancelling" if is_cancelling else _word(status)
    return (
        f'{_STYLE}<div class="nbx-strip" role="status"><span>'
        f'<i aria-hidden="true" style="color: {colour}"></i>{html.escape(name)} '
        f'<b style="color: {colour}">{html.escape(word)}</b></span></div>'
    )


def line(view: StripView) -> str:
    """The times, the speed and the progress of a job, as HTML."""
    parts = [
        _time(label, seconds)
        for label, seconds in (("queue", view.queue), ("run", view.run), ("first token", view.first_token))
        if seconds is not None
    ]
    parts += [_text(text) for text in (view.rate, view.reason) if text]
    if view.progress is not None:
        parts.append(_progress(view.progress))
    return f'<div class="nbx-strip">{" · ".join(parts)}</div>'


def _time(label: str, seconds: float) -> str:
    return f'<span>{label} <span class="nbx-number">{html.escape(render.duration(seconds))}</span></span>'


def _text(text: str) -> str:
    return f'<span class="nbx-text">{html.escape(text)}</span>'


def _progress(progress: Progress) -> str:
    if progress.fraction is None:
        return _text(progress.text)
    percent = round(100 * progress.fraction)
    bar = (
        f'<progress max="100" value="{percent}" aria-label="progress"></progress>'
        f' <span class="nbx-number">{percent} %</span>'
    )
    return bar if _JUST_A_NUMBER.fullmatch(progress.text) else f"{bar} · {_text(progress.text)}"
