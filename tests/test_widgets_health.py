"""The health panel: what it shows of a moment, what a click asks, and that nothing of it is left."""

from __future__ import annotations

import concurrent.futures
import re

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.types import Counts, Health
from notebook_ext.widgets import panel as panels
from notebook_ext.widgets.health import SLOTS, HealthPanel, HealthView

HEALTH = Health(jobs=Counts(completed=3, in_queue=12, odd_one=1), workers=Counts(idle=0, throttled=2))
SERIES = {("jobs", "in_queue"): [0, 5, 12]}


class Watch:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask_purge(self) -> None:
        self.asked.append("ask_purge")

    def purge(self) -> None:
        self.asked.append("purge")

    def stop(self) -> None:
        self.asked.append("stop")


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def panel(watch):
    panel = HealthPanel("demo", watch)
    yield panel
    panel.close()


def words(widget) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", widget.value).split())


def markup(panel) -> str:
    """All that is shown of the counters."""

    def shown(widget) -> str:
        return "".join([getattr(widget, "value", ""), *map(shown, getattr(widget, "children", ()))])

    return shown(panel._tiles.root)


def tiles(panel) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup(panel)).split())


def button(panel, label):
    return next(widget for widget in panel.buttons if getattr(widget, "description", "").startswith(label))


def is_there(widget) -> bool:
    return widget.layout.display != "none"


def test_before_the_first_answer_it_says_that_it_asks(panel):
    assert words(panel._head) == "demo … · asking…"
    assert tiles(panel) == ""


def test_every_counter_is_shown_also_one_that_nobody_knows(panel):
    panel.update(HealthView(HEALTH, SERIES, note="12:00:00 · every 5 s"))
    assert words(panel._head) == "demo live · 12:00:00 · every 5 s"
    assert tiles(panel) == "jobs in queue 12 completed 3 odd one 1 workers idle 0 throttled 2"
    assert markup(panel).count("<svg") == 5
    assert 'title="in queue: 0 to 12 while watched"' in markup(panel)
    assert 'class="nbx-warn"><svg' in markup(panel)


def test_counters_that_are_old_are_marked_and_stay(panel):
    panel.update(HealthView(HEALTH, SERIES, stale="last answer at 12:00:00: it cannot be reached"))
    assert words(panel._head) == "demo stale · last answer at 12:00:00: it cannot be reached"
    assert "in queue 12" in tiles(panel)
    panel.update(HealthView(HEALTH, SERIES, note="back"))
    assert words(panel._head) == "demo live · back"


def test_it_says_why_jobs_wait(panel):
    panel.update(HealthView(HEALTH, SERIES, reason="12 in the queue: hosts are full"))
    assert tiles(panel).endswith("12 in the queue: hosts are full")


def test_groups_that_are_not_told_are_said_to_be(panel):
    panel.update(HealthView(Health()))
    assert tiles(panel) == "jobs · not told workers · not told"


def test_what_has_not_changed_is_not_sent_again(panel):
    view = HealthView(HEALTH, SERIES, note="x")
    panel.update(view)
    sent = []
    for widget in (panel._head, *panel._tiles.widgets):
        widget.observe(lambda change: sent.append(change["owner"]))
    panel.update(view)
    assert sent == []
    panel.update(HealthView(HEALTH, {**SERIES, ("jobs", "completed"): [1, 2, 3]}, note="x"))
    assert [words(widget) for widget in sent] == ["completed 3"]


def test_counters_without_end_take_no_more_widgets(panel):
    before = set(registry._instances)
    names = [f"counter{at}" for at in range(3 * SLOTS)]
    panel.update(HealthView(Health(jobs=Counts(dict.fromkeys(names, 1)))))
    assert set(registry._instances) == before
    assert all(name in tiles(panel) for name in names)
    panel.update(HealthView(HEALTH))
    assert tiles(panel) == "jobs in queue 12 completed 3 odd one 1 workers idle 0 throttled 2"


def test_text_from_elsewhere_is_escaped(watch):
    bad = "<img src=x onerror=alert(1)>\"'"
    panel = HealthPanel(bad, watch)
    health = Health(jobs=Counts({bad: 1}))
    panel.update(HealthView(health, {("jobs", bad): [1]}, reason=bad, note=bad))
    panel.say(bad)
    assert "<img" not in panel._head.value + markup(panel) + panel._message.widget.value
    panel.update(HealthView(health, stale=bad))
    assert "<img" not in panel._head.value
    panel.close()


