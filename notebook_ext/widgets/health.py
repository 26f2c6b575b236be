"""The health panel: an endpoint's counters while they are watched, and its queue's purge button.

Made on the main thread; updated and closed from any. It decides nothing: it shows a `HealthView`,
and a click asks its `Watch`.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from notebook_ext import sparkline
from notebook_ext.widgets import panel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notebook_ext.types import Health

__all__ = ["HealthPanel", "HealthView", "Watch"]

_BAD = frozenset({"failed", "unhealthy"})
_WARN = frozenset({"throttled", "retried"})
_STYLE = """
.nbx-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 2px 18px;
  margin-bottom: 6px }
.nbx-tile { max-width: 150px; overflow: hidden }
.nbx-tile span { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.nbx-tile .nbx-count { font-size: 18px; line-height: 24px }
.nbx-tile svg { display: block; width: 100%; height: 22px }
.nbx-group { letter-spacing: .04em; border-bottom: 1px solid var(--jp-border-color3, #eee);
  margin-bottom: 3px }
"""


class Watch(Protocol):
    """What a click asks; each returns at once."""

    def ask_purge(self) -> object: ...

    def purge(self) -> object: ...

    def stop(self) -> object: ...


@dataclass(frozen=True, slots=True)
class HealthView:
    """What the panel shows at one moment.

    Args:
        health: The newest counters; None before the first answer.
        series: Each counter over the watched time.
        stale: Why the counters are old, in words; empty while the endpoint answers.
        reason: Why jobs wait, in words.
        note: When it was read, and how long that goes on.
    """

    health: Health | None = None
    series: sparkline.Series = field(default_factory=dict)
    stale: str = ""
    reason: str = ""
    note: str = ""


class HealthPanel:
    """An endpoint's counters, each with a line of what it was.

    Args:
        name: The endpoint's name.
        watch: Asked by clicks.
        clicks_heard_while_busy: Whether clicks are heard while another cell is busy; None where that
            is not known.
    """

    def __init__(self, name: str, watch: Watch, *, clicks_heard_while_busy: bool | None = None) -> None:
        self._name = name
        self._is_closed = False
        self._sheet = panel.style_sheet(_STYLE)
        self._head, self._tiles = panel.html_box(), panel.html_box()
        self._message = panel.Message()
        self._purge = panel.Confirm(
            "Purge queue…",
            watch.ask_purge,
            watch.purge,
            icon="trash",
            tooltip=f"Remove the jobs that wait in the queue of {name}; it asks first.",
            heard=clicks_heard_while_busy,
        )
        self._stop = panel.button(
            "Stop watching",
            watch.stop,
            icon="stop",
            tooltip=f"Ask {name} no more, and keep what is shown.",
            heard=clicks_heard_while_busy,
        )
        self._foot = ipywidgets.HBox(
            [*self._purge.widgets, self._stop, self._message.widget],
            layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 8px"),
        )
        self.root = ipywidgets.VBox(
            [self._sheet, self._head, self._tiles, self._foot],
            layout=ipywidgets.Layout(grid_gap="4px", overflow="hidden"),
        )
        self.root.add_class("nbx-panel")
        self.update(HealthView(note="asking…"))

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The widgets whose messages must come through while a cell runs."""
        return (*self._purge.widgets, self._stop, self.root)

    def update(self, view: HealthView) -> None:
        """Show another moment; after the end nothing."""
        if self._is_closed:
            return
        word, tone = ("stale", "warn") if view.stale else ("live", "good") if view.health else ("…", "idle")
        panel.set_value(
            self._head,
            f'<div class="nbx"><b>{html.escape(self._name)}</b><span class="nbx-state">'
            f"{panel.badge(word, tone)}</span> "
            f'<span class="nbx-soft">· {html.escape(view.stale or view.note)}</span></div>',
        )
        panel.set_value(self._tiles, _tiles(view) if view.health is not None else "")

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """Say what came of a click."""
        if not self._is_closed:
            self._message.say(text, is_bad=is_bad)

    @property
    def is_asking(self) -> bool:
        """Whether a question stands there."""
        return self._purge.is_asking

    def ask(self, question: str) -> None:
        """Ask before the queue is purged."""
        if not self._is_closed:
            self._purge.ask(question)

    def rest(self) -> None:
        """Ask nothing (more)."""
        if not self._is_closed:
            self._purge.rest()

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
            panel.close(self._parts)

    def close(self) -> None:
        """Remove every widget model that was made; a second call does nothing."""
        self._is_closed = True
        panel.close((self.root, self._sheet, self._head, *self._parts))

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (self._tiles, self._foot, *self._purge.widgets, self._stop, self._message.widget)

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self.root._repr_mimebundle_() or {})
        return {**bundle, "text/plain": f"{self._name}: its counters, while they are watched"}


def _tiles(view: HealthView) -> str:
    assert view.health is not None
    parts = []
    for group, counts in (("jobs", view.health.jobs), ("workers", view.health.workers)):
        tiles = "".join(_tile(key, count, view.series.get((group, key), ())) for key, count in counts.items())
        told = f'<div class="nbx-tiles">{tiles}</div>' if tiles else "not told"
        parts.append(f'<div class="nbx-soft nbx-group">{group}</div>{told}')
    if view.reason:
        parts.append(f'<div class="nbx-warn">{html.escape(view.reason)}</div>')
    return f'<div class="nbx">{"".join(parts)}</div>'


def _tile(key: str, count: int, values: Any) -> str:
    tone = "idle" if not count else "bad" if key in _BAD else "warn" if key in _WARN else "live"
    name = html.escape(key.replace("_", " "))
    return (
        f'<div class="nbx-tile" title="{name}: {html.escape(sparkline.span(values))} while watched">'
        f'<span class="nbx-soft">{name}</span><span class="nbx-count">{count}</span>'
        f'<div class="nbx-{tone}">{sparkline.curve(values)}</div></div>'
    )
