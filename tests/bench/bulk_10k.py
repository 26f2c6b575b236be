"""Ten thousand jobs under the documented limits: nothing lost, in hardly more time than the quotas need?

The quotas decide, not the machine: the floor and ours, each with a server of its own, run at the same time.
The peers have one try each: what they lose, they lose every time.
"""

from __future__ import annotations

import math

from tests.bench.bulk import Figures, Way
from tests.bench.contenders import contenders
from tests.bench.figures import FLOOR, OURS, PEERS, Figure, Goal, Settings
from tests.bench.rounds import in_turn

QUESTION = "bulk-10k"
ROWS = "8"

QUOTA, WINDOW = 3000, 10.0
"""Submissions in so many seconds, over /runsync and /run together."""


def measure(settings: Settings) -> list[Figure]:
    count, repeats = (4000, 1) if settings.quick else (10_000, settings.repeats)
    bound = (math.ceil(count / QUOTA) - 1) * WINDOW
    table = Figures(Way(count, "both"), Goal(absolute=1.08 * bound), per_job=False)
    with contenders(with_peers=settings.with_peers, paced=True) as everybody:
        both = [one for one in everybody if one.name not in PEERS]
        in_turn(repeats, both, table.once, table.all(), together=(FLOOR, OURS))
        if settings.quick:  # there it is fewer jobs, and says little
            return table.all()
        in_turn(1, [one for one in everybody if one.name in PEERS], table.once, table.all(), together=())
    return table.all()
