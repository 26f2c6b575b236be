"""Anything at all is sent: the server refuses it or does it, never fails, never hangs, and forgets nothing.

`pytest tests/test_server_fuzz.py --fuzz 50000` sends more than the tests usually do.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_ext.loop import LoopThread
from notebook_ext.server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
"""Seconds after which a request that is whole, and has no answer, hangs."""
GLANCE = 0.02
"""Seconds in which a broken request may be answered; the server may as well wait for the rest of it."""
WEBHOOKS = [
    "http://127.0.0.1:1/hook",
    "file:///etc/passwd",
    "http://[",
    "//x",
    "http://a:b@127.0.0.1/",
    7,
    "\ud800",
]


@dataclass
class Served:
    """A server in a thread, with jobs in it."""

    server: EmbeddedServer
    loop: LoopThread
    jobs: list[str]

    def on_loop(self, function: Any) -> Any:
        async def call() -> Any:
            return function()

        return self.loop.submit(call()).result(10)

    def health(self) -> Any:
        headers = {"Authorization": f"Bearer {self.server.token}"}
        return httpx.get(f"{self.server.base_url}/echo/health", headers=headers, trust_env=False).json()


def generator(job: dict[str, Any]) -> Iterator[Any]:
    yield from ("a", None, {"b": [job["input"]]})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path_factory.mktemp("workers")))
        patch.setattr("notebook_ext.server.gate.TAKE_REFUSAL_PAUSE", 0)
        patch.setattr("notebook_ext.server.demos.write_salad", lambda **_: iter(["a ", "b "]))
        patch.setattr("notebook_ext.server.queue.random", random.Random())  # hypothesis owns the other one
        loop, server = LoopThread(), EmbeddedServer(webhook_pause=0.001)
        loop.submit(_serve(server)).result(10)
        base, headers = server.base_url, {"Authorization": server.token}
        with httpx.Client(base_url=base, headers=headers, trust_env=False) as http_client:
            jobs = [
                http_client.post(f"/{name}/runsync", json={"input": 1}).json()["id"]
                for name in ("echo", "fail", "gen", "chat")
            ]
        yield Served(server, loop, jobs)
        loop.submit(server.stop()).result(10)
        loop.close()


async def _serve(server: EmbeddedServer) -> None:
    await server.start()
    for name, handler in {"echo": "echo", "fail": "fail", "gen": generator, "chat": "chat"}.items():
        server.serve(name, handler, workers=4)
    server.serve("ext", None, external=True)


# ---------------------------------------------------------------------------------- what is sent

NAMES = [
    "echo",
    "gen",
    "chat",
    "nope",
    "",
    "%65cho",
    "ECHO",
    "..",
    "%2e%2e",
    "%2F",
    "%00",
    "%",
    "%zz",
    "%ff%fe",
    "a" * 3000,
]
OPERATIONS = [
    "run", "runsync", "status", "status-sync", "stream", "cancel", "retry", "purge-queue", "health", "requests",
    "openai/v1/chat/completions", "openai/v1/completions", "openai/v1/models", "openai/v1/embeddings", "openai/v1/",
    "openai/v1/%2e%2e/%2e%2e", "openai/v2/x", "batch", "job-take/w", "job-done/w", "job-stream/w", "job-stop/w", "ping/w",
    "run/", "run%20", "RUN", "", ".", "..%2f..%2fetc%2fpasswd", "%0d%0aX:%20y", "health;x=1", "run%3Fx", "%C3%28",
]  # fmt: skip
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"]
ENDS = ["", "/", "/{job0}", "/x", "/%2e%2e", "/{job0}/", "/%00", "/" + "y" * 500]
QUERIES = [
    "", "wait=1", "wait=0", "wait=-1", "wait=1e9", "wait=%D9%A3", "wait=" + "9" * 20, "wait=abc&wait=2", "wait", "ttl=1",
    "ttl=999999999999999", "ttl=0", "ttl=", "ttl=%00", "x=%ff", "&&&=", "%", "a[]=1;b", "?" * 50, "q=" + "z" * 4000,
]  # fmt: skip
HEADERS = [
    "Content-Type: application/json", "Content-Type: text/html; charset=hex", "Content-Type:", "Accept: */*", "Cookie: a=b; c",
    "Expect: 100-continue", "Connection: keep-alive", "Connection: close", "Content-Encoding: gzip", "Range: bytes=0-1",
    "If-None-Match: *", "X-Forwarded-Host: evil.example", "X-Forwarded-For: 8.8.8.8", "X-HTTP-Method-Override: DELETE",
    "X-Original-URL: /admin", "Forwarded: host=evil.example", "TE: trailers", "Via: 1.1 x", "Max-Forwards: 0", "Date: never",
    "X-Long: " + "y" * 3000, "X-Empty:", "X-Latin: \xe4\xff", "Accept-Encoding: " + "gzip," * 200, "User-Agent: \x80",
    "X-Request-ID: ../../x",
]  # fmt: skip
STRANGE_HEADERS = [
    "Origin: https://evil.example", "Origin: null", "Host: evil.example", "Host:", "Authorization: Bearer", "Authorization: \xff",
    "Authorization: Basic Og==", "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999",
    "Content-Length: 3, 3", "Content-Length: ٣".encode().decode("latin-1"), "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity", "Transfer-Encoding : chunked", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    " folded: yes", ": nameless", "no colon", "X\x00: y", "X: a\rb", "X: \x00", "Name with space: 1", "X: " + "y" * 70_000,
]  # fmt: skip
START_LINES = [
    "GET", "GET /", "GET / HTTP/0.9", "GET / HTTP/2.0", "GET / HTTP/9.9", "get / HTTP/1.1", "PRI * HTTP/2.0", "\x16\x03\x01",
    "GET http://evil.example/v2/echo/health HTTP/1.1", "GET //evil.example/v2/echo/health HTTP/1.1", "OPTIONS * HTTP/1.1",
    "CONNECT evil.example:443 HTTP/1.1", "GET /v2/echo/health\x00 HTTP/1.1", "GET /v2/echo/health#x HTTP/1.1", "\r\n\r\n",
    "GET  /v2/echo/health  HTTP/1.1", "GET \\v2\\echo\\health HTTP/1.1", "GET /v2/\xc3\xa4cho/run HTTP/1.1",
]  # fmt: skip
RAW_BODIES = [
    b"", b"{", b"null", b"NaN", b'{"input": Infinity}', b'{"input": 1e999}', b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000,
    b'{"input": ' + b"9" * 5000 + b"}", b'"\xff"', b"\xed\xa0\x80", b"\xef\xbb\xbf{}", b'{"input": "\\ud800"}', b"\x00", b"\xff\xfe{\x00}\x00",
    b'{"input": 1, "input": 2}', b'{"input": 1} trailing', b'\x1f\x8b\x08', b'{"input": "' + b"x" * 200_000 + b'"}',
]  # fmt: skip

numbers = st.sampled_from([0, -1, 1, 5000, 10**12, 10**400, -(10**20), 1e308, 0.1, True])
texts = st.text(max_size=5) | st.sampled_from(["\ud83d", "\x00", "../..", "x" * 300])
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(st.fixed_dictionaries({}, optional={"role": values, "content": values}), max_size=2)
bodies = st.fixed_dictionaries(
    {"input": values},
    optional={
        "policy": st.fixed_dictionaries(
            {}, optional={"ttl": values, "executionTimeout": values, "lowPriority": values}
        )
        | values,
        "webhook": st.sampled_from(WEBHOOKS),
        "webhookV2": values,
        "s3Config": values,
        "output": values,
        "error": values,
        "status": st.just("IN_PROGRESS") | values,
        "model": values,
        "messages": st.just([{"role": "user", "content": "hi"}]) | messages | values,
        "prompt": values,
        "stream": st.booleans() | values,
        "stream_options": st.just({"include_usage": True}) | values,
        "temperature": values,
        "max_tokens": values,
        "seed": values,
    },
)
raw_bodies = (
    bodies.map(lambda document: json.dumps(document).encode())
    | values.map(lambda document: json.dumps(document).encode())
    | st.sampled_from(RAW_BODIES)
    | st.integers(400, 1100).map(lambda depth: b'{"input":' + b"[" * depth + b"]" * depth + b"}")
    | st.binary(max_size=40)
)


@dataclass(frozen=True)
class Sent:
    """One request: its bytes, and whether it is whole, so that it must have an answer."""

    method: str
    data: bytes
    is_whole: bool


RIGHT = [
    *(("POST", name) for name in ("run", "runsync", "purge-queue", "cancel/{job0}", "retry/{job1}", "cancel/x")),
    *(("GET", name) for name in ("health", "requests", "status/{job0}", "status-sync/{job1}", "stream/{job2}", "status/x")),
    *(("POST", f"openai/v1/{route}") for route in ("chat/completions", "completions", "embeddings")),
    ("GET", "openai/v1/models"),
]  # fmt: skip


WORKERS = [
    *(("POST", f"{name}/w/{job}") for name in ("job-done", "job-stream") for job in ("{job0}", "x", "%00")),
    *(("GET", f"ping/{end}") for end in ("w", "w?job_id={job0},,x", "w?status=unhealthy&reason=%ff", "%2e%2e", "y" * 500)),
    ("GET", "job-take/%2e%2e"),
    ("GET", "job-stop/%20"),
]  # fmt: skip


@st.composite
def targets(draw: st.DrawFn) -> tuple[str, str, str]:
    """A method, what is asked, and with which key; `{job0}` and others stand for what only the server knows."""
    if draw(st.integers(0, 9)) == 0:
        method, operation = draw(st.sampled_from(WORKERS))
        return method, f"/v2/ext/{operation}", "worker"
    method, operation = draw(st.sampled_from(RIGHT))
    name = draw(st.sampled_from(NAMES[:3]))
    query = draw(st.just("") | st.sampled_from(QUERIES))
    match draw(st.integers(0, 6)):
        case 0:
            method = draw(st.sampled_from(METHODS))
        case 1:
            name = draw(st.sampled_from(NAMES))
        case 2:
            operation = draw(st.sampled_from(OPERATIONS)) + draw(st.sampled_from(ENDS))
    return method, f"/v2/{name}/{operation}" + (f"?{query}" if query else ""), "token"


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method, target, key = draw(targets())
    body = draw(raw_bodies) if method in ("POST", "PUT", "PATCH") or draw(st.integers(0, 9)) == 0 else b""
    start, lines = f"{method} {target} HTTP/1.1", ["Host: {host}", f"Authorization: Bearer {{{key}}}"]
    lines += draw(st.lists(st.sampled_from(HEADERS), max_size=3))
    if draw(st.booleans()):
        lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _cut(draw, body)) + b"0\r\n\r\n"
    is_whole = draw(st.integers(0, 9)) < 6
    if not is_whole:
        match draw(st.integers(0, 4)):
            case 0:
                start = draw(st.sampled_from(START_LINES))
            case 1 | 2:
                lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(STRANGE_HEADERS)))
            case 3:
                del lines[draw(st.integers(0, len(lines) - 1))]
            case 4:
                body = draw(
                    st.sampled_from(
                        [body[: len(body) // 2], b"zz\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"5\r\nab"]
                    )
                )
    data = "\r\n".join([start, *lines]).encode("latin-1") + b"\r\n\r\n" + body
    if not is_whole and draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return Sent(method, data, is_whole)


def _cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    at = draw(st.integers(0, len(body)))
    return [piece for piece in (body[:at], body[at:]) if piece]


# ---------------------------------------------------------------------------------- what comes back


class Answers:
    """The answers on a connection; http.client reads one of them, and would close the rest."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def makefile(self, mode: str) -> Answers:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None: ...

    def read_one(self, method: str) -> tuple[http.client.HTTPResponse, bytes]:
        answer = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        answer.begin()
        return answer, answer.read()


