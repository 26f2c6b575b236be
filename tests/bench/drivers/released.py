"""The released `runpod` package as a client of one endpoint, used as its documentation shows.

Runs in an environment that has that package, and nothing of ours.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import runpod
from runpod import AsyncioEndpoint, http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

THREADS = 64
"""The documentation shows no way to do many jobs with the sync package; a thread pool is the usual one."""
PATIENCE = 60
"""Seconds for a result."""
END = object()


class Sync:
    """`runpod.Endpoint`; whatever blocks, blocks a thread."""

    def __init__(self, url: str) -> None:
        runpod.api_key = "key"
        runpod.endpoint_url_base = f"{url}/v2"
        self._endpoint = runpod.Endpoint("ep")
        self._threads = ThreadPoolExecutor(THREADS)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def submit(self, input: Any) -> Any:
        return await self._in_thread(self._endpoint.run, {"input": input})

    async def stream(self, job: Any) -> AsyncIterator[Any]:
        chunks = job.stream()
        while (chunk := await self._in_thread(next, chunks, END)) is not END:
            yield chunk

    async def cancel(self, job: Any) -> None:
        await self._in_thread(job.cancel)

    async def result(self, input: Any, how: str) -> Any:
        return await self._in_thread(self._result, input, how)

    def _result(self, input: Any, how: str) -> Any:
        if how == "runsync":
            return self._endpoint.run_sync({"input": input}, timeout=PATIENCE)
        return self._endpoint.run({"input": input}).output(timeout=PATIENCE)

    async def results(self, inputs: Sequence[Any], how: str) -> list[Any]:
        return await asyncio.gather(*(self.result(one, how) for one in inputs), return_exceptions=True)

    async def ask_health(self) -> None:
        await self._in_thread(self._endpoint.health)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Asyncio:
    """`runpod.AsyncioEndpoint` with the session that it is documented with; it has no runsync."""

    def __init__(self, url: str) -> None:
        runpod.api_key = "key"
        runpod.endpoint_url_base = f"{url}/v2"
        self._session = http_client.AsyncClientSession()
        self._endpoint = AsyncioEndpoint("ep", self._session)

    async def submit(self, input: Any) -> Any:
        return await self._endpoint.run(input)

    async def stream(self, job: Any) -> AsyncIterator[Any]:
        async for chunk in job.stream():
            yield chunk

    async def cancel(self, job: Any) -> None:
        await job.cancel()

    async def result(self, input: Any, how: str) -> Any:
        assert how == "run"
        return await (await self._endpoint.run(input)).output(timeout=PATIENCE)

    async def results(self, inputs: Sequence[Any], how: str) -> list[Any]:
        return await asyncio.gather(*(self.result(one, how) for one in inputs), return_exceptions=True)

    async def ask_health(self) -> None:
        await self._endpoint.health()

    async def close(self) -> None:
        await self._session.close()


def open_sync(url: str, **_: Any) -> Sync:
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return Sync(url)


def open_asyncio(url: str, **_: Any) -> Asyncio:
    return Asyncio(url)
