"""One server, one browser and one page per kernel for the whole session; each test opens its own notebook."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import playwright.sync_api
import pytest

from browser.lab import Lab, browser
from browser.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from playwright.sync_api import Browser

# What is open now, for the report of a test that failed.
labs: dict[str, Lab] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Keep what the pages showed when a test failed."""
    report = yield
    if report.failed:
        for name, lab in labs.items():
            report.sections.append((f"Page of {name}", "\n".join([lab.page.url, *lab.errors])))
            with contextlib.suppress(playwright.sync_api.Error):  # a page that hangs cannot be painted either
                lab.screenshot(f"failed-{item.name}-{name}", timeout=5)
    return report


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def open_lab(server: Server, chromium: Browser) -> Iterator[Callable[[str, str], Lab]]:
    def open_lab(app: str, kernel: str) -> Lab:
        name = f"{app}-{kernel}"
        if name not in labs:
            labs[name] = Lab(server, chromium, app, kernel)
        return labs[name]

    yield open_lab
    while labs:
        labs.popitem()[1].close()


@pytest.fixture(scope="session")
def lab(open_lab: Callable[[str, str], Lab]) -> Lab:
    """JupyterLab, with a kernel of the environment that runs the tests."""
    return open_lab("lab", "main")


@pytest.fixture(scope="session")
def notebook7(open_lab: Callable[[str, str], Lab]) -> Lab:
    """Notebook 7, with the same kernel."""
    return open_lab("notebook", "main")


@pytest.fixture(scope="session")
def lab_on(
    server: Server, open_lab: Callable[[str, str], Lab], environments: dict[str, Path]
) -> Callable[[str], Lab]:
    """JupyterLab with a kernel of another ipykernel version: `lab_on("6.29.5")`."""
    server.kernels.update(environments)
    return lambda version: open_lab("lab", version)
