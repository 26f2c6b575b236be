"""How long after COMPLETED on the server does the loop over the stream end?"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch
from tests.bench.figures import Figure, Goal, Settings
from tests.bench.rounds import PATIENT, in_turn, missing, stamps, streamed, tag, warmed_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "stream-end"
ROWS = "5"

ROUND_TRIPS = (0.0, 0.030)
PHASES = 12


def measure(settings: Settings) -> list[Figure]:
    figures = []
    with contenders(with_peers=settings.with_peers) as everybody:
        for round_trip in ROUND_TRIPS:
            with stopwatch(round_trip=round_trip) as url:
                figures.append(_measure(everybody, url, round_trip, settings))
    return figures


def _measure(everybody: Sequence[Contender], url: str, round_trip: float, settings: Settings) -> Figure:
    """A request that just missed the end costs a whole round trip more: sweep over all phases."""
    goal = Goal(ratio=1.2) if round_trip else Goal(absolute=5.0, ratio=1.2)
    figure = Figure(f"long poll, r = {round_trip * 1000:g} ms", "end of stream after COMPLETED", "ms", goal)

    def once(contender: Contender) -> None:
        with contender.client(url):
            warmed_up(contender)
            lags = []
            for job in range(1 if contender.name in PATIENT else PHASES):
                finish = 0.005 + max(round_trip, 0.01) * job / PHASES
                body = {
                    "tokens": 3,
                    "interval": 0.02,
                    "first": 0.05,
                    "finish": finish,
                    "tag": tag(contender),
                }
                (seen,) = streamed(contender, body)
                if why := missing(seen, 3):
                    figure.fail(contender.name, why)
                    return
                lags.append(seen["ended"] - stamps(url, tag(contender))["finished"])
            figure.add(contender.name, statistics.mean(lags) * 1000)

    in_turn(settings.repeats, everybody, once, [figure])
    return figure
