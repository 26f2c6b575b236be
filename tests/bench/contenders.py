"""Who is measured: the floor, which is as little as a Python client can do, and `notebook_ext`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from notebook_ext import Endpoint
from tests.bench.figures import FLOOR, OURS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@contextmanager
def stopwatch(*, round_trip: float = 0.0, hold: float = 10.0) -> Iterator[str]:
    """Run a stopwatch server in a process of its own; gives its URL.

    Args:
        round_trip: Seconds, emulated.
        hold: Seconds for which `/stream` waits for news; 0 answers at once.
    """
    command = [
        sys.executable,
        "-m",
        "tests.bench.stopwatch",
        "--round-trip",
        str(round_trip),
        "--hold",
        str(hold),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


class Contender(Protocol):
    """A client of one endpoint."""

    async def submit(self, input: Any) -> str:
        """Queue a job and return its id."""
        ...

    def stream(self, job_id: str) -> AsyncIterator[Any]:
        """The job's tokens, as they come; ends after the job has."""
        ...

    async def ask_health(self) -> None:
        """The smallest exchange that there is."""
        ...

    async def close(self) -> None: ...


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
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(head.decode())
        self._buffer = b""
        assert self._answer is not None
        self._answer.set_result(body)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer


class Floor:
    """A bare asyncio loop over raw HTTP/1.1: one write, one read, one json.loads per exchange."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._headers = f"Host: {parts.netloc}\r\nAuthorization: Bearer key\r\n"
        self._idle: list[Wire] = []

    async def ask(self, method: str, path: str, document: Any = None) -> Any:
        if self._idle:
            wire = self._idle.pop()
        else:
            _, wire = await asyncio.get_running_loop().create_connection(Wire, *self._address)
        request = f"{method} {path} HTTP/1.1\r\n{self._headers}"
        body = "" if document is None else json.dumps(document)
        if body:
            request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        answer = await wire.ask(f"{request}\r\n{body}".encode())
        self._idle.append(wire)
        return json.loads(answer)

    async def submit(self, input: Any) -> str:
        return str((await self.ask("POST", "/v2/ep/run", {"input": input}))["id"])

    async def stream(self, job_id: str) -> AsyncIterator[Any]:
        status = ""
        while status not in FINAL:
            answer = await self.ask("GET", f"/v2/ep/stream/{job_id}")
            for chunk in answer["stream"]:
                yield chunk["output"]
            status = answer["status"]

    async def ask_health(self) -> None:
        await self.ask("GET", "/v2/ep/health")

    async def close(self) -> None:
        for wire in self._idle:
            wire.transport.abort()
        await asyncio.sleep(0)


class Ours:
    """`notebook_ext.Endpoint`, used as a user would."""

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint("ep", provider=f"{url}/v2", api_key="key")

    async def submit(self, input: Any) -> str:
        return (await self._endpoint.run(input)).id

    async def stream(self, job_id: str) -> AsyncIterator[Any]:
        async for chunk in self._endpoint.stream(job_id):
            yield chunk.output

    async def ask_health(self) -> None:
        await self._endpoint.health()

    async def close(self) -> None:
        await self._endpoint.aclose()


CONTENDERS: dict[str, type[Floor | Ours]] = {FLOOR: Floor, OURS: Ours}


async def warmed(name: str, url: str) -> Contender:
    """A contender that has its connection, and has imported what it imports."""
    contender = CONTENDERS[name](url)
    async for _ in contender.stream(await contender.submit({"tokens": 1})):
        pass
    return contender


async def stamps(url: str, job_id: str) -> dict[str, Any]:
    """What the stopwatch wrote down about a job."""
    floor = Floor(url)
    found: dict[str, Any] = await floor.ask("GET", f"/stamps/{job_id}")
    await floor.close()
    return found


def told(url: str, path: str) -> Any:
    """What the stopwatch tells code that does not await."""
    with urllib.request.urlopen(url + path) as answer:
        return json.load(answer)
