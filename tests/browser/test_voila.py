"""A notebook as an app: the real Voila serves it, and whoever opens the page sees it live and clicks.

Voila shows nothing that comes after the page was made, except in widgets: so this is where it is seen that text which
still streams, panels, and what comes of a click are all in widgets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from browser.jobs import SERVED
from browser.lab import notebook
from browser.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Locator, Page

    from browser.lab import Lab

CELLS = (
    SERVED.replace("--workers 4", "--workers 3"),
    "%%endpoint run held -p name=first -p size=6\nHello **voila**.",
    "%endpoint run held --bg -p name=later -p size=6 -- Still streaming",
    "%endpoint run held --bg -p name=stopped -- To be stopped",
    """import notebook_ext
held = notebook_ext.connect("held")
for at in range(5):
    held.submit({"prompt": f"job number {at}", "name": "queued"})""",
    "%endpoint health held --watch --every 1s",
    "%endpoint panel jobs",
    "%endpoint panel prompt held",
)


class App:
    """The page of a notebook that Voila serves.

    Args:
        page: Where it is open.
        gate: The folder in which its handlers look for files, and leave theirs.
    """

    def __init__(self, page: Page, gate: Path) -> None:
        self.page, self.gate = page, gate

    def panel(self, words: str) -> Locator:
        """The innermost panel that shows these words."""
        return self.page.locator(".nbx-panel", has_text=words).last

    def click(self, panel: Locator, label: str) -> None:
        panel.locator("button:visible", has_text=label).first.click()

    def wait_text(self, text: str) -> None:
        self.page.wait_for_function("text => document.body.innerText.includes(text)", arg=text)

    def wait_match(self, pattern: str) -> None:
        self.page.wait_for_function(
            "pattern => new RegExp(pattern).test(document.body.innerText)", arg=pattern
        )

    def is_over(self, name: str) -> bool:
        """Whether the handler itself has ended."""
        return (self.gate / f"{name}-over").exists()


@pytest.fixture(scope="module")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Serves a notebook by `voila`: gives the page's address."""
    processes: list[subprocess.Popen[Any]] = []

    def serve(content: dict[str, Any], environ: dict[str, str]) -> str:
        folder = tmp_path_factory.mktemp("voila")
        (folder / "app.ipynb").write_text(json.dumps(content))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = (folder / "log").open("w")
        command = [sys.executable, "-m", "voila", "app.ipynb", "--no-browser", "--Voila.ip=127.0.0.1"]
        folders = {
            f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")
        }
        process = subprocess.Popen(
            [*command, f"--port={port}"],
            cwd=folder,
            env={**os.environ, **folders, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        processes.append(process)

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/", timeout=5).close()
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait_until(answers)
        return f"http://127.0.0.1:{port}/"

    yield serve
    for process in processes:
        process.terminate()
        process.wait(15)


@pytest.fixture(scope="module")
def app(voila, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    gate = tmp_path_factory.mktemp("gate")
    (gate / "first").touch()  # Voila makes the page when every cell has run
    ours = {"NOTEBOOK_EXT_CONFIG": str(gate / "config"), "NOTEBOOK_EXT_JOURNAL": str(gate / "journal.db")}
    address = voila(notebook(*CELLS, kernel="python3"), {"GATE": str(gate), **ours})
    context = lab.page.context.browser.new_context(viewport={"width": 1100, "height": 1600})
    context.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page = context.new_page()
    page.goto(address)
    yield App(page, gate)
    context.close()


def test_an_app_streams_and_its_buttons_do_what_they_say(app):
    # what had ended when the page was made
    app.wait_text("Hello voila.")
    app.wait_text("The end.")
    app.wait_match(r"@1 · held · COMPLETED")
    # what still ran then: its text, and its end
    app.wait_text("Still streaming")
    (app.gate / "later").touch()
    app.wait_match(r"Still streaming\s+The end\.\s+@2 · held · COMPLETED")
    app.click(app.page.locator("body"), "Cancel")  # of the strip above the text
    app.wait_match(r"To be stopped\s+@3 · held · CANCELLED")
    wait_until(lambda: app.is_over("stopped"))

    health, jobs = app.panel("Stop watching"), app.panel("Cancel all of mine")
    app.wait_match(r"in queue\s+2\s")

    def row_of(number):
        return jobs.locator(".nbx-buttons > *", has=app.page.locator(f'[title="Show @{number}"]'))

    app.click(health, "Purge queue")
    app.wait_text("Really remove 2 (2 yours)?")
    app.click(health, "Really remove")
    app.wait_text("2 jobs removed from the queue")
    app.wait_match(r"in queue\s+0\s")

    app.wait_match(r"@4\s+held\s+running")
    assert not app.is_over("queued")
    app.page.wait_for_timeout(700)  # a row whose buttons have just changed takes no click
    app.click(row_of(4), "Cancel")
    app.wait_text("@4 CANCELLED")
    app.wait_match(r"@4\s+held\s+cancelled")
    wait_until(lambda: app.is_over("queued"))
    app.click(row_of(1), "Show")
    app.wait_text("The result of @1")
    assert jobs.locator("strong", has_text="voila").count() == 1  # as Markdown

    prompt = app.page.locator(".nbx-prompt")
    prompt.get_by_label("Prompt").fill("Asked in the app.")
    app.click(prompt, "Run")
    prompt.get_by_text("Asked in the app.", exact=True).wait_for()
    app.click(prompt, "Cancel")
    prompt.get_by_text("cancelled", exact=True).wait_for()
    wait_until(lambda: app.is_over("go"))
    app.click(prompt, "Run")
    wait_until(lambda: prompt.get_by_text("running", exact=True).count() == 2)
    (app.gate / "go").touch()
    prompt.get_by_text("The end.").wait_for()
    prompt.get_by_text("run 2 of 2").wait_for()

    app.click(health, "Stop watching")
    app.wait_match(r"watched from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d; stopped")
    app.click(jobs, "Close")
    app.wait_match(r"as at \d\d:\d\d:\d\d; stopped")
    assert "Traceback" not in app.page.inner_text("body")
