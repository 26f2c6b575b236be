"""The loop's thread: it survives what runs on it, and ends when it is told to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import subprocess
import sys
import threading
import time

import pytest

from notebook_ext.loop import LoopThread


@pytest.fixture
def loop():
    it = LoopThread()
    yield it
    it.close()


async def name_of_thread() -> str:
    return threading.current_thread().name


def test_it_starts_with_the_first_submit_and_runs_in_a_daemon_thread(loop) -> None:
    before = threading.active_count()
    lazy = LoopThread("never used")
    assert threading.active_count() == before
    lazy.close()
    assert loop.submit(name_of_thread()).result(5) == "notebook_ext"
    assert threading.active_count() == before + 1
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "notebook_ext"]
    assert thread.daemon
    assert not loop.in_thread
    assert loop.submit(asyncio.sleep(0, None)).result(5) is None


def test_many_threads_start_one_loop(loop) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loops = set(pool.map(lambda _: loop.loop, range(50)))
    assert len(loops) == 1
    assert sum(thread.name == "notebook_ext" for thread in threading.enumerate()) == 1


def test_it_knows_its_own_thread(loop) -> None:
    async def ask() -> bool:
        return loop.in_thread

    assert loop.submit(ask()).result(5)


def test_what_is_raised_reaches_who_submitted(loop) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop.submit(fail()).result(5)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_it_survives_what_would_end_a_thread(loop, error) -> None:
    async def leave() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(error):
            loop.submit(leave()).result(5)
        loop.loop.call_soon_threadsafe(lambda: (_ for _ in ()).throw(error()))
        assert loop.submit(name_of_thread()).result(5) == "notebook_ext"


def test_cancelling_the_future_cancels_the_work(loop) -> None:
    started, stopped = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            stopped.set()

    future = loop.submit(work())
    assert started.wait(5)
    assert future.cancel()
    assert stopped.wait(5)


def test_close_cancels_and_waits_for_what_cleans_up() -> None:
    loop, started, cleaned = LoopThread(), threading.Event(), []

    async def work() -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    future = loop.submit(work())
    assert started.wait(5)
    loop.close()
    assert cleaned == [True]
    assert future.cancelled()
    assert not any(thread.name == "notebook_ext" for thread in threading.enumerate())
    loop.close()


def test_close_does_not_wait_for_ever_for_a_task_that_refuses() -> None:
    loop, started, release = LoopThread(), threading.Event(), threading.Event()

    async def refuse() -> None:
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    loop.submit(refuse())
    assert started.wait(5)
    before = time.monotonic()
    loop.close(timeout=0.2)
    assert time.monotonic() - before < 1.5
    assert not any(thread.name == "notebook_ext" for thread in threading.enumerate())
    release.set()


def test_close_finishes_generators_that_were_left() -> None:
    loop, closed = LoopThread(), threading.Event()

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    kept = numbers()

    async def begin() -> int:
        return await anext(kept)

    assert loop.submit(begin()).result(5) == 1
    loop.close()
    assert closed.is_set()


def test_submit_after_close_raises_and_leaves_no_coroutine_behind(recwarn) -> None:
    loop = LoopThread()
    loop.submit(asyncio.sleep(0)).result(5)
    loop.close()
    with pytest.raises(
        RuntimeError, match="this session is closed: %load_ext notebook_ext starts another one"
    ):
        loop.submit(name_of_thread())
    gc.collect()
    assert not recwarn.list


def test_the_interpreter_ends_with_work_still_running() -> None:
    program = """
import asyncio
from notebook_ext.loop import LoopThread
loop = LoopThread()
async def work():
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)
loop.submit(work())
loop.submit(asyncio.sleep(0)).result()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert (ended.stdout, ended.stderr) == ("cleaned up\n", "")
