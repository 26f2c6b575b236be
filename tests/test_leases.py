"""Signs of life: there as long as the process is, gone with it, whatever its end."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from notebook_ext.leases import Presence, alone, is_alive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "j.db.d" / "sessions"


def in_child(function) -> tuple[int, str]:
    """A child that calls a function, says what it returned, and stays; its process id."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(function()).encode() + b"\n")
        signal.pause()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return child, pipe.readline().strip()


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_who_is_there_is_alive_until_it_says_otherwise(folder) -> None:
    first, second = Presence(folder), Presence(folder)
    assert first.owner != second.owner
    for one in (first, second):
        for other in (first, second):
            assert one.is_alive(other.owner)
    first.close()
    assert not second.is_alive(first.owner)
    assert second.is_alive(second.owner)
    second.close()
    first.close()  # again: no harm
    assert list(folder.glob("*.lock")) == []


@pytest.mark.parametrize("owner", [None, "", "nobody", "0" * 32])
def test_nobody_is_not_alive(folder, owner) -> None:
    presence = Presence(folder)
    assert not presence.is_alive(owner)
    assert not is_alive(folder / "nowhere", owner)
    presence.close()


def test_a_journal_in_memory_has_one_owner() -> None:
    presence = Presence(None)
    assert presence.is_alive(presence.owner)
    assert not presence.is_alive("another")
    presence.close()


def test_a_killed_process_is_gone_at_once(folder) -> None:
    def live() -> str:
        KEPT.append(Presence(folder))
        return KEPT[0].owner

    child, owner = in_child(live)
    here = Presence(folder)
    assert here.is_alive(owner)
    kill(child)
    assert not here.is_alive(owner)
    assert (folder / f"{owner}.lock").exists()
    later = Presence(folder)  # sweeps
    assert not (folder / f"{owner}.lock").exists()
    assert later.is_alive(here.owner)
    here.close()
    later.close()


KEPT: list[Presence] = []
"""What a child keeps: a lock that is collected is given up."""


def test_asking_does_not_take_the_sign_away(folder) -> None:
    """Closing any file drops a process's POSIX locks on it: only SQLite knows better, in one process too."""
    presence = Presence(folder)
    for _ in range(3):
        assert is_alive(folder, presence.owner)
    child, said = in_child(lambda: [is_alive(folder, presence.owner) for _ in range(3)])
    kill(child)
    assert said == "[True, True, True]"
    presence.close()


def test_a_forked_child_neither_keeps_nor_ends_its_parents_life(folder) -> None:
    parent = Presence(folder)
    child, said = in_child(lambda: parent.close() or "closed")
    other, alive = in_child(lambda: is_alive(folder, parent.owner))
    assert (said, alive) == ("closed", "True")
    kill(other)
    assert parent.is_alive(parent.owner)
    assert (folder / f"{parent.owner}.lock").exists()
    parent.close()
    assert not is_alive(folder, parent.owner)  # although the child, which has its files open, still is there
    kill(child)


def test_a_child_that_outlives_a_killed_parent_does_not_stand_for_it(folder) -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        presence = Presence(folder)
        grandchild = os.fork()
        if grandchild:
            os.write(writer, f"{presence.owner} {grandchild}\n".encode())
        signal.pause()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        owner, grandchild = pipe.readline().split()
    assert is_alive(folder, owner)
    kill(parent)
    assert not is_alive(folder, owner)
    os.kill(int(grandchild), signal.SIGKILL)


def test_sessions_that_begin_and_end_at_once_keep_theirs(folder) -> None:
    """Each sweeps what the others are just making."""
    go, wrong = threading.Barrier(4), []

    def live() -> None:
        go.wait()
        for _ in range(150):
            presence = Presence(folder)
            if not is_alive(folder, presence.owner) or not (folder / f"{presence.owner}.lock").exists():
                wrong.append(presence.owner)
            presence.close()
            if is_alive(folder, presence.owner):
                wrong.append(f"still {presence.owner}")

    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_at_a_time(tmp_path) -> None:
    inside, most = [], []

    def enter() -> None:
        for _ in range(5):
            with alone(tmp_path / "lock", 10.0):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    with (
        alone(tmp_path / "lock", 0.0),
        pytest.raises(sqlite3.OperationalError, match="locked"),
        alone(tmp_path / "lock", 0.05),
    ):
        pass


@pytest.mark.parametrize("content", [b"x" * 4096, b"SQLite format 3\0" + b"x" * 4096])
def test_what_no_session_wrote_is_nobodys_sign(folder, content) -> None:
    folder.mkdir(parents=True)
    for name in ("door", "nobody.lock"):
        (folder / name).write_bytes(content)
    assert not is_alive(folder, "nobody")
    first, second = Presence(folder), Presence(folder)
    assert not (folder / "nobody.lock").exists()
    assert first.is_alive(second.owner)
    first.close()
    second.close()
