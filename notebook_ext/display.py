"""One job's place in a cell: live Markdown while it arrives, static content at its end.

Front ends draw every update in full, so text that grows is cut into blocks: those that are complete
are drawn once and left alone, and only the live tail is drawn again, some eight times a second.
Everything here but the making runs on the loop's thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from notebook_ext import render
from notebook_ext.blocks import MarkdownBlocks

__all__ = ["JobDisplay", "LiveMarkdown", "TerminalDisplay", "job_display"]

Bundle = Mapping[str, Any]

PAINT_INTERVAL = 0.13
"""Seconds between two drawings at least: a message has 700 bytes before its content."""
COST_PER_SECOND = 6_000
"""Characters that may be drawn in a second of the tail, and as many of the open block."""
DOLLAR_COST = 20
"""What a `$` costs in characters: a formula takes longer to draw, and no longer to send."""
BLOCK = 1_000
"""Characters that a block has at least."""
SMALL_BLOCKS = 12
"""So many blocks keep that size; later ones have at least `GROWTH` of all text before them."""
GROWTH = 0.16
OPEN_GROWTH = 1 / 6
"""The open block is drawn again when what is complete below it is so large a part of it."""
MOST_BLOCKS = 40
"""With open block, tail, strip and footer it stays below 45: JupyterLab folds away what is past 50."""
LONG_TEXT = 64_000
"""Characters from which the blocks are left as they are: drawing 200 KB at once takes seconds."""


NOTHING: Bundle = {"text/html": "<span></span>", "text/plain": ""}
"""What takes a strip's place when it is gone: an output cannot be removed, and text has a line's height."""


class Output(Protocol):
    """Where bundles go: `cell.Cell`, or widgets that stand in for it."""

    def show(
        self,
        bundle: Bundle,
        *,
        display_id: str | None = None,
        update: bool = False,
        metadata: Bundle | None = None,
    ) -> None: ...

    def clear(self) -> None: ...


class Terminal(Protocol):
    """Where text goes: `cell.TerminalCell`."""

    def write(self, text: str) -> None: ...

    def show(self, bundle: Bundle) -> None: ...


class Strip(Protocol):
    """The live line of a running job."""

    def _repr_mimebundle_(self) -> Bundle: ...

    def close(self) -> None: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """The part of an asyncio loop that is needed here."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer: ...


# ---------------------------------------------------------------------------------- live text


class _Place:
    """One output of the cell that is drawn again and again."""

    def __init__(self, cell: Output) -> None:
        self.text = ""
        self._cell = cell
        self._display_id = uuid.uuid4().hex
        self._is_shown = False

    def draw(self, text: str) -> None:
        """Draw it as it is now, unless it is that already."""
        changed, self.text = text != self.text, text
        if changed and text.strip():
            # This is sent often: text/plain beside it would double the bytes.
            self.show({"text/markdown": render.inert(text)})

    def settle(self, text: str) -> None:
        """Draw it for the last time, as it will be saved."""
        if text.strip():
            self.show(render.markdown(text))

    def show(self, bundle: Bundle, metadata: Bundle | None = None) -> None:
        """Show something there, in place of what was there."""
        self._cell.show(bundle, display_id=self._display_id, update=self._is_shown, metadata=metadata)
        self._is_shown = True


class _Budget:
    """How soon something may be drawn again, after what its last drawings cost."""

    def __init__(self) -> None:
        self.free_at = float("-inf")

    def spend(self, now: float, text: str) -> None:
        cost = len(text) + DOLLAR_COST * text.count("$")
        self.free_at = max(now, self.free_at) + cost / COST_PER_SECOND


