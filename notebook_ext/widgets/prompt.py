"""The prompt panel: an endpoint, a prompt, its settings, and the answer as it comes.

Made on the main thread; updated and closed from any. It decides nothing: a click asks its `Desk`,
which tells it what to show.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from notebook_ext.types import JobStatus
from notebook_ext.widgets import job, panel
from notebook_ext.widgets.output import OutputBox

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["Desk", "PromptPanel", "Run", "Typed"]

MOST_RUNS = 20
"""Runs that can be flipped through; older ones are forgotten here."""

_LINES = ("stop", "parameters")  # several values, one in each line
_NUMBERS = ("temperature", "max_tokens", "top_p", "seed")
# The last rule: what is saved with the notebook follows the panel in its cell. A reader without a kernel sees
# that in place of the panel, and nobody sees both.
_STYLE = """
.nbx-prompt :is(.widget-label, .widget-checkbox *) { font: 12px/20px var(--jp-ui-font-family, sans-serif) }
.nbx-prompt .widget-label { width: auto }
.nbx-prompt .widget-label-basic { display: flex; align-items: center; height: 28px }
.nbx-prompt .nbx-above { flex-direction: column; align-items: stretch; height: auto; margin: 0 }
.nbx-prompt .nbx-above .widget-label { text-align: left; height: 20px; line-height: 20px }
.nbx-prompt .nbx-above :is(input, textarea) { flex: 0 0 auto; min-height: 28px }
.nbx-prompt textarea { font-family: var(--jp-code-font-family, monospace); font-size: 13px; resize: vertical }
.nbx-prompt :is(input, select, textarea):focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -1px }
.nbx-prompt .widget-dropdown > select { appearance: auto; background-image: none }
.nbx-prompt pre { font: 12px/18px var(--jp-code-font-family, monospace); white-space: pre-wrap; margin: 0;
  overflow-wrap: anywhere; max-height: 20em; overflow: auto; padding: 6px 8px; user-select: all;
  color: var(--jp-content-font-color1, inherit); background: var(--jp-layout-color2, #f5f5f5);
  border: 1px solid var(--jp-border-color2, #e0e0e0) }
.nbx-prompt pre:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2) }
.nbx-prompt code { font: 12px var(--jp-code-font-family, monospace); user-select: all }
.nbx-answer .jp-OutputArea-prompt { display: none }
.nbx-answer .jp-OutputArea-output { padding: 0 }
.jp-OutputArea-child:has(.nbx-prompt) + .jp-OutputArea-child { display: none }
"""


@dataclass(frozen=True, slots=True)
class Typed:
    """What stands in the panel's fields.

    Args:
        endpoint: The endpoint's name.
        prompt: The prompt.
        options: The settings that were made, by the names that `%endpoint run` has for them.
    """

    endpoint: str
    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has ended.

    Args:
        number: This notebook's number of the job.
        typed: What was asked.
        status: How it ended.
        footer: What it took, in one line.
        bundles: What it gave, as mime bundles.
    """

    number: int
    typed: Typed
    status: JobStatus
    footer: str
    bundles: Sequence[Mapping[str, Any]] = ()


class Desk(Protocol):
    """What the panel asks; `run` and `cancel` return before anything has come of them."""

    def endpoints(self) -> Sequence[str]: ...

    def places(self, endpoint: str) -> Collection[str]: ...

    def cell(self, typed: Typed) -> str: ...

    def run(self, typed: Typed) -> object: ...

    def cancel(self) -> object: ...


class PromptPanel:
    """A prompt by mouse and keyboard.

    Args:
        desk: Does what is clicked.
        endpoint: The endpoint that is chosen at first.
        clicks_heard_while_busy: Whether clicks are heard while another cell is busy; None where that
            is not known.
    """

    def __init__(self, desk: Desk, endpoint: str, *, clicks_heard_while_busy: bool | None = None) -> None:
        self._desk = desk
        self._runs: list[Run] = []
        self._at = 0  # the run that is shown; one past the last where none is
        self._draft: Typed | None = None  # what was typed and not run, while an older run is shown
        self._running: Typed | None = None
        self._view = job.StripView(JobStatus.IN_QUEUE)
        self._number = 0
        self._is_filling = False
        self._is_cancelling = False
        self._is_closed = False
        self.answer = OutputBox()
        """Where the answer is drawn while it comes."""
        self._make_fields(endpoint)
        self._make_buttons(clicks_heard_while_busy)
        self.root = self._laid_out()
        self.root.add_class("nbx-panel")
        self.root.add_class("nbx-prompt")
        for widget in self._fields:
            widget.observe(self._on_typed, names="value")
        self._offer_settings()
        self._show_idle()

    # ------------------------------------------------------------------ what it is made of

    def _make_fields(self, endpoint: str) -> None:
        self._endpoint = ipywidgets.Dropdown(
            options=list(self._desk.endpoints()),
            value=endpoint,
            description="Endpoint",
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="26em", max_width="100%", margin="0"),
        )
        self._prompt = _text_area("Prompt", 5, "{{ name }} is replaced by that variable")
        self._settings = {
            "system": _text_area("System", 2, "who the model is to be"),
            "parameters": _text_area("Further input, one key=value in each line", 2, "steps=30"),
            "temperature": _text("Temperature", "7em"),
            "max_tokens": _text("Max tokens", "7em"),
            "top_p": _text("Top p", "7em"),
            "seed": _text("Seed", "7em"),
            "model": _text("Model", "14em"),
            "stop": _text_area("Stop texts, one in each line", 1, ""),
            "verbatim": ipywidgets.Checkbox(
                description="Verbatim: {{ }} is sent as it is",
                indent=False,
                layout=ipywidgets.Layout(width="auto", height="28px", margin="0"),
            ),
        }
        self._settings["stop"].layout.width = "14em"

    def _make_buttons(self, heard: bool | None) -> None:
        self._run = panel.button("Run", self._on_run, icon="play", tooltip="Submit this prompt.", heard=heard)
        self._run.button_style = "primary"
        self._cancel = panel.button(
            "Cancel",
            self._on_cancel,
            icon="stop",
            tooltip="Cancel the job on its endpoint, and wait until that is confirmed.",
            heard=heard,
        )
        self._cancel.layout.min_width = "9.5em"  # so that nothing moves while it says "Cancelling…"
        self._older = panel.button(
            "Older", lambda: self._flip(-1), icon="chevron-left", tooltip="Show the run before.", heard=heard
        )
        self._newer = panel.button(
            "Newer",
            lambda: self._flip(1),
            icon="chevron-right",
            tooltip="Show the run after it.",
            heard=heard,
        )
        self._code_shown = ipywidgets.ToggleButton(
            description="Show cell",
            icon="code",
            tooltip="Show the %%endpoint cell that does the same.",
            layout=ipywidgets.Layout(width="auto", height="26px", margin="0", flex="0 0 auto"),
        )
        self._code_shown.observe(lambda _: self._show_code(), names="value")
        self._where = panel.html_box(min_width="7em")
        self._state = panel.html_box()
        self._line = panel.html_box(flex="1 1 18em")
        self._code = panel.html_box()

    def _laid_out(self) -> Any:
        row = {"flex_flow": "row wrap", "align_items": "center", "overflow": "visible"}
        self._short = ipywidgets.HBox(
            layout=ipywidgets.Layout(**{**row, "align_items": "flex-end"}, grid_gap="6px 12px")
        )
        self._actions = ipywidgets.HBox(
            [self._run, self._cancel, self._older, self._newer, self._where, self._code_shown],
            layout=ipywidgets.Layout(**row, grid_gap="6px 8px"),
        )
        self._status = ipywidgets.HBox(
            [self._state, self._line],
            layout=ipywidgets.Layout(**row, grid_gap="2px 10px", min_height="22px"),
        )
        self.answer.box.layout.min_height = "6em"
        self.answer.box.add_class("nbx-answer")
        self._style = panel.style_sheet(_STYLE)
        return ipywidgets.VBox(
            [
                self._style,
                self._endpoint,
                self._settings["system"],
                self._settings["parameters"],
                self._short,
                self._prompt,
                self._actions,
                self._status,
                self._code,
                self.answer.box,
            ],
            layout=ipywidgets.Layout(grid_gap="6px", overflow="hidden"),
        )

    @property
    def _fields(self) -> tuple[Any, ...]:
        return (self._endpoint, self._prompt, *self._settings.values())

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The widgets whose messages must come through while a cell runs.

        The fields, too: a click must not overtake what was typed before it.
        """
        return (*self._fields, self._run, self._cancel, self._older, self._newer, self._code_shown, self.root)

    # ------------------------------------------------------------------ what the desk tells

    def start(self, number: int) -> None:
        """Make room for the answer of a job that was submitted."""
        self._number = number
        self.answer.empty()
        self._show_code()

    def update(self, view: job.StripView) -> None:
        """Show another moment of the running job."""
        if self._is_closed or self._running is None:
            return
        self._view = view
        is_cancelling = self._is_cancelling or view.is_cancelling
        self._show_cancel(is_cancelling=is_cancelling)
        name = f"@{self._number} {self._running.endpoint}"
        is_cancelling = is_cancelling and not view.status.is_final
        self._show_state(job.badge(name, view.status, is_cancelling=is_cancelling))
        panel.set_value(self._line, job.line(view))

    def finish(self, run: Run) -> None:
        """Keep a run that has ended, and show how; the answer stays as it was drawn."""
        if self._is_closed:
            return
        self._runs = [*self._runs, run][-MOST_RUNS:]
        self._at, self._draft = len(self._runs) - 1, None
        self._rest()
        self._show_end(run)

    def say(self, text: str, *, is_bad: bool = True) -> None:
        """Say in one line what went wrong; a job that runs goes on."""
        if self._is_closed:
            return
        tone, role = ("nbx-bad", "alert") if is_bad else ("nbx-soft", "status")
        self._line.value = f'<div class="nbx {tone}" role="{role}">{html.escape(text)}</div>'

    def refuse(self, reason: str) -> None:
        """Say why nothing was submitted; what was typed stays there, and the runs before can be had again."""
        if not self._is_closed:
            self._at, self._draft = len(self._runs), self._running
            self.answer.empty()
            self._show_idle()
            self.say(reason)

    def cannot_cancel(self, reason: str) -> None:
        """Say that the job may still run, and let Cancel be tried again."""
        if not self._is_closed and self._running is not None:
            self._allow_cancel()
            self.say(reason)

    def refresh(self) -> None:
        """Offer the endpoints that are known now."""
        known, chosen = list(self._desk.endpoints()), self._endpoint.value
        if not self._is_closed and known != list(self._endpoint.options):
            self._choose(chosen if chosen in known else known[0], known)

    def close(self) -> None:
        """Remove every widget model that was made; a second call does nothing."""
        self._is_closed = True
        self.answer.close()
        boxes = (self.root, self._short, self._actions, self._status)
        html_boxes = (self._style, self._where, self._state, self._line, self._code)
        panel.close((*boxes, *html_boxes, *self.buttons))

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self.root._repr_mimebundle_() or {})
        return {**bundle, "text/plain": "the prompt panel; `%endpoint panel prompt` opens it again"}

    # ------------------------------------------------------------------ what a person does

    def _on_run(self) -> None:
        typed = self._typed()
        self._running, self._is_cancelling = typed, False
        self._run.disabled = True
        self._allow_cancel()
        self._show_place()
        self._view = job.StripView(JobStatus.IN_QUEUE)
        self._show_state(job.badge(typed.endpoint, JobStatus.IN_QUEUE, is_cancelling=False))
        self._line.value = ""
        self._desk.run(typed)

    def _on_cancel(self) -> None:
        self._is_cancelling = True
        self.update(self._view)
        self._desk.cancel()

    def _on_typed(self, change: Any) -> None:
        if self._is_filling or self._is_closed:
            return
        if change["owner"] is self._endpoint:
            self._offer_settings()
        self._show_code()

    def _flip(self, step: int) -> None:
        typed = self._typed()
        if self._at == len(self._runs) or typed != self._runs[self._at].typed:
            self._draft = typed
        self._at = min(max(0, self._at + step), len(self._runs))
        if self._at < len(self._runs):
            self._show_run(self._runs[self._at])
        elif self._draft is not None:
            self._fill(self._draft)
            self.answer.empty()
            self._show_idle()

    # ------------------------------------------------------------------ what is shown

    def _typed(self) -> Typed:
        options = {name: _read(name, widget) for name, widget in self._offered()}
        given = {name: value for name, value in options.items() if value}
        return Typed(str(self._endpoint.value), self._prompt.value, given)

    def _offered(self) -> list[tuple[str, Any]]:
        return [(name, widget) for name, widget in self._settings.items() if widget.layout.display != "none"]

    def _offer_settings(self) -> None:
        """Show the settings that the chosen endpoint's profile has a place for; the others are not sent."""
        places = {*self._desk.places(str(self._endpoint.value)), "verbatim"}
        for name, widget in self._settings.items():
            widget.layout.display = None if name in places else "none"
        wide = ("system", "parameters")
        self._short.children = [widget for name, widget in self._offered() if name not in wide]

    def _choose(self, endpoint: str, known: Sequence[str]) -> None:
        self._is_filling = True
        try:
            self._endpoint.options = list(known)
            self._endpoint.value = endpoint
        finally:
            self._is_filling = False
        self._offer_settings()

    def _fill(self, typed: Typed) -> None:
        known = list(self._desk.endpoints())
        # one that was forgotten meanwhile can still be seen; running it says that it is unknown
        self._choose(typed.endpoint, known if typed.endpoint in known else [*known, typed.endpoint])
        self._is_filling = True
        try:
            self._prompt.value = typed.prompt
            for name, widget in self._settings.items():
                value = typed.options.get(name, type(widget.value)())
                widget.value = "\n".join(value) if isinstance(value, list) else value
        finally:
            self._is_filling = False
        self._show_code()

    def _show_run(self, run: Run) -> None:
        self._number = run.number
        self._fill(run.typed)
        self.answer.empty()
        for bundle in run.bundles:
            self.answer.show(bundle)
        self._show_end(run)

    def _show_end(self, run: Run) -> None:
        self._show_state(job.badge(f"@{run.number} {run.typed.endpoint}", run.status, is_cancelling=False))
        self.say(run.footer, is_bad=False)
        self._show_place()
        self._show_code()

    def _show_idle(self) -> None:
        self._show_state("")
        self._line.value = ""
        self._rest()
        self._show_code()

    def _show_state(self, badge: str) -> None:
        panel.set_value(self._state, badge)
        self._state.layout.display = None if badge else "none"

    def _rest(self) -> None:
        """Nothing runs (any more)."""
        self._running = None
        self._run.disabled = False
        self._cancel.disabled, self._cancel.description = True, "Cancel"
        self._show_place()

    def _allow_cancel(self) -> None:
        self._is_cancelling = False
        self._show_cancel(is_cancelling=False)

    def _show_cancel(self, *, is_cancelling: bool) -> None:
        self._cancel.disabled = is_cancelling
        self._cancel.description = "Cancelling…" if is_cancelling else "Cancel"

    def _show_place(self) -> None:
        """Which of the runs this is; while one runs, the others wait."""
        count, at = len(self._runs), self._at
        last = count if self._draft is not None else count - 1
        self._older.disabled = self._running is not None or at == 0
        self._newer.disabled = self._running is not None or at >= last
        told = "running" if self._running else f"run {at + 1} of {count}" if at < count else "not run yet"
        self._where.value = f'<div class="nbx nbx-soft" role="status">{told}</div>'

    def _show_code(self) -> None:
        """The cell that does what stands in the fields, and how to have it without copying."""
        if not self._code_shown.value:
            self._code.value = ""
            return
        typed = self._typed()
        is_run = typed == self._running or (
            self._at < len(self._runs) and typed == self._runs[self._at].typed and not self._running
        )
        hint = "A click selects it all."
        if is_run and self._number:
            hint += f" <code>%endpoint code @{self._number} --cell</code> inserts it below a cell."
        self._code.value = (
            f'<pre tabindex="0" role="textbox" aria-readonly="true" aria-multiline="true" '
            f'aria-label="the same as a cell">{html.escape(self._desk.cell(typed))}</pre>'
            f'<div class="nbx nbx-soft">{hint}</div>'
        )


def _text_area(label: str, rows: int, placeholder: str) -> Any:
    made = ipywidgets.Textarea(
        description=label,
        rows=rows,
        placeholder=placeholder,
        continuous_update=False,
        layout=ipywidgets.Layout(width="100%", height="auto", margin="0"),
    )
    made.add_class("nbx-above")
    return made


def _text(label: str, width: str) -> Any:
    made = ipywidgets.Text(
        description=label,
        placeholder="default",
        continuous_update=False,
        layout=ipywidgets.Layout(width=width, height="auto", margin="0"),
    )
    made.add_class("nbx-above")
    return made


def _read(name: str, widget: Any) -> Any:
    """A field's value as it would be typed; empty where nothing is."""
    if name in _LINES:
        return [item for item in widget.value.split("\n") if item.strip()]
    if name in _NUMBERS:
        return widget.value.strip()
    return widget.value
