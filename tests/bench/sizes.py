"""What do large outputs cost a kernel, a front end, the disk, and whoever else waits for the kernel?

A real kernel without a page, and a server of its own that sends 100 MB in pieces, or a result of 20 MB. There is no
floor: the limits are absolute. Memory is what the kernel's process has at most beyond what it had before.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.contenders import ROOT
from tests.bench.figures import OURS, Figure, Goal, Settings

QUESTION = "sizes"
ROWS = "size"
IS_APART = True
"""It takes kernels and minutes: asked for by name."""

FULL, RESULT = 100_000_000, 20_000_000
"""Bytes that are streamed, and of one result."""
QUICK = 10
"""By how much a quick look divides them."""
READ = """
job = notebook_ext.connect("ep").submit({input})
sum(len(chunk.output) for chunk in job.chunks())
"""
SETUP = """
import asyncio, pathlib, notebook_ext
from notebook_ext.session import default_session
%endpoint connect ep {url}/ep
SESSION, LATE = default_session(), []

async def beat():
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.01
        await asyncio.sleep(0.01)
        LATE.append(loop.time() - due)

SESSION.loop.submit(beat())
"""
NEWEST = "SESSION.handles[max(SESSION.handles)]"


@dataclass(frozen=True)
class Case:
    """What is asked for, and how.

    Args:
        name: In words.
        input: Of the job.
        cell: What is run; `{input}` and `{options}` stand for the job's input.
        memory: Megabytes that it may add; None where nothing is asked, as a value is held by who asked for it.
        is_background: Whether other cells are run meanwhile.
    """

    name: str
    input: dict[str, object]
    cell: str
    memory: float | None = 30.0
    is_background: bool = False

    def code(self) -> str:
        options = " ".join(f"-p {name}={value}" for name, value in self.input.items())
        return self.cell.replace("{input}", repr(self.input)).replace("{options}", options)


def cases(part: int) -> list[Case]:
    """All of them, with outputs that are so many times smaller than they may be."""
    run, background = "%%endpoint run ep {options}\n", "%endpoint run ep --bg {options}"
    found = []
    for words, length in (("8 kB", 8_000), ("1 MB", 1_000_000)):
        streamed: dict[str, object] = {"chunks": FULL // length // part, "size": length}
        what = f"{FULL // part / 1e6:g} MB streamed in pieces of {words}"
        found += [
            Case(f"{what}, its cell waits", streamed, run),
            Case(f"{what}, --bg", streamed, background, is_background=True),
            Case(f"{what}, read by Python", streamed, READ),
        ]
    found.append(Case("one piece of 1 MB", {"chunks": 1, "size": 1_000_000}, run))
    for kind in ("text", "json", "table", "image", "audio"):
        size = RESULT if kind in ("image", "audio") else RESULT // part  # smaller ones are shown
        whole: dict[str, object] = {"result": kind, "size": size}
        found += [
            Case(
                f"{size / 1e6:g} MB of {kind}, {verb}",
                whole,
                f"%%endpoint {verb} ep {{options}}\n",
                None,
            )
            for verb in ("run", "runsync")
        ]
    return found


def measure(settings: Settings) -> list[Figure]:
    sys.path.insert(0, str(ROOT / "tests"))  # the server and the page are imported as the tests do
    figures = []
    for case in cases(QUICK if settings.quick else 1):
        wanted = _figures(case)
        for _ in range(settings.repeats):
            found = weigh(case)
            for what, figure in wanted.items():
                figure.add(OURS, found[what])
        figures += wanted.values()
    return figures


def _figures(case: Case) -> dict[str, Figure]:
    figures = {
        "memory": Figure(
            case.name, "added memory, peak", "MB", Goal(absolute=case.memory) if case.memory else None
        ),
        "late": Figure(case.name, "the loop's longest delay", "ms"),
        "sent": Figure(case.name, "sent to the front end", "MB", Goal(absolute=1.0)),
        "saved": Figure(case.name, "outputs in the notebook file", "MB", Goal(absolute=0.6)),
        "kept": Figure(case.name, "journal on the disk", "MB"),
        "passed": Figure(case.name, "until it has ended", "s"),
    }
    if case.is_background:
        figures["cell"] = Figure(case.name, "longest answer of a trivial cell", "ms", Goal(absolute=100.0))
    return figures


def weigh(case: Case) -> dict[str, float]:
    """One case, in a fresh kernel with a fresh journal."""
    from bulk import bulk
    from page import kernel

    with tempfile.TemporaryDirectory() as name, bulk() as url:
        folder = Path(name)
        environment = {"NOTEBOOK_EXT_JOURNAL": f"{name}/journal.db", "NOTEBOOK_EXT_CONFIG": f"{name}/config"}
        with kernel(folder, **environment) as it:
            it.run(SETUP.replace("{url}", url))
            process = psutil.Process(it.ask("__import__('os').getpid()"))
            before, page_bytes, page_size = process.memory_info().rss, it.page.bytes, it.page.size
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # its peak is measured from here on
            it.ask("LATE.clear()")
            started = time.perf_counter()
            it.run(case.code())
            longest = 0.0
            while not it.ask(f"{NEWEST}.done"):
                asked = time.perf_counter()
                it.ask("1")
                longest = max(longest, time.perf_counter() - asked)
            passed = time.perf_counter() - started
            time.sleep(0.5)  # what is drawn last is on its way
            return {
                "memory": (_peak(process.pid) - before) / 1e6,
                "late": it.ask("max(LATE)") * 1000,
                "sent": (it.page.bytes - page_bytes) / 1e6,
                "saved": (it.page.size - page_size) / 1e6,
                "kept": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
                "passed": passed,
                "cell": longest * 1000,
            }


def _peak(pid: int) -> int:
    """The most bytes that a process has had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
