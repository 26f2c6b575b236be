"""What does it cost a job that everything about it is written down?

A session follows the stopwatch's jobs with a journal that keeps nothing, with one in memory and with one in a
file, job by job in turn. Then the file alone, of which `journal_volume` knows: how much it takes in, how large
it grows, how soon it finds something, and what a kernel has to remember of it.

The file is in the folder for temporary files: `TMPDIR` chooses the file system, which the table names.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

import psutil

from notebook_ext.journal import Journal
from notebook_ext.session import Session
from tests.bench import journal_volume
from tests.bench.contenders import stopwatch, told
from tests.bench.drivers.clients import Floor
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings, percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from notebook_ext.entry import Entry
    from notebook_ext.types import Job, StreamChunk

QUESTION = "journal"
ROWS = "1, 5"
IS_APART = True
"""It measures a disk: asked for by name."""

NOTHING, MEMORY = "keeps nothing", ":memory:"
BURST = 20_000
"""Tokens that come as fast as they can."""


class Nothing(Journal):
    """A journal that keeps nothing: the floor of what a session costs."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def add(self, entry: Entry) -> int:
        return next(self._numbers)

    def update(self, number: int, job: Job) -> None:
        pass

    def append(self, number: int, chunks: Iterable[StreamChunk]) -> None:
        pass

    def finish(
        self, number: int, job: Job, notes: Sequence[str] = (), chunks: Sequence[StreamChunk] | None = None
    ) -> None:
        pass


@dataclass
class Seen:
    """When one job's events were seen, in seconds since it was asked for.

    Args:
        asked: The moment of the call (`time.monotonic()`).
        returned: The call of `submit` came back.
        known: The job's id was there.
        chunks: Each chunk reached the loop over them.
        ended: The loop over them ended.
        job_id: The server's id.
    """

    asked: float
    returned: float
    known: float
    chunks: list[float]
    ended: float
    job_id: str


async def follow_bare(floor: Floor, input: dict[str, Any]) -> Seen:
    """Follow a job as little as it can be followed."""
    asked = time.monotonic()
    job_id = await floor.submit(input)
    known = time.monotonic() - asked
    chunks = [time.monotonic() - asked async for _ in floor.stream(job_id)]
    return Seen(asked, known, known, chunks, time.monotonic() - asked, job_id)


async def follow(session: Session, input: dict[str, Any]) -> Seen:
    """Follow a job as a user's `async for` does."""
    asked = time.monotonic()
    handle = session.connect("ep").submit(input)
    returned = time.monotonic() - asked
    await handle.id_known()
    known = time.monotonic() - asked
    chunks = [time.monotonic() - asked async for _ in handle.chunks()]
    return Seen(asked, returned, known, chunks, time.monotonic() - asked, handle.id)


def measure(settings: Settings) -> list[Figure]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *_disk(folder),
            *_following(folder, settings),
            *journal_volume.measure(folder, settings),
        ]


