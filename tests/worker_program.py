"""The worker of the tests: a program of the released SDK, one handler by the word it is started with."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import runpod

running = 0


async def plain(job):
    return await globals()[f"do_{job['input']['do']}"](job)


async def do_echo(job):
    return {"got": job["input"], "pid": os.getpid()}


async def do_none(job):
    return None


async def do_raise(job):
    raise RuntimeError("it broke")


async def do_error(job):
    return {"error": "no good", "more": 1}


async def do_nan(job):
    return {"x": float("nan")}


async def do_object(job):
    return {"x": object()}


async def do_large(job):
    return "x" * 21 * 1024 * 1024


async def do_refresh(job):
    return {"refresh_worker": True, "pid": os.getpid()}


async def do_progress(job):
    runpod.serverless.progress_update(job, {"step": 1})
    while not Path(job["input"]["go"]).exists():
        await asyncio.sleep(0.01)
    return "done"


async def do_wait(job):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        Path(job["input"]["mark"]).write_text("cancelled")
        raise


async def do_die(job):
    mark = Path(job["input"]["mark"])
    if job["input"]["always"] or not mark.exists():
        mark.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid()}


def blocking(job):
    time.sleep(job["input"])
    return "late"


def generator(job):
    for word in job["input"]["words"]:
        if word == "!":
            raise RuntimeError("it broke")
        yield word


async def agenerator(job):
    for word in job["input"]["words"]:
        yield {"word": word}
        await asyncio.sleep(0)


async def together(job):
    """Ends once as many run as the input says."""
    global running
    running += 1
    while running < job["input"]:
        await asyncio.sleep(0.01)
    return running


CONFIGS = {
    "plain": {"handler": plain},
    "blocking": {"handler": blocking},
    "generator": {"handler": generator},
    "aggregate": {"handler": generator, "return_aggregate_stream": True},
    "agenerator": {"handler": agenerator, "return_aggregate_stream": True},
    "together": {"handler": together, "concurrency_modifier": lambda now: 3},
    "refreshed": {"handler": plain, "refresh_worker": True},
}

if __name__ == "__main__":
    runpod.serverless.start(CONFIGS[sys.argv.pop(1)])
