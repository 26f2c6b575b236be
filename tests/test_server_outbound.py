"""Webhooks, and the OpenAI-compatible servers behind `openai`."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from serving import serving, spin

from notebook_ext.errors import ConfigurationError
from notebook_ext.protocol import read_worker_error
from notebook_ext.server import Upstream, outbound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = "sk-secret-of-the-upstream"


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Other:
    """Somebody else's HTTP server, which answers as the test says."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    rows = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{rows}\r\n"
    return head.encode() + body


@asynccontextmanager
async def other(respond: Callable[[int], bytes | AsyncIterator[bytes]]) -> AsyncIterator[Other]:
    """`respond` gets the number of the request, from 0."""
    self = Other()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = (await reader.readline()).decode().split()
        headers = {}
        while (line := (await reader.readline()).decode().strip()) != "":
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.received.append(Received(method, path, headers, json.loads(body) if body else None))
        response = respond(len(self.received) - 1)
        try:
            if isinstance(response, bytes):
                writer.write(response)
            else:
                async for piece in response:
                    writer.write(piece)
                    await writer.drain()
            await writer.drain()
        finally:
            writer.close()

    async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work = asyncio.create_task(serve(reader, writer))
        while not reader.at_eof() and not work.done():
            await asyncio.sleep(0.005)
        if not work.done():
            self.hung_up.set()
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    server = await asyncio.start_server(watched, "127.0.0.1", 0)
    self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield self
    await asyncio.sleep(0.02)


def raises(job):
    raise RuntimeError("no")


@pytest.mark.parametrize(("handler", "status"), [("echo", "COMPLETED"), (raises, "FAILED")])
def test_a_webhook_gets_the_document_with_input_and_webhook(handler, status) -> None:
    async def scenario() -> None:
        async with other(lambda n: answer(200)) as receiver, serving(demo=handler) as api:
            url = f"{receiver.url}/hook?x=1"
            job = await api.run("demo", {"a": "ä"}, webhook=url)
            document = await api.end("demo", job)
            await spin(lambda: receiver.received)
            (received,) = receiver.received
            assert (received.method, received.path) == ("POST", "/hook?x=1")
            assert received.headers["content-type"] == "application/json"
            assert "authorization" not in received.headers
            assert received.body == {**document, "input": {"a": "ä"}, "webhook": url}
            assert received.body["status"] == status

    asyncio.run(scenario())


def test_a_webhook_is_tried_three_times_and_never_follows_a_redirect(caplog) -> None:
    statuses = [500, 302, 204]

    async def scenario() -> None:
        async with (
            other(lambda n: answer(statuses[n], Location="/elsewhere")) as receiver,
            serving(demo="echo") as api,
        ):
            job = await api.run("demo", webhook=f"{receiver.url}/secret-path")
            assert (await api.end("demo", job))["status"] == "COMPLETED"
            await spin(lambda: caplog.records)
            assert [received.path for received in receiver.received] == ["/secret-path"] * 3

    with caplog.at_level(logging.WARNING, "notebook_ext"):
        asyncio.run(scenario())
    (record,) = caplog.records
    assert "HTTP 204" in record.getMessage()
    assert "secret-path" not in record.getMessage()


def test_a_webhook_that_succeeds_at_the_second_try_is_not_sent_again() -> None:
    async def scenario() -> None:
        async with other(lambda n: answer(503 if n == 0 else 200)) as receiver, serving(demo="echo") as api:
            await api.result("demo", webhook=receiver.url)
            await spin(lambda: len(receiver.received) == 2)
            await asyncio.sleep(0.1)
            assert len(receiver.received) == 2

    asyncio.run(scenario())


def test_a_webhook_that_hangs_holds_up_nothing() -> None:
    async def hangs() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    async def scenario() -> None:
        async with other(lambda n: hangs()) as receiver:
            async with serving(demo="echo") as api:
                await api.result("demo", webhook=receiver.url)
                await spin(lambda: receiver.received)
                assert (await api.result("demo", 1))["output"] == 1
                started = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - started < 2  # stopping does not wait for it
            await asyncio.wait_for(receiver.hung_up.wait(), 5)

    asyncio.run(scenario())


def test_of_a_webhooks_answer_only_the_status_is_read() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        while True:
            yield bytes(65536)

    async def scenario() -> None:
        async with other(lambda n: endless()) as receiver, serving(demo="echo") as api:
            await api.result("demo", webhook=receiver.url)
            await spin(lambda: receiver.received and not api.server._webhooks._deliveries)
            assert len(receiver.received) == 1

    asyncio.run(scenario())


def test_so_many_webhooks_are_called_at_once_and_the_others_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "WEBHOOKS_AT_ONCE", 3)
    go = asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        await go.wait()
        yield answer(200)

    async def holds(job: Any) -> None:
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with other(lambda n: late()) as receiver, serving(demo=holds) as api:
            await api.run("demo")
            for _ in range(8):
                await api.run("demo", webhook=receiver.url)
            await api.post("/demo/purge-queue")
            await spin(lambda: len(receiver.received) == 3)
            await asyncio.sleep(0.1)
            assert len(receiver.received) == 3
            go.set()
            await spin(lambda: len(receiver.received) == 8)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- openai


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def upstream(other: Other, key: str | None = KEY) -> Upstream:
    return Upstream(f"{other.url}/v1/", lambda: key)


