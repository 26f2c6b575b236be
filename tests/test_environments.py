"""A machine without a browser gets one, or a sentence that says what to do."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from browser.environments import BROWSERS, find_chromium

if TYPE_CHECKING:
    from pathlib import Path

APT_GET = '#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >> "$0.log"\n[ "$1" = install ] && ln -s /bin/true "${0%/*}/chromium"\nexit 0\n'


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with all programs of a machine that has no browser."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("env", "ln", "sh"):
        (folder / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("LAB_CHROMIUM", raising=False)
    return folder


def put(folder: Path, name: str, script: str = "#!/bin/sh\n") -> Path:
    program = folder / name
    program.write_text(script)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("name", BROWSERS)
def test_an_installed_browser_is_used(machine, name):
    browser = put(machine, name)
    assert find_chromium() == str(browser)


def test_the_browser_that_is_asked_for_is_used(machine, monkeypatch):
    put(machine, "chromium")
    monkeypatch.setenv("LAB_CHROMIUM", str(put(machine, "my-browser")))
    assert find_chromium() == str(machine / "my-browser")
    monkeypatch.setenv("LAB_CHROMIUM", "/no/such/browser")
    with pytest.raises(RuntimeError, match="LAB_CHROMIUM is /no/such/browser"):
        find_chromium()


@pytest.mark.parametrize("root", [True, False])
def test_debians_package_is_installed_where_there_is_none(machine, monkeypatch, root):
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    put(machine, "sudo", '#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n')
    put(machine, "apt-get", APT_GET)
    assert find_chromium() == str(machine / "chromium")
    log = (machine / "apt-get.log").read_text().splitlines()
    assert log[0] == "noninteractive update"
    assert log[1].startswith("noninteractive install --yes")


def test_where_nothing_can_be_installed_it_says_what_to_do(machine, monkeypatch):
    with pytest.raises(RuntimeError, match=r"apt-get install chromium.*LAB_CHROMIUM"):
        find_chromium()
    put(machine, "apt-get", "#!/bin/sh\necho no space left\nexit 100\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(RuntimeError, match="no space left"):
        find_chromium()
