"""What the fault matrix cannot show: faults that come one after another, in the middle of a stream, or too soon.

A submission is never sent twice, and the key is in no message, traceback or log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from typing import Any

import pytest
from faults import PAGE
from rude import KEY, always, answer, rude, script

from notebook_ext import Endpoint, errors, exchange, patience
from notebook_ext.types import Job, JobStatus

OPERATIONS = {
    "run": lambda endpoint: endpoint.run({"prompt": "hi"}, timeout=5),
    "runsync": lambda endpoint: endpoint.run_sync({"prompt": "hi"}),
    "retry": lambda endpoint: endpoint.retry("job-1"),
    "purge-queue": lambda endpoint: endpoint.purge_queue(),
    "status": lambda endpoint: endpoint.status("job-1"),
    "status-sync": lambda endpoint: endpoint.status_sync("job-1"),
    "cancel": lambda endpoint: endpoint.cancel("job-1"),
    "health": lambda endpoint: endpoint.health(),
    "requests": lambda endpoint: endpoint.requests(),
    "stream": lambda endpoint: endpoint.read_stream("job-1"),
}
SUBMITS = {"run", "runsync", "retry"}
ONCE = SUBMITS | {"purge-queue"}
OF_A_JOB = {"retry", "status", "status-sync", "cancel", "stream"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses before a repetition are random; here they are none."""
    monkeypatch.setattr(exchange, "_jitter", lambda state: 0.0)


@pytest.fixture(autouse=True)
def no_key_in_the_log(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


def assert_hides_key(error: BaseException) -> None:
    told = [*traceback.format_exception(error), str(error), repr(error), *map(str, vars(error).values())]
    assert not any(KEY in text for text in told)


def test_what_a_server_asks_to_wait_counts_against_the_timeout() -> None:
    async def scenario() -> None:
        said = always(answer({}, 429, Retry_After="50"))
        async with rude(said) as server, Endpoint("ep", server.url, KEY) as endpoint:
            async with asyncio.timeout(3):
                with pytest.raises(errors.RateLimitError) as caught:
                    await endpoint.status("job-1", timeout=2)
            assert caught.value.retry_after == 50
            assert len(server.asked) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "document",
    [
        [], "text", 7, None, True, {}, {"status": 7}, {"status": None}, {"status": ""}, {"error": KEY}, {"message": KEY},
        {"id": 7, "status": ["x"]}, [[1]], {"stream": 7}, {"stream": {"output": 1}}, {"removed": "many"}, [KEY],
    ],
    ids=repr,
)  # fmt: skip
def test_json_of_another_shape_is_a_value_or_a_protocol_error(document, operation: str) -> None:
    async def scenario() -> None:
        async with rude(always(answer(document))) as server, Endpoint("ep", server.url, KEY) as endpoint:
            (result,) = await asyncio.gather(OPERATIONS[operation](endpoint), return_exceptions=True)
            if isinstance(result, Exception):
                assert type(result) is errors.ProtocolError
                assert_hides_key(result)
                assert "\n" not in str(result)
            assert len(server.asked) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["run", "runsync"])
@pytest.mark.parametrize(
    "document", [{"status": "IN_QUEUE"}, {"id": "", "status": "IN_PROGRESS"}, {"id": 7, "status": "IN_QUEUE"}]
)
def test_a_submission_without_an_id_is_told(document, operation: str) -> None:
    async def scenario() -> None:
        async with rude(always(answer(document))) as server, Endpoint("ep", server.url, KEY) as endpoint:
            with pytest.raises(errors.ProtocolError, match="answered without an id"):
                await OPERATIONS[operation](endpoint)
            assert len(server.asked) == 1

    asyncio.run(scenario())


def test_fields_of_wrong_types_are_left_out() -> None:
    document = {
        "id": "job-1", "status": "COMPLETED", "delayTime": "812", "executionTime": None, "workerId": 7,
        "retries": "x", "error": None, "output": 1, "unknown": {},
    }  # fmt: skip

    async def scenario() -> None:
        async with rude(always(answer(document))) as server, Endpoint("ep", server.url, KEY) as endpoint:
            job = await endpoint.status("job-1")
            assert (job.output, job.delay_time, job.execution_time, job.worker_id) == (1, None, None, None)

    asyncio.run(scenario())


