"""Our client against the local API server of the released `runpod` package: what works, and what each gap says.

It is no stand-in for the platform: it has four routes, no endpoint id and no `/v2` in the path, and
runs a job when its result is asked for.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from peers import runpod_python
from relay import relaying
from rude import KEY

from notebook_ext import ExecutionPolicy
from notebook_ext.client import Endpoint
from notebook_ext.errors import (
    APIError,
    BadRequest,
    ConfigurationError,
    JobFailed,
    JobLost,
    NotFoundError,
    ServerError,
)
from notebook_ext.protocol import Operation, Route
from notebook_ext.providers import Provider
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.peers

PREFIX = "/v2/worker"
ROUTES = {
    Operation.RUN: Route("POST", "/{endpoint}/run"),
    Operation.RUNSYNC: Route("POST", "/{endpoint}/runsync"),
    Operation.STATUS: Route("POST", "/{endpoint}/status/{job}"),
    Operation.STREAM: Route("POST", "/{endpoint}/stream/{job}"),
}
"""What that server has, with its own methods."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Where each worker is served."""
    python, folder = runpod_python(), Path(__file__).parent / "sdks"
    started = {name: _start(python, folder / f"{name}.py") for name in ("worker", "streaming_worker")}
    try:
        with ThreadPoolExecutor() as pool:
            yield dict(zip(started, pool.map(_address, started.values()), strict=True))
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.communicate()


def _start(python: Path, worker: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, worker, "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", "0"],
        env={"PATH": os.environ["PATH"], "RUNPOD_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            return match[1]
    raise AssertionError(f"it did not start:\n{''.join(said)}")


@asynccontextmanager
async def calling(url: str, *, own_routes: bool = False) -> AsyncIterator[Endpoint]:
    """A client of that server, behind a relay that gives it a path such as the platform's."""
    async with relaying(url, beneath=PREFIX) as relay:
        provider = Provider("serve-api", relay.url, routes=ROUTES) if own_routes else relay.url
        async with Endpoint("worker", provider, KEY) as endpoint:
            yield endpoint


# ---------------------------------------------------------------------------------- as it is


def test_its_paths_are_not_the_platforms(servers) -> None:
    async def scenario() -> None:
        async with Endpoint("worker", f"{servers['worker']}/v2", KEY) as endpoint:
            with pytest.raises(NotFoundError, match=r"knows no endpoint 'worker' \(404\).*check its id"):
                await endpoint.run({"a": 1})

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- below such a path


def test_run_sync_works(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"]) as endpoint:
            job = await endpoint.run_sync({"a": 1}, policy=ExecutionPolicy(60))  # which it ignores
            assert (job.status, job.output) == (JobStatus.COMPLETED, {"said": {"a": 1}})
            assert job.id.startswith("test-")
            assert (job.delay_time, job.execution_time, job.worker_id) == (None, None, None)
            with pytest.raises(JobFailed, match=r"failed: RuntimeError: no luck$") as caught:
                await endpoint.run_sync({"fail": True})
            assert caught.value.job.error.traceback.startswith("Traceback")
        async with calling(servers["streaming_worker"]) as endpoint:
            assert (await endpoint.run_sync({"prompt": "a b"})).output == ["a", "b"]

    asyncio.run(scenario())


def test_a_generator_that_raises_is_a_bare_500_and_the_next_job_runs(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["streaming_worker"]) as endpoint:
            with pytest.raises(ServerError, match=r"the platform failed \(500\)"):
                await endpoint.run_sync({"prompt": "a fail"})
            # It has closed the connection, and not said so.
            assert (await endpoint.run_sync({"prompt": "a"})).output == ["a"]

    asyncio.run(scenario())


def test_run_tells_an_id_but_reading_is_refused(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"]) as endpoint:
            job = await endpoint.run({"a": 1})
            assert job.status is JobStatus.IN_PROGRESS  # which it is not
            for look in (
                endpoint.status(job.id),
                endpoint.status_sync(job.id),  # there is no such route, so its status is looked at
                _all(endpoint.stream(job.id)),
                _all(endpoint.follow(job.id)),
            ):
                with pytest.raises(
                    APIError,
                    match=rf"of job {job.id} on worker: the server answered 405: Method Not Allowed$",
                ):
                    await look

    asyncio.run(scenario())


def test_an_input_that_is_no_object_is_refused(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"]) as endpoint:
            with pytest.raises(BadRequest, match=r"did not accept the request \(422\).*valid dictionary"):
                await endpoint.run("text")

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["health", "purge_queue", "requests"])
def test_what_it_has_no_route_for_is_not_found(servers, operation: str) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"]) as endpoint:
            with pytest.raises(NotFoundError, match=rf"{operation.replace('_', '-')} on worker: .* \(404\)"):
                await getattr(endpoint, operation)()

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["cancel", "retry"])
def test_a_job_that_it_has_no_route_for_is_unknown(servers, operation: str) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"]) as endpoint:
            with pytest.raises(JobLost, match=r"job test-1 on worker is unknown to the server \(404\)"):
                await getattr(endpoint, operation)("test-1")

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- with its own methods


def test_a_status_can_be_read_once(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"], own_routes=True) as endpoint:
            job = await endpoint.run({"a": 1})
            first = await endpoint.status(job.id)
            assert (first.id, first.status, first.output) == (job.id, JobStatus.COMPLETED, {"said": {"a": 1}})
            again = await endpoint.status(job.id)
            assert (again.status, again.error.message) == (JobStatus.FAILED, "Job ID not found")

    asyncio.run(scenario())


def test_a_stream_comes_in_one_piece_and_its_status_is_gone(servers) -> None:
    async def scenario() -> None:
        async with calling(servers["streaming_worker"], own_routes=True) as endpoint:
            job = await endpoint.run({"prompt": "a b c"})
            assert [chunk.output for chunk in await _all(endpoint.stream(job.id))] == ["a", "b", "c"]
            assert (await endpoint.status(job.id)).error.message == "Job ID not found"

    asyncio.run(scenario())


def test_a_job_that_does_not_stream_is_followed_to_its_result(servers) -> None:
    """Its stream says FAILED, without a list of chunks, before the job has run: the status decides."""

    async def scenario() -> None:
        async with calling(servers["worker"], own_routes=True) as endpoint:
            job = await endpoint.run({"a": 1})
            (final,) = await _all(endpoint.follow(job.id))
            assert (final.status, final.output) == (JobStatus.COMPLETED, {"said": {"a": 1}})
            job = await endpoint.run({"fail": True})
            (final,) = await _all(endpoint.follow(job.id))
            assert (final.status, final.error.type) == (JobStatus.FAILED, "RuntimeError")

    asyncio.run(scenario())


@pytest.mark.parametrize("ask", [Endpoint.health, Endpoint.purge_queue, Endpoint.requests])
def test_nothing_is_sent_for_what_its_record_does_not_have(servers, ask) -> None:
    async def scenario() -> None:
        async with calling(servers["worker"], own_routes=True) as endpoint:
            with pytest.raises(ConfigurationError, match=r"not documented for this provider \(serve-api\)"):
                await ask(endpoint)

    asyncio.run(scenario())


async def _all(events) -> list:
    return [event async for event in events]
