"""The prompt panel: what it asks of its desk, what it shows of a run, and that nothing of it is left."""

from __future__ import annotations

import concurrent.futures
import html
import re

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.types import JobStatus
from notebook_ext.widgets import prompt
from notebook_ext.widgets.job import StripView
from notebook_ext.widgets.prompt import PromptPanel, Run, Typed

PAYLOAD = "<img src=x onerror=alert(1)>\"'"


class Desk:
    def __init__(self):
        self.ran, self.cancels = [], 0
        self.known = ["demo", "llama", "worker"]
        self.profiles = {
            "demo": {"system", "temperature", "max_tokens", "stop", "model"},
            "llama": {"system", "temperature", "seed"},
            "worker": {"parameters"},
        }

    def endpoints(self):
        return self.known

    def places(self, endpoint):
        return self.profiles.get(endpoint, set())

    def cell(self, typed):
        return f"%%endpoint run {typed.endpoint} {sorted(typed.options)}\n{typed.prompt}"

    def run(self, typed):
        self.ran.append(typed)

    def cancel(self):
        self.cancels += 1


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def panel(desk):
    panel = PromptPanel(desk, "demo")
    yield panel
    panel.close()


def words(widget) -> str:
    """What a reader sees of an HTML widget."""
    return " ".join(html.unescape(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", widget.value)).split())


def enabled(panel) -> set[str]:
    buttons = (panel._run, panel._cancel, panel._older, panel._newer)
    return {button.description for button in buttons if not button.disabled}


def offered(panel) -> set[str]:
    return {name for name, widget in panel._settings.items() if widget.layout.display != "none"}


def answer(panel) -> list[str]:
    return [output["data"]["text/plain"] for widget in panel.answer.box.children for output in widget.outputs]


def ask(panel, text, **settings):
    panel._prompt.value = text
    for name, value in settings.items():
        panel._settings[name].value = value
    panel._run.click()
    panel.start(len(panel._runs) + 1)


def run(panel, text, said="An answer.", status=JobStatus.COMPLETED, **settings):
    ask(panel, text, **settings)
    panel.answer.show({"text/plain": said})
    end = Run(len(panel._runs) + 1, panel._running, status, "3.0 s run", ({"text/plain": said},))
    panel.finish(end)


def test_a_new_panel_waits_for_a_prompt(panel):
    assert enabled(panel) == {"Run"}
    assert words(panel._where) == "not run yet"
    assert words(panel._state) == words(panel._line) == words(panel._code) == ""


def test_only_settings_that_the_profile_has_a_place_for_are_offered_and_sent(panel, desk):
    assert offered(panel) == {*desk.profiles["demo"], "verbatim"}
    panel._settings["max_tokens"].value = "20"
    panel._settings["temperature"].value = " 0.5 "
    panel._endpoint.value = "llama"
    assert offered(panel) == {"system", "temperature", "seed", "verbatim"}
    ask(panel, "Hi")
    assert desk.ran == [Typed("llama", "Hi", {"temperature": "0.5"})]


def test_what_was_typed_is_asked_as_it_is(panel, desk):
    ask(panel, " Hi \n\n", system="two\nlines", stop="a\n\n b \n", verbatim=True)
    assert desk.ran == [
        Typed("demo", " Hi \n\n", {"system": "two\nlines", "stop": ["a", " b "], "verbatim": True})
    ]


def test_while_it_runs_it_can_be_cancelled_and_nothing_else(panel, desk):
    run(panel, "Before")
    ask(panel, "Hi")
    assert enabled(panel) == {"Cancel"}
    panel._run.click()
    assert len(desk.ran) == 2
    panel.update(StripView(JobStatus.IN_PROGRESS, queue=0.2, run=1.5, rate="41 tok/s"))
    assert words(panel._state) == "@2 demo running"
    assert words(panel._line) == "queue 0.2 s · run 1.5 s · 41 tok/s"
    assert words(panel._where) == "running"


def test_cancel_asks_once_and_shows_what_is_confirmed(panel, desk):
    ask(panel, "Hi")
    panel.update(StripView(JobStatus.IN_PROGRESS))
    panel._cancel.click()
    panel._cancel.click()
    assert desk.cancels == 1
    assert (panel._cancel.description, enabled(panel)) == ("Cancelling…", set())
    assert words(panel._state) == "@1 demo cancelling"
    panel.update(StripView(JobStatus.IN_PROGRESS, run=2.0))
    assert words(panel._state) == "@1 demo cancelling"
    panel.finish(Run(1, panel._running, JobStatus.CANCELLED, "2.0 s run"))
    assert words(panel._state) == "@1 demo cancelled"
    assert (panel._cancel.description, enabled(panel)) == ("Cancel", {"Run"})


def test_a_cancel_that_was_not_confirmed_can_be_tried_again(panel, desk):
    ask(panel, "Hi")
    panel._cancel.click()
    panel.cannot_cancel("@1 could not be confirmed as stopped")
    assert words(panel._line) == "@1 could not be confirmed as stopped"
    assert 'role="alert"' in panel._line.value
    panel._cancel.click()
    assert desk.cancels == 2


def test_what_could_not_be_submitted_is_said_in_one_line_and_stays_typed(panel):
    run(panel, "First")
    panel._prompt.value = "Hi {{ x }}"
    panel._run.click()
    panel.refuse("there is no variable 'x'")
    assert words(panel._line) == "there is no variable 'x'"
    assert (panel._prompt.value, words(panel._where), answer(panel)) == ("Hi {{ x }}", "not run yet", [])
    assert enabled(panel) == {"Run", "Older"}
    panel._older.click()
    assert (panel._prompt.value, answer(panel)) == ("First", ["An answer."])
    panel._newer.click()
    assert (panel._prompt.value, answer(panel)) == ("Hi {{ x }}", [])


def test_the_runs_can_be_flipped_through_with_their_settings(panel):
    run(panel, "One", "First.", temperature="0.1")
    panel._endpoint.value = "llama"
    run(panel, "Two", "Second.", JobStatus.FAILED, temperature="0.9", seed="7")
    assert words(panel._where) == "run 2 of 2"
    assert enabled(panel) == {"Run", "Older"}
    panel._older.click()
    assert (panel._prompt.value, panel._endpoint.value) == ("One", "demo")
    assert (panel._settings["temperature"].value, panel._settings["seed"].value) == ("0.1", "")
    assert (answer(panel), words(panel._state)) == (["First."], "@1 demo completed")
    assert enabled(panel) == {"Run", "Newer"}
    panel._newer.click()
    assert (panel._prompt.value, panel._settings["seed"].value) == ("Two", "7")
    assert (answer(panel), words(panel._state), words(panel._line)) == (
        ["Second."],
        "@2 llama failed",
        "3.0 s run",
    )


def test_what_was_typed_and_not_run_comes_back_after_the_last_run(panel):
    run(panel, "One")
    run(panel, "Two")
    panel._prompt.value = "A draft"
    panel._older.click()
    assert panel._prompt.value == "One"
    panel._newer.click()
    panel._newer.click()
    assert (panel._prompt.value, words(panel._where)) == ("A draft", "not run yet")
    assert enabled(panel) == {"Run", "Older"}


def test_only_the_last_runs_are_kept(panel):
    for number in range(prompt.MOST_RUNS + 5):
        run(panel, f"Prompt {number}")
    assert words(panel._where) == f"run {prompt.MOST_RUNS} of {prompt.MOST_RUNS}"
    for _ in range(prompt.MOST_RUNS):
        panel._older.click()
    assert panel._prompt.value == "Prompt 5"


def test_the_cell_is_that_of_the_fields_and_says_how_to_insert_it(panel):
    panel._code_shown.value = True
    assert words(panel._code) == "%%endpoint run demo [] A click selects it all."
    panel._prompt.value = "Hi"
    panel._settings["temperature"].value = "1"
    assert words(panel._code).startswith("%%endpoint run demo ['temperature'] Hi")
    assert "--cell" not in panel._code.value
    run(panel, "Hi")
    assert words(panel._code).endswith("%endpoint code @1 --cell inserts it below a cell.")
    panel._prompt.value = "Another"
    assert "--cell" not in panel._code.value
    panel._code_shown.value = False
    assert panel._code.value == ""


def test_an_endpoint_that_is_new_is_offered_and_one_that_is_gone_is_not(panel, desk):
    desk.known = ["demo", "new"]
    panel.refresh()
    assert panel._endpoint.options == ("demo", "new")
    assert panel._endpoint.value == "demo"
    desk.known = ["new"]
    panel.refresh()
    assert panel._endpoint.value == "new"


def test_a_run_of_an_endpoint_that_is_gone_can_still_be_seen(panel, desk):
    panel._endpoint.value = "llama"
    run(panel, "One")
    panel._endpoint.value = "demo"
    run(panel, "Two")
    desk.known = ["demo"]
    panel._older.click()
    assert (panel._endpoint.value, panel._prompt.value) == ("llama", "One")


def test_text_from_elsewhere_is_escaped(desk):
    desk.known = [PAYLOAD]
    panel = PromptPanel(desk, PAYLOAD)
    panel._code_shown.value = True
    ask(panel, PAYLOAD)
    panel.update(StripView(JobStatus(PAYLOAD), rate=PAYLOAD, reason=PAYLOAD))
    shown = [panel._state.value, panel._line.value, panel._code.value]
    panel.finish(Run(1, panel._running, JobStatus(PAYLOAD), PAYLOAD))
    shown += [panel._state.value, panel._line.value]
    panel.refuse(PAYLOAD)
    shown.append(panel._line.value)
    assert all("&lt;img" in value and "<img" not in value for value in shown)
    panel.close()


def test_every_field_has_a_label_and_every_button_a_name(panel):
    assert all(field.description for field in panel._fields)
    assert all(
        button.description and button.tooltip
        for button in panel.buttons
        if hasattr(button, "tooltip") and hasattr(button, "icon")
    )


def test_the_keyboard_goes_from_the_prompt_to_run_and_cancel(panel):
    def leaves(widget):
        children = getattr(widget, "children", None)
        return [widget] if children is None else [leaf for child in children for leaf in leaves(child)]

    order = [getattr(leaf, "description", "") for leaf in leaves(panel.root)]
    order = [label for label in order if label]
    assert order[0] == "Endpoint"
    assert order[order.index("Prompt") :] == ["Prompt", "Run", "Cancel", "Older", "Newer", "Show cell"]


def test_fields_are_heard_while_a_cell_runs_as_buttons_are(panel):
    assert {panel._prompt, panel._endpoint, *panel._settings.values(), panel._run, panel._cancel} <= set(
        panel.buttons
    )


@pytest.mark.parametrize(("heard", "warns"), [(False, True), (True, False), (None, False)])
def test_the_tooltip_says_where_a_click_cannot_be_heard(desk, heard, warns):
    panel = PromptPanel(desk, "demo", clicks_heard_while_busy=heard)
    assert ("another cell is busy" in panel._cancel.tooltip) is warns
    panel.close()


def test_runs_leave_no_models_behind_and_closing_removes_all(desk):
    before = set(registry._instances)
    panel = PromptPanel(desk, "demo")
    run(panel, "One")
    made = len(registry._instances)
    for number in range(30):
        run(panel, f"Prompt {number}")
        panel._older.click()
    assert len(registry._instances) == made
    panel.close()
    panel.close()
    assert set(registry._instances) == before


def test_nothing_is_shown_after_closing(panel):
    ask(panel, "Hi")
    panel.close()
    before = set(registry._instances)
    panel.update(StripView(JobStatus.IN_PROGRESS))
    panel.answer.show({"text/plain": "late"})
    panel.finish(Run(1, Typed("demo", "Hi"), JobStatus.COMPLETED, ""))
    panel.refuse("late")
    panel.cannot_cancel("late")
    panel.refresh()
    assert set(registry._instances) == before


def test_it_can_be_updated_and_closed_off_the_main_thread(panel):
    ask(panel, "Hi")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(panel.update, StripView(JobStatus.IN_PROGRESS)).result()
        assert words(panel._state) == "@1 demo running"
        pool.submit(panel.finish, Run(1, panel._running, JobStatus.COMPLETED, "")).result()
        pool.submit(panel.close).result()


def test_the_bundle_has_words_for_those_who_see_no_widgets(panel):
    bundle = panel._repr_mimebundle_()
    assert "%endpoint panel prompt" in bundle["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.root.model_id
