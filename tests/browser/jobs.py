"""Notebooks whose jobs a test holds in its hand: a handler goes on when the test has seen what it wanted to see."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from browser.lab import Lab, notebook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANDLER = '''
import asyncio, os, pathlib, time

GATE = pathlib.Path(os.environ["GATE"])

async def held(job):
    """Yield the prompt (in pieces of `size`), hold until the file `name` is there, and yield the end."""
    given = job["input"]
    text, name = str(given["prompt"]), given.get("name", "go")
    size = given.get("size", len(text))
    try:
        for at in range(0, len(text), size):
            yield text[at : at + size]
            await asyncio.sleep(given.get("pause", 0))
        while not (GATE / name).exists():
            await asyncio.sleep(0.01)
        if given.get("fails"):
            raise ValueError(given["fails"])
        yield "\\n\\nThe end."
    finally:
        (GATE / f"{name}-over").write_text(str(time.time()))
'''
SERVED = f"%load_ext notebook_ext\n{HANDLER}\n%endpoint serve held --handler held --workers 4"


class Jobs:
    """A notebook whose cell 0, which has run, serves the endpoint `held`.

    Args:
        lab: Where it is opened.
        gate: The folder in which its handlers look for files, and leave theirs.
        cells: The cells from number 1 on.
        first: What is in cell 0.
        environ: Added to the kernel's environment.
    """

    def __init__(
        self, lab: Lab, gate: Path, *cells: str, first: str = SERVED, environ: dict[str, str] | None = None
    ) -> None:
        self.lab, self.gate = lab, gate
        lab.open(notebook(first, *cells), environ={"GATE": str(gate), **(environ or {})})
        lab.run(0)
        assert "Error" not in lab.text(0), lab.text(0)

    def let_go(self, name: str = "go") -> None:
        """Let the handlers go on that wait for this name."""
        (self.gate / name).touch()

    def wait_over(self, name: str = "go", timeout: float = 10) -> float:
        """Wait until the handler itself has ended, well or not; the time at which it did."""
        file, end = self.gate / f"{name}-over", time.monotonic() + timeout
        while not (told := file.read_text() if file.exists() else ""):
            assert time.monotonic() < end, f"The handler goes on after {timeout} s."
            self.lab.sleep(0.01)  # the page's own requests pass through here
        return float(told)

    def is_over(self, name: str = "go") -> bool:
        return (self.gate / f"{name}-over").exists()

    def prompt(self, cell: int) -> str:
        """What stands beside a cell: `[*]:` while it runs or waits."""
        return self.lab.evaluate("i => lab.cells()[i].promptNode.innerText", cell)

    def count(self, cell: int, selector: str) -> int:
        """How many elements of a cell's output match."""
        return self.lab.evaluate(
            "([i, selector]) => lab.output(i)?.querySelectorAll(selector).length ?? 0", [cell, selector]
        )

    def note_changes(self, cell: int) -> None:
        """Note all that is shown in a cell from now on, however shortly."""
        self.lab.evaluate(
            """i => {
              lab.changes = '';
              const note = node => { lab.changes += node.textContent + '\\n' };
              new MutationObserver(records => records.forEach(record => record.addedNodes.forEach(note)))
                .observe(lab.cells()[i].node, {subtree: true, childList: true});
            }""",
            cell,
        )

    def changes(self) -> str:
        """What was shown since `note_changes`."""
        return self.lab.evaluate("() => lab.changes")


@contextmanager
def served_apart(gate: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The handler in a process of its own: its base URL, and the environment that has its key."""
    file = gate / "handlers.py"
    file.write_text(HANDLER)
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-m", "notebook_ext.server", f"held={file}:held", "--workers", "4"],
        env={**os.environ, "GATE": str(gate), "NOTEBOOK_EXT_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        yield answer["base_url"], {"HELD_KEY": token}
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
