"""Many jobs at once under the documented limits: is each done once, how fast, at what cost?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch, told
from tests.bench.figures import PEERS, RUNPOD_ASYNCIO, Figure, Goal, Settings
from tests.bench.rounds import in_turn

if TYPE_CHECKING:
    from tests.bench.contenders import Contender

QUESTION = "bulk"
ROWS = "7"

SERVICE = {"round_trip": 0.030, "processing": 0.050, "workers": 50, "limited": True}
JOB = {"finish": 0.020}
PATIENCE = 240.0
"""Seconds for all of them."""


@dataclass(frozen=True)
class Way:
    """How many jobs, and how they are sent.

    Args:
        count: How many.
        how: "run", "runsync", or both in the proportion of their quotas.
    """

    count: int
    how: str

    def __str__(self) -> str:
        lanes = "over /runsync and /run" if self.how == "both" else f"over /{self.how}"
        return f"{self.count:,} jobs {lanes}, limits on, r = 30 ms, 50 ms in the service"


@dataclass
class Figures:
    """What is told of a bulk.

    Args:
        way: How it was done.
        wall: What its time should reach.
        per_job: Whether costs per job have goals.
    """

    way: Way
    wall: Goal
    per_job: bool = True

    def __post_init__(self) -> None:
        case = str(self.way)
        self.lost = Figure(case, "results lost or wrong", "", Goal(absolute=0.0))
        self.refused = Figure(case, "429s", "", Goal(absolute=0.0))
        self.repeated = Figure(case, "jobs submitted twice", "", Goal(absolute=0.0))
        self.time = Figure(case, "until all are done", "s", self.wall)
        self.cpu = Figure(case, "CPU per job", "ms", Goal(absolute=3.0) if self.per_job else None)
        most = {"runsync": 1.05, "run": 2.05, "both": 1.4}[self.way.how]
        self.requests = Figure(case, "requests per job", "", Goal(absolute=most))
        self.connections = Figure(case, "most connections at once", "", Goal(absolute=256.0))
        self.memory = Figure(case, "added memory", "MB", Goal(absolute=20.0) if self.per_job else None)

    def all(self) -> list[Figure]:
        return [
            self.lost,
            self.refused,
            self.repeated,
            self.time,
            self.cpu,
            self.requests,
            self.connections,
            self.memory,
        ]

    def once(self, contender: Contender) -> None:
        """One bulk, in a process and on a server of its own, by the way that this contender has."""
        count, how = self.way.count, self.way.how
        if contender.name in PEERS and how == "both":
            how = "run" if contender.name == RUNPOD_ASYNCIO else "runsync"
        contender.end()
        with stopwatch(**SERVICE) as url, contender.client(url):
            contender.order("greet")
            seen = contender.order("bulk", count=count, input=JOB, how=how, patience=PATIENCE)
            tally = told(url, "/tally")
        asked = sum(tally["requests"].values()) - 1
        name = contender.name
        self.lost.add(name, seen["lost"])
        self.refused.add(name, tally["refused"])
        self.repeated.add(name, tally["repeated"])
        self.connections.add(name, tally["connections"]["peak"])
        if seen["lost"]:
            (why, times), *_ = seen["errors"]
            self.lost.fail(name, f"{times:,} x {why}"[:80])
            for figure in (self.time, self.cpu, self.requests, self.memory):
                figure.fail(name, "lost results")
            return
        self.time.add(name, seen["ended"] - seen["called"])
        self.cpu.add(name, seen["cpu"] / count * 1000)
        self.requests.add(name, asked / count)
        if not math.isnan(seen["memory"]):
            self.memory.add(name, seen["memory"])


def measure(settings: Settings) -> list[Figure]:
    count = 200 if settings.quick else 1000
    tables = [Figures(Way(count, how), Goal(ratio=2.0, peer=0.8)) for how in ("runsync", "run")]
    with contenders(with_peers=settings.with_peers, paced=True) as everybody:
        for table in tables:
            able = [one for one in everybody if table.way.how == "run" or one.name != RUNPOD_ASYNCIO]
            in_turn(settings.repeats, able, table.once, table.all(), together=())
    return [figure for table in tables for figure in table.all()]
