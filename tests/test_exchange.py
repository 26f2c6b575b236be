"""What is asked again, when, and which clock ends it: for each cause, how often a real server was asked."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
from rude import KEY, Asked, always, answer, read, rude, script
from serving import serving

from notebook_ext import Endpoint, asking, errors, exchange, limits
from notebook_ext.answers import LONGEST_BY_OUR_CLOCK, LONGEST_RETRY_AFTER, retry_after
from notebook_ext.protocol import Operation
from notebook_ext.providers import Limit, Provider
from notebook_ext.server import app
from notebook_ext.server.queue import Dials

QUEUED = {"id": "job-1", "status": "IN_QUEUE"}
DONE = {"id": "job-1", "status": "COMPLETED"}
LOST = [answer({}, 408), answer({}, 500), answer({}, 503), answer({}, 504), None, answer(text="{")]
TURNED_AWAY = [
    answer({}, 429),
    answer({}, 429, Retry_After="0.01"),
    answer({}, 503, Retry_After="0.01"),
    answer({}, 425),
]


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses before a repetition are random; here they are none."""
    monkeypatch.setattr(exchange, "_jitter", lambda state: 0.0)


at_once = pytest.mark.usefixtures("no_pauses")


def endpoint_of(server, **more) -> Endpoint:
    return Endpoint("ep", server.url, KEY, **more)


# ---------------------------------------------------------------------------------- what is asked again


@at_once
@pytest.mark.parametrize("turned_away", TURNED_AWAY)
@pytest.mark.parametrize("operation", ["run", "runsync", "retry"])
def test_a_submission_that_was_turned_away_is_sent_again(operation: str, turned_away: bytes) -> None:
    ways = {
        "run": lambda endpoint: endpoint.run({}),
        "runsync": lambda endpoint: endpoint.run_sync({}),
        "retry": lambda endpoint: endpoint.retry("job-1"),
    }

    async def scenario() -> None:
        answers = script(**{operation: [turned_away, turned_away, DONE]})
        async with rude(answers) as server, endpoint_of(server) as endpoint, asyncio.timeout(20):
            assert (await ways[operation](endpoint)).id == "job-1"
            assert server.count(operation) == 3

    asyncio.run(scenario())


@at_once
@pytest.mark.parametrize("lost", LOST)
def test_a_submission_whose_fate_is_unknown_is_not(lost: bytes | None) -> None:
    async def scenario() -> None:
        async with rude(script(run=[lost, QUEUED])) as server, endpoint_of(server) as endpoint:
            with pytest.raises(errors.EndpointError, match="may have been queued"):
                await endpoint.run({})
            assert server.count("run") == 1

    asyncio.run(scenario())


def test_a_submission_is_sent_where_the_connection_was_never_made_before(monkeypatch) -> None:
    asked: list[Asked] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read(reader, writer))
        writer.write(answer(QUEUED))
        writer.close()

    async def scenario() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
            servers = []

            def listen(state) -> float:
                if not servers:
                    servers.append(asyncio.create_task(asyncio.start_server(talk, sock=listener)))
                return 0.05

            monkeypatch.setattr(exchange, "_jitter", listen)
            async with Endpoint("ep", url, KEY) as endpoint, asyncio.timeout(20):
                assert (await endpoint.run({})).id == "job-1"
            (server,) = servers
            (await server).close()
        assert len(asked) == 1

    asyncio.run(scenario())


@at_once
@pytest.mark.parametrize("hiccup", [*LOST, *TURNED_AWAY])
@pytest.mark.parametrize("operation", ["status", "cancel", "purge-queue"])
def test_what_is_safe_to_repeat_is_repeated(operation: str, hiccup: bytes | None) -> None:
    ways = {
        "status": lambda endpoint: endpoint.status("job-1"),
        "cancel": lambda endpoint: endpoint.cancel("job-1"),
        "purge-queue": lambda endpoint: endpoint.purge_queue(),
    }
    well = {"removed": 2, "status": "completed"} if operation == "purge-queue" else DONE

    async def scenario() -> None:
        answers = script(**{operation.replace("-", "_"): [hiccup, hiccup, well]})
        async with rude(answers) as server, endpoint_of(server) as endpoint, asyncio.timeout(20):
            await ways[operation](endpoint)
            assert server.count(operation) == 3

    asyncio.run(scenario())


