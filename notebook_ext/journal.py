"""The memory of every job: one SQLite database, written before anything is sent.

Several kernels share the file; each job is written by the session that owns it, on that session's
loop thread. Keys and bucket credentials never enter it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext import pruning, search
from notebook_ext.database import Database
from notebook_ext.entry import COLUMNS, LARGE_COLUMNS, Entry, from_row, job_to_row, to_row
from notebook_ext.errors import JournalError
from notebook_ext.journal_path import located, sessions_of
from notebook_ext.leases import Presence
from notebook_ext.pruning import KEPT_DAYS, KEPT_MEGABYTES
from notebook_ext.search import Found
from notebook_ext.streams import AS_OUTPUT, Streams, packed_text
from notebook_ext.values import Values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from notebook_ext.pruning import Pruned
    from notebook_ext.types import Job, StreamChunk

__all__ = ["Journal"]

COLD_STARTS = 20
"""How many of an endpoint's last cold starts are looked at."""


class Journal:
    """Jobs and their chunks, in a SQLite file or in memory.

    Args:
        path: The file; large values and the signs of life of the sessions that use it are in a
            folder beside it. ":memory:" forgets everything with the kernel, and until then large
            jobs have their room in memory.

    Raises:
        JournalError: It cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: str = ":memory:") -> None:
        self.path = path = located(path)
        self.warning: str | None = None
        self.is_kept = path != ":memory:"
        beside = Path(f"{path}.d") if self.is_kept else None
        with contextlib.ExitStack() as undo:
            try:
                if beside is not None:
                    beside.parent.mkdir(parents=True, exist_ok=True)
                self._db = Database(path)
                undo.callback(self._db.close)
                self._presence = Presence(sessions_of(path) if self.is_kept else None)
                self._values = Values(beside / "values" if beside else None)
                self._streams = Streams(self._db.using, self._values)
            except (sqlite3.Error, OSError, JournalError) as error:
                raise JournalError(f"the journal {path} cannot be opened: {error}") from error
            undo.pop_all()

    def close(self) -> None:
        """Follow no job any longer, and close the file."""
        self._presence.close()
        self._db.close()

    @property
    def owner(self) -> str:
        """This session's name as an owner of jobs."""
        return self._presence.owner

    def is_alive(self, owner: str | None) -> bool:
        """Whether the session that follows a job is still there."""
        return self._presence.is_alive(owner)

    # ------------------------------------------------------------------ write

    def _put(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its large values in files; within the transaction, so that nobody sweeps them away."""
        return {
            name: self._values.put(value) if name in LARGE_COLUMNS and value is not None else value
            for name, value in row.items()
        }

    def add(self, entry: Entry) -> int:
        """Commit a row before its job is submitted, and return its number.

        It is on the disk when this returns, also if the power fails.

        Raises:
            ValueError: The input is not JSON; TypeError and RecursionError say the same.
            JournalError: It could not be written.
        """
        row = to_row(entry, str) | {"owner": self.owner}
        with self._db.lasting(), self._db.writing(is_urgent=True) as db:
            row = self._put(row)
            cursor = db.execute(
                f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608 - ours
                tuple(row.values()),
            )
            number = cursor.lastrowid or 0
            db.execute(
                "INSERT INTO texts (rowid, prompt, answer) VALUES (?, ?, '')",
                (number, search.prompt_text(entry.input)),
            )
        return number

    def update(self, number: int, job: Job) -> None:
        """Keep the newest snapshot of a job, its id too, unless another session follows it."""
        with self._db.writing() as db:
            row = self._put(job_to_row(job, str))
            db.execute(
                f"UPDATE jobs SET {_changes(row)} WHERE number = ?"  # noqa: S608 - ours
                " AND (owner = ? OR owner IS NULL AND NOT is_final)",
                (*row.values(), number, self.owner),
            )

    def append(self, number: int, chunks: Iterable[StreamChunk]) -> bool:
        """Keep streamed chunks that follow one another, all of them in one row.

        Returns:
            Whether they are kept; not where another session follows the job.
        """
        batch = list(chunks)
        if not batch:
            return True
        outputs = packed_text([chunk.output for chunk in batch])
        with self._db.writing() as db:
            cursor = db.execute(
                "INSERT OR REPLACE INTO chunks (number, position, count, outputs)"
                " SELECT number, ?, ?, ? FROM jobs WHERE number = ? AND owner = ?",
                (batch[0].index, len(batch), self._values.put(outputs), number, self.owner),
            )
            return cursor.rowcount == 1

    def finish(
        self,
        number: int,
        job: Job,
        notes: Sequence[str] = (),
        chunks: Sequence[StreamChunk] | None = None,
        *,
        packs: bool = True,
    ) -> None:
        """Keep how a job ended that this session follows, and let a search find its answer.

        Args:
            number: The job.
            job: Its last snapshot.
            notes: What a reader of the result should know.
            chunks: All that it has streamed; None means what was appended.
            packs: Whether that is put into one value; else it stays in its rows, and need never be in
                memory as a whole.
        """
        streamed: Iterable[StreamChunk] = self.each_chunk(number) if chunks is None else chunks
        if packs:
            streamed = list(streamed)
        answer = search.answer_text(streamed, job.output)
        with self._db.using():
            row = job_to_row(job, str)
            packed = packed_text([chunk.output for chunk in streamed]) if packs and streamed else None
            is_output = packed == row["output"] if packed else self._streams.is_output(number, job.output)
            row |= {
                "streamed": AS_OUTPUT if is_output else packed,
                "notes": json.dumps(list(notes)),
                "owner": None,
                "is_final": True,  # nothing more comes, whatever its state says
            }
            with self._db.writing() as db:
                row = self._put(row)
                cursor = db.execute(
                    f"UPDATE jobs SET {_changes(row)} WHERE number = ? AND owner = ?",  # noqa: S608 - ours
                    (*row.values(), number, self.owner),
                )
                if not cursor.rowcount:
                    return  # another session follows it, and knows more
                if packs or is_output:
                    db.execute("DELETE FROM chunks WHERE number = ?", (number,))
                db.execute("UPDATE texts SET answer = ? WHERE rowid = ?", (answer, number))

    def restart(self, number: int, job: Job) -> bool:
        """Forget how a job ended: it is retried, and begins again.

        Returns:
            Whether it may be; not where another session was faster.
        """
        with self._db.writing(is_urgent=True) as db:
            cursor = db.execute(
                "UPDATE jobs SET streamed = NULL, notes = '[]', status = ?, is_final = 0, output = NULL,"
                " error = NULL, owner = ? WHERE number = ? AND (owner = ? OR owner IS NULL AND status IN"
                " ('FAILED', 'TIMED_OUT'))",
                (str(job.status), self.owner, number, self.owner),
            )
            if cursor.rowcount:
                db.execute("DELETE FROM chunks WHERE number = ?", (number,))
            return cursor.rowcount == 1

    def discard(self, number: int) -> None:
        """Forget a job that surely was never submitted."""
        with self._db.writing() as db:
            db.execute("DELETE FROM jobs WHERE number = ?", (number,))
            db.execute("DELETE FROM chunks WHERE number = ?", (number,))
            db.execute("DELETE FROM texts WHERE rowid = ?", (number,))

    def was_cold(self, number: int) -> None:
        """Remember that a job waited for a worker to start, so that its queue time is a cold start's."""
        with self._db.using() as db:
            db.execute("UPDATE jobs SET was_cold = 1 WHERE number = ?", (number,))

    # ------------------------------------------------------------------ own

    def claim(self, number: int, owner: str | None) -> bool:
        """Become the one that follows a job; tells whether we are.

        Args:
            number: The job.
            owner: Who was seen to own it, and to be gone.
        """
        with self._db.writing(is_urgent=True) as db:
            cursor = db.execute(
                "UPDATE jobs SET owner = ? WHERE number = ? AND owner IS ?", (self.owner, number, owner)
            )
            return cursor.rowcount == 1

    def release(self, number: int) -> None:
        """Follow a job no longer, of which all that was read is kept.

        One that is left without this had an owner who may have read more.
        """
        with self._db.writing(is_urgent=True) as db:
            db.execute("UPDATE jobs SET owner = NULL WHERE number = ? AND owner = ?", (number, self.owner))

    def version(self) -> int:
        """A number that changes when another session has written to the file."""
        with self._db.using() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def owner_of(self, number: int) -> str | None:
        """The session that follows a job; None where none does."""
        with self._db.using() as db:
            row = db.execute("SELECT owner FROM jobs WHERE number = ?", (number,)).fetchone()
            return row[0] if row else None

    def open_entries(self) -> list[Entry]:
        """The jobs that had not ended when they were last seen, oldest first."""
        return self._select("WHERE NOT is_final ORDER BY number")

    # ------------------------------------------------------------------ read

    def get(self, number: int) -> Entry | None:
        """The entry of a number."""
        return next(iter(self._select("WHERE number = ?", number)), None)

    def find(self, job_id: str) -> list[Entry]:
        """The entries whose server id begins so, newest first."""
        after = job_id + "\U0010ffff"  # a range, which the index serves
        return self._select("WHERE job_id >= ? AND job_id < ? ORDER BY number DESC", job_id, after)

    def last(self) -> Entry | None:
        """The entry that was added last."""
        return next(iter(self._select("ORDER BY number DESC LIMIT 1")), None)

    def entries(
        self, *, active: bool = False, since: float | None = None, limit: int | None = None
    ) -> list[Entry]:
        """Entries, oldest first.

        Args:
            active: Only those whose job is not final.
            since: Only those submitted after this (seconds since the epoch).
            limit: The newest so many; None means all.
        """
        where = "WHERE submitted_at >= ?" + (" AND NOT is_final" if active else "")
        rows = self._select(
            f"{where} ORDER BY number DESC LIMIT ?", since or 0.0, -1 if limit is None else limit
        )
        return rows[::-1]

    def answer_to(self, digest: str) -> Entry | None:
        """The newest COMPLETED job of a request that was made here, and lost nothing on the way."""
        return next(
            iter(
                self._select(
                    "WHERE body_hash = ? AND status = 'COMPLETED' AND notes NOT LIKE '%text may be missing%'"
                    " AND NOT (input = 'null' AND detached AND cell IS NULL)"  # adopted: not asked here
                    " ORDER BY number DESC LIMIT 1",
                    digest,
                )
            ),
            None,
        )

    def open_twins(self, digest: str) -> list[Entry]:
        """The jobs of the same request that had not ended when they were last seen, newest first."""
        return self._select("WHERE body_hash = ? AND NOT is_final ORDER BY number DESC", digest)

    def chunks(self, number: int, first: int = 0) -> list[StreamChunk]:
        """What a job has streamed so far, in order, from the chunk of that index on."""
        return list(self.each_chunk(number, first))

    def each_chunk(self, number: int, first: int = 0) -> Iterator[StreamChunk]:
        """The same one by one: of a large job, which is not packed, only a part is in memory at a time."""
        return self._streams.each(number, first)

    def cold_starts(self, base_url: str, endpoint_id: str) -> tuple[float, ...]:
        """Seconds that an endpoint's last jobs waited for a worker to start, newest first."""
        with self._db.using() as db:
            rows = db.execute(
                "SELECT delay_time FROM jobs WHERE base_url = ? AND endpoint_id = ? AND was_cold"
                " AND delay_time IS NOT NULL ORDER BY number DESC LIMIT ?",
                (base_url, endpoint_id, COLD_STARTS),
            )
            return tuple(seconds for (seconds,) in rows)

    def search(self, words: str, limit: int = 50) -> list[Found]:
        """The jobs whose prompt or answer has all of these words, the best first; prompts count most.

        Args:
            words: Beginnings of words.
            limit: How many at most.
        """
        found = [(self.get(number), excerpt) for number, excerpt in search.matches(self._db, words, limit)]
        return [Found(entry, excerpt) for entry, excerpt in found if entry is not None]

    def _select(self, where: str, *values: object) -> list[Entry]:
        with self._db.using() as db:
            rows = db.execute(
                f"SELECT {', '.join(COLUMNS)} FROM jobs {where}",  # noqa: S608 - both are ours
                values,
            )
            return [from_row(row, self._values.get) for row in rows]

    # ------------------------------------------------------------------ prune

    def size(self) -> int:
        """Bytes on the disk, or in memory."""
        return pruning.size(self._db, self._values)

    def prune(self, *, days: float = KEPT_DAYS, megabytes: float = KEPT_MEGABYTES) -> Pruned | None:
        """Remove ended jobs that are too old, and then the oldest while that makes a large journal smaller.

        A submission that is no longer looked for counts as ended. Age counts back from the newest job: a
        clock that is set wrong for a while removes nothing.

        Args:
            days: Age from which on a job is removed.
            megabytes: Size down to which it is brought.

        Returns:
            What was removed; None where nothing was.
        """
        return pruning.prune(self._db, self._values, days, megabytes)


def _changes(row: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = ?" for name in row)
