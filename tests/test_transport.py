"""The transport over real sockets, against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from notebook_ext import tls, transport
from notebook_ext.tls import ssl_context
from notebook_ext.transport import Connections, make_client

if TYPE_CHECKING:
    from pathlib import Path

Handler = Callable[["Peer"], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One connection, as a server sees it."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and body; IncompleteReadError when the client has gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        body = await self.reader.readexactly(length)
        self.server.requests.append((head, body))
        return head, body

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST, as a crashing server or an impatient load balancer does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Until the client has closed."""
        while await self.reader.read(65536):
            pass


class Server:
    """Runs one handler per connection and keeps what it saw."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = self.open = self.peak = 0
        self.all_closed = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        self.all_closed.clear()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.handler(Peer(self, reader, writer))
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        self.open -= 1
        if not self.open:
            self.all_closed.set()


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(handler)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    async with listener:
        yield server
        listener.close()
        if server.connections:
            async with asyncio.timeout(5):
                await server.all_closed.wait()


@contextlib.asynccontextmanager
async def client(server: Server, **options: object) -> AsyncIterator[httpx.AsyncClient]:
    timeout = options.pop("timeout", 5.0)
    async with httpx.AsyncClient(
        base_url=server.url, transport=Connections(**options), timeout=timeout, trust_env=False
    ) as http:
        yield http


def answering(data: bytes) -> Handler:
    """A server that says the same to every request."""

    async def handler(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(data)

    return handler


def answering_once(data: bytes) -> Handler:
    """A server that says this to one request and closes."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(data)

    return handler


ok = answering(WHOLE)


# ---------------------------------------------------------------------------------- whole answers


@pytest.mark.parametrize(
    ("data", "status_code", "body"),
    [
        (WHOLE, 200, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
            200,
            b"abc",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 7\r\n\r\n",
            200,
            b"ab",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + WHOLE, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, b""),
        (b"HTTP/1.1 502 \r\nContent-Length: 5\r\n\r\n<html", 502, b"<html"),
    ],
    ids=["length", "chunked", "trailers", "1xx", "204", "304", "no reason"],
)
def test_framings_keep_the_connection(data: bytes, status_code: int, body: bytes) -> None:
    async def main() -> None:
        async with serving(answering(data)) as server, client(server) as http:
            for _ in range(3):
                response = await http.get("/")
                assert (response.status_code, response.content) == (status_code, body)
                assert not {"x-sum", "link"} & set(response.headers)
            assert server.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("step", [1, 7])
def test_an_answer_in_small_pieces(step: int) -> None:
    data = b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    async def handler(peer: Peer) -> None:
        await peer.request()
        peer.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), step):
            await peer.say(data[start : start + step])
            await asyncio.sleep(0)
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            response = await http.get("/")
            assert response.content == b"abc"
            assert response.headers.get_list("x-a") == ["1", "2"]
            assert (response.reason_phrase, response.http_version) == ("Fine", "HTTP/1.1")

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=100\r\nContent-Length: 2\r\n\r\nok",
        WHOLE + WHOLE.replace(b"ok", b"no"),
        WHOLE + b"garbage that nobody asked for\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=[
        "Connection: close",
        "HTTP/1.0",
        "Keep-Alive about to end",
        "a second answer",
        "garbage behind it",
        "a crash behind it",
    ],
)
def test_answers_that_end_their_connection(data: bytes) -> None:
    async def main() -> None:
        async with serving(answering(data)) as server, client(server) as http:
            for expected in (1, 2):
                assert (await http.get("/")).content == b"ok"
                assert server.connections == expected

    asyncio.run(main())


def test_a_body_that_ends_with_the_connection() -> None:
    async def main() -> None:
        async with (
            serving(answering_once(b"HTTP/1.1 200 OK\r\n\r\nall of it")) as server,
            client(server) as http,
        ):
            assert (await http.get("/")).content == b"all of it"
            assert (await http.get("/")).content == b"all of it"

    asyncio.run(main())


