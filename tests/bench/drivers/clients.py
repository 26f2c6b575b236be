"""Two clients of one endpoint: the floor, which is as little as a Python client can do, and ours."""

from __future__ import annotations

import asyncio
import heapq
import json
import ssl
import sys
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
LANES = 256
"""How many jobs the floor and ours do at once: ten thousand tasks at once would take seconds to begin."""
WINDOWS = {"run": (1000, 190), "runsync": (2000, 390), "status-sync": (2000, 390)}
"""Requests in ten seconds, and at once, that the floor allows itself: what is documented, and at once a little less."""
POLL_GAP = 0.00503
"""Seconds between two polls of all streams together: 2,000 in 10 s, and a little."""
SHARED_OUT = ("runsync", "runsync", "run")
"""How jobs are shared out over both submission quotas, 2,000 and 1,000 in 10 s."""


class Wire(asyncio.Protocol):
    """The floor's connection: it knows the one kind of answer that the stopwatch gives."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.rpartition(b"Content-Length: ")[2]):
            return
        self._buffer = b""
        assert self._answer is not None
        if head.startswith(b"HTTP/1.1 200 "):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(head.partition(b"\r\n")[0].decode()))

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer


class Window:
    """At most so many in any ten seconds, counted from the answer: a server counts no later than that.

    Args:
        rate: Requests in ten seconds.
        most_open: How many at once.
    """

    def __init__(self, rate: int, most_open: int) -> None:
        self._free_at = [0.0] * rate
        self._open = asyncio.Semaphore(most_open)

    async def __aenter__(self) -> None:
        await self._open.acquire()
        while not self._free_at:
            await asyncio.sleep(0.005)
        free_at = heapq.heappop(self._free_at)
        await asyncio.sleep(max(0.0, free_at - time.monotonic()))

    async def __aexit__(self, *exc_info: object) -> None:
        heapq.heappush(self._free_at, time.monotonic() + 10.02)
        self._open.release()


class Floor:
    """A bare asyncio loop over raw HTTP/1.1: one write, one read, one json.loads per exchange.

    Args:
        url: Of the stopwatch.
        tls: For https.
        paced: Keep the documented limits, as sparingly as they allow.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, paced: bool = False) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._tls = tls
        self._headers = f"Host: {parts.netloc}\r\nAuthorization: Bearer key\r\n"
        self._idle: list[Wire] = []
        self._paced = paced
        self._next_poll = 0.0
        self._windows = {name: Window(*limit) for name, limit in WINDOWS.items()} if paced else {}

    async def ask(self, method: str, path: str, document: Any = None) -> Any:
        if self._idle:
            wire = self._idle.pop()
        else:
            _, wire = await asyncio.get_running_loop().create_connection(Wire, *self._address, ssl=self._tls)
        request = f"{method} {path} HTTP/1.1\r\n{self._headers}"
        body = "" if document is None else json.dumps(document)
        if body:
            request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        answer = await wire.ask(f"{request}\r\n{body}".encode())
        self._idle.append(wire)
        return json.loads(answer)

    def _turn(self, operation: str) -> AbstractAsyncContextManager[None]:
        return self._windows.get(operation) or nullcontext()

    async def submit(self, input: Any) -> str:
        async with self._turn("run"):
            return str((await self.ask("POST", "/v2/ep/run", {"input": input}))["id"])

    async def stream(self, job_id: str) -> AsyncIterator[Any]:
        status = ""
        while status not in FINAL:
            if self._paced:
                now = time.monotonic()
                self._next_poll = max(now, self._next_poll) + POLL_GAP
                await asyncio.sleep(self._next_poll - POLL_GAP - now)
            answer = await self.ask("GET", f"/v2/ep/stream/{job_id}")
            for chunk in answer["stream"]:
                yield chunk["output"]
            status = answer["status"]

    async def cancel(self, job_id: str) -> None:
        await self.ask("POST", f"/v2/ep/cancel/{job_id}", {})

    async def result(self, input: Any, how: str) -> Any:
        if how == "runsync":
            async with self._turn(how):
                return (await self.ask("POST", "/v2/ep/runsync?wait=60000", {"input": input}))["output"]
        path = f"/v2/ep/status-sync/{await self.submit(input)}?wait=60000"
        async with self._turn("status-sync"):
            return (await self.ask("GET", path))["output"]

    async def result_without_status_sync(self, input: Any) -> Any:
        """By looking once per round trip, or per tenth of the job's age: what the target allows."""
        job_id = await self.submit(input)
        started = asked = time.monotonic()
        while (job := await self.ask("GET", f"/v2/ep/status/{job_id}"))["status"] not in FINAL:
            now = time.monotonic()
            await asyncio.sleep(max(0.0, asked + 0.1 * (now - started) - now))
            asked = time.monotonic()
        return job["output"]

    async def results(self, inputs: Sequence[Any], how: str) -> list[Any]:
        return await over_lanes(inputs, how, self.result)

    async def ask_health(self) -> None:
        await self.ask("GET", "/v2/ep/health")

    async def close(self) -> None:
        for wire in self._idle:
            wire.transport.abort()
        await asyncio.sleep(0)


