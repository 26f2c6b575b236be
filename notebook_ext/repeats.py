"""A request that was made before: its answer from the journal, or the job that still runs."""

from __future__ import annotations

import copy
import os
import time
from typing import TYPE_CHECKING

from notebook_ext import render
from notebook_ext.errors import InputError
from notebook_ext.options import REPLAY_MODES
from notebook_ext.visible import visible

if TYPE_CHECKING:
    from notebook_ext.entry import Entry
    from notebook_ext.handle import JobHandle
    from notebook_ext.session import Session

__all__ = ["Repeats"]

MODE_VARIABLE = "NOTEBOOK_EXT_REPLAY"
"""The environment variable that sets the mode of a run without anybody at the keyboard."""

_TOLD = {
    "off": "every run is sent",
    "auto": "runs are answered from the journal where it has the answer, and sent where not",
    "only": "runs are answered from the journal, and what it does not have is an error",
}

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

    @property
    def told(self) -> str:
        """The mode, in words."""
        return f"replay is '{self.mode}': {_TOLD[self.mode]}"

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
        mode, digest = "off" if cache is False else self.mode, _digest(entry)
        if digest is None or (mode == "off" and not cache):
            return None
        found = self._session.journal.answer_to(digest)
        if found is not None:
            handle = copy.copy(self._session.recall(found))  # the job itself may have been sent right here
            handle.job, handle.notes = found.job, [*found.notes]
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
        digest = _digest(entry)
        if entry.cell is None or digest is None:
            return None
        for twin in self._session.journal.open_twins(digest):
            is_same_cell = (twin.cell, twin.notebook) == (entry.cell, entry.notebook)
            if is_same_cell and not twin.is_given_up and self._runs.get(twin.number) != run:
                handle = self._session.recall(twin)
                if not (handle.status.is_final or handle.never_submitted):
                    return handle
        return None

    def is_preferred(self, running: JobHandle, *, is_headless: bool) -> bool:
        """Whether a job that still runs is to be followed, in place of another one: somebody is asked.

        Args:
            running: The job.
            is_headless: Whether nobody is there to be asked: then it is only told of.
        """
        age = render.duration(max(0.0, time.time() - running.submitted_at))
        found = f"@{running.number}, the same request of this cell, was sent {age} ago and has not ended"
        if is_headless:
            follow = f"`%endpoint attach @{running.number}` follows it"
            print(visible(f"{found}; this submits another one ({follow})"))
            return False
        try:
            reply = input(f"{found}. Attach to it, or submit another one? [attach/submit] ")
        except EOFError:
            return False
        return reply.strip().lower() not in ("s", "submit", "n", "no")


def _digest(entry: Entry) -> str | None:
    """The hash of a request; None where its input is not JSON, which its submission says."""
    try:
        return entry.body_hash
    except (TypeError, ValueError, RecursionError):
        return None
