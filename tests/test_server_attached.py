"""The worker side of the protocol, by workers that are written here; `test_workers` has real ones."""

from __future__ import annotations

import asyncio
import json
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from serving import Api, serving, spin

from notebook_ext.errors import ConfigurationError
from notebook_ext.server import Dials, attached
from notebook_ext.server.job import CHUNK_LIMIT, RESULT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
"""What the SDK says that its JSON is."""


class Worker:
    """Speaks the worker's side by hand."""

    def __init__(self, http: httpx.AsyncClient, endpoint: str, id: str) -> None:
        self.http, self.endpoint, self.id = http, endpoint, id

    async def ask(self, what: str, **query: Any) -> httpx.Response:
        return await self.http.get(
            f"/{self.endpoint}/{what}/{self.id}?gpu=none", params={"gpu": "none", **query}
        )

    async def take(self, **query: Any) -> Any:
        answer = await self.ask("job-take", **{"job_in_progress": 0, **query})
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    async def tell(self, what: str, job: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return await self.http.post(
            f"/{self.endpoint}/{what}/{self.id}/{job}?gpu=none&isStream=false", content=content, headers=FORM
        )

    async def done(self, job: str, **body: Any) -> None:
        assert (await self.tell("job-done", job, body)).status_code == 200

    async def ping(self, *jobs: str, **query: str) -> None:
        listed = {"job_id": ",".join(jobs)} if jobs else {}
        assert (await self.ask("ping", runpod_version="1.12.0", **listed, **query)).status_code == 200

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[list[str]]:
        """With its stop channel open, as the SDK has it all the time; gives what came by it."""
        heard: list[str] = []

        async def listen() -> None:
            while True:
                answer = await self.ask("job-stop")
                if answer.status_code == 200:
                    heard.extend(answer.json()["jobsToStop"])

        task = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Place(Api):
    """An endpoint that has no handler."""

    def worker(self, id: str = "w1", endpoint: str = "demo") -> Worker:
        token = self.server.attachment(endpoint).variables["RUNPOD_AI_API_KEY"]
        self.clients.append(
            httpx.AsyncClient(
                base_url=self.server.base_url, headers={"Authorization": token}, trust_env=False, timeout=20
            )
        )
        return Worker(self.clients[-1], endpoint, id)

    async def workers(self) -> dict[str, int]:
        counts = (await self.get("/demo/health"))["workers"]
        return {name: count for name, count in counts.items() if count and name != "ready"}


@asynccontextmanager
async def place(**options: Any) -> AsyncIterator[Place]:
    async with serving() as api:
        api.server.serve("demo", options.pop("handler", None), external=True, **options)
        it = Place(api.server, api.http)
        it.clients = []
        try:
            yield it
        finally:
            for client in it.clients:
                await client.aclose()


# ---------------------------------------------------------------------------------- jobs


def test_a_job_is_taken_told_about_and_done() -> None:
    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            async with worker.listening():
                take = asyncio.create_task(worker.take())
                job = await api.run("demo", {"a": 1}, s3Config={"bucketName": "b"})
                assert await take == {"id": job, "input": {"a": 1}, "s3Config": {"bucketName": "b"}}
                document = await api.get(f"/demo/status/{job}")
                assert (document["status"], document["workerId"]) == ("IN_PROGRESS", "w1")
                assert (await worker.tell("job-stream", job, {"output": "x"})).status_code == 200
                assert (await api.get(f"/demo/stream/{job}"))["stream"] == [{"output": "x"}]
                await worker.done(job, status="IN_PROGRESS", output={"step": 1})
                assert (await api.get(f"/demo/status/{job}"))["output"] == {"step": 1}
                await worker.done(job, output=["x"])
                document = await api.end("demo", job)
                assert (document["status"], document["output"]) == ("COMPLETED", ["x"])

    asyncio.run(scenario())


def test_what_comes_late_changes_nothing() -> None:
    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            async with worker.listening():
                job = await api.run("demo")
                await worker.take()
                await worker.done(job, output=1)
                document = await api.end("demo", job)
                await worker.done(job, status="IN_PROGRESS", output={"step": 1})
                await worker.done(job, error="no")
                assert (await worker.tell("job-stream", job, {"output": "x"})).status_code == 200
                assert await api.get(f"/demo/status/{job}") == document
                cancelled = await api.run("demo")
                await worker.take()
                await api.post(f"/demo/cancel/{cancelled}")
                await worker.done(cancelled, output=1)
                assert (await api.get(f"/demo/status/{cancelled}"))["status"] == "CANCELLED"
                assert (await api.get("/demo/health"))["jobs"]["completed"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("what", "body", "words"),
    [
        ("job-done", '{"output": NaN}', "the result of the worker is not JSON: NaN"),
        ("job-done", "output=1", "the result of the worker is not JSON"),
        ("job-done", "[1]", "is not a JSON object"),
        ("job-done", b'{"output": "' + b"x" * (RESULT_LIMIT + 2000) + b'"}', "more than 20 MB"),
        ("job-stream", '{"output": Infinity}', "the chunk of the worker is not JSON: Infinity"),
        ("job-stream", b'{"output": "' + b"x" * (CHUNK_LIMIT + 2000) + b'"}', "more than 1 MB"),
    ],
)
def test_a_report_that_cannot_be_read_fails_its_job_with_the_reason(what: str, body: Any, words: str) -> None:
    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            async with worker.listening():
                job = await api.run("demo")
                await worker.take()
                answer = await worker.tell(what, job, body)
                assert (answer.status_code, list(answer.json())) == (400, ["error"])
                document = await api.end("demo", job)
                assert document["status"] == "FAILED"
                assert words in document["error"]

    asyncio.run(scenario())


def test_too_many_chunks_that_nobody_reads_fail_their_job_and_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notebook_ext.server.job.RESULT_LIMIT", 100)
    monkeypatch.setattr(attached, "STOP_DELAY", 0.05)

    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            async with worker.listening() as heard:
                job = await api.run("demo")
                await worker.take()
                assert (await worker.tell("job-stream", job, {"output": "x" * 40})).status_code == 200
                assert (await worker.tell("job-stream", job, {"output": "x" * 40})).status_code == 400
                assert (await api.end("demo", job))["status"] == "FAILED"
                await spin(lambda: heard == [job])

    asyncio.run(scenario())


def test_several_are_taken_at_once_and_none_twice() -> None:
    async def scenario() -> None:
        async with place() as api:
            one, two = api.worker("one"), api.worker("two")
            async with one.listening(), two.listening():
                jobs = [await api.run("demo", number) for number in range(5)]
                first = (await one.ask("job-take-batch", batch_size=3)).json()
                second = (await two.ask("job-take-batch", batch_size="many")).json()
                assert [job["id"] for job in first + second] == jobs[:4]
                third = await two.take(job_in_progress=1)
                assert third["id"] == jobs[4]

    asyncio.run(scenario())


def test_a_poll_whose_worker_has_gone_takes_no_job() -> None:
    async def scenario() -> None:
        async with place() as api:
            token = api.server.attachment("demo").variables["RUNPOD_AI_API_KEY"]
            head = f"GET /v2/demo/job-take/w1?gpu=x HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\nAuthorization: {token}\r\n\r\n"
            workers, worker = api.server.endpoints["demo"].workers, api.worker("w2")
            for with_job in (False, True):  # before the job comes, and in the same moment
                _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
                writer.write(head.encode())
                await writer.drain()
                await spin(lambda: "attached w1" in workers)
                writer.close()
                if not with_job:
                    await asyncio.sleep(0.05)
                async with worker.listening():
                    job = await api.run("demo")
                    taken = await worker.take()
                    assert taken["id"] == job
                    assert (await api.get(f"/demo/status/{job}"))["workerId"] == "w2"
                    await worker.done(job)

    asyncio.run(scenario())


def test_a_poll_is_held_and_ends_with_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "TAKE_HOLD", 0.2)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with place() as api:
            worker = api.worker()
            started = loop.time()
            assert await worker.take() is None
            assert loop.time() - started >= 0.19
            monkeypatch.setattr(attached, "TAKE_HOLD", 20)
            polls = [asyncio.create_task(worker.ask(what)) for what in ("job-take", "job-stop")]
            await spin(lambda: len(api.server._attached["demo"]._workers["w1"].bells) == 2)
            api.server.remove("demo")
            assert [(await poll).status_code for poll in polls] == [204, 204]

    asyncio.run(scenario())


