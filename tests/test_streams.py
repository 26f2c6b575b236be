"""Streams that break on the way, as whoever holds a job's handle sees them: nothing is silently wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from rude import KEY, answer, rude, script
from rude import elsewhere as running

from notebook_ext import Endpoint, client, errors, exchange, following, footer, pacing, patience
from notebook_ext.following import look_pause
from notebook_ext.handle import JobHandle
from notebook_ext.limits import Limits
from notebook_ext.pacing import telling_pauses
from notebook_ext.protocol import Operation
from notebook_ext.providers import RUNPOD_ROUTES, Provider
from notebook_ext.session import Session
from notebook_ext.types import ExecutionPolicy, JobStatus
from notebook_ext.view import facts

QUEUED = {"id": "job-1", "status": "IN_QUEUE"}
CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"status": "IN_PROGRESS", "stream": [{"output": "b'


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", KEY)


@pytest.fixture(autouse=True)
def _patient(monkeypatch) -> None:
    """Following pauses after a failure; here hardly."""
    monkeypatch.setattr(following.random, "uniform", lambda least, most: 0.001)
    monkeypatch.setattr(exchange, "_jitter", lambda state: 0.0)


@pytest.fixture
def session():
    session = Session()
    yield session
    session.close()


def rows(*outputs: Any, status: str = "IN_PROGRESS") -> dict[str, Any]:
    return {"status": status, "stream": [{"output": output} for output in outputs]}


def done(status: str = "COMPLETED", **more: Any) -> dict[str, Any]:
    return {"id": "job-1", "status": status, **more}


async def cut(asked) -> None:
    await asked.send(CUT)


def followed(session: Session, server) -> Any:
    handle = session.connect("ep", "ep", provider=server.url).submit({})
    handle.wait(10)
    return handle


def shown(handle) -> list[Any]:
    return [chunk.output for chunk in handle.streamed()]


# ---------------------------------------------------------------------------------- chunks that are lost


@pytest.mark.parametrize(
    "hiccup",
    [cut, None, answer(status=502), answer(text="{")],
    ids=["cut", "reset", "502", "garbled"],
)
def test_what_the_wire_lost_is_repaired_and_told(session, elsewhere, hiccup) -> None:
    server = elsewhere(
        script(
            run=QUEUED,
            stream=[rows("a"), hiccup, rows("d"), rows(status="COMPLETED")],
            status=done(output=["a", "b", "c", "d"]),
        )
    )
    handle = followed(session, server)
    assert (handle.value, shown(handle)) == ("abcd", ["a", "b", "c", "d"])
    assert handle.notes == ["repaired: 2 chunks were lost on the wire"]
    assert facts(handle, None).notes == ("repaired: 2 chunks were lost on the wire",)
    assert list(session.journal.get(1).notes) == handle.notes
    assert handle.error is None


def test_an_answer_that_was_lost_with_nothing_in_it_is_not_told(session, elsewhere) -> None:
    stream = [rows("a"), None, rows("b"), rows(status="COMPLETED")]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=["a", "b"]))))
    assert (handle.value, handle.notes) == ("ab", [])


def test_where_nothing_can_repair_it_text_may_be_missing(session, elsewhere) -> None:
    stream = [rows("a"), cut, rows("c"), rows(status="COMPLETED")]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=[]))))
    assert (handle.value, shown(handle)) == ("ac", ["a", "c"])
    assert handle.notes == ["text may be missing: answers were lost on the way"]


def test_what_is_lost_while_the_job_waits_in_the_queue_is_nothing(session, elsewhere) -> None:
    stream = [cut, None, rows("a"), rows("b", status="COMPLETED")]
    looks = [QUEUED, QUEUED, done(output=[])]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=looks)))
    assert (handle.value, handle.notes) == ("ab", [])


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED", "TIMED_OUT"])
def test_a_job_that_ends_badly_after_a_loss_says_both(session, elsewhere, status) -> None:
    stream = [rows("a"), cut, rows(status=status)]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(status))))
    assert (shown(handle), handle.status) == (["a"], JobStatus(status))
    assert handle.notes == ["text may be missing: answers were lost on the way"]
    assert isinstance(handle.error, errors.JobError)


# ---------------------------------------------------------------------------------- chunks that are doubled, or none


def test_a_chunk_that_is_sent_twice_is_told_and_the_result_has_it_once(session, elsewhere) -> None:
    stream = [rows("a"), rows("b"), rows("b", "c"), rows(status="COMPLETED")]
    handle = followed(
        session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=["a", "b", "c"])))
    )
    assert (shown(handle), handle.value) == (["a", "b", "b", "c"], "abc")
    assert handle.notes == [
        "what is shown differs from the result: 1 chunk was sent twice; `.output()` has it as the server kept it"
    ]


def test_a_stream_that_swallowed_its_end_is_repaired(session, elsewhere) -> None:
    """Somebody else has read it, or the server has not sent it: nothing was lost that anybody noticed."""
    stream = [rows("a"), rows(status="COMPLETED")]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=["a", "b"]))))
    assert (shown(handle), handle.notes) == (["a", "b"], ["repaired: 1 chunk was lost on the wire"])


@pytest.mark.parametrize("said", [rows(), {"status": "IN_PROGRESS"}, []])
def test_empty_answers_change_nothing(session, elsewhere, said) -> None:
    stream = [said, rows("a"), said, said, rows("b"), said, rows(status="COMPLETED")]
    status = [done("IN_PROGRESS")] * (4 if said == [] else 0) + [done(output=["a", "b"])]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=status)))
    assert (shown(handle), handle.value, handle.notes) == (["a", "b"], "ab", [])


@pytest.mark.parametrize("output", ["ab", {"text": "ab"}, 7, [1, 2]])
def test_a_result_that_is_no_copy_of_the_stream_causes_no_alarm(session, elsewhere, output) -> None:
    stream = [rows("a", "b"), rows(status="COMPLETED")]
    handle = followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=output))))
    assert (shown(handle), handle.notes) == (["a", "b"], [])


# ---------------------------------------------------------------------------------- proxies, and servers that do not hold


class Proxy:
    """Holds a stream for as long as it is asked to, and cuts what takes longer than its limit."""

    def __init__(self, limit: float, polls: int) -> None:
        self.limit, self.left, self.holds = limit, polls, []

    async def stream(self, asked) -> bytes | None:
        hold = int(asked.query["wait"]) / 1000
        self.holds.append(hold)
        await asyncio.sleep(min(hold, self.limit))
        if hold > self.limit:
            return None
        self.left -= 1
        return answer(rows("end", status="COMPLETED") if self.left == 0 else rows())


def test_holds_that_a_proxy_cuts_are_learned_by_all_who_follow(monkeypatch) -> None:
    monkeypatch.setattr(pacing, "SHORTEST_CUT", 0.05)
    monkeypatch.setattr(client, "SHORTEST_HOLD", 0.05)
    monkeypatch.setattr(following, "FIRST_LOOK", 60.0)

    async def scenario() -> None:
        proxy, shared = Proxy(0.2, polls=3), Limits({})
        respond = script(stream=proxy.stream, status=[QUEUED, QUEUED, done(output=["end"])])
        async with rude(respond) as server, Endpoint("ep", server.url, KEY, limits=shared) as endpoint:
            events = [event async for event in endpoint.follow("job-1", hold=1.0)]
            assert events[-1].status is JobStatus.COMPLETED
            assert proxy.holds[:2] == [1.0, 1.0]
            assert all(0.15 <= hold < proxy.limit for hold in proxy.holds[2:])
            assert len(proxy.holds) == 5
            proxy.holds.clear()
            proxy.left = 1
            async with Endpoint("ep", server.url, KEY, limits=shared) as another:
                assert [chunk.output async for chunk in another.stream("job-2", hold=1.0)] == ["end"]
            assert all(hold < proxy.limit for hold in proxy.holds)

    asyncio.run(scenario())


def test_streams_of_a_server_that_does_not_hold_take_turns() -> None:
    """So many streams ask no more often than one."""

    async def scenario() -> None:
        async with (
            rude(script(stream=rows(), status=done("IN_PROGRESS"))) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
        ):
            asked = []
            for streams in (1, 8):
                reading = [asyncio.create_task(anext(endpoint.stream(f"job-{i}"))) for i in range(streams)]
                await asyncio.sleep(0.1)
                assert endpoint.polls.is_short
                asked.append(server.count("stream"))
                server.asked.clear()
                for task in reading:
                    task.cancel()
                await asyncio.gather(*reading, return_exceptions=True)
            assert asked[0] <= 25
            assert asked[1] <= 45  # eight first polls, and a turn every five milliseconds

    asyncio.run(scenario())


@pytest.mark.parametrize("age", [0.01, 0.5, 3.0, 60.0, 3600.0])
@pytest.mark.parametrize("trip", [0.001, 0.03, 1.0])
def test_a_job_without_a_long_poll_is_seen_to_end_within_a_tenth_of_its_age(age, trip, monkeypatch) -> None:
    monkeypatch.setattr(following.time, "monotonic", lambda: 1000.0 + age)
    pause = look_pause(1000.0, 1000.0 + age - trip)
    assert following.SHORTEST_ROUND <= pause <= following.LONGEST_ROUND
    assert pause + trip <= max(0.1 * age, following.SHORTEST_ROUND + trip) + 1e-9


def without(*operations: Operation, url: str) -> Provider:
    routes = {operation: route for operation, route in RUNPOD_ROUTES.items() if operation not in operations}
    return Provider("plain", url, routes=routes)


def test_a_provider_without_status_sync_or_stream_is_asked_politely_and_patiently() -> None:
    async def scenario() -> None:
        ends = time.monotonic() + 0.6
        hiccups = iter([None, answer(status=502), answer(text="{")])

        async def status(asked):
            if (hiccup := next(hiccups, rude)) is not rude:
                return hiccup
            return answer(done("COMPLETED" if time.monotonic() > ends else "IN_PROGRESS"))

        respond = script(run=QUEUED, runsync=QUEUED, status=status)
        async with rude(respond) as server:
            provider = without(Operation.STATUS_SYNC, Operation.STREAM, url=server.url)
            async with Endpoint("ep", provider, KEY) as endpoint:
                ends = time.monotonic() + 0.6
                assert (await endpoint.run_sync({})).status is JobStatus.COMPLETED
                assert time.monotonic() - ends < 0.3
                assert server.count("status") < 45
                server.asked.clear()
                ends = time.monotonic() + 0.6
                events = [event async for event in endpoint.follow("job-1")]
                assert [event.status for event in events] == ["IN_PROGRESS", "COMPLETED"]
                assert server.count("status") < 45

    asyncio.run(scenario())


def test_an_end_that_a_look_has_told_is_not_asked_for_again() -> None:
    async def scenario() -> None:
        looked = asyncio.Event()

        async def look(asked):
            looked.set()
            return answer(done(output=7))

        async def hold(asked):
            await looked.wait()
            return answer(rows(status="COMPLETED"))

        async with (
            rude(script(stream=hold, status=look)) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
        ):
            events = [event async for event in endpoint.follow("job-1")]
            assert [event.output for event in events] == [7]
            assert (server.count("stream"), server.count("status")) == (1, 1)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- too many requests


@pytest.mark.parametrize("operation", ["run", "stream"])
def test_a_wait_for_a_server_that_has_too_many_requests_is_told(
    session, elsewhere, operation, monkeypatch
) -> None:
    monkeypatch.setattr("notebook_ext.watcher.TOLD_PAUSE", 0.1)
    refused = answer({}, 429, Retry_After="0.3")
    said: dict[str, Any] = {"run": [QUEUED], "stream": [rows("a", status="COMPLETED")]}
    said[operation] = [refused, *said[operation]]
    server = elsewhere(script(**said, status=done(output=["a"]), health={}))
    handle = session.connect("ep", "ep", provider=server.url).submit({})
    pauses = []
    deadline = time.monotonic() + 5
    while not handle.done and time.monotonic() < deadline:
        pauses.append(handle.pause_left)
        time.sleep(0.005)
    assert 0.1 < max(pauses) <= 0.3
    assert handle.pause_left == 0.0
    assert handle.value == "a"
    assert 0.2 < handle.paused_for < 0.5
    assert handle.notes == ["rate limited: waited 0 s"]


def test_who_waits_behind_another_s_refusal_is_told_as_well() -> None:
    async def scenario() -> None:
        heard: list[float] = []
        respond = script(health=[answer({}, 429, Retry_After="0.2"), {}])
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            first = asyncio.create_task(endpoint.health())
            while not endpoint._limits.paused(Operation.HEALTH):
                await asyncio.sleep(0.001)
            with telling_pauses(heard.append):
                second = asyncio.create_task(endpoint.health())
            await asyncio.gather(first, second)
            assert len(heard) == 1
            assert 0.0 < heard[0] <= 0.2

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- outages are told while they last


@pytest.fixture
def heard(monkeypatch) -> queue.Queue[Any]:
    """What the job's handle is told of outages, as it comes."""
    told: queue.Queue[Any] = queue.Queue()
    take_in = JobHandle.troubled

    def troubled(handle, outage) -> None:
        take_in(handle, outage)
        told.put(outage)

    monkeypatch.setattr(JobHandle, "troubled", troubled)
    return told