def test_purge_asks_first_and_acts_on_the_second_click(panel, watch):
    purge, really = button(panel, "Purge queue"), panel._question._really
    assert not is_there(really)
    purge.click()
    assert watch.asked == ["ask_purge"]
    assert purge.disabled
    panel.ask("Really remove 12 (3 yours)?")
    assert (really.description, is_there(really)) == ("Really remove 12 (3 yours)?", True)
    assert (purge.description, purge.disabled) == ("Keep", False)
    really.click()
    really.click()
    assert watch.asked == ["ask_purge", "purge"]
    assert not is_there(really)
    assert purge.disabled
    panel.rest()
    assert (purge.description, purge.disabled) == ("Purge queue…", False)


def test_the_question_can_be_answered_by_no(panel, watch):
    purge = button(panel, "Purge queue")
    purge.click()
    panel.ask("Really remove 1 (0 yours)?")
    assert panel.is_asking
    purge.click()
    assert watch.asked == ["ask_purge"]
    assert not panel.is_asking
    assert (purge.description, purge.disabled) == ("Purge queue…", False)


def test_a_double_click_on_purge_removes_nothing(panel, watch):
    purge = button(panel, "Purge queue")
    purge.click()
    purge.click()
    assert watch.asked == ["ask_purge"]


def test_the_question_can_change_its_numbers_while_it_stands(panel):
    button(panel, "Purge queue").click()
    panel.ask("Really remove 12 (3 yours)?")
    panel.ask("Really remove 11 (3 yours)?")
    assert panel._question._really.description == "Really remove 11 (3 yours)?"
    assert button(panel, "Keep").disabled is False


def test_stop_asks_to_stop(panel, watch):
    button(panel, "Stop watching").click()
    assert watch.asked == ["stop"]


def test_a_message_says_what_came_of_a_click(panel):
    panel.say("12 jobs removed")
    assert words(panel._message.widget) == "12 jobs removed"
    assert 'role="status"' in panel._message.widget.value
    panel.say("it cannot be reached", is_bad=True)
    assert "nbx-bad" in panel._message.widget.value


@pytest.mark.parametrize(("heard", "warns"), [(False, True), (True, False), (None, False)])
def test_the_tooltips_say_where_a_click_cannot_be_heard(watch, heard, warns):
    panel = HealthPanel("demo", watch, clicks_heard_while_busy=heard)
    for label in ("Purge queue", "Stop watching"):
        assert ("another cell is busy" in button(panel, label).tooltip) is warns
    panel.close()


def test_pages_that_show_it_are_counted(panel):
    seen = []
    panels.count_views(panel.root, seen.append)
    for views in (1, 2, 1, 0):
        panel.root.set_state({"_view_count": views})
    assert seen == [1, 2, 1, 0]


def test_at_the_end_only_what_is_static_is_left(watch):
    before = set(registry._instances)
    panel = HealthPanel("demo", watch)
    panel.finish({"text/html": "<b>the end</b>"})
    assert panel._head.value == "<b>the end</b>"
    assert not any(type(child).__name__ == "Button" for child in panel.root.children)
    left = len(set(registry._instances) - before)
    assert left <= 8
    panel.update(HealthView(HEALTH))
    panel.say("too late")
    panel.ask("too late?")
    panel.rest()
    assert panel._head.value == "<b>the end</b>"
    panel.close()
    panel.close()
    assert set(registry._instances) == before


def test_closing_removes_every_model(watch):
    before = set(registry._instances)
    panel = HealthPanel("demo", watch)
    panel.update(HealthView(HEALTH, SERIES))
    panel.ask("?")
    panel.close()
    panel.close()
    assert set(registry._instances) == before


def test_the_bundle_has_words_for_those_who_see_no_widgets(panel):
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == "demo: its counters, while they are watched"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.root.model_id


def test_it_can_be_updated_and_closed_off_the_main_thread(panel):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(panel.update, HealthView(HEALTH)).result()
        assert "in queue 12" in tiles(panel)
        pool.submit(panel.close).result()
