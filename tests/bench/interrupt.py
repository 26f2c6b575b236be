"""How soon after an interrupt of the cell that waits for a job is the job cancelled?

In real kernels, as the stop button does it. The floor is a blocking read in a cell that knows its job's id.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import stopwatch, told
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings
from tests.bench.watching import Kernel, fresh_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTION = "interrupt"
ROWS = "10"

SETTLE = 0.3
"""Seconds for which the cell has waited when it is interrupted."""
FLOOR_CELL = """
import json, urllib.request

def post(path, document):
    body = json.dumps(document).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(URL + path, data=body)))

job_id = post("/v2/ep/run", {"input": {"tokens": 1, "first": 3600.0}})["id"]
try:
    urllib.request.urlopen(f"{URL}/v2/ep/stream/{job_id}?wait=60000").read()
except KeyboardInterrupt:
    post(f"/v2/ep/cancel/{job_id}", {})
"""
OUR_SETUP = """
get_ipython().run_line_magic("load_ext", "notebook_ext")
get_ipython().run_line_magic("endpoint", f"connect ep {URL}/v2/ep")
"""
CELLS = {FLOOR: ("", FLOOR_CELL), OURS: (OUR_SETUP, "%endpoint run ep -p first=3600 -p tokens=1")}


def measure(settings: Settings) -> list[Figure]:
    figure = Figure("a cell waits for its job", "interrupt to POST at the server", "ms", Goal(absolute=50.0))
    for _ in range(settings.repeats):
        for name, (setup, cell) in CELLS.items():
            with stopwatch() as url, fresh_kernel() as (manager, client):
                Kernel(client).ask(f"URL = {url!r}\n{setup}")
                client.execute(cell, store_history=False)
                _awaited(url, "/tally", lambda tally: tally["requests"].get("stream"))
                time.sleep(SETTLE)
                asked = time.monotonic()
                manager.interrupt_kernel()
                stamps = f"/stamps/{told(url, '/tally')['newest']}"
                posted = _awaited(url, stamps, lambda known: known["finished"])
                figure.add(name, (posted - asked) * 1000)
    return [figure]


def _awaited(url: str, path: str, look: Callable[[Any], Any], patience: float = 20.0) -> Any:
    """What is found in what the stopwatch tells, once it is there."""
    deadline = time.monotonic() + patience
    while not (found := look(told(url, path))):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {patience:g} s")
        time.sleep(0.02)
    return found