def test_a_404_is_waited_out_for_a_job_that_was_submitted_just_now() -> None:
    unknown = answer({"error": "not yet"}, 404)
    done = {"id": "job-1", "status": "COMPLETED", "output": 1}

    async def scenario() -> None:
        respond = script(run={"id": "job-1", "status": "IN_QUEUE"}, status=[unknown, unknown, done])
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            job = await endpoint.run({})
            assert (await endpoint.status(job.id)).output == 1
            assert server.count("status") == 3
        async with (
            rude(script(status=[unknown, done])) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
        ):
            with pytest.raises(errors.JobLost):  # nobody here has just submitted it
                await endpoint.status("job-1")

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - ONCE - {"stream"}))
def test_what_is_safe_to_repeat_survives_a_hiccup(operation: str) -> None:
    well = {
        "health": {"jobs": {}}, "requests": [],
    }.get(operation, {"id": "job-1", "status": "COMPLETED"})  # fmt: skip
    said = [None, answer(text=PAGE, status=502), answer(text="{"), answer({}, 429), well]

    async def scenario() -> None:
        respond = script(**{operation.replace("-", "_"): said})
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            await OPERATIONS[operation](endpoint)
            assert len(server.asked) == 5

    asyncio.run(scenario())


def test_a_submission_takes_no_connection_that_has_been_idle(monkeypatch) -> None:
    """A server may close an idle connection at the moment of the POST: it would be lost, and not repeatable."""
    monkeypatch.setattr(exchange, "IDLE_BEFORE_SUBMIT", 0.1)
    peers = []

    async def respond(asked):
        peers.append(asked.send.__closure__[0].cell_contents.get_extra_info("peername"))
        return answer({"id": "job-1", "status": "IN_QUEUE"})

    async def scenario() -> None:
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            await endpoint.run({})
            await endpoint.run({})
            await asyncio.sleep(0.2)
            await endpoint.run({})
            assert peers[0] == peers[1] != peers[2]

    asyncio.run(scenario())


def test_a_get_survives_a_server_that_closed_the_kept_connection() -> None:
    async def scenario() -> None:
        async def respond(asked):
            await asked.send(
                answer({"id": "job-1", "status": "IN_QUEUE"})
            )  # and closes, without having said so

        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            for _ in range(5):
                await endpoint.status("job-1")
            for _ in range(5):
                await endpoint.run({})
                await asyncio.sleep(0.01)
            assert server.count("run") == 5

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- streams


def rows(*values: Any, status: str = "IN_PROGRESS") -> dict[str, Any]:
    return {"status": status, "stream": [{"output": value} for value in values]}


CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"status": "IN_PROGRESS", "stream": [{"output": "b'


async def cut(asked):
    await asked.send(CUT)


async def gather(stream) -> tuple[list[Any], Exception | None]:
    """What a reader got, and how it ended."""
    got: list[Any] = []
    try:
        async for event in stream:
            got.append(str(event.status) if isinstance(event, Job) else event.output)
    except errors.EndpointError as error:
        assert_hides_key(error)
        return got, error
    return got, None


def read_all(respond, *, reader: str = "stream") -> tuple[list[Any], Exception | None, dict[str, int]]:
    async def scenario():
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            async with asyncio.timeout(10):
                got, error = await gather(getattr(endpoint, reader)("job-1"))
            return got, error, {name: server.count(name) for name in ("stream", "status")}

    return asyncio.run(scenario())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following pauses after a failure; here hardly."""
    monkeypatch.setattr(patience.random, "uniform", lambda least, most: 0.001)
    monkeypatch.setattr(patience, "LOSSES_LAST", 0.0)


def final(status: str = "COMPLETED", **more: Any) -> dict[str, Any]:
    return {"id": "job-1", "status": status, **more}


@pytest.mark.parametrize("hiccup", [cut, None, answer(text=PAGE, status=502), answer(text="{")])
def test_a_gap_is_repaired_from_the_aggregate_in_order(patient, hiccup) -> None:
    respond = script(
        stream=[rows("a"), hiccup, rows("c"), rows("d"), rows(status="COMPLETED")],
        status=final(output=["a", "b", "c", "d"]),
    )
    got, error, asked = read_all(respond)
    assert (got, error) == (["a", "b", "c", "d"], None)
    assert asked == {"stream": 5, "status": 1}


def test_a_gap_without_an_aggregate_is_told_after_all_that_came(patient) -> None:
    respond = script(
        stream=[rows("a"), cut, rows("c", "d"), rows("e", "f"), rows(status="COMPLETED")],
        status=final(output=[]),
    )
    got, error, _ = read_all(respond)
    assert got == ["a", "c", "d", "e", "f"]
    assert type(error) is errors.AnswerLost
    assert "text may be missing" in str(error)
    assert error.job_id == "job-1"


def test_what_came_after_a_gap_keeps_its_order_and_has_places_of_its_own(patient) -> None:
    async def scenario() -> None:
        respond = script(
            stream=[rows("a"), cut, rows("c", "d"), rows("e"), rows(status="COMPLETED")], status=final()
        )
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            chunks = []
            with contextlib.suppress(errors.AnswerLost):
                async for chunk in endpoint.stream("job-1"):
                    chunks.append(chunk)
            assert [(chunk.index, chunk.output) for chunk in chunks] == [
                (0, "a"),
                (1, "c"),
                (2, "d"),
                (3, "e"),
            ]

    asyncio.run(scenario())


def test_a_stream_that_was_lost_as_a_whole_is_not_an_empty_result(patient) -> None:
    got, error, _ = read_all(script(stream=[cut, rows(status="COMPLETED")], status=final(output=[])))
    assert got == []
    assert type(error) is errors.AnswerLost


def test_a_lost_answer_without_chunks_harms_nobody(patient) -> None:
    got, error, _ = read_all(script(stream=[cut, rows(status="COMPLETED")], status=final(output="whole")))
    assert (got, error) == ([], None)


def test_a_job_that_fails_after_a_gap_says_why(patient) -> None:
    respond = script(
        stream=[rows("a"), cut, rows(status="FAILED")], status=final("FAILED", error="handler: out of memory")
    )
    got, error, _ = read_all(respond, reader="follow")
    assert got == ["IN_PROGRESS", "a", "FAILED"]
    assert type(error) is errors.AnswerLost


def test_too_many_losses_in_a_row_end_it_and_name_the_job(patient) -> None:
    got, error, asked = read_all(script(stream=[rows("a"), None], status=final("IN_PROGRESS")))
    assert got == ["a"]
    assert type(error) is errors.AnswerLost
    assert "job-1" in str(error)
    assert "ttach to it again" in str(error)
    assert asked["stream"] == 1 + patience.MOST_LOSSES


def test_an_outage_of_a_proxy_is_waited_out(monkeypatch) -> None:
    monkeypatch.setattr(patience.random, "uniform", lambda least, most: 0.001)
    outage = [answer(text=PAGE, status=502), None] * (2 * patience.MOST_LOSSES)
    respond = script(
        stream=[rows("a"), *outage, rows("b", status="COMPLETED")], status=final(output=["a", "b"])
    )
    got, error, _ = read_all(respond, reader="follow")
    assert [item for item in got if item in ("a", "b")] == ["a", "b"]
    assert error is None


def test_a_stream_that_says_cancelled_is_asked_no_more() -> None:
    got, error, asked = read_all(
        script(stream=[rows("a"), rows(status="CANCELLED")], status=final("CANCELLED"))
    )
    assert got == ["a"]
    assert type(error) is errors.JobCancelled
    assert asked["status"] == 0


def test_a_good_answer_forgives_the_losses_before_it(patient) -> None:
    stream = [item for _ in range(4) for item in [*[None] * (patience.MOST_LOSSES - 1), rows("x")]]
    respond = script(stream=[*stream, rows(status="COMPLETED")], status=final(output=["x"] * 4))
    assert read_all(respond)[:2] == (["x"] * 4, None)


def test_throttling_and_an_absent_network_are_waited_out(patient) -> None:
    """Nothing was drained by them, so nothing is missing afterwards."""
    many = [answer({}, 429, Retry_After="0.001")] * (exchange.ATTEMPTS * 2 + 1)
    respond = script(stream=[rows("a"), *many, rows("b"), rows(status="COMPLETED")], status=final())
    assert read_all(respond)[:2] == (["a", "b"], None)

    async def scenario() -> None:
        async with rude(script(stream=rows("a", status="COMPLETED"))) as server:
            endpoint = Endpoint("ep", server.url, KEY)
            send, failures = endpoint._exchange._send, [errors.ConnectionFailed("down")] * 12

            async def flaky(*arguments):
                if failures:
                    raise failures.pop()
                return await send(*arguments)

            endpoint._exchange._send = flaky
            async with endpoint:
                assert await gather(endpoint.stream("job-1")) == (["a"], None)

    asyncio.run(scenario())


def test_the_key_refused_in_the_middle_ends_it() -> None:
    got, error, _ = read_all(script(stream=[rows("a"), answer({}, 401)], status=answer({}, 401)))
    assert got == ["a"]
    assert type(error) is errors.AuthenticationError


def test_a_naked_list_is_read_and_the_status_asked_for() -> None:
    respond = script(
        stream=[[{"output": "a"}, {"output": "b"}], [{"output": "c"}], []],
        status=[final("IN_PROGRESS"), final("IN_PROGRESS"), final()],
    )
    got, error, asked = read_all(respond)
    assert (got, error) == (["a", "b", "c"], None)
    assert asked == {"stream": 3, "status": 3}


def test_chunks_in_hand_survive_a_failing_look() -> None:
    refused = answer(text=PAGE, status=503)
    respond = script(
        stream=[[{"output": "a"}], [{"output": "b"}]], status=[*[refused] * exchange.ATTEMPTS, final()]
    )
    assert read_all(respond)[:2] == (["a", "b"], None)


@pytest.mark.parametrize(
    "answers",
    [
        [{"status": "IN_PROGRESS"}, {"status": "COMPLETED"}],
        [{"status": "IN_PROGRESS", "stream": None}, {"status": "COMPLETED", "stream": None}],
    ],
)
def test_no_stream_key_means_no_chunks(answers) -> None:
    assert read_all(script(stream=answers, status=final(output=1)))[:2] == ([], None)


def test_chunks_of_odd_shapes_are_kept_as_they_came() -> None:
    odd = {
        "status": "COMPLETED",
        "stream": ["text", 7, None, {"text": "x"}, {"output": None, "metrics": "?"}],
    }
    assert read_all(script(stream=odd))[:2] == (["text", 7, None, {"text": "x"}, None], None)


def test_an_unknown_word_is_neither_an_end_nor_a_success() -> None:
    respond = script(
        stream=[
            {"status": "WARMING_UP", "stream": []},
            {"status": "WARMING_UP", "stream": []},
            rows("a", status="COMPLETED"),
        ]
    )
    assert read_all(respond)[:2] == (["a"], None)


def test_an_unknown_word_reaches_who_follows() -> None:
    release = asyncio.Event()

    async def look(asked):
        asyncio.get_running_loop().call_later(0.05, release.set)
        return final("WARMING_UP")

    async def scenario() -> None:
        async def hold(asked):
            await release.wait()
            return rows("a", status="COMPLETED")

        respond = script(stream=hold, status=[look, final(output=["a"])])
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            got, error = await gather(endpoint.follow("job-1"))
            assert (got, error) == (["WARMING_UP", "a", "COMPLETED"], None)

    asyncio.run(scenario())


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT"])
def test_the_reason_is_fetched_where_the_stream_only_stops(status: str) -> None:
    kinds = {"FAILED": errors.JobFailed, "TIMED_OUT": errors.JobTimedOut}
    respond = script(
        stream=[rows("a"), rows("b", status=status)], status=final(status, error="out of memory")
    )
    got, error, asked = read_all(respond)
    assert got == ["a", "b"]
    assert type(error) is kinds[status]
    assert "out of memory" in str(error)
    assert asked == {"stream": 2, "status": 1}


def test_a_job_that_expires_while_it_is_read_is_lost() -> None:
    gone = answer({"error": "unknown job"}, 404)
    got, error, _ = read_all(script(stream=[rows("a"), gone], status=gone))
    assert got == ["a"]
    assert type(error) is errors.JobLost
    got, error, _ = read_all(script(stream=[rows("a"), gone], status=gone), reader="follow")
    assert (got, error) == (["IN_PROGRESS", "a", "LOST"], None)


def test_a_job_whose_stream_alone_is_unknown_is_followed_by_its_status() -> None:
    gone = answer({"error": "no stream of this job"}, 404)
    respond = script(stream=gone, status=[final("IN_QUEUE"), final("IN_PROGRESS"), final(output="whole")])
    got, error, asked = read_all(respond, reader="follow")
    assert error is None
    assert got[-1] == "COMPLETED"
    assert asked["stream"] <= 4


def test_a_slow_look_does_not_hold_up_the_first_chunk() -> None:
    looking = asyncio.Event()

    async def look(asked):
        looking.set()
        await asyncio.sleep(60)

    async def chunk(asked):
        await looking.wait()
        return rows("first")

    async def scenario() -> None:
        async with (
            asyncio.timeout(3),
            rude(script(stream=chunk, status=look)) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
            contextlib.aclosing(endpoint.follow("job-1")) as events,
        ):
            assert (await anext(events)).status is JobStatus.IN_PROGRESS
            assert (await anext(events)).output == "first"

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- submissions


@pytest.mark.parametrize("operation", ["run", "runsync"])
def test_cancelling_a_submission_does_not_send_it_again(operation: str) -> None:
    async def scenario() -> None:
        arrived = asyncio.Event()

        async def hold(asked):
            arrived.set()
            await asyncio.sleep(60)

        async with rude(hold) as server, Endpoint("ep", server.url, KEY) as endpoint:
            work = asyncio.create_task(OPERATIONS[operation](endpoint))
            await arrived.wait()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await asyncio.sleep(0.05)
            assert len(server.asked) == 1

    asyncio.run(scenario())
