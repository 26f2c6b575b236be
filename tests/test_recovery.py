"""Jobs of a session that is gone, or of another one that is there: found, followed, taken over, never lost."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from types import SimpleNamespace

import pytest
from killing import MISSING, TOKEN, Victim, eventually, job, words
from rude import answer, rude, script
from test_session import QUEUED, rows

from notebook_ext.client import Endpoint
from notebook_ext.errors import AuthenticationError, EndpointError, JobFailed, JobLost, JournalError
from notebook_ext.journal_path import UNKNOWN_FOR
from notebook_ext.providers import resolve
from notebook_ext.recovery import Recovered
from notebook_ext.session import Session
from notebook_ext.types import JobStatus

FOUND = "the answer to its submission was lost; a job of the same input was found"


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", TOKEN)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "shared.db")


@pytest.fixture
def sessions(path):
    """Makes sessions on one journal; they are closed at the end."""
    made = []

    def make() -> Session:
        made.append(Session(journal=path))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def victim():
    made = []

    def make() -> Victim:
        made.append(Victim())
        made[-1].wait_until_ready()
        return made[-1]

    yield make
    for it in made:
        if it.process.poll() is None:
            it.kill()


def submit(session: Session, url: str, planned: dict):
    name = planned["endpoint"]
    return session.connect(name, name, provider=url).submit(planned["input"], sync=planned["sync"])


def text(planned: dict) -> str:
    return "".join(words(planned["input"]))


# ---------------------------------------------------------------------------------- two at once


def test_two_processes_submit_at_once_and_no_number_is_used_twice(sessions, path, served, victim) -> None:
    plans = [[job("echo", f"both{who}.{index}") for index in range(30)] for who in range(2)]
    victims = [victim(), victim()]
    for it, plan in zip(victims, plans, strict=True):
        it.submit(path, served.url, plan)
    for it, plan in zip(victims, plans, strict=True):
        it.wait_for_submissions(len(plan))
    for it in victims:
        assert it.evaluate("all(handle.wait(20) for handle in session.handles.values())")
    numbers = [it.evaluate("sorted(session.handles)") for it in victims]
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 61))
    entries = sessions().journal.entries()
    assert sorted(entry.input["tag"] for entry in entries) == sorted(
        planned["input"]["tag"] for plan in plans for planned in plan
    )
    assert {entry.job.status for entry in entries} == {JobStatus.COMPLETED}
    assert len({entry.job.id for entry in entries}) == 60


@pytest.mark.parametrize("endpoint", ["stream", "forgetful"])
def test_another_session_sees_the_chunks_through_the_journal_and_takes_over(
    sessions, path, served, victim, endpoint
) -> None:
    planned = job(endpoint, f"over-{endpoint}", words=60, pause=0.05)
    first = victim()
    first.submit(path, served.url, [planned])
    first.wait_for_submissions(1)
    session = sessions()
    handle = session.find("@1")
    assert handle.done  # it is known here, and not followed
    session.resume(handle)
    eventually(lambda: len(handle.streamed()) >= 5, "chunks appear while their session writes them")
    assert [chunk.output for chunk in handle.streamed()] == words(planned["input"])[: len(handle.streamed())]
    assert session.journal.get(1).owner != session.journal.owner
    seen = len(handle.streamed())
    first.kill()
    assert handle.wait(30).status is JobStatus.COMPLETED
    assert session.journal.get(1).owner is None
    assert seen < 60
    if endpoint == "stream":
        assert (handle.value, handle.notes) == (text(planned), [])
        assert [chunk.output for chunk in handle.chunks()] == words(planned["input"])
    elif handle.value != text(planned):
        assert handle.notes == [MISSING]
    kept = sessions().find("@1")
    assert (kept.value, kept.notes, kept.streamed()) == (handle.value, handle.notes, handle.streamed())


def test_both_sessions_see_the_same_end(sessions, served) -> None:
    for round_ in range(5):
        planned = job("forgetful", f"same{round_}", words=30, pause=0.01)
        first, second = sessions(), sessions()
        handle = submit(first, served.url, planned)
        eventually(lambda handle=handle: handle.id, "it is submitted")
        there = second.find(f"@{handle.number}")
        second.resume(there)
        for it in (handle, there):
            assert it.output(20) == text(planned)
        kept = sessions().find(f"@{handle.number}")
        assert [chunk.output for chunk in kept.streamed()] == words(planned["input"])
        assert (there.notes, kept.notes) == ([], [])


def test_only_one_of_many_takes_a_job_over(sessions, path, served, victim) -> None:
    plan = [job("slow", f"many.{index}", words=10, pause=0.05) for index in range(6)]
    first = victim()
    first.submit(path, served.url, plan)
    first.wait_for_submissions(len(plan))
    first.kill()
    several, found = [sessions() for _ in range(4)], []
    threads = [threading.Thread(target=lambda it=it: found.extend(it.recover().handles)) for it in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(handle.number for handle in found) == list(range(1, 7))
    eventually(lambda: all(handle.done for handle in found), "all have ended")
    accepted = [row for row in served.accepted() if row[2]["tag"].startswith("many.")]
    for handle in found:
        was_accepted = any(row[2] == handle.input for row in accepted)
        assert handle.status is (JobStatus.COMPLETED if was_accepted else JobStatus.AMBIGUOUS)
    assert len(accepted) <= 6


def test_what_another_session_has_seen_is_seen_here(sessions, served) -> None:
    first, second = sessions(), sessions()
    planned = job("stream", "stale", words=5)
    handle = submit(first, served.url, planned)
    eventually(lambda: handle.id, "it is submitted")
    there = second.find("@1")
    handle.wait(20)
    assert second.find("@1") is there
    assert [it.value for it in second.entries()] == [text(planned)]


def test_a_job_without_an_id_is_looked_for_when_its_session_is_gone(
    sessions, path, served, way, victim
) -> None:
    planned = job("stream", "no-id", words=5)
    way.hold = "answer"
    first = victim()
    first.submit(path, way.url, [planned])
    assert way.held.wait(20)
    session = sessions()
    handle = session.find("@1")
    session.resume(handle)
    assert not handle.done
    way.hold = None
    first.kill()
    assert handle.output(20) == text(planned)
    assert handle.notes == [FOUND]
    assert [row[1] for row in served.accepted() if row[2] == planned["input"]] == [handle.id]


def test_what_a_dead_kernel_served_is_lost_in_these_words(sessions, path, victim) -> None:
    first = victim()
    first.submit(path, "http://127.0.0.1:9/v2", [])
    first.evaluate("str(session.serve('here', 'sleep').submit({'seconds': 60}))")
    first.evaluate("str(session.connect('here').submit({'seconds': 61}))")
    follower, session = sessions(), sessions()
    followed = follower.find("@1")
    follower.resume(followed)
    assert not followed.done
    first.kill()
    with pytest.raises(JobLost):
        followed.output(20)
    recovered = session.recover()
    assert [handle.number for handle in recovered.ended] == [2]
    assert recovered.handles == []
    for handle in (followed, *recovered.ended):
        assert handle.status is JobStatus.LOST
        assert handle.notes == ["its endpoint was served by a kernel that has ended"]
    assert [entry.job.status for entry in session.journal.entries()] == [JobStatus.LOST] * 2


# ---------------------------------------------------------------------------------- left in order


@pytest.mark.parametrize("endpoint", ["stream", "forgetful"])
@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_a_session_that_closes_in_mid_stream_loses_nothing(sessions, way, endpoint, latency) -> None:
    """However the end falls between what the server has sent and what was read."""
    moments, way.latency = random.Random(7), latency
    for round_ in range(6):
        planned = job(endpoint, f"left-{endpoint}-{latency}-{round_}", words=60, pause=0.01)
        first = sessions()
        handle = submit(first, way.url, planned)
        eventually(lambda handle=handle: handle.streamed(), "it streams")
        time.sleep(moments.uniform(0, 0.2))
        first.close()
        assert not handle.status.is_final
        second = sessions()
        recovered = second.recover().handles
        assert [it.number for it in recovered] == [handle.number]
        before = len(recovered[0].streamed())
        assert before >= len(handle.streamed()) > 0
        assert recovered[0].output(20) == text(planned)
        assert recovered[0].notes == []


def test_the_text_goes_on_live_after_a_restart(sessions, served) -> None:
    planned = job("stream", "live", words=80, pause=0.02)
    first = sessions()
    handle = submit(first, served.url, planned)
    eventually(lambda: len(handle.streamed()) > 5, "it streams")
    first.close()
    (there,) = sessions().recover().handles
    seen = len(there.streamed())
    assert seen >= len(handle.streamed())
    eventually(lambda: len(there.streamed()) > seen, "it goes on")
    assert not there.status.is_final
    assert there.output(20) == text(planned)


def test_an_answer_that_was_not_waited_for_is_a_gap_also_for_the_next_but_one(
    sessions,
    elsewhere,
) -> None:
    """A job whose server is silent is left with an answer outstanding; each later session knows that."""
    polls, release = [], threading.Event()

    async def stream(asked):
        polls.append(asked)
        if len(polls) == 1:
            return rows("a")
        while not release.is_set():
            await asyncio.sleep(0.005)
        return rows("z", status="COMPLETED")

    done = {"id": "job-1", "status": "COMPLETED", "output": []}
    running = {"id": "job-1", "status": "IN_PROGRESS"}
    there = elsewhere(
        script(run=QUEUED, stream=stream, status=lambda asked: done if release.is_set() else running)
    )
    for round_ in range(3):
        session = sessions()
        if round_ == 0:
            session.connect("ep", "ep", provider=there.url).submit({})
        else:
            session.recover()
        eventually(lambda round_=round_: len(polls) == round_ + 2, "it waits for an answer")
        session.close()
    release.set()
    (handle,) = sessions().recover().handles
    assert handle.output(10) == "az"
    assert handle.notes == [MISSING]


def test_a_job_that_is_still_queued_when_it_is_taken_over_has_no_gap(sessions, elsewhere) -> None:
    release = threading.Event()

    async def stream(asked):
        while not release.is_set():
            await asyncio.sleep(0.005)
        return rows("a", "b", status="COMPLETED")

    done = {"id": "job-1", "status": "COMPLETED", "output": []}
    there = elsewhere(
        script(run=QUEUED, stream=stream, health={}, status=lambda _: done if release.is_set() else QUEUED)
    )
    first = sessions()
    first.connect("ep", "ep", provider=there.url).submit({})
    eventually(lambda: there.count("stream"), "it is followed")
    first.close()
    (handle,) = sessions().recover().handles
    eventually(lambda: there.count("stream") == 2, "it is followed again")
    release.set()
    assert (handle.output(10), handle.notes) == ("ab", [])


def test_what_cannot_be_found_is_told_with_what_each_choice_costs(
    sessions, path, served, way, victim
) -> None:
    planned = job("stream", "twin", words=3)
    way.hold = "answer"
    first = victim()
    first.submit(path, way.url, [planned, planned])
    eventually(lambda: way.posts == 2, "both are on their way")
    eventually(lambda: sum(row[2] == planned["input"] for row in served.accepted()) == 2, "both are there")
    first.kill()
    way.hold = None
    session = sessions()
    handles = session.recover().handles
    assert len(handles) == 2
    for handle in handles:
        with pytest.raises(EndpointError, match="may have run, and be paid for; the provider's list has"):
            handle.wait(20)
        assert handle.status is JobStatus.AMBIGUOUS
    ids = {row[1] for row in served.accepted() if row[2] == planned["input"]}
    assert all(job_id in str(handles[0].error) for job_id in ids)
    assert way.posts == 2


def test_a_submission_of_long_ago_is_not_looked_for(sessions, path, served, way, victim, monkeypatch) -> None:
    way.hold = "request"
    first = victim()
    first.submit(path, way.url, [job("echo", "long-ago")])
    assert way.held.wait(20)
    first.kill()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + UNKNOWN_FOR + 5)
    assert sessions().recover().handles == []
    monkeypatch.setattr(time, "time", lambda: now)
    assert len(sessions().recover().handles) == 1


def test_what_expired_is_not_said_to_be_kept() -> None:
    found = [
        SimpleNamespace(id=status, status=status, done=status.is_final)
        for status in (JobStatus.LOST, JobStatus.COMPLETED, JobStatus.IN_PROGRESS)
    ]
    assert str(Recovered(found[:1], [])) == (
        "An earlier kernel left 1 job: 1 expired before it could be fetched. `%endpoint attach --all` shows them."
    )
    assert "1 still runs, 1 ended since, and what came of it is kept, 1 expired before" in str(
        Recovered(found, [])
    )


def test_what_could_not_be_asked_is_not_said_to_run() -> None:
    mute = SimpleNamespace(id="a", status=JobStatus.IN_PROGRESS, done=True, error=JournalError("locked"))
    assert "left 1 job: 1 could not be asked (JournalError)." in str(Recovered([mute], []))


def test_a_key_that_is_missing_is_told_by_its_variable(monkeypatch) -> None:
    monkeypatch.delenv("STORY_KEY", raising=False)

    async def refused() -> EndpointError:
        async with rude(script(status=answer({}, 401))) as server:
            provider = replace(resolve(server.url), key_variable="STORY_KEY")
            async with Endpoint("ep", provider, name="story") as endpoint:
                with pytest.raises(AuthenticationError) as caught:
                    await endpoint.status("a")
        return caught.value

    mute = SimpleNamespace(id="a", status=JobStatus.IN_PROGRESS, done=True, error=asyncio.run(refused()))
    assert (
        "1 could not be asked (it wants a key, and none was sent: set $STORY_KEY, or `%endpoint login story`)."
    ) in str(Recovered([mute], []))


# ---------------------------------------------------------------------------------- retries


def test_a_session_that_dies_in_a_retry_leaves_a_job_that_may_run(sessions, elsewhere) -> None:
    """The row says so before the POST is sent: a job that has ended is not looked at again."""
    asked, again = threading.Event(), [False]

    async def retry(request):
        again[0] = True
        asked.set()
        await asyncio.sleep(60)

    failed = {"id": "job-1", "status": "FAILED", "error": "no luck"}
    done = {"id": "job-1", "status": "COMPLETED", "output": ["second"]}
    there = elsewhere(
        script(run=QUEUED, retry=retry, status=lambda _: done if again[0] else failed, health={},
               stream=lambda _: rows("second", status="COMPLETED") if again[0] else rows("first", status="FAILED"))
    )  # fmt: skip
    first = sessions()
    handle = first.connect("ep", "ep", provider=there.url).submit({})
    with pytest.raises(JobFailed):
        handle.output(5)

    def try_again() -> None:
        with pytest.raises(CancelledError):
            handle.retry()

    thread = threading.Thread(target=try_again)
    thread.start()
    assert asked.wait(5)
    first.close()
    thread.join()
    (handle,) = sessions().recover().handles
    assert handle.output(10) == "second"


def test_a_retry_that_is_refused_leaves_the_journal_as_it_was(sessions, elsewhere) -> None:
    failed = {"id": "job-1", "status": "FAILED", "error": "no luck"}
    there = elsewhere(
        script(run=QUEUED, retry=answer({"error": "no"}, 400), status=failed, health={},
               stream=rows("first", status="FAILED"))
    )  # fmt: skip
    session = sessions()
    handle = session.connect("ep", "ep", provider=there.url).submit({})
    with pytest.raises(JobFailed):
        handle.output(5)
    with pytest.raises(EndpointError):
        handle.retry()
    eventually(lambda: session.journal.get(1).job.status is JobStatus.FAILED, "the row is as it was")
    assert session.journal.get(1).owner is None
    assert [chunk.output for chunk in session.journal.chunks(1)] == ["first"]


# ---------------------------------------------------------------------------------- fork


def test_a_forked_child_that_ends_leaves_its_parents_jobs_alone(sessions, served) -> None:
    session = sessions()
    planned = job("stream", "forked", words=60, pause=0.02)
    handle = submit(session, served.url, planned)
    eventually(lambda: handle.streamed(), "it streams")
    child = os.fork()
    if not child:
        session.close()  # what the interpreter's end does
        os._exit(0)
    started = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    assert time.monotonic() - started < 1
    other = sessions()
    assert other.journal.is_alive(session.journal.owner)
    assert other.journal.get(1).owner == session.journal.owner
    assert other.recover().handles == []
    assert (handle.output(20), handle.notes) == (text(planned), [])


# ---------------------------------------------------------------------------------- the network is cut


@pytest.mark.parametrize("sync", [False, True])
def test_an_answer_that_is_cut_at_any_byte_is_ambiguous_or_found_and_sent_once(
    sessions, served, way, sync
) -> None:
    session = sessions()
    whole = job("echo", f"whole-{sync}", words=1, sync=sync)
    assert submit(session, way.url, whole).output(20) == text(whole)
    assert way.length > 100
    handles = []
    for cut in range(way.length + 10):  # times in it have more or fewer digits
        way.cut, way.posts = cut, 0
        planned = job("echo", f"cut-{sync}-{cut}", words=1, sync=sync)
        handle = submit(session, way.url, planned)
        eventually(lambda handle=handle: handle.done, f"it has ended, cut after {cut} bytes")
        assert way.posts == 1, cut
        handles.append((cut, planned, handle, cut >= way.length))
    way.cut = None
    accepted = [row[2]["tag"] for row in served.accepted()]
    for cut, planned, handle, is_whole in handles:
        assert accepted.count(planned["input"]["tag"]) == 1
        assert handle.output(1) == text(planned), cut
        assert (FOUND in handle.notes) != is_whole, cut
