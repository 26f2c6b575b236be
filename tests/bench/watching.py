"""What does it cost a kernel to follow jobs in which nothing happens, and how soon does it still answer?

A real kernel, without a page, follows so many jobs of the stopwatch, which holds its long polls. The floor is
in a kernel too: a bare asyncio loop in a thread, with one long poll per job. "Seen" says that following is
not cheap only because nothing is followed.
"""

from __future__ import annotations

import ast
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from jupyter_client.manager import KernelManager

from tests.bench.contenders import ROOT, environment, stopwatch, told
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client.blocking.client import BlockingKernelClient

QUESTION = "watching"
ROWS = "10, 14"
IS_APART = True
"""It follows for minutes: asked for by name."""

SETTLE = 12.0
"""Seconds after the last submission in which the first looks, which are close together, are over."""
WINDOW = 20.0
"""Seconds over which CPU and requests are counted: two of the server's holds."""
CELLS, CANCELS = 60, 3
PATIENCE = 90.0
"""Seconds after which what has not happened is taken to happen never."""

# Each contender defines the same: follow(count, input), cancel(at) and wait(at), at being a job's place.
# Only cancel returns something, the job's id.
CODE = {
    FLOOR: """
import asyncio, threading
from tests.bench.drivers.clients import Floor
LOOP, IDS, ENDS = asyncio.new_event_loop(), [], []
threading.Thread(target=LOOP.run_forever, daemon=True).start()
FLOOR = Floor(URL)

async def to_the_end(job_id):
    async for _ in FLOOR.stream(job_id):
        pass

def on_loop(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, LOOP)

def follow(count, input):
    submissions = [on_loop(FLOOR.submit(input)) for _ in range(count)]
    IDS.extend(submission.result() for submission in submissions)
    ENDS.extend(on_loop(to_the_end(job_id)) for job_id in IDS)

def cancel(at):
    on_loop(FLOOR.ask("POST", f"/v2/ep/cancel/{IDS[at]}", {})).result()
    return IDS[at]

def wait(at):
    ENDS[at].result()
""",
    OURS: """
import time
import notebook_ext
get_ipython().run_line_magic("load_ext", "notebook_ext")
ENDPOINT, HANDLES = notebook_ext.connect("ep", "ep", provider=f"{URL}/v2"), []

def follow(count, input):
    HANDLES.extend(ENDPOINT.submit(input) for _ in range(count))
    while not all(handle.id or handle.done for handle in HANDLES):
        time.sleep(0.01)

def cancel(at):
    HANDLES[at].cancel(timeout=PATIENCE)
    return HANDLES[at].id

def wait(at):
    try:
        HANDLES[at].wait(timeout=PATIENCE)
    except notebook_ext.WaitTimeout:
        pass
""",
}
TIMES = """
import time, urllib.request

def submitted(count, input):
    started = time.monotonic()
    follow(count, input)
    return time.monotonic() - started

def cancelled(at):
    '''The moment of the call, and the job that it was about.'''
    asked = time.monotonic()
    return [asked, cancel(at)]

def seen(at, job_id):
    '''Seconds from the end of a job, which somebody else brings about, until it is known here.'''
    request = urllib.request.Request(f"{URL}/v2/ep/cancel/{job_id}", data=b"{}")
    ended = time.monotonic()
    urllib.request.urlopen(request).read()
    wait(at)
    return time.monotonic() - ended
"""


@dataclass(frozen=True)
class Case:
    """What is followed.

    Args:
        jobs: How many jobs.
        is_queued: Whether they wait in the queue; else they run, and stream nothing.
    """

    jobs: int
    is_queued: bool = False

    def __str__(self) -> str:
        return (
            f"{self.jobs:,} {'job' if self.jobs == 1 else 'jobs'} {'queued' if self.is_queued else 'running'}"
        )

    @property
    def input(self) -> dict[str, Any]:
        return {"tokens": 1, "first": 3600.0, "queued": self.is_queued}


CASES = [Case(1), Case(50), Case(500), Case(1000), Case(1000, is_queued=True)]


def measure(settings: Settings) -> list[Figure]:
    cases = [Case(50)] if settings.quick else CASES
    tables = {case: _figures(case) for case in cases}
    for _ in range(settings.repeats):
        for case in cases:
            for name in CODE:
                for what, sample in watch(name, case, quick=settings.quick).items():
                    tables[case][what].add(name, sample)
    return [figure for table in tables.values() for figure in table.values()]