@pytest.fixture
def port():
    """A port that refuses connections while no server listens there, and that nobody else gets meanwhile."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def test_a_server_that_is_gone_is_told_of_until_its_first_answer(session, heard, port) -> None:
    is_held, is_held_again, go = threading.Event(), threading.Event(), threading.Event()

    async def hold(asked):
        is_held.set()
        await asyncio.Event().wait()

    async def end(asked):
        is_held_again.set()
        await asyncio.to_thread(go.wait, 10)
        return rows("b", status="COMPLETED")

    with running(rude(script(run=QUEUED, stream=[rows("a"), hold], status=QUEUED), port)) as server:
        handle = session.connect("ep", "ep", provider=server.url).submit({})
        assert is_held.wait(5)
        assert handle.outage is None
        while not heard.empty():
            assert heard.get() is None
    lost, refused = heard.get(timeout=5), heard.get(timeout=5)
    assert (lost.has_connection, refused.has_connection) == (True, False)
    assert lost.since == refused.since == handle.outage.since
    with running(rude(script(stream=[rows(), end], status=done(output=["a", "b"])), port)) as server:
        assert is_held_again.wait(5)
        assert handle.outage is None
        # The first one is asked for soon: a server that holds it would leave it unknown that it is back.
        assert [asked.query["wait"] for asked in server.asked] == ["1000", "10000"]
        go.set()
        assert handle.output(5) == "ab"


def test_answers_that_are_lost_or_broken_are_told_of_and_a_refusal_is_an_answer(
    session, elsewhere, heard, monkeypatch
) -> None:
    monkeypatch.setattr(exchange, "ATTEMPTS", 1)
    broken, busy = answer(text="<html>", status=502), answer({}, 429, Retry_After="0.001")
    stream = [rows("a"), broken, None, busy, None, rows(status="COMPLETED")]
    followed(session, elsewhere(script(run=QUEUED, stream=stream, status=done(output=["a"]))))
    told = list(heard.queue)
    failures = [outage for outage in told if outage is not None]
    assert [outage.has_connection for outage in failures] == [True, True, True]
    assert len({outage.since for outage in failures}) == 1
    since_then = told[told.index(failures[0]) :]
    assert [outage is None for outage in since_then[:5]] == [False, False, True, False, True]


def test_an_outage_that_is_no_longer_waited_out_is_told_by_the_end_alone(
    session, elsewhere, heard, monkeypatch
) -> None:
    monkeypatch.setattr(patience, "LOSSES_LAST", 0.0)
    server = elsewhere(script(run=QUEUED, stream=[rows("a"), None], status=QUEUED))
    handle = session.connect("ep", "ep", provider=server.url).submit({})
    with pytest.raises(errors.AnswerLost, match="Attach to it again"):
        handle.wait(10)
    assert len([outage for outage in heard.queue if outage is not None]) == patience.MOST_LOSSES - 1
    assert handle.outage is None


# ---------------------------------------------------------------------------------- redirects, keys, ids


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_final_and_says_what_a_submission_may_have_come_to(code) -> None:
    async def scenario() -> None:
        said = answer({}, code, Location="https://example.test/")

        async def redirect(asked):
            return said

        async with rude(redirect) as server, Endpoint("ep", server.url, KEY) as endpoint:
            for ask in (endpoint.status, endpoint.status_sync, endpoint.cancel):
                server.asked.clear()
                with pytest.raises(
                    errors.APIError, match=rf"redirects \({code}\); it is not followed"
                ) as caught:
                    await ask("job-1")
                assert (len(server.asked), caught.value.status_code) == (1, code)
            server.asked.clear()
            with pytest.raises(errors.EndpointError, match="redirects") as submitted:
                await endpoint.run({})
            assert len(server.asked) == 1
            may_be_queued = "may have been queued all the same" in str(submitted.value)
            assert may_be_queued == (code in (302, 303))

    asyncio.run(scenario())


SPELLINGS = {
    "as it is": lambda key: json.dumps(key)[1:-1],
    "\\/": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "\\u002b": lambda key: json.dumps(key)[1:-1].replace("+", "\\u002b").replace("=", "\\u003D"),
    "all of it": lambda key: "".join(f"\\u{ord(character):04x}" for character in key),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", [KEY, 'rpa_AB/CD+EF=GH"IJ\\KL/MN=='])
def test_an_echo_of_the_key_is_blotted_out_however_json_spells_it(key, spelling, caplog) -> None:
    async def scenario() -> None:
        echo = SPELLINGS[spelling](key)
        kept = 'x\\n\\\\u0041 \\u00e4 \\u003cb\\u003e \\/ \\"'
        body = f'{{"id": "job-1", "status": "COMPLETED", "output": "{kept} {echo}!"}}'
        failing = f'{{"error": "not with {echo}"}}'
        respond = script(status=answer(text=body), health=answer(text=failing, status=400))
        async with rude(respond) as server, Endpoint("ep", server.url, key) as endpoint:
            assert (await endpoint.status("job-1")).output == 'x\n\\u0041 ä <b> / " [key]!'
            with pytest.raises(errors.BadRequest) as caught:
                await endpoint.health()
            assert key not in str(caught.value) + caught.value.body
            assert echo not in str(caught.value) + caught.value.body

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert key not in caplog.text


def test_a_job_that_was_seen_and_is_unknown_now_is_lost_however_young() -> None:
    gone = answer({"error": "unknown"}, 404)

    async def scenario() -> None:
        respond = script(run=QUEUED, status=[gone, QUEUED, gone])
        async with rude(respond) as server, Endpoint("ep", server.url, KEY) as endpoint:
            job = await endpoint.run({})
            assert (await endpoint.status(job.id)).status is JobStatus.IN_QUEUE  # not known everywhere yet
            assert server.count("status") == 2
            with pytest.raises(errors.JobLost):
                await endpoint.status(job.id)
            assert server.count("status") == 3

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- the server's clocks


LEFT = """
import asyncio, os, sys
from notebook_ext.session import Session

