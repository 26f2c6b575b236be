"""What the load test shares: a server whose handlers write down each execution, workers to be killed, callers.

`python loading.py serve` serves until its standard input ends; `python loading.py work` is a worker of its
own process, started with the environment of an endpoint for workers: small, so that many can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    import httpx

    from notebook_ext.client import Endpoint
    from notebook_ext.types import Job

TOKEN = "token-of-the-load-test"
OUTSIDE = "outside"
WORKERS = {"plain": 3, "generator": 3, "asynchronous": 6}
"""How many jobs of each endpoint with a handler run at once; `outside` has as many as there are processes."""
ENDPOINTS = (*WORKERS, OUTSIDE)
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
FAIL = 0.05
"""The share of all runs that fail without being one."""
LOST_AFTER = 0.5
KEPT = 3600.0
"""Seconds that all results are there to be counted."""
BROKE = "this one is to fail"
EXECUTIONS_VARIABLE = "LOADING_EXECUTIONS"


# ---------------------------------------------------------------------------------- handlers


class Execution(NamedTuple):
    """That a handler has begun with a job.

    Args:
        job: The job's id.
        tag: Its input's, which no other job has.
        id: Its own.
        worker: The id of the worker process; None in the server's.
    """

    job: str
    tag: str
    id: str
    worker: str | None


@functools.cache
def _executions() -> int:
    return os.open(os.environ[EXECUTIONS_VARIABLE], os.O_WRONLY | os.O_APPEND)


def began(job: dict[str, Any]) -> str:
    """Write down that a job is executed, in one piece whoever else writes; gives the execution's id."""
    it = Execution(job["id"], job["input"]["tag"], uuid.uuid4().hex, os.environ.get("RUNPOD_POD_ID"))
    os.write(_executions(), json.dumps(it).encode() + b"\n")
    return it.id


def streamed(input: dict[str, Any], execution: str) -> list[str]:
    """What a job with this input streams, and has as its output in the end."""
    return [*(f"{input['tag']}/{index}" for index in range(input["words"])), execution]


def result(input: dict[str, Any], execution: str) -> dict[str, str]:
    """The output of one that does not stream."""
    return {"right": hashlib.sha256(input["tag"].encode()).hexdigest(), "execution": execution}


def _end(input: dict[str, Any]) -> None:
    if random.random() < input["breaks"]:
        raise RuntimeError(BROKE)


def plain(job: dict[str, Any]) -> dict[str, str]:
    execution = began(job)
    time.sleep(job["input"]["pause"])
    _end(job["input"])
    return result(job["input"], execution)


def generator(job: dict[str, Any]) -> Iterator[str]:
    for word in streamed(job["input"], began(job)):
        yield word
        time.sleep(job["input"]["pause"] / job["input"]["words"])
    _end(job["input"])


async def asynchronous(job: dict[str, Any]) -> dict[str, str]:
    execution = began(job)
    await asyncio.sleep(job["input"]["pause"])
    _end(job["input"])
    return result(job["input"], execution)


# ---------------------------------------------------------------------------------- the server