def test_compression_is_httpxs_affair() -> None:
    packed = gzip.compress(b"hello " * 1000)
    data = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (
        len(packed),
        packed,
    )

    async def main() -> None:
        async with serving(answering(data)) as server, client(server) as http:
            assert (await http.get("/")).content == b"hello " * 1000

    asyncio.run(main())


# ---------------------------------------------------------------------------------- what is sent


def test_what_a_request_looks_like() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    async def main() -> None:
        async with serving(ok) as server, client(server) as http:
            await http.post("/p%20q?wait=5", json={"input": 1}, headers={"Authorization": "Bearer key"})
            head, body = server.requests[0]
            assert head.startswith(b"POST /p%20q?wait=5 HTTP/1.1\r\n")
            assert head.lower().count(b"\r\nhost: 127.0.0.1:") == 1
            assert b"\r\nAuthorization: Bearer key\r\n" in head
            assert body == b'{"input":1}'
        async with serving(answering_once(WHOLE)) as server, client(server) as http:
            await http.post("/", content=pieces())
            assert b"transfer-encoding: chunked" in server.requests[0][0].lower()

    asyncio.run(main())


def test_a_chunked_upload_arrives_whole() -> None:
    uploads = []

    async def handler(peer: Peer) -> None:
        await peer.request()
        uploads.append(await peer.reader.readuntil(b"0\r\n\r\n"))
        await peer.say(WHOLE)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            await http.post("/", content=pieces())
        assert uploads == [b"4\r\nabcd\r\n0\r\n\r\n"]

    asyncio.run(main())


@pytest.mark.parametrize("key", ["secret-key\n", "secret-key\r\nX-Evil: 1", "secret\0key"])
def test_a_line_break_in_a_header_is_refused_and_not_repeated(key: str) -> None:
    async def main() -> None:
        async with serving(ok) as server, client(server) as http:
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await http.get("/", headers={"Authorization": f"Bearer {key}"})
            assert "secret" not in str(caught.value)
            assert server.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize(("method", "url"), [("HEAD", "http://127.0.0.1:1/"), ("GET", "ftp://127.0.0.1/")])
