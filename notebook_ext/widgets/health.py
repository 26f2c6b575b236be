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
from notebook_ext.tables import in_order
from notebook_ext.widgets import panel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notebook_ext.types import Health

__all__ = ["HealthPanel", "HealthView", "Watch"]

_BAD = frozenset({"failed", "unhealthy"})
_WARN = frozenset({"throttled", "retried"})
SLOTS = 8
"""Counters of a group that have a place of their own; further ones share the last."""
_STYLE = """
.nbx-panel .nbx-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
  gap: 2px 18px; margin-bottom: 6px }
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


class HealthPanel(panel.Panel):
    """An endpoint's counters, each with a line of what it was.

    Args:
        name: The endpoint's name.
        watch: Asked by clicks.
        clicks_heard_while_busy: Whether clicks are heard while another cell is busy; None where that
            is not known.
    """

    def __init__(self, name: str, watch: Watch, *, clicks_heard_while_busy: bool | None = None) -> None:
        purge = panel.Confirm(
            "Purge queue…",
            watch.ask_purge,
            watch.purge,
            icon="trash",
            tooltip=f"Remove the jobs that wait in the queue of {name}; it asks first.",
            heard=clicks_heard_while_busy,
        )
        super().__init__(_STYLE, purge)
        self._name = name
        self._tiles = _Tiles()
        self._stop = panel.button(
            "Stop watching",
            watch.stop,
            icon="stop",
            tooltip=f"Ask {name} no more, and keep what is shown.",
            heard=clicks_heard_while_busy,
        )
        self._foot = ipywidgets.HBox(
            [*self._question.widgets, self._stop, self._message.widget],
            layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 8px"),
        )
        self.root.layout.grid_gap = "4px"
        self.root.children = (self._sheet, self._head, self._tiles.root, self._foot)
        self.update(HealthView(note="asking…"))

    @property
    def buttons(self) -> tuple[Any, ...]:
        """The widgets whose messages must come through while a cell runs."""
        return (*self._question.widgets, self._stop, self.root)

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
        self._tiles.show(view)

    @property
    def _parts(self) -> tuple[Any, ...]:
        foot = (self._foot, *self._question.widgets, self._stop, self._message.widget)
        return (*self._tiles.widgets, *foot)

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, Any]:
        bundle = dict(self.root._repr_mimebundle_() or {})
        return {**bundle, "text/plain": f"{self._name}: its counters, while they are watched"}


class _Tiles:
    """The counters, each in a widget of its own: only what has changed is sent."""

    def __init__(self) -> None:
        self._groups = {name: _Group(name) for name in ("jobs", "workers")}
        self._reason = panel.html_box()
        inner = [widget for group in self._groups.values() for widget in (group.head, group.box)]
        self.root = ipywidgets.VBox([*inner, self._reason])
        self.root.layout.display = "none"

    @property
    def widgets(self) -> tuple[Any, ...]:
        slots = (slot for group in self._groups.values() for slot in group.slots)
        return (*slots, *self.root.children, self.root)

    def show(self, view: HealthView) -> None:
        if view.health is None:
            return
        for name, counts in in_order(view.health).items():
            series = view.series
            tiles = [_tile(key, count, series.get((name, key), ())) for key, count in counts.items()]
            self._groups[name].show(tiles)
        told = f'<div class="nbx nbx-warn">{html.escape(view.reason)}</div>' if view.reason else ""
        panel.set_value(self._reason, told)
        self.root.layout.display = None


class _Group:
    """The counters of jobs, or those of workers."""

    def __init__(self, name: str) -> None:
        layout, style = ipywidgets.Layout(margin="0", min_width="0"), ipywidgets.HTML.style.klass()
        self._name = name
        self.head = panel.html_box()
        self.slots = [ipywidgets.HTML(layout=layout, style=style) for _ in range(SLOTS)]
        self.box = ipywidgets.Box([])
        self.box.add_class("nbx-tiles")

    def show(self, tiles: Sequence[str]) -> None:
        told = "" if tiles else " · not told"
        panel.set_value(self.head, f'<div class="nbx nbx-soft nbx-group">{self._name}{told}</div>')
        own, rest = tiles[: SLOTS - 1], "".join(tiles[SLOTS - 1 :])
        values = [*own, rest] if rest else own
        slots = self.slots[: len(values)]
        for slot, value in zip(slots, values, strict=True):
            panel.set_value(slot, value)
        if self.box.children != tuple(slots):
            self.box.children = slots


def _tile(key: str, count: int, values: Any) -> str:
    tone = "idle" if not count else "bad" if key in _BAD else "warn" if key in _WARN else "live"
    name = html.escape(key.replace("_", " "))
    return (
        f'<div class="nbx nbx-tile" title="{name}: {html.escape(sparkline.span(values))} while watched">'
        f'<span class="nbx-soft">{name}</span><span class="nbx-count">{count}</span>'
        f'<div class="nbx-{tone}">{sparkline.curve(values)}</div></div>'
    )
