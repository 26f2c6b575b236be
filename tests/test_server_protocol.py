"""The operations of the protocol, over a real socket."""

from __future__ import annotations

import asyncio
import re
import threading

import httpx
import pytest
from serving import serving, spin


def test_run_answers_at_once_and_status_tells_the_result() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.post("/demo/run", {"input": {"a": [1, None, "ä"]}})
            assert answer.keys() == {"id", "status"}
            assert answer["status"] == "IN_QUEUE"
            assert re.fullmatch(r"[A-Za-z0-9_-]+", answer["id"])
            document = await api.end("demo", answer["id"])
            assert document["status"] == "COMPLETED"
            assert document["output"] == {"a": [1, None, "ä"]}
            assert isinstance(document["delayTime"], int)
            assert isinstance(document["executionTime"], int)
            assert document["workerId"] == "demo-1"
            for method in ("GET", "POST"):
                again = await api.http.request(method, f"/demo/status/{answer['id']}")
                assert again.json() == document

    asyncio.run(scenario())


def test_runsync_answers_with_the_result() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            document = await api.post("/demo/runsync", {"input": "hello"})
            assert document["id"].startswith("sync-")
            assert (document["status"], document["output"]) == ("COMPLETED", "hello")

    asyncio.run(scenario())


def test_runsync_answers_unfinished_when_its_wait_is_over() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with serving(demo=lambda job: release.wait(10)) as api:
            loop = asyncio.get_running_loop()
            started = loop.time()
            document = await api.post("/demo/runsync", {"input": {}}, wait=1)  # clamped to 1000
            assert 0.95 < loop.time() - started < 3
            assert document["status"] == "IN_PROGRESS"
            assert "output" not in document
            release.set()
            assert (await api.end("demo", document["id"]))["output"] is True

    asyncio.run(scenario())


def test_the_first_chunk_is_readable_while_the_handler_holds_the_last() -> None:
    release = threading.Event()

    def handler(job):
        yield "first"
        assert release.wait(10)
        yield "last"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            answer = await api.get(f"/demo/stream/{job}")
            assert answer == {"status": "IN_PROGRESS", "stream": [{"output": "first"}]}
            assert not release.is_set()
            release.set()
            assert await api.chunks("demo", job) == ["last"]

    asyncio.run(scenario())


def test_reading_drains_and_the_end_is_told_again_and_again() -> None:
    async def handler(job):
        for value in ("a", None, 0, "", {"k": [1]}):
            yield value

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            await api.end("demo", job)
            final = await api.get(f"/demo/stream/{job}")
            assert final == {
                "status": "COMPLETED",
                "stream": [{"output": v} for v in ("a", None, 0, "", {"k": [1]})],
            }
            for method in ("GET", "POST"):
                again = await api.http.request(method, f"/demo/stream/{job}")
                assert again.json() == {"status": "COMPLETED", "stream": []}
            assert (await api.get(f"/demo/status/{job}"))["output"] == ["a", None, 0, "", {"k": [1]}]

    asyncio.run(scenario())


def test_without_the_aggregate_only_the_stream_has_the_chunks() -> None:
    def handler(job):
        yield from "abc"

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, return_aggregate_stream=False)
            job = await api.run("demo")
            assert (await api.end("demo", job))["output"] == []
            assert await api.chunks("demo", job) == ["a", "b", "c"]

    asyncio.run(scenario())


def test_a_stream_poll_without_chunks_is_held_for_its_wait() -> None:
    async def handler(job):
        await asyncio.sleep(60)
        yield "never"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            loop = asyncio.get_running_loop()
            started = loop.time()
            assert await api.get(f"/demo/stream/{job}", wait=1000) == {"status": "IN_PROGRESS", "stream": []}
            assert 0.95 < loop.time() - started < 3

    asyncio.run(scenario())


def test_the_stream_of_a_job_that_does_not_stream_ends_with_it() -> None:
    release = threading.Event()

    def handler(job):
        release.wait(10)
        return "whole"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            poll = asyncio.create_task(api.get(f"/demo/stream/{job}"))
            await spin(lambda: api.record("demo", job).bells)
            assert not poll.done()
            release.set()
            assert await poll == {"status": "COMPLETED", "stream": []}
            assert (await api.get(f"/demo/status/{job}"))["output"] == "whole"

    asyncio.run(scenario())


def test_a_client_that_leaves_during_a_poll_takes_no_chunks_along() -> None:
    release = threading.Event()

    def handler(job):
        release.wait(10)
        yield "kept"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            record = api.record("demo", job)
            poll = asyncio.create_task(api.get(f"/demo/stream/{job}"))
            await spin(lambda: record.bells)
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)
            await spin(lambda: not record.bells)  # the server has noticed
            release.set()
            assert await api.chunks("demo", job) == ["kept"]

    asyncio.run(scenario())


