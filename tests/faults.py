"""Every fault that a server, a proxy or the wire can cause, as something that a real server does."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from rude import KEY, Asked, answer, listening, read

PAGE = (
    "<html><head><style>p {color: red}</style><script>alert('x')</script></head>"
    "<body><h1>502 Bad Gateway</h1>\n<p class='a'>nginx is &quot;sorry&quot;</p></body></html>"
)
BOMB = gzip.compress(bytes(4 * 2**20), mtime=0)
LATENCY = 0.1
"""Seconds that a slow server takes; one that is too slow takes `TOO_LONG`."""
TOO_LONG = 5.0


@dataclass(frozen=True)
class Talk:
    """One request, and how to answer it.

    Attributes:
        asked: What was asked; None where the connection is treated badly before it is read.
        document: What a good server would answer.
    """

    asked: Asked | None
    document: Any
    writer: asyncio.StreamWriter

    async def say(self, said: bytes) -> None:
        self.writer.write(said)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Close(Exception):
    """The server is done with this connection."""


Act = Callable[[Talk], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Args:
        name: For the table.
        act: What the server does instead of a good answer.
        is_slow: It is about time: the client's clocks are shortened for it.
        is_refusal: Nothing was done by the server, and its answer or the wire says so.
        is_unread: It strikes before the request is read.
        is_endless: A server that goes on like that is followed for ever, as it asks to be.
    """

    name: str
    act: Act
    is_slow: bool = False
    is_refusal: bool = False
    is_unread: bool = False
    is_endless: bool = False

    @property
    def is_waited_out(self) -> bool:
        """Whether the server asks for nothing but time."""
        return self.name[:3] in ("425", "429") or self.name == "503 with Retry-After"


# ---------------------------------------------------------------------------------- what a server does


async def good(talk: Talk) -> None:
    await talk.say(answer(talk.document))


def says(said: bytes, *, closes: bool = False) -> Act:
    async def act(talk: Talk) -> None:
        await talk.say(said)
        if closes:
            raise Close

    return act


def status(code: int, text: str | None = None, **headers: str) -> Act:
    return says(answer({"error": f"sorry, {KEY}"}, code, text=text, **headers))


def mangles(change: Callable[[Any], Any]) -> Act:
    """Answer with a good document, changed: to bytes of a body, or to another document."""

    async def act(talk: Talk) -> None:
        changed = change(talk.document)
        body = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        await talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return act


def _packed(talk: Talk) -> bytes:
    return answer(talk.document).partition(b"\r\n\r\n")[2]


async def _late(talk: Talk) -> None:
    await asyncio.sleep(LATENCY)
    await good(talk)


async def _too_late(talk: Talk) -> None:
    await asyncio.sleep(TOO_LONG)
    await good(talk)


def _hangs_after(said: bytes) -> Act:
    async def act(talk: Talk) -> None:
        await talk.say(said)
        await asyncio.sleep(3600)

    return act


