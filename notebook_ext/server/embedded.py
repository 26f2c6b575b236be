"""The embedded endpoints of one process: their address, their token, their life."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING

import uvicorn

from notebook_ext.errors import ConfigurationError, InputError
from notebook_ext.server.app import build_app
from notebook_ext.server.demos import built_in
from notebook_ext.server.gate import Gate
from notebook_ext.server.outbound import WEBHOOK_PAUSE, Upstream, Webhooks
from notebook_ext.server.queue import Dials, Handler, Queue
from notebook_ext.server.workers import Pool

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["EmbeddedServer"]

HANDLER_GRACE = 1.0
"""Seconds that handlers get to end when their endpoint is removed."""
SERVER_GRACE = 0.7
"""Seconds for open connections to close, their polls having been answered."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


class EmbeddedServer:
    """All embedded endpoints of one process, on one running asyncio loop.

    Every method is to be called on that loop.

    Args:
        token: What callers send as their API key; None makes one up.
        host: The address to listen on.
        port: 0 takes a free one.
        capture_prints: Whether what handlers print goes to their jobs' logs rather than to
            `sys.stdout` and `sys.stderr`.
        webhook_pause: Seconds between the tries of a webhook.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        capture_prints: bool = True,
        webhook_pause: float = WEBHOOK_PAUSE,
    ) -> None:
        self.token = token or secrets.token_urlsafe()
        self.host = host
        self.port = port
        self._capture_prints = capture_prints
        self._webhooks = Webhooks(pause=webhook_pause)
        self._queues: dict[str, Queue] = {}
        self._pools: dict[str, Pool] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._uvicorn: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = self.base_url if self._serving else "not started"
        return f"<EmbeddedServer {state}: {', '.join(self._queues) or 'nothing served'}>"

    @property
    def base_url(self) -> str:
        """What clients take as the base URL; known once it is started."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v2"

    @property
    def endpoints(self) -> Mapping[str, Queue]:
        """The queues by name, as they are now."""
        return MappingProxyType(self._queues)

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: The port is taken, or the address is not this machine's.
        """
        if self._serving is not None:
            return
        listener = self._bind()
        self.port = listener.getsockname()[1]
        hosts = {f"{host}:{self.port}" for host in ("127.0.0.1", "localhost", "[::1]", self.host.lower())}
        config = uvicorn.Config(
            Gate(build_app(self._queues), token=self.token, hosts=hosts),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = _Uvicorn(config)
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        await self._uvicorn.listening.wait()

    async def stop(self) -> None:
        """End the long polls, the handlers, and everything else, within about 2 seconds."""
        for name in list(self._queues):
            self.remove(name)
        web = asyncio.create_task(self._stop_listening())
        await asyncio.gather(web, self._webhooks.close(), *self._closing)

    def serve(
        self,
        name: str,
        handler: Handler | str,
        *,
        workers: int = 1,
        dials: Dials | None = None,
        return_aggregate_stream: bool = True,
        upstream: Upstream | None = None,
    ) -> Queue:
        """Serve a handler as the endpoint `name`.

        For a name that is served already, queued jobs get the new handler and running ones keep
        theirs; workers and dials are applied.

        Args:
            name: Its place in the URL: letters, digits, `.`, `_`, `-`.
            handler: A function `handler(job)` as Runpod's workers have it, or the name of a
                built-in one: echo, chat, image, fail, sleep, openai.
            workers: How many jobs run at the same time.
            dials: Trouble to rehearse.
            return_aggregate_stream: Whether a generator's job has the list of its chunks as output.
            upstream: The server that `openai` asks.

        Raises:
            ConfigurationError: The name, the handler or the number of workers cannot be.
        """
        if not _NAME.match(name):
            raise ConfigurationError(
                f"{name!r} cannot be an endpoint's name: use letters, digits, '.', '_', '-'"
            )
        if workers < 1:
            raise ConfigurationError(f"the endpoint {name!r} needs at least one worker")
        function = built_in(handler, upstream) if isinstance(handler, str) else handler
        if not callable(function):
            raise ConfigurationError(f"the handler of {name!r} cannot be called: {type(function).__name__}")
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(name, function, notify=self._webhooks.send)
            self._pools[name] = Pool(queue, capture_prints=self._capture_prints)
        queue.handler = function
        queue.return_aggregate_stream = return_aggregate_stream
        queue.dials = dials or Dials()
        self._pools[name].resize(workers)
        self._pools[name].refresh()
        return queue

    def remove(self, name: str) -> None:
        """Stop serving `name`: running jobs are stopped, and all its jobs are gone.

        Raises:
            InputError: Nothing of that name is served.
        """
        if name not in self._queues:
            raise InputError(f"nothing is served as {name!r}")
        self._queues.pop(name).close()
        closing = asyncio.create_task(self._pools.pop(name).close(HANDLER_GRACE))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named: without it, 40 ms an answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: else others could share the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(1024)
        except (OSError, OverflowError) as error:
            listener.close()
            raise ConfigurationError(
                f"cannot listen on {self.host} port {self.port} ({error}); "
                "choose another port, or 0 for a free one"
            ) from None
        return listener

    async def _stop_listening(self) -> None:
        if self._uvicorn is None or self._serving is None:
            return
        self._uvicorn.leave()
        _, pending = await asyncio.wait({self._serving}, timeout=SERVER_GRACE)
        if pending:
            self._uvicorn.hang_up()
            await asyncio.wait(pending, timeout=SERVER_GRACE)
        self._uvicorn = self._serving = None


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves the process's signals alone, and does nothing between requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._leaving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Wait; uvicorn's own loop wakes ten times a second to look at a flag."""
        await self._leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def leave(self) -> None:
        """Answer what is being asked, and end."""
        self.should_exit = True
        self._leaving.set()

    def hang_up(self) -> None:
        """End now: a client that does not read its answer would be waited for."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
