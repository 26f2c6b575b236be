"""What the kill tests share: a server that outlives kernels and counts, a proxy that can hold an answer, victims.

`python killing.py serve` is `python -m notebook_ext.server` that also writes down what it accepts, and whose
endpoint `forgetful` keeps no aggregate; `python killing.py victim` is a session that waits to be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import runpy
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rude import elsewhere, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

TOKEN = "token-of-the-kill-tests"
ENDPOINTS = ("stream", "forgetful", "slow", "echo")
ACCEPTED_VARIABLE = "KILLING_ACCEPTED"
MISSING = "text may be missing: answers were lost on the way"


# ---------------------------------------------------------------------------------- what is served


def words(input: dict[str, Any]) -> list[str]:
    """What a job with this input says."""
    return [f"{input['tag']}/{index} " for index in range(input["words"])]


async def stream(job: dict[str, Any]) -> AsyncIterator[str]:
    for word in words(job["input"]):
        yield word
        await asyncio.sleep(job["input"]["pause"])


async def slow(job: dict[str, Any]) -> str:
    await asyncio.sleep(job["input"]["words"] * job["input"]["pause"])
    return "".join(words(job["input"]))


async def echo(job: dict[str, Any]) -> str:
    return "".join(words(job["input"]))


forgetful = stream


def serve() -> None:
    from notebook_ext.server import EmbeddedServer
    from notebook_ext.server.queue import Queue

    accepted = Path(os.environ[ACCEPTED_VARIABLE])
    submit, serve_one = Queue.submit, EmbeddedServer.serve

    def counted(queue: Queue, request: Any, **options: Any) -> Any:
        record = submit(queue, request, **options)
        with accepted.open("a") as rows:
            print(json.dumps([queue.name, record.id, request.input]), file=rows)
        return record

    def serve_by_name(server: EmbeddedServer, name: str, *arguments: Any, **options: Any) -> Any:
        keeps = name != "forgetful"
        return serve_one(server, name, *arguments, return_aggregate_stream=keeps, **options)

    Queue.submit, EmbeddedServer.serve = counted, serve_by_name
    handlers = [f"{name}={__file__}:{name}" for name in ENDPOINTS]
    sys.argv = ["server", *handlers, "--workers", "64"]
    runpy.run_module("notebook_ext.server", run_name="__main__")


@dataclass(frozen=True)
class Served:
    """The server's address, and the file with what it accepted."""

    url: str
    file: Path

    def accepted(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Endpoint, id and input of every job that it has queued."""
        return [tuple(json.loads(line)) for line in self.file.read_text().splitlines()]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Served]:
    """A server in a process of its own."""
    file = folder / "accepted"
    file.touch()
    command = [sys.executable, __file__, "serve"]
    environ = {**os.environ, "NOTEBOOK_EXT_TOKEN": TOKEN, ACCEPTED_VARIABLE: str(file)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Served(json.loads(process.stdout.readline())["base_url"], file)
        finally:
            process.terminate()


# ---------------------------------------------------------------------------------- the way there


class Proxy:
    """Passes whole requests and whole answers on, and can hold, delay or cut them.

    Attributes:
        url: The base URL through it.
        hold: Which submissions get stuck: "request" before the server sees them, "answer" on the way
            back, both until who asked has gone; None for none.
        spared: How many submissions still pass before one gets stuck.
        cut: After how many bytes the answer to a submission breaks off; None for never.
        latency: Seconds that every answer takes on the way back.
        held: Set when a submission is stuck.
        posts: How many submissions came.
        length: Bytes of the last answer to a submission.
    """

    def __init__(self, url: str) -> None:
        self._there = url.split("/")[2]
        self.url = ""
        self.hold: str | None = None
        self.spared = 0
        self.cut: int | None = None
        self.latency = 0.0
        self.held = threading.Event()
        self.posts = self.length = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._there.split(":")
        there = None
        try:
            there_reader, there = await asyncio.open_connection(host, int(port))
            while True:
                request = await _message(reader)
                gone = asyncio.ensure_future(reader.read(1))  # nothing comes before the answer but the end
                answer = asyncio.ensure_future(self._answer(request, there_reader, there))
                try:
                    await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        return
                    writer.write(answer.result())
                    await writer.drain()
                    if _is_submission(request) and self.cut is not None:
                        return
                finally:
                    for task in (gone, answer):
                        task.cancel()
                    await asyncio.gather(gone, answer, return_exceptions=True)
        finally:
            if there is not None:
                there.close()

    async def _answer(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        is_stuck = False
        if _is_submission(request):
            self.posts += 1
            is_stuck = self.hold is not None and self.posts > self.spared
        if is_stuck and self.hold == "request":
            await self._stick()
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"host:")]
        writer.write(b"\r\n".join([lines[0], b"Host: " + self._there.encode(), *lines[1:], b"", b""]) + body)
        answer = await _message(reader)
        if is_stuck:
            await self._stick()
        await asyncio.sleep(self.latency)
        if _is_submission(request):
            self.length = len(answer)
            return answer[: self.cut]
        return answer

    async def _stick(self) -> None:
        self.held.set()
        await asyncio.Event().wait()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    length = next((int(value) for name, _, value in fields if name == b"content-length"), 0)
    return head + await reader.readexactly(length)


def _is_submission(request: bytes) -> bool:
    target = request.split(b" ", 2)[1].partition(b"?")[0]
    return request.startswith(b"POST") and target.rpartition(b"/")[2] in (b"run", b"runsync")


@contextlib.contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """A way to a server that a test can block."""
    it = Proxy(url)
    with elsewhere(listening(it.talk)) as it.url:
        yield it


# ---------------------------------------------------------------------------------- victims


def victim() -> None:
    """Submit what a line of stdin says, and go on until killed."""
    from notebook_ext.client import Endpoint  # noqa: F401 - loaded before it counts
    from notebook_ext.session import Session

    print("ready", flush=True)
    plan = json.loads(sys.stdin.readline())
    session = Session(journal=plan["journal"])
    for job in plan["jobs"]:
        name = job["endpoint"]
        session.connect(name, name, provider=plan["url"]).submit(job["input"], sync=job["sync"])
        print(job["input"]["tag"], flush=True)
    for line in sys.stdin:  # a word that is to be evaluated, or the end
        print(json.dumps(eval(line, {"session": session})), flush=True)
    session.close()


def refusal(session: Any, endpoint: str, url: str, input: Any) -> str:
    """How a submission is refused."""
    try:
        return f"it was not refused: {session.connect(endpoint, endpoint, provider=url).submit(input)}"
    except Exception as error:  # whatever it is, the test compares it
        return f"{type(error).__name__}: {error}"


class Victim:
    """A process with a session in it; it has loaded everything when this returns."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "victim"],
            env={**os.environ, "NOTEBOOK_EXT_API_KEY": TOKEN},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout.readline() == "ready\n"

    def submit(self, journal: Path | str, url: str, jobs: list[dict[str, Any]]) -> None:
        self._say(json.dumps({"journal": str(journal), "url": url, "jobs": jobs}))

    def wait_for_submissions(self, count: int) -> None:
        for _ in range(count):
            assert self.process.stdout.readline()

    def evaluate(self, expression: str) -> Any:
        """What an expression gives there; `session` is its session."""
        self._say(expression)
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let it end, where it still is there."""
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def job(
    endpoint: str, tag: str, *, words: int = 20, pause: float = 0.02, sync: bool = False
) -> dict[str, Any]:
    return {"endpoint": endpoint, "sync": sync, "input": {"tag": tag, "words": words, "pause": pause}}


def eventually(condition: Callable[[], Any], what: str, patience: float = 20.0) -> None:
    """Ask every 5 ms, for what tells nobody when it happens."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"it never came true: {what}"
        time.sleep(0.005)


if __name__ == "__main__":
    {"serve": serve, "victim": victim}[sys.argv[1]]()
