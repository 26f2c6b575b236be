"""The waiting cell, in real kernels; what needs none is tried without."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.events import EventManager, available_events
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebook_ext.cell import TerminalCell
from notebook_ext.errors import ConfigurationError
from notebook_ext.kernel import FrontEnd, allow_nested_loops, nest_asyncio_conflict
from notebook_ext.visible import visible

SETUP = """
import asyncio, threading, time
import ipywidgets
from IPython import get_ipython
from notebook_ext.kernel import FrontEnd, allow_nested_loops, nest_asyncio_conflict
front_end = FrontEnd(get_ipython())
order = []
"""


class Kernel:
    """A real kernel, and what a front end would see of it."""

    def __init__(self, setup: str = SETUP):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel()
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.messages: list[dict] = []
        self.run(setup)

    def close(self, *, restart: bool = False):
        self.client.stop_channels()
        self.manager.shutdown_kernel(restart=restart)
        self.manager.cleanup_resources()

    def start(self, code: str, **options) -> str:
        return self.client.execute(textwrap.dedent(code), **options)

    def reply(self, request: str) -> dict:
        """The answer to one request; answers come in the order of the requests."""
        message = self.client.get_shell_msg(timeout=30)
        while message["msg_type"] == "kernel_info_reply":  # it was asked each second until it had started
            message = self.client.get_shell_msg(timeout=30)
        assert message["parent_header"]["msg_id"] == request
        return message["content"]

    def until(self, kind: str, request: str | None = None) -> dict:
        """Read what the kernel publishes up to the next message of a kind."""
        while True:
            message = self.client.get_iopub_msg(timeout=30)
            self.messages.append(message)
            if message["msg_type"] == kind and request in (None, message["parent_header"].get("msg_id")):
                return message

    def idle(self, request: str) -> None:
        while self.until("status", request)["content"]["execution_state"] != "idle":
            pass

    def run(self, code: str, **options) -> str:
        """Execute to the end, and return what was printed."""
        self.messages.clear()
        request = self.start(code, **options)
        reply = self.reply(request)
        self.idle(request)
        assert reply["status"] == "ok", reply
        return "".join(m["content"]["text"] for m in self.messages if m["msg_type"] == "stream")

    def click(self, comm_id: str) -> None:
        content = {"comm_id": comm_id, "data": {"method": "custom", "content": {"event": "click"}}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def own_kernel():
    """For what cannot be undone."""
    kernel = Kernel()
    yield kernel
    if kernel.manager.has_kernel:
        kernel.close()


def front_end(kernel=None) -> FrontEnd:
    """Without a shell of its own: a real event manager, and a kernel or none."""
    shell = SimpleNamespace(showtraceback=lambda error, tb_offset: shown.append(error))
    shown: list = []
    shell.shown = shown
    shell.events = EventManager(shell, available_events)
    if kernel is not None:
        shell.kernel = kernel
    return FrontEnd(shell)


# ---------------------------------------------------------------------------------- waiting


def test_a_click_is_heard_while_its_cell_waits_and_queued_cells_run_after_it_in_order(kernel):
    request = kernel.start("""
        button = ipywidgets.Button()
        clicked = threading.Event()
        button.on_click(lambda _: (order.append("click"), clicked.set()))
        front_end.let_through([button])
        print(button.comm.comm_id)
        heard = front_end.wait(clicked.is_set, timeout=20)
        order.append("end")
    """)
    comm_id = kernel.until("stream", request)["content"]["text"].strip()
    queued = [kernel.start(f"order.append({n})") for n in range(3)]
    kernel.click(comm_id)
    assert kernel.reply(request)["status"] == "ok"
    for other in queued:
        assert kernel.reply(other)["status"] == "ok"
    kernel.idle(queued[-1])
    assert kernel.run("print(heard, order)").strip() == "True ['click', 'end', 0, 1, 2]"


UNTIL_CLICKED = """
    button = ipywidgets.Button()
    clicked = threading.Event()
    button.on_click(lambda _: clicked.set())
    print(button.comm.comm_id, flush=True)
    front_end.wait(clicked.is_set, timeout=20)
    print("after", flush=True)
