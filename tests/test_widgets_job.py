"""The strip: what its traits say, that a click asks the handle, and that nothing of it is left."""

from __future__ import annotations

import concurrent.futures
import re
from dataclasses import dataclass

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.types import JobStatus, Progress
from notebook_ext.widgets.job import JobStrip, StripView

RUNNING = StripView(JobStatus.IN_PROGRESS, queue=2.1, run=3.4, first_token=0.4, rate="41 tok/s")


class Handle:
    """Counts what it was asked, and answers with a future that the test completes; None: it has ended."""

    def __init__(self):
        self.cancels = 0
        self.stopping = concurrent.futures.Future()

    def cancel_soon(self):
        self.cancels += 1
        return self.stopping


@dataclass
class Stopped:
    confirmed: bool
    error: Exception | None = None

    def __str__(self):
        return "@1 was already COMPLETED after 3.1 s of execution"


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
    assert words(strip._line) == "40 % · 2/5"
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


@pytest.mark.parametrize("told", [0.4, 40, "40 %", "40%", {"percent": 40}])
def test_a_percentage_is_said_once(strip, told):
    strip.update(StripView(JobStatus.IN_PROGRESS, progress=Progress.read(told)))
    assert words(strip._line) == "40 %"


def test_a_tqdm_line_is_a_bar_with_its_counts(strip):
    told = Progress.read("load:  40%|####      | 4/10 [00:01<00:02, 3.2it/s]")
    strip.update(StripView(JobStatus.IN_PROGRESS, progress=told))
    assert words(strip._line) == "40 % · load: 4/10 [00:01&lt;00:02, 3.2it/s]"


def click(strip):
    strip.update(RUNNING)
    (button,) = strip.buttons
    button.click()
    return button


def test_a_click_asks_the_handle_once_and_says_so_until_it_is_confirmed(strip, handle):
    strip.update(RUNNING)
    (button,) = strip.buttons
    assert button.description == "Cancel"
    button.click()
    button.click()
    assert handle.cancels == 1
    assert words(strip._badge) == "demo cancelling"
    assert (button.description, button.disabled) == ("Cancelling…", True)
    strip.update(StripView(JobStatus.CANCELLED))
    handle.stopping.set_result(Stopped(confirmed=True))
    assert words(strip._badge) == "demo cancelled"
    assert words(strip._notice) == ""
    assert (button.description, button.disabled) == ("Cancelled", True)


def test_a_click_is_not_forgotten_when_the_job_starts_meanwhile(strip):
    strip.buttons[0].click()
    assert words(strip._badge) == "demo cancelling"
    strip.update(RUNNING)
    assert words(strip._badge) == "demo cancelling"
    assert strip.buttons[0].disabled


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "last seen running"),
        (ValueError("no answer within 12 s."), "no answer within 12 s"),
        (ValueError("long " * 99), ("long " * 99)[:159] + "…"),
        (ValueError("<img src=x>"), "&lt;img src=x&gt;"),
    ],
)
def test_a_cancel_that_could_not_be_confirmed_says_why_and_can_be_asked_for_again(
    strip, handle, error, reason
):
    button = click(strip)
    handle.stopping.set_result(Stopped(confirmed=False, error=error))
    assert words(strip._notice) == f"not confirmed: {reason}; Cancel asks again"
    assert strip._notice.layout.display is None
    assert words(strip._badge) == "demo running"
    assert (button.description, button.disabled) == ("Cancel", False)
    handle.stopping = concurrent.futures.Future()
    button.click()
    assert handle.cancels == 2
    assert words(strip._notice) == ""
    assert strip._notice.layout.display == "none"
    assert words(strip._badge) == "demo cancelling"


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (lambda future: future.set_exception(RuntimeError("the loop broke")), "the loop broke"),
        (lambda future: future.set_exception(RuntimeError()), "RuntimeError"),
        (lambda future: future.cancel(), "the session closed"),
    ],
)
def test_a_cancel_that_broke_is_not_confirmed_either(strip, handle, fail, reason):
    button = click(strip)
    fail(handle.stopping)
    assert words(strip._notice) == f"not confirmed: {reason}; Cancel asks again"
    assert not button.disabled


def test_a_cancel_of_a_job_that_had_ended_says_so(strip, handle):
    handle.stopping = None
    button = click(strip)
    assert words(strip._notice) == "it had already ended: there was nothing to cancel"
    assert not button.disabled


def test_a_cancel_that_came_too_late_says_how_the_job_ended(strip, handle):
    button = click(strip)
    strip.update(StripView(JobStatus.COMPLETED))
    handle.stopping.set_result(Stopped(confirmed=True))
    assert words(strip._badge) == "demo completed"
    assert words(strip._notice) == "@1 was already COMPLETED after 3.1 s of execution"
    assert (button.description, button.disabled) == ("Cancel", True)


def test_what_came_of_a_cancel_is_told_to_nobody_after_closing(strip, handle):
    click(strip)
    strip.close()
    handle.stopping.set_result(Stopped(confirmed=False))
    assert strip._notice.value == ""


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


def test_it_can_be_updated_and_closed_off_the_main_thread(strip, handle):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(strip.update, RUNNING).result()
        assert words(strip._badge) == "demo running"
        strip.buttons[0].click()
        pool.submit(handle.stopping.set_result, Stopped(confirmed=False)).result()
        assert "not confirmed" in words(strip._notice)
        pool.submit(strip.close).result()
