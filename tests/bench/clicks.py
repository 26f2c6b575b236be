"""How soon after a click on Cancel is the job stopped, and is that seen?

Everything is real: a kernel, JupyterLab in Chromium, and the stopwatch, which stamps the POST. The floor is a
bare button of ipywidgets whose handler sends that POST and changes one label; its clicks go where the page
sends them, as ours do. The page notes when it was clicked and when it shows the end: one machine, one clock.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from tests.bench.contenders import ROOT, stopwatch, told
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings

if TYPE_CHECKING:
    from browser.lab import Lab

QUESTION = "clicks"
ROWS = "10"
IS_APART = True
"""It drives a page: asked for by name."""

BUSY_FOR = 4.0
"""Seconds for which the other cell is busy: a click that is only heard when it has ended takes about as long."""
SETTLE = 0.5
"""Seconds between what a hand sees and its click."""
INPUT = {"tokens": 1, "first": 3600.0}

SETUP = """
import json, threading, time, urllib.request
import ipywidgets
from IPython.display import display
%load_ext notebook_ext
URL = {url!r}
%endpoint connect ep {url}/v2/ep
PENDING = None

def post(path, document):
    body = json.dumps(document).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(URL + path, data=body)))

def bare():
    global PENDING
    button, label = ipywidgets.Button(description="Cancel"), ipywidgets.HTML("running")
    job_id = post("/v2/ep/run", {{"input": {input}}})["id"]
    PENDING = threading.Event()
    def on_click(_):
        post(f"/v2/ep/cancel/{{job_id}}", {{}})
        label.value = "· CANCELLED ·"
        PENDING.set()
    button.on_click(on_click)
    if hasattr(button.comm, "_reply_subshell_for"):
        button.comm._reply_subshell_for = None
    display(button, label)
"""
RUN = "%endpoint run ep {bg} -p first=3600 -p tokens=1"
CELLS = {
    FLOOR: ("bare()", "bare()\nwhile not PENDING.wait(0.03):\n    pass"),
    OURS: (RUN.format(bg="--bg"), RUN.format(bg="")),
}
SLEEPING = f"print('busy', flush=True)\ntime.sleep({BUSY_FOR})"
COMPUTING = f"""
print('busy', flush=True)
end = time.monotonic() + {BUSY_FOR}
while time.monotonic() < end:
    sum(range(10_000))
"""
NOTE_TIMES = """i => {
  const now = () => (performance.timeOrigin + performance.now()) / 1000;
  const area = lab.cells()[i].outputArea.node, seen = lab.click = {};
  area.addEventListener('click', () => seen.clicked ??= now(), true);
  new MutationObserver(() => {
    if (!seen.shown && area.textContent.includes('· CANCELLED ·')) seen.shown = now();
  }).observe(area, {childList: true, subtree: true, characterData: true});
}"""


@dataclass(frozen=True)
class Case:
    """What the kernel does while Cancel is clicked.

    Args:
        name: In words.
        is_waiting: Whether the job's own cell waits for it.
        other: The other cell that is busy.
        most: Milliseconds that the POST may take.
    """

    name: str
    is_waiting: bool = False
    other: str | None = None
    most: float = 300.0


CASES = [
    Case("nothing runs"),
    Case("its own cell waits", is_waiting=True),
    Case("another cell sleeps", other=SLEEPING, most=500.0),
    Case("another cell computes", other=COMPUTING, most=500.0),
]


def measure(settings: Settings) -> list[Figure]:
    sys.path.insert(0, str(ROOT / "tests"))  # the browser's harness is imported as the tests do
    from browser.lab import Lab, browser
    from browser.server import Server

    cases = CASES[:2] if settings.quick else CASES
    kernel = f"ipykernel {version('ipykernel')}"
    posts = {case: Figure(f"{case.name}, {kernel}", "click to POST at the server", "ms") for case in cases}
    shown = {case: Figure(f"{case.name}, {kernel}", "click to CANCELLED on the page", "ms") for case in cases}
    with stopwatch() as url, Server() as server, browser() as chromium:
        for _ in range(settings.repeats):
            for case in cases:
                posts[case].goal = Goal(absolute=case.most)
                for name in CELLS:
                    lab = Lab(server, chromium)
                    to_post, to_page = click(lab, url, case, name)
                    lab.close()
                    posts[case].add(name, to_post * 1000)
                    shown[case].add(name, to_page * 1000)
    return [figure for case in cases for figure in (posts[case], shown[case])]


def click(lab: Lab, url: str, case: Case, name: str) -> tuple[float, float]:
    """Click once, in a fresh notebook; seconds until the POST arrived, and until the page showed the end."""
    from browser.lab import notebook

    cell = CELLS[name][case.is_waiting]
    lab.open(notebook(SETUP.format(url=url, input=INPUT), cell, case.other or ""))
    lab.run(0)
    if case.is_waiting:
        lab.start(1)
    else:
        lab.run(1)
    lab.wait_text(1, "running")
    if case.other is not None:
        lab.start(2)
        lab.wait_text(2, "busy")
    lab.evaluate(NOTE_TIMES, 1)
    lab.sleep(SETTLE)
    lab.click(1, "Cancel")
    lab.wait("() => lab.click.shown")
    times = lab.evaluate("() => lab.click")
    lab.wait_idle()
    newest = told(url, "/tally")["newest"]
    posted = told(url, f"/stamps/{newest}")["finished"] + time.time() - time.monotonic()
    return posted - times["clicked"], times["shown"] - times["clicked"]