"""


def test_what_the_waiting_cell_prints_after_a_click_is_its_own(kernel):
    request = kernel.start(UNTIL_CLICKED)
    kernel.click(kernel.until("stream", request)["content"]["text"].strip())
    assert kernel.until("stream")["parent_header"]["msg_id"] == request
    assert kernel.messages[-1]["content"]["text"].strip() == "after"
    kernel.reply(request)
    kernel.idle(request)


def test_the_kernel_stays_busy_until_the_waiting_cell_ends(kernel):
    request = kernel.start(UNTIL_CLICKED)
    kernel.click(kernel.until("stream", request)["content"]["text"].strip())
    kernel.messages.clear()
    kernel.until("stream", request)
    states = [m["content"]["execution_state"] for m in kernel.messages if m["msg_type"] == "status"]
    assert states == ["busy", "idle", "busy"]  # the click's, and the cell's own again
    kernel.reply(request)
    kernel.idle(request)


def test_a_click_whose_callback_fails_does_not_end_the_waiting_cell(kernel):
    request = kernel.start("""
        button = ipywidgets.Button()
        clicked = threading.Event()
        def callback(_):
            clicked.set()
            raise ValueError("in the callback")
        button.on_click(callback)
        print(button.comm.comm_id, flush=True)
        print(front_end.wait(clicked.is_set, timeout=20), flush=True)
    """)
    kernel.click(kernel.until("stream", request)["content"]["text"].strip())
    assert kernel.until("stream", request)["content"]["text"].strip() == "True"
    assert kernel.reply(request)["status"] == "ok"
    kernel.idle(request)


def test_the_stop_button_interrupts_the_waiting_cell(kernel):
    request = kernel.start("print('waits', flush=True); front_end.wait(lambda: False)")
    kernel.until("stream", request)
    kernel.manager.interrupt_kernel()
    assert kernel.reply(request)["ename"] == "KeyboardInterrupt"
    kernel.idle(request)


def test_a_stop_in_a_click_callback_ends_the_cell_and_loses_no_other_click(kernel):
    request = kernel.start("""
        first, second = ipywidgets.Button(), ipywidgets.Button()
        heard = []
        def slow(_):
            print("in the callback", flush=True)
            time.sleep(20)
        first.on_click(slow)
        second.on_click(lambda _: heard.append("second"))
        print(first.comm.comm_id, second.comm.comm_id, flush=True)
        time.sleep(0.3)  # both clicks are there before the first look
        front_end.wait(lambda: False)
    """)
    first, second = kernel.until("stream", request)["content"]["text"].split()
    kernel.click(first)
    kernel.click(second)
    while "in the callback" not in kernel.until("stream")["content"]["text"]:
        pass
    kernel.manager.interrupt_kernel()
    assert kernel.reply(request)["ename"] == "KeyboardInterrupt"
    kernel.idle(request)
    assert kernel.run("print(heard)").strip() == "['second']"


PRIVATE_NAMES = ["_parent_ident", "_publish_status", "get_parent", "io_loop", "msg_queue", "session", "set_parent",
                 "shell_channel_thread", "shell_handlers", "shell_stream", "_allow_stdin", "do_shutdown"]  # fmt: skip


def test_a_kernel_without_its_private_names_waits_all_the_same(kernel):
    printed = kernel.run(f"""
        from types import SimpleNamespace
        class Without:
            def __init__(self, *names): vars(self)["names"] = names
            def __getattr__(self, name):
                if name in self.names: raise AttributeError(name)
                return getattr(get_ipython().kernel, name)
        for names in [[name] for name in {PRIVATE_NAMES}] + [{PRIVATE_NAMES}]:
            blind = FrontEnd(SimpleNamespace(kernel=Without(*names), events=get_ipython().events))
            print(len(names), blind.wait(lambda: False, timeout=0.1), blind.is_headless, sep=",", end=" ")
            blind.clicks_heard_while_busy
            blind.close()
    """)
    assert printed.split() == ["1,False,False"] * len(PRIVATE_NAMES) + [f"{len(PRIVATE_NAMES)},False,False"]


def test_waiting_ends_with_the_future_and_not_at_the_next_step(monkeypatch):
    monkeypatch.setattr("notebook_ext.kernel.STEP", 60)
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    threading.Timer(0.05, future.set_result, [1]).start()
    assert front_end().wait(future, timeout=30)


@pytest.mark.parametrize("done", [lambda: False, concurrent.futures.Future()], ids=["question", "future"])
def test_waiting_ends_with_the_timeout(done):
    start = time.monotonic()
    assert not front_end().wait(done, timeout=0.05)
    assert time.monotonic() - start >= 0.05


def test_a_finished_wait_takes_no_time_at_all():
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_exception(ValueError())
    assert front_end().wait(future, timeout=0)


def test_off_the_main_thread_no_message_is_touched():
    waiting, pumped = front_end(), []
    waiting._pump = lambda: pumped.append(threading.current_thread())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(waiting.wait, lambda: False, 0.1).result() is False
    assert pumped == []
    waiting.wait(lambda: False, 0.1)
    assert set(pumped) == {threading.main_thread()}


def test_an_interrupt_while_messages_are_taken_is_kept_until_they_are_safe():
    from notebook_ext.kernel import _stop_button_held

    before = signal.getsignal(signal.SIGINT)
    safe = False
    with pytest.raises(KeyboardInterrupt), _stop_button_held():
        os.kill(os.getpid(), signal.SIGINT)
        safe = True
    assert safe
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------------------------- what it is


def test_headless_is_told_by_the_request_of_each_cell(kernel):
    question = "print(front_end.is_headless, front_end.is_terminal, front_end.has_widgets)"
    assert kernel.run(question, allow_stdin=True).split() == ["False", "False", "True"]
    assert kernel.run(question, allow_stdin=False).split() == ["True", "False", "True"]


def test_voila_is_not_headless(kernel):
    printed = kernel.run("""
        import os
        os.environ["VOILA_KERNEL_ID"] = "1"
        print(front_end.is_voila, front_end.is_headless)
        del os.environ["VOILA_KERNEL_ID"]
    """, allow_stdin=False)  # fmt: skip
    assert printed.split() == ["True", "False"]


def test_a_terminal_has_no_kernel_and_no_widgets():
    terminal = front_end()
    assert (terminal.is_terminal, terminal.is_headless, terminal.is_voila, terminal.has_widgets) == (
        True,
        False,
        False,
        False,
    )
    assert terminal.clicks_heard_while_busy is False
    assert isinstance(terminal.cell(), TerminalCell)


def test_whether_clicks_are_heard_while_another_cell_is_busy_is_told_where_it_is_known(kernel):
    version = kernel.run("import ipykernel; print(ipykernel.__version__)").split(".")
    heard = kernel.run("print(front_end.clicks_heard_while_busy)").strip()
    assert heard == ("False" if int(version[0]) < 7 else "None")
    if heard == "None":
        kernel.client.control_channel.send(kernel.client.session.msg("create_subshell_request"))
        subshell = kernel.client.get_control_msg(timeout=30)["content"]["subshell_id"]
        assert kernel.run("print(front_end.clicks_heard_while_busy)").strip() == "True"
        kernel.client.control_channel.send(
            kernel.client.session.msg("delete_subshell_request", {"subshell_id": subshell})
        )
        kernel.client.get_control_msg(timeout=30)


# ---------------------------------------------------------------------------------- output


def test_output_from_a_thread_lands_in_its_own_cell(kernel):
    request = kernel.start("""
        go = threading.Event()
        cell = front_end.cell()
        def later():
            go.wait(20)
            cell.show({"text/plain": "one"}, display_id="here")
            cell.show({"text/plain": "two"}, display_id="here", update=True)
            cell.clear()
        thread = threading.Thread(target=later)
        thread.start()
    """)
    kernel.reply(request)
    kernel.idle(request)
    kernel.run("go.set(); thread.join()")
    shown = [
        m for m in kernel.messages if m["msg_type"] in {"display_data", "update_display_data", "clear_output"}
    ]
    assert [m["msg_type"] for m in shown] == ["display_data", "update_display_data", "clear_output"]
    assert {m["parent_header"]["msg_id"] for m in shown} == {request}
    assert [m["content"].get("data", {}).get("text/plain") for m in shown] == ["one", "two", None]
    assert shown[0]["content"]["transient"] == {"display_id": "here"}
    assert shown[2]["content"] == {"wait": True}


def test_what_is_shown_comes_after_what_was_printed_before(kernel):
    kernel.run("print('first'); front_end.cell().show({'text/plain': 'second'})")
    kinds = [m["msg_type"] for m in kernel.messages if m["msg_type"] in {"stream", "display_data"}]
    assert kinds == ["stream", "display_data"]


def test_output_can_be_captured(kernel):
    kernel.run("%%capture caught\nfront_end.cell().show({'text/plain': 'shown'})")
    assert "display_data" not in [m["msg_type"] for m in kernel.messages]
    assert kernel.run("print(caught.outputs[0].data)").strip() == "{'text/plain': 'shown'}"


def test_a_terminal_shows_control_characters_and_does_not_obey_them(capsys):
    cell = TerminalCell()
    cell.write("red \x1b[31m\x07 bell\r\nnext \x9b1m\tend \u202etxt")
    cell.show({"text/markdown": "**x**", "text/plain": "plain"})
    cell.show({"text/plain": "dropped"}, display_id="a", update=True)
    cell.show({"text/html": "<b>"})
    cell.clear()
    assert capsys.readouterr().out == "red ␛[31m␇ bell\nnext \\u009b1m\tend \\u202etxtplain\n"


def test_ordinary_text_is_printed_as_it_is():
    assert visible("Grüße, 漢字, עברית 🎉\n\tx") == "Grüße, 漢字, עברית 🎉\n\tx"


# ---------------------------------------------------------------------------------- the ends of things


def headless(*cells: str) -> tuple[nbformat.NotebookNode, CellExecutionError | None]:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells]
    )
    try:
        NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    except CellExecutionError as error:
        return notebook, error
    return notebook, None


@pytest.mark.kernels
def test_the_end_of_a_cell_can_fail_it_in_a_headless_run():
    notebook, error = headless(
        SETUP,
        """
        from notebook_ext.errors import EndpointError
        cell = front_end.cell()
        def end():
            cell.show({"text/plain": f"ended after {order}"})
            return EndpointError("the job failed")
        front_end.at_end_of_cell(end)
        order.append("own code")
        """,
        "print('never')",
    )
    assert error is not None
    assert error.ename == "EndpointError"
    shown, failure = notebook.cells[1].outputs
    assert shown.data["text/plain"] == "ended after ['own code']"
    assert failure.output_type == "error"
    assert failure.evalue == "the job failed"
    assert notebook.cells[2].outputs == []


@pytest.mark.kernels
def test_the_end_of_a_cell_is_waited_for_in_a_headless_run():
    notebook, error = headless(
        SETUP,
        """
        started = time.monotonic()
        cell = front_end.cell()
        def end():
            front_end.wait(lambda: time.monotonic() - started > 0.5)
            cell.show({"text/plain": "final"})
        front_end.at_end_of_cell(end)
        """,
        "print('next')",
    )
    assert error is None
    assert notebook.cells[1].outputs[0].data["text/plain"] == "final"
    assert notebook.cells[2].outputs[0].text == "next\n"


def ended(waiting: FrontEnd, result: SimpleNamespace) -> list:
    waiting._shell.events.trigger("post_run_cell", result)
    return waiting._shell.shown


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_the_callback_raises_fails_the_cell_too(kind):
    def end():
        raise kind

    waiting, result = front_end(), SimpleNamespace(success=True, error_in_exec=None)
    waiting.at_end_of_cell(end)
    assert [shown[0] for shown in ended(waiting, result)] == [kind]
    assert isinstance(result.error_in_exec, kind)


def test_a_callback_at_the_end_runs_once():
    waiting, calls = front_end(), []
    waiting.at_end_of_cell(lambda: calls.append(1))
    ended(waiting, SimpleNamespace(success=True))
    ended(waiting, SimpleNamespace(success=True))
    assert calls == [1]


def test_a_cell_that_failed_keeps_its_own_error():
    waiting, own = front_end(), ValueError("own")
    result = SimpleNamespace(success=False, error_in_exec=own)
    waiting.at_end_of_cell(lambda: RuntimeError("the job's"))
    assert ended(waiting, result) == []
    assert result.error_in_exec is own


@pytest.mark.parametrize("restart", [False, True])
def test_a_shutdown_tells_whether_it_is_a_restart(own_kernel, tmp_path, restart):
    path = tmp_path / "told"
    own_kernel.run(f"""
        front_end.on_shutdown(lambda restart: 1 / 0)  # a fault of one does not stop the others
        front_end.on_shutdown(lambda restart: open({str(path)!r}, "w").write(str(restart)))
    """)
    own_kernel.close(restart=restart)
    assert path.read_text() == str(restart)


def test_closing_leaves_nothing_behind(kernel):
    printed = kernel.run("""
        shell = get_ipython()
        def state():
            return (list(shell.events.callbacks["post_run_cell"]), vars(shell.kernel).get("do_shutdown"))
        before = state()
        other = FrontEnd(shell)
        other.on_shutdown(print)
        assert state() != before
        other.close()
        other.close()
        print(state() == before)
        front_end.close()
        print("do_shutdown" in vars(shell.kernel))
        front_end = FrontEnd(shell)
    """)
    assert printed.split() == ["True", "False"]


# ---------------------------------------------------------------------------------- nested loops


def test_neither_importing_nor_making_a_front_end_patches_asyncio():
    code = """
        import asyncio, sys
        def state():
            loops = (asyncio.BaseEventLoop, asyncio.Task, asyncio.Future, asyncio.run, asyncio.get_event_loop)
            return loops + tuple(vars(asyncio.BaseEventLoop).values()) + tuple(sorted(vars(asyncio)))
        before = state()
        from types import SimpleNamespace
        from IPython.core.events import EventManager, available_events
        import notebook_ext, notebook_ext.kernel, notebook_ext.display
        notebook_ext.kernel.FrontEnd(SimpleNamespace(events=EventManager(None, available_events)))
        assert state() == before
        assert not {"nest_asyncio", "nest_asyncio2", "ipywidgets", "zmq"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_nested_loops_work_on_request(own_kernel):
    own_kernel.run("allow_nested_loops(); allow_nested_loops()")
    assert own_kernel.run("print(asyncio.run(asyncio.sleep(0.01, 'nested')))").strip() == "nested"
    assert own_kernel.run("print(nest_asyncio_conflict())").strip() == "None"


def test_nested_loops_are_refused_where_the_original_has_patched_asyncio(monkeypatch):
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(__version__="7.1.0"))
    assert "remove nest_asyncio.apply()" in str(nest_asyncio_conflict())
    with pytest.raises(ConfigurationError, match="allow_nested_loops"):
        allow_nested_loops()


@pytest.mark.parametrize("version", ["6.29.5", None])
def test_the_original_is_no_danger_elsewhere(monkeypatch, version):
    monkeypatch.setattr(asyncio, "_nest_patched", True, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", version and SimpleNamespace(__version__=version))
    assert nest_asyncio_conflict() is None
