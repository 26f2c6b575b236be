"""The stop button at every moment of a cell, and what goes wrong while a job is drawn."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_magics import boom

from notebook_ext import cells, profiles
from notebook_ext.kernel import FrontEnd
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator


TRIALS = 30
WITHIN = 0.06


class Presses:
    """Presses the stop button from another thread, as a front end does."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def after(self, seconds: float) -> None:
        self._start(lambda: time.sleep(seconds))

    def when(self, event: threading.Event) -> None:
        self._start(lambda: event.wait(10))

    def _start(self, wait: Any) -> None:
        def press() -> None:
            wait()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        self._threads.append(threading.Thread(target=press))
        self._threads[-1].start()

    def join(self) -> None:
        """Come back when all have been pressed and heard."""
        while any(thread.is_alive() for thread in self._threads):
            try:
                for thread in self._threads:
                    thread.join()
                time.sleep(0)  # a press that is not heard yet is heard here
            except KeyboardInterrupt:
                pass


@pytest.fixture
def presses() -> Iterator[Presses]:
    presses = Presses()
    yield presses
    presses.join()


def endless(job: dict[str, Any]) -> Iterator[str]:
    while True:
        yield "more "
        time.sleep(0.01)


@pytest.mark.parametrize("options", ["", "--bg"])
def test_whenever_stop_is_pressed_no_job_is_lost(notebook, options):
    notebook.handlers(endless=endless)
    moments = random.Random(4)
    for _ in range(TRIALS):
        presses, before = Presses(), len(notebook.session.handles)
        presses.after(moments.uniform(0, WITHIN))
        try:
            ran = notebook.try_(f"%endpoint run endless {options} -- hi\nimport time; time.sleep(5)")
        except KeyboardInterrupt:  # before the cell's own code ran
            continue
        finally:
            presses.join()
        if options and "CANCELLED" not in ran.text:
            notebook.run("%endpoint cancel --all")  # the cell had it in the background already
        for number, handle in sorted(notebook.session.handles.items())[before:]:
            assert handle.never_submitted or handle.status is JobStatus.CANCELLED, (number, ran.text)
    assert notebook.session.handles  # not every press came too early
    assert notebook.session.endpoints.queue("endless").health().jobs["in_progress"] == 0


@pytest.mark.parametrize("moment", ["submit", "show"])
def test_a_press_before_the_wait_is_heard_by_it_in_one_line(notebook, monkeypatch, moment):
    notebook.handlers(endless=endless)
    owner = type(notebook.session) if moment == "submit" else cells.JobCells
    original = getattr(owner, moment)

    def pressed(*arguments: Any, **options: Any) -> Any:
        done = original(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(owner, moment, pressed)
    assert notebook.error("%endpoint run endless -- hi").startswith("KeyboardInterrupt: @1 CANCELLED")
    assert notebook.session.handles[1].status is JobStatus.CANCELLED


def test_a_background_job_is_stopped_by_a_press_while_it_starts(notebook, monkeypatch):
    notebook.handlers(endless=endless)
    show = cells.JobCells.show

    def pressed(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return show(*arguments, **options)

    monkeypatch.setattr(cells.JobCells, "show", pressed)
    assert notebook.error("%endpoint run endless --bg -- hi").startswith("KeyboardInterrupt: @1 CANCELLED")


def test_a_second_press_while_the_first_is_confirmed_is_one_line_too(
    notebook,
    gate,
    presses,
    monkeypatch,
):
    stop_all = type(notebook.session).stop_all

    def pressed(session: Any, handles: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return stop_all(session, handles)

    monkeypatch.setattr(type(notebook.session), "stop_all", pressed)
    presses.when(gate.begun)
    line = notebook.error("%endpoint run gate -- hi")
    assert line.endswith("KeyboardInterrupt: @1: stopping was interrupted; its state is not confirmed")
    notebook.names["job"] = notebook.session.handles[1]
    notebook.run("job.wait(10)")
    assert notebook.session.handles[1].status is JobStatus.CANCELLED  # it was stopped all the same


def test_what_is_held_is_heard_at_the_end_of_the_block(shell):
    front_end = FrontEnd(shell.shell)
    passed = []
    with pytest.raises(KeyboardInterrupt), front_end.stop_button_held():
        signal.raise_signal(signal.SIGINT)
        passed.append("held")
    assert passed == ["held"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    front_end.close()


def test_a_held_press_is_heard_in_a_wait_and_held_again_after_it(shell):
    front_end = FrontEnd(shell.shell)
    passed = []
    with front_end.stop_button_held():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            front_end.wait(lambda: True)
        signal.raise_signal(signal.SIGINT)
        passed.append("held")
        with pytest.raises(KeyboardInterrupt):
            front_end.wait(threading.Event().is_set)
    assert passed == ["held"]
    front_end.close()


class Faulty(profiles.Decoder):
    """Reads nothing."""

    def feed(self, chunk: Any) -> str:
        raise ValueError("not to be read")


class FaultyAtLast(profiles.Decoder):
    """Reads all but the end."""

    def finish(self, output: Any) -> Any:
        raise ValueError("no end")


@pytest.mark.parametrize("decoder", [Faulty, FaultyAtLast])
def test_a_job_that_cannot_be_drawn_fails_its_cell_and_not_itself(notebook, gate, monkeypatch, decoder):
    monkeypatch.setattr(profiles.Profile, "decoder", lambda _: decoder(), raising=False)
    gate.go.set()
    line = notebook.error("%endpoint run gate -o job -- hi")
    assert line.startswith("EndpointError: @1 could not be drawn (ValueError: n")
    assert notebook.names["job"].status is JobStatus.COMPLETED
    assert notebook.names["job"].output().endswith("done")
    assert notebook.error("%endpoint stream @1") == line  # the replay, too


def test_a_job_that_failed_and_cannot_be_drawn_tells_of_its_own_failure(notebook, monkeypatch):
    notebook.handlers(boom=boom)
    monkeypatch.setattr(profiles.Profile, "decoder", lambda _: FaultyAtLast(), raising=False)
    assert notebook.error("%endpoint run boom -- hi").startswith("JobFailed: ")
