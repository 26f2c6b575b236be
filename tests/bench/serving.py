"""What does the embedded endpoint carry: jobs per second, held long polls, a long queue, a busy neighbour?

`python -m notebook_ext.server` in a process of its own, asked by bare clients. The floor is what the same
clients get from the stopwatch, which does the same work with as little as a server in Python can.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import psutil

from tests.bench.contenders import ROOT, environment, scratch, stopwatch, told
from tests.bench.drivers.clients import Wire
from tests.bench.figures import FLOOR, OURS, Figure, Settings, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

QUESTION = "serving"
ROWS = "load"
IS_APART = True

KEY = "key-of-the-benchmark"
HANDLERS = Path(__file__).with_name("drivers") / "handlers.py"
LANES = 64
"""Connections, where many things are to be done."""
CLIENTS = (1, 8, 64)
HOLD = "?wait=120000"
QUIET = 4.0
"""Seconds in which nothing happens, while CPU is counted."""
NEVER = 86_400.0
"""Seconds until a job ends that is not to end."""
SPREAD = 0.005
"""Seconds between the ends of two jobs that are waited for."""


@dataclass(frozen=True)
class Site:
    """A server in a process of its own.

    Args:
        url: Without the `/v2`.
        process: It.
    """

    url: str
    process: psutil.Process

    def cpu(self) -> float:
        """Seconds that it has used."""
        spent = self.process.cpu_times()
        return float(spent.user + spent.system)

    def memory(self) -> float:
        """Resident, in KB."""
        return float(self.process.memory_info().rss / 1e3)


Opener = Callable[..., AbstractContextManager[Site]]


@contextmanager
def embedded(*endpoints: str, workers: int = 1) -> Iterator[Site]:
    """`python -m notebook_ext.server`, as it comes."""
    command = [sys.executable, "-m", "notebook_ext.server", *endpoints, "--workers", str(workers)]
    own = environment(NOTEBOOK_EXT_TOKEN=KEY, NOTEBOOK_EXT_WORKERS=str(scratch() / "workers"))
    with subprocess.Popen(
        command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())
            yield Site(address["base_url"].removesuffix("/v2"), psutil.Process(process.pid))
        finally:
            process.terminate()


@contextmanager
def floor(*_: str, workers: int = 0) -> Iterator[Site]:
    """The stopwatch; its endpoints are one."""
    others = set(psutil.Process().children())
    with stopwatch(workers=workers) as url:
        (process,) = set(psutil.Process().children()) - others
        yield Site(url, process)


class _Wire(Wire):
    """The floor's connection, for heads as any server writes them."""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length):
            return
        self._buffer = b""
        assert self._answer is not None
        if self._answer.cancelled():  # nobody wants to know any more
            return
        if head.startswith(b"HTTP/1.1 200 "):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(head.partition(b"\r\n")[0].decode()))


class Client:
    """As little as a client can be; as many connections as it has requests in flight."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._headers = f"Host: {parts.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
        self._all: list[_Wire] = []
        self._idle: list[_Wire] = []

    @property
    def connections(self) -> int:
        return len(self._all)

    async def ask(self, method: str, path: str, document: Any = None) -> Any:
        if self._idle:
            wire = self._idle.pop()
        else:
            _, wire = await asyncio.get_running_loop().create_connection(_Wire, *self._address)
            self._all.append(wire)
        body = "" if document is None else json.dumps(document)
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        answer = await wire.ask(f"{method} /v2/{path} HTTP/1.1\r\n{self._headers}{length}\r\n{body}".encode())
        self._idle.append(wire)
        return json.loads(answer)

    async def submit(self, endpoint: str, input: Any) -> str:
        return str((await self.ask("POST", f"{endpoint}/run", {"input": input}))["id"])

    async def end(self, endpoint: str, job: str) -> Any:
        document = await self.ask("GET", f"{endpoint}/status-sync/{job}{HOLD}")
        assert document["status"] == "COMPLETED", document
        return document["output"]

    async def result(self, endpoint: str, input: Any) -> Any:
        return await self.end(endpoint, await self.submit(endpoint, input))

    def close(self) -> None:
        for wire in self._all:
            wire.transport.abort()


@asynccontextmanager
async def client(site: Site) -> AsyncIterator[Client]:
    it = Client(site.url)
    try:
        yield it
    finally:
        it.close()
        await asyncio.sleep(0)


async def over(lanes: int, count: int, once: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Do something `count` times, on so many lanes at once."""
    numbers = iter(range(count))
    results: list[Any] = []

    async def lane() -> None:
        for number in numbers:
            results.append(await once(number))

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return results


