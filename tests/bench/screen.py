"""What does a stream cost the page that shows it, and how far is the page behind?

Everything is real: a kernel, JupyterLab in Chromium, an endpoint that the kernel serves, and a text that
is hard on purpose. The floor prints the same chunks at the same times; the repaint shows all of the text
anew ten times a second, as many notebooks do. Chunks are stamped where they are made, and the page notes
when it shows them: one machine, one clock.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import ROOT
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from browser.lab import Lab
    from browser.server import Server

QUESTION = "screen"
ROWS = "13"
IS_APART = True
"""It drives a page: asked for by name."""

REPAINT = "full repaint"
CHUNKS = 4_000
PATIENCE = 60.0
"""Seconds after the last chunk for which a page is waited for; one that takes longer is frozen."""
FIRST, LAST = "START", "[END]"
SHOWN = ("display_data", "update_display_data", "stream")

PART = r"""## Part {n}: the queue

The waiting time is $W_q = \frac{{\rho}}{{\mu - \lambda}}$ when arrivals are *random* and one worker takes
them in the order in which they came; with $c$ workers it is shorter, as one would hope.

$$\sum_{{k=0}}^{{\infty}} \rho^k = \frac{{1}}{{1 - \rho}}$$

- the first point, with `code` and a [link](https://example.org)
- the second point, where $\rho < 1$ must hold at any time

```python
def wait(rho, mu):
    # the blank line below belongs to the code

    return rho / (mu * (1 - rho))
```

Some **words** at the end of it all, so that there is also a paragraph without anything.

"""

SETUP = """
import asyncio, json, pathlib, time
%load_ext notebook_ext
TEXT, SECONDS, CHUNKS = pathlib.Path("text.md").read_text(), {seconds}, {chunks}
PIECES = [TEXT[n * len(TEXT) // CHUNKS : (n + 1) * len(TEXT) // CHUNKS] for n in range(CHUNKS)]
MADE = []
def until(n):
    return max(0.0, START + n * SECONDS / CHUNKS - time.monotonic())
"""
SERVE = """%%endpoint serve paced
async def handler(job):
    global START
    START = time.monotonic()
    for n, piece in enumerate(PIECES):
        await asyncio.sleep(until(n))
        MADE.append(time.time())
        yield piece
"""
BEFORE = "CPU = time.process_time()"
AFTER = """
result = {"cpu": time.process_time() - CPU, "first": MADE[0], "last": MADE[-1]}
pathlib.Path("result.tmp").write_text(json.dumps(result))
pathlib.Path("result.tmp").rename("result.json")
"""
PACED = """
START = time.monotonic()
{before}
for n, piece in enumerate(PIECES):
    time.sleep(until(n))
    MADE.append(time.time())
    {each}
{after}
"""
CELLS = {
    FLOOR: [PACED.format(before="", each="print(piece, end='', flush=True)", after="") + AFTER],
    OURS: ["%%endpoint run paced\ngo", AFTER],
    REPAINT: [
        PACED.format(
            before=(
                "from IPython.display import Markdown, display\n"
                "shown, at = display(Markdown(''), display_id=True), START"
            ),
            each=(
                "if time.monotonic() >= at:\n"
                "        shown.update(Markdown(''.join(PIECES[:n + 1])))\n"
                "        at = time.monotonic() + 0.1"
            ),
            after="shown.update(Markdown(TEXT))",
        )
        + AFTER
    ],
}
STREAM = 3  # the first of these cells' position
PROSE = "#md As most notebooks have some: the page has loaded what draws `code` and $x^2$."

# Looks at what changes only: asking for all of the visible text would cost more than what is measured.
NOTE_TIMES = """([i, first, last]) => {
  const now = () => (performance.timeOrigin + performance.now()) / 1000;
  const cell = lab.cells()[i], seen = lab.times = {outputs: 0, pause: 0, tasks: []};
  const note = text => {
    if (!seen.first && text.includes(first)) seen.first = now();
    if (!seen.last && text.includes(last)) seen.last = now();
  };
  new MutationObserver(records => {
    const before = seen.changed;
    seen.changed = now();
    if (seen.first && !seen.last) seen.pause = Math.max(seen.pause, seen.changed - before);
    seen.outputs = Math.max(seen.outputs, cell.outputArea.model.length);
    for (const record of records) {
      if (record.type === 'characterData') note(record.target.data);
      record.addedNodes.forEach(node => note(node.textContent));
    }
  }).observe(cell.outputArea.node, {childList: true, subtree: true, characterData: true});
  new PerformanceObserver(list => seen.tasks.push(...list.getEntries().map(
    task => [(performance.timeOrigin + task.startTime) / 1000, task.duration / 1000]))
  ).observe({entryTypes: ['longtask']});
}"""


@dataclass(frozen=True)
class Case:
    """A text and its pace.

    Args:
        length: Characters.
        seconds: From the first chunk to the last.
        goals: By figure.
        is_math: Whether there are formulas in it.
    """

    length: int
    seconds: float
    goals: dict[str, Goal]
    is_math: bool = True

    def __str__(self) -> str:
        math = "LaTeX" if self.is_math else "no LaTeX"
        return f"{self.length // 1000} KB in {self.seconds:g} s, {math}"

    @property
    def text(self) -> str:
        text = "".join(PART.format(n=n) for n in range(self.length // 500 + 1))  # a part is longer
        if not self.is_math:
            text = text.replace("$", "")
        return f"{FIRST} of it all.\n\n{text[: self.length - len(FIRST) - 20]}\n\n{LAST}"


def goals(**limits: float) -> dict[str, Goal]:
    named = {"paints": 10.0, "outputs": 45.0, **limits}
    return {name: Goal(absolute=limit) for name, limit in named.items()}


CASES = [
    Case(20_000, 20, goals(bytes=0.35, lag=0.1, task=0.5, swap=0.5)),
    Case(20_000, 20, goals(bytes=0.35, lag=0.1, task=0.5, swap=0.5), is_math=False),
    Case(200_000, 20, goals(bytes=0.8, lag=1.5)),
    Case(200_000, 20, goals(bytes=0.8, lag=0.2), is_math=False),
    Case(1_000_000, 20, goals()),
]


def measure(settings: Settings) -> list[Figure]:
    """The repaint has one turn per case, whatever the repeats, and none at 1 MB: it freezes the page."""
    sys.path.insert(0, str(ROOT / "tests"))  # the browser's harness is imported as the tests do
    from browser.server import Server

    cases = CASES[:1] if settings.quick else CASES
    tables = {str(case): _figures(case) for case in cases}
    with Server() as server:
        for repeat, case in product(range(1 if settings.quick else settings.repeats), cases):
            for name in CELLS:
                if name == REPAINT and (repeat or case.length > 200_000):
                    continue
                print(f"{case}, {name} ...", file=sys.stderr, flush=True)
                for what, sample in stream(server, case, name).items():
                    tables[str(case)][what].add(name, sample)
    return [figure for table in tables.values() for figure in table.values()]


def _figures(case: Case) -> dict[str, Figure]:
    kinds = {
        "bytes": ("iopub bytes that reached the page", "MB"),
        "paints": ("paints per second", ""),
        "first": ("first chunk to DOM", "s"),
        "lag": (f"last chunk to DOM ({PATIENCE:g}: not within it)", "s"),
        "pause": ("longest pause on the screen before it", "s"),
        "rest": ("last chunk to the last change", "s"),
        "task": ("longest main-thread task before the last chunk", "s"),
        "swap": ("longest main-thread task after it", "s"),
        "outputs": ("outputs in the cell at most", ""),
        "cpu": ("kernel CPU, the endpoint included", "s"),
    }
    return {name: Figure(str(case), *kind, case.goals.get(name)) for name, kind in kinds.items()}


def stream(server: Server, case: Case, name: str) -> dict[str, float]:
    """Stream a text once, in a fresh browser; its figures, without those that a frozen page cannot tell."""
    from browser.lab import Lab, browser, notebook

    (server.root / "text.md").write_text(case.text)
    result = server.root / "result.json"
    result.unlink(missing_ok=True)
    with browser() as chromium:
        lab = Lab(server, chromium)
        setup = SETUP.format(seconds=case.seconds, chunks=CHUNKS)
        lab.open(notebook(setup, SERVE, BEFORE, *CELLS[name], PROSE))
        for cell in range(STREAM):
            lab.run(cell)
        lab.evaluate(NOTE_TIMES, [STREAM, FIRST, LAST])
        lab.watch_traffic()
        for cell, _ in enumerate(CELLS[name], STREAM):
            lab.start(cell)  # at once: a frozen page could not ask for the second one later
        _wait_for(lab, result.exists, case.seconds + PATIENCE)
        made = json.loads(result.read_text())
        times = _times(lab, made["last"] + PATIENCE)
        traffic = lab.traffic
    server.end_sessions(lab.name)  # of a browser that is gone: a frozen page cannot be closed by itself

    paints = sum(traffic.counts[kind] for kind in SHOWN)
    figures = {
        "bytes": sum(traffic.sizes.values()) / 1e6,
        "paints": paints / max(case.seconds, made["last"] - made["first"]),
        "lag": PATIENCE,
        "cpu": made["cpu"],
    }
    if times is not None:
        figures |= {
            "first": times["first"] - made["first"],
            "lag": times["last"] - made["last"],
            "pause": times["pause"],
            "rest": times["changed"] - made["last"],
            "task": max((took for at, took in times["tasks"] if at < made["last"]), default=0.0),
            "swap": max((took for at, took in times["tasks"] if at >= made["last"]), default=0.0),
            "outputs": times["outputs"],
        }
    return figures


def _wait_for(lab: Lab, condition: Callable[[], bool], timeout: float) -> None:
    """Wait until the kernel has done something, while the page's messages are counted."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"The kernel was not done within {timeout:g} s.")
        lab.sleep(0.1)


def _times(lab: Lab, until: float) -> dict[str, Any] | None:
    """What the page noted, once it shows the end and has come to rest; None if it does not get there."""
    from playwright.sync_api import TimeoutError as Frozen

    try:
        lab.wait("() => lab.times.last", timeout=max(1.0, until - time.time()))
        lab.wait("() => Date.now() / 1000 - lab.times.changed > 1.5", timeout=PATIENCE)
    except Frozen:
        return None
    return lab.evaluate("() => lab.times")
