"""How long after the call does the first token reach the user's code?"""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import product

from tests.bench.contenders import CONTENDERS, Contender, stopwatch, warmed
from tests.bench.figures import Figure, Goal, Settings

QUESTION = "first-token"
ROWS = "1"

ROUND_TRIPS = (0.0, 0.030)
HOLDS = {"long poll": 10.0, "short poll": 0.0}
FIRST = (0.0, 0.3)


def measure(settings: Settings) -> list[Figure]:
    figures = []
    for round_trip, (mode, hold) in product(ROUND_TRIPS, HOLDS.items()):
        with stopwatch(round_trip=round_trip, hold=hold) as url:
            for first in FIRST:
                case = f"{mode}, r = {round_trip * 1000:g} ms, token at {first * 1000:g} ms"
                goal = Goal(ratio=1.06) if round_trip else Goal(excess=5.0)
                figure = Figure(case, "time to first token", "ms", goal)
                asyncio.run(_fill(figure, url, first, settings))
                figures.append(figure)
    return figures


async def _fill(figure: Figure, url: str, first: float, settings: Settings) -> None:
    jobs = 2 if settings.quick or first else 6
    for _ in range(settings.repeats):
        for name in CONTENDERS:
            contender = await warmed(name, url)
            waits = [await _first_token(contender, first) for _ in range(jobs)]
            figure.add(name, statistics.median(waits) * 1000)
            await contender.close()


async def _first_token(contender: Contender, first: float) -> float:
    came = None
    started = time.monotonic()
    job_id = await contender.submit({"tokens": 1, "first": first})
    async for _ in contender.stream(job_id):
        came = came or time.monotonic()
    assert came is not None
    return came - started
