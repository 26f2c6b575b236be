"""The notebook about jobs that outlive their kernel, with a kernel that is really restarted, or really killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

pytestmark = pytest.mark.kernels

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "03_never_lose_a_job.ipynb"
GOES = "## Now the kernel goes"


def shown(cell: Any) -> str:
    return "".join(
        output.get("text") or "".join(output.get("data", {}).get("text/plain", "")) for output in cell.outputs
    )


def restart(client: NotebookClient) -> None:
    run_sync(client.km.restart_kernel)()


def kill(client: NotebookClient) -> None:
    os.kill(client.km.provisioner.pid, signal.SIGKILL)
    run_sync(client.km.restart_kernel)(now=True)


@pytest.mark.parametrize("leave", [restart, kill])
def test_a_job_survives_its_kernel(leave, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    cells: dict[str, Any] = {}
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, index)
                cells[cell.source] = cell  # the later of two that end alike
            elif cell.source.startswith(GOES):
                leave(client)
                run_sync(client.kc.wait_for_ready)(timeout=30)
    said = {source.splitlines()[-1]: shown(cell) for source, cell in cells.items()}
    assert said["%load_ext notebook_ext"] == (
        "An earlier kernel left 1 job: 1 still runs. `%endpoint attach --all` shows them.\n"
    )
    story = "".join(f"word {number} " for number in range(1, 61)).strip()
    assert story in said["%endpoint attach --all"]
    assert "@1 · story · COMPLETED" in said["%endpoint attach --all"]
    assert said["len(job.output().split()) // 2"] == "60"
    assert "from the journal" in said["%endpoint run story -p words=5 -- once"]
    assert "@2" in said["%endpoint history -q once"]
    assert said["%endpoint forget story"].startswith("story is forgotten in ")
