"""Session, Connection and JobHandle: what a notebook holds, without the notebook."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time

import httpx
import pytest
from rude import KEY, answer, script

from notebook_ext import exchange, following, patience, queueing, stopping
from notebook_ext.config import Config, SavedEndpoint
from notebook_ext.entry import Entry
from notebook_ext.errors import (
    AnswerLost,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    EndpointError,
    InputError,
    JobCancelled,
    JobFailed,
    JobLost,
    JobTimedOut,
    JournalError,
    ProtocolError,
    RateLimitError,
    ServerError,
    WaitTimeout,
)
from notebook_ext.events import Ended, Queued
from notebook_ext.handle import JobHandle
from notebook_ext.server import progress_update
from notebook_ext.session import Session, default_session
from notebook_ext.streamed import Streamed
from notebook_ext.types import ExecutionPolicy, Job, JobStatus, StreamChunk


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", KEY)


def at(session: Session, server, name: str = "ep"):
    return session.connect(name, name, provider=server.url)


class Gate:
    """A handler that yields what it is told to, and says when it was stopped."""

    def __init__(self) -> None:
        self.started, self.go, self.stopped = threading.Event(), threading.Event(), threading.Event()

    async def __call__(self, job):
        try:
            yield "first"
            self.started.set()
            while not self.go.is_set():
                await asyncio.sleep(0.005)
            yield "last"
        finally:
            self.stopped.set()


def eventually(condition, patience: float = 5.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


# ---------------------------------------------------------------------------------- submit, wait, read


def test_submit_returns_at_once_and_output_waits(session) -> None:
    release = threading.Event()
    connection = session.serve("demo", lambda job: release.wait(10) and {"echo": job["input"]})
    handle = connection.submit({"a": 1})
    assert (handle.number, handle.endpoint, handle.input, handle.done) == (1, "demo", {"a": 1}, False)
    assert handle.value is None
    release.set()
    assert handle.output() == {"echo": {"a": 1}}
    assert handle.wait() is handle.job
    assert (handle.status, handle.done, handle.error) == (JobStatus.COMPLETED, True, None)
    assert repr(handle) == f"<JobHandle @1 demo COMPLETED {handle.id}>"
    assert connection.run("x", timeout=5) == {"echo": "x"}


def test_runsync_gives_the_same(session) -> None:
    connection = session.serve("demo", "echo")
    handle = connection.submit(5, sync=True)
    assert handle.output(5) == 5
    assert handle.id.startswith("sync-")


def test_chunks_come_while_the_job_runs(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    chunks = iter(handle.chunks())
    assert next(chunks).output == "first"
    assert not handle.done
    gate.go.set()
    assert [chunk.output for chunk in chunks] == ["last"]
    assert [chunk.index for chunk in handle.chunks()] == [0, 1]  # again, from the first
    assert handle.value == "firstlast"
    assert handle.first_token >= 0
    assert handle.chunk_rate > 0


def test_chunks_serve_async_for_and_await(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})

    async def read() -> list:
        found = []
        async for chunk in handle.chunks():
            found.append(chunk.output)
            gate.go.set()
        assert await handle == "firstlast"
        return found

    assert asyncio.run(read()) == ["first", "last"]


def test_a_reader_that_gives_up_takes_the_job_from_nobody(session) -> None:
    """A cancelled await, in any loop, must not be taken for the job's end."""
    gate = Gate()
    handle = session.serve("demo", gate).submit({})

    async def impatient() -> None:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle, 0.02)
        chunks = aiter(handle.chunks())
        assert (await anext(chunks)).output == "first"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(chunks), 0.02)

    asyncio.run(impatient())
    with pytest.raises(WaitTimeout):
        handle.output(0.02)
    gate.go.set()
    assert handle.output(5) == "firstlast"


def test_no_chunk_is_missed_between_two_looks() -> None:
    """The last chunk and the end may come between a look at the chunks and the look at the end."""

    class Owner:
        closed = False

        def wait_for(self, future, timeout):
            return future.result(5) is None

    running = Job(id="j", endpoint="demo", status=JobStatus.IN_PROGRESS)
    entry = Entry(
        number=1, endpoint="demo", endpoint_id="demo", provider="", base_url="", submitted_at=0.0, job=running
    )
    handle = JobHandle(Owner(), entry)

    class Late(Streamed):
        def since(self, first=0):
            yield from list(super().since(first))
            if not handle.done:
                handle.saw(StreamChunk("last", len(self)))
                handle.saw(Ended(None))

    handle._run.streamed = Late()
    assert [chunk.output for chunk in handle.chunks()] == ["last"]


@pytest.mark.parametrize("values", [["a", "b"], [1, "b"], [{"x": 1}]])
@pytest.mark.parametrize("aggregate", [True, False])
def test_the_value_is_the_same_with_and_without_an_aggregate(session, values, aggregate) -> None:
    def handler(job):
        yield from values

    handle = session.serve("demo", handler, return_aggregate_stream=aggregate).submit({})
    assert handle.output(5) == ("ab" if values == ["a", "b"] else values)


def test_a_failed_job_raises_with_what_the_worker_said(session) -> None:
    def handler(job):
        yield "part"
        raise ValueError("bad weights")

    handle = session.serve("demo", handler).submit({})
    with pytest.raises(JobFailed, match="ValueError: bad weights"):
        handle.output(5)
    assert handle.wait().status is JobStatus.FAILED  # `wait` only waits
    parts = []
    with pytest.raises(JobFailed):
        for chunk in handle.chunks():
            parts.append(chunk.output)
    assert parts == ["part"]

    async def awaited() -> None:
        with pytest.raises(JobFailed):
            await handle

    asyncio.run(awaited())
    assert session.journal.get(1).job.error.message == "bad weights"


