"""Large values beside the journal: whole or not there, once, and removed when nothing refers to them."""

from __future__ import annotations

import resource
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from test_journal import queued

from notebook_ext.errors import JournalError
from notebook_ext.journal import Journal
from notebook_ext.journal_path import UNKNOWN_FOR
from notebook_ext.types import Job, JobStatus
from notebook_ext.values import LARGE, Values


@pytest.fixture
def values(tmp_path) -> Values:
    return Values(tmp_path / "values")


def files(values: Values) -> list[Path]:
    return sorted(values._folder.glob("*")) if values._folder.exists() else []


def test_a_small_value_is_its_own_reference(values) -> None:
    text = "x" * (LARGE - 1)
    assert values.put(text) == text
    assert values.get(text) == text
    assert files(values) == []
    assert values.size() == 0


def test_a_large_value_is_a_file_that_equal_ones_share(values) -> None:
    text = "ä" * LARGE
    reference = values.put(text)
    assert isinstance(reference, bytes)
    assert values.put(text) == reference
    assert values.put(text + ".") != reference
    assert values.get(reference) == text
    assert [file.name for file in files(values)].count(f"{reference.hex()}.json") == 1
    assert values.size() == 4 * LARGE + 1


def test_in_memory_everything_stays_as_it_is() -> None:
    values = Values(None)
    text = "x" * (2 * LARGE)
    assert values.get(values.put(text)) == text
    assert (values.size(), values.sweep(set())) == (0, 0)


def test_only_what_nothing_refers_to_is_swept(values) -> None:
    kept, gone = values.put("k" * LARGE), values.put("g" * LARGE)
    assert values.sweep({kept}) == LARGE
    assert values.get(kept) == "k" * LARGE
    with pytest.raises(OSError, match="No such file"):
        values.get(gone)
    assert values.sweep({kept}) == 0


def test_a_value_that_does_not_fit_leaves_no_half_of_itself(values) -> None:
    """The disk is full in the midst of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, before[1]))
    try:
        with pytest.raises(JournalError, match=r"a value of 0\.1 MB could not be kept: .*File too large"):
            values.put("x" * LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(values) == []
    assert values.get(values.put("x" * LARGE)) == "x" * LARGE


def test_many_may_put_the_same_at_once(values) -> None:
    text, go, said = "x" * (20 * LARGE), threading.Barrier(8), []

    def put() -> None:
        go.wait()
        for index in range(10):
            said.append(values.put(text + str(index)))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 80
    assert len(set(said)) == 10
    assert {file.suffix for file in files(values)} == {".json"}
    assert {values.get(reference) for reference in said} == {text + str(index) for index in range(10)}


def test_pruning_in_one_kernel_takes_nothing_that_another_one_is_writing(tmp_path) -> None:
    """A value is in its file before the row that refers to it is committed."""
    path = str(tmp_path / "journal.db")
    first, second = Journal(path), Journal(path)
    first.add(queued(submitted_at=1e12))  # age counts back from the newest
    stop, wrong = threading.Event(), []

    def prune() -> None:
        while not stop.is_set():
            number = second.add(queued("old", submitted_at=1.0, input="old " * LARGE))
            second.finish(number, Job(id="old", endpoint="ep", status=JobStatus.COMPLETED))
            if second.prune(days=1.0) is None:
                wrong.append("nothing was pruned")

    thread = threading.Thread(target=prune)
    thread.start()
    now = 1e12
    numbers = [first.add(queued(input=f"{index} " * LARGE, submitted_at=now)) for index in range(60)]
    stop.set()
    thread.join()
    assert wrong == []
    for index, number in enumerate(numbers):
        entry = first.get(number)
        assert (entry.input, entry.notes) == (f"{index} " * LARGE, ())
    first.close()
    second.close()


def test_what_a_transaction_that_fails_has_put_is_swept_later(tmp_path) -> None:
    path = str(tmp_path / "journal.db")
    journal = Journal(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match="locked"):
        journal.add(queued(input="x" * LARGE))
    other.execute("ROLLBACK")
    other.close()
    journal.add(queued(submitted_at=1e12))  # age counts back from the newest
    number = journal.add(queued(submitted_at=1.0, input="y" * LARGE))
    journal.finish(number, Job(id="old", endpoint="ep", status=JobStatus.COMPLETED))
    assert journal.prune(days=1.0).jobs == 1
    assert list(Path(f"{path}.d/values").iterdir()) == []
    journal.close()


def test_pruning_for_size_stops_where_it_frees_nothing(tmp_path) -> None:
    """What is open has the room: the results are not thrown away for nothing."""
    journal = Journal(str(tmp_path / "journal.db"))
    journal.add(queued("open", input="x" * 3_000_000))
    for index in range(20):
        number = journal.add(queued(f"small-{index}"))
        journal.finish(number, Job(id=f"small-{index}", endpoint="ep", status=JobStatus.COMPLETED))
    journal.prune(megabytes=2.0)
    assert len(journal.entries()) >= 18
    journal.close()


def test_a_submission_that_is_no_longer_looked_for_is_pruned(tmp_path) -> None:
    journal = Journal(str(tmp_path / "journal.db"))
    unknown = Job(id="", endpoint="ep", status=JobStatus.AMBIGUOUS)
    now = 1e9
    for age, job in ((2.0, unknown), (0.5, unknown), (2.0, replace(unknown, id="known"))):
        journal.add(queued(submitted_at=now - age * UNKNOWN_FOR, job=job, input="x" * LARGE))
    journal.add(queued(submitted_at=now))
    assert journal.prune(megabytes=0.0).jobs == 1
    assert [entry.number for entry in journal.entries()] == [2, 3, 4]
    journal.close()
