"""The OpenAI route, as the released `openai` package and plain HTTP see it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from peers import runpod_python
from serving import Api, serving, spin

from notebook_ext.server import Dials, Upstream
from notebook_ext.server.job import RESULT_LIMIT
from notebook_ext.server.openai_route import _Events, _JobEnded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

HI: Any = [{"role": "user", "content": "hi"}]
FAST = {"tokens_per_second": 1e6}
CHAT = "/demo/openai/v1/chat/completions"
EVENT = {"choices": [{"index": 0, "delta": {"content": "ä"}}]}
SSE = f"data: {json.dumps(EVENT, ensure_ascii=False)}\n\n"
DOCUMENT = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "whole"}}]}


@asynccontextmanager
async def client(api: Api, endpoint: str = "demo", **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"api_key": api.server.token, "max_retries": 2, **options}
    async with openai.AsyncOpenAI(
        base_url=f"{api.server.base_url}/{endpoint}/openai/v1",
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        **options,
    ) as found:
        yield found


def jobs(api: Api, endpoint: str = "demo") -> list[Any]:
    return list(api.server.endpoints[endpoint].records.values())


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def streamed(api: Api, body: dict[str, Any] | None = None) -> tuple[httpx.Response, list[str]]:
    """An answer to a call that asks for a stream, and its events."""
    answer = await api.http.post(CHAT, json={"messages": HI, "stream": True, **(body or {})})
    return answer, answer.text.split("\n\n")[:-1]


class Held:
    """A handler that says one piece, then waits for the test, then says the others."""

    def __init__(self, first: Any, *others: Any) -> None:
        self.go_on = asyncio.Event()
        self.inputs: list[Any] = []
        self._first, self._others = first, others
        self._loop = asyncio.get_running_loop()

    async def __call__(self, job: dict[str, Any]) -> AsyncIterator[Any]:
        self.inputs.append(job["input"])
        yield self._first
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.go_on.wait(), self._loop))
        for other in self._others:
            if isinstance(other, Exception):
                raise other
            yield other


# ---------------------------------------------------------------------------------- the demo, by its clients


def test_chat_answers_the_released_client_streaming_and_not() -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api, client(api) as ai:
            asked: Any = {"model": "m", "messages": HI, "max_tokens": 12, "extra_body": FAST}
            whole = await ai.chat.completions.create(**asked)
            said = whole.choices[0].message
            assert (whole.object, whole.model, said.role) == ("chat.completion", "m", "assistant")
            assert said.content.startswith("*A demo: ")
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage.completion_tokens == 12
            assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
            stream = await ai.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert {(chunk.object, chunk.id) for chunk in chunks} == {("chat.completion.chunk", chunks[0].id)}
            assert chunks[0].choices[0].delta.role == "assistant"
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == said.content
            assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
            assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)

    asyncio.run(scenario())


def test_chat_has_completions_and_one_model() -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api, client(api) as ai:
            (model,) = (await ai.models.list()).data
            assert (await ai.models.retrieve(model.id)) == model
            asked: Any = {"model": model.id, "prompt": "hi", "extra_body": FAST}
            whole = await ai.completions.create(**asked)
            stream = await ai.completions.create(**asked, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
            assert whole.choices[0].finish_reason == "stop"
            inputs = [record.request.input for record in jobs(api)]
            assert inputs[0] == {"openai_route": "/v1/models"}
            assert inputs[1] == {"openai_route": f"/v1/models/{model.id}"}
            assert inputs[2] == {
                "openai_route": "/v1/completions",
                "openai_input": {"model": model.id, "prompt": "hi", **FAST},
            }
            with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
                await ai.embeddings.create(model="m", input="x")
            with pytest.raises(openai.NotFoundError, match="/v1/models/other"):
                await ai.models.retrieve("other")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": []}, "'messages' is missing"),
        ({"messages": HI, "temperature": "hot"}, "'temperature' must be a number"),
        ({"messages": HI, "max_tokens": -1}, "'max_tokens' must be a number"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_chat_says_what_is_wrong_with_a_call(wrong: dict[str, Any], words: str, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api, client(api) as ai:
            with pytest.raises(openai.BadRequestError, match=words) as caught:
                await ai.chat.completions.create(model="m", stream=stream, **wrong)
            assert caught.value.type == "invalid_request_error"
            assert len(jobs(api)) == 1  # not repeated by the client

    asyncio.run(scenario())


def test_the_synchronous_client(provider) -> None:
    provider.serve("chat")
    with openai.OpenAI(
        base_url=f"{provider.url}/abc123/openai/v1",
        api_key=provider.server.token,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as ai:
        asked: Any = {"model": "m", "messages": HI, "extra_body": FAST}
        whole = ai.chat.completions.create(**asked).choices[0].message.content
        chunks = list(ai.chat.completions.create(**asked, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        with pytest.raises(openai.AuthenticationError):
            ai.with_options(api_key="wrong").models.list()


def test_the_first_words_are_there_while_the_handler_holds_the_rest() -> None:
    async def scenario() -> None:
        handler = Held(SSE, SSE.replace("ä", "b"), "data: [DONE]\n\n")
        async with serving(demo=handler) as api, client(api) as ai:
            async with await ai.chat.completions.create(model="m", messages=HI, stream=True) as stream:
                first = await anext(stream)
                assert first.choices[0].delta.content == "ä"
                assert (await api.get("/demo/health"))["jobs"]["inProgress"] == 1
                handler.go_on.set()
                assert await text_of(stream) == "b"
            (record,) = jobs(api)
            assert record.status == "COMPLETED"
            assert handler.inputs == [
                {
                    "openai_route": "/v1/chat/completions",
                    "openai_input": {"model": "m", "messages": HI, "stream": True},
                }
            ]

    asyncio.run(scenario())


def test_calls_run_at_once_and_keep_apart() -> None:
    async def scenario() -> None:
        async with serving() as api, client(api) as ai:
            api.server.serve("demo", "chat", workers=4)

            async def ask(seed: int) -> tuple[str, str]:
                asked: Any = {"model": "m", "messages": HI, "seed": seed, "extra_body": FAST}
                stream = await ai.chat.completions.create(**asked, stream=True)
                return await text_of(stream), (await ai.chat.completions.create(**asked)).choices[
                    0
                ].message.content

            pairs = await asyncio.gather(*map(ask, range(12)))
            assert all(streamed == whole for streamed, whole in pairs)
            assert len({streamed for streamed, _ in pairs}) == 12

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- the queue behind it


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_goes_away_cancels_the_job(stream: bool) -> None:
    async def scenario() -> None:
        handler = Held(SSE)
        async with serving(demo=handler) as api, client(api) as ai:
            call = asyncio.create_task(ai.chat.completions.create(model="m", messages=HI, stream=stream))
            await spin(lambda: handler.inputs)
            if stream:
                opened = await call
                await anext(opened)
                await opened.close()
            else:
                call.cancel()
            (record,) = jobs(api)
            await spin(lambda: record.status == "CANCELLED")
            await spin(lambda: api.server.endpoints["demo"].workers == {"demo-1": "idle"})

    asyncio.run(scenario())


def test_a_caller_who_leaves_the_queue_is_not_waited_for() -> None:
    async def scenario() -> None:
        handler = Held(SSE)
        async with serving(demo=handler) as api, client(api) as ai:
            running = asyncio.create_task(ai.chat.completions.create(model="m", messages=HI, stream=True))
            await (await running).__anext__()
            queued = asyncio.create_task(ai.chat.completions.create(model="m", messages=HI, stream=True))
            await spin(lambda: len(jobs(api)) == 2)
            assert (await api.get("/demo/health"))["jobs"]["inQueue"] == 1
            queued.cancel()
            await spin(lambda: jobs(api)[1].status == "CANCELLED")
            assert len(handler.inputs) == 1
            await running.result().close()

    asyncio.run(scenario())


def test_a_job_that_others_cancel_ends_its_call() -> None:
    async def scenario() -> None:
        handler = Held(SSE)
        async with serving(demo=handler) as api, client(api) as ai:
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            await anext(stream)
            queued = asyncio.create_task(ai.chat.completions.create(model="m", messages=HI))
            await spin(lambda: len(jobs(api)) == 2)
            for record in jobs(api):
                await api.post(f"/demo/cancel/{record.id}")
            with pytest.raises(openai.APIError, match="cancelled"):
                await anext(stream)
            with pytest.raises(openai.ConflictError, match="cancelled") as caught:
                await queued
            assert caught.value.request_id == jobs(api)[1].id
            assert len(jobs(api)) == 2  # nor repeated by the client

    asyncio.run(scenario())


def test_the_clocks_of_the_job_bound_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notebook_ext.server.queue.EXECUTION_TIMEOUT", 0.05)

    async def scenario() -> None:
        async with serving(demo=Held(SSE)) as api:
            answer = await api.http.post(CHAT, json={"messages": HI})
            assert (answer.status_code, answer.json()["error"]["type"]) == (504, "server_error")
            assert "executionTimeout" in answer.json()["error"]["message"]
            monkeypatch.setattr("notebook_ext.server.queue.TTL", 0.05)
            monkeypatch.setattr("notebook_ext.server.queue.EXECUTION_TIMEOUT", 60)
            answer = await api.http.post(CHAT, json={"messages": HI})
            assert (answer.status_code, "ttl" in answer.text) == (504, True)

    asyncio.run(scenario())


def test_an_endpoint_that_is_removed_ends_its_calls() -> None:
    async def scenario() -> None:
        async with serving(demo=Held(SSE)) as api, client(api) as ai:
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            await anext(stream)
            api.server.remove("demo")
            with pytest.raises(openai.APIError, match="removed"):
                await anext(stream)

    asyncio.run(scenario())


def test_a_second_worker_adds_nothing_to_what_the_first_has_said() -> None:
    async def scenario() -> None:
        handler = Held(SSE)
        async with serving(demo=handler) as api, client(api) as ai:
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            await anext(stream)
            (record,) = jobs(api)
            queue = api.server.endpoints["demo"]
            record.attempt.stop.set()
            record.forget_output()  # what a queue does with the job of a worker that is lost
            queue._enqueue(record)
            with pytest.raises(openai.APIError, match="started again"):
                await anext(stream)
            assert record.status == "CANCELLED"

    asyncio.run(scenario())


def test_dials_count_for_these_calls_too() -> None:
    async def scenario() -> None:
        async with serving() as api, client(api, max_retries=0) as ai:
            api.server.serve("demo", "chat", dials=Dials(fail=1.0))
            with pytest.raises(openai.InternalServerError, match="rehearsed"):
                await ai.models.list()
            api.server.serve("demo", "chat", dials=Dials(rate_limit=0, latency=0.01))
            with pytest.raises(openai.RateLimitError) as caught:
                await ai.models.list()
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert caught.value.type == "rate_limit_error"

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- what handlers give


@pytest.mark.parametrize(
    "pieces",
    [
        [SSE, SSE],
        [SSE + SSE, "data: [DONE]\n\n"],
        list(SSE + SSE + "data: [DONE]\n\n"),
        [EVENT, EVENT],
        [[EVENT], [EVENT]],
        [[SSE], [SSE + "data: [DONE]"]],
        [SSE.replace("\n\n", "\r\n\r\n"), SSE.rstrip()],
        list(SSE.replace("\n\n", "\r\n\r\n") + "\r\n" + SSE),
        [": a comment\n", "\n", SSE, "\n", SSE, "\n"],
        ["event: message\n" + SSE, SSE],
    ],
)
def test_events_go_on_as_they_are_however_they_come(pieces: list[Any]) -> None:
    async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
        for piece in pieces:
            yield piece

    async def scenario() -> None:
        async with serving(demo=handler) as api, client(api) as ai:
            answer, events = await streamed(api)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-request-id"] == jobs(api)[0].id
            data = [event.removeprefix("event: message\n") for event in events if event[0] != ":"]
            assert [json.loads(event.removeprefix("data:")) for event in data[:-1]] == [EVENT, EVENT]
            assert data[-1] == "data: [DONE]"
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            assert await text_of(stream) == "ää"

    asyncio.run(scenario())


def test_a_large_event_comes_whole_from_many_pieces_and_one_without_end_is_not_kept() -> None:
    events = _Events("chat/completions")
    piece = "a" * 1024
    events.feed(['data: {"choices": "'], last=False)
    for _ in range(RESULT_LIMIT // len(piece) - 1):
        assert events.feed([piece], last=False) == b""
    (line,) = events.feed(['"}\n\n'], last=False).splitlines()[:-1]
    assert len(json.loads(line.removeprefix(b"data:"))["choices"]) == RESULT_LIMIT - len(piece)
    events.feed(["data: "], last=False)
    with pytest.raises(_JobEnded) as refused:
        events.feed([piece] * (RESULT_LIMIT // len(piece)), last=False)
    assert "more than 20 MB" in refused.value.document["error"]["message"]


def returns(value: Any) -> Any:
    def handler(job: dict[str, Any]) -> Any:
        return value

    return handler


def yields(*values: Any) -> Any:
    def handler(job: dict[str, Any]) -> Any:
        yield from values

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        returns(DOCUMENT),
        returns([DOCUMENT]),
        returns(json.dumps(DOCUMENT)),
        yields(DOCUMENT),
        yields([DOCUMENT]),
        yields(json.dumps(DOCUMENT)[:9], json.dumps(DOCUMENT)[9:]),
    ],
)
@pytest.mark.parametrize("aggregate", [True, False])
def test_one_document_is_the_answer(handler: Any, aggregate: bool) -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, return_aggregate_stream=aggregate)
            answer = await api.http.post(CHAT, json={"messages": HI})
            assert (answer.status_code, answer.json()) == (200, DOCUMENT)
            assert answer.headers["x-request-id"] == jobs(api)[0].id

    asyncio.run(scenario())


def test_a_plain_handlers_document_is_the_one_event_of_a_stream() -> None:
    async def scenario() -> None:
        async with serving(demo=returns(EVENT)) as api:
            _, events = await streamed(api)
            assert events == [f"data: {json.dumps(EVENT, separators=(',', ':'))}", "data: [DONE]"]

    asyncio.run(scenario())


def asks(job: dict[str, Any]) -> Any:
    return job["input"]["prompt"].upper()


def asks_and_yields(job: dict[str, Any]) -> Any:
    yield asks(job)


async def asks_and_waits(job: dict[str, Any]) -> Any:
    return asks(job)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("echo", "an object without 'choices'"),
        (yields("Hel", "lo"), "text"),
        (yields(1, 2), ""),
        (yields("data of mine\n\n"), "text"),
        (returns({"text": "hello"}), "without 'choices'"),
        (returns("hello"), "text"),
        (returns('{"choices": NaN}'), "text"),
        (returns('{"choices": 1e999}'), "text"),
        (returns(None), "nothing"),
        (yields(), "nothing"),
        (returns([EVENT, {}]), ""),
        (asks, "it failed with KeyError: 'prompt'"),
        (asks_and_yields, "it failed with KeyError: 'prompt'"),
        (asks_and_waits, "it failed with KeyError: 'prompt'"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_handler_that_was_not_made_for_it_is_said_so(handler: Any, words: str, stream: bool) -> None:
    async def scenario() -> None:
        async with serving(demo=handler) as api, client(api) as ai:
            with pytest.raises(openai.BadRequestError, match="not made for OpenAI calls") as caught:
                await text_of(await ai.chat.completions.create(model="m", messages=HI, stream=stream))
            assert words in caught.value.message
            assert "'openai_route'" in caught.value.message

    asyncio.run(scenario())


def test_a_handler_that_is_seen_not_to_be_made_for_it_is_stopped() -> None:
    async def scenario() -> None:
        async with serving(demo=Held("Hello ")) as api:
            answer, _ = await streamed(api)
            assert answer.status_code == 400
            assert jobs(api)[0].status == "CANCELLED"

    asyncio.run(scenario())


def raises(message: str) -> Any:
    def handler(job: dict[str, Any]) -> Any:
        raise KeyError(message)

    return handler


OWN = {"message": 'it\'s "full"', "type": "worker_error", "code": None}


@pytest.mark.parametrize(
    ("handler", "status", "error"),
    [
        (raises("messages"), 500, {"message": "'messages'", "type": "KeyError", "code": 500}),
        (raises("of two words"), 500, {"message": "'of two words'", "type": "KeyError", "code": 500}),
        (returns({"error": "no"}), 500, {"message": "no", "type": "server_error", "code": 500}),
        (returns({"error": OWN}), 500, {"message": OWN["message"], "type": "worker_error", "code": 500}),
        (yields({"error": {**OWN, "code": 429}}), 429, {**OWN, "code": 429}),
        (yields({"error": {**OWN, "code": "model_not_found"}}), 500, {**OWN, "code": "model_not_found"}),
        (yields({"error": {"message": "m", "code": 200}}), 500, {"message": "m", "type": "server_error", "code": 500}),
        (yields({"error": "{'" + "x" * 70_000}), 500, {"type": "server_error", "code": 500}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_a_job_that_fails_is_an_error_in_its_own_words(handler, status, error, stream) -> None:
    async def scenario() -> None:
        async with serving(demo=handler) as api, client(api) as ai:
            with pytest.raises(openai.APIStatusError) as caught:
                await ai.chat.completions.create(model="m", messages=HI, stream=stream)
            assert caught.value.status_code == status
            assert error.items() <= {**caught.value.body, "param": None}.items()
            assert caught.value.request_id == jobs(api)[0].id
            assert len(jobs(api)) == 1  # the client was told not to repeat it

    asyncio.run(scenario())


@pytest.mark.parametrize("document", [{"error": {"message": "m", "code": 404}}, {"object": "error", "message": "m", "code": 404}])  # fmt: skip
def test_an_error_that_a_handler_gives_as_its_document_has_its_status(document: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(demo=yields([document])) as api:
            answer = await api.http.post(CHAT, json={"messages": HI})
            assert (answer.status_code, answer.json()) == (404, document)

    asyncio.run(scenario())


def test_a_job_that_fails_on_the_way_never_looks_complete() -> None:
    async def scenario() -> None:
        handler = Held(SSE + "data: [DONE]\n\n", RuntimeError("out of memory"))
        handler.go_on.set()
        async with serving(demo=handler) as api, client(api) as ai:
            _, events = await streamed(api)
            assert "[DONE]" not in "".join(events)
            error = json.loads(events[-1].removeprefix("data: "))["error"]
            assert (error["message"], error["code"]) == ("out of memory", 500)
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            with pytest.raises(openai.APIError, match="out of memory"):
                await text_of(stream)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- workers of other processes


@pytest.mark.parametrize("stream", [True, False])
def test_an_attached_worker_answers(stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path))

    async def scenario() -> None:
        async with serving() as api, client(api) as ai:
            api.server.serve("demo", None, external=True)
            call = asyncio.create_task(ai.chat.completions.create(model="m", messages=HI, stream=stream))
            key = {"Authorization": api.server._worker_tokens["demo"]}
            job = (await api.http.get("/demo/job-take/w?job_in_progress=0", headers=key)).json()
            assert job["input"]["openai_route"] == "/v1/chat/completions"
            pieces = [SSE[:9], SSE[9:], "data: [DONE]\n\n"] if stream else [DOCUMENT]
            for piece in pieces:
                url = f"/demo/job-stream/w/{job['id']}"
                await api.http.post(url, headers=key, json={"output": piece})
            if stream:  # the first event is there before the job ends
                opened = await call
                assert (await anext(opened)).choices[0].delta.content == "ä"
            await api.http.post(f"/demo/job-done/w/{job['id']}", headers=key, json={"output": pieces})
            said = await text_of(opened) if stream else (await call).choices[0].message.content
            assert said == ("" if stream else "whole")

    asyncio.run(scenario())


def test_a_worker_of_the_released_package_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path))
    handler = tmp_path / "handler.py"
    handler.write_text(WORKER)

    async def scenario() -> None:
        async with serving() as api, client(api, max_retries=0) as ai:
            api.server.serve("demo", None, start=[str(runpod_python()), str(handler)])
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            assert await text_of(stream) == "aä"
            whole = await ai.chat.completions.create(model="m", messages=HI)
            assert whole.choices[0].message.content == "aä"
            with pytest.raises(openai.NotFoundError, match="no model 'x'"):
                await ai.chat.completions.create(model="x", messages=HI, stream=True)

    asyncio.run(scenario())


WORKER = """
import json, runpod