def talk(served: Served, batch: list[Sent], *, leaves: bool = False) -> None:
    """Send requests in one piece, and check the answer to each that must have one, or leave at once."""
    known = {f"job{at}": job for at, job in enumerate(served.jobs)}
    known["worker"] = served.server._worker_tokens["ext"]
    known |= {"host": f"127.0.0.1:{served.server.port}", "token": served.server.token}
    data = b"".join(sent.data for sent in batch)
    for name, value in known.items():
        data = data.replace(f"{{{name}}}".encode(), value.encode())
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=PATIENCE) as connection:
        answers = Answers(connection)
        try:
            connection.sendall(data)
            for sent in [] if leaves else batch:
                connection.settimeout(PATIENCE if sent.is_whole else GLANCE)
                answer, body = answers.read_one(sent.method)
                assert 200 <= answer.status < 500, (answer.status, body)
                assert served.server.token.encode() not in body
                assert not any(name.lower().startswith("access-control") for name in answer.headers)
                if not sent.is_whole or answer.will_close:
                    return  # what follows is read as a part of it, or not at all
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            assert not all(sent.is_whole for sent in batch)


def check_the_rest(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The server still serves, waits for nobody, keeps no more than its jobs, and has logged no error."""
    assert served.health()["workers"]["running"] == 0
    queues = served.server.endpoints.values()

    def bells() -> int:
        return sum(len(record.bells) for queue in queues for record in list(queue.records.values()))

    async def tasks() -> list[str]:
        for _ in range(2000):
            state = served.server._uvicorn.server_state
            if not (state.tasks or state.connections or bells()):
                break
            await asyncio.sleep(0.001)
        state = served.server._uvicorn.server_state
        return [str(left) for left in (*state.tasks, *state.connections)] + ["bells"] * bells()

    assert served.loop.submit(tasks()).result(10) == []
    assert served.on_loop(lambda: [queue.health().jobs["in_queue"] for queue in queues]) == [0] * len(queues)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == []


@pytest.fixture
def bounded(request: pytest.FixtureRequest) -> Any:
    """How much is sent: always the same, unless more was asked for."""
    count = request.config.getoption("--fuzz")
    return settings(
        max_examples=count // 5,
        deadline=None,
        derandomize=count == 2_000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_whatever_is_asked_the_server_answers_and_goes_on(
    served: Served, bounded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @bounded
    @given(requests(), st.integers(0, 9))
    def ask(sent: Sent, at: int) -> None:
        talk(served, [sent], leaves=at == 5)

    with caplog.at_level(logging.WARNING):
        ask()
        check_the_rest(served, caplog)


def test_requests_that_come_in_one_piece_are_answered_in_order(
    served: Served, bounded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @settings(bounded, max_examples=bounded.max_examples // 8)
    @given(st.lists(requests(), min_size=2, max_size=5))
    def ask(batch: list[Sent]) -> None:
        talk(served, batch)

    with caplog.at_level(logging.WARNING):
        ask()
        check_the_rest(served, caplog)
