"""The strip: what its traits say, that a click asks the handle, and that nothing of it is left."""

from __future__ import annotations

import concurrent.futures
import re

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.types import JobStatus, Progress
from notebook_ext.widgets.job import JobStrip, StripView

RUNNING = StripView(JobStatus.IN_PROGRESS, queue=2.1, run=3.4, first_token=0.4, rate="41 tok/s")


class Handle:
    cancels = 0

    def cancel_soon(self):
        self.cancels += 1


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def handle():
    return Handle()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def strip(handle, clock):
    strip = JobStrip("demo", handle, clock=clock)
    yield strip
    strip.close()


def words(widget) -> str:
    """What a reader sees of an HTML widget."""
    value = re.sub(r"<style>.*?</style>", "", widget.value, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", value).split())


def test_a_new_strip_says_that_its_job_is_queued(strip):
    assert words(strip._badge) == "demo queued"
    assert words(strip._line) == ""
    assert not strip._cancel.disabled


def test_the_line_has_the_times_and_the_rate(strip):
    strip.update(RUNNING)
    assert words(strip._badge) == "demo running"
    assert words(strip._line) == "queue 2.1 s · run 3.4 s · first token 0.4 s · 41 tok/s"


def test_the_line_says_why_a_job_waits(strip, clock):
    clock.now = 1
    strip.update(StripView(JobStatus.IN_QUEUE, queue=5.0, reason="no worker is free"))
    assert words(strip._line) == "queue 5.0 s · no worker is free"


def test_progress_is_a_bar_where_it_is_known_and_words_where_it_is_not(strip, clock):
    strip.update(StripView(JobStatus.IN_PROGRESS, progress=Progress(0.4, "2/5")))
    assert '<progress max="100" value="40" aria-label="progress">' in strip._line.value
    assert words(strip._line) == "40 % 2/5"
    clock.now = 1
    strip.update(StripView(JobStatus.IN_PROGRESS, progress=Progress(None, "loading")))
    assert "<progress" not in strip._line.value
    assert words(strip._line) == "loading"


@pytest.mark.parametrize("status", [*JobStatus, JobStatus("SOMETHING_NEW")])
def test_every_status_is_told_in_words(strip, status):
    strip.update(StripView(status))
    word = words(strip._badge).removeprefix("demo ")
    assert word
    assert word.replace(" ", "_") in {status.lower(), "queued", "running"}
    assert strip._cancel.disabled == status.is_final


def test_text_from_elsewhere_is_escaped(clock):
    payload = "<img src=x onerror=alert(1)>\"'"
    strip = JobStrip(payload, Handle(), clock=clock)
    view = StripView(JobStatus(payload), rate=payload, reason=payload, progress=Progress(0.5, payload))
    strip.update(view)
    clock.now = 1
    strip.update(StripView(JobStatus(payload), progress=Progress(None, payload)))
    assert "<img" not in strip._badge.value + strip._line.value
    assert "&lt;img" in strip._badge.value
    assert "&lt;img" in strip._line.value
    strip.close()


def test_numbers_change_at_most_twice_a_second(strip, clock):
    seen = []
    strip._line.observe(seen.append, "value")
    for tenth in range(31):
        clock.now = tenth / 10
        strip.update(StripView(JobStatus.IN_PROGRESS, run=clock.now))
    assert len(seen) == 7  # at 0, 0.5 ... 3 s


def test_another_status_is_shown_at_once(strip, clock):
    strip.update(RUNNING)
    strip.update(StripView(JobStatus.COMPLETED, run=3.5))
    assert words(strip._badge) == "demo completed"
    assert words(strip._line) == "run 3.5 s"


def test_a_click_asks_the_handle_once_and_says_so_until_it_is_confirmed(strip, handle):
    strip.update(RUNNING)
    (button,) = strip.buttons
    assert button.description == "Cancel"
    button.click()
    button.click()
    assert handle.cancels == 1
    assert (button.description, button.disabled) == ("Cancelling…", True)
    strip.update(StripView(JobStatus.IN_PROGRESS, run=3.5, is_cancelling=True))
    assert words(strip._badge) == "demo cancelling"
    assert (button.description, button.disabled) == ("Cancelling…", True)
    strip.update(StripView(JobStatus.CANCELLED))
    assert words(strip._badge) == "demo cancelled"
    assert (button.description, button.disabled) == ("Cancelled", True)


def test_a_click_is_not_forgotten_when_the_job_starts_meanwhile(strip):
    strip.buttons[0].click()
    assert words(strip._badge) == "demo cancelling"
    strip.update(RUNNING)
    assert words(strip._badge) == "demo cancelling"
    assert strip.buttons[0].disabled


def test_a_cancel_that_was_not_accepted_can_be_tried_again(strip, handle):
    strip.buttons[0].click()
    strip.update(StripView(JobStatus.IN_PROGRESS, is_cancelling=True))
    strip.update(StripView(JobStatus.IN_PROGRESS))
    strip.buttons[0].click()
    assert handle.cancels == 2


@pytest.mark.parametrize(("heard", "warns"), [(False, True), (True, False), (None, False)])
def test_the_tooltip_says_where_a_click_cannot_be_heard(handle, heard, warns):
    strip = JobStrip("demo", handle, clicks_heard_while_busy=heard)
    assert ("another cell is busy" in strip.buttons[0].tooltip) is warns
    assert "Cancel this job of demo" in strip.buttons[0].tooltip
    strip.close()


def test_closing_removes_every_model():
    before = set(registry._instances)
    strip = JobStrip("demo", Handle())
    strip.update(RUNNING)
    assert set(registry._instances) > before
    strip.close()
    strip.close()
    assert set(registry._instances) == before


def test_nothing_is_shown_after_closing(strip):
    strip.close()
    strip.update(RUNNING)
    assert words(strip._badge) == "demo queued"


def test_the_bundle_has_words_for_those_who_see_no_widgets(strip):
    bundle = strip._repr_mimebundle_()
    assert bundle["text/plain"] == "demo: running"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == strip._box.model_id


def test_it_can_be_updated_and_closed_off_the_main_thread(strip):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(strip.update, RUNNING).result()
        assert words(strip._badge) == "demo running"
        pool.submit(strip.close).result()
