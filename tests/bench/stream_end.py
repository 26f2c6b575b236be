"""How long after COMPLETED on the server does the loop over the stream end?"""

from __future__ import annotations

import asyncio
import statistics
import time

from tests.bench.contenders import CONTENDERS, Contender, stamps, stopwatch, warmed
from tests.bench.figures import Figure, Goal, Settings

QUESTION = "stream-end"
ROWS = "5"

ROUND_TRIPS = (0.0, 0.030)


def measure(settings: Settings) -> list[Figure]:
    figures = []
    for round_trip in ROUND_TRIPS:
        with stopwatch(round_trip=round_trip) as url:
            figures.append(asyncio.run(_measure(url, round_trip, settings)))
    return figures


async def _measure(url: str, round_trip: float, settings: Settings) -> Figure:
    """A request that just missed the end costs a whole round trip more: sweep over all phases."""
    jobs = 4 if settings.quick else 12
    goal = Goal(ratio=1.2) if round_trip else Goal(absolute=5.0, ratio=1.2)
    figure = Figure(f"long poll, r = {round_trip * 1000:g} ms", "end of stream after COMPLETED", "ms", goal)
    for _ in range(settings.repeats):
        for name in CONTENDERS:
            contender = await warmed(name, url)
            lags = [
                await _lag(contender, url, 0.005 + max(round_trip, 0.01) * job / jobs) for job in range(jobs)
            ]
            figure.add(name, statistics.mean(lags) * 1000)
            await contender.close()
    return figure


async def _lag(contender: Contender, url: str, finish: float) -> float:
    job_id = await contender.submit({"tokens": 3, "interval": 0.02, "first": 0.05, "finish": finish})
    async for _ in contender.stream(job_id):
        pass
    ended = time.monotonic()
    finished: float = (await stamps(url, job_id))["finished"]
    return ended - finished
