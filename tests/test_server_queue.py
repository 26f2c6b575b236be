"""The clocks and the states of jobs: timeouts, ttl, retention, retry, a new handler."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest
from serving import serving, spin

from notebook_ext.protocol import JobRequest
from notebook_ext.server import Queue
from notebook_ext.server.job import Outcome
from notebook_ext.server.queue import PURGED_AT_ONCE
from notebook_ext.types import JobStatus


def test_the_execution_timeout_stops_the_handler() -> None:
    stopped = threading.Event()

    async def handler(job):
        try:
            yield "kept"
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo", policy={"executionTimeout": 400})
            document = await api.end("demo", job)
            assert document["status"] == "TIMED_OUT"
            assert "0.4 s" in document["error"]
            assert 390 <= document["executionTime"] < 2000
            assert await asyncio.to_thread(stopped.wait, 5)
            assert await api.chunks("demo", job) == ["kept"]

    asyncio.run(scenario())


def test_the_execution_timeout_does_not_count_the_queue() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with serving(demo=lambda job: release.wait(10)) as api:
            await api.run("demo")
            job = await api.run("demo", policy={"executionTimeout": 400})
            await asyncio.sleep(0.5)
            assert (await api.get(f"/demo/status/{job}"))["status"] == "IN_QUEUE"
            release.set()
            document = await api.end("demo", job)
            assert document["status"] == "COMPLETED"
            assert document["delayTime"] >= 490

    asyncio.run(scenario())


@pytest.mark.parametrize("runs", [True, False])
def test_the_ttl_deletes_a_job_wherever_it_stands(runs: bool) -> None:
    stopped = threading.Event()

    async def handler(job):
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            if not runs:
                await api.run("demo")
            job = await api.run("demo", policy={"ttl": 400})
            answers = await asyncio.gather(
                api.http.get(f"/demo/stream/{job}"), api.http.get(f"/demo/status-sync/{job}")
            )
            assert [answer.status_code for answer in answers] == [404, 404]  # the polls are sent home
            assert (await api.http.get(f"/demo/status/{job}")).status_code == 404
            assert (await api.get("/demo/health"))["jobs"]["inQueue"] == 0
            if runs:
                assert await asyncio.to_thread(stopped.wait, 5)

    asyncio.run(scenario())


def test_results_expire() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            job = await api.run("demo")
            await api.end("demo", job)
            record = api.record("demo", job)
            assert (await api.get(f"/demo/status/{job}", ttl=50))["status"] == "COMPLETED"
            await spin(lambda: record.deleted)
            answer = await api.http.get(f"/demo/status/{job}")
            assert (answer.status_code, list(answer.json())) == (404, ["error"])

    asyncio.run(scenario())


@pytest.mark.parametrize("clock", ["execution", "failure"])
def test_retry_runs_the_same_input_under_the_same_id(clock: str) -> None:
    inputs = []
    release = threading.Event()

    def handler(job):
        inputs.append(job["input"].copy())
        job["input"]["spoiled"] = True
        yield f"try {len(inputs)}"
        if len(inputs) == 1:
            if clock == "failure":
                raise RuntimeError
            release.wait(10)
            yield "late"

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, workers=2)
            job = await api.run("demo", {"n": 1}, policy={"executionTimeout": 400})
            first = await api.end("demo", job)
            assert first["status"] == ("FAILED" if clock == "failure" else "TIMED_OUT")
            assert await api.post(f"/demo/retry/{job}") == {"id": job, "status": "IN_QUEUE"}
            again = await api.end("demo", job)
            release.set()  # what the first attempt says now is nobody's business
            await spin(lambda: set(api.server.endpoints["demo"].workers.values()) == {"idle"})
            assert again["status"] == "COMPLETED"
            assert again["output"] == ["try 2"]
            assert again["retries"] == 1
            assert "error" not in again
            assert inputs == [{"n": 1}, {"n": 1}]
            assert await api.chunks("demo", job) == ["try 2"]
            assert (await api.get(f"/demo/status/{job}")) == again

    asyncio.run(scenario())


def test_only_failures_are_retried() -> None:
    async def handler(job):
        if job["input"]:
            await asyncio.sleep(60)

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            completed = await api.run("demo", 0)
            await api.end("demo", completed)
            running, queued = await api.run("demo", 1), await api.run("demo", 1)
            cancelled = await api.run("demo", 1)
            await api.post(f"/demo/cancel/{cancelled}")
            for job in (completed, running, queued, cancelled):
                answer = await api.http.post(f"/demo/retry/{job}", json={})
                assert answer.status_code == 400
                assert "only FAILED and TIMED_OUT" in answer.json()["error"]

    asyncio.run(scenario())


def test_serving_again_swaps_the_handler_for_jobs_not_yet_taken() -> None:
    release = threading.Event()

    def old(job):
        release.wait(10)
        return "old"

    async def scenario() -> None:
        async with serving(demo=old) as api:
            running = await api.run("demo")
            await api.until("demo", running, lambda record: record.attempt)
            queued = await api.run("demo")
            queue = api.server.endpoints["demo"]
            assert api.server.serve("demo", lambda job: "new", workers=2) is queue
            assert (await api.end("demo", queued))["output"] == "new"
            release.set()
            assert (await api.end("demo", running))["output"] == "old"
            api.server.serve("demo", lambda job: "newest", workers=1)
            await spin(lambda: len(queue.workers) == 1)
            assert (await api.result("demo"))["output"] == "newest"

    asyncio.run(scenario())


def test_a_new_handler_does_not_wait_for_one_that_hangs_in_a_cancelled_job() -> None:
    started, release = threading.Event(), threading.Event()

    def hangs(job):
        started.set()
        release.wait(10)

    async def scenario() -> None:
        async with serving(demo=hangs) as api:
            job = await api.run("demo")
            assert await asyncio.to_thread(started.wait, 5)
            await api.post(f"/demo/cancel/{job}")
            api.server.serve("demo", lambda job: "fine")
            assert (await api.result("demo"))["output"] == "fine"
            assert (await api.get("/demo/health"))["workers"]["running"] == 0
            release.set()

    asyncio.run(scenario())


def test_removing_an_endpoint_takes_its_jobs_along() -> None:
    started, stopped = threading.Event(), threading.Event()

    async def handler(job):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            record = api.record("demo", job)
            poll = asyncio.create_task(api.http.get(f"/demo/stream/{job}"))
            assert await asyncio.to_thread(started.wait, 5)
            await spin(lambda: record.bells)
            api.server.remove("demo")
            assert (await poll).status_code == 404
            assert await asyncio.to_thread(stopped.wait, 5)
            assert (await api.http.get("/demo/health")).status_code == 404
            with pytest.raises(ValueError, match="nothing is served as 'demo'"):
                api.server.remove("demo")
            api.server.serve("demo", "echo")
            assert (await api.http.get(f"/demo/status/{job}")).status_code == 404
            assert (await api.result("demo", 1))["output"] == 1

    asyncio.run(scenario())


def test_other_kinds_of_workers_use_the_same_calls() -> None:
    async def scenario() -> None:
        async with serving() as api:
            queue = Queue("far", lambda job: None)
            record = queue.submit(JobRequest({"n": 1}))
            await queue.work_waiting()
            queue.workers["far-1"] = "running"
            attempt = queue.take("far-1")
            assert attempt is not None
            assert queue.take("far-2") is None
            assert queue.push(attempt, "chunk", 7)
            queue.progress(attempt, "halfway")
            assert queue.document(record)["output"] == "halfway"
            queue.finish(attempt, Outcome(streamed=True))
            assert queue.document(record)["output"] == ["chunk"]
            assert not queue.push(attempt, "late", 6)
            queue.progress(attempt, "late")
            queue.finish(attempt, Outcome(error="late"))
            assert queue.document(record)["status"] == "COMPLETED"
            assert record.drain() == ["chunk"]

            record = queue.submit(JobRequest({}))
            attempt = queue.take("far-1")
            assert attempt is not None
            stop = asyncio.create_task(attempt.stop.wait())
            queue.cancel(record)
            await stop
            queue.close()
            assert api.server.endpoints == {}

    asyncio.run(scenario())


def test_a_purge_of_many_jobs_lets_workers_have_their_turn() -> None:
    async def scenario() -> None:
        queue = Queue("busy", lambda job: None)
        records = [queue.submit(JobRequest({"n": number})) for number in range(PURGED_AT_ONCE + 2)]
        purging = asyncio.create_task(queue.purge())
        await asyncio.sleep(0)
        taken = queue.take("busy-1")
        late = queue.submit(JobRequest({"n": "late"}))
        assert not purging.done()
        assert await purging == PURGED_AT_ONCE + 1
        assert taken is not None
        assert taken.record is records[PURGED_AT_ONCE]
        states = Counter(record.status for record in records)
        assert states == {JobStatus.CANCELLED: PURGED_AT_ONCE + 1, JobStatus.IN_PROGRESS: 1}
        assert late.status is JobStatus.IN_QUEUE  # what comes after the purge was asked for is not meant
        queue.close()

    asyncio.run(scenario())
