"""HTTP/1.1 under httpx: kept-alive asyncio connections, parsed by httptools, found in O(1).

httpx's own pool walks all of its connections on every request, so that the CPU time of one
exchange grows with the number of exchanges in flight; here it does not.

What an exception says is what happened, because a job must never be submitted twice:

- `ConnectError`, `ConnectTimeout`, `PoolTimeout`, `LocalProtocolError`, `UnsupportedProtocol`:
  nothing was sent.
- `WriteError`, `WriteTimeout`, `ReadError`, `ReadTimeout`, `RemoteProtocolError`: something was
  sent and no whole answer came back. Nothing that was sent is ever sent again.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import select
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import httptools
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

__all__ = ["Connections", "make_client", "ssl_context"]

MAX_CONNECTIONS = 256
MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
KEEP_ALIVE = 60.0
# Before the second that a server announces, since its clock started before ours.
KEEP_ALIVE_MARGIN = 1.0
# RFC 8305's delay before the next address of a host is tried beside the first.
NEXT_ADDRESS_AFTER = 0.25

_context_lock = threading.Lock()


def ssl_context() -> ssl.SSLContext:
    """The process's one TLS context, with the certificates that httpx would trust.

    The first call parses the whole CA bundle (some 100 ms of CPU): call it in a thread ahead of
    need. `SSL_CERT_FILE` and `SSL_CERT_DIR` are read then.
    """
    with _context_lock:
        return _build_ssl_context()


@functools.cache
def _build_ssl_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def make_client(
    base_url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | float | None = 30.0,
    max_connections: int = MAX_CONNECTIONS,
) -> httpx.AsyncClient:
    """A client over `Connections`, or over httpx's own transport where a proxy applies.

    Args:
        base_url: Where all of its requests go.
        headers: What each request carries.
        timeout: Seconds, for connecting, writing, reading and waiting for a connection.
        max_connections: How many may be open at once; further requests wait.
    """
    if _proxy_applies(httpx.URL(base_url)):
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        return httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout, limits=limits, verify=ssl_context()
        )
    # Given a transport, httpx asks the environment for nothing but proxies, which do not apply.
    return httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=timeout,
        transport=Connections(max_connections=max_connections),
        trust_env=False,
    )


def _proxy_applies(url: httpx.URL) -> bool:
    if _is_loopback(url.host):  # another machine's loopback is not ours, and the key would leave this one
        return False
    proxies = urllib.request.getproxies()
    if not (proxies.get(url.scheme) or proxies.get("all")):
        return False
    return not urllib.request.proxy_bypass(url.netloc.decode("ascii"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


class Connections(httpx.AsyncBaseTransport):
    """Kept-alive HTTP/1.1 connections of one event loop.

    Bodies are read and sent whole. Beside httpx's `timeout`, requests may carry the extension
    `fresh_after`: seconds of idleness after which a kept connection is not used for them. A
    server that is just closing an idle connection may or may not have read a POST on it, so
    submissions take a young connection or a new one.

    Args:
        ssl_context: For https; None takes `ssl_context()`, built when it is first needed.
        max_connections: How many may be open at once; further requests wait.
        keep_alive: Seconds that an idle connection is kept; a server's `Keep-Alive` may shorten it.
        max_body: Bytes of one answer as it travels, above which it is refused.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
        keep_alive: float = KEEP_ALIVE,
        max_body: int = MAX_BODY,
    ) -> None:
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._keep_alive = keep_alive
        self._max_body = max_body
        self._slots = asyncio.Semaphore(max_connections)
        self._busy = 0
        self._closed = False
        self._open: set[Connection] = set()
        # Insertion order is the order of release: the last is the youngest, the first the oldest.
        self._idle: dict[Origin, dict[Connection, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._claim_loop()
        try:
            answer = await self._exchange(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            stream=httpx.ByteStream(answer.body),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection; exchanges in flight fail with `ReadError`."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for connection in self._open:
            connection.abort()
        await asyncio.gather(*(connection.closed for connection in self._open))

    async def _exchange(self, request: httpx.Request) -> Answer:
        origin = Origin.of(request.url)
        message = await _serialize(request)
        timeouts = request.extensions.get("timeout", {})
        await self._take_slot(timeouts.get("pool"))
        self._busy += 1
        try:
            connection = self._reuse(origin, request.extensions.get("fresh_after"))
            if connection is None:
                connection = await self._connect(origin, timeouts.get("connect"))
            try:
                answer = await connection.exchange(message, timeouts.get("write"), timeouts.get("read"))
            except BaseException:  # cancellation too: what is half read is never used again
                connection.abort()
                raise
            self._release(origin, connection)
            return answer
        finally:
            self._busy -= 1
            self._slots.release()

    def _claim_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("these connections belong to another event loop")

    async def _take_slot(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout if self._slots.locked() else None):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout(f"all {self._max_connections} connections were busy") from None

    def _reuse(self, origin: Origin, fresh_after: float | None) -> Connection | None:
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection, _ = idle.popitem()
            if connection.expires_at <= now or not connection.is_quiet:
                connection.abort()
            elif fresh_after is not None and now - connection.idle_since > fresh_after:
                idle[connection] = None  # good enough for those who do not ask
                return None
            else:
                return connection
        return None

    def _release(self, origin: Origin, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        connection.expires_at = connection.idle_since + min(self._keep_alive, connection.server_keeps)
        if self._closed or not connection.is_reusable or connection.expires_at <= connection.idle_since:
            connection.abort()
            return
        self._idle.setdefault(origin, {})[connection] = None
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(self._keep_alive, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long; runs only while there is something idle."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        expired = [item for idle in self._idle.values() for item in idle if item.expires_at <= now]
        for connection in expired:
            connection.abort()
        remain = sum(map(len, self._idle.values())) > len(expired)
        self._sweep_timer = loop.call_later(self._keep_alive / 2, self._sweep) if remain else None

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:
        loop = asyncio.get_running_loop()
        self._make_room()
        try:
            async with asyncio.timeout(timeout):
                context = await self._context() if origin.scheme == "https" else None
                _, connection = await loop.create_connection(
                    lambda: Connection(self, origin, self._max_body),
                    origin.host,
                    origin.port,
                    ssl=context,
                    happy_eyeballs_delay=NEXT_ADDRESS_AFTER,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(
                f"no connection to {origin.host}:{origin.port} within {timeout} s"
            ) from error
        except (OSError, UnicodeError) as error:  # DNS, refused, TLS; a name that cannot be looked up
            raise httpx.ConnectError(f"no connection to {origin.host}:{origin.port}: {error}") from error
        return connection

    async def _context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = await asyncio.to_thread(ssl_context)
        return self._ssl_context

    def _make_room(self) -> None:
        """Close idle connections, to any origin, until there is room for one more."""
        idle = [item for items in self._idle.values() for item in items]
        for connection in idle[: max(0, self._busy + len(idle) - self._max_connections)]:
            connection.abort()
            self._idle[connection.origin].pop(connection)

    def opened(self, connection: Connection) -> None:
        """A connection has been made."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone, whoever closed it."""
        self._open.discard(connection)
        self._idle.get(connection.origin, {}).pop(connection, None)


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time.

    Args:
        pool: Is told when it opens and when it is lost.
        origin: Whom it leads to.
        max_body: Bytes of an answer as it travels, above which it is refused.
    """

    _transport: asyncio.Transport
    _is_readable: Callable[[], bool]

    def __init__(self, pool: Connections, origin: Origin, max_body: int) -> None:
        self.origin = origin
        self.idle_since = self.expires_at = 0.0
        self._pool = pool
        self._max_body = max_body
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._keeps_alive = True
        self._is_writing = False
        self._answer: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None

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
        self._whole: Answer | None = None
        self._received = self._head_size = 0
        self.server_keeps = float("inf")
        self._begin_message()
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
        if answer is None or answer.done():  # done: whoever waited was cancelled
            return
        if isinstance(result, Answer):
            answer.set_result(result)
        else:
            answer.set_exception(result)

    def _fail(self, error: httpx.TransportError) -> None:
        self._end(error)
        self._transport.abort()

    # -------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Pausing is how asyncio tells that not everything has been handed to the system yet.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._is_readable = _readability(transport.get_extra_info("socket").fileno())
        self._pool.opened(self)

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
        self._pool.lost(self)
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
        if self._answer is not None and self._timer is not None:
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


async def _serialize(request: httpx.Request) -> bytes:
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