async def handler(job):
    if job["input"]["sleeps"]:
        await asyncio.sleep(60)
    return "kept"

session = Session(journal=sys.argv[1])
connection = session.serve("here", handler)
connection.submit({"sleeps": False}).wait(10)
running = connection.submit({"sleeps": True})
while running.status != "IN_PROGRESS":
    pass
os._exit(9)
"""


def test_a_job_whose_endpoint_died_with_its_kernel_is_not_blamed_on_the_network(tmp_path) -> None:
    path = str(tmp_path / "journal.db")
    subprocess.run([sys.executable, "-c", LEFT, path], timeout=60, check=False)
    with contextlib.closing(Session(journal=path)) as session:
        finished, running = session.find("@1"), session.find("@2")
        assert (session.look(finished).status, finished.value) == (JobStatus.COMPLETED, "kept")
        assert session.look(running).status is JobStatus.LOST
        assert running.notes == ["its endpoint was served by a kernel that has ended"]
        assert session.journal.get(2).job.status is JobStatus.LOST
    line = footer.job(running.job, running.number, running.notes)["text/plain"]
    assert "its endpoint was served by a kernel that has ended" in line


def ended(status: str, policy: ExecutionPolicy, age: float, **told: Any) -> str:
    from notebook_ext.types import Job

    job = Job(id="job-1", endpoint="ep", status=JobStatus(status), **told)
    return str(errors.job_error(job, "@1 on ep", policy=policy, age=age))


@pytest.mark.parametrize(
    ("policy", "age", "ran", "said"),
    [
        (ExecutionPolicy(5.0, 60.0), 8.0, 5.01, "its execution timeout of 5 s was over"),
        (ExecutionPolicy(5.0, 60.0), 8.0, 4.99, "its execution timeout of 5 s was over"),
        (ExecutionPolicy(5.0, 10.0), 10.1, 2.0, "its ttl of 10 s was over while it ran"),
        (ExecutionPolicy(ttl=10.0), 10.1, None, "its ttl of 10 s was over before a worker took it"),
        (ExecutionPolicy(), 700.0, 600.0, "longer than its execution timeout, or waited longer than its ttl"),
        (
            ExecutionPolicy(60.0, 600.0),
            8.0,
            5.0,
            "longer than its execution timeout, or waited longer than its ttl",
        ),
    ],
)
def test_a_timed_out_job_says_which_clock_it_was_where_that_is_known(policy, age, ran, said) -> None:
    assert said in ended("TIMED_OUT", policy, age, execution_time=ran)


def test_a_lost_job_says_that_its_ttl_was_over() -> None:
    assert "its ttl of 10 s was over" in ended("LOST", ExecutionPolicy(ttl=10.0), 10.2)
    assert "it expired with its result" in ended("LOST", ExecutionPolicy(ttl=10.0), 5.0)
    assert "it expired with its result" in ended("LOST", ExecutionPolicy(), 5000.0)


def test_the_handle_knows_the_clocks_that_were_sent(session) -> None:
    async def sleeps(job):
        await asyncio.sleep(60)

    connection = session.serve("ep", sleeps)
    slow = connection.submit({}, policy=ExecutionPolicy(execution_timeout=0.2, ttl=30.0))
    slow.wait(10)
    assert isinstance(slow.error, errors.JobTimedOut)
    assert "its execution timeout of 0.2 s was over" in str(slow.error)
    old = connection.submit({}, policy=ExecutionPolicy(ttl=0.3))
    old.wait(10)
    assert isinstance(old.error, errors.JobLost)
    assert "its ttl of 0.3 s was over" in str(old.error)
