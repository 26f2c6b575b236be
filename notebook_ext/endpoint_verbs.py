"""The verbs that are about endpoints, not jobs: what they do, and the line that each of them says."""

from __future__ import annotations

import difflib
import getpass
import inspect
import os
import shlex
from typing import TYPE_CHECKING, Any, cast

from notebook_ext import config, keys, profiles, providers, workercode
from notebook_ext.dialects import Operation
from notebook_ext.errors import ConfigurationError, InputError
from notebook_ext.options import HANDLERS
from notebook_ext.types import JobStatus
from notebook_ext.vocabulary import VERBS

if TYPE_CHECKING:
    from notebook_ext.arguments import Arguments
    from notebook_ext.grammar import Command
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["EndpointVerbs"]

_DIALS = ("cold-start", "fail", "throttle", "latency", "expire", "rate-limit")


class EndpointVerbs:
    """Does what the commands of one shell ask of endpoints.

    Args:
        shell: The InteractiveShell, whose variables the commands see.
        session: What they call.
        front_end: Where somebody can be asked.
    """

    def __init__(self, shell: Any, session: Session, front_end: FrontEnd) -> None:
        self._shell = shell
        self._session = session
        self._front_end = front_end
        self._namespace: dict[str, Any] = shell.user_ns
        self._served: dict[str, tuple[Any, str | None]] = {}  # their handlers, and the code of their cells

    def purge(self, command: Command, arguments: Arguments) -> str:
        """Remove what is queued, after asking."""
        connection = self._session.connect(arguments.text("target") or self._session.endpoints.default_name())
        name = connection.name
        connection.provider.route(Operation.PURGE_QUEUE)  # before anybody is asked about it
        if not command.arguments.yes:
            waiting = connection.health().jobs["in_queue"]
            if not waiting:
                return f"nothing is queued on {name}"
            mine = sum(
                handle.endpoint == name and handle.id != "" and handle.status is JobStatus.IN_QUEUE
                for handle in self._session.active()
            )
            question = f"Remove {_queued(waiting)} of {name} ({mine} from this notebook)?"
            if self._front_end.is_headless:
                raise InputError(f"{question} Nobody can be asked here: add --yes")
            try:
                answer = input(f"{question} [y/N] ")
            except EOFError:
                raise InputError("nobody answered, so nothing was removed; --yes does not ask") from None
            if answer.strip().lower() not in ("y", "yes"):
                return "nothing was removed"
        removed = connection.purge_queue()
        return f"{_queued(removed)} of {name} removed; running ones go on"

    def serve(self, command: Command, arguments: Arguments) -> str | None:
        """Serve a handler, or no longer; None where the cell's own code has failed, as its end shows."""
        options, name = command.arguments, command.arguments.name
        if name in VERBS:
            raise InputError(f"'{name}' is a verb of %endpoint, so it cannot name an endpoint")
        if options.stop:
            if self._session.endpoints.queue(name) is None:
                raise InputError(f"'{name}' is not served here")
            self._session.endpoints.forget(name)
            self._served.pop(name, None)
            return f"{name} is served no longer, and its jobs are gone"
        is_elsewhere = command.body is None and options.handler is None and _takes_workers(options)
        workers = arguments.integer("workers") or 1
        if is_elsewhere and options.start is None and workers != 1:
            raise InputError(
                "--workers is for a handler of this notebook or --start; how many workers attach by "
                "--external is decided where they are started"
            )
        handler = None if is_elsewhere else self._handler(command)
        if handler is None and not is_elsewhere:
            return None
        queue = self._session.endpoints.queue(name)
        is_set_aside = is_elsewhere and queue is not None and queue.handler is not None
        had_started = self._session.endpoints.starter(name) is not None and options.start is None
        connection = self._session.serve(
            name,
            handler,
            workers=workers,
            port=arguments.integer("port") or 0,
            bind=arguments.text("bind"),
            allow_hosts=tuple(options.allow_host),
            external=options.external,
            start=arguments.text("start"),
            on_lost=options.on_lost,
            lost_after=arguments.limit("lost_after"),
            return_aggregate_stream=not options.no_aggregate,
            dials=_dials(arguments),
            upstream=_upstream(arguments),
        )
        if not is_elsewhere:
            self._served[name] = handler, command.body
        endpoints = self._session.endpoints
        here = f"{workers} worker{'' if workers == 1 else 's'}" if handler is not None else ""
        return "\n".join(
            (
                f"{name} is served at {connection.provider.base_url}/{name}{' by ' if here else ''}{here}.",
                *(
                    ["Its function was set aside; serve the cell again to have it back."]
                    if is_set_aside
                    else []
                ),
                *(["The workers that it had started were ended."] if had_started else []),
                *self._workers_outside(name),
                *_rehearsed(options),
                *(["It is open to other machines, without TLS."] if endpoints.is_open_to_others else []),
                f"%endpoint run {name} -- PROMPT calls it, %endpoint serve {name} --stop ends it.",
            )
        )

    def _workers_outside(self, name: str) -> list[str]:
        """What there is to know about workers in other processes; their key is no part of it."""
        attachment, starter = (
            self._session.endpoints.attachment(name),
            self._session.endpoints.starter(name),
        )
        if attachment is None:
            return []
        if starter is not None:
            processes = f"{starter.count} worker process{'' if starter.count == 1 else 'es'}"
            return [
                f"{processes} of its own: {shlex.join(starter.command)}, with the output in {starter.log()}."
            ]
        from notebook_ext.server.attachment import foreign_key

        foreign = foreign_key()
        warning = f"{foreign} has a key, which such a worker sends instead: move that file away first."
        return [
            "Workers attach to it. Each of these starts one, in a terminal; their key is in the file only.",
            f"`%endpoint code {name} --worker --to handler.py` writes one from a cell; its Python needs "
            "`pip install runpod`.",
            attachment.command(),
            attachment.docker(),
            *([warning] if foreign is not None else []),
        ]

    def worker(self, name: str | None) -> str:
        """The handler of an endpoint that is served here, as the program of a Runpod worker.

        Where workers of other processes do its jobs, that is the handler that it had before.
        """
        queue = self._session.endpoints.queue(name) if name is not None else None
        if name is None or queue is None:
            raise InputError(
                f"'{name or self._session.endpoints.default_name()}' is not served here: "
                "%endpoint code NAME --worker writes the handler of an endpoint that this notebook serves"
            )
        served, code = self._served.get(name, (None, None))
        handler = queue.handler or served
        if not callable(handler):
            raise InputError(
                f"'{name}' has no function of this notebook, only workers of other processes; "
                f"a cell %%endpoint serve {name} that defines handler(job) gives it one"
            )
        return workercode.worker(
            name,
            handler,
            self._namespace,
            cell=code if handler is served else None,
            aggregates=queue.return_aggregate_stream,
        )

    def _handler(self, command: Command) -> Any:
        """What is to be served: the cell's own function, one of the notebook, or a built-in one's name.

        None where the cell's own code has failed, which its end shows.
        """
        wanted = command.arguments.handler
        if command.body is not None:
            return self._defined(command.body, wanted or "handler")
        if wanted is None:
            raise InputError(
                f"what is to be served? --handler FUNCTION, --handler {'|'.join(HANDLERS)}, a "
                "cell %%endpoint serve NAME that defines handler(job), or --external for workers elsewhere"
            )
        found = self._namespace.get(wanted)
        if callable(found) or wanted in HANDLERS:
            return found if callable(found) else wanted
        functions = [name for name, value in self._namespace.items() if inspect.isfunction(value)]
        near = difflib.get_close_matches(wanted, [*HANDLERS, *functions], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"built in are {', '.join(HANDLERS)}"
        raise InputError(f"there is neither a function nor a built-in handler '{wanted}'; {hint}")

    def _defined(self, body: str, name: str) -> Any:
        """Run a cell's body in the user's namespace, and take the function that it defines.

        None where the code fails. The error is then that of the cell, at its end, as if it had no
        magic above it: raised here, it would stand under our frames and IPython's.
        """
        before = self._namespace.pop(name, None)
        try:
            failed = self._execute(body)
            if failed is not None:
                self._front_end.at_end_of_cell(lambda: failed)
                return None
            if not callable(self._namespace.get(name)):
                raise InputError(f"the cell defines no function '{name}'; `def {name}(job): ...` is expected")
        finally:
            if before is not None:
                self._namespace.setdefault(name, before)
        return self._namespace[name]

    def _execute(self, body: str) -> BaseException | None:
        """Run a cell's body in the user's namespace; returns what it raised."""
        shell = cast("Any", self._shell)
        try:
            # the magic's own line is the cell's first one: tracebacks count from there
            source, raw = ("\n" + text for text in (shell.transform_cell(body), body))
            cells = shell.history_manager.input_hist_parsed  # the shell's count may be the next cell's by now
            filename = shell.compile.cache(source, len(cells) - 1, raw_code=raw)
            exec(compile(source, filename, "exec"), self._namespace)  # noqa: S102 - the user's own
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the cell reports all of them
            frames = error.__traceback__
            return error.with_traceback(frames.tb_next if frames is not None else None)  # without ours
        return None

    def connect(self, command: Command, arguments: Arguments) -> str:
        """Save an endpoint under a name."""
        options, name = command.arguments, command.arguments.name
        where = arguments.text("endpoint") or ""
        base, endpoint_id = providers.split_endpoint_url(where)
        is_url = "://" in where
        if is_url and endpoint_id is None:
            raise InputError(
                "a URL to connect to ends in /v2/ENDPOINT-ID; or give the id, and --provider URL"
            )
        if is_url and options.provider:
            raise InputError("the URL says already which provider it is; leave --provider out")
        if self._session.endpoints.queue(name) is not None:
            raise InputError(f"'{name}' is served by this notebook; choose another name, or stop it first")
        profiles.get(options.profile)
        saved = config.SavedEndpoint(
            name=name,
            endpoint_id=endpoint_id or where,
            provider=base if is_url else options.provider or "runpod",
            profile=options.profile,
            key_variable=options.key_env,
            rate=arguments.number("rate"),
        )
        path = self._session.endpoints.config.save(saved, project=options.project)
        self._session.endpoints.forget(name)
        provider = self._session.connect(name).provider
        if options.use:
            self._session.endpoints.use(name)
        key = keys.find_key(provider, name=name, variable=saved.key_variable)
        has_key = f"its key comes from {key.source}" if key else f"it has no key yet: %endpoint login {name}"
        return f"{name} is {saved.endpoint_id} at {provider.name}, saved in {path}; {has_key}"

    def use(self, command: Command) -> str:
        """Make an endpoint the default one."""
        self._session.endpoints.use(command.arguments.name)
        return f"{command.arguments.name} is the default endpoint"

    def list(self) -> str:
        """List the endpoints that are known."""
        default, names = self._session.endpoints.default_name(), self._session.endpoints.names()
        width = max(map(len, names))
        return "\n".join(
            f"{'*' if name == default else ' '} {name:{width}}  {self._session.endpoints.describe(name)}"
            for name in names
        )

    def forget(self, command: Command) -> str:
        """Forget a saved endpoint."""
        name = command.arguments.name
        if self._session.endpoints.queue(name) is not None:
            raise InputError(f"'{name}' is served by this notebook: %endpoint serve {name} --stop ends it")
        path = self._session.endpoints.config.forget(name)
        self._session.endpoints.forget(name)
        return f"{name} is forgotten in {path}"

    def login(self, command: Command) -> str:
        """Keep a key that is typed where nobody sees it."""
        name = command.arguments.name
        saved = self._session.endpoints.config.endpoints.get(name)
        if saved is not None:
            provider = providers.resolve(saved.provider)
        elif name in providers.PROVIDERS:
            provider = providers.resolve(name)
        else:
            provider = self._session.connect(name).provider
        if self._front_end.is_headless:
            variable = (saved.key_variable if saved else None) or provider.key_variable
            raise ConfigurationError(
                f"nobody can type a key here: set the variable {variable} before the run"
            )
        key = getpass.getpass(f"Key of {name}: ")
        where = keys.remember_key(provider, key, name=name if saved is not None else None)
        kept = "kept in the keyring" if where == "keyring" else "remembered until this kernel ends"
        return f"the key of {name} is {kept}"


def _queued(count: int) -> str:
    return f"{count} queued job{'' if count == 1 else 's'}"


def _takes_workers(options: Any) -> bool:
    return options.external or options.start is not None


def _rehearsed(options: Any) -> list[str]:
    """The dials that are set, as they were given."""
    dials = ((name, getattr(options, name.replace("-", "_"))) for name in _DIALS)
    given = ", ".join(f"{name} {value}" for name, value in dials if value is not None)
    return [f"It rehearses trouble: {given}."] * bool(given)


def _dials(arguments: Arguments) -> Any:
    from notebook_ext.server import Dials  # brings starlette

    return Dials(
        cold_start=arguments.seconds("cold_start") or 0.0,
        fail=arguments.number("fail") or 0.0,
        throttle=arguments.number("throttle") or 0.0,
        latency=arguments.seconds("latency") or 0.0,
        expire=arguments.seconds("expire"),
        rate_limit=arguments.integer("rate_limit"),
    )


def _upstream(arguments: Arguments) -> Any:
    url = arguments.text("upstream")
    if url is None:
        return None
    from notebook_ext.server import Upstream

    variable = arguments.text("upstream_key_env")
    return Upstream(url, api_key=lambda: os.environ.get(variable) if variable else None)
