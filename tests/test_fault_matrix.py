"""Every operation under every fault: what the user sees, what was sent, and what became of the job.

The cells run at once against real servers, and are written down in FAULTS.md:
`pytest tests/test_fault_matrix.py --write-faults` writes it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import random
import re
import socket
import time
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults import REDIRECTS, Act, Close, Fault, Faulty, Talk, faults, faulty, good, says
from rude import KEY, Asked, answer

from notebook_ext import Endpoint, client, errors, exchange, patience, transport
from notebook_ext.types import Health, Job, StreamChunk

TABLE = Path(__file__).with_name("FAULTS.md")

AT_ONCE = 48
"""How many cells run at a time: more, and the shortened clocks would measure the test itself."""
PATIENT, SHORT, HASTY = 20.0, 1.0, 1.2
"""Seconds to wait for an answer: where the fault is not about time, where it is, and where none can come."""
HOLD = 0.05
DEADLINE = 60.0
"""Seconds within which a cell ends, whatever its server does."""
FOLLOWED = 2.5
"""Seconds after which a cell that rightly goes on is left."""
MANY = 10
"""A number of requests that depends on random pauses is told as "many" from here on."""
MOST = 200
"""Requests in `FOLLOWED` seconds that are still polite: a server that does not hold is asked at first every
few milliseconds, then ever more rarely."""

LOOKS = 5
"""A job whose stream is never read has ended at this look at its status."""

# ---------------------------------------------------------------------------------- operations

Call = Callable[[Endpoint, float, list[Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Operation:
    """One way to call an endpoint.

    Args:
        name: For the table.
        route: Which of its requests goes wrong.
        call: Does it, with so many seconds for an answer; what is shown on the way goes into the list.
        submits: Whether that request queues a job.
        goes_on: Whether it asks until the job has ended.
        after: How many good answers come before the fault.
        aggregate: What the final status has of the stream.
    """

    name: str
    route: str
    call: Call
    submits: bool = False
    goes_on: bool = False
    after: tuple[str, ...] = ()
    aggregate: tuple[str, ...] = ("a", "b", "c")


async def _shown(events: AsyncIterator[Any], shown: list[Any]) -> None:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, StreamChunk):
                shown.append(event.output)
            elif event.status.is_final:
                shown.append(str(event.status))


INPUT = {"prompt": "hi"}
OPERATIONS = [
    Operation("run", "run", lambda ep, timeout, _: ep.run(INPUT, timeout=timeout), submits=True),
    Operation("run_sync", "runsync", lambda ep, *_: ep.run_sync(INPUT, wait=HOLD), submits=True),
    Operation(
        "run_sync (by id)", "status-sync", lambda ep, *_: ep.run_sync(INPUT, wait=HOLD),
        goes_on=True, after=("runsync",),
    ),
    Operation("status", "status", lambda ep, timeout, _: ep.status("job-1", timeout=timeout)),
    Operation("status_sync", "status-sync", lambda ep, *_: ep.status_sync("job-1", wait=0.0)),
    Operation("stream", "stream", lambda ep, _, shown: _shown(ep.stream("job-1", hold=HOLD), shown), goes_on=True, after=("stream",)),
    Operation(
        "stream (no aggregate)", "stream", lambda ep, _, shown: _shown(ep.stream("job-1", hold=HOLD), shown),
        goes_on=True, after=("stream",), aggregate=(),
    ),
    Operation("follow", "stream", lambda ep, _, shown: _shown(ep.follow("job-1", hold=HOLD), shown), goes_on=True, after=("stream",)),
    Operation("cancel", "cancel", lambda ep, *_: ep.cancel("job-1")),
    Operation("retry", "retry", lambda ep, *_: ep.retry("job-1"), submits=True),
    Operation("health", "health", lambda ep, *_: ep.health()),
    Operation("purge_queue", "purge-queue", lambda ep, *_: ep.purge_queue()),
    Operation("requests", "requests", lambda ep, *_: ep.requests()),
]  # fmt: skip


QUEUED = {"id": "job-1", "status": "IN_QUEUE"}
RUNNING = {"id": "job-1", "status": "IN_PROGRESS"}
DONE = {"id": "job-1", "status": "COMPLETED", "output": "hi"}
GOOD = {
    "run": QUEUED,
    "retry": QUEUED,
    "cancel": {"id": "job-1", "status": "CANCELLED"},
    "health": {"jobs": {"completed": 1}, "workers": {"idle": 1}},
    "purge-queue": {"removed": 2, "status": "completed"},
    "requests": {"requests": [DONE]},
}


class Server:
    """What a good server answers to one operation, and where it goes wrong."""

    def __init__(self, operation: Operation, fault: Fault, is_once: bool) -> None:
        self._operation, self._fault, self._is_once = operation, fault, is_once
        self._before = list(operation.after)
        self._is_over = False
        self._chunks = ["a", "b", "c"]
        self._looks = 0

    def choose(self, asked: Asked) -> tuple[Act, Any]:
        strikes = self._strikes(asked.operation) and not self._fault.is_unread
        document = self._document(asked.operation, is_drained=not (strikes and self._fault.is_refusal))
        if strikes:
            self._is_over = self._is_once
            return self._fault.act, document
        return (_last if self._fault.is_unread else good), document

    def refuse(self) -> Act | None:
        """What is done to a connection before anything is read."""
        if not self._fault.is_unread or self._before or self._is_over:
            return None
        self._is_over = self._is_once
        return self._fault.act

    def _strikes(self, route: str) -> bool:
        if self._before and self._before[0] == route:
            self._before.pop(0)
            return False
        return route == self._operation.route and not self._before and not self._is_over

    def _document(self, route: str, *, is_drained: bool) -> Any:
        if route == "stream":
            return self._next_chunk(is_drained=is_drained)
        if route == "status" and self._operation.route == "stream":
            self._looks += 1
            if self._chunks and self._looks < LOOKS:
                return RUNNING
            return {**DONE, "output": list(self._operation.aggregate)}
        return RUNNING if route == "runsync" and self._operation.after else GOOD.get(route, DONE)

    def _next_chunk(self, *, is_drained: bool) -> Any:
        chunks = self._chunks[:1]
        if is_drained:
            self._chunks = self._chunks[1:]
        word = "IN_PROGRESS" if self._chunks else "COMPLETED"
        return {"status": word, "stream": [{"output": chunk} for chunk in chunks]}


async def _last(talk: Talk) -> None:
    """A good answer, after which the next request needs another connection."""
    await talk.say(answer(talk.document, connection="close"))
    raise Close


# ---------------------------------------------------------------------------------- one cell


@dataclass
class Cell:
    """What came of one operation under one fault.

    Attributes:
        asked: How often the request that goes wrong was sent, as far as the server can know.
        shown: The chunks that were shown, and how the job ended.
        problem: What was raised, or reported to the event loop, and should not have been.
    """

    operation: Operation
    fault: str
    is_once: bool
    is_refusal: bool = False
    asked: int = 0
    shown: list[Any] = field(default_factory=list)
    value: Any = None
    error: errors.EndpointError | None = None
    goes_on: bool = False
    problem: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.operation.name} / {self.fault}{' once' if self.is_once else ''}"

    @property
    def may_be_queued(self) -> bool:
        """Whether the user is told that the job may exist although no answer named it."""
        return self.error is not None and bool(re.search(r"\bmay (have been queued|run)\b", str(self.error)))

    @property
    def told(self) -> str:
        """What the user sees, in a few words."""
        if self.goes_on:
            return " ".join([*map(str, self.shown), "goes on asking: it has not ended"])
        if self.error is None:
            return self._value()
        return " ".join([*map(_word, self.shown), f"`{type(self.error).__name__}`: {_decisive(self.error)}"])

    def _value(self) -> str:
        match self.value:
            case Job():
                output = f", output {self.value.output!r}" if self.value.has_output else ""
                return f"{self.value.status}{output}"
            case Health():
                return f"jobs {dict(self.value.jobs)}, workers {dict(self.value.workers)}".replace("'", "")
            case list():
                return f"{len(self.value)} request(s)"
            case int():
                return f"removed {self.value}"
        return " ".join(map(_word, self.shown)) or "nothing"

    @property
    def times(self) -> str:
        return "many" if self.asked >= MANY else str(self.asked)


def _word(shown: Any) -> str:
    return shown if isinstance(shown, str) else repr(shown)


_DIFFERING = [
    (r"^[\w-]+( of)?( job job-1)? on ep:? ", ""),
    (r"^failed \d+ times in (\d+|N) s; the last time: (stream of job job-1 on ep: )?", "given up: "),
    (r"the connection broke after [\d.]+ s, before a whole answer came \((.*)\)\. ", r"\1. "),
    (r"https?://[\w.:]+(/v2)?", "URL"),
    (r"no connection to URL after [\d.]+ s \(.*?\); ", "no connection to URL; "),
    (r"127\.0\.0\.1:\d+", "HOST"),
    (r"\[Errno \d+\] ", ""),
    (r"\d+(\.\d+)?(e-\d+)? s\b", "N s"),
    (r" ?\(\d{3}\)", ""),
    (r"\(\d{3}: ", "("),
    (r"answered \d{3}\b", "answered that"),
    (r"(\{|\[(?!key)).*?(?=; the job|\. Is URL|\. The job|$)", "…"),
    (r"([<*|])", r"\\\1"),
]
"""What an error says that differs from run to run, or between faults that are treated alike; and what Markdown would read."""


def _decisive(error: errors.EndpointError) -> str:
    text = str(error)
    for pattern, instead in _DIFFERING:
        text = re.sub(pattern, instead, text)
    return text if len(text) <= 150 else text[:150].rsplit(" ", 1)[0] + " …"


async def run_cell(cell: Cell, url: str, timeout: float, limit: float) -> Cell:
    try:
        async with asyncio.timeout(limit), Endpoint("ep", url, KEY) as endpoint:
            cell.value = await cell.operation.call(endpoint, timeout, cell.shown)
    except errors.EndpointError as error:
        cell.error = error
    except TimeoutError as error:
        cell.goes_on = limit == FOLLOWED
        cell.problem = None if cell.goes_on else error
    except Exception as error:
        cell.problem = error
    return cell


async def cell_of(operation: Operation, fault: Fault, is_once: bool) -> Cell:
    cell = Cell(operation, fault.name, is_once, fault.is_refusal)
    script = Server(operation, fault, is_once)
    is_endless = fault.is_endless and operation.goes_on and not is_once
    async with faulty(script.choose, refuse=script.refuse) as server:
        await run_cell(
            cell, server.url, SHORT if fault.is_slow else PATIENT, FOLLOWED if is_endless else DEADLINE
        )
        cell.asked = server.count(operation.route) + server.unread - operation.after.count(operation.route)
        assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in server.asked)
    return cell


# ---------------------------------------------------------------------------------- all of them


def shorten(patch: pytest.MonkeyPatch, timeout: float, follower: float = 0.3) -> None:
    """Set the clocks of the client: for one answer, and for a follower that gets none."""
    for name in ("REQUEST_TIMEOUT", "SUBMIT_TIMEOUT", "HOLD_MARGIN"):
        patch.setattr(exchange, name, timeout)
    patch.setattr(client, "HOLD_MARGIN", timeout)
    patch.setattr(client, "SHORTEST_HOLD", 0.0)
    patch.setattr(client, "SYNC_HOLD", HOLD)
    patch.setattr(patience, "LONGEST_REST", 0.02)
    patch.setattr(patience, "PATIENCE", follower)
    patch.setattr(patience, "LOSSES_LAST", 0.0)
    patch.setattr(transport, "MAX_BODY", 2**20)


@dataclass
class Matrix:
    """All cells, and what was logged meanwhile."""

    cells: list[Cell]
    log: _Log
    elsewhere: Faulty
    proxied: bytes


async def _gather(patch: pytest.MonkeyPatch, elsewhere: str) -> list[Cell]:
    cells: list[Cell] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def one(operation: Operation, fault: Fault, is_once: bool) -> Cell:
        async with room:
            return await cell_of(operation, fault, is_once)

    kinds = {fault.name: (fault.is_slow, fault.is_waited_out) for fault in faults(elsewhere)}
    for kind in sorted(set(kinds.values())):
        is_slow, is_waited_out = kind
        # a follower's patience decides only where nothing else ends it
        shorten(patch, SHORT if is_slow else PATIENT, 0.3 if is_slow or is_waited_out else PATIENT)
        cells += await asyncio.gather(
            *(
                one(operation, fault, is_once)
                for fault in faults(elsewhere)
                if kinds[fault.name] == kind
                for operation in OPERATIONS
                for is_once in (False, True)
            )
        )
    return cells


async def _jumping(patch: pytest.MonkeyPatch) -> list[Cell]:
    """The wall clock is a day off at every other reading of it, this way and that."""
    clock, dice = time.time, random.Random(5)
    with patch.context() as patched:
        patched.setattr(time, "time", lambda: clock() + dice.choice((-86_400, 0, 86_400)))
        fault = Fault("wall clock jumps by a day", good)
        return await asyncio.gather(*(cell_of(operation, fault, False) for operation in OPERATIONS))


async def _at(name: str, url: str, *, is_refusal: bool = True) -> list[Cell]:
    cells = [Cell(operation, name, False, is_refusal) for operation in OPERATIONS]
    return await asyncio.gather(*(run_cell(cell, url, HASTY, DEADLINE) for cell in cells))


async def _places(patch: pytest.MonkeyPatch, proxied: bytearray) -> list[Cell]:
    """Servers that are not reached, and proxies that the environment names."""
    shorten(patch, HASTY)
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
        cells = await _at("nobody listens", f"http://{nowhere}/v2")
        async with faulty(lambda asked: (good, {})) as server:
            cells += await _at("https to a server without TLS", server.url.replace("http:", "https:"))
        acts = {
            "refuses": lambda writer: writer.write(answer(status=403)),
            "wants a password": lambda writer: writer.write(answer(status=407)),
            "answers garbage": lambda writer: writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
            "closes": lambda writer: writer.close(),
            "hangs": lambda writer: None,
        }
        for name, act in acts.items():
            async with _proxy(act, proxied) as url, _environment(patch, HTTPS_PROXY=url):
                cells += await _at(f"proxy {name}", "https://endpoint.invalid/v2")
        async with _environment(patch, HTTPS_PROXY=f"http://{nowhere}"):
            cells += await _at("proxy is not there", "https://endpoint.invalid/v2")
        async with _environment(patch, HTTP_PROXY=f"http://{nowhere}", ALL_PROXY=f"http://{nowhere}"):
            direct = Fault("server on this machine despite a proxy", good)
            cells += await asyncio.gather(*(cell_of(operation, direct, False) for operation in OPERATIONS))
    return cells


@contextlib.asynccontextmanager
async def _environment(patch: pytest.MonkeyPatch, **variables: str) -> AsyncIterator[None]:
    with patch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        yield


@contextlib.asynccontextmanager
async def _proxy(act: Callable[[asyncio.StreamWriter], None], proxied: bytearray) -> AsyncIterator[str]:
    writers = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            proxied.extend(await reader.readuntil(b"\r\n\r\n"))
            act(writer)
            while said := await reader.read(4096):
                proxied.extend(said)
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()
    for writer in writers:
        writer.close()
    await asyncio.sleep(0)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = self.complaints = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"
        if record.levelno >= logging.WARNING:
            self.complaints += self.format(record) + "\n"


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    log, root, level, proxied = _Log(), logging.getLogger(), logging.getLogger().level, bytearray()
    root.addHandler(log)
    root.setLevel(logging.DEBUG)

    async def measure(patch: pytest.MonkeyPatch) -> tuple[list[Cell], Faulty]:
        async with faulty(lambda asked: (says(answer({})), {})) as elsewhere:
            cells = await _gather(patch, elsewhere.url)
            return cells + await _jumping(patch) + await _places(patch, proxied), elsewhere

    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        cells, elsewhere = asyncio.run(measure(patch))
    root.removeHandler(log)
    root.setLevel(level)
    return Matrix(cells, log, elsewhere, bytes(proxied))


# ---------------------------------------------------------------------------------- what holds in every cell


def test_nothing_leaves_the_tree_of_errors_and_nothing_hangs(matrix: Matrix) -> None:
    assert [f"{cell}: {cell.problem!r}" for cell in matrix.cells if cell.problem is not None] == []
    assert matrix.log.complaints == ""


def test_a_submission_that_may_have_been_taken_is_sent_once(matrix: Matrix) -> None:
    submissions = [cell for cell in matrix.cells if cell.operation.submits]
    assert [str(cell) for cell in submissions if cell.asked > 1 and not cell.is_refusal] == []
    untold = [
        str(cell)
        for cell in submissions
        if cell.error is not None
        and not cell.is_refusal
        and not cell.may_be_queued
        and cell.operation.name != "retry"
    ]  # a job that is retried has an id under which it is found again
    assert untold == []


def test_what_was_refused_or_never_sent_is_not_called_queued(matrix: Matrix) -> None:
    sure = {"400", "401", "403", "404", "402", "409", "413", "418", "422", "425", "429", "nobody listens"}
    wrong = [str(cell) for cell in matrix.cells if cell.fault in sure and cell.may_be_queued]
    assert wrong == []
    unsent = [cell for cell in matrix.cells if cell.fault.startswith(("proxy ", "nobody"))]
    assert len(unsent) > 5 * len(OPERATIONS)
    assert [f"{cell}: {cell.error}" for cell in unsent if "nothing was sent" not in str(cell.error)] == []


def test_an_error_names_its_job_and_its_status_on_one_line_without_markup(matrix: Matrix) -> None:
    for cell in matrix.cells:
        if (error := cell.error) is None:
            continue
        is_submission = (
            cell.asked == 0 and "runsync" in cell.operation.after
        )  # it did not get as far as its fault
        is_about_a_job = not is_submission and cell.operation.route not in (
            "run",
            "runsync",
            "health",
            "purge-queue",
            "requests",
        )
        assert error.job_id == ("job-1" if is_about_a_job else None), str(cell)
        assert not re.search(r"\n|<|alert|color: red", str(error)), str(cell)
        if isinstance(error, errors.APIError) and cell.fault[:3].isdigit():
            assert error.status_code == int(cell.fault[:3]), str(cell)


def test_nobody_is_hammered(matrix: Matrix) -> None:
    assert [str(cell) for cell in matrix.cells if cell.asked > MOST] == []


def test_no_chunk_is_lost_in_silence(matrix: Matrix) -> None:
    """Where a reader ends without an error, it has shown all that was said, in order."""
    mended = {"null output", "half characters"}
    for cell in matrix.cells:
        if cell.operation.route != "stream" or cell.error is not None or cell.fault in mended:
            continue
        chunks = [shown for shown in cell.shown if shown in ("a", "b", "c")]
        # who follows gets them from the final status
        is_without_stream = cell.fault == "404" and not cell.is_once and cell.operation.name != "follow"
        assert chunks == (["a"] if is_without_stream else ["a", "b", "c"]), str(cell)


def test_the_key_is_in_no_error_and_no_log_and_goes_nowhere_else(matrix: Matrix) -> None:
    for cell in matrix.cells:
        if cell.error is not None:
            told = [
                *traceback.format_exception(cell.error),
                repr(cell.error),
                *map(str, vars(cell.error).values()),
            ]
            assert not any(KEY in text for text in told), str(cell)
    assert KEY not in matrix.log.text
    assert matrix.log.text
    assert KEY.encode() not in matrix.proxied
    assert b"CONNECT" in matrix.proxied
    assert not matrix.elsewhere.asked
    assert sum("redirect" in cell.fault for cell in matrix.cells) == 2 * len(REDIRECTS) * len(OPERATIONS)


@pytest.mark.parametrize("through_a_proxy", [False, True])
def test_what_is_unpacked_is_bounded(through_a_proxy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 KB on the wire, 100 MB in memory: so much is never made of it."""
    monkeypatch.setattr(transport, "MAX_BODY", 2**20)
    bomb = gzip.compress(bytes(100 * 2**20), 1)
    said = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb)

    async def main() -> None:
        async with faulty(lambda asked: (says(said), None)) as server:
            if through_a_proxy:
                monkeypatch.setenv("http_proxy", server.url.removesuffix("/v2"))
            address = "http://api.example.test/v2" if through_a_proxy else server.url
            async with transport.make_client(address) as http:
                tracemalloc.start()
                with pytest.raises(httpx.DecodingError, match="unpacked it is over 1048576 bytes"):
                    await http.get(f"{address}/ep/health")
                assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
                tracemalloc.stop()
            assert len(server.asked) == 1

    asyncio.run(main())


