"""The jobs panel: a page of jobs, each with Cancel, Retry and Show.

Made on the main thread; updated and closed from any. It decides nothing: it shows a `JobsView`,
and a click asks its `Board`. There are as many buttons as rows on a page, however many jobs there are;
the texts of all rows are one widget and their times, which go on, another one, so that a second costs a
page one small message.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from notebook_ext import render
from notebook_ext.types import JobStatus
from notebook_ext.widgets import panel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["PAGE", "Board", "JobLine", "JobsPanel", "JobsView"]

PAGE = 20
"""Rows on a page."""
SETTLE = 0.6
"""Seconds for which a row that has just changed places takes no click: it was meant for what stood there."""
_ROW_HEIGHT = 28
_WORDS = {JobStatus.IN_QUEUE: "queued", JobStatus.IN_PROGRESS: "running", JobStatus.TIMED_OUT: "timed out"}
_TONES = {
    JobStatus.IN_PROGRESS: "live",
    JobStatus.COMPLETED: "good",
    JobStatus.FAILED: "bad",
    JobStatus.TIMED_OUT: "bad",
    JobStatus.LOST: "bad",
    JobStatus.AMBIGUOUS: "warn",
}
_STYLE = """
.nbx-row { display: grid; align-items: center; height: 28px; column-gap: 10px; padding-right: 10px;
  grid-template-columns: 3.2em minmax(4em, 8em) 8em minmax(0, 1fr) 6.4em }
