"""The released SDKs run every step of their own guides against `python -m notebook_ext.server`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from peers import runpod_js, runpod_python
from relay import Relay, relaying
from rude import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.peers

SDKS = Path(__file__).parent / "sdks"
LONGEST = 60.0
"""Seconds after which an SDK's steps are given up."""


@dataclass
class Rehearsal:
    """What one SDK was given, and what it asked for.

    Attributes:
        found: What each step gave, by its name.
        relay: The requests that reached the server.
        problem: What the process said on stderr where it failed as a whole.
    """

    relay: Relay
    found: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


async def rehearse_all(folder: Path) -> dict[str, Rehearsal]:
    """Each SDK against a server process of its own, all at once."""
    (node, packages), python = runpod_js(), runpod_python()
    (folder / "node_modules").symlink_to(packages / "node_modules")  # imports are looked up beside the script
    steps = folder / "steps.mjs"
    steps.write_bytes((SDKS / "steps.mjs").read_bytes())
    commands = {
        "javascript": [node, steps],
        "python": [python, SDKS / "steps_sync.py"],
        "asyncio": [python, SDKS / "steps_async.py"],
    }
    found = await asyncio.gather(*(_rehearse(command, folder) for command in commands.values()))
    return dict(zip(commands, found, strict=True))


async def _rehearse(command: list[Any], home: Path) -> Rehearsal:
    async with serving_process() as base_url, relaying(base_url) as relay:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),  # where the SDK looks for settings
                "RUNPOD_API_KEY": KEY,
                "BASE_URL": relay.url,
                "RUNPOD_ENDPOINT_BASE_URL": relay.url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LONGEST):
                said, problem = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return Rehearsal(relay, problem=f"still running after {LONGEST:g} s")
        if process.returncode:
            return Rehearsal(relay, problem=problem.decode())
        return Rehearsal(relay, json.loads(said.splitlines()[-1]))


@contextlib.asynccontextmanager
async def serving_process() -> AsyncIterator[str]:
    """`python -m notebook_ext.server` as anybody starts it; gives its base URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "notebook_ext.server"),
        *("echo=echo", "failing=fail", f"words={SDKS / 'handlers.py'}:words"),
        env={**os.environ, "NOTEBOOK_EXT_TOKEN": KEY},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rehearsal]:
    return asyncio.run(rehearse_all(tmp_path_factory.mktemp("sdks")))


# ---------------------------------------------------------------------------------- what each step gives


class Like:
    """Equal to every string that the pattern fits."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and bool(self.pattern.fullmatch(other))

    def __repr__(self) -> str:
        return f"Like({self.pattern.pattern!r})"


class AtLeast:
    """Equal to every number that is not below this one."""

    def __init__(self, least: float) -> None:
        self.least = least

    def __eq__(self, other: object) -> bool:
        return type(other) in (int, float) and other >= self.least

    def __repr__(self) -> str:
        return f"AtLeast({self.least})"


class Milliseconds(AtLeast):
    """The wire's times are whole numbers."""

    def __eq__(self, other: object) -> bool:
        return type(other) is int and super().__eq__(other)


UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ID, SYNC_ID = Like(f"{UUID}-u1"), Like(f"sync-{UUID}-u1")
TAKEN = {"delayTime": Milliseconds(0), "workerId": Like(r"\w+-1")}
PROMPT = {"prompt": "Hello, World!"}
WORDS = ["Hello,", "World!"]
QUEUED = {"id": ID, "status": "IN_QUEUE"}
PURGED = {"removed": 2, "status": "completed"}
CANCELLED = {"id": ID, "status": "CANCELLED", **TAKEN, "executionTime": Milliseconds(0)}


def busy(completed: int) -> dict[str, Any]:
    """The health of an endpoint whose one worker runs a job while two wait."""
    return {
        "jobs": {"completed": completed, "failed": 0, "inProgress": 1, "inQueue": 2, "retried": 0},
        "workers": {
            "idle": 0, "initializing": 0, "ready": 0, "running": 1, "throttled": 0, "unhealthy": 0,
        },
    }  # fmt: skip


def seen(status: str, **fields: Any) -> dict[str, Any]:
    """A job document as the JavaScript SDK gives it, with what it makes of the status itself."""
    is_final = status not in ("IN_QUEUE", "IN_PROGRESS")
    told = {"started": True, "completed": is_final, "succeeded": status == "COMPLETED"}
    return {"id": ID, "status": status, **told, **fields}


def ended(status: str = "COMPLETED", **fields: Any) -> dict[str, Any]:
    return seen(status, **{**TAKEN, "executionTime": Milliseconds(0), **fields})


