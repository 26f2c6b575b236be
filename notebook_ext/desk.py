"""What stands behind a prompt panel: what is typed there is run as the cell that the panel shows."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from notebook_ext import cellcode, grammar, keys, profiles, render
from notebook_ext.arguments import Arguments
from notebook_ext.display import LONG_TEXT, LiveMarkdown
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.view import JobView

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Collection, Mapping, Sequence

    from notebook_ext.display import Loop, Output
    from notebook_ext.events import Stopped
    from notebook_ext.grammar import Command
    from notebook_ext.handle import JobHandle
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session
    from notebook_ext.widgets.prompt import PromptPanel, Typed

__all__ = ["PromptDesk"]

Bundle = dict[str, Any]

_CLOSED = "The prompt panel is closed; run this cell again to open it."
_NOTHING_YET = "Nothing has been run in this prompt panel yet."


class PromptDesk:
    """One prompt panel in one cell.

    Args:
        session: Whose endpoints it offers.
        front_end: Where it is shown.
        namespace: The user's variables, which templates see.
        cell_id: The notebook cell's id, where known.
        remember: Told the number and the command of each job.
    """

    def __init__(
        self,
        session: Session,
        front_end: FrontEnd,
        namespace: Mapping[str, Any],
        *,
        cell_id: str | None,
        remember: Callable[[int, Command], None],
    ) -> None:
        self._session, self._namespace = session, namespace
        self._cell_id, self._remember = cell_id, remember
        self._cell: Any = front_end.cell()
        self._panel_id, self._saved_id = uuid.uuid4().hex, uuid.uuid4().hex
        self._front_end = front_end
        self._panel: PromptPanel | None = None
        self._handle: JobHandle | None = None
        self._is_cancelled = False  # before there was a job to cancel

    def open(self, endpoint: str) -> None:
        """Show the panel in the cell.

        Args:
            endpoint: Chosen at first.

        Raises:
            ConfigurationError: There is no such endpoint.
        """
        from notebook_ext.widgets.prompt import PromptPanel  # brings ipywidgets

        if endpoint not in self._session.endpoints.names():
            self._session.connect(endpoint)
        self._panel = PromptPanel(
            self, endpoint, clicks_heard_while_busy=self._front_end.clicks_heard_while_busy
        )
        self._front_end.let_through(self._panel.buttons)
        self._cell.show(self._panel._repr_mimebundle_(), display_id=self._panel_id)
        if not self._front_end.is_voila:  # an app is looked at, and not saved
            self._cell.show({"text/plain": _NOTHING_YET}, display_id=self._saved_id)

    def refresh(self) -> None:
        """Offer the endpoints that are known by now."""
        if self._panel is not None:
            self._panel.refresh()

    def start(self) -> None:
        """Live until it is dropped or the session closes; called on the loop."""
        self._task = asyncio.get_running_loop().create_task(self._live())

    def drop(self) -> None:
        """Take the panel away; its job goes on. From any thread."""
        with contextlib.suppress(RuntimeError):  # the session has closed, and the panel with it
            self._session.loop.loop.call_soon_threadsafe(self._task.cancel)

    async def _live(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            panel, self._panel = self._panel, None
            if panel is not None:
                self._cell.show({"text/plain": _CLOSED}, display_id=self._panel_id, update=True)
                panel.close()

    # ------------------------------------------------------------------ what the panel asks

    def endpoints(self) -> Sequence[str]:
        """The names that can be chosen."""
        return self._session.endpoints.names()

    def places(self, endpoint: str) -> Collection[str]:
        """The settings that an endpoint's profile has a place for; where it has none, `-p` is left."""
        try:
            return profiles.get(self._session.endpoints.profile(endpoint)).places or {"parameters"}
        except InputError:  # a profile that is saved, and unknown to this version
            return ()

    def cell(self, typed: Typed) -> str:
        """The cell that does the same, or why there is none."""
        try:
            return cellcode.cell(cellcode.compose(typed.endpoint, typed.prompt, typed.options))
        except InputError as error:
            return f"# {error}"

    def run(self, typed: Typed) -> None:
        """Submit what is typed, and draw its answer in the panel."""
        panel, self._handle, self._is_cancelled = self._panel, None, False
        if panel is None:
            return
        try:
            handle = self._submit(typed)
        except EndpointError as error:
            panel.refuse(str(error))
            return
        except Exception as bug:  # noqa: BLE001 - a click must not end in a log that nobody reads
            panel.refuse(f"That did not work: {bug!r}")
            return
        panel.start(handle.number)
        answer = _Answer(panel.answer, self._session.loop.loop, self._ended(handle, typed))
        decoder = profiles.get(handle.profile).decoder()
        view = JobView(handle, decoder, answer, strip=panel, is_background=True, most=LONG_TEXT)
        self._session.on_loop(view.start)
        self._handle = handle
        if self._is_cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Stop the job at its endpoint; the panel is told when that is confirmed, or cannot be."""
        if self._handle is None:
            self._is_cancelled = True
        elif not self._handle.is_over:
            self._session.stop(self._handle).add_done_callback(self._stopped)

    # ------------------------------------------------------------------ what comes of it

    def _submit(self, typed: Typed) -> JobHandle:
        if not typed.prompt.strip() and not typed.options.get("parameters"):
            raise InputError("There is no prompt yet.")
        # It is run as it is shown: through the text of its cell.
        text = cellcode.cell(cellcode.compose(typed.endpoint, typed.prompt, typed.options))
        command = grammar.parse(*cellcode.split(text), endpoints=self._session.endpoints.names())
        connection = self._session.connect(typed.endpoint)
        profile = profiles.get(connection.profile)
        _, submission = Arguments(command, self._namespace).submission(
            profile, sync=False, cell=self._cell_id
        )
        handle = self._session.submit(connection, submission, profile=profile.name)
        self._remember(handle.number, command)
        if keys.looks_like_key(text):
            handle.notes.append("this prompt seems to hold a key: put it in a variable before you share it")
        return handle

    def _stopped(self, stopping: concurrent.futures.Future[Stopped]) -> None:
        if stopping.cancelled() or stopping.exception() is not None or self._panel is None:
            return
        if not stopping.result().confirmed:
            self._panel.cannot_cancel(str(stopping.result()))

    def _ended(self, handle: JobHandle, typed: Typed) -> Callable[[list[Bundle], Bundle | None], None]:
        def ended(bundles: list[Bundle], footer: Bundle | None) -> None:
            from notebook_ext.widgets.prompt import Run  # it is imported already: there is a panel

            if self._panel is None:
                return
            if handle.never_submitted:
                self._panel.refuse(str(handle.error or "It was not submitted."))
                return
            line = "" if footer is None else str(footer["text/plain"])
            if not self._front_end.is_voila:
                saved = _saved(self.cell(typed), bundles, line)
                self._cell.show(saved, display_id=self._saved_id, update=True)
            took = " · ".join(line.split(" · ")[3:])  # its number, name and status stand there already
            self._panel.finish(Run(handle.number, typed, handle.status, took, tuple(bundles)))

        return ended


class _Answer:
    """Draws an answer as it comes.

    Args:
        place: Where.
        loop: The loop on whose thread all of this runs.
        ended: Given all that was shown, and the footer, when nothing more comes.
    """

    def __init__(
        self, place: Output, loop: Loop, ended: Callable[[list[Bundle], Bundle | None], None]
    ) -> None:
        self._place, self._ended = place, ended
        self._live = LiveMarkdown(place, loop)
        self._text = ""
        self._is_cut = False
        self._rest: Bundle | None = None

    def add(self, text: str) -> None:
        """Show the next piece of text."""
        self._text += text
        if text:
            self._live.add(text)

    def leave_out(self, rest: Mapping[str, Any]) -> None:
        """What stands for the text that is not shown."""
        self._rest = dict(rest)

    def finish(
        self, bundles: Sequence[Mapping[str, Any]] = (), footer: Mapping[str, Any] | None = None
    ) -> None:
        """Show what is no text; nothing more comes."""
        self._live.finish()
        more = [self._bounded(bundle) for bundle in bundles]
        if self._rest is not None:
            more.append(self._rest)
        if self._is_cut:
            more.append({"text/plain": f"Only the beginning is shown here: {LONG_TEXT:,} characters."})
        for bundle in more:
            self._place.show(bundle)
        text = [render.markdown(self._text)] if self._text.strip() else []
        self._ended([*text, *more], None if footer is None else dict(footer))

    def _bounded(self, bundle: Mapping[str, Any]) -> Bundle:
        text = str(bundle.get("text/plain", ""))
        if len(text) <= LONG_TEXT:
            return dict(bundle)
        self._is_cut = True
        return {"text/plain": text[:LONG_TEXT]}


def _saved(cell: str, bundles: Sequence[Bundle], footer: str) -> Bundle:
    """The last run as a reader of the saved notebook sees it."""
    parts = [_fenced(cell), *(_markdown(bundle) for bundle in bundles), render.inert(footer)]
    plain = [cell, *(str(bundle.get("text/plain", "")) for bundle in bundles), footer]
    return {"text/markdown": "\n\n".join(parts), "text/plain": "\n\n".join(plain)}


def _markdown(bundle: Bundle) -> str:
    known = bundle.get("text/markdown")
    return str(known) if known is not None else _fenced(str(bundle.get("text/plain", "")))


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
