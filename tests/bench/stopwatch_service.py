"""What the stopwatch does: its jobs with their stamps, its limits, its faults, and what it counts.

Nothing in here is the product's, so that a mistake of the one cannot hide one of the other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Callable

FINAL = ("COMPLETED", "CANCELLED")
WINDOW = 10.0
"""Seconds over which the documented rates count."""
LOOKS = ("status and stream", 2000, 400)
LIMITS = {
    "run": ("run", 1000, 200),
    "runsync": ("runsync", 2000, 400),
    "status": LOOKS,
    "status-sync": LOOKS,
    "stream": LOOKS,
    "cancel": ("cancel", 100, 20),
}
"""The documented ones: a budget, its requests per window, and how many of them may be open at once."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Args:
        kind: Before anything was done: "429" or "502" is answered, or the connection is "reset". After it
            was done: "502 after", "reset after", "cut" in the middle of the body, or "truncated" JSON.
        operation: To which requests; "*" is all.
        first: The first so many of them.
        nth: That one.
        every: Each so-manieth.
    """

    kind: str
    operation: str = "*"
    first: int = 0
    nth: int = 0
    every: int = 0

    def hits(self, count: int) -> bool:
        return count <= self.first or count == self.nth or (self.every > 0 and count % self.every == 0)


@dataclass(frozen=True)
class Conditions:
    """The network and the service, in seconds.

    Args:
        round_trip: Emulated: half of it passes before a request arrives, half before its answer leaves.
        connecting: What the first request of a connection takes longer: TCP and TLS over that network.
        processing: What each request takes inside the service.
        hold: For which `/stream` waits for news; 0 answers at once.
        workers: How many jobs run at once; 0 is no limit.
        limited: Whether the documented limits are kept.
        says_when: Whether a refusal says when to come back.
        has_status_sync: Whether there is such a route, which no documentation promises.
        certificate: A PEM file with its key, to speak TLS.
        faults: What goes wrong.
    """

    round_trip: float = 0.0
    connecting: float = 0.0
    processing: float = 0.0
    hold: float = 10.0
    workers: int = 0
    limited: bool = False
    says_when: bool = True
    has_status_sync: bool = True
    certificate: str = ""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What goes back over the connection.

    Args:
        status: Of HTTP.
        body: As it should be.
        retry_after: Seconds, where it says when to come back.
        sent: The share of it that is sent before the connection is reset; None sends all and resets nothing.
    """

    status: int
    body: bytes
    retry_after: int | None = None
    sent: float | None = None

    def spoilt(self, kind: str) -> Answer:
        """The same after a fault that happens when the work is done."""
        match kind:
            case "502 after":
                return BAD_GATEWAY
            case "truncated":
                return Answer(self.status, self.body[: max(1, len(self.body) * 2 // 3)])
            case "cut":
                return Answer(self.status, self.body, sent=0.5)
            case "reset after":
                return RESET
        return self


BAD_GATEWAY = Answer(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>")
RESET = Answer(0, b"", sent=0.0)
AT_ONCE = ("429", "502", "reset")
"""Faults that happen before anything is done."""


def told(document: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(document, separators=(",", ":")).encode())


class Job:
    """One job and its stamps."""

    def __init__(self, name: str, input: dict[str, Any], on_end: Callable[[], None]) -> None:
        self.id = name
        self.tag = input.get("tag")
        self.status = "IN_QUEUE"
        self.requests = 1
        self.emitted: list[float] = []
        self.finished: float | None = None
        self.unread: list[int] = []
        self._input = input
        self._on_end = on_end
        self._watchers: list[Callable[[], None]] = []
        self._tokens = int(input.get("tokens", 0))
        self._interval = float(input.get("interval", 0.0))
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if not self._input.get("queued"):
            self.status = "IN_PROGRESS"
        self._base = self._loop.time() + float(self._input.get("first", 0.0))
        self._timer = self._next()

    def _next(self) -> asyncio.TimerHandle:
        done = len(self.emitted)
        if done < self._tokens:
            return self._loop.call_at(self._base + done * self._interval, self._emit)
        return self._loop.call_later(float(self._input.get("finish", 0.0)), self.finish, "COMPLETED")

    def _emit(self) -> None:
        self.status = "IN_PROGRESS"
        self.unread.append(len(self.emitted))
        self.emitted.append(time.monotonic())
        self._timer = self._next()
        self._tell()

    def finish(self, status: str) -> None:
        if self.status in FINAL:
            return
        was_started = self._timer is not None
        if self._timer is not None:
            self._timer.cancel()
        self.status = status
        self.finished = time.monotonic()
        self._tell()
        if was_started:
            self._on_end()

    def on_news(self, watcher: Callable[[], None]) -> None:
        self._watchers.append(watcher)

    def _tell(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def snapshot(self) -> dict[str, Any]:
        document: dict[str, Any] = {"id": self.id, "status": self.status, "delayTime": 0}
        if self.status in FINAL:
            output = list(range(len(self.emitted))) if self._tokens else self.tag
            document |= {"executionTime": 1, "output": output}
        return document

    def drain(self) -> dict[str, Any]:
        tokens, self.unread = self.unread, []
        return {"status": self.status, "stream": [{"output": token} for token in tokens]}

    def stamps(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "status": self.status,
            "emitted": self.emitted,
            "finished": self.finished,
            "requests": self.requests,
        }


class _Budget:
    """A sliding window, and what is open."""

    def __init__(self, rate: int, most_open: int) -> None:
        self._rate = rate
        self._most_open = most_open
        self._taken: deque[float] = deque()
        self.open = 0

    def refuses_for(self) -> float:
        """Seconds until it takes another request; 0 takes it."""
        now = time.monotonic()
        while self._taken and self._taken[0] <= now - WINDOW:
            self._taken.popleft()
        if len(self._taken) >= self._rate:
            return self._taken[0] + WINDOW - now
        if self.open >= self._most_open:
            return 1.0
        self._taken.append(now)
        return 0.0


class Service:
    """All jobs, and how they are asked about.

    Args:
        conditions: Of network and service.
    """

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._jobs: dict[str, Job] = {}
        self._tagged: dict[str, list[Job]] = {}
        self._numbers = itertools.count(1)
        self._requests: Counter[str] = Counter()
        self._hits: Counter[Fault] = Counter()
        self._refused = self._running = self._connected = self._made = self._peak = 0
        self._queue: deque[Job] = deque()
        budgets = {name: _Budget(rate, most_open) for name, rate, most_open in LIMITS.values()}
        self._budgets = {operation: budgets[name] for operation, (name, *_) in LIMITS.items()}

    # ------------------------------------------------------------------ counting

    def connected(self) -> None:
        """A connection has carried its first request of the protocol."""
        self._connected += 1
        self._made += 1
        self._peak = max(self._peak, self._connected)

    def disconnected(self) -> None:
        self._connected -= 1

    def _tally(self) -> dict[str, Any]:
        return {
            "requests": self._requests,
            "refused": self._refused,
            "jobs": len(self._jobs),
            "repeated": sum(len(jobs) - 1 for jobs in self._tagged.values()),
            "connections": {"made": self._made, "peak": self._peak},
            "newest": next(reversed(self._jobs), None),
            "completed": sum(job.status == "COMPLETED" for job in self._jobs.values()),
        }

    def look(self, path: str) -> Answer:
        """What the benchmark asks about the others' requests; it is neither counted nor delayed."""
        match path.strip("/").split("/"):
            case ["stamps", name]:
                return told(self._jobs[name].stamps())
            case ["tagged", tag]:
                return told(self._tagged[tag][-1].stamps())
            case ["tally"]:
                return told(self._tally())
        raise KeyError(path)

    # ------------------------------------------------------------------ one request

    def ask(self, path: str, query: str, body: bytes, reply: Callable[[Answer], None]) -> None:
        """Answer a request of the protocol, now or later."""
        operation = path.split("/")[3]
        self._requests[operation] += 1
        budget = self._budgets.get(operation) if self.conditions.limited else None
        if budget is not None and (pause := budget.refuses_for()):
            reply(self._refusal(pause))
            return
        fault = self._fault(operation)
        if fault in AT_ONCE:
            reply({"429": self._refusal, "502": lambda _: BAD_GATEWAY, "reset": lambda _: RESET}[fault](1.0))
            return
        if budget is not None:
            budget.open += 1

        def done(answer: Answer) -> None:
            if budget is not None:
                budget.open -= 1
            reply(answer.spoilt(fault))

        if self.conditions.processing:
            asyncio.get_running_loop().call_later(
                self.conditions.processing, self._process, path, query, body, done
            )
        else:
            self._process(path, query, body, done)

    def _refusal(self, pause: float) -> Answer:
        self._refused += 1
        when = max(1, math.ceil(pause)) if self.conditions.says_when else None
        return Answer(429, b'{"error":"too many requests"}', retry_after=when)

    def _fault(self, operation: str) -> str:
        found = ""
        for fault in self.conditions.faults:
            if fault.operation in ("*", operation):
                self._hits[fault] += 1
                found = found or (fault.kind if fault.hits(self._hits[fault]) else "")
        return found

    def _process(self, path: str, query: str, body: bytes, reply: Callable[[Answer], None]) -> None:
        try:
            self._work(path, query, body, reply)
        except (KeyError, ValueError) as error:
            reply(told({"error": repr(error)}, 404))

    def _work(self, path: str, query: str, body: bytes, reply: Callable[[Answer], None]) -> None:
        match path.strip("/").split("/"):
            case ["v2", _, "health"]:
                reply(told({"jobs": {}, "workers": {"idle": 1}}))
            case ["v2", _, "run"]:
                reply(told({"id": self._submit(body).id, "status": "IN_QUEUE"}))
            case ["v2", _, "runsync"]:
                self._when(self._submit(body), _has_ended, query, Job.snapshot, reply)
            case ["v2", _, operation, name]:
                job = self._jobs[name]
                job.requests += 1
                self._about(operation, job, query, reply)
            case _:
                raise KeyError(path)

    def _about(self, operation: str, job: Job, query: str, reply: Callable[[Answer], None]) -> None:
        match operation:
            case "stream" if self.conditions.hold:
                self._when(job, _has_news, query, Job.drain, reply)
            case "stream":
                reply(told(job.drain()))
            case "status-sync" if self.conditions.has_status_sync:
                self._when(job, _has_ended, query, Job.snapshot, reply)
            case "cancel":
                job.finish("CANCELLED")
                reply(told(job.snapshot()))
            case "status":
                reply(told(job.snapshot()))
            case _:
                raise KeyError(operation)

    def _when(
        self,
        job: Job,
        is_news: Callable[[Job], bool],
        query: str,
        document: Callable[[Job], Any],
        reply: Callable[[Answer], None],
    ) -> None:
        """Reply once there is news, or when the hold is over."""
        wait = parse_qs(query).get("wait") if query else None
        hold = float(wait[0]) / 1000 if wait else self.conditions.hold or 90.0
        replied = False

        def look(*, is_over: bool = False) -> None:
            nonlocal replied
            if replied:
                return
            if is_over or is_news(job):
                replied = True
                timer.cancel()
                reply(told(document(job)))
            else:
                job.on_news(look)

        timer = asyncio.get_running_loop().call_later(hold, lambda: look(is_over=True))
        look()

    # ------------------------------------------------------------------ workers

    def _submit(self, body: bytes) -> Job:
        job = Job(f"{next(self._numbers)}-bench", json.loads(body)["input"], self._ended)
        self._jobs[job.id] = job
        if job.tag is not None:
            self._tagged.setdefault(job.tag, []).append(job)
        self._queue.append(job)
        self._start()
        return job

    def _ended(self) -> None:
        self._running -= 1
        self._start()

    def _start(self) -> None:
        while self._queue and (not self.conditions.workers or self._running < self.conditions.workers):
            job = self._queue.popleft()
            if job.status not in FINAL:
                self._running += 1
                job.start()


def _has_ended(job: Job) -> bool:
    return job.status in FINAL


def _has_news(job: Job) -> bool:
    return bool(job.unread) or job.status in FINAL
