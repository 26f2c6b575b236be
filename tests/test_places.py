"""The same notebooks and the same Python wherever they run: headless by each of its programs, and in marimo.

Browsers have tests of their own (`browser/`), and so has the terminal (`test_terminal.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.kernels

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRAMS = {
    "nbclient": "-m jupyter execute in.ipynb --output=out.ipynb",
    "nbconvert": "-m nbconvert --execute --to notebook in.ipynb --output out.ipynb",
    "papermill": "-m papermill in.ipynb out.ipynb --no-progress-bar",
}
MARIMO = """
import marimo

app = marimo.App()


@app.cell
def _():
    import notebook_ext

    def shout(job):
        for word in job["input"]["prompt"].split():
            yield word.upper() + " "

    shouting = notebook_ext.serve("shout", shout)
    handle = notebook_ext.connect("shout").submit({"prompt": "waited for"})
    print("output:", handle.output(timeout=30))
    print("chunks:", [chunk.output for chunk in handle.chunks()], handle.status)
    return notebook_ext, shouting


@app.cell
async def _(notebook_ext, shouting):
    async with notebook_ext.Endpoint("shout", shouting.provider) as endpoint:
        job = await endpoint.run({"prompt": "with await"})
        print("stream:", [chunk.output async for chunk in endpoint.stream(job.id)])
    print("await:", await shouting.submit({"prompt": "a handle"}))
    return


@app.cell
def _(notebook_ext):
    def refuse(job):
        raise ValueError("no such luck")

    try:
        notebook_ext.serve("boom", refuse).run({}, timeout=30)
    except notebook_ext.JobFailed as error:
        print("error:", error.job.error.message)
    return


if __name__ == "__main__":
    app.run()
"""


def run(command: str) -> str:
    """What Python prints that is started so, and ends well."""
    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def executed(notebook: str, program: str) -> dict[str, nbformat.NotebookNode]:
    """The code cells of one of the project's notebooks after a program has executed it, by their first line."""
    Path("in.ipynb").write_bytes((NOTEBOOKS / notebook).read_bytes())
    run(PROGRAMS[program])
    cells = [cell for cell in nbformat.read("out.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.execution_count, cell.source
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert WIDGET not in output.get("data", {}), cell.source
    return {cell.source.splitlines()[0]: cell for cell in cells}


def text(cell: nbformat.NotebookNode) -> str:
    return "\n".join(output.get("text") or output.data["text/plain"] for output in cell.outputs)


@pytest.mark.parametrize("notebook", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_headless_and_saves_what_needs_no_kernel(notebook):
    executed(notebook, "nbclient")


@pytest.mark.parametrize("program", PROGRAMS)
def test_panels_are_tables_and_sentences_where_nobody_can_click(program):
    cells = executed("02_panels.ipynb", program)
    health = text(cells["%endpoint health kitchen --watch --every 1s"])
    assert health.startswith("kitchen  counters\njobs ")
    assert "3 running" in health
    jobs = text(cells["%endpoint panel jobs"])
    assert "plum tart for table 6" in jobs
    assert len(jobs.splitlines()) == 1 + 24
    assert "needs a notebook in a browser" in text(cells["%endpoint panel prompt demo"])


def marimo_script() -> str:
    return run("notebook.py")


def marimo_app() -> str:
    run("-m marimo export ipynb --include-outputs notebook.py -o out.ipynb")
    return "\n".join(map(text, nbformat.read("out.ipynb", as_version=4).cells))


@pytest.mark.parametrize("runs", [marimo_script, marimo_app])
def test_the_python_api_works_in_marimo(runs):
    """As a script, and in a session of marimo's own kernel."""
    Path("notebook.py").write_text(MARIMO)
    shown = runs()
    for line in (
        "output: WAITED FOR ",
        "chunks: ['WAITED ', 'FOR '] COMPLETED",
        "stream: ['WITH ', 'AWAIT ']",
        "await: A HANDLE ",
        "error: no such luck",
    ):
        assert line in shown