def test_a_timeout_ends_the_waiting_and_not_the_job(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    with pytest.raises(WaitTimeout, match=r"@1 on demo was still \w+ after 0.05 s; it goes on") as caught:
        handle.output(0.05)
    assert isinstance(caught.value, TimeoutError)
    assert not gate.stopped.is_set()
    gate.go.set()
    assert handle.output(5) == "firstlast"


def test_the_servers_own_clock_ends_the_job(session) -> None:
    handle = session.serve("demo", "sleep").submit({"seconds": 60}, policy=ExecutionPolicy(0.1))
    with pytest.raises(JobTimedOut):
        handle.output(5)


def test_progress_is_told_to_those_who_listen(session) -> None:
    release = threading.Event()

    def handler(job):
        progress_update(job, {"step": 2, "of": 5})
        assert release.wait(10)
        return "whole"

    fractions = []

    def see(event) -> None:
        if isinstance(event, Job) and event.progress:
            fractions.append(event.progress.fraction)
            release.set()

    handle = session.serve("demo", handler).submit({})
    handle.subscribe(see)
    assert handle.output(10) == "whole"
    assert set(fractions) == {0.4}


def test_health_is_read_while_a_job_waits_in_the_queue(session, monkeypatch) -> None:
    monkeypatch.setattr(queueing, "HEALTH_AFTER", 0.01)
    monkeypatch.setattr(queueing, "HEALTH_EVERY", 0.01)
    gate, healths = Gate(), []
    connection = session.serve("demo", gate)
    running, queued = connection.submit(1), connection.submit(2)
    queued.subscribe(lambda event: healths.append(event.health) if isinstance(event, Queued) else None)
    eventually(lambda: any(health.jobs["in_queue"] == 1 for health in healths))
    gate.go.set()
    queued.wait(5)
    running.wait(5)
    assert connection.health().jobs["in_queue"] == 0


def test_what_was_said_before_a_failure_is_read_before_it_is_raised(session) -> None:
    def handler(job):
        yield "part"
        raise ValueError("bad weights")

    handle = session.serve("demo", handler).submit({})

    async def read() -> list:
        found = []
        with pytest.raises(JobFailed):
            async for chunk in handle.chunks():
                found.append(chunk.output)
        return found

    assert asyncio.run(read()) == ["part"]


# ---------------------------------------------------------------------------------- subscribers


def words(events) -> list[str]:
    return [
        event.output
        if isinstance(event, StreamChunk)
        else str(getattr(event, "status", type(event).__name__))
        for event in events
    ]


def test_a_late_subscriber_gets_all_that_has_been(session) -> None:
    gate, early, late = Gate(), [], []
    handle = session.serve("demo", gate).submit({})
    handle.subscribe(early.append)
    assert gate.started.wait(5)
    eventually(lambda: "first" in words(early))
    handle.subscribe(late.append)
    assert words(late) == ["IN_PROGRESS", "first"]
    gate.go.set()
    handle.wait(5)
    after = []
    handle.subscribe(after.append)
    assert words(after) == ["COMPLETED", "first", "last", "Ended"]
    eventually(lambda: words(early)[-1] == "Ended")
    assert words(early)[-4:] == ["first", "last", "COMPLETED", "Ended"]
    assert words(late)[-3:] == ["last", "COMPLETED", "Ended"]


def test_a_subscriber_that_raises_is_dropped_and_the_job_goes_on(session, caplog) -> None:
    gate, calls = Gate(), []

    def bad(event) -> None:
        calls.append(event)
        if isinstance(event, StreamChunk) and len(calls) > 1:
            raise ZeroDivisionError

    handle = session.serve("demo", gate).submit({})
    handle.subscribe(bad)
    with caplog.at_level(logging.ERROR, "notebook_ext"):
        gate.go.set()
        assert handle.output(5) == "firstlast"
    assert "a subscriber of @1 failed and is dropped" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert sum(isinstance(event, Ended) for event in calls) == 0


def test_a_subscriber_may_end_its_own_subscription_and_submit_the_next_job(session) -> None:
    """It runs on the loop's thread: waiting for that thread there would stop everything."""
    connection = session.serve("demo", "echo")
    handle, next_ones, seen = connection.submit(1), [], []

    def see(event) -> None:
        seen.append(event)
        if isinstance(event, Ended):
            end_subscription()
            next_ones.append(connection.submit(2))

    end_subscription = lambda: None  # noqa: E731 - until there is one
    end_subscription = handle.subscribe(see)
    handle.wait(5)
    eventually(lambda: next_ones)
    assert next_ones[0].output(5) == 2
    with pytest.raises(ConfigurationError, match="own thread would never end"):
        session.on_loop(next_ones[0].cancel)


def test_ending_a_subscription_ends_it(session) -> None:
    gate, seen = Gate(), []
    handle = session.serve("demo", gate).submit({})
    end = handle.subscribe(seen.append)
    end()
    end()
    count = len(seen)
    gate.go.set()
    handle.wait(5)
    assert len(seen) == count


# ---------------------------------------------------------------------------------- cancel


def test_cancel_stops_the_handler_and_says_what_was_seen(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    started = time.monotonic()
    stopped = handle.cancel()
    assert time.monotonic() - started < 3
    assert gate.stopped.wait(2)
    assert (stopped.confirmed, handle.status, handle.done) == (True, JobStatus.CANCELLED, True)
    assert str(stopped).startswith("@1 CANCELLED after ")
    with pytest.raises(JobCancelled):
        handle.output(1)
    assert session.journal.get(1).job.status is JobStatus.CANCELLED


def test_cancel_in_the_queue(session) -> None:
    gate = Gate()
    connection = session.serve("demo", gate)
    running, queued = connection.submit(1), connection.submit(2)
    assert str(queued.cancel()) == "@2 CANCELLED before it ran"
    gate.go.set()
    assert running.output(5) == "firstlast"


def test_cancel_of_what_has_ended_changes_nothing(session) -> None:
    handle = session.serve("demo", "echo").submit(1)
    handle.wait(5)
    stopped = handle.cancel()
    assert stopped.confirmed
    assert str(stopped).startswith("@1 was already COMPLETED")
    handle.cancel_soon()
    assert handle.output() == 1


def test_cancel_soon_waits_for_nothing(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    handle.cancel_soon()
    assert handle.wait(5).status is JobStatus.CANCELLED


def test_two_cancels_at_once_agree(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    futures = [session.stop(handle) for _ in range(5)]
    assert {str(future.result(5)).partition(" after")[0] for future in futures} == {"@1 CANCELLED"}


def test_cancels_that_meet_the_end_of_a_job_tell_the_truth(session) -> None:
    """Whoever comes first, the job's end or the cancel: all agree on one final state."""
    ended = {}

    async def handler(job):
        for number in range(3):
            yield number
            await asyncio.sleep(0.0005 * 1.2 ** job["input"])  # up to 0.6 s
        ended[job["id"]] = True

    connection = session.serve("demo", handler, workers=8)
    handles = [connection.submit(number) for number in range(40)]
    outcomes = [future.result(10) for future in [session.stop(handle) for handle in handles]]
    for handle, outcome in zip(handles, outcomes, strict=True):
        assert outcome.confirmed
        assert handle.wait(5).status in (JobStatus.COMPLETED, JobStatus.CANCELLED)
        assert session.journal.get(handle.number).job.status is handle.status
        if handle.status is JobStatus.COMPLETED:
            assert ended[handle.id]
            assert [chunk.output for chunk in handle.chunks()] == [0, 1, 2]
    assert handles[-1].status is JobStatus.CANCELLED
    assert session.active() == []


def test_a_cancel_during_the_submission_waits_for_the_id(session, elsewhere) -> None:
    arrived, release = threading.Event(), threading.Event()
    order = []

    async def run(asked):
        order.append("run arrives")
        arrived.set()
        while not release.is_set():
            await asyncio.sleep(0.005)
        order.append("run is answered")
        return {"id": "job-1", "status": "IN_QUEUE"}

    def cancel(asked):
        order.append("cancel arrives")
        return {"id": "job-1", "status": "CANCELLED"}

    over = {"id": "job-1", "status": "CANCELLED"}

    async def stream(asked):
        while "cancel arrives" not in order:
            await asyncio.sleep(0.005)
        return {"status": "CANCELLED", "stream": []}

    server = elsewhere(script(run=run, cancel=cancel, status=over, stream=stream))
    handle = at(session, server).submit({})
    assert arrived.wait(5)
    assert session.journal.last().job.id == ""  # written down before the answer
    assert session.journal.last().input == {}
    assert not handle.cancel(timeout=0.05).confirmed
    stopping = session.stop(handle)
    time.sleep(0.05)
    assert order == ["run arrives"]
    release.set()
    stopped = stopping.result(5)
    assert stopped.confirmed
    assert order[:3] == ["run arrives", "run is answered", "cancel arrives"]
    assert server.count("run") == 1
    assert session.journal.last().job.id == "job-1"
    assert session.journal.last().job.status is JobStatus.CANCELLED


def test_a_cancel_that_the_server_does_not_confirm_is_told_so(session, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr(stopping, "STOP_PATIENCE", 0.3)
    goes_on = {"id": "job-1", "status": "IN_PROGRESS"}
    server = elsewhere(
        script(
            run={"id": "job-1", "status": "IN_QUEUE"},
            cancel=goes_on, status=goes_on, status_sync=goes_on, stream={"status": "IN_PROGRESS", "stream": []},
        )
    )  # fmt: skip
    stopped = at(session, server).submit({}).cancel()
    assert not stopped.confirmed
    assert str(stopped) == "@1 could not be confirmed as stopped: still IN_PROGRESS"


def test_a_refused_cancel_is_told_with_its_reason(session, elsewhere) -> None:
    server = elsewhere(
        script(
            run={"id": "job-1", "status": "IN_QUEUE"}, cancel=answer({"error": "no rights"}, 403),
            status={"id": "job-1", "status": "IN_PROGRESS"}, stream={"status": "IN_PROGRESS", "stream": []},
        )
    )  # fmt: skip
    stopped = at(session, server).submit({}).cancel()
    assert not stopped.confirmed
    assert "no rights" in str(stopped)


def test_a_job_is_cancelled_where_it_was_submitted(session, elsewhere) -> None:
    """Its name may lead elsewhere by now."""
    cancelled = threading.Event()

    def cancel(asked):
        cancelled.set()
        return {"id": "job-1", "status": "CANCELLED"}

    async def stream(asked):
        while not cancelled.is_set():
            await asyncio.sleep(0.005)
        return {"status": "CANCELLED", "stream": []}

    calm = {
        "run": {"id": "job-1", "status": "IN_QUEUE"}, "status": {"id": "job-1", "status": "CANCELLED"},
        "cancel": cancel, "stream": stream,
    }  # fmt: skip
    first, second = elsewhere(script(**calm)), elsewhere(script(**calm))
    handle = at(session, first).submit({})
    eventually(lambda: handle.id)
    at(session, second)
    session.endpoints.forget("ep")
    assert handle.cancel().confirmed
    assert first.count("cancel") == 1
    assert not second.asked


# ---------------------------------------------------------------------------------- submissions that go wrong


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, AnswerLost),
        (answer(text="<h1>502</h1>", status=502), ServerError),
        (answer(text="?"), ProtocolError),
    ],
)
@pytest.mark.parametrize("sync", [False, True])
def test_a_lost_answer_is_ambiguous_and_never_repeated(session, elsewhere, said, error, sync) -> None:
    server = elsewhere(script(run=said, runsync=said, requests=answer({}, 404)))
    handle = at(session, server).submit({"a": 1}, sync=sync)
    with pytest.raises(error, match="may have been queued"):
        handle.wait(5)
    assert (handle.status, handle.done, handle.id) == (JobStatus.AMBIGUOUS, True, "")
    assert session.journal.get(1).job.status is JobStatus.AMBIGUOUS
    stopped = handle.cancel()
    assert not stopped.confirmed
    assert "may have been queued" in str(stopped)
    assert [asked.operation for asked in server.asked] == ["runsync" if sync else "run", "requests"]


@pytest.mark.parametrize(
    ("said", "error"),
    [(answer({}, 429), RateLimitError), (answer({}, 401), EndpointError), (answer({}, 400), EndpointError)],
)
def test_what_was_surely_not_queued_is_not_in_the_journal(
    session, elsewhere, said, error, monkeypatch
) -> None:
    monkeypatch.setattr("notebook_ext.exchange._jitter", lambda state: 0.0)
    server = elsewhere(script(run=said))
    handle = at(session, server).submit({})
    with pytest.raises(error):
        handle.output(5)
    assert session.journal.entries() == []
    assert str(handle.cancel()) == "@1 was never submitted"
    assert len(server.asked) == (exchange.ATTEMPTS if error is RateLimitError else 1)


def test_what_was_never_sent_is_not_in_the_journal(session, monkeypatch) -> None:
    nobody = session.connect("nobody", "ep", provider="http://127.0.0.1:9/v2")
    far = session.connect("far", "ep")
    for connection, options, error in (
        (nobody, {}, ConnectionFailed),
        (far, {}, ConfigurationError),  # there is no key
        (far, {"policy": ExecutionPolicy(ttl=1)}, InputError),
        (far, {"webhook": "nowhere"}, InputError),
    ):
        with pytest.raises(error):
            connection.submit({}, **options).wait(5)
    with pytest.raises(InputError, match="not JSON"):
        far.submit({1, 2})
    assert session.journal.entries() == []


def test_a_bug_on_the_way_ends_the_handle_instead_of_waiting_for_ever(
    session, elsewhere, monkeypatch
) -> None:
    server = elsewhere(
        script(run={"id": "job-1", "status": "IN_QUEUE"}, stream=[[], {"status": "COMPLETED"}])
    )
    connection = at(session, server)

    async def broken(*arguments, **more):
        raise ZeroDivisionError

    for name in ("run", "read_stream"):
        monkeypatch.setattr(connection.endpoint, name, broken)
        with pytest.raises(EndpointError, match="ZeroDivisionError"):
            connection.submit({}).wait(5)
        monkeypatch.undo()


def test_text_that_may_be_missing_is_noted(session, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr(patience.random, "uniform", lambda least, most: 0.001)
    server = elsewhere(
        script(
            run={"id": "job-1", "status": "IN_QUEUE"},
            stream=[{"status": "IN_PROGRESS", "stream": [{"output": "a"}]}, None,
                    {"status": "COMPLETED", "stream": [{"output": "c"}]}],
            status={"id": "job-1", "status": "COMPLETED", "output": []},
        )
    )  # fmt: skip
    handle = at(session, server).submit({})
    assert handle.output(5) == "ac"
    assert handle.notes == ["text may be missing: answers were lost on the way"]
    assert [chunk.output for chunk in session.journal.chunks(1)] == ["a", "c"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_job_that_expires_is_lost(session, elsewhere, sync, monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)
    gone, queued = answer({"error": "unknown"}, 404), {"id": "job-1", "status": "IN_PROGRESS"}
    server = elsewhere(script(run=queued, runsync=queued, stream=gone, status=gone, status_sync=gone))
    handle = at(session, server).submit({}, sync=sync)
    with pytest.raises(JobLost, match="it expired"):
        handle.output(5)
    assert (handle.status, handle.id) == (JobStatus.LOST, "job-1")
    assert session.journal.get(1).job.status is JobStatus.LOST
    assert str(handle.cancel()) == "@1 LOST: the server no longer knows it"


def test_a_job_that_can_no_longer_be_followed_says_that_it_may_go_on(session, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr(patience.random, "uniform", lambda least, most: 0.001)
    monkeypatch.setattr(patience, "LOSSES_LAST", 0.0)
    server = elsewhere(script(run={"id": "job-1", "status": "IN_QUEUE"}, stream=None))
    handle = at(session, server).submit({})
    with pytest.raises(AnswerLost, match=r"The job goes on; .* Attach to it again"):
        handle.output(5)
    assert handle.done
    assert not handle.status.is_final
    assert session.journal.entries(active=True)[0].job.id == "job-1"


def test_a_job_that_is_gone_when_it_is_to_be_stopped_is_lost(session, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)
    gone, asked_to_stop = answer({"error": "unknown"}, 404), threading.Event()

    def cancel(asked):
        asked_to_stop.set()
        return gone

    async def stream(asked):
        while not asked_to_stop.is_set():
            await asyncio.sleep(0.005)
        return gone

    queued = {"id": "job-1", "status": "IN_QUEUE"}
    server = elsewhere(
        script(
            run=queued,
            cancel=cancel,
            stream=stream,
            status=lambda _: gone if asked_to_stop.is_set() else queued,
        )
    )
    handle = at(session, server).submit({})
    assert str(handle.cancel()) == "@1 LOST: the server no longer knows it"
    assert handle.status is JobStatus.LOST


def test_the_key_of_what_is_served_opens_it_to_other_programs_and_shows_in_no_repr(session) -> None:
    connection = session.serve("mine", "echo")
    token = connection.key()
    answer = httpx.post(
        f"{connection.provider.base_url}/mine/runsync",
        json={"input": 1},
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert answer.json()["output"] == 1
    assert token not in repr(connection) + repr(connection.key)


def test_no_key_is_in_a_handle_or_in_the_journal(session, elsewhere, caplog, tmp_path) -> None:
    caplog.set_level(logging.DEBUG)
    echo = answer({"id": "job-1", "status": "COMPLETED", "output": f"you sent {KEY}"})
    server = elsewhere(script(run=echo, status=echo))
    journaled = Session(journal=str(tmp_path / "journal.db"))
    handle = at(journaled, server).submit({}, s3_config={"accessSecret": "VERY-SECRET-BUCKET"})
    assert handle.output(5) == "you sent [key]"
    assert server.asked[0].body["s3Config"] == {"accessSecret": "VERY-SECRET-BUCKET"}
    told = "".join(map(repr, (handle, handle.job, journaled.journal.entries(), journaled.connect("ep"))))
    journaled.close()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"job-1" in files
    for secret in (KEY, "VERY-SECRET-BUCKET"):
        assert secret not in told
        assert secret not in caplog.text
        assert secret.encode() not in files


# ---------------------------------------------------------------------------------- the journal's side


def test_chunks_reach_the_journal_in_time(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    next(iter(handle.chunks()))
    eventually(lambda: session.journal.chunks(1) == [StreamChunk("first", 0)], patience=1.0)
    gate.go.set()
    handle.wait(5)
    assert [chunk.output for chunk in session.journal.chunks(1)] == ["first", "last"]
    entry = session.journal.get(1)
    assert (entry.job.id, entry.job.status) == (handle.id, JobStatus.COMPLETED)
    assert entry.operation == "run"


# ---------------------------------------------------------------------------------- retry, find, adopt


def test_retry_runs_the_same_job_again(session) -> None:
    tries = []

    def handler(job):
        tries.append(job["input"])
        yield f"try {len(tries)}"
        if len(tries) == 1:
            raise RuntimeError

    handle = session.serve("demo", handler).submit({"n": 1})
    with pytest.raises(JobFailed):
        handle.output(5)
    identity = handle.id
    assert handle.retry() is handle
    assert handle.output(5) == "try 2"
    assert (handle.id, tries) == (identity, [{"n": 1}] * 2)
    assert [chunk.output for chunk in session.journal.chunks(1)] == ["try 2"]
    with pytest.raises(InputError, match="only a FAILED or TIMED_OUT job can be retried"):
        handle.retry()


def test_references_to_jobs(session) -> None:
    connection = session.serve("demo", "echo")
    with pytest.raises(InputError, match="there is no job yet"):
        session.find("@last")
    handles = [connection.submit(number) for number in range(3)]
    for handle in handles:
        handle.wait(5)
    session.endpoints.use("demo")
    assert session.find("@last") is handles[2]
    assert session.find("@2") is handles[1]
    assert session.find(handles[0].id) is handles[0]
    assert session.find(handles[0].id[:20]) is handles[0]
    assert session.active() == []
    with pytest.raises(InputError, match="there is no job @9; the last one is @3"):
        session.find("@9")
    with pytest.raises(InputError, match="there is no job @x"):
        session.find("@x")
    with pytest.raises(InputError, match="not in the journal, and not at demo"):
        session.find("no-such-job")
    session.journal._db.connection.execute(
        "UPDATE jobs SET job_id = ? WHERE number = 2", (handles[0].id + "b",)
    )
    with pytest.raises(InputError, match="the beginning of 2 ids"):
        session.find(handles[0].id[:20])


def test_another_sessions_job_is_followed(session) -> None:
    gate = Gate()
    connection = session.serve("demo", gate)
    job = session.ask(connection.endpoint.run({}))
    handle = session.adopt(connection, job.id)
    assert next(iter(handle.chunks())).output == "first"
    gate.go.set()
    assert handle.output(5) == "firstlast"
    assert session.journal.get(handle.number).job.id == job.id
    with pytest.raises(JobLost):
        session.adopt(connection, "no-such-job")


def test_look_asks_once(session) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    assert session.look(handle).status is JobStatus.IN_PROGRESS
    gate.go.set()
    handle.wait(5)
    assert session.look(handle).status is JobStatus.COMPLETED


def test_a_look_after_the_expiry_does_not_undo_what_was_seen(session, elsewhere, monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)
    done, gone = {"id": "job-1", "status": "COMPLETED", "output": 7}, answer({"error": "unknown"}, 404)
    server = elsewhere(
        script(run=[{"id": "job-1", "status": "IN_QUEUE"}, answer({}, 400)],
               stream={"status": "COMPLETED"}, status=[done, gone])
    )  # fmt: skip
    handle = at(session, server).submit({})
    assert handle.output(5) == 7
    assert session.look(handle) is handle.job
    assert handle.output() == 7
    refused = session.connect("ep").submit({})
    with pytest.raises(EndpointError):
        refused.wait(5)
    assert session.look(refused) is refused.job  # it has no id to ask for


# ---------------------------------------------------------------------------------- names


def test_names_and_near_ones(session) -> None:
    session.serve("llama", "echo")
    session.connect("flux", "abc123", provider="runpod", rate=0.5)
    assert session.endpoints.names() == ["demo", "flux", "llama"]
    with pytest.raises(ConfigurationError, match="there is no endpoint 'lama'; did you mean 'llama'"):
        session.connect("lama")
    with pytest.raises(ConfigurationError, match="known are demo, flux, llama"):
        session.connect("zzz")
    with pytest.raises(ConfigurationError, match="did you mean 'runpod'"):
        session.connect("x", "abc", provider="runpood")
    assert session.endpoints.default_name() == "demo"
    session.endpoints.use("llama")
    assert session.endpoints.default_name() == "llama"
    session.endpoints.forget("llama")
    assert session.endpoints.default_name() == "demo"
    assert session.endpoints.names() == ["demo", "flux"]
    assert session.endpoints.describe("flux") == "abc123 at runpod, this session only"
    assert "no account" in session.endpoints.describe("demo")
    assert repr(session.connect("flux")) == "<Connection flux: abc123 at runpod>"


def test_saved_names_are_found_and_become_the_default(elsewhere, monkeypatch) -> None:
    server = elsewhere(script(health={}))
    config = Config()
    config.save(SavedEndpoint("mine", "ep", server.url, "raw", "MY_OWN_KEY", 0.5))
    monkeypatch.setenv("MY_OWN_KEY", "the-key-of-mine-alone")
    session = Session(config=config)
    try:
        assert session.endpoints.names() == ["demo", "mine"]
        assert session.endpoints.describe("mine") == f"ep at {server.url}, profile raw"
        connection = session.connect("mine")
        assert connection.rate == 0.5
        connection.health()
        assert server.asked[0].headers["authorization"] == "Bearer the-key-of-mine-alone"
        session.endpoints.use("mine")
        assert Config().default == "mine"  # another kernel's too
        session.endpoints.forget("mine")
        assert "mine" in session.endpoints.names()
        assert session.connect("mine") is not connection
    finally:
        session.close()


def test_the_demo_serves_itself(session) -> None:
    connection = session.connect("demo")
    assert connection is session.connect("demo")
    assert connection.served
    assert connection.profile == "chat"
    text = connection.run({"prompt": "hi", "max_tokens": 5, "tokens_per_second": 1e6}, timeout=10)
    assert text.startswith("*A demo: ")


def test_connecting_a_name_again_leaves_no_socket_open(session, elsewhere) -> None:
    server = elsewhere(script(health={}))
    for _ in range(5):
        at(session, server).health()
    session.close()  # the fixture counts what is left


# ---------------------------------------------------------------------------------- serving


def test_serving_again_swaps_the_handler_for_new_jobs(session) -> None:
    gate = Gate()
    first = session.serve("demo", gate)
    running = first.submit({})
    assert gate.started.wait(5)
    second = session.serve("demo", lambda job: "new")
    assert second is first
    later = second.submit({})
    gate.go.set()
    assert running.output(5) == "firstlast"
    assert later.output(5) == "new"


def test_purge_removes_what_is_queued(session) -> None:
    gate = Gate()
    connection = session.serve("demo", gate)
    running = connection.submit(0)
    assert gate.started.wait(5)
    queued = [connection.submit(n) for n in range(3)]
    eventually(lambda: all(handle.id for handle in queued))
    assert connection.purge_queue() == 3
    for handle in queued:
        assert handle.wait(5).status in (JobStatus.CANCELLED, JobStatus.LOST)
    gate.go.set()
    assert running.output(5) == "firstlast"
    assert {job.id for job in connection.requests()} >= {running.id}


def test_one_port_serves_everything(session) -> None:
    first = session.serve("a", "echo")
    second = session.serve("b", "echo")
    assert first.provider.base_url == second.provider.base_url
    with pytest.raises(ConfigurationError, match="already serves at"):
        session.serve("c", "echo", port=1)
    assert session.endpoints.queue("a").name == "a"
    assert session.endpoints.queue("zzz") is None
    with pytest.raises(EndpointError):
        session.serve("d", "no such built-in")


def test_two_sessions_do_not_meet() -> None:
    one, two = Session(), Session()
    try:
        first, second = one.serve("demo", lambda job: 1), two.serve("demo", lambda job: 2)
        handles = [first.submit({}), second.submit({})]
        assert [handle.output(5) for handle in handles] == [1, 2]
        assert [handle.number for handle in handles] == [1, 1]
        one.close()
        assert second.run({}, timeout=5) == 2
    finally:
        one.close()
        two.close()


# ---------------------------------------------------------------------------------- waiting, interrupts


def test_the_injected_wait_is_used_and_an_interrupt_leaves_the_job_alone() -> None:
    gate, calls = Gate(), []

    def wait_step(future, timeout):
        calls.append(timeout)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return not concurrent.futures.wait([future], timeout).not_done

    session = Session(wait_step=wait_step)
    try:
        handle = session.serve("demo", gate).submit({})  # starting the server was the first wait
        with pytest.raises(WaitTimeout):
            handle.wait(0.01)
        with pytest.raises(KeyboardInterrupt):
            handle.output()
        assert calls == [None, 0.01, None]
        gate.go.set()
        assert handle.output() == "firstlast"
    finally:
        session.close()


def test_an_interrupted_question_is_not_asked_further(elsewhere) -> None:
    arrived, gone = threading.Event(), threading.Event()

    async def hold(asked):
        arrived.set()
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()

    def wait_step(future, timeout):
        assert arrived.wait(5)
        raise KeyboardInterrupt

    server = elsewhere(script(health=hold))
    session = Session(wait_step=wait_step)
    try:
        connection = at(session, server)
        with pytest.raises(KeyboardInterrupt):
            connection.health()
        eventually(lambda: not connection.endpoint._exchange._client._transport._open)
        assert server.count("health") == 1
    finally:
        session.close()


# ---------------------------------------------------------------------------------- the end


def test_close_stops_remote_jobs_in_its_time_and_handles_say_so() -> None:
    session = Session()
    gates = [Gate() for _ in range(3)]
    handles = [session.serve(f"demo{n}", gate).submit({}) for n, gate in enumerate(gates)]
    assert all(gate.started.wait(5) for gate in gates)
    started = time.monotonic()
    stopped = session.close(cancel=True)
    assert time.monotonic() - started < 4
    assert [each.confirmed for each in stopped] == [True] * 3
    assert all(gate.stopped.is_set() for gate in gates)
    assert session.closed
    assert session.close() == []
    for handle in handles:
        assert handle.wait().status is JobStatus.CANCELLED
        with pytest.raises(ConfigurationError, match=r"the session of @. is closed; %load_ext"):
            handle.cancel()
        with pytest.raises(ConfigurationError, match="is closed"):
            handle.retry()
        handle.cancel_soon()
    with pytest.raises(RuntimeError, match="closed"):
        session.ask(asyncio.sleep(0))


def test_close_alone_leaves_remote_jobs_and_ends_their_handles(elsewhere) -> None:
    polled = threading.Event()

    async def hold(asked):
        polled.set()
        await asyncio.sleep(60)

    server = elsewhere(script(run={"id": "job-1", "status": "IN_QUEUE"}, stream=hold, status=hold))
    session = Session()
    handle = at(session, server).submit({})
    assert polled.wait(5)
    started = time.monotonic()
    assert session.close() == []
    assert time.monotonic() - started < 2
    assert server.count("cancel") == 0
    with pytest.raises(EndpointError, match="closed while @1 was IN_QUEUE: the job itself may go on"):
        handle.wait()
    with pytest.raises(EndpointError, match="the session closed"):
        list(handle.chunks())


def test_close_during_a_submission_says_that_nobody_knows(elsewhere) -> None:
    arrived = threading.Event()

    async def hold(asked):
        arrived.set()
        await asyncio.sleep(60)

    server = elsewhere(script(run=hold))
    session = Session()
    handle = at(session, server).submit({})
    assert arrived.wait(5)
    started = time.monotonic()
    (stopped,) = session.close(cancel=True, timeout=0.3)
    assert time.monotonic() - started < 2
    assert not stopped.confirmed
    assert handle.status is JobStatus.AMBIGUOUS
    assert handle.done
    assert server.count("run") == 1


def test_a_handle_that_has_ended_keeps_its_result_after_the_end() -> None:
    session = Session()
    handle = session.serve("demo", "echo").submit(1)
    handle.wait(5)
    session.close()
    assert handle.output() == 1
    assert handle.wait().status is JobStatus.COMPLETED
    assert list(handle.chunks()) == []


def test_who_waits_while_the_session_closes_is_released() -> None:
    session = Session()
    gate, ended = Gate(), []

    def wait() -> None:
        try:
            handle.wait()
        except EndpointError as error:
            ended.append(error)

    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    thread = threading.Thread(target=wait)
    thread.start()
    session.close()
    thread.join(5)
    assert not thread.is_alive()
    assert handle.done


def test_a_session_that_did_nothing_closes() -> None:
    before = threading.active_count()
    assert Session().close() == []
    assert threading.active_count() == before


def test_the_default_session_is_made_once_and_again_after_its_end() -> None:
    first = default_session()
    try:
        assert default_session() is first
    finally:
        first.close()
    second = default_session()
    assert second is not first
    second.close()


# ---------------------------------------------------------------------------------- given up, and followed again


def rows(*outputs, status="IN_PROGRESS"):
    return {"status": status, "stream": [{"output": output} for output in outputs]}


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Following pauses after a failure, and waits for a network; here hardly."""
    monkeypatch.setattr(patience.random, "uniform", lambda least, most: 0.001)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)


QUEUED, RUNNING = {"id": "job-1", "status": "IN_QUEUE"}, {"id": "job-1", "status": "IN_PROGRESS"}
BUSY = answer({}, 429, Retry_After="0.001")


class Interrupted:
    """A server whose stream fails until it is told to go on."""

    def __init__(self, failure, *, before=("a",), after=("b",), output=None) -> None:
        self.failure, self.before, self.after, self.output = failure, [rows(*before)], [rows(*after)], output
        self.is_back = threading.Event()
        self.is_cancelled = False

    def stream(self, asked):
        if not self.is_back.is_set():
            return self.before.pop() if self.before else self.failure
        if self.is_cancelled:
            return {"status": "CANCELLED", "stream": []}
        return self.after.pop() if self.after else {"status": "COMPLETED", "stream": []}

    def status(self, asked):
        if self.is_cancelled:
            return {"id": "job-1", "status": "CANCELLED"}
        if self.is_back.is_set() and not self.after:
            return {"id": "job-1", "status": "COMPLETED", "output": self.output or []}
        return RUNNING

    def cancel(self, asked):
        self.is_cancelled = True
        return RUNNING

    def answers(self):
        return script(run=QUEUED, stream=self.stream, status=self.status, cancel=self.cancel)


def given_up(session, server):
    handle = at(session, server).submit({})
    with pytest.raises(EndpointError, match="ttach to it again"):
        handle.wait(5)
    assert (handle.done, handle.is_over, handle.status) == (True, False, JobStatus.IN_PROGRESS)
    return handle


@pytest.mark.parametrize("failure", [None, BUSY])
def test_a_job_that_is_no_longer_followed_is_active_and_can_be_stopped(
    session, elsewhere, hasty, failure
) -> None:
    there = Interrupted(failure)
    server = elsewhere(there.answers())
    handle = given_up(session, server)
    assert session.active() == [handle]
    there.is_back.set()
    stopped = handle.cancel()
    assert stopped.confirmed
    assert server.count("cancel") == 1
    assert handle.status is JobStatus.CANCELLED
    assert session.active() == []
    with pytest.raises(JobCancelled):
        handle.output(5)


def test_a_button_and_the_end_of_the_session_stop_it_too(elsewhere, hasty) -> None:
    for stop in (JobHandle.cancel_soon, lambda handle: handle._owner.close(cancel=True)):
        session, there = Session(), Interrupted(BUSY)
        server = elsewhere(there.answers())
        handle = given_up(session, server)
        there.is_back.set()
        stop(handle)
        eventually(lambda handle=handle: handle.status is JobStatus.CANCELLED)
        assert server.count("cancel") == 1
        session.close()


@pytest.mark.parametrize(
    ("failure", "output", "chunks"),
    [(BUSY, [], ["a", "b"]), (None, ["a", "lost", "b"], ["a", "lost", "b"]), (None, [], ["a", "b"])],
)
def test_following_is_resumed_behind_what_was_seen(
    session, elsewhere, hasty, failure, output, chunks
) -> None:
    there = Interrupted(failure, output=output)
    handle = given_up(session, elsewhere(there.answers()))
    assert [chunk.output for chunk in handle.streamed()] == ["a"]
    seen, announced = [], []
    session.watch(announced.append)
    there.is_back.set()

    def resume() -> None:
        session.resume(handle)
        session.resume(handle)  # it is followed already
        handle.subscribe(seen.append)

    session.on_loop(resume)  # in one go, or it might end before the subscription
    assert handle.output(5) == "".join(chunks)
    assert [(chunk.index, chunk.output) for chunk in handle.chunks()] == list(enumerate(chunks))
    assert [chunk.output for chunk in session.journal.chunks(1)] == chunks
    assert announced == [handle, handle]
    assert words(seen)[-2:] == ["COMPLETED", "Ended"]
    is_incomplete = failure is None and not output
    told = "text may be missing: answers were lost on the way" if is_incomplete else None
    told = "repaired: 1 chunk was lost on the wire" if failure is None and output else told
    assert handle.notes == [*filter(None, [told])]
    session.resume(handle)
    assert handle.done


def test_a_look_at_a_job_that_is_no_longer_followed_tells_its_handle(session, elsewhere, hasty) -> None:
    there = Interrupted(BUSY)
    handle = given_up(session, elsewhere(there.answers()))
    assert session.look(handle).status is JobStatus.IN_PROGRESS
    assert handle.done
    there.is_back.set()
    there.after.clear()
    assert session.look(handle).status is JobStatus.COMPLETED
    assert (handle.status, handle.error, handle.value) == (JobStatus.COMPLETED, None, "a")
    assert session.journal.get(1).job.status is JobStatus.COMPLETED


@pytest.mark.parametrize("sync", [False, True])
def test_an_absent_network_is_waited_out(session, elsewhere, monkeypatch, sync) -> None:
    monkeypatch.setattr(following.random, "uniform", lambda least, most: 0.001)
    done = {"id": "job-1", "status": "COMPLETED", "output": 7}
    busy = [BUSY] * 60
    server = elsewhere(
        script(run=QUEUED, runsync=QUEUED, stream=[*busy, rows(status="COMPLETED")], status=done,
               status_sync=[*busy, done])
    )  # fmt: skip
    assert at(session, server).submit({}, sync=sync).output(10) == 7
    assert server.count("stream", "status-sync") == 61


# ---------------------------------------------------------------------------------- the journal fails


@pytest.mark.parametrize(
    "said",
    [{"workerId": "\ud83d"}, {"retries": 10**30}, {"delayTime": 10**30}, {"output": "\ud83d"}],
)
def test_what_the_journal_cannot_hold_stops_nobody(session, elsewhere, said) -> None:
    done = {"id": "job-1", "status": "COMPLETED", "output": 1, **said}
    server = elsewhere(script(run={**QUEUED, **said}, stream=rows("\ud83d", status="COMPLETED"), status=done))
    handle = at(session, server).submit({})
    handle.wait(5)
    assert (handle.done, handle.status) == (True, JobStatus.COMPLETED)


def test_a_journal_that_fails_is_one_note(session, elsewhere, caplog) -> None:
    gate = Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    session.on_loop(session.journal.close)
    gate.go.set()
    assert handle.output(5) == "firstlast"
    assert handle.notes == ["the journal lacks some of this job: it could not be written"]
    assert "@1: the journal :memory: could not be used" in caplog.text
    with pytest.raises(JournalError):
        session.connect("demo").submit({})


def test_a_submission_that_is_never_answered_is_not_waited_for_without_end(
    session, elsewhere, monkeypatch
) -> None:
    monkeypatch.setattr(stopping, "ID_PATIENCE", 0.05)
    release = threading.Event()

    async def run(asked):
        while not release.is_set():
            await asyncio.sleep(0.005)
        return QUEUED

    server = elsewhere(
        script(run=run, stream=rows(status="COMPLETED"), status={**QUEUED, "status": "COMPLETED"})
    )
    handle = at(session, server).submit({})
    stopped = handle.cancel()
    assert not stopped.confirmed
    assert "may have been queued" in str(stopped)
    assert handle.status is JobStatus.AMBIGUOUS
    assert not handle.is_over
    release.set()
    assert handle.wait(5).status is JobStatus.COMPLETED


# ---------------------------------------------------------------------------------- retries that go wrong

FAILED = {"id": "job-1", "status": "FAILED", "error": "no luck"}


def failed(session, server):
    handle = at(session, server).submit({})
    with pytest.raises(JobFailed, match="no luck"):
        handle.output(5)
    return handle


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer({}, 400), BadRequest),
        (answer({}, 404), JobLost),
        (None, AnswerLost),
        (answer({}, 502), ServerError),
    ],
)
def test_a_retry_that_was_not_taken_leaves_all_as_it_was(
    session, elsewhere, monkeypatch, said, error
) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)
    server = elsewhere(script(run=QUEUED, stream=rows("part", status="FAILED"), status=FAILED, retry=said))
    handle = failed(session, server)
    handle.notes.append("old")
    job, seen = handle.job, []
    session.watch(lambda handle: handle.subscribe(seen.append))
    with pytest.raises(error):
        handle.retry()
    assert (handle.job, handle.done, handle.notes) == (job, True, ["old"])
    assert [chunk.output for chunk in handle.streamed()] == ["part"]
    with pytest.raises(JobFailed, match="no luck"):
        list(handle.chunks())
    eventually(lambda: words(seen)[-1] == "Ended")
    assert [chunk.output for chunk in session.journal.chunks(1)] == ["part"]
    assert server.count("retry") == 1


@pytest.mark.parametrize("answered", [True, False])
def test_a_retry_whose_answer_is_lost_or_not_awaited_is_followed(elsewhere, answered) -> None:
    arrived, release, retried = threading.Event(), threading.Event(), threading.Event()

    async def retry(asked):
        retried.set()
        arrived.set()
        while not release.is_set():
            await asyncio.sleep(0.005)
        return QUEUED if answered else None

    done = {"id": "job-1", "status": "COMPLETED", "output": "new"}
    server = elsewhere(
        script(
            run=QUEUED, retry=retry, stream=lambda _: rows(status="COMPLETED" if retried.is_set() else "FAILED"),
            status=lambda _: done if retried.is_set() else FAILED,
        )
    )  # fmt: skip

    def wait_step(future, timeout):
        if is_interrupted.is_set():
            assert arrived.wait(5)
            is_interrupted.clear()
            raise KeyboardInterrupt
        return not concurrent.futures.wait([future], timeout).not_done

    is_interrupted = threading.Event()
    session = Session(wait_step=wait_step)
    try:
        handle = failed(session, server)
        is_interrupted.set()
        with pytest.raises(KeyboardInterrupt):
            handle.retry()
        assert (handle.done, handle.status) == (False, JobStatus.IN_QUEUE)
        with pytest.raises(InputError, match="is IN_QUEUE: only a FAILED"):
            handle.retry()  # the same button twice
        release.set()
        assert handle.output(5) == "new"
        assert server.count("retry") == 1
    finally:
        session.close()


def test_a_retry_begins_with_nothing_of_the_run_before(session) -> None:
    gate, tries = Gate(), []

    async def handler(job):
        tries.append(1)
        yield f"try {len(tries)}"
        if len(tries) == 1:
            raise RuntimeError
        async for chunk in gate(job):
            yield chunk

    handle = session.serve("demo", handler).submit({})
    early = iter(handle.chunks())
    assert next(early).output == "try 1"
    handle.wait(5)
    handle.notes.append("old")
    handle.retry()
    assert (handle.notes, handle.was_stopped, handle.job.error) == ([], False, None)
    assert gate.started.wait(5)
    with pytest.raises(JobFailed):  # a loop over the first run ends with it
        next(early)
    gate.go.set()
    assert handle.output(5) == "try 2firstlast"


def test_only_what_was_asked_to_stop_was_stopped(session, elsewhere) -> None:
    done = session.serve("demo", "echo").submit(1)
    done.wait(5)
    assert done.cancel().confirmed
    assert not done.was_stopped
    server = elsewhere(
        script(run=QUEUED, cancel=answer({}, 403), stream=rows(), status=RUNNING, status_sync=RUNNING)
    )
    refused = at(session, server).submit({})
    assert not refused.cancel().confirmed
    assert not refused.was_stopped
    gate = Gate()
    running = session.serve("slow", gate).submit({})
    assert gate.started.wait(5)
    stopped = running.cancel()
    assert running.was_stopped
    assert repr(stopped) == str(stopped)


# ---------------------------------------------------------------------------------- threads, readers, the end


def test_subscribers_are_called_on_one_thread_that_waits_for_no_other(session) -> None:
    gate, threads = Gate(), set()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    handle.subscribe(lambda event: threads.add(threading.current_thread().name))
    with pytest.raises(ConfigurationError, match="own thread would never end"):
        handle.subscribe(lambda event: handle.cancel())
    gate.go.set()
    handle.wait(5)
    assert threads == {"notebook_ext"}
    session.close()
    after = []
    handle.subscribe(after.append)()
    assert words(after)[-1] == "Ended"


def test_a_job_that_is_known_has_one_reader(session) -> None:
    gate = Gate()
    connection = session.serve("demo", gate)
    handle = connection.submit({})
    assert gate.started.wait(5)
    eventually(lambda: handle.id)
    assert session.adopt(connection, handle.id) is handle
    job = session.ask(connection.endpoint.status(handle.id))
    assert session.on_loop(session._adopt, connection, job) is handle  # two at once
    other = session.serve("other", "echo")
    with pytest.raises(JobLost):
        session.adopt(other, handle.id)
    gate.go.set()
    assert handle.output(5) == "firstlast"


def test_what_was_served_here_is_lost_with_its_session() -> None:
    session, gate = Session(), Gate()
    connection = session.serve("demo", gate)
    running, queued = connection.submit(1), connection.submit(2)
    assert gate.started.wait(5)
    last = connection.submit(3)  # its task has perhaps not begun when the session closes
    session.close()
    for handle in (running, queued, last):
        assert (handle.status, handle.done) == (JobStatus.LOST, True)
        with pytest.raises(EndpointError, match="ended with its endpoint, which was served here"):
            handle.output()
        with pytest.raises(ConfigurationError, match="served here, and ended with it") as caught:
            handle.cancel()
        assert "attach" not in str(caught.value)


def test_a_session_that_hangs_closes_in_its_time_and_every_handle_ends(monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.session.CLOSING", 0.2)
    session, gate = Session(), Gate()
    handle = session.serve("demo", gate).submit({})
    assert gate.started.wait(5)
    end_server, end_loop = session.endpoints._server.stop, session.loop.close
    with monkeypatch.context() as patch:
        patch.setattr(session._watcher, "close", lambda: asyncio.sleep(60))
        patch.setattr(session.loop, "close", lambda timeout: None)
        started = time.monotonic()
        session.close()
        assert time.monotonic() - started < 2
        assert (handle.status, handle.done) == (JobStatus.LOST, True)
        with pytest.raises(EndpointError, match="the session closed while @1 was IN_PROGRESS"):
            handle.output(0)
    session.loop.submit(end_server()).result(5)
    end_loop()


# ---------------------------------------------------------------------------------- figures of a handle


def test_cost_is_running_time_at_the_rate(session, elsewhere) -> None:
    done = {"id": "job-1", "status": "COMPLETED", "executionTime": 2000, "delayTime": 100, "output": 1}
    server = elsewhere(
        script(run={"id": "job-1", "status": "IN_QUEUE"}, status=done, stream={"status": "COMPLETED"})
    )
    connection = session.connect("ep", "ep", provider=server.url, rate=0.25)
    handle = connection.submit({})
    handle.wait(5)
    assert handle.cost == 0.5
    assert handle.first_token is None
    assert handle.chunk_rate is None
    assert handle.elapsed > 0