def handler(job):
    asked = job["input"]["openai_input"]
    if asked["model"] == "x":
        yield {"error": {"message": "there is no model 'x'", "type": "NotFoundError", "code": 404}}
    elif asked.get("stream"):
        chunk = lambda text: {"choices": [{"index": 0, "delta": {"content": text}}]}
        events = "".join(f"data: {json.dumps(chunk(text))}\\n\\n" for text in "aä") + "data: [DONE]\\n\\n"
        yield from (events[:50], events[50:])
    else:
        yield {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "aä"}}]}

runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
"""


# ---------------------------------------------------------------------------------- calls that are refused


def test_refusals_have_openais_shape() -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api:
            base = "/demo/openai/v1"
            cases = [
                (401, await api.http.get(f"{base}/models", headers={"Authorization": "Bearer x"})),
                (403, await api.http.get(f"{base}/models", headers={"Origin": "https://evil.example"})),
                (404, await api.http.get("/nope/openai/v1/models")),
                (404, await api.http.get(f"{base}/")),
                (404, await api.http.get(f"{base}/../../../demo/health".replace("..", "%2e%2e"))),
                (404, await api.http.get(f"{base}/models%2F..%2F..%2Fadmin")),
                (404, await api.http.get(f"{base}/models%3Fx=1")),
                (404, await api.http.get("/demo/openai/v2/models")),
                (405, await api.http.delete(f"{base}/models")),
                (400, await api.http.post(CHAT, content=b"{")),
                (400, await api.http.post(CHAT, json=[1])),
                (400, await api.http.post(CHAT, json={"messages": HI, "stream": "yes"})),
                (413, await api.http.post(CHAT, content=b" " * (20 * 1024 * 1024 + 1))),
                (421, await api.http.get(f"{base}/models", headers={"Host": "evil.example"})),
            ]
            for status, answer in cases:
                assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
                assert answer.json()["error"]["message"]
                assert answer.json()["error"]["code"] == status
            assert (await api.http.head(f"{base}/models")).status_code == 405
            assert jobs(api) == []
            async with client(api, "nope") as ai:
                with pytest.raises(openai.NotFoundError, match="no endpoint 'nope'"):
                    await ai.models.list()
            async with client(api, api_key="wrong") as ai:
                with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                    await ai.models.list()

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- an upstream behind it


@asynccontextmanager
async def proxied(handler: Any) -> AsyncIterator[tuple[Api, Api]]:
    """An endpoint whose upstream is another one's OpenAI route."""
    async with serving(model=handler) as behind, serving() as api:
        url = f"{behind.server.base_url}/model/openai/v1/"
        api.server.serve("demo", "openai", upstream=Upstream(url, lambda: behind.server.token))
        yield behind, api


