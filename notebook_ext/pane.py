"""A panel in its cell: from its opening to the static end that is saved, whatever it shows.

It is made on the main thread, and lives on the session's loop: when the session closes, it gets its
static end there. While no page shows it, nothing is asked and nothing is drawn.
"""

from __future__ import annotations

import abc
import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import APIError, EndpointError, RequestTimeout, TransportError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from notebook_ext import render
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["WATCH_TIME", "Pane", "count_jobs", "in_words", "time_of_day"]

WATCH_TIME = 600.0
"""Seconds after which watching ends by itself; and a panel that no page has shown for so long."""
QUESTION_TIME = 15.0
"""Seconds for which a question stands; then what it counts may be something else."""


class Pane(abc.ABC):
    """One panel in its cell, from its opening to its static end.

    `over` is done with the reason when it ends; `unseen` when no page shows the end any more.
    """

    def __init__(self, session: Session, front_end: FrontEnd, widget: Any, lasts: float | None) -> None:
        from notebook_ext.widgets.panel import count_views  # brings ipywidgets

        self.session = session
        self.widget = widget
        self._cell: Any = front_end.cell()
        self._loop = session.loop.loop
        self._lasts = lasts
        self._display_id = uuid.uuid4().hex
        self._views: int | None = None
        self._is_over = False
        self._is_watched = False
        self._timers: list[asyncio.TimerHandle] = []
        self._unwatched: asyncio.TimerHandle | None = None
        self._question: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.over: asyncio.Future[str] = self._loop.create_future()
        self._unseen: asyncio.Future[None] = self._loop.create_future()
        count_views(widget.root, lambda views: self.later(self._counted, views))
        front_end.let_through(widget.buttons)
        self._cell.show(widget._repr_mimebundle_(), display_id=self._display_id)

    # ------------------------------------------------------------------ its life

    def start(self) -> None:
        """Begin to live; called on the loop."""
        if self._lasts is not None:
            self._timers.append(self._loop.call_later(self._lasts, self.end, "watching ended by itself"))
        self._task = self._loop.create_task(self._live())
        self._tasks.add(self._task)
        self._watch()

    def end(self, reason: str) -> None:
        """Give it its static end; called on the loop."""
        if not self.over.done():
            self.over.set_result(reason)

    def drop(self) -> None:
        """End it where nobody sees it any more; from any thread."""
        self.later(self._task.cancel)

    def stop(self) -> None:
        """What the button does that ends it."""
        self.later(self.end, "stopped")

    def later(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function on the loop: what every click does."""
        with contextlib.suppress(RuntimeError):  # the session has closed, and the panel with it
            self._loop.call_soon_threadsafe(function, *arguments)

    async def _live(self) -> None:
        reason = "closed"
        try:
            try:
                reason = await self.over
            finally:
                self._finish(reason)
            if self._views is not None:
                await self._unseen
        finally:
            self.widget.close()

    def _finish(self, reason: str) -> None:
        self._is_over = True
        self._pause()
        for timer in (*self._timers, self._unwatched, self._question):
            if timer is not None:
                timer.cancel()
        bundle = self.static(reason)
        self.widget.finish(bundle)  # for a page that was loaded again: it hears of widgets only
        self._cell.show(bundle, display_id=self._display_id, update=True)

    # ------------------------------------------------------------------ who watches

    def _counted(self, views: int) -> None:
        """A page began or ended to show it."""
        if self._views is not None and views > self._views:
            self.widget.send_again()  # a page that is loading misses what changes meanwhile
        self._views = views
        if self._is_over:
            if not views and not self._unseen.done():
                self._unseen.set_result(None)
        elif views:
            self._watch()
        else:
            self._pause()
            self._unwatched = self._loop.call_later(WATCH_TIME, self.end, "nobody watched any more")

    def _watch(self) -> None:
        if self._unwatched is not None:
            self._unwatched.cancel()
            self._unwatched = None
        if not self._is_watched:
            self._is_watched = True
            self.begin()

    def _pause(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self.rest()

    # ------------------------------------------------------------------ clicks

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a click asks for; whatever goes wrong is said in the panel."""
        task = self._loop.create_task(self._carefully(work))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _carefully(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EndpointError as error:
            self.widget.rest()
            self.widget.say(in_words(error), is_bad=True)
        except Exception as bug:  # noqa: BLE001 - a click must not end in a log that nobody reads
            self.widget.rest()
            self.widget.say(f"That did not work: {bug!r}", is_bad=True)

    @property
    def is_asking(self) -> bool:
        """Whether a question stands there."""
        return self.widget.is_asking and self._question is not None

    def ask(self, question: str) -> None:
        """Put a question that goes away by itself, or put it in other words."""
        if not self.is_asking:
            self.answered()
            self._question = self._loop.call_later(QUESTION_TIME, self._unanswered)
        self.widget.ask(question)

    def answered(self) -> None:
        """The question needs to stand no longer."""
        if self._question is not None:
            self._question.cancel()
            self._question = None

    def _unanswered(self) -> None:
        self._question = None
        self.widget.rest()

    # ------------------------------------------------------------------ of each kind

    @abc.abstractmethod
    def begin(self) -> None:
        """Feed the widget."""

    @abc.abstractmethod
    def rest(self) -> None:
        """Feed it no longer."""

    @abc.abstractmethod
    def static(self, reason: str) -> render.Bundle:
        """What is left of it, and saved."""


def in_words(error: EndpointError) -> str:
    """An error of the network or the platform in a few words; any other in its own."""
    if isinstance(error, RequestTimeout):
        return "it does not answer in time"
    if isinstance(error, TransportError):
        return "it cannot be reached"
    if isinstance(error, APIError) and error.status_code == 429:
        return "it was asked too often (429)"
    if isinstance(error, APIError) and error.status_code >= 500:
        return f"its platform failed ({error.status_code})"
    return str(error)


def count_jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def time_of_day(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
