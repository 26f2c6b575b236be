"""Why a job waits: what the counters say, and nothing where they say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.types import Counts, Health
from notebook_ext.waiting import wait_reason

NINE = (48.0, 50.0, 47.0, 44.0, 48.0, 52.0, 49.0, 48.0, 46.0)
LOGS = "unhealthy: look at their logs"


def endpoint(in_queue: int | None = None, **workers: int) -> Health:
    return Health(jobs=Counts() if in_queue is None else Counts(in_queue=in_queue), workers=Counts(workers))


@pytest.mark.parametrize(
    ("health", "waited", "cold_starts", "reason"),
    [
        # nothing is known
        (endpoint(), 41, NINE, ""),
        (endpoint(outdated=2), 41, (), ""),
        # no worker
        (endpoint(idle=0, running=0), 3, (), "no worker yet"),
        (endpoint(idle=0), 41, (), "no worker at all: is max workers 0, or has none attached?"),
        (endpoint(idle=0), 41, NINE, "no worker yet; cold starts here take about 48 s (9 seen)"),
        (endpoint(idle=0), 60, NINE, "no worker at all: is max workers 0, or has none attached?"),
        (
            endpoint(idle=0),
            12,
            (4.0,),
            "no worker yet; longer than every cold start here so far (at most 4.0 s, 1 seen)",
        ),
        # one is starting
        (endpoint(initializing=1), 41, (), "1 worker initializing"),
        (
            endpoint(initializing=2),
            41,
            NINE,
            "2 workers initializing; cold starts here take about 48 s (9 seen)",
        ),
        (
            endpoint(initializing=1),
            60,
            NINE,
            "1 worker initializing; longer than every cold start here so far (at most 52 s, 9 seen)",
        ),
        (
            endpoint(initializing=1),
            41,
            (50.0, 48.0, 620.0),
            "1 worker initializing; cold starts here take about 50 s, at most 10 min (3 seen)",
        ),
        (
            endpoint(initializing=1),
            1,
            (3.2,),
            "1 worker initializing; cold starts here take about 3.2 s (1 seen)",
        ),
        (
            endpoint(initializing=1),
            1,
            (7300.0,),
            "1 worker initializing; cold starts here take about 2 h (1 seen)",
        ),
        # there is none to be had, or it is broken
        (endpoint(throttled=2), 41, NINE, "all hosts throttled: the provider has no free machine now"),
        (endpoint(throttled=2, initializing=1), 41, (), "1 worker initializing; 2 workers throttled"),
        (endpoint(unhealthy=1), 41, (), "1 worker unhealthy: look at its logs"),
        (endpoint(unhealthy=2, throttled=1), 41, (), f"2 workers {LOGS}; 1 worker throttled"),
        # they have something else to do
        (endpoint(4, running=2), 41, (), "up to 3 jobs ahead on 2 running workers"),
        (endpoint(2, running=1), 41, (), "up to 1 job ahead on 1 running worker"),
        (endpoint(1, running=2), 41, (), "no other job waits, 2 workers running"),
        (endpoint(running=2), 41, (), "2 workers running"),
        (
            endpoint(4, running=1, initializing=1, unhealthy=2, throttled=1),
            41,
            (),
            f"2 workers {LOGS}; up to 3 jobs ahead on 1 running worker; 1 worker initializing; 1 worker throttled",
        ),
        # or not yet
        (endpoint(1, idle=1, ready=1), 41, (), "1 worker idle, and the job not taken yet"),
        (endpoint(1, ready=2), 41, (), "2 workers idle, and the job not taken yet"),
    ],
)
def test_why_a_job_waits(health, waited, cold_starts, reason):
    assert wait_reason(health, waited, cold_starts) == reason


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ({}, ""),
        ({"idle": 0}, "no worker at all: is max workers 0, or has none attached?"),
        ({"unhealthy": 2, "running": 1}, f"2 workers {LOGS}"),
        ({"throttled": 2}, "all hosts throttled: the provider has no free machine now"),
        ({"initializing": 1}, "1 worker initializing"),
        ({"running": 3}, ""),
        ({"idle": 1}, ""),
    ],
)
def test_why_an_endpoints_jobs_wait(workers, reason):
    assert wait_reason(Health(jobs=Counts(in_queue=3), workers=Counts(workers))) == reason


counts = st.dictionaries(
    st.sampled_from(
        ["idle", "initializing", "ready", "running", "throttled", "unhealthy", "in_queue", "other"]
    ),
    st.integers(0, 10**6),
).map(Counts)
seconds = st.floats(0, 10**7)


@given(counts, counts, st.none() | seconds, st.lists(seconds, max_size=5))
def test_it_is_one_short_line_whatever_is_told(jobs, workers, waited, cold_starts):
    reason = wait_reason(Health(jobs=jobs, workers=workers), waited, cold_starts)
    assert len(reason) < 300
    assert "\n" not in reason
