"""The prompt panel as people use it: typed, run, cancelled, flipped through, copied, reloaded, and read later."""

from __future__ import annotations

import pytest

from browser.environments import VERSIONS
from browser.jobs import Jobs

BUSY = "import time\nwhile not (GATE / 'enough').exists():\n    time.sleep(0.05)\nprint('no longer busy')"


@pytest.fixture(params=["lab", "notebook7"])
def page(request):
    """JupyterLab, and Notebook 7."""
    return request.getfixturevalue(request.param)


def opened(page, gate, *cells: str, panel: str = "%endpoint panel prompt held") -> Jobs:
    """A notebook with the panel in cell 1."""
    jobs = Jobs(page, gate, panel, *cells)
    page.run(1)
    page.output(1).get_by_label("Prompt").wait_for(state="visible")
    return jobs


def ask(page, prompt: str, **settings: str) -> None:
    for label, value in settings.items():
        page.output(1).get_by_label(label).fill(value)
    page.output(1).get_by_label("Prompt").fill(prompt)
    page.click(1, "Run")


def test_each_button_does_what_it_says(page, tmp_path):
    jobs = opened(page, tmp_path, "audience = 'children'", "%endpoint code @1 --cell")
    page.run(2)
    ask(page, "Hello **{{ audience }}**.")
    page.wait_text(1, "Hello children.")
    assert page.output(1).locator(".jp-RenderedMarkdown strong").inner_text() == "children"
    assert "The end." not in page.text(1)
    jobs.let_go()
    page.wait_text(1, "The end.")
    page.wait_text(1, "completed")

    (tmp_path / "go").unlink()
    ask(page, "Never to end.")
    page.wait_text(1, "Never to end.")
    page.click(1, "Cancel")
    page.wait_text(1, "cancelled")
    assert jobs.is_over()
    page.wait_text(1, "run 2 of 2")

    page.click(1, "Older")
    page.wait_text(1, "Hello children.")
    assert page.output(1).get_by_label("Prompt").input_value() == "Hello **{{ audience }}**."
    page.click(1, "Newer")
    page.wait_text(1, "Never to end.")
    page.click(1, "Older")
    page.click(1, "Show cell")
    page.wait_text(1, "%%endpoint run held\nHello **{{ audience }}**.")
    page.wait_text(1, "%endpoint code @1 --cell")
    page.run(3)
    page.wait("() => lab.cells().length === 5")
    assert page.evaluate("() => lab.cells()[4].model.sharedModel.source") == (
        "%%endpoint run held\nHello **{{ audience }}**."
    )
    assert not any("Traceback" in error or "widget" in error for error in page.errors)


def test_the_cell_that_is_shown_can_be_selected_with_a_click(lab, tmp_path):
    opened(lab, tmp_path)
    lab.output(1).get_by_label("Prompt").fill("Hi\n<b>there</b>")
    lab.click(1, "Show cell")
    lab.output(1).locator(".nbx-prompt pre").click()
    assert lab.evaluate("() => getSelection().toString()").strip() == "%%endpoint run held\nHi\n<b>there</b>"


def test_cancel_and_what_was_typed_are_heard_while_another_cell_is_busy(lab, tmp_path):
    jobs = opened(lab, tmp_path, BUSY)
    lab.start(2)
    lab.wait("() => lab.kernel().status === 'busy'")
    ask(lab, "Typed while busy.")
    lab.wait_text(1, "Typed while busy.")
    lab.click(1, "Cancel")
    lab.wait_text(1, "cancelled")
    assert jobs.is_over()
    assert jobs.prompt(2) == "[*]:"
    jobs.let_go("enough")
    lab.wait_text(2, "no longer busy")


def test_a_mistake_is_one_calm_line(lab, tmp_path):
    opened(lab, tmp_path)
    ask(lab, "Hi {{ nobody }}")
    lab.wait_text(1, "there is no variable 'nobody'")
    assert lab.output(1).get_by_role("alert").inner_text().startswith("{{ nobody }}")
    assert "Traceback" not in lab.text(1)
    assert lab.output(1).locator("button", has_text="Run").is_enabled()
    assert lab.errors == []


def test_settings_follow_the_endpoint(lab, tmp_path):
    opened(lab, tmp_path, "%endpoint connect llama abc123 --profile vllm", panel="%endpoint panel")
    panel = lab.output(1)
    assert panel.get_by_label("Model").is_visible()
    assert not panel.get_by_label("Further input").is_visible()
    lab.run(2)
    panel.get_by_label("Endpoint").select_option("llama")
    panel.get_by_label("Model").wait_for(state="hidden")
    assert panel.get_by_label("System").is_visible()
    panel.get_by_label("Endpoint").select_option("held")
    panel.get_by_label("Further input").wait_for(state="visible")
    assert not panel.get_by_label("System").is_visible()


