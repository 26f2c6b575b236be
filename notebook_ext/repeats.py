"""A request that was made before: its answer from the journal, or the job that still runs."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from notebook_ext.errors import InputError
from notebook_ext.vocabulary import REPLAY_MODES

if TYPE_CHECKING:
    from notebook_ext.entry import Entry
    from notebook_ext.handle import JobHandle
    from notebook_ext.session import Session

__all__ = ["Repeats"]

MODE_VARIABLE = "NOTEBOOK_EXT_REPLAY"
"""The environment variable that sets the mode of a run without anybody at the keyboard."""

Run = tuple[str | None, int]
"""One run of one cell: the cell's id and the execution's number."""


class Repeats:
    """Knows which requests were made before.

    Args:
        session: Whose journal has them.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._runs: dict[int, Run] = {}
        self._mode = os.environ.get(MODE_VARIABLE, "off")

    @property
    def mode(self) -> str:
        """Whether answers come from the journal.

        Raises:
            InputError: The environment says something that is no mode.
        """
        if self._mode not in REPLAY_MODES:
            raise InputError(f"{MODE_VARIABLE} is '{self._mode}', not one of {', '.join(REPLAY_MODES)}")
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = mode

    def submitted(self, handle: JobHandle, run: Run) -> None:
        """Remember which run of which cell a job comes from."""
        self._runs[handle.number] = run

    def answer(self, entry: Entry, where: str, *, cache: bool | None = None) -> JobHandle | None:
        """The newest completed job of the same request, if answers come from the journal.

        Args:
            entry: The request.
            where: The cell, in words.
            cache: What this cell says; None leaves it to the mode.

        Raises:
            InputError: There is none, and nothing may be sent.
        """
        mode = self.mode if cache is None else ("auto" if cache else "off")
        if mode == "off":
            return None
        found = self._session.journal.answer_to(entry.body_hash)
        if found is not None:
            handle = self._session.recall(found)
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.submitted_at))
            handle.note(f"from the journal, asked {day}")
            return handle
        if mode == "only":
            raise InputError(
                f"replay is 'only', and the journal {self._session.journal.path} has no answer to the "
                f"request of {where}; nothing was sent. Run it once with `%endpoint replay auto`"
            )
        return None

    def running(self, entry: Entry, run: Run) -> JobHandle | None:
        """A job of the same request, from an earlier run of the same cell, that may still run."""
        if entry.cell is None:
            return None
        for twin in self._session.journal.open_twins(entry.body_hash):
            is_same_cell = (twin.cell, twin.notebook) == (entry.cell, entry.notebook)
            if is_same_cell and self._runs.get(twin.number) != run:
                handle = self._session.recall(twin)
                if not handle.is_over:
                    return handle
        return None
