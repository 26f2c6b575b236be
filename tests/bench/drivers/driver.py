"""Drives one Python client by JSON lines: orders on standard input, what was seen on standard output.

    python -m tests.bench.drivers.driver tests.bench.drivers.clients:open_floor

    {"do": "open", "url": "http://127.0.0.1:1234"}        a fresh client
    {"do": "greet"}                                        let it make its connection
    {"do": "streams", "inputs": [...], "cancel_after": s}  submit and stream them all at once
    {"do": "result", "input": ..., "how": "run"}           submit and wait for the output
    {"do": "bulk", "count": 1000, "input": ..., "how": ..} all at once, each with a tag of its own
    {"do": "close"}

It runs in any Python and imports nothing but that client. All times are `time.monotonic()`, in seconds.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which an order that says nothing else is taken to have failed."""


class Driver:
    """Carries out orders with the client that it has open.

    Args:
        opener: Makes a client for a URL and options.
    """

    def __init__(self, opener: Any) -> None:
        self._opener = opener
        self._client: Any = None

    async def open(self, *, url: str, load_extension: bool = False, **options: Any) -> dict[str, Any]:
        if load_extension:
            importlib.import_module("tests.bench.drivers.clients").load_extension()
        self._client = self._opener(url, **options)
        return {}

    async def greet(self) -> dict[str, Any]:
        await self._client.ask_health()
        return {}

    async def close(self) -> dict[str, Any]:
        await self._client.close()
        return {}

    async def streams(
        self, *, inputs: list[Any], cancel_after: float | None = None, patience: float = PATIENCE
    ) -> dict[str, Any]:
        return {
            "streams": await asyncio.gather(*(self._stream(one, cancel_after, patience) for one in inputs))
        }

    async def _stream(self, input: Any, cancel_after: float | None, patience: float) -> dict[str, Any]:
        came: list[float] = []
        tokens: list[Any] = []
        seen: dict[str, Any] = {"came": came, "tokens": tokens, "called": time.monotonic(), "error": None}

        async def collect(job: Any) -> None:
            async for token in self._client.stream(job):
                came.append(time.monotonic())
                tokens.append(token)

        async def cancel(job: Any) -> None:
            await asyncio.sleep(cancel_after or 0.0)
            seen["cancelled"] = time.monotonic()
            await self._client.cancel(job)

        try:
            async with asyncio.timeout(patience):
                job = await self._client.submit(input)
                canceller = asyncio.create_task(cancel(job)) if cancel_after is not None else None
                await collect(job)
                if canceller is not None:
                    await canceller
        except (Exception, asyncio.CancelledError) as error:
            seen["error"] = _said(error)
        seen["ended"] = time.monotonic()
        return seen

    async def result(self, *, input: Any, how: str, patience: float = PATIENCE) -> dict[str, Any]:
        seen: dict[str, Any] = {"called": time.monotonic(), "error": None, "output": None}
        try:
            async with asyncio.timeout(patience):
                if how == "run without status-sync" and hasattr(self._client, "result_without_status_sync"):
                    seen["output"] = await self._client.result_without_status_sync(input)
                else:
                    seen["output"] = await self._client.result(input, how.partition(" ")[0])
        except Exception as error:
            seen["error"] = _said(error)
        seen["ended"] = time.monotonic()
        return seen

    async def hammer(self, *, count: int, lanes: int) -> dict[str, Any]:
        """The smallest exchange that there is, as fast as it goes."""

        async def lane() -> None:
            for _ in range(count // lanes):
                await self._client.ask_health()

        await asyncio.gather(*(self._client.ask_health() for _ in range(lanes)))
        started = time.monotonic()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        return {"count": count // lanes * lanes, "seconds": time.monotonic() - started}

    async def bulk(self, *, count: int, input: Any, how: str, patience: float = PATIENCE) -> dict[str, Any]:
        inputs = [{**input, "tag": f"job {number}"} for number in range(count)]
        memory = _memory_so_far()
        cpu, called = time.process_time(), time.monotonic()
        try:
            async with asyncio.timeout(patience):
                outputs = await self._client.results(inputs, how)
        except TimeoutError:
            outputs = [TimeoutError("patience")] * count
        ended, cpu = time.monotonic(), time.process_time() - cpu
        wrong = [
            _said(output) if isinstance(output, BaseException) else f"wrong: {output!r:.40}"
            for one, output in zip(inputs, outputs, strict=True)
            if isinstance(output, BaseException) or output != one["tag"]
        ]
        return {
            "called": called,
            "ended": ended,
            "cpu": cpu,
            "memory": _most_memory() - memory,
            "lost": len(wrong),
            "errors": Counter(re.sub(r"\d[\d.]*", "#", why) for why in wrong).most_common(),
        }


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def _memory_so_far() -> float:
    """Megabytes that are in use; the most that were is forgotten. Only Linux tells."""
    gc.collect()
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return float("nan")
    clear.write_text("5")
    return _most_memory()


def _most_memory() -> float:
    status = Path("/proc/self/status")
    return (
        int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024 if status.exists() else float("nan")
    )


async def drive(opener: Any) -> None:
    driver, loop = Driver(opener), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer = await getattr(driver, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


def main() -> None:
    home, _, name = sys.argv[1].partition(":")
    asyncio.run(drive(getattr(importlib.import_module(home), name)))


if __name__ == "__main__":
    main()
    os._exit(0)  # a client may have left a thread that never ends
