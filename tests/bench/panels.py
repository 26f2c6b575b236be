"""What do the panels and the strip cost the page and the kernel while they are looked at?

Everything is real: a kernel, JupyterLab in Chromium, and an endpoint in a process of its own, whose jobs run
and say nothing. Times go on, so there is something to draw all the same. The floor is one HTML widget whose
number changes twice a second: nothing that is alive in a notebook can cost less per update.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import psutil

from tests.bench.contenders import ROOT
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from browser.lab import Lab

QUESTION = "panels"
ROWS = "14"
IS_APART = True
"""It drives a page: asked for by name."""

WINDOW = 20.0
"""Seconds over which is counted."""
SETTLE = 3.0

SETUP = """
import os, threading, time
%load_ext notebook_ext
import ipywidgets, notebook_ext
ENDPOINT = notebook_ext.connect("ep", "ep", provider={url!r}, key_variable="BENCH_KEY")
HANDLES = [ENDPOINT.submit({{"seconds": 86400, "prompt": f"job number {{n}}"}}) for n in range({jobs})]
while not all(handle.id for handle in HANDLES):
    time.sleep(0.01)
print("pid", os.getpid())
"""
TICKING = """
number = ipywidgets.HTML("0")
display(number)
def tick(n=0):
    while True:
        time.sleep(0.5)
        n += 1
        number.value = str(n)
threading.Thread(target=tick, daemon=True).start()
"""


@dataclass(frozen=True)
class Case:
    """What is looked at.

    Args:
        name: In words.
        cell: What shows it.
        jobs: How many are followed.
        sign: What is to be read in it before anything is counted.
    """

    name: str
    cell: str
    jobs: int
    sign: str


STRIP = Case("the strip of a running job", "%endpoint run ep --bg -p seconds=86400", 0, "running")
HEALTH = Case("the health panel, every second", "%endpoint health ep --watch --every 1s", 4, "live")
CASES = [
    STRIP,
    HEALTH,
    *(
        Case(f"the jobs panel, {n} followed", "%endpoint panel jobs", n, "Cancel all of mine")
        for n in (1, 50, 500)
    ),
]
BARE = Case("two numbers a second", TICKING, 0, "1")


def measure(settings: Settings) -> list[Figure]:
    sys.path.insert(0, str(ROOT / "tests"))  # the browser's harness is imported as the tests do
    from browser.lab import Lab, browser
    from browser.server import Server

    cases = [STRIP] if settings.quick else CASES
    tables = {case: _figures(case) for case in cases}
    with Server() as server, browser() as chromium:
        for _ in range(settings.repeats):
            floor = look(Lab(server, chromium), BARE, quick=settings.quick)
            for case in cases:
                ours = look(Lab(server, chromium), case, quick=settings.quick)
                for what, figure in tables[case].items():
                    figure.add(FLOOR, floor[what])
                    figure.add(OURS, ours[what])
    return [figure for table in tables.values() for figure in table.values()]


def _figures(case: Case) -> dict[str, Figure]:
    name = f"{case.name}, ipykernel {version('ipykernel')}"
    return {
        "size": Figure(name, "bytes per update", "bytes"),
        "updates": Figure(name, "updates per minute", ""),
        "bytes": Figure(name, "all that reached the page, per minute", "KB"),
        "cpu": Figure(name, "kernel CPU", "% of a core", Goal(absolute=15.0)),
    }


def look(lab: Lab, case: Case, *, quick: bool) -> dict[str, float]:
    """Look at a panel for a while, in a fresh notebook; its figures."""
    from browser.lab import notebook

    window = 4.0 if quick else WINDOW
    with _server() as (url, key):
        lab.open(notebook(SETUP.format(url=url, jobs=case.jobs), case.cell), environ={"BENCH_KEY": key})
        lab.run(0)
        lab.run(1)
        lab.wait_text(1, case.sign)
        lab.sleep(SETTLE)
        process = psutil.Process(int(lab.text(0).rpartition("pid ")[2]))
        lab.watch_traffic()
        cpu, started = process.cpu_times(), time.monotonic()
        lab.sleep(window)
        spent, traffic, minutes = process.cpu_times(), lab.traffic, (time.monotonic() - started) / 60
        lab.close()
    updates = traffic.counts["comm_msg"]
    figures = {
        "size": traffic.sizes["comm_msg"] / max(1, updates),
        "updates": updates / minutes,
        "bytes": sum(traffic.sizes.values()) / minutes / 1000,
        "cpu": (spent.user + spent.system - cpu.user - cpu.system) / minutes / 60 * 100,
    }
    told = ", ".join(f"{what} {figure:.1f}" for what, figure in figures.items())
    print(f"{case.name}: {told}", file=sys.stderr, flush=True)
    return figures


@contextmanager
def _server() -> Iterator[tuple[str, str]]:
    """An endpoint in a process of its own, four of whose jobs run at a time: its base URL and its key."""
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-m", "notebook_ext.server", "ep=sleep", "--workers", "4"],
        cwd=ROOT,
        env={**os.environ, "NOTEBOOK_EXT_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"], token
    finally:
        process.terminate()
        process.wait(10)
