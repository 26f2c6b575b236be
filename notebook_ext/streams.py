"""What jobs have streamed, as it lies in the journal: in rows while it comes, then packed, if it is small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from notebook_ext.types import StreamChunk

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from notebook_ext.values import Reference, Values

__all__ = ["AS_OUTPUT", "Streams", "packed_text"]

AS_OUTPUT = ""
"""In place of what a job has streamed, where its output is the very list of that."""


class Streams:
    """Reads the chunks of jobs.

    Args:
        using: Gives the database; what it cannot do is a JournalError.
        values: Where large rows are.
    """

    def __init__(
        self, using: Callable[[], AbstractContextManager[sqlite3.Connection]], values: Values
    ) -> None:
        self._using = using
        self._values = values

    def each(self, number: int, first: int = 0) -> Iterator[StreamChunk]:
        """What a job has streamed so far, in order, from the chunk of that index on.

        Of one that is not packed only a row is in memory at a time.
        """
        # In this order: a job that ends meanwhile is packed in between.
        for position, count, outputs in self._rows(number, first):
            for index, output in enumerate(self._read(outputs), position):
                if index >= first:  # rows overlap where what could not be written was written again
                    yield StreamChunk(output, index)
            first = max(first, position + count)
        with self._using() as db:
            packed = db.execute(
                "SELECT iif(streamed = ?, output, streamed) FROM jobs WHERE number = ?", (AS_OUTPUT, number)
            ).fetchone()
        for index, output in enumerate(self._read(packed[0]) if packed else ()):
            if index >= first:
                yield StreamChunk(output, index)

    def is_output(self, number: int, output: Any) -> bool:
        """Whether a job's output is the very list of what its rows have."""
        if not isinstance(output, list):
            return False
        end = 0
        for position, count, outputs in self._rows(number):
            if self._values.get(outputs) != packed_text(output[position : position + count]):
                return False
            end = max(end, position + count)
        return end == len(output) > 0

    def _rows(self, number: int, first: int = 0) -> Iterator[tuple[int, int, Reference]]:
        """The rows with a job's chunks from an index on, in order; none is read before it is asked for."""
        last = (-1, 0)
        while True:
            with self._using() as db:
                row = db.execute(
                    "SELECT position, count, outputs FROM chunks WHERE number = ?"
                    " AND (position, count) > (?, ?) AND position + count > ?"
                    " ORDER BY position, count LIMIT 1",
                    (number, *last, first),
                ).fetchone()
            if row is None:
                return
            yield row
            last = row[:2]

    def _read(self, outputs: Reference | None) -> list[Any]:
        with self._using():
            found: list[Any] = [] if outputs is None else json.loads(self._values.get(outputs))
            return found


def packed_text(outputs: list[Any]) -> str:
    """Outputs that follow one another, as a row or a column has them."""
    return json.dumps(outputs, separators=(",", ":"))
