"""Requests that are held open until there is something to say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Receive

__all__ = ["NOBODY_THERE", "Bells", "disconnected", "hold"]

NOBODY_THERE = 499
"""The HTTP status of an answer that nobody waits for any more."""


class Bells(Protocol):
    """What rings at every change of it: a job, or a worker."""

    bells: set[asyncio.Event]
    deleted: bool


async def hold(request: Request, record: Bells, ready: Callable[[], bool], wait: float | None = None) -> bool:
    """Hold an answer until it is ready, its job or worker is deleted, or `wait` seconds are over.

    Returns:
        False when the client has gone: what it asked for must stay where it is.
    """
    bell = asyncio.Event()
    record.bells.add(bell)
    gone = asyncio.ensure_future(disconnected(request.receive))
    gone.add_done_callback(lambda _: bell.set())
    try:
        await asyncio.sleep(0)  # a client that has gone already is noticed in this moment
        async with asyncio.timeout(wait):
            while not (ready() or record.deleted or gone.done()):
                bell.clear()
                await bell.wait()
    except TimeoutError:
        pass
    finally:
        record.bells.discard(bell)
        here = not gone.done()
        gone.cancel()
    return here


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that nobody needs
