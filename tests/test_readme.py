"""The README does what it says.

- Its `python` blocks are the cells of one notebook, run from top to bottom by a real kernel. What they ask of
  the provider's endpoint `abc123` is asked of one that is served here; nothing else can be reached.
- A `text` block below `<!-- output -->` is what the cell above it shows; `...` stands for what varies.
- The `bash` blocks below `<!-- test-command -->` and `<!-- quickstart-command -->` are the two commands.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[\w-]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


class Block(NamedTuple):
    marker: str | None
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [
        Block(match["marker"], match["language"], match["text"].strip()) for match in BLOCK.finditer(text)
    ]


def shows(expected: str, shown: str) -> bool:
    pattern = ".*?".join(re.escape(part.strip()) for part in expected.split("..."))
    return re.search(pattern.replace(r"\ ", r"\s+").replace("\\\n", r"\s+"), shown, re.DOTALL) is not None


def text_of(cell: nbformat.NotebookNode) -> str:
    """What a reader sees of a cell's outputs, as plain text."""
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "\n".join("".join(text) for text in texts)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with the endpoint `abc123`, and its key where a provider's key would be."""
    command = [sys.executable, "-m", "notebook_ext.server", "abc123=chat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        line = json.loads(server.stdout.readline())
        for variable in ("RUNPOD_API_KEY", "TENSORONE_API_KEY", "NOTEBOOK_EXT_API_KEY"):
            monkeypatch.setenv(variable, line["token"])
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, NOWHERE)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield line["base_url"]
        server.send_signal(signal.SIGTERM)


@pytest.mark.kernels
def test_the_cells_run_and_show_what_is_printed_below_them(account):
    cells, expected = [], {}
    for block in blocks(TEXT):
        if block.language == "python":
            source = re.sub(
                r"(--provider |provider=[\"'])(runpod|tensorone)\b", rf"\g<1>{account}", block.text
            )
            cells.append(nbformat.v4.new_code_cell(source))
        elif block.marker == "output":
            expected[len(cells) - 1] = block.text
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    for index, text in expected.items():
        assert shows(text, text_of(cells[index])), f"{text!r} is not what is shown: {text_of(cells[index])!r}"


def test_every_block_is_of_a_kind_that_is_checked():
    found = blocks(TEXT)
    assert TEXT.count("```") == 2 * len(found), "a block is indented, or its marker is not the line above it"
    assert {block.language for block in found} <= {"python", "bash", "text", "sql", "toml", "json"}
    if len(TEXT.splitlines()) > 50:
        assert any(block.language == "python" for block in found)
        assert {"test-command", "quickstart-command"} <= {block.marker for block in found}


def test_ci_runs_the_test_command_of_the_readme():
    commands = [block.text for block in blocks(TEXT) if block.marker == "test-command"]
    run = subprocess.run(
        [ROOT / ".ci" / "run", "--show"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert [run.stdout.strip()] == (commands or [""])
    assert run.returncode == (0 if commands else 1)


def test_the_quickstart_command_opens_a_notebook_that_is_there():
    for block in blocks(TEXT):
        if block.marker == "quickstart-command":
            assert "\n" not in block.text
            (notebook,) = re.findall(r"\S+\.ipynb", block.text)
            assert (ROOT / notebook).is_file()
            assert 'pip install -e ".[lab]"' in block.text


def test_links_and_pictures_lead_to_files_that_are_there():
    targets = re.findall(r"\]\(([^)#\s]+)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing


@pytest.mark.parametrize(
    ("expected", "shown", "matches"),
    [
        ("@1 · demo · COMPLETED · ... chunks/s", "text\n@1 · demo · COMPLETED · 0.1 s · 41 chunks/s", True),
        ("Hello ...", "Hello you", True),
        ("one two", "one\n  two", True),
        ("COMPLETED ... s", "FAILED 1 s", False),
    ],
)
def test_what_varies_is_left_out(expected, shown, matches):
    assert shows(expected, shown) == matches


def test_blocks_are_read_with_their_markers():
    text = "Words\n\n<!-- test-command -->\n```bash\na && b\n```\n\n```python\n%%magic\nbody\n```\n"
    assert blocks(text) == [Block("test-command", "bash", "a && b"), Block(None, "python", "%%magic\nbody")]
