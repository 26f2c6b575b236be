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
    from pathlib import Path

__all__ = ["Presence", "is_alive"]


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
            self._sweep(folder)
            self._appear()

    def _appear(self) -> None:
        while self._lock is None:
            self._lock = _locked(self._file(self.owner))
            if self._lock is not None and not self._file(self.owner).exists():
                self._lock.close()  # somebody swept it away before it was locked
                self._lock = None

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

    def _sweep(self, folder: Path) -> None:
        """Remove the signs of those that were killed."""
        for file in folder.glob("*.lock"):
            lock = _locked(file)
            if lock is not None:
                with contextlib.suppress(OSError):
                    file.unlink()
                lock.close()


def is_alive(folder: Path, owner: str | None) -> bool:
    """Whether the session of this name is there, as its sign in the folder tells."""
    file = folder / f"{owner}.lock"
    if not owner or not file.exists():
        return False
    lock = _locked(file)
    if lock is None:
        return True
    lock.close()
    return False


def _locked(file: Path) -> sqlite3.Connection | None:
    """Hold the lock of a file; None where somebody else holds it."""
    lock = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("PRAGMA journal_mode = MEMORY")  # no file beside it that a killed process would leave
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return None
    return lock
