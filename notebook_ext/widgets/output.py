"""A cell's output inside widgets, for Voila, whose finished pages show no other changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WidgetCell"]


class WidgetCell:
    """Takes the place of `cell.Cell`: one Output widget for each thing shown.

    Args:
        cell: The real output, in which the box of widgets is shown once.
    """

    is_terminal = False

    def __init__(self, cell: Any) -> None:
        self._box = ipywidgets.VBox()
        self._by_display_id: dict[str, Any] = {}
        self._clears = False
        cell.show({**self._box._repr_mimebundle_(), "text/plain": "output"})

    def show(
        self,
        bundle: Mapping[str, Any],
        *,
        display_id: str | None = None,
        update: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Show a mime bundle, or replace what was shown under its display id."""
        outputs = ({"output_type": "display_data", "data": dict(bundle), "metadata": dict(metadata or {})},)
        if update:
            if display_id in self._by_display_id:
                self._by_display_id[display_id].outputs = outputs
            return
        output = ipywidgets.Output(outputs=outputs)
        if display_id is not None:
            self._by_display_id[display_id] = output
        removed = self._box.children if self._clears else ()
        shown = () if self._clears else self._box.children
        self._clears = False
        self._box.children = (*shown, output)
        for widget in removed:
            _close(widget)

    def clear(self) -> None:
        """Clear when the next output comes."""
        self._clears = True

    def close(self) -> None:
        """Remove every widget model that was made."""
        for widget in (*self._box.children, self._box):
            _close(widget)


def _close(widget: Any) -> None:
    widget.close()
    widget.layout.close()