# ---------------------------------------------------------------------------------- the table


HEAD = f"""\
# What happens when something goes wrong

Every operation of `Endpoint` under every fault, caused by a real server on a real socket. Written by
`pytest tests/test_fault_matrix.py --write-faults`; the same tests fail where this table is no longer true.

In every one of the cells: nothing is raised that is no `EndpointError`, nothing hangs, the key is in no message and
goes to no other host, and no chunk of a stream is lost without a word. A job is never submitted twice: what queues one
is sent again only where the connection was never made, or where the server says that it has not taken it.

The first table has the error and, where it is not 1, the number of requests, when the fault stays; `✓` is a result
in spite of it. The tables after it have the words, and what comes of a fault that strikes once (a stream has shown
its first of three chunks then; 0 requests means that none has arrived; proxies are those of the environment). *many*: {MANY} or more, until patience ends.
"""


def overview(cells: list[Cell]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for cell in cells:
        if not cell.is_once:
            word = "…" if cell.goes_on else "✓" if cell.error is None else type(cell.error).__name__
            rows.setdefault(cell.fault, []).append(word if cell.asked in (0, 1) else f"{word} {cell.times}×")
    names = [operation.name for operation in OPERATIONS]
    return [
        f"| Fault | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {', '.join(same)} | {' | '.join(row)} |" for row, same in _alike(rows)),
    ]


