"""How much a journal takes in, how large it grows, how soon it finds something, what a kernel remembers of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext.entry import Entry
from notebook_ext.journal import Journal
from notebook_ext.types import Job, JobStatus, StreamChunk
from tests.bench.contenders import ROOT
from tests.bench.figures import FLOOR, OURS, Figure, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = ":memory:"
CHARACTERS = 4
"""Of a token."""
STREAMED = 2_000
"""Tokens of a job whose size is measured."""


def measure(folder: Path, settings: Settings) -> list[Figure]:
    """All of it; `folder` is where the files are made."""
    return [
        *_intake(folder, settings),
        *_sizes(folder, settings),
        *_searches(folder, settings),
        *_memory(folder, settings),
    ]


# ------------------------------------------------------------------ what is written


class Writer:
    """Prompts and answers of words that are as frequent as words are; the same ones each time."""

    def __init__(self) -> None:
        self._random = random.Random(4)
        letters = "etaoinshrdlu"
        self._words = ["".join(self._random.choices(letters, k=2 + rank % 9)) for rank in range(20_000)]
        self._weights = list(accumulate(1 / rank for rank in range(1, len(self._words) + 1)))

    def text(self, characters: int) -> str:
        words = self._random.choices(self._words, cum_weights=self._weights, k=characters // 4)
        return " ".join(words)[:characters]

    def word(self, rank: int) -> str:
        """A word by its frequency: 1 is the commonest."""
        return self._words[rank - 1]


def entry(prompt: str) -> Entry:
    """A job that is about to be submitted."""
    return Entry(
        endpoint="ep",
        endpoint_id="ep",
        provider="runpod",
        base_url="https://example.org/v2",
        input={"prompt": prompt},
        submitted_at=time.time(),
        job=Job(id="", endpoint="ep", status=JobStatus.IN_QUEUE, seen_at=time.time()),
    )


def ended(number: int, output: Any = None) -> Job:
    """How a job ended."""
    return Job(
        id=f"{number:08x}-0000-4000-8000-000000000000-e1",
        endpoint="ep",
        status=JobStatus.COMPLETED,
        output=output,
        has_output=output is not None,
        delay_time=0.1,
        execution_time=1.0,
        seen_at=time.time(),
    )


def chunks(text: str, characters: int = CHARACTERS) -> list[StreamChunk]:
    """A text in tokens."""
    pieces = (text[start : start + characters] for start in range(0, len(text), characters))
    return [StreamChunk(piece, index) for index, piece in enumerate(pieces)]


def fill(path: Path, jobs: int, answer: int) -> None:
    """Make a journal of ended jobs; in memory first, as a thousand jobs are a thousand waits for the disk."""
    journal, writer = Journal(), Writer()
    for _ in range(jobs):
        number = journal.add(entry(writer.text(200)))
        journal.finish(number, ended(number), chunks=chunks(writer.text(answer)))
    journal._db.connection.execute("VACUUM INTO ?", (str(path),))
    journal.close()


# ------------------------------------------------------------------ intake


def _intake(folder: Path, settings: Settings) -> list[Figure]:
    total = 20_000 if settings.quick else 1_000_000
    figures = []
    for batch in (1, 25, 500):
        written = min(total, 4_000 * batch)
        case = f"{written:,} chunks, {batch} at a time"
        rate = Figure(case, "chunks per second into the journal", "")
        slowest = Figure(case, "slowest append", "ms")
        for repeat in range(settings.repeats):
            for name, path in ((MEMORY, MEMORY), (OURS, str(folder / f"intake-{batch}-{repeat}.db"))):
                seconds = _append(Journal(path), written, batch)
                rate.add(name, written / sum(seconds))
                slowest.add(name, max(seconds) * 1000)
        figures += [rate, slowest]
    return figures


def _append(journal: Journal, total: int, batch: int) -> list[float]:
    """Seconds that each batch took; a hundred jobs stream in turn."""
    seconds = []
    numbers = [journal.add(entry("hello")) for _ in range(min(100, total // batch))]
    for at in range(total // batch):
        first = at // len(numbers) * batch
        rows = [StreamChunk("word", index) for index in range(first, first + batch)]
        started = time.perf_counter()
        journal.append(numbers[at % len(numbers)], rows)
        seconds.append(time.perf_counter() - started)
    journal.close()
    return seconds


# ------------------------------------------------------------------ size


def _sizes(folder: Path, settings: Settings) -> list[Figure]:
    """Bytes on the disk per byte of text; the floor is the text."""
    megabytes = 1 if settings.quick else 8
    few, many = megabytes, megabytes * 1_000_000 // (CHARACTERS * STREAMED)
    tokens = f"streamed in tokens of {CHARACTERS} characters"
    kinds: list[tuple[str, int, Callable[[Journal, str], object]]] = [
        (f"{tokens}, still running", many, _stream),
        (f"{tokens}, ended without an output", many, _stream_to_the_end),
        (f"{tokens}, ended with the tokens as its output", many, _stream_and_aggregate),
        ("plain output", many, _return),
        ("plain output of 1 MB", few, _return),
    ]
    figures = []
    for number, (case, jobs, keep) in enumerate(kinds):
        length = megabytes * 1_000_000 // jobs
        figure = Figure(f"{jobs:,} jobs of {length / 1000:,.0f} KB of text", f"{case}: on disk per MB", "MB")
        path = folder / f"size-{number}.db"
        journal, writer = Journal(str(path)), Writer()
        for _ in range(jobs):
            keep(journal, writer.text(length))
        journal.close()
        figure.add(FLOOR, 1.0)
        figure.add(OURS, _on_disk(path) / (jobs * length))
        figures.append(figure)
    return figures


def _stream(journal: Journal, text: str) -> int:
    number = journal.add(entry("hello"))
    tokens = chunks(text)
    for first in range(0, len(tokens), 25):
        journal.append(number, tokens[first : first + 25])
    return number


def _stream_to_the_end(journal: Journal, text: str) -> None:
    number = _stream(journal, text)
    journal.finish(number, ended(number))


def _stream_and_aggregate(journal: Journal, text: str) -> None:
    number = _stream(journal, text)
    journal.finish(number, ended(number, [token.output for token in chunks(text)]))


def _return(journal: Journal, text: str) -> None:
    number = journal.add(entry("hello"))
    journal.finish(number, ended(number, text))


def _on_disk(path: Path) -> int:
    """Bytes of all files of a journal."""
    files = [*path.parent.glob(f"{path.name}*"), *Path(f"{path}.d").rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


# ------------------------------------------------------------------ search


def _searches(folder: Path, settings: Settings) -> list[Figure]:
    jobs = 10_000 if settings.quick else 100_000
    path, writer = folder / "search.db", Writer()
    fill(path, jobs, 400)
    journal = Journal(str(path))
    queries = {
        "no such word": "zzz",
        "a rare word": writer.word(15_000),
        "two words": f"{writer.word(200)} {writer.word(900)}",
        "a word that most jobs have": writer.word(1),
        "a word's first letter": "t",
    }
    figures = []
    for what, words in queries.items():
        figure = Figure(f"{jobs:,} jobs, 50 found at most", f"search for {what}", "ms")
        for _ in range(settings.repeats):
            figure.add(OURS, _milliseconds(lambda words=words: journal.search(words)))
        figures.append(figure)
    newest = Figure(f"{jobs:,} jobs", "the newest 50", "ms")
    for _ in range(settings.repeats):
        newest.add(OURS, _milliseconds(lambda: journal.entries(limit=50)))
    journal.close()
    return [*figures, newest]


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


# ------------------------------------------------------------------ memory

SCRIPT = """
import json, sys
import psutil
import IPython, ipykernel.ipkernel, ipykernel.zmqshell, ipywidgets
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()