def test_what_is_not_spoken(method: str, url: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(transport=Connections()) as http:
            with pytest.raises(httpx.UnsupportedProtocol):
                await http.request(method, url)

    asyncio.run(main())


# ---------------------------------------------------------------------------------- nothing was sent


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_refused_and_unknown_names_are_connect_errors() -> None:
    async def main() -> None:
        async with httpx.AsyncClient(transport=Connections(), timeout=5) as http:
            for host in (f"127.0.0.1:{closed_port()}", "no-such-host.invalid", "a" * 64 + ".invalid"):
                with pytest.raises(httpx.ConnectError) as caught:
                    await http.post(f"http://{host}/", json={})
                assert caught.value.request.method == "POST"

    asyncio.run(main())


def test_a_host_that_does_not_accept_is_a_connect_timeout() -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(2):  # its backlog is full now, and further SYNs go unanswered
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with httpx.AsyncClient(transport=Connections(), timeout=0.2) as http:
                with pytest.raises(httpx.ConnectTimeout):
                    await http.post(f"http://127.0.0.1:{full.getsockname()[1]}/", json={})

    asyncio.run(main())


def test_the_next_address_is_tried_beside_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with three addresses: one refuses, one is silent, one answers."""

    async def main() -> None:
        with socket.socket() as full, socket.socket() as filler, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for sock in (filler, second):
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            async with serving(ok) as server, httpx.AsyncClient(transport=Connections(), timeout=5) as http:
                real = httpx.URL(server.url).port
                ports = [closed_port(), full.getsockname()[1], real]
                found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]

                async def look_up(*args: object, **kwargs: object) -> list[tuple[object, ...]]:
                    return found

                monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
                assert (await http.get("http://three-addresses.test/")).content == b"ok"

    asyncio.run(main())


def test_waiting_for_a_connection_times_out() -> None:
    asked = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server, max_connections=1) as http:
            held = asyncio.create_task(http.get("/"))
            await asked.wait()
            with pytest.raises(httpx.PoolTimeout):
                await http.post("/", timeout=httpx.Timeout(5, pool=0.02))
            assert len(server.requests) == 1
            held.cancel()

    asyncio.run(main())


# ---------------------------------------------------------------------------------- no whole answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=[
        "closed without a word", "half a head", "half a body", "half a chunk", "no last chunk", "only a 100",
        "not HTTP", "bad status", "bad length", "two lengths", "bad chunk size", "101",
    ],
)  # fmt: skip
def test_an_unwhole_answer_is_a_protocol_error_after_one_submission(data: bytes) -> None:
    async def main() -> None:
        async with serving(answering_once(data)) as server, client(server) as http:
            with pytest.raises(httpx.RemoteProtocolError) as caught:
                await http.post("/run", json={"input": 1})
            assert caught.value.request.url.path == "/run"
            assert len(server.requests) == server.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 200 OK\r\n\r\nha"]
)
def test_a_reset_is_a_read_error_after_one_submission(before: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(before)
        peer.reset()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await http.post("/run", json={"input": 1})
            assert len(server.requests) == 1

    asyncio.run(main())


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
def test_silence_is_a_read_timeout(before: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(before)
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/run", json={}, timeout=httpx.Timeout(5, read=0.05))
            assert len(server.requests) == 1

    asyncio.run(main())


def test_the_read_timeout_is_the_time_between_bytes() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.05)
            await peer.say(b"x")

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            assert (await http.get("/", timeout=httpx.Timeout(5, read=0.3))).content == b"x" * 8

    asyncio.run(main())


BIG = b"x" * (16 * 1024 * 1024)


def test_a_server_that_does_not_read_is_a_write_timeout() -> None:
    done = asyncio.Event()

    async def handler(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await done.wait()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            with pytest.raises(httpx.WriteTimeout):
                await http.post("/run", content=BIG, timeout=httpx.Timeout(5, write=0.1))
            done.set()

    asyncio.run(main())


def test_silence_after_a_long_request_is_a_read_timeout_where_writing_has_none() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/run", content=BIG, timeout=httpx.Timeout(None, read=0.1))
            assert len(server.requests) == 1

    asyncio.run(main())


def test_a_server_that_goes_while_it_is_written_to_is_a_write_error() -> None:
    async def handler(peer: Peer) -> None:
        await peer.reader.readexactly(1000)
        peer.reset()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            with pytest.raises(httpx.WriteError):
                await http.post("/run", content=BIG)
            assert server.connections == 1

    asyncio.run(main())


def test_a_slow_reader_is_no_timeout_and_the_read_clock_starts_after_it() -> None:
    async def handler(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        left = len(BIG)
        while left:
            left -= len(await peer.reader.read(1 << 20))
            await asyncio.sleep(0.01)
        await peer.say(WHOLE)

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            response = await http.post("/run", content=BIG, timeout=httpx.Timeout(5, write=0.2, read=1))
            assert response.content == b"ok"

    asyncio.run(main())


def test_an_answer_before_the_whole_request_was_taken_counts_and_ends_the_connection() -> None:
    release = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await release.wait()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            assert (await http.post("/run", content=BIG)).status_code == 413
            release.set()
            assert (await http.post("/run", content=BIG)).status_code == 413
            assert server.connections == 2

    asyncio.run(main())


# ---------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nX-Bomb: ",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["header", "reason", "trailer"],
)
def test_an_endless_head_is_refused(start: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(start)
        while True:
            await peer.say(b"x" * 10_000)

    async def main() -> None:
        async with serving(handler) as server, client(server, max_body=200_000) as http:
            with pytest.raises(httpx.RemoteProtocolError, match="over"):
                await http.get("/")

    asyncio.run(main())


def test_too_many_headers_at_once_are_refused() -> None:
    data = b"HTTP/1.1 200 OK\r\n" + b"X-Bomb: 0123456789\r\n" * 5000 + b"Content-Length: 0\r\n\r\n"

    async def main() -> None:
        async with serving(answering(data)) as server, client(server) as http:
            with pytest.raises(httpx.RemoteProtocolError, match="head"):
                await http.get("/")

    asyncio.run(main())


def test_a_body_over_the_limit_is_refused() -> None:
    async def main() -> None:
        data = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
        async with serving(answering(data)) as server:
            async with client(server, max_body=100_000) as http:
                with pytest.raises(httpx.RemoteProtocolError, match="100000 bytes"):
                    await http.get("/")
            async with client(server, max_body=400_000) as http:
                assert len((await http.get("/")).content) == 300_000

    asyncio.run(main())


# ---------------------------------------------------------------------------------- kept connections


def test_a_connection_closed_while_idle_is_replaced_silently() -> None:
    async def main() -> None:
        async with serving(answering_once(WHOLE)) as server, client(server) as http:
            for _ in range(5):
                assert (await http.post("/run", json={})).content == b"ok"
                async with asyncio.timeout(5):  # the server's FIN is on its way, or already unread here
                    await server.all_closed.wait()
            assert len(server.requests) == server.connections == 5

    asyncio.run(main())


def test_an_end_that_the_loop_has_not_heard_yet_is_noticed_before_writing() -> None:
    """The server closes while this thread is busy, so no callback can have told us."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[bytes] = []

    def serve_two() -> None:
        for _ in range(2):
            peer, _ = listener.accept()
            accepted.append(peer.recv(65536))
            peer.sendall(WHOLE)
            closing.wait(5)
            peer.close()
            closed.set()

    closing, closed = threading.Event(), threading.Event()
    thread = threading.Thread(target=serve_two)
    thread.start()

    async def main() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/run"
        async with httpx.AsyncClient(transport=Connections(), timeout=5) as http:
            assert (await http.post(url)).content == b"ok"
            closing.set()
            assert closed.wait(5)  # blocks the event loop on purpose
            assert (await http.post(url)).content == b"ok"
        assert len(accepted) == 2
        assert all(accepted)

    asyncio.run(main())
    thread.join(5)
    listener.close()


def test_a_post_on_a_connection_that_is_just_closing_has_one_submission_and_an_honest_error() -> None:
    """The server reads the second request and closes without a word: its fate is unknown."""

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(WHOLE)
        await peer.request()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            await http.post("/run", json={"input": 1})
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await http.post("/run", json={"input": 2})
            assert [body for _, body in server.requests] == [b'{"input":1}', b'{"input":2}']

    asyncio.run(main())


def test_fresh_after_leaves_an_idle_connection_to_others() -> None:
    async def main() -> None:
        async with serving(ok) as server, client(server) as http:
            await http.get("/")
            await http.post("/", extensions={"fresh_after": 60})
            assert server.connections == 1
            await http.post("/", extensions={"fresh_after": 0})
            assert server.connections == 2
            await asyncio.gather(http.get("/"), http.get("/"))
            assert server.connections == 2

    asyncio.run(main())


def test_idle_connections_expire() -> None:
    async def main() -> None:
        async with serving(ok) as server, client(server, keep_alive=0.05) as http:
            await asyncio.gather(*(http.get("/") for _ in range(5)))
            assert server.connections == 5
            async with asyncio.timeout(5):
                await server.all_closed.wait()

    asyncio.run(main())


def test_an_expired_connection_is_not_used_even_before_it_is_swept() -> None:
    async def main() -> None:
        async with serving(ok) as server, client(server, keep_alive=0.02) as http:
            await http.get("/")
            time.sleep(0.05)  # blocks the event loop on purpose
            await http.get("/")
            assert server.connections == 2

    asyncio.run(main())


def test_something_said_unasked_ends_the_connection() -> None:
    said = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(WHOLE)
        await asyncio.sleep(0.01)
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        said.set()
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server) as http:
            for _ in range(2):
                assert (await http.post("/run")).status_code == 200
                await said.wait()
                said.clear()

    asyncio.run(main())


