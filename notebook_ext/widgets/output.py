"""A cell's output inside widgets: it survives a reload of the page, and Voila shows nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OutputBox", "WidgetCell"]


class OutputBox:
    """A box that takes what a cell takes: one Output widget for each thing shown."""

    is_terminal = False

    def __init__(self) -> None:
        self.box = ipywidgets.VBox()
        self._by_display_id: dict[str, Any] = {}
        self._clears = False
        self._is_closed = False

    def show(
        self,
        bundle: Mapping[str, Any],
        *,
        display_id: str | None = None,
        update: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Show a mime bundle, or replace what was shown under its display id; after closing nothing."""
        if self._is_closed:
            return
        outputs = ({"output_type": "display_data", "data": dict(bundle), "metadata": dict(metadata or {})},)
        if update:
            if display_id in self._by_display_id:
                self._by_display_id[display_id].outputs = outputs
            return
        output = ipywidgets.Output(outputs=outputs)
        if display_id is not None:
            self._by_display_id[display_id] = output
        removed = self.box.children if self._clears else ()
        shown = () if self._clears else self.box.children
        self._clears = False
        self.box.children = (*shown, output)
        for widget in removed:
            _close(widget)

    def clear(self) -> None:
        """Clear when the next output comes."""
        self._clears = True

    def empty(self) -> None:
        """Clear at once."""
        removed, self.box.children = self.box.children, ()
        self._by_display_id.clear()
        self._clears = False
        for widget in removed:
            _close(widget)

    def close(self) -> None:
        """Remove every widget model that was made."""
        self._is_closed = True
        for widget in (*self.box.children, self.box):
            _close(widget)


class WidgetCell(OutputBox):
    """Takes the place of `cell.Cell`.

    Args:
        cell: The real output, in which the box of widgets is shown once.
    """

    def __init__(self, cell: Any) -> None:
        super().__init__()
        cell.show({**self.box._repr_mimebundle_(), "text/plain": "output"})


def _close(widget: Any) -> None:
    widget.close()
    widget.layout.close()
