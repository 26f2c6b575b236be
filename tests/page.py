"""What a front end gets from a real kernel: its messages, counted, and the outputs that it would save."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from jupyter_client.manager import KernelManager
from nbformat.v4 import output_from_msg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jupyter_client.blocking.client import BlockingKernelClient

DRAWN = frozenset(
    {"display_data", "update_display_data", "execute_result", "stream", "clear_output", "error"}
)
PATIENCE = 300.0
"""Seconds for one cell."""


class Page:
    """The cells of a notebook, as messages fill them.

    Attributes:
        bytes: Of the content of all messages that draw something.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._cells: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
        self._clears: set[str] = set()

    def take(self, message: dict[str, Any]) -> None:
        """Take in the next message."""
        kind, content = message["msg_type"], message["content"]
        if kind not in DRAWN and not kind.startswith("comm"):
            return
        self.bytes += len(json.dumps(content, default=str))
        cell = message["parent_header"].get("msg_id", "")
        if kind == "clear_output":
            self._clears.add(cell)
        elif kind == "update_display_data":
            self._update(content)
        elif kind in DRAWN:
            if cell in self._clears:
                self._clears.remove(cell)
                self._cells[cell] = []
            shown = content.get("transient", {}).get("display_id")
            self._cells.setdefault(cell, []).append((shown, dict(output_from_msg(message))))

    def _update(self, content: dict[str, Any]) -> None:
        known = content["transient"]["display_id"]
        for outputs in self._cells.values():
            for shown, output in outputs:
                if shown == known:
                    output |= {"data": content["data"], "metadata": content["metadata"]}

    def outputs(self, cell: str) -> list[dict[str, Any]]:
        """What a cell shows."""
        return [output for _, output in self._cells.get(cell, [])]

    @property
    def size(self) -> int:
        """Bytes of all outputs as a notebook file has them."""
        return sum(len(json.dumps(output)) for cell in self._cells for output in self.outputs(cell))


class Kernel:
    """A kernel that runs cells, and the page that they fill.

    Args:
        client: Connected to it.
    """

    def __init__(self, client: BlockingKernelClient) -> None:
        self.page = Page()
        self._client = client

    def run(self, code: str) -> list[dict[str, Any]]:
        """Run a cell; what it shows."""
        cell, _ = self._execute(code, {})
        return self.page.outputs(cell)

    def ask(self, expression: str) -> Any:
        """What an expression gives, which JSON can hold."""
        _, reply = self._execute("", {"answer": f"__import__('json').dumps({expression})"})
        return json.loads(ast.literal_eval(reply["user_expressions"]["answer"]["data"]["text/plain"]))

    def _execute(self, code: str, expressions: dict[str, str]) -> tuple[str, dict[str, Any]]:
        sent = self._client.execute(code, store_history=bool(code), user_expressions=expressions)
        is_idle = False
        while not is_idle:  # by then all that it shows has come
            message = self._client.get_iopub_msg(timeout=PATIENCE)
            self.page.take(message)
            is_mine = message["parent_header"].get("msg_id") == sent
            is_idle = is_mine and message["content"].get("execution_state") == "idle"
        while (reply := self._client.get_shell_msg(timeout=PATIENCE))["parent_header"].get("msg_id") != sent:
            pass
        content: dict[str, Any] = reply["content"]
        if content["status"] != "ok":
            raise AssertionError("\n".join(content.get("traceback", [content["status"]])))
        return sent, content


@contextlib.contextmanager
def kernel(folder: Path, **environment: str) -> Iterator[Kernel]:
    """A fresh kernel in a folder, with the extension loaded."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(folder), env={**os.environ, **environment})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        found = Kernel(client)
        found.run("%load_ext notebook_ext")
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def data(outputs: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """The mime bundles of outputs."""
    return [output.get("data", {}) for output in outputs]
