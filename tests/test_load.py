"""Mixed load on a real server, with cancels, retries, purges and killed workers: every job is accounted for.

`python -m pytest tests/test_load.py --load 10` is the long run, of so many minutes; it prints a table.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from loading import BROKE, ENDPOINTS, FINAL, OUTSIDE, Crew, callers, result, server, streamed

from notebook_ext.protocol import read_worker_error
from notebook_ext.server.workers import REHEARSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loading import Caller, Execution, Raw, Served

pytestmark = [pytest.mark.timeout(7200)]

SEED = 5
SECONDS = 4.0
CLIENTS, CREW = 8, 4
"""Clients of each kind, and worker processes."""
MOST_AT_ONCE = 8
"""Jobs of one client."""
PATIENCE = 60.0
"""Seconds in which all that was submitted has ended."""
STILL_TIMEOUT = 5.0
"""Seconds that a job may take at a worker process, which may stand still."""
LOST_TWICE = "was lost while it ran the job, after another one"
COLUMNS = (
    "jobs", "completed", "failed", "timed out", "cancelled", "of which purged", "retried", "requeued", "executions",
    "lost", "doubled", "wrong",
)  # fmt: skip


class Plan:
    """What is to happen to one job, drawn from its client's chance before anything does."""

    def __init__(self, tag: str, chance: random.Random) -> None:
        self.endpoint = chance.choice(ENDPOINTS)
        streams = self.endpoint == "generator" or (self.endpoint == OUTSIDE and chance.random() < 0.3)
        pause = chance.choice((0.0, 0.0, 0.01, 0.05, 0.2))
        self.input = {
            "tag": tag,
            "pause": pause,
            "words": chance.randint(1, 8),
            "streams": streams,
            "breaks": chance.choice((0.0, 0.0, 0.0, 0.0, 0.5)),
        }
        self.is_sync = chance.random() < 0.2
        self.look = chance.choice(("end", "end", "status", "stream", "leave"))
        self.cancel_after = chance.choice((0.0, 0.01, 0.1, 0.5)) if chance.random() < 0.15 else None
        self.retries = chance.choice((0, 1, 3))
        self.purges = chance.random() < 0.03
        self.timeout: float | None = None
        if self.endpoint == OUTSIDE:
            self.timeout = STILL_TIMEOUT
        elif chance.random() < 0.1:
            self.timeout = 0.1


@dataclass
class Known:
    """What a client knows of its job.

    Args:
        plan: What was to happen to it.
        id: The server's.
        cancelled: Whether it was asked to cancel it.
        failures: The documents that it had before it was retried.
        document: The last one; None where the client went away before.
        chunks: What was streamed, where that was read from the beginning of the last attempt.
    """

    plan: Plan
    id: str
    cancelled: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)
    document: dict[str, Any] | None = None
    chunks: list[Any] | None = None

    @property
    def streams(self) -> bool:
        return self.plan.input["streams"]

    def __str__(self) -> str:
        seen = f"first {self.failures}, then {self.document}, streamed {self.chunks}"
        return f"{self.id} of {self.plan.endpoint} with {self.plan.input}, seed {SEED}: {seen}"


class Load:
    """All clients, and what they know."""

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.purged: Counter[str] = Counter()

    async def client(self, name: str, by_name: Mapping[str, Caller], until: float) -> None:
        """Submit a few jobs and see what becomes of them, again and again until then."""
        chance, number = random.Random(f"{SEED} {name}"), 0
        while asyncio.get_running_loop().time() < until:
            plans = [Plan(f"{name}.{number + at}", chance) for at in range(chance.randint(1, MOST_AT_ONCE))]
            number += len(plans)
            await asyncio.gather(*(self._live(plan, by_name[plan.endpoint]) for plan in plans))

    async def _live(self, plan: Plan, caller: Caller) -> None:
        submit = caller.run_sync if plan.is_sync else caller.run
        it = Known(plan, (await submit(plan.input, plan.timeout))["id"])
        self.known.append(it)
        if plan.purges:
            removed = await caller.purge()
            self.purged[plan.endpoint] += removed
        if plan.cancel_after is not None:
            await asyncio.sleep(plan.cancel_after)
            it.cancelled = True
            await caller.cancel(it.id)
        if plan.look == "leave":
            return
        document = await self._see(it, caller)
        while document["status"] in ("FAILED", "TIMED_OUT") and len(it.failures) < plan.retries:
            it.failures.append(document)
            await caller.retry(it.id)
            document = await self._see(it, caller)
        it.document = document

    @staticmethod
    async def _see(it: Known, caller: Caller) -> dict[str, Any]:
        """A job's document once it has ended, by the way that is planned."""
        if it.plan.look == "stream":
            it.chunks, document = await caller.stream(it.id)
            return document
        if it.plan.look == "end":
            return await caller.end(it.id)
        while (document := await caller.status(it.id))["status"] not in FINAL:
            await asyncio.sleep(0.02)
        return document


