"""Endpoint, used as a program uses it: no notebook, a real server, a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from rude import KEY, answer, rude, script
from serving import serving, spin

from notebook_ext import Endpoint, ExecutionPolicy, client, keys
from notebook_ext.errors import (
    APIError,
    AuthenticationError,
    BadRequest,
    ConfigurationError,
    InputError,
    JobCancelled,
    JobError,
    JobFailed,
    JobLost,
    JobTimedOut,
    NotFoundError,
    RequestTimeout,
    WaitTimeout,
)
from notebook_ext.keys import forget_keys, remember_key
from notebook_ext.protocol import Operation
from notebook_ext.providers import RUNPOD, TENSORONE_REST, Limit, Provider
from notebook_ext.types import Job, JobStatus, StreamChunk


@contextlib.asynccontextmanager
async def calling(name: str = "demo", **handlers):
    """An embedded server and an Endpoint that calls it."""
    async with serving(**handlers) as api, Endpoint(name, api.server.base_url, api.server.token) as endpoint:
        yield endpoint, api


async def outputs(stream) -> list:
    return [event.output async for event in stream]


def endpoint_of(server, **more) -> Endpoint:
    return Endpoint("ep", server.url, KEY, **more)


# ---------------------------------------------------------------------------------- every operation


def test_run_then_status_sync_then_status() -> None:
    async def scenario() -> None:
        async with calling(demo="echo") as (endpoint, _):
            before = time.time()
            job = await endpoint.run({"a": [1, None, "ä"]})
            assert (job.endpoint, job.status, job.has_output) == ("demo", JobStatus.IN_QUEUE, False)
            done = await endpoint.status_sync(job.id)
            assert (done.id, done.status, done.output) == (job.id, JobStatus.COMPLETED, {"a": [1, None, "ä"]})
            assert 0 <= done.delay_time < 5
            assert 0 <= done.execution_time < 5
            assert done.worker_id
            assert before <= done.seen_at <= time.time()
            again = await endpoint.status(job.id)
            assert replace(again, seen_at=0) == replace(done, seen_at=0)

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [None, 0, "", [], {}, "text", 1.5, False])
def test_any_json_value_is_an_input(value) -> None:
    async def scenario() -> None:
        received = []
        async with calling(demo=lambda job: received.append(job["input"])) as (endpoint, _):
            await endpoint.run_sync(value)
        assert received == [value]

    asyncio.run(scenario())


def test_run_sync_goes_on_by_id_where_the_answer_is_unfinished() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with calling(demo=lambda job: release.wait(10)) as (endpoint, api):
            run = asyncio.create_task(endpoint.run_sync({}, wait=1))
            await spin(lambda: api.server.endpoints["demo"].records)
            await asyncio.sleep(1.1)  # the first answer has come by now, unfinished
            assert not run.done()
            release.set()
            job = await run
            assert (job.status, job.output) == (JobStatus.COMPLETED, True)
            assert job.id.startswith("sync-")
            assert len(api.server.endpoints["demo"].records) == 1

    asyncio.run(scenario())


def test_run_sync_stops_waiting_and_the_job_goes_on() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with calling(demo=lambda job: release.wait(10)) as (endpoint, _):
            with pytest.raises(WaitTimeout, match=r"still IN_PROGRESS after 1 s; it goes on") as caught:
                await endpoint.run_sync({}, timeout=1)
            assert isinstance(caught.value, TimeoutError)
            release.set()
            assert (await endpoint.status_sync(caught.value.job_id)).status is JobStatus.COMPLETED

    asyncio.run(scenario())


async def hang(asked):
    await asyncio.Event().wait()


def test_run_sync_gives_a_hanging_server_up_soon_after_its_timeout(monkeypatch) -> None:
    monkeypatch.setattr(client, "ANSWER_MARGIN", 0.1)
    monkeypatch.setattr(client, "SHORTEST_HOLD", 0.1)

    async def scenario() -> None:
        async with rude(script(runsync=hang)) as server, endpoint_of(server) as endpoint, asyncio.timeout(5):
            with pytest.raises(RequestTimeout, match="may have been queued all the same"):
                await endpoint.run_sync({}, timeout=0.2)
            assert server.count("runsync") == 1
        unfinished = {"id": "j", "status": "IN_PROGRESS"}
        answers = script(runsync=unfinished, status_sync=hang)
        async with rude(answers) as server, endpoint_of(server) as endpoint, asyncio.timeout(5):
            with pytest.raises(WaitTimeout, match=r"still IN_PROGRESS after 0.2 s; it goes on"):
                await endpoint.run_sync({}, timeout=0.2)

    asyncio.run(scenario())


def test_run_sync_asks_to_be_held_in_milliseconds_below_its_own_timeout() -> None:
    async def scenario() -> None:
        done = {"id": "j", "status": "COMPLETED"}
        async with rude(script(runsync=done)) as server, endpoint_of(server) as endpoint:
            for seconds in (5, 0.01, 9999):
                await endpoint.run_sync({}, wait=seconds)
            assert [asked.query for asked in server.asked] == [
                {"wait": "5000"},
                {"wait": "1000"},
                {"wait": "300000"},
            ]

    asyncio.run(scenario())


def test_stream_yields_every_value_and_ends_with_the_job() -> None:
    values = ["a", None, 0, "", {"k": [1]}, False]

    async def handler(job):
        for value in values:
            yield value

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            chunks = [chunk async for chunk in endpoint.stream(job.id)]
            assert [chunk.output for chunk in chunks] == values
            assert [chunk.index for chunk in chunks] == list(range(len(values)))
            assert await outputs(endpoint.stream(job.id)) == []  # drained

    asyncio.run(scenario())


def test_the_first_chunk_arrives_while_the_server_holds_the_last() -> None:
    release = threading.Event()

    def handler(job):
        yield "first"
        assert release.wait(10)
        yield "last"

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            stream = endpoint.stream(job.id)
            assert (await anext(stream)).output == "first"
            assert not release.is_set()
            release.set()
            assert await outputs(stream) == ["last"]

    asyncio.run(scenario())


def test_follow_tells_states_chunks_and_the_final_snapshot_last() -> None:
    first, second = threading.Event(), threading.Event()

    def handler(job):
        assert first.wait(10)
        yield "a"
        assert second.wait(10)
        yield "b"

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            events = []
            async for event in endpoint.follow(job.id):
                events.append(event)
                if isinstance(event, Job) and event.status is JobStatus.IN_PROGRESS:
                    first.set()
                if isinstance(event, StreamChunk):
                    second.set()
            words = [
                event.output if isinstance(event, StreamChunk) else str(event.status) for event in events
            ]
            assert words == ["IN_PROGRESS", "a", "b", "COMPLETED"]
            assert events[-1].output == ["a", "b"]

    asyncio.run(scenario())


def test_follow_tells_progress() -> None:
    release = threading.Event()

    def handler(job):
        from notebook_ext.server import progress_update

        progress_update(job, {"step": 2, "of": 5})
        assert release.wait(10)
        return "whole"

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            seen = []
            async for event in endpoint.follow(job.id):
                seen.append(event)
                if event.progress is not None:
                    assert event.progress.fraction == 0.4
                    release.set()
            assert seen[-1].output == "whole"
            assert seen[-1].progress is None
            assert release.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize("reader", ["stream", "follow"])
def test_a_cancelled_job_ends_its_readers(reader: str) -> None:
    stopped = threading.Event()

    async def handler(job):
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            seen = []

            async def read() -> None:
                async for event in getattr(endpoint, reader)(job.id):
                    seen.append(event)
                    if isinstance(event, StreamChunk):
                        assert (await endpoint.cancel(job.id)).status is JobStatus.CANCELLED

            async with asyncio.timeout(5):
                if reader == "stream":
                    with pytest.raises(JobCancelled, match="was cancelled"):
                        await read()
                else:
                    await read()
                    assert seen[-1].status is JobStatus.CANCELLED
            assert await asyncio.to_thread(stopped.wait, 5)  # the handler itself, not the word

    asyncio.run(scenario())


def test_cancel_is_safe_to_repeat_and_leaves_a_result_alone() -> None:
    async def scenario() -> None:
        async with calling(demo="echo") as (endpoint, _):
            job = await endpoint.run(1)
            await endpoint.status_sync(job.id)
            for _ in range(2):
                assert (await endpoint.cancel(job.id)).status is JobStatus.COMPLETED
            assert (await endpoint.status(job.id)).output == 1

    asyncio.run(scenario())


def test_retry_queues_a_failed_job_again_and_no_other() -> None:
    inputs = []

    def handler(job):
        inputs.append(job["input"])
        if len(inputs) == 1:
            raise RuntimeError("the first time fails")
        return "well"

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({"n": 1})
            assert (await endpoint.status_sync(job.id)).status is JobStatus.FAILED
            queued = await endpoint.retry(job.id)
            assert (queued.id, queued.status) == (job.id, JobStatus.IN_QUEUE)
            done = await endpoint.status_sync(job.id)
            assert (done.output, done.retries, inputs) == ("well", 1, [{"n": 1}] * 2)
            with pytest.raises(BadRequest, match="only FAILED"):
                await endpoint.retry(job.id)

    asyncio.run(scenario())


def test_health_purge_queue_and_requests() -> None:
    release = threading.Event()

    async def scenario() -> None:
        async with calling(demo=lambda job: release.wait(10)) as (endpoint, api):
            running = await endpoint.run({})
            await spin(lambda: api.record("demo", running.id).status is JobStatus.IN_PROGRESS)
            queued = [(await endpoint.run({})).id for _ in range(3)]
            health = await endpoint.health()
            assert (health.jobs["in_queue"], health.jobs["in_progress"]) == (3, 1)
            assert health.workers["running"] == 1
            assert health.workers["no such counter"] == 0
            assert {job.id for job in await endpoint.requests()} == {running.id, *queued}
            assert await endpoint.purge_queue() == 3
            assert await endpoint.purge_queue() == 0
            release.set()
            assert (await endpoint.status_sync(running.id)).output is True
            health = await endpoint.health()
            assert (health.jobs["in_queue"], health.jobs["completed"]) == (0, 1)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- options of a job


def test_policy_webhook_and_bucket_travel_as_the_protocol_names_them() -> None:
    async def scenario() -> None:
        queued = {"id": "j", "status": "IN_QUEUE"}
        async with rude(script(run=queued)) as server, endpoint_of(server) as endpoint:
            await endpoint.run(
                {"prompt": "hi"},
                policy=ExecutionPolicy(timedelta(minutes=1), ttl=90.5, low_priority=True),
                webhook="https://example.org/hook",
                webhook_v2="https://example.org/2",
                s3_config={"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "d"},
            )
            await endpoint.run(1)
            full, plain = (asked.body for asked in server.asked)
            assert full == {
                "input": {"prompt": "hi"},
                "policy": {"executionTimeout": 60000, "ttl": 90500, "lowPriority": True},
                "webhook": "https://example.org/hook",
                "webhookV2": "https://example.org/2",
                "s3Config": {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "d"},
            }
            assert plain == {"input": 1}
            assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}

    asyncio.run(scenario())


def test_the_execution_timeout_acts_on_the_worker() -> None:
    async def scenario() -> None:
        async with calling(demo="sleep") as (endpoint, _):
            job = await endpoint.run({"seconds": 60}, policy=ExecutionPolicy(0.15))
            with pytest.raises(JobTimedOut, match=r"0\.1[5-9] s|0\.[2-9] s") as caught:
                await outputs(endpoint.stream(job.id))
            assert isinstance(caught.value, TimeoutError)

    asyncio.run(scenario())


def test_a_server_without_status_sync_is_looked_at_and_remembered() -> None:
    async def scenario() -> None:
        looks = iter(["IN_PROGRESS", "IN_PROGRESS", "COMPLETED", "COMPLETED"])

        async def status(asked):
            return answer({"id": "j", "status": next(looks)})

        none = answer({"error": "there is no such route"}, 404)
        async with (
            rude(script(run={"id": "j", "status": "IN_QUEUE"}, status_sync=none, status=status)) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
        ):
            job = await endpoint.run({})
            assert (await endpoint.status_sync(job.id)).status is JobStatus.COMPLETED
            assert (await endpoint.status_sync(job.id)).status is JobStatus.COMPLETED
            assert server.count("status-sync") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["status", "status_sync", "cancel", "retry", "stream"])
def test_a_job_is_lost_after_its_ttl_whoever_asks(operation: str, monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)

    async def scenario() -> None:
        async with calling(demo="sleep") as (endpoint, api):
            job = await endpoint.run({"seconds": 60}, policy=ExecutionPolicy(ttl=0.05))
            record = api.record("demo", job.id)
            await spin(lambda: record.deleted)
            with pytest.raises(JobLost, match=r"unknown to the server \(404\): it expired") as caught:
                asked = getattr(endpoint, operation)(job.id)
                await (outputs(asked) if operation == "stream" else asked)
            assert caught.value.job_id == job.id
            assert caught.value.job.status is JobStatus.LOST

    asyncio.run(scenario())


def test_follow_ends_with_lost_when_the_ttl_takes_a_running_job(monkeypatch) -> None:
    monkeypatch.setattr("notebook_ext.exchange.FRESH_JOB", 0.0)

    async def scenario() -> None:
        async with calling(demo="sleep") as (endpoint, _):
            job = await endpoint.run({"seconds": 60}, policy=ExecutionPolicy(ttl=0.4))
            async with asyncio.timeout(5):
                events = [event async for event in endpoint.follow(job.id)]
            assert events[-1].status is JobStatus.LOST
            assert events[-1].id == job.id

    asyncio.run(scenario())


def test_the_webhook_gets_the_result() -> None:
    async def scenario() -> None:
        async with rude(script(hook=answer({}))) as receiver, calling(demo="echo") as (endpoint, _):
            url = f"{receiver.url}/ep/hook"
            job = await endpoint.run("hi", webhook=url)
            await endpoint.status_sync(job.id)
            await spin(lambda: receiver.asked)
            assert receiver.asked[0].body["id"] == job.id
            assert receiver.asked[0].body["output"] == "hi"

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- refused before anything is sent

_DAY = 86400


@pytest.mark.parametrize(
    ("provider", "policy", "words"),
    [
        (
            "runpod",
            {"execution_timeout": 4.9},
            "execution_timeout is 4.9 s, but runpod takes 5 s to 604800 s",
        ),
        ("runpod", {"execution_timeout": 7 * _DAY + 1}, "execution_timeout"),
        ("runpod", {"ttl": 9.9}, "ttl is 9.9 s"),
        ("runpod", {"ttl": timedelta(days=8)}, "ttl"),
        ("runpod", {"ttl": float("nan")}, "ttl"),
        ("tensorone-rest", {"ttl": 60}, "ttl is not documented for tensorone-rest"),
        (
            "tensorone-rest",
            {"execution_timeout": 60},
            r"execution_timeout \(--exec-timeout\) is not documented",
        ),
    ],
)
def test_policies_that_a_provider_does_not_take(provider, policy, words) -> None:
    async def scenario() -> None:
        async with Endpoint("ep", provider, KEY) as endpoint:
            for submit in (endpoint.run, endpoint.run_sync):
                with pytest.raises(InputError, match=words) as caught:
                    await submit({}, policy=ExecutionPolicy(**policy))
                assert "nothing was sent" in str(caught.value)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("seconds", "taken"), [(5, True), (7 * _DAY, True), (4.999, False), (7 * _DAY + 0.001, False)]
)
def test_the_ends_of_a_range_belong_to_it(seconds, taken) -> None:
    async def scenario() -> None:
        async with rude(script(run={"id": "j", "status": "IN_QUEUE"})) as server:
            async with Endpoint("ep", replace(RUNPOD, base_url=server.url), KEY) as endpoint:
                refusal = contextlib.nullcontext() if taken else pytest.raises(InputError)
                with refusal:
                    await endpoint.run({}, policy=ExecutionPolicy(seconds))
            assert server.count("run") == taken

    asyncio.run(scenario())


def test_payload_limits_are_kept_before_anything_is_sent() -> None:
    async def scenario() -> None:
        queued = {"id": "j", "status": "COMPLETED"}
        limits = {Operation.RUN: 100, Operation.RUNSYNC: 200}
        async with rude(script(run=queued, runsync=queued)) as server:
            provider = Provider("small", server.url, max_payload=limits)
            async with Endpoint("ep", provider, KEY) as endpoint:
                around = len('{"input":""}')
                await endpoint.run("x" * (100 - around))
                await endpoint.run_sync("x" * (200 - around))
                for submit, size in ((endpoint.run, 101), (endpoint.run_sync, 201)):
                    with pytest.raises(InputError, match=r"nothing was sent\. Put the data where"):
                        await submit("x" * (size - around))
                with pytest.raises(InputError):  # bytes count, not characters
                    await endpoint.run("ä" * 50)
            assert len(server.asked) == 2

    asyncio.run(scenario())


def test_runpods_limits_are_ten_and_twenty_megabytes() -> None:
    async def scenario() -> None:
        async with Endpoint("ep", "runpod", KEY) as endpoint:
            with pytest.raises(
                InputError, match=r"the request is 10\.5 MB, over the 10\.4858 MB .* for run;"
            ):
                await endpoint.run("x" * (10 * 2**20))
            with pytest.raises(InputError, match="for runsync;"):
                await endpoint.run_sync("x" * (20 * 2**20))

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object(), {"a": {(1,): 2}}])
def test_what_is_not_json_is_refused(value) -> None:
    async def scenario() -> None:
        async with calling(demo="echo") as (endpoint, api):
            with pytest.raises(InputError, match=r"not JSON: .*; nothing was sent"):
                await endpoint.run(value)
            assert not api.server.endpoints["demo"].records

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["ftp://host/x", "example.org", "javascript:alert(1)"])
def test_a_webhook_is_a_url(url: str) -> None:
    async def scenario() -> None:
        async with Endpoint("ep", "runpod", KEY) as endpoint:
            with pytest.raises(InputError, match="a webhook is an http"):
                await endpoint.run({}, webhook=url)

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "../x", "a?b", "ä/", "x\n"])
def test_ids_cannot_change_the_route(bad: str) -> None:
    with pytest.raises(InputError, match="not an endpoint id"):
        Endpoint(bad, "runpod", KEY)

    async def scenario() -> None:
        async with rude(script()) as server, endpoint_of(server) as endpoint:
            if bad:
                with pytest.raises(InputError, match="is not a job id"):
                    await endpoint.status(bad)
            assert not server.asked

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- keys


def test_the_wrong_key_and_no_key_are_refused() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            for key, said in (("wrong", "the key was refused"), ("", "it wants a key, and none was sent")):
                async with Endpoint("demo", api.server.base_url, key) as endpoint:
                    with pytest.raises(AuthenticationError, match=said) as caught:
                        await endpoint.run({})
                    assert caught.value.status_code == 401
            assert not api.server.endpoints["demo"].records

    asyncio.run(scenario())


def test_a_key_is_found_in_the_environment_or_its_absence_is_told(monkeypatch) -> None:
    async def scenario() -> None:
        async with Endpoint("ep", "runpod") as endpoint:
            with pytest.raises(ConfigurationError, match="RUNPOD_API_KEY"):
                await endpoint.health()
        async with rude(script(health={})) as server:
            monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", KEY)
            async with Endpoint("ep", server.url) as endpoint:
                await endpoint.health()
            assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"

    asyncio.run(scenario())


def test_a_function_gives_the_key_of_each_request() -> None:
    given = ["third", "second", "first"]

    async def scenario() -> None:
        async with rude(script(health={})) as server, Endpoint("ep", server.url, given.pop) as endpoint:
            for _ in range(3):
                await endpoint.health()
            sent = [asked.headers["authorization"] for asked in server.asked]
            assert sent == ["Bearer first", "Bearer second", "Bearer third"]

    asyncio.run(scenario())


def test_another_key_is_used_from_the_next_request_on(monkeypatch) -> None:
    async def scenario() -> None:
        async with rude(script(health={})) as server, Endpoint("ep", server.url, name="far") as endpoint:
            await endpoint.health()
            monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", "of-one-account")
            await endpoint.health()
            monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", "of-another")
            await endpoint.health()
            remember_key(endpoint.provider, "typed", name="far")
            try:
                await endpoint.health()
            finally:
                forget_keys()
            await endpoint.health()
            sent = [asked.headers.get("authorization", "none").split()[-1] for asked in server.asked]
            assert sent == ["none", "of-one-account", "of-another", "typed", "of-another"]

    asyncio.run(scenario())


def test_a_refusal_lets_the_keyring_be_asked_again(monkeypatch) -> None:
    stored = iter(["old", "new"])
    monkeypatch.setattr(keys, "_from_keyring", lambda account: next(stored, "never"))

    def health(asked):
        return {} if asked.headers["authorization"] == "Bearer new" else answer({}, 401)

    async def scenario() -> None:
        async with rude(script(health=health)) as server, Endpoint("ep", server.url) as endpoint:
            with pytest.raises(AuthenticationError):
                await endpoint.health()
            for _ in range(2):
                await endpoint.health()

    asyncio.run(scenario())
    forget_keys()


def test_errors_speak_of_the_name_under_which_it_is_known(monkeypatch) -> None:
    lost = {"id": "j", "status": "FAILED", "error": "bad"}

    async def scenario() -> None:
        answers = script(run=answer({}, 401), runsync=lost, status=answer({}, 404), health=answer({}, 421))
        async with rude(answers) as server, Endpoint("shout", server.url, name="remote") as endpoint:
            with pytest.raises(AuthenticationError, match=r"run on remote: .*none was sent.*login remote`"):
                await endpoint.run({})
            with pytest.raises(JobFailed, match="job j on remote failed"):
                await endpoint.run_sync({})
            with pytest.raises(JobLost, match="job k on remote is unknown"):
                await endpoint.status("k")
            with pytest.raises(APIError, match=r"health on remote: .*\(421\).*Start it with that port"):
                await endpoint.health()

    asyncio.run(scenario())


def test_half_characters_in_an_error_can_be_stored_and_printed() -> None:
    async def scenario() -> None:
        said = answer({"error": "half \ud83d"}, 400)
        async with rude(script(run=said)) as server, endpoint_of(server) as endpoint:
            with pytest.raises(BadRequest, match="half \ufffd") as caught:
                await endpoint.run({})
            str(caught.value).encode()

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["clé-secrète", "two words", "line\nbreak", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    async def scenario() -> None:
        async with rude(script()) as server, Endpoint("ep", server.url, key) as endpoint:
            with pytest.raises(ConfigurationError, match="characters that no key has") as caught:
                await endpoint.run({})
            assert key not in str(caught.value)
            assert not server.asked

    asyncio.run(scenario())


def test_no_repr_shows_the_key() -> None:
    endpoint = Endpoint("ep", "runpod", KEY)
    assert repr(endpoint) == "Endpoint('ep', provider='runpod')"


# ---------------------------------------------------------------------------------- errors of a worker


def raising(job):
    raise ValueError("bad weights")


def raising_late(job):
    yield "part"
    raise ValueError("bad weights")


def yielding_error(job):
    yield "part"
    yield {"error": {"message": "bad weights", "code": 7}}


@pytest.mark.parametrize(
    ("handler", "kind", "message"),
    [
        (raising, "ValueError", "bad weights"),
        (lambda job: {"error": "bad weights", "log": 1}, None, "bad weights"),
        (lambda job: {"error": {"message": "bad weights", "type": "Oops"}}, "Oops", "bad weights"),
        (lambda job: {"error": ["bad", "weights"]}, None, "bad; weights"),
        (raising_late, "ValueError", "bad weights"),
        (yielding_error, None, "bad weights"),
    ],
    ids=[
        "raised",
        "returned text",
        "returned object",
        "returned list",
        "generator raised",
        "generator yielded",
    ],
)
def test_whatever_shape_a_failure_has_it_becomes_one_exception(handler, kind, message) -> None:
    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            job = await endpoint.run({})
            parts = []
            with pytest.raises(JobFailed) as caught:
                async for chunk in endpoint.stream(job.id):
                    parts.append(chunk.output)
            error = caught.value.job.error
            assert (error.type, error.message) == (kind, message)
            assert message in str(caught.value)
            assert caught.value.job_id == job.id
            assert error.raw == (await endpoint.status(job.id)).error.raw
            assert parts == (["part"] if handler in (raising_late, yielding_error) else [])
            if handler in (raising, raising_late):
                assert "test_client.py" in error.traceback
                caught.value.show_traceback()
                assert "test_client.py" in caught.value.__notes__[0]
            if handler is raising:
                assert error.worker_id == "demo-1"

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- loops, closing, no notebook


def test_an_endpoint_belongs_to_the_loop_that_first_used_it() -> None:
    async def scenario() -> None:
        async with calling(demo="echo") as (endpoint, _):
            await endpoint.health()

            def elsewhere() -> None:
                with pytest.raises(ConfigurationError, match="belongs to the event loop that first used it"):
                    asyncio.run(endpoint.health())

            await asyncio.to_thread(elsewhere)
            await endpoint.health()

    asyncio.run(scenario())


def test_leaving_the_context_closes_every_connection() -> None:
    async def scenario() -> None:
        held = asyncio.Event()

        async def hold(asked):
            held.set()
            await asyncio.sleep(60)

        async with rude(script(health={}, status_sync=hold)) as server:
            async with endpoint_of(server) as endpoint:
                await asyncio.gather(*(endpoint.health() for _ in range(5)))
                poll = asyncio.create_task(endpoint.status_sync("j"))
                await held.wait()
                poll.cancel()
            assert endpoint._exchange._client is None
            assert server.count("health") == 5
            await asyncio.gather(poll, return_exceptions=True)

    asyncio.run(scenario())  # the fixture finds the sockets that are left


def test_it_needs_no_notebook() -> None:
    program = """
