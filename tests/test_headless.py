"""Notebooks that nobody watches: nbclient, nbconvert and papermill, with real kernels; and how a kernel goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernels

KEY = "rpa_THIS0IS0A0PLANTED0KEY0THAT0NOBODY0MAY0SEE0ABCDEF"
TEXT = "Some **bold** words and $a<b$"
STREAMER = """
import time
def handler(job):
    for word in job["input"]["prompt"].split(" "):
        time.sleep(0.04)
        print("PRINTED BY THE HANDLER")
        yield word + " "
"""
SLOW = """
import pathlib, time
def handler(job):
    folder = pathlib.Path(job["input"]["folder"])
    try:
        (folder / "begun").touch()
        while not (folder / "go").exists():
            yield ""
            time.sleep(0.02)
        yield "done"
    finally:
        (folder / "ended").touch()
"""


QUEUED = """
import time
from notebook_ext import connect, serve
serve("slow", lambda job: time.sleep(1))
jobs = [connect("slow").submit({}) for _ in range(3)]
while not all(job.id for job in jobs):
    time.sleep(0.01)
"""


def notebook_of(*cells: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def execute(*cells: str, **options: Any) -> nbformat.NotebookNode:
    notebook = notebook_of("%load_ext notebook_ext", *cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3", **options).execute()
    return notebook


def fail(*cells: str, **options: Any) -> nbformat.NotebookNode:
    """Execute a notebook that has to fail, and return it as it is saved then."""
    notebook = notebook_of("%load_ext notebook_ext", *cells)
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, timeout=60, kernel_name="python3", **options).execute()
    return notebook


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """What a reader sees of a cell, output by output, as plain text."""
    return [
        output.text if output.output_type == "stream" else "\n".join(output.traceback) if output.output_type == "error"
        else output.data.get("text/plain", "")
        for output in cell.outputs
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that outlives the kernels, and says itself how its jobs stand."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "slow.py").write_text(SLOW)
    command = [
        sys.executable,
        "-m",
        "notebook_ext.server",
        f"slow={folder / 'slow.py'}:handler",
        "echo=echo",
        "--workers",
        "9",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NOTEBOOK_EXT_TOKEN": KEY}
    ) as process:
        url = json.loads(process.stdout.readline())["base_url"]

        def status(job: str) -> str:
            answer = httpx.get(
                f"{url}/slow/status/{job}", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
            )
            return answer.json()["status"]

        yield SimpleNamespace(url=url, status=status)
        process.terminate()


# ---------------------------------------------------------------------------------- a notebook that runs to its end

CELLS = {
    "serve": f"%%endpoint serve shout\n{STREAMER}",
    "echo": "%endpoint serve echo --handler echo",
    "run": f"%%endpoint run shout -o job\n{TEXT}",
    "background": f"print('before')\n%endpoint run shout --bg -o later -- {TEXT}\nprint('after', later.done)",
    "next": "print(later.status, later.output())",
    "background cell": f"%%endpoint run shout --bg\n{TEXT}",
    "lines": "print('one')\n%endpoint run shout -- first\nprint('two')\n%endpoint run echo -p second=2\nprint('three')",
    "two in the background": "%endpoint run shout --bg -- first\n%endpoint run shout --bg -- second",
    "quiet": "%endpoint run shout -q -- one\nquiet = %endpoint run shout -q --bg -- two",
    "captured": "%%capture captured\n%endpoint run shout -- three",
    "shown": "quiet = captured.outputs[0].data['text/plain'] + quiet.output()\nprint(quiet)",
    "awaited": "awaited = %endpoint run echo -q --bg -p x=2\nprint(await awaited)",
    "value": "%endpoint answer << runsync echo -p x=1\nanswer",
    "elsewhere": "job",
    "status": "%endpoint status @1",
    "jobs": "%endpoint jobs",
    "health": "%endpoint health echo",
    "stopped": "%endpoint run echo -q -- hi\nlong = %endpoint run shout --bg -- a b c d e f g h i j k l m n o p\nlong.cancel();",
    "connect": "import os\nos.environ['LLAMA_KEY'] = open('key').read()\n%endpoint connect llama {url}/echo --key-env LLAMA_KEY\n"
    "%endpoint run llama -- hi\n%endpoint run llama --dry-run -- hi\n%endpoint list\n%config EndpointMagics",
    "python": "import notebook_ext\nconnection = notebook_ext.connect('llama')\nprint(connection, connection.endpoint, connection.provider)\n"
    "connection.submit({'a': 1}).output()",
    "token": "open('token', 'w').write(notebook_ext.connect('echo').provider.key_source());",
}


@pytest.fixture(scope="module")
def finished(server: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The notebook, executed once."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "key").write_text(KEY)
    cells = [cell.replace("{url}", server.url) for cell in CELLS.values()]
    notebook = execute(*cells, resources={"metadata": {"path": str(folder)}})
    return SimpleNamespace(
        notebook=notebook, folder=folder, cells=dict(zip(CELLS, notebook.cells[1:], strict=True))
    )


@pytest.mark.parametrize("name", ["run", "background cell"])
def test_a_job_is_saved_as_markdown_and_text_and_a_footer(finished, name):
    text, footer = finished.cells[name].outputs
    assert set(text.data) == {"text/markdown", "text/plain"}
    assert text.data["text/plain"].strip() == TEXT
    assert "**bold**" in text.data["text/markdown"]
    assert "$a<b$" in text.data["text/markdown"]
    assert set(footer.data) == {"text/html", "text/plain"}
    assert re.fullmatch(
        r"@\d+ · shout · COMPLETED · [\d.]+ s queue · [\d.]+ s run · first token [\d.]+ s · \d+ chunks/s",
        footer.data["text/plain"],
    )


def test_a_background_job_is_waited_for_at_the_end_of_its_own_cell(finished):
    *printed, text, footer = shown(finished.cells["background"])
    assert "".join(printed) == "before\nafter False\n"
    assert text.strip() == TEXT
    assert "· COMPLETED ·" in footer
    assert shown(finished.cells["next"]) == [f"COMPLETED {TEXT} \n"]


def test_two_background_jobs_of_one_cell_are_both_there(finished):
    found = "\n".join(shown(finished.cells["two in the background"]))
    assert "first" in found
    assert "second" in found
    assert found.count("· COMPLETED ·") == 2


def test_line_magics_share_their_cell_with_prints_in_order(finished):
    found = "\n".join(shown(finished.cells["lines"]))
    assert re.fullmatch(
        r'one\n\nfirst \n@\d+ · shout · .*\ntwo\n\n\{\n  "second": 2\n\}\n@\d+ · echo · .*\nthree\n', found
    ), found


def test_a_value_is_its_cells_result(finished):
    assert shown(finished.cells["value"])[-1] == "{'x': 1}"


def test_quiet_and_captured_cells_stay_empty(finished):
    assert shown(finished.cells["quiet"]) == []
    assert shown(finished.cells["captured"]) == []
    assert shown(finished.cells["shown"]) == ["three two \n"]


def test_a_job_can_be_awaited_in_a_cell(finished):
    assert shown(finished.cells["awaited"]) == ["{'x': 2}\n"]


def test_a_handle_shows_its_result_elsewhere(finished):
    text, footer = shown(finished.cells["elsewhere"])
    assert text.strip() == TEXT
    assert footer.startswith("@1 · shout · COMPLETED")


def test_tables_are_readable_without_html(finished):
    assert "@1 · shout · COMPLETED" in shown(finished.cells["status"])[0]
    assert "Some **bold** words" in shown(finished.cells["jobs"])[0]
    assert "idle" in shown(finished.cells["health"])[0]
    assert all(len(finished.cells[name].outputs) == 1 for name in ("jobs", "health"))


def test_a_job_that_the_notebook_itself_has_stopped_does_not_fail_it(finished):
    assert "CANCELLED" in shown(finished.cells["stopped"])[-1]


def test_nothing_that_is_saved_needs_a_kernel(finished):
    nbformat.validate(finished.notebook)
    for cell in finished.notebook.cells:
        for output in cell.outputs:
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    assert not finished.notebook.metadata.get("widgets")


def test_what_a_handler_prints_is_where_it_is_asked_for_and_nowhere_else(finished):
    found = [name for name, cell in finished.cells.items() if "PRINTED BY" in "".join(shown(cell))]
    assert found == ["status"]


def test_no_key_and_no_token_is_saved(finished):
    saved = nbformat.writes(finished.notebook)
    token = (finished.folder / "token").read_text()
    assert len(token) > 20
    assert "· COMPLETED ·" in "".join(shown(finished.cells["connect"]))  # so the key was used
    for secret in (KEY, token):
        assert secret not in saved
        assert secret not in json.dumps(saved)


def test_it_reads_well_as_html(finished):
    page, _ = HTMLExporter().from_notebook_node(finished.notebook)
    assert "<strong>bold</strong>" in page
    assert "· COMPLETED ·" in page
    assert "Loading widget" not in page


@pytest.mark.parametrize("version", ["6.29.5", "7.3.0"])
def test_older_kernels_save_the_same(environments, version, tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "older"
    folder.mkdir(parents=True)
    command = [str(environments[version]), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "older", "language": "python"})
    )
    names = ("serve", "echo", "run", "background", "next", "lines")
    notebook = notebook_of(
        "%load_ext notebook_ext",
        *(CELLS[name] for name in names),
        "import ipykernel\nprint(ipykernel.__version__)",
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    NotebookClient(notebook, kernel_name="older", timeout=60).execute()
    cells = SimpleNamespace(cells=dict(zip(names, notebook.cells[1:], strict=False)), notebook=notebook)
    assert shown(notebook.cells[-1]) == [f"{version}\n"]
    test_a_job_is_saved_as_markdown_and_text_and_a_footer(cells, "run")
    test_a_background_job_is_waited_for_at_the_end_of_its_own_cell(cells)
    test_line_magics_share_their_cell_with_prints_in_order(cells)
    test_nothing_that_is_saved_needs_a_kernel(cells)


# ---------------------------------------------------------------------------------- notebooks that fail

BOOM = "%%endpoint serve boom\ndef handler(job):\n    yield 'so far '\n    raise ValueError('no such luck')"


@pytest.mark.parametrize(
    ("cell", "name", "said"),
    [
        ("%endpoint run boom -o job -- hi", "JobFailed", "no such luck"),
        ("%%endpoint run boom\nhi", "JobFailed", "no such luck"),
        ("%endpoint run boom --bg -o job -- hi", "JobFailed", "no such luck"),
        ("%%endpoint run boom --bg\nhi", "JobFailed", "no such luck"),
        ("%%endpoint runsync boom\nhi", "JobFailed", "no such luck"),
    ],
)  # fmt: skip
def test_a_failed_job_fails_the_notebook_and_is_saved(cell, name, said):
    notebook = fail(BOOM, cell, "print('never')")
    failed, after = notebook.cells[2:]
    error = failed.outputs[-1]
    assert (error.output_type, error.ename) == ("error", name)
    assert len(error.traceback) == 1
    assert said in error.traceback[0]
    assert "Traceback" not in error.traceback[0]
    assert sum(output.output_type == "error" for output in failed.outputs) == 1
    if "runsync" not in cell:
        assert any(text.strip() == "so far" for text in shown(failed)), shown(failed)
    assert any("· FAILED ·" in text for text in shown(failed))
    assert not after.outputs
    nbformat.validate(notebook)


@pytest.mark.parametrize(
    ("cell", "name", "said"),
    [
        ("%endpoint rnu -- hi", "InputError", "did you mean 'run'?"),
        ("%%endpoint run demo\n{\"a\": }", "InputError", "line 1, column 7"),
        ("%endpoint connect llama abc123\n%endpoint run llama --bg -- hi", "ConfigurationError", "RUNPOD_API_KEY"),
        ("%endpoint login runpod", "ConfigurationError", "RUNPOD_API_KEY"),
        (QUEUED + "%endpoint purge slow", "InputError", "--yes"),
    ],
)  # fmt: skip
def test_bad_input_fails_the_notebook_in_one_line(cell, name, said):
    failed = fail(cell).cells[1]
    error = failed.outputs[-1]
    assert (error.output_type, error.ename) == ("error", name)
    assert len(error.traceback) == 1
    assert said in error.traceback[0]


def test_a_cell_that_fails_itself_keeps_its_own_error():
    failed = fail(BOOM, "%endpoint run boom --bg -o job -- hi\n1 / 0").cells[2]
    assert [output.ename for output in failed.outputs if output.output_type == "error"] == [
        "ZeroDivisionError"
    ]


@pytest.mark.parametrize("flag", ["", "--bg"])
def test_a_timeout_of_the_run_cancels_the_remote_job(server, tmp_path, flag):
    cells = (
        f"import os\nos.environ['LLAMA_KEY'] = {KEY!r}\n%endpoint connect far {server.url}/slow --key-env LLAMA_KEY",
        f"%endpoint run far {flag} -o job -p folder={tmp_path}",
        "open('id', 'w').write(job.id);",
    )
    notebook = notebook_of("%load_ext notebook_ext", *cells)
    client = NotebookClient(
        notebook, timeout=4, interrupt_on_timeout=True, kernel_name="python3", allow_errors=True
    )
    client.execute()
    failed = notebook.cells[2]
    assert [output.ename for output in failed.outputs if output.output_type == "error"] == [
        "KeyboardInterrupt"
    ]
    assert re.search(r"@1 CANCELLED after [\d.]+ s of execution", shown(failed)[-1])
    assert server.status(Path("id").read_text()) == "CANCELLED"
    assert (tmp_path / "ended").exists()


# ---------------------------------------------------------------------------------- the programs themselves


def test_nbconvert_executes_and_writes_html(tmp_path):
    nbformat.write(
        notebook_of(
            "%load_ext notebook_ext", BOOM.replace("raise", "# raise"), "%endpoint run boom --bg -- hi"
        ),
        "in.ipynb",
    )
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", "in.ipynb"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    page = Path("in.html").read_text()
    assert "so far" in page.split("run boom")[-1]
    assert "· COMPLETED ·" in page


def test_papermill_gives_parameters_and_saves_what_failed(tmp_path):
    notebook = notebook_of(
        "audience = 'nobody'",
        "%load_ext notebook_ext",
        BOOM,
        "%endpoint serve echo --handler echo\n%endpoint run echo --bg -- Hello {{ audience }}",
        "%endpoint run boom --bg -- hi",
        "print('never')",
    )
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, "in.ipynb")
    command = [
        sys.executable,
        "-m",
        "papermill",
        "in.ipynb",
        "out.ipynb",
        "-k",
        "python3",
        "-p",
        "audience",
        "children",
    ]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode != 0
    cells = [cell for cell in nbformat.read("out.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert "Hello children" in "".join(shown(cells[-3]))
    assert "no such luck" in shown(cells[-2])[-1]
    assert not cells[-1].outputs


# ---------------------------------------------------------------------------------- how a kernel goes


@pytest.fixture
def kernel() -> Iterator[SimpleNamespace]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def run(code: str) -> None:
        reply = client.execute_interactive(code, timeout=60, output_hook=lambda _: None, allow_stdin=True)
        assert reply["content"]["status"] == "ok", reply["content"]

    yield SimpleNamespace(manager=manager, client=client, run=run)
    client.stop_channels()
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def begin(
    kernel: SimpleNamespace, server: SimpleNamespace, folder: Path, *, waits: bool, options: str = ""
) -> str:
    """Start a job that a worker is busy with; returns its id."""
    kernel.run(
        f"import os\nos.environ['LLAMA_KEY'] = {KEY!r}\n%load_ext notebook_ext\n%endpoint connect far {server.url}/slow --key-env LLAMA_KEY"
    )
    run = f"%endpoint run far {'' if waits else '--bg'} {options} -o job -p folder={folder}"
    if not waits:
        kernel.run(run)
    else:
        watch = f"import threading, time\ndef watch():\n    while not (os.path.exists('{folder}/begun') and job.id): time.sleep(0.01)\n    open('{folder}/id', 'w').write(job.id)\n"
        kernel.run(f"{watch}threading.Thread(target=watch, daemon=True).start()")
        kernel.client.execute(run, allow_stdin=True)
    until(folder / "begun")
    if not waits:
        kernel.run(f"open('{folder}/id', 'w').write(job.id)")
    until(folder / "id")
    return (folder / "id").read_text()


def until(path: Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and (path.name != "id" or path.read_text())):
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.parametrize("waits", [False, True])
def test_a_shutdown_cancels_what_runs(kernel, server, tmp_path, waits):
    job = begin(kernel, server, tmp_path, waits=waits)
    assert server.status(job) == "IN_PROGRESS"
    asked = time.time()
    kernel.manager.shutdown_kernel(now=False)
    assert server.status(job) == "CANCELLED"
    until(tmp_path / "ended")
    assert (tmp_path / "ended").stat().st_mtime - asked < 2.0


@pytest.mark.parametrize("waits", [False, True])
def test_a_restart_detaches(kernel, server, tmp_path, waits):
    job = begin(kernel, server, tmp_path, waits=waits)
    kernel.manager.restart_kernel(now=False)
    assert server.status(job) == "IN_PROGRESS"
    assert not (tmp_path / "ended").exists()
    (tmp_path / "go").touch()
    until(tmp_path / "ended")


def test_after_unloading_a_shutdown_leaves_the_job_alone(kernel, server, tmp_path):
    job = begin(kernel, server, tmp_path, waits=False)
    kernel.run("%unload_ext notebook_ext")
    kernel.manager.shutdown_kernel(now=False)
    assert server.status(job) == "IN_PROGRESS"
    (tmp_path / "go").touch()
    until(tmp_path / "ended")


def test_panels_are_one_static_look_where_nobody_can_click():
    notebook = execute(
        "%endpoint serve echo --handler echo",
        "%endpoint run echo -- Say this",
        "%endpoint health echo --watch",
        "%endpoint panel jobs",
        "%endpoint panel health echo",
    )
    for cell, words in zip(notebook.cells[3:], ("in queue", "Say this", "in queue"), strict=True):
        (output,) = cell.outputs
        assert words in output.data["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" not in output.data
