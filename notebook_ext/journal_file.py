"""Opening a journal, and what is done when its file cannot be used."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from notebook_ext.errors import JournalError
from notebook_ext.journal import Journal
from notebook_ext.journal_path import located
from notebook_ext.leases import alone

__all__ = ["open_journal"]

REPAIR_PATIENCE = 10.0
"""Seconds to wait for another kernel that sets a damaged file aside."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def open_journal(path: str) -> Journal:
    """Open a journal, or go on without: a file that is damaged is set aside, else memory takes its place.

    Returns:
        The journal; its `warning` says what was done, where anything was.
    """
    try:
        path = located(path)
        try:
            return Journal(path)
        except JournalError as error:
            if not _is_damage(error):
                raise
            return _open_anew(path, error)
    except JournalError as error:
        journal = Journal()
        journal.warning = f"{error}; jobs are remembered only until this kernel ends"
        return journal


def _open_anew(path: str, found: JournalError) -> Journal:
    """Open a journal that was found damaged, as one of several kernels that may have found that.

    Raises:
        JournalError: It cannot be set aside, or a new one not be made.
    """
    try:
        with alone(Path(f"{path}.repair"), REPAIR_PATIENCE):
            try:
                return Journal(path)  # another kernel was quicker
            except JournalError as error:
                if not _is_damage(error) or (moved := _set_aside(path)) is None:
                    raise
            journal = Journal(path)
    except sqlite3.Error:
        raise found from found.__cause__
    journal.warning = f"the journal {path} was damaged: it is now {moved}, and a new one began"
    return journal


def _is_damage(error: JournalError) -> bool:
    cause = error.__cause__
    if not isinstance(cause, sqlite3.DatabaseError):
        return False
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _set_aside(path: str) -> str | None:
    """Rename a damaged file, with what SQLite keeps beside it; None where that cannot be done."""
    moved = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        Path(path).rename(moved)
        for ending in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(path + ending).rename(moved + ending)
        values = Path(f"{path}.d") / "values"
        if values.exists():  # the new journal would remove what only the old one refers to
            Path(f"{moved}.d").mkdir()
            values.rename(Path(f"{moved}.d") / "values")
    except OSError:
        return None
    return moved
