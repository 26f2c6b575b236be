"""Serve endpoints to other programs: `python -m notebook_ext.server NAME=FILE.py:FUNCTION NAME ...`."""

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
from typing import Any, NoReturn, TextIO

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
        metavar="NAME[=HANDLER]",
        help="FILE.py:FUNCTION (FUNCTION is 'handler' where it is left out), or a built-in handler: "
        "echo, chat, image, fail, sleep, openai. NAME alone leaves its jobs to workers that attach "
        "from processes of their own; how one does is said on the standard error",
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--workers", type=int, default=1, help="how many jobs of an endpoint run at once (1)")
    parser.add_argument(
        "--upstream", help=f"base URL that 'openai' asks, with the key in {UPSTREAM_KEY_VARIABLE}"
    )
    outside = parser.add_argument_group("workers in processes of their own")
    outside.add_argument("--external", action="store_true", help="also for endpoints with a handler")
    outside.add_argument(
        "--start",
        metavar="COMMAND",
        help="keep --workers processes of it running for each endpoint without a handler, such as "
        "'python handler.py'",
    )
    outside.add_argument(
        "--on-lost",
        default="requeue",
        choices=("requeue", "fail"),
        help="the job of a lost worker: queued again once (requeue, the default), or failed",
    )
    outside.add_argument(
        "--lost-after", type=float, metavar="SECONDS", help="silence after which one is lost (30)"
    )
    reach = parser.add_argument_group("who reaches it; by default, this machine alone")
    reach.add_argument("--bind", metavar="ADDRESS", help="also listen there, without TLS, such as 0.0.0.0")
    reach.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to that name; repeatable; workers outside are given the first",
    )
    reach.add_argument(
        "--private-webhooks", action="store_true", help="webhooks may lead to private addresses"
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
    names = [argument.partition("=")[0] for argument in arguments.endpoints]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EndpointError(f"{twice!r} is given twice: each endpoint has a name of its own")
    if arguments.start is not None and all("=" in argument for argument in arguments.endpoints):
        raise EndpointError("--start is for an endpoint without a handler: NAME in place of NAME=HANDLER")
    server = EmbeddedServer(
        token=token,
        port=arguments.port,
        bind=arguments.bind,
        allow_hosts=arguments.allow_host,
        private_webhooks=arguments.private_webhooks,
        capture_prints=False,
    )
    try:
        await server.start()
        for argument in arguments.endpoints:
            name, has_handler, handler = argument.partition("=")
            server.serve(
                name,
                _find(argument, handler) if has_handler else None,
                workers=arguments.workers,
                upstream=upstream,
                external=arguments.external,
                start=None if has_handler else arguments.start,
                on_lost=arguments.on_lost,
                lost_after=arguments.lost_after,
            )
        if server.is_open:
            print(f"open to other machines, without TLS, at port {server.port}", file=sys.stderr)
        print(json.dumps(_address(server, with_token=not token)), file=answers, flush=True)
        await stop.wait()
    finally:
        await server.stop()


def _address(server: EmbeddedServer, *, with_token: bool) -> dict[str, Any]:
    """What callers need to know, and where workers find what they need; that key stays in its file."""
    address: dict[str, Any] = {"base_url": server.base_url}
    if with_token:
        address["token"] = server.token
    workers: dict[str, dict[str, str]] = {}
    for name in server.endpoints:
        attachment = server.attachment(name)
        if attachment is None:
            continue
        workers[name] = {"env_file": str(attachment.env_file)}
        if attachment.outside_file is not None:
            workers[name]["outside_env_file"] = str(attachment.outside_file)
        starter = server.starter(name)
        if starter is not None:
            workers[name]["log"] = str(starter.log())
        else:
            print(f"workers of {name}:\n  {attachment.command()}\n  {attachment.docker()}", file=sys.stderr)
    return {**address, "workers": workers} if workers else address


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":  # where a loop cannot handle signals
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        else:
            loop.add_signal_handler(number, stop.set)


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
