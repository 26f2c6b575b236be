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

__all__ = ["JobStrip", "StripView"]

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
_TEXT = (
    "font: 12px/28px var(--jp-ui-font-family, system-ui, sans-serif);"
    "color: var(--jp-ui-font-color1, inherit); font-variant-numeric: tabular-nums;"
)
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
        self._status: tuple[JobStatus, bool] | None = None
        self._updated_at = float("-inf")
        self._is_closed = False
        fixed = "0 0 auto"
        self._badge = ipywidgets.HTML(layout=ipywidgets.Layout(flex=fixed, margin="0"))
        self._line = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 12em", min_width="0", margin="0"))
        self._cancel = ipywidgets.Button(
            description="Cancel",
            icon="stop",
            tooltip=self._tooltip,
            layout=ipywidgets.Layout(flex=fixed, width="8.5em", height="26px", margin="0"),
        )
        self._cancel.on_click(self._on_cancel)
        self._box = ipywidgets.HBox(
            [self._badge, self._line, self._cancel],
            layout=ipywidgets.Layout(
                flex_flow="row wrap", align_items="center", grid_gap="2px 10px", overflow="hidden"
            ),
        )
        self.update(StripView(JobStatus.IN_QUEUE))

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The buttons whose clicks must come through while a cell waits."""
        return (self._cancel,)

    def update(self, view: StripView) -> None:
        """Show another moment; a mere change of numbers at most twice a second."""
        status = (view.status, view.is_cancelling)
        now = self._clock()
        if self._is_closed or (status == self._status and now - self._updated_at < SECONDS_BETWEEN_UPDATES):
            return
        if status != self._status:
            self._badge.value = _badge(self._name, view)
            self._show_cancel(view)
        self._line.value = _line(view)
        self._status, self._updated_at = status, now

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
        self._cancel.disabled, self._cancel.description = True, "Cancelling…"
        self._handle.cancel_soon()

    def _show_cancel(self, view: StripView) -> None:
        if view.is_cancelling:
            label = "Cancelling…"
        elif view.status is JobStatus.CANCELLED:
            label = "Cancelled"
        else:
            label = "Cancel"
        self._cancel.description = label
        self._cancel.disabled = view.is_cancelling or view.status.is_final


def _badge(name: str, view: StripView) -> str:
    colour = _COLOURS[_TONES.get(view.status, _WAITING)]
    word = "cancelling" if view.is_cancelling else _WORDS.get(view.status, str(view.status).lower())
    return (
        f'<span role="status" style="{_TEXT} white-space: nowrap">'
        f'<span aria-hidden="true" style="display: inline-block; width: 8px; height: 8px; margin-right: 6px;'
        f' border-radius: 50%; background: {colour}; border: 1px solid {colour}"></span>'
        f"{html.escape(name)} "
        f'<b style="display: inline-block; min-width: 5.5em; font-weight: 600; color: {colour}">'
        f"{html.escape(word)}</b></span>"
    )


def _line(view: StripView) -> str:
    parts = [_time("queue", view.queue)]
    if view.run is not None:
        parts.append(_time("run", view.run))
    if view.first_token is not None:
        parts.append(_time("first token", view.first_token))
    parts += [_words(text) for text in (view.rate, view.reason) if text]
    if view.progress is not None:
        parts.append(_progress(view.progress))
    joined = ' <span aria-hidden="true">·</span> '.join(part for part in parts if part)
    return f'<div style="{_TEXT} min-height: 28px; overflow-wrap: anywhere">{joined}</div>'


def _time(label: str, seconds: float | None) -> str:
    if seconds is None:
        return ""
    number = html.escape(render.duration(seconds))
    # As wide as `59.9 s`: the rest of the line stays where it is while this counts.
    return (
        f'<span style="white-space: nowrap">{label} '
        f'<span style="display: inline-block; min-width: 3.6em; text-align: right">{number}</span></span>'
    )


def _words(text: str) -> str:
    return f"<span>{html.escape(text)}</span>"


def _progress(progress: Progress) -> str:
    text = html.escape(progress.text, quote=True)
    if progress.fraction is None:
        return f"<span>{text}</span>"
    percent = round(100 * progress.fraction)
    return (
        f'<progress max="100" value="{percent}" aria-label="progress" title="{text}"'
        f' style="width: 9em; max-width: 100%; vertical-align: middle;'
        f' accent-color: {_COLOURS[_RUNNING]}"></progress>'
        f' <span style="display: inline-block; min-width: 3em; text-align: right">{percent} %</span>'
        f" <span>{text}</span>"
    )
