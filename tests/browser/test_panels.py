"""The health and the jobs panel as people see and click them."""

from __future__ import annotations

import re

import pytest

from browser.jobs import Jobs

FAILING = "def boom(job):\n    raise ValueError('no such luck')\n%endpoint serve boom --handler boom"
SUBMIT = (
    "import notebook_ext\nheld = notebook_ext.connect('held')\n"
    "for at in range({count}): held.submit({{'prompt': f'job number {{at}}'}})"
)


@pytest.fixture(params=["lab", "notebook7"])
def anywhere(request):
    """JupyterLab and Notebook 7."""
    return request.getfixturevalue(request.param)


def button(lab, cell, label):
    return lab.output(cell).locator("button:visible", has_text=label).first


def assert_no_errors(lab):
    """Notebook 7 asks for fonts that its own server does not hand out; nothing else may be wrong."""
    assert [error for error in lab.errors if "403 (Forbidden)" not in error] == []


def widget_models(lab, cell):
    lab.run(cell)
    return int(re.findall(r"models (\d+)", lab.text(cell))[-1])


MODELS = "import gc, ipywidgets\nprint('models', len(ipywidgets.widgets.widget._instances))"


def test_health_is_watched_purged_and_saved(anywhere, tmp_path):
    lab = anywhere
    jobs = Jobs(lab, tmp_path, SUBMIT.format(count=7), "%endpoint health held --watch --every 1s", MODELS)
    lab.run(1)
    lab.run(2)
    lab.wait("() => /in queue\\s+3\\s/.test(lab.text(2))")
    assert "live" in lab.text(2)
    assert jobs.count(2, ".nbx-tile svg") == 11
    for theme in ("dark", "light"):
        if lab.app == "lab":
            lab.set_theme(theme)
            lab.screenshot(f"panel-health-{theme}", cell=2)
    button(lab, 2, "Purge queue").click()
    lab.wait_text(2, "Really remove 3 (3 yours)?")
    button(lab, 2, "Keep").click()
    lab.wait_text(2, "Purge queue")
    button(lab, 2, "Purge queue").click()
    lab.wait_text(2, "Really remove 3 (3 yours)?")
    button(lab, 2, "Really remove").click()
    lab.wait_text(2, "3 jobs removed from the queue")
    lab.wait("() => /in queue\\s+0\\s/.test(lab.text(2))")
    button(lab, 2, "Stop watching").click()
    lab.wait_text(2, "stopped")
    lab.wait("() => !lab.output(2).querySelector('button, .jupyter-widgets')")
    assert widget_models(lab, 3) == 0
    (output,) = lab.save()["cells"][2]["outputs"]
    assert "widget" not in "".join(output["data"])
    assert_no_errors(lab)
    lab.open_as_reader()
    lab.wait_text(2, "in queue")
    assert re.search(r"in queue\s+0\s+█[▁-█]*▁\s+0 to 3", lab.text(2))


def test_a_row_is_cancelled_shown_and_retried(anywhere, tmp_path):
    lab = anywhere
    jobs = Jobs(
        lab,
        tmp_path,
        FAILING,
        SUBMIT.format(count=1) + "\nnotebook_ext.connect('boom').submit({})",
        "%endpoint panel jobs",
        MODELS,
    )
    lab.run(1)
    lab.run(2)
    lab.run(3)
    lab.wait("() => /@1\\s+held\\s+running\\s+job number 0/.test(lab.text(3))")
    lab.wait("() => /@2\\s+boom\\s+failed/.test(lab.text(3))")
    button(lab, 3, "Show").click()
    lab.wait_text(3, "The result of @1, so far")
    button(lab, 3, "Retry").click()
    lab.wait_text(3, "@2 is queued again.")
    for theme in ("dark", "light"):
        if lab.app == "lab":
            lab.set_theme(theme)
            lab.screenshot(f"panel-jobs-{theme}", cell=3)
    lab.sleep(0.7)  # a row whose buttons have just changed takes no click
    button(lab, 3, "Cancel").click()
    lab.wait_text(3, "@1 CANCELLED")
    jobs.wait_over()
    lab.wait("() => /@1\\s+held\\s+cancelled/.test(lab.text(3))")
    button(lab, 3, "Hide").click()
    button(lab, 3, "Close").click()
    lab.wait_text(3, "stopped")
    lab.wait("() => !lab.output(3).querySelector('button, .jupyter-widgets')")
    assert widget_models(lab, 4) == 0
    assert_no_errors(lab)


