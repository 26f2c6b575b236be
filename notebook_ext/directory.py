"""The endpoints that a session knows: served here, connected under a name, or saved."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from notebook_ext import config, providers
from notebook_ext.connection import Connection
from notebook_ext.errors import ConfigurationError

if TYPE_CHECKING:
    from notebook_ext.client import Endpoint
    from notebook_ext.entry import Entry
    from notebook_ext.limits import Limits
    from notebook_ext.server import EmbeddedServer, Queue
    from notebook_ext.server.attachment import Attachment
    from notebook_ext.server.starter import Starter
    from notebook_ext.session import Session

__all__ = ["DEMO", "Directory"]

DEMO = "demo"
"""The endpoint that needs no account: the built-in `chat` handler, served when it is first called."""
START_WAIT = 10.0
"""Seconds that a cell waits for the first worker process; one that loads a model takes longer, and may."""
_PROMPTED = ("chat", "openai")
"""Built-in handlers whose input has a prompt and its settings where the profile `chat` puts them."""
_OF_SERVER = ("port", "bind", "allow_hosts", "private_webhooks")
"""What is said once, for all endpoints of a session."""


class Directory:
    """Endpoints by name, for one session.

    Attributes:
        config: The saved ones.

    Args:
        session: On whose loop they are called and served.
        saved: The saved endpoints; None reads the user's and the project's files.
    """

    def __init__(self, session: Session, saved: config.Config | None = None) -> None:
        self._session = session
        self.config = saved if saved is not None else config.Config()
        self._connections: dict[str, Connection] = {}
        self._clients: list[Endpoint] = []  # all that were made: a name may lead elsewhere by now
        self._limits: dict[tuple[str, str], Limits] = {}
        self._server: EmbeddedServer | None = None
        self._server_options: dict[str, Any] = {}
        self._default: str | None = None

    def connect(
        self,
        name: str,
        endpoint_id: str | None = None,
        *,
        provider: str | providers.Provider = "runpod",
        profile: str = "raw",
        key_variable: str | None = None,
        rate: float | None = None,
    ) -> Connection:
        """Find an endpoint by its name, or give a name to one.

        Args:
            name: A name that is served, connected or saved; or a new one for `endpoint_id`.
            endpoint_id: The provider's id; None looks the name up.
            provider: "runpod", "tensorone", "tensorone-rest", a base URL, or a Provider.
            profile: How input is laid out and output read.
            key_variable: The environment variable with its key; None means the provider's.
            rate: Dollars per second of running time.

        Raises:
            ConfigurationError: No such name; the sentence names near ones.
        """
        if endpoint_id is None:
            return self._known(name)
        connection = self._connection(
            name, endpoint_id, providers.resolve(provider), profile, key_variable, rate
        )
        self._connections[name] = connection
        return connection

    def names(self) -> list[str]:
        """All names that `connect` finds."""
        return sorted({DEMO, *self._connections, *self.config.endpoints})

    def describe(self, name: str) -> str:
        """Where a name leads, in words."""
        connection, saved = self._connections.get(name), self.config.endpoints.get(name)
        if connection is not None and connection.served:
            return f"served here, {connection.provider.base_url}/{name}"
        if saved is not None:
            return f"{saved.endpoint_id} at {saved.provider}, profile {saved.profile}"
        if connection is not None:
            return f"{connection.endpoint.id} at {connection.provider.name}, this session only"
        return "the built-in demo, which needs no account"

    def profile(self, name: str) -> str:
        """How the input of a name's endpoint is laid out; nothing is connected or served for that."""
        found = self._connections.get(name) or self.config.endpoints.get(name)
        if found is not None:
            return found.profile
        return "chat" if name == DEMO else "raw"

    def default_name(self) -> str:
        """The endpoint that is meant where none is named."""
        return self._default or self.config.default or DEMO

    def use(self, name: str) -> None:
        """Make an endpoint the default one: in the config where it is saved, else for this session.

        Raises:
            ConfigurationError: No such name.
        """
        self.connect(name)
        self._default = name
        if name in self.config.endpoints:
            self.config.use(name)

    def forget(self, name: str) -> None:
        """Forget a name of this session; what is saved is the config's to forget.

        Its client stays open until the session ends: jobs that run are followed by it.
        """
        if self._default == name:
            self._default = None
        self._connections.pop(name, None)
        if self._server is not None and name in self._server.endpoints:
            self._session.on_loop(self._server.remove, name)

    def serve(self, name: str, handler: Any, **options: Any) -> Connection:
        """Serve a handler on an embedded endpoint: the same protocol, on this machine, in this process.

        Args:
            name: The endpoint's name; serving it again swaps the handler for new jobs.
            handler: A callable in the shape that Runpod's workers use, or a built-in one's name;
                None leaves the jobs to workers in other processes.
            **options: `workers`, `dials`, `return_aggregate_stream`, `upstream`, `external`,
                `start`, `on_lost`, `lost_after`; and for the first one that is served `port`,
                `bind`, `allow_hosts`, `private_webhooks`. They are those of `server.EmbeddedServer`.

        Raises:
            ConfigurationError: It cannot be served so, or the processes of `start` die at once. What
                the name has served before, it then still does.
        """
        server = self._serving({key: options.pop(key) for key in _OF_SERVER if key in options})
        if options.get("start") is not None and name in server.endpoints:
            return self._serve_in_place(server, name, handler, options)
        self._session.on_loop(lambda: server.serve(name, handler, **options))
        try:
            connection = self._served(server, name, handler)
            starter = server.starter(name)
            if starter is not None:
                self._session.ask(starter.settled(START_WAIT))
        except BaseException:  # also of who interrupts the wait: no process is to be left behind
            self.forget(name)
            raise
        return connection

    def _serve_in_place(
        self, server: EmbeddedServer, name: str, handler: Any, options: dict[str, Any]
    ) -> Connection:
        """Serve a name by worker processes, once one of them has asked for a job."""
        starter: Starter | None = None
        try:
            starter = self._session.on_loop(
                server.prepare, name, options["start"], options.get("workers") or 1
            )
            self._session.ask(starter.settled(START_WAIT))
            ready = {**options, "start": starter}
            self._session.on_loop(lambda: server.serve(name, handler, **ready))
        except BaseException as error:  # also of who interrupts the wait
            if starter is not None:
                self._session.on_loop(server.discard, name, starter)
            if isinstance(error, ConfigurationError):
                raise ConfigurationError(f"{name} is served as before, since {error}") from None
            raise
        return self._served(server, name, handler)

    def _served(self, server: EmbeddedServer, name: str, handler: Any) -> Connection:
        profile = "chat" if handler in _PROMPTED else "raw"
        connection = self._connections.get(name)
        if connection is None or not connection.served:
            provider = providers.local(server.base_url, lambda: server.token)
            connection = self._connection(name, name, provider, profile, None, None)
            connection.served = True
            self._connections[name] = connection
        return connection

    def queue(self, name: str) -> Queue | None:
        """The queue of an endpoint that is served here; None for any other."""
        return self._server.endpoints.get(name) if self._server is not None else None

    def attachment(self, name: str) -> Attachment | None:
        """How worker processes find an endpoint that is served here; None where it takes none."""
        return self._server.attachment(name) if self._server is not None else None

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines can reach what is served here."""
        return self._server is not None and self._server.is_open

    def starter(self, name: str) -> Starter | None:
        """What keeps an endpoint's worker processes running; None where nothing does."""
        return self._server.starter(name) if self._server is not None else None

    def _known(self, name: str) -> Connection:
        found = self._connections.get(name)
        if found is not None:
            return found
        saved = self.config.endpoints.get(name)
        if saved is not None:
            provider = providers.resolve(saved.provider)
            connection = self._connection(
                name, saved.endpoint_id, provider, saved.profile, saved.key_variable, saved.rate
            )
            self._connections[name] = connection
            return connection
        if name == DEMO:
            return self.serve(DEMO, "chat")
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(self.names())}."
        raise ConfigurationError(
            f"there is no endpoint '{name}'; {hint} `%endpoint connect {name} ID` makes it known."
        )

    def _connection(
        self,
        name: str,
        endpoint_id: str,
        provider: providers.Provider,
        profile: str,
        key_variable: str | None,
        rate: float | None,
    ) -> Connection:
        from notebook_ext.client import Endpoint  # brings httpx, which %load_ext must not wait for
        from notebook_ext.limits import Limits

        if key_variable:
            provider = replace(provider, key_variable=key_variable)  # its own: errors name it
        limits = self._limits.setdefault((provider.base_url, endpoint_id), Limits(provider.limits))
        endpoint = Endpoint(endpoint_id, provider, limits=limits, name=name)
        self._clients.append(endpoint)
        return Connection(self._session, name, endpoint, profile=profile, rate=rate)

    def _serving(self, options: dict[str, Any]) -> EmbeddedServer:
        chosen = {name: value for name, value in options.items() if value}
        if self._server is None:
            from notebook_ext.server import EmbeddedServer  # brings starlette and uvicorn

            server = EmbeddedServer(**chosen)
            self._session.ask(server.start())
            self._server, self._server_options = server, {**chosen, "port": server.port}
        elif not chosen.items() <= self._server_options.items():
            raise ConfigurationError(
                f"this session already serves at {self._server.base_url}; one port serves all its endpoints, "
                "and the first one that is served says how"
            )
        return self._server

    def connection_of(self, entry: Entry) -> Connection:
        """The connection by which a job was submitted, or one like it: a name may lead elsewhere by now."""
        is_known = entry.endpoint in self._connections or entry.endpoint in self.config.endpoints
        if is_known:
            known = self._known(entry.endpoint)
            if (known.provider.base_url, known.endpoint.id) == (entry.base_url, entry.endpoint_id):
                return known
        named = providers.PROVIDERS.get(entry.provider)
        provider = replace(named, base_url=entry.base_url) if named else providers.resolve(entry.base_url)
        return self._connection(
            entry.endpoint, entry.endpoint_id, provider, entry.profile, entry.key_variable, entry.rate
        )

    # ------------------------------------------------------------------ the end

    @property
    def is_open(self) -> bool:
        """Whether there is anything to close."""
        return self._server is not None or bool(self._clients)

    async def close(self) -> None:
        """Close every client, and end what is served; on the session's loop."""
        for endpoint in self._clients:
            await endpoint.aclose()
        if self._server is not None:
            await self._server.stop()
