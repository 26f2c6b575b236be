"""How much later than the server emits a token does it reach the user's code, at how many requests?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch
from tests.bench.figures import Figure, Goal, Settings, percentile
from tests.bench.rounds import in_turn, missing, stamps, streamed, tag, warmed_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "token-delay"
ROWS = "3"

ROUND_TRIPS = (0.0, 0.030)
INTERVAL = 0.020


def measure(settings: Settings) -> list[Figure]:
    figures = []
    with contenders(with_peers=settings.with_peers) as everybody:
        for round_trip in ROUND_TRIPS:
            with stopwatch(round_trip=round_trip) as url:
                figures += _measure(everybody, url, round_trip, settings)
    return figures


def _measure(everybody: Sequence[Contender], url: str, round_trip: float, settings: Settings) -> list[Figure]:
    tokens = 50 if settings.quick else 100
    case = f"long poll, r = {round_trip * 1000:g} ms, {tokens} tokens every {INTERVAL * 1000:g} ms"
    goal = Goal(ratio=1.06 if round_trip else 2.5)
    p50 = Figure(case, "delay per token p50", "ms", goal)
    p95 = Figure(case, "delay per token p95", "ms", goal)
    requests = Figure(case, "requests per token", "", Goal(absolute=1.02, ratio=1.02))
    job = {"tokens": tokens, "interval": INTERVAL, "first": 0.1, "finish": 0.005}

    def once(contender: Contender) -> None:
        with contender.client(url):
            warmed_up(contender)
            (seen,) = streamed(contender, {**job, "tag": tag(contender)})
            known = stamps(url, tag(contender))
            if why := missing(seen, tokens):
                p50.fail(contender.name, why)
                return
            delays = [
                (came - emitted) * 1000 for came, emitted in zip(seen["came"], known["emitted"], strict=True)
            ]
            p50.add(contender.name, percentile(delays, 0.50))
            p95.add(contender.name, percentile(delays, 0.95))
            requests.add(contender.name, known["requests"] / tokens)

    in_turn(settings.repeats, everybody, once, [p50, p95, requests])
    return [p50, p95, requests]
