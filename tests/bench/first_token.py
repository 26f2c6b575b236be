"""How long after the call does the first token reach the user's code: when warm, and in a fresh process?"""

from __future__ import annotations

import statistics
from itertools import product
from typing import TYPE_CHECKING

from tests.bench.contenders import certificate, contenders, stopwatch
from tests.bench.figures import OURS, Figure, Goal, Settings
from tests.bench.rounds import PATIENT, in_turn, missing, streamed, warmed_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "first-token"
ROWS = "1, 2"

ROUND_TRIPS = (0.0, 0.030)
HOLDS = {"long poll": 10.0, "short poll": 0.0}
FIRST = (0.0, 0.3)
COLD_MARGIN = 15.0
"""Milliseconds that a first call may take beyond its round trips."""


def measure(settings: Settings) -> list[Figure]:
    figures = []
    with contenders(with_peers=settings.with_peers) as everybody:
        modes = list(HOLDS.items())[: 1 if settings.quick else None]
        for round_trip, (mode, hold) in product(ROUND_TRIPS, modes):
            with stopwatch(round_trip=round_trip, hold=hold) as url:
                for first in FIRST:
                    case = f"{mode}, r = {round_trip * 1000:g} ms, token at {first * 1000:g} ms"
                    goal = Goal(ratio=1.06) if round_trip else Goal(excess=5.0)
                    figure = Figure(case, "time to first token", "ms", goal)
                    _fill(figure, everybody, url, first, settings)
                    figures.append(figure)
        figures += _cold(everybody, settings)
    return figures


def _fill(figure: Figure, everybody: Sequence[Contender], url: str, first: float, settings: Settings) -> None:
    jobs = 2 if settings.quick or first else 6

    def once(contender: Contender) -> None:
        with contender.client(url):
            warmed_up(contender)
            waits = []
            for _ in range(1 if contender.name in PATIENT else jobs):
                (seen,) = streamed(contender, {"tokens": 1, "first": first})
                if why := missing(seen, 1):
                    figure.fail(contender.name, why)
                    return
                waits.append(seen["came"][0] - seen["called"])
            figure.add(contender.name, statistics.median(waits) * 1000)

    in_turn(settings.repeats, everybody, once, [figure])


def _cold(everybody: Sequence[Contender], settings: Settings) -> list[Figure]:
    """A fresh process, over TLS; ours is one that has loaded the extension and was idle for a moment."""
    round_trip = 0.030
    set_up = 2 * round_trip
    case = f"https, r = {round_trip * 1000:g} ms, a connection takes 2 r"
    call = Figure(case, "first call of a fresh process, to its first token", "ms")
    beyond = Figure(
        case, "the same, beyond the second call", "ms", Goal(absolute=set_up * 1000 + COLD_MARGIN)
    )

    def once(contender: Contender) -> None:
        contender.end()
        with contender.client(url, load_extension=contender.name == OURS):
            waits = []
            for _ in range(2):
                (seen,) = streamed(contender, {"tokens": 1})
                if why := missing(seen, 1):
                    call.fail(contender.name, why)
                    return
                waits.append((seen["came"][0] - seen["called"]) * 1000)
            call.add(contender.name, waits[0])
            beyond.add(contender.name, waits[0] - waits[1])

    with stopwatch(round_trip=round_trip, connecting=set_up, certificate=certificate()) as url:
        in_turn(settings.repeats, everybody, once, [call, beyond])
    return [call, beyond]
