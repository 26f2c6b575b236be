"""What a search sees of a job, and which jobs it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notebook_ext.completions import said_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from notebook_ext.database import Database
    from notebook_ext.entry import Entry
    from notebook_ext.types import StreamChunk

__all__ = ["Found", "answer_text", "matches", "prompt_text"]

INDEXED = 20_000
"""Characters of a prompt, and of an answer, that a search sees."""


@dataclass(frozen=True, slots=True)
class Found:
    """A job that a search found.

    Args:
        entry: The job.
        excerpt: Where the words stand, in its prompt or its answer.
    """

    entry: Entry
    excerpt: str


def prompt_text(input: Any) -> str:
    """The words of a job's input."""
    return _plain(_beginning(_texts(input), "\n"))


def answer_text(streamed: Iterable[StreamChunk], output: Any) -> str:
    """The words of what a job has streamed; where there are none, those of its output."""
    said = _beginning(text for chunk in streamed for text in _words(chunk.output))
    return _plain(said or _beginning(_words(output), "\n"))


def matches(db: Database, words: str, limit: int) -> list[tuple[int, str]]:
    """The numbers of the jobs that have all of these words, the best first, each with an excerpt."""
    query = " ".join(f'"{word}"*' for word in _plain(words).replace('"', " ").split())
    if not query:
        return []
    with db.using() as connection:
        return connection.execute(
            "SELECT rowid, snippet(texts, -1, '', '', '…', 16) FROM texts WHERE texts MATCH ?"
            " ORDER BY bm25(texts, 10.0, 1.0), rowid DESC LIMIT ?",
            (query, limit),
        ).fetchall()


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, in its order; the keys of objects are not among them."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))


def _words(output: Any) -> Iterable[str]:
    """What of an output a search finds: of a piece of a completion its words, and not what is around them."""
    spoken = said_in(output)
    return _texts(output) if spoken is None else spoken


def _beginning(parts: Iterable[str], between: str = "") -> str:
    """As much of a text as a search sees."""
    found: list[str] = []
    length = 0
    for part in parts:
        found.append(part[:INDEXED])
        length += len(part)
        if length >= INDEXED:
            break
    return between.join(found)[:INDEXED]


def _plain(text: str) -> str:
    """The text as SQLite takes it: halves of surrogate pairs have no place there."""
    return text.encode("utf-8", "replace").decode()