class LiveMarkdown:
    """Draws text as it arrives: settled blocks, one open block that grows, and the live tail.

    The tail is short and drawn often. What is complete of it moves up into the open block, which
    is drawn rarely; a block that is large enough is settled, and never drawn again. The first
    piece is drawn at once, and a timer draws what is left even if nothing more comes.

    Args:
        cell: Where it is drawn.
        loop: The asyncio loop on whose thread all of this runs.
        place: Where the text begins, if that is reserved: all of it stays there until it is long.
    """

    def __init__(self, cell: Output, loop: Loop, place: _Place | None = None) -> None:
        self._cell, self._loop = cell, loop
        self._blocks = MarkdownBlocks()
        self._open: _Place | None = None
        self._tail = place or _Place(cell)
        self._is_reserved = place is not None
        self._settled = self._settled_length = 0
        self._open_budget, self._tail_budget = _Budget(), _Budget()
        self._painted_at = float("-inf")
        self._timer: Timer | None = None
        self._due = float("-inf")  # when the timer rings

    def add(self, text: str) -> None:
        """Take the next piece of text."""
        self._blocks.add(text)
        now = self._loop.time()
        due = self._painted_at + PAINT_INTERVAL
        if not self._blocks.can_settle(self._least(now)):
            due = max(due, self._tail_budget.free_at)
        if now >= due:
            self._paint()
        elif self._timer is None or due < self._due:
            self._unschedule()
            self._timer, self._due = self._loop.call_at(due, self._paint), due

    def finish(self) -> None:
        """Draw the rest for good; nothing is drawn later."""
        self._unschedule()
        tail, opened = self._blocks.tail, self._open
        self._blocks, self._open = MarkdownBlocks(), None
        self._tail.settle(tail)  # the newest first: it is what the reader waits for
        if opened is not None:
            opened.settle(opened.text)

    def stop(self) -> None:
        """Draw what is pending, and nothing more: all of it is about to be replaced."""
        self._unschedule()
        tail, self._blocks = self._blocks.tail, MarkdownBlocks()
        self._tail.draw(tail)

    def _unschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _paint(self) -> None:
        self._unschedule()
        now = self._loop.time()
        self._move_up(now)
        tail = self._blocks.tail
        self._tail.draw(tail)
        self._tail_budget.spend(now, tail)
        self._painted_at = now

    def _least(self, now: float) -> float:
        """How much must be complete to move up: what settles the open block, or is worth a drawing of it."""
        if self._is_reserved and not self._settled:
            return LONG_TEXT
        missing = self._block_size() - len(self._open_text)
        if now < self._open_budget.free_at:
            return max(BLOCK, missing)
        return max(BLOCK, min(missing, len(self._open_text) * OPEN_GROWTH))

    def _block_size(self) -> float:
        if self._settled >= MOST_BLOCKS:
            return float("inf")
        return BLOCK if self._settled < SMALL_BLOCKS else max(BLOCK, GROWTH * self._settled_length)

    @property
    def _open_text(self) -> str:
        return "" if self._open is None else self._open.text

    def _move_up(self, now: float) -> None:
        piece = self._blocks.settle(self._least(now))
        if not piece:
            return
        if self._open is None:  # the tail's place becomes the block's: nothing moves on the screen
            self._open, self._tail = self._tail, _Place(self._cell)
            self._open.text = ""
        text = self._open.text + piece
        if len(text) >= self._block_size():
            self._open.settle(text)
            self._open = None
            self._settled += 1
            self._settled_length += len(text)
        else:
            self._open.draw(text)
            self._open_budget.spend(now, text)


# ---------------------------------------------------------------------------------- one job's place


