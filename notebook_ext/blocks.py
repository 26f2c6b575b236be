"""Where Markdown that is still arriving may be cut."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

__all__ = ["MarkdownBlocks"]

_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?: {1,4}(?=\S)| *$)")
_RULE = re.compile(r" {0,3}([-*])(?: *\1){2,} *$")  # not a list, although it looks like one
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_NOT_MATH = re.compile(r"\\.|(`+)(?!`).*?(?<!`)\1(?!`)")
_LONGEST_FORMULA = 4_000
"""Characters after which an open `$$` is taken for money."""


class _Fence(NamedTuple):
    mark: str
    column: int
    quotes: int


class MarkdownBlocks:
    """Cuts Markdown that is still arriving between blocks of the outermost level.

    A cut is made before an unindented line that follows a blank one, and never inside a code fence
    (of any length, in lists and quotes too) or `$$` formula.
    """

    def __init__(self) -> None:
        self.tail = ""
        self._scanned = 0  # the lines before it are known; it is where the unfinished one starts
        self._cut = 0
        self._after_blank = False
        self._fence: _Fence | None = None
        self._columns: list[int] = []  # where the contents of the open list items start
        self._quotes = 0
        self._formula: int | None = None  # characters since a `$$` that is still open

    def add(self, text: str) -> None:
        """Take the next piece, however it is cut."""
        self.tail += text
        while (end := self.tail.find("\n", self._scanned)) >= 0:
            self._read(self.tail[self._scanned : end])
            self._scanned = end + 1
        if self._scanned < len(self.tail):
            self._mark_cut(self.tail[self._scanned :])

    def can_settle(self, least: float) -> bool:
        """Whether what is complete has at least that many characters."""
        return self._cut > 0 and self._cut >= least

    def settle(self, least: float) -> str:
        """Cut off what is complete, if it has at least that many characters; else return ""."""
        if not self.can_settle(least):
            return ""
        block, self.tail = self.tail[: self._cut], self.tail[self._cut :]
        self._scanned -= self._cut
        self._cut = 0
        return block

    def _read(self, line: str) -> None:
        if self._formula is not None:
            self._formula += len(line)
            if self._formula > _LONGEST_FORMULA:
                self._formula = None
        self._mark_cut(line)
        self._after_blank = not line.strip()
        if self._fence is not None and _is_inside(line, self._fence):
            if _closes(line, self._fence):
                self._fence = None
            return
        self._fence = None
        if not self._after_blank:
            self._read_text(line)
        elif self._quotes:  # an unquoted blank line ends the quote, and the lists in it
            self._quotes = 0
            self._columns.clear()

    def _mark_cut(self, line: str) -> None:
        fenced = self._fence is not None and _is_inside(line, self._fence)
        if self._after_blank and line[:1].strip() and not fenced and self._formula is None:
            self._cut = self._scanned

    def _read_text(self, line: str) -> None:
        quotes, rest = _unquote(line)
        if quotes != self._quotes:
            self._quotes = quotes
            self._columns.clear()
        while self._columns and _indent(rest) < self._columns[-1]:
            self._columns.pop()
        column = self._columns[-1] if self._columns else 0
        rest = rest[column:]
        while not _RULE.match(rest) and (item := _ITEM.match(rest)):
            column += item.end()
            self._columns.append(column)
            rest = rest[item.end() :]
        fence = _FENCE.match(rest)
        if fence:
            self._fence, self._formula = _Fence(fence[1], column, quotes), None
        elif _NOT_MATH.sub("", rest).count("$$") % 2:
            self._formula = 0 if self._formula is None else None


def _unquote(line: str, most: int = sys.maxsize) -> tuple[int, str]:
    """How many block quotes a line is in, and what it says there."""
    depth = 0
    line = line.expandtabs(4)
    while depth < most and (quote := _QUOTE.match(line)):
        depth, line = depth + 1, line[quote.end() :]
    return depth, line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_inside(line: str, fence: _Fence) -> bool:
    """Whether a line is still in the list item and the quotes in which the fence was opened."""
    depth, rest = _unquote(line, fence.quotes)
    return depth == fence.quotes and (not rest.strip() or _indent(rest) >= fence.column)


def _closes(line: str, fence: _Fence) -> bool:
    _, rest = _unquote(line, fence.quotes)
    mark = rest.strip()
    return len(mark) >= len(fence.mark) and set(mark) == set(fence.mark) and _indent(rest) - fence.column < 4
