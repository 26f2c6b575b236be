"""The dials rehearse trouble through the real queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from serving import serving, spin

from notebook_ext.protocol import read_worker_error
from notebook_ext.server import Dials

if TYPE_CHECKING:
    from inshell import Notebook


def test_a_cold_start_is_a_worker_that_initializes_while_jobs_wait() -> None:
    async def scenario() -> None:
        async with serving() as api:
            queue = api.server.serve("demo", "echo", workers=2, dials=Dials(cold_start=0.5))
            assert sum((await api.get("/demo/health"))["workers"].values()) == 0  # scaled to zero
            job = await api.run("demo", 1)
            await spin(lambda: "initializing" in queue.workers.values())
            health = await api.get("/demo/health")
            assert health["workers"]["initializing"] == 1  # one job wakes one worker
            assert health["jobs"]["inQueue"] == 1
            assert await api.get(f"/demo/status/{job}") == {"id": job, "status": "IN_QUEUE"}
            document = await api.end("demo", job)
            assert 490 <= document["delayTime"] < 3000
            assert (await api.result("demo", 1))["delayTime"] < 400  # warm now
            api.server.serve("demo", "echo", workers=2, dials=Dials(cold_start=0.5))
            assert (await api.result("demo", 1))["delayTime"] >= 490  # and cold again

    asyncio.run(scenario())


def test_a_worker_that_asks_to_be_refreshed_starts_cold() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", lambda job: {"refresh_worker": True}, dials=Dials(cold_start=0.2))
            for _ in range(2):
                assert (await api.result("demo"))["delayTime"] >= 190

    asyncio.run(scenario())


def test_throttled_workers_take_no_jobs_until_the_dial_is_turned_back() -> None:
    async def scenario() -> None:
        async with serving() as api:
            queue = api.server.serve("demo", "echo", workers=2, dials=Dials(throttle=1))
            job = await api.run("demo", 1)
            await spin(lambda: list(queue.workers.values()) == ["throttled"] * 2)
            health = await api.get("/demo/health")
            assert (health["workers"]["throttled"], health["jobs"]["inQueue"]) == (2, 1)
            api.server.serve("demo", "echo", workers=2)
            document = await api.end("demo", job)
            assert (document["output"], document["delayTime"] < 900) == (1, True)  # it was not waited out

    asyncio.run(scenario())


def test_the_fail_dial_makes_the_run_itself_raise() -> None:
    ran = []

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", ran.append, dials=Dials(fail=1))
            document = await api.result("demo")
            assert document["status"] == "FAILED"
            assert "`fail` dial" in read_worker_error(document["error"]).message
            assert (await api.get("/demo/health"))["jobs"]["failed"] == 1
            assert ran == []

    asyncio.run(scenario())


def test_latency_is_added_to_every_answer() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", "chat", dials=Dials(latency=0.15))
            loop = asyncio.get_running_loop()
            job = await api.run("demo", {"prompt": "x"})
            paths = ["/demo/health", f"/demo/status/{job}", f"/demo/stream/{job}", "/demo/status/unknown"]
            for path in paths:
                started = loop.time()
                await api.http.get(path)
                assert loop.time() - started >= 0.14, path

    asyncio.run(scenario())


def test_expire_drops_finished_jobs() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", "echo", dials=Dials(expire=0.1))
            job = await api.run("demo")
            record = api.record("demo", job)
            assert (await api.end("demo", job))["status"] == "COMPLETED"
            await spin(lambda: record.deleted)
            assert (await api.http.get(f"/demo/status/{job}")).status_code == 404

    asyncio.run(scenario())


def test_the_rate_limit_answers_429_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        async with serving(free="echo") as api:
            api.server.serve("demo", "echo", dials=Dials(rate_limit=3))
            answers = [await api.http.get("/demo/health") for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
            assert 1 <= int(answers[-1].headers["Retry-After"]) <= 10
            assert "3 requests" in answers[-1].json()["error"]
            assert (await api.http.get("/free/health")).status_code == 200
            api.server.serve("demo", "echo")
            assert (await api.http.get("/demo/health")).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "wrong",
    [{"fail": 2}, {"throttle": -1}, {"latency": -1}, {"cold_start": float("inf")}, {"expire": float("nan")}],
)
def test_dials_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Dials(**wrong)


def test_a_cell_says_what_it_rehearses(notebook: Notebook) -> None:
    said = notebook.run("%endpoint serve mine --handler echo --fail 0.5 --cold-start 2s --rate-limit 20")
    assert "It rehearses trouble: cold-start 2s, fail 0.5, rate-limit 20." in said
    assert "rehearses" not in notebook.run("%endpoint serve mine --handler echo")
