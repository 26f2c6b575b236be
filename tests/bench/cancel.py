"""How soon after the call is a job cancelled, and does its reader know?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.contenders import contenders, stopwatch
from tests.bench.figures import Figure, Goal, Settings
from tests.bench.rounds import in_turn, stamps, streamed, tag, warmed_up

if TYPE_CHECKING:
    from tests.bench.contenders import Contender

QUESTION = "cancel"
ROWS = "10"

ROUND_TRIP = 0.030
HOLDS = {"long poll": 10.0, "short poll": 0.0}
STREAM = {"tokens": 1500, "interval": 0.02}
AFTER, PATIENCE = 0.5, 3.0
"""Seconds: when the call is made, and when a stream that has not ended by then is taken to end never."""
MARGIN = 5.0
"""Milliseconds that the end of a stream may take beyond two round trips."""


def measure(settings: Settings) -> list[Figure]:
    figures = []
    with contenders(with_peers=settings.with_peers) as everybody:
        for mode, hold in list(HOLDS.items())[: 1 if settings.quick else None]:
            case = f"{mode}, r = {ROUND_TRIP * 1000:g} ms, {AFTER:g} s into a stream"
            stopped = Figure(case, "call to CANCELLED", "ms", Goal(ratio=1.10))
            ended = Figure(
                case, "call to the end of its stream", "ms", Goal(absolute=2000 * ROUND_TRIP + MARGIN)
            )
            with stopwatch(round_trip=ROUND_TRIP, hold=hold) as url:
                cancelling = Cancelling(url, stopped, ended)
                in_turn(settings.repeats, everybody, cancelling.once, [stopped, ended])
            figures += [stopped, ended]
    return figures


class Cancelling:
    """Cancels a stream that is being read.

    Args:
        url: Of the stopwatch.
        stopped: The figure of how soon it is cancelled there.
        ended: The figure of how soon its reader knows.
    """

    def __init__(self, url: str, stopped: Figure, ended: Figure) -> None:
        self._url, self._stopped, self._ended = url, stopped, ended

    def once(self, contender: Contender) -> None:
        job = {**STREAM, "tag": tag(contender)}
        with contender.client(self._url):
            warmed_up(contender)
            (seen,) = streamed(contender, job, cancel_after=AFTER, patience=AFTER + PATIENCE)
            known = stamps(self._url, job["tag"])
            if known["finished"] is None or "cancelled" not in seen:
                self._stopped.fail(contender.name, seen["error"] or "not cancelled")
            else:
                self._stopped.add(contender.name, (known["finished"] - seen["cancelled"]) * 1000)
            if seen["ended"] - seen["called"] >= AFTER + PATIENCE:
                self._ended.fail(contender.name, f"still reads after {PATIENCE:g} s")
                contender.end()
            elif "cancelled" in seen:
                self._ended.add(contender.name, (seen["ended"] - seen["cancelled"]) * 1000)
