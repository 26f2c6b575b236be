"""`%load_ext notebook_ext` and `%unload_ext notebook_ext`, which mirror each other."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

from notebook_ext import completion
from notebook_ext.kernel import FrontEnd, nest_asyncio_conflict
from notebook_ext.magics import EndpointMagics
from notebook_ext.tls import ssl_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["load", "unload"]

_ATTRIBUTE = "_notebook_ext"
IDLE = 0.2
"""Seconds after which a kernel that has loaded the extension imports the rest, if it is idle then."""
_SHOWN = (
    ("notebook_ext.types", "Job"),
    ("notebook_ext.types", "Health"),
    ("notebook_ext.handle", "JobHandle"),
    ("notebook_ext.results", "JobTable"),
)
"""What the magics show in their own way; by name, so that it need not be imported for that."""


def load(shell: Any) -> None:
    """Register the magics; a second call does nothing, and keeps the running jobs."""
    if getattr(shell, _ATTRIBUTE, None) is not None:
        return
    front_end = FrontEnd(shell)
    magics = EndpointMagics(shell, front_end)
    shell.register_magics(magics)
    completion.install(shell, magics)
    for home, name in _SHOWN:
        shell.display_formatter.ipython_display_formatter.for_type_by_name(home, name, magics.display)
    unhook = _hook(shell, magics) if front_end.is_terminal else None
    front_end.on_shutdown(lambda restart: magics.close(cancel=not restart))  # after a restart the jobs go on
    setattr(shell, _ATTRIBUTE, (magics, front_end, _warm_up(front_end.has_widgets), unhook))
    magics.greet()
    conflict = nest_asyncio_conflict()
    if conflict is not None:
        print(conflict, file=sys.stderr)


def unload(shell: Any) -> None:
    """Undo `load`: no thread, task, socket, hook or magic is left; remote jobs go on."""
    loaded = getattr(shell, _ATTRIBUTE, None)
    if loaded is None:
        return
    magics, front_end, importing, unhook = loaded
    delattr(shell, _ATTRIBUTE)
    formatter = shell.display_formatter.ipython_display_formatter
    for home, name in _SHOWN:
        # it has moved from the one to the other table when the type was first shown
        formatter.deferred_printers.pop((home, name), None)
        formatter.type_printers.pop(getattr(sys.modules.get(home), name, None), None)
    if importing is not None:
        importing.cancel()
    if unhook is not None:
        unhook()
    completion.uninstall(shell)
    for table in shell.magics_manager.magics.values():
        if getattr(table.get("endpoint"), "__self__", None) is magics:
            del table["endpoint"]
    shell.magics_manager.registry.pop(type(magics).__name__, None)
    if magics in shell.configurables:
        shell.configurables.remove(magics)
    front_end.close()
    if not _is_reloading():
        magics.close()


def _hook(shell: Any, magics: EndpointMagics) -> Callable[[], None]:
    """Spare a terminal the empty `Out[2]: ` of a result that its verb has printed; returns what undoes that.

    The result is still a result: `_` and `Out` have it.
    """
    trap = shell.display_trap
    before = trap.hook

    def show(result: Any = None) -> None:
        if not magics.has_shown(result):
            before(result)
            return
        hook = shell.displayhook
        hook.check_for_underscore()
        hook.update_user_ns(result)
        hook.fill_exec_result(result)

    def unhook() -> None:
        if trap.hook is show:
            trap.hook = before

    trap.hook = show
    return unhook


def _warm_up(has_widgets: bool) -> asyncio.TimerHandle | None:
    """Get ready what the first call needs: the TLS context in a thread, imports when the kernel is idle.

    Nothing is imported in the thread: two threads that import the same package at the same time
    can each see half of it, and the user's next cell may import anything.
    """
    threading.Thread(target=ssl_context, name="notebook_ext TLS", daemon=True).start()
    try:
        return asyncio.get_running_loop().call_later(IDLE, _import_all, has_widgets)
    except RuntimeError:  # a terminal: the first call imports
        return None


def _import_all(has_widgets: bool) -> None:
    from notebook_ext import client, verbs  # noqa: F401 - it is the import that counts

    if has_widgets:
        from notebook_ext.widgets import job  # noqa: F401


def _is_reloading() -> bool:
    """Whether `%reload_ext` unloads, only to load again at once: running jobs are kept."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "reload_extension":
        frame = frame.f_back
    return frame is not None
