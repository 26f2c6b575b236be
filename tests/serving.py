"""A real embedded server on a real socket, and a plain HTTP client to talk to it as anybody would."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx

from notebook_ext.server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


class Api:
    """`server` for what tests arrange, `http` for what they measure."""

    def __init__(self, server: EmbeddedServer, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, document: Any = None, **query: Any) -> Any:
        answer = await self.http.post(path, json={} if document is None else document, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def run(self, endpoint: str, input: Any = None, **more: Any) -> str:
        document = await self.post(f"/{endpoint}/run", {"input": {} if input is None else input, **more})
        assert document["status"] == "IN_QUEUE"
        return document["id"]

    async def end(self, endpoint: str, job: str) -> Any:
        """The job's document once it has ended."""
        return await self.get(f"/{endpoint}/status-sync/{job}")

    async def result(self, endpoint: str, input: Any = None, **more: Any) -> Any:
        return await self.end(endpoint, await self.run(endpoint, input, **more))

    async def chunks(self, endpoint: str, job: str) -> list[Any]:
        """All chunks, read to the end as the SDKs do: the first final answer is the last."""
        found: list[Any] = []
        while True:
            answer = await self.get(f"/{endpoint}/stream/{job}")
            found += [chunk["output"] for chunk in answer["stream"]]
            if answer["status"] in FINAL:
                return found

    def record(self, endpoint: str, job: str) -> Any:
        return self.server.endpoints[endpoint].records[job]

    async def until(self, endpoint: str, job: str, condition: Any) -> None:
        """Wait for a change of a job that no answer of the protocol waits for."""
        record, bell = self.record(endpoint, job), asyncio.Event()
        record.bells.add(bell)
        async with asyncio.timeout(5):
            while not condition(record):
                bell.clear()
                await bell.wait()
        record.bells.discard(bell)


@asynccontextmanager
async def serving(**handlers: Any) -> AsyncIterator[Api]:
    """Serve handlers by name, and prove afterwards that nothing of it is left."""
    tasks = asyncio.all_tasks()
    server = EmbeddedServer(webhook_pause=0.01)
    await server.start()
    for name, handler in handlers.items():
        server.serve(name, handler)
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(
        base_url=server.base_url, headers=headers, trust_env=False, timeout=20
    ) as http:
        try:
            yield Api(server, http)
        finally:
            await server.stop()
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks
    assert not left, f"tasks left running: {left}"


async def spin(condition: Any, *, turns: int = 10_000) -> None:
    """Let the loop turn until something that no event tells is true."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


def outputs(answers: Iterable[Any]) -> list[Any]:
    return [chunk["output"] for answer in answers for chunk in answer["stream"]]
