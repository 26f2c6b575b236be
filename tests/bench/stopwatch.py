"""The server that the benchmarks measure against: a process of its own, which stamps what it does.

It speaks the endpoint protocol over bare asyncio and emulates a network's round trip: half of it
passes before a request arrives, half before its answer leaves. A job's `input` says what it does:

    {"tokens": 200, "interval": 0.02, "first": 0.3, "finish": 0.005}

token `i` comes `first + i * interval` seconds after submission, COMPLETED `finish` seconds after the
last one; with `"queued": true` it waits in the queue until its first token. Each is stamped with `time.monotonic()`, which all processes of a machine share, at the
moment it becomes visible to a reader, so that a late timer here is charged to nobody.

`GET /stamps/JOB` gives the stamps, and how many requests were made about the job; `GET /tally` how many
of each kind were made about all of them, and the newest job's id.

    python -m tests.bench.stopwatch --round-trip 0.03 --hold 10
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

FINAL = ("COMPLETED", "CANCELLED")


class Job:
    """One job and its stamps."""

    def __init__(self, name: str, input: dict[str, Any]) -> None:
        self.id = name
        self.status = "IN_QUEUE" if input.get("queued") else "IN_PROGRESS"
        self.requests = 1
        self.emitted: list[float] = []
        self.finished: float | None = None
        self.unread: list[int] = []
        self._watchers: list[Callable[[], None]] = []
        self._tokens = int(input.get("tokens", 0))
        self._interval = float(input.get("interval", 0.0))
        self._finish_after = float(input.get("finish", 0.0))
        self._loop = asyncio.get_running_loop()
        self._base = self._loop.time() + float(input.get("first", 0.0))
        self._timer = self._next()

    def _next(self) -> asyncio.TimerHandle:
        done = len(self.emitted)
        if done < self._tokens:
            return self._loop.call_at(self._base + done * self._interval, self._emit)
        return self._loop.call_later(self._finish_after, self.finish, "COMPLETED")

    def _emit(self) -> None:
        self.status = "IN_PROGRESS"
        self.unread.append(len(self.emitted))
        self.emitted.append(time.monotonic())
        self._timer = self._next()
        self._tell()

    def finish(self, status: str) -> None:
        if self.status in FINAL:
            return
        self._timer.cancel()
        self.status = status
        self.finished = time.monotonic()
        self._tell()

    def on_news(self, watcher: Callable[[], None]) -> None:
        self._watchers.append(watcher)

    def _tell(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def snapshot(self) -> dict[str, Any]:
        document: dict[str, Any] = {"id": self.id, "status": self.status, "delayTime": 0}
        if self.status in FINAL:
            document |= {"executionTime": 1, "output": list(range(len(self.emitted)))}
        return document

    def drain(self) -> dict[str, Any]:
        tokens, self.unread = self.unread, []
        return {"status": self.status, "stream": [{"output": token} for token in tokens]}

    def stamps(self) -> dict[str, Any]:
        return {"emitted": self.emitted, "finished": self.finished, "requests": self.requests}


class Service:
    """All jobs, and how they are asked about.

    Args:
        round_trip: Seconds, emulated.
        hold: Seconds for which `/stream` waits for news; 0 answers at once.
    """

    def __init__(self, round_trip: float, hold: float) -> None:
        self.half_trip = round_trip / 2
        self.hold = hold
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._tally: Counter[str] = Counter()

    def handle(self, target: str, body: bytes, reply: Callable[[Any], None]) -> None:
        url = urlsplit(target)
        if url.path.startswith("/v2/"):
            self._tally[url.path.split("/")[3]] += 1
        match url.path.strip("/").split("/"):
            case ["stamps", name]:
                reply(self._jobs[name].stamps())
            case ["tally"]:
                reply({"requests": self._tally, "newest": next(reversed(self._jobs), None)})
            case ["v2", _, "health"]:
                reply({"jobs": {}, "workers": {"idle": 1}})
            case ["v2", _, "run"]:
                reply({"id": self._submit(body).id, "status": "IN_QUEUE"})
            case ["v2", _, "runsync"]:
                self._when(
                    self._submit(body), lambda job: job.status in FINAL, url.query, Job.snapshot, reply
                )
            case ["v2", _, operation, name]:
                job = self._jobs[name]
                job.requests += 1
                self._ask(operation, job, url.query, reply)
            case _:
                raise KeyError(target)

    def _ask(self, operation: str, job: Job, query: str, reply: Callable[[Any], None]) -> None:
        match operation:
            case "stream" if self.hold:
                self._when(job, lambda job: bool(job.unread) or job.status in FINAL, query, Job.drain, reply)
            case "stream":
                reply(job.drain())
            case "status-sync":
                self._when(job, lambda job: job.status in FINAL, query, Job.snapshot, reply)
            case "cancel":
                job.finish("CANCELLED")
                reply(job.snapshot())
            case _:
                reply(job.snapshot())

    def _submit(self, body: bytes) -> Job:
        job = Job(f"{next(self._numbers)}-bench", json.loads(body)["input"])
        self._jobs[job.id] = job
        return job

    def _when(
        self,
        job: Job,
        is_news: Callable[[Job], bool],
        query: str,
        document: Callable[[Job], Any],
        reply: Callable[[Any], None],
    ) -> None:
        """Reply once there is news, or when the hold is over."""
        wait = parse_qs(query).get("wait")
        hold = float(wait[0]) / 1000 if wait else self.hold or 90.0
        replied = False

        def look(*, is_over: bool = False) -> None:
            nonlocal replied
            if replied:
                return
            if is_over or is_news(job):
                replied = True
                timer.cancel()
                reply(document(job))
            else:
                job.on_news(look)

        timer = asyncio.get_running_loop().call_later(hold, lambda: look(is_over=True))
        look()


class Conversation(asyncio.Protocol):
    """One client connection; its requests are answered one after the other."""

    _transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._target = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._after_half_trip(self._arrive, self._target.decode(), self._body)

    def _after_half_trip(self, callback: Callable[..., None], *args: Any) -> None:
        if self._service.half_trip:
            self._loop.call_later(self._service.half_trip, callback, *args)
        else:
            callback(*args)

    def _arrive(self, target: str, body: bytes) -> None:
        try:
            self._service.handle(target, body, lambda document: self._answer(200, document))
        except (KeyError, ValueError) as error:
            self._answer(404, {"error": repr(error)})

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document, separators=(",", ":")).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._after_half_trip(self._transport.write, head.encode() + body)


async def serve(round_trip: float, hold: float) -> None:
    """Serve on a free port, told on standard output, until standard input ends."""
    loop = asyncio.get_running_loop()
    service = Service(round_trip, hold)
    server = await loop.create_server(lambda: Conversation(service), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stopwatch that speaks the endpoint protocol.")
    parser.add_argument("--round-trip", type=float, default=0.0, help="seconds, emulated")
    parser.add_argument(
        "--hold", type=float, default=10.0, help="seconds that /stream waits for news; 0: not at all"
    )
    options = parser.parse_args()
    asyncio.run(serve(options.round_trip, options.hold))


if __name__ == "__main__":
    main()