def test_nothing_above_the_answer_moves_while_it_streams(lab, tmp_path):
    jobs = opened(lab, tmp_path)
    place = """() => ['textarea', 'button', '.nbx-answer'].map(found => [...lab.output(1).querySelectorAll(found)]
        .map(node => { const box = node.getBoundingClientRect(); return [box.x, box.y, box.width] }))"""
    top = "() => lab.output(1).getBoundingClientRect().y"
    before, at = lab.evaluate(place), lab.evaluate(top)
    ask(lab, "word " * 100, **{"Further input": "size=10\npause=0.01"})
    lab.wait_text(1, "running")
    jobs.let_go()
    for _ in range(10):
        lab.sleep(0.1)
        assert lab.evaluate(top) == at
        assert lab.evaluate(place) == before
    lab.wait_text(1, "completed")
    assert lab.evaluate(place) == before


def test_a_job_goes_on_in_the_panel_after_a_reload_of_the_page(lab, tmp_path):
    jobs = opened(lab, tmp_path)
    ask(lab, "Before the reload.")
    lab.wait_text(1, "Before the reload.")
    lab.save()
    lab.reload()
    lab.wait_text(1, "Before the reload.")
    assert lab.output(1).get_by_label("Prompt").input_value() == "Before the reload."
    jobs.let_go()
    lab.wait_text(1, "The end.")
    lab.wait_text(1, "completed")
    (tmp_path / "go").unlink()
    ask(lab, "After it.")
    lab.wait_text(1, "After it.")
    lab.click(1, "Cancel")
    lab.wait_text(1, "cancelled")


def test_a_reader_without_a_kernel_sees_the_last_run_and_who_has_the_panel_does_not_see_it_twice(
    lab, tmp_path
):
    jobs = opened(lab, tmp_path)
    jobs.let_go()
    ask(lab, "Hello <b>reader</b>.")
    lab.wait_text(1, "completed")
    assert lab.text(1).count("The end.") == 1
    lab.save()
    lab.open_as_reader()
    lab.wait_text(1, "%%endpoint run held\nHello <b>reader</b>.")
    lab.wait_text(1, "The end.")
    lab.wait_text(1, "@1 · held · COMPLETED")
    assert "Loading widget" not in lab.text(1)


def test_a_panel_whose_kernel_has_gone_does_not_look_alive(lab, tmp_path):
    opened(lab, tmp_path)
    lab.restart()
    lab.wait("() => !lab.output(1).querySelector('button')?.checkVisibility()")


def test_the_keyboard_goes_from_the_prompt_to_run_and_cancel(lab, tmp_path):
    opened(lab, tmp_path)
    lab.output(1).get_by_label("Prompt").fill("By keyboard.")
    lab.page.keyboard.press("Tab")
    assert lab.evaluate("() => document.activeElement.innerText.trim()") == "Run"
    lab.page.keyboard.press("Enter")
    lab.wait_text(1, "running")
    lab.page.keyboard.press("Tab")
    assert lab.evaluate("() => document.activeElement.innerText.trim()") == "Cancel"
    lab.page.keyboard.press("Enter")
    lab.wait_text(1, "cancelled")


def test_a_narrow_window_cuts_nothing_off(lab, tmp_path):
    opened(lab, tmp_path, panel="%endpoint panel")
    lab.page.set_viewport_size({"width": 640, "height": 1500})
    try:
        lab.sleep(0.5)
        wide = """() => [...lab.output(1).querySelectorAll('button, textarea, input, select')]
            .filter(node => node.getBoundingClientRect().right > lab.output(1).getBoundingClientRect().right + 1)
            .map(node => node.outerHTML)"""
        assert lab.evaluate(wide) == []
    finally:
        lab.page.set_viewport_size({"width": 1300, "height": 1500})


def test_unloading_leaves_no_models(lab, tmp_path):
    count = "import ipywidgets; print('models', len(ipywidgets.Widget.widgets))"
    jobs = Jobs(lab, tmp_path, "%endpoint panel prompt held", count, "%unload_ext notebook_ext", count, count)
    lab.run(2)
    lab.run(1)
    jobs.let_go()
    for number in range(1, 4):
        ask(lab, f"Run {number}.")
        lab.wait_text(1, f"run {number} of {number}")
    lab.run(1)
    lab.run(5)
    lab.run(3)
    lab.run(4)
    assert lab.text(4) == lab.text(2)
    lab.wait_text(1, "The prompt panel is closed")


@pytest.mark.parametrize("kernel", ["main", VERSIONS[0]])
def test_the_panel_works_while_a_cell_waits_for_its_own_job(lab, lab_on, tmp_path, kernel):
    page = lab if kernel == "main" else lab_on(kernel)
    jobs = opened(page, tmp_path, "%endpoint run held -p name=cell -- The cell waits.")
    page.start(2)
    page.wait_text(2, "The cell waits.")
    ask(page, "Asked meanwhile.")
    page.wait_text(1, "Asked meanwhile.")
    page.click(1, "Cancel")
    page.wait_text(1, "cancelled")
    page.output(1).get_by_label("Endpoint").select_option("demo")  # it is served only now
    ask(page, "Hi", Temperature="0.5")
    page.wait_text(1, "completed")
    assert not jobs.is_over("cell")
    jobs.let_go("cell")
    page.wait_text(2, "@1 · held · COMPLETED")
