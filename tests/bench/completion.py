"""Submit and wait: how long after COMPLETED on the server is the result in the user's code?"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch
from tests.bench.figures import PEERS, RUNPOD_ASYNCIO, Figure, Goal, Settings
from tests.bench.rounds import in_turn, stamps, tag, warmed_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "completion"
ROWS = "6"

ROUND_TRIP = 0.030
JOBS = (0.05, 0.7, 3.0)
WITHOUT = "run without status-sync"


def measure(settings: Settings) -> list[Figure]:
    figures = []
    jobs = JOBS[:2] if settings.quick else JOBS
    with contenders(with_peers=settings.with_peers) as everybody:
        for round_trip, how, lengths in (
            (0.0, "run", [] if settings.quick else JOBS[:1]),
            (ROUND_TRIP, "run", jobs),
            (ROUND_TRIP, "runsync", JOBS[:2]),
        ):
            with stopwatch(round_trip=round_trip) as url:
                for job in lengths:
                    figures += Waiting(url, how, round_trip, job).measure(everybody, settings)
    with (
        contenders(with_peers=settings.with_peers, has_status_sync=False) as everybody,
        stopwatch(round_trip=ROUND_TRIP, has_status_sync=False) as url,
    ):
        for job in jobs:
            figures += Waiting(url, WITHOUT, ROUND_TRIP, job).measure(everybody, settings)
    return figures


class Waiting:
    """Waits for a job's result in one way.

    Args:
        url: Of the stopwatch.
        how: "run", "runsync", or `WITHOUT`.
        round_trip: Seconds.
        job: Seconds that it takes.
    """

    def __init__(self, url: str, how: str, round_trip: float, job: float) -> None:
        self._url, self._how = url, how
        case = f"{how}, r = {round_trip * 1000:g} ms, a job of {job * 1000:g} ms"
        polls = how == WITHOUT
        lag = Goal(ratio=1.10) if round_trip else Goal(excess=5.0)
        if polls:
            lag = Goal(absolute=max(round_trip, 0.1 * job) * 1000, ratio=1.10)
        self._lag = Figure(case, "result after COMPLETED", "ms", lag)
        # to see an end within a tenth of a job's age takes as many looks as the floor needs for it
        few = Goal(ratio=1.0) if polls else Goal(absolute=2.0 if how == "run" else 1.0)
        self._requests = Figure(case, "requests per job", "", few)
        # a look that just missed the end costs a whole one more: sweep over its phases
        phases = 4 if polls and job < 1.0 else 1
        self._jobs = [job + round_trip * phase / phases for phase in range(phases)]

    def measure(self, everybody: Sequence[Contender], settings: Settings) -> list[Figure]:
        able = list(everybody)
        if self._how == "runsync":
            able = [one for one in everybody if one.name != RUNPOD_ASYNCIO]  # which has none
        elif self._how == WITHOUT:  # it is the peers' own way already
            able = [one for one in everybody if one.name not in PEERS]
        figures = [self._lag, self._requests]
        in_turn(settings.repeats, able, self._once, figures, together=PEERS)  # they sleep between two looks
        return figures

    def _once(self, contender: Contender) -> None:
        lags, requests = [], []
        with contender.client(self._url):
            warmed_up(contender)
            for job in self._jobs:
                seen = contender.order("result", input={"finish": job, "tag": tag(contender)}, how=self._how)
                if seen["output"] != tag(contender):
                    self._lag.fail(contender.name, seen["error"] or f"answered {seen['output']!r}")
                    return
                known = stamps(self._url, tag(contender))
                lags.append((seen["ended"] - known["finished"]) * 1000)
                requests.append(known["requests"])
        self._lag.add(contender.name, statistics.mean(lags))
        self._requests.add(contender.name, statistics.mean(requests))
