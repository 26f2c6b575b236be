"""The harness itself, on notebooks that know nothing of this project."""

from __future__ import annotations

import pytest
from PIL import Image

from browser.environments import NEWEST, VERSIONS
from browser.lab import notebook

BUTTON = """
import ipywidgets
button = ipywidgets.Button(description="Press")
told = ipywidgets.Label("quiet")
button.on_click(lambda _: setattr(told, "value", "heard"))
ipywidgets.HBox([button, told])
"""
COUNT = """
import time
for i in range(300):
    print(i, flush=True)
    time.sleep(0.1)
"""


def test_a_cell_runs_and_its_text_is_seen_and_saved(lab):
    lab.open(notebook("print('six times seven: 日本語 🙂', 6 * 7)", "#md Words", "1 / 0"))
    lab.watch_traffic()
    lab.run_all()
    lab.wait_text(0, "six times seven: 日本語 🙂 42")
    lab.wait_text(2, "ZeroDivisionError")
    saved = lab.save()["cells"]
    assert saved[0]["outputs"][0]["text"] == ["six times seven: 日本語 🙂 42\n"]
    assert saved[2]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert lab.traffic.counts["stream"] >= 1  # a busy machine prints a line in pieces
    assert lab.errors == []


@pytest.mark.parametrize("trusted", [False, True])
def test_a_reader_without_a_kernel_sees_what_was_saved(lab, trusted):
    page = "<i id='seen' onclick='0'>still here</i>"
    lab.open(notebook(f"from IPython.display import HTML; display(HTML({page!r}))"))
    lab.run(0)
    lab.save()
    lab.open_as_reader(trusted=trusted)
    lab.wait_text(0, "still here")
    assert ("onclick" in lab.html(0)) == trusted
    assert lab.evaluate("() => lab.kernel() ?? null") is None


def test_a_click_on_a_widget_reaches_an_idle_kernel(lab):
    lab.open(notebook(BUTTON))
    lab.run(0)
    lab.wait_text(0, "quiet")
    lab.click(0, "Press")
    lab.wait_text(0, "heard")


def test_the_stop_button_interrupts_and_the_kernel_goes_on(lab):
    lab.open(notebook(COUNT, "print('after')"))
    lab.watch(0)
    lab.start(0)
    lab.wait_text(0, "3")
    lab.interrupt()
    lab.wait_text(0, "KeyboardInterrupt")
    assert len(lab.watched(0)) > 3
    lab.run(1)
    lab.wait_text(1, "after")


def test_a_restart_forgets_and_a_reload_does_not(lab):
    lab.open(notebook("x = 1", "print('x' in globals())"), environ={"GREETING": "hello"})
    lab.run(0)
    lab.save()
    lab.reload()
    lab.run(1)
    lab.wait_text(1, "True")
    lab.restart()
    lab.run(1)
    lab.wait_text(1, "False")


def test_the_environment_of_the_kernel_can_be_given(lab):
    lab.open(notebook("import os; print(os.environ['GREETING'])"), environ={"GREETING": "hello"})
    lab.run(0)
    lab.wait_text(0, "hello")


def test_a_page_that_is_held_up_is_noticed(lab):
    hold = "const end = performance.now() + 300; while (performance.now() < end) {}"
    lab.open(notebook(f"from IPython.display import Javascript; Javascript({hold!r})"))
    lab.watch_long_tasks()
    lab.run(0)
    lab.wait("() => lab.longTasks.length > 0")
    assert max(lab.long_tasks()) > 0.25


def test_pictures_are_taken_in_both_themes(lab):
    lab.open(notebook("print('light and dark')"))
    lab.run(0)
    corners = []
    for theme in ("dark", "light"):
        lab.set_theme(theme)
        with Image.open(lab.screenshot(f"harness-{theme}", cell=0)) as picture:
            corners.append(sum(picture.convert("RGB").getpixel((1, 1))))
    assert corners[0] < 200 < 600 < corners[1]


def test_notebook_7_runs_a_cell_too(notebook7):
    notebook7.open(notebook("print('seven')"))
    notebook7.run(0)
    notebook7.wait_text(0, "seven")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_kernel_is_the_version_that_it_is_named_after(lab_on, version):
    lab = lab_on(version)
    lab.open(notebook("import ipykernel, notebook_ext; print('version', ipykernel.__version__)"))
    lab.run(0)
    lab.wait_text(0, "version" if version == NEWEST else f"version {version}")
