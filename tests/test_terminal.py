"""IPython in a terminal, through a pty: text streams, Ctrl-C stops the remote job, nothing is drawn twice."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDLERS = """
import pathlib, time

def gate(job):
    try:
        yield "first "
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
            yield ""
        yield "last"
    finally:
        pathlib.Path("ended").touch()

def boom(job):
    yield "so far"
    raise ValueError("no such luck")

def rude(job):
    yield "\\x1b[31mred\\x1b[0m\\r\\x07over"
"""
CLOSED = "EndpointError: the session closed while @1 was IN_PROGRESS: it ended with its endpoint, which was served here"


class Terminal:
    """An IPython that a person types into."""

    def __init__(self, folder: Path) -> None:
        (folder / "handlers.py").write_text(HANDLERS)
        self._child = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit", "--colors=NoColor"],
            env={**os.environ, "TERM": "dumb", "PYTHONWARNINGS": "default"},
            encoding="utf-8",
            timeout=30,
            dimensions=(50, 300),
        )
        self._line = 1
        self._child.expect_exact("In [1]: ")
        self.run("from handlers import gate, boom, rude")
        self.run("%load_ext notebook_ext")

    def type(self, line: str) -> None:
        self._child.sendline(line)
        self._child.expect_exact(line)

    def until(self, text: str) -> str:
        """What is printed up to a text, which has to come."""
        self._child.expect_exact(text)
        return self._child.before.replace("\r\n", "\n")

    def prompt(self) -> str:
        """What is printed up to the next prompt."""
        self._line += 1
        return self.until(f"In [{self._line}]: ").strip()

    def run(self, line: str) -> str:
        self.type(line)
        return self.prompt()

    def interrupt(self) -> None:
        self._child.sendintr()

    def exit(self) -> tuple[str, int]:
        """Leave, and return what was still printed, and the exit code."""
        self.type("exit")
        self._child.expect(pexpect.EOF)
        self._child.close()
        return self._child.before.strip(), self._child.exitstatus

    def close(self) -> None:
        self._child.close(force=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture
def gate(terminal: Terminal) -> Terminal:
    terminal.run("%endpoint serve gate --handler gate")
    return terminal


def until(name: str) -> None:
    deadline = time.monotonic() + 10
    while not Path(name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_text_is_there_while_the_handler_holds_the_rest(gate):
    gate.type("%endpoint run gate -- hi")
    gate.until("first ")
    assert not Path("ended").exists()
    Path("go").touch()
    assert re.match(r"last\n@1 · gate · COMPLETED · .* first token .* s$", gate.prompt())


def test_what_a_verb_has_printed_has_no_empty_out_line_and_is_the_result_all_the_same(terminal):
    for line in ("%endpoint run -p max_tokens=2 -- hi", "%endpoint health", "%endpoint jobs"):
        assert "Out[" not in terminal.run(line)
    assert "[<JobHandle @1" in terminal.run("print(_)")
    terminal.run("job = %endpoint run -p max_tokens=2 -- hi")
    assert terminal.run("job.status.name").endswith("'COMPLETED'")
    assert "Out[" not in terminal.run("%unload_ext notebook_ext")
    assert "Out[" in terminal.run("1 + 1")


def test_control_c_stops_the_remote_job_and_says_so(gate):
    gate.type("%endpoint run gate -o job -- hi")
    gate.until("first ")
    gate.interrupt()
    shown = gate.prompt()
    until("ended")
    assert not Path("go").exists()
    assert re.search(r"\n@1 · gate · CANCELLED · ", shown)
    assert re.search(r"KeyboardInterrupt: @1 CANCELLED after [\d.]+ s of execution$", shown)
    assert "Traceback" not in shown
    assert "CANCELLED" in gate.run("job.status")
    assert "COMPLETED" in gate.run("%endpoint run -p max_tokens=3 -p tokens_per_second=1000 -- hi")


def test_control_c_may_leave_the_job_running(gate):
    gate.type("%endpoint run gate --on-interrupt detach -o job -- hi")
    gate.until("first ")
    gate.interrupt()
    assert "KeyboardInterrupt: @1 goes on" in gate.prompt()
    Path("go").touch()
    assert "'first last'" in gate.run("%endpoint result")


def test_a_background_job_leaves_the_prompt_alone(gate):
    shown = gate.run("%endpoint run gate --bg -o job -- hi")
    assert shown.startswith("@1 runs in the background: `%endpoint stream @1` shows it")
    assert "first" not in gate.run("1 + 1")
    assert "@1 · gate · IN_PROGRESS" in gate.run("%endpoint status")
    gate.type("%endpoint stream")
    gate.until("first ")
    Path("go").touch()
    assert gate.prompt().startswith("last\n@1 · gate · COMPLETED")
    assert gate.run("print(job.output())") == "first last"


def test_an_error_is_one_line_below_what_had_arrived(terminal):
    terminal.run("%endpoint serve boom --handler boom")
    lines = terminal.run("%endpoint run boom -- hi").splitlines()
    assert lines[0] == "so far"
    assert lines[1].startswith("@1 · boom · FAILED")
    assert re.match(r"JobFailed: @\d+ on boom failed after .*: ValueError: no such luck$", lines[2])
    assert len(lines) == 3
    assert terminal.run("%endpoint runn").splitlines() == [
        "InputError: 'runn' is neither a verb nor a known endpoint; did you mean 'run'?"
    ]


def test_a_background_job_that_fails_says_so_in_one_line(terminal):
    terminal.run("%endpoint serve boom --handler boom")
    terminal.type("%endpoint run boom --bg -o job -- hi")
    terminal.until("JobFailed: @1 on boom")
    terminal.run("")
    assert "FAILED" in terminal.run("job")
    assert "Traceback" not in terminal.run("%endpoint show")


def test_an_endpoint_cannot_steer_the_terminal(terminal):
    terminal.run("%endpoint serve rude --handler rude")
    shown = terminal.run("%endpoint run rude -- hi")
    assert "␛[31mred␛[0m␍␇over" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def test_purge_and_login_ask(terminal):
    terminal.run("import notebook_ext, threading; halt = threading.Event()")
    terminal.run("waits = notebook_ext.serve('waits', lambda job: halt.wait(30))")
    terminal.run("%endpoint run waits --bg -- 1")
    terminal.run("%endpoint run waits --bg -- 2")
    terminal.run("import time; time.sleep(0.5)")
    terminal.type("%endpoint purge waits")
    terminal.until("(1 from this notebook)? [y/N] ")
    terminal.type("n")
    assert terminal.prompt() == "nothing was removed"
    terminal.run("halt.set()")
    terminal.type("%endpoint login runpod")
    terminal.until("Key of runpod: ")
    terminal._child.sendline("rpa_SECRET0SECRET0SECRET0SECRET")
    shown = terminal.prompt()
    assert "the key of runpod is remembered until this kernel ends" in shown
    assert "SECRET" not in shown


def test_it_unloads_and_leaves_nothing(gate):
    gate.run("%endpoint run gate --bg -o job -- hi")
    assert gate.run("%unload_ext notebook_ext") == CLOSED
    until("ended")
    assert "not found" in gate.run("%endpoint list")
    assert (
        gate.run(
            "import threading; print([t.name for t in threading.enumerate() if 'notebook_ext' in t.name])"
        )
        == "[]"
    )
    assert gate.exit() == ("", 0)


def test_it_exits_at_once_with_a_job_that_runs(gate):
    gate.run("%endpoint run gate --bg -o job -- hi")
    started = time.monotonic()
    said, status = gate.exit()
    assert re.fullmatch(r"notebook_ext: @1 CANCELLED after [\d.]+ s of execution", said)
    assert status == 0
    assert time.monotonic() - started < 5


def test_a_hang_up_ends_it(gate):
    gate.type("%endpoint run gate -- hi")
    gate.until("first ")
    gate._child.kill(signal.SIGHUP)
    gate._child.expect(pexpect.EOF)


def test_panels_are_text_here(gate):
    gate.run("%endpoint run gate --bg -o job -- Say this")
    for line in ("%endpoint panel health gate", "%endpoint health gate --watch --every 1s --forever"):
        assert re.match(r"gate +counters\njobs +0 in queue · ", gate.run(line)), line
    assert re.search(r"@1 +gate .* Say this ", gate.run("%endpoint panel jobs"))
    for line in ("%endpoint panel", "%endpoint panel prompt gate"):
        assert gate.run(line).startswith("The prompt panel needs a notebook in a browser"), line
