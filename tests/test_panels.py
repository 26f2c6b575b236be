"""The panels in their cells, on a real session: who is asked when, what clicks do, and what is saved."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ipywidgets.widgets import widget as registry
from rude import KEY, answer, script

from notebook_ext import pane
from notebook_ext.panels import Panels
from notebook_ext.session import Session
from notebook_ext.types import JobStatus
from notebook_ext.watching import HealthFeed

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTERS = {"jobs": {"inQueue": 12, "completed": 1}, "workers": {"idle": 0, "throttled": 2}}
TOO_MANY = answer({"error": "slow down"}, 429, retry_after="60")
LOST = answer({"error": "job not found"}, 404)


class Cell:
    """A cell's output: what is shown there, by display id."""

    def __init__(self) -> None:
        self.shown: dict[str | None, dict[str, Any]] = {}

    def show(self, bundle, *, display_id=None, update=False, metadata=None):
        assert not update or display_id in self.shown
        self.shown[display_id] = dict(bundle)

    @property
    def bundle(self) -> dict[str, Any]:
        (bundle,) = self.shown.values()
        return bundle

    @property
    def is_static(self) -> bool:
        return "application/vnd.jupyter.widget-view+json" not in self.bundle


class Page:
    """A front end, and the widgets that were opened in it."""

    has_widgets = True
    is_headless = False
    clicks_heard_while_busy = None

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.heard: list[Any] = []

    def cell(self) -> Cell:
        self.cells.append(Cell())
        return self.cells[-1]

    def let_through(self, widgets) -> None:
        self.heard.append(widgets)

    def root(self, at: int = -1) -> Any:
        return next(widget for widget in self.heard[at] if type(widget).__name__ == "VBox")

    def views(self, count: int, at: int = -1) -> None:
        """What a page says when it shows a panel so often."""
        self.root(at).set_state({"_view_count": count})

    def text(self, at: int = -1) -> str:
        return " ".join(_text(self.root(at)).split())

    def row(self, number: int) -> list[str]:
        """The cells of a job's row, but for when it was sent."""
        texts, times = (_rows(child.value) for child in self.root().children[2].children[:2])
        rows = ([*text[:4], *time] for text, time in zip(texts, times, strict=True))
        return next((row for row in rows if row[0] == f"@{number}"), [])

    def has(self, label: str) -> bool:
        return any(self._labelled(label))

    def button(self, label: str) -> Any:
        return next(self._labelled(label))

    def _labelled(self, label: str) -> Iterator[Any]:
        return (b for b in _buttons(self.root()) if b.description.startswith(label) and _is_there(b))


def _text(widget: Any) -> str:
    own = re.sub(r"<style>.*?</style>|<[^>]*>", " ", getattr(widget, "value", ""), flags=re.DOTALL)
    return " ".join([own, *map(_text, getattr(widget, "children", ()))])


def _rows(value: str) -> list[list[str]]:
    rows = re.findall(r'<div class="nbx-row[^>]*>(.*?)</div>', value)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.split("(?<=</span>)(?=<span)", row)] for row in rows]


def _buttons(widget: Any) -> list[Any]:
    inner = [button for child in getattr(widget, "children", ()) for button in _buttons(child)]
    return [*inner, widget] if type(widget).__name__ == "Button" else inner


def _is_there(button: Any) -> bool:
    return button.layout.display != "none" and button.layout.visibility != "hidden"


