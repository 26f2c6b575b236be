"""One server, one browser and one page per kernel for the whole session; each test opens its own notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser.lab import Lab, Server, browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def lab(server: Server, chromium: Browser) -> Iterator[Lab]:
    """JupyterLab, with a kernel of the environment that runs the tests."""
    lab = Lab(server, chromium)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def notebook7(server: Server, chromium: Browser) -> Iterator[Lab]:
    """Notebook 7, with the same kernel."""
    lab = Lab(server, chromium, app="notebook")
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def lab_on(server: Server, chromium: Browser, environments: dict[str, Path]) -> Iterator[Callable[[str], Lab]]:
    """JupyterLab with a kernel of another ipykernel version: `lab_on("6.29.5")`."""
    server.kernels.update(environments)
    labs: dict[str, Lab] = {}

    def open_lab(version: str) -> Lab:
        if version not in labs:
            labs[version] = Lab(server, chromium, kernel=version)
        return labs[version]

    yield open_lab
    for lab in labs.values():
        lab.close()
