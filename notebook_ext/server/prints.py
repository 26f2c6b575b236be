"""What a handler prints goes to its job's log, not into somebody's cell.

`sys.stdout` and `sys.stderr` are wrapped while something is served. The wrapper asks a context
variable whose print it is, and passes everything else on to the stream that it wraps.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from notebook_ext.server.job import JobLog

__all__ = ["current_log", "divert", "restore"]

current_log: ContextVar[JobLog | None] = ContextVar("notebook_ext_job_log", default=None)
"""The log of the job whose handler runs in this context."""

_holders: set[object] = set()


class _Diverted:
    """A text stream that lets jobs' prints out on the way, and is its target in all else.

    What is set on it stays on it: IPython replaces `sys.stdout.write` while a cell runs, and set on
    the target that would call itself.
    """

    _target: TextIO

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str) -> int:
        log = current_log.get()
        if log is None:
            return self._target.write(text)
        log.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Any:
        return iter(self._target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __repr__(self) -> str:
        return f"<{self._target!r}, without the prints of jobs>"


def divert(holder: object) -> None:
    """Wrap the streams on behalf of `holder`; once more does nothing.

    Called before every job too: whoever has put another stream in place meanwhile (a test
    runner's capture, `redirect_stdout`) gets that one wrapped.
    """
    _holders.add(holder)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Diverted):
            setattr(sys, name, cast("TextIO", _Diverted(stream)))


def restore(holder: object) -> None:
    """Take the wrappers away once nobody holds them; a stream put there by others stays."""
    _holders.discard(holder)
    if _holders:
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Diverted):
            setattr(sys, name, stream._target)
