"""A page that is cut off from its server for a while: its panels show what happened meanwhile, and hear clicks again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from browser.jobs import Jobs
from browser.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import WebSocketRoute

SUBMIT = "import notebook_ext\nheld = notebook_ext.connect('held')\nheld.submit({'prompt': 'the one'});"
CONNECTED = "is_wanted => (lab.kernel().connectionStatus === 'connected') === is_wanted"


class Wire:
    """The connection between a page and its kernels, which can be cut."""

    def __init__(self) -> None:
        self._sockets: list[WebSocketRoute] = []
        self._is_cut = False

    def open(self, socket: WebSocketRoute) -> None:
        if self._is_cut:
            socket.close()
        else:
            self._sockets += [socket, socket.connect_to_server()]

    def cut(self) -> None:
        self._is_cut = True
        while self._sockets:
            self._sockets.pop().close()

    def mend(self) -> None:
        self._is_cut = False


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def wired(server, lab, wire) -> Iterator[Lab]:
    """JupyterLab whose kernel's connection is the wire."""
    wired = Lab(server, lab.page.context.browser)
    wired.page.route_web_socket("**/channels*", wire.open)
    yield wired
    wired.close()


def test_panels_go_on_when_the_connection_is_back(wired, wire, tmp_path):
    jobs = Jobs(wired, tmp_path, "%endpoint health held --watch --every 1s", "%endpoint panel jobs", SUBMIT)
    for cell in (1, 2, 3):
        wired.run(cell)
    wired.wait_text(2, "1 running")
    wired.wait(r"() => /in progress\s+1\s/.test(lab.text(1))")
    wire.cut()
    wired.wait(CONNECTED, False)
    jobs.let_go()
    jobs.wait_over()
    assert "1 running" in wired.text(2)
    wire.mend()
    wired.wait(CONNECTED, True)
    wired.wait_text(2, "1 completed")
    wired.wait(r"() => /in progress\s+0\s/.test(lab.text(1))")
    wired.click(1, "Stop watching")
    wired.wait_text(1, "stopped")
