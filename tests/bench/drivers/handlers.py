"""Handlers of the embedded endpoint that the benchmarks need."""

from __future__ import annotations

import asyncio
import time
from typing import Any


async def finish(job: dict[str, Any]) -> float:
    """Return after the input's `finish` seconds, with the moment at which it did."""
    await asyncio.sleep(job["input"]["finish"])
    return time.monotonic()