def test_openai_streams_the_text_while_the_upstream_still_writes() -> None:
    release = threading.Event()

    async def responds() -> AsyncIterator[bytes]:
        yield SSE + b": comment\n\n"
        yield b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
        yield event("Hel")[:9]
        yield event("Hel")[9:] + event("lo ")
        while not release.is_set():
            await asyncio.sleep(0.01)
        yield event("world") + b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n' + b"data: [DONE]\n\n"

    async def scenario() -> None:
        async with other(lambda n: responds()) as server, serving() as api:
            api.server.serve("demo", "openai", upstream=upstream(server))
            job = await api.run("demo", {"prompt": "hi", "system": "be kind", "model": "m", "temperature": 0})
            chunks: list[str] = []
            while "".join(chunks) != "Hello ":
                chunks += [chunk["output"] for chunk in (await api.get(f"/demo/stream/{job}"))["stream"]]
            release.set()
            assert await api.chunks("demo", job) == ["world"]
            assert (await api.end("demo", job))["output"] == ["Hel", "lo ", "world"]
            (received,) = server.received
            assert (received.method, received.path) == ("POST", "/v1/chat/completions")
            assert received.headers["authorization"] == f"Bearer {KEY}"
            messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
            assert received.body == {"messages": messages, "model": "m", "temperature": 0, "stream": True}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        (answer(200, b'{"data": [{"id": "first"}, {"id": "second"}]}'), {"model": "first"}),
        (answer(404, b"no such page"), {}),
        (answer(200, b'{"data": []}'), {}),
        (answer(200, b"[[]]"), {}),
    ],
)
def test_where_no_model_is_named_the_first_one_is_taken(models: bytes, asked: dict[str, str]) -> None:
    async def scenario() -> None:
        replies = [models, SSE + event("fine")]
        async with other(lambda n: replies[n]) as server, serving() as api:
            api.server.serve("demo", "openai", upstream=upstream(server))
            assert (await api.result("demo", {"prompt": "hi"}))["output"] == ["fine"]
            first, second = server.received
            assert (first.method, first.path) == ("GET", "/v1/models")
            assert first.headers["authorization"] == f"Bearer {KEY}"
            assert {key: value for key, value in second.body.items() if key == "model"} == asked

    asyncio.run(scenario())


def test_cancel_hangs_up_on_the_upstream() -> None:
    async def responds() -> AsyncIterator[bytes]:
        yield SSE + event("a")
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with other(lambda n: responds()) as server, serving() as api:
            api.server.serve("demo", "openai", upstream=upstream(server, None))
            job = await api.run("demo", {"messages": [], "model": "m"})
            await api.get(f"/demo/stream/{job}")
            await api.post(f"/demo/cancel/{job}")
            await asyncio.wait_for(server.hung_up.wait(), 5)
            assert "authorization" not in server.received[0].headers

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answer(401, f"Incorrect API key: {KEY}".encode()), "HTTP 401: Incorrect API key: ***"),
        (answer(404, b'{"error": "no model m"}'), "no model m"),
        (answer(307, Location="http://127.0.0.1:1/steal"), "HTTP 307"),
        (answer(500, b"<html>" + b"x" * 100_000), "HTTP 500: <html>"),
        (SSE + b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (SSE + b"data: [1]\n\n", "no chat chunk"),
        (SSE + b"data: {broken\n\n", "no chat chunk"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + event("a"), "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
def test_an_upstream_that_fails_is_a_failed_job_with_the_reason(response: bytes, words: str) -> None:
    async def scenario() -> None:
        async with other(lambda n: response) as server, serving() as api:
            api.server.serve("demo", "openai", upstream=upstream(server))
            document = await api.result("demo", {"prompt": "hi", "model": "m"})
            assert document["status"] == "FAILED"
            assert words in read_worker_error(document["error"]).message
            assert KEY not in json.dumps(document)
            assert len(document["error"]) < 5000
            assert len(server.received) == 1

    asyncio.run(scenario())


def test_an_upstream_that_is_not_there_and_an_input_without_words() -> None:
    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", "openai", upstream=Upstream("http://127.0.0.1:1/v1", lambda: KEY))
            document = await api.result("demo", {"prompt": "hi"})
            assert "127.0.0.1:1 did not answer: ConnectError" in read_worker_error(document["error"]).message
            assert KEY not in document["error"]
            document = await api.result("demo", {})
            assert "'messages' or 'prompt'" in read_worker_error(document["error"]).message

    asyncio.run(scenario())


def test_the_upstreams_key_is_kept() -> None:
    assert KEY not in repr(Upstream("https://api.example/v1", lambda: KEY))
    assert Upstream("https://api.example/v1", lambda: KEY).headers() == {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(ConfigurationError, match="only over https"):
        Upstream("http://api.example/v1", lambda: KEY).headers()
    assert Upstream("http://api.example/v1").headers() == {}
    for url in ("ftp://x/v1", "http://user:pass@x/v1", "nonsense", "http://", "http://[::1"):
        with pytest.raises(ConfigurationError, match="the upstream"):
            Upstream(url)
