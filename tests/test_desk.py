"""The prompt panel over a real session and a really served endpoint; and the verbs that lead to it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets.widgets import widget as registry

from notebook_ext import cellcode, display
from notebook_ext.config import Config
from notebook_ext.panels import Panels
from notebook_ext.session import Session
from notebook_ext.types import JobStatus

GO_ON = threading.Event()


def until(condition, timeout=10.0):
    """Wait for what the session's own thread does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Cell:
    """Keeps what is shown as a notebook would save it."""

    def __init__(self):
        self.shown = {}

    def show(self, bundle, *, display_id=None, update=False):
        if update:
            assert display_id in self.shown
        self.shown[display_id] = bundle

    @property
    def saved(self):
        """The output that stands behind the panel."""
        return list(self.shown.values())[1]


class FrontEnd:
    has_widgets, is_headless, is_voila, clicks_heard_while_busy = True, False, False, None

    def __init__(self):
        self.cells, self.heard = [], []

    def cell(self):
        self.cells.append(Cell())
        return self.cells[-1]

    def let_through(self, widgets):
        self.heard += widgets


async def held(job):
    """Yield the prompt, and end when the test says so."""
    yield str(job["input"]["prompt"])
    while not GO_ON.is_set():
        await asyncio.sleep(0.005)
    yield " The end."


def settings(job):
    return f"{job['input']}"


def fail(job):
    raise ValueError("no such luck")


def long(job):
    for _ in range(100):
        yield "word " * 200


@pytest.fixture
def session():
    GO_ON.clear()
    session = Session(config=Config())
    for handler in (held, settings, fail, long):
        session.serve(handler.__name__, handler)
    yield session
    session.close()


@pytest.fixture
def desk(session):
    """A panel that is open in a cell, and what surrounds it."""
    front_end, names, commands = FrontEnd(), {"audience": "children"}, {}
    panels = Panels(session, front_end)
    panels.prompt("held", names, commands.__setitem__, cell=("cell-1", 1))
    (desk,) = panels._in_cell["cell-1"][1]
    return SimpleNamespace(
        desk=desk,
        panel=desk._panel,
        cell=front_end.cells[0],
        front_end=front_end,
        panels=panels,
        names=names,
        commands=commands,
    )


def ask(desk, prompt, endpoint=None, **options):
    if endpoint is not None:
        desk.panel._endpoint.value = endpoint
    desk.panel._prompt.value = prompt
    for name, value in options.items():
        desk.panel._settings[name].value = value
    desk.panel._run.click()


def ended(desk, count=1):
    until(lambda: len(desk.panel._runs) == count)
    return desk.panel._runs[-1]


def text(desk):
    return "".join(
        o["data"].get("text/markdown", "") for w in desk.panel.answer.box.children for o in w.outputs
    )


def test_an_answer_streams_into_the_panel_and_is_saved_at_its_end(desk):
    assert desk.cell.saved == {"text/plain": "Nothing has been run in this prompt panel yet."}
    ask(desk, "Hello {{ audience }}.")
    until(lambda: "Hello children." in text(desk))
    assert "The end." not in text(desk)
    assert desk.panel._cancel.disabled is False
    GO_ON.set()
    run = ended(desk)
    assert run.status is JobStatus.COMPLETED
    assert run.bundles[0]["text/plain"] == "Hello children. The end."
    assert run.footer.startswith("0.0 s queue · ")
    saved = desk.cell.saved
    assert saved["text/markdown"].startswith(
        "```\n%%endpoint run held\nHello {{ audience }}.\n```\n\nHello children. The end."
    )
    assert "@1 · held · COMPLETED · " in saved["text/plain"]


def test_what_is_run_is_what_the_cell_says(desk, session):
    desk.names["x"] = "{{ audience }}"
    ask(desk, "#| {{ x }}\n>>> 'quoted'", endpoint="settings")
    ended(desk)
    assert session.handles[1].input == {"prompt": "#| {{ audience }}\n>>> 'quoted'"}
    assert cellcode.cell(desk.commands[1]) == desk.desk.cell(desk.panel._runs[0].typed)


