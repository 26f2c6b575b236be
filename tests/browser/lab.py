"""A Jupyter server with a browser on it: JupyterLab 4 and Notebook 7 in headless Chromium.

    with Server() as server, browser() as chromium:
        lab = Lab(server, chromium)
        lab.open(notebook("print(6 * 7)"))
        lab.run(0)
        assert lab.text(0) == "42"

Cells are named by their position. Times are in seconds; what is measured is in wall-clock time.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, Locator, Page, Route, WebSocket, sync_playwright

from browser.environments import find_chromium

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from browser.server import Server

SHOTS = Path(__file__).parent / "shots"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# The page is asked through JupyterLab's own application object, not through what it looks like.
SCRIPT = """
window.lab = {
  panel: () => window.jupyterapp.shell.currentWidget,
  cells: () => lab.panel().content.widgets,
  kernel: () => lab.panel().sessionContext.session?.kernel,
  output: i => lab.cells()[i].node.querySelector('.jp-Cell-outputWrapper'),
  text: i => lab.output(i)?.innerText.trim() ?? '',
  ready: path => window.jupyterapp?.shell?.currentWidget?.context?.path === path
    && lab.panel().context.isReady && lab.cells().length > 0,
  pending: new Set(),             // a cell is marked as waiting only some time after it was asked to run
  idle: () => lab.pending.size === 0 && lab.kernel()?.status === 'idle'
    && lab.kernel().connectionStatus === 'connected'
    && !lab.cells().some(cell => cell.promptNode?.innerText.includes('*')),
  execute(command) {
    const pending = lab.pending, ended = window.jupyterapp.commands.execute(command);
    pending.add(ended);
    ended.finally(() => pending.delete(ended));
  },
  async replace(path) {           // a new notebook in the same page, which takes seconds to load
    const old = lab.panel();
    lab.pending = new Set();
    await window.jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'});
    old.dispose();
  },
  run(i) {
    lab.panel().content.deselectAll();
    lab.panel().content.activeCellIndex = i;
    lab.execute('notebook:run-cell');
  },
  watch(i) {                      // every change of the visible text, with the time it was seen
    const seen = [], note = () => {
      const text = lab.text(i);
      if (text !== seen.at(-1)?.[1]) seen.push([Date.now() / 1000, text]);
    };
    note();
    (lab.seen ??= {})[i] = {seen, timer: setInterval(note, 10)};
  },
  watchLongTasks() {
    lab.longTasks = [];
    lab.observer ??= new PerformanceObserver(
      list => lab.longTasks.push(...list.getEntries().map(entry => entry.duration / 1000)));
    lab.observer.observe({entryTypes: ['longtask']});
  },
};
"""


def notebook(*cells: str, kernel: str = "main") -> dict[str, Any]:
    """A notebook of code cells; a cell that starts with `#md ` is Markdown."""
    return {
        "cells": [_cell(source) for source in cells],
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(source: str) -> dict[str, Any]:
    cell = {"id": uuid.uuid4().hex[:8], "metadata": {}}
    if source.startswith("#md "):
        return {**cell, "cell_type": "markdown", "source": source.removeprefix("#md ")}
    return {**cell, "cell_type": "code", "source": source, "execution_count": None, "outputs": []}


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium; one for all labs, as Playwright runs once in a thread."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium())
        yield chromium
        chromium.close()


@dataclass
class Traffic:
    """What left the kernel for the page.

    Args:
        sizes: Bytes of each kind of message.
        counts: How many of each kind.
    """

    sizes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


class Lab:
    """One page of a server, on one notebook at a time.

    Args:
        server: Whose notebooks are opened.
        browser: Where they are opened.
        app: "lab" or "notebook", for Notebook 7.
        kernel: The kernel that runs them, one of the server's.
        size: Width and height of the page in CSS pixels.
        scale: Pixels of its pictures for each of these.
    """

    def __init__(
        self,
        server: Server,
        browser: Browser,
        app: str = "lab",
        kernel: str = "main",
        *,
        size: tuple[int, int] = (1300, 1500),
        scale: float = 1,
    ) -> None:
        self.server, self.app, self.kernel = server, app, kernel
        self.name = ""
        self.live = False  # whether the page can open another notebook without being loaded again
        self.errors: list[str] = []
        self.watch_traffic()
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, device_scale_factor=scale
        )
        context.add_init_script(SCRIPT)
        context.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self._note_error(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note_error("error", str(error)))
        self.page.on("websocket", self._listen)

    def close(self) -> None:
        self.page.context.close()
        self.server.end_sessions(self.name)

    # Opening

    def open(self, content: dict[str, Any] | Path, environ: Mapping[str, str] | None = None) -> None:
        """Open a notebook with a kernel of its own; the one that was open before loses its.

        Args:
            content: The notebook, or the file that it is read from.
            environ: Added to the kernel's environment, where saved endpoints and the journal have a fresh folder.
        """
        self.server.end_sessions(self.name)
        self.name = f"{self.kernel}-{uuid.uuid4().hex[:8]}.ipynb"
        nb = content if isinstance(content, dict) else json.loads(content.read_text())
        nb["metadata"]["kernelspec"] = {
            "name": self.kernel,
            "display_name": self.kernel,
            "language": "python",
        }
        self._write(nb)
        own = self.server.folder / "own" / self.name
        environ = {
            "NOTEBOOK_EXT_CONFIG": str(own),
            "NOTEBOOK_EXT_JOURNAL": str(own / "journal.db"),
            **(environ or {}),
        }
        self.server.write_kernelspec(self.kernel, environ)
        if self.app == "lab" and self.live:
            self.evaluate("path => lab.replace(path)", self.name)
            self._wait_opened()
        else:
            self._load()
        self.live = True
        self.wait_idle()

    def open_as_reader(self, *, trusted: bool = False) -> None:
        """Open the saved file again without any kernel, as somebody who was sent it would see it.

        Args:
            trusted: As on the machine that ran it, where untrusted HTML is not cleaned.
        """
        self.server.end_sessions(self.name)
        if not trusted:
            nb = self._read()
            nb["metadata"]["sent"] = True  # any change: the signature is over the content
            self._write(nb)
        for kernels in ("**/api/sessions*", "**/api/kernels*"):
            self.page.route(kernels, _deny_posts)
        self._load()
        self.page.locator(".jp-Dialog").get_by_role("button", name="Ok").click()  # no kernel could be started
        self.page.unroute_all()
        self.live = False

    def reload(self) -> None:
        """Load the page and the saved file again, while the kernel goes on."""
        self._load()
        self.wait("() => lab.kernel()?.connectionStatus === 'connected'")

    def _load(self) -> None:
        # In a workspace of its own: JupyterLab opens again what was open in a known one.
        where = f"lab/workspaces/{uuid.uuid4().hex}/tree" if self.app == "lab" else "notebooks"
        self.page.goto(f"{self.server.url}/{where}/{self.name}?token={self.server.token}")
        self._wait_opened()

    def _wait_opened(self) -> None:
        self.wait("path => window.lab.ready(path)", self.name, timeout=60)
        self.errors.clear()
        self.watch_traffic()

    # Running

    def run(self, cell: int, timeout: float = 60) -> None:
        """Run one cell, and wait until it has ended, well or not."""
        self.start(cell)
        self.wait_idle(timeout)

    def start(self, cell: int) -> float:
        """Start a cell without waiting for it; the time at which it was asked for."""
        asked = time.time()
        self.evaluate("i => lab.run(i)", cell)
        return asked

    def run_all(self, timeout: float = 120) -> None:
        self.evaluate("() => lab.execute('notebook:run-all-cells')")
        self.wait_idle(timeout)

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until the kernel is idle and no cell waits for it."""
        self.wait("() => lab.idle()", timeout=timeout)

    def interrupt(self) -> float:
        """Press the stop button; the time at which it was pressed."""
        pressed = time.time()
        self.evaluate("() => { lab.kernel().interrupt() }")
        return pressed

    def restart(self) -> None:
        self.evaluate("() => lab.kernel().restart()")
        self.wait_idle()

    def sleep(self, seconds: float) -> None:
        """Let time pass in the page; what it sends is heard meanwhile."""
        self.page.wait_for_timeout(seconds * 1000)

    # Looking

    def text(self, cell: int) -> str:
        """The visible text of a cell's output."""
        return self.evaluate("i => lab.text(i)", cell)

    def html(self, cell: int) -> str:
        return self.evaluate("i => lab.output(i)?.innerHTML ?? ''", cell)

    def output(self, cell: int) -> Locator:
        """The output of a cell in the page."""
        return self._cell(cell).locator(".jp-Cell-outputWrapper")

    def wait_text(self, cell: int, text: str, timeout: float = 30) -> float:
        """Wait until this text is visible in a cell's output; the time at which it was."""
        self.wait("([i, text]) => lab.text(i).includes(text)", [cell, text], timeout=timeout)
        return time.time()

    def click(self, cell: int, label: str) -> float:
        """Click a button in a cell's output; the time at which it was clicked."""
        button = self.output(cell).locator("button", has_text=label).first
        button.wait_for(state="visible")
        clicked = time.time()
        button.click(force=True)  # a stream moves it: waiting until it stands still would take for ever
        return clicked

    def watch(self, cell: int) -> None:
        """Note every change of a cell's visible text from now on."""
        self.evaluate("i => lab.watch(i)", cell)

    def watched(self, cell: int) -> list[tuple[float, str]]:
        """What was visible since `watch`, and since when."""
        return self.evaluate("i => { clearInterval(lab.seen[i].timer); return lab.seen[i].seen }", cell)

    def watch_traffic(self) -> None:
        """Count what the kernel sends from now on in `traffic`."""
        self.traffic = Traffic()

    def watch_long_tasks(self) -> None:
        self.evaluate("() => lab.watchLongTasks()")

    def long_tasks(self) -> list[float]:
        """Seconds of each task that held the page longer than 50 ms since `watch_long_tasks`."""
        return self.evaluate("() => lab.longTasks")

    def set_theme(self, theme: str) -> None:
        """Change the setting of the theme: "light" or "dark"."""
        self.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme]
        )
        self.wait(
            "is_light => document.body.dataset.jpThemeLight === is_light "
            "&& !document.getElementById('jupyterlab-splash')",
            str(theme == "light").lower(),
        )

    def screenshot(self, name: str, cell: int | None = None, timeout: float = 30) -> Path:
        """Save a picture of the page, or of one cell."""
        file = SHOTS / f"{name}.png"
        what = self.page if cell is None else self._cell(cell)
        what.screenshot(path=file, timeout=timeout * 1000)
        return file

    # Saving

    def save(self) -> dict[str, Any]:
        """Save the notebook, and read the file back."""
        self.evaluate("() => lab.panel().context.save()")
        return self._read()

    def _read(self) -> dict[str, Any]:
        return json.loads((self.server.root / self.name).read_text())

    def _write(self, nb: dict[str, Any]) -> None:
        (self.server.root / self.name).write_text(json.dumps(nb))

    # The page

    def _cell(self, cell: int) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(cell)

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def wait(self, script: str, argument: Any = None, *, timeout: float = 30) -> None:
        """Wait until a function of the page returns something true."""
        self.page.wait_for_function(script, arg=argument, timeout=timeout * 1000, polling=10)

    def _note_error(self, kind: str, text: str) -> None:
        if kind == "error":
            self.errors.append(text[:500])

    def _listen(self, websocket: WebSocket) -> None:
        if "/channels" in websocket.url:
            websocket.on("framereceived", self._count)

    def _count(self, frame: bytes | str) -> None:
        channel, kind = _read_frame(frame)
        if channel == "iopub":
            self.traffic.sizes[kind] += len(frame)
            self.traffic.counts[kind] += 1


def _read_frame(frame: bytes | str) -> tuple[str, str]:
    """The channel and the kind of a kernel's message, in either of the server's two framings."""
    if isinstance(frame, str):
        message = json.loads(frame)
        return message["channel"], message["header"]["msg_type"]
    (count,) = struct.unpack_from("<Q", frame)
    starts = struct.unpack_from(f"<{count}Q", frame, 8)
    header = json.loads(frame[starts[1] : starts[2]])
    return frame[starts[0] : starts[1]].decode(), header["msg_type"]


def _deny_posts(route: Route) -> None:
    if route.request.method == "POST":
        route.abort()
    else:
        route.continue_()
