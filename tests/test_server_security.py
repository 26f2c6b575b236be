"""What must not be possible: for a web page, for a caller without the token, for a caller with it."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serving import Api, serving, spin

import notebook_ext
from notebook_ext.server import gate, head
from notebook_ext.server.app import RUN_BODY_LIMIT
from notebook_ext.server.head import HEAD_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(notebook_ext.__file__).parent
MARKER = "nbx-marker"
ROUTES = [
    ("POST", "run"),
    ("POST", "runsync"),
    ("GET", "status/{job}"),
    ("GET", "status-sync/{job}"),
    ("GET", "stream/{job}"),
    ("POST", "cancel/{job}"),
    ("POST", "retry/{job}"),
    ("POST", "purge-queue"),
    ("GET", "health"),
    ("GET", "requests"),
    ("POST", "openai/v1/chat/completions"),
    ("GET", "openai/v1/models"),
    ("GET", "job-take/w"),
    ("POST", "job-done/w/{job}"),
]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are refused are kept waiting, which would be half a second in most of these tests."""
    monkeypatch.setattr(gate, "TAKE_REFUSAL_PAUSE", 0)


async def raw(api: Api, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a head as it stands, `{host}` and `{token}` filled in, and read the answer's status and all of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    host = f"127.0.0.1:{api.server.port}"
    writer.write(head.format(host=host, port=api.server.port, token=api.server.token).encode() + body)
    answer = b""
    async with asyncio.timeout(10):
        while b"\r\n\r\n" not in answer and (piece := await reader.read(65536)):
            answer += piece
    writer.close()
    await writer.wait_closed()
    return int(answer.split(maxsplit=2)[1]), answer


def records(api: Api) -> int:
    return sum(len(queue.records) for queue in api.server.endpoints.values())


# ---------------------------------------------------------------------------------- the token


def test_what_decides_over_a_token_takes_the_same_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    says = True

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return says

    async def scenario() -> None:
        nonlocal says
        async with serving(demo="echo") as api:
            monkeypatch.setattr(gate.hmac, "compare_digest", compare)
            answer = await api.http.get("/demo/health", headers={"Authorization": "Bearer wrong"})
            assert (answer.status_code, compared) == (200, [(b"wrong", api.server.token.encode())])
            says = False
            assert (await api.http.get("/demo/health")).status_code == 401
            monkeypatch.undo()
            assert (await api.http.get("/demo/health")).status_code == 200

    asyncio.run(scenario())


def test_tokens_are_told_to_nobody_and_written_nowhere(caplog: pytest.LogCaptureFixture, capfd) -> None:
    async def scenario() -> str:
        async with serving(demo="echo") as api:
            sent = {"Authorization": f"Bearer {api.server.token[:-1]}"}
            answers = [
                await api.http.request(method, f"/demo/{path}".format(job="x"), headers=headers)
                for method, path in ROUTES
                for headers in ({}, sent, {**sent, "Host": "evil.example"}, {"Origin": "null"})
            ]
            assert not [
                answer for answer in answers if api.server.token[:-1] in f"{answer.headers}{answer.text}"
            ]
            return api.server.token[:-1]

    with caplog.at_level(logging.DEBUG):
        token = asyncio.run(scenario())
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    assert token not in "".join([*ours, *capfd.readouterr()])


def test_keys_of_workers_and_of_callers_open_different_doors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path))

    async def scenario() -> None:
        async with serving() as api:
            for name in ("one", "two"):
                api.server.serve(name, None, external=True)
            job = await api.run("one", {"secret": MARKER})
            workers = {name: api.server._worker_tokens[name] for name in ("one", "two")}
            assert len({api.server.token, *workers.values()}) == 3
            for method, path in ROUTES:
                url = f"/one/{path.format(job=job)}"
                keys = [api.server.token] if path.startswith("job-") else [workers["one"]]
                for key in [*keys, workers["two"]]:
                    answer = await api.http.request(method, url, headers={"Authorization": f"Bearer {key}"})
                    assert answer.status_code == 403, (method, url)
                    assert MARKER not in answer.text
            assert (await api.get(f"/one/status/{job}"))["status"] == "IN_QUEUE"
            assert records(api) == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- other machines, web pages