class Question(Protocol):
    """Its figures are its attributes."""

    async def once(self, name: str, opener: Opener) -> None: ...


def measure(settings: Settings) -> list[Figure]:
    quick = settings.quick
    questions: list[Question] = [Rate(clients, 200 if quick else 1500) for clients in CLIENTS]
    questions += [Polls(*((100, 0.5) if quick else (1000, QUIET))), LongQueue(5_000 if quick else 100_000)]
    queued, count = (500, 50) if quick else (5_000, 300)
    questions += [
        Neighbour(0, 0, 0, count),
        Neighbour(queued, LANES, 0, count),
        Neighbour(queued, 0, LANES, count),
    ]
    figures: list[Figure] = []
    for question in questions:
        for _ in range(settings.repeats):
            for name, opener in ((FLOOR, floor), (OURS, embedded)):
                asyncio.run(question.once(name, opener))
        figures += [figure for figure in vars(question).values() if isinstance(figure, Figure)]
    return figures


# ---------------------------------------------------------------------------------- jobs per second


class Rate:
    """Run and result, one after the other, by so many clients."""

    def __init__(self, clients: int, count: int) -> None:
        self._clients, self._count = clients, count
        case = f"run + result of `echo`, {clients} client{'s' * (clients > 1)}, 8 workers"
        self.rate = Figure(case, "jobs per second", "")
        self.cpu = Figure(case, "CPU of the server per job", "ms")

    async def once(self, name: str, opener: Opener) -> None:
        with opener("ep=echo", workers=8) as site:
            async with client(site) as it:

                async def job(number: int) -> None:
                    tag = f"{name} {number}"
                    assert await it.result("ep", {"tag": tag}) in ({"tag": tag}, tag)

                await over(self._clients, 2 * self._clients, job)
                spent, started = site.cpu(), time.perf_counter()
                await over(self._clients, self._count, job)
                self.rate.add(name, self._count / (time.perf_counter() - started))
                self.cpu.add(name, (site.cpu() - spent) / self._count * 1000)


# ---------------------------------------------------------------------------------- held long polls


class Polls:
    """Long polls that are held, each for its own running job."""

    def __init__(self, count: int, quiet: float) -> None:
        self._count, self._quiet = count, quiet
        case = f"{count:,} held long polls"
        self.memory = Figure(case, "memory per poll, its connection included", "KB")
        self.idle = Figure(case, "CPU while nothing happens", "% of a core")
        self.p50 = Figure(case, "a job's end to its answer, p50", "ms")
        self.p95 = Figure(case, "a job's end to its answer, p95", "ms")

    async def once(self, name: str, opener: Opener) -> None:
        count, quiet = self._count, self._quiet
        with opener(f"ep={HANDLERS}:finish", workers=count) as site:
            async with client(site) as it:
                lead = 1.0 + count / 500 + quiet  # until all of them are held
                jobs = await over(
                    LANES, count, lambda at: it.submit("ep", {"finish": lead + at * SPREAD, "tag": str(at)})
                )
                free = site.memory()
                polls = [asyncio.create_task(self._answered(it, job)) for job in jobs]
                while it.connections < count:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.5)
                self.memory.add(name, (site.memory() - free) / count)
                spent = site.cpu()
                await asyncio.sleep(quiet)
                self.idle.add(name, (site.cpu() - spent) / quiet * 100)
                answers = await asyncio.gather(*polls)
            ends = {job: _ended(site, job, output) for job, (_, output) in zip(jobs, answers, strict=True)}
        late = [(when - ends[job]) * 1000 for job, (when, _) in zip(jobs, answers, strict=True)]
        self.p50.add(name, statistics.median(late))
        self.p95.add(name, percentile(late, 0.95))

    @staticmethod
    async def _answered(it: Client, job: str) -> tuple[float, Any]:
        output = await it.end("ep", job)
        return time.monotonic(), output


