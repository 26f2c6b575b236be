"""No test touches what is the user's, or leaves something running behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from browser.environments import make_environments
from inshell import KEY, Gate, Notebook
from IPython.core.interactiveshell import InteractiveShell
from rude import elsewhere as elsewhere_
from rude import rude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from killing import Proxy, Served
    from rude import Respond, Rude

    from notebook_ext.session import Session

OUR_THREADS = "notebook_ext"
FOREIGN_KEYS = ("RUNPOD_API_KEY", "TENSORONE_API_KEY", "TENSORONE_BASE_URL")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", action="store_true", help="make the README's pictures anew")
    parser.addoption(
        "--full-size", action="store_true", help="read a journal of 1,000,000 chunks, stream 100 MB"
    )
    parser.addoption("--write-faults", action="store_true", help="write FAULTS.md anew")
    parser.addoption("--fuzz", type=int, default=2_000, help="so many broken answers to a real client")
    parser.addoption("--kills", type=int, help="kill so many kernels, and print what became of their jobs")
    parser.addoption(
        "--load",
        type=float,
        metavar="MINUTES",
        help="load a server for so long, and print what became of all jobs",
    )


def pytest_configure() -> None:
    """Stopping works in the tests and in what they start, also where a shell runs them in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser last: it is slow, and Playwright keeps an event loop running in the main thread."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.fixture(scope="session")
def environments() -> dict[str, Path]:
    """The Python of an environment with each ipykernel version that is tested."""
    return make_environments()


@pytest.fixture(scope="session", autouse=True)
def isolated_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and settings from outside are not seen, by the servers of the session either."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("NOTEBOOK_EXT_") or name in FOREIGN_KEYS:
                patch.delenv(name)
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        home = tmp_path_factory.mktemp("home")
        for name in (
            "NOTEBOOK_EXT_CONFIG",
            "NOTEBOOK_EXT_JOURNAL",
            "NOTEBOOK_EXT_WORKERS",
            "IPYTHONDIR",
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
        ):
            patch.setenv(name, str(home / name.lower()))
        yield


@pytest.fixture(autouse=True)
def isolated(isolated_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test saves its endpoints in a folder of its own, and finds none above where it runs."""
    monkeypatch.setenv("NOTEBOOK_EXT_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NOTEBOOK_EXT_JOURNAL", str(tmp_path / "journal.db"))
    monkeypatch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path / "workers"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread of ours or a socket; what its module shares is older than the test."""
    threads, sockets = _our_threads(), _sockets()
    yield
    deadline = time.monotonic() + 5
    while (left := _our_threads() - threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads left running: {sorted(thread.name for thread in left)}"
    # A thread that the tests of a module share keeps its connections; browsers and kernels have their own.
    if threads or {mark.name for mark in request.node.iter_markers()} & {"browser", "kernels"}:
        return
    while (open_ := _sockets() - sockets) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not open_, f"sockets left open: {sorted(open_)}"


def _our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(OUR_THREADS)}


def _sockets() -> set[str]:
    """The sockets that this process has open; nothing where the system does not list them."""
    found = set()
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.fixture
def session() -> Iterator[Session]:
    from notebook_ext.session import Session

    it = Session()
    yield it
    it.close()


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Respond], Rude]]:
    """Runs a server that a session only knows by its address."""
    with contextlib.ExitStack() as stack:
        yield lambda respond: stack.enter_context(elsewhere_(rude(respond)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that jobs are counted at, in a process of its own."""
    from killing import server

    with server(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture
def way(served: Served) -> Iterator[Proxy]:
    """The way to it, which can be cut."""
    from killing import proxy

    with proxy(served.url) as it:
        yield it


@pytest.fixture
def shell() -> Iterator[Notebook]:
    yield Notebook()
    InteractiveShell.clear_instance()


@pytest.fixture
def notebook(shell: Notebook) -> Iterator[Notebook]:
    shell.run("%load_ext notebook_ext")
    yield shell
    shell.run("%unload_ext notebook_ext")


@pytest.fixture
def echo(notebook: Notebook) -> Notebook:
    """A notebook that serves `echo`, and uses it where no endpoint is named."""
    notebook.run("%endpoint serve echo --handler echo\n%endpoint use echo")
    return notebook


@pytest.fixture
def provider() -> Iterator[SimpleNamespace]:
    """A provider that is not this session's: its base URL, its server, and a key that is no secret in here only."""
    from notebook_ext.loop import LoopThread
    from notebook_ext.server import EmbeddedServer  # brings starlette, which few tests need

    loop, server = LoopThread(), EmbeddedServer(token=KEY)

    async def start() -> None:
        await server.start()
        server.serve("abc123", "echo")

    async def serve(handler: Any, **options: Any) -> None:
        server.serve("abc123", handler, **options)

    loop.submit(start()).result(10)
    yield SimpleNamespace(
        url=server.base_url,
        server=server,
        serve=lambda handler, **options: loop.submit(serve(handler, **options)).result(10),
        sent=lambda: len(server.endpoints["abc123"].records),
    )
    loop.submit(server.stop()).result(10)
    loop.close()


@pytest.fixture
def connected(notebook: Notebook, provider: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    monkeypatch.setenv("LLAMA_KEY", KEY)
    notebook.run(
        f"%endpoint connect llama abc123 --provider {provider.url} --profile vllm --key-env LLAMA_KEY"
    )
    return notebook


@pytest.fixture
def gate(notebook: Notebook) -> Gate:
    gate = Gate()
    notebook.handlers(gate=gate)
    return gate
