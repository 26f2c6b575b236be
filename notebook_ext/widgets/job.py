"""The strip of a running job: its status, one live line, and Cancel.

Made on the main thread; updated and closed from any. It decides nothing: it shows a `StripView`,
and a click asks the handle.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from notebook_ext import render
from notebook_ext.types import JobStatus, Progress

if TYPE_CHECKING:
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
# Words and numbers are given room for their usual lengths: nothing moves while they change.
_STYLE = """<style>
.nbx-strip { font: 12px/20px var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, inherit); font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.nbx-strip span { display: inline-block; white-space: nowrap }
.nbx-strip .nbx-text { display: inline; white-space: normal }
.nbx-strip .nbx-number { min-width: 2.5em }
.nbx-strip b { display: inline-block; min-width: 6.2em; font-weight: 600 }
.nbx-strip i { display: inline-block; width: 8px; height: 8px; margin-right: 7px; border-radius: 50%;
  border: 1px solid currentcolor; background: currentcolor }
.nbx-strip progress { width: 9em; max-width: 100%; vertical-align: middle;
  accent-color: var(--jp-brand-color1, #1976d2) }
</style>"""
_DEAF = "While another cell is busy, this kernel hears a click only when that cell has ended."


class Handle(Protocol):
    """The part of a job's handle that a click needs."""

    def cancel_soon(self) -> object: ...


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
        is_cancelling: Whether a cancel is on its way and not yet confirmed.
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
        self._asked = False  # from the click until the view has told what came of it
        self._shown = StripView(JobStatus.IN_QUEUE)
        self._updated_at = float("-inf")
        self._is_closed = False
        fixed = "0 0 auto"
        self._badge = ipywidgets.HTML(layout=ipywidgets.Layout(flex=fixed, margin="0"))
        self._line = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 18em", min_width="0", margin="0"))
        self._cancel = ipywidgets.Button(
            description="Cancel",
            icon="stop",
            tooltip=self._tooltip,
            layout=ipywidgets.Layout(flex=fixed, width="auto", min_width="9em", height="26px", margin="0"),
        )
        self._cancel.on_click(self._on_cancel)
        self._box = ipywidgets.HBox(
            [self._badge, self._cancel, self._line],  # so a narrow page keeps the button beside the status
            layout=ipywidgets.Layout(
                flex_flow="row wrap", align_items="center", grid_gap="2px 10px", overflow="hidden"
            ),
        )
        self._show(self._shown)

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The buttons whose clicks must come through while a cell waits."""
        return (self._cancel,)

    def update(self, view: StripView) -> None:
        """Show another moment; a mere change of numbers at most twice a second."""
        now, before = self._clock(), self._shown
        changed = (view.status, view.is_cancelling) != (before.status, before.is_cancelling)
        if self._is_closed or not (changed or now - self._updated_at >= SECONDS_BETWEEN_UPDATES):
            return
        if before.is_cancelling and not view.is_cancelling:
            self._asked = False
        self._show(view)
        self._updated_at = now

    def _show(self, view: StripView) -> None:
        is_cancelling = (view.is_cancelling or self._asked) and not view.status.is_final
        self._shown = view
        self._badge.value = badge(self._name, view.status, is_cancelling=is_cancelling)
        self._line.value = line(view)
        self._cancel.disabled = is_cancelling or view.status.is_final
        if is_cancelling:
            self._cancel.description = "Cancelling…"
        else:
            self._cancel.description = "Cancelled" if view.status is JobStatus.CANCELLED else "Cancel"

    def close(self) -> None:
        """Remove every widget model that was made; a second call does nothing."""
        self._is_closed = True
        for widget in (self._box, self._badge, self._line, self._cancel):
            for model in (widget, widget.layout, getattr(widget, "style", None)):
                if model is not None:
                    model.close()

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self._box._repr_mimebundle_() or {})
        return {**bundle, "text/plain": f"{self._name}: running"}

    def _on_cancel(self, _: Any) -> None:
        if self._cancel.disabled:  # the second half of a double click
            return
        self._asked = True
        self._show(self._shown)
        self._handle.cancel_soon()


def badge(name: str, status: JobStatus, *, is_cancelling: bool) -> str:
    """Whose job it is, and where it stands, as HTML that a screen reader tells when it changes."""
    colour = _COLOURS[_TONES.get(status, _WAITING)]
    word = "cancelling" if is_cancelling else _WORDS.get(status, str(status).lower())
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
    return (
        f'<progress max="100" value="{percent}" aria-label="progress"></progress>'
        f' <span class="nbx-number">{percent} %</span> {_text(progress.text)}'
    )
