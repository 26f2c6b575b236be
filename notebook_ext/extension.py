"""`%load_ext notebook_ext` and `%unload_ext notebook_ext`, which mirror each other."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from notebook_ext import completion, config, grammar
from notebook_ext.cells import JobCells
from notebook_ext.handle import JobHandle
from notebook_ext.kernel import FrontEnd, nest_asyncio_conflict
from notebook_ext.magics import EndpointMagics, JobTable
from notebook_ext.session import default_session
from notebook_ext.types import Health, Job

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["load", "unload"]

_ATTRIBUTE = "_notebook_ext_magics"


def load(shell: Any) -> None:
    """Register the magics; a second call does nothing, and keeps the running jobs."""
    if getattr(shell, _ATTRIBUTE, None) is not None:
        return
    session = default_session()
    front_end = FrontEnd(shell)
    session.wait_step = front_end.wait
    session.config = config.Config(reserved=frozenset(grammar.VERBS))
    magics = EndpointMagics(shell, session, front_end, JobCells(session, front_end))
    shell.register_magics(magics)
    setattr(shell, _ATTRIBUTE, magics)
    completion.install(shell, magics)
    for kind in (Job, Health, JobTable, JobHandle):
        shell.display_formatter.ipython_display_formatter.for_type(kind, magics.display_value)

    def shut_down(restart: bool) -> None:
        session.close(cancel=not restart)  # a restart detaches: the jobs go on

    front_end.on_shutdown(shut_down)
    session.warm_up()
    conflict = nest_asyncio_conflict()
    if conflict is not None:
        print(conflict, file=sys.stderr)


def unload(shell: Any) -> None:
    """Undo `load`: no thread, task, socket, hook or magic is left; remote jobs go on."""
    magics: Any = getattr(shell, _ATTRIBUTE, None)
    if magics is None:
        return
    delattr(shell, _ATTRIBUTE)
    for kind in (Job, Health, JobTable, JobHandle):
        shell.display_formatter.ipython_display_formatter.pop(kind, None)
    completion.uninstall(shell)
    for table in shell.magics_manager.magics.values():
        if getattr(table.get("endpoint"), "__self__", None) is magics:
            del table["endpoint"]
    shell.magics_manager.registry.pop(type(magics).__name__, None)
    if magics in shell.configurables:
        shell.configurables.remove(magics)
    magics.front_end.close()
    if not _is_reloading():
        magics.session.close()


def _is_reloading() -> bool:
    """Whether `%reload_ext` unloads, only to load again at once: running jobs are kept."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "reload_extension":
        frame = frame.f_back
    return frame is not None
