"""Every step of the SDK guides that the released `runpod` package has in its asyncio form."""

import asyncio
import json
import os
import time

import aiohttp
import runpod
from runpod import AsyncioEndpoint

HELLO = {"prompt": "Hello, World!"}
SLOW = {"prompt": "Hello, World!", "pause": 0.6}
ENDLESS = {"prompt": "never", "pause": 600}


class Steps:
    """The steps in their order; a later one uses the jobs of an earlier one."""

    def __init__(self, session):
        self.session = session
        self.echo = AsyncioEndpoint("echo", session)
        self.words = AsyncioEndpoint("words", session)
        self.failing = AsyncioEndpoint("failing", session)

    async def run(self):
        return (await self.echo.run(HELLO)).job_id

    async def poll(self):
        job = await self.words.run(HELLO)
        while (status := await job.status()) not in ("COMPLETED", "FAILED"):
            await asyncio.sleep(0.2)
        return {"status": status, "output": await job.output()}

    async def output_waits(self):
        job = await self.words.run(SLOW)
        return {"id": job.job_id, "output": await job.output(timeout=10)}

    async def output_by_default(self):
        job = await self.words.run(SLOW)
        return await job.output()

    async def a_job_that_fails(self):
        job = await self.failing.run({"message": "no luck"})
        return {"output": await job.output(timeout=10), "status": await job.status()}

    async def stream(self):
        job = await self.words.run({"prompt": "a b c", "pause": 0.1})
        started = time.monotonic()
        chunks = [(chunk, time.monotonic() - started) async for chunk in job.stream()]
        return {
            "id": job.job_id,
            "chunks": [chunk for chunk, _ in chunks],
            "first": chunks[0][1],
            "end": time.monotonic() - started,
        }

    async def status(self):
        self.running = await self.words.run(ENDLESS)
        while await self.running.status() == "IN_QUEUE":
            await asyncio.sleep(0.02)
        return await self.running.status()

    async def health(self):
        self.queued = [await self.words.run(HELLO), await self.words.run(HELLO)]
        return await self.words.health()

    async def purge_queue(self):
        result = await self.words.purge_queue()
        return {
            "result": result,
            "purged": [await job.status() for job in self.queued],
            "running": await self.running.status(),
        }

    async def cancel(self):
        return {"cancel": await self.running.cancel(), "status": await self.running.status()}

    async def stream_of_a_cancelled_job(self):
        """It never ends by itself."""
        async with asyncio.timeout(2.5):
            return [chunk async for chunk in self.running.stream()]

    async def timeout(self):
        job = await self.words.run(ENDLESS)
        try:
            return await job.output(timeout=1)
        except TimeoutError as error:
            return {
                "said": str(error),
                "status": await job.status(),
                "cancel": (await job.cancel())["status"],
            }

    async def policy(self):
        """What stands beside the input is sent as a part of it."""
        job = await self.echo.run({"input": HELLO, "policy": {"executionTimeout": 5000}})
        return await job.output(timeout=10)

    async def a_wrong_key(self):
        return await AsyncioEndpoint("echo", self.session, api_key="another").run(HELLO)

    async def an_unknown_job(self):
        job = await self.echo.run(HELLO)
        job.job_id = "no-such-job"
        return await job.status()


async def main():
    runpod.api_key = os.environ["RUNPOD_API_KEY"]
    found = {}
    async with aiohttp.ClientSession() as session:
        steps = Steps(session)
        for name in [name for name in vars(Steps) if not name.startswith("_")]:
            try:
                found[name] = await getattr(steps, name)()
            except Exception as error:
                found[name] = {"raised": type(error).__name__, "said": str(error)}
    print(json.dumps(found))


asyncio.run(main())
