"""The journal when its disk, its file or its clock fails: said clearly, nothing sent that nothing remembers, nothing lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
from killing import TOKEN, Victim, eventually, job, words
from test_journal import queued

from notebook_ext.errors import JournalError
from notebook_ext.journal import Journal
from notebook_ext.journal_file import open_journal
from notebook_ext.journal_path import UNKNOWN_FOR, count_left
from notebook_ext.schema import MIGRATIONS
from notebook_ext.session import Session
from notebook_ext.types import Job, JobStatus, StreamChunk
from notebook_ext.values import LARGE

LACKS = "the journal lacks some of this job: it could not be written"
NOBODY = 65534


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", TOKEN)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "faulty.db")


@pytest.fixture
def victim():
    it = Victim()
    it.wait_until_ready()
    yield it
    if it.process.poll() is None:
        it.kill()


def text(planned: dict) -> str:
    return "".join(words(planned["input"]))


def kept(path: str, number: int) -> tuple[JobStatus, str, list[str]]:
    """What a session that has seen nothing itself knows of a job."""
    session = Session(journal=path)
    try:
        handle = session.find(f"@{number}")
        return handle.status, handle.value, handle.notes
    finally:
        session.close()


# ---------------------------------------------------------------------------------- no room

FULL = {
    "the database may not grow": (
        "session.journal._db.connection.execute('PRAGMA max_page_count = 1').fetchone()",
        "session.journal._db.connection.execute('PRAGMA max_page_count = 1000000').fetchone()",
    ),
    "a file may not grow": (
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (1, -1))",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (-1, -1))",
    ),
}
SUBMIT = "str(session.connect('{endpoint}', '{endpoint}', provider={url!r}).submit({input!r}))"


@pytest.mark.parametrize("fault", FULL)
def test_on_a_full_disk_nothing_is_sent_and_what_runs_is_written_later(victim, path, way, fault) -> None:
    fill, clear = FULL[fault]
    planned = job("forgetful", f"full, {fault}", words=60, pause=0.03)
    victim.submit(path, way.url, [planned])
    victim.wait_for_submissions(1)
    eventually(lambda: victim.evaluate("len(session.handles[1].streamed())") > 5, "it streams")
    victim.evaluate(fill)
    large = {"tag": "refused", "words": 1, "pause": 0.0, "more": "x" * 40_000}
    refused = victim.evaluate(f"__import__('killing').refusal(session, 'echo', {way.url!r}, {large!r})")
    assert "nothing was sent, as nothing would remember it" in refused
    assert "JournalError" in refused
    assert way.posts == 1
    assert victim.evaluate("session.handles[1].output(20)") == text(planned)
    assert victim.evaluate("session.handles[1].notes") in ([LACKS], [])
    victim.evaluate(clear)
    eventually(lambda: victim.evaluate("session.handles[1].notes") == [], "the journal has caught up")
    assert kept(path, 1) == (JobStatus.COMPLETED, text(planned), [])
    after = job("echo", "after")
    victim.evaluate(SUBMIT.format(endpoint="echo", url=way.url, input=after["input"]))
    assert victim.evaluate("session.handles[max(session.handles)].output(20)") == text(after)


def test_a_value_that_finds_no_room_is_told(path, monkeypatch) -> None:
    journal = Journal(path)
    try:
        (Path(f"{path}.d") / "values").write_text("a file where a folder should be")
        with pytest.raises(JournalError, match=r"a value of 0\.1 MB could not be kept"):
            journal.add(queued(input="x" * LARGE))
        assert journal.entries() == []
        assert journal.add(queued(input="small")) == 1
    finally:
        journal.close()


# ---------------------------------------------------------------------------------- a lock that lasts


def test_a_lock_that_lasts_lets_streams_go_on_and_nothing_be_sent(victim, path, way) -> None:
    session = Session(journal=path)
    planned = job("forgetful", "locked", words=60, pause=0.03)
    connection = session.connect("forgetful", "forgetful", provider=way.url)
    handle = connection.submit(planned["input"])
    eventually(lambda: len(handle.streamed()) > 5, "it streams")
    victim.submit(path, way.url, [])
    victim.evaluate("session.journal._db.connection.execute('BEGIN IMMEDIATE') and 1")
    seen = len(handle.streamed())
    with pytest.raises(JournalError, match="locked; nothing was sent, as nothing would remember it"):
        connection.submit(job("forgetful", "refused")["input"])
    assert way.posts == 1
    eventually(lambda: len(handle.streamed()) > seen + 10, "it goes on")
    assert handle.output(30) == text(planned)
    time.sleep(1.2)  # the lock outlives the job, and the first attempt to write down how it ended
    assert handle.notes == [LACKS]
    victim.evaluate("session.journal._db.connection.execute('ROLLBACK') and 1")
    eventually(lambda: handle.notes == [], "the journal has caught up")
    session.close()
    assert kept(path, 1) == (JobStatus.COMPLETED, text(planned), [])


def test_a_lock_holds_no_stream_up_for_long(victim, path, way) -> None:
    """All I/O is done in one thread: were each job to wait for the lock again and again, none would go on."""
    session = Session(journal=path)
    plan = [job("stream", f"held up {index}", words=50, pause=0.03) for index in range(6)]
    connection = session.connect("stream", "stream", provider=way.url)
    handles = [connection.submit(planned["input"]) for planned in plan]
    eventually(lambda: all(handle.streamed() for handle in handles), "they stream")
    victim.submit(path, way.url, [])
    victim.evaluate("session.journal._db.connection.execute('BEGIN IMMEDIATE') and 1")
    started = time.monotonic()
    assert [handle.output(30) for handle in handles] == [text(planned) for planned in plan]
    assert time.monotonic() - started < 6  # 1.5 s, and the lock is waited for once
    victim.kill()
    eventually(lambda: all(handle.notes == [] for handle in handles), "the journal has caught up")
    session.close()
    assert [kept(path, handle.number)[1] for handle in handles] == [text(planned) for planned in plan]


def test_a_lock_at_the_end_of_the_session_leaves_a_job_that_is_found_again(victim, path, way) -> None:
    """What could not be written at all is told as a gap, not passed over."""
    session = Session(journal=path)
    planned = job("forgetful", "locked at the end", words=40, pause=0.05)
    handle = session.connect("forgetful", "forgetful", provider=way.url).submit(planned["input"])
    eventually(lambda: len(handle.streamed()) > 2, "it streams")
    victim.submit(path, way.url, [])
    victim.evaluate("session.journal._db.connection.execute('BEGIN IMMEDIATE') and 1")
    seen = len(handle.streamed())
    eventually(lambda: len(handle.streamed()) > seen + 10, "it goes on")
    session.close()
    victim.kill()
    session = Session(journal=path)
    (there,) = session.recover().handles
    there.wait(20)
    assert there.status is JobStatus.COMPLETED
    if there.value != text(planned):
        assert there.notes == ["text may be missing: answers were lost on the way"]
    session.close()


def test_a_session_begins_while_another_one_writes_for_long(victim, path, way) -> None:
    victim.submit(path, way.url, [])
    victim.evaluate("session.journal._db.connection.execute('BEGIN IMMEDIATE') and 1")
    journal = open_journal(path)
    try:
        assert (journal.is_kept, journal.warning, journal.entries()) == (True, None, [])
        with pytest.raises(JournalError, match="locked"):
            journal.add(queued())
        victim.kill()  # a killed process holds no lock
        assert journal.add(queued()) == 1
    finally:
        journal.close()


def test_the_id_of_a_job_reaches_the_journal_after_a_lock(victim, path, way) -> None:
    session = Session(journal=path)
    way.latency = 0.3
    planned = job("slow", "id", words=100, pause=0.1)
    handle = session.connect("slow", "slow", provider=way.url).submit(planned["input"])
    victim.submit(path, way.url, [])
    victim.evaluate("session.journal._db.connection.execute('BEGIN IMMEDIATE') and 1")
    eventually(lambda: handle.id, "it is submitted")
    victim.evaluate("session.journal._db.connection.execute('ROLLBACK') and 1")
    eventually(lambda: session.journal.get(1).job.id == handle.id, "its id is written later")
    eventually(lambda: handle.notes == [], "nothing is lacking")
    session.close()


# ---------------------------------------------------------------------------------- read-only


def as_nobody(function) -> str:
    """What a function returns in a process for which permissions count: root may write anywhere."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            said = function()
        except BaseException as error:
            said = f"raised {error!r}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def open_folder():
    """A folder below which permissions are all that counts: pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


def opened(path: Path) -> str:
    journal = open_journal(str(path))
    number = journal.add(queued())
    said = f"{journal.is_kept} {number} {journal.get(number).input} {journal.warning}"
    journal.close()
    return said


@pytest.mark.parametrize("what", ["file", "folder", "file and folder", "folder without a file"])
def test_where_nothing_can_be_written_work_goes_on_in_memory(open_folder, what) -> None:
    path = open_folder / "journal.db"
    if what != "folder without a file":
        journal = Journal(str(path))
        journal.add(queued())
        journal.close()
        for file in open_folder.rglob("*"):
            file.chmod(0o777 if file.is_dir() else 0o666)
    if "file" in what and path.exists():
        path.chmod(0o444)
    if "folder" in what:
        for folder in (open_folder, *open_folder.rglob("*.d"), *open_folder.rglob("*.d/*")):
            folder.chmod(0o555)
    said = as_nobody(lambda: opened(path))
    assert said.startswith("False 1 {'a': [1, None, 'ä']} the journal "), said
    assert "jobs are remembered only until this kernel ends" in said


# ---------------------------------------------------------------------------------- damage


def filled(path: str, jobs: int = 200) -> None:
    journal = Journal(path)
    for index in range(jobs):
        number = journal.add(queued(f"job-{index}", input={"prompt": f"{index} " * 200}))
        journal.append(number, [StreamChunk("text " * 100, 0)])
    journal.close()


def damage(path: str, kind: str) -> None:
    content = bytearray(Path(path).read_bytes())
    match kind:
        case "header":
            content[:100] = bytes(100)
        case "no database":
            content[:] = b"this was a journal once " * 1000
        case "schema":
            content[100:4096] = random.Random(1).randbytes(3996)
        case "cut short":
            del content[len(content) // 2 :]
    Path(path).write_bytes(content)


@pytest.mark.parametrize("kind", ["header", "no database", "schema", "cut short"])
def test_a_damaged_file_is_set_aside_and_work_goes_on(path, kind) -> None:
    filled(path)
    damage(path, kind)
    damaged = Path(path).read_bytes()
    journal = open_journal(path)
    try:
        assert journal.is_kept
        assert journal.path == path
        moved = next(Path(path).parent.glob("faulty.db.damaged-*[0-9]"))
        assert journal.warning == f"the journal {path} was damaged: it is now {moved}, and a new one began"
        assert moved.read_bytes() == damaged
        assert journal.entries() == []
        assert journal.add(queued()) == 1
    finally:
        journal.close()
    again = open_journal(path)
    assert (again.warning, len(again.entries())) == (None, 1)
    again.close()


def test_a_damaged_file_keeps_its_large_values(path) -> None:
    journal = Journal(path)
    journal.add(queued(input="x" * LARGE))
    journal.close()
    kept_before = [file.name for file in Path(f"{path}.d/values").iterdir()]
    damage(path, "header")
    journal = open_journal(path)
    journal.finish(
        journal.add(queued(submitted_at=1.0)), Job(id="old", endpoint="ep", status=JobStatus.COMPLETED)
    )
    journal.add(queued(submitted_at=1e12))
    assert journal.prune(days=1.0).jobs == 1
    journal.close()
    (aside,) = Path(path).parent.glob("faulty.db.damaged-*.d/values")
    assert [file.name for file in aside.iterdir()] == kept_before
    assert Path(f"{path}.d/sessions").exists()


def test_a_damaged_sign_of_life_is_no_damage_of_the_journal(path) -> None:
    filled(path, jobs=4)
    for name in ("door", "nobody.lock"):
        Path(f"{path}.d/sessions", name).write_bytes(b"x" * 4096)
    journal = open_journal(path)
    assert (journal.is_kept, journal.warning, len(journal.entries())) == (True, None, 4)
    journal.close()


def test_several_kernels_that_find_a_damaged_file_lose_nothing_of_the_new_one(path) -> None:
    """All but the first find a file that is no longer the damaged one."""
    for round_ in range(10):
        Path(path).write_bytes(b"no database at all " * 1000)
        go, said, journals = threading.Barrier(3), [], []

        def start(go=go, said=said, journals=journals) -> None:
            go.wait()
            journal = open_journal(path)
            journals.append(journal)
            said.append(journal.add(queued()))

        threads = [threading.Thread(target=start) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for journal in journals:
            assert journal.is_kept, journal.warning
            journal.close()
        again = Journal(path)
        assert (sorted(said), len(again.entries())) == ([1, 2, 3], 3), round_
        again.close()
        aside = [file for file in Path(path).parent.glob("faulty.db.damaged-*") if file.stat().st_size]
        assert [file.read_bytes()[:11] for file in aside] == [b"no database"], round_
        for file in Path(path).parent.glob("faulty.db*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def test_a_value_whose_file_is_gone_is_that_jobs_alone(path) -> None:
    journal = Journal(path)
    large = "x" * LARGE
    for index in range(3):
        number = journal.add(queued(f"job-{index}", input=large + str(index)))
        journal.append(number, [StreamChunk(large + f"chunk {index}", 0)])
        done = Job(
            id=f"job-{index}",
            endpoint="ep",
            status=JobStatus.COMPLETED,
            output=large + "out",
            has_output=True,
        )
        journal.finish(number, done)  # fmt: skip
    journal.close()
    gone, packed, shared = (
        next(file for file in Path(f"{path}.d/values").glob("*.json") if file.read_text().endswith(ending))
        for ending in ('x1"', 'chunk 1"]', 'xout"')
    )
    gone.unlink()
    packed.unlink()
    shared.write_text('"half')
    session = Session(journal=path)
    try:
        first, second, third = session.entries()
        for handle, tag in ((first, "0"), (third, "2")):
            assert handle.input == large + tag
            assert [chunk.output for chunk in handle.streamed()] == [large + f"chunk {tag}"]
            assert handle.notes == ["its output is gone: the file beside the journal cannot be read"]
        assert (second.input, second.streamed(), second.status) == (None, [], JobStatus.COMPLETED)
        assert second.notes[0] == "its input is gone: the file beside the journal cannot be read"
        assert any(note.startswith("its text could not be read") for note in second.notes)
    finally:
        session.close()


# ---------------------------------------------------------------------------------- another version


def test_a_journal_of_the_future_is_left_alone(path) -> None:
    filled(path, jobs=3)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = Path(path).read_bytes()
    journal = open_journal(path)
    assert not journal.is_kept
    assert journal.warning == (
        f"the journal {path} cannot be opened: it was written by a newer version of notebook_ext; jobs are "
        "remembered only until this kernel ends"
    )
    assert journal.add(queued()) == 1
    journal.close()
    assert Path(path).read_bytes() == before


# ---------------------------------------------------------------------------------- the clock

DAY = 86400.0


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_clock_that_jumps_by_a_day_does_no_harm(path, served, monkeypatch, jump) -> None:
    now = time.time
    first = Session(journal=path)
    before, running = job("stream", f"before {jump}"), job("stream", f"running {jump}", words=50, pause=0.02)
    connection = first.connect("stream", "stream", provider=served.url)
    assert connection.submit(before["input"]).output(20) == text(before)
    handle = connection.submit(running["input"])
    eventually(lambda: handle.streamed(), "it streams")
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    after = job("stream", f"after {jump}")
    assert connection.submit(after["input"]).output(20) == text(after)
    second = Session(journal=path)
    assert second.journal.is_alive(first.journal.owner)
    assert second.recover().handles == []
    assert [there.input["tag"] for there in second.entries()] == [
        planned["input"]["tag"] for planned in (before, running, after)
    ]
    assert all(there.elapsed >= 0 for there in second.entries())
    assert second.find("@last").number == 3
    assert second.journal.prune() is None
    assert handle.output(20) == text(running)
    first.close()
    assert [(there.status, there.value) for there in second.entries()] == [
        (JobStatus.COMPLETED, text(planned)) for planned in (before, running, after)
    ]
    second.close()


def test_a_clock_that_jumps_while_nobody_is_there_loses_no_job(path, served, monkeypatch) -> None:
    now, planned = time.time, job("stream", "clock", words=50, pause=0.02)
    for jump in (DAY, -DAY, 0.0):
        session = Session(journal=path)
        if jump == DAY:
            handle = session.connect("stream", "stream", provider=served.url).submit(planned["input"])
            eventually(lambda handle=handle: handle.streamed(), "it streams")
        else:
            (handle,) = session.recover().handles
        if jump == 0.0:
            assert (handle.output(20), handle.notes) == (text(planned), [])
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        session.close()


def test_a_look_for_what_was_left_changes_nothing(path) -> None:
    assert count_left(path) == 0
    filled(path, jobs=4)
    before = Path(path).read_bytes()
    assert count_left(path) == 4
    assert Path(path).read_bytes() == before
    Path(path).write_bytes(b"nothing")
    assert count_left(path) == 0


def test_what_is_no_longer_looked_for_is_not_left(path) -> None:
    journal = Journal(path)
    for job_id, age in (("", 0.9), ("", 1.1), ("known", 1.1)):
        journal.add(queued(job_id, submitted_at=time.time() - age * UNKNOWN_FOR))
    journal.close()
    assert count_left(path) == 2


def test_a_path_is_the_same_from_every_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    here = open_journal("j.db")
    monkeypatch.chdir("/")
    there = open_journal("~/j.db")
    assert here.path == there.path == str(tmp_path / "j.db")
    assert here.is_alive(there.owner)
    there.add(queued(submitted_at=time.time()))
    there.close()
    assert len(here.entries()) == count_left("~/j.db") == 1
    here.close()
    assert "remembered only until" in open_journal("~nobody-of-this-name/j.db").warning
    assert count_left("~nobody-of-this-name/j.db") == 0
