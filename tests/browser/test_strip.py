"""The strip of a job as people see and click it: why it waits, how far it is, and what came of a Cancel."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from browser.jobs import SERVED, Jobs
from browser.lab import Lab

TELLING = '''
import asyncio, os, pathlib
from notebook_ext import progress_update

GATE = pathlib.Path(os.environ["GATE"])

async def telling(job):
    """Tell each progress in turn, the next one when a file of its number is there; then answer."""
    for at, progress in enumerate(job["input"]["tells"]):
        progress_update(job, progress)
        while not (GATE / str(at)).exists():
            await asyncio.sleep(0.01)
    return "The end."
'''
TELLS = [
    0.2,
    "40 %",
    {"step": 3, "of": 5, "stage": "denoising"},
    "vae:  80%|########  | 8/10 [00:04<00:01, 2.0it/s]",
    "writing the picture",
]
FAILING = "def boom(job):\n    raise ValueError('no such luck')\n%endpoint serve boom --handler boom"


@contextmanager
def served_apart(gate):
    """The handler in a process that can be stopped: the process, a cell that connects, and its environment."""
    file = gate / "handlers.py"
    file.write_text(TELLING)
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-m", "notebook_ext.server", f"telling={file}:telling"],
        env={**os.environ, "GATE": str(gate), "NOTEBOOK_EXT_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = json.loads(process.stdout.readline())["base_url"]
        connect = f"%load_ext notebook_ext\n%endpoint connect telling {url}/telling --key-env TELLING_KEY"
        yield process, connect, {"TELLING_KEY": token}
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)
        process.stdout.close()


def telling(lab, gate, connect, environ, *tells):
    """A notebook whose cell 1 runs a job that tells these; its strip is seen to be there."""
    first = f"{connect}\ngiven = {{'tells': {tells!r}}}"
    jobs = Jobs(lab, gate, "%endpoint run telling -i given", first=first, environ=environ)
    lab.start(1)
    lab.wait_text(1, "running")
    return jobs


def footer(lab, cell, status):
    """Wait for the static line that sums a job up, and for its strip to be gone."""
    lab.wait(
        "([i, status]) => RegExp(`· ${status}( ·|$)`, 'm').test(lab.text(i))"
        " && !lab.output(i).querySelector('.nbx-strip, button')",
        [cell, status],
    )


def shoot(lab, name, cell):
    """A picture in both themes."""
    for theme in ("dark", "light"):
        lab.set_theme(theme)
        lab.screenshot(f"strip-{name}-{theme}", cell=cell)


def says(lab, cell, *texts):
    lab.wait("([i, texts]) => texts.every(text => lab.text(i).includes(text))", [cell, texts])


@pytest.fixture(scope="module")
def narrow(server, lab):
    """JupyterLab in a window of 360 pixels."""
    narrow = Lab(server, lab.page.context.browser, size=(360, 900))
    yield narrow
    narrow.close()


# ------------------------------------------------------------------ why it waits


@pytest.mark.parametrize(
    ("dial", "name", "reason"),
    [
        ("--cold-start 60s", "queued", "1 worker initializing"),
        ("--throttle 1", "throttled", "all hosts throttled: the provider has no free machine now"),
    ],
)
def test_a_queued_job_says_why_it_waits(lab, tmp_path, dial, name, reason):
    Jobs(lab, tmp_path, "%%endpoint run held\nIs anybody there?", first=f"{SERVED} {dial}")
    lab.start(1)
    says(lab, 1, "queued", "queue", reason)
    shoot(lab, name, 1)
    lab.click(1, "Cancel")
    footer(lab, 1, "CANCELLED")
    assert reason not in lab.text(1)
    assert lab.errors == []


def test_a_cold_start_is_measured_by_earlier_ones(lab, tmp_path):
    again = "%endpoint serve held --handler held --cold-start 60s"
    run = "%endpoint run held -- Is anybody there?"
    jobs = Jobs(lab, tmp_path, run, again, run, first=f"{SERVED} --cold-start 3s")
    jobs.let_go()
    lab.start(1)
    footer(lab, 1, "COMPLETED")
    lab.run(2)
    lab.start(3)
    lab.wait(
        "() => /1 worker initializing; cold starts here take about 3\\.\\d s \\(1 seen\\)/.test(lab.text(3))"
    )
    shoot(lab, "cold", 3)
    lab.click(3, "Cancel")
    footer(lab, 3, "CANCELLED")


def test_a_job_behind_others_says_how_many_there_may_be(lab, tmp_path):
    submit = "import notebook_ext\nheld = notebook_ext.connect('held')\nfor _ in range(3): held.submit({'prompt': 'x'})"
    first = SERVED.replace("--workers 4", "--workers 1")
    jobs = Jobs(lab, tmp_path, submit, "%%endpoint run held\nAfter the others.", first=first)
    lab.run(1)
    lab.start(2)
    says(lab, 2, "queued", "up to 2 jobs ahead on 1 running worker")
    jobs.let_go()
    footer(lab, 2, "COMPLETED")


# ------------------------------------------------------------------ how far it is


def test_progress_is_seen_in_every_shape_it_is_told_in(lab, tmp_path):
    with served_apart(tmp_path) as (_, connect, environ):
        jobs = telling(lab, tmp_path, connect, environ, *TELLS)
        bars = [
            ("20 %", ""),
            ("40 %", ""),
            ("60 %", "3/5 denoising"),
            ("80 %", "vae: 8/10 [00:04<00:01, 2.0it/s]"),
        ]
        for at, (percent, text) in enumerate(bars):
            says(lab, 1, "running", percent, text)
            assert lab.output(1).locator("progress").get_attribute("value") == percent.split()[0]
            if at == 2:
                shoot(lab, "progress", 1)
            jobs.let_go(str(at))
        says(lab, 1, "running", "writing the picture")
        assert jobs.count(1, "progress") == 0
        jobs.let_go("4")
        footer(lab, 1, "COMPLETED")
    assert lab.errors == []


def test_nothing_jumps_and_little_is_sent_while_time_goes_on(lab, tmp_path):
    with served_apart(tmp_path) as (_, connect, environ):
        jobs = telling(lab, tmp_path, connect, environ, 0.5)
        says(lab, 1, "running", "50 %")
        place = "i => { const b = lab.output(i).querySelector('progress').getBoundingClientRect(); return [b.x, b.y] }"
        before = lab.evaluate(place, 1)
        lab.watch_traffic()
        lab.sleep(3)
        updates, sent = lab.traffic.counts["comm_msg"], lab.traffic.sizes["comm_msg"]
        assert 4 <= updates <= 7
        assert sent / updates < 1_500
        assert lab.evaluate(place, 1) == before
        jobs.let_go("0")
        footer(lab, 1, "COMPLETED")
        lab.watch_traffic()
        lab.sleep(1.2)
        assert lab.traffic.counts["comm_msg"] == 0


# ------------------------------------------------------------------ what comes of a Cancel


def test_a_cancel_is_cancelling_then_not_confirmed_and_confirmed_when_asked_again(lab, tmp_path):
    with served_apart(tmp_path) as (process, connect, environ):
        telling(lab, tmp_path, connect, environ, {"step": 2, "of": 5})
        says(lab, 1, "running", "2/5")
        process.send_signal(signal.SIGSTOP)  # nobody answers any more
        lab.click(1, "Cancel")
        says(lab, 1, "cancelling", "Cancelling…")
        assert lab.output(1).locator("button").is_disabled()
        shoot(lab, "cancelling", 1)
        says(lab, 1, "running", "not confirmed: last seen running; Cancel asks again")
        assert lab.output(1).locator("button").is_enabled()
        shoot(lab, "unconfirmed", 1)
        lab.click(1, "Cancel")
        says(lab, 1, "cancelling", "Cancelling…")
        process.send_signal(signal.SIGCONT)  # at once it reads the first request too
        footer(lab, 1, "CANCELLED")
        assert "not confirmed" not in lab.text(1)
    assert lab.errors == []


def test_the_keyboard_reaches_cancel(lab, tmp_path):
    Jobs(lab, tmp_path, "%%endpoint run held\nNever to end.")
    lab.start(1)
    lab.wait_text(1, "Never to end.")
    lab.output(1).locator(".nbx-strip").first.click()
    for _ in range(20):  # the buttons of the cell itself come before
        lab.page.keyboard.press("Tab")
        if lab.evaluate("() => document.activeElement.innerText.trim()") == "Cancel":
            break
    lab.screenshot("strip-focus", cell=1)
    lab.page.keyboard.press("Enter")
    footer(lab, 1, "CANCELLED")


# ------------------------------------------------------------------ what can be done next


def test_a_failed_job_says_how_to_queue_it_again_and_what_is_saved_needs_no_kernel(lab, tmp_path):
    Jobs(lab, tmp_path, FAILING, "%%endpoint run boom\n1", "%endpoint retry @last")
    lab.run(1)
    lab.run(2)
    footer(lab, 2, "FAILED")
    lab.wait_text(2, "no such luck")
    number, again = re.search(
        r"^(@\d+) · boom · FAILED · .* queue it again: (.*)$", lab.text(2), re.MULTILINE
    ).groups()
    assert again == f"%endpoint retry {number}"
    shoot(lab, "failed", 2)
    lab.run(3)
    says(lab, 3, f"{number} · boom · FAILED", "no such luck", again)
    saved = json.dumps(lab.save())
    assert "widget-view" not in saved
    assert again in saved


# ------------------------------------------------------------------ where there is little room, or little colour


def test_a_narrow_page_wraps_and_hides_nothing(narrow, tmp_path):
    with served_apart(tmp_path) as (_, connect, environ):
        jobs = telling(narrow, tmp_path, connect, environ, TELLS[2])
        says(narrow, 1, "running", "denoising")
        narrow.page.keyboard.press("Control+b")
        strip = narrow.output(1).locator(".nbx-job")
        assert narrow.output(1).locator("button").is_visible()
        assert strip.evaluate("strip => strip.scrollWidth <= strip.clientWidth")
        narrow.screenshot("strip-narrow")
        jobs.let_go("0")
        footer(narrow, 1, "COMPLETED")


def test_it_is_read_where_colours_are_forced(lab, tmp_path):
    with served_apart(tmp_path) as (_, connect, environ):
        jobs = telling(lab, tmp_path, connect, environ, TELLS[2])
        says(lab, 1, "denoising")
        lab.page.emulate_media(forced_colors="active")
        lab.screenshot("strip-forced", cell=1)
        lab.page.emulate_media(forced_colors="none")
        jobs.let_go("0")
        footer(lab, 1, "COMPLETED")
