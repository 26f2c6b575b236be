"""What the panels share: their look, their buttons, and a question before what cannot be undone."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import ipywidgets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "STYLE",
    "Confirm",
    "Message",
    "Panel",
    "badge",
    "button",
    "close",
    "count_views",
    "html_box",
    "set_value",
    "style_sheet",
]

# The front end's own colours, light and dark; the second ones are for pages without its variables. When the
# kernel has gone the front end marks what it led to: nothing of a panel looks alive then. The element is left
# open for what a panel adds.
STYLE = """<style>
.nbx-panel { border: 1px solid var(--jp-border-color2, #e0e0e0); border-radius: 4px; padding: 8px 12px;
  container-type: inline-size; max-width: 1100px; box-sizing: border-box; overflow: hidden }
.nbx { font: 12px/20px var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, inherit); font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.nbx b { font-weight: 600 }
.nbx .nbx-soft, .nbx.nbx-soft { color: var(--jp-ui-font-color2, #616161) }
.nbx .nbx-dot { display: inline-block; margin: 0 6px 0 8px; border: 4px solid; border-radius: 50% }
.nbx-idle { color: var(--jp-ui-font-color2, #616161) }
.nbx-live { color: var(--jp-brand-color1, #1976d2) }
.nbx-good { color: var(--jp-success-color1, #388e3c) }
.nbx-warn { color: var(--jp-warn-color1, #b26a00) }
.nbx-bad { color: var(--jp-error-color1, #d32f2f) }
.nbx-panel .jupyter-button:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2) }
.nbx-panel .jupyter-button:is(.mod-primary, .mod-danger):focus-visible { outline-offset: -3px;
  outline-color: var(--jp-ui-inverse-font-color0, #fff) }
@media (forced-colors: active) { .nbx-panel .jupyter-button { border: 1px solid } }
.nbx-panel.jupyter-widgets-disconnected .jupyter-button,
.nbx-panel.jupyter-widgets-disconnected .nbx-state { display: none }
.nbx-panel .jupyter-widgets-disconnected::before,
.nbx-panel.jupyter-widgets-disconnected::before { content: none }
.nbx-panel.jupyter-widgets-disconnected::after {
  content: "The kernel of this panel has gone. This was known last; run the cell again to go on.";
  font: 12px/20px var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-warn-color1, #b26a00) }
"""
_DEAF = "While another cell is busy, this kernel hears a click only when that cell has ended."
_GONE, _THERE = "none", None


def style_sheet(more: str = "") -> Any:
    """The panels' style sheet, and what one of them adds to it: a child that is never seen, sent once."""
    return ipywidgets.HTML(f"{STYLE}{more}</style>", layout=ipywidgets.Layout(display="none"))


def set_value(widget: Any, value: str) -> None:
    """Set what an HTML widget shows, if it is something else."""
    if widget.value != value:
        widget.value = value


def html_box(**layout: Any) -> Any:
    """A place for HTML that takes no room of its own; the arguments are those of a Layout."""
    return ipywidgets.HTML(layout=ipywidgets.Layout(**{"margin": "0", "min_width": "0", **layout}))


def button(
    label: str,
    on_click: Callable[[], object],
    *,
    icon: str = "",
    tooltip: str = "",
    heard: bool | None = None,
) -> Any:
    """A button in a panel.

    Args:
        label: What is on it.
        on_click: Called by a click, unless it is disabled: that was the second half of a double one.
        icon: The name of a Font Awesome icon.
        tooltip: What it does, in a sentence.
        heard: Whether a click is heard while another cell is busy; where it is known not to be, the
            tooltip says so.
    """
    made = ipywidgets.Button(
        description=label,
        icon=icon,
        tooltip=f"{tooltip} {_DEAF}" if heard is False else tooltip,
        layout=ipywidgets.Layout(width="auto", height="26px", margin="0", flex="0 0 auto"),
    )
    made.on_click(lambda _: None if made.disabled else on_click())
    return made


def badge(word: str, tone: str) -> str:
    """A dot and a word in one of the tones: idle, live, good, warn, bad."""
    return (
        f'<span class="nbx-{tone}"><span class="nbx-dot" aria-hidden="true"></span>'
        f"<b>{html.escape(word)}</b></span>"
    )


def count_views(widget: Any, told: Callable[[int], None]) -> None:
    """Tell how often a widget is shown in a page, whenever that changes.

    A front end that does not count tells nothing. One that was loaded again counts from where it was.
    """
    widget._view_count = 0
    widget.observe(lambda change: told(change["new"] or 0), names="_view_count")


def close(widgets: Iterable[Any]) -> None:
    """Remove every model of these widgets; of those that they share, too."""
    for widget in widgets:
        for model in (widget, widget.layout, getattr(widget, "style", None)):
            if model is not None:
                model.close()


class Message:
    """One line that says what came of a click."""

    def __init__(self) -> None:
        self.widget = html_box(flex="1 1 12em")
        self.say("")

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Say something in place of what was said before."""
        tone = "nbx-bad" if is_bad else "nbx-soft"
        self.widget.value = f'<div class="nbx {tone}" role="status">{html.escape(text)}</div>'


class Confirm:
    """A button that asks before it acts.

    The first button becomes the one that keeps everything as it is, so the second half of a double
    click does no harm and the keyboard's focus stays where it was.

    Args:
        label: What is on the button.
        ask: Called by a click: whoever owns the panel then calls `ask`, or `rest`.
        act: Called when the question is answered by yes.
        icon: Its icon.
        tooltip: What it does.
        heard: As for `button`.
    """

    def __init__(
        self,
        label: str,
        ask: Callable[[], object],
        act: Callable[[], object],
        *,
        icon: str,
        tooltip: str,
        heard: bool | None,
    ) -> None:
        self._label, self._icon, self._tooltip = label, icon, tooltip
        self._on_ask, self._on_act = ask, act
        self._is_asking = False
        self._first = button(label, self._click, icon=icon, tooltip=tooltip, heard=heard)
        self._tooltip = self._first.tooltip
        self._really = button("", self._act, icon="exclamation-triangle")
        self._really.button_style = "danger"
        self._really.layout.display = _GONE

    @property
    def widgets(self) -> tuple[Any, ...]:
        """The button, and the one that it brings up."""
        return (self._first, self._really)

    @property
    def is_asking(self) -> bool:
        """Whether the question stands there."""
        return self._is_asking

    def ask(self, question: str) -> None:
        """Put the question, with a way out; or put it in other words."""
        self._really.description = self._really.tooltip = question
        if not self._is_asking:
            self._is_asking = True
            self._really.disabled = False
            self._really.layout.display = _THERE
            self._show_first("Keep", "", "Keep everything as it is.")

    def rest(self) -> None:
        """Take the question away: it was answered, or nobody did."""
        self._is_asking = False
        self._really.layout.display = _GONE
        self._show_first(self._label, self._icon, self._tooltip)

    def enable(self, *, is_enabled: bool) -> None:
        """Say whether there is anything to ask about."""
        if not self._is_asking and self._first.disabled == is_enabled:
            self._first.disabled = not is_enabled

    def _show_first(self, label: str, icon: str, tooltip: str) -> None:
        self._first.description, self._first.icon, self._first.tooltip = label, icon, tooltip
        self._first.disabled = False

    def _click(self) -> None:
        if self._is_asking:
            self.rest()
        else:
            self._first.disabled = True
            self._on_ask()

    def _act(self) -> None:
        self._really.disabled = True
        self.rest()
        self._first.disabled = True  # until it is told what came of it
        self._on_act()


class Panel(ABC):
    """A head, what a panel has below it, and a question in its foot; it decides nothing.

    Args:
        style: What it adds to the panels' style sheet.
        question: What it asks before it does something that cannot be undone.
    """

    def __init__(self, style: str, question: Confirm) -> None:
        self._is_closed = False
        self._sheet = style_sheet(style)
        self._head = html_box()
        self._message = Message()
        self._question = question
        self.root = ipywidgets.VBox([], layout=ipywidgets.Layout(overflow="hidden"))
        self.root.add_class("nbx-panel")

    @property
    @abstractmethod
    def _parts(self) -> tuple[Any, ...]:
        """Every widget between the head and the end."""

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Say what came of a click."""
        if not self._is_closed:
            self._message.say(text, is_bad=is_bad)

    @property
    def is_asking(self) -> bool:
        """Whether the question stands there."""
        return self._question.is_asking

    def ask(self, question: str) -> None:
        """Ask before it is done."""
        if not self._is_closed:
            self._question.ask(question)

    def rest(self) -> None:
        """Ask nothing (more)."""
        if not self._is_closed:
            self._question.rest()

    def send_again(self) -> None:
        """Send all that is shown once more, for a page that was loaded again."""
        if not self._is_closed:
            for widget in (*self._parts, self._head, self.root):
                widget.send_state()

    def finish(self, bundle: Mapping[str, Any]) -> None:
        """Show a static end in place of everything, for pages that another display does not reach."""
        if not self._is_closed:
            self._head.value = str(bundle.get("text/html", ""))
            self.root.children = (self._sheet, self._head)
            self._is_closed = True
            self._close_parts()

    def close(self) -> None:
        """Remove every widget model that was made; a second call does nothing."""
        self._is_closed = True
        close((self.root, self._sheet, self._head))
        self._close_parts()

    def _close_parts(self) -> None:
        close(self._parts)