def test_workers_of_this_process_and_of_others_share_the_jobs() -> None:
    release = asyncio.Event()

    async def here(job):
        while not release.is_set():
            await asyncio.sleep(0.01)
        return "here"

    async def scenario() -> None:
        async with place(handler=here) as api:
            worker = api.worker()
            async with worker.listening():
                jobs = [await api.run("demo") for _ in range(2)]
                there = await worker.take()
                await worker.done(there["id"], output="there")
                release.set()
                assert {(await api.end("demo", job))["output"] for job in jobs} == {"here", "there"}

    asyncio.run(scenario())


def test_the_fail_dial_fails_what_other_processes_would_run() -> None:
    async def scenario() -> None:
        async with place(dials=Dials(fail=1)) as api:
            worker = api.worker()
            async with worker.listening():
                take = asyncio.create_task(worker.take())
                document = await api.result("demo")
                assert "`fail` dial" in document["error"]
                assert not take.done()
                take.cancel()

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- stopping


def test_a_job_that_one_worker_cannot_take_again_is_taken_by_another() -> None:
    async def scenario() -> None:
        async with place() as api:
            busy, free = api.worker("busy"), api.worker("free")
            job = await api.run("demo", policy={"executionTimeout": 50})
            assert (await busy.take())["id"] == job
            assert (await api.end("demo", job))["status"] == "TIMED_OUT"
            waiters = api.server.endpoints["demo"]._waiters
            takes = []
            for count, worker in enumerate((free, busy), 1):  # who has come last is called first
                takes.append(asyncio.create_task(worker.take(job_in_progress=1)))
                await spin(lambda count=count: len(waiters) == count)
            await api.post(f"/demo/retry/{job}")
            assert (await takes[0])["id"] == job
            takes[1].cancel()
            await asyncio.gather(takes[1], return_exceptions=True)

    asyncio.run(scenario())


