"""What people see in JupyterLab: a cell that streams, and every way in which it ends."""

from __future__ import annotations

import json
import re
import time
from itertools import accumulate

import pytest

from browser.jobs import Jobs, served_apart
from browser.proxy import counting_proxy

RICH = """# Waiting

A queue with $\\rho < 1$ is stable, and

$$L = \\frac{\\rho}{1 - \\rho}$$

is its mean length.

- first in
- first out

| rate | length |
|---|---|
| 0.5 | 1 |

```python
if served < waiting:
    wait()
```
"""
RENDERED = {
    "h1": "Waiting",
    "mjx-container": "",
    "li": "first in",
    "td": "0.5",
    "pre code": "if served < waiting:",
}
COUNT_WIDGETS = "from ipywidgets.widgets import widget; print('models', len(widget._instances))"
CLOCK = "while True:\n    time.sleep({pause})\n    if (GATE / 'enough').exists(): break\nprint('the clock stopped')"


def assert_rendered(jobs: Jobs, cell: int) -> None:
    for selector, text in RENDERED.items():
        seen = jobs.lab.output(cell).locator(f".jp-RenderedMarkdown {selector}").first
        seen.wait_for(state="visible", timeout=10_000)
        assert text in seen.inner_text()


def footer(lab, cell, status, timeout=30):
    """Wait for the static line that sums a job up, and for its live line to be gone."""
    lab.wait(
        "([i, status]) => lab.text(i).includes(`· ${status} ·`) && !lab.output(i).querySelector('.nbx-strip')",
        [cell, status],
        timeout=timeout,
    )


# -------------------------------------------------------------------------------- text arrives


def test_the_first_text_is_seen_while_the_handler_holds_the_rest(lab, tmp_path):
    jobs = Jobs(lab, tmp_path, "%%endpoint run held\nHello from the worker.")
    lab.start(1)
    lab.wait_text(1, "Hello from the worker.")
    assert jobs.prompt(1) == "[*]:"
    assert not jobs.is_over()
    assert "The end." not in lab.text(1)
    assert lab.output(1).locator("button", has_text="Cancel").is_visible()
    jobs.let_go()
    lab.wait_text(1, "The end.")
    footer(lab, 1, "COMPLETED")
    lab.wait_idle()
    assert jobs.prompt(1) == "[2]:"
    assert re.search(
        r"^@1 · held · COMPLETED · [\d.]+ s queue · [\d.]+ s run · first token ", lab.text(1), re.MULTILINE
    )
    assert jobs.count(1, "button, .jupyter-widgets") == 0
    assert lab.errors == []


def test_markdown_math_code_lists_and_tables_are_rendered_live_and_final(lab, tmp_path):
    jobs = Jobs(lab, tmp_path, f"RICH = {RICH!r}", "%%endpoint run held -p size=5\n{{ RICH }}")
    lab.run(1)
    lab.start(2)
    lab.wait_text(2, "wait()")
    assert_rendered(jobs, 2)
    assert jobs.count(2, "button") == 1
    jobs.let_go()
    footer(lab, 2, "COMPLETED")
    assert_rendered(jobs, 2)


