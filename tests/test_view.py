"""A job's view: what it tells the strip and the footer."""

from __future__ import annotations

import asyncio
import time

import pytest

from notebook_ext import profiles
from notebook_ext.entry import Entry
from notebook_ext.errors import AnswerLost, JobFailed
from notebook_ext.events import Ended, Queued
from notebook_ext.handle import JobHandle
from notebook_ext.patience import Outage
from notebook_ext.types import Counts, Health, Job, JobStatus, StreamChunk
from notebook_ext.view import NEWS, TICK, JobView, facts

COLD = Queued(Health(workers=Counts(initializing=1)), (48.0, 50.0))
WHY = "1 worker initializing; cold starts here take about 49 s (2 seen)"


class Owner:
    closed = True  # so that a subscription does not look for the session's loop


class Display:
    footer = None

    def add(self, text):
        pass

    def finish(self, bundles=(), footer=None):
        self.footer = footer["text/plain"]


class Strip:
    def __init__(self):
        self.views = []
        self.drawn = asyncio.Semaphore(0)

    def update(self, view):
        self.views.append(view)
        self.drawn.release()


class Waiting(JobHandle):
    """A job whose time in the queue the test decides."""

    elapsed = 5.0


def snapshot(status: str, **told) -> Job:
    return Job(id=told.pop("id", "j1"), endpoint="demo", status=JobStatus(status), **told)


def job(status: str = "IN_QUEUE", *, has_retry: bool = True, **told) -> Waiting:
    entry = Entry(
        number=17,
        endpoint="demo",
        endpoint_id="demo",
        provider="",
        base_url="",
        input={},
        submitted_at=0.0,
        job=snapshot(status, **told),
    )
    return Waiting(Owner(), entry, has_retry=has_retry)


def view_of(handle, strip=None):
    return JobView(handle, profiles.get("raw").decoder(), Display(), strip=strip)


# ------------------------------------------------------------------ why it waits


def test_a_queued_job_says_why_it_waits_until_it_runs():
    handle, strip = job(), Strip()
    view = view_of(handle, strip)

    async def scenario():
        view.start()
        assert strip.views[-1].reason == ""
        handle.saw(COLD)
        handle.saw(handle.job)
        assert (strip.views[-1].reason, strip.views[-1].queue) == (WHY, 5.0)
        handle.elapsed = 49.0
        handle.saw(handle.job)
        assert strip.views[-1].reason == ""
        handle.saw(COLD)
        handle.saw(handle.job)
        assert strip.views[-1].reason == WHY
        handle.elapsed = 51.0
        handle.saw(handle.job)
        assert "longer than every cold start" in strip.views[-1].reason
        handle.saw(snapshot("IN_PROGRESS", delay_time=51.0))
        assert strip.views[-1].reason == ""
        handle.saw(Ended(None))

    asyncio.run(scenario())


@pytest.mark.parametrize(("later", "known"), [(NEWS, True), (NEWS + 1, False)])
def test_counters_that_are_old_are_no_reason(later, known):
    handle, strip = job(), Strip()
    view = view_of(handle, strip)
    handle.subscribe(view)
    view(COLD)
    handle.elapsed += later
    view(handle.job)
    assert (strip.views[-1].reason != "") is known


def test_a_job_whose_server_has_too_many_requests_says_for_how_long_it_waits():
    async def scenario():
        strip, handle = Strip(), job("IN_PROGRESS")
        view = view_of(handle, strip)
        handle.paused(3.4)
        view.start()
        assert strip.views[-1].reason == "rate limited, waiting 3 s"
        handle.paused(0.0)
        handle.saw(Ended(None))
        assert handle.pause_left == 0.0
        assert 3.3 < handle.paused_for < 3.5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("lasts", "has_connection", "said"),
    [
        (9.2, False, "no connection for 9 s, trying again"),
        (9.2, True, "no good answer for 9 s, trying again"),
        (1.5, False, ""),  # the next attempt may get one
    ],
)
def test_a_job_whose_server_does_not_answer_says_for_how_long(lasts, has_connection, said):
    async def scenario():
        strip, handle = Strip(), job("IN_PROGRESS")
        view = view_of(handle, strip)
        handle.troubled(Outage(time.monotonic() - lasts, has_connection))
        view.start()
        assert strip.views[-1].reason == said
        handle.troubled(None)
        handle.saw(handle.job)
        assert strip.views[-1].reason == ""
        handle.saw(Ended(None))

    asyncio.run(scenario())


def test_times_tick_twice_a_second_until_the_end():
    handle, strip = job(), Strip()
    view = view_of(handle, strip)

    async def scenario():
        view.start()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in ("the start", "the first snapshot", "a tick", "another"):
            await strip.drawn.acquire()
        assert loop.time() - began >= 2 * TICK - 0.02
        view(Ended(None))
        assert view._timer.cancelled()

    asyncio.run(scenario())


def test_a_run_does_not_count_the_time_in_the_queue():
    handle, strip = job(), Strip()
    view = view_of(handle, strip)
    handle.subscribe(view)
    handle.saw(handle.job)
    handle.saw(snapshot("IN_PROGRESS"))
    handle.elapsed = 7.0
    handle.saw(StreamChunk("a", 0))
    view(handle.job)
    told = strip.views[-1]
    assert (told.queue, told.run, told.first_token) == (5.0, 2.0, 2.0)
    handle.saw(snapshot("IN_PROGRESS", delay_time=4.0))
    told = strip.views[-1]
    assert (told.queue, told.run, told.first_token) == (4.0, 3.0, 3.0)


def test_a_job_that_is_being_stopped_by_whatever_way_says_so_until_that_is_known():
    handle, strip = job("IN_PROGRESS"), Strip()
    handle.subscribe(view_of(handle, strip))
    with handle.stopping():
        with handle.stopping():
            assert strip.views[-1].is_cancelling
        assert strip.views[-1].is_cancelling
    assert not strip.views[-1].is_cancelling


# ------------------------------------------------------------------ what can be done next


@pytest.mark.parametrize(
    ("handle", "ended", "next_step"),
    [
        (
            job("FAILED"),
            Ended(JobFailed("it failed", snapshot("FAILED"))),
            "queue it again: %endpoint retry @17",
        ),
        (job("TIMED_OUT"), Ended(None), "queue it again: %endpoint retry @17"),
        (job("IN_PROGRESS"), Ended(AnswerLost("lost")), "follow it again: %endpoint attach @17"),
        (job("COMPLETED"), Ended(None), None),
        (job("CANCELLED"), Ended(None), None),
        (job("LOST"), Ended(None), None),
        (job("AMBIGUOUS", id=""), Ended(AnswerLost("lost")), None),
        (job("FAILED"), None, None),
    ],
)
def test_a_footer_says_what_can_be_done_next(handle, ended, next_step):
    if ended is not None:
        handle.saw(ended)
    assert facts(handle, None).notes == ((next_step,) if next_step else ())


def test_a_job_whose_provider_has_no_retry_has_no_such_hint():
    handle = job("FAILED", has_retry=False)
    handle.saw(Ended(JobFailed("it failed", handle.job)))
    assert not handle.can_retry
    assert facts(handle, None).notes == ()


def test_a_failed_job_ends_with_a_line_to_copy():
    handle = job("FAILED")
    view = view_of(handle)
    handle.subscribe(view)
    handle.saw(Ended(JobFailed("it failed", handle.job)))
    view(Ended(handle.error))
    assert view._display.footer == "@17 · demo · FAILED · queue it again: %endpoint retry @17"