def test_two_readers_share_the_chunks() -> None:
    def handler(job):
        yield from range(200)

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            one, two = await asyncio.gather(api.chunks("demo", job), api.chunks("demo", job))
            assert sorted(one + two) == list(range(200))
            assert one == sorted(one)
            assert two == sorted(two)

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_cancel_stops_a_generator_at_its_next_yield(body: bytes) -> None:
    stopped = threading.Event()

    def handler(job):
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            stopped.set()

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            await api.get(f"/demo/stream/{job}")
            answer = (await api.http.post(f"/demo/cancel/{job}", content=body)).json()
            assert (answer["id"], answer["status"]) == (job, "CANCELLED")
            assert await asyncio.to_thread(stopped.wait, 5)
            await spin(lambda: api.server.endpoints["demo"].workers == {"demo-1": "idle"})
            final = await api.get(f"/demo/stream/{job}")
            assert final["status"] == "CANCELLED"
            assert (await api.post(f"/demo/cancel/{job}")) == await api.get(f"/demo/status/{job}")

    asyncio.run(scenario())


@pytest.mark.parametrize("yields", [True, False])
def test_cancel_stops_an_async_handler_where_it_waits(yields: bool) -> None:
    started, stopped = threading.Event(), threading.Event()

    async def streaming(job):
        started.set()
        try:
            yield "first"
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def plain(job):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def scenario() -> None:
        async with serving(demo=streaming if yields else plain) as api:
            job = await api.run("demo")
            assert await asyncio.to_thread(started.wait, 5)
            assert (await api.post(f"/demo/cancel/{job}"))["status"] == "CANCELLED"
            assert await asyncio.to_thread(stopped.wait, 5)
            document = await api.end("demo", job)
            assert document["status"] == "CANCELLED"
            assert "error" not in document

    asyncio.run(scenario())


def test_a_stop_in_the_moment_of_the_start_is_not_lost() -> None:
    async def handler(job):
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            for _ in range(20):
                job = await api.run("demo")
                await api.post(f"/demo/cancel/{job}")
            await spin(lambda: api.server.endpoints["demo"].workers == {"demo-1": "idle"})

    asyncio.run(scenario())


def test_a_queued_job_is_cancelled_before_it_runs() -> None:
    release, seen = threading.Event(), []

    def handler(job):
        seen.append(job["input"])
        release.wait(10)

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            first, second = await api.run("demo", 1), await api.run("demo", 2)
            answer = await api.post(f"/demo/cancel/{second}")
            assert answer == {"id": second, "status": "CANCELLED"}
            release.set()
            assert (await api.end("demo", first))["status"] == "COMPLETED"
            assert (await api.result("demo", 3))["status"] == "COMPLETED"
            assert seen == [1, 3]

    asyncio.run(scenario())


def test_the_late_result_of_a_function_that_cannot_be_stopped_changes_nothing() -> None:
    started, release = threading.Event(), threading.Event()

    def handler(job):
        started.set()
        release.wait(10)
        return "late"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            assert await asyncio.to_thread(started.wait, 5)
            cancelled = await api.post(f"/demo/cancel/{job}")
            assert api.server.endpoints["demo"].workers == {"demo-1": "running"}  # it still is
            release.set()
            await spin(lambda: api.server.endpoints["demo"].workers == {"demo-1": "idle"})
            assert await api.get(f"/demo/status/{job}") == cancelled
            assert cancelled["status"] == "CANCELLED"

    asyncio.run(scenario())


def test_purge_cancels_what_is_queued_and_leaves_what_runs() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with serving(demo=lambda job: release.wait(10)) as api:
            running = await api.run("demo")
            await api.until("demo", running, lambda record: record.attempt)
            queued = [await api.run("demo") for _ in range(3)]
            assert await api.post("/demo/purge-queue") == {"removed": 3, "status": "completed"}
            for job in queued:
                assert (await api.get(f"/demo/status/{job}"))["status"] == "CANCELLED"
            release.set()
            assert (await api.end("demo", running))["status"] == "COMPLETED"

    asyncio.run(scenario())


def test_health_counts() -> None:
    release = threading.Event()

    def handler(job):
        if job["input"] == "fail":
            raise RuntimeError
        if job["input"] == "hold":
            release.wait(10)

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            await api.result("demo", "pass")
            job = await api.run("demo", "fail")
            await api.end("demo", job)
            await api.post(f"/demo/retry/{job}")
            await api.end("demo", job)
            held = await api.run("demo", "hold")
            await api.until("demo", held, lambda record: record.attempt)
            await api.run("demo", "wait")
            assert await api.get("/demo/health") == {
                "jobs": {"completed": 1, "failed": 2, "inProgress": 1, "inQueue": 1, "retried": 1},
                "workers": {
                    "idle": 0,
                    "initializing": 0,
                    "ready": 0,
                    "running": 1,
                    "throttled": 0,
                    "unhealthy": 0,
                },
            }
            release.set()

    asyncio.run(scenario())


