"""The jobs panel: what it shows of a moment, what a click asks, and how little it sends."""

from __future__ import annotations

import dataclasses
import re

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.types import JobStatus
from notebook_ext.widgets.jobs import PAGE, SETTLE, JobLine, JobsPanel, JobsView

RUNNING = JobLine(
    1, "demo", JobStatus.IN_PROGRESS, "Write a haiku", "12:00:00", queue=0.5, run=3.0, can_cancel=True
)
FAILED = JobLine(2, "demo", JobStatus.FAILED, "Fail, please", "12:00:01", 0.1, 0.2, can_retry=True)
DONE = JobLine(3, "demo", JobStatus.COMPLETED, "Done", "12:00:02", 0.1, 1.0)


class Board:
    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def __getattr__(self, name):
        return lambda *arguments: self.asked.append((name, *arguments))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def board():
    return Board()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def panel(board, clock):
    panel = JobsPanel(board, clock=clock)
    yield panel
    panel.close()


def words(widget) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", widget.value).split())


def view(*lines, first=0, total=None, **more) -> JobsView:
    return JobsView(lines, first, len(lines) if total is None else total, **more)


def many(count, first=0) -> list[JobLine]:
    return [dataclasses.replace(RUNNING, number=first + at + 1) for at in range(count)]


def buttons(panel, row) -> dict[str, bool]:
    """What can be clicked in a row, and what only stands there."""
    shown = {}
    for button in panel._rows[row].buttons:
        if button.layout.display != "none" and button.layout.visibility != "hidden":
            shown[button.description] = not button.disabled
    return shown


def rows(panel) -> list[str]:
    """What stands in each row, headings too."""
    lines = zip(
        *(re.findall(r'<div class="nbx-row.*?</div>', widget.value) for widget in texts(panel)), strict=True
    )
    return [" ".join(re.sub(r"<[^>]*>", " ", "".join(line)).split()) for line in lines][1:]


def texts(panel) -> tuple:
    return panel._texts, panel._times


def click(panel, row, label):
    next(button for button in panel._rows[row].buttons if button.description == label).click()


def test_without_jobs_it_says_so(panel):
    assert words(panel._head) == "Jobs · none yet"
    assert rows(panel) == []
    assert panel._question.widgets[0].disabled


def test_a_row_tells_a_job(panel):
    panel.update(view(RUNNING, FAILED, DONE, active=1, summary="1 running · 1 failed · 1 completed"))
    assert words(panel._head) == "Jobs · 1 running · 1 failed · 1 completed"
    assert rows(panel) == [
        "@1 demo running Write a haiku 12:00:00 0.5 s 3.0 s",
        "@2 demo failed Fail, please 12:00:01 0.1 s 0.2 s",
        "@3 demo completed Done 12:00:02 0.1 s 1.0 s",
    ]


def test_each_row_offers_what_can_be_done(panel):
    panel.update(view(RUNNING, FAILED, DONE, dataclasses.replace(RUNNING, number=4, is_cancelling=True)))
    assert buttons(panel, 0) == {"Cancel": True, "Show": True}
    assert buttons(panel, 1) == {"Retry": True, "Show": True}
    assert buttons(panel, 2) == {"Show": True}
    assert buttons(panel, 3) == {"Cancelling…": False, "Show": True}
    assert rows(panel)[3].startswith("@4 demo cancelling")


def test_a_click_asks_for_the_job_of_its_row(panel, board):
    panel.update(view(RUNNING, FAILED, DONE))
    click(panel, 0, "Cancel")
    click(panel, 1, "Retry")
    click(panel, 2, "Show")
    assert board.asked == [("cancel", 1), ("retry", 2), ("show", 3)]
    assert buttons(panel, 0) == {"Cancelling…": False, "Show": True}


def test_a_double_click_cancels_once(panel, board):
    panel.update(view(RUNNING))
    button = panel._rows[0].buttons[0]
    button.click()
    button.click()
    assert board.asked == [("cancel", 1)]


def test_a_click_that_was_meant_for_another_job_does_nothing(panel, board, clock):
    panel.update(view(*many(PAGE)))
    panel.update(view(*many(PAGE, first=10)))
    click(panel, 0, "Cancel")
    assert board.asked == []
    assert "nothing was done" in words(panel._message.widget)
    clock.now += SETTLE + 0.01
    click(panel, 0, "Cancel")
    assert board.asked == [("cancel", 11)]


def test_a_click_on_cancel_is_never_a_retry(panel, board, clock):
    panel.update(view(RUNNING))
    panel.update(
        view(dataclasses.replace(RUNNING, status=JobStatus.FAILED, can_cancel=False, can_retry=True))
    )
    click(panel, 0, "Retry")
    assert board.asked == []
    clock.now += SETTLE + 0.01
    click(panel, 0, "Retry")
    assert board.asked == [("retry", 1)]


def test_time_that_goes_on_is_one_small_message_however_many_rows_there_are(panel):
    panel.update(view(*many(PAGE)))
    sent = []
    for widget in panel._parts:
        widget.observe(lambda change: sent.append((change["owner"], change["name"])))
    panel.update(view(*many(PAGE)))
    assert sent == []
    panel.update(view(*(dataclasses.replace(line, run=4.0) for line in many(PAGE))))
    assert sent == [(panel._times, "value")]
    assert len(panel._times.value) < 100 * PAGE


