"""Anything at all comes back: the parsers, the wire and a real client give a value or an error of ours.

`pytest tests/test_fuzz.py --fuzz 100000` sends more broken answers than the tests usually do.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gzip
import itertools
import json
import logging
import math
import random
import socket
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import httpx
from faults import PAGE, Act, Close, Talk, faulty
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rude import KEY, Asked, answer
from test_fault_matrix import DEADLINE, GOOD, HASTY, OPERATIONS, Operation, shorten

from notebook_ext import Endpoint, errors, exchange
from notebook_ext.protocol import read_health, read_job, read_stream
from notebook_ext.types import JobStatus
from notebook_ext.wire import Answer, Connection, Origin

if TYPE_CHECKING:
    import pytest

JOB = {"id": "job-1", "status": "COMPLETED", "output": {"text": "hi", "n": [1, 2.5, None]}, "delayTime": 812}
STREAM = {"status": "IN_PROGRESS", "stream": [{"output": "a"}, {"output": "b", "metrics": {"n": 1}}]}
DOCUMENTS: list[Any] = [
    JOB,
    {"id": "job-1", "status": "IN_QUEUE"},
    {"id": "job-1", "status": "IN_PROGRESS", "output": {"step": 2, "of": 5}, "workerId": "w"},
    {
        "id": "job-1",
        "status": "FAILED",
        "error": '{"error_type": "<class \'ValueError\'>", "error_message": "no"}',
    },
    {"id": "job-1", "status": "FAILED", "error": "handler: no \ntraceback: Traceback\nValueError: no"},
    STREAM,
    {"status": "COMPLETED", "stream": [{"output": "c"}]},
    [{"output": "a"}],
    {"jobs": {"completed": 1, "inQueue": 2}, "workers": {"idle": 1}},
    {"removed": 2, "status": "completed"},
    {"requests": [JOB]},
    {"error": f"the key {KEY} is wrong"},
]
VALUES: list[Any] = [
    None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\ud83d", "\udc00x", "\x00\x1b[31m", "COMPLETED",
    "RUNNING", "completed", "x" * 5000, [], {}, [[]], {"output": None}, {"error": {"message": {}}}, "{'a': (1,)}", KEY,
    "{" * 300, [[[[[[1]]]]]], {"": ""}, "../../etc", "job 1\r\nX: y",
]  # fmt: skip
CODES = [200] * 60 + [201, 202, 204, 206, 299, 300, 301, 302, 304, 307, 400, 401, 402, 403, 404, 408, 409, 413, 418,
         421, 422, 425, 429, 451, 500, 502, 503, 504, 520, 599, 600, 999, 100, 101, 103, 0]  # fmt: skip
HEADERS = [
    "Retry-After: 0.01", "Retry-After: nan", "Retry-After: -5", "Retry-After: 1e999", "Retry-After: ٣", "Retry-After: soon",
    "Retry-After: Wed, 99 Foo 2026 25:61:61 GMT", "Retry-After: Wed, 21 Oct 99999 07:28:00 GMT", "Retry-After:",
    "Date: Thu, 01 Jan 1970 00:00:00 GMT", "Content-Type: text/html; charset=hex", "Content-Type: a/b; charset=undefined",
    "Content-Type: text/plain; charset=utf-16", "Content-Type: ;;;=\"", "Content-Encoding: gzip", "Content-Encoding: gzip, gzip",
    "Content-Encoding: zstd", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Length: 7",
    "Content-Length: -1", "Content-Length: 99999999999999999999", "Keep-Alive: timeout=0", "Keep-Alive: timeout=999999999999",
    "Connection: close", "Connection: upgrade\r\nUpgrade: h2c", "Location: http://[", "Location: //other/", "Set-Cookie: a=b",
    "X: " + "y" * 3000, " folded: yes", ": nameless", "Ünïcode: ä",
]  # fmt: skip
TOKENS = [b"\r\n", b"\n", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"]", b'"', b"\\ud800", b"NaN", b"-", b"1e999", b"0\r\n\r\n",
          b"HTTP/1.1 200 OK\r\n", b"\xef\xbb\xbf", b"9" * 4400, b"[" * 2000, PAGE.encode()]  # fmt: skip


# ---------------------------------------------------------------------------------- broken answers


def broken(dice: random.Random, fitting: Any) -> bytes:
    """An answer with something wrong in its document, its head, its bytes, or in all of them.

    Args:
        dice: Decide what.
        fitting: What a good server would answer; sometimes another document is taken.
    """
    document = copy.deepcopy(fitting if dice.random() < 0.5 else dice.choice(DOCUMENTS))
    for _ in range(dice.choice([0, 1, 1, 2, 5])):
        document = _replaced(document, dice)
    body = (
        json.dumps(document).encode()
        if dice.random() < 0.93
        else dice.choice([PAGE.encode(), b"", dice.randbytes(40)])
    )
    lines = dice.sample(HEADERS, dice.choice([0, 0, 0, 0, 1, 1, 2, 4]))
    if any("Encoding: gzip" in line for line in lines) and dice.random() < 0.7:
        body = gzip.compress(body, mtime=0)
    if "Transfer-Encoding: chunked" in lines and dice.random() < 0.7:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    elif dice.random() < 0.95:
        lines.append(f"Content-Length: {len(body) + dice.choice([0] * 20 + [1, -1])}")
    head = "\r\n".join([f"HTTP/1.1 {dice.choice(CODES):03} Word", *lines]).encode()
    said = head + b"\r\n\r\n" + body
    for _ in range(dice.choice([0, 0, 0, 0, 0, 1, 1, 3])):
        said = _mutated(said, dice)
    return said


def _replaced(document: Any, dice: random.Random) -> Any:
    """The document with one of its values replaced, removed or added to."""
    if dice.random() < 0.25 or not isinstance(document, (dict, list)) or not document:
        return copy.deepcopy(dice.choice(VALUES))
    key = dice.choice(list(document)) if isinstance(document, dict) else dice.randrange(len(document))
    if dice.random() < 0.15:
        del document[key]
    else:
        document[key] = _replaced(document[key], dice)
    return document


def _mutated(said: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(said) + 1)
    end = min(len(said), start + dice.choice([0, 1, 4, 40]))
    match dice.randrange(5):
        case 0:
            return said[:start]
        case 1:
            return said[:start] + said[end:]
        case 2:
            return said[:end] + said[start:]
        case 3:
            return said[:start] + dice.choice(TOKENS) + said[end:]
    flipped = bytes(byte ^ (1 << dice.randrange(8)) for byte in said[start : start + 1])
    return said[:start] + flipped + said[start + 1 :]


class Fuzzer:
    """Sends broken answers until there have been enough.

    Attributes:
        failures: What was raised that should not have been, with the answers before it.
        ends: How often calls ended in what.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._dice = random.Random(seed)
        self._left = count
        self.failures: list[str] = []
        self.ends: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(100)))

    async def _work(self) -> None:
        recent: deque[bytes] = deque(maxlen=8)

        def choose(asked: Asked) -> tuple[Act, Any]:
            self._left -= 1
            fitting = STREAM if asked.operation == "stream" else GOOD.get(asked.operation, JOB)
            recent.append(broken(self._dice, fitting))
            return _ends if self._dice.random() < 0.6 else _stays, recent[-1]

        async with faulty(choose) as server:
            while self._left > 0 and not self.failures:
                # a new one now and then: an old one may have been told to send nothing for a day
                async with Endpoint("ep", server.url, KEY) as endpoint:
                    for operation in self._dice.choices(OPERATIONS, k=4):
                        await self._call(endpoint, operation, recent)

    async def _call(self, endpoint: Endpoint, operation: Operation, recent: deque[bytes]) -> None:
        limit = 1.0 if operation.goes_on else DEADLINE
        try:
            async with asyncio.timeout(limit):
                await operation.call(endpoint, HASTY, [])
            end = "a value"
        except errors.EndpointError as error:
            end = type(error).__name__
            is_one_line = "\n" not in str(error) or isinstance(
                error, errors.JobError
            )  # a worker may say more
            if KEY in f"{error!r} {vars(error)}" or not is_one_line:
                self.failures.append(f"{operation.name}: {error!r} after {list(recent)}")
        except Exception as error:
            end = "goes on" if operation.goes_on and isinstance(error, TimeoutError) else "not ours"
            if end == "not ours":
                self.failures.append(f"{operation.name}: {error!r} after {list(recent)}")
        self.ends[end] += 1


