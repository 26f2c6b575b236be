"""The values that the rest of the package passes around: frozen, and without any I/O.

Times are seconds (float) everywhere in the package; only `protocol` knows that the wire
counts milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from itertools import chain
from typing import Any

__all__ = [
    "Counts",
    "ExecutionPolicy",
    "Health",
    "Job",
    "JobStatus",
    "Progress",
    "StreamChunk",
    "WorkerError",
    "whole",
    "whole_text",
]


class JobStatus(StrEnum):
    """Where a job stands; an unknown word from a server is kept as it came, and is not final."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    LOST = "LOST"
    """Ours: the server no longer knows the job (404 after retention or ttl); its result is gone."""
    AMBIGUOUS = "AMBIGUOUS"
    """Ours: it was sent, but no whole answer came back, so whether it was queued is unknown."""

    @classmethod
    def _missing_(cls, value: object) -> JobStatus:
        word = str(value)
        if word == "RUNNING":  # listed beside IN_PROGRESS by Runpod's job-states page
            return cls.IN_PROGRESS
        unknown = str.__new__(cls, word)
        unknown._name_ = unknown._value_ = word
        return unknown

    @property
    def is_final(self) -> bool:
        """Whether a server will never change it again."""
        return self in _FINAL


_FINAL = frozenset(
    {
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
        JobStatus.TIMED_OUT,
        JobStatus.LOST,
    }
)