def test_settings_have_their_places_and_a_raw_worker_gets_further_input(desk, session):
    ask(desk, "Hi", endpoint="settings", parameters="steps=3\nname=a b")
    ended(desk)
    assert session.handles[1].input == {"prompt": "Hi", "steps": 3, "name": "a b"}
    assert "system" in desk.desk.places("demo")
    assert session.endpoints.queue("demo") is None  # looking at its settings serves nothing


def test_cancel_stops_the_remote_job_and_shows_that_it_is_confirmed(desk, session):
    ask(desk, "Hello")
    until(lambda: "Hello" in text(desk))
    desk.panel._cancel.click()
    run = ended(desk)
    assert run.status is JobStatus.CANCELLED
    assert session.endpoints.queue("held").records[session.handles[1].id].status == "CANCELLED"
    assert "cancelled" in desk.panel._state.value
    assert desk.panel._run.disabled is False


def test_a_cancel_before_there_is_a_job_cancels_it_all_the_same(desk, monkeypatch):
    submit = desk.desk._submit

    def slow(typed):
        desk.panel._cancel.click()
        return submit(typed)

    monkeypatch.setattr(desk.desk, "_submit", slow)
    ask(desk, "Hello")
    assert ended(desk).status is JobStatus.CANCELLED


def test_a_failed_job_says_why_in_the_answer_and_is_kept(desk):
    ask(desk, "Hi", endpoint="fail")
    run = ended(desk)
    assert run.status is JobStatus.FAILED
    assert "no such luck" in run.bundles[0]["text/plain"]
    assert "no such luck" in desk.cell.saved["text/markdown"]
    assert desk.panel._run.disabled is False


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("Hi {{ nobody }}", {}, "there is no variable &#x27;nobody&#x27;"),
        ("Hi {{ x", {}, "has no"),
        (" \n", {}, "There is no prompt yet."),
        ('{"a": ', {}, "JSON"),
        ("Hi", {"parameters": "steps"}, "key=value"),
        ("#| x", {"verbatim": True}, "a cell cannot hold"),
    ],
)
def test_what_cannot_be_sent_is_said_in_one_line(desk, session, prompt, options, said):
    ask(desk, prompt, **options)
    assert said in desk.panel._line.value
    assert 'role="alert"' in desk.panel._line.value
    assert desk.panel._prompt.value == prompt
    assert desk.panel._run.disabled is False
    assert session.handles == {}


def test_an_endpoint_that_is_gone_and_one_without_a_key_are_said_in_one_line(desk, session):
    session.connect("far", "abc123", profile="vllm")
    desk.panels.refresh()
    ask(desk, "Hi", endpoint="far", system="Terse.")
    until(lambda: "there is no key" in desk.panel._line.value)
    assert desk.panel._runs == []
    session.endpoints.forget("far")
    desk.panel._run.click()
    assert "there is no endpoint &#x27;far&#x27;" in desk.panel._line.value


def test_a_bug_is_said_and_leaves_no_dead_button(desk, monkeypatch):
    monkeypatch.setattr(desk.desk, "_submit", lambda typed: 1 / 0)
    ask(desk, "Hi")
    assert "That did not work: ZeroDivisionError" in desk.panel._line.value
    assert desk.panel._run.disabled is False


def test_text_is_bounded_in_the_panel_and_where_it_is_saved(desk):
    ask(desk, "Hi", endpoint="long")
    run = ended(desk)
    assert sum(len(bundle["text/plain"]) for bundle in run.bundles) < display.LONG_TEXT + 1_000
    assert " more: `%endpoint export @1 output.txt` writes the whole" in run.bundles[-1]["text/plain"]
    assert len(desk.cell.saved["text/markdown"]) < display.LONG_TEXT + 2_000
    assert len(text(desk)) < display.LONG_TEXT + 1_000