async def serve() -> None:
    from notebook_ext.server import Dials, EmbeddedServer

    server = EmbeddedServer(token=TOKEN, capture_prints=False)
    await server.start()
    dials = Dials(fail=FAIL, expire=KEPT)
    for handler in (plain, generator, asynchronous):
        server.serve(handler.__name__, handler, workers=WORKERS[handler.__name__], dials=dials)
    server.serve(OUTSIDE, None, dials=dials, lost_after=LOST_AFTER)
    variables = dict(server.attachment(OUTSIDE).variables)
    print(json.dumps({"url": server.base_url, "variables": variables}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()


@dataclass(frozen=True)
class Served:
    """Where the server is, what its workers' environment is, and what has been executed."""

    url: str
    variables: Mapping[str, str]
    file: Path

    def executions(self) -> list[Execution]:
        """In the order in which they began."""
        return [Execution(*json.loads(line)) for line in self.file.read_text().splitlines()]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Served]:
    """The server in a process of its own."""
    file = folder / "executions"
    file.touch()
    with subprocess.Popen(
        [sys.executable, __file__, "serve"],
        env={**os.environ, EXECUTIONS_VARIABLE: str(file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        told = json.loads(process.stdout.readline())
        yield Served(told["url"], told["variables"], file)
        process.stdin.close()
        assert process.wait(30) == 0


# ---------------------------------------------------------------------------------- worker processes


class Worker:
    """One worker process, as little as the protocol asks of it."""

    def __init__(self) -> None:
        self._id = os.environ["RUNPOD_POD_ID"]
        self._stopped: set[str] = set()

    def work(self) -> None:
        threading.Thread(target=self._hear, daemon=True).start()
        while True:
            job = self._ask(f"{self._url('RUNPOD_WEBHOOK_GET_JOB', self._id)}&job_in_progress=0")
            if job is None:
                continue
            with contextlib.suppress(_Stopped):
                self._tell("RUNPOD_WEBHOOK_POST_OUTPUT", job["id"], self._run(job))

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        execution, asked = began(job), job["input"]
        words = streamed(asked, execution) if asked["streams"] else []
        for word in words:
            self._tell("RUNPOD_WEBHOOK_POST_STREAM", job["id"], {"output": word})
            self._rest(job, asked["pause"] / len(words))
        if not words:
            self._rest(job, asked["pause"])
        return (
            {"error": BROKE}
            if random.random() < asked["breaks"]
            else {"output": words or result(asked, execution)}
        )

    def _rest(self, job: dict[str, Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if job["id"] in self._stopped:
                raise _Stopped
            time.sleep(0.002)

    def _hear(self) -> None:
        url = self._url("RUNPOD_WEBHOOK_GET_JOB", self._id).replace("job-take", "job-stop")
        while True:
            stops = self._ask(url)
            self._stopped.update(stops["jobsToStop"] if stops else ())

    def _url(self, variable: str, id: str) -> str:
        return os.environ[variable].replace("$RUNPOD_POD_ID", self._id).replace("$ID", id)

    def _tell(self, variable: str, job: str, document: dict[str, Any]) -> None:
        with contextlib.suppress(_NotMine):  # it was asleep, and another one has the job now
            self._ask(self._url(variable, job), json.dumps(document).encode())

    def _ask(self, url: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            url, body, {"Authorization": os.environ["RUNPOD_AI_API_KEY"], "Content-Type": "application/json"}
        )
        try:
            with _opener.open(request, timeout=60) as answer:
                told = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise _NotMine from None
                raise
        return json.loads(told) if told else None


class _Stopped(Exception):
    pass


class _NotMine(Exception):
    pass


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Crew:
    """Worker processes that are killed, or stand still for a while, and replaced by fresh ones."""

    def __init__(self, served: Served, size: int, seed: str) -> None:
        self._served, self._random = served, random.Random(seed)
        self._born = self.kills = 0
        self._still: set[str] = set()
        self.stood_still: set[str] = set()
        """The ids of those that ever did."""
        self._processes = dict(self._start() for _ in range(size))

    def _start(self) -> tuple[str, subprocess.Popen[bytes]]:
        self._born += 1
        name = f"w{self._born}"
        own = {"RUNPOD_POD_ID": name, EXECUTIONS_VARIABLE: str(self._served.file)}
        environ = {**os.environ, **self._served.variables, **own}
        return name, subprocess.Popen([sys.executable, __file__, "work"], env=environ)

    async def suffer(self, until: float) -> None:
        """Be struck again and again until then; go on unharmed afterwards."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._random.uniform(0.05, 0.45))
            awake = [name for name in self._processes if name not in self._still]
            name = self._random.choice(awake)
            if len(awake) == 1 or self._random.random() < 0.95:
                self._kill(name)
                self.kills += 1
                self._processes.update([self._start()])
            else:
                self._processes[name].send_signal(signal.SIGSTOP)
                self._still.add(name)
                self.stood_still.add(name)
                loop.call_later(self._random.uniform(0.5, 10.0), self._wake, name)
        for name in self._processes:
            self._wake(name)

    def end(self) -> None:
        for name in list(self._processes):
            self._kill(name)

    def _wake(self, name: str) -> None:
        if name in self._still:
            self._still.discard(name)
            self._processes[name].send_signal(signal.SIGCONT)

    def _kill(self, name: str) -> None:
        self._still.discard(name)
        process = self._processes.pop(name)
        assert process.poll() is None, f"the worker {name} has ended by itself"
        process.kill()
        process.wait()


# ---------------------------------------------------------------------------------- callers


class Caller(Protocol):
    """Who asks one endpoint; jobs are given as documents of the protocol."""

    endpoint: str

    async def run(self, input: Any, timeout: float | None) -> dict[str, Any]: ...
    async def run_sync(self, input: Any, timeout: float | None) -> dict[str, Any]: ...
    async def status(self, job: str) -> dict[str, Any]: ...
    async def end(self, job: str) -> dict[str, Any]: ...
    async def stream(self, job: str) -> tuple[list[Any], dict[str, Any]]: ...
    async def cancel(self, job: str) -> None: ...
    async def retry(self, job: str) -> None: ...
    async def purge(self) -> int: ...


class Raw:
    """Plain HTTP."""

    def __init__(self, http: httpx.AsyncClient, endpoint: str) -> None:
        self._http, self.endpoint = http, endpoint

    async def _ask(self, method: str, path: str, document: Any = None) -> Any:
        answer = await self._http.request(method, f"/{self.endpoint}/{path}", json=document)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def run(self, input: Any, timeout: float | None, way: str = "run") -> dict[str, Any]:
        policy = {} if timeout is None else {"policy": {"executionTimeout": timeout * 1000}}
        return await self._ask("POST", way, {"input": input, **policy})

    async def run_sync(self, input: Any, timeout: float | None) -> dict[str, Any]:
        return await self.run(input, timeout, "runsync?wait=1000")

    async def status(self, job: str) -> dict[str, Any]:
        return await self._ask("GET", f"status/{job}")

    async def end(self, job: str) -> dict[str, Any]:
        while True:
            document = await self._ask("GET", f"status-sync/{job}")
            if document["status"] in FINAL:
                return document

    async def stream(self, job: str) -> tuple[list[Any], dict[str, Any]]:
        chunks: list[Any] = []
        while True:
            answer = await self._ask("GET", f"stream/{job}")
            chunks += [chunk["output"] for chunk in answer["stream"]]
            if answer["status"] in FINAL:
                return chunks, await self.status(job)

    async def cancel(self, job: str) -> None:
        await self._ask("POST", f"cancel/{job}")

    async def retry(self, job: str) -> None:
        await self._ask("POST", f"retry/{job}")

    async def purge(self) -> int:
        return (await self._ask("POST", "purge-queue"))["removed"]

    async def find(self, job: str) -> dict[str, Any]:
        """As `status`, also of a job that the server does not know."""
        answer = await self._http.get(f"/{self.endpoint}/status/{job}")
        return answer.json() if answer.status_code == 200 else {"id": job, "status": str(answer.status_code)}

    async def health(self) -> dict[str, dict[str, int]]:
        return await self._ask("GET", "health")


class Ours:
    """The client of this project."""

    def __init__(self, it: Endpoint) -> None:
        self._it, self.endpoint = it, it.id

    async def run(self, input: Any, timeout: float | None) -> dict[str, Any]:
        from notebook_ext.types import ExecutionPolicy

        return _document(await self._it.run(input, policy=ExecutionPolicy(timeout)))

    async def run_sync(self, input: Any, timeout: float | None) -> dict[str, Any]:
        from notebook_ext.types import ExecutionPolicy

        return _document(await self._it.start_sync(input, policy=ExecutionPolicy(timeout), wait=1))

    async def status(self, job: str) -> dict[str, Any]:
        return _document(await self._it.status(job))

    async def end(self, job: str) -> dict[str, Any]:
        return _document(await self._it.status_sync(job))

    async def stream(self, job: str) -> tuple[list[Any], dict[str, Any]]:
        from notebook_ext.types import StreamChunk

        chunks, document = [], {}
        async with contextlib.aclosing(self._it.follow(job)) as events:
            async for event in events:
                if isinstance(event, StreamChunk):
                    chunks.append(event.output)
                else:
                    document = _document(event)
        return chunks, document

    async def cancel(self, job: str) -> None:
        await self._it.cancel(job)

    async def retry(self, job: str) -> None:
        await self._it.retry(job)

    async def purge(self) -> int:
        return await self._it.purge_queue()


def _document(job: Job) -> dict[str, Any]:
    from notebook_ext.protocol import job_to_json

    return job_to_json(job)


@contextlib.asynccontextmanager
async def callers(url: str) -> AsyncIterator[tuple[dict[str, Raw], dict[str, Ours]]]:
    """One of each kind for every endpoint."""
    import httpx

    from notebook_ext.client import Endpoint
    from notebook_ext.providers import local

    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers={"Authorization": TOKEN}, trust_env=False, timeout=120)
        )
        ours = {}
        for name in ENDPOINTS:
            it = await stack.enter_async_context(Endpoint(name, local(url, lambda: TOKEN)))
            ours[name] = Ours(it)
        yield {name: Raw(http, name) for name in ENDPOINTS}, ours


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        Worker().work()
