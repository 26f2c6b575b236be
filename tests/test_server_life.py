"""Starting and stopping: in a process with other work to do, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from serving import serving, spin

from notebook_ext.errors import ConfigurationError
from notebook_ext.server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_stop_leaves_nothing() -> None:
    threads, streams = set(threading.enumerate()), (sys.stdout, sys.stderr)

    async def holds(job):
        await asyncio.sleep(60)

    def yields(job):
        while True:
            yield 1

    def signals():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def scenario() -> None:
        before = signals()
        async with serving(holds=holds, yields=yields, echo="echo") as api:  # proves that no task is left
            for name in ("holds", "yields", "echo"):
                await api.run(name)
            assert signals() == before

    asyncio.run(scenario())
    assert set(threading.enumerate()) == threads
    assert (sys.stdout, sys.stderr) == streams


def test_a_stop_ends_long_polls_at_once() -> None:
    async def holds(job):
        await asyncio.sleep(60)

    async def scenario() -> None:
        async with serving(demo=holds) as api:
            job = await api.run("demo")
            polls = [
                asyncio.create_task(api.http.get(f"/demo/{way}/{job}")) for way in ("stream", "status-sync")
            ]
            await spin(lambda: len(api.record("demo", job).bells) == 2)
            started = time.monotonic()
            await api.server.stop()
            assert time.monotonic() - started < 1
            assert [(await poll).status_code for poll in polls] == [404, 404]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_async", [True, False])
def test_a_stop_does_not_wait_for_a_handler_that_never_returns(is_async: bool) -> None:
    started, release = threading.Event(), threading.Event()

    def plain(job):
        started.set()
        release.wait(30)

    async def blocking(job):
        plain(job)

    async def scenario() -> None:
        async with serving(demo=blocking if is_async else plain) as api:
            await api.run("demo")
            assert await asyncio.to_thread(started.wait, 5)
            before = time.monotonic()
            await api.server.stop()
            assert time.monotonic() - before < 2.2
        release.set()

    asyncio.run(scenario())


def test_a_stop_does_not_wait_for_a_client_that_never_reads() -> None:
    async def scenario() -> None:
        async with serving(demo=lambda job: "x" * 19_000_000) as api:
            job = await api.run("demo")
            await api.end("demo", job)
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            writer.write(
                f"GET /v2/demo/status/{job} HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\n"
                f"Authorization: {api.server.token}\r\n\r\n".encode()
            )
            await writer.drain()
            writer.transport.pause_reading()
            await asyncio.sleep(0.2)
            before = time.monotonic()
            await api.server.stop()
            assert time.monotonic() - before < 2.2
            writer.transport.resume_reading()
            size = 0
            async with asyncio.timeout(5):  # it hung up, and left no half of a connection
                while piece := await reader.read(1 << 20):
                    size += len(piece)
            assert size < 19_000_000
            writer.close()

    asyncio.run(scenario())


def test_an_idle_connection_outlives_the_pause_after_which_clients_drop_theirs() -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            ask = (
                f"GET /v2/demo/health HTTP/1.1\r\nHost: 127.0.0.1:{api.server.port}\r\n"
                f"Authorization: {api.server.token}\r\n\r\n".encode()
            )
            writer.write(ask)
            assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 5.5)  # httpx keeps its own for 5 s, as uvicorn does
            writer.write(ask)
            assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(scenario())


def test_it_can_be_started_again_and_twice_in_one_process() -> None:
    async def ask(server: EmbeddedServer) -> int:
        headers = {"Authorization": server.token}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, trust_env=False) as http:
            return (await http.get("/demo/health")).status_code

    async def scenario() -> None:
        one, two = EmbeddedServer(), EmbeddedServer(token="mine")
        for server in (one, two):
            await server.start()
            await server.start()  # it already is
            server.serve("demo", "echo")
        assert one.base_url != two.base_url
        assert two.token == "mine"
        assert [await ask(one), await ask(two)] == [200, 200]
        await one.stop()
        assert await ask(two) == 200
        await one.stop()
        await one.start()
        one.serve("demo", "echo")
        assert await ask(one) == 200
        await one.stop()
        await two.stop()

    asyncio.run(scenario())


def test_a_busy_port_is_explained() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            server = EmbeddedServer(port=port)
            with pytest.raises(ConfigurationError, match=f"port {port} .*choose another port"):
                await server.start()
            await server.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "a?b", "ä", "x" * 200])
def test_names_that_cannot_be_in_a_url_are_refused(name: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            with pytest.raises(ConfigurationError, match="name"):
                api.server.serve(name, "echo")

    asyncio.run(scenario())


def test_what_cannot_be_served_is_refused() -> None:
    async def scenario() -> None:
        async with serving() as api:
            with pytest.raises(ConfigurationError, match="cannot be called"):
                api.server.serve("demo", 7)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="at least one worker"):
                api.server.serve("demo", "echo", workers=0)
            assert dict(api.server.endpoints) == {}

    asyncio.run(scenario())


def test_handlers_do_not_inherit_the_context_of_the_cell_that_serves_them() -> None:
    cell = contextvars.ContextVar("cell", default="none")

    async def asynchronous(job):
        return cell.get()

    async def scenario() -> None:
        cell.set("the serving cell")
        async with serving(plain=lambda job: cell.get(), asynchronous=asynchronous) as api:
            assert (await api.result("plain"))["output"] == "none"
            assert (await api.result("asynchronous"))["output"] == "none"

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- python -m notebook_ext.server

HANDLERS = """
import sys, threading, time
import neighbour
print("loaded")