def test_a_stop_is_repeated_until_the_worker_has_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "STOP_DELAY", 0.2)
    monkeypatch.setattr(attached, "STOP_REPEAT", 0.1)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with place() as api:
            worker = api.worker()
            async with worker.listening() as heard:
                job = await api.run("demo")
                await worker.take()
                started = loop.time()
                await api.post(f"/demo/cancel/{job}")
                await spin(lambda: len(heard) >= 3)
                assert loop.time() - started >= 0.39  # not at once, where the SDK drops it
                assert set(heard) == {job}
                assert await api.workers() == {"running": 1}
                await worker.done(job, output="late")
                assert await api.workers() == {"idle": 1}
                told = len(heard)
                await asyncio.sleep(0.3)
                assert len(heard) <= told + 1  # one may have been on its way

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["take", "ping"])
def test_a_worker_that_reports_nothing_lets_go_by_what_it_says_otherwise(way: str) -> None:
    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            async with worker.listening():
                job = await api.run("demo")
                await worker.take()
                await api.post(f"/demo/cancel/{job}")
                await worker.ping(job)
                assert await api.workers() == {"running": 1}
                if way == "take":
                    take = asyncio.create_task(worker.take())
                    await spin(lambda: list(api.server.endpoints["demo"].workers.values()) == ["idle"])
                    take.cancel()
                else:
                    await worker.ping()  # may be older than the take
                    assert await api.workers() == {"running": 1}
                    await asyncio.sleep(1.05)
                    await worker.ping()
                    assert await api.workers() == {"idle": 1}

    asyncio.run(scenario())