def test_only_this_machine_reaches_it() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            listening = [
                listener.getsockname()
                for server in api.server._uvicorn.servers
                for listener in server.sockets
            ]
            assert listening == [("127.0.0.1", api.server.port)]
            with pytest.raises(OSError):  # what 0.0.0.0 would answer
                await asyncio.open_connection("127.0.0.2", api.server.port)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost.evil.example:{port}", "localhost.:{port}",
        "evil.example@127.0.0.1:{port}", "127.0.0.1:{port}@evil.example", "127.0.0.1:{port}.evil.example", "2130706433:{port}",
        "0x7f000001:{port}", "127.1:{port}", "0.0.0.0:{port}", "[::ffff:127.0.0.1]:{port}", "[::]:{port}", "127.0.0.2:{port}",
        "127.0.0.1", "localhost", "127.0.0.1:80", ":{port}", "127.0.0.1:{port}, evil.example", "evil.example, 127.0.0.1:{port}",
        "127.0.0.1:0{port}", "127.0.0.1:{port}#", "LOCALHOST\t:{port}", "xn--lclhst-cua5k:{port}",
    ],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_not_answered(host: str) -> None:
    """What a browser sends after DNS rebinding is right in everything else: no Origin, even the token."""

    async def scenario() -> None:
        async with serving(demo="echo") as api:
            key, length = "Authorization: Bearer {token}\r\n", 'Content-Length: 12\r\n\r\n{{"input": 1}}'
            for head in (
                f"GET /v2/demo/health HTTP/1.1\r\nHost: {host}\r\n{key}\r\n",
                f"GET http://{{host}}/v2/demo/health HTTP/1.1\r\nHost: {host}\r\n{key}\r\n",
                f"POST /v2/demo/run HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {{host}}\r\n{key}{length}",
            ):
                status, answer = await raw(api, head)
                assert status in (400, 421)
                assert b"jobs" not in answer
            assert records(api) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["", "Host: {host}\r\nHost: {host}\r\n", "Host: {host}\r\nhost: evil.example\r\n"]
)
def test_no_host_and_two_hosts_are_none(host: str) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            for version in ("1.0", "1.1"):
                key = "Authorization: Bearer {token}\r\n"
                status, _ = await raw(api, f"GET /v2/demo/health HTTP/{version}\r\n{host}{key}\r\n")
                assert status in (400, 421)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:8888", "http://localhost:8888"]
)
def test_a_preflight_gets_no_permission(origin: str) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            job = (await api.result("demo", 1))["id"]
            for method, path in ROUTES:
                asked = {
                    "Origin": origin,
                    "Access-Control-Request-Method": method,
                    "Access-Control-Request-Headers": "authorization, content-type",
                    "Access-Control-Request-Private-Network": "true",
                }
                url = f"/demo/{path.format(job=job)}"
                for key in ("", f"Bearer {api.server.token}"):
                    answer = await api.http.options(url, headers={**asked, "Authorization": key})
                    assert answer.status_code == 403
                    assert not [name for name in answer.headers if name.startswith("access-control")]
                answer = await api.http.request(method, url, headers={"Origin": origin})
                assert (answer.status_code, MARKER in answer.text) == (403, False)
            assert records(api) == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- limits


