"""A server that answers at once and keeps the documented limits: does every token come, how late, at what cost?

Each contender has a server of its own, so they can take their 12 seconds at the same time: none of them
should use a tenth of a core. The one that polls without a pause goes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch, told
from tests.bench.figures import FLOOR, OURS, Figure, Goal, Settings, percentile
from tests.bench.rounds import PATIENT, in_turn, missing, stamps, streamed, tag, warmed_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "limited-stream"
ROWS = "4"

STREAMS = (1, 8)
INTERVAL = 0.020
TOGETHER = (FLOOR, OURS, *PATIENT)


def measure(settings: Settings) -> list[Figure]:
    with contenders(with_peers=settings.with_peers, paced=True) as everybody:
        return [figure for streams in STREAMS for figure in _measure(everybody, streams, settings)]


def _measure(everybody: Sequence[Contender], streams: int, settings: Settings) -> list[Figure]:
    tokens = 200 if settings.quick else 600
    what = "1 stream" if streams == 1 else f"{streams} streams at once"
    case = f"short poll, limits on, r = 0, {what} of {tokens} tokens every {INTERVAL * 1000:g} ms"
    lost = Figure(case, "tokens lost", "", Goal(absolute=0.0))
    refused = Figure(case, "429s", "", Goal(absolute=0.0))
    p50 = Figure(case, "delay per token p50", "ms")
    p95 = Figure(case, "delay per token p95", "ms", Goal(absolute=8.0) if streams == 1 else Goal(ratio=1.25))
    requests = Figure(case, "requests per token", "", Goal(absolute=4.0))
    inputs = {"tokens": tokens, "interval": INTERVAL, "first": 0.1, "finish": 0.005}

    def once(contender: Contender) -> None:
        with stopwatch(hold=0.0, limited=True) as url, contender.client(url):
            warmed_up(contender)
            jobs = [{**inputs, "tag": tag(contender, number)} for number in range(streams)]
            found = streamed(contender, *jobs)
            tally = told(url, "/tally")
            broken = [why for seen in found if (why := missing(seen, tokens))]
            known = [] if broken else [stamps(url, job["tag"]) for job in jobs]
        lost.add(contender.name, sum(tokens - len(set(seen["tokens"])) for seen in found))
        refused.add(contender.name, tally["refused"])
        if broken:
            for figure in (lost, p50, p95, requests):
                figure.fail(contender.name, broken[0])
            return
        delays = [
            (came - emitted) * 1000
            for seen, job in zip(found, known, strict=True)
            for came, emitted in zip(seen["came"], job["emitted"], strict=True)
        ]
        p50.add(contender.name, percentile(delays, 0.50))
        p95.add(contender.name, percentile(delays, 0.95))
        requests.add(contender.name, tally["requests"]["stream"] / tokens / streams)

    figures = [lost, refused, p50, p95, requests]
    in_turn(settings.repeats, everybody, once, figures, together=TOGETHER)
    return figures
