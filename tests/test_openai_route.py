"""The OpenAI route: its requests, its answers whole and broken, and such jobs in cells and in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inshell import KEY
from rude import answer, rude, script

from notebook_ext import Endpoint, StreamChunk, openai_route
from notebook_ext.completions import Completion, chat_request, models
from notebook_ext.decoders import OpenAIDecoder
from notebook_ext.errors import (
    AnswerLost,
    AuthenticationError,
    BadRequest,
    ConfigurationError,
    ConnectionFailed,
    InputError,
    JobCancelled,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RequestTimeout,
    ServerError,
)
from notebook_ext.journal import Journal
from notebook_ext.session import Session
from notebook_ext.sse import Event, Events

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = {"object": "list", "data": [{"id": "llama-3", "object": "model"}]}
ASK = {"model": "llama-3", "messages": [{"role": "user", "content": "hi"}]}


def event(document):
    return f"data: {document if isinstance(document, str) else json.dumps(document)}\n\n".encode()


def delta(content=None, finish=None, **more):
    said = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": said, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "llama-3", "choices": [choice], **more}


USAGE = {"id": "c1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
WORDS = [delta(""), delta("Hel"), delta("lo ☀"), delta(finish="stop"), USAGE]
WHOLE = [*map(event, WORDS), event("[DONE]")]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streams(*pieces: bytes, end: bytes | None = b"0\r\n\r\n"):
    """Answer with these pieces; an `end` of None cuts the connection in the middle."""

    async def respond(asked):
        await asked.send(HEAD)
        for piece in pieces:
            await asked.send(chunk(piece))
        if end is not None:
            await asked.send(end)

    return respond


def models_or(respond):
    """Tell the models, and answer everything else so."""
    return lambda asked: answer(MODELS) if asked.method == "GET" else respond(asked)


async def ask(respond, body=ASK, **options):
    """The text, the chunks and snapshots of one call; what it raised; what the server was asked."""
    async with rude(script(openai=respond)) as server, Endpoint("ep", server.url, KEY, **options) as endpoint:
        events, raised = [], None
        try:
            async for said in endpoint.chat(body):
                events.append(said)
        except Exception as error:
            raised = error
    chunks = [said.output for said in events if isinstance(said, StreamChunk)]
    jobs = [said for said in events if not isinstance(said, StreamChunk)]
    decoder = OpenAIDecoder()
    text = "".join(decoder.feed(StreamChunk(output)) for output in chunks)
    return text, jobs, raised, server


def asked_for(respond, body=ASK, **options):
    return asyncio.run(ask(respond, body, **options))


# ------------------------------------------------------------------ what is asked


def test_the_body_goes_as_openai_has_it_and_the_answer_is_one_completion():
    text, jobs, raised, server = asked_for(streams(*WHOLE), {**ASK, "temperature": 0.2})
    assert raised is None
    assert text == "Hello ☀"
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v2/ep/openai/v1/chat/completions")
    assert asked.body == {
        **ASK,
        "temperature": 0.2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert [job.status for job in jobs] == ["IN_PROGRESS", "COMPLETED"]
    assert jobs[-1].output["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hello ☀"}, "finish_reason": "stop"}
    ]
    assert jobs[-1].output["usage"]["completion_tokens"] == 2


def test_a_model_that_is_not_named_is_asked_for_once():
    async def scene():
        async with (
            rude(script(openai=models_or(streams(*WHOLE)))) as server,
            Endpoint("ep", server.url, KEY) as endpoint,
        ):
            for _ in range(2):
                async for _event in endpoint.chat({"messages": ASK["messages"]}):
                    pass
        return [
            (asked.method, asked.path.rpartition("v1")[2], (asked.body or {}).get("model"))
            for asked in server.asked
        ]

    post = ("POST", "/chat/completions", "llama-3")
    assert asyncio.run(scene()) == [("GET", "/models", None), post, post]


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (
            {"data": [{"id": "a"}, {"id": "b"}]},
            "its models are a, b; say which one with -m; nothing was sent",
        ),
        ({"data": []}, "it tells no model; say which one with -m; nothing was sent"),
    ],
)
def test_a_model_has_to_be_named_where_there_is_not_just_one(listed, said):
    _, jobs, raised, server = asked_for(answer(listed), {"messages": ASK["messages"]})
    assert isinstance(raised, ConfigurationError)
    assert said in str(raised)
    assert (jobs, len(server.asked)) == ([], 1)


def test_where_the_models_could_not_be_asked_for_nothing_was_submitted(llama):
    notebook, server = llama(answer(text="<h1>Oh no</h1>", status=500))
    said = notebook.error("%endpoint run llama --route openai -o job -- hi")
    assert "Nothing was submitted: no -m names the model" in said
    assert all(asked.method == "GET" for asked in server.asked)
    assert notebook.names["job"].never_submitted
    assert notebook.session.journal.get(1) is None


def test_an_adapter_is_no_model_of_its_own():
    listed = {"data": [{"id": "base", "parent": None}, {"id": "lora", "parent": "base"}]}
    assert models(listed) == ["base"]
    assert models({"error": "x"}) is None


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": "hi"}, {"prompt": "hi"}, [], None])
def test_a_body_without_messages_is_not_sent(body):
    _, _, raised, server = asked_for(streams(*WHOLE), body)
    assert isinstance(raised, InputError)
    assert "'messages'" in str(raised)
    assert server.asked == []


def test_what_the_body_says_of_streaming_counts():
    assert chat_request({**ASK, "stream": False}) == {**ASK, "stream": False}
    assert chat_request({**ASK, "stream_options": {}})["stream_options"] == {}
    assert chat_request({"messages": [1]}, "m")["model"] == "m"


@pytest.mark.parametrize("provider", ["tensorone", "tensorone-rest"])
def test_a_provider_that_does_not_document_the_route_says_so(provider):
    async def scene():
        async with Endpoint("ep", provider, KEY) as endpoint:
            async for _ in endpoint.chat(ASK):
                pass

    with pytest.raises(ConfigurationError, match="openai is not documented for this provider"):
        asyncio.run(scene())


# ------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([b"".join(WHOLE)], "Hello ☀"),
        ([b"".join(WHOLE).replace(b"\n", b"\r\n")], "Hello ☀"),
        ([b"".join(WHOLE).replace(b"\n", b"\r")], "Hello ☀"),
        ([b"\xef\xbb\xbf: hello\n\nevent: message\nid: 1\nretry: 5\n", *WHOLE], "Hello ☀"),
        ([b": ping\n\n", *WHOLE[:2], b": ping\n\ndata:\n\n", *WHOLE[2:]], "Hello ☀"),
        ([*WHOLE[:-1], b"data: [DONE]"], "Hello ☀"),
        ([bytes([byte]) for byte in b"".join(WHOLE)], "Hello ☀"),
        ([*WHOLE, event(delta("behind the end"))], "Hello ☀"),
    ],
)  # fmt: skip
def test_every_form_of_the_events_is_read(pieces, text):
    said, jobs, raised, _ = asked_for(streams(*pieces))
    assert (said, jobs[-1].status, raised) == (text, "COMPLETED", None)


def test_events_that_are_packed_are_read_all_the_same():
    body = gzip.compress(b"".join(WHOLE))
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    text, jobs, raised, _ = asked_for(head.encode() + body)
    assert (text, jobs[-1].status, raised) == ("Hello ☀", "COMPLETED", None)


def test_an_end_without_done_is_told():
    said, jobs, raised, server = asked_for(streams(*WHOLE[:3]))
    assert said == "Hello ☀"
    assert jobs[-1].status == "COMPLETED"
    assert isinstance(raised, AnswerLost)
    assert "without [DONE]: text may be missing" in str(raised)
    assert "60 s" in str(raised)
    assert "without --route" in str(raised)
    assert len(server.asked) == 1


def test_behind_the_end_of_the_text_nothing_but_the_usage_can_be_missing():
    _, jobs, raised, _ = asked_for(streams(*WHOLE[:4]))
    assert jobs[-1].output["choices"][0]["finish_reason"] == "stop"
    assert "without [DONE]" in str(raised)
    assert "text may be missing" not in str(raised)


def test_a_body_that_ends_with_the_connection_is_whole_with_its_done():
    async def until_closed(asked):
        await asked.send(HEAD.replace(b"transfer-encoding: chunked", b"connection: close"))
        await asked.send(b"".join(WHOLE))

    assert asked_for(until_closed)[2] is None


@pytest.mark.parametrize("seen", [1, 3])
def test_a_cut_keeps_what_was_shown_and_sends_nothing_again(seen):
    said, jobs, raised, server = asked_for(streams(*WHOLE[:seen], end=None))
    assert said == "Hello ☀"[: 0 if seen == 1 else None]
    assert [job.status for job in jobs] == ["IN_PROGRESS"]
    assert isinstance(raised, AnswerLost)
    assert "the connection broke" in str(raised)
    assert "text may be missing" in str(raised)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            event({"error": {"message": "out of memory", "type": "worker_error", "code": None}}),
            "out of memory",
        ),
        (event({"object": "error", "message": "too long", "code": 400}), "too long"),
        (b'event: error\ndata: {"message": "stopped"}\n\n', "stopped"),
        (b"event: error\ndata: no words\n\n", "no words"),
    ],
)
def test_an_error_among_the_events_fails_the_job(said, message):
    text, jobs, raised, _ = asked_for(streams(*WHOLE[:2], said, event("[DONE]")))
    assert (text, raised) == ("Hel", None)
    assert jobs[-1].status == "FAILED"
    assert message in str(jobs[-1].error)
    assert jobs[-1].output["choices"][0]["message"]["content"] == "Hel"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (answer({"detail": "no"}, 400), BadRequest, "did not accept"),
        (answer({"error": "bad key"}, 401), AuthenticationError, "the key was refused (401)"),
        (answer({"error": "there is no such route"}, 404), NotFoundError, "no OpenAI route here"),
        (answer(text="<h1>Not found</h1>", status=404), NotFoundError, "`run` without --route"),
        (answer({"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}, 404),
         NotFoundError, "The model `x` does not exist.; it has no such model; -m names one"),
        (answer({"error": "slow down"}, 429), RateLimitError, "too many requests"),
        (answer(text="<html>Bad gateway</html>", status=502), ServerError, "may have been queued all the same"),
        (answer({"error": "gone"}, 504), ServerError, "the platform failed (504)"),
        (answer(None, 302, location="https://elsewhere.example/"), ProtocolError, "the server redirects"),
        (answer(text="<html>Login</html>", content_type="text/html"), ProtocolError, "(200, text/html) is neither events nor JSON: Login"),
        (answer(text=""), ProtocolError, "empty"),
        (answer({"id": "a1-u1", "status": "IN_QUEUE"}, content_type="application/json"), ProtocolError,
         "(200, application/json) is JSON, but none of OpenAI's"),
        (answer([1], content_type="application/json"), ProtocolError, "none of OpenAI's"),
        (streams(b"data: {\"choices\": [\n\n"), ProtocolError, "an event is no JSON object"),
        (streams(b"data: 5\n\n"), ProtocolError, "an event is no JSON object: '5'"),
        (streams(), AnswerLost, "the answer was empty"),
        (streams(event("[DONE]")), AnswerLost, "the answer was empty"),
        (None, AnswerLost, "the connection broke"),
        (answer({"choices": []}, content_encoding="br"), ProtocolError, "garbled"),
    ],
)  # fmt: skip
def test_whatever_else_comes_is_one_clear_sentence(said, kind, words, monkeypatch):
    monkeypatch.setattr("notebook_ext.exchange.ATTEMPTS", 1)
    _, jobs, raised, server = asked_for(said)
    assert type(raised) is kind, repr(raised)
    assert words in str(raised)
    assert "\n" not in str(raised)
    assert KEY not in str(raised)
    assert len(server.asked) == 1
    assert "COMPLETED" not in [job.status for job in jobs]


def test_a_failure_that_the_worker_tells_itself_is_the_jobs_own():
    _, jobs, raised, _ = asked_for(
        answer({"error": {"message": "CUDA is gone", "type": "worker_error"}}, 500)
    )
    assert raised is None
    assert jobs[-1].status == "FAILED"
    assert "CUDA is gone" in str(jobs[-1].error)


def test_a_whole_document_in_place_of_events_is_an_answer():
    document = {"id": "c1", "object": "chat.completion", "model": "llama-3", "usage": {"completion_tokens": 1},
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}  # fmt: skip
    text, jobs, raised, _ = asked_for(
        answer(document, content_type="application/json"), {**ASK, "stream": False}
    )
    assert (text, raised, jobs[-1].output) == ("Hi", None, document)


def test_a_refusal_is_waited_out_and_asked_again():
    _, jobs, raised, server = asked_for(
        [answer({}, 429, retry_after="0.01"), answer({}, 503, retry_after="0.01"), streams(*WHOLE)]
    )
    assert raised is None
    assert jobs[-1].status == "COMPLETED"
    assert len(server.asked) == 3


def test_a_connection_that_is_not_made_has_sent_nothing(monkeypatch):
    monkeypatch.setattr("notebook_ext.exchange.ATTEMPTS", 1)

    async def scene():
        async with rude(script()) as server:
            pass
        async with Endpoint("ep", server.url, KEY) as endpoint:
            async for _ in endpoint.chat(ASK):
                pass

    with pytest.raises(ConnectionFailed, match="nothing was sent"):
        asyncio.run(scene())


@pytest.mark.parametrize("seen", [0, 2])
def test_silence_is_given_up_at_last(seen, monkeypatch):
    monkeypatch.setattr(openai_route, "SILENCE", 0.2)

    async def silent(asked):
        if seen:
            await asked.send(HEAD + b"".join(map(chunk, WHOLE[:seen])))
        await asyncio.Event().wait()

    text, _, raised, server = asked_for(silent)
    assert type(raised) is RequestTimeout
    assert "silence timeout" in str(raised)
    assert (text, len(server.asked)) == ("Hel" if seen else "", 1)


def test_an_event_without_an_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(openai_route, "MAX_EVENT", 1000)
    _, _, raised, _ = asked_for(streams(b"data: ", *[b"x" * 400] * 4, end=None))
    assert isinstance(raised, ProtocolError)
    assert "over 1000 characters" in str(raised)


def test_the_key_is_blotted_out_where_the_server_says_it():
    text, jobs, _, _ = asked_for(streams(event(delta(f"you are {KEY}", "stop")), event("[DONE]")))
    assert text == "you are [key]"
    assert KEY not in str(jobs)


def test_leaving_the_answer_closes_its_connection():
    async def scene():
        gone = asyncio.Event()

        async def endless(asked):
            try:
                await asked.send(HEAD + chunk(WHOLE[1]))
                while True:
                    await asked.send(chunk(b": ping\n\n"))
                    await asyncio.sleep(0.01)
            finally:
                gone.set()

        async with rude(script(openai=endless)) as server, Endpoint("ep", server.url, KEY) as endpoint:
            async with contextlib.aclosing(endpoint.chat(ASK)) as events:
                async for said in events:
                    if isinstance(said, StreamChunk):
                        break
            async with asyncio.timeout(5):
                await gone.wait()

    asyncio.run(scene())


def test_pieces_of_a_tool_call_become_one():
    completion = Completion()
    for piece in (
        {"index": 0, "id": "t1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at":'}},
        {"index": 1, "id": "t2", "type": "function", "function": {"name": "go", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": " 5}"}},
    ):
        completion.add({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]})
    calls = completion.output["choices"][0]["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "look", "arguments": '{"at": 5}'},
        {"name": "go", "arguments": "{}"},
    ]
    assert not completion.is_finished


# ------------------------------------------------------------------ cut anywhere

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)


def cut(data, places):
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def said_by(texts, line_end, ascii_only):
    """What a worker would stream: each text an event, then the reason of the end and the usage."""
    documents = [
        *map(delta, texts),
        delta(finish="length"),
        {"choices": [], "usage": {"completion_tokens": len(texts)}},
    ]
    lines = [f"data: {json.dumps(document, ensure_ascii=ascii_only)}" for document in documents] + [
        "data: [DONE]"
    ]
    return "".join(line + 2 * line_end for line in lines), documents


@settings(deadline=None)
@given(
    st.lists(TEXTS, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.lists(st.integers(0), max_size=12),
)
def test_the_text_that_workers_stream_is_the_same_wherever_it_is_cut(texts, line_end, ascii_only, places):
    stream, _ = said_by(texts, line_end, ascii_only)
    decoder = OpenAIDecoder()
    shown = "".join(
        decoder.feed(StreamChunk(piece, index)) for index, piece in enumerate(cut(stream, places))
    )
    final = decoder.finish(None)
    assert final.text == final.value == "".join(texts)
    assert final.text.startswith(shown)
    assert final.tokens == len(texts)
    # as the aggregate has it
    assert OpenAIDecoder().finish(cut(stream, places)).text == "".join(texts)


@settings(deadline=None)
@given(
    st.lists(TEXTS, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.lists(st.integers(0), max_size=12),
)
def test_the_bytes_of_a_stream_give_the_same_documents_wherever_they_are_cut(
    texts, line_end, ascii_only, places
):
    stream, documents = said_by(texts, line_end, ascii_only)
    decoding, events = openai_route.codecs.getincrementaldecoder("utf-8-sig")("replace"), Events()
    found = [item for piece in cut(stream.encode(), places) for item in events.feed(decoding.decode(piece))]
    assert found.pop() == Event("[DONE]")
    assert [json.loads(item.data) for item in found] == documents
    completion = Completion()
    for item in found:
        completion.add(json.loads(item.data))
    (choice,) = completion.output["choices"]
    assert choice["message"]["content"] == ("".join(texts) if texts else None)
    assert choice["finish_reason"] == "length"
    assert completion.output["usage"] == {"completion_tokens": len(texts)}


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=40))
def test_older_batches_of_tokens_become_the_text_and_its_usage(tokens):
    decoder = OpenAIDecoder()
    size, count = 1, 0
    while count < len(tokens):
        batch = tokens[count : count + size]
        count, size = count + len(batch), min(size * 3, 50)
        decoder.feed(StreamChunk({"choices": [{"tokens": batch}], "usage": {"input": 9, "output": count}}))
    final = decoder.finish(None)
    assert (final.text, final.tokens) == ("".join(tokens), len(tokens))


# ------------------------------------------------------------------ in cells


class Held:
    """Sends pieces, says so, and goes on when it is let; knows when its caller has gone."""

    def __init__(self, *before: bytes, after: tuple[bytes, ...] = ()) -> None:
        self.begun, self.go, self.gone = threading.Event(), threading.Event(), threading.Event()
        self._before, self._after = before, after

    async def __call__(self, asked):
        try:
            await asked.send(HEAD)
            for piece in self._before:
                await asked.send(chunk(piece))
            self.begun.set()
            while not self.go.is_set():
                await asked.send(chunk(b": ping\n\n"))
                await asyncio.sleep(0.01)
            for piece in self._after:
                await asked.send(chunk(piece))
            await asked.send(b"0\r\n\r\n")
        finally:
            self.gone.set()


def wait_for_chunks(job, count):
    for index, _ in enumerate(job.chunks(), 1):
        if index == count:
            return


@pytest.fixture
def llama(notebook, elsewhere, monkeypatch):
    """A notebook with an endpoint that answers as a test says."""
    monkeypatch.setenv("LLAMA_KEY", KEY)

    def connect(respond):
        server = elsewhere(script(openai=respond, health={"jobs": {}, "workers": {}}))
        notebook.run(
            f"%endpoint connect llama ep --provider {server.url} --profile vllm --key-env LLAMA_KEY --use"
        )
        return notebook, server

    return connect


RUN = "%%endpoint run llama --route openai -m llama-3"


def test_a_cell_shows_the_text_and_what_it_cost(llama):
    notebook, server = llama(streams(*WHOLE))
    shown = notebook.run(f"{RUN} -s 'You are terse.' -t 0.2 --max-tokens 200 -o job\nhi")
    assert "Hello ☀" in shown
    assert "@1 · llama · COMPLETED · first token" in shown
    assert "2 tokens" in shown
    (asked,) = server.asked
    assert asked.body == {
        "model": "llama-3",
        "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "hi"}],
        "temperature": 0.2,
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    job = notebook.names["job"]
    assert job.output()["choices"][0]["message"]["content"] == "Hello ☀"
    assert [chunk.output for chunk in job.chunks()] == WORDS
    assert (job.profile, job.operation, job.id) == ("openai", "openai", "")


def test_the_value_is_the_text(llama):
    notebook, _ = llama(streams(*WHOLE))
    notebook.run("%%endpoint answer << run llama --route openai -m llama-3\nhi")
    assert notebook.names["answer"] == "Hello ☀"
    assert notebook.value("%endpoint result @1") == "Hello ☀"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--ttl 1h", "ttl has no place on the OpenAI route"),
        ("--exec-timeout 1m", "execution timeout has no place"),
        ("--low-priority", "low priority has no place"),
        ("--webhook https://a.example/b", "webhook has no place"),
        ("--profile vllm", "--route openai has a body of its own, in which --profile vllm has no place"),
        ("--as json", "body cannot be read as JSON"),
        ("--route", "expected one argument"),
        ("--route openia", "--route cannot be 'openia'; did you mean openai?"),
    ],
)
def test_what_the_route_has_no_place_for_is_refused(llama, line, said):
    notebook, server = llama(streams(*WHOLE))
    error = notebook.error(f"{RUN} {line}\nhi")
    assert said.partition("body cannot")[0] in error
    assert server.asked == []


def test_a_json_body_is_openais_own(llama):
    notebook, server = llama(streams(*WHOLE))
    notebook.run(RUN + ' -p n=2\n{"messages": [{"role": "user", "content": "hi"}], "logprobs": true}')
    assert {"n": 2, "logprobs": True, "model": "llama-3"}.items() <= server.asked[0].body.items()
    assert "takes a prompt, or an object with 'messages'" in notebook.error(RUN + '\n{"prompt": "hi"}')
    assert len(server.asked) == 1


def test_runsync_has_no_route(llama):
    notebook, _ = llama(streams(*WHOLE))
    assert "there is no option --route" in notebook.error("%%endpoint runsync llama --route openai\nhi")


def test_dry_run_shows_the_exact_request(llama):
    notebook, server = llama(streams(*WHOLE))
    shown = notebook.run(f"{RUN} --dry-run\nhi")
    assert f"POST {server.url}/ep/openai/v1/chat/completions" in shown
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1]) == chat_request(ASK)
    shown = notebook.run("%endpoint run llama --route openai --dry-run -- hi")
    assert f"its model will be the one that GET {server.url}/ep/openai/v1/models tells" in shown
    assert server.asked == []
    assert KEY not in shown


def test_an_end_without_done_stands_in_the_footer_and_is_no_answer_to_replay(llama):
    notebook, server = llama([streams(*WHOLE[:3]), streams(*WHOLE)])
    shown = notebook.run(f"{RUN}\nhi")
    assert "Hello ☀" in shown
    assert "COMPLETED" in shown
    assert (
        "the stream ended without [DONE]: text may be missing (long streams of this route were seen to be cut"
        in shown
    )
    shown = notebook.run(f"{RUN} --cache\nhi")
    assert "from the journal" not in shown
    shown = notebook.run(f"{RUN} --cache\nhi")
    assert "from the journal" in shown
    assert "Hello ☀" in shown
    assert len(server.asked) == 2


def test_the_route_is_a_part_of_the_request_that_is_replayed(llama):
    notebook, server = llama(streams(*WHOLE))
    notebook.run(f"{RUN}\nhi")
    body = json.dumps(server.asked[0].body)
    assert "has no answer" in notebook.error(
        f"%endpoint replay only\n%endpoint run llama --profile raw -P '{body}'"
    )
    notebook.run("%endpoint replay off")


def test_what_was_cut_keeps_its_text_and_is_never_sent_again(llama):
    notebook, server = llama(streams(*WHOLE[:3], end=None))
    ran = notebook.try_(f"{RUN} -o job\nhi")
    assert not ran.success
    assert "Hello ☀" in ran.text
    assert "AMBIGUOUS" in ran.text
    assert "AnswerLost: openai on llama: the connection broke" in ran.text
    job = notebook.names["job"]
    assert (job.status, job.is_over, job.can_retry) == ("AMBIGUOUS", True, False)
    shown = notebook.run("%endpoint status @1")
    assert "its answer was cut short: text may be missing" in shown
    assert "The OpenAI route has no status to ask for" in shown
    assert "which has no retry; run it anew instead" in notebook.error("%endpoint retry @1")
    assert "the connection broke" in notebook.error("%endpoint attach @1")
    assert notebook.session.journal.open_entries() == []
    assert len(server.asked) == 1


def test_what_was_refused_was_never_submitted(llama):
    notebook, server = llama(answer({"error": "there is no such route"}, 404))
    assert "there is no OpenAI route here" in notebook.error(f"{RUN} -o job\nhi")
    assert notebook.names["job"].never_submitted
    assert notebook.session.journal.entries() == []
    assert len(server.asked) == 1


def test_a_failure_among_the_events_fails_the_cell(llama):
    notebook, _ = llama(streams(*WHOLE[:2], event({"error": {"message": "out of memory"}})))
    ran = notebook.try_(f"{RUN}\nhi")
    assert "Hel" in ran.text
    assert "JobFailed: @1 on llama failed: out of memory" in ran.text
    assert not ran.success


def test_cancel_closes_the_connection_and_claims_no_more(llama):
    held = Held(*WHOLE[:2])
    notebook, _ = llama(held)
    notebook.run(f"{RUN} --bg -o job\nhi")
    job = notebook.names["job"]
    wait_for_chunks(job, 2)
    told = notebook.run("%endpoint cancel @1")
    assert "@1: its connection was closed; whether its worker stopped, the OpenAI route does not tell" in told
    assert "CANCELLED" not in told
    assert held.gone.wait(5)
    assert (job.status, job.is_over) == ("AMBIGUOUS", True)
    with pytest.raises(JobCancelled, match="does not tell"):
        job.output(5)
    assert (
        "".join(str(chunk.output["choices"][0]["delta"].get("content", "")) for chunk in job.streamed())
        == "Hel"
    )
    assert "@1: its connection was closed" in notebook.run("%endpoint cancel @1")


def test_a_timeout_closes_the_connection(llama):
    held = Held(*WHOLE[:2])
    notebook, _ = llama(held)
    error = notebook.error(f"{RUN} --timeout 200ms\nhi")
    assert (
        "not ended within --timeout 0.2 s: @1: its connection was closed; whether its worker stopped" in error
    )
    assert held.gone.wait(5)


def test_in_the_background_it_goes_on(llama):
    held = Held(*WHOLE[:2], after=tuple(WHOLE[2:]))
    notebook, _ = llama(held)
    notebook.run(f"{RUN} --bg -o job\nhi")
    assert held.begun.wait(5)
    held.go.set()
    assert notebook.names["job"].output(5)["choices"][0]["message"]["content"] == "Hello ☀"
    assert "Hello ☀" in notebook.run("%endpoint show @1")


def test_history_export_and_code_know_it(llama, tmp_path):
    notebook, server = llama(models_or(streams(*WHOLE)))
    notebook.run("%endpoint run llama --route openai -- hi")
    assert "hi" in notebook.run("%endpoint history -q Hello")
    notebook.run(f"%endpoint export @1 {tmp_path / 'jobs.jsonl'}")
    (row,) = map(json.loads, (tmp_path / "jobs.jsonl").read_text().splitlines())
    assert row["operation"] == "openai"
    assert notebook.run("%endpoint code @1").strip() == "%%endpoint run llama --route openai\nhi"
    curl = notebook.run("%endpoint code @1 --curl")
    assert f"{server.url}/ep/openai/v1/chat/completions" in curl
    assert json.loads(curl[curl.index("{\n") : curl.rindex("}") + 1]) == chat_request(ASK)
    program = notebook.run("%endpoint code @1 --python")
    assert "async for event in endpoint.chat(INPUT):" in program
    assert KEY not in curl + program


def test_the_program_of_code_runs(llama, tmp_path):
    notebook, server = llama(streams(*WHOLE))
    notebook.run(f"{RUN}\nhi")
    (tmp_path / "again.py").write_text(notebook.run("%endpoint code @1 --python"), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, tmp_path / "again.py"], capture_output=True, encoding="utf-8", timeout=60
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("Hello ☀", "", 0)
    assert server.asked[0].body == server.asked[1].body


def test_the_journal_makes_the_same_cell_again(llama):
    notebook, server = llama(streams(*WHOLE))
    notebook.session.connect("llama").submit(ASK, route="openai").output(5)
    code = notebook.run("%endpoint code @1")
    assert code.startswith("%%endpoint run llama --as json --verbatim --route openai\n")
    notebook.run(code)
    assert server.asked[0].body == server.asked[1].body


def test_the_option_is_completed_and_explained(notebook):
    from notebook_ext.suggestions import suggest

    offers = [text for text, _ in suggest("%endpoint run demo --rou", notebook.session, {}).offers]
    assert offers == ["--route"]
    assert [text for text, _ in suggest("%endpoint run demo --route ", notebook.session, {}).offers] == [
        "openai"
    ]
    assert "/openai/v1/chat/completions" in notebook.run("%endpoint help run")


# ------------------------------------------------------------------ when its session ends


def test_what_has_no_answer_yet_is_hung_up_too(llama):
    begun = threading.Event()

    async def silent(asked):
        begun.set()
        await asyncio.Event().wait()

    notebook, _ = llama(silent)
    notebook.run(f"{RUN} --bg -o job\nhi")
    assert begun.wait(5)
    assert "does not tell" in notebook.run("%endpoint cancel")
    assert notebook.names["job"].status == "AMBIGUOUS"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"sync": True}, "runsync has no place"), ({"s3_config": {"bucketName": "b"}}, "s3Config has no place")],
)
def test_from_python_too_nothing_is_dropped(session, options, said):
    connection = session.connect("llama", "ep", provider="http://127.0.0.1:9/v2")
    with pytest.raises(InputError, match=said):
        connection.submit(ASK, route="openai", **options)


def test_a_session_that_closes_says_what_became_of_it(elsewhere, tmp_path):
    held = Held(*WHOLE[:3])
    server = elsewhere(script(openai=held))
    session = Session(journal=Journal(str(tmp_path / "j.db")))
    job = session.connect("llama", "ep", provider=server.url).submit(ASK, route="openai")
    wait_for_chunks(job, 3)
    session.close()
    assert held.gone.wait(5)
    assert job.status == "AMBIGUOUS"
    assert "does not tell" in str(job.error)
    later = Session(journal=Journal(str(tmp_path / "j.db")))
    assert str(later.recover()) == ""
    found = later.find("@1")
    assert [chunk.output for chunk in found.streamed()] == WORDS[:3]
    with pytest.raises(AnswerLost, match="run it again for another one"):
        found.output(1)
    later.close()


READER = """
import json, sys, time
from notebook_ext.journal import Journal
from notebook_ext.session import Session

