"""A server of large outputs, in a process of its own: a job's `input` says how much comes, and in what pieces.

    {"chunks": 100, "size": 1_000_000}            streamed text; with "fails": true it fails until it is retried
    {"result": "text" | "json" | "table" | "image" | "audio", "size": 20_000_000}   one result

What comes is the same each time, and nowhere the same: no piece can stand for another one. Nothing is kept
here: as much as is asked for can be sent.

    python tests/bulk.py
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rude import Asked, answer, listening, read

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 128 * 1024
"""Characters of one answer of a stream, or one chunk."""
PNG = b"\x89PNG\r\n\x1a\n"
WAV = b"RIFF\0\0\0\0WAVE"


def piece(number: int, size: int) -> str:
    """The chunk of that number: paragraphs of text with that many characters."""
    line = f"Chunk {number}, and some words of *prose* after it, as a model writes them.\n"
    lines = (f"{line}Line {at}.\n\n" for at in itertools.count())
    found, length = [], 0
    while length < size:
        found.append(next(lines))
        length += len(found[-1])
    return "".join(found)[:size]


def noise(size: int) -> bytes:
    """Bytes that cannot be packed."""
    return hashlib.shake_128(b"noise").digest(size)


def result(kind: str, size: int) -> Any:
    """A result whose JSON has about that many bytes."""
    match kind:
        case "text":
            return piece(0, size)
        case "json":
            return {"rows": [{"number": at, "words": [f"word {at}", None]} for at in range(size // 45)]}
        case "table":
            return [{"number": at, "words": f"word {at}"} for at in range(size // 40)]
        case "image":
            return {"image": base64.b64encode(PNG + noise(size * 3 // 4)).decode()}
        case "audio":
            return {"audio": base64.b64encode(WAV + noise(size * 3 // 4)).decode()}
    raise ValueError(kind)


class Jobs:
    """What was asked, and how much of it has been sent."""

    def __init__(self) -> None:
        self._inputs: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, int] = {}

    def answer(self, asked: Asked) -> Any:
        *_, operation, name = f"{asked.path}/".removesuffix("/").rsplit("/", 2)
        if name in ("run", "runsync"):
            job = f"job-{len(self._inputs)}"
            self._inputs[job], self._sent[job] = asked.body["input"], 0
            return self._document(job) if name == "runsync" else {"id": job, "status": "IN_QUEUE"}
        if operation == "retry":
            self._sent[name] = 0
            del self._inputs[name]["fails"]
            return {"id": name, "status": "IN_QUEUE"}
        if name == "health":
            return {"jobs": {}, "workers": {"idle": 1}}
        return self._stream(name) if operation == "stream" else self._document(name)

    def _stream(self, job: str) -> Any:
        given = self._inputs[job]
        first, count = self._sent[job], given.get("chunks", 0)
        end = min(count, first + max(1, AT_ONCE // given["size"]))
        self._sent[job] = end
        chunks = [{"output": piece(at, given["size"])} for at in range(first, end)]
        return {"status": self._status(job), "stream": chunks}

    def _status(self, job: str) -> str:
        given = self._inputs[job]
        if self._sent[job] < given.get("chunks", 0):
            return "IN_PROGRESS"
        return "FAILED" if given.get("fails") else "COMPLETED"

    def _document(self, job: str) -> Any:
        given = self._inputs[job]
        document: dict[str, Any] = {"id": job, "status": self._status(job)}
        document |= {"delayTime": 5, "executionTime": 5}
        if document["status"] == "COMPLETED" and "result" in given:
            document["output"] = result(given["result"], given["size"])
        return document


async def serve() -> None:
    jobs = Jobs()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read(reader, writer)
            await asked.send(answer(jobs.answer(asked)))

    async with listening(talk) as url:
        print(url, flush=True)
        await asyncio.get_running_loop().create_future()


@contextlib.contextmanager
def bulk() -> Iterator[str]:
    """Serve from another process; gives the base URL."""
    with subprocess.Popen([sys.executable, Path(__file__)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve())
