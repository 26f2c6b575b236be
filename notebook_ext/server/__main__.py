"""Serve handlers to other programs: `python -m notebook_ext.server NAME=FILE.py:FUNCTION ...`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn, TextIO

from notebook_ext.errors import EndpointError
from notebook_ext.server import EmbeddedServer, Handler, Upstream

TOKEN_VARIABLE = "NOTEBOOK_EXT_TOKEN"  # noqa: S105 - the name of a variable
UPSTREAM_KEY_VARIABLE = "NOTEBOOK_EXT_UPSTREAM_KEY"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = _parser().parse_args()
    # The address is all that goes to stdout: what handlers print, now and later, goes to stderr.
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        asyncio.run(_serve(arguments, answers))
    except EndpointError as error:
        _parser().error(str(error))
    if threading.active_count() > 1:
        # A handler has left a thread that may never end. Python would wait for it, even for a
        # daemon where it belongs to an executor.
        sys.stderr.flush()
        os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m notebook_ext.server",
        description="Serve handlers at http://127.0.0.1:PORT/v2/NAME, as Runpod serves workers. Prints one "
        f"line of JSON when it listens. The token is taken from {TOKEN_VARIABLE}, or made up and printed.",
    )
    parser.add_argument(
        "endpoints",
        nargs="+",
        metavar="NAME=HANDLER",
        help="FILE.py:FUNCTION (FUNCTION is 'handler' where it is left out), or a built-in handler: "
        "echo, chat, image, fail, sleep, openai",
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--workers", type=int, default=1, help="how many jobs of an endpoint run at once")
    parser.add_argument(
        "--upstream", help=f"base URL that 'openai' asks, with the key in {UPSTREAM_KEY_VARIABLE}"
    )
    return parser


async def _serve(arguments: argparse.Namespace, answers: TextIO) -> None:
    stop = asyncio.Event()
    _on_signals(stop)
    token = os.environ.get(TOKEN_VARIABLE)
    upstream = (
        Upstream(arguments.upstream, lambda: os.environ.get(UPSTREAM_KEY_VARIABLE))
        if arguments.upstream
        else None
    )
    server = EmbeddedServer(token=token, port=arguments.port, capture_prints=False)
    try:
        for argument in arguments.endpoints:
            name, _, handler = argument.partition("=")
            server.serve(name, _find(argument, handler), workers=arguments.workers, upstream=upstream)
        await server.start()
        line = (
            {"base_url": server.base_url} if token else {"base_url": server.base_url, "token": server.token}
        )
        print(json.dumps(line), file=answers, flush=True)
        await stop.wait()
    finally:
        await server.stop()


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))


def _find(argument: str, handler: str) -> Handler | str:
    """A function in a file, or the name of a built-in handler.

    Raises:
        EndpointError: The file or the function is not there, or the file fails.
    """
    path, _, function = handler.rpartition(":")
    if handler.endswith(".py"):
        path, function = handler, "handler"
    if not handler:
        raise EndpointError(f"{argument!r} is not NAME=FILE.py:FUNCTION or NAME=BUILT-IN")
    if not path.endswith(".py"):
        return handler
    file = Path(path).resolve()
    if not file.is_file():
        raise EndpointError(f"there is no file {path!r}")
    found = getattr(_load(file), function, None)
    if not callable(found):
        raise EndpointError(f"{path!r} has no function {function!r}")
    return found  # type: ignore[no-any-return]  # whatever the user's file holds


_loaded: dict[Path, object] = {}


def _load(file: Path) -> object:
    if file in _loaded:
        return _loaded[file]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as if it were run, so that it finds its neighbours
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(file.stem)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise EndpointError(f"{file.name} failed: {type(error).__name__}: {error}") from error
    finally:
        if shadowed is not None:
            sys.modules[file.stem] = shadowed
    _loaded[file] = module
    return module


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