def test_all_of_mine_are_cancelled_after_a_question(lab, tmp_path):
    Jobs(lab, tmp_path, SUBMIT.format(count=6), "%endpoint panel jobs")
    lab.run(1)
    lab.run(2)
    lab.wait_text(2, "running")
    button(lab, 2, "Cancel all of mine").click()
    lab.wait_text(2, "Really cancel 6 jobs?")
    button(lab, 2, "Really cancel").click()
    lab.wait_text(2, "6 jobs ended")
    lab.wait_text(2, "6 cancelled")


def test_a_click_is_heard_while_another_cell_waits_for_its_job(lab, tmp_path):
    jobs = Jobs(
        lab, tmp_path, SUBMIT.format(count=1), "%endpoint panel jobs", "%%endpoint run held -p name=own\nx"
    )
    lab.run(1)
    lab.run(2)
    lab.start(3)
    lab.wait("() => /@2\\s+held\\s+running/.test(lab.text(2))")
    lab.sleep(0.7)
    lab.output(2).locator('button[title="Cancel @1"]').click()
    lab.wait_text(2, "@1 CANCELLED")
    assert jobs.prompt(3) == "[*]:"
    jobs.let_go("own")
    lab.wait_idle()


IDLE = (
    "import gc\nfrom notebook_ext.watching import HealthFeed\n"
    "print('idle', all(feed.is_idle for feed in gc.get_objects() if isinstance(feed, HealthFeed)))"
)


@pytest.mark.parametrize("gone", ["cleared", "run again", "unloaded"])
def test_nothing_is_asked_when_the_panel_is_gone(lab, tmp_path, gone):
    Jobs(
        lab, tmp_path, "%endpoint health held --watch --every 1s --forever", IDLE, "%unload_ext notebook_ext"
    )
    lab.run(1)
    lab.wait_text(1, "live")
    lab.run(2)
    lab.wait_text(2, "idle False")
    if gone == "cleared":
        lab.evaluate("() => { lab.panel().content.deselectAll(); lab.panel().content.activeCellIndex = 1 }")
        lab.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-cell-output')")
        lab.wait("() => lab.text(1) === ''")
    elif gone == "run again":
        lab.evaluate("() => lab.cells()[1].model.sharedModel.setSource('1')")
        lab.run(1)
    else:
        lab.run(3)
        lab.wait_text(1, "closed")
    lab.run(2)
    lab.wait_text(2, "idle True")


def test_a_panel_goes_on_in_a_page_that_is_loaded_again(lab, tmp_path):
    Jobs(
        lab,
        tmp_path,
        "%endpoint health held --watch --every 1s",
        "%endpoint panel jobs",
        SUBMIT.format(count=1),
    )
    lab.run(1)
    lab.run(2)
    lab.wait_text(1, "live")
    lab.save()
    lab.reload()
    lab.run(3)
    lab.wait_text(2, "job number 0")
    lab.wait("() => /in progress\\s+1\\s/.test(lab.text(1))")
    button(lab, 1, "Stop watching").click()
    lab.wait_text(1, "stopped")
    assert lab.output(1).locator("button:visible").count() == 0


def test_a_panel_whose_kernel_has_gone_has_no_button_that_looks_alive(lab, tmp_path):
    Jobs(lab, tmp_path, "%endpoint health held --watch", "%endpoint panel jobs", SUBMIT.format(count=1))
    lab.run(1)
    lab.run(2)
    lab.run(3)
    lab.wait_text(2, "job number 0")
    lab.wait_text(1, "in queue")
    lab.restart()
    for cell in (1, 2):
        lab.wait("i => !lab.output(i).querySelector('button:not([style*=none])')?.checkVisibility()", cell)
    assert "job number 0" in lab.text(2)
    assert "live" not in lab.text(1)