def test_untrusted_text_is_inert_in_the_panel_and_where_it_is_saved(desk):
    GO_ON.set()
    ask(desk, "<img src=x onerror=alert(1)>", endpoint="held")
    run = ended(desk)
    assert "<img" not in text(desk) + run.bundles[0]["text/markdown"]
    answer = desk.cell.saved["text/markdown"].partition("\n```\n")[2]  # the cell before it is in a fence
    assert "<img" not in answer


def test_a_cell_that_is_run_again_closes_its_panel_and_the_job_goes_on(desk, session):
    ask(desk, "Hello")
    until(lambda: "Hello" in text(desk))
    desk.panels.prompt("held", desk.names, desk.commands.__setitem__, cell=("cell-1", 2))
    until(lambda: desk.desk._panel is None)
    assert next(iter(desk.cell.shown.values())) == {
        "text/plain": "The prompt panel is closed; run this cell again to open it."
    }
    GO_ON.set()
    assert session.handles[1].output(timeout=5) == "Hello The end."


def test_closing_the_session_leaves_no_models(session):
    before = set(registry._instances)
    front_end = FrontEnd()
    panels = Panels(session, front_end)
    panels.prompt("held", {}, {}.__setitem__, cell=(None, 1))
    panels.prompt("held", {}, {}.__setitem__, cell=("a", 1))
    session.close()
    assert set(registry._instances) == before


def test_fields_and_buttons_are_let_through(desk):
    assert set(desk.panel.buttons) <= set(desk.front_end.heard)


# -------------------------------------------------------------------------------- the verbs


@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    ran(shell, "%load_ext notebook_ext\n%endpoint serve echo --handler echo\n%endpoint use echo")
    yield shell
    ran(shell, "%unload_ext notebook_ext")
    InteractiveShell.clear_instance()


def ran(shell, cell):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        shell.run_cell(cell)
    return printed.getvalue()


@pytest.mark.parametrize("line", ["panel", "panel prompt", "panel prompt echo"])
def test_a_terminal_says_what_to_use_instead_of_the_panel(shell, line):
    assert ran(shell, f"%endpoint {line}") == (
        "The prompt panel needs a notebook in a browser; here, `%%endpoint run NAME` over a prompt does the same.\n"
    )


def test_code_writes_the_cell_of_a_job_and_inserts_it(shell):
    shell.user_ns["x"] = 3
    ran(shell, "%%endpoint run -p size={{ x }} -q -o job\nHello {{ x }}")
    cell = "%%endpoint run echo -p size={{ x }} -o job -q\nHello {{ x }}"
    assert ran(shell, "%endpoint code") == cell + "\n"
    assert ran(shell, "%endpoint code @1 --cell") == ""
    assert shell.rl_next_input == cell
    ran(shell, cell)
    assert shell.user_ns["job"].input == {"prompt": "Hello 3", "size": 3}


@pytest.mark.parametrize(
    ("value", "profile"),
    [({"prompt": "{{ x }}"}, "raw"), ([1, "a"], "raw"), ({"workflow": {}}, "comfyui"), ({"x": 1}, "vllm")],
)
def test_code_of_a_job_from_python_submits_the_same_input(shell, value, profile):
    from notebook_ext.connection import Submission

    session = shell.magics_manager.magics["line"]["endpoint"].__self__.session
    handle = session.submit(session.connect("echo"), Submission(input=value), profile=profile)
    handle.wait(5)
    ran(shell, "%endpoint code @last --cell")
    ran(shell, shell.rl_next_input)
    assert session.find("@last").number == handle.number + 1
    assert session.find("@last").input == value


def test_code_of_an_unknown_job_is_one_line(shell):
    assert ran(shell, "%endpoint code @7").strip() == "InputError: there is no job @7"