async def over_lanes(inputs: Sequence[Any], how: str, one: Callable[[Any, str], Awaitable[Any]]) -> list[Any]:
    """Do all of them on `LANES` lanes; where there are two ways, jobs and lanes are shared out over them."""
    ways = SHARED_OUT if how == "both" else (how,)
    results: list[Any] = [None] * len(inputs)
    todo: dict[str, deque[int]] = {way: deque() for way in ways}
    for at, way in zip(range(len(inputs)), cycle(ways), strict=False):
        todo[way].append(at)

    async def lane(way: str) -> None:
        while todo[way]:
            at = todo[way].popleft()
            try:
                results[at] = await one(inputs[at], way)
            except Exception as error:
                results[at] = error

    await asyncio.gather(*(lane(way) for _, way in zip(range(LANES), cycle(ways), strict=False)))
    return results


class Ours:
    """`notebook_ext.Endpoint`, used as a user would for an endpoint of Runpod's that is at this address.

    Args:
        url: Of the stopwatch.
        has_status_sync: Whether the provider's record knows that route.
    """

    def __init__(self, url: str, *, has_status_sync: bool = True) -> None:
        from notebook_ext import Endpoint
        from notebook_ext.protocol import Operation
        from notebook_ext.providers import RUNPOD

        runpod = replace(RUNPOD, base_url=f"{url}/v2")
        if not has_status_sync:
            routes = {name: route for name, route in runpod.routes.items() if name != Operation.STATUS_SYNC}
            runpod = replace(runpod, routes=routes)
        self._endpoint = Endpoint("ep", provider=runpod, api_key="key")

    async def submit(self, input: Any) -> str:
        return (await self._endpoint.run(input)).id

    async def stream(self, job_id: str) -> AsyncIterator[Any]:
        async for chunk in self._endpoint.stream(job_id):
            yield chunk.output

    async def cancel(self, job_id: str) -> None:
        await self._endpoint.cancel(job_id)

    async def result(self, input: Any, how: str) -> Any:
        if how == "runsync":
            return (await self._endpoint.run_sync(input)).output
        job = await self._endpoint.run(input)
        while not job.status.is_final:
            job = await self._endpoint.status_sync(job.id)
        return job.output

    async def results(self, inputs: Sequence[Any], how: str) -> list[Any]:
        return await over_lanes(inputs, how, self.result)

    async def ask_health(self) -> None:
        await self._endpoint.health()

    async def close(self) -> None:
        await self._endpoint.aclose()


def open_floor(url: str, *, paced: bool = False, **_: Any) -> Floor:
    return Floor(url, tls=ssl.create_default_context() if url.startswith("https") else None, paced=paced)


def open_ours(url: str, *, has_status_sync: bool = True, **_: Any) -> Ours:
    return Ours(url, has_status_sync=has_status_sync)


def load_extension() -> None:
    """What a kernel has done before somebody runs a second cell: `%load_ext`, and its idle moment after it."""
    import threading

    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    before = set(threading.enumerate())
    shell.run_line_magic("load_ext", "notebook_ext")
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    sys.modules["notebook_ext.extension"]._import_all(False)