def _figures(case: Case) -> dict[str, Figure]:
    never = f"{PATIENCE * 1000:g}: never"
    return {
        "cpu": Figure(str(case), "kernel CPU while nothing changes", "% of a core", Goal(absolute=15.0)),
        "requests": Figure(str(case), "requests per job and minute", "", Goal(absolute=10.0)),
        "idle": Figure(str(case), "a trivial cell answers, nothing followed, p95", "ms"),
        "cell": Figure(str(case), "a trivial cell answers, p95", "ms", Goal(absolute=50.0)),
        "submitted": Figure(str(case), "until all are submitted", "s"),
        "cancel": Figure(str(case), f"cancel() to POST at the server ({never})", "ms", Goal(absolute=50.0)),
        "seen": Figure(str(case), f"end of a job to its being known ({never})", "ms", Goal(absolute=1000.0)),
    }


def watch(name: str, case: Case, *, quick: bool) -> dict[str, float]:
    """Follow a case's jobs once with a contender, in a kernel and with a server of their own; its figures."""
    settle, window = (2.0, 4.0) if quick else (SETTLE, WINDOW)
    with ExitStack() as stack:
        url = stack.enter_context(stopwatch())
        _, client = stack.enter_context(fresh_kernel())
        kernel = Kernel(client)
        kernel.ask(f"URL, PATIENCE = {url!r}, {PATIENCE}\n{CODE[name]}\n{TIMES}")
        cells = 10 if quick else CELLS
        idle = _answers(kernel, cells)
        submitted = kernel.ask(f"ANSWER = submitted({case.jobs}, {case.input})")
        time.sleep(settle)

        process = psutil.Process(kernel.ask("ANSWER = __import__('os').getpid()"))
        before, cpu, started = _tally(url), process.cpu_times(), time.monotonic()
        time.sleep(window)
        spent, after = process.cpu_times(), _tally(url)
        passed = time.monotonic() - started
        asked = {what: after[what] - before.get(what, 0) for what in after}

        figures = {
            "cpu": (spent.user + spent.system - cpu.user - cpu.system) / passed * 100,
            "requests": sum(asked.values()) / case.jobs / passed * 60,
            "idle": idle,
            "cell": _answers(kernel, cells),
            "submitted": submitted,
        }
        if case.jobs > CANCELS:
            figures["cancel"] = statistics.median(_cancel(kernel, url, at) for at in range(CANCELS))
        figures["seen"] = _seen(kernel, case.jobs - 1)
    told = ", ".join(f"{what} {round(figure, 1)}" for what, figure in figures.items())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{case}, {name}: {told}; {asked} in {passed:.0f} s; load {load:.1f}", file=sys.stderr, flush=True)
    return figures


def _answers(kernel: Kernel, cells: int) -> float:
    """Milliseconds until a trivial cell has answered, p95."""
    times = []
    for _ in range(cells):
        times.append(kernel.time("1"))
        time.sleep(0.05)
    return percentile(times, 0.95) * 1000


def _cancel(kernel: Kernel, url: str, at: int) -> float:
    asked, job_id = kernel.ask(f"ANSWER = cancelled({at})")
    ended: float | None = told(url, f"/stamps/{job_id}")["finished"]
    return (PATIENCE if ended is None else ended - asked) * 1000


def _seen(kernel: Kernel, at: int) -> float:
    job_id = kernel.ask(f"ANSWER = HANDLES[{at}].id if 'HANDLES' in globals() else IDS[{at}]")
    seconds: float = kernel.ask(f"ANSWER = seen({at}, {job_id!r})")
    return seconds * 1000


def _tally(url: str) -> dict[str, int]:
    tally: dict[str, int] = told(url, "/tally")["requests"]
    return tally


class Kernel:
    """A kernel that runs code and is asked for what it found.

    Args:
        client: Connected to it.
    """

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client

    def ask(self, code: str) -> Any:
        """Run code; what it has put into `ANSWER`."""
        answer = self._run(code, {"answer": "__import__('json').dumps(globals().get('ANSWER'))"})
        return json.loads(ast.literal_eval(answer["user_expressions"]["answer"]["data"]["text/plain"]))

    def time(self, code: str) -> float:
        """Seconds until code has been run and answered."""
        started = time.perf_counter()
        self._run(code, {})
        return time.perf_counter() - started

    def _run(self, code: str, expressions: dict[str, str]) -> dict[str, Any]:
        sent = self._client.execute(code, store_history=False, user_expressions=expressions)
        while True:
            message = self._client.get_shell_msg(timeout=2 * PATIENCE)
            if message["parent_header"].get("msg_id") == sent:
                break
        content: dict[str, Any] = message["content"]
        if content["status"] != "ok":
            raise RuntimeError("\n".join(content.get("traceback", [content["status"]])))
        return content


@contextmanager
def fresh_kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A fresh kernel that finds this folder's packages."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(ROOT), env=environment(PYTHONPATH=str(ROOT)))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
