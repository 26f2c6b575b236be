"""What `history`, `export` and `code` do: look into the journal, and take things out of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext import cellcode, exports, profiles, prompts, requestcode, tables
from notebook_ext.errors import InputError
from notebook_ext.records import Record, streamed_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from notebook_ext.arguments import Arguments
    from notebook_ext.entry import Entry
    from notebook_ext.grammar import Command
    from notebook_ext.handle import JobHandle
    from notebook_ext.render import Bundle
    from notebook_ext.session import Session

__all__ = ["Found", "Memory"]

EVERY = 2**31
"""As many jobs as there are."""


@dataclass(frozen=True, slots=True)
class Found:
    """What `history` found.

    Args:
        entries: The jobs, in the order in which they are shown.
        handles: The same as handles.
        bundle: The table.
    """

    entries: Sequence[Entry]
    handles: Sequence[JobHandle]
    bundle: Bundle


class Memory:
    """Looks into a session's journal.

    Args:
        session: Whose journal it is.
        commands: The commands of this session's jobs, by number.
    """

    def __init__(self, session: Session, commands: Mapping[int, Command]) -> None:
        self._session = session
        self._commands = commands

    def history(self, arguments: Arguments) -> Found:
        """The newest jobs, or those with some words in them.

        Raises:
            InputError: An option has no meaning.
        """
        limit = arguments.integer("limit")
        if limit is None or limit < 1:
            raise InputError("--limit is how many jobs are shown, so it is 1 or more")
        words = arguments.text("query")
        found = self._look(words, arguments.limit("since"), limit + 1)  # one more tells that there are more
        entries = [entry for entry, _ in found[:limit]]
        bundle = tables.history(
            [_row(entry) for entry in entries],
            [] if words is None else [excerpt for _, excerpt in found[:limit]],
        )
        if len(found) > limit:
            bundle = tables.noted(bundle, f"and more: --limit {5 * limit} shows further ones")
        return Found(entries, [self._session.find(f"@{entry.number}") for entry in entries], bundle)

    def frame(self, found: Found) -> Any:
        """What was found, as a table: a pandas DataFrame, or a list of dicts where there is no pandas."""
        return exports.frame([self._record(entry).row() for entry in found.entries])

    def export(self, command: Command, arguments: Arguments, handles: Sequence[JobHandle]) -> str:
        """Write jobs to a file, and say what was written.

        Args:
            command: Which, and how.
            arguments: Its options.
            handles: The jobs that are named on the line.

        Raises:
            InputError: No job is meant, or these cannot be written so, or the file exists.
            EndpointError: It could not be written.
        """
        path = Path(arguments.text("file") or "").expanduser()
        entries = self._meant(command, arguments, handles)
        written = self._write(entries, path, force=command.arguments.force)
        jobs = f"{len(entries)} job{'' if len(entries) == 1 else 's'}"
        return f"{jobs}, {written.size} bytes, written to {', '.join(map(str, written.paths))}"

    def _write(self, entries: Sequence[Entry], path: Path, *, force: bool) -> exports.Written:
        if len(entries) == 1 and path.suffix.lower() == ".txt":
            pieces = streamed_text(entries[0], lambda: self._session.journal.each_chunk(entries[0].number))
            if pieces is not None:
                return exports.write_text(pieces, path, force=force)
        return exports.write([self._record(entry) for entry in entries], path, force=force)

    def code(self, handle: JobHandle, command: Command) -> str:
        """What does what a job did: its cell, or a program.

        Raises:
            InputError: What it was asked is not known, or nothing can hold it.
        """
        if command.arguments.python:
            return requestcode.python(self._entry(handle))
        if command.arguments.curl:
            return requestcode.curl(self._entry(handle))
        known = self._commands.get(handle.number) or _command(self._entry(handle))
        return cellcode.cell(cellcode.at(handle.endpoint, known))

    def _meant(self, command: Command, arguments: Arguments, handles: Sequence[JobHandle]) -> Sequence[Entry]:
        options = command.arguments
        is_choice = options.all or options.query is not None or options.since is not None
        if is_choice and handles:
            raise InputError("there are jobs by name, and --all, -q or --since as well; give one of them")
        if not is_choice:
            return [self._entry(handle) for handle in handles or [self._session.find("@last")]]
        found = self._look(arguments.text("query"), arguments.limit("since"), EVERY)
        if not found:
            raise InputError("there is no such job in the journal; nothing was written")
        return sorted((entry for entry, _ in found), key=lambda entry: entry.number)

    def _look(self, words: str | None, since: float | None, limit: int) -> list[tuple[Entry, str]]:
        """Jobs with their excerpts: the newest first, or those with these words, the best first."""
        start = 0.0 if since is None else time.time() - since
        if words is None:
            return [(entry, "") for entry in self._session.journal.entries(since=start, limit=limit)[::-1]]
        matches = self._session.journal.search(words, limit if since is None else EVERY)
        return [(match.entry, match.excerpt) for match in matches if match.entry.submitted_at >= start][
            :limit
        ]

    def _entry(self, handle: JobHandle) -> Entry:
        entry = self._session.journal.get(handle.number)
        if handle.never_submitted:
            raise InputError(f"@{handle.number} was never submitted, so the journal has nothing of it")
        if entry is None:
            raise InputError(f"@{handle.number} is no longer in the journal")
        return entry

    def _record(self, entry: Entry) -> Record:
        return Record.read(entry, self._session.journal.each_chunk(entry.number))


def _row(entry: Entry) -> tables.JobRow:
    return tables.JobRow(
        number=entry.number,
        endpoint=entry.endpoint,
        job_id=entry.job.id,
        status=entry.job.status,
        prompt="" if entry.input is None else prompts.first_words(entry.input),
        submitted_at=entry.submitted_at,
        queue=entry.job.delay_time,
        run=entry.job.execution_time,
    )


def _command(entry: Entry) -> Command:
    """The command of a job that was submitted from Python, or by another kernel."""
    if entry.input is None:
        raise InputError(f"@{entry.number} was not submitted from here, so what it was asked is not known")
    is_call = entry.operation == "openai"
    profile = profiles.get(entry.profile)
    fits = isinstance(entry.input, dict) and profile.place(entry.input, is_text=False) == entry.input
    asked = {"exec_timeout": "execution_timeout", "ttl": "ttl"}
    options = {name: str(entry.options[kept]) for name, kept in asked.items() if kept in entry.options}
    return cellcode.from_input(
        entry.endpoint,
        entry.input,
        {
            **({"route": "openai"} if is_call else {"profile": entry.profile if fits else "raw"}),
            "low_priority": entry.options.get("low_priority", False),
            **options,
        },
        verb="run" if is_call else entry.operation,
    )