class JobDisplay:
    """A job in a notebook's cell: the strip, the text under it, and the static end of both.

    Made on the main thread, where the strip is shown; afterwards on the loop's thread.

    Args:
        cell: The cell's output.
        loop: The loop on whose thread `add` and `finish` are called.
        strip: The live line; closed at the end. Without one only the text is live.
        owns_cell: Whether the cell holds nothing but this job, so that it may be cleared at the
            end. Otherwise everything is replaced where it stands.
        is_live: False where only what is shown last is kept (a headless run): then nothing is
            shown before the end, and no strip.
        keeps_place: Whether others may be drawn in the cell meanwhile, so that its places are taken
            now, and its end is shown there.
        metadata: Gives the metadata of what is shown last.
    """

    def __init__(
        self,
        cell: Output,
        loop: Loop,
        *,
        strip: Strip | None = None,
        owns_cell: bool = False,
        is_live: bool = True,
        keeps_place: bool = False,
        metadata: Callable[[], Bundle] = dict,
    ) -> None:
        self._cell, self._strip, self._metadata = cell, strip, metadata
        self._owns_cell, self._is_live = owns_cell, is_live
        self._pieces: list[str] = []
        self._rest_id = uuid.uuid4().hex
        self._rest: Bundle | None = None
        self._is_finished = False
        self._top = _Place(cell)
        if strip is not None and is_live:
            self._top.show(strip._repr_mimebundle_())
        self._below = [_Place(cell), _Place(cell)] if keeps_place and is_live and not owns_cell else []
        for place in self._below:
            place.show(NOTHING)
        self._live = LiveMarkdown(cell, loop, self._below[0] if self._below else None)

    def add(self, text: str) -> None:
        """Show the next piece of text; after the end nothing."""
        if self._is_finished or not text:
            return
        self._pieces.append(text)
        if self._is_live:
            self._live.add(text)

    def leave_out(self, rest: Bundle) -> None:
        """Say what stands for the text that is not shown: no more is added. What is said last stays."""
        if self._is_finished:
            return
        if self._is_live:
            self._live.finish()  # it stands below the whole text
            self._cell.show(rest, display_id=self._rest_id, update=self._rest is not None)
        self._rest = rest

    def finish(self, bundles: Sequence[Bundle] = (), footer: Bundle | None = None) -> None:
        """Replace what is live by what will be saved; a second call does nothing.

        A cell of its own is cleared and gets the text in one piece, the bundles, and the footer
        last; a job that keeps its places gets the same there. Otherwise, and where the text is long,
        the text stays in its blocks, and the bundles and the footer come below it. Where a text is
        long the footer is above it too, in the strip's place: there the reader is.

        Args:
            bundles: What is shown after the text that was added: pictures, tables.
            footer: The line that sums the job up.
        """
        if self._is_finished:
            return
        self._is_finished = True
        try:
            self._show_end(bundles, footer)
        except Exception:
            self._pieces.clear()  # what cannot be shown must not hide how the job ended
            self._show_end(bundles, footer)
            raise
        finally:
            if self._strip is not None:
                self._strip.close()

    def _show_end(self, bundles: Sequence[Bundle], footer: Bundle | None) -> None:
        text = "".join(self._pieces)
        if not self._is_live:
            self._show_all(text, bundles, footer)
        elif self._owns_cell and len(text) <= LONG_TEXT:
            self._live.stop()
            self._cell.clear()
            self._show_all(text, bundles, footer)
        elif self._below and len(text) <= LONG_TEXT:
            self._live.stop()
            self._show_in_places(self._all(text, bundles, footer))
        else:
            self._finish_in_place(bundles, footer, is_long=len(text) > LONG_TEXT)

    def _all(self, text: str, bundles: Sequence[Bundle], footer: Bundle | None) -> list[Bundle]:
        parts = [render.markdown(text)] if text.strip() else []
        return [*parts, *([self._rest] if self._rest else []), *bundles, *([footer] if footer else [])]

    def _show_in_places(self, shown: Sequence[Bundle]) -> None:
        """Fill its places from below; what they cannot hold stays in one piece, at the cell's end."""
        places = [*([self._top] if self._strip is not None else []), *self._below]
        kept = shown if len(shown) <= len(places) else ()
        empty = len(places) - len(kept)
        for place in places[:empty]:
            place.show(NOTHING)
        for place, bundle in zip(places[empty:], kept, strict=True):
            place.show(bundle, self._metadata())
        for bundle in shown[len(kept) :]:
            self._cell.show(bundle, metadata=self._metadata())

    def _show_all(self, text: str, bundles: Sequence[Bundle], footer: Bundle | None) -> None:
        shown = self._all(text, bundles, footer)
        if not shown and self._is_live:
            shown = [NOTHING]  # the cell is cleared when something comes
        for bundle in shown:
            self._cell.show(bundle, metadata=self._metadata())

    def _finish_in_place(self, bundles: Sequence[Bundle], footer: Bundle | None, *, is_long: bool) -> None:
        self._live.finish()
        for bundle in bundles:
            self._cell.show(bundle, metadata=self._metadata())
        if self._strip is not None:
            above = footer if footer is not None and is_long else NOTHING
            self._top.show(above)
        if footer is not None:
            self._cell.show(footer, metadata=self._metadata())


class TerminalDisplay:
    """A job in a terminal: its text is printed as it comes.

    Args:
        cell: The terminal.
    """

    def __init__(self, cell: Terminal) -> None:
        self._cell = cell
        self._is_in_line = False
        self._is_finished = False

    def add(self, text: str) -> None:
        """Print the next piece of text; after the end nothing."""
        if not self._is_finished and text:
            self._cell.write(text)
            self._is_in_line = not text.endswith("\n")

    def leave_out(self, rest: Bundle) -> None:
        """Print what stands for the text that is not shown."""
        if not self._is_finished:
            self._end_line()
            self._cell.show(rest)

    def finish(self, bundles: Sequence[Bundle] = (), footer: Bundle | None = None) -> None:
        """End the line, and print the text/plain of what follows; a second call does nothing."""
        if self._is_finished:
            return
        self._is_finished = True
        self._end_line()
        for bundle in (*bundles, footer or {}):
            self._cell.show(bundle)

    def _end_line(self) -> None:
        if self._is_in_line:
            self._cell.write("\n")
            self._is_in_line = False


def job_display(
    cell: Any,
    loop: Loop,
    *,
    strip: Strip | None = None,
    owns_cell: bool = False,
    is_live: bool = True,
    keeps_place: bool = False,
    metadata: Callable[[], Bundle] = dict,
) -> JobDisplay | TerminalDisplay:
    """The display that fits the cell; the arguments are those of `JobDisplay`."""
    if cell.is_terminal:
        return TerminalDisplay(cell)
    return JobDisplay(
        cell,
        loop,
        strip=strip,
        owns_cell=owns_cell,
        is_live=is_live,
        keeps_place=keeps_place,
        metadata=metadata,
    )