JAVASCRIPT = {
    "runSync": ended(id=SYNC_ID, output=PROMPT),
    "run": QUEUED,
    "poll": ended(output=WORDS),
    "poll a job that fails": ended(
        "FAILED",
        error=Like(r'{"error_type": "<class \'RuntimeError\'>", "error_message": "no luck", .*}'),
    ),
    "stream": {
        "id": ID,
        "updates": [{"output": "Hello,"}, {"output": "World!"}],
        "status": ended(output=WORDS),
    },
    "stream a job that fails": [],  # the error is in its status only
    "status": seen("IN_PROGRESS", **TAKEN),
    "health": busy(completed=2),
    "purgeQueue": {"purgeResult": PURGED, "purged": seen("CANCELLED"), "running": "IN_PROGRESS"},
    "cancel": {"cancel": CANCELLED, "status": ended("CANCELLED"), "updates": []},
    # The timeout is that of the request: the job takes longer, and is not affected.
    "timeout": {"result": QUEUED, "status": ended(output=WORDS, executionTime=Milliseconds(1200))},
    "policy": {"result": QUEUED, "status": ended(output=WORDS)},
    "policy that ends a job": ended(
        "TIMED_OUT",
        id=SYNC_ID,
        executionTime=Milliseconds(300),
        error="the job ran longer than its executionTimeout of 0.3 s",
    ),
    "runSync holds": ended(id=SYNC_ID, output=WORDS),
    "runSync gives up": {
        "result": seen("IN_PROGRESS", id=SYNC_ID, **TAKEN),
        "cancel": {**CANCELLED, "id": SYNC_ID},
    },
    "a wrong key": {
        "thrown": "Request failed with status code 401",
        "status": 401,
        "data": {"error": "wrong API key"},
    },
    "an unknown job": {
        "thrown": "Request failed with status code 404",
        "status": 404,
        "data": {"error": "job not found: it is unknown, or it has expired"},
    },
}
# It sleeps a second before each look at a stream, and needs an empty one to end.
STREAMED = {"id": ID, "chunks": ["a", "b", "c"], "first": AtLeast(1.0), "end": AtLeast(2.0)}
GAVE_UP = {"said": "Job timed out.", "status": "IN_PROGRESS", "cancel": "CANCELLED"}
PYTHON = {
    "run_sync": PROMPT,
    "run": ID,
    "poll": {"status": "COMPLETED", "output": WORDS},
    "output_waits": {"id": ID, "at_once": None, "later": WORDS},
    "a_job_that_fails": {"output": None, "status": "FAILED"},  # its error cannot be reached
    "stream": STREAMED,
    "status": "IN_PROGRESS",
    "health": busy(completed=3),
    "purge_queue": {"result": PURGED, "purged": ["CANCELLED"] * 2, "running": "IN_PROGRESS"},
    "cancel": {"cancel": CANCELLED, "status": "CANCELLED"},
    "stream_of_a_cancelled_job": {"raised": "TimeoutError", "said": "still polling"},
    "timeout": GAVE_UP,
    "policy": WORDS,
    "policy_that_ends_a_job": {"id": ID, "output": None, "status": "TIMED_OUT"},
    "run_sync_holds": WORDS,
    "an_empty_input": {"input": {}},  # an input that is false is wrapped again
    "a_wrong_key": {
        "raised": "RuntimeError",
        "said": "401 Unauthorized | Make sure Runpod API key is set and valid.",
    },
    "an_unknown_job": {"raised": "HTTPError", "said": Like(r"404 Client Error: Not Found .*/no-such-job")},
}
ASYNCIO = {
    "run": ID,
    "poll": {"status": "COMPLETED", "output": WORDS},
    "output_waits": {"id": ID, "output": WORDS},
    "output_by_default": {"raised": "TimeoutError", "said": "Job timed out."},  # its default is 0 s
    "a_job_that_fails": {"output": None, "status": "FAILED"},
    "stream": STREAMED,
    "status": "IN_PROGRESS",
    "health": busy(completed=4),
    "purge_queue": {"result": PURGED, "purged": ["CANCELLED"] * 2, "running": "IN_PROGRESS"},
    "cancel": {"cancel": CANCELLED, "status": "CANCELLED"},
    "stream_of_a_cancelled_job": {"raised": "TimeoutError", "said": ""},
    "timeout": GAVE_UP,
    "policy": {"input": PROMPT, "policy": {"executionTimeout": 5000}},
    "a_wrong_key": {"raised": "KeyError", "said": "'id'"},  # it looks at no HTTP status
    "an_unknown_job": {"raised": "KeyError", "said": "'status'"},
}
EXPECTED = {"javascript": JAVASCRIPT, "python": PYTHON, "asyncio": ASYNCIO}