async def _stays(talk: Talk) -> None:
    await talk.say(talk.document)


async def _ends(talk: Talk) -> None:
    await talk.say(talk.document)
    raise Close


def test_a_real_client_survives_broken_answers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shorten(monkeypatch, HASTY)
    monkeypatch.setattr(exchange, "ATTEMPTS", 2)
    count = request.config.getoption("--fuzz")
    caplog.set_level(logging.WARNING)
    fuzzer = Fuzzer(count, seed=count)
    asyncio.run(fuzzer.run())
    assert fuzzer.failures == []
    assert caplog.text == ""  # no task's exception that nobody has seen
    assert fuzzer.ends["a value"] > count / 50
    assert {"ProtocolError", "AnswerLost", "RequestTimeout", "ServerError", "BadRequest"} <= set(fuzzer.ends)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{count} answers: {dict(fuzzer.ends.most_common())}")


# ---------------------------------------------------------------------------------- the parsers

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**20), 2**31, 1e15, True])
texts = st.text(st.characters(), max_size=6) | st.text(
    st.characters(categories=["Cs"]), min_size=1, max_size=2
)
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
words = st.sampled_from([*JobStatus, "RUNNING", "completed"]) | texts
jobs = st.fixed_dictionaries(
    {"status": words | values},
    optional={
        "id": texts | values, "output": values, "error": values, "delayTime": numbers | values,
        "executionTime": numbers | values, "workerId": values, "retries": numbers | values, "input": values,
    },
)  # fmt: skip
chunks = values | st.fixed_dictionaries({"output": values}, optional={"metrics": values})
streams = st.lists(chunks, max_size=5) | st.fixed_dictionaries(
    {}, optional={"status": words, "stream": st.lists(chunks, max_size=5)}
)
counts = st.dictionaries(texts, numbers | values, max_size=4) | values