class Account:
    """What became of the jobs of one endpoint.

    Args:
        known: What the clients know.
        documents: What the server says of each, by id.
        executions: What the handlers wrote down, by id.
        health: The server's counters.
        purged: How many jobs were purged, by what those who did were told.
        crew: The worker processes.
    """

    def __init__(
        self,
        known: list[Known],
        documents: Mapping[str, dict[str, Any]],
        executions: Mapping[str, list[Execution]],
        health: dict[str, dict[str, int]],
        purged: int,
        crew: Crew,
    ) -> None:
        self._known, self._documents, self._executions = known, documents, executions
        self._crew, self.count, self.wrong = crew, Counter[str](), []
        for it in known:
            document = documents[it.id]
            self.count[document["status"].lower().replace("_", " ")] += 1
            for kind, fault in self._faults(it, document):
                self.count[kind] += 1
                self.wrong.append(f"{kind}: {fault}: {it}, now {document}, executed {executions[it.id]}")
        self.count["jobs"] = len(known)
        self.count["of which purged"] = purged
        self.count["retried"] = sum(len(it.failures) for it in known)
        self.count["executions"] = sum(len(executions[it.id]) for it in known)
        retries = sum(documents[it.id].get("retries", 0) for it in known)
        self.count["requeued"] = retries - self.count["retried"]
        sums = list(self._sums(health["jobs"], retries))
        self.count["wrong"] += len(sums)
        self.wrong += sums

    def _faults(self, it: Known, document: dict[str, Any]) -> Iterator[tuple[str, str]]:
        status = document["status"]
        if status not in FINAL:
            yield "lost", "it has not ended, or is not known"
            return
        if it.document is not None and _end(it.document) != _end(document):
            yield "wrong", "it has ended twice"
        failures, executed = [*it.failures, document], len(self._executions[it.id])
        attempts = 1 + document.get("retries", 0)
        if executed > attempts - sum(_is_rehearsed(failure) for failure in failures):
            yield "doubled", "it was executed more often than it was handed out"
        if executed < sum(_was_executed(failure) for failure in failures):
            yield "wrong", "it has a result that nobody made"
        for failure in failures:
            if (fault := self._fault(it, failure)) is not None:
                yield "wrong", fault
        if status == "COMPLETED":
            fault = self._result_fault(it, document.get("output"), document.get("workerId"))
            yield from [("wrong", fault)] if fault is not None else []

    def _fault(self, it: Known, document: dict[str, Any]) -> str | None:
        """What is wrong with how an attempt has ended."""
        plan = it.plan
        match document["status"]:
            case "FAILED":
                error = read_worker_error(document["error"]).message
                was_lost = plan.endpoint == OUTSIDE and LOST_TWICE in error
                expected = REHEARSED in error or was_lost or (plan.input["breaks"] and BROKE in error)
                return None if expected else "it failed for no reason"
            case "TIMED_OUT" if plan.endpoint == OUTSIDE:
                stood_still = document["workerId"] in self._crew.stood_still
                return None if stood_still else "it was left to its timeout"
            case "TIMED_OUT" if plan.timeout is None:
                return "it timed out without a limit"
            case "CANCELLED" if not it.cancelled and "workerId" in document:
                return "it was running, and a purge takes only what is queued"
        return None

    def _result_fault(self, it: Known, output: Any, worker: str | None) -> str | None:
        """What is wrong with a result: it is to be that of the last execution, or of the worker that is named."""
        made = self._executions[it.id]
        if it.plan.endpoint == OUTSIDE:  # one that has stood still may have begun after it was given up
            made = [one for one in made if one.worker == worker]
        execution = made[-1].id if made else ""
        if output != (streamed(it.plan.input, execution) if it.streams else result(it.plan.input, execution)):
            return "its result is not that of its last execution"
        if it.chunks is None or not it.streams:
            return None
        # What a lost worker has streamed may have been read before.
        told = it.chunks[-len(output) :] if it.plan.endpoint == OUTSIDE else it.chunks
        return None if told == output else "its stream is not its result"

    def _sums(self, told: dict[str, int], retries: int) -> Iterator[str]:
        """What does not add up."""
        count = self.count
        failed = count["failed"] + count["timed out"] + count["retried"]
        counted = {
            "completed": count["completed"],
            "failed": failed,
            "inProgress": 0,
            "inQueue": 0,
            "retried": retries,
        }
        if told != counted:
            yield f"the server counted {told}, and it was {counted}"
        unasked = sum(
            self._documents[it.id]["status"] == "CANCELLED" and not it.cancelled for it in self._known
        )
        if not unasked <= count["of which purged"] <= count["cancelled"]:
            yield f"{unasked} cancelled without being asked, {count['of which purged']} of them purged"
        if not 0 <= count["requeued"] <= (self._crew.kills if self._known[0].plan.endpoint == OUTSIDE else 0):
            yield f"{count['requeued']} were queued again after {self._crew.kills} workers were killed"


