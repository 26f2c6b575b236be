"""What is removed from a journal that has outgrown its limits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notebook_ext.journal_path import UNKNOWN_FOR

if TYPE_CHECKING:
    from notebook_ext.database import Database
    from notebook_ext.values import Values

__all__ = ["KEPT_DAYS", "KEPT_MEGABYTES", "Pruned", "prune", "size"]

KEPT_DAYS, KEPT_MEGABYTES = 180.0, 1024.0
"""What is older, and then what is oldest, is removed when a journal has outgrown this."""

_ENDED = "(is_final OR status = 'AMBIGUOUS' AND job_id = '' AND submitted_at < ?)"
"""A submission that is no longer looked for counts as ended."""
_VALUES = (
    "SELECT input FROM jobs UNION SELECT output FROM jobs UNION SELECT error FROM jobs"
    " UNION SELECT streamed FROM jobs UNION SELECT outputs FROM chunks"
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed because a journal had outgrown its limits.

    Args:
        jobs: How many.
        freed: Bytes.
        oldest: When the oldest job that is left was submitted; None where none is left.
    """

    jobs: int
    freed: int
    oldest: float | None

    def __str__(self) -> str:
        left = (
            ""
            if self.oldest is None
            else time.strftime("; it begins on %Y-%m-%d now", time.localtime(self.oldest))
        )
        return f"{self.jobs} old job(s), {self.freed / 1e6:.1f} MB, were removed from the journal{left}"


def prune(db: Database, values: Values, days: float, megabytes: float) -> Pruned | None:
    """What `Journal.prune` does."""
    before = size(db, values)
    newest = _one(db, "SELECT max(submitted_at) FROM jobs") or 0.0
    now = min(time.time(), newest)
    given_up = now - UNKNOWN_FOR
    removed = _remove(db, values, f"{_ENDED} AND submitted_at < ?", given_up, now - days * 86400)
    freed, excess = float("inf"), size(db, values) - megabytes * 1e6
    while excess > 0 and freed > excess / 100:  # else it is open jobs that have the room
        removed += _remove(
            db,
            values,
            f"number IN (SELECT number FROM jobs WHERE {_ENDED} ORDER BY number LIMIT"  # noqa: S608 - ours
            " (SELECT max(1, count(*) / 10) FROM jobs))",
            given_up,
        )
        earlier, excess = excess, size(db, values) - megabytes * 1e6
        freed = earlier - excess
    if not removed:
        return None
    oldest = _one(db, "SELECT (SELECT submitted_at FROM jobs ORDER BY number LIMIT 1)")
    return Pruned(removed, before - size(db, values), oldest)


def size(db: Database, values: Values) -> int:
    """Bytes on the disk, or in memory."""
    with db.using():
        return int(_one(db, "PRAGMA page_count") * _one(db, "PRAGMA page_size")) + values.size()


def _one(db: Database, query: str) -> Any:
    with db.using() as connection:
        return connection.execute(query).fetchone()[0]


def _remove(db: Database, values: Values, where: str, *bound: object) -> int:
    """Remove jobs with all that belongs to them, and give their room back; tells how many."""
    with db.writing() as connection:
        # A foreign key would do this by itself, and make the end of every stream twice as long.
        for table, key in (("texts", "rowid"), ("chunks", "number")):
            connection.execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT number FROM jobs WHERE {where})",  # noqa: S608 - ours
                bound,
            )
        removed = connection.execute(f"DELETE FROM jobs WHERE {where}", bound).rowcount  # noqa: S608 - ours
    if removed:
        with db.using() as connection:
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        with db.writing() as connection:
            kept = {value for (value,) in connection.execute(_VALUES) if isinstance(value, bytes)}
            values.sweep(kept)
    return removed