def test_jobs_from_earlier_stand_below_a_heading(panel):
    earlier = dataclasses.replace(DONE, is_earlier=True)
    panel.update(view(RUNNING, earlier, dataclasses.replace(earlier, number=2)))
    assert [line[:12] for line in rows(panel)] == [
        "@1 demo runn",
        "from earlier",
        "@3 demo comp",
        "@2 demo comp",
    ]
    marked = [row for row in panel._rows if "nbx-first" in row.root._dom_classes]
    assert marked == [panel._rows[1]]
    panel.update(view(RUNNING, DONE))
    assert [line[:2] for line in rows(panel)] == ["@1", "@3"]
    assert not any("nbx-first" in row.root._dom_classes for row in panel._rows)


def test_there_are_as_many_models_for_ten_thousand_jobs_as_for_ten(board):
    before = set(registry._instances)
    panel = JobsPanel(board)
    panel.update(view(*many(10)))
    few = len(set(registry._instances) - before)
    for first in range(0, 10_000, PAGE):
        panel.update(view(*many(PAGE, first), first=first, total=10_000))
        panel.show_result("a result", [{"text/plain": str(first)}])
    assert len(set(registry._instances) - before) == few < 170
    panel.close()
    assert set(registry._instances) == before


def test_pages_are_turned(panel, board):
    panel.update(view(*many(3)))
    assert panel._pager not in panel.root.children
    panel.update(view(*many(PAGE, 20), first=20, total=50))
    assert panel._pager in panel.root.children
    assert words(panel._place) == "21 to 40 of 50"
    panel._before.click()
    panel._after.click()
    assert board.asked == [("turn", -1), ("turn", 1)]
    panel.update(view(*many(PAGE, 30), first=30, total=50))
    panel._after.click()
    assert board.asked == [("turn", -1), ("turn", 1)]


def test_a_shorter_page_takes_as_much_room(panel):
    panel.update(view(*many(PAGE), total=25))
    height = panel._table.layout.min_height
    panel.update(view(*many(5), first=20, total=25))
    assert len(rows(panel)) == 5
    assert panel._table.layout.min_height == height


def test_a_result_is_shown_below_the_table_and_hidden_again(panel, board):
    panel.update(view(DONE))
    panel.show_result("The result of @3", [{"text/plain": "a"}, {"text/plain": "b"}])
    assert words(panel._title) == "The result of @3"
    assert [output["data"]["text/plain"] for output in panel._output.outputs] == ["a", "b"]
    assert panel.root.children[-1] is panel._output
    panel.update(view(DONE, RUNNING))
    assert panel.root.children[-1] is panel._output
    panel._hide.click()
    assert board.asked == [("hide",)]
    panel.hide_result()
    assert panel._output not in panel.root.children


def test_the_row_whose_result_is_shown_is_marked(panel):
    panel.update(view(DONE))
    panel.update(view(dataclasses.replace(DONE, is_shown=True)))
    assert "nbx-shown" in panel._rows[0].root._dom_classes
    assert all("nbx-row nbx-shown" in widget.value for widget in texts(panel))
    panel.update(view(DONE))
    assert "nbx-shown" not in panel._rows[0].root._dom_classes


def test_cancel_all_asks_first(panel, board):
    panel.update(view(RUNNING, active=1))
    first, really = panel._question.widgets
    first.click()
    panel.ask("Really cancel 1 job?")
    panel.update(view(RUNNING, active=1))
    assert first.description == "Keep"
    really.click()
    assert board.asked == [("ask_cancel_all",), ("cancel_all",)]
    panel.rest()
    assert first.description == "Cancel all of mine…"


def test_text_from_elsewhere_is_escaped(panel):
    bad = "<img src=x onerror=alert(1)>\"'"
    panel.update(view(JobLine(1, bad, JobStatus(bad), bad), summary=bad))
    panel.show_result(bad, ())
    panel.say(bad)
    shown = (panel._head, *texts(panel), panel._title, panel._message.widget)
    assert not any("<img" in widget.value for widget in shown)


@pytest.mark.parametrize("status", [*JobStatus, JobStatus("SOMETHING_NEW")])
def test_every_status_is_told_in_words(panel, status):
    panel.update(view(JobLine(1, "demo", status)))
    assert len(rows(panel)[0].split()) >= 3


@pytest.mark.parametrize(("heard", "warns"), [(False, True), (True, False), (None, False)])
def test_the_tooltips_say_where_a_click_cannot_be_heard(board, heard, warns):
    panel = JobsPanel(board, clicks_heard_while_busy=heard)
    assert ("another cell is busy" in panel._question.widgets[0].tooltip) is warns
    panel.close()


def test_every_button_can_be_let_through(panel):
    panel.update(view(*many(PAGE), total=99))
    panel.show_result("x", ())
    heard = set(panel.buttons)

    def all_buttons(widget):
        for child in getattr(widget, "children", ()):
            yield from all_buttons(child)
        if type(widget).__name__ == "Button":
            yield widget

    assert set(all_buttons(panel.root)) <= heard
    assert panel.root in heard


def test_at_the_end_only_what_is_static_is_left(board):
    before = set(registry._instances)
    panel = JobsPanel(board)
    panel.update(view(*many(PAGE), total=50))
    panel.finish({"text/html": "<b>the end</b>"})
    assert panel._head.value == "<b>the end</b>"
    assert len(set(registry._instances) - before) <= 8
    panel.update(view(DONE))
    panel.show_result("late", ())
    panel.hide_result()
    panel.say("late")
    panel.ask("late?")
    panel.rest()
    assert panel._head.value == "<b>the end</b>"
    panel.close()
    panel.close()
    assert set(registry._instances) == before
