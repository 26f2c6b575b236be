"""A Jupyter server for the browser tests, whose notebooks, settings and kernels are all in one scratch folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell stays in the page, wherever it is scrolled to.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
LAUNCHER = Path(__file__).with_name("kernel.py")
KERNEL_ENVIRON = {"PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}


class Server:
    """A Jupyter server whose notebooks, settings and kernels are all in one scratch folder.

    Args:
        kernels: The kernels that it offers: the Python of each by name.
        settings: JupyterLab's settings by schema, beside those that every test wants.
    """

    def __init__(
        self,
        kernels: Mapping[str, str | Path] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.kernels = dict(kernels or {"main": sys.executable})
        self.settings = {**SETTINGS, **(settings or {})}
        self.token = uuid.uuid4().hex
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self.stack:
            self.folder = Path(self.stack.enter_context(_scratch_folder()))
            self.root = self.folder / "root"
            self.root.mkdir()
            self._write_settings()
            self._start()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def write_kernelspec(self, name: str, environ: Mapping[str, str]) -> None:
        """Say how this kernel is started from now on."""
        folder = self.folder / "data" / "kernels" / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(self.kernels[name]), str(LAUNCHER), "-f", "{connection_file}"]
        spec = {
            "argv": command,
            "display_name": name,
            "language": "python",
            "env": {**KERNEL_ENVIRON, **environ},
        }
        (folder / "kernel.json").write_text(json.dumps(spec))

    def request(self, path: str, method: str = "GET") -> Any:
        """Ask the server's REST API."""
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def end_sessions(self, path: str) -> None:
        """Shut down the kernels of one notebook."""
        for session in self.request("/api/sessions"):
            if session["path"] == path:
                self.request(f"/api/sessions/{session['id']}", "DELETE")

    def _write_settings(self) -> None:
        for schema, values in self.settings.items():
            package, plugin = schema.split(":")
            file = self.folder / "settings" / package / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))

    def _start(self) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.root_dir": self.root,
            "LabApp.expose_app_in_browser": True,
            "LabApp.extension_manager": "readonly",
            "JupyterNotebookApp.expose_app_in_browser": True,
        }
        self.log = self.folder / "server.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyter",
                "server",
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env={**os.environ, "JUPYTER_TOKEN": self.token}
            | {name: str(self.folder / folder) for name, folder in folders.items()},
            stdin=subprocess.DEVNULL,
            stdout=self.stack.enter_context(self.log.open("w")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.stack.callback(self._stop)
        wait_until(self._answers, timeout=60)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"The Jupyter server ended:\n{self.log.read_text()[-3000:]}")
        try:
            return bool(self.request("/api/status"))
        except OSError:
            return False

    def _stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)  # it shuts its kernels down
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def wait_until(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Ask every 50 ms, for what tells nobody when it happens."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} was not true within {timeout} s.")
        time.sleep(0.05)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a kernel that is just ending may still write there


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
