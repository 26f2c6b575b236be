"""A small server that says exactly what a test wants, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

KEY = "rpa_PLANTED0KEY1THAT2MUST3NOT4SHOW"
LAST_TURNS = 5
"""Turns of the loop within which a connection that was just accepted is set up, and can be closed."""


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    send: Callable[[bytes], Awaitable[None]] = field(repr=False)

    @property
    def operation(self) -> str:
        """The first segment after the endpoint's id."""
        return self.path.removeprefix("/v2/").split("/")[1]


Served = TypeVar("Served")
Respond = Callable[[Asked], Awaitable[bytes | None]]


class Rude:
    """What the server has seen.

    Attributes:
        asked: The requests, in order.
        url: Its base URL.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.url = ""

    def count(self, *operations: str) -> int:
        return sum(asked.operation in operations for asked in self.asked)


def answer(document: Any = None, status: int = 200, *, text: str | None = None, **headers: str) -> bytes:
    """A whole HTTP answer: JSON, or `text` as it is. `_` in a header's name stands for `-`."""
    body = json.dumps(document).encode() if text is None else text.encode()
    fields = {"content_length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Word\r\n{head}\r\n".encode() + body


def always(said: bytes | None) -> Respond:
    """Say the same to everybody; None closes the connection without a word."""

    async def respond(asked: Asked) -> bytes | None:
        return said

    return respond


def script(**answers: Any) -> Respond:
    """Answer by operation (`_` for `-`): a list is used up to its last item, which then stays.

    An item is bytes, None (close without a word), a document, or a function of the request that
    gives one of them, possibly to be awaited.
    """
    remaining = {name: list(said) if isinstance(said, list) else [said] for name, said in answers.items()}

    async def respond(asked: Asked) -> bytes | None:
        rows = remaining[asked.operation.replace("-", "_")]
        said = rows.pop(0) if len(rows) > 1 else rows[0]
        if callable(said):
            said = said(asked)
        if isinstance(said, Awaitable):
            said = await said
        return said if said is None or isinstance(said, bytes) else answer(said)

    return respond


@contextlib.asynccontextmanager
async def rude(respond: Respond, port: int = 0) -> AsyncIterator[Rude]:
    """Listen; every connection that is still open at the end is closed."""
    server = Rude()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read(reader, writer)
            server.asked.append(asked)
            said = await respond(asked)
            if said is None:
                break
            await asked.send(said)

    async with listening(talk, port) as server.url:
        yield server


@contextlib.asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    port: int = 0,
) -> AsyncIterator[str]:
    """Talk on each connection until that ends or the client goes; gives the base URL."""
    talks: set[asyncio.Task[None]] = set()

    async def until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has gone
            await talk(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(until_gone(reader, writer))
        talks.add(task)
        task.add_done_callback(lambda _: writer.close())  # also where it is cancelled before it begins

    listener = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v2"
    finally:
        # asyncio forgets a connection that it has accepted, but not yet set up, when a server is closed
        for accepting in listener.sockets:
            asyncio.get_running_loop().remove_reader(accepting.fileno())
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        listener.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0)  # for the closing of them


@contextlib.contextmanager
def elsewhere(server: contextlib.AbstractAsyncContextManager[Served]) -> Iterator[Served]:
    """Run a server on a loop of its own, as on another machine."""
    from notebook_ext.loop import LoopThread

    loop = LoopThread("another machine")
    try:
        yield loop.submit(server.__aenter__()).result(5)
    finally:
        loop.submit(server.__aexit__(None, None, None)).result(5)
        loop.close()


async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip("\r\n").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)

    async def send(said: bytes) -> None:
        writer.write(said)
        await writer.drain()

    return Asked(
        method, parts.path, dict(parse_qsl(parts.query)), headers, json.loads(body) if body else None, send
    )