def _end(document: dict[str, Any]) -> tuple[Any, ...]:
    return document["status"], document.get("output"), document.get("retries")


def _is_rehearsed(document: dict[str, Any]) -> bool:
    return document["status"] == "FAILED" and REHEARSED in str(document["error"])


def _was_executed(document: dict[str, Any]) -> bool:
    return document["status"] == "COMPLETED" or BROKE in str(document.get("error"))


async def all_documents(raw: Mapping[str, Raw], known: list[Known]) -> dict[str, dict[str, Any]]:
    """What the server says of every job in the end."""
    left, found = iter(known), {}

    async def lane() -> None:
        for it in left:
            found[it.id] = await raw[it.plan.endpoint].find(it.id)

    await asyncio.gather(*(lane() for _ in range(8)))
    return found


async def settled(raw: Mapping[str, Raw]) -> dict[str, dict[str, dict[str, int]]]:
    """The counters of every endpoint once nothing is queued or running, or patience has an end."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        healths = {name: await raw[name].health() for name in ENDPOINTS}
        jobs = [health["jobs"] for health in healths.values()]
        if not any(counts["inQueue"] or counts["inProgress"] for counts in jobs) or loop.time() > end:
            return healths
        await asyncio.sleep(0.05)


async def burden(served: Served, seconds: float) -> tuple[dict[str, Account], Crew]:
    """Load the server for so long, and account for everything."""
    crew, load = Crew(served, CREW, f"{SEED} crew"), Load()
    try:
        async with callers(served.url) as (raw, ours):
            until = asyncio.get_running_loop().time() + seconds
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(crew.suffer(until))
                for number in range(CLIENTS):
                    tasks.create_task(load.client(f"raw-{number}", raw, until))
                    tasks.create_task(load.client(f"ours-{number}", ours, until))
            healths = await settled(raw)
            documents = await all_documents(raw, load.known)
    finally:
        crew.end()
    executions: dict[str, list[Execution]] = defaultdict(list)
    for execution in served.executions():
        executions[execution.job].append(execution)
    accounts = {}
    for name in ENDPOINTS:
        known = [it for it in load.known if it.plan.endpoint == name]
        accounts[name] = Account(known, documents, executions, healths[name], load.purged[name], crew)
    tags = {it.id: it.plan.input["tag"] for it in load.known}
    strangers = [one for found in executions.values() for one in found if tags.get(one.job) != one.tag]
    assert not strangers, f"executed as another job than it was submitted as: {strangers[:5]}"
    return accounts, crew


def test_under_load_no_job_is_lost_and_none_is_doubled(tmp_path, request, capsys) -> None:
    minutes = request.config.getoption("--load")
    with server(tmp_path) as served:
        accounts, crew = asyncio.run(burden(served, SECONDS if minutes is None else minutes * 60))
    lines = [" | ".join(["endpoint".ljust(12), *COLUMNS])]
    lines += [
        " | ".join([name.ljust(12), *(str(account.count[column]).rjust(len(column)) for column in COLUMNS)])
        for name, account in accounts.items()
    ]
    lines += [f"{crew.kills} workers were killed, and {len(crew.stood_still)} stood still for a while"]
    if minutes is not None:
        with capsys.disabled():
            print("", *lines, sep="\n")
    wrong = [fault for account in accounts.values() for fault in account.wrong]
    assert not wrong, "\n".join([*wrong[:20], *lines])
    total = sum((account.count for account in accounts.values()), Counter())
    assert crew.kills
    assert all(total[column] for column in COLUMNS if column not in ("lost", "doubled", "wrong")), lines