@pytest.mark.parametrize(("sdk", "step"), [(sdk, step) for sdk, steps in EXPECTED.items() for step in steps])
def test_a_step(rehearsals: dict[str, Rehearsal], sdk: str, step: str) -> None:
    assert not rehearsals[sdk].problem
    assert rehearsals[sdk].found[step] == EXPECTED[sdk][step]


@pytest.mark.parametrize("sdk", EXPECTED)
def test_no_step_goes_unread(rehearsals: dict[str, Rehearsal], sdk: str) -> None:
    assert list(rehearsals[sdk].found) == list(EXPECTED[sdk])


# ---------------------------------------------------------------------------------- what reaches the server


def operations(rehearsal: Rehearsal, step: str) -> list[str]:
    """What was asked about the job of a step, one word a request."""
    return [passed.operation for passed in rehearsal.relay.about(rehearsal.found[step]["id"])]


def test_a_stream_is_held_for_a_client_that_never_pauses(rehearsals) -> None:
    asked = operations(rehearsals["javascript"], "stream")
    # One answer a chunk, and one for the end where that comes after the last chunk.
    assert asked in (["stream"] * 2 + ["status"], ["stream"] * 3 + ["status"])


def test_a_result_is_held_for_a_client_that_never_pauses(rehearsals) -> None:
    asked = [
        (passed.operation, passed.query["wait"])
        for passed in rehearsals["javascript"].relay.passed
        if passed.operation in ("runsync", "status-sync")
    ]
    # 200 ms become twice the least hold.
    assert asked == [("runsync", "90000")] * 3 + [("runsync", "1000"), ("status-sync", "1000")]


@pytest.mark.parametrize("sdk", ["python", "asyncio"])
def test_the_python_clients_look_once_a_second(rehearsals, sdk: str) -> None:
    rehearsal = rehearsals[sdk]
    for step in ("stream", "output_waits"):
        assert 2 <= len(operations(rehearsal, step)) <= 5
    cancelled = rehearsal.relay.about(rehearsal.found["cancel"]["cancel"]["id"])
    assert 1 <= [passed.operation for passed in cancelled].count("stream") <= 2


def test_python_run_sync_is_one_request_that_does_not_say_how_long(rehearsals) -> None:
    asked = [passed.query for passed in rehearsals["python"].relay.passed if passed.operation == "runsync"]
    assert asked == [{}] * 3


@pytest.mark.parametrize("sdk", EXPECTED)
def test_keys_and_paths_are_as_the_guides_have_them(rehearsals, sdk: str) -> None:
    passed = rehearsals[sdk].relay.passed
    assert {request.headers["authorization"] for request in passed} == {f"Bearer {KEY}", "Bearer another"}
    assert all(request.path.startswith("/v2/") for request in passed)
    released = {
        "javascript": r"RunPod-JS-SDK/1\.1\.2 .*",
        "python": "python-requests/.*",
        "asyncio": "Python/.*",
    }
    assert all(request.headers["user-agent"] == Like(released[sdk]) for request in passed)


def test_a_policy_travels_and_a_timeout_does_not(rehearsals) -> None:
    runs = [passed.document for passed in rehearsals["javascript"].relay.passed if passed.operation == "run"]
    assert {"input": PROMPT, "policy": {"executionTimeout": 5000}} in runs
    assert all(set(document) <= {"input", "policy"} for document in runs)
    runs = [passed.document for passed in rehearsals["asyncio"].relay.passed if passed.operation == "run"]
    assert {"input": {"input": PROMPT, "policy": {"executionTimeout": 5000}}} in runs


# ---------------------------------------------------------------------------------- older ways to ask


def test_both_forms_of_a_key_and_both_methods_of_reading() -> None:
    """The documentation's curl examples send the bare key; the Go SDK and older pages read with POST."""

    async def scenario() -> None:
        async with serving_process() as base_url, httpx.AsyncClient(base_url=base_url) as http:
            for key in (KEY, f"Bearer {KEY}"):
                http.headers["authorization"] = key
                for method in ("GET", "POST"):
                    queued = (await http.post("/words/run", json={"input": PROMPT})).json()
                    assert queued == QUEUED
                    chunks, end = await _read(http, method, queued["id"])
                    assert (chunks, end) == (WORDS, "COMPLETED")
                    for look in ("status", "status-sync"):
                        answer = await http.request(method, f"/words/{look}/{queued['id']}")
                        assert (answer.status_code, answer.json()["output"]) == (200, WORDS)
            http.headers["authorization"] = "another"
            assert (await http.get("/words/health")).status_code == 401

    asyncio.run(scenario())


async def _read(http: httpx.AsyncClient, method: str, job: str) -> tuple[list[str], str]:
    chunks: list[str] = []
    while True:
        answer = (await http.request(method, f"/words/stream/{job}")).json()
        chunks += [chunk["output"] for chunk in answer["stream"]]
        if answer["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return chunks, answer["status"]
