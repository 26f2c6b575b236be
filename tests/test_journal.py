"""The journal: what it is told it gives back, and what is secret it is never told."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_ext.connection import Submission
from notebook_ext.entry import Entry, body_hash
from notebook_ext.errors import JournalError
from notebook_ext.journal import Journal
from notebook_ext.types import ExecutionPolicy, Job, JobStatus, StreamChunk, WorkerError


@pytest.fixture(params=["memory", "file"])
def journal(request, tmp_path):
    it = Journal(":memory:" if request.param == "memory" else str(tmp_path / "journal.db"))
    yield it
    it.close()


def queued(job_id: str = "", **more) -> Entry:
    job = Job(id=job_id, endpoint="ep", status=JobStatus.IN_QUEUE, seen_at=5.0)
    return replace(
        Entry(endpoint="ep", endpoint_id="ep", provider="runpod", base_url="https://api/v2", input={"a": [1, None, "ä"]},
              submitted_at=4.5, job=job),
        **more,
    )  # fmt: skip


def test_an_entry_comes_back_as_it_was(journal) -> None:
    entry = queued(operation="runsync", profile="vllm", options={"ttl": 60.0}, cell="cell-1")
    number = journal.add(entry)
    assert number == 1
    assert journal.get(1) == replace(entry, number=1, owner=journal.owner)
    assert journal.get(2) is None


def test_numbers_are_never_used_twice(journal) -> None:
    assert [journal.add(queued()), journal.add(queued())] == [1, 2]
    journal.discard(2)
    assert journal.add(queued()) == 3
    assert [entry.number for entry in journal.entries()] == [1, 3]


def test_the_newest_snapshot_and_the_id_are_kept(journal) -> None:
    number = journal.add(queued())
    job = Job(
        id="a-u1", endpoint="ep", status=JobStatus.FAILED, output=None, has_output=True, delay_time=0.5,
        execution_time=1.25, worker_id="w", retries=2, seen_at=9.0,
        error=WorkerError("bad", "ValueError", "Traceback", "w", raw={"error": ["bad", 1]}),
    )  # fmt: skip
    journal.update(number, job)
    assert journal.get(number).job == job
    journal.update(number, replace(job, error=None, has_output=False))
    assert journal.get(number).job == replace(job, error=None, has_output=False)


def test_an_unknown_word_is_kept(journal) -> None:
    number = journal.add(queued())
    journal.update(number, Job(id="j", endpoint="ep", status=JobStatus("WARMING_UP")))
    assert journal.get(number).job.status == "WARMING_UP"
    assert [entry.number for entry in journal.entries(active=True)] == [number]


def test_chunks_keep_their_order_and_every_value(journal) -> None:
    number, other = journal.add(queued()), journal.add(queued())
    values = ["a", None, 0, "", {"k": [1]}, False, "ä\ud800\x00"]
    chunks = [StreamChunk(value, index) for index, value in enumerate(values)]
    journal.append(number, chunks[3:])
    journal.append(number, chunks[:3])
    journal.append(number, [])
    journal.append(other, chunks[:1])
    assert journal.chunks(number) == chunks
    journal.append(number, chunks[:1])  # told again: no second one
    assert journal.chunks(number) == chunks
    journal.restart(number, Job(id="j", endpoint="ep", status=JobStatus.IN_QUEUE))
    assert journal.chunks(number) == []
    assert journal.chunks(other) == chunks[:1]
    journal.discard(other)
    assert journal.chunks(other) == []


def test_a_batch_that_fails_leaves_nothing_and_the_next_one_is_kept(journal) -> None:
    number = journal.add(queued())
    with pytest.raises(TypeError):
        journal.append(number, [StreamChunk("a", 0), StreamChunk(object(), 1)])
    with pytest.raises(JournalError):
        journal.append(2**70, [StreamChunk("of a number that SQLite has not", 0)])
    journal.append(number, [StreamChunk("b", 0)])
    assert journal.chunks(number) == [StreamChunk("b", 0)]


def test_ids_are_found_by_their_beginning_to_the_letter(journal) -> None:
    for job_id in ("a_1", "ab1", "a%1", "a\\1", "sync-a_1", "A_1"):
        journal.add(queued(job_id))

    def found(beginning: str) -> list[str]:
        return [entry.job.id for entry in journal.find(beginning)]

    assert found("a_") == ["a_1"]
    assert found("a%") == ["a%1"]
    assert found("a\\") == ["a\\1"]
    assert found("sync-") == ["sync-a_1"]
    assert found("zzz") == []


def test_last_and_those_that_are_active_or_recent(journal) -> None:
    assert journal.last() is None
    for number, status in enumerate(["COMPLETED", "IN_PROGRESS", "AMBIGUOUS", "LOST"], 1):
        journal.add(queued(f"job-{number}", submitted_at=float(number)))
        journal.update(number, Job(id=f"job-{number}", endpoint="ep", status=JobStatus(status)))
    assert journal.last().number == 4
    assert [entry.number for entry in journal.entries()] == [1, 2, 3, 4]
    assert [entry.number for entry in journal.entries(active=True)] == [2, 3]
    assert [entry.number for entry in journal.entries(since=3.0)] == [3, 4]


def test_it_may_be_read_from_another_thread(journal) -> None:
    journal.add(queued("j"))
    found = []
    thread = threading.Thread(target=lambda: found.extend(journal.find("j")))
    thread.start()
    thread.join()
    assert [entry.number for entry in found] == [1]


def test_a_file_is_there_again(tmp_path) -> None:
    path = str(tmp_path / "journal.db")
    first = Journal(path)
    first.add(queued("j"))
    first.append(1, [StreamChunk("a", 0)])
    first.close()
    second = Journal(path)
    assert second.find("j")[0].number == 1
    assert second.chunks(1) == [StreamChunk("a", 0)]
    assert second.add(queued()) == 2
    second.close()


def test_a_newer_file_is_refused_and_left_alone(tmp_path) -> None:
    path = tmp_path / "journal.db"
    Journal(str(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalError, match="was written by a newer version of notebook_ext"):
        Journal(str(path))
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (99,)
    db.close()


@pytest.mark.parametrize("content", [b"this is no database at all, not even nearly" * 50, None])
def test_what_is_no_journal_is_refused(tmp_path, content) -> None:
    path = tmp_path / "journal.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(str(path))


def test_credentials_are_not_among_what_is_kept(tmp_path) -> None:
    submission = Submission(
        input=1,
        policy=ExecutionPolicy(60, 90, True),
        webhook="https://x",
        s3_config={"accessSecret": "SECRET"},
    )
    assert submission.options() == {
        "execution_timeout": 60, "ttl": 90, "low_priority": True, "webhook": "https://x",
    }  # fmt: skip
    assert Submission(input=1).options() == {}
    assert "SECRET" not in repr(submission)


def test_only_what_was_asked_here_and_came_whole_answers(journal) -> None:
    def finished(notes: tuple[str, ...] = (), **more) -> int:
        number = journal.add(queued(**more))
        journal.finish(number, Job(id=f"j-{number}", endpoint="ep", status=JobStatus.COMPLETED), notes)
        return number

    whole = finished(("something else",))
    finished(("text may be missing: answers were lost on the way",))
    assert journal.answer_to(queued().body_hash).number == whole
    finished(input=None, detached=True)  # adopted
    assert journal.answer_to(queued(input=None).body_hash) is None
    asked = finished(input=None)
    assert journal.answer_to(queued(input=None).body_hash).number == asked


def test_equal_bodies_have_equal_hashes() -> None:
    assert body_hash("runpod", "ep", {"a": 1, "b": 2}, {}) == body_hash("runpod", "ep", {"b": 2, "a": 1}, {})
    others = [
        body_hash("runpod", "ep", {"a": 1}, {}),
        body_hash("runpod", "other", {"a": 1}, {}),
        body_hash("runpod", "ep", {"a": 1}, {"ttl": 1}),
    ]
    assert len(set(others)) == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(json_values, json_values, json_values)
def test_any_json_comes_back(input, output, chunk) -> None:
    journal = Journal()
    try:
        number = journal.add(queued(input=input))
        journal.update(
            number, Job(id="j", endpoint="ep", status=JobStatus.COMPLETED, output=output, has_output=True)
        )
        journal.append(number, [StreamChunk(chunk, 0)])
        entry = journal.get(number)
        assert (entry.input, entry.job.output) == (input, output)
        assert journal.chunks(number) == [StreamChunk(chunk, 0)]
    finally:
        journal.close()


# ---------------------------------------------------------------------------------- size

LOOKS = {
    "the last 50 jobs": "session.journal.entries(limit=50)",
    "their handles": "session.entries(limit=50)",
    "those that are active": "session.journal.entries(active=True)",
    "one job": "session.find('@500')",
    "one by its id": "session.find('job-000500-u1')",
    "the last one": "session.find('@last')",
    "a search for a word": "session.journal.search('thing42')",
    "a search for the one": "session.journal.search('word500 question')",
    "an answer to a body": "session.journal.answer_to('0' * 64)",
    "its size": "session.journal.size()",
    "one more job": "session.journal.add(session.journal.get(1))",
}
READ = """
import json, sys, time
import psutil
from notebook_ext.session import Session