def handler(job):
    print("printed by the handler")
    return {"got": job["input"], "neighbour": neighbour.VALUE}

def stuck(job):
    threading.Thread(target=time.sleep, args=(60,)).start()
    time.sleep(60)

async def blocked(job):
    import asyncio
    await asyncio.to_thread(time.sleep, 60)

def takes_nothing():
    return 1
"""


@contextmanager
def program(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "worker.py").write_text(HANDLERS)
    (folder / "neighbour.py").write_text("VALUE = 7\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "notebook_ext.server", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ask(line: str, path: str, token: str | None = None, **json_body: object) -> httpx.Response:
    told = json.loads(line)
    headers = {"Authorization": f"Bearer {token or told['token']}"}
    return httpx.post(f"{told['base_url']}{path}", json=json_body, headers=headers, trust_env=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_tells_its_address_serves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    with program(tmp_path, "mine=worker.py:handler", "default=worker.py", "demo=echo") as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        assert json.loads(line).keys() == {"base_url", "token"}
        document = ask(line, "/mine/runsync", input=1).json()
        assert document["output"] == {"got": 1, "neighbour": 7}
        assert ask(line, "/default/runsync", input=2).json()["output"]["got"] == 2
        assert ask(line, "/demo/runsync", input=3).json()["output"] == 3
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert process.stdout.read() == ""
        errors = process.stderr.read()
        assert "Traceback" not in errors
        assert "printed by the handler" in errors
        assert json.loads(line)["token"] not in errors


@pytest.mark.parametrize("function", ["stuck", "blocked"])
def test_the_program_stops_with_a_handler_that_does_not(tmp_path: Path, function: str) -> None:
    with program(tmp_path, f"demo=worker.py:{function}") as process:
        assert process.stdout
        line = process.stdout.readline()
        job = ask(line, "/demo/run", input=1).json()["id"]
        while ask(line, f"/demo/status/{job}").json()["status"] != "IN_PROGRESS":
            time.sleep(0.01)
        started = time.monotonic()
        process.terminate()
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - started < 3


def test_the_token_from_the_environment_is_not_printed(tmp_path: Path) -> None:
    with program(tmp_path, "demo=echo", NOTEBOOK_EXT_TOKEN="from-outside") as process:
        assert process.stdout
        line = process.stdout.readline()
        assert json.loads(line).keys() == {"base_url"}
        assert ask(line, "/demo/runsync", "from-outside", input=1).json()["output"] == 1
        process.terminate()
        assert process.wait(timeout=5) == 0
        assert process.stderr
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["demo=echo", "--start", "python worker.py"], "--start is for an endpoint without a handler"),
        (["demo", "--start", "'"], "command cannot be read"),
        (["demo", "--on-lost", "forget"], "invalid choice: 'forget'"),
        (["demo=echo", "--bind", "nowhere"], "'nowhere' is no address"),
        (["demo=echo", "--allow-host", "a/b"], "'a/b' is no host name"),
        (["demo="], "is not NAME="),
        (["demo=ecco"], "did you mean 'echo'"),
        (["demo=chat", "other=echo", "demo=echo"], "'demo' is given twice"),
        (["demo", "demo"], "'demo' is given twice"),
        (["demo=worker.py:takes_nothing"], "cannot be called with one argument, the job"),
        (["demo=nowhere.py:f"], "no file 'nowhere.py'"),
        (["demo=worker.py:nothing"], "no function 'nothing'"),
        (["demo=worker.py:sys"], "no function 'sys'"),
        (["demo=broken.py"], "broken.py failed: ZeroDivisionError"),
        (["a/b=echo"], "name"),
        (["demo=echo", "--port", "99999999"], "port"),
        (["demo=echo", "--port", "x"], "port"),
        (["demo=openai"], "URL"),
        (["demo=openai", "--upstream", "ftp://x"], "upstream"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_status_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with program(tmp_path, *arguments) as process:
        out, errors = process.communicate(timeout=20)
        assert process.returncode == 2
        assert out == ""
        told = [line for line in errors.splitlines() if line != "loaded"]
        assert len(told) == 1
        assert told[0].startswith("error: ")
        assert words in told[0]


@pytest.mark.parametrize("turns", range(8))
def test_who_comes_while_it_stops_is_not_left_waiting(turns: int) -> None:
    async def scenario() -> None:
        server = EmbeddedServer()
        await server.start()
        stopping = asyncio.create_task(server.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", server.port)) as late,
        ):
            await stopping
            late.settimeout(2)
            assert late.recv(1) == b""
        await stopping

    asyncio.run(scenario())