@at_once
def test_json_in_a_wrong_content_type_is_taken_and_what_is_none_is_asked_for_again() -> None:
    async def scenario() -> None:
        page = answer(text="<p>soon</p>", content_type="application/json")
        said = script(status=[page, answer(DONE, content_type="text/html")])
        async with rude(said) as server, endpoint_of(server) as endpoint:
            assert (await endpoint.status("job-1")).id == "job-1"
            assert server.count("status") == 2

    asyncio.run(scenario())


@at_once
def test_a_good_answer_resets_the_count() -> None:
    async def scenario() -> None:
        failing = [answer({}, 502)] * (exchange.ATTEMPTS - 1)
        async with rude(script(status=[*failing, DONE] * 4)) as server, endpoint_of(server) as endpoint:
            for _ in range(4):
                await endpoint.status("job-1")
            assert server.count("status") == 4 * exchange.ATTEMPTS

    asyncio.run(scenario())


def test_no_attempt_begins_after_the_deadline(monkeypatch) -> None:
    monkeypatch.setattr(exchange, "_jitter", lambda state: 0.2)

    async def scenario() -> None:
        async with rude(always(answer({}, 502))) as server, endpoint_of(server) as endpoint:
            with pytest.raises(errors.ServerError):
                await endpoint.status("job-1", timeout=0.5)
            assert 1 <= len(server.asked) <= 3

    asyncio.run(scenario())


@at_once
def test_what_our_own_limits_hold_back_is_not_taken_from_the_deadline() -> None:
    async def scenario() -> None:
        async with rude(script(run=[QUEUED, answer({}, 503, Retry_After="0.01"), QUEUED])) as server:
            provider = Provider("slow", server.url, limits={Operation.RUN: Limit(1, window=0.6)})
            async with Endpoint("ep", provider, KEY) as endpoint, asyncio.timeout(20):
                await endpoint.run({}, timeout=0.5)
                await endpoint.run({}, timeout=0.5)
            assert server.count("run") == 3

    asyncio.run(scenario())


def test_the_pauses_have_full_jitter() -> None:
    state = exchange.tenacity.RetryCallState(None, None, (), {})
    state.attempt_number = 4
    pauses = [exchange._jitter(state) for _ in range(1000)]
    assert min(pauses) < 0.1
    assert 0.7 < max(pauses) <= 0.8


def test_nothing_is_sent_again_by_an_endpoint_that_was_closed(monkeypatch) -> None:
    async def scenario() -> None:
        closing = asyncio.Event()

        def wait(state) -> float:
            closing.set()
            return 0.05

        monkeypatch.setattr(exchange, "_jitter", wait)
        async with rude(always(answer({}, 429))) as server:
            async with endpoint_of(server) as endpoint:
                work = asyncio.create_task(endpoint.run({}))
                await closing.wait()
            for late in (work, endpoint.health(), endpoint.models()):
                with pytest.raises(errors.ConnectionFailed, match="was closed; nothing was sent"):
                    await late
            assert len(server.asked) == 1
            assert endpoint._exchange._client is None

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- how long to wait


def said(**headers: str) -> httpx.Response:
    return httpx.Response(429, headers={name.replace("_", "-"): text for name, text in headers.items()})


def at(hour: int, second: int = 0) -> str:
    return format_datetime(datetime(2039, 5, 1, hour, 0, second, tzinfo=UTC), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "2.5"}, 2.5),
        ({"retry_after": "0"}, None),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "9" * 400}, LONGEST_RETRY_AFTER),
        ({"retry_after": at(12, 7), "date": at(12)}, 7.0),  # whatever the time is here
        ({"retry_after": "Sun May  1 12:00:07 2039", "date": at(12)}, 7.0),
        ({"retry_after": at(11), "date": at(12)}, None),
        ({"retry_after": at(15), "date": at(12)}, LONGEST_RETRY_AFTER),
        ({"retry_after": at(12)}, LONGEST_BY_OUR_CLOCK),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry_after": "Wed, 99 Oct 99999 07:28:00 GMT"}, None),
    ],
)
def test_retry_after_in_both_forms_and_with_clocks_that_are_off(headers, seconds) -> None:
    assert retry_after(said(**headers)) == seconds


def test_a_pause_that_is_longer_than_the_deadline_is_told_at_once_to_everybody() -> None:
    async def scenario() -> None:
        limited = script(status=answer({}, 429, Retry_After="50"), cancel=DONE)
        async with rude(limited) as server, endpoint_of(server) as endpoint, asyncio.timeout(20):
            for words in ("try again in 50 s", r"wants none for another (50|49|48) s; nothing was sent"):
                with pytest.raises(errors.RateLimitError, match=words) as caught:
                    await endpoint.status("job-1", timeout=2)
                assert 30 < caught.value.retry_after <= 50
                assert caught.value.job_id == "job-1"
            assert server.count("status") == 1
            await endpoint.cancel("job-1")

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- which clock


