"""Where the journal is, and a quick look at what was left in it; light, as every start does it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from notebook_ext.errors import JournalError
from notebook_ext.leases import is_alive

__all__ = ["UNKNOWN_FOR", "count_left", "default_path", "located", "sessions_of"]

PATH_VARIABLE = "NOTEBOOK_EXT_JOURNAL"
UNKNOWN_FOR = 86400.0
"""Seconds after which a submission that was never answered is no longer looked for: the time to live
that Runpod gives a job by default (operation reference)."""


def default_path() -> str:
    """Where the journal is: what `NOTEBOOK_EXT_JOURNAL` names, else a file in the user's data folder."""
    named = os.environ.get(PATH_VARIABLE)
    if named:
        return named
    import platformdirs  # on the load path, and only needed here

    return str(Path(platformdirs.user_data_dir("notebook_ext", appauthor=False)) / "journal.db")


def located(path: str) -> str:
    """A journal's path as it is from every working folder, with `~` expanded.

    Raises:
        JournalError: There is no such home, or the working folder is gone.
    """
    if path == ":memory:":
        return path
    try:
        return str(Path(path).expanduser().absolute())
    except (OSError, RuntimeError) as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}") from error


def sessions_of(path: str) -> Path:
    """The folder beside a journal's file with the signs of life of the sessions that use it."""
    return Path(f"{path}.d") / "sessions"


def count_left(path: str) -> int:
    """How many jobs had not ended when their session went; 0 where it cannot be told.

    Quick, and changes nothing: for a look at every start.
    """
    try:
        path = located(path)
        if path == ":memory:" or not Path(path).exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as db:
            owners = db.execute(
                "SELECT owner FROM jobs WHERE NOT is_final AND (job_id != '' OR submitted_at >= ?)",
                (time.time() - UNKNOWN_FOR,),
            ).fetchall()
        alive = {owner for owner in {owner for (owner,) in owners} if is_alive(sessions_of(path), owner)}
    except (sqlite3.Error, OSError, JournalError):
        return 0
    return sum(owner not in alive for (owner,) in owners)
