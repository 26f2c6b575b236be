"""What does one exchange cost, and does it cost more with many in flight?"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from tests.bench.contenders import stopwatch
from tests.bench.drivers.clients import Floor, Ours
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings

QUESTION = "exchanges"
ROWS = "9"

IN_FLIGHT = (1, 8, 64, 128)
HTTPX = "httpx's pool"


class HttpxPool:
    """httpx as it comes, so that the table says what a transport of our own is worth."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": "Bearer key"},
            verify=False,  # parsing certificates is not what is measured
            trust_env=False,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=256),
        )

    async def ask_health(self) -> None:
        (await self._client.get("/v2/ep/health")).json()

    async def close(self) -> None:
        await self._client.aclose()


def measure(settings: Settings) -> list[Figure]:
    contenders: dict[str, Any] = {FLOOR: Floor, OURS: Ours, HTTPX: HttpxPool}
    cpu = {n: Figure(f"{n} in flight", "CPU per exchange", "ms") for n in IN_FLIGHT}
    wall = {n: Figure(f"{n} in flight", "time per exchange", "ms") for n in IN_FLIGHT}
    growth = Figure("128 in flight over 8", "growth of CPU per exchange", "", Goal(absolute=1.3))
    with stopwatch() as url:
        for _ in range(settings.repeats):
            for in_flight in IN_FLIGHT:
                for name, contender in contenders.items():
                    spent, passed = asyncio.run(_exchange(contender(url), in_flight, quick=settings.quick))
                    cpu[in_flight].add(name, spent * 1000)
                    wall[in_flight].add(name, passed * 1000)
    for name in contenders:
        for many, few in zip(cpu[128].samples[name], cpu[8].samples[name], strict=True):
            growth.add(name, many / few)
    assert OURS in growth.samples
    return [*cpu.values(), growth, *wall.values()]


async def _exchange(contender: Any, in_flight: int, *, quick: bool) -> tuple[float, float]:
    """Seconds of CPU and of time per exchange, with so many at once on warm connections."""
    exchanges = 128 if quick else 256
    await asyncio.gather(*(contender.ask_health() for _ in range(in_flight)))

    async def lane() -> None:
        for _ in range(exchanges // in_flight):
            await contender.ask_health()

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    done = exchanges // in_flight * in_flight
    result = (time.process_time() - cpu) / done, (time.perf_counter() - wall) / done
    await contender.close()
    return result
