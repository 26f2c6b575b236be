"""How much of an output is shown: with a large one a notebook can hardly be opened; the journal has it."""

from __future__ import annotations

__all__ = ["MEDIA", "TEXT", "Beginning", "beginning", "in_words", "size"]

TEXT = 200_000
"""Bytes of text of one job, in UTF-8."""
MEDIA = 10_000_000
"""Bytes of its pictures, sound and film, in base64: as much as a provider takes back from `/run`."""
ENDING = 600
"""Characters that are shown of the end of a text whose middle is left out."""
NEAR = 1_000
"""Characters by which a text is cut shorter so that its last line is whole."""


def size(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def in_words(count: int) -> str:
    """A number of bytes: `812 bytes`, `99.8 MB`."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def beginning(text: str, most: int = TEXT) -> str:
    """As much of a text as has at most so many bytes, up to the end of a line where one is near."""
    if len(text) <= most and size(text) <= most:
        return text
    whole_characters = text[:most].encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    found = text[: len(whole_characters)]
    line_end = found.rfind("\n") + 1
    return found[:line_end] if line_end and len(found) - line_end < NEAR else found


class Beginning:
    """The beginning of a text that comes in pieces; the rest is counted, and its last lines are known.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int = TEXT) -> None:
        self.is_cut = False
        self.left_out = 0
        """Bytes that are not part of the beginning."""
        self._room = most
        self._last = ""

    def take(self, text: str) -> str:
        """The part of the next piece that belongs to the beginning."""
        shown = "" if self.is_cut else beginning(text, self._room)
        self._room -= size(shown)
        rest = text[len(shown) :]
        if rest:
            self.is_cut = True
            self.left_out += size(rest)
            self._last = (self._last + rest[-ENDING:])[-ENDING:]
        return shown

    @property
    def ending(self) -> str:
        """The last lines of what was left out."""
        _, line_end, lines = self._last.partition("\n")
        return lines if line_end and lines.strip() else self._last
