"""The journal's tables, as a list of steps that lead from an empty file to the present one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notebook_ext.errors import JournalError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["MIGRATIONS", "migrate"]

MIGRATIONS: Sequence[str] = (
    # Append only: a file that somebody has was made by these very statements.
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL DEFAULT '',
        endpoint TEXT NOT NULL,
        endpoint_id TEXT NOT NULL,
        provider TEXT NOT NULL,
        base_url TEXT NOT NULL,
        key_variable TEXT,
        served INTEGER NOT NULL,
        detached INTEGER NOT NULL,
        operation TEXT NOT NULL,
        profile TEXT NOT NULL,
        rate REAL,
        input TEXT NOT NULL,
        options TEXT NOT NULL,
        body_hash TEXT NOT NULL,
        notebook TEXT,
        cell TEXT,
        owner TEXT,
        submitted_at REAL NOT NULL,
        status TEXT NOT NULL,
        is_final INTEGER NOT NULL DEFAULT 0,
        output TEXT,
        error TEXT,
        delay_time REAL,
        execution_time REAL,
        worker_id TEXT,
        retries INTEGER,
        seen_at REAL NOT NULL,
        was_cold INTEGER NOT NULL DEFAULT 0,
        notes TEXT NOT NULL DEFAULT '[]',
        streamed TEXT
    );
    CREATE INDEX jobs_by_id ON jobs (job_id);
    CREATE INDEX jobs_by_body ON jobs (body_hash);
    CREATE INDEX jobs_that_are_open ON jobs (number) WHERE NOT is_final;
    CREATE INDEX cold_starts ON jobs (base_url, endpoint_id, number) WHERE was_cold;
    CREATE TABLE chunks (
        number INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        outputs TEXT NOT NULL,
        PRIMARY KEY (number, position, count)
    ) WITHOUT ROWID;
    CREATE VIRTUAL TABLE texts USING fts5 (prompt, answer);
    """,
)


def migrate(db: sqlite3.Connection) -> None:
    """Bring a database, in autocommit mode, to the present tables; several kernels may try at once.

    Raises:
        JournalError: It was written by a newer version.
        sqlite3.Error: It cannot be done.
    """
    if _version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    with db:  # commits, or rolls back
        version = _version(db)
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in filter(str.strip, statements.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise JournalError("it was written by a newer version of notebook_ext")
    return int(version)
