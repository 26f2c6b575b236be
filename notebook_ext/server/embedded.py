"""The embedded endpoints of one process: their address, their token, their life."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import sys
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING

import uvicorn

from notebook_ext.errors import ConfigurationError, InputError
from notebook_ext.server.addresses import WebhookRules, allowed_hosts, is_loopback_host
from notebook_ext.server.app import build_app
from notebook_ext.server.attached_worker import LossRules
from notebook_ext.server.demos import built_in
from notebook_ext.server.external import External
from notebook_ext.server.gate import Gate
from notebook_ext.server.handlers import check_takes_job
from notebook_ext.server.head import BoundedHead
from notebook_ext.server.outbound import WEBHOOK_PAUSE, Upstream, Webhooks
from notebook_ext.server.queue import Dials, Queue
from notebook_ext.server.starter import Starter, read_command
from notebook_ext.server.workers import Pool

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Mapping, Sequence

    from notebook_ext.server.attached import AttachedWorkers
    from notebook_ext.server.attachment import Attachment
    from notebook_ext.server.job import Handler

__all__ = ["EmbeddedServer"]

LOOPBACK = "127.0.0.1"
HANDLER_GRACE = 1.0
"""Seconds that handlers get to end when their endpoint is removed."""
SERVER_GRACE = 0.7
"""Seconds for open connections to close, their polls having been answered."""
IDLE = 75
"""Seconds that a connection without a request stays open: longer than httpx (5 s) or aiohttp (15 s) keep
theirs, or a submission would now and then meet one that is just being closed, and might have been read."""
LAST_TURNS = 5
"""Turns of the loop in which a connection that was just accepted can be seen, and be closed."""
_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]
"""A machine that vanishes closes no connection, and a poll that is open counts as life: it is noticed
after 30 s, where the system has these options."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