@pytest.mark.parametrize("paragraphs", [3_300, 6_000])
def test_fast_text_stays_in_few_outputs_and_beyond_200_kb_it_is_cut(lab, tmp_path, paragraphs):
    pieces = [f"**{n}** words of a paragraph that goes on for a while.\n\n" for n in range(paragraphs)]
    text, shown = "".join(pieces), sum(end <= 200_000 for end in accumulate(map(len, pieces)))
    jobs = Jobs(
        lab, tmp_path, f"TEXT = {text!r}", "%%endpoint run held -p size=200 -p pause=0.001\n{{ TEXT }}"
    )
    lab.run(1)
    most = "i => { lab.most = 0; new MutationObserver(() => { lab.most = Math.max(lab.most, \
        lab.output(i)?.querySelectorAll('.jp-OutputArea-child').length ?? 0) }).observe(\
        lab.cells()[i].node, {subtree: true, childList: true}) }"
    lab.evaluate(most, 2)
    jobs.let_go()
    lab.start(2)
    footer(lab, 2, "COMPLETED", timeout=60)
    lab.wait_text(2, "The end.")
    seen = [int(n) for n in re.findall(r"(\d+) words", lab.text(2))]
    assert seen == list(range(len(seen)))
    assert len(seen) - shown in ((0, 1) if shown < paragraphs else (0,))  # perhaps half a line more
    assert ("`%endpoint export @1 output.txt` writes the whole" in lab.text(2)) == (shown < paragraphs)
    assert 3 <= lab.evaluate("() => lab.most") <= 45


def test_the_number_of_requests_follows_the_chunks_not_the_time(lab, tmp_path):
    with served_apart(tmp_path) as (url, environ), counting_proxy(url) as (address, requests):
        jobs = Jobs(
            lab,
            tmp_path,
            "%%endpoint run held -p size=10 -p pause=0.02\n" + "ten chars " * 40,
            first=f"%load_ext notebook_ext\n%endpoint connect held {address}/held --key-env HELD_KEY",
            environ=environ,
        )
        lab.start(1)
        lab.wait_text(1, "ten chars " * 39)
        before = len(requests())
        lab.sleep(1)  # nothing comes, so next to nothing is asked
        assert len(requests()) - before <= 2
        jobs.let_go()
        footer(lab, 1, "COMPLETED")
        asked = requests()
    assert sum("/held/run " in line for line in asked) == 1
    assert len(asked) <= 40 + 8


# -------------------------------------------------------------------------------- it is stopped


def test_cancel_is_heard_by_the_cell_that_waits_for_its_job(lab, tmp_path, record_latency):
    jobs = Jobs(lab, tmp_path, "%%endpoint run held\nNever to end.", "print('the kernel goes on')")
    lab.start(1)
    lab.wait_text(1, "Never to end.")
    jobs.note_changes(1)
    clicked = lab.click(1, "Cancel")
    record_latency("Cancel in its own waiting cell", jobs.wait_over() - clicked, limit=2)
    footer(lab, 1, "CANCELLED")
    assert "cancelling" in jobs.changes()
    assert "Never to end." in lab.text(1)
    assert "Traceback" not in lab.text(1)
    lab.run(2)
    lab.wait_text(2, "the kernel goes on")


@pytest.mark.parametrize("pause", [0.05, 0], ids=["sleeping", "computing"])
def test_cancel_is_heard_while_another_cell_is_busy(lab, tmp_path, record_latency, pause):
    jobs = Jobs(lab, tmp_path, "%%endpoint run held --bg\nNever to end.", CLOCK.format(pause=pause))
    lab.run(1)
    lab.wait_text(1, "Never to end.")
    lab.start(2)
    lab.wait("() => lab.kernel().status === 'busy'")
    jobs.note_changes(1)
    clicked = lab.click(1, "Cancel")
    record_latency(
        f"Cancel while another cell is busy (pause {pause} s)", jobs.wait_over() - clicked, limit=3
    )
    footer(lab, 1, "CANCELLED")
    assert jobs.prompt(2) == "[*]:"
    assert "cancelling" in jobs.changes()
    jobs.let_go("enough")
    lab.wait_text(2, "the clock stopped")
    assert "the clock" not in lab.text(1)


def test_the_stop_button_stops_the_remote_job_and_the_kernel_goes_on(lab, tmp_path, record_latency):
    jobs = Jobs(lab, tmp_path, "%%endpoint run held\nNever to end.", "print('the kernel goes on')")
    lab.start(1)
    lab.wait_text(1, "Never to end.")
    pressed = lab.interrupt()
    record_latency("stop button", jobs.wait_over() - pressed, limit=2)
    lab.wait_text(1, "KeyboardInterrupt: @1 CANCELLED")
    footer(lab, 1, "CANCELLED")
    assert "Never to end." in lab.text(1)
    assert "Traceback" not in lab.text(1)
    lab.run(2)
    lab.wait_text(2, "the kernel goes on")