def test_an_upstream_answers_whatever_is_asked() -> None:
    async def scenario() -> None:
        async with proxied("chat") as (behind, api), client(api) as ai, client(behind, "model") as direct:
            asked: Any = {"model": "m", "messages": HI, "extra_body": FAST, "seed": 7}
            whole = await ai.chat.completions.create(**asked)
            expected = await direct.chat.completions.create(**asked)
            assert (whole.choices, whole.usage) == (expected.choices, expected.usage)
            stream = await ai.chat.completions.create(**asked, stream=True)
            assert await text_of(stream) == whole.choices[0].message.content
            assert (await ai.models.list()).data == (await direct.models.list()).data
            with pytest.raises(openai.NotFoundError, match="the demo has no route"):
                await ai.embeddings.create(model="m", input="x")
            await api.http.post(CHAT, json={"messages": HI, **FAST})
            assert jobs(behind, "model")[-1].request.input["openai_input"]["model"] == "word-salad"
            # The handler's own way of asking goes through the same door.
            said = await api.result("demo", {"messages": HI, "seed": 7, "model": "m", **FAST})
            assert "".join(said["output"]) == whole.choices[0].message.content

    asyncio.run(scenario())


def test_leaving_hangs_up_on_the_upstream() -> None:
    async def scenario() -> None:
        async with proxied(Held(SSE)) as (behind, api), client(api) as ai:
            async with await ai.chat.completions.create(model="m", messages=HI, stream=True) as stream:
                assert (await anext(stream)).choices[0].delta.content == "ä"
            await spin(lambda: jobs(api)[0].status == "CANCELLED")
            await spin(lambda: jobs(behind, "model")[0].status == "CANCELLED")

    asyncio.run(scenario())