def details(cells: list[Cell]) -> list[str]:
    """The rows of one operation."""
    rows: dict[str, list[str]] = {}
    for cell in cells:
        told = f"{cell.told} | {cell.times}"
        rows.setdefault(cell.fault, []).append(told)
    for row in rows.values():
        row[1:] = ["| "] if len(row) == 1 else ["the same |" if row[0] == row[1] else row[1]]
    return [
        "| Fault | It stays: what the user sees | requests | It strikes once | requests |",
        "|---|---|---|---|---|",
        *(f"| {', '.join(same)} | {' | '.join(row)} |" for row, same in _alike(rows)),
    ]


def _alike(rows: dict[str, list[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Each row once, with the faults that share it."""
    same: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.items():
        same.setdefault(tuple(row), []).append(name)
    return ((list(row), names) for row, names in same.items())


def table(matrix: Matrix) -> str:
    lines = [HEAD, *overview(matrix.cells)]
    for operation in OPERATIONS:
        lines += ["", f"## {operation.name}", ""]
        lines += details([cell for cell in matrix.cells if cell.operation is operation])
    return "\n".join(lines) + "\n"


def test_the_table_is_true(matrix: Matrix, request: pytest.FixtureRequest) -> None:
    written = table(matrix)
    if request.config.getoption("--write-faults"):
        TABLE.write_text(written, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == written, (
        "write it anew: pytest tests/test_fault_matrix.py --write-faults"
    )
