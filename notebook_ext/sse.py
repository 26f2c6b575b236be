"""Server-sent events out of text that is cut anywhere: the one reader of the package."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Event", "Events"]

_LINE_END = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """One event.

    Args:
        data: Its lines of data, joined.
        name: What its `event` field says; empty where it has none.
    """

    data: str
    name: str = ""


class Events:
    """Reads events; what has not ended yet waits for the next text."""

    def __init__(self) -> None:
        self._line: list[str] = []  # in pieces: a long line comes in many
        self._data: list[str] = []
        self._name = ""
        self._is_after_return = False
        self.waiting = 0
        """Characters of the event that has not ended."""

    def feed(self, text: str) -> list[Event]:
        """The events that this text ends."""
        if self._is_after_return and text:
            self._is_after_return = False
            text = text.removeprefix("\n")  # the other half of a line end
        if not text:
            return []
        self._is_after_return = text.endswith("\r")
        *ended, rest = _LINE_END.split(text)
        found = [event for line in ended if (event := self._take(line)) is not None]
        self._line += [rest] if rest else []
        self.waiting += len(rest)
        return found

    def close(self) -> list[Event]:
        """The same of what lacks the blank line that ends an event."""
        return self.feed("\n\n")

    def _take(self, piece: str) -> Event | None:
        line = "".join([*self._line, piece])
        self._line.clear()
        if not line:
            return self._end()
        self.waiting += len(piece)
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "event":
            self._name = value.removeprefix(" ")
        return None

    def _end(self) -> Event | None:
        event = Event("\n".join(self._data), self._name) if self._data else None
        self._data, self._name, self.waiting = [], "", 0
        return event