.nbx-times .nbx-row { grid-template-columns: 5.6em 5.6em; text-align: right }
.nbx-row > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.nbx .nbx-row .nbx-dot { margin-left: 0 }
.nbx .nbx-row b { font-weight: 400 }
.nbx .nbx-names { box-sizing: border-box; border-bottom: 1px solid var(--jp-border-color2, #e0e0e0) }
.nbx .nbx-earlier { display: flex; align-items: flex-end; padding-bottom: 2px; box-sizing: border-box }
.nbx-buttons::before { content: ""; flex: 0 0 28px; box-sizing: border-box;
  border-bottom: 1px solid var(--jp-border-color2, #e0e0e0) }
.nbx-buttons .nbx-first { margin-top: 28px; overflow: visible;
  box-shadow: 0 -1px 0 var(--jp-border-color2, #e0e0e0) }
.nbx-buttons .nbx-first.nbx-shown { box-shadow: 0 -1px 0 var(--jp-border-color2, #e0e0e0),
  inset 0 -2px 0 var(--jp-brand-color1, #1976d2) }
.nbx-table .jupyter-button { line-height: 26px }
.nbx-panel .nbx-shown { box-shadow: inset 0 -2px 0 var(--jp-brand-color1, #1976d2) }
@media (forced-colors: active) { .nbx-panel .nbx-shown { box-sizing: border-box; border-bottom: 2px solid } }
@container (max-width: 760px) {
  .nbx-row { grid-template-columns: 3.2em minmax(4em, 6em) 7em minmax(0, 1fr) }
  .nbx-times .nbx-row { grid-template-columns: 5.6em }
  .nbx-row .nbx-wide, .nbx-times .nbx-row > :first-child { display: none } }
@container (max-width: 520px) {
  .nbx-row { grid-template-columns: 2.8em 14px minmax(0, 1fr); column-gap: 4px; padding-right: 4px }
  .nbx-table .jupyter-button { max-width: 52px }
  .nbx-times, .nbx-row .nbx-medium, .nbx .nbx-row b, .nbx-row .nbx-status { display: none } }
"""


class Board(Protocol):
    """What a click asks; each returns at once."""

    def cancel(self, number: int) -> object: ...

    def retry(self, number: int) -> object: ...

    def show(self, number: int) -> object: ...

    def hide(self) -> object: ...

    def turn(self, pages: int) -> object: ...

    def ask_cancel_all(self) -> object: ...

    def cancel_all(self) -> object: ...

    def stop(self) -> object: ...


@dataclass(frozen=True, slots=True)
class JobLine:
    """One job at one moment.

    Args:
        number: Its number, shown as `@17`.
        endpoint: The endpoint's name.
        status: Where it stands.
        prompt: The first words of what was asked.
        submitted: The time of day, and the day where it was another one.
        queue: Seconds in the queue.
        run: Seconds on a worker.
        can_cancel: Whether there is something to cancel.
        can_retry: Whether it may be queued again.
        is_cancelling: Whether a cancel is on its way and not yet confirmed.
        is_shown: Whether its result stands below the table.
        is_earlier: Whether the journal knows it, and not this session; those come last.
    """

    number: int
    endpoint: str
    status: JobStatus
    prompt: str = ""
    submitted: str = ""
    queue: float | None = None
    run: float | None = None
    can_cancel: bool = False
    can_retry: bool = False
    is_cancelling: bool = False
    is_shown: bool = False
    is_earlier: bool = False


@dataclass(frozen=True, slots=True)
class JobsView:
    """What the panel shows at one moment.

    Args:
        lines: The jobs of this page, the oldest first.
        first: The place of the first of them among all, from 0.
        total: How many jobs there are.
        active: How many of them have not ended.
        summary: How many stand where, in words.
    """

    lines: Sequence[JobLine] = ()
    first: int = 0
    total: int = 0
    active: int = 0
    summary: str = ""


class JobsPanel(panel.Panel):
    """A table of jobs that is alive.

    Args:
        board: Asked by clicks.
        clicks_heard_while_busy: Whether clicks are heard while another cell is busy; None where that
            is not known.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        board: Board,
        *,
        clicks_heard_while_busy: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        heard = clicks_heard_while_busy
        cancel_all = panel.Confirm(
            "Cancel all of mine…",
            board.ask_cancel_all,
            board.cancel_all,
            icon="stop",
            tooltip="Cancel every job of this notebook that has not ended; it asks first.",
            heard=heard,
        )
        super().__init__(_STYLE, cancel_all)
        self._board = board
        self._most_rows = 0
        layout = ipywidgets.Layout
        self._looks = _Looks()
        self._rows = [_Row(board, self._looks, self._message, clock) for _ in range(PAGE)]
        self._texts, self._times = panel.html_box(flex="1 1 auto"), panel.html_box(flex="0 0 auto")
        self._buttons = ipywidgets.VBox([], layout=layout(flex="0 0 auto", overflow="visible"))
        self._buttons.add_class("nbx-buttons")
        self._table = ipywidgets.HBox(
            [self._texts, self._times, self._buttons], layout=layout(overflow="hidden", display="none")
        )
        self._table.add_class("nbx-table")
        self._before = panel.button("Previous", lambda: board.turn(-1), icon="chevron-left", heard=heard)
        self._after = panel.button("Next", lambda: board.turn(1), icon="chevron-right", heard=heard)
        self._place = panel.html_box(flex="0 0 auto")
        self._pager = ipywidgets.HBox(
            [self._before, self._place, self._after], layout=layout(align_items="center", grid_gap="8px")
        )
        self._stop = panel.button(
            "Close", board.stop, icon="times", tooltip="Leave the table as it is now.", heard=heard
        )
        self._foot = ipywidgets.HBox(
            [*self._question.widgets, self._stop, self._message.widget],
            layout=layout(flex_flow="row wrap", align_items="center", grid_gap="4px 8px"),
        )
        self._title = panel.html_box(flex="1 1 auto")
        self._hide = panel.button("Hide", board.hide, icon="eye-slash", heard=heard)
        self._output = ipywidgets.Output(layout=layout(max_height="400px", overflow="auto"))
        self._result_head = ipywidgets.HBox([self._title, self._hide], layout=layout(align_items="center"))
        self.root.layout.grid_gap = "3px"
        self._arrange(has_pages=False, has_result=False)
        self.update(JobsView())

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The widgets whose messages must come through while a cell runs."""
        own = (self._before, self._after, *self._question.widgets, self._stop, self._hide, self.root)
        return (*own, *(button for row in self._rows for button in row.buttons))

    def update(self, view: JobsView) -> None:
        """Show another moment: what has not changed is not touched; after the end nothing is."""
        if self._is_closed:
            return
        panel.set_value(self._head, _head(view))
        panel.set_value(self._texts, _texts(view.lines))
        panel.set_value(self._times, _times(view.lines))
        first = _first_earlier(view.lines)
        for at, (row, line) in enumerate(zip(self._rows, view.lines, strict=False)):
            row.show(line, is_first=at == first)
        count = len(view.lines)
        if len(self._buttons.children) != count:
            self._buttons.children = [row.root for row in self._rows[:count]]
            self._table.layout.display = None if count else "none"
        if count > self._most_rows:  # the page that is turned to may be shorter: nothing below it moves
            self._most_rows = count
            self._table.layout.min_height = f"{(count + 1) * _ROW_HEIGHT}px"
        last = view.first + count
        self._arrange(has_pages=view.total > count, has_result=self._has_result)
        panel.set_value(
            self._place,
            f'<div class="nbx nbx-soft">{view.first + 1} to {last} of {view.total}</div>',
        )
        self._before.disabled, self._after.disabled = view.first <= 0, last >= view.total
        self._question.enable(is_enabled=view.active > 0)

    def show_result(self, title: str, bundles: Sequence[Mapping[str, Any]]) -> None:
        """Show mime bundles below the table, in place of what was shown there."""
        if self._is_closed:
            return
        panel.set_value(self._title, f'<div class="nbx nbx-soft">{html.escape(title)}</div>')
        self._output.outputs = tuple(
            {"output_type": "display_data", "data": dict(bundle), "metadata": {}} for bundle in bundles
        )
        self._arrange(has_pages=self._has_pages, has_result=True)

    def hide_result(self) -> None:
        """Show no result."""
        if not self._is_closed:
            self._output.outputs = ()
            self._arrange(has_pages=self._has_pages, has_result=False)

    def _arrange(self, *, has_pages: bool, has_result: bool) -> None:
        self._has_pages, self._has_result = has_pages, has_result
        pages = (self._pager,) if has_pages else ()
        result = (self._result_head, self._output) if has_result else ()
        children = (self._sheet, self._head, self._table, *pages, self._foot, *result)
        if self.root.children != children:
            self.root.children = children

    def _close_parts(self) -> None:
        super()._close_parts()
        for look in self._looks.models:
            look.close()

    @property
    def _parts(self) -> tuple[Any, ...]:
        rows = (widget for row in self._rows for widget in (row.root, *row.buttons))
        foot = (*self._question.widgets, self._stop, self._message.widget, self._foot)
        result = (self._title, self._hide, self._result_head, self._output)
        table = (self._texts, self._times, self._buttons, self._table)
        return (*rows, *table, self._before, self._after, self._place, self._pager, *foot, *result)

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self.root._repr_mimebundle_() or {})
        return {
            **bundle,
            "text/plain": "this notebook's jobs, and the journal's last ones, while they are watched",
        }


class _Looks:
    """The layouts and styles that all rows share: each row would have eight of its own."""

    def __init__(self) -> None:
        layout = ipywidgets.Layout
        button = {"height": "24px", "margin": "0", "padding": "0", "flex": "0 0 auto"}
        self.row = layout(align_items="center", grid_gap="4px", flex="0 0 auto", height=f"{_ROW_HEIGHT}px")
        self.narrow, self.wide = layout(width="58px", **button), layout(width="88px", **button)
        self.hidden = layout(width="88px", visibility="hidden", **button)
        self.gone = layout(display="none")
        self.button_style = ipywidgets.ButtonStyle()

    @property
    def models(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


class _Row:
    """The buttons of the job in one row of the table."""

    def __init__(
        self, board: Board, looks: _Looks, message: panel.Message, clock: Callable[[], float]
    ) -> None:
        self._board, self._looks, self._message, self._clock = board, looks, message, clock
        self._line: JobLine | None = None
        self._since = float("-inf")  # when its buttons became this job's
        self._cancel = self._button("Cancel", self._on_cancel, looks.wide)
        self._retry = self._button("Retry", board.retry, looks.gone)
        self._show = self._button("Show", board.show, looks.narrow)
        self.buttons = (self._cancel, self._retry, self._show)
        self.root = ipywidgets.HBox(self.buttons, layout=looks.row)

    def show(self, line: JobLine, *, is_first: bool) -> None:
        """Offer what can be done with a job; the first one from earlier has a heading above it."""
        self._mark("nbx-first", is_first)
        self._mark("nbx-shown", line.is_shown)
        before = self._line
        if line == before:
            return
        if before is not None and (before.number, before.can_retry) != (line.number, line.can_retry):
            self._since = self._clock()
        self._line = line
        # Cancel and Retry share a place; a click in the moment of their exchange does nothing
        looks = self._looks
        is_alive = line.can_cancel or line.is_cancelling
        self._cancel.description = "Cancelling…" if line.is_cancelling else "Cancel"
        self._cancel.layout = looks.gone if line.can_retry else looks.wide if is_alive else looks.hidden
        self._cancel.disabled = line.is_cancelling or not line.can_cancel
        self._retry.layout = looks.wide if line.can_retry else looks.gone
        self._retry.disabled = not line.can_retry
        for button in self.buttons:
            button.tooltip = f"{button.description} @{line.number}"

    def _mark(self, name: str, is_so: bool) -> None:
        (self.root.add_class if is_so else self.root.remove_class)(name)

    def _button(self, label: str, ask: Callable[[int], object], layout: Any) -> Any:
        def click(button: Any) -> None:
            line = self._line
            if line is None or button.disabled:
                return
            if self._clock() - self._since < SETTLE:
                self._message.say("The table has just changed, so nothing was done. Click again.")
                return
            ask(line.number)

        made = ipywidgets.Button(description=label, layout=layout, style=self._looks.button_style)
        made.on_click(click)
        return made

    def _on_cancel(self, number: int) -> None:
        self._cancel.disabled = True
        self._cancel.description = "Cancelling…"
        self._board.cancel(number)


def _head(view: JobsView) -> str:
    summary = html.escape(view.summary or "none yet")
    return f'<div class="nbx"><b>Jobs</b> <span class="nbx-soft">· {summary}</span></div>'


def _first_earlier(lines: Sequence[JobLine]) -> int | None:
    return next((at for at, line in enumerate(lines) if line.is_earlier), None)


def _with_headings(names: str, earlier: str, rows: list[str], first: int | None) -> str:
    if first is not None:
        rows.insert(first, f'<div class="nbx-row nbx-soft nbx-names nbx-earlier">{earlier}</div>')
    return f'<div class="nbx-row nbx-soft nbx-names">{names}</div>{"".join(rows)}'


def _texts(lines: Sequence[JobLine]) -> str:
    """All that does not change while time goes on."""
    names = (
        '<span></span><span class="nbx-medium">endpoint</span><span><span class="nbx-status">status</span>'
        '</span><span>prompt</span><span class="nbx-wide">sent</span>'
    )
    earlier = "from earlier sessions and other notebooks, the newest first"
    rows = _with_headings(names, earlier, [_row(line) for line in lines], _first_earlier(lines))
    return f'<div class="nbx">{rows}</div>'


def _times(lines: Sequence[JobLine]) -> str:
    names = "<span>queue</span><span>run</span>"
    rows = _with_headings(names, "", [_row_times(line) for line in lines], _first_earlier(lines))
    return f'<div class="nbx nbx-times">{rows}</div>'


def _opened(line: JobLine) -> str:
    return f'<div class="nbx-row{" nbx-shown" if line.is_shown else ""}">'


def _row(line: JobLine) -> str:
    word = "cancelling" if line.is_cancelling else _WORDS.get(line.status, str(line.status).lower())
    prompt = html.escape(line.prompt)
    return (
        f'{_opened(line)}<span class="nbx-soft">@{line.number}</span>'
        f'<span class="nbx-medium">{html.escape(line.endpoint)}</span>'
        f'<span title="{html.escape(word)}">'
        f"{panel.badge(word, _TONES.get(line.status, 'idle'))}</span>"
        f'<span title="{prompt}">{prompt}</span>'
        f'<span class="nbx-soft nbx-wide">{line.submitted}</span></div>'
    )


def _row_times(line: JobLine) -> str:
    times = ("" if seconds is None else render.duration(seconds) for seconds in (line.queue, line.run))
    return f"{_opened(line)}{''.join(f'<span>{time}</span>' for time in times)}</div>"
