"""What a verb gives back: shown once, by the verb or as the cell's result, and bound to a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from notebook_ext import footer, tables
from notebook_ext.handle import JobHandle
from notebook_ext.jobs_pane import job_row
from notebook_ext.types import Health, Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from notebook_ext.cells import JobCells
    from notebook_ext.grammar import Command
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.memory import Found

__all__ = ["History", "JobTable", "Results"]


class JobTable(list[JobHandle]):
    """The jobs that `%endpoint jobs` listed.

    Args:
        handles: The jobs.
        note: What is said below them.
    """

    def __init__(self, handles: Iterable[JobHandle] = (), note: str = "") -> None:
        super().__init__(handles)
        self.note = note


class History(JobTable):
    """The jobs that `%endpoint history` found."""

    def __init__(self, found: Found) -> None:
        super().__init__(found.handles)
        self.bundle = found.bundle


class Results:
    """Gives values back to the cells of one shell.

    Args:
        namespace: The variables of the shell.
        front_end: Where values are shown.
        cells: Shows jobs.
    """

    def __init__(self, namespace: dict[str, Any], front_end: FrontEnd, cells: JobCells) -> None:
        self._namespace = namespace
        self._front_end = front_end
        self._cells = cells
        self._shown: list[Any] = []  # by this cell

    def has_shown(self, value: Any) -> bool:
        """Whether a verb in this cell has shown this very value."""
        return any(value is shown for shown in self._shown)

    def display(self, value: Any) -> None:
        """Show a value that is a cell's result, unless a verb has shown it already."""
        if self.has_shown(value):
            return
        if isinstance(value, JobHandle):
            self._cells.show_end(value)
        else:
            self._front_end.cell().show(_bundle(value))

    def present(self, value: Any) -> Any:
        """Show a value where the magic stands, and give it back."""
        self._front_end.cell().show(_bundle(value))
        return self.as_shown(value)

    def as_shown(self, value: Any) -> Any:
        """Give a value back that the cell shows already, so that its result draws nothing more."""
        self._shown.append(value)
        self._front_end.at_end_of_cell(self._shown.clear)
        return value

    def keep(self, command: Command, handle: JobHandle) -> JobHandle:
        """Bind what `-o` names, and let the result be the handle, which the cell has shown already."""
        if getattr(command.arguments, "out", None):
            self._namespace[command.arguments.out] = handle
        self.as_shown(handle)
        return handle

    def assigned(self, command: Command, handle: JobHandle) -> JobHandle | None:
        """What the magic returns: the handle, unless `NAME <<` takes the value."""
        if command.assign is None:
            return handle
        self._namespace[command.assign] = self._cells.final(handle).value
        return None


def _bundle(value: Any) -> dict[str, Any]:
    if isinstance(value, Job):
        return footer.job(value)
    if isinstance(value, Health):
        return tables.health(value, "health")
    if isinstance(value, History):
        return value.bundle
    table = tables.jobs([job_row(handle) for handle in value])
    return tables.noted(table, value.note) if value.note else table
