"""What the verbs of `%endpoint` do: read the arguments, call the session, choose a view.

Whatever a verb does, a method of the session does; this is the thin skin over it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext import (
    doctor,
    exports,
    footer,
    grammar,
    keys,
    prompts,
    requestcode,
    tables,
)
from notebook_ext.arguments import Arguments
from notebook_ext.cells import JobCells
from notebook_ext.endpoint_verbs import EndpointVerbs
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.handle import JobHandle
from notebook_ext.jobs_pane import job_row
from notebook_ext.memory import Memory
from notebook_ext.panels import Panels
from notebook_ext.repeats import Repeats
from notebook_ext.results import History, JobTable, Results
from notebook_ext.types import Job
from notebook_ext.view import facts
from notebook_ext.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notebook_ext.connection import Connection
    from notebook_ext.entry import Entry
    from notebook_ext.grammar import Command
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session
    from notebook_ext.view import JobView

__all__ = ["Verbs"]

WATCH_EVERY, LEAST_EVERY = 5.0, 1.0
"""Seconds between two questions for an endpoint's counters, unless they are given; and at least."""
GREETING_PATIENCE = 0.5
"""Seconds that `%load_ext` waits to hear how the jobs stand that an earlier kernel left."""
LISTED = 50
"""How many jobs `%endpoint jobs` lists, unless it is told since when; its help says so."""
FULLY_SHOWN = 10
"""How many ended jobs `attach --all` draws; more are listed."""


