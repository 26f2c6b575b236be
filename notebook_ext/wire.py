"""One kept-alive HTTP/1.1 connection: a request goes out, and its answer or the truth comes back.

The parsing is httptools' (llhttp); the exceptions are httpx's, and say what happened:
`transport` explains why that matters.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import httptools
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    _Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]

__all__ = ["MAX_BODY", "Answer", "Connection", "Origin", "Owner", "open_connection", "serialize"]

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
# A server's clock of idleness starts before ours.
KEEP_ALIVE_MARGIN = 1.0
# RFC 8305: how long before the next address of a host is tried beside the first.
NEXT_ADDRESS_AFTER = 0.25


class Origin(NamedTuple):
    """Whom a connection leads to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx.URL) -> Origin:
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(
                f"{url.scheme or 'no scheme'}: only http and https are spoken here"
            )
        return cls(
            url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        )


class Answer(NamedTuple):
    """One whole response."""

    status_code: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    extensions: dict[str, Any]


class Owner(Protocol):
    """Who is told when a connection opens, and when it is lost, whoever closed it."""

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


async def open_connection(
    owner: Owner, origin: Origin, *, context: ssl.SSLContext | None, max_body: int
) -> Connection:
    """Connect to the first address of the origin that answers.

    Args:
        owner: Whose connection it will be.
        origin: Whom to connect to.
        context: For https.
        max_body: Bytes of an answer as it travels, above which it is refused.

    Raises:
        OSError: No address, none that answers, or no TLS.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(owner, origin, max_body),
        sock=await _connected_socket(origin),
        ssl=context,
        server_hostname=origin.host if context else None,
    )
    return connection


async def _connected_socket(origin: Origin) -> socket.socket:
    """Race the origin's addresses with staggered starts, so that a dead IPv6 route costs little.

    asyncio's own race drops a socket that has just connected when it is cancelled.
    """
    addresses = iter(await _look_up(origin))
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException = OSError("the name has no address")
    try:
        while True:
            address = next(addresses, None)
            if address is not None:
                attempts.add(asyncio.create_task(_attempt(address)))
            if not attempts:
                raise failure
            done, attempts = await asyncio.wait(
                attempts,
                timeout=None if address is None else NEXT_ADDRESS_AFTER,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                if (error := attempt.exception()) is None:
                    attempts |= done - {attempt}
                    return attempt.result()
                failure = error
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_unused)
            attempt.cancel()


async def _look_up(origin: Origin) -> Sequence[_Address]:
    try:  # a literal address needs no thread
        return socket.getaddrinfo(
            origin.host, origin.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)


async def _attempt(address: _Address) -> socket.socket:
    family, kind, protocol, _, target = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_unused(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time.

    Args:
        owner: Is told when it opens and when it is lost.
        origin: Whom it leads to.
        max_body: Bytes of an answer as it travels, above which it is refused.
    """

    _transport: asyncio.Transport
    _is_readable: Callable[[], bool]

    def __init__(self, owner: Owner, origin: Origin, max_body: int) -> None:
        self.origin = origin
        self.idle_since = self.expires_at = 0.0
        self._owner = owner
        self._max_body = max_body
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._keeps_alive = True
        self._is_writing = False
        self._answer: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._forget()

    @property
    def is_reusable(self) -> bool:
        """Whether it can carry another exchange, as far as the event loop has heard."""
        return self._keeps_alive and not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether, at this moment, the server has neither closed it nor said anything unasked."""
        return self.is_reusable and not self._is_readable()

    def exchange(
        self, message: bytes, write_timeout: float | None, read_timeout: float | None
    ) -> asyncio.Future[Answer]:
        """Send a request; the future has its answer, or the httpx exception that says what happened.

        Args:
            message: The whole request.
            write_timeout: Seconds without progress while it is being sent.
            read_timeout: Seconds without a byte of the answer.
        """
        self._answer = answer = self._loop.create_future()
        self.server_keeps = float("inf")
        self._write_timeout, self._read_timeout = write_timeout, read_timeout
        self._transport.write(message)
        self._unsent = self._transport.get_write_buffer_size()
        self._moved_at = self._loop.time()
        self._watch()
        return answer

    def abort(self) -> None:
        """Close at once; an exchange in flight fails."""
        self._fail(httpx.ReadError("the connection was closed on this side"))

    def _end(self, result: Answer | httpx.TransportError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        answer, self._answer = self._answer, None
        self._forget()
        if answer is None or answer.done():  # done: whoever waited was cancelled
            return
        if isinstance(result, Answer):
            answer.set_result(result)
        else:
            answer.set_exception(result)

    def _forget(self) -> None:
        """Nothing of an answer is kept while the connection is idle."""
        self._whole: Answer | None = None
        self._received = self._head_size = 0
        self._begin_message()

    def _fail(self, error: httpx.TransportError) -> None:
        self._end(error)
        self._transport.abort()

    # -------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Pausing is how asyncio tells that not everything has been handed to the system yet.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._is_readable = _readability(transport.get_extra_info("socket").fileno())
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # unasked: a farewell such as 408, or garbage
            self.abort()
            return
        self._moved_at = self._loop.time()
        self._received += len(data)
        problem = self._parse(data)
        if self._head_size > MAX_HEAD or (not self._has_head and self._received > MAX_HEAD):
            problem = f"its head is over {MAX_HEAD} bytes"
        elif self._received > MAX_HEAD + self._max_body:
            problem = f"it is over {self._max_body} bytes"
        elif self._whole is not None:
            self._keeps_alive = self._keeps_alive and problem is None and not self._is_writing
            self._end(self._whole)
            return
        if problem is not None:
            self._fail(httpx.RemoteProtocolError(f"the answer cannot be read: {problem}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.lost(self)
        self.closed.set_result(None)
        if self._answer is None:
            return
        if error is not None:
            kind = httpx.WriteError if self._is_writing else httpx.ReadError
            self._end(kind(f"the connection broke: {error}"))
        elif self._has_head and not self._is_framed:  # a body that ends with the connection
            self.on_message_complete()
            self._end(self._whole or httpx.RemoteProtocolError("an answer without a final status"))
        elif self._received:
            self._end(httpx.RemoteProtocolError("the server closed in the middle of its answer"))
        else:
            self._end(httpx.RemoteProtocolError("the server closed without answering"))

    def pause_writing(self) -> None:
        self._is_writing = True

    def resume_writing(self) -> None:
        self._is_writing = False
        if self._answer is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._unsent = 0
            self._moved_at = self._loop.time()
            self._watch()

    # -------------------------------------------------------------------- called by the parser

    def _parse(self, data: bytes) -> str | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return "it switches to another protocol"
        except httptools.HttpParserError as error:
            return str(error)
        return None

    def _begin_message(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._reason = b""
        self._has_head = self._is_framed = False

    def on_message_begin(self) -> None:
        if self._whole is not None:  # a second answer to one question: keep the first
            self._keeps_alive = False
        self._begin_message()

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._has_head:  # a trailer
            return
        self._headers.append((name, value))
        field = name.lower()
        if field in (b"content-length", b"transfer-encoding"):
            self._is_framed = True
        elif field == b"keep-alive" and (match := _KEEP_ALIVE_TIMEOUT.search(value)):
            self.server_keeps = int(match[1]) - KEEP_ALIVE_MARGIN

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status_code = self._parser.get_status_code()
        if self._whole is not None or status_code < 200:  # 100 Continue and its like: the answer follows
            return
        version = f"HTTP/{self._parser.get_http_version()}".encode("ascii")
        self._keeps_alive = self._parser.should_keep_alive()
        self._whole = Answer(
            status_code,
            self._headers,
            b"".join(self._body),
            {"http_version": version, "reason_phrase": self._reason},
        )

    # -------------------------------------------------------------------- the clock of an exchange

    def _watch(self) -> None:
        timeout = self._write_timeout if self._is_writing else self._read_timeout
        self._timer = (
            None if timeout is None else self._loop.call_at(self._moved_at + timeout, self._check, timeout)
        )

    def _check(self, timeout: float) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._moved_at = self._loop.time()
        if self._loop.time() < self._moved_at + timeout:
            self._watch()
        elif self._is_writing:
            self._fail(httpx.WriteTimeout(f"the server took nothing more of the request for {timeout:g} s"))
        else:
            self._fail(httpx.ReadTimeout(f"nothing came from the server for {timeout:g} s"))


_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout\s*=\s*(\d{1,6})", re.IGNORECASE)


async def serialize(request: httpx.Request) -> bytes:
    """The whole request as it is sent.

    Raises:
        UnsupportedProtocol: A method whose answers are framed in other ways.
        LocalProtocolError: A header that would break out of its line.
    """
    body = await request.aread()
    if request.method in ("HEAD", "CONNECT"):
        raise httpx.UnsupportedProtocol(f"{request.method} is not spoken here")
    if "transfer-encoding" in request.headers:  # a body whose length was not known: it is now
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
        raise httpx.LocalProtocolError("a line break in a header (in a key, perhaps); nothing was sent")
    return head + b"\r\n\r\n" + body


if sys.platform == "win32":

    def _readability(descriptor: int) -> Callable[[], bool]:
        return lambda: bool(select.select([descriptor], [], [], 0)[0])

else:

    def _readability(descriptor: int) -> Callable[[], bool]:
        """A cheap question: does this socket have something to read, or its end?"""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return lambda: bool(poll.poll(0))