def test_the_stop_button_can_leave_the_job_alone(lab, tmp_path):
    jobs = Jobs(lab, tmp_path, "%%endpoint run held --on-interrupt detach\nPatience.", "%endpoint wait @1")
    lab.start(1)
    lab.wait_text(1, "Patience.")
    lab.interrupt()
    lab.wait_text(1, "KeyboardInterrupt: @1 goes on")
    assert not jobs.is_over()
    lab.start(2)
    jobs.let_go()
    lab.wait_text(2, "@1 · held · COMPLETED")
    assert jobs.is_over()


def test_a_failed_job_keeps_its_text_and_says_why_in_one_line(lab, tmp_path):
    jobs = Jobs(
        lab,
        tmp_path,
        "%%endpoint run held -p fails='out of memory'\nText that came.",
        "%endpoint run hold -- x",
    )
    lab.start(1)
    lab.wait_text(1, "Text that came.")
    jobs.let_go()
    footer(lab, 1, "FAILED")
    lab.wait_text(1, "out of memory")
    lab.wait_idle()
    assert "Text that came." in lab.text(1)
    assert "Traceback" not in lab.text(1)
    assert len([line for line in lab.text(1).splitlines() if "out of memory" in line]) == 1
    lab.run(2)
    assert re.fullmatch(r".*there is no endpoint 'hold'; did you mean 'held'\?.*", lab.text(2))


# -------------------------------------------------------------------------------- in the background


@pytest.mark.parametrize("pause", [0.05, 0], ids=["sleeping", "computing"])
def test_a_background_job_draws_in_its_own_cell_while_another_is_busy(lab, tmp_path, pause):
    jobs = Jobs(
        lab,
        tmp_path,
        "%%endpoint run held --bg\nIn its own cell.",
        "print('another')",
        CLOCK.format(pause=pause),
    )
    lab.run(1)
    lab.run(2)
    lab.start(3)
    lab.wait_text(1, "In its own cell.")
    jobs.let_go()
    lab.wait_text(1, "The end.")
    footer(lab, 1, "COMPLETED")
    assert jobs.prompt(3) == "[*]:"
    jobs.let_go("enough")
    lab.wait_text(3, "the clock stopped")
    assert lab.text(2) == "another"
    assert lab.text(3) == "the clock stopped"
    assert lab.text(1).count("In its own cell.") == 1


def test_line_runs_and_a_print_share_a_cell(lab, tmp_path):
    jobs = Jobs(
        lab,
        tmp_path,
        "%endpoint run held -- One.\nprint('between')\n%endpoint run held -p name=two --bg -- Two.\nprint('after')",
    )
    lab.start(1)
    lab.wait_text(1, "One.")
    jobs.let_go()
    lab.wait_text(1, "Two.")
    lab.wait_idle()
    jobs.let_go("two")
    footer(lab, 1, "COMPLETED")
    lab.wait("i => lab.text(i).split('The end.').length === 3", 1)
    seen = lab.text(1)
    assert all(seen.count(word) == 1 for word in ("One.", "between", "Two.", "after", "@1 ·", "@2 ·")), seen
    assert seen.index("One.") < seen.index("between") < seen.index("Two.")


# -------------------------------------------------------------------------------- what is kept


