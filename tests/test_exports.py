"""Journaled jobs as files: what is in them, what can run in them (nothing), and how they get there."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from xss_payloads import PAYLOADS

from notebook_ext import exports
from notebook_ext.entry import Entry
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.records import COLUMNS, Record, media, prompt_text
from notebook_ext.types import Job, JobStatus, StreamChunk, WorkerError

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 9
JPEG = b"\xff\xd8\xff\xe0" + b"picture" * 9
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + b"sound" * 9
MP4 = b"\x00\x00\x00\x18ftypmp42" + b"film" * 9


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def record(output="an answer", *, chunks=(), status=JobStatus.COMPLETED, error=None, **more) -> Record:
    job = Job(
        id="a-u1", endpoint="abc123", status=status, output=output, has_output=output is not None, error=error,
        delay_time=0.5, execution_time=2.0, worker_id="w1", seen_at=9.0,
    )  # fmt: skip
    entry = Entry(
        number=7, endpoint="llama", endpoint_id="abc123", provider="runpod", base_url="https://api.runpod.ai/v2",
        profile="chat", rate=0.25, input={"prompt": "What is a queue?", "n": 1}, options={"ttl": 60.0},
        notebook="a.ipynb", cell="c1", submitted_at=1_700_000_000.25, notes=("a note",), job=job,
    )  # fmt: skip
    streamed = [StreamChunk(chunk, index) for index, chunk in enumerate(chunks)]
    return Record.read(replace(entry, **more), streamed)


WHEN = datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
ROW = {
    "number": 7,
    "submitted_at": WHEN,
    "endpoint": "llama",
    "provider": "runpod",
    "status": "COMPLETED",
    "prompt": "What is a queue?",
    "output": "an answer",
    "delay_time": 0.5,
    "execution_time": 2.0,
    "cost": 0.5,
    "job_id": "a-u1",
    "notebook": "a.ipynb",
}
BARE = {"rate": None, "notebook": None}


def written(tmp_path: Path, name: str, *records: Record) -> bytes:
    path = tmp_path / name
    done = exports.write(records, path)
    assert done.paths == (path,)
    content = path.read_bytes()
    assert done.size == len(content)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    return content


# ---------------------------------------------------------------------------------- one job


def test_a_row_has_what_a_table_needs():
    assert tuple(record().row()) == COLUMNS
    assert record().row() == ROW
    assert record(None, status=JobStatus.FAILED).row()["output"] is None
    assert record(["a", {"b": 1}]).row()["output"] == '[\n  "a",\n  {\n    "b": 1\n  }\n]'
    assert record("").row()["output"] == ""
    assert record(None, chunks=["so ", "far"], status=JobStatus.IN_PROGRESS).row()["output"] == "so far"
    assert record("half \ud83d").row()["output"] == "half \ufffd"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ({"prompt": "a\nb"}, "a\nb"),
        ({"openai_input": {"messages": [{"content": "first"}, {"content": "last"}]}}, "last"),
        ({"workflow": 1}, '{\n  "workflow": 1\n}'),
        (None, ""),
        ("\ud83d", "\ufffd"),
    ],
)
def test_a_prompt_is_found_in_its_input(value, text):
    assert prompt_text(value) == text


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"image": encoded(PNG)}, [("image/png", PNG)]),
        (f"data:image/png;base64,{encoded(PNG)}", [("image/png", PNG)]),
        ({"images": [{"data": encoded(PNG), "type": "base64"}] * 2}, [("image/png", PNG)] * 2),
        ({"audio": encoded(WAV), "video": encoded(MP4)}, [("audio/wav", WAV), ("video/mp4", MP4)]),
        ({"audio": encoded(WAV).rstrip("=")}, [("audio/wav", WAV)]),
        ({"image_url": "https://host.example/a.png"}, []),
        ("just text", []),
        (None, []),
    ],
)
def test_pictures_sound_and_film_are_found(output, found):
    assert [(medium.mime, medium.content) for medium in media(output)] == found


# ---------------------------------------------------------------------------------- tables


def test_csv_is_read_back(tmp_path):
    content = written(tmp_path, "jobs.csv", record('say "a,b"\nand c'), record(None, **BARE))
    first, second = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert first == {name: str(value) for name, value in ROW.items()} | {
        "submitted_at": "2023-11-14T22:13:20.250000+00:00",
        "output": 'say "a,b"\nand c',
    }
    assert (second["output"], second["cost"], second["notebook"]) == ("", "", "")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n", "＝1", '=cmd|" /C calc"!A0']
)
def test_no_cell_of_csv_is_a_formula(tmp_path, text):
    content = written(tmp_path, "jobs.csv", record(text, input={"prompt": text}, endpoint=text))
    (row,) = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert (row["output"], row["prompt"], row["endpoint"]) == (f"'{text}",) * 3
    assert row["delay_time"] == "0.5"


@given(st.text())
def test_any_text_comes_through_csv_and_jsonl(text):
    (row,) = csv.DictReader(io.StringIO(exports._csv([record(text)]).decode(), newline=""))
    assert row["output"].removeprefix("'") == text.removeprefix("'")
    (line,) = exports._jsonl([record(text)]).decode().splitlines()
    assert json.loads(line)["output"] == text


def test_json_has_all_that_is_known(tmp_path):
    document = json.loads(written(tmp_path, "a.json", record({"score": 1})))
    assert document == [
        ROW | {
            "submitted_at": WHEN.isoformat(), "output": {"score": 1}, "endpoint_id": "abc123", "operation": "run",
            "profile": "chat", "options": {"ttl": 60.0}, "input": {"prompt": "What is a queue?", "n": 1},
            "error": None, "worker_id": "w1", "cell": "c1", "notes": ["a note"],
        }
    ]  # fmt: skip


def test_jsonl_has_a_line_for_each_job(tmp_path):
    error = WorkerError("no luck", "ValueError")
    content = written(tmp_path, "a.jsonl", record("a\nb"), record(None, status=JobStatus.FAILED, error=error))
    first, second = map(json.loads, content.decode().removesuffix("\n").split("\n"))
    assert (first["output"], second["output"], second["error"]) == ("a\nb", None, "ValueError: no luck")


def test_half_a_character_is_the_same_value_in_json(tmp_path):
    half = record({"text": "\ud83d"})
    assert json.loads(written(tmp_path, "a.json", half))[0]["output"] == {"text": "\ud83d"}


@pytest.mark.parametrize("missing", ["polars", "pandas"])
def test_parquet_is_written_by_what_there_is(tmp_path, monkeypatch, missing):
    rows = [record(), record(None, number=8, **BARE)]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, missing, None)
        content = written(tmp_path, "jobs.parquet", *rows)
    table = pl.read_parquet(io.BytesIO(content))
    assert table.to_dicts() == [row.row() for row in rows]


def test_a_column_of_nothing_has_its_type(tmp_path):
    table = pl.read_parquet(io.BytesIO(written(tmp_path, "jobs.parquet", record(None, **BARE))))
    assert (table.schema["cost"], table.schema["output"]) == (pl.Float64, pl.String)


def test_without_a_library_parquet_says_what_to_do(tmp_path, monkeypatch):
    for missing in ("polars", "pandas"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match="neither is installed here: `%pip install polars`"):
        exports.write([record()], tmp_path / "jobs.parquet")
    assert not list(tmp_path.iterdir())


def test_a_frame_is_of_pandas_where_that_is_there(monkeypatch):
    frame = exports.frame([record().row()])
    assert isinstance(frame, pd.DataFrame)
    assert tuple(frame.columns) == COLUMNS
    assert str(frame.submitted_at.dt.tz) == "UTC"
    assert frame.submitted_at[0] == WHEN
    assert tuple(exports.frame([]).columns) == COLUMNS
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert exports.frame([record().row()]) == [ROW]


# ---------------------------------------------------------------------------------- reports


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


ELEMENTS = {"html", "head", "meta", "title", "style", "body", "h1", "article", "h2", "p", "h3", "pre"}
MEDIA = {"img", "audio", "video"}


@pytest.mark.parametrize("payload", [payload for _, payload in PAYLOADS], ids=[name for name, _ in PAYLOADS])
def test_a_page_holds_nothing_that_an_endpoint_wrote_but_as_text(tmp_path, payload):
    hostile = record(
        payload, input={"prompt": payload}, endpoint=payload, notes=(payload,), status=JobStatus(payload)
    )
    failed = record(None, status=JobStatus.FAILED, error=WorkerError(payload, payload, payload, payload))
    page = Page(written(tmp_path, "a.html", hostile, failed, record({"a": payload})).decode())
    assert {tag for tag, _ in page.elements} == ELEMENTS
    attributes = {name for tag, given in page.elements if tag != "meta" for name in given}
    assert attributes == {"lang"}
    assert payload.strip()[:40].split("\n")[0] in page.text


def test_a_page_shows_pictures_and_fetches_and_runs_nothing(tmp_path):
    output = {"image": encoded(PNG), "audio": encoded(WAV), "video": encoded(MP4), "seed": 5}
    page = Page(written(tmp_path, "a.html", record(output)).decode())
    shown = {tag: given["src"] for tag, given in page.elements if tag in MEDIA}
    assert shown == {
        "img": f"data:image/png;base64,{encoded(PNG)}",
        "audio": f"data:audio/wav;base64,{encoded(WAV)}",
        "video": f"data:video/mp4;base64,{encoded(MP4)}",
    }
    (policy,) = [given["content"] for tag, given in page.elements if given.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    assert "color-scheme: light dark" in page.text
    assert '"seed": 5' in page.text
    assert f'"image": "image/png, {len(PNG)} bytes"' in page.text
    assert "@7 · llama · COMPLETED" in page.text
    assert "2023-11-14 22:13:20 UTC · runpod · COMPLETED · 0.5 s queue · 2.0 s run · >= $0.5000" in page.text


@pytest.mark.parametrize("payload", [payload for _, payload in PAYLOADS], ids=[name for name, _ in PAYLOADS])
def test_a_markdown_report_has_no_html(tmp_path, payload):
    hostile = record(payload, input={"prompt": payload}, endpoint=payload, notes=(payload,))
    failed = record(None, status=JobStatus.FAILED, error=WorkerError(payload, payload, payload, payload))
    text = written(tmp_path, "a.md", hostile, failed, record({"a": payload})).decode()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert not [token for token in (*tokens, *inner) if token.type in ("html_block", "html_inline")]
    links = [token.attrGet("href") for token in inner if token.type == "link_open"]
    assert not [link for link in links if link.lower().startswith(("javascript:", "data:"))]


def test_a_markdown_report_shows_answers_as_they_are_meant(tmp_path):
    text = written(tmp_path, "a.md", record("**bold**"), record({"image": encoded(PNG), "seed": 5})).decode()
    assert text.startswith("## @7 · llama · COMPLETED\n\n2023-11-14 22:13:20 UTC · runpod")
    assert "\n**Prompt**\n\n```\nWhat is a queue?\n```\n\n**Output**\n\n**bold**\n\n---\n\n## @7" in text
    assert f"![image/png](data:image/png;base64,{encoded(PNG)})" in text
    assert '"seed": 5' in text


# ---------------------------------------------------------------------------------- one job's output


@pytest.mark.parametrize(
    ("name", "output", "content"),
    [
        ("a.txt", "ä\nb", "ä\nb".encode()),
        ("a.txt", {"a": 1}, b'{\n  "a": 1\n}'),
        ("a.png", {"image": encoded(PNG)}, PNG),
        ("a.PNG", f"data:image/png;base64,{encoded(PNG)}", PNG),
        ("a.jpg", {"image": encoded(JPEG)}, JPEG),
        ("a.jpeg", {"image": encoded(JPEG)}, JPEG),
        ("a.wav", {"audio": encoded(WAV)}, WAV),
        ("a.mp4", {"video": encoded(MP4), "image": encoded(PNG)}, MP4),
    ],
)
def test_the_output_of_one_job_is_written_as_it_is(tmp_path, name, output, content):
    assert written(tmp_path, name, record(output)) == content


def test_several_pictures_are_several_files(tmp_path):
    output = {"images": [encoded(PNG), encoded(PNG + b"2"), encoded(JPEG)]}
    done = exports.write([record(output)], tmp_path / "cat.png")
    assert [path.name for path in done.paths] == ["cat-1.png", "cat-2.png"]
    assert [path.read_bytes() for path in done.paths] == [PNG, PNG + b"2"]
    assert done.size == 2 * len(PNG) + 1
    with pytest.raises(InputError, match=r"cat-1\.png exists"):
        exports.write([record(output)], tmp_path / "cat.png")


@pytest.mark.parametrize(
    ("name", "records", "said"),
    [
        ("a.txt", [record(), record()], "a .txt file takes the output of one job, and these are 2; .csv"),
        ("a.txt", [record(None, status=JobStatus.FAILED)], "@7 is FAILED, and has no output"),
        ("a.png", [record()], "the output of @7 is no picture, sound or film, and nothing for a .png file"),
        ("a.png", [record({"image": encoded(JPEG)})], "is image/jpeg, and nothing for a .png file"),
        ("a.doc", [record()], "the ending of 'a.doc' says how a job is written, and is none of .csv,"),
        ("a", [record()], "the ending of 'a' says"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_no_file(tmp_path, name, records, said):
    with pytest.raises(InputError) as caught:
        exports.write(records, tmp_path / name)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- the file


def test_a_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a\.txt exists, and was not touched; --force replaces it"):
        exports.write([record()], path)
    assert path.read_text() == "mine"
    exports.write([record()], path, force=True)
    assert path.read_text() == "an answer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), path.write_text("mine")))
    with pytest.raises(InputError, match="exists, and was not touched"):
        exports.write([record()], path)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert written(tmp_path, "a.txt", record()) == b"an answer"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("mine")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EndpointError, match=r"a\.txt could not be written: No space left on device"):
        exports.write([record()], path, force=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EndpointError, match="could not be written: No such file or directory"):
        exports.write([record()], tmp_path / "nowhere" / "a.txt")


def test_a_link_stays_one(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    link.symlink_to(path)
    exports.write([record()], link, force=True)
    assert link.is_symlink()
    assert path.read_text() == "an answer"