class EmbeddedServer:
    """All embedded endpoints of one process, on one running asyncio loop.

    Every method is to be called on that loop.

    It listens on 127.0.0.1; on another address only where one is given, and there too without TLS.

    Args:
        token: What callers send as their API key; None makes one up.
        port: 0 takes a free one.
        bind: One more address to listen on, for workers in containers or on other machines.
        allow_hosts: More names by which it is called, as `NAME` or `NAME:PORT`; workers that do
            not run on this machine are given the first.
        private_webhooks: Whether webhooks may lead to private addresses. Those of this machine they
            may lead to anyway, as long as only this machine can reach the server.
        capture_prints: Whether what handlers print goes to their jobs' logs rather than to
            `sys.stdout` and `sys.stderr`.
        webhook_pause: Seconds between the tries of a webhook.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        port: int = 0,
        bind: str | None = None,
        allow_hosts: Sequence[str] = (),
        private_webhooks: bool = False,
        capture_prints: bool = True,
        webhook_pause: float = WEBHOOK_PAUSE,
    ) -> None:
        self.token = token or secrets.token_urlsafe()
        self.port = port
        self._addresses = _addresses(bind)
        self._allow_hosts = tuple(allow_hosts)
        allowed_hosts(0, self._allow_hosts)  # a wrong one is told before anything is started
        self._capture_prints = capture_prints
        rules = WebhookRules(loopback=not self.is_open, private=private_webhooks)
        self._webhooks = Webhooks(rules, pause=webhook_pause)
        self._queues: dict[str, Queue] = {}
        self._pools: dict[str, Pool] = {}
        self._externals: dict[str, External] = {}
        self._attached: dict[str, AttachedWorkers] = {}
        self._worker_tokens: dict[str, str] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._uvicorn: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = self.base_url if self._serving else "not started"
        return f"<EmbeddedServer {state}: {', '.join(self._queues) or 'nothing served'}>"

    @property
    def base_url(self) -> str:
        """What clients take as the base URL; known once it is started."""
        return f"http://{LOOPBACK}:{self.port}/v2"

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not all(map(is_loopback_host, self._addresses))

    @property
    def outside_url(self) -> str | None:
        """The base URL for what does not run on this machine; None where that cannot reach the server."""
        others = [address for address in self._addresses if not is_loopback_host(address)]
        if self._allow_hosts and others:
            name = self._allow_hosts[0]
            has_port = ":" in name.rpartition("]")[2]
            return f"http://{name}{'' if has_port else f':{self.port}'}/v2"
        named = [address for address in others if not ip_address(address).is_unspecified]
        return f"http://{_in_url(named[0])}:{self.port}/v2" if named else None

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
        listeners = self._bind()
        self.port = listeners[0].getsockname()[1]
        app = build_app(self._queues, self._attached, self._webhooks.rules)
        hosts = allowed_hosts(self.port, (*map(_in_url, self._addresses), *self._allow_hosts))
        config = uvicorn.Config(
            Gate(app, token=self.token, worker_tokens=self._worker_tokens, hosts=hosts),
            http=BoundedHead,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = _Uvicorn(config)
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=listeners))
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
        handler: Handler | str | None,
        *,
        workers: int = 1,
        dials: Dials | None = None,
        return_aggregate_stream: bool = True,
        upstream: Upstream | None = None,
        external: bool = False,
        start: str | Sequence[str] | Starter | None = None,
        on_lost: str = "requeue",
        lost_after: float | None = None,
    ) -> Queue:
        """Serve a handler as the endpoint `name`.

        For a name that is served already, queued jobs get the new handler and running ones keep
        theirs; workers and dials are applied.

        Args:
            name: Its place in the URL: letters, digits, `.`, `_`, `-`.
            handler: A function `handler(job)` as Runpod's workers have it, or the name of a
                built-in one: echo, chat, image, fail, sleep, openai. None leaves the jobs to
                workers in other processes.
            workers: How many jobs run at the same time; how many processes `start` starts.
            dials: Trouble to rehearse.
            return_aggregate_stream: Whether a generator's job has the list of its chunks as output.
            upstream: The server that `openai` asks.
            external: Whether workers of other processes may attach; they may where there is no
                handler, and where some are started. The server listens already then.
            start: The command of a worker process, such as `python handler.py`, to be kept running;
                or the processes that `prepare` has started.
            on_lost: What becomes of the job of an attached worker that is lost: "requeue" queues
                it once more, "fail" fails it.
            lost_after: Seconds of silence after which such a worker is lost; None means 30.

        Raises:
            ConfigurationError: The name, the handler, the command or a number cannot be.
            InputError: The handler cannot be called with a job.
        """
        if not _NAME.match(name):
            raise ConfigurationError(
                f"{name!r} cannot be an endpoint's name: use letters, digits, '.', '_', '-'"
            )
        if workers < 1:
            raise ConfigurationError(f"the endpoint {name!r} needs at least one worker")
        function = built_in(handler, upstream) if isinstance(handler, str) else handler
        if not (function is None or callable(function)):
            raise ConfigurationError(f"the handler of {name!r} cannot be called: {type(function).__name__}")
        if function is not None:
            check_takes_job(name, function)
        external = external or function is None or start is not None
        if external and self._serving is None:
            raise ConfigurationError("workers attach once the server listens: start() it first")
        processes = start if start is None or isinstance(start, Starter) else read_command(start)
        rules = LossRules(on_lost, lost_after)
        queue = self._queues.get(name) or Queue(name, function, notify=self._webhooks.send)
        outside = self._attach(queue) if external else None
        if name not in self._queues:
            self._queues[name] = queue
            self._pools[name] = Pool(queue, capture_prints=self._capture_prints)
        queue.handler = function
        queue.return_aggregate_stream = return_aggregate_stream
        queue.dials = dials or Dials()
        self._pools[name].resize(workers if function is not None else 0)
        self._pools[name].refresh()
        if outside is None:
            self._detach(name)
        else:
            outside.serve(rules, processes, workers)
        return queue

    def prepare(self, name: str, start: str | Sequence[str], workers: int = 1) -> Starter:
        """Start worker processes for an endpoint, which is served as it is until `serve` gets them.

        Args:
            name: Its name.
            start: The command of a process.
            workers: How many of them.

        Raises:
            InputError: Nothing of that name is served.
            ConfigurationError: The command or the number cannot be.
        """
        if name not in self._queues:
            raise InputError(f"nothing is served as {name!r}")
        if workers < 1:
            raise ConfigurationError(f"the endpoint {name!r} needs at least one worker")
        command = read_command(start)
        return self._attach(self._queues[name]).prepare(command, workers)

    def discard(self, name: str, starter: Starter) -> None:
        """End what `prepare` has started; the endpoint is served as it is."""
        external = self._externals.get(name)
        if external is None:
            return
        if external.is_served:
            external.discard(starter)
        else:
            self._detach(name)

    def attachment(self, name: str) -> Attachment | None:
        """How worker processes find an endpoint; None where it takes none."""
        external = self._externals.get(name)
        return external.attachment if external is not None else None

    def starter(self, name: str) -> Starter | None:
        """What keeps the worker processes of an endpoint running; None where nothing does."""
        external = self._externals.get(name)
        return external.starter if external is not None else None

    def remove(self, name: str) -> None:
        """Stop serving `name`: running jobs are stopped, and all its jobs are gone.

        Raises:
            InputError: Nothing of that name is served.
        """
        if name not in self._queues:
            raise InputError(f"nothing is served as {name!r}")
        self._queues.pop(name).close()
        self._close_later(self._pools.pop(name).close(HANDLER_GRACE))
        self._detach(name)

    def _attach(self, queue: Queue) -> External:
        """Let workers of other processes at an endpoint."""
        external = self._externals.get(queue.name)
        if external is None:
            external = External(queue, self.base_url, self.outside_url)
            self._externals[queue.name] = external
            self._attached[queue.name], self._worker_tokens[queue.name] = external.workers, external.token
        return external

    def _detach(self, name: str) -> None:
        external = self._externals.pop(name, None)
        if external is not None:
            del self._attached[name], self._worker_tokens[name]
            external.forbid()
            self._close_later(external.close())

    def _close_later(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _bind(self) -> list[socket.socket]:
        listeners: list[socket.socket] = []
        port = self.port
        try:
            for address in self._addresses:
                listeners.append(_listener(address, port))
                port = listeners[0].getsockname()[1]
        except (OSError, OverflowError) as error:
            for listener in listeners:
                listener.close()
            raise ConfigurationError(
                f"cannot listen on {address} port {port} ({error}); choose another port, or 0 for a free one"
            ) from None
        return listeners

    async def _stop_listening(self) -> None:
        if self._uvicorn is None or self._serving is None:
            return
        self._uvicorn.leave()
        _, pending = await asyncio.wait({self._serving}, timeout=SERVER_GRACE)
        if pending:
            self._uvicorn.hang_up()
            await asyncio.wait(pending, timeout=SERVER_GRACE)
        for _ in range(LAST_TURNS):  # for a worker that has come back in the last moment
            self._uvicorn.hang_up()
            await asyncio.sleep(0)
        self._uvicorn = self._serving = None


def _addresses(bind: str | None) -> tuple[str, ...]:
    """Where to listen: on this machine's own address, whatever else."""
    if bind is None:
        return (LOOPBACK,)
    try:
        address = ip_address(bind)
    except ValueError:
        raise ConfigurationError(f"{bind[:80]!r} is no address to listen on, such as 0.0.0.0") from None
    if address.version == 4 and (address.is_unspecified or bind == LOOPBACK):
        return (bind,)  # that covers it
    return (LOOPBACK, bind)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named: without it, 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: else others could share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for level, option, value in _KEEPALIVE:  # accepted connections inherit them
            listener.setsockopt(level, option, value)
        listener.bind((address, port))
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


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
        # asyncio forgets a connection that it has accepted, but not yet set up, when a server is closed:
        # it would stay open, unanswered. So first nothing is accepted any more, then the rest is set up.
        if sys.platform != "win32":  # whose loop accepts in another way
            for server in self.servers:
                for listener in server.sockets:
                    asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)

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
