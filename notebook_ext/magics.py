"""EndpointMagics: `%endpoint` and `%%endpoint`, as IPython knows them.

What they do is in `verbs`, which the first use imports: loading the extension stays cheap.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, Float, Unicode, default

from notebook_ext.errors import EndpointError

if TYPE_CHECKING:
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session
    from notebook_ext.verbs import Verbs

__all__ = ["EndpointMagics"]


def _overview() -> str:
    from notebook_ext import grammar

    return grammar.overview()


@magics_class
class EndpointMagics(Magics):
    """The magics of one shell; `%config EndpointMagics` shows the settings."""

    nested_loops = Bool(
        False, help="Let asyncio.run(...) work inside cells, by nest_asyncio2; it cannot be undone."
    ).tag(config=True)

    journal = Unicode(
        help="The file that remembers every job; ':memory:' forgets with the kernel. "
        "NOTEBOOK_EXT_JOURNAL, or a file in the user's data folder, unless it is set."
    ).tag(config=True)

    journal_days = Float(180.0, help="Jobs that are older are removed from the journal.").tag(config=True)
    journal_megabytes = Float(1024.0, help="The oldest jobs are removed from a journal that is larger.").tag(
        config=True
    )

    def __init__(self, shell: Any, front_end: FrontEnd) -> None:
        super().__init__(shell)
        self._front_end = front_end
        self._verbs: Verbs | None = None
        self.observe(self._change_journal, names="journal")
        self.observe(lambda _: self._nest_loops(), names="nested_loops")
        self._nest_loops()

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def endpoint(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        """Call a serverless endpoint; `%endpoint help` lists what can be done."""
        return self.verbs.do(line, cell, local_ns)

    endpoint.getdoc = _overview  # type: ignore[union-attr]  # what `%endpoint?` shows

    @property
    def verbs(self) -> Verbs:
        """What does the work; made when it is first needed."""
        if self._verbs is None:
            from notebook_ext.config import Config
            from notebook_ext.session import default_session
            from notebook_ext.verbs import Verbs
            from notebook_ext.vocabulary import VERBS

            session = default_session(self.journal)
            session.wait_step = self._front_end.wait
            session.endpoints.config = Config(reserved=frozenset(VERBS))
            self._verbs = Verbs(self.shell, session, self._front_end)
            self._look_after(session)
        return self._verbs

    @property
    def session(self) -> Session:
        """The endpoints and jobs that the magics know."""
        return self.verbs.session

    def _look_after(self, session: Session) -> None:
        """Say what is wrong with the journal, and remove what it need not keep."""
        if session.journal.warning:
            print(session.journal.warning, file=sys.stderr)
        pruned = session.on_loop(session.prune, self.journal_days, self.journal_megabytes)
        if pruned is not None:
            print(pruned)

    @default("journal")
    def _default_journal(self) -> str:
        from notebook_ext.journal_path import default_path

        return default_path()

    def _change_journal(self, change: Any) -> None:
        """Go on with another journal, which only a session without running jobs can."""
        from notebook_ext.journal_path import located

        if self._verbs is None or located(change.new) == self._verbs.session.journal.path:
            return
        running = len(self._verbs.session.active())
        if running:
            self.journal = change.old
            print(
                f"{running} job(s) of this notebook still run, and {change.old} remembers them: set the "
                "journal when they have ended, or after `%endpoint cancel --all`",
                file=sys.stderr,
            )
            return
        self._verbs.session.close()
        self._verbs = None

    def greet(self) -> None:
        """Take over what an earlier session left, and say so in one line; nothing where nothing was left."""
        from notebook_ext.journal_path import count_left

        if not count_left(self.journal):
            return
        try:
            greeting = self.verbs.greeting()
        except EndpointError as error:  # the extension is loaded all the same
            print(f"what an earlier kernel left could not be looked at: {error}", file=sys.stderr)
            return
        if greeting:
            print(greeting)

    def has_shown(self, value: Any) -> bool:
        """Whether a verb in this cell has shown this very value."""
        return self._verbs is not None and self._verbs.has_shown(value)

    def display(self, value: Any) -> None:
        """Show a job, a handle, counters or a list of jobs that is a cell's result."""
        self.verbs.display(value)

    def close(self, *, cancel: bool = False) -> None:
        """End the session, if there is one.

        Args:
            cancel: Stop the remote jobs that still run; else they go on.
        """
        session = sys.modules.get("notebook_ext.session")  # `connect` and `serve` use the same one
        if session is not None:
            session.close_default_session(cancel=cancel)

    def _nest_loops(self) -> None:
        if self.nested_loops:
            from notebook_ext.kernel import allow_nested_loops

            allow_nested_loops()