def until(condition, timeout: float = 5.0) -> None:
    """Wait for what happens on the loop's thread, and tells nobody here."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def panels(session, page):
    before = set(registry._instances)
    yield Panels(session, page)
    session.close()
    assert set(registry._instances) == before, "models are left"


@pytest.fixture
def elsewhere(elsewhere, session, monkeypatch):
    """An endpoint that answers as it is told: gives its server and its connection."""
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", KEY)

    def start(**answers):
        server = elsewhere(script(**answers))
        return server, session.connect("ep", "ep", provider=server.url)

    yield start
    session.close()


def watch(panels, connection, *, every=0.02, is_endless=False, cell=(None, 1)) -> None:
    panels.health(connection, every=every, is_endless=is_endless, cell=cell)


def held(session, count: int) -> list[Any]:
    """Jobs that go on until they are stopped."""

    async def hold(job):
        await asyncio.sleep(60)

    connection = session.serve("held", hold, workers=1)
    handles = [connection.submit({"prompt": f"job number {at}"}) for at in range(count)]
    until(lambda: all(handle.id for handle in handles))
    return handles


# ---------------------------------------------------------------------------------- health


def test_counters_are_watched_and_saved_when_watching_ends(panels, page, elsewhere):
    server, connection = elsewhere(health=[{**COUNTERS, "jobs": {"inQueue": 3}}, COUNTERS])
    watch(panels, connection)
    until(lambda: "in queue 12" in page.text())
    assert not page.cells[0].is_static
    page.button("Stop watching").click()
    until(lambda: page.cells[0].is_static)
    text = page.cells[0].bundle["text/plain"]
    assert re.search(r"in queue +12  ▃+█+ +3 to 12", text)
    assert text.endswith("; stopped")
    asked = server.count("health")
    time.sleep(0.1)
    assert server.count("health") == asked


def test_a_panel_that_is_not_seen_asks_nothing_and_goes_on_when_it_is(panels, page, elsewhere):
    server, connection = elsewhere(health=COUNTERS)
    watch(panels, connection)
    page.views(1)
    until(lambda: server.count("health") > 2)
    page.views(0)
    panels._session.on_loop(lambda: None)
    asked = server.count("health")
    time.sleep(0.15)
    assert server.count("health") <= asked + 1  # one may have been on its way
    page.views(1)
    until(lambda: server.count("health") > asked + 2)


def test_a_panel_that_nobody_sees_any_more_ends(panels, page, elsewhere, monkeypatch):
    monkeypatch.setattr(pane, "WATCH_TIME", 0.05)
    _, connection = elsewhere(health=COUNTERS)
    watch(panels, connection, is_endless=True)
    page.views(1)
    page.views(0)
    until(lambda: page.cells[0].is_static)
    assert page.cells[0].bundle["text/plain"].endswith("nobody watched any more")


def test_watching_ends_by_itself_unless_it_is_for_ever(panels, page, elsewhere, monkeypatch):
    monkeypatch.setattr("notebook_ext.panels.WATCH_TIME", 0.1)
    _, connection = elsewhere(health=COUNTERS)
    watch(panels, connection, is_endless=True)
    watch(panels, connection)
    until(lambda: page.cells[1].is_static)
    assert page.cells[1].bundle["text/plain"].endswith("watching ended by itself")
    assert not page.cells[0].is_static
    assert "until stopped" in page.text(0)


def test_two_panels_of_one_endpoint_ask_for_both(panels, page, elsewhere):
    server, connection = elsewhere(health=COUNTERS)
    watch(panels, connection, every=60)
    until(lambda: "in queue" in page.text(0))
    watch(panels, connection, every=60)
    until(lambda: "in queue" in page.text(1))
    assert server.count("health") == 1


def test_a_cell_that_is_run_again_drops_its_old_panel(panels, page, elsewhere):
    _, connection = elsewhere(health=COUNTERS)
    watch(panels, connection, cell=("a", 1))
    watch(panels, connection, cell=("a", 1))
    watch(panels, connection, cell=("b", 2))
    watch(panels, connection, cell=("a", 3))
    until(lambda: page.cells[0].is_static and page.cells[1].is_static)
    assert not page.cells[2].is_static
    assert not page.cells[3].is_static


def test_an_endpoint_that_is_asked_too_often_is_stale_and_asked_less(panels, page, elsewhere):
    server, connection = elsewhere(health=[COUNTERS, TOO_MANY])
    watch(panels, connection)
    until(lambda: "stale" in page.text())
    text = page.text()
    assert re.search(
        r"ep stale · last answer at [\d:]{8}: it was asked too often \(429\); asked again in 1 min", text
    )
    assert "in queue 12" in text
    assert server.count("health") == 2


def test_an_endpoint_that_does_not_answer_is_stale_until_it_does(panels, page, elsewhere):
    gate = threading.Event()

    async def later(asked):
        while not gate.is_set():
            await asyncio.sleep(0.005)
        return answer(COUNTERS)

    _, connection = elsewhere(health=[COUNTERS, later])
    panels._feeds[connection.endpoint] = HealthFeed(connection.endpoint.health, patience=0.05)
    watch(panels, connection)
    until(lambda: re.search(r"ep stale · last answer at [\d:]{8}: it does not answer in time", page.text()))
    gate.set()
    until(lambda: "ep live" in page.text())


def test_a_lost_connection_is_stale_and_comes_back(panels, page, elsewhere):
    _, connection = elsewhere(health=[COUNTERS, None, None, None, None, None, None, None, COUNTERS])
    watch(panels, connection)
    until(lambda: "stale" in page.text(), timeout=15)
    assert "Traceback" not in page.text()
    until(lambda: "live" in page.text(), timeout=15)


def test_a_wrong_key_ends_it_with_a_sentence(panels, page, elsewhere):
    server, connection = elsewhere(health=answer({"error": "no"}, 401))
    watch(panels, connection)
    until(lambda: page.cells[0].is_static)
    assert "the key was refused (401)" in page.cells[0].bundle["text/plain"]
    assert server.count("health") == 1


def test_purge_says_how_many_wait_and_how_many_are_mine(panels, page, session):
    handles = held(session, 4)
    until(lambda: handles[0].status is JobStatus.IN_PROGRESS)
    watch(panels, session.connect("held"))
    until(lambda: "in queue 3" in page.text())
    page.button("Purge queue").click()
    until(lambda: page.has("Keep"))
    page.button("Really remove 3 (3 yours)?").click()
    until(lambda: "3 jobs removed from the queue; what runs goes on." in page.text())
    assert session.connect("held").health().jobs["in_queue"] == 0
    until(lambda: "in queue 0" in page.text())


def test_nothing_is_asked_where_nothing_waits(panels, page, session):
    watch(panels, session.serve("idle", "echo"))
    page.button("Purge queue").click()
    until(lambda: "Nothing waits in the queue of idle." in page.text())
    assert not page.button("Purge queue").disabled


def test_a_question_that_nobody_answers_goes_away(panels, page, elsewhere, monkeypatch):
    monkeypatch.setattr(pane, "QUESTION_TIME", 0.05)
    server, connection = elsewhere(health=COUNTERS)
    watch(panels, connection, every=60)
    page.button("Purge queue").click()
    until(lambda: page.has("Really remove 12 (0 yours)?"))
    until(lambda: page.has("Purge queue"))
    assert server.count("purge-queue") == 0


def test_a_purge_that_fails_says_so_and_can_be_tried_again(panels, page, elsewhere):
    _, connection = elsewhere(health=COUNTERS, purge_queue=answer({"error": "no"}, 403))
    watch(panels, connection, every=60)
    page.button("Purge queue").click()
    until(lambda: page.has("Really"))
    page.button("Really remove 12").click()
    until(lambda: "not allowed (403" in page.text())
    assert not page.button("Purge queue").disabled


def test_a_session_that_closes_leaves_what_was_known(panels, page, session, elsewhere):
    _, connection = elsewhere(health=COUNTERS)
    watch(panels, connection)
    panels.jobs(lambda handle: [], cell=(None, 1))
    page.views(1, at=0)
    until(lambda: "in queue" in page.text(0))
    session.close()
    assert page.cells[0].is_static
    assert "in queue" in page.cells[0].bundle["text/plain"]
    assert page.cells[1].is_static


def test_a_page_that_hears_only_of_widgets_keeps_the_end_until_it_goes(panels, page, session, elsewhere):
    _, connection = elsewhere(health=COUNTERS)
    watch(panels, connection)
    page.views(1)
    until(lambda: "in queue" in page.text())
    root = page.root()
    page.button("Stop watching").click()
    until(lambda: page.cells[0].is_static)
    assert root.comm is not None
    assert "stopped" in page.text()
    assert _buttons(root) == []
    page.views(0)
    until(lambda: root.comm is None)


# ---------------------------------------------------------------------------------- jobs


def result(handle):
    return [{"text/plain": f"what came of {handle.number}"}]


def test_jobs_appear_and_change_without_anybody_asking(panels, page, session):
    echo = session.serve("echo", "echo")
    panels.jobs(result, cell=(None, 1))
    assert "none yet" in page.text()
    handle = echo.submit({"prompt": "Say this again"})
    until(lambda: re.search(r"@1 +echo +completed +Say this again", page.text()))
    assert handle.done
    assert "1 completed" in page.text()


def test_a_job_is_cancelled_by_its_row_and_confirmed(panels, page, session):
    (handle,) = held(session, 1)
    panels.jobs(result, cell=(None, 1))
    until(lambda: "running" in page.text())
    page.button("Cancel").click()
    until(lambda: "@1 CANCELLED" in page.text())
    assert handle.status is JobStatus.CANCELLED
    until(lambda: re.search(r"@1 +held +cancelled", page.text()))
    assert handle.was_stopped


def test_a_click_on_cancel_for_a_job_that_has_just_ended_says_so(panels, page, session):
    handle = session.serve("echo", "echo").submit({})
    handle.wait(5)
    panels.jobs(result, cell=("a", 1))
    until(lambda: "completed" in page.text())
    (live,) = panels._in_cell["a"][1]
    live.cancel(1)  # the click was on its way when the button went
    until(lambda: "@1 had already ended: completed." in page.text())


def test_a_cancel_that_the_server_does_not_know_is_told_calmly(panels, page, session, elsewhere):
    queued = {"id": "j-1", "status": "IN_QUEUE"}
    server, connection = elsewhere(
        run=queued, stream={"status": "IN_QUEUE", "stream": []}, status=queued, health=COUNTERS, cancel=LOST
    )
    connection.submit({"prompt": "x"})
    panels.jobs(result, cell=(None, 1))
    until(lambda: "queued" in page.text())
    page.button("Cancel").click()
    until(lambda: "@1 LOST" in page.text(), timeout=10)
    assert server.count("cancel") >= 1


def test_a_failed_job_is_retried_by_its_row_and_followed_again(panels, page, session):
    tries = []

    def second_time(job):
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
        return "well"

    handle = session.serve("flaky", second_time).submit({})
    handle.wait(5)
    panels.jobs(result, cell=(None, 1))
    until(lambda: "failed" in page.text())
    page.button("Retry").click()
    until(lambda: re.search(r"@1 +flaky +completed", page.text()))
    assert "@1 is queued again." in page.text()
    assert handle.value == "well"


def test_a_retry_that_is_refused_says_why(panels, page, session, elsewhere):
    failed = {"id": "j-1", "status": "FAILED", "error": "broken"}
    _, connection = elsewhere(run=failed, stream=failed, status=failed, retry=LOST, health=COUNTERS)
    handle = connection.submit({})
    until(lambda: handle.done)
    panels.jobs(result, cell=(None, 1))
    until(lambda: "failed" in page.text())
    page.button("Retry").click()
    until(lambda: "no longer knows" in page.text() or "unknown" in page.text() or "expired" in page.text())
    until(lambda: page.has("Retry") and not page.button("Retry").disabled)


def test_a_result_is_shown_and_hidden(panels, page, session):
    session.serve("echo", "echo").submit({}).wait(5)
    panels.jobs(result, cell=(None, 1))
    until(lambda: "completed" in page.text())
    page.button("Show").click()
    until(lambda: "The result of @1" in page.text())
    output = page.root().children[-1]
    assert output.outputs[0]["data"] == {"text/plain": "what came of 1"}
    page.button("Hide").click()
    until(lambda: output not in page.root().children)


def test_cancel_all_asks_and_then_stops_every_job_of_mine(panels, page, session):
    handles = held(session, 3)
    panels.jobs(result, cell=(None, 1))
    until(lambda: "running" in page.text())
    page.button("Cancel all of mine").click()
    until(lambda: page.has("Really cancel 3 jobs?"))
    page.button("Really cancel 3 jobs?").click()
    until(lambda: "3 jobs ended" in page.text(), timeout=15)
    assert {handle.status for handle in handles} == {JobStatus.CANCELLED}
    until(lambda: page.button("Cancel all of mine").disabled)


def test_the_first_page_has_the_newest_and_pages_stay_where_they_were_turned_to(panels, page, session):
    echo = session.serve("echo", "echo", workers=8)
    for _ in range(45):
        echo.submit({})
    panels.jobs(result, cell=(None, 1))
    until(lambda: "1 to 20 of 45" in page.text() and page.row(45) and page.row(26))
    page.button("Next").click()
    until(lambda: "21 to 40 of 45" in page.text())
    echo.submit({}).wait(5)
    until(lambda: "21 to 40 of 46" in page.text())
    page.button("Previous").click()
    until(lambda: "1 to 20 of 46" in page.text() and page.row(46))


def test_what_runs_is_on_the_first_page_however_many_wait(panels, page, session):
    go = threading.Event()

    async def hold(job):
        while not go.is_set():
            await asyncio.sleep(0.01)
        return "done"

    connection = session.serve("held", hold, workers=2)
    handles = [connection.submit({"prompt": "hold"}) for _ in range(30)]
    panels.jobs(result, cell=(None, 1))
    until(lambda: "1 to 20 of 30" in page.text() and page.row(30)[2:3] == ["queued"])
    until(lambda: page.row(1)[2:3] == page.row(2)[2:3] == ["running"])
    assert page.row(3) == []
    go.set()
    for handle in handles:
        handle.wait(10)
    until(lambda: page.row(11)[2:3] == ["completed"])
    assert page.row(10) == []


def test_time_in_the_queue_is_not_told_as_time_of_running(panels, page, session):
    go = threading.Event()

    async def stream(job):
        while job["input"]["prompt"] == "first" and not go.is_set():
            await asyncio.sleep(0.01)
        yield "a word"
        if job["input"]["prompt"] == "second":
            await asyncio.sleep(60)

    connection = session.serve("words", stream, workers=1)
    for prompt in ("first", "second"):
        connection.submit({"prompt": prompt})
    panels.jobs(result, cell=(None, 1))
    until(lambda: page.row(2) == ["@2", "words", "queued", "second", "1.0 s", ""])
    go.set()
    until(lambda: page.row(2)[2:3] == ["running"])
    queue, run = (float(time.removesuffix(" s")) for time in page.row(2)[4:])
    assert run < 1.0 <= queue


def test_a_table_that_nobody_sees_is_not_drawn(panels, page, session):
    echo = session.serve("echo", "echo")
    panels.jobs(result, cell=(None, 1))
    page.views(1)
    page.views(0)
    session.on_loop(lambda: None)
    echo.submit({}).wait(5)
    assert "@1" not in page.text()
    page.views(1)
    until(lambda: "@1" in page.text())


def test_a_job_that_is_stopped_by_another_way_is_cancelling_until_that_is_known(panels, page, elsewhere):
    gate = threading.Event()

    async def later(asked):
        while not gate.is_set():
            await asyncio.sleep(0.005)
        return answer({"error": "no"}, 403)

    running = {"id": "j-1", "status": "IN_PROGRESS"}
    _, connection = elsewhere(
        run=running, stream={**running, "stream": []}, status=running, health=COUNTERS, cancel=later
    )
    handle = connection.submit({"prompt": "x"})
    panels.jobs(result, cell=(None, 1))
    until(lambda: page.has("Cancel"))
    stopping = handle.cancel_soon()
    until(lambda: page.has("Cancelling"))
    assert handle.is_stopping
    assert page.row(1)[2] == "cancelling"
    assert page.button("Cancelling").disabled
    gate.set()
    assert not stopping.result(5).confirmed
    assert not handle.is_stopping
    until(lambda: page.row(1)[2] == "running")
    assert not page.button("Cancel").disabled


# ---------------------------------------------------------------------------------- jobs from earlier


@pytest.fixture
def outliving(elsewhere, tmp_path):
    """Jobs of an endpoint that lives elsewhere, in a journal: gives a function that opens a session on it."""
    server, _ = elsewhere(
        run=[
            {"id": "j-1", "status": "COMPLETED", "output": "first"},
            {"id": "j-2", "status": "FAILED", "error": "no"},
        ],
        retry={"id": "j-2", "status": "IN_QUEUE"},
        stream={"status": "COMPLETED", "stream": []},
        status={"id": "j-2", "status": "COMPLETED", "output": "second"},
    )
    with contextlib.ExitStack() as stack:

        def opened() -> Session:
            session = Session(journal=str(tmp_path / "journal.sqlite"))
            stack.callback(session.close)
            session.connect("ep", "ep", provider=server.url)
            return session

        earlier = opened()
        for prompt in ("a haiku", "a failure"):
            earlier.connect("ep").submit({"prompt": prompt}).wait(5)
        yield opened, earlier


def test_jobs_of_the_journal_stand_below_this_sessions(outliving, page):
    opened, earlier = outliving
    earlier.close()
    session = opened()
    Panels(session, page).jobs(result, cell=(None, 1))
    until(lambda: "none yet · 2 from earlier" in page.text())
    assert re.search(r"from earlier .*@2 ep failed a failure .*@1 ep completed a haiku", page.text())
    page.button("Show").click()
    until(lambda: "The result of @2" in page.text())
    session.serve("echo", "echo").submit({"prompt": "mine"}).wait(5)
    until(lambda: re.search(r"@3 echo completed mine .*from earlier .*@2 .*@1", page.text()))
    page.button("Close").click()
    until(lambda: page.cells[0].is_static)
    assert "mine" in page.cells[0].bundle["text/plain"]
    assert "haiku" not in page.cells[0].bundle["text/plain"]


def test_a_failed_job_of_the_journal_is_retried_and_then_this_sessions(outliving, page):
    opened, earlier = outliving
    earlier.close()
    session = opened()
    Panels(session, page).jobs(result, cell=(None, 1))
    until(lambda: page.has("Retry"))
    page.button("Retry").click()
    until(lambda: re.search(r"@2 ep completed a failure .*from earlier .*@1", page.text()))
    assert session.handles[2].value == "second"


def test_a_job_that_another_session_follows_has_no_cancel_and_changes_with_the_journal(
    session, page, tmp_path, monkeypatch
):
    monkeypatch.setattr("notebook_ext.jobs_pane.LOOK_EVERY", 0.05)
    path = str(tmp_path / "journal.sqlite")
    other, watching = Session(journal=path), Session(journal=path)
    try:
        (handle,) = held(other, 1)
        until(lambda: handle.status is JobStatus.IN_PROGRESS)
        Panels(watching, page).jobs(result, cell=(None, 1))
        until(lambda: "another kernel follows it: %endpoint attach @1" in page.text())
        assert [label for label in ("Cancel", "Retry", "Show") if _offered(page, label)] == ["Show"]
        handle.cancel()
        until(lambda: page.row(1)[2] == "cancelled")
        assert page.row(1)[3] == "job number 0"
    finally:
        watching.close()
        other.close()


def _offered(page, label: str) -> bool:
    rows = page.root().children[2].children[2].children
    return any(b.description == label and _is_there(b) for row in rows for b in _buttons(row))


def test_what_is_saved_of_a_table_is_a_table(panels, page, session):
    session.serve("echo", "echo").submit({"prompt": "keep this"}).wait(5)
    panels.jobs(result, cell=(None, 1))
    page.button("Close").click()
    until(lambda: page.cells[0].is_static)
    text = page.cells[0].bundle["text/plain"]
    assert "keep this" in text
    assert "COMPLETED" in text
    assert text.endswith("; stopped")


def test_panels_need_widgets_and_a_page(session):
    def can(**front_end) -> bool:
        return Panels(session, SimpleNamespace(**front_end)).can_be_live

    assert can(has_widgets=True, is_headless=False)
    assert not can(has_widgets=False, is_headless=False)
    assert not can(has_widgets=True, is_headless=True)
