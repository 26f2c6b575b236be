"""Output bound to its cell: what a job shows lands where it was started, whatever runs meanwhile."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from notebook_ext.visible import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Cell", "TerminalCell", "flush_streams"]


class Cell:
    """The output of the cell that was executing when this was made: from any thread, at any time.

    `print` and `display` in a thread land in whatever cell ran last, so messages are sent with
    the cell's own header as their parent.

    Args:
        shell: The InteractiveShell whose cell is executing.
    """

    is_terminal = False

    def __init__(self, shell: Any) -> None:
        flush_streams()  # what the cell has printed comes before what is shown
        self._publisher = shell.display_pub
        self._parent = {"header": dict(shell.kernel.get_parent("shell").get("header", {}))}

    def show(
        self,
        bundle: Mapping[str, Any],
        *,
        display_id: str | None = None,
        update: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Show a mime bundle, or replace what was shown under its display id.

        Args:
            bundle: Values by mime type; binary ones in base64.
            display_id: The name to update it by.
            update: Replace instead of append.
            metadata: By mime type.
        """
        content = {
            "data": dict(bundle),
            "metadata": dict(metadata or {}),
            "transient": {"display_id": display_id} if display_id else {},
        }
        if self._is_captured:
            self._publisher.publish(**content, update=update)
        else:
            self._send("update_display_data" if update else "display_data", content)

    def clear(self) -> None:
        """Clear the cell when the next output comes, so that nothing flickers."""
        if self._is_captured:
            self._publisher.clear_output(wait=True)
        else:
            self._send("clear_output", {"wait": True})

    @property
    def _is_captured(self) -> bool:
        """Under `%%capture` a publisher stands in that has no socket."""
        return not (hasattr(self._publisher, "session") and hasattr(self._publisher, "pub_socket"))

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        self._publisher.session.send(
            self._publisher.pub_socket, kind, content, parent=self._parent, ident=kind.encode()
        )


class TerminalCell:
    """The terminal in place of a cell: nothing can be changed once it is printed."""

    is_terminal = True

    def write(self, text: str) -> None:
        """Print a piece of text as it is, control characters made visible."""
        print(visible(text), end="", flush=True)

    def show(
        self,
        bundle: Mapping[str, Any],
        *,
        display_id: str | None = None,  # noqa: ARG002 - the same signature as `Cell.show`
        update: bool = False,
        metadata: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> None:
        """Print the bundle's text/plain on lines of its own; updates are dropped."""
        if not update and bundle.get("text/plain"):
            self.write(f"{bundle['text/plain']}\n")

    def clear(self) -> None:
        """Nothing: what is printed stays."""


def flush_streams() -> None:
    """Send what has been printed so far, so that it keeps its place."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
