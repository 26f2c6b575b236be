"""`history`, `export` and `code` in a shell, against endpoints that are really served and a journal in a file."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from datetime import UTC
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import inshell
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from notebook_ext import JobHandle, tables
from notebook_ext.connection import Submission
from notebook_ext.records import COLUMNS
from notebook_ext.session import Session
from notebook_ext.types import ExecutionPolicy, JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "<img src=x onerror=\"window.__pwned=1\"> </td><script>1</script> 'quoted'"


class Notebook(inshell.Notebook):
    """A notebook that asks `echo`, and can be begun again."""

    def begin(self) -> None:
        """A kernel that has just started, with `echo` as its endpoint."""
        self.run("%load_ext notebook_ext\n%endpoint serve echo --handler echo\n%endpoint use echo")

    def restart(self) -> None:
        self.run("%unload_ext notebook_ext")
        self.begin()

    def ask(self, *prompts: str) -> None:
        for prompt in prompts:
            self.session.connect("echo").submit({"prompt": prompt}).output(10)

    def backdate(self, number: int, seconds: float) -> None:
        with self.session.journal._db.using() as db:
            db.execute("UPDATE jobs SET submitted_at = submitted_at - ? WHERE number = ?", (seconds, number))


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    it = Notebook()
    it.begin()
    yield it
    it.run("%unload_ext notebook_ext")
    InteractiveShell.clear_instance()


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.add(tag)


def numbers(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines() if line.startswith("@")]


# ---------------------------------------------------------------------------------- history


def test_the_newest_job_comes_first(notebook):
    notebook.ask("one", "two", "three")
    lines = notebook.run("%endpoint history").splitlines()
    assert lines[0].split() == ["endpoint", "when", "status", "prompt"]
    assert re.fullmatch(r"@3  echo +[\d: -]+  COMPLETED  three", lines[1])
    assert numbers("\n".join(lines)) == ["@3", "@2", "@1"]


def test_jobs_of_an_earlier_kernel_are_there(notebook):
    notebook.ask("one")
    notebook.restart()
    notebook.ask("two")
    assert numbers(notebook.run("%endpoint history")) == ["@2", "@1"]


def test_what_is_older_than_today_has_its_date(notebook):
    notebook.ask("one", "two")
    notebook.backdate(1, 3 * 86400)
    table = notebook.run("%endpoint history")
    then = time.localtime(notebook.session.journal.get(1).submitted_at)
    assert time.strftime("%Y-%m-%d %H:%M", then) in table
    assert numbers(notebook.run("%endpoint history --since 2d")) == ["@2"]
    assert numbers(notebook.run("%endpoint history -q one --since 2d")) == []
    assert numbers(notebook.run("%endpoint history -q one --since 4d")) == ["@1"]


def test_a_limit_says_that_there_is_more(notebook):
    notebook.ask("one", "two", "three")
    table = notebook.run("%endpoint history --limit 2")
    assert numbers(table) == ["@3", "@2"]
    assert "and more: --limit 10 shows further ones\n" in table
    assert "and more" not in notebook.run("%endpoint history --limit 3")
    assert numbers(notebook.run("%endpoint history -q t --limit 1")) in (["@2"], ["@3"])


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_is_one_or_more(notebook, limit):
    assert "--limit is how many jobs are shown" in notebook.error(f"%endpoint history --limit {limit}")


def test_a_search_finds_words_and_shows_where_they_stand(notebook):
    def about(job):
        return "an answer about queues" if job["input"]["prompt"] == "unlike" else "nothing"

    notebook.session.serve("about", about)
    long = "word " * 200 + "how fair are queues really " + "word " * 200
    for prompt in (long, "unlike", "else"):
        notebook.session.connect("about").submit({"prompt": prompt}).output(10)
    table = notebook.run("%endpoint history -q queues")
    assert table.splitlines()[0].split()[-1] == "found"
    assert numbers(table) == ["@1", "@2"]  # the prompt counts more
    assert "how fair are queues really" in table.splitlines()[1]
    assert "an answer about queues" in table.splitlines()[2]
    assert "No jobs.\n" in notebook.run("%endpoint history -q nowhere")


def test_history_is_a_list_of_handles(notebook):
    notebook.ask("one", "two")
    notebook.restart()
    notebook.run("found = %endpoint history\nfirst = found[0]")
    first = notebook.names["first"]
    assert isinstance(first, JobHandle)
    assert first.output() == {"prompt": "two"}
    assert [handle.number for handle in notebook.names["found"]] == [2, 1]
    assert first is notebook.session.find("@2")
    assert numbers(notebook.run("found")) == ["@2", "@1"]
    assert numbers(notebook.run("%endpoint history")) == ["@2", "@1"]  # drawn once


def test_a_table_for_pandas(notebook, monkeypatch):
    notebook.session.connect("echo").rate = 0.5
    notebook.session.notebook = "a.ipynb"
    notebook.ask("one", "two")
    before = time.time()
    table = notebook.run("%endpoint history -q t -o df")
    df = notebook.names["df"]
    assert isinstance(df, pd.DataFrame)
    assert tuple(df.columns) == COLUMNS
    (row,) = df.to_dict("records")
    assert numbers(table) == ["@2"]
    assert row["number"] == 2
    assert row["submitted_at"].tzinfo is not None
    assert abs(row["submitted_at"].astimezone(UTC).timestamp() - before) < 60
    assert (row["endpoint"], row["provider"], row["status"]) == ("echo", "local", "COMPLETED")
    assert (row["prompt"], json.loads(row["output"])) == ("two", {"prompt": "two"})
    handle = notebook.session.find("@2")
    assert row["job_id"] == handle.id
    assert row["notebook"] == "a.ipynb"
    assert (row["delay_time"], row["execution_time"]) == (handle.job.delay_time, handle.job.execution_time)
    assert row["cost"] == handle.cost == 0.5 * handle.job.execution_time
    monkeypatch.setitem(sys.modules, "pandas", None)
    notebook.run("%endpoint history -o rows")
    assert [row["prompt"] for row in notebook.names["rows"]] == ["two", "one"]


def test_the_table_of_a_notebook_is_escaped(notebook):
    notebook.ask(HOSTILE)
    memory = notebook.shell.magics_manager.registry["EndpointMagics"].verbs._memory
    shown: list[Any] = []
    history = memory.history

    def kept(arguments):
        found = history(arguments)
        shown.append(found.bundle)
        return found

    memory.history = kept
    notebook.run("%endpoint history -q quoted\n%endpoint history")
    assert len(shown) == 2
    for bundle in shown:
        elements = Elements()
        elements.feed(bundle["text/html"])
        assert elements.found == {"table", "thead", "tbody", "tr", "th", "td"}
        assert "&lt;img" in bundle["text/html"]
        assert "<img" in bundle["text/plain"]


def test_excerpts_stand_in_one_line():
    row = tables.JobRow(
        number=1, endpoint="e", job_id="i", status=JobStatus.COMPLETED, prompt="p", submitted_at=0.0, queue=None,
        run=None,
    )  # fmt: skip
    bundle = tables.history([row], ["a\nb\tc " + "x" * 500])
    assert "a b c xxx" in bundle["text/plain"].splitlines()[1]
    assert len(bundle["text/plain"].splitlines()) == 2
    assert "xxx…" in bundle["text/plain"]


# ---------------------------------------------------------------------------------- export


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_jobs_are_exported_by_name_by_words_and_all(notebook, tmp_path):
    notebook.ask("one", "two", "three", "four")
    notebook.names["job"] = notebook.session.find("@4")
    notebook.backdate(1, 3 * 86400)
    for line, prompts in {
        "@3 @2 a.csv": ["three", "two"],
        "job @1 b.csv": ["four", "one"],
        "c.csv": ["four"],
        "--all d.csv": ["one", "two", "three", "four"],
        "-q t e.csv": ["two", "three"],
        "f.csv --since 2d": ["two", "three", "four"],
        "--since 2d -q o g.csv": [],
    }.items():
        name = next(word for word in line.split() if word.endswith(".csv"))
        if not prompts:
            said = notebook.error(f"%endpoint export {line}")
            assert "there is no such job in the journal; nothing was written" in said
            assert not (tmp_path / name).exists()
            continue
        said = notebook.run(f"%endpoint export {line}")
        rows = read(tmp_path / name)
        assert [row["prompt"] for row in rows] == prompts, line
        count = f"{len(prompts)} job{'' if len(prompts) == 1 else 's'}"
        assert said == f"{count}, {(tmp_path / name).stat().st_size} bytes, written to {name}\n"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet", "md", "html", "txt"])
def test_every_ending_works_for_one_job(notebook, tmp_path, ending):
    notebook.ask("one")
    notebook.restart()
    notebook.names["folder"] = tmp_path
    assert "1 job, " in notebook.run(f"%endpoint export @1 {{{{ folder }}}}/job.{ending}")
    assert (tmp_path / f"job.{ending}").stat().st_size > 0


def test_a_picture_is_exported_as_the_picture_that_it_is(notebook, tmp_path):
    handle = notebook.session.serve("picture", "image").submit({"prompt": "a queue"})
    handle.output(10)
    notebook.run("%endpoint export @1 a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_streamed_text_is_exported_whole(notebook, tmp_path):
    def words(job):
        yield from ("one ", "two ", "three")

    notebook.session.serve("words", words).submit({}).output(10)
    notebook.restart()
    notebook.run("%endpoint export @1 a.txt")
    assert (tmp_path / "a.txt").read_text() == "one two three"


def test_a_file_that_exists_is_kept(notebook, tmp_path):
    notebook.ask("one")
    (tmp_path / "a.txt").write_text("mine")
    assert "a.txt exists, and was not touched; --force" in notebook.error("%endpoint export @1 a.txt")
    assert (tmp_path / "a.txt").read_text() == "mine"
    notebook.run("%endpoint export @1 a.txt --force")
    assert (tmp_path / "a.txt").read_text() != "mine"


def test_names_and_a_choice_are_not_both(notebook):
    notebook.ask("one")
    assert "give one of them" in notebook.error("%endpoint export @1 --all a.csv")


# ---------------------------------------------------------------------------------- code


def test_code_is_a_program_or_a_command(notebook, monkeypatch, tmp_path):
    notebook.run("%endpoint run echo --exec-timeout 90s -q -- It's asked")
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", notebook.session.connect("echo").provider.key_source())
    program, command = notebook.run("%endpoint code --python"), notebook.run("%endpoint code @1 --curl")
    for run in ([sys.executable, "-c", program], ["sh", "-c", command]):
        ran = subprocess.run(run, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
    first, second, third = (
        record.request for record in notebook.session.endpoints.queue("echo").records.values()
    )
    assert first == second == third
    assert first.policy.execution_timeout == 90


def test_code_of_an_earlier_kernel_is_from_its_journal(notebook):
    submission = Submission(
        input={"prompt": "again"},
        sync=True,
        policy=ExecutionPolicy(execution_timeout=90.5, ttl=3600, low_priority=True),
    )
    notebook.session.submit(notebook.session.connect("echo"), submission).output(10)
    before = notebook.session.journal.get(1)
    notebook.restart()
    assert "endpoint.run_sync(" in notebook.run("%endpoint code @1 --python")
    assert "/echo/runsync" in notebook.run("%endpoint code @1 --curl")
    notebook.run("%endpoint code @1 --cell")
    notebook.run(notebook.shell.rl_next_input)
    again = notebook.session.journal.get(2)
    assert (again.input, again.options, again.operation) == (before.input, before.options, "runsync")


def test_code_is_one_of_three(notebook):
    notebook.ask("one")
    assert "not allowed with argument" in notebook.error("%endpoint code @1 --python --curl")


def test_code_of_what_was_not_asked_here_is_not_known(notebook):
    notebook.run("%unload_ext notebook_ext")
    other = Session()
    connection = other.serve("elsewhere", "echo")
    job_id = connection.submit({"a": 1}).wait(10).id
    notebook.begin()
    try:
        mine = notebook.session.connect("there", "elsewhere", provider=connection.provider)
        handle = notebook.session.adopt(mine, job_id)
        for option in ("", "--python", "--curl"):
            said = notebook.error(f"%endpoint code @{handle.number} {option}")
            assert "was not submitted from here, so what it was asked is not known" in said
    finally:
        other.close()


# ---------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%endpoint hist", ["history"]),
        ("%endpoint history --l", ["--limit"]),
        ("%endpoint export --f", ["--force"]),
        ("%endpoint export @", ["@last", "@2", "@1"]),
        ("%endpoint code @1 --", ["--cell", "--python", "--curl", "--worker", "--to", "--force", "--debug"]),
    ],
)
def test_the_words_are_completed(notebook, line, offered):
    from notebook_ext.suggestions import suggest

    notebook.ask("one", "two")
    assert [text for text, _ in suggest(line, notebook.session, {}).offers] == offered
