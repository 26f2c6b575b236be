"""Handlers: their shapes, their ends in the words of real workers, their prints."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import sys
import threading
import warnings

import pytest
from serving import serving, spin

from notebook_ext.errors import InputError
from notebook_ext.protocol import read_worker_error
from notebook_ext.server import progress_update


def end_of(handler, input=None, **more):
    """The final document of one job, its chunks, and its log."""

    async def scenario():
        async with serving(demo=handler) as api:
            job = await api.run("demo", input, **more)
            document = await api.end("demo", job)
            return document, await api.chunks("demo", job), api.record("demo", job).log.text

    return asyncio.run(scenario())


async def async_plain(job):
    return job["input"]


class Model:
    def __call__(self, job):
        return job["input"]

    async def generate(self, job):
        yield job["input"]


class AsyncModel:
    async def __call__(self, job):
        return job["input"]


def configured(job, *, factor):
    return job["input"] * factor


@pytest.mark.parametrize(
    ("handler", "output"),
    [
        (lambda job: job["input"], 2),
        (async_plain, 2),
        (Model(), 2),
        (AsyncModel(), 2),
        (Model().generate, [2]),
        (functools.partial(configured, factor=3), 6),
        (functools.partial(AsyncModel()), 2),
        (lambda job: (n for n in range(job["input"])), [0, 1]),
        (lambda job: (1, {2: None}), [1, {"2": None}]),
        (lambda job: 0, 0),
        (lambda job: "", ""),
        (lambda job: [], []),
        (lambda job: False, False),
        (lambda job: {"refresh_worker": True, "a": 1}, {"a": 1}),
        (lambda job: {"error": None, "a": 1}, {"a": 1}),
    ],
)
def test_shapes_of_handlers_and_results(handler, output) -> None:
    document, _, _ = end_of(handler, 2)
    assert (document["status"], document["output"]) == ("COMPLETED", output)


@pytest.mark.parametrize("result", [None, {}])
def test_nothing_returned_is_no_output_at_all(result) -> None:
    document, chunks, _ = end_of(lambda job: result)
    assert document["status"] == "COMPLETED"
    assert "output" not in document
    assert chunks == []


def test_a_plain_handler_that_raises_is_told_as_json_in_a_string() -> None:
    def inner():
        raise KeyError("lost")

    def handler(job):
        inner()

    document, _, _ = end_of(handler)
    assert document["status"] == "FAILED"
    assert "output" not in document
    told = json.loads(document["error"])
    assert told["error_type"] == "<class 'KeyError'>"
    assert told["error_message"] == "'lost'"
    assert told["worker_id"] == "demo-1"
    frames = [line for line in told["error_traceback"].splitlines() if line.startswith("  File")]
    assert [frame.rpartition(" ")[2] for frame in frames] == ["handler", "inner"]
    assert "notebook_ext" not in "".join(frames).replace(__file__, "")
    assert read_worker_error(document["error"]).type == "KeyError"


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


def raises(error):
    def handler(job):
        raise error

    return handler


async def async_raises(job):
    raise ValueError("async")


@pytest.mark.parametrize(
    ("handler", "kind", "message"),
    [
        (raises(SystemExit(3)), "SystemExit", "3"),
        (raises(KeyboardInterrupt()), "KeyboardInterrupt", "KeyboardInterrupt"),
        (raises(ValueError("\ud800")), "ValueError", "\ufffd"),
        (raises(asyncio.CancelledError()), "CancelledError", "CancelledError"),
        (async_raises, "ValueError", "async"),
        (raises(Unspeakable()), "Unspeakable", None),
    ],
)
def test_whatever_a_handler_raises_fails_its_job_and_nothing_else(handler, kind, message) -> None:
    async def scenario() -> None:
        async with serving(demo=handler) as api:
            for _ in range(2):  # the worker goes on
                document = await api.result("demo")
                error = read_worker_error(document["error"])
                assert (document["status"], error.type) == ("FAILED", kind)
                assert message is None or error.message == message

    asyncio.run(scenario())


def test_an_async_handler_that_exits_leaves_the_others_alone() -> None:
    async def handler(job):
        if job["input"] == "exit":
            raise SystemExit(1)
        if job["input"] == "cancel":
            raise asyncio.CancelledError
        await asyncio.sleep(0.05)
        return "ok"

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", handler, workers=3)
            jobs = [await api.run("demo", word) for word in ("stay", "exit", "cancel", "stay")]
            statuses = [(await api.end("demo", job))["status"] for job in jobs]
            assert statuses == ["COMPLETED", "FAILED", "FAILED", "COMPLETED"]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_async", [True, False])
def test_a_generator_that_raises_keeps_its_chunks_and_tells_why(is_async) -> None:
    def plain(job):
        yield "kept"
        raise ValueError("halfway")

    async def asynchronous(job):
        yield "kept"
        raise ValueError("halfway")

    document, chunks, _ = end_of(asynchronous if is_async else plain)
    assert document["status"] == "FAILED"
    assert "output" not in document
    assert chunks == ["kept"]
    assert document["error"].startswith("handler: halfway \ntraceback: Traceback (most recent call last):\n")
    assert document["error"].rstrip().endswith("ValueError: halfway")
    assert "handlers.py" not in document["error"].replace(__file__, "")
    assert read_worker_error(document["error"]).message == "halfway"


@pytest.mark.parametrize(
    ("result", "error", "output"),
    [
        ({"error": "no"}, "no", None),
        ({"error": "no", "partial": 1}, "no", {"partial": 1}),
        ({"error": {"code": 7}}, {"code": 7}, None),
        ({"error": ["a", "b"]}, ["a", "b"], None),
    ],
)
def test_a_returned_error_is_kept_as_it_is(result, error, output) -> None:
    document, _, _ = end_of(lambda job: result)
    assert document["status"] == "FAILED"
    assert document["error"] == error
    assert document.get("output") == output


def test_a_yielded_error_is_told_as_the_repr_of_python() -> None:
    def handler(job):
        yield "kept"
        yield {"error": {"message": "m"}, "lost": 1}
        yield "never"

    document, chunks, _ = end_of(handler)
    assert (document["status"], document["error"], chunks) == ("FAILED", "{'message': 'm'}", ["kept"])


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), object(), b"bytes", {1, 2}, CIRCLE, {"a": {(1,): 2}}]
)
@pytest.mark.parametrize("streams", [True, False])
def test_what_is_not_json_fails_with_the_reason(value, streams) -> None:
    closed = threading.Event()

    def streaming(job):
        try:
            yield "kept"
            yield value
        finally:
            closed.set()

    document, chunks, _ = end_of(streaming if streams else lambda job: value)
    assert document["status"] == "FAILED"
    assert "is not JSON: " in document["error"]
    assert chunks == (["kept"] if streams else [])
    assert closed.is_set() == streams


def test_limits_of_size_are_named() -> None:
    def big_chunk(job):
        yield "x" * (1024 * 1024)

    document, _, _ = end_of(big_chunk)
    assert document["status"] == "FAILED"
    assert "the limit is 1 MB" in document["error"]

    document, _, _ = end_of(lambda job: "x" * (20 * 1024 * 1024))
    assert document["status"] == "FAILED"
    assert "the limit is 20 MB" in document["error"]

    def many_chunks(job):
        for _ in range(1000):
            yield "x" * 1_000_000

    async def scenario() -> None:
        async with serving(demo=many_chunks) as api:
            api.server.serve("unread", many_chunks, return_aggregate_stream=False)
            for name, word in (("demo", "streamed"), ("unread", "unread")):
                document = await api.result(name)
                assert document["status"] == "FAILED"
                assert f"more than 20 MB of {word} chunks" in document["error"]

    asyncio.run(scenario())


def test_a_reader_makes_room_where_nothing_is_kept() -> None:
    half_read = threading.Event()

    def many_chunks(job):
        for n in range(30):
            if n == 15:
                half_read.wait(10)
            yield "x" * 1_000_000

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", many_chunks, return_aggregate_stream=False)
            job = await api.run("demo")
            read = 0
            while read < 15:
                read += len((await api.get(f"/demo/stream/{job}"))["stream"])
            half_read.set()
            assert read + len(await api.chunks("demo", job)) == 30
            assert (await api.end("demo", job))["status"] == "COMPLETED"

    asyncio.run(scenario())


def test_a_plain_function_that_returns_a_coroutine_is_told_what_to_do() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document, _, _ = end_of(lambda job: async_plain(job))
    assert document["status"] == "FAILED"
    assert "async def" in document["error"]


def test_a_chunk_is_what_it_was_when_it_was_yielded() -> None:
    def handler(job):
        chunk = {"n": 0}
        for n in range(3):
            chunk["n"] = n
            yield chunk

    assert end_of(handler)[1] == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("is_async", [True, False])
def test_progress_is_the_output_of_a_running_job(is_async) -> None:
    release, told = threading.Event(), threading.Event()

    def plain(job):
        progress_update(job, {"step": 1, "of": 2})
        told.set()
        release.wait(10)
        return "result"

    async def asynchronous(job):
        return await asyncio.to_thread(plain, job)

    async def scenario() -> None:
        async with serving(demo=asynchronous if is_async else plain) as api:
            job = await api.run("demo")
            assert await asyncio.to_thread(told.wait, 5)
            await api.until("demo", job, lambda record: record.output == {"step": 1, "of": 2})
            document = await api.get(f"/demo/status/{job}")
            assert (document["status"], document["output"]) == ("IN_PROGRESS", {"step": 1, "of": 2})
            assert "executionTime" in document
            release.set()
            assert (await api.end("demo", job))["output"] == "result"

    asyncio.run(scenario())


def test_late_progress_changes_nothing_and_elsewhere_it_does_nothing() -> None:
    seen = []

    def handler(job):
        seen.append(job)
        return "result"

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            await api.end("demo", job)
            progress_update(seen[0], "late")
            await asyncio.sleep(0)
            assert (await api.get(f"/demo/status/{job}"))["output"] == "result"

    asyncio.run(scenario())
    progress_update({"id": "elsewhere"}, 1)
    progress_update({}, 1)


def test_progress_from_a_thread_of_the_handler_and_progress_that_is_not_json() -> None:
    def handler(job):
        progress_update(job, object())
        thread = threading.Thread(target=progress_update, args=(job, "from a thread"))
        thread.start()
        thread.join()
        yield "go"
        release.wait(10)

    release = threading.Event()

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            job = await api.run("demo")
            await api.get(f"/demo/stream/{job}")
            assert (await api.get(f"/demo/status/{job}"))["output"] == "from a thread"
            release.set()
            await api.end("demo", job)
            assert "progress_update was ignored: the progress is not JSON" in api.record("demo", job).log.text

    asyncio.run(scenario())


def test_prints_go_to_the_log_of_their_job() -> None:
    def plain(job):
        print("out", job["input"])
        print("err", file=sys.stderr)
        sys.stdout.writelines(["a", "b\n"])
        sys.stdout.flush()

    async def asynchronous(job):
        await asyncio.sleep(0)
        print("async", job["input"])
        await asyncio.to_thread(print, "thread", job["input"])

    before = sys.stdout, sys.stderr
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        ours = sys.stdout
        assert end_of(plain, 1)[2] == "out 1\nerr\nab\n"
        assert end_of(asynchronous, 2)[2] == "async 2\nthread 2\n"
        assert sys.stdout is ours
    assert screen.getvalue() == ""
    assert (sys.stdout, sys.stderr) == before


def test_the_log_is_bounded_and_keeps_the_newest() -> None:
    def handler(job):
        for n in range(20_000):
            print("line", n)
        print("x" * 100_000 + "end")

    log = end_of(handler)[2]
    assert len(log) <= 64 * 1024
    assert log.endswith("end\n")


def test_other_prints_and_other_streams_are_left_alone(capsys) -> None:
    async def scenario() -> None:
        original = sys.stdout
        async with serving(demo=lambda job: print("job")) as api:
            job = await api.run("demo")
            await api.end("demo", job)
            assert sys.stdout is not original
            print("mine")
            assert sys.stdout.encoding == original.encoding
            with contextlib.redirect_stdout(io.StringIO()) as other:
                await api.result("demo")
                print("redirected")
            assert other.getvalue() == "redirected\n"
            replaced = sys.stdout = io.StringIO()
        assert sys.stdout is replaced  # put there by somebody else: it stays
        sys.stdout = original
        assert api.server.endpoints == {}

    asyncio.run(scenario())
    assert capsys.readouterr().out == "mine\n"


def test_handlers_do_not_hold_up_the_server() -> None:
    started, release = threading.Event(), threading.Event()

    async def handler(job):
        started.set()
        release.wait(10)  # an async handler that blocks

    async def scenario() -> None:
        async with serving(demo=handler, other="echo") as api:
            await api.run("demo")
            assert await asyncio.to_thread(started.wait, 5)
            assert (await api.result("other", 1))["output"] == 1
            release.set()
            await spin(lambda: api.server.endpoints["demo"].workers == {"demo-1": "idle"})

    asyncio.run(scenario())


def test_an_async_handler_keeps_its_loop_from_job_to_job() -> None:
    loops = set()

    async def handler(job):
        loops.add(asyncio.get_running_loop())

    async def scenario() -> None:
        async with serving(demo=handler) as api:
            await api.result("demo")
            await api.result("demo")
            assert len(loops) == 1
            assert loops != {asyncio.get_running_loop()}

    asyncio.run(scenario())


def nothing():
    return 1


async def async_nothing():
    return 1


def two(job, more):
    yield job


async def keyword(job, *, more):
    yield job


class Method:
    def nothing(self):
        return 1

    def job(self, job):
        return job["input"]

    __call__ = nothing


def through(function):
    @functools.wraps(function)
    def wrapper(job):
        return function(job, job["input"])

    return wrapper


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (nothing, "too many positional arguments"),
        (async_nothing, "too many positional arguments"),
        (two, "'more'"),
        (keyword, "'more'"),
        (lambda *, job: 1, "positional"),
        (lambda: 1, "too many positional arguments"),
        (Method(), "too many positional arguments"),
        (Method().nothing, "too many positional arguments"),
        (functools.partial(nothing), "too many positional arguments"),
        (functools.partial(Method().job, {}), "too many positional arguments"),
        (functools.partial(configured), "'factor'"),
    ],
)
def test_a_handler_that_takes_no_job_is_refused_when_it_is_served(handler, why) -> None:
    async def scenario() -> None:
        async with serving(demo="echo") as api:
            with pytest.raises(
                InputError, match="'demo' cannot be called with one argument, the job"
            ) as refused:
                api.server.serve("demo", handler)
            assert why in str(refused.value)
            assert (await api.result("demo", 1))["output"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("handler", "output"),
    [
        (lambda job, extra=1: extra, 1),
        (lambda *jobs: len(jobs), 1),
        (lambda job, /, *, more=2, **options: more, 2),
        (functools.partial(configured, factor=1), 3),
        (Method().job, 3),
        (through(lambda job, value: value), 3),
        (max, "input"),  # its signature cannot be known
    ],
)
def test_a_handler_that_may_take_more_is_served(handler, output) -> None:
    document, _, _ = end_of(handler, 3)
    assert (document["status"], document["output"]) == ("COMPLETED", output)
