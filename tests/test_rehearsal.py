"""The notebook that rehearses a worker, run as it is, with a real worker process at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import peers
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.kernels, pytest.mark.workers]

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "04_rehearse_a_worker.ipynb"
SHOUTED = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"


def shown(cell: Any) -> str:
    return "".join(
        output.get("text") or "".join(output.get("data", {}).get("text/plain", "")) for output in cell.outputs
    )


def test_a_handler_is_rehearsed_in_a_cell_and_in_a_real_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RUNPOD_PYTHON", str(peers.runpod_python()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    said = [(cell.source, shown(cell)) for cell in notebook.cells if cell.cell_type == "code"]

    def of(words: str) -> list[str]:
        return [text for source, text in said if words in source]

    in_kernel, in_process = of("run shout")
    assert all(SHOUTED in text and "COMPLETED" in text for text in (in_kernel, in_process))
    assert ["CANCELLED" in text for text in of("cancel @last")] == [True, True]
    assert "FAILED" in of("--fail 1")[0]
    assert "runpod.serverless.start" in of("code shout --worker")[0]
    assert "shout-process-1" in of("job.job.worker_id")[0]
    assert list(tmp_path.glob("rehearse-a-worker-*")) == []
