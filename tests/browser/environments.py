"""What the tests need around them, and make themselves: environments with other ipykernels, and a Chromium."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
NEWEST = "newest"  # the one that is installed where the tests run: pip takes the newest there
VERSIONS = ("6.29.5", "7.3.0", "7.4.0", NEWEST)
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
INSTALL_BROWSER = (
    ("apt-get", "update"),
    # Without the recommended packages, but with a font: a page without any shows no text in a picture.
    ("apt-get", "install", "--yes", "--no-install-recommends", "chromium", "fonts-liberation"),
)


def make_environments(versions: Iterable[str] = VERSIONS) -> dict[str, Path]:
    """Make what is missing, side by side; return the Python of each ipykernel version."""
    versions = tuple(versions)
    with alone(), ThreadPoolExecutor() as pool:
        return dict(zip(versions, pool.map(_make_environment, versions), strict=True))


def _make_environment(version: str) -> Path:
    """An environment of its own with the project, editable, and this ipykernel; kept until pyproject changes."""
    if version in {NEWEST, importlib.metadata.version("ipykernel")}:
        return Path(sys.executable)
    folder = home() / f"ipykernel-{version}"
    python = folder / "bin" / "python"
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp, stamp_file = f"{ROOT} {sys.version} {pyproject}\n", folder / "stamp"
    if not stamp_file.exists() or stamp_file.read_text() != stamp:
        venv.create(folder, clear=True, symlinks=True, with_pip=False)
        install(python, "--editable", str(ROOT), f"ipykernel=={version}")
        stamp_file.write_text(stamp)
    return python


def home() -> Path:
    """Where environments are kept from run to run."""
    return Path(os.environ.get("NOTEBOOK_EXT_TEST_ENVIRONMENTS") or ROOT / ".test-environments")


@contextmanager
def alone() -> Iterator[None]:
    """Let one of several processes that run tests make what is missing, and the others wait for it."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(python: Path, *what: str) -> None:
    """Install into another environment with this one's pip: copying pip there takes longer than using it."""
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *what])


def find_chromium() -> str:
    """The installed Chromium or Chrome; where there is none, Debian's package is installed."""
    wanted = os.environ.get("LAB_CHROMIUM")
    if wanted and not shutil.which(wanted):
        raise RuntimeError(f"LAB_CHROMIUM is {wanted}, which cannot be run: correct it, or unset it.")
    with alone():
        found = wanted or _browser_on_path() or _install_chromium()
    if not found:
        raise RuntimeError(
            "The browser tests need Chromium or Chrome, and it could not be installed here: install it "
            "(Debian: apt-get install chromium), or say where it is in LAB_CHROMIUM."
        )
    return found


def _browser_on_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _install_chromium() -> str | None:
    if not shutil.which("apt-get"):
        return None
    sudo = () if os.geteuid() == 0 else ("sudo", "-n")
    if sudo and not shutil.which("sudo"):
        return None
    for command in INSTALL_BROWSER:
        run([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", *command])
    return _browser_on_path()


def run(command: list[str], *, path: str | None = None) -> None:
    """Run a command to its end; `path` replaces PATH for it.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=None if path is None else {**os.environ, "PATH": path},
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stdout[-3000:]}")