def test_an_upstream_that_fails_on_the_way_never_looks_complete() -> None:
    async def scenario() -> None:
        handler = Held(SSE, RuntimeError("out of memory"))
        handler.go_on.set()
        async with proxied(handler) as (_, api), client(api) as ai:
            _, events = await streamed(api)
            assert "[DONE]" not in "".join(events)
            assert jobs(api)[0].status == "FAILED"
            stream = await ai.chat.completions.create(model="m", messages=HI, stream=True)
            with pytest.raises(openai.APIError, match="out of memory"):
                await text_of(stream)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"not JSON", 500, "no document"),
        (b"[1]", 500, "no document"),
        (b"", 500, "no document"),
        (None, 502, "HTTP 401"),
    ],
)
def test_an_upstream_that_answers_something_else(body: bytes | None, status: int, words: str) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head, said = ("200 OK", body) if body is not None else ("401 No", b"the key k-secret is wrong")
        writer.write(
            f"HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        upstream = await asyncio.start_server(answers, "127.0.0.1", 0)
        port = upstream.sockets[0].getsockname()[1]
        async with upstream, serving() as api, client(api, max_retries=0) as ai:
            api.server.serve(
                "demo", "openai", upstream=Upstream(f"http://127.0.0.1:{port}/v1", lambda: "k-secret")
            )
            with pytest.raises(openai.APIStatusError, match=words) as caught:
                await ai.models.list()
            assert caught.value.status_code == status
            assert "k-secret" not in caught.value.message

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "route", ["/v1/../admin", "/v2/models", "//evil.example/v1", "/v1/models?x=1", None, 5]
)
def test_a_route_leads_nowhere_but_below_the_upstream(route: Any) -> None:
    async def scenario() -> None:
        async with proxied("chat") as (behind, api):
            document = await api.result("demo", {"openai_route": route})
            assert "'openai_route' must be a path" in document["error"]
            document = await api.result("demo", {"openai_route": "/v1/models", "openai_input": [1]})
            assert "'openai_input' must be an object" in document["error"]
            assert jobs(behind, "model") == []

    asyncio.run(scenario())
