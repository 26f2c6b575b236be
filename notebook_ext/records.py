"""A journaled job with what it came to: the figures, texts, pictures and sounds that files are made of."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from notebook_ext import profiles, prompts, render
from notebook_ext.types import whole_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from notebook_ext.entry import Entry
    from notebook_ext.types import StreamChunk

__all__ = ["COLUMNS", "Medium", "Record", "as_json", "media", "prompt_text", "streamed_text"]

COLUMNS = (
    "number", "submitted_at", "endpoint", "provider", "status", "prompt", "output", "delay_time",
    "execution_time", "cost", "job_id", "notebook",
)  # fmt: skip
"""What a table has of each job; times are in seconds, cost in dollars."""


@dataclass(frozen=True, slots=True)
class Record:
    """One job with what it came to.

    Args:
        entry: The job.
        final: Its output, read as its profile reads it.
    """

    entry: Entry
    final: profiles.Final

    @classmethod
    def read(cls, entry: Entry, chunks: Iterable[StreamChunk]) -> Record:
        """What a job came to, or has come to so far.

        Args:
            entry: The job.
            chunks: What it has streamed.
        """
        decoder = profiles.get(entry.profile).decoder()
        for chunk in chunks:
            decoder.feed(chunk)
        return cls(entry, decoder.finish(entry.job.output if entry.job.status.is_final else None))

    @property
    def text(self) -> str | None:
        """Its output as text: JSON where it is no text; None where there is none."""
        text, value = self.final.text, self.final.value
        if text is None and value is not None:
            text = value if isinstance(value, str) else as_json(value)
        return None if text is None else whole_text(text)

    @property
    def cost(self) -> float | None:
        """Dollars for its running time, at least."""
        rate, seconds = self.entry.rate, self.entry.job.execution_time
        return None if rate is None or seconds is None else rate * seconds

    @property
    def submitted_at(self) -> datetime:
        """When, in UTC."""
        return datetime.fromtimestamp(self.entry.submitted_at, UTC)

    def row(self) -> dict[str, Any]:
        """Its columns of a table."""
        entry, job = self.entry, self.entry.job
        values = (
            entry.number, self.submitted_at, entry.endpoint, entry.provider, str(job.status),
            prompt_text(entry.input), self.text, job.delay_time, job.execution_time, self.cost,
            job.id or None, entry.notebook,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))

    def document(self) -> dict[str, Any]:
        """All that is known of it, as JSON."""
        entry, job = self.entry, self.entry.job
        return {
            **self.row(),
            "submitted_at": self.submitted_at.isoformat(),
            "endpoint_id": entry.endpoint_id,
            "operation": entry.operation,
            "profile": entry.profile,
            "options": dict(entry.options),
            "input": entry.input,
            "output": self.final.value,
            "error": None if job.error is None else str(job.error),
            "worker_id": job.worker_id,
            "cell": entry.cell,
            "notes": list(entry.notes),
        }


def streamed_text(entry: Entry, chunks: Callable[[], Iterable[StreamChunk]]) -> Iterator[str] | None:
    """The text that a job has streamed, in pieces: a large one is never in memory as a whole.

    Args:
        entry: The job.
        chunks: Gives what it has streamed, from the first on.

    Returns:
        What `Record.text` is when it is joined; None where that is not just the text of the chunks.
    """
    decoder = profiles.get(entry.profile).decoder()
    decoder.forget()
    is_text = any(decoder.feed(chunk) and decoder.has_text for chunk in chunks())
    is_aggregate = isinstance(entry.job.output, list) and entry.job.status.is_final
    return _pieces(entry, chunks()) if is_text and not is_aggregate else None


def _pieces(entry: Entry, chunks: Iterable[StreamChunk]) -> Iterator[str]:
    decoder = profiles.get(entry.profile).decoder()
    decoder.forget()
    half = ""  # of a character, whose other half is in the next piece
    for chunk in chunks:
        text = half + decoder.feed(chunk)
        half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        yield whole_text(text.removesuffix(half))
    yield whole_text(half + (decoder.finish(None).text or ""))


def prompt_text(value: Any) -> str:
    """What was asked, as text, wherever it stands in an input; all of it as JSON where it is nowhere."""
    found = prompts.asked(value)
    if isinstance(found, str):
        return whole_text(found)
    return "" if found is None else as_json(found)


_DATA_URL = re.compile(r'src="data:(?P<mime>[^;"]+);base64,(?P<data>[^"]+)"')


@dataclass(frozen=True, slots=True)
class Medium:
    """One picture, sound or film of an output.

    Args:
        mime: Its type.
        data: Its bytes, in base64.
    """

    mime: str
    data: str

    def __str__(self) -> str:
        return f"{self.mime}, {len(self.content)} bytes"

    @property
    def content(self) -> bytes:
        """Its bytes."""
        return base64.b64decode(self.data + "=" * (-len(self.data) % 4))

    @property
    def tag(self) -> str:
        """The HTML element that shows it."""
        kind = self.mime.partition("/")[0]
        return "img" if kind == "image" else kind

    @property
    def url(self) -> str:
        """It, as an address that holds all of it."""
        return f"data:{self.mime};base64,{self.data}"


def media(value: Any) -> list[Medium]:
    """The pictures, sound and film of an output, as `render` finds them."""
    found: list[Medium] = []
    for kind in ("image", "audio", "video"):
        with contextlib.suppress(ValueError):  # there is none of this kind
            for bundle in render.outputs(value, kind):
                tag = _DATA_URL.search(bundle.get("text/html", ""))
                if tag is not None:
                    found.append(Medium(tag["mime"], tag["data"]))
                found += [Medium(mime, data) for mime, data in bundle.items() if mime.startswith("image/")]
    return found


def as_json(value: Any) -> str:
    """A value laid out over several lines."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:  # laying it out goes less deep than writing it
        return json.dumps(value, ensure_ascii=False)
