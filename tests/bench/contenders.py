"""Who is measured, each in a process of its own: the floor, `notebook_ext`, and the SDKs that others released."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import certifi

from tests.bench.figures import FLOOR, OURS, RUNPOD, RUNPOD_ASYNCIO, RUNPOD_JS
from tests.bench.stopwatch_service import Conditions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
PATIENCE, GRACE = 60.0, 30.0
"""Seconds after which an order has failed where it says nothing else, and further ones until a client that
does not even notice that is ended."""


# ---------------------------------------------------------------------------------- the stopwatch


@contextmanager
def stopwatch(**conditions: Any) -> Iterator[str]:
    """Run a stopwatch server in a process of its own; gives its URL.

    Args:
        **conditions: The fields of `stopwatch_service.Conditions`.
    """
    given = json.dumps(asdict(Conditions(**conditions)))
    command = [sys.executable, "-m", "tests.bench.stopwatch", given]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        scheme = "https" if conditions.get("certificate") else "http"
        try:
            yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def told(url: str, path: str) -> Any:
    """What the stopwatch wrote down."""
    trusting = ssl._create_unverified_context() if url.startswith("https") else None
    with urllib.request.urlopen(url + path, context=trusting) as answer:
        return json.load(answer)


@cache
def scratch() -> Path:
    """A folder that is gone when the benchmark has ended."""
    folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def environment(**more: str) -> dict[str, str]:
    """For what is measured: nothing that this user has saved, and nothing that stays."""
    own = {
        "NOTEBOOK_EXT_CONFIG": str(scratch() / "config"),
        "NOTEBOOK_EXT_JOURNAL": str(scratch() / "journal.db"),
    }
    return {**os.environ, **own, **more}


@cache
def certificate() -> str:
    """A PEM file with a certificate for this machine, and its key."""
    both = scratch() / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", both.with_name("key.pem"), "-out", both, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(both.read_bytes() + both.with_name("key.pem").read_bytes())
    return str(both)


@cache
def trusted() -> str:
    """A PEM file with that certificate behind all that are usually trusted: parsing it takes as long."""
    both = Path(certificate())
    bundle = both.with_name("trusted.pem")
    bundle.write_bytes(Path(certifi.where()).read_bytes() + both.read_bytes())
    return str(bundle)


def stopwatch_rate() -> float:
    """Requests per second that it answers when two bare clients ask as fast as they can."""
    with stopwatch() as url, contextlib.ExitStack() as stack:
        clients = [ours_and_floor()[0] for _ in range(2)]
        for client in clients:
            stack.callback(client.end)
            client.order("open", url=url)
        with ThreadPoolExecutor() as threads:
            rates = list(threads.map(lambda client: client.order("hammer", count=4000, lanes=32), clients))
    return sum(rate["count"] for rate in rates) / max(rate["seconds"] for rate in rates)


# ---------------------------------------------------------------------------------- the contenders


@dataclass
class Contender:
    """A process that drives one client, and does as it is told by JSON lines; `driver` documents them.

    Args:
        name: In the table.
        command: Starts it.
        options: What each of its clients is opened with.
    """

    name: str
    command: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def order(self, what: str, **details: Any) -> dict[str, Any]:
        """Give an order and wait for what was seen.

        Raises:
            GaveUp: It did not answer, even long after its patience was over, or its process ended.
        """
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"do": what, **details}).encode() + b"\n")
        line = self._line(process, details.get("patience", PATIENCE) + GRACE)
        if line is None:
            self.end()
            raise GaveUp(f"{self.name} did not come back from {what!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End its process; the next order starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    @contextmanager
    def client(self, url: str, **options: Any) -> Iterator[Self]:
        """A client of its own, in the process that is there."""
        self.order("open", url=url, **self.options, **options)
        yield self
        if self._process is not None:  # it was not given up
            self.order("close")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            trust = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), trusted())
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment(NODE_EXTRA_CA_CERTS=certificate(), **trust),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], patience: float) -> bytes | None:
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + patience
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            if not (part := os.read(process.stdout.fileno(), 1 << 20)):
                return None
            line += part
        return line


class GaveUp(Exception):
    """A contender did not finish what it was told to do."""


def ours_and_floor(**options: Any) -> list[Contender]:
    """The two that are always there; the options are those of `clients`' openers."""
    return [
        Contender(
            name,
            [sys.executable, "-m", "tests.bench.drivers.driver", f"tests.bench.drivers.clients:{opener}"],
            options,
        )
        for name, opener in ((FLOOR, "open_floor"), (OURS, "open_ours"))
    ]


def peers() -> list[Contender]:
    """The released SDKs."""
    python, (node, folder) = peer_environments()
    driver = [python, "-m", "tests.bench.drivers.driver"]
    return [
        Contender(RUNPOD, [*driver, "tests.bench.drivers.released:open_sync"]),
        Contender(RUNPOD_ASYNCIO, [*driver, "tests.bench.drivers.released:open_asyncio"]),
        Contender(RUNPOD_JS, [node, str(Path(__file__).with_name("drivers") / "released.mjs"), str(folder)]),
    ]


def peer_versions() -> dict[str, str]:
    """Of the released SDKs, and of what runs them."""
    python, (node, folder) = peer_environments()
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('runpod', 'aiohttp', 'requests')}))"
    found: dict[str, str] = json.loads(output(python, "-c", code))
    sdk = json.loads((folder / "node_modules/runpod-sdk/package.json").read_text())
    return found | {"runpod-sdk": sdk["version"], "node": output(node, "--version").strip()}


def output(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def peer_environments() -> tuple[str, tuple[str, Path]]:
    """The Python that has `runpod`; `node` and the folder with its modules. Made when first asked for."""
    sys.path.insert(0, str(ROOT / "tests"))  # its helpers are imported as the tests do
    try:
        import peers as environments
    finally:
        sys.path.pop(0)
    return str(environments.runpod_python()), environments.runpod_js()


@contextmanager
def contenders(*, with_peers: bool, **options: Any) -> Iterator[list[Contender]]:
    """All that are to be measured; their processes end with the block."""
    found = ours_and_floor(**options) + (peers() if with_peers else [])
    trusted()  # once, before there are threads that would each make their own
    try:
        yield found
    finally:
        for contender in found:
            contender.end()