@dataclass(frozen=True, slots=True)
class WorkerError:
    """What a worker said about its failure, read out of the five shapes that `error` takes.

    Args:
        message: One sentence; never empty.
        type: The exception's class name where the worker told it.
        traceback: The worker's traceback where it told one.
        worker_id: Which worker it was, where told.
        raw: The `error` value as it came, for whatever was not understood.
    """

    message: str
    type: str | None = None
    traceback: str | None = None
    worker_id: str | None = None
    raw: Any = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job says it is.

    Args:
        fraction: 0.0 to 1.0; None when the worker told only words.
        text: What it said, as one line.
    """

    fraction: float | None
    text: str

    @classmethod
    def read(cls, value: Any) -> Progress | None:
        """Read a `progress_update` payload: a number, a percentage, `{"step": 2, "of": 5}` or text.

        Text may be a line of tqdm's, or hold a percentage or `2/5`; what no fraction is found in is words.
        """
        number = _number(value)
        if number is not None:
            return cls(_fraction(number, 1.0 if 0 <= number <= 1 else 100.0), f"{number:g}")
        if isinstance(value, str):
            return cls._read_text(value)
        if isinstance(value, Mapping):
            return cls._read_mapping(value)
        return None

    @classmethod
    def _read_mapping(cls, value: Mapping[str, Any]) -> Progress | None:
        lines = (_one_line(item) for item in value.values() if isinstance(item, str))
        line = next(filter(None, lines), "")
        for done_key, total_key in (("step", "of"), ("step", "total"), ("current", "total"), ("n", "total")):
            done, total = _number(value.get(done_key)), _number(value.get(total_key))
            if done is not None and total:
                return cls(_fraction(done, total), f"{done:g}/{total:g} {line}".rstrip())
        for key, unit in (("progress", None), ("percent", 100.0), ("fraction", 1.0)):
            number = _number(value.get(key))
            if number is not None:
                total = unit or (1.0 if 0 <= number <= 1 else 100.0)
                text = f"{number:g} %" if key == "percent" else f"{number:g}"
                return cls(_fraction(number, total), line or text)
        text = line or _one_line(" · ".join(f"{key} {item:g}" for key, item in _numbers(value)))
        return cls(None, text) if text else None

    @classmethod
    def _read_text(cls, text: str) -> Progress | None:
        line = _one_line(text)
        if not line:
            return None
        bar = _BAR.fullmatch(line)
        if bar is not None:
            said = f"{bar['before']}{bar['after']}".strip() or f"{bar['percent']}%"
            return cls(_fraction(float(bar["percent"]), 100.0), said)
        percent = _PERCENT.search(line)
        if percent is not None:
            return cls(_fraction(float(percent[1]), 100.0), line)
        steps = [(float(step[1]), float(step[2])) for step in _STEP.finditer(line)]
        if len(steps) == 1 and steps[0][0] <= steps[0][1] > 0:
            return cls(_fraction(*steps[0]), line)
        return cls(None, line)


# What tqdm prints, `name:  40%|####   | 4/10 [00:01<00:02, 3.2it/s]`; the bar is drawn better elsewhere.
_BAR = re.compile(r"(?P<before>.*?)\s*(?P<percent>\d{1,3}(?:\.\d+)?)%\|[^|]*\|(?P<after>.*)")
_PERCENT = re.compile(r"(?<![\w.])(-?\d{1,9}(?:\.\d+)?) ?%")
_STEP = re.compile(r"(?<![\w./-])(\d{1,9}) ?(?:/| of ) ?(\d{1,9})(?![\w./])")


_HUGE = 1e300  # JSON's integers have no bound, and its readers take NaN and Infinity


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < _HUGE else None


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        number = _number(value)
        if number is not None:
            yield name, number


def _fraction(value: float, total: float) -> float:
    return min(1.0, max(0.0, value / total))


def _one_line(text: str) -> str:
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A snapshot of one job, as one answer of a server told it.

    Args:
        id: The server's id; opaque. Empty while the answer to its submission is outstanding.
        endpoint: The endpoint's id or name.
        status: Where it stands.
        output: The result of a COMPLETED job, as the worker returned it; of an IN_PROGRESS job
            its latest progress update.
        has_output: Whether the answer carried an `output` at all. A COMPLETED job without one
            returned nothing, or its result was over the provider's size limit and was dropped.
        error: What the worker said of its failure.
        delay_time: Seconds in the queue, cold start included; None until a worker has taken it.
        execution_time: Seconds on the worker; None where the server does not tell.
        worker_id: Which worker took it.
        retries: How often the platform has restarted it; None where it does not tell.
        seen_at: When this answer was read (seconds since the epoch).
        input: What the worker receives, where the server tells it: a list of requests may.
    """

    id: str
    endpoint: str
    status: JobStatus
    output: Any = None
    has_output: bool = False
    error: WorkerError | None = None
    delay_time: float | None = None
    execution_time: float | None = None
    worker_id: str | None = None
    retries: int | None = None
    seen_at: float = 0.0
    input: Any = None

    @property
    def progress(self) -> Progress | None:
        """What a running job said about its progress; never the result of a finished one."""
        return None if self.status.is_final else Progress.read(self.output)


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One piece of streamed output.

    Args:
        output: What the handler yielded: any JSON value, `None`, `0` and `""` included.
        index: Its place in the job's stream, from 0.
        metrics: What some workers send beside it.
    """

    output: Any
    index: int = 0
    metrics: Mapping[str, Any] | None = None


class Counts(dict[str, int]):
    """Counters by snake_case name; one that a server does not tell reads as 0."""

    def __missing__(self, key: str) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Health:
    """An endpoint's counters.

    Args:
        jobs: completed, failed, in_progress, in_queue, retried, and whatever else was told.
        workers: idle, initializing, ready, running, throttled, unhealthy, and whatever else was told.
        seen_at: When the answer was read (seconds since the epoch).
    """

    jobs: Counts = field(default_factory=Counts)
    workers: Counts = field(default_factory=Counts)
    seen_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ExecutionPolicy:
    """The clocks that the server runs for one job; None keeps the endpoint's own.

    Args:
        execution_timeout: Seconds (or a timedelta) that it may run on a worker.
            Runpod: 5 s to 7 days, 600 s by default (operation reference).
        ttl: Seconds (or a timedelta) from submission, queue and run together, after which the
            job is deleted **even while it runs**. Runpod: 10 s to 7 days, 24 h by default.
        low_priority: Do not start another worker for it.
    """

    execution_timeout: float | None = None
    ttl: float | None = None
    low_priority: bool = False

    def __init__(
        self,
        execution_timeout: float | timedelta | None = None,
        ttl: float | timedelta | None = None,
        low_priority: bool = False,
    ) -> None:
        object.__setattr__(self, "execution_timeout", _seconds(execution_timeout))
        object.__setattr__(self, "ttl", _seconds(ttl))
        object.__setattr__(self, "low_priority", low_priority)


def _seconds(value: float | timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


# ---------------------------------------------------------------------------------- whole characters


def whole_text(text: str) -> str:
    """A text that can be stored and printed: JSON lets half a character through.

    Halves that lie side by side become their character, and a lone one becomes U+FFFD.
    """
    if _is_whole_text(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def whole(value: Any) -> Any:
    """`whole_text` for every string in a JSON value, keys included; a clean value is given back as it is.

    In a list, a first half at the end of a string joins the second half that begins the next
    string: whoever streams tokens cuts characters in two.

    Raises:
        RecursionError: It has halves, and is nested too deeply to be made anew.
    """
    return value if _is_whole(value) else _made_whole(value)


def _is_whole_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    left: list[Any] = [[value]]  # lists and objects; what else is in them is seen at once
    while left:  # no recursion: what is clean may be as deep as it likes
        within = left.pop()
        for item in chain(within, within.values()) if isinstance(within, dict) else within:
            if isinstance(item, str):
                if not (item.isascii() or _is_whole_text(item)):  # a call for each would take twice as long
                    return False
            elif isinstance(item, (dict, list)):
                left.append(item)
    return True


def _made_whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {_made_whole(key): _made_whole(item) for key, item in value.items()}
    return [_made_whole(item) for item in _rejoined(value)] if isinstance(value, list) else value


def _rejoined(items: list[Any]) -> list[Any]:
    items = list(items)
    for index in range(1, len(items)):
        first, second = items[index - 1 : index + 1]
        if _is_cut(first, second):
            items[index - 1 : index + 1] = [first[:-1], first[-1] + second]
    return items


def _is_cut(first: Any, second: Any) -> bool:
    both = isinstance(first, str) and isinstance(second, str)
    return both and "\ud800" <= first[-1:] <= "\udbff" and "\udc00" <= second[:1] <= "\udfff"
