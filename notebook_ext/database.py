"""The journal's SQLite database: how it is opened, read, and written by several kernels at once."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING

from notebook_ext.errors import JournalError
from notebook_ext.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Database"]

BUSY = 1.0
"""Seconds to wait for another kernel's write."""
BUSY_FOR = 10.0
"""Seconds after waiting in vain in which only submissions wait again: the loop does all other work, too."""

_UNUSABLE = (sqlite3.Error, OSError, ValueError, OverflowError, RecursionError)
"""A full disk; half of a surrogate pair; a number too large for SQLite; JSON that is too deep."""


class Database:
    """One connection to it; in this kernel there is only one writer.

    Args:
        path: The file; ":memory:" for none.

    Raises:
        JournalError: It was written by a newer version.
        sqlite3.Error: It cannot be opened, or not be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._locked_until = 0.0  # on the monotonic clock
        # Opened on one thread and used on the loop's.
        self.connection = sqlite3.connect(path, timeout=BUSY, check_same_thread=False, isolation_level=None)
        with contextlib.ExitStack() as undo:
            undo.callback(self.connection.close)
            execute = self.connection.execute
            if execute("PRAGMA page_count").fetchone() == (0,):  # later it would only be a write
                execute("PRAGMA auto_vacuum = INCREMENTAL")
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = NORMAL")
            migrate(self.connection)
            self._check_writable()
            undo.pop_all()

    def _check_writable(self) -> None:
        self.connection.execute("PRAGMA busy_timeout = 0")
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute("UPDATE jobs SET number = number WHERE number = -1")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # another kernel writes: that passes
                raise
        finally:
            self.connection.rollback()
            self.connection.execute(f"PRAGMA busy_timeout = {BUSY * 1000:.0f}")

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextlib.contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """The database; what it cannot hold or do is a JournalError."""
        try:
            yield self.connection
        except _UNUSABLE as error:
            raise JournalError(f"the journal {self._path} could not be used: {error}") from error

    @contextlib.contextmanager
    def writing(self, *, is_urgent: bool = False) -> Iterator[sqlite3.Connection]:
        """The database in one transaction, and within `using`.

        Args:
            is_urgent: Wait for another kernel's write, also where that was in vain a moment ago.
        """
        waits = is_urgent or time.monotonic() >= self._locked_until
        with self.using() as db:
            db.execute(f"PRAGMA busy_timeout = {BUSY * waits * 1000:.0f}")
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                if waits:
                    self._locked_until = time.monotonic() + BUSY_FOR
                raise
            with db:  # commits, or rolls back
                yield db

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """What is committed in here is on the disk when that returns, also if the power fails."""
        with self.using() as db:
            db.execute("PRAGMA synchronous = FULL")
            try:
                yield
            finally:
                db.execute("PRAGMA synchronous = NORMAL")