def test_a_saved_notebook_is_read_without_a_kernel_and_holds_no_secret(lab, tmp_path):
    key = "rpa_PLANTED0KEY0THAT0NOBODY0MAY0SEE00"
    with served_apart(tmp_path) as (url, environ):
        jobs = Jobs(
            lab,
            tmp_path,
            f"RICH = {RICH!r}",
            "%%endpoint run held\n{{ RICH }}",
            "%endpoint connect cloud abc123 --provider runpod\n%endpoint run cloud --dry-run -- x\n%endpoint list",
            first=f"%load_ext notebook_ext\n%endpoint connect held {url}/held --key-env HELD_KEY",
            environ={**environ, "RUNPOD_API_KEY": key},
        )
        jobs.let_go()
        lab.run(1)
        lab.run(2)
        lab.run(3)
        footer(lab, 2, "COMPLETED")
    saved = json.dumps(lab.save())
    assert "Authorization: Bearer [key]" in saved
    assert "widget-view" not in saved
    assert key not in saved
    assert environ["HELD_KEY"] not in saved
    lab.open_as_reader()
    assert_rendered(jobs, 2)
    lab.wait_text(2, "@1 · held · COMPLETED ·")
    assert "Loading widget" not in lab.text(2)


def test_after_a_reload_a_background_job_is_shown_live_again(lab, tmp_path):
    jobs = Jobs(lab, tmp_path, "%endpoint run held --bg -- Before the reload.", "%endpoint show @1")
    lab.run(1)
    lab.wait_text(1, "Before the reload.")
    lab.save()
    lab.reload()
    lab.start(2)
    lab.wait_text(2, "Before the reload.")
    assert lab.output(2).locator("button", has_text="Cancel").is_visible()
    jobs.let_go()
    lab.wait_text(2, "The end.")
    footer(lab, 2, "COMPLETED")


def test_a_restart_leaves_the_remote_job_alone_and_a_shutdown_stops_it(lab, tmp_path):
    with served_apart(tmp_path) as (url, environ):
        connect = f"%load_ext notebook_ext\n%endpoint connect held {url}/held --key-env HELD_KEY"
        jobs = Jobs(
            lab,
            tmp_path,
            "%endpoint run held -p name=one --bg -- One runs.",
            "%endpoint run held -p name=two --bg -- Two runs.",
            first=connect,
            environ=environ,
        )
        lab.run(1)
        lab.wait_text(1, "One runs.")
        lab.restart()
        lab.run(0)
        lab.run(2)
        lab.wait_text(2, "Two runs.")
        assert not jobs.is_over("one")
        asked = time.time()
        lab.server.end_sessions(lab.name)
        assert jobs.wait_over("two", timeout=5) - asked < 2
        assert not jobs.is_over("one")
        jobs.let_go("one")
        jobs.wait_over("one")


def test_widget_models_do_not_pile_up_and_unloading_leaves_none(lab, tmp_path):
    runs = "for n in range(8):\n    get_ipython().run_line_magic('endpoint', 'run held -- Again.')"
    jobs = Jobs(
        lab,
        tmp_path,
        COUNT_WIDGETS,
        runs,
        COUNT_WIDGETS,
        "%endpoint run held -p name=slow --bg -- Still on.",
        "%unload_ext notebook_ext",
        COUNT_WIDGETS
        + "\nimport threading; print([t.name for t in threading.enumerate() if 'notebook_ext' in t.name])",
    )
    jobs.let_go()
    for cell in range(1, 5):
        lab.run(cell)
    lab.wait_text(4, "Still on.")
    lab.run(5)
    lab.run(6)
    lab.wait_text(6, "[]")
    models = [int(lab.text(cell).split()[1]) for cell in (1, 3, 6)]
    assert models == [models[0]] * 3


# -------------------------------------------------------------------------------- helpers


@pytest.fixture
def record_latency(capsys):
    """Print a latency, and hold it against a generous limit: this is no benchmark."""

    def record(what: str, seconds: float, limit: float) -> None:
        with capsys.disabled():
            print(f"\n    {what}: {1000 * seconds:.0f} ms until the handler stopped")
        assert 0 < seconds < limit

    return record
