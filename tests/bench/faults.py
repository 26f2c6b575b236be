"""What arrives when something goes wrong on the way: every token once and in order, one submission?

Only what happens is told, not how fast, so all contenders try at the same time, each with a server of its own.
The bare floor repeats nothing and repairs nothing: it says what the fault alone does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.contenders import certificate, contenders, stopwatch, told
from tests.bench.figures import FLOOR, OURS, PEERS, RUNPOD_ASYNCIO, Figure, Goal, Settings
from tests.bench.rounds import in_turn, missing, streamed
from tests.bench.stopwatch_service import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.contenders import Contender

QUESTION = "faults"
ROWS = "11"

ROUND_TRIP = 0.010
TOKENS, FEW_TOKENS = 100, 30
"""At 20 ms each: of so many, those who look once a second see some twice while they come; who looks at once
needs no more than the few."""
STREAMS = {
    "429 on the first 5 /stream": Fault("429", "stream", first=5),
    "429 on the first 2 /run": Fault("429", "run", first=2),
    "502 on every 10th request": Fault("502", every=10),
    "502 on the 2nd /stream": Fault("502", "stream", nth=2),
    "reset before the answer of the 2nd /stream": Fault("reset", "stream", nth=2),
    "reset in the middle of the 2nd /stream's body": Fault("cut", "stream", nth=2),
    "truncated JSON from the 2nd /stream": Fault("truncated", "stream", nth=2),
}
HTTPS = ("429 on the first 5 /stream", "reset before the answer of the 2nd /stream")
LOST_ANSWERS = {
    "502 on /run, which was accepted": Fault("502 after", "run", nth=1),
    "reset on /run, which was accepted": Fault("reset after", "run", nth=1),
}
BULKS = {
    "429 on the first 50 requests": Fault("429", first=50),
    "502 on every 10th request": Fault("502", every=10),
    "reset on every 25th request": Fault("reset", every=25),
}
WARNING = "may have been queued"
"""What our errors say of a submission whose answer was lost."""


def measure(settings: Settings) -> list[Figure]:
    jobs = 50 if settings.quick else 200
    tokens = FEW_TOKENS if settings.quick and not settings.with_peers else TOKENS
    repeats = 1 if settings.quick else settings.repeats  # what happens is the same every time
    figures = []
    everyone = (FLOOR, OURS, *PEERS)
    with contenders(with_peers=settings.with_peers) as everybody:
        for is_https in (False, True):
            for case, fault in STREAMS.items():
                if not is_https or case in HTTPS:
                    trial = Trial(case, fault, tokens, is_https=is_https)
                    in_turn(repeats, everybody, trial.once, trial.all(), together=everyone)
                    figures += trial.all()
        for case, fault in LOST_ANSWERS.items():
            lost = LostAnswer(case, fault)
            in_turn(repeats, everybody, lost.once, lost.all(), together=everyone)
            figures += lost.all()
        for case, fault in BULKS.items():
            figures += _bulk(everybody, case, fault, jobs, repeats)
    return figures


class Trial:
    """A stream with a fault.

    Args:
        case: In words.
        fault: What goes wrong.
        tokens: How many come.
        is_https: Whether over TLS.
    """

    def __init__(self, case: str, fault: Fault, tokens: int, *, is_https: bool) -> None:
        where = f"{case}, {'https' if is_https else 'http'}"
        self.fault, self.tokens, self.is_https = fault, tokens, is_https
        self.lost = Figure(
            where, f"of {tokens} tokens lost, repeated or out of order", "", Goal(absolute=0.0)
        )
        self.submissions = Figure(where, "submissions", "", Goal(absolute=1.0))

    def all(self) -> list[Figure]:
        return [self.lost, self.submissions]

    def once(self, contender: Contender) -> None:
        conditions = {"round_trip": ROUND_TRIP, "faults": (self.fault,)}
        if self.is_https:
            conditions["certificate"] = certificate()
        with stopwatch(**conditions) as url, contender.client(url):
            job = {"tokens": self.tokens, "interval": 0.02, "first": 0.1, "finish": 0.005}
            (seen,) = streamed(contender, job, patience=20.0)
            tally = told(url, "/tally")
        right = [at for at, token in enumerate(seen["tokens"]) if token == at]
        self.lost.add(contender.name, self.tokens - len(right) + len(seen["tokens"]) - len(right))
        self.submissions.add(contender.name, tally["jobs"])
        if why := missing(seen, self.tokens):
            self.lost.fail(contender.name, why)


class LostAnswer:
    """A submission that is accepted, and whose answer is lost: nobody may repeat it, or be silent about it.

    Args:
        case: In words.
        fault: What goes wrong.
    """

    def __init__(self, case: str, fault: Fault) -> None:
        self.fault = fault
        self.submissions = Figure(case, "submissions", "", Goal(absolute=1.0))
        self.silent = Figure(case, "times nobody was told that the job may run", "", Goal(absolute=0.0))

    def all(self) -> list[Figure]:
        return [self.submissions, self.silent]

    def once(self, contender: Contender) -> None:
        with stopwatch(round_trip=ROUND_TRIP, faults=(self.fault,)) as url, contender.client(url):
            (seen,) = streamed(contender, {"tokens": FEW_TOKENS, "interval": 0.02}, patience=20.0)
            tally = told(url, "/tally")
        self.submissions.add(contender.name, tally["jobs"])
        self.silent.add(contender.name, float(WARNING not in (seen["error"] or "")))


def _bulk(everybody: Sequence[Contender], case: str, fault: Fault, jobs: int, repeats: int) -> list[Figure]:
    """Through /runsync; a result may only be lost where nobody can tell whether it was queued, and that is said."""
    where = f"{jobs} jobs, {case}"
    silent = Figure(where, "results lost, and nobody was told that the job may run", "", Goal(absolute=0.0))
    lost = Figure(where, "results lost", "", Goal(absolute=0.0) if fault.kind == "429" else None)
    repeated = Figure(where, "jobs submitted twice", "", Goal(absolute=0.0))

    def once(contender: Contender) -> None:
        how = "run" if contender.name == RUNPOD_ASYNCIO else "runsync"
        with stopwatch(round_trip=ROUND_TRIP, faults=(fault,), workers=50) as url, contender.client(url):
            seen = contender.order("bulk", count=jobs, input={"finish": 0.02}, how=how, patience=60.0)
            tally = told(url, "/tally")
        named = sum(count for why, count in seen["errors"] if WARNING in why)
        lost.add(contender.name, seen["lost"])
        silent.add(contender.name, seen["lost"] - named)
        repeated.add(contender.name, tally["repeated"])

    figures = [lost, silent, repeated]
    in_turn(repeats, everybody, once, figures, together=(FLOOR, OURS, *PEERS))
    return figures
