"""The memory of every job: one SQLite database, written before anything is sent.

Only the session's loop thread writes. Keys and bucket credentials never enter it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import JournalError
from notebook_ext.types import Job, JobStatus, StreamChunk, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Entry", "Journal", "body_hash"]

_MIGRATIONS: Sequence[str] = (
    # Append only: a file that somebody has was made by these very statements.
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL DEFAULT '',
        endpoint TEXT NOT NULL,
        provider TEXT NOT NULL,
        base_url TEXT NOT NULL,
        operation TEXT NOT NULL,
        profile TEXT NOT NULL,
        input TEXT NOT NULL,
        options TEXT NOT NULL,
        body_hash TEXT NOT NULL,
        cell TEXT,
        submitted_at REAL NOT NULL,
        status TEXT NOT NULL,
        output TEXT,
        error TEXT,
        delay_time REAL,
        execution_time REAL,
        worker_id TEXT,
        retries INTEGER,
        seen_at REAL NOT NULL
    );
    CREATE INDEX jobs_by_id ON jobs (job_id);
    CREATE TABLE chunks (
        number INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        output TEXT NOT NULL,
        PRIMARY KEY (number, position)
    ) WITHOUT ROWID;
    """,
)


_COLUMNS = (
    "number, job_id, endpoint, provider, base_url, operation, profile, input, options, cell,"
    " submitted_at, status, output, error, delay_time, execution_time, worker_id, retries, seen_at"
)


_UNWRITABLE = (sqlite3.Error, ValueError, OverflowError, RecursionError)
"""A full disk; half of a surrogate pair; a number too large for SQLite; JSON that is too deep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One job as the journal knows it.

    Args:
        number: This journal's number for it: `@17`. 0 before it is added.
        endpoint: The name or id it was submitted to.
        provider: The provider's name.
        base_url: Where it was sent.
        operation: run or runsync.
        profile: How its input was laid out and its output is read.
        input: What the worker receives.
        options: Policy, webhook and the like, as they were asked; never credentials.
        cell: The notebook cell's id, where the front end tells it.
        submitted_at: Seconds since the epoch.
        job: The last snapshot.
    """

    number: int = 0
    endpoint: str
    provider: str
    base_url: str
    operation: str = "run"
    profile: str = "raw"
    input: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cell: str | None = None
    submitted_at: float
    job: Job


