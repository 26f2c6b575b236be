"""What the SDKs call: a handler that streams at a pace, and stops where it waits."""

import asyncio


async def words(job):
    """Yield the words of the prompt, each after `pause` seconds."""
    for word in job["input"]["prompt"].split():
        await asyncio.sleep(job["input"].get("pause", 0))
        yield word
