"""A relay before a server: it passes on what is said, and remembers which requests went through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from rude import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_HOST = re.compile(rb"(?i)(\r\nhost: )[^\r]*")


@dataclass(frozen=True)
class Passed:
    """One request that went through."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        return self.path.split("/")[3]

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Relay:
    """Where clients go instead of the server.

    Attributes:
        url: The base URL.
        passed: The requests, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.passed: list[Passed] = []

    def about(self, job: str) -> list[Passed]:
        """The requests that name this job."""
        return [passed for passed in self.passed if passed.path.endswith(f"/{job}")]


@contextlib.asynccontextmanager
async def relaying(url: str, *, beneath: str = "") -> AsyncIterator[Relay]:
    """Stand before the server at this URL.

    Args:
        url: Of a server; its host and port count.
        beneath: The path below which clients find it, where it knows nothing of that itself.
    """
    relay, target = Relay(), urlsplit(url)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection(target.hostname, target.port)
        back = asyncio.create_task(_copy(answers, writer))
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                passed = await _read(head, reader)
                relay.passed.append(passed)
                head = _HOST.sub(rb"\g<1>" + target.netloc.encode(), head)
                questions.write(head.replace(f" {beneath}/".encode(), b" /", 1) + passed.body)
                await questions.drain()
        finally:
            back.cancel()
            questions.close()

    async with listening(talk) as relay.url:
        yield relay


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of the two ends; then the other one ends as well."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _read(head: bytes, reader: asyncio.StreamReader) -> Passed:
    first, *lines = head.decode().rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert "transfer-encoding" not in headers, "this relay knows where a body ends by its length only"
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return Passed(method, parts.path, dict(parse_qsl(parts.query)), headers, body)
