"""The cell that waits: in steps, hearing clicks, in whatever kernel or terminal it runs.

A cell that blocks the main thread keeps the kernel from reading its messages, so nobody hears the
Cancel button of the very job that is waited for. `FrontEnd.wait` therefore takes the pending
messages itself, hands those of widgets to their handlers, and gives all others back in order.

That needs private names of ipykernel, which are different in 6 and 7. Each is guarded: where one
is missing, clicks wait until the cell ends, the stop button still works, and nothing raises.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from notebook_ext.cell import Cell, TerminalCell, flush_streams
from notebook_ext.errors import ConfigurationError

__all__ = ["STEP", "FrontEnd", "allow_nested_loops", "nest_asyncio_conflict"]

STEP = 0.03
"""Seconds between two looks for clicks: shorter than a hand notices, 33 cheap calls a second."""

RESTART_AFTER_INTERRUPT = 0.04
"""Seconds within which a restart follows the interrupt that announces it."""

_COMM = frozenset({"comm_open", "comm_msg", "comm_close"})

_NEEDED = ("_parent_ident", "_publish_status", "get_parent", "session", "set_parent", "shell_handlers")
_Taken = list[tuple[Any, Callable[[], None]]]


class FrontEnd:
    """What stands between a cell and its user; made by `%load_ext`, closed by `%unload_ext`.

    Args:
        shell: The InteractiveShell that loads the extension.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._kernel: Any = getattr(shell, "kernel", None)
        self._pump = None if self._kernel is None else _CommPump(self._kernel)
        self._held: _StopButton | None = None
        self._at_end: list[Callable[[], BaseException | None]] = []
        self._at_shutdown: list[Callable[[bool], None]] = []
        shell.events.register("post_run_cell", self._end_of_cell)
        self._restarts = threading.Event()
        self._unwrap = self._wrap_shutdown()

    def close(self) -> None:
        """Leave the shell and the kernel as they were found; a second call does nothing."""
        with contextlib.suppress(ValueError):
            self._shell.events.unregister("post_run_cell", self._end_of_cell)
        self._unwrap()
        self._at_end.clear()
        self._at_shutdown.clear()
        self._pump = None

    # ------------------------------------------------------------------ what it is

    @property
    def is_terminal(self) -> bool:
        """IPython in a terminal: no kernel, no widgets, no updates of what is printed."""
        return self._kernel is None

    @property
    def is_voila(self) -> bool:
        """Voila, which shows later output only if it is in widgets."""
        return not self.is_terminal and "VOILA_KERNEL_ID" in os.environ

    @property
    def is_headless(self) -> bool:
        """Whether the *present cell* is run by nbclient, nbconvert or papermill.

        They drop what arrives after a cell ended. Told by the request's `allow_stdin`, so it may
        be otherwise in the next cell.
        """
        return not self.is_terminal and not self.is_voila and not getattr(self._kernel, "_allow_stdin", True)

    @property
    def has_widgets(self) -> bool:
        """Whether a widget can be shown at all."""
        return not self.is_terminal and importlib.util.find_spec("ipywidgets") is not None

    @property
    def clicks_heard_while_busy(self) -> bool | None:
        """Whether a click is heard while *another* cell is busy; None where only trying would tell.

        ipykernel 6 cannot. ipykernel 7 can where the front end sends clicks to a subshell.
        """
        if self.is_terminal:
            return False
        thread = getattr(self._kernel, "shell_channel_thread", None)
        if thread is None:
            return False
        try:
            return True if thread.manager.list_subshell() else None
        except Exception:  # noqa: BLE001 - private names: whatever goes wrong, the answer is not known
            return None

    def cell(self) -> Cell | TerminalCell:
        """The output of the cell that is executing now, to be kept as long as its job lives."""
        return TerminalCell() if self.is_terminal else Cell(self._shell)

    # ------------------------------------------------------------------ waiting

    def wait(
        self, done: Callable[[], bool] | concurrent.futures.Future[Any], timeout: float | None = None
    ) -> bool:
        """Wait in the cell, hearing clicks; the stop button's KeyboardInterrupt goes through.

        Args:
            done: A future, whose end wakes the cell at once, or a question asked at each step.
            timeout: Seconds to wait at most; None waits for ever.

        Returns:
            Whether it is done; False after the timeout.
        """
        future = done if isinstance(done, concurrent.futures.Future) else None
        finished = done.done if isinstance(done, concurrent.futures.Future) else done
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._stop_button_heard():
            while not finished():
                left = STEP if deadline is None else min(STEP, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._step(future, left)
        return True

    @contextlib.contextmanager
    def stop_button_held(self) -> Iterator[None]:
        """Hear the stop button in this block only while it waits by `wait`, or at its end.

        So nobody loses a job that is on its way already, and is not waited for yet.
        """
        if self._held is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        with _stop_button_held() as button:
            self._held = button
            try:
                yield
            finally:
                self._held = None

    @contextlib.contextmanager
    def _stop_button_heard(self) -> Iterator[None]:
        if self._held is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        try:
            self._held.hear()
            yield
        finally:
            self._held.hold()

    def _step(self, future: concurrent.futures.Future[Any] | None, seconds: float) -> None:
        if self._pump is not None and threading.current_thread() is threading.main_thread():
            self._pump()
        if future is None:
            time.sleep(seconds)
        else:
            concurrent.futures.wait([future], seconds)

    def let_through(self, buttons: Iterable[Any]) -> None:
        """Let the clicks of these widgets reach the kernel while a cell runs.

        ipykernel 7.4 sends a click to the subshell that last spoke for the widget, which for a
        widget made by a cell is the busy main one, and not to the subshell that the front end
        asked for. Without the comm's own word on it, the front end's wish is followed.
        """
        for button in buttons:
            comm = getattr(button, "comm", None)
            if comm is not None and hasattr(comm, "_reply_subshell_for"):
                comm._reply_subshell_for = None

    # ------------------------------------------------------------------ the ends of things

    def at_end_of_cell(self, callback: Callable[[], BaseException | None]) -> None:
        """Call once, on the main thread, when the present cell's own code has run.

        Args:
            callback: What it returns, or raises, fails the cell: the cell shows the error, and a
                headless run stops there. A cell that has already failed keeps its own error.
        """
        self._at_end.append(callback)

    def _end_of_cell(self, result: Any) -> None:
        callbacks, self._at_end[:] = self._at_end[:], []
        for callback in callbacks:
            try:
                error = callback()
            except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001 - the cell reports all of them
                error = raised
            if error is not None and result.success:
                result.error_in_exec = error
                self._shell.showtraceback((type(error), error, error.__traceback__), tb_offset=0)

    def restart_follows(self) -> bool:
        """Whether an interrupt that has just come is only the beginning of a restart.

        jupyter_client interrupts a kernel before it asks it to restart; the two are milliseconds
        apart, so the answer takes that long.
        """
        return self._kernel is not None and self._restarts.wait(RESTART_AFTER_INTERRUPT)

    def on_shutdown(self, callback: Callable[[bool], None]) -> None:
        """Call before the kernel goes; in a terminal, where no kernel goes, never.

        Args:
            callback: Told whether the kernel will be restarted. It runs on the kernel's control
                thread and must be done within 2 s: a kill may follow soon.
        """
        self._at_shutdown.append(callback)

    def _wrap_shutdown(self) -> Callable[[], None]:
        kernel, original = self._kernel, getattr(self._kernel, "do_shutdown", None)
        if original is None:
            return lambda: None

        def do_shutdown(restart: bool) -> Any:
            if restart:
                self._restarts.set()
            for callback in self._at_shutdown[:]:
                try:
                    callback(restart)
                except Exception:  # a kernel must be able to go
                    kernel.log.exception("notebook_ext: a shutdown callback failed")
            return original(restart)  # a coroutine in some kernels: the caller awaits it

        kernel.do_shutdown = do_shutdown

        def unwrap() -> None:
            # Whoever wrapped it after us keeps calling us; without callbacks we only pass on.
            if vars(kernel).get("do_shutdown") is do_shutdown:
                if getattr(original, "__func__", None) is getattr(type(kernel), "do_shutdown", None):
                    del kernel.do_shutdown
                else:
                    kernel.do_shutdown = original

        return unwrap


class _CommPump:
    """Takes what waits for the main shell, handles what is for widgets, and gives the rest back."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._works = all(hasattr(kernel, name) for name in _NEEDED)

    def __call__(self) -> None:
        if not self._works:
            return
        try:
            with _stop_button_held():
                messages, ident, parent = self._take()
        except Exception:  # noqa: BLE001 - private names: whatever is missing, the cell goes on waiting
            self._works = False
            return
        try:
            while messages:
                frames, _ = messages.pop(0)
                self._handle(frames, ident, parent)
        finally:  # the stop button came in a handler: nothing that was taken is lost
            for _, give_back in messages:
                give_back()

    def _take(self) -> tuple[_Taken, bytes, Mapping[str, Any]]:
        kernel = self._kernel
        ident, parent = kernel._parent_ident["shell"], kernel.get_parent("shell")
        thread = getattr(kernel, "shell_channel_thread", None)
        pending = self._pending_in_queue() if thread is None else self._pending_in_stream(thread)
        comms = []
        for frames, give_back in pending:
            if self._kind(frames) in _COMM:
                comms.append((frames, give_back))
            else:
                give_back()
        return comms, ident, parent

    def _pending_in_queue(self) -> _Taken:
        """In ipykernel 6 one queue serves the shell; its only reader is suspended under our cell."""
        import zmq  # late: it is there wherever a kernel is, and nowhere else

        queue = self._kernel.msg_queue
        self._kernel.shell_stream.flush(zmq.POLLIN)
        items = [queue.get_nowait() for _ in range(queue.qsize())]
        return [(item[2][-1] if item[2] else None, _call(queue.put_nowait, item)) for item in items]

    def _pending_in_stream(self, thread: Any) -> _Taken:
        """In ipykernel 7 the channel's thread writes to socket pairs; `None` names the main shell's."""
        import zmq

        stream = thread.manager.get_shell_channel_to_subshell_pair(None).to_stream
        later, callback = self._kernel.io_loop.add_callback, stream._recv_callback
        taken: list[Any] = []
        stream.on_recv(taken.append, copy=False)
        try:
            stream.flush(zmq.POLLIN)  # a plain recv would lose the edge that wakes the event loop
        finally:
            stream.on_recv(callback, copy=False)
        return [(frames, _call(later, callback, frames)) for frames in taken]

    def _kind(self, frames: Any) -> str:
        session = self._kernel.session
        try:
            _, rest = session.feed_identities(frames, copy=False)
            return str(session.deserialize(rest, content=False, copy=False)["header"]["msg_type"])
        except Exception:  # noqa: BLE001 - not a message of the protocol (7.4 queues a note to itself)
            return ""

    def _handle(self, frames: Any, ident: bytes, parent: Mapping[str, Any]) -> None:
        kernel = self._kernel
        try:
            identities, rest = kernel.session.feed_identities(frames, copy=False)
            message = kernel.session.deserialize(rest, copy=False)
            kernel.set_parent(identities, message, channel="shell")
            kernel._publish_status("busy", "shell")
            kernel.shell_handlers[message["header"]["msg_type"]](None, identities, message)
        except Exception:  # a widget's fault is not the waiting cell's
            kernel.log.exception("notebook_ext: a widget message could not be handled")
        finally:
            flush_streams()
            # A front end sends the next change of a widget when the last one is idle again; the
            # cell's own "busy" after it keeps the kernel's light on.
            kernel._publish_status("idle", "shell")
            kernel.set_parent(ident, parent, channel="shell")
            kernel._publish_status("busy", "shell")


def _call(function: Callable[..., Any], *args: Any) -> Callable[[], None]:
    return lambda: function(*args)


class _StopButton:
    """What SIGINT does: nothing yet while it is held, and what it did before when it is heard."""

    def __init__(self) -> None:
        self._previous = signal.getsignal(signal.SIGINT)
        self._pressed: tuple[int, Any] | None = None

    def hold(self) -> None:
        if callable(self._previous):
            signal.signal(signal.SIGINT, self._press)

    def hear(self) -> None:
        """Let it be heard from now on; raises what it raises if it was pressed meanwhile."""
        if callable(self._previous):
            signal.signal(signal.SIGINT, self._previous)
            pressed, self._pressed = self._pressed, None
            if pressed is not None:
                self._previous(*pressed)

    def _press(self, number: int, frame: Any) -> None:
        self._pressed = number, frame


@contextlib.contextmanager
def _stop_button_held() -> Iterator[_StopButton]:
    """Keep an interrupt until the end of the block, so that nothing is lost half way."""
    button = _StopButton()
    button.hold()
    try:
        yield button
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # one is enough, and the first one says more
            button.hear()
        raise
    except BaseException:
        button.hear()
        raise
    else:
        button.hear()


# ---------------------------------------------------------------------------------- nested loops


def nest_asyncio_conflict() -> str | None:
    """One sentence if the original nest_asyncio endangers this kernel, else None.

    On ipykernel 7 a run that it nests loses the clicks and the queued cells that arrive meanwhile.
    """
    ipykernel = sys.modules.get("ipykernel")
    patched = getattr(asyncio, "_nest_patched", False) and not hasattr(asyncio, "_nest_asyncio2")
    if ipykernel is None or not patched or int(ipykernel.__version__.split(".")[0]) < 7:
        return None
    return (
        "nest_asyncio has patched asyncio, and on ipykernel 7 it loses clicks and queued cells: "
        "remove nest_asyncio.apply(), restart the kernel, and use notebook_ext.allow_nested_loops()"
    )


def allow_nested_loops() -> None:
    """Let `asyncio.run(...)` and `run_until_complete(...)` work inside a cell, by nest_asyncio2.

    It patches asyncio for the whole process and cannot be undone cleanly. Clicks and queued cells
    wait until the nested run ends; the stop button works. The package itself never needs it.

    Raises:
        ConfigurationError: The original nest_asyncio is already in effect on ipykernel 7.
    """
    conflict = nest_asyncio_conflict()
    if conflict is not None:
        raise ConfigurationError(conflict)
    import nest_asyncio2  # late: importing the package must patch nothing

    nest_asyncio2.apply()