def _ended(site: Site, job: str, output: Any) -> float:
    """When a job did: our handler returns it, and the stopwatch wrote it down."""
    return output if isinstance(output, float) else float(told(site.url, f"/stamps/{job}")["finished"])


# ---------------------------------------------------------------------------------- a long queue


class LongQueue:
    """Jobs that wait for a worker, of which there is none."""

    def __init__(self, count: int) -> None:
        self._count = count
        case = f"{count:,} queued jobs"
        self.rate = Figure(case, f"submissions per second, {LANES} clients", "")
        self.memory = Figure(case, "memory per job", "KB")
        self.health = Figure(case, "one /health", "ms")
        self.status = Figure(case, "one /status", "ms")
        self.purge = Figure(case, "purge of all of them", "ms")

    async def once(self, name: str, opener: Opener) -> None:
        count = self._count
        with opener("ep", workers=1) as site:
            async with client(site) as it:
                await it.submit("ep", {"finish": NEVER})
                await over(LANES, LANES, lambda _: it.ask("GET", "ep/health"))
                free, started = site.memory(), time.perf_counter()
                jobs = await over(LANES, count, lambda at: it.submit("ep", {"prompt": f"word {at}"}))
                self.rate.add(name, count / (time.perf_counter() - started))
                self.memory.add(name, (site.memory() - free) / count)
                self.health.add(name, await _milliseconds(lambda: it.ask("GET", "ep/health")))
                self.status.add(name, await _milliseconds(lambda: it.ask("GET", f"ep/status/{jobs[-1]}")))
                if name == OURS:  # the stopwatch has no such route
                    started = time.perf_counter()
                    assert (await it.ask("POST", "ep/purge-queue", {}))["removed"] == count + 1
                    self.purge.add(name, (time.perf_counter() - started) * 1000)


async def _milliseconds(ask: Callable[[], Awaitable[Any]], times: int = 30) -> float:
    """What one takes, of so many one after the other."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


# ---------------------------------------------------------------------------------- a busy neighbour


class Neighbour:
    """Jobs on an endpoint while another one, on the same server, has much to do.

    Args:
        queued: Its jobs.
        held: Long polls that are held on them.
        asking: Clients that ask about them without a pause.
        count: How many jobs are measured.
    """

    def __init__(self, queued: int, held: int, asking: int, count: int) -> None:
        self._queued, self._held, self._asking, self._count = queued, held, asking, count
        polls = f"{held} held long polls" if held else f"{asking} clients that ask without a pause"
        case = f"beside {queued:,} queued jobs and {polls}" if queued else "with nothing beside it"
        self.p50 = Figure(f"a job of `echo` {case}", "run + result, p50", "ms")
        self.p95 = Figure(f"a job of `echo` {case}", "run + result, p95", "ms")

    async def once(self, name: str, opener: Opener) -> None:
        with opener("busy", "ep=echo") as site:
            async with client(site) as it, client(site) as other:
                jobs = await over(LANES, self._queued, lambda _: other.submit("busy", {"finish": NEVER}))
                polls = [other.ask("GET", f"busy/status-sync/{job}{HOLD}") for job in jobs[: self._held]]
                asking = [_ask_on(other, job) for job in jobs[: self._asking]]
                beside = [asyncio.ensure_future(one) for one in (*polls, *asking)]
                while other.connections < len(beside):
                    await asyncio.sleep(0.01)

                async def job() -> None:
                    assert await it.result("ep", {"tag": "x"}) in ({"tag": "x"}, "x")

                took = [await _milliseconds(job, times=1) for _ in range(self._count)]
                for task in beside:
                    assert not task.done()
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
        self.p50.add(name, statistics.median(took))
        self.p95.add(name, percentile(took, 0.95))


async def _ask_on(it: Client, job: str) -> None:
    while True:
        await it.ask("GET", f"busy/status/{job}")