async def hang(asked) -> None:
    await asyncio.sleep(60)


@at_once
def test_the_connect_timeout_is_told_and_that_nothing_was_sent(monkeypatch) -> None:
    monkeypatch.setattr(asking, "CONNECT_TIMEOUT", 0.1)

    async def scenario() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            taken = [socket.socket() for _ in range(4)]
            for one in taken:  # nobody accepts them, and there is room for no more
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/v2"
            async with Endpoint("ep", url, KEY) as endpoint:
                with pytest.raises(
                    errors.ConnectionFailed, match=r"\(the connect timeout is 0.1 s\); nothing was sent"
                ):
                    await endpoint.run({})
            for one in taken:
                one.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (lambda ep: ep.run({}, timeout=0.2), r"the submit timeout is 0.2 s\)\. The job may have been queued"),
        (lambda ep: ep.status("j", timeout=0.2), r"the request timeout is 0.2 s\)\. The job goes on; it is safe"),
        (lambda ep: ep.status_sync("j"), r"may hold it for 1 s, and the hold timeout is 1.2 s\)\. The job goes on"),
        (lambda ep: ep.start_sync({}, wait=1), r"may hold it for 1 s, .* The job may have been queued"),
    ],
)  # fmt: skip
def test_a_timeout_says_which_clock_it_was_and_what_became_of_the_job(way, words, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "HOLD_MARGIN", 0.2)
    monkeypatch.setattr("notebook_ext.client.HOLD_MARGIN", 0.2)
    monkeypatch.setattr("notebook_ext.client.SYNC_HOLD", 1.0)
    monkeypatch.setattr("notebook_ext.client.LONGEST_HOLD", 1.0)

    async def scenario() -> None:
        async with rude(hang) as server, endpoint_of(server) as endpoint:
            with pytest.raises(errors.RequestTimeout, match=words):
                await way(endpoint)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- beside many others


def test_a_cancel_waits_for_no_poll() -> None:
    async def scenario() -> None:
        async with rude(script(status_sync=hang, cancel=DONE)) as server, endpoint_of(server) as endpoint:
            polls = [asyncio.create_task(endpoint.status_sync(f"j-{n}")) for n in range(400)]
            async with asyncio.timeout(20):
                while server.count("status-sync") < 200:
                    await asyncio.sleep(0.01)
                await endpoint.cancel("j-399")
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)

    asyncio.run(scenario())


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What the servers' refusals asked to wait."""
    found: list[float | None] = []
    refuse = limits.Slot.refuse

    def noting(slot: limits.Slot, seconds: float | None = None) -> None:
        found.append(seconds)
        refuse(slot, seconds)

    monkeypatch.setattr(limits.Slot, "refuse", noting)
    return found


@pytest.mark.parametrize("is_known", [True, False])
def test_streams_and_submissions_share_a_rate(refusals, is_known: bool, monkeypatch) -> None:
    """A limit that is known is never run into; one that is not is kept to after a few refusals."""
    monkeypatch.setattr(app, "RATE_WINDOW", 1.0)
    monkeypatch.setattr(limits, "_UNDOCUMENTED", Limit(0, window=1.0))

    async def handler(job):
        for number in range(job["input"]["chunks"]):
            yield number
            await asyncio.sleep(0.02)

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, dials=Dials(rate_limit=60), workers=20)
            budget = {operation: Limit(60, window=1.0, budget="all") for operation in Operation}
            provider = Provider("dial", api.server.base_url, limits=budget if is_known else {})
            async with Endpoint("demo", provider, api.server.token) as endpoint, asyncio.timeout(50):

                async def stream() -> list[int]:
                    job = await endpoint.run({"chunks": 10})
                    return [chunk.output async for chunk in endpoint.stream(job.id)]

                texts, jobs = await asyncio.gather(
                    asyncio.gather(*(stream() for _ in range(8))),
                    asyncio.gather(*(endpoint.run({"chunks": 0}) for _ in range(150))),
                )
            assert texts == [list(range(10))] * 8
            assert len({job.id for job in jobs}) == 150
            assert len(api.server.endpoints["demo"].records) == 158
            if is_known:
                assert not refusals
            else:
                assert refusals

    asyncio.run(scenario())