async def _drips(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
    while True:
        await talk.say(b" ")
        await asyncio.sleep(LATENCY)


async def _resets(talk: Talk) -> None:
    talk.reset()
    raise Close


async def _closes(talk: Talk) -> None:
    raise Close


async def _resets_in_body(talk: Talk) -> None:
    whole = answer(talk.document)
    await talk.say(whole[:-5])
    await asyncio.sleep(0.02)  # what has been sent arrives before the RST
    talk.reset()
    raise Close


async def _half_a_body(talk: Talk) -> None:
    await talk.say(answer(talk.document)[:-5])
    raise Close


async def _half_a_chunk(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + _packed(talk)[:5])
    raise Close


async def _without_length(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 200 OK\r\n\r\n" + _packed(talk)[:-5])
    raise Close


async def _wrong_type(talk: Talk) -> None:
    await talk.say(answer(talk.document, content_type="text/html"))


async def _endless_body(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await talk.say(b"10000\r\n%b\r\n" % bytes(0x10000))


async def _date_ahead(talk: Talk) -> None:
    await status(429, Retry_After=formatdate(time.time() + 1, usegmt=True))(talk)


def _gzipped(body: bytes) -> Act:
    return says(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


# ---------------------------------------------------------------------------------- documents


def _fields(document: Any, **more: Any) -> Any:
    """The document with other fields; in a list, and in the chunks of a stream, in each item."""
    if isinstance(document, list):
        return [_fields(item, **more) for item in document]
    return {**document, **more}


def _with_output(document: Any, output: Any) -> Any:
    if isinstance(document, dict) and "stream" in document:
        return {**document, "stream": [{"output": output} for _ in document["stream"]]}
    return _fields(document, output=output)


def _of_wrong_types(document: Any) -> Any:
    if isinstance(document, list):
        return [_of_wrong_types(item) for item in document]
    return {key: {"no": [value]} if isinstance(value, str) else "no" for key, value in document.items()}


def _huge_numbers(document: Any) -> bytes:
    more = {
        "delayTime": "@1",
        "executionTime": "@2",
        "retries": "@1",
        "removed": "@1",
        "jobs": {"completed": "@1"},
    }
    text = json.dumps(_fields(document, **more))
    return text.replace('"@1"', "9" * 400).replace('"@2"', "1e999").encode()  # fmt: skip


REDIRECTS = (301, 302, 303, 307, 308)


def faults(elsewhere: str) -> list[Fault]:
    """All of them, in the order of the table.

    Args:
        elsewhere: The base URL of another host, to which nothing may ever go.
    """
    return [
        Fault("latency within the timeout", _late, is_slow=True),
        Fault("latency beyond the timeout", _too_late, is_slow=True),
        Fault("hang", _hangs_after(b""), is_slow=True),
        Fault("hang in the head", _hangs_after(b"HTTP/1.1 200 OK\r\nConte"), is_slow=True),
        Fault("hang in the body", _hangs_after(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"'), is_slow=True),
        Fault("slow body", _drips, is_slow=True),
        Fault("reset before the request was read", _resets, is_unread=True),
        Fault("closed before the request was read", _closes, is_unread=True),
        Fault("reset after the request was read", _resets),
        Fault("closed after the request was read", _closes),
        Fault("reset in the body", _resets_in_body),
        Fault("half a body", _half_a_body),
        Fault("half a chunked body", _half_a_chunk),
        Fault("half a body without a length", _without_length),
        Fault("not HTTP", says(b"SSH-2.0-OpenSSH_9.9\r\n\r\n", closes=True)),
        *(Fault(str(code), status(code), is_refusal=True) for code in (400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 425)),
        Fault("429", status(429), is_refusal=True),
        Fault("429 with Retry-After", status(429, Retry_After="0.05"), is_refusal=True),
        Fault("429 with Retry-After as a date", _date_ahead, is_refusal=True),
        Fault("500", status(500)),
        *(Fault(str(code), status(code, PAGE)) for code in (502, 503, 504, 520)),
        Fault("503 with Retry-After", status(503, Retry_After="0.05"), is_refusal=True),
        Fault("HTML with 200", status(200, PAGE)),
        Fault("empty 200", status(200, "")),
        Fault("204", says(b"HTTP/1.1 204 No Content\r\n\r\n")),
        Fault("truncated JSON", mangles(lambda document: json.dumps(document).encode()[:-3])),
        Fault("garbled JSON", mangles(lambda document: json.dumps(document).encode().replace(b":", b"~"))),
        Fault("nested too deeply", mangles(lambda document: b"[" * 200_000)),
        Fault("JSON as text/html", _wrong_type),
        Fault("unknown status word", mangles(lambda document: _fields(document, status="WARMING_UP")), is_endless=True),
        Fault("missing fields", mangles(lambda document: {})),
        Fault("fields of the wrong type", mangles(_of_wrong_types)),
        Fault("naked array", mangles(lambda document: document.get("stream", [document]))),
        Fault("a number", mangles(lambda document: 7)),
        Fault("null", mangles(lambda document: None)),
        Fault("null output", mangles(lambda document: _with_output(document, None))),
        Fault("very large numbers", mangles(_huge_numbers)),
        Fault("more digits than can be read", mangles(lambda document: b'{"status": "COMPLETED", "x": %b}' % (b"9" * 5000))),
        Fault("invalid UTF-8", mangles(lambda document: json.dumps(_fields(document, note="@")).encode().replace(b"@", b"\xff\xfe"))),
        Fault("half characters", mangles(lambda document: _with_output(document, "\ud83d"))),
        Fault("charset that is none", says(answer(status=400, text="sorry", content_type="text/html; charset=hex")), is_refusal=True),
        *(
            Fault(f"redirect {code}", says(answer({}, code, Location=f"{elsewhere}/ep/run")), is_refusal=True)
            for code in REDIRECTS
        ),
        Fault("garbled gzip", _gzipped(b"not gzip")),
        Fault("truncated gzip", _gzipped(gzip.compress(b'{"status": "COMPLETED"}', mtime=0)[:-9])),
        Fault("gzip bomb", _gzipped(BOMB)),
        Fault("packed as nobody asked", says(answer({}, content_encoding="br"))),
        Fault("endless body", _endless_body),
        Fault("endless head", says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000)),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------- the server


Choose = Callable[[Asked], tuple[Act, Any]]
"""What is to be done about a request, and the document of a good answer to it."""


class Faulty:
    """What the server has seen.

    Attributes:
        url: Its base URL.
        asked: The requests that it has read, in order.
        unread: How many connections it has ended without reading.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.unread = 0

    def count(self, operation: str) -> int:
        return sum(asked.operation == operation for asked in self.asked)


@contextlib.asynccontextmanager
async def faulty(choose: Choose, *, refuse: Callable[[], Act | None] = lambda: None) -> AsyncIterator[Faulty]:
    """Listen; every connection that is still open at the end is closed.

    Args:
        choose: Called for each request.
        refuse: Called for each connection; what it gives is done before anything is read.
    """
    server = Faulty()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(Close):
            if (act := refuse()) is not None:
                server.unread += 1
                await act(Talk(None, None, writer))
            while True:
                asked = await read(reader, writer)
                server.asked.append(asked)
                act, document = choose(asked)
                await act(Talk(asked, document, writer))

    async with listening(talk) as server.url:
        yield server
