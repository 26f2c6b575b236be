"""The same on other kernels in JupyterLab, and in Notebook 7: what must work everywhere."""

from __future__ import annotations

import importlib.metadata

import pytest

from browser.environments import NEWEST, VERSIONS
from browser.jobs import Jobs

NOTEBOOK = "notebook 7"
OTHERS = [version for version in VERSIONS if version not in {NEWEST, importlib.metadata.version("ipykernel")}]
HELD = "%%endpoint run held\nHello with $x^2$."


@pytest.fixture(scope="module", params=[*OTHERS, NOTEBOOK])
def there(request):
    if request.param == NOTEBOOK:
        return request.getfixturevalue("notebook7")
    return request.getfixturevalue("lab_on")(request.param)


@pytest.fixture
def jobs(there, tmp_path):
    return Jobs(there, tmp_path, HELD, "%endpoint run held --bg -- In its own cell.", "print('goes on')")


def ended(jobs: Jobs, cell: int, status: str) -> None:
    jobs.lab.wait_text(cell, f"· {status} ·")
    jobs.lab.wait_idle()
    assert jobs.count(cell, ".jupyter-widgets") == 0


def test_it_loads_and_serves(there, jobs):
    there.run(3)
    assert there.text(3) == "goes on"
    assert "held is served at http://127.0.0.1:" in there.text(0)


def test_the_first_text_is_seen_while_the_rest_is_held(there, jobs):
    there.start(1)
    there.wait_text(1, "Hello with")
    there.wait("i => lab.output(i).querySelector('mjx-container')", 1)
    assert jobs.prompt(1) == "[*]:"
    assert not jobs.is_over()
    jobs.let_go()
    there.wait_text(1, "The end.")
    ended(jobs, 1, "COMPLETED")


def test_cancel_is_heard_by_the_cell_that_waits(there, jobs):
    there.start(1)
    there.wait_text(1, "Hello with")
    there.click(1, "Cancel")
    jobs.wait_over()
    ended(jobs, 1, "CANCELLED")


def test_the_stop_button_stops_the_remote_job(there, jobs):
    there.start(1)
    there.wait_text(1, "Hello with")
    there.interrupt()
    jobs.wait_over()
    there.wait_text(1, "KeyboardInterrupt: @1 CANCELLED")
    ended(jobs, 1, "CANCELLED")
    there.run(3)
    assert there.text(3) == "goes on"


def test_a_background_job_draws_in_its_own_cell(there, jobs):
    there.run(2)
    there.run(3)
    there.wait_text(2, "In its own cell.")
    jobs.let_go()
    there.wait_text(2, "The end.")
    ended(jobs, 2, "COMPLETED")
    assert there.text(3) == "goes on"


def test_what_is_saved_is_static(there, jobs):
    jobs.let_go()
    there.run(1)
    ended(jobs, 1, "COMPLETED")
    outputs = there.save()["cells"][1]["outputs"]
    assert [sorted(output["data"]) for output in outputs] == [
        ["text/markdown", "text/plain"],
        ["text/html", "text/plain"],
    ]
    assert "".join(outputs[0]["data"]["text/plain"]) == "Hello with $x^2$.\n\nThe end."