def test_urls_and_headers_have_limits() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            answer = await api.http.get(f"/demo/health?{'x' * gate.URL_LIMIT}")
            assert (answer.status_code, "16 KB" in answer.json()["error"]) == (414, True)
            answer = await api.http.get(f"/demo/{'x' * gate.URL_LIMIT}")
            assert answer.status_code == 414
            answer = await api.http.get("/demo/health", headers={"X": "y" * gate.HEADER_LIMIT})
            assert (answer.status_code, "32 KB" in answer.json()["error"]) == (431, True)
            answer = await api.http.get("/demo/health", headers={"X": "y" * (gate.HEADER_LIMIT // 2)})
            assert answer.status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\n"])
def test_a_head_without_an_end_is_hung_up_on(start: bytes) -> None:
    more = b"X: y\r\n" * 1000 if start.endswith(b"\n") else b"x" * 6000

    async def scenario() -> None:
        async with serving(demo="echo") as api:
            _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            sent = 0
            with pytest.raises(ConnectionError):
                writer.write(start)
                while sent < 100 * HEAD_LIMIT:
                    writer.write(more)
                    await writer.drain()
                    sent += len(more)
            # What lies in the buffers of both ends has been sent too.
            assert sent < 80 * HEAD_LIMIT
            writer.close()
            await spin(lambda: not api.server._uvicorn.server_state.connections)

    asyncio.run(scenario())


def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_TIMEOUT", 0.2)

    async def holds(job: Any) -> str:
        await asyncio.sleep(0.5)
        return "held"

    async def scenario() -> None:
        async with serving(demo=holds) as api:
            request = f"GET /v2/demo/health HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\n"
            whole = f"{request}Authorization: {api.server.token}\r\n\r\n".encode()
            for sent in (b"", b"GET /", request.encode(), whole + b"GET /"):
                reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
                writer.write(sent)
                answer = await asyncio.wait_for(reader.read(), 5)
                assert answer.startswith(b"HTTP/1.1 200") == (sent.startswith(whole)), answer
                writer.close()
            assert (await api.post("/demo/runsync", {"input": {}}))[
                "output"
            ] == "held"  # an answer may be late

    asyncio.run(scenario())


def test_so_many_requests_are_open_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_OPEN", 3)

    async def scenario() -> None:
        async with serving(demo="sleep") as api:
            job = await api.run("demo", {"seconds": 60})
            polls = [asyncio.create_task(api.end("demo", job)) for _ in range(3)]
            await spin(lambda: len(api.record("demo", job).bells) == 3)
            answer = await api.http.get("/demo/health")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            polls.pop().cancel()
            await spin(lambda: len(api.record("demo", job).bells) == 2)
            await api.post(f"/demo/cancel/{job}")
            assert [(await poll)["status"] for poll in polls] == ["CANCELLED"] * 2

    asyncio.run(scenario())


@pytest.mark.parametrize("depth", [201, 500, 990, 100_000])
def test_what_could_not_be_written_again_is_not_taken(depth: int) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            for inner in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
                answer = await api.http.post("/demo/run", content=b'{"input": %b}' % inner)
                assert (answer.status_code, "nested" in answer.json()["error"]) == (400, True)
            answer = await api.http.post("/demo/run", content=b'{"input": 1e999}')
            assert (answer.status_code, "out of the range" in answer.json()["error"]) == (400, True)
            deepest = json.loads("[" * 190 + "]" * 190)
            assert (await api.result("demo", deepest))["output"] == deepest
            assert len(await api.get("/demo/requests")) == 1

    asyncio.run(scenario())


def test_a_handler_that_gives_what_could_not_be_written_fails() -> None:
    def deep(job: dict[str, Any]) -> Any:
        nested: list[Any] = []
        for _ in range(job["input"]):
            nested = [nested]
        return nested

    async def scenario() -> None:
        async with serving(demo=deep) as api:
            for depth in (300, 960, 975, 985, 990, 995, 5000):
                document = await api.result("demo", depth)
                assert document["status"] == "FAILED"
                assert "nested" in document["error"] or "recursion" in document["error"]
            assert len(await api.get("/demo/requests")) == 7

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- what a request cannot reach


class Watch:
    """What this process does outside itself while it is on; an audit hook can never be taken off."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event.startswith(
            ("open", "os.", "shutil.", "subprocess.", "import", "glob.", "pathlib.", "exec", "pickle.")
        ):
            self.seen.append(f"{event} {arguments!r}"[:2000])


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def watched(watch: Watch) -> Iterator[Watch]:
    watch.seen.clear()
    watch.is_on = True
    yield watch
    watch.is_on = False


def test_no_word_of_a_request_becomes_a_file(
    watched: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path))
    names = [
        MARKER,
        f"..%2f..%2f{MARKER}",
        f"%2e%2e%2f{MARKER}",
        f"%2ftmp%2f{MARKER}",
        f"{MARKER}%00.py",
        f"{MARKER}.py%3Ahandler",
    ]

    async def scenario() -> None:
        async with serving(demo="echo", chat="chat") as api:
            api.server.serve("ext", None, external=True)
            keys = {
                "demo": api.server.token,
                "chat": api.server.token,
                "ext": api.server._worker_tokens["ext"],
            }
            for name in names:
                for method, path in ROUTES:
                    for url in (f"/demo/{path.format(job=name)}", f"/{name}/{path.format(job=name)}"):
                        await api.http.request(method, url, json={"input": {"path": f"/tmp/{MARKER}"}})
                for endpoint, path in (
                    ("ext", f"job-done/{name}/{name}"), ("ext", f"ping/{name}?job_id={name}"), ("ext", f"job-stream/w/{name}"),
                    ("chat", f"openai/v1/{name}"), ("chat", f"openai/v1/models/{name}"),
                ):  # fmt: skip
                    key = {"Authorization": f"Bearer {keys[endpoint]}"}
                    for method in ("GET", "POST"):
                        await api.http.request(
                            method, f"/{endpoint}/{path}", json={"output": MARKER}, headers=key
                        )
            model = {
                "model": f"../../{MARKER}",
                "messages": [{"role": "user", "content": f"file:///{MARKER}"}],
                "max_tokens": 1,
            }
            await api.http.post("/chat/openai/v1/chat/completions", json=model)
            for url in (f"file:///tmp/{MARKER}", f"ftp://127.0.0.1/{MARKER}"):
                answer = await api.http.post("/demo/run", json={"input": 1, "webhook": url})
                assert answer.status_code == 400

    with (tmp_path / "canary").open("w"):  # the watch does see
        assert any("canary" in seen for seen in watched.seen)
    asyncio.run(scenario())
    assert not [seen for seen in watched.seen if MARKER in seen]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:70/_x", "javascript:alert(1)", "data:,x", "//evil.example/",
        "unix:///var/run/docker.sock", "http:///x", "http://[::1", "http://user:pass@evil.example/", "http://user@evil.example/",
        "HTTP+UNIX://x/", "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://169.254.169.254/latest/meta-data/",
        "http://[fd00::1]/", "http://[fe80::1]/", "http://[::ffff:10.0.0.1]/", "http://100.64.0.1/", "http://0.0.0.0/", "http://[::]/",
        "http://224.0.0.1/", "", " ", "http://\r\nX: y/", 7, ["http://a"],
    ],
)  # fmt: skip
def test_webhooks_lead_to_no_file_and_into_no_private_network(url: Any) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            for operation in ("run", "runsync"):
                answer = await api.http.post(f"/demo/{operation}", json={"input": 1, "webhook": url})
                assert (answer.status_code, "webhook" in answer.json()["error"]) == (400, True)
            assert records(api) == 0

    asyncio.run(scenario())


def test_the_package_unpickles_nothing_and_runs_no_shell() -> None:
    """What gives a file, an answer or a request the power to run code."""
    modules = {
        "pickle",
        "cPickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "jsonpickle",
        "pty",
    }
    calls = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = str(file.relative_to(PACKAGE))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [(where, name) for name in names if name.partition(".")[0] in modules]
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(keyword.arg == "shell" for keyword in node.keywords)
                found += [(where, name)] if name in calls or name.endswith("_shell") or shell else []
    # Both run what the user wrote into a cell of the user's own notebook, and nothing that came from elsewhere.
    assert sorted(found) == [("endpoint_verbs.py", "exec"), ("prompts.py", "eval")]


def test_a_body_is_limited_on_every_route_that_reads_one() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            for operation, limit in (("run", 1), ("runsync", 2), ("openai/v1/completions", 2)):
                size = limit * RUN_BODY_LIMIT + 1
                answer = await api.http.post(f"/demo/{operation}", content=b" " * size)
                assert answer.status_code == 413
            assert records(api) == 0

    asyncio.run(scenario())
