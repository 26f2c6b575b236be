"""What came of a stream, held against what the server has kept of it: what was lost, and what came twice."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MISSING", "Mended", "Received"]

MISSING = "text may be missing: answers were lost on the way"
_LEAST_ALIKE = 0.5
"""Share of the chunks that must be the server's too: else what it has kept is something else."""


@dataclass(frozen=True, slots=True)
class Mended:
    """How a stream ends.

    Args:
        rest: What is to be shown after all that was shown.
        note: What a reader should know of it; empty where all came as it was sent.
        is_whole: Whether all is shown then, in its order.
    """

    rest: Sequence[Any]
    note: str = ""
    is_whole: bool = True


class Received:
    """What was shown of a stream: marks of it only, as it may be large.

    Args:
        outputs: What was shown before, by somebody who gave up.
    """

    def __init__(self, outputs: Iterable[Any] = ()) -> None:
        self._marks = array("q")
        self._is_text = True
        self._length = self._sum = 0
        for output in outputs:
            self.add(output)

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, output: Any) -> None:
        """It is shown."""
        self._marks.append(_mark(output))
        if self._is_text and isinstance(output, str):
            self._length += len(output)
            self._sum = _checksum(output, self._sum)
        else:
            self._is_text = False

    def mended(self, later: Sequence[Any], kept: Sequence[Any], *, is_suspect: bool) -> Mended:
        """How the stream ends.

        Args:
            later: What came, and was not shown yet, because something may be lost before it.
            kept: All that the server says to have streamed.
            is_suspect: Whether anything may have been lost.
        """
        came, whole = [*self._marks, *map(_mark, later)], [*map(_mark, kept)]
        rest = self._text_after(kept)
        if came == whole or (rest is not None and rest == "".join(map(str, later))):
            return Mended(later)
        lost, twice = Counter(whole) - Counter(came), Counter(came) - Counter(whole)
        if self._has_shown(whole):
            return Mended(kept[len(self) :], _told("repaired", lost.total(), twice.total()))
        if rest is not None:  # it was cut at other places
            return Mended([rest], "repaired: text was lost on the wire")
        alike = len(came) - twice.total()
        if not is_suspect and alike < _LEAST_ALIKE * max(len(came), len(whole)):
            return Mended(later)
        told = _told("what is shown differs from the result", lost.total(), twice.total())
        return Mended(later, f"{told}; `.output()` has it as the server kept it", is_whole=False)

    def _has_shown(self, whole: Sequence[int]) -> bool:
        """Whether what was shown is how all of it begins."""
        return len(self) <= len(whole) and list(self._marks) == whole[: len(self)]

    def _text_after(self, kept: Sequence[Any]) -> str | None:
        """The text after what was shown; None where it does not begin with that, or is none."""
        if not (self._is_text and all(isinstance(output, str) for output in kept)):
            return None
        text = "".join(kept)
        is_beginning = _checksum(text[: self._length]) == self._sum and len(text) >= self._length
        return text[self._length :] if is_beginning else None


def _told(what: str, lost: int, twice: int) -> str:
    parts = [
        f"{_chunks(lost)} lost on the wire" if lost else "",
        f"{_chunks(twice)} sent twice" if twice else "",
    ]
    return f"{what}: {', '.join(filter(None, parts)) or 'chunks came out of their order'}"


def _chunks(count: int) -> str:
    return "1 chunk was" if count == 1 else f"{count:,} chunks were"


def _mark(output: Any) -> int:
    return hash(output if isinstance(output, str) else repr(output))


def _checksum(text: str, before: int = 0) -> int:
    return zlib.crc32(text.encode(errors="surrogatepass"), before)