def _disk(folder: Path) -> list[Figure]:
    """What the file system takes to have a page on the disk: what `add` waits for at least."""
    figures = [Figure(file_system(folder), f"fsync of a page {p}", "ms") for p in ("p50", "p95")]
    times = []
    with TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(50):
            file.write(os.urandom(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    for figure, fraction in zip(figures, (0.50, 0.95), strict=True):
        figure.add(OURS, percentile(times, fraction))
    return figures


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    above = {
        partition.mountpoint: partition.fstype
        for partition in psutil.disk_partitions(all=True)
        if folder.resolve().is_relative_to(partition.mountpoint)
    }
    return above[max(above, key=len)] if above else "unknown file system"


# ------------------------------------------------------------------ a session with its journal


@contextmanager
def _sessions(url: str, folder: Path) -> Iterator[dict[str, Session]]:
    """A session for each kind of journal, warm."""
    with ExitStack() as stack:
        sessions = {}
        kinds = {FLOOR: Nothing(), MEMORY: Journal(), OURS: Journal(str(folder / f"{time.time_ns()}.db"))}
        for name, journal in kinds.items():
            sessions[name] = Session(journal=journal)
            stack.callback(sessions[name].close)
            sessions[name].connect("ep", "ep", provider=f"{url}/v2")
        for session in sessions.values():
            asyncio.run(follow(session, {"tokens": 1}))
        yield sessions


def _following(folder: Path, settings: Settings) -> list[Figure]:
    with stopwatch() as url, _sessions(url, folder) as sessions:
        return [
            *_submits(url, sessions, settings),
            *_ends(url, sessions, settings, tokens=3, interval=0.02),
            *_ends(url, sessions, settings, tokens=2_000, interval=0.0005),
            *_delays(url, sessions, settings),
            *_bursts(sessions, settings),
        ]


def _submits(url: str, sessions: dict[str, Session], settings: Settings) -> list[Figure]:
    case = "a job of one token, loopback"
    figures = {
        (what, p): Figure(case, f"{what}, {p}", "ms")
        for what in ("submit() returns", "submit() to its id")
        for p in ("p50", "p95")
    }
    first = Figure(f"{case}; the floor is bare", "time to first token", "ms", Goal(excess=5.0))
    for _ in range(settings.repeats):
        seen = asyncio.run(_in_turn(url, sessions, [{"tokens": 1}] * (10 if settings.quick else 60)))
        for name, jobs in seen.items():
            first.add(name, statistics.median(job.chunks[0] for job in jobs) * 1000)
        seen[FLOOR] = seen.pop(NOTHING)
        for name, jobs in seen.items():
            for p, fraction in (("p50", 0.50), ("p95", 0.95)):
                returned = percentile([job.returned for job in jobs], fraction)
                figures["submit() returns", p].add(name, returned * 1000)
                known = percentile([job.known for job in jobs], fraction)
                figures["submit() to its id", p].add(name, known * 1000)
    return [*figures.values(), first]


def _ends(
    url: str, sessions: dict[str, Session], settings: Settings, *, tokens: int, interval: float
) -> list[Figure]:
    """A request that just missed the end costs a whole one more: sweep over some phases."""
    case = f"{tokens:,} tokens every {interval * 1000:g} ms; the floor is bare"
    goal = Goal(absolute=5.0, ratio=1.2)
    figure = Figure(case, "end of stream after COMPLETED", "ms", goal)
    jobs = 1 if settings.quick else 4
    job = {"tokens": tokens, "interval": interval, "first": 0.05}
    for _ in range(settings.repeats):
        inputs = [job | {"finish": 0.005 + 0.01 * phase / jobs} for phase in range(jobs)]
        for name, seen in asyncio.run(_in_turn(url, sessions, inputs)).items():
            lags = [one.asked + one.ended - told(url, f"/stamps/{one.job_id}")["finished"] for one in seen]
            figure.add(name, statistics.mean(lags) * 1000)
    return [figure]


async def _in_turn(
    url: str, sessions: dict[str, Session], inputs: list[dict[str, Any]]
) -> dict[str, list[Seen]]:
    """Each job with each contender, a bare loop among them."""
    floor = Floor(url)
    await follow_bare(floor, {"tokens": 1})
    named = {NOTHING if name == FLOOR else name: session for name, session in sessions.items()}
    seen: dict[str, list[Seen]] = {FLOOR: [], **{name: [] for name in named}}
    for body in inputs:
        seen[FLOOR].append(await follow_bare(floor, body))
        for name, session in named.items():
            seen[name].append(await follow(session, body))
    await floor.close()
    return seen


def _delays(url: str, sessions: dict[str, Session], settings: Settings) -> list[Figure]:
    """Many streams at once: the moment in which one of them is written down is a delay of the others."""
    tokens, streams = (50, 4) if settings.quick else (200, 16)
    case = f"{streams} streams at once, {tokens} tokens every 20 ms"
    figures = [Figure(case, f"delay per token {p}", "ms") for p in ("p50", "p95", "p99")]
    body = {"tokens": tokens, "interval": 0.020, "first": 0.2, "finish": 0.005}

    async def delays(session: Session) -> list[float]:
        found = []
        for seen in await asyncio.gather(*(follow(session, body) for _ in range(streams))):
            emitted = told(url, f"/stamps/{seen.job_id}")["emitted"]
            found += [seen.asked + came - sent for came, sent in zip(seen.chunks, emitted, strict=True)]
        return found

    for _ in range(settings.repeats):
        for name, session in sessions.items():
            found = asyncio.run(delays(session))
            for figure, fraction in zip(figures, (0.50, 0.95, 0.99), strict=True):
                figure.add(name, percentile(found, fraction) * 1000)
    return figures


def _bursts(sessions: dict[str, Session], settings: Settings) -> list[Figure]:
    tokens = BURST // 10 if settings.quick else BURST
    case = f"{tokens:,} tokens as fast as they come"
    rate = Figure(case, "chunks per second through a session", "")
    for _ in range(settings.repeats):
        for name, session in sessions.items():
            seen = asyncio.run(follow(session, {"tokens": tokens}))
            rate.add(name, len(seen.chunks) / seen.ended)
    return [rate]