def test_requests_lists_the_newest_first() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            jobs = [await api.run("demo", n) for n in range(3)]
            for job in jobs:
                await api.end("demo", job)
            rows = await api.get("/demo/requests")
            assert [row["id"] for row in rows] == jobs[::-1]
            assert [row["output"] for row in rows] == [2, 1, 0]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "words"),
    [
        ("POST", "/demo/run", b"{not json", 400, "not JSON"),
        ("POST", "/demo/run", b"", 400, "not JSON"),
        ("POST", "/demo/run", b'{"input": NaN}', 400, "NaN"),
        ("POST", "/demo/run", b"\xff\xfe", 400, "not JSON"),
        ("POST", "/demo/run", b"[" * 200_000, 400, "not JSON"),
        ("POST", "/demo/run", b'{"input": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        ("POST", "/demo/run", b"[1]", 400, "object"),
        ("POST", "/demo/run", b"{}", 400, "no 'input'"),
        ("POST", "/demo/runsync", b"{}", 400, "no 'input'"),
        ("POST", "/demo/runsync?wait=soon", b'{"input":1}', 400, "wait"),
        ("POST", "/demo/run", b'{"input":1,"policy":{"ttl":-1}}', 400, "ttl"),
        ("POST", "/demo/run", b'{"input":1,"policy":{"ttl":' + b"9" * 400 + b"}}", 400, "ttl"),
        ("POST", "/demo/run", b'{"input":1,"policy":7}', 400, "policy"),
        ("POST", "/demo/run", b'{"input":1,"webhook":"ftp://x"}', 400, "http"),
        ("POST", "/demo/run", b'{"input":1,"webhook":"http://[::1"}', 400, "http"),
        ("POST", "/nope/run", b'{"input":1}', 404, "'nope'"),
        ("GET", "/nope/health", b"", 404, "'nope'"),
        ("GET", "/demo/status/unknown", b"", 404, "job not found"),
        ("GET", "/demo/stream/unknown", b"", 404, "job not found"),
        ("POST", "/demo/cancel/unknown", b"", 404, "job not found"),
        ("POST", "/demo/retry/unknown", b"", 404, "job not found"),
        ("GET", "/demo/status", b"", 404, "route"),
        ("GET", "/demo/nothing", b"", 404, "route"),
        ("GET", "/demo/run/", b"", 404, "route"),
        ("GET", "/", b"", 404, ""),
        ("GET", "/demo/run", b"", 405, "POST"),
        ("POST", "/demo/health", b"", 405, "GET"),
        ("DELETE", "/demo/health", b"", 405, ""),
    ],
)
def test_bad_requests_get_json_that_says_why(
    method: str, path: str, content: bytes, status: int, words: str
) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.request(method, path, content=content)
            assert answer.status_code == status, answer.text
            assert words in answer.json()["error"]
            assert list(answer.json()) == ["error"]
            assert (await api.result("demo", 1))["output"] == 1

    asyncio.run(scenario())


def test_head_reads_nothing() -> None:
    async def handler(job):
        yield "kept"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            await api.end("demo", job)
            assert (await api.http.head(f"/demo/stream/{job}")).status_code == 405
            assert await api.chunks("demo", job) == ["kept"]

    asyncio.run(scenario())


def test_strings_that_are_no_text_survive() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.post("/demo/runsync", content=rb'{"input": "\ud800"}')
            assert answer.json()["output"] == "\ud800"

    asyncio.run(scenario())


def test_two_hundred_jobs_through_four_workers() -> None:
    running: set[str] = set()
    most = 0
    lock = threading.Lock()

    def handler(job):
        nonlocal most
        with lock:
            running.add(job["id"])
            most = max(most, len(running))
        yield job["input"]
        with lock:
            running.discard(job["id"])

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, workers=4)
            jobs = [await api.run("demo", n) for n in range(200)]
            limit = asyncio.Semaphore(20)

            async def read(job):
                async with limit:
                    return await api.chunks("demo", job)

            assert await asyncio.gather(*map(read, jobs)) == [[n] for n in range(200)]
            assert 1 <= most <= 4
            health = await api.get("/demo/health")
            assert health["jobs"]["completed"] == 200
            assert sum(health["workers"][state] for state in ("idle", "running")) == 4

    asyncio.run(scenario())


def test_job_ids_are_not_shared_between_endpoints() -> None:
    async def scenario() -> None:
        async with serving(one="echo", two="echo") as api:
            job = await api.run("one")
            answer = await api.http.get(f"/two/status/{job}")
            assert isinstance(answer, httpx.Response)
            assert answer.status_code == 404

    asyncio.run(scenario())