def memory():
    return psutil.Process().memory_info().rss / 1e6

before = memory()
session = Session(journal=sys.argv[1])
took, most = {}, before
for name, look in json.loads(sys.argv[2]).items():
    started = time.perf_counter()
    found = eval(look)
    took[name] = time.perf_counter() - started
    most = max(most, memory())
    assert found is not None or name == "an answer to a body", name
print(json.dumps({"took": took, "megabytes": most - before}))
"""


def test_a_large_journal_is_read_without_holding_it_in_memory(request, tmp_path, capsys) -> None:
    """With `--full-size`, 10,000 jobs and 1,000,000 chunks; a tenth of it without."""
    is_full = request.config.getoption("--full-size")
    path, jobs, streamed = str(tmp_path / "large.db"), 10_000 if is_full else 1_000, 100
    journal, started = Journal(path), time.perf_counter()
    for index in range(1, jobs + 1):
        prompt = {"prompt": f"question {index} about thing{index % 97} and word{index}"}
        number = journal.add(queued(submitted_at=1e9 + index, input=prompt))
        job = Job(id=f"job-{index:06}-u1", endpoint="ep", status=JobStatus.IN_PROGRESS)
        journal.update(number, job)
        journal.append(number, [StreamChunk(f"token {place} ", place) for place in range(streamed)])
        if index % 10:
            done = replace(job, status=JobStatus.COMPLETED, output=[], has_output=True)
            journal.finish(number, done)
    took = time.perf_counter() - started
    megabytes = journal.size() / 1e6
    journal.close()
    command = [sys.executable, "-c", READ, path, json.dumps(LOOKS)]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    lines = [
        f"{jobs:,} jobs and {jobs * streamed:,} chunks: {megabytes:.1f} MB, written in {took:.1f} s, "
        f"{read['megabytes']:.1f} MB of memory",
        *(f"{name}: {1000 * seconds:.1f} ms" for name, seconds in read["took"].items()),
    ]
    print(*lines, sep="\n")
    if is_full:
        with capsys.disabled():
            print("", *lines, sep="\n")
    assert read["megabytes"] < 40
