"""How a worker process finds its endpoint: the variables of its environment, and the file that holds them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from notebook_ext.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

__all__ = ["Attachment", "foreign_key", "open_private", "runtime_folder"]

FOLDER_VARIABLE = "NOTEBOOK_EXT_WORKERS"
KEPT = 7 * 86400.0
"""Seconds that a log is kept in which nothing is written, and the environment for a server that is gone."""
_LOG = re.compile(r".+-[0-9]+-[0-9]+\.log\Z")
_ENVIRONMENT = re.compile(r".+-([0-9]+)(?:-outside)?\.env\Z")
"""What these files are called; there may be others in a folder that the user has named."""
PING_INTERVAL = 5000
"""Milliseconds between a worker's pings."""
_CREDENTIALS = Path("~/.runpod/config.toml")


def worker_variables(base_url: str, endpoint: str, token: str) -> dict[str, str]:
    """What `runpod.serverless.start` reads to work for an endpoint.

    `$ID` and `$RUNPOD_POD_ID` stay as they are: the worker fills them in, and needs the `?`.
    The worker's id, `RUNPOD_POD_ID`, is not among them, since each process needs its own.
    """
    base = f"{base_url}/{endpoint}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
        "RUNPOD_AI_API_KEY": token,
        "RUNPOD_ENDPOINT_ID": endpoint,
        "RUNPOD_PING_INTERVAL": str(PING_INTERVAL),
        # The checks at its start want what a worker's machine has: a GPU, memory, the internet.
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_LOG_LEVEL": "INFO",
    }


def runtime_folder() -> Path:
    """Where workers' environments and logs lie: `NOTEBOOK_EXT_WORKERS`, else in the user's data."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs  # only needed where workers attach

    return Path(platformdirs.user_data_dir("notebook_ext", appauthor=False)) / "workers"


def foreign_key() -> Path | None:
    """The file whose key the `runpod` package sends in place of the endpoint's, where there is one."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = _CREDENTIALS.expanduser()
        if tomllib.loads(path.read_text("utf-8")).get("default"):
            return path
    return None


@dataclass(frozen=True, slots=True)
class Attachment:
    """The way for worker processes to one endpoint.

    Args:
        endpoint: Its name.
        env_file: A file with the variables, one `NAME=VALUE` a line; only its owner can read it.
        outside_file: The same for workers that cannot reach this machine's loopback, where the
            server is open to them.
        variables: The variables; one of them is the worker token, a secret.
    """

    endpoint: str
    env_file: Path
    outside_file: Path | None
    variables: Mapping[str, str] = field(repr=False)

    @classmethod
    def write(
        cls, folder: Path, endpoint: str, token: str, base_url: str, outside_url: str | None
    ) -> Attachment:
        """Write the files.

        Raises:
            ConfigurationError: They cannot be written.
        """
        port = urlsplit(base_url).port
        variables = worker_variables(base_url, endpoint, token)
        path, outside = folder / f"{endpoint}-{port}.env", None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_old_files(folder)
            _write(path, variables)
            if outside_url is not None:
                outside = folder / f"{endpoint}-{port}-outside.env"
                _write(outside, worker_variables(outside_url, endpoint, token))
        except OSError as error:
            raise ConfigurationError(
                f"the environment for workers of {endpoint} cannot be written ({error}); "
                f"{FOLDER_VARIABLE} names another folder"
            ) from None
        return cls(endpoint, path, outside, variables)

    def remove(self) -> None:
        """Take the files away; their token opens nothing any more."""
        for path in (self.env_file, self.outside_file):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    def command(self, program: str = "python handler.py") -> str:
        """A shell command that starts a worker, without the token in it or in any list of processes."""
        path = shlex.quote(str(self.env_file))
        script = (
            f'while IFS= read -r line; do export "$line"; done < {path}; '
            f"export RUNPOD_POD_ID={self.endpoint}-$$; exec {program}"
        )
        return f"sh -c {shlex.quote(script)}"

    def docker(self, image: str = "IMAGE") -> str:
        """A `docker run` command for a worker image.

        Where the server is not open to others, on this machine's own network: inside a container,
        loopback is another one.
        """
        path, way = self.env_file, "--network host"
        if self.outside_file is not None:
            path, way = self.outside_file, "--add-host host.docker.internal:host-gateway"
        name = f"RUNPOD_POD_ID={self.endpoint}-$RANDOM"
        return f"docker run --rm {way} --env-file {shlex.quote(str(path))} -e {name} {image}"


def open_private(path: Path) -> TextIO:
    """Make a file that only its owner can read, in place of one that was there before."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")


def _forget_old_files(folder: Path) -> None:
    """Remove what is left of other servers, some of which had no time to do it."""
    for path in folder.iterdir():
        environment = _ENVIRONMENT.match(path.name)
        with contextlib.suppress(OSError):
            is_ours = environment is not None or _LOG.match(path.name)
            if not is_ours or time.time() - path.stat().st_mtime <= KEPT:
                continue
            if environment is None or not _is_served(int(environment[1])):
                path.unlink()


def _is_served(port: int) -> bool:
    """Whether a port of this machine is taken; nobody who may listen there is disturbed."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        return True
    return False


def _write(path: Path, variables: Mapping[str, str]) -> None:
    with open_private(path) as file:
        file.writelines(f"{name}={value}\n" for name, value in variables.items())
