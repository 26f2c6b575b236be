"""What the jobs panel says of a job that nobody follows any more: how to follow it again, and until when."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rude import KEY, answer, rude, script
from test_panels import Page, until

from notebook_ext.jobs_pane import unfollowed
from notebook_ext.loop import LoopThread
from notebook_ext.panels import Panels
from notebook_ext.providers import RUNPOD
from notebook_ext.session import Session
from notebook_ext.types import Job, JobStatus


@pytest.mark.parametrize(
    ("kept", "seen", "says"),
    [
        (1800, 1140, "its result is kept 11 min 00 s at least: %endpoint attach @17"),
        (1800, 1900, "its result may have expired: %endpoint attach @17"),
        (None, 0, "no longer followed: %endpoint attach @17"),
    ],
)
def test_how_long_a_result_is_surely_kept_is_counted_from_when_the_job_was_last_seen(
    kept, seen, says, monkeypatch
):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    job = Job(id="j1", endpoint="ep", status=JobStatus.IN_PROGRESS, seen_at=1_000_000.0 - seen)
    assert unfollowed(SimpleNamespace(number=17, job=job), kept) == says


@pytest.fixture
def refusing(monkeypatch):
    """A server that takes jobs and then refuses to tell of them: its base URL."""
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    refused = answer({"error": "who are you?"}, 401)
    queued = {"id": "j-1", "status": "IN_QUEUE"}
    loop = LoopThread("another machine")
    with contextlib.ExitStack() as stack:
        manager = rude(script(run=queued, stream=refused, status=refused, health=refused, cancel=refused))
        server = loop.submit(manager.__aenter__()).result(5)
        stack.callback(lambda: loop.submit(manager.__aexit__(None, None, None)).result(5))
        yield server.url
    loop.close()


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (True, r"@1 ep queued its result is kept (30 min 00|29 min \d\d) s at least: %endpoint attach @1"),
        (False, "no longer"),
    ],
)
def test_a_row_says_how_to_follow_its_job_again(refusing, known, says):
    session, page = Session(), Page()
    try:
        provider = replace(RUNPOD, base_url=refusing, name="runpod" if known else "another")
        handle = session.connect("ep", "ep", provider=provider).submit({"prompt": "what was asked"})
        until(lambda: handle.done)
        panels = Panels(session, page)
        panels.jobs(lambda _: [], cell=(None, 1))
        until(lambda: re.search(says, page.text()))
        assert "what was asked" not in page.text()
    finally:
        session.close()
