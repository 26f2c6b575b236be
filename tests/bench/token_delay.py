"""How much later than the server emits a token does it reach the user's code, at how many requests?"""

from __future__ import annotations

import asyncio
import time

from tests.bench.contenders import CONTENDERS, stamps, stopwatch, warmed
from tests.bench.figures import Figure, Goal, Settings, percentile

QUESTION = "token-delay"
ROWS = "3"

ROUND_TRIPS = (0.0, 0.030)
INTERVAL = 0.020


def measure(settings: Settings) -> list[Figure]:
    figures = []
    for round_trip in ROUND_TRIPS:
        with stopwatch(round_trip=round_trip) as url:
            figures += asyncio.run(_measure(url, round_trip, settings))
    return figures


async def _measure(url: str, round_trip: float, settings: Settings) -> list[Figure]:
    tokens = 50 if settings.quick else 200
    case = f"long poll, r = {round_trip * 1000:g} ms, {tokens} tokens every {INTERVAL * 1000:g} ms"
    goal = Goal(ratio=1.06 if round_trip else 2.5)
    p50 = Figure(case, "delay per token p50", "ms", goal)
    p95 = Figure(case, "delay per token p95", "ms", goal)
    requests = Figure(case, "requests per token", "", Goal(absolute=1.02, ratio=1.02))
    for _ in range(settings.repeats):
        for name in CONTENDERS:
            contender = await warmed(name, url)
            came = []
            job_id = await contender.submit(
                {"tokens": tokens, "interval": INTERVAL, "first": 0.1, "finish": 0.005}
            )
            async for _token in contender.stream(job_id):
                came.append(time.monotonic())
            await contender.close()
            known = await stamps(url, job_id)
            delays = [(seen - emitted) * 1000 for seen, emitted in zip(came, known["emitted"], strict=True)]
            p50.add(name, percentile(delays, 0.50))
            p95.add(name, percentile(delays, 0.95))
            requests.add(name, known["requests"] / tokens)
    return [p50, p95, requests]
