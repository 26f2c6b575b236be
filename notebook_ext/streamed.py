"""What a job has streamed: the journal has all of it; memory, what is not there yet, and what is small."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from notebook_ext.types import StreamChunk

__all__ = ["HELD", "Streamed", "weight"]

HELD = 1_000_000
"""Characters of a job's chunks above which those that the journal has are in memory no longer."""
PLAIN = 8
"""What a value that is no text weighs, in characters."""


def weight(value: Any) -> int:
    """About how many characters a JSON value has."""
    if isinstance(value, str):
        return len(value)
    found, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        found += len(item) if isinstance(item, str) else PLAIN
        if isinstance(item, dict):
            waiting += (*item, *item.values())
        elif isinstance(item, list):
            waiting += item
    return found


class Streamed:
    """The chunks of one run in their order; a chunk's place is its index.

    Chunks are appended on the session's loop thread, and read on any.

    Args:
        read: Gives the chunks from a place on, out of the journal; None where there is none.
        is_recalled: Whether the journal has some already; they are read when somebody asks.
    """

    def __init__(
        self, read: Callable[[int], Iterable[StreamChunk]] | None = None, *, is_recalled: bool = False
    ) -> None:
        self.kept = 0
        """How many, from the first, the journal has."""
        self._read = read or (lambda _: ())
        self._weight = 0
        # The place of the first chunk in memory, and the chunks: replaced as one, as others look meanwhile.
        self._window: tuple[int, list[StreamChunk]] | None = None if is_recalled else (0, [])
        self._loading = threading.Lock()

    def __len__(self) -> int:
        start, held = self._loaded()
        return start + len(held)

    @property
    def weight(self) -> int:
        """About how many characters have come."""
        self._loaded()
        return self._weight

    @property
    def is_large(self) -> bool:
        """Whether it is too large to be in memory as well as in the journal."""
        return self.weight > HELD

    @property
    def held(self) -> int:
        """How many chunks are in memory."""
        return len(self._loaded()[1])

    def append(self, chunk: StreamChunk) -> None:
        """Take the next one."""
        self._loaded()[1].append(chunk)
        self._weight += weight(chunk.output)

    def since(self, first: int = 0) -> Iterator[StreamChunk]:
        """Those that there are now, from a place on, one by one.

        Raises:
            JournalError: Some can no longer be read.
        """
        start, held = self._loaded()
        if first < start:
            for chunk in islice(self._read(first), start - first):
                first += 1
                yield chunk
            if first < start:
                raise JournalError(f"the journal has only {first:,} of the {start:,} chunks that it had")
        yield from held[first - start :]

    def keep(self, count: int) -> None:
        """The journal has the first so many now: those of a large job are not held here as well."""
        start, held = self._loaded()
        self.kept = max(self.kept, count)
        if self.is_large and self.kept > start:
            self._window = self.kept, held[self.kept - start :]

    def hold(self) -> None:
        """Have all of them in memory, because the journal is about to forget them."""
        self._window = 0, list(self.since())
        self.kept = 0

    def _loaded(self) -> tuple[int, list[StreamChunk]]:
        if self._window is None:
            with self._loading:
                if self._window is None:
                    self._load()
        assert self._window is not None
        return self._window

    def _load(self) -> None:
        start, found = 0, 0
        held: list[StreamChunk] = []
        for chunk in self._read(0):
            found += weight(chunk.output)
            if found > HELD:
                start += len(held)
                held.clear()
            held.append(chunk)
        self.kept, self._weight, self._window = start + len(held), found, (start, held)
