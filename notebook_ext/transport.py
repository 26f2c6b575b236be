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
import ipaddress
import urllib.request
import zlib
from typing import TYPE_CHECKING, Any

import httpx

from notebook_ext.tls import ssl_context
from notebook_ext.wire import MAX_BODY, Answer, Connection, Origin, open_connection, serialize

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

__all__ = ["Connections", "make_client", "make_streaming_client", "whole"]

MAX_CONNECTIONS = 256
KEEP_ALIVE = 60.0
CRASHED = 500
"""The status after which Python's web servers close the connection without saying so."""


def make_client(
    base_url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: httpx.Timeout | float | None = 30.0,
    max_connections: int = MAX_CONNECTIONS,
) -> httpx.AsyncClient:
    """A client over `Connections`, or over httpx's own transport where the environment sets a proxy.

    Args:
        base_url: Where all of its requests go.
        headers: What each request carries.
        timeout: Seconds, for connecting, writing, reading and waiting for a connection.
        max_connections: How many may be open at once; further requests wait.
    """
    headers = {"Accept-Encoding": "gzip", **(headers or {})}
    if _proxy_applies(httpx.URL(base_url)):
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        return ProxiedClient(
            base_url=base_url, headers=headers, timeout=timeout, limits=limits, verify=ssl_context()
        )
    connections = Connections(max_connections=max_connections, max_body=MAX_BODY)
    return Client(base_url, headers, timeout, connections)


def make_streaming_client(base_url: str) -> httpx.AsyncClient:
    """A client over httpx's own transport, whose answers can be read while they come.

    Each exchange has a connection of its own: closing that is how it is stopped, and none is used
    that the server may be closing just then.

    Args:
        base_url: Where all of its requests go.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"Accept-Encoding": "identity"},
        limits=limits,
        verify=ssl_context(),
        trust_env=_proxy_applies(httpx.URL(base_url)),
    )


async def whole(response: httpx.Response) -> httpx.Response:
    """An answer that was not read yet, with its body, which is bounded."""
    return _unpacked(response, await _bounded_body(response))


class Client(httpx.AsyncClient):
    """httpx's client without what an endpoint never needs: redirects, cookies, auth flows and hooks.

    They would take longer than the exchange itself; and a key that follows no redirect stays where
    it was meant to go.

    Args:
        base_url: Where all of its requests go.
        headers: What each request carries.
        timeout: Seconds, for connecting, writing, reading and waiting for a connection.
        connections: What it sends over; closed with it.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str] | None,
        timeout: httpx.Timeout | float | None,
        connections: Connections,
    ) -> None:
        super().__init__(
            base_url=base_url, headers=headers, timeout=timeout, transport=connections, trust_env=False
        )
        self._connections = connections

    async def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """The whole answer; httpx's own options, such as `stream`, are without effect."""
        response = await self._connections.handle_async_request(request)
        response.request = request
        if "content-encoding" in response.headers:
            return _unpacked(response, b"".join([part async for part in response.aiter_raw()]))
        await response.aread()
        return response


class ProxiedClient(httpx.AsyncClient):
    """httpx's client, over its own transport, with the same bounds on an answer."""

    async def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        """The whole answer; httpx's own options, such as `stream`, are without effect.

        Raises:
            ProxyError: The proxy failed before anything of the request itself was sent.
        """
        is_sent = False

        async def trace(event: str, about: Mapping[str, Any]) -> None:
            nonlocal is_sent
            is_sent |= (
                event.endswith("send_request_headers.started") and about["request"].method != b"CONNECT"
            )

        request.extensions["trace"] = trace
        try:
            response = await super().send(request, stream=True)
            return _unpacked(response, await _bounded_body(response))
        except httpx.TransportError as error:
            if is_sent:
                raise
            raise httpx.ProxyError(str(error) or type(error).__name__, request=request) from error


async def _bounded_body(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async for part in response.aiter_raw():
            body += part
            if len(body) > MAX_BODY:
                raise httpx.RemoteProtocolError(f"the answer cannot be read: it is over {MAX_BODY} bytes")
    finally:
        await response.aclose()
    return bytes(body)


def _unpacked(response: httpx.Response, body: bytes) -> httpx.Response:
    """The answer with its body unpacked: httpx's own decoders would let a few kilobytes fill the memory.

    Raises:
        DecodingError: It is packed in a way that was not asked for, broken, or over `MAX_BODY` bytes.
    """
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip") and body:
        body = _gunzipped(body, response.request)
    elif encoding not in ("gzip", "x-gzip", "identity", ""):
        raise httpx.DecodingError(f"it is packed as {encoding[:40]!r}", request=response.request)
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        content=body,
        request=response.request,
        extensions=response.extensions,
    )


def _gunzipped(body: bytes, request: httpx.Request) -> bytes:
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacking.decompress(body, MAX_BODY)
    except zlib.error as error:
        raise httpx.DecodingError(str(error), request=request) from error
    if not unpacking.eof:
        why = f"unpacked it is over {MAX_BODY} bytes" if len(unpacked) >= MAX_BODY else "it is cut off"
        raise httpx.DecodingError(why, request=request)
    return unpacked


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
        """Close all connections; what is in flight fails with `ReadError`, what waits with `ConnectError`."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.closed for connection in connections))

    async def _exchange(self, request: httpx.Request) -> Answer:
        origin = Origin.of(request.url)
        message = await serialize(request)
        timeouts = request.extensions.get("timeout", {})
        await self._take_slot(timeouts.get("pool"))
        self._busy += 1
        try:
            connection = self._reuse(origin, request.extensions.get("fresh_after"))
            if connection is None:
                connection = await self._connect(origin, timeouts.get("connect"))
            try:
                if self._closed:
                    raise httpx.ConnectError("the client was closed before anything was sent")
                answer = await connection.exchange(message, timeouts.get("write"), timeouts.get("read"))
            except BaseException:  # cancellation too: what is half read is never used again
                connection.abort()
                raise
            if answer.status_code == CRASHED:
                connection.abort()
            else:
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
        if not connection.is_reusable or connection.expires_at <= connection.idle_since:
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
        self._make_room()
        try:
            async with asyncio.timeout(timeout):
                context = await self._context() if origin.scheme == "https" else None
                return await open_connection(self, origin, context=context, max_body=self._max_body)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {origin.host}:{origin.port} in time") from error
        except (OSError, UnicodeError) as error:  # DNS, refused, TLS; a name that cannot be looked up
            raise httpx.ConnectError(f"no connection to {origin.host}:{origin.port}: {error}") from error

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
