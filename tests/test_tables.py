"""Tables of jobs and of counters."""

from __future__ import annotations

import time

from notebook_ext import tables
from notebook_ext.types import Counts, Health, JobStatus


def test_counters_stand_in_the_order_in_which_a_job_meets_them():
    jobs = Counts(retried=1, odd=5, completed=3, in_queue=4, failed=2)
    workers = Counts(unhealthy=0, throttled=1, idle=2, running=3, another=4)
    order = tables.in_order(Health(jobs=jobs, workers=workers))
    assert list(order) == ["jobs", "workers"]
    assert list(order["jobs"].items()) == [
        ("in_queue", 4),
        ("completed", 3),
        ("failed", 2),
        ("retried", 1),
        ("odd", 5),
    ]
    assert list(order["workers"]) == ["running", "idle", "throttled", "unhealthy", "another"]
    told = tables.health(Health(jobs=jobs), "demo")["text/plain"]
    assert "4 in queue · 3 completed · 2 failed · 1 retried · 5 odd" in told
    assert "workers  not told" in told


def test_health_shows_counters_as_they_come():
    bundle = tables.health(Health(jobs=Counts(in_queue=2), workers=Counts({"<odd>": 3})), "demo")
    assert "2 in queue" in bundle["text/plain"]
    assert "3 &lt;odd&gt;" in bundle["text/html"]


def test_health_says_why_jobs_wait_where_some_do():
    idle, cold = Counts(idle=0), Counts(initializing=1)
    waiting = tables.health(Health(jobs=Counts(in_queue=2), workers=cold), "demo")["text/plain"]
    assert waiting.endswith("\n2 in the queue: 1 worker initializing")
    assert "initializing" not in tables.health(Health(workers=idle), "demo")["text/plain"]


def test_jobs():
    row = tables.JobRow(
        number=1,
        endpoint="demo",
        job_id="a<b>",
        status=JobStatus.FAILED,
        prompt="word " * 40,
        submitted_at=0.0,
        queue=None,
        run=1.0,
    )
    bundle = tables.jobs([row, row])
    assert "a&lt;b&gt;" in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
    header, first, second = bundle["text/plain"].splitlines()
    assert header.index("status") == first.index("FAILED")
    assert first == second
    assert "word wo…" in first
    assert tables.jobs([])["text/plain"] == "No jobs."


def test_a_table_of_jobs_is_short_about_ids_and_times():
    def row(submitted_at):
        return tables.JobRow(
            number=1,
            endpoint="demo",
            job_id="466fd8ae-5275-4b1a-92d6-f3bd0898d380-u1",
            status=JobStatus.COMPLETED,
            prompt="",
            submitted_at=submitted_at,
            queue=None,
            run=2.3,
        )

    now = time.time()
    table = tables.jobs([row(now), row(0.0)])
    today, long_ago = table["text/plain"].splitlines()[1:]
    assert time.strftime(" %H:%M:%S ", time.localtime(now)) in today
    assert time.strftime(" %Y-%m-%d %H:%M ", time.localtime(0.0)) in long_ago
    assert " 466fd8ae " in today
    assert 'white-space:nowrap">2.3 s</td>' in table["text/html"]