class Journal:
    """Jobs and their chunks, in a SQLite file or in memory.

    Args:
        path: The file; ":memory:" forgets everything with the kernel.

    Raises:
        JournalError: It cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: str = ":memory:") -> None:
        self.path = path
        with contextlib.ExitStack() as undo:
            try:
                # Opened on one thread and used on the loop's; there is only one writer.
                self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                undo.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA foreign_keys = ON")
                self._migrate()
            except sqlite3.Error as error:
                raise JournalError(f"the journal {path} cannot be opened: {error}") from error
            undo.pop_all()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise JournalError(f"the journal {self.path} was written by a newer version of notebook_ext")
        for number, statements in enumerate(_MIGRATIONS[version:], version + 1):
            self._db.executescript(f"BEGIN; {statements} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The database; what it cannot hold or do is a JournalError."""
        try:
            yield self._db
        except _UNWRITABLE as error:
            raise JournalError(f"the journal {self.path} could not be used: {error}") from error

    def add(self, entry: Entry) -> int:
        """Commit a row before its job is submitted, and return its number.

        Raises:
            ValueError: The input is not JSON; TypeError and RecursionError say the same.
            JournalError: It could not be written.
        """
        row = (
            entry.job.id,
            entry.endpoint,
            entry.provider,
            entry.base_url,
            entry.operation,
            entry.profile,
            json.dumps(entry.input),
            json.dumps(dict(entry.options)),
            body_hash(entry.endpoint, entry.input, entry.options),
            entry.cell,
            entry.submitted_at,
            str(entry.job.status),
            entry.job.seen_at,
        )
        with self._using() as db:
            cursor = db.execute(
                "INSERT INTO jobs (job_id, endpoint, provider, base_url, operation, profile, input, options,"
                " body_hash, cell, submitted_at, status, seen_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            return cursor.lastrowid or 0

    def update(self, number: int, job: Job) -> None:
        """Keep a job's newest snapshot; its id too, once it is known."""
        error = job.error
        with self._using() as db:
            db.execute(
                "UPDATE jobs SET job_id = ?, status = ?, output = ?, error = ?, delay_time = ?,"
                " execution_time = ?, worker_id = ?, retries = ?, seen_at = ? WHERE number = ?",
                (
                    job.id,
                    str(job.status),
                    json.dumps(job.output) if job.has_output else None,
                    None if error is None else json.dumps(_error_to_json(error)),
                    job.delay_time,
                    job.execution_time,
                    job.worker_id,
                    job.retries,
                    job.seen_at,
                    number,
                ),
            )

    def append(self, number: int, chunks: Iterable[StreamChunk]) -> None:
        """Keep streamed chunks, all of them in one transaction."""
        with self._using() as db:
            rows = [(number, chunk.index, json.dumps(chunk.output)) for chunk in chunks]
            db.execute("BEGIN")
            with db:  # commits, or rolls back
                db.executemany(
                    "INSERT OR REPLACE INTO chunks (number, position, output) VALUES (?, ?, ?)", rows
                )

    def restart(self, number: int) -> None:
        """Forget what a job streamed: it was retried, and begins again."""
        with self._using() as db:
            db.execute("DELETE FROM chunks WHERE number = ?", (number,))

    def discard(self, number: int) -> None:
        """Forget a job that surely was never submitted."""
        with self._using() as db:
            db.execute("DELETE FROM jobs WHERE number = ?", (number,))

    def get(self, number: int) -> Entry | None:
        """The entry of a number."""
        return next(iter(self._select("WHERE number = ?", number)), None)

    def find(self, job_id: str) -> list[Entry]:
        """The entries whose server id begins so, newest first."""
        return self._select("WHERE substr(job_id, 1, ?) = ? ORDER BY number DESC", len(job_id), job_id)

    def last(self) -> Entry | None:
        """The entry that was added last."""
        return next(iter(self._select("ORDER BY number DESC LIMIT 1")), None)

    def entries(self, *, active: bool = False, since: float | None = None) -> list[Entry]:
        """All entries, oldest first.

        Args:
            active: Only those whose job is not final.
            since: Only those submitted after this (seconds since the epoch).
        """
        rows = self._select("WHERE submitted_at >= ? ORDER BY number", since or 0.0)
        return [entry for entry in rows if not (active and entry.job.status.is_final)]

    def chunks(self, number: int) -> list[StreamChunk]:
        """What a job has streamed so far, in order."""
        with self._using() as db:
            rows = db.execute(
                "SELECT position, output FROM chunks WHERE number = ? ORDER BY position", (number,)
            )
            return [StreamChunk(json.loads(output), position) for position, output in rows]

    def _select(self, where: str, *values: object) -> list[Entry]:
        with self._using() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM jobs {where}",  # noqa: S608 - both are ours
                values,
            )
            return [_entry(row) for row in rows]


def body_hash(endpoint: str, input: Any, options: Mapping[str, Any]) -> str:
    """A hash of what was asked of whom: equal for equal bodies, whatever the order of their keys."""
    text = json.dumps([endpoint, input, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(row: Sequence[Any]) -> Entry:
    (number, job_id, endpoint, provider, base_url, operation, profile, body, options, cell) = row[:10]
    (submitted_at, status, output, error, delay_time, execution_time, worker_id, retries, seen_at) = row[10:]
    return Entry(
        number=number,
        endpoint=endpoint,
        provider=provider,
        base_url=base_url,
        operation=operation,
        profile=profile,
        input=json.loads(body),
        options=json.loads(options),
        cell=cell,
        submitted_at=submitted_at,
        job=Job(
            id=job_id,
            endpoint=endpoint,
            status=JobStatus(status),
            output=None if output is None else json.loads(output),
            has_output=output is not None,
            error=None if error is None else WorkerError(**json.loads(error)),
            delay_time=delay_time,
            execution_time=execution_time,
            worker_id=worker_id,
            retries=retries,
            seen_at=seen_at,
        ),
    )


def _error_to_json(error: WorkerError) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": error.type,
        "traceback": error.traceback,
        "worker_id": error.worker_id,
        "raw": error.raw,
    }