def assert_can_be_kept(*read: Any) -> None:
    """It can be printed, and written into a notebook and the journal."""
    repr(read).encode()
    json.dumps(read, ensure_ascii=False).encode()


@settings(max_examples=300, deadline=None)
@given(jobs)
@example({"status": "COMPLETED", "output": "\ud83d", "id": "\udc00"})
def test_a_job_that_was_read_can_be_kept(document: dict[str, Any]) -> None:
    try:
        job = read_job(document, endpoint="ep", job_id="job-1")
    except errors.ProtocolError as error:
        str(error).encode()
        assert not isinstance(document["status"], str) or not document["status"].strip()
        return
    assert job.id
    assert job.status
    assert len(job.status) <= 40
    assert len(job.status.splitlines()) == 1
    assert_can_be_kept(job.id, str(job.status), job.output, job.input, str(job.error), job.worker_id)
    assert all(time is None or math.isfinite(time) for time in (job.delay_time, job.execution_time))
    assert job.retries is None or 0 <= job.retries < 2**31


@settings(max_examples=300, deadline=None)
@given(streams, st.integers(0, 100))
def test_chunks_that_were_read_are_all_there_and_can_be_kept(document: Any, first: int) -> None:
    rows = document if isinstance(document, list) else document.get("stream") or []
    try:
        status, read = read_stream(document, first_index=first)
    except errors.ProtocolError:
        assert not rows
        return
    assert [chunk.index for chunk in read] == list(range(first, first + len(rows)))
    assert_can_be_kept(None if status is None else str(status), [chunk.output for chunk in read])


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional={"jobs": counts, "workers": counts}))
def test_counters_are_numbers_that_can_be_drawn(document: dict[str, Any]) -> None:
    health = read_health(document)
    told = [*health.jobs.items(), *health.workers.items()]
    assert_can_be_kept(told)
    assert all(isinstance(number, int) and abs(number) < 1e15 for _, number in told)


# ---------------------------------------------------------------------------------- the wire

ANSWERS = [
    answer(JOB),
    answer(JOB, connection="close"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(JOB),
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
    answer(JOB) + answer({"second": "answer"}),
]
places = st.integers(0, 400)
broken_answers = st.builds(
    lambda said, start, length, more: said[:start] + more + said[start + length :],
    st.sampled_from(ANSWERS),
    places,
    st.integers(0, 12),
    st.just(b"")
    | st.binary(max_size=6)
    | st.sampled_from([b"\r\n", b"\n", b"0\r\n\r\n", b"Content-Length: 3\r\n"]),
)


class Deaf(asyncio.Transport):
    """A transport that sends nothing."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self._is_closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return self._is_closed

    def abort(self) -> None:
        self._is_closed = True


class Nobody:
    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


async def received(pieces: list[bytes]) -> Answer | type[Exception]:
    """What comes of an answer that arrives in these pieces, after which the server closes."""
    with contextlib.closing(socket.socket()) as sock:
        connection = Connection(Nobody(), Origin("http", "host", 80), 10_000)
        transport = Deaf(sock)
        connection.connection_made(transport)
        exchange = connection.exchange(b"", None, 5.0)
        for piece in pieces:
            if not transport.is_closing():
                connection.data_received(piece)
        connection.connection_lost(None)
        try:
            return exchange.result()
        except httpx.TransportError as error:
            return type(error)


@settings(max_examples=400, deadline=None)
@given(broken_answers, st.lists(places, max_size=6))
@example(ANSWERS[5], list(range(1, 100)))
def test_wherever_the_wire_cuts_an_answer_it_is_the_same_answer(said: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(cut for cut in cuts if cut < len(said)), len(said)]
    pieces = [said[start:end] for start, end in itertools.pairwise(ends) if start < end]

    async def both() -> tuple[Any, Any]:
        return await received([said] if said else []), await received(pieces)

    whole, in_pieces = asyncio.run(both())
    assert in_pieces == whole