class Verbs:
    """Does what the commands of one shell ask for.

    Args:
        shell: The InteractiveShell, whose variables the commands see.
        session: What they call.
        front_end: Where they show what they find.
    """

    def __init__(self, shell: Any, session: Session, front_end: FrontEnd) -> None:
        self.session = session
        self._shell = shell
        self._front_end = front_end
        self._cells = JobCells(session, front_end)
        self._results = Results(shell.user_ns, front_end, self._cells)
        self._panels = Panels(session, front_end)
        self._endpoints = EndpointVerbs(shell, session, front_end)
        self._namespace: dict[str, Any] = shell.user_ns
        self._commands: dict[int, Command] = {}  # that jobs came from
        self._memory = Memory(session, self._commands)
        self.repeats = Repeats(session)
        """What was asked before, and whether it is asked again."""

    def do(self, line: str, body: str | None, local: Mapping[str, Any] | None = None) -> Any:
        """Read a line, and the body under it, and do what it says.

        Args:
            line: What stands behind `%endpoint` or `%%endpoint`.
            body: What stands under a cell magic; None for a line magic.
            local: The variables of the function that the line stands in.

        Raises:
            EndpointError: It cannot be done; one sentence says why.
        """
        command = None
        try:
            if not line.strip() and not (body or "").strip():
                return self._print(grammar.overview())
            command = grammar.parse(line, body, endpoints=self.session.endpoints.names())
            verb: Callable[[Command, Arguments], Any] = getattr(self, f"_{command.verb.name}")
            done = verb(command, Arguments(command, {**self._namespace, **(local or {})}))
            self._panels.refresh()
            return done
        except EndpointError as error:
            # a line that could not be read may ask for it all the same
            typed = {"debug": "--debug" in line.split()} if command is None else vars(command.arguments)
            if typed.get("debug"):
                error.show_traceback()
            raise

    def greeting(self) -> str:
        """What an earlier session left, in one line; its jobs are followed from now on."""
        recovered = self.session.recover()
        self.session.look_at_all(recovered.handles, GREETING_PATIENCE)
        return str(recovered)

    def has_shown(self, value: Any) -> bool:
        """Whether a verb in this cell has shown this very value."""
        return self._results.has_shown(value)

    def display(self, value: Any) -> None:
        """Show a value that is a cell's result, unless a verb has shown it already."""
        self._results.display(value)

    def _print(self, text: str) -> None:
        print(visible(text))

    def _handle(self, reference: str, arguments: Arguments) -> JobHandle:
        namespace = arguments.namespace
        reference = str(prompts.expand(reference, namespace))
        found = namespace.get(reference)
        if isinstance(found, JobHandle):
            return found
        if isinstance(found, Job):
            return self.session.find(found.id)
        if reference in namespace and not self._begins_an_id(reference):
            raise InputError(f"'{reference}' is no job: the variable is of type {type(found).__name__}")
        return self.session.find(reference)

    def _begins_an_id(self, reference: str) -> bool:
        return any(handle.id.startswith(reference) for handle in self.session.handles.values())

    def _handles(self, command: Command, arguments: Arguments) -> list[JobHandle]:
        return [self._handle(reference, arguments) for reference in command.arguments.job or ["@last"]]

    def _connection(self, arguments: Arguments) -> Connection:
        return self.session.connect(arguments.text("target") or self.session.endpoints.default_name())

    # ------------------------------------------------------------------ run

    def _run(self, command: Command, arguments: Arguments, *, sync: bool = False) -> Any:
        if command.assign is not None and command.arguments.bg:
            raise InputError(
                f"{command.assign} << waits for the result, and --bg does not; -o {command.assign} keeps the "
                "job's handle instead"
            )
        connection = self._connection(arguments)
        profile = arguments.profile(connection.profile)
        kind, submission = arguments.submission(profile, sync=sync, cell=self._cell_id())
        timeout = arguments.limit("timeout")
        if command.arguments.dry_run:
            return self._print(requestcode.dry_run(connection, submission, kind, profile.name))
        known = self._asked_before(command, self.session.entry(connection, submission, profile=profile.name))
        if known is not None:
            return self._show_known(command, known, timeout)
        self._cells.get_ready(is_quiet=command.arguments.quiet)
        with self._front_end.stop_button_held():
            detached = command.arguments.on_interrupt == "detach"
            submission = replace(submission, detached=detached)
            handle = self.session.submit(connection, submission, profile=profile.name)
            self._commands[handle.number] = command
            self.repeats.submitted(handle, self._run_of_cell())
            self._results.keep(command, handle)
            if keys.looks_like_key(_typed(command)):
                handle.notes.append("this cell seems to hold a key: put it in a variable before you share it")
            view = self._view(command, handle, owns_cell=command.body is not None)
            self._wait_or_leave(command, view, timeout)
        return self._results.assigned(command, handle)

    def _asked_before(self, command: Command, entry: Entry) -> JobHandle | None:
        """The job that makes it needless to submit another one: its answer is kept, or it still runs."""
        options = command.arguments
        cell = f"cell {entry.cell}" if entry.cell else f"cell [{self._shell.execution_count}]"
        answered = self.repeats.answer(entry, cell, cache=options.cache)
        if answered is not None or options.again:
            return answered
        running = self.repeats.running(entry, self._run_of_cell())
        if running is None:
            return None
        is_wanted = self.repeats.is_preferred(running, is_headless=self._front_end.is_headless)
        return running if is_wanted else None

    def _show_known(self, command: Command, handle: JobHandle, timeout: float | None) -> JobHandle | None:
        self._results.keep(command, handle)
        if not handle.status.is_final:
            return self._follow(command, handle, timeout)
        if not command.arguments.quiet:
            self._cells.show_end(handle, command.arguments.format)
        return self._results.assigned(command, handle)

    def _follow(self, command: Command, handle: JobHandle, timeout: float | None) -> JobHandle | None:
        self.session.resume(handle)
        self._wait_or_leave(command, self._view(command, handle), timeout)
        return self._results.assigned(command, handle)

    def _replay(self, command: Command, _: Arguments) -> None:
        if command.arguments.mode:
            self.repeats.mode = command.arguments.mode
        self._print(self.repeats.told)

    def _runsync(self, command: Command, arguments: Arguments) -> Any:
        return self._run(command, arguments, sync=True)

    def _view(self, command: Command, handle: JobHandle, **places: bool) -> JobView:
        options = command.arguments
        is_background = getattr(options, "bg", False)
        if is_background and self._front_end.is_terminal:
            self._print(
                f"@{handle.number} runs in the background: `%endpoint stream @{handle.number}` shows it"
            )
        return self._cells.show(
            handle,
            output_format=options.format,
            is_background=is_background,
            is_quiet=options.quiet,
            **places,
        )

    def _wait_or_leave(self, command: Command, view: JobView, timeout: float | None) -> None:
        cancels = command.arguments.on_interrupt == "cancel" and not view.handle.detached
        if not getattr(command.arguments, "bg", False):
            self._cells.wait(view, timeout=timeout, cancels=cancels)
        else:
            self._cells.leave(view, timeout=timeout, cancels=cancels)

    def _cell_id(self) -> str | None:
        kernel = getattr(self._shell, "kernel", None)
        cell = kernel.get_parent("shell").get("metadata", {}).get("cellId") if kernel is not None else None
        return cell if isinstance(cell, str) else None

    # ------------------------------------------------------------------ jobs

    def _status(self, command: Command, arguments: Arguments) -> Any:
        handle = self._handle(command.arguments.job, arguments)
        if handle.never_submitted and handle.error is not None:
            raise handle.error
        job = self.session.look(handle)
        self._front_end.cell().show(
            footer.job(replace(job, endpoint=handle.endpoint), handle.number, handle.notes)
        )
        if handle.is_call:
            self._print("The OpenAI route has no status to ask for: this is what was seen here.")
        elif job.status.is_final and not job.id:
            self._print(f"{handle.endpoint} gave it no id to ask by: this is what its only answer told.")
        if log := self.session.log(handle):
            self._print(f"What its handler printed:\n{log.rstrip()}")
        return self._results.as_shown(job)

    def _wait(self, command: Command, arguments: Arguments) -> Any:
        handles = self._handles(command, arguments)
        self._wait_for(handles, command, arguments)
        for handle in handles:
            self._front_end.cell().show(footer.footer_bundle(facts(handle, None)))
        failed = next((handle.error for handle in handles if handle.error is not None), None)
        if failed is not None:
            raise failed
        return self._results.keep(command, handles[0]) if len(handles) == 1 else None

    def _wait_for(self, handles: list[JobHandle], command: Command, arguments: Arguments) -> None:
        cancels = command.arguments.on_interrupt == "cancel"
        timeout = arguments.limit("timeout")
        for handle in handles:
            self.session.resume(handle)
        self._cells.wait_for_all(handles, timeout=timeout, cancels=cancels)

    def _result(self, command: Command, arguments: Arguments) -> Any:
        handle = self._handle(command.arguments.job, arguments)
        self._wait_for([handle], command, arguments)
        if handle.error is not None:
            raise handle.error
        value = self._cells.final(handle).value
        if command.assign is None:
            return value
        self._namespace[command.assign] = value
        return None

    def _show(self, command: Command, arguments: Arguments) -> JobHandle:
        handle = self._results.keep(command, self._handle(command.arguments.job, arguments))
        self.session.resume(handle)
        if handle.done:
            self._cells.show_end(handle, command.arguments.format)
        else:
            command.arguments.bg = True
            self._cells.leave(self._view(command, handle), timeout=None, cancels=False)
        return handle

    def _stream(self, command: Command, arguments: Arguments) -> JobHandle | None:
        timeout = arguments.limit("timeout")
        if command.arguments.all:
            self._attach_all(command, timeout)
            return None
        handle = self._results.keep(command, self._handle(command.arguments.job, arguments))
        self._follow(command, handle, timeout)
        return handle

    def _attach_all(self, command: Command, timeout: float | None) -> None:
        """Show what an earlier session left: what still runs, live, and what has ended, as it is kept."""
        left = self.session.left_behind()
        if not left:
            return self._print("no job was left behind: `%endpoint jobs` lists what the journal has")
        ended = [handle for handle in left if handle.is_over]
        running = [handle for handle in left if not handle.is_over]
        if len(ended) > FULLY_SHOWN:
            self._front_end.cell().show(tables.jobs([job_row(handle) for handle in ended]))
        else:
            for handle in ended:
                self._cells.show_end(handle, command.arguments.format)
        for handle in running:
            self.session.resume(handle)
        views = [self._view(command, handle, keeps_place=True) for handle in running]
        if not command.arguments.bg:
            cancels = command.arguments.on_interrupt == "cancel"
            self._cells.wait_for_all(running, timeout=timeout, cancels=cancels, views=views)
        self.session.told(left)
        unfollowed = next((handle.error for handle in running if handle.done and not handle.is_over), None)
        if unfollowed is not None:
            raise unfollowed
        return None

    def _cancel(self, command: Command, arguments: Arguments) -> None:
        if not (command.arguments.all or command.arguments.job or self.session.handles):
            raise InputError("this notebook has no job yet; `%endpoint cancel @17` names one of another")
        handles = self.session.active() if command.arguments.all else self._handles(command, arguments)
        self._print("\n".join(map(str, self._cells.stop(handles))) or "nothing is running")

    def _retry(self, command: Command, arguments: Arguments) -> JobHandle:
        timeout = arguments.limit("timeout")
        handle = self._handle(command.arguments.job, arguments)
        self._cells.get_ready(is_quiet=command.arguments.quiet)
        with self._front_end.stop_button_held():
            self._results.keep(command, handle.retry())
            self._wait_or_leave(command, self._view(command, handle), timeout)
        return handle

    def _history(self, command: Command, arguments: Arguments) -> Any:
        found = self._memory.history(arguments)
        if command.arguments.out:
            self._namespace[command.arguments.out] = self._memory.frame(found)
        return self._results.present(History(found))

    def _export(self, command: Command, arguments: Arguments) -> None:
        handles = [self._handle(reference, arguments) for reference in command.arguments.job]
        self._print(self._memory.export(command, arguments, handles))

    def _code(self, command: Command, arguments: Arguments) -> None:
        if command.arguments.worker:
            code = self._endpoints.worker(command.arguments.job)
        else:
            code = self._memory.code(self._handle(command.arguments.job, arguments), command)
        if (file := arguments.text("to")) is not None:
            path = Path(file).expanduser()
            exports.place([code.encode()], path, force=command.arguments.force)
            self._print(f"{path} is written")
        elif command.arguments.cell and not self._front_end.is_headless:
            self._shell.set_next_input(code)
        else:
            self._print(code)

    def _jobs(self, command: Command, arguments: Arguments) -> Any:
        since = arguments.limit("since")
        found = self.session.entries(
            active=command.arguments.active,
            since=None if since is None else time.time() - since,
            limit=LISTED + 1 if since is None else None,  # one more tells that there are more
        )
        if since is not None or len(found) <= LISTED:
            return self._results.present(JobTable(found))
        return self._results.present(
            JobTable(found[1:], f"and more: `%endpoint history --limit {5 * LISTED}` shows further ones")
        )

    # ------------------------------------------------------------------ endpoints

    def _health(self, command: Command, arguments: Arguments) -> Any:
        connection = self._connection(arguments)
        if command.arguments.watch and self._panels.can_be_live:
            return self._watch(connection, command, arguments)
        health = connection.health()
        self._front_end.cell().show(tables.health(health, connection.name))
        return self._results.as_shown(health)

    def _watch(self, connection: Connection, command: Command, arguments: Arguments) -> None:
        every = arguments.limit("every") or WATCH_EVERY
        if every < LEAST_EVERY:
            raise InputError(
                f"--every {every:g} s is too often for a provider; {LEAST_EVERY:g} s is the least"
            )
        is_endless = command.arguments.forever
        self._panels.health(connection, every=every, is_endless=is_endless, cell=self._run_of_cell())

    def _panel(self, command: Command, arguments: Arguments) -> Any:
        kind = command.arguments.kind
        if kind == "health":
            command.arguments.watch = True
            return self._health(command, arguments)
        if kind == "jobs":
            if not self._panels.can_be_live:
                sent = (job for job in self.session.handles.values() if not job.never_submitted)
                return self._results.present(JobTable(sent))
            return self._panels.jobs(self._cells.end_bundles, cell=self._run_of_cell())
        if not self._panels.can_be_live:
            return self._print(
                "The prompt panel needs a notebook in a browser; here, `%%endpoint run NAME` over a prompt "
                "does the same."
            )
        return self._panels.prompt(
            arguments.text("target") or self.session.endpoints.default_name(),
            self._namespace,
            self._commands.__setitem__,
            cell=self._run_of_cell(),
        )

    def _run_of_cell(self) -> tuple[str | None, int]:
        return self._cell_id(), self._shell.execution_count

    def _purge(self, command: Command, arguments: Arguments) -> None:
        self._print(self._endpoints.purge(command, arguments))

    def _serve(self, command: Command, arguments: Arguments) -> None:
        if (said := self._endpoints.serve(command, arguments)) is not None:
            self._print(said)

    def _connect(self, command: Command, arguments: Arguments) -> None:
        self._print(self._endpoints.connect(command, arguments))

    def _use(self, command: Command, _: Arguments) -> None:
        self._print(self._endpoints.use(command))

    def _list(self, _: Command, __: Arguments) -> None:
        self._print(self._endpoints.list())

    def _forget(self, command: Command, _: Arguments) -> None:
        self._print(self._endpoints.forget(command))

    def _login(self, command: Command, _: Arguments) -> None:
        self._print(self._endpoints.login(command))

    # ------------------------------------------------------------------ help

    def _help(self, command: Command, _: Arguments) -> None:
        topic = command.arguments.topic
        self._print(grammar.help_text(topic) if topic else grammar.overview())

    def _doctor(self, _: Command, arguments: Arguments) -> None:
        name = arguments.text("target") or self.session.endpoints.default_name()
        self._print(doctor.report(doctor.examine(self.session, self._front_end, name)))

    def _version(self, _: Command, __: Arguments) -> None:
        self._print(doctor.versions())


def _typed(command: Command) -> str:
    """All that was typed, to look for keys in it."""
    values = [value for value in vars(command.arguments).values() if isinstance(value, (str, list))]
    return "\n".join(map(str, [*values, command.prompt or "", command.body or ""]))