def test_a_worker_that_stops_taking_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the answer to its job-stop before it ends."""
    monkeypatch.setattr(attached, "TAKE_HOLD", 0.05)
    monkeypatch.setattr(attached, "LEAVING_AFTER", 0.2)

    async def scenario() -> None:
        async with place() as api:
            worker = api.worker()
            stop = asyncio.create_task(worker.ask("job-stop"))
            await worker.take()
            await worker.take()
            assert not stop.done()
            assert (await stop).status_code == 204

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- life


def test_the_states_of_a_worker_are_in_the_health() -> None:
    async def scenario() -> None:
        async with place(dials=Dials(throttle=1)) as api:
            worker = api.worker()
            assert await api.workers() == {}
            await worker.ping()
            assert await api.workers() == {"initializing": 1}
            await worker.ping(status="unhealthy", check="cuda", reason="no GPU")
            assert await api.workers() == {"unhealthy": 1}
            async with worker.listening():
                take = asyncio.create_task(worker.take())
                shown = api.server.endpoints["demo"].workers
                await spin(lambda: list(shown.values()) == ["idle"])
                assert (await api.get("/demo/health"))["workers"]["ready"] == 1
                await api.run("demo")
                await spin(lambda: list(shown.values()) == ["throttled"])
                api.server.serve("demo", None)
                job = await take
                assert await api.workers() == {"running": 1}
            await worker.done(job["id"], stopPod=True)
            assert await api.workers() == {}
            await worker.ping()
            assert await api.workers() == {}  # its process may ping on

    asyncio.run(scenario())


def test_a_silent_worker_is_lost_although_it_pings_and_its_job_runs_once_more() -> None:
    async def scenario() -> None:
        async with place(lost_after=0.3) as api:
            first, second = api.worker("first"), api.worker("second")
            job = await api.run("demo")
            async with first.listening():
                await first.take()
                await asyncio.sleep(0.5)  # silent, but its job-stop is open
                assert (await api.get(f"/demo/status/{job}"))["workerId"] == "first"
            record, shown = api.record("demo", job), api.server.endpoints["demo"].workers
            while record.attempt is not None:
                await first.ping(job)
                await asyncio.sleep(0.02)
            assert "attached first" not in shown
            assert (await api.get("/demo/health"))["jobs"] | {"completed": 0} == {
                "completed": 0,
                "failed": 0,
                "inProgress": 0,
                "inQueue": 1,
                "retried": 1,
            }
            assert (await first.tell("job-done", job, {"output": "late"})).status_code == 404
            async with second.listening():
                assert (await second.take())["id"] == job
            document = await api.end("demo", job)
            assert document["status"] == "FAILED"
            assert (
                document["error"]
                == "the worker second was lost while it ran the job, after another one with the same job"
            )
            assert document["retries"] == 1

    asyncio.run(scenario())


async def take_and_break_off(api, worker, job: str) -> None:
    """Let a worker take this job, and its connections end without a word."""
    async with worker.listening():
        assert (await worker.take())["id"] == job
    known = api.server._attached["demo"]._workers
    await spin(lambda: known["w1"].was_cut)


def test_a_worker_that_comes_back_with_its_id_has_lost_what_it_held() -> None:
    async def scenario() -> None:
        async with place() as api:
            job, worker = await api.run("demo"), api.worker()
            await take_and_break_off(api, worker, job)
            async with worker.listening():
                assert (await worker.take(job_in_progress=0))["id"] == job
                await worker.done(job, output=1)
                document = await api.end("demo", job)
                assert (document["status"], document["output"], document["retries"]) == ("COMPLETED", 1, 1)

    asyncio.run(scenario())


def test_a_worker_whose_connections_broke_off_goes_on_with_what_it_holds() -> None:
    async def scenario() -> None:
        async with place() as api:
            first, worker = await api.run("demo"), api.worker()
            await take_and_break_off(api, worker, first)
            second = await api.run("demo")
            async with worker.listening():
                assert (await worker.take(job_in_progress=1))["id"] == second
                await worker.done(first, output=1)
                await worker.done(second, output=2)
            for job, output in ((first, 1), (second, 2)):
                document = await api.end("demo", job)
                assert (document["status"], document["output"]) == ("COMPLETED", output)
                assert "retries" not in document

    asyncio.run(scenario())


def test_or_its_job_fails() -> None:
    async def scenario() -> None:
        async with place(lost_after=0.1, on_lost="fail") as api:
            worker = api.worker()
            async with worker.listening():
                job = await api.run("demo")
                await worker.take()
            document = await api.end("demo", job)
            assert (document["status"], document["error"]) == (
                "FAILED",
                "the worker w1 was lost while it ran the job",
            )
            assert await api.workers() == {}

    asyncio.run(scenario())


def test_reports_on_its_job_keep_a_worker_and_pings_do_where_it_has_no_other_way() -> None:
    async def scenario() -> None:
        async with place(lost_after=0.3, on_lost="fail") as api:
            worker = api.worker()  # of an SDK without the stop channel
            job = await api.run("demo")
            await worker.take()
            for _ in range(4):
                await asyncio.sleep(0.15)
                await worker.done(job, status="IN_PROGRESS", output=1)
            for _ in range(4):
                await asyncio.sleep(0.15)
                await worker.ping(job)
            assert (await api.get(f"/demo/status/{job}"))["status"] == "IN_PROGRESS"
            for _ in range(4):
                await asyncio.sleep(0.15)
                await worker.ping()
            assert (await api.end("demo", job))["status"] == "FAILED"

    asyncio.run(scenario())


def test_a_server_keeps_no_more_workers_than_any_endpoint_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "MOST_WORKERS", 2)

    async def scenario() -> None:
        async with place() as api:
            await api.worker("a").ping()
            await api.worker("b").ping()
            answer = await api.worker("c").ask("ping")
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- keys


def test_a_take_is_refused_late_since_workers_ask_again_at_once() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with place() as api:
            started = loop.time()
            answers = await asyncio.gather(*(api.http.get("/demo/job-take/w1") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {403}
            assert loop.time() - started >= 0.49
            started = loop.time()
            assert (await api.worker("_").ask("job-take")).status_code == 400
            assert loop.time() - started >= 0.49

    asyncio.run(scenario())


def test_the_key_of_workers_opens_their_routes_of_their_endpoint_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notebook_ext.server.gate.TAKE_REFUSAL_PAUSE", 0)

    async def scenario() -> None:
        async with place() as api:
            api.server.serve("other", None)
            worker = api.worker()
            job = await api.run("demo")
            for method, path in [
                ("GET", "/demo/health"),
                ("POST", "/demo/run"),
                ("GET", f"/demo/status/{job}"),
                ("GET", f"/demo/stream/{job}"),
                ("POST", f"/demo/cancel/{job}"),
                ("GET", "/demo/requests"),
                ("POST", "/demo/openai/v1/chat/completions"),
                ("GET", "/other/ping/w1"),
                ("GET", "/other/job-stop/w1"),
                ("POST", f"/other/job-done/w1/{job}"),
                ("GET", "/nowhere/ping/w1"),
            ]:
                answer = await worker.http.request(method, path)
                assert (answer.status_code, list(answer.json())) == (403, ["error"]), path
            for path in (
                "/demo/job-take/w1",
                "/demo/job-take-batch/w1",
                "/demo/job-stop/w1",
                "/demo/ping/w1",
            ):
                assert (await api.http.get(path)).status_code == 403
                for wrong in ("", "wrong", f"Bearer {api.server.token}x"):
                    answer = await api.http.get(path, headers={"Authorization": wrong})
                    assert answer.status_code == 401
            for path in (f"/demo/job-done/w1/{job}", f"/demo/job-stream/w1/{job}"):
                assert (await api.http.post(path, json={})).status_code == 403
            assert (await api.get(f"/demo/status/{job}")) == {"id": job, "status": "IN_QUEUE"}

    asyncio.run(scenario())


def test_a_worker_reports_only_on_what_it_holds() -> None:
    async def scenario() -> None:
        async with place() as api:
            one, two = api.worker("one"), api.worker("two")
            async with one.listening():
                job, queued = await api.run("demo"), await api.run("demo")
                await one.take()
                for worker, wrong in ((two, job), (one, queued), (one, "unknown"), (two, "unknown")):
                    for what in ("job-done", "job-stream"):
                        answer = await worker.tell(what, wrong, {"output": "forged"})
                        assert answer.status_code == 404
                        assert answer.json() == {
                            "error": f"the worker {worker.id} does not hold the job {wrong}"
                        }
                assert "output" not in await api.get(f"/demo/status/{job}")
                assert (await api.http.head("/demo/job-take/one")).status_code in (403, 404, 405)
                assert (await one.http.head("/demo/job-take/one")).status_code in (404, 405)

    asyncio.run(scenario())


def test_the_key_is_in_a_file_for_its_owner_alone_and_goes_with_the_endpoint() -> None:
    async def scenario() -> None:
        async with place() as api:
            found = api.server.attachment("demo")
            token = found.variables["RUNPOD_AI_API_KEY"]
            assert stat.S_IMODE(found.env_file.stat().st_mode) == 0o600
            assert stat.S_IMODE(found.env_file.parent.stat().st_mode) == 0o700
            lines = dict(line.split("=", 1) for line in found.env_file.read_text().splitlines())
            assert lines == found.variables
            base = f"{api.server.base_url}/demo"
            assert lines["RUNPOD_WEBHOOK_GET_JOB"] == f"{base}/job-take/$ID?gpu=none"
            assert lines["RUNPOD_WEBHOOK_POST_OUTPUT"] == f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none"
            assert token != api.server.token
            assert token not in repr(found) + found.command() + found.docker()
            assert "--network host" in found.docker()
            worker = api.worker()
            await worker.ping()
            api.server.serve("demo", "echo")  # with no workers from outside
            assert api.server.attachment("demo") is None
            assert not found.env_file.exists()
            assert (await worker.ask("ping")).status_code == 401
            assert await api.workers() == {"idle": 1}
        async with serving() as api:
            api.server.serve("demo", None)
            path = api.server.attachment("demo").env_file
            await api.server.stop()
            assert not path.exists()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_lost": "forget"}, "'requeue' or 'fail'"),
        ({"lost_after": 0}, "more than 0 seconds"),
        ({"start": ""}, "is empty"),
        ({"start": "python '"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            with pytest.raises(ConfigurationError, match=words):
                api.server.serve("demo", None, **options)
            assert dict(api.server.endpoints) == {}

    asyncio.run(scenario())
