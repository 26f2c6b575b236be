"""What is asked again: answered from the journal, attached to while it still runs, never paid for twice unasked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from inshell import KEY, Gate

from notebook_ext.connection import Submission
from notebook_ext.journal_path import UNKNOWN_FOR
from notebook_ext.repeats import Repeats
from notebook_ext.types import JobStatus


@pytest.fixture
def outside(notebook, provider, monkeypatch):
    """An endpoint that outlives the session, and the gate of its jobs; by the name of `far`."""
    gate = Gate()
    monkeypatch.setenv("FAR_KEY", KEY)
    provider.serve(gate)
    notebook.run(f"%endpoint connect far abc123 --provider {provider.url} --key-env FAR_KEY")
    yield gate
    gate.go.set()


def restarted(notebook):
    """Go on with another session, as after a restart; what loading the extension says."""
    notebook.run("%unload_ext notebook_ext")
    return notebook.run("%load_ext notebook_ext")


# ---------------------------------------------------------------------------------- replay


def test_replay_answers_what_was_asked_before_and_sends_the_rest(echo):
    first = echo.run("%endpoint run -- hello")
    assert echo.sent() == 1
    assert "replay is 'auto'" in echo.run("%endpoint replay auto")
    again = echo.run("%endpoint run -o job -- hello")
    assert echo.sent() == 1
    assert "from the journal, asked 20" in again
    assert again.splitlines()[0] == first.splitlines()[0]
    assert echo.names["job"].number == 1
    assert "from the journal" not in echo.run("%endpoint run -- something else")
    assert echo.sent() == 2
    assert "from the journal" not in echo.run("%endpoint run --no-cache -- hello")
    assert echo.sent() == 3


def test_an_answer_is_taken_by_name_and_by_cell(echo):
    echo.run("%endpoint run -- hello")
    echo.run("%endpoint replay only\n%endpoint answer << run -- hello")
    assert echo.names["answer"] == {"prompt": "hello"}
    assert "from the journal" in echo.run("%%endpoint run\nhello\n") or echo.sent() == 1


def test_only_sends_nothing_and_names_the_cell(echo):
    echo.run("%endpoint replay only")
    said = echo.error("%endpoint run -- never asked")
    assert re.search(r"has no answer to the request of cell \[\d+\]; nothing was sent", said)
    assert echo.sent() == 0
    echo.run("%endpoint replay off\n%endpoint run -- never asked")
    assert echo.sent() == 1


def test_one_cell_alone_is_answered_from_the_journal(echo):
    echo.run("%endpoint run --cache -- hello")
    assert "from the journal" in echo.run("%endpoint run --cache -- hello")
    assert "from the journal" not in echo.run("%endpoint run -- hello")
    assert "not allowed with" in echo.error("%endpoint run --cache --no-cache -- hello")


def test_only_holds_for_a_cell_that_asks_for_the_journal(echo):
    echo.run("%endpoint replay only")
    assert "nothing was sent" in echo.error("%endpoint run --cache -- never asked")
    assert echo.sent() == 0


def test_what_was_sent_is_not_said_to_be_from_the_journal_later(echo):
    echo.run("%endpoint run -o sent -- hello\n%endpoint run --cache -o again -- hello")
    assert echo.names["sent"].notes == []
    assert echo.names["again"].notes[0].startswith("from the journal, asked ")
    assert echo.names["again"].output() == echo.names["sent"].output()
    assert "from the journal" not in echo.run("%endpoint show @1")


def test_an_input_that_is_not_json_is_no_repeat(notebook):
    session = notebook.session
    connection = session.serve("echo", "echo")
    entry = session.entry(connection, Submission(input=object(), cell="cell-1"))
    repeats = Repeats(session)
    assert repeats.answer(entry, "cell 1", cache=True) is None
    assert repeats.running(entry, ("cell-1", 1)) is None


@pytest.mark.parametrize(("age", "is_asked"), [(0.9, True), (1.1, False)])
def test_a_submission_that_may_have_been_queued_is_asked_about(notebook, age, is_asked):
    session = notebook.session
    connection = session.serve("echo", "echo")
    entry = session.entry(connection, Submission(input=1, cell="cell-1"))
    earlier = replace(
        entry,
        submitted_at=time.time() - age * UNKNOWN_FOR,
        job=replace(entry.job, status=JobStatus.AMBIGUOUS),
    )
    session.on_loop(session.journal.add, earlier)
    found = Repeats(session).running(entry, ("cell-1", 2))
    assert (found is not None) == is_asked


def test_the_environment_sets_the_mode_of_a_run_without_anybody(shell, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_EXT_REPLAY", "only")
    shell.run("%load_ext notebook_ext\n%endpoint serve echo --handler echo")
    assert "nothing was sent" in shell.error("%endpoint run echo -- hi")
    shell.run("%unload_ext notebook_ext")
    monkeypatch.setenv("NOTEBOOK_EXT_REPLAY", "sometimes")
    shell.run("%load_ext notebook_ext\n%endpoint serve echo --handler echo")
    assert "NOTEBOOK_EXT_REPLAY is 'sometimes', not one of auto, only, off" in shell.error(
        "%endpoint run echo -- hi"
    )
    shell.run("%unload_ext notebook_ext")


def test_a_failed_job_is_no_answer(notebook):
    notebook.run("%endpoint serve fail --handler fail")
    notebook.try_("%endpoint run fail -- hello")
    assert "nothing was sent" in notebook.error("%endpoint replay only\n%endpoint run fail -- hello")


def test_answers_outlive_the_session(outside, notebook):
    outside.go.set()
    notebook.run("%endpoint run far -- hello")
    assert restarted(notebook) == ""
    shown = notebook.run("%endpoint replay only\n%endpoint run far -- hello")
    assert "begun done" in shown.replace("\n", "")
    assert "@1 · far · COMPLETED" in shown


# ---------------------------------------------------------------------------------- what was left behind


def test_a_new_session_says_what_was_left_and_attaches_to_all_of_it(outside, notebook):
    notebook.run("%endpoint run far --bg -o job -- hello")
    assert outside.begun.wait(10)
    next(iter(notebook.names["job"].chunks()))
    assert restarted(notebook) == (
        "An earlier kernel left 1 job: 1 still runs. `%endpoint attach --all` shows them.\n"
    )
    outside.go.set()
    shown = notebook.run("%endpoint attach --all")
    assert "begun done" in shown.replace("\n", "")
    assert "@1 · far · COMPLETED" in shown
    assert notebook.session.find("@1").output() == "begun done"
    assert notebook.run("%endpoint attach --all").startswith("no job was left behind")


def test_what_ended_meanwhile_is_kept(outside, notebook):
    notebook.run("%endpoint run far --bg -o job -- hello")
    next(iter(notebook.names["job"].chunks()))
    notebook.run("%unload_ext notebook_ext")
    outside.go.set()
    assert outside.ended.wait(10)
    said = notebook.run("%load_ext notebook_ext")
    assert said.startswith("An earlier kernel left 1 job: 1 ended since, and what came of it is kept.")
    assert "@1 · far · COMPLETED" in notebook.run("%endpoint attach --all")


def test_what_the_kernel_itself_served_ended_with_it(notebook):
    gate = Gate()
    notebook.handlers(mine=gate)
    notebook.run("%endpoint run mine --bg -- hello")
    assert gate.begun.wait(10)
    gate.go.set()
    journal = notebook.session.journal
    number = notebook.session.handles[1].number
    notebook.run("%endpoint wait @1")
    assert journal.get(number).job.status == "COMPLETED"
    assert restarted(notebook) == ""
    assert "begun done" in notebook.run("%endpoint show @1").replace("\n", "")


def test_jobs_lists_what_earlier_sessions_did(outside, notebook):
    outside.go.set()
    notebook.run("%endpoint run far -- the first")
    restarted(notebook)
    notebook.run("%endpoint run far -- the second")
    listed = notebook.run("%endpoint jobs")
    assert "the first" in listed
    assert "the second" in listed
    assert "the first" not in notebook.run("%endpoint jobs --active")


def test_a_job_of_another_session_is_not_cancelled_with_all(outside, notebook):
    notebook.run("%endpoint run far --bg -o job -- hello")
    assert outside.begun.wait(10)
    restarted(notebook)
    assert notebook.run("%endpoint cancel --all") == "nothing is running\n"
    assert "@1 CANCELLED" in notebook.run("%endpoint cancel @1")


# ---------------------------------------------------------------------------------- the same cell again


@pytest.fixture
def in_a_cell(notebook, monkeypatch):
    """Cells have an id, as in a notebook."""
    from notebook_ext.verbs import Verbs

    monkeypatch.setattr(Verbs, "_cell_id", lambda self: "cell-1")
    return notebook


def test_a_cell_whose_job_has_ended_runs_again_unasked(outside, in_a_cell, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    outside.go.set()
    in_a_cell.run("%endpoint run far -- hello")
    in_a_cell.run("%endpoint run far -- hello")
    assert len(in_a_cell.session.handles) == 2


def test_a_cell_whose_job_still_runs_asks_before_it_pays_again(outside, in_a_cell, monkeypatch):
    replies = ["attach", "submit"]
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or replies.pop(0))
    in_a_cell.run(
        "%endpoint run far --bg -- hello\n%endpoint run far --bg -- hello"
    )  # twice in one run: as asked
    assert asked == []
    count = len(in_a_cell.session.handles)
    in_a_cell.run("%endpoint run far --bg -o job -- hello")
    assert re.match(r"@2, the same request of this cell, was sent [\d.]+ s ago and has not ended", asked[0])
    assert (in_a_cell.names["job"].number, len(in_a_cell.session.handles)) == (2, count)
    in_a_cell.run("%endpoint run far --bg -o job -- hello")
    assert (in_a_cell.names["job"].number, len(asked)) == (3, 2)
    in_a_cell.run("%endpoint run far --bg --again -o job -- hello")
    assert (in_a_cell.names["job"].number, len(asked)) == (4, 2)


# ---------------------------------------------------------------------------------- how an interpreter ends

SCRIPT = """
import time
from notebook_ext import connect
connection = connect("far", "abc123", provider={url!r}, key_variable="FAR_KEY")
jobs = [connection.submit({{"prompt": "hi"}}), connection.submit({{"prompt": "hi"}}, detached=True)]
while not all(job.status == "IN_PROGRESS" for job in jobs):
    time.sleep(0.01)
print([job.id for job in jobs])
"""


def test_an_interpreter_that_ends_stops_its_jobs_and_says_so(outside, provider):
    provider.serve(outside, workers=2)
    script = SCRIPT.format(url=provider.url)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    stopped, detached = json.loads(ended.stdout.replace("'", '"'))
    assert re.fullmatch(r"notebook_ext: @1 CANCELLED after [\d.]+ s of execution\n", ended.stderr)
    records = provider.server.endpoints["abc123"].records
    assert (records[stopped].status, records[detached].status) == ("CANCELLED", "IN_PROGRESS")
    outside.go.set()
    end = time.monotonic() + 10
    while records[detached].status != "COMPLETED":
        assert time.monotonic() < end
        time.sleep(0.01)
