"""The server that the benchmarks measure against: a process of its own, which stamps what it does.

It speaks the endpoint protocol over bare asyncio and emulates a network's round trip: half of it
passes before a request arrives, half before its answer leaves. A job's `input` says what it does:

    {"tokens": 200, "interval": 0.02, "first": 0.3, "finish": 0.005}

token `i` comes `first + i * interval` seconds after a worker took it, COMPLETED `finish` seconds after
the last one; with `"queued": true` it waits in the queue until its first token. Without tokens, its output
is its `"tag"`; two jobs with the same tag are one that was submitted twice. Each event is stamped with
`time.monotonic()`, which all processes of a machine share, at the moment it becomes visible to a reader,
so that a late timer here is charged to nobody.

`GET /stamps/JOB` gives the stamps, and how many requests were made about the job, `GET /tagged/TAG` those of
the newest job with that tag; `GET /tally` counts requests, refusals, connections and repeated submissions.

    python -m tests.bench.stopwatch '{"round_trip": 0.03, "limited": true}'

takes the fields of `stopwatch_service.Conditions`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httptools

from tests.bench.stopwatch_service import Answer, Conditions, Fault, Service, told

if TYPE_CHECKING:
    from collections.abc import Callable


class Conversation(asyncio.Protocol):
    """One client connection; its requests are answered one after the other."""

    _transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._body = b""
        self._has_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._has_asked:
            self._service.disconnected()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._target = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url = urlsplit(self._target.decode())
        if not url.path.startswith("/v2/"):
            self._look(url.path)
            return
        delay = self._service.conditions.round_trip / 2
        if not self._has_asked:
            self._has_asked = True
            self._service.connected()
            delay += self._service.conditions.connecting
        self._after(delay, self._service.ask, url.path, url.query, self._body, self._reply)

    def _look(self, path: str) -> None:
        try:
            self._send(self._service.look(path))
        except KeyError as error:
            self._send(told({"error": repr(error)}, 404))

    def _reply(self, answer: Answer) -> None:
        self._after(self._service.conditions.round_trip / 2, self._send, answer)

    def _after(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        if delay:
            self._loop.call_later(delay, callback, *args)
        else:
            callback(*args)

    def _send(self, answer: Answer) -> None:
        if self._transport.is_closing():
            return
        if answer.sent == 0.0:
            self._reset()
            return
        when = "" if answer.retry_after is None else f"Retry-After: {answer.retry_after}\r\n"
        kind = "text/html" if answer.body.startswith(b"<") else "application/json"
        head = f"HTTP/1.1 {answer.status} -\r\nContent-Type: {kind}\r\n{when}Content-Length: {len(answer.body)}\r\n\r\n"
        if answer.sent is None:
            self._transport.write(head.encode() + answer.body)
        else:
            self._transport.write(head.encode() + answer.body[: int(len(answer.body) * answer.sent)])
            self._loop.call_later(0.002, self._reset)  # what was written is to arrive before

    def _reset(self) -> None:
        """End the connection as a crash does: with a RST, not with a farewell."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def serve(conditions: Conditions) -> None:
    """Serve on a free port, told on standard output, until standard input ends."""
    loop = asyncio.get_running_loop()
    service = Service(conditions)
    tls = None
    if conditions.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(conditions.certificate)
    server = await loop.create_server(lambda: Conversation(service), "127.0.0.1", 0, backlog=4096, ssl=tls)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    faults = tuple(Fault(**fault) for fault in given.pop("faults", ()))
    asyncio.run(serve(Conditions(**given, faults=faults)))


if __name__ == "__main__":
    main()