url, path, body = sys.argv[1:]
session = Session(journal=Journal(path))
session.connect("llama", "ep", provider=url).submit(json.loads(body), route="openai")
while len(session.journal.chunks(1)) < 3:
    time.sleep(0.01)
print("three are written down", flush=True)
time.sleep(600)
"""


def test_what_a_killed_kernel_read_is_known_and_never_sent_again(elsewhere, tmp_path):
    held = Held(*WHOLE[:3])
    server, path = elsewhere(script(openai=held, health={})), str(tmp_path / "j.db")
    command = [sys.executable, "-c", READER, server.url, path, json.dumps(ASK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "three are written down\n"
        reader.kill()
    assert held.gone.wait(5)
    later = Session(journal=Journal(path))
    assert str(later.recover()) == (
        "An earlier kernel left 1 job: 1 ended with it, as it read the answer. "
        "`%endpoint attach --all` shows them."
    )
    (job,) = later.left_behind()
    assert job.status == "AMBIGUOUS"
    assert job.notes == ["its answer ended with the kernel that read it: text may be missing"]
    assert [chunk.output for chunk in job.streamed()] == WORDS[:3]
    later.resume(job)
    with pytest.raises(AnswerLost, match="ended with the kernel that read it"):
        job.output(1)
    assert later.journal.open_entries() == []
    later.close()
    assert server.count("openai") == 1


# ------------------------------------------------------------------ against the embedded endpoint


def test_the_embedded_chat_answers_by_the_route_too(notebook):
    shown = notebook.run("%endpoint run demo --route openai --seed 7 --max-tokens 9 -o job -- hi")
    job = notebook.names["job"]
    assert job.status == "COMPLETED"
    assert job.notes == []
    assert "9 tokens" in shown
    output = job.output()
    assert output["model"] == "word-salad"
    assert output["choices"][0]["message"]["content"].strip() in shown


def test_a_handler_that_speaks_no_openai_is_told_so(echo):
    assert "was not made for OpenAI calls, so call it by its own input: " in echo.error(
        "%endpoint run echo --route openai -m x -- hi"
    )


def test_the_embedded_endpoint_cancels_the_job_whose_caller_hangs_up(notebook):
    notebook.run("%endpoint run demo --route openai --max-tokens 9999 --bg -o job -- hi")
    job = notebook.names["job"]
    wait_for_chunks(job, 2)
    assert str(job.cancel()).startswith("@1: its connection was closed")
    (record,) = (
        record
        for record in notebook.session.endpoints.queue("demo").records.values()
        if record.request.input["openai_route"] == "/v1/chat/completions"
    )
    while not record.status.is_final:  # the test's own timeout ends this
        threading.Event().wait(0.01)
    assert record.status == "CANCELLED"
