"""A shell without a kernel, whose cells are run and read as a terminal has them."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from notebook_ext.session import Session, default_session

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "rpa_THIS0IS0A0PLANTED0KEY0THAT0NOBODY0MAY0SEE0ABCDEF"
TRACEBACK = "Traceback (most recent call last)"


class Ran(NamedTuple):
    text: str
    success: bool
    value: Any


class Notebook:
    """Runs cells, and reads what they print."""

    def __init__(self) -> None:
        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        self.shell = InteractiveShell.instance(config=config)
        self.names = self.shell.user_ns

    @property
    def session(self) -> Session:
        return default_session()

    def try_(self, cell: str) -> Ran:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            result = self.shell.run_cell(cell, store_history=True)
        return Ran(printed.getvalue(), result.success, result.result)

    def run(self, cell: str) -> str:
        ran = self.try_(cell)
        assert ran.success, ran.text
        return ran.text

    def value(self, cell: str) -> Any:
        ran = self.try_(cell)
        assert ran.success, ran.text
        return ran.value

    def error(self, cell: str) -> str:
        """The last line that a failing cell prints; there is no traceback above it."""
        ran = self.try_(cell)
        assert not ran.success, ran.text
        assert TRACEBACK not in ran.text, ran.text
        return ran.text.rstrip().splitlines()[-1]

    def input(self, cell: str) -> Any:
        """What the handler of `echo` received from a cell."""
        self.run(cell)
        return self.names["job"].output()

    def handlers(self, **handlers: Any) -> None:
        for name, handler in handlers.items():
            self.names[f"{name}_handler"] = handler
            self.run(f"%endpoint serve {name} --handler {name}_handler")

    def sent(self) -> int:
        """How many jobs have reached the endpoints that are served."""
        queues = [self.session.endpoints.queue(name) for name in self.session.endpoints.names()]
        return sum(len(queue.records) for queue in queues if queue is not None)


class Gate:
    """A handler that streams, says when it has begun, waits to be let go, and says when it has ended."""

    def __init__(self) -> None:
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, job: dict[str, Any]) -> Iterator[str]:
        try:
            yield "begun "
            self.begun.set()
            while not self.go.wait(0.01):
                yield ""
            yield "done"
        finally:
            self.ended.set()
