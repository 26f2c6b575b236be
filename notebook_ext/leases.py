"""Who is alive: each session holds a lock that ends with its process, however that ends.

The lock is SQLite's own, on a small database of its own: it works wherever the journal does, is
gone at once when a process is killed, is not inherited by forked children, and needs no clock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Presence", "alone", "is_alive"]

PATIENCE = 10.0
"""Seconds to wait for another session that is just beginning."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Presence:
    """A session's sign of life among those that use the same journal.

    Args:
        folder: Where the signs are; None where the journal is this session's alone.

    Raises:
        OSError: The folder cannot be made; sqlite3.Error: the sign cannot.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = uuid.uuid4().hex
        self._process = os.getpid()
        self._folder = folder
        self._lock: sqlite3.Connection | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder / "door", PATIENCE):  # so that nobody sweeps away what is not locked yet
                _sweep(folder)
                self._lock = _locked(self._file(self.owner))

    def is_alive(self, owner: str | None) -> bool:
        """Whether a session is there that would notice what happens to its jobs."""
        return owner == self.owner or (self._folder is not None and is_alive(self._folder, owner))

    def close(self) -> None:
        """Be gone; not in a forked child, whose parent still is there."""
        if self._lock is not None and self._process == os.getpid():
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                self._file(self.owner).unlink()

    def _file(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{owner}.lock"


def _sweep(folder: Path) -> None:
    """Remove the signs of those that were killed."""
    for file in folder.glob("*.lock"):
        if not _is_locked(file):
            with contextlib.suppress(OSError):
                file.unlink()


def is_alive(folder: Path, owner: str | None) -> bool:
    """Whether the session of this name is there, as its sign in the folder tells."""
    file = folder / f"{owner}.lock"
    return bool(owner) and file.exists() and _is_locked(file)


@contextlib.contextmanager
def alone(file: Path, patience: float) -> Iterator[None]:
    """Do something that one process at a time may do.

    Args:
        file: Its lock; made where it is not there.
        patience: Seconds to wait for another one.

    Raises:
        sqlite3.Error: It was waited for in vain, or the lock cannot be made.
    """
    with contextlib.closing(_locked(file, patience)):
        yield


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return error.sqlite_errorcode & 0xFF in _DAMAGE


def _locked(file: Path, patience: float = PATIENCE) -> sqlite3.Connection:
    """Hold the lock of a file, until it is closed or the process ends."""
    try:
        return _lock(file, patience)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        os.truncate(file, 0)  # it holds nothing; and it stays the same file for those that wait for it
        return _lock(file, patience)


def _lock(file: Path, patience: float) -> sqlite3.Connection:
    lock = sqlite3.connect(file, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("PRAGMA journal_mode = MEMORY")  # no file beside it that a killed process would leave
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def _is_locked(file: Path) -> bool:
    """Whether somebody holds the lock of a file; who looks at the same moment is not taken for that."""
    address = f"{file.absolute().as_uri()}?mode=rw"  # makes none
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=0, isolation_level=None)) as look:
            look.execute("SELECT * FROM sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return True
        if error.sqlite_errorcode != sqlite3.SQLITE_CANTOPEN and not _is_damage(error):
            raise
    return False  # a file that is gone, or that no session wrote, is locked by nobody