def resident():
    return psutil.Process().memory_info().rss / 1e6

def do(line):
    shell.run_cell(line).raise_error()
    marks.append(resident())

marks = []
shell.run_line_magic("load_ext", "notebook_ext")
do("%endpoint help")
do("%endpoint jobs")
do(f"%endpoint history -q {sys.argv[1]}")
do("%endpoint jobs --since 1d")
print(f"MARKS {json.dumps(marks)}")
"""
STEPS = {
    "opened and idle": 0,
    "after `jobs`": 1,
    "after `history -q`": 2,
    "after `jobs --since 1d`, which lists all": 3,
}


def _memory(folder: Path, settings: Settings) -> list[Figure]:
    """What a process has of a journal; the floor is one that has an empty journal."""
    jobs = 1_000 if settings.quick else 10_000
    path = folder / "memory.db"
    fill(path, jobs, CHARACTERS * 250)
    figures = {
        what: Figure(f"{jobs:,} jobs of 250 tokens; the floor has none", f"memory, {what}", "MB")
        for what in STEPS
    }
    for _ in range(settings.repeats):
        for name, journal in ((FLOOR, folder / "empty.db"), (OURS, path)):
            marks = _marks(journal)
            for what, at in STEPS.items():
                figures[what].add(name, marks[at])
    return list(figures.values())


def _marks(journal: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, Writer().word(1)],
        cwd=ROOT,
        env={**os.environ, "NOTEBOOK_EXT_JOURNAL": str(journal)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    marks: list[float] = json.loads(done.stdout.rpartition("MARKS ")[2])
    return marks