def test_a_cancelled_request_closes_its_connection_and_the_next_gets_its_own_answer() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def handler(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/slow" in head:
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
            asked.set()
            await peer.gone()
            gone.set()
        else:
            await peer.say(WHOLE)
            await peer.gone()

    async def main() -> None:
        async with serving(handler) as server, client(server, max_connections=1) as http:
            slow = asyncio.create_task(http.get("/slow"))
            await asked.wait()
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            async with asyncio.timeout(5):
                await gone.wait()
            assert (await http.get("/fast")).content == b"ok"
            assert server.connections == 2

    asyncio.run(main())


def test_cancelling_while_it_connects_or_waits_frees_the_slot() -> None:
    asked = asyncio.Event()

    async def handler(peer: Peer) -> None:
        asked.set()
        await ok(peer)

    async def main() -> None:
        async with serving(handler) as server, client(server, max_connections=1) as http:
            for steps in range(12):  # wherever a cancellation falls
                task = asyncio.create_task(http.get("/"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert (await http.get("/")).content == b"ok"

    asyncio.run(main())


def test_hundreds_at_once_share_few_connections() -> None:
    async def handler(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            await asyncio.sleep(0.001)
            name = head.split(b" ")[1]
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    async def main() -> None:
        async with serving(handler) as server, client(server, max_connections=20, timeout=30) as http:
            answers = await asyncio.gather(*(http.get(f"/{n}") for n in range(500)))
            assert [answer.text for answer in answers] == [f"/{n}" for n in range(500)]
            assert server.connections == server.peak == 20

    asyncio.run(main())


def test_the_bound_holds_over_several_origins() -> None:
    async def main() -> None:
        async with serving(ok) as one, serving(ok) as two, client(one, max_connections=4) as http:
            await asyncio.gather(*(http.get(one.url) for _ in range(4)))
            await asyncio.gather(*(http.get(two.url) for _ in range(3)))
            await asyncio.sleep(0.01)
            assert (one.open, two.open) == (1, 3)

    asyncio.run(main())


# ---------------------------------------------------------------------------------- closing, loops


def test_closing_ends_what_is_in_flight_and_leaks_nothing(recwarn: pytest.WarningsRecorder) -> None:
    asked = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.say(WHOLE)
        await peer.request()
        asked.set()
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server:
            pool = Connections()
            http = httpx.AsyncClient(base_url=server.url, transport=pool, timeout=5)
            await asyncio.gather(http.get("/"), http.get("/"))
            held = asyncio.create_task(http.get("/"))
            await asked.wait()
            await http.aclose()
            with pytest.raises(httpx.ReadError, match="on this side"):
                await held
            async with asyncio.timeout(5):
                await server.all_closed.wait()
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main(), debug=True)
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_what_still_waits_when_it_is_closed_is_not_sent() -> None:
    asked = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async def main() -> None:
        async with serving(handler) as server:
            http = httpx.AsyncClient(base_url=server.url, transport=Connections(max_connections=1), timeout=5)
            tasks = [asyncio.create_task(http.post("/run")) for _ in range(2)]
            await asked.wait()
            await http.aclose()
            held, waiting = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(held, httpx.ReadError)
            assert isinstance(waiting, httpx.ConnectError)
            assert len(server.requests) == 1

    asyncio.run(main())


def test_a_second_loop_is_refused() -> None:
    pool = Connections()

    async def main() -> None:
        async with serving(ok) as server, httpx.AsyncClient(transport=pool) as http:
            await http.get(server.url)

    async def again() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await httpx.AsyncClient(transport=pool).get("http://127.0.0.1:1/")

    asyncio.run(main())
    asyncio.run(again())


# ---------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def fresh_context(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    tls._build.cache_clear()
    yield monkeypatch
    tls._build.cache_clear()


def test_https_with_a_given_context(certificate: Path, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with serving(ok, server_tls) as server, client(server, ssl_context=trusting) as http:
            for _ in range(3):
                assert (await http.post("/run", content=b"x" * 300_000)).content == b"ok"
            assert server.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
def test_https_tells_the_same_truths(data: bytes, certificate: Path, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with (
            serving(answering_once(data), server_tls) as server,
            client(server, ssl_context=trusting) as http,
        ):
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post("/run", json={})
            assert len(server.requests) == 1
        async with (
            serving(answering_once(WHOLE), server_tls) as server,
            client(server, ssl_context=trusting) as http,
        ):
            for _ in range(3):
                assert (await http.post("/run", json={})).content == b"ok"
                async with asyncio.timeout(5):
                    await server.all_closed.wait()

    asyncio.run(main())


def test_an_untrusted_certificate_and_a_server_without_tls_are_connect_errors(
    server_tls: ssl.SSLContext,
) -> None:
    async def without_tls(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with serving(ok, server_tls) as server, client(server) as http:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await http.post("/run", json={})
            assert server.requests == []
        async with serving(without_tls) as server, client(server) as http:
            with pytest.raises(httpx.ConnectError):
                await http.post(server.url.replace("http:", "https:"), json={})

    asyncio.run(main())


def test_the_environment_names_the_certificates(
    certificate: Path, server_tls: ssl.SSLContext, fresh_context: pytest.MonkeyPatch
) -> None:
    fresh_context.setenv("SSL_CERT_FILE", str(certificate))
    assert ssl_context() is ssl_context()

    async def main() -> None:
        async with serving(ok, server_tls) as server, make_client(server.url) as http:
            assert (await http.get("/")).content == b"ok"

    asyncio.run(main())


def test_a_certificate_file_that_is_missing_is_a_connect_error(
    tmp_path: Path, fresh_context: pytest.MonkeyPatch
) -> None:
    fresh_context.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))

    async def main() -> None:
        async with httpx.AsyncClient(transport=Connections()) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("https://127.0.0.1:1/")

    asyncio.run(main())


# ---------------------------------------------------------------------------------- the client


def test_the_client_follows_no_redirect_and_keeps_no_cookie() -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok"

    async def main() -> None:
        async with (
            serving(answering(data)) as server,
            make_client(server.url, headers={"X-Key": "k"}) as http,
        ):
            for _ in range(2):
                response = await http.post("/run", json={"input": 1}, follow_redirects=True)
                assert (response.status_code, response.text, response.url.path) == (302, "ok", "/run")
            assert not http.cookies
            head, body = server.requests[1]
            assert b"cookie" not in head.lower()
            assert b"\r\nX-Key: k\r\n" in head
            assert body == b'{"input":1}'
            assert (len(server.requests), server.connections) == (2, 1)

    asyncio.run(main())


def test_the_client_closes_its_connections() -> None:
    async def main() -> None:
        async with serving(ok) as server:
            http = make_client(server.url)
            await http.get("/")
            await http.aclose()
            async with asyncio.timeout(5):
                await server.all_closed.wait()
            with pytest.raises(httpx.ConnectError, match="closed"):
                await http.get("/")
            assert len(server.requests) == 1

    asyncio.run(main())


# ---------------------------------------------------------------------------------- proxies


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_a_proxy_is_used_where_it_applies(no_proxies: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(ok) as proxy:
            no_proxies.setenv("http_proxy", proxy.url)
            async with make_client("http://api.example.test/v2") as http:
                assert (await http.get("/health")).content == b"ok"
            assert proxy.requests[0][0].startswith(b"GET http://api.example.test/v2/health HTTP/1.1")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_proxy_never_gets_what_is_meant_for_this_machine(name: str, no_proxies: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(ok) as server, serving(ok) as proxy:
            no_proxies.setenv(name, proxy.url)
            async with make_client(server.url) as http:
                assert (await http.get("/")).content == b"ok"
            assert (len(server.requests), len(proxy.requests)) == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("variables", "url", "applies"),
    [
        ({}, "https://api.example.test", False),
        ({"https_proxy": "http://proxy.test:1"}, "https://api.example.test", True),
        ({"https_proxy": "http://proxy.test:1"}, "http://api.example.test", False),
        ({"all_proxy": "http://proxy.test:1"}, "https://api.example.test", True),
        (
            {"https_proxy": "http://proxy.test:1", "no_proxy": "example.test"},
            "https://api.example.test",
            False,
        ),
        ({"https_proxy": "http://proxy.test:1", "no_proxy": "*"}, "https://api.example.test", False),
        ({"http_proxy": "http://proxy.test:1"}, "http://localhost:8000", False),
        ({"http_proxy": "http://proxy.test:1"}, "http://[::1]:8000", False),
    ],
)
def test_when_a_proxy_applies(
    variables: dict[str, str], url: str, applies: bool, no_proxies: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        no_proxies.setenv(name, value)
    assert transport._proxy_applies(httpx.URL(url)) is applies
