"""Opens the panels of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from notebook_ext.desk import PromptDesk
from notebook_ext.health_pane import HealthPane
from notebook_ext.jobs_pane import JobsPane
from notebook_ext.pane import WATCH_TIME, Pane
from notebook_ext.watching import HealthFeed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from notebook_ext.client import Endpoint
    from notebook_ext.connection import Connection
    from notebook_ext.grammar import Command
    from notebook_ext.jobs_pane import Result
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["Panels"]


class Panels:
    """Opens the panels of a session in a front end.

    Args:
        session: What they show.
        front_end: Where they are shown.
    """

    def __init__(self, session: Session, front_end: FrontEnd) -> None:
        self._session = session
        self._front_end = front_end
        self._feeds: dict[Endpoint, HealthFeed] = {}
        self._in_cell: dict[str, tuple[int, list[Pane | PromptDesk]]] = {}

    @property
    def can_be_live(self) -> bool:
        """Whether a panel can be shown in the present cell; else one look, as text, has to do."""
        return self._front_end.has_widgets and not self._front_end.is_headless

    def health(
        self, connection: Connection, *, every: float, is_endless: bool, cell: tuple[str | None, int]
    ) -> None:
        """Watch an endpoint's counters in the present cell.

        Args:
            connection: The endpoint.
            every: Seconds between two questions.
            is_endless: Whether it goes on until it is stopped; else it ends after `WATCH_TIME`.
            cell: The notebook cell's id, where known, and the number of its run.
        """
        feed = self._feeds.setdefault(connection.endpoint, HealthFeed(connection.endpoint.health))
        lasts = None if is_endless else WATCH_TIME
        self._open(HealthPane(self._session, self._front_end, connection, feed, every, lasts), cell)

    def jobs(self, result: Result, *, cell: tuple[str | None, int]) -> None:
        """Show the session's jobs in the present cell.

        Args:
            result: Gives what a job has come to, as bundles.
            cell: The notebook cell's id, where known, and the number of its run.
        """
        self._open(JobsPane(self._session, self._front_end, result), cell)

    def prompt(
        self,
        endpoint: str,
        namespace: Mapping[str, Any],
        remember: Callable[[int, Command], None],
        *,
        cell: tuple[str | None, int],
    ) -> None:
        """Let prompts be run by mouse in the present cell.

        Args:
            endpoint: Chosen at first.
            namespace: The user's variables.
            remember: Told the number and the command of each job.
            cell: The notebook cell's id, where known, and the number of its run.

        Raises:
            ConfigurationError: There is no such endpoint.
        """
        desk = PromptDesk(self._session, self._front_end, namespace, cell_id=cell[0], remember=remember)
        desk.open(endpoint)
        self._open(desk, cell)

    def refresh(self) -> None:
        """Offer the endpoints that are known by now."""
        for _, panels in self._in_cell.values():
            for panel in panels:
                if isinstance(panel, PromptDesk):
                    panel.refresh()

    def _open(self, panel: Pane | PromptDesk, cell: tuple[str | None, int]) -> None:
        name, run = cell
        if name is not None:
            before, panels = self._in_cell.get(name, (run, []))
            if before != run:  # the cell was run again: what it showed is gone, also where no page says so
                for old in panels:
                    old.drop()
                panels = []
            self._in_cell[name] = (run, [*panels, panel])
        self._session.on_loop(panel.start)