import asyncio, sys
from notebook_ext import Endpoint
from notebook_ext.server import EmbeddedServer

async def main():
    server = EmbeddedServer()
    await server.start()
    server.serve("demo", "echo")
    async with Endpoint("demo", server.base_url, server.token) as endpoint:
        print((await endpoint.run_sync("hi")).output)
    await server.stop()

asyncio.run(main())
print([name for name in ("IPython", "ipywidgets", "ipykernel") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "hi\n[]\n"
    assert not said.stderr


def test_a_connection_is_used_again() -> None:
    async def scenario() -> None:
        ports = set()

        def health(asked):
            ports.add(asked.send.__closure__[0].cell_contents.get_extra_info("peername"))
            return {}

        async with rude(script(health=health)) as server, endpoint_of(server) as endpoint:
            for _ in range(5):
                await endpoint.health()
        assert len(ports) == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- how often is asked


def test_the_requests_of_a_streamed_job_are_bounded() -> None:
    """One submission, one poll per chunk at most, and the final status; no look while chunks come."""

    async def handler(job):
        for number in range(20):
            yield number
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with calling(demo=handler) as (endpoint, _):
            asked = []
            call = endpoint._exchange.call

            async def counted(operation, *arguments, **more):
                asked.append(operation)
                return await call(operation, *arguments, **more)

            endpoint._exchange.call = counted
            job = await endpoint.run({})
            assert await outputs(endpoint.stream(job.id)) == list(range(20))
            assert asked[0] is Operation.RUN
            assert asked.count(Operation.STREAM) <= 22
            assert asked.count(Operation.STATUS) == 0

    asyncio.run(scenario())


def test_a_server_that_does_not_hold_is_not_hammered() -> None:
    async def scenario() -> None:
        busy = {"status": "IN_PROGRESS", "stream": []}
        look = {"id": "j", "status": "IN_PROGRESS"}
        async with (
            rude(script(stream=busy, status=look, status_sync=look)) as server,
            endpoint_of(server) as endpoint,
        ):
            for reader in (endpoint.stream("j"), endpoint.follow("j")):
                server.asked.clear()
                reading = asyncio.create_task(outputs(reader))
                await asyncio.sleep(1)
                early = server.count("stream")
                await asyncio.sleep(0.5)
                late = server.count("stream") - early
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                assert 5 <= early <= 200  # without pauses it would be thousands
                assert 1 <= late <= 20  # and ever fewer, the longer nothing comes
                assert server.count("status") <= 10  # each stream that says nothing is no reason to look
            server.asked.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.2):
                    while True:
                        await endpoint.status_sync("j")
            assert 5 <= server.count("status-sync") <= 50  # each time a tenth of the time later

    asyncio.run(scenario())


def test_limits_hold_requests_back_and_429s_are_waited_for() -> None:
    async def scenario() -> None:
        async with rude(script(health={})) as server:
            provider = Provider("slow", server.url, limits={Operation.HEALTH: Limit(3, window=0.3)})
            async with Endpoint("ep", provider, KEY) as endpoint:
                started = time.monotonic()
                await asyncio.gather(*(endpoint.health() for _ in range(7)))
                assert 0.55 < time.monotonic() - started < 2
            assert len(server.asked) == 7

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- TensorOne's documented routes


def tensorone(server) -> Endpoint:
    return Endpoint("ep", replace(TENSORONE_REST, base_url=server.url), KEY)


def tensor():
    """The routes as the documentation has them; the endpoint is not in the status path."""
    looks = iter(["running", "running"])

    async def respond(asked) -> bytes:
        match asked.path.removeprefix("/v2").split("/")[1:]:
            case ["endpoints", "ep", "runsync"]:
                return answer({"output": {"text": "hi"}, "status": "completed", "executionTime": 1.23})
            case ["endpoints", "ep", "runasync"]:
                return answer({"jobId": "job-1", "status": "queued"})
            case ["jobs", "job-1", "status"] if next(looks, None):
                return answer({"jobId": "job-1", "status": "running", "progress": 50})
            case ["jobs", "job-1", "status"]:
                return answer({"jobId": "job-1", "status": "completed", "result": [1], "executionTime": 2.5})
            case ["jobs", "job-2", "status"]:
                error = {"code": "OOM", "message": "no memory"}
                return answer({"jobId": "job-2", "status": "failed", "error": error})
        return answer({"error": "NOT_FOUND", "message": "no such route"}, 404)

    return respond


def test_tensorone_rest_speaks_its_own_dialect() -> None:
    async def scenario() -> None:
        async with rude(tensor()) as server, tensorone(server) as endpoint:
            job = await endpoint.run_sync({"prompt": "x"})
            assert (job.id, job.status, job.output) == ("", JobStatus.COMPLETED, {"text": "hi"})
            assert job.execution_time == 1.23
            assert server.asked[0].body == {"input": {"prompt": "x"}}

            job = await endpoint.run(
                1, policy=ExecutionPolicy(low_priority=True), webhook="https://example.org/x"
            )
            assert (job.id, job.status) == ("job-1", JobStatus.IN_QUEUE)
            assert server.asked[1].body == {
                "input": 1,
                "async": True,
                "callbackUrl": "https://example.org/x",
                "priority": "low",
            }
            events = [event async for event in endpoint.follow("job-1")]  # by status: there is no stream
            assert [event.status for event in events] == [JobStatus.IN_PROGRESS, JobStatus.COMPLETED]
            assert (events[-1].output, events[-1].execution_time) == ([1], 2.5)
            failed = await endpoint.status("job-2")
            assert (failed.status, failed.error.message) == (JobStatus.FAILED, "no memory")
            with pytest.raises(JobLost):
                await endpoint.status("job-3")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "ask",
    [
        lambda endpoint: outputs(endpoint.stream("j")),
        lambda endpoint: endpoint.cancel("j"),
        lambda endpoint: endpoint.retry("j"),
        lambda endpoint: endpoint.health(),
        lambda endpoint: endpoint.purge_queue(),
        lambda endpoint: endpoint.requests(),
    ],
    ids=["stream", "cancel", "retry", "health", "purge-queue", "requests"],
)
def test_what_a_provider_does_not_document_is_not_guessed(ask, request) -> None:
    async def scenario() -> None:
        async with rude(tensor()) as server, tensorone(server) as endpoint:
            with pytest.raises(ConfigurationError, match="is not documented for this provider") as caught:
                await ask(endpoint)
            assert request.node.callspec.id in str(caught.value)
            assert "run, runsync, status" in str(caught.value)
            assert not server.asked

    asyncio.run(scenario())


def test_an_unknown_endpoint_and_an_unknown_job_are_told_apart() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            async with Endpoint("other", api.server.base_url, api.server.token) as endpoint:
                for ask in (endpoint.run, endpoint.run_sync):
                    with pytest.raises(NotFoundError, match="knows no endpoint 'other'") as caught:
                        await ask({})
                    assert not isinstance(caught.value, JobError)
            async with Endpoint("demo", api.server.base_url, api.server.token) as endpoint:
                with pytest.raises(JobLost, match="expired"):
                    await endpoint.status("no-such-job")

    asyncio.run(scenario())
