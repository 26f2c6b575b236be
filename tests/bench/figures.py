"""What a benchmark returns, and how it is judged and printed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

FLOOR = "floor"
OURS = "notebook_ext"
RUNPOD, RUNPOD_ASYNCIO, RUNPOD_JS = "runpod", "runpod asyncio", "runpod-sdk"
PEERS = (RUNPOD, RUNPOD_ASYNCIO, RUNPOD_JS)
"""What others released, and people use today."""


@dataclass(frozen=True)
class Settings:
    """How thorough a run is.

    Args:
        repeats: How often each case is measured with each contender.
        quick: Fewer tokens and jobs per repeat: a look, not a measurement.
        with_peers: Also measure the released SDKs.
    """

    repeats: int = 5
    quick: bool = False
    with_peers: bool = False


@dataclass(frozen=True)
class Goal:
    """What a figure should reach; any of the limits that are set is enough.

    Args:
        ratio: Ours over the floor's, of the medians.
        excess: Ours minus the floor's, in the figure's unit.
        absolute: Ours.
        peer: Ours over that of the best peer that did the work.
    """

    ratio: float | None = None
    excess: float | None = None
    absolute: float | None = None
    peer: float | None = None

    def __str__(self) -> str:
        words = {
            "{:g} x floor": self.ratio,
            "floor + {:g}": self.excess,
            "{:g} x best peer": self.peer,
            "{:g}": self.absolute,
        }
        return "<= " + " or ".join(text.format(limit) for text, limit in words.items() if limit is not None)

    def is_reached(self, ours: float, floor: float | None, peer: float | None = None) -> bool:
        bounds = [self.absolute]
        if floor is not None:
            bounds += [None if self.ratio is None else self.ratio * floor]
            bounds += [None if self.excess is None else floor + self.excess]
        if peer is not None and self.peer is not None:
            bounds.append(self.peer * peer)
        return any(bound is not None and ours <= bound for bound in bounds)


@dataclass
class Figure:
    """One line of the table.

    Args:
        case: Under which conditions, with their units.
        what: What was measured.
        unit: Of the samples.
        goal: What ours should reach; None where the figure is only told.
        samples: By contender, one number per repeat.
        failures: By contender, what it did not do in a repeat: it is not judged as if it had.
    """

    case: str
    what: str
    unit: str
    goal: Goal | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def add(self, contender: str, sample: float) -> None:
        self.samples.setdefault(contender, []).append(sample)

    def fail(self, contender: str, why: str) -> None:
        self.failures.setdefault(contender, []).append(why)

    def median(self, contender: str) -> float | None:
        samples = self.samples.get(contender)
        return statistics.median(samples) if samples else None

    @property
    def ratio(self) -> float | None:
        ours, floor = self.median(OURS), self.median(FLOOR)
        return ours / floor if ours is not None and floor else None

    @property
    def best_peer(self) -> str | None:
        """The peer with the least median, of those that did all of the work."""
        able = [name for name in PEERS if self.samples.get(name) and name not in self.failures]
        return min(able, key=lambda name: statistics.median(self.samples[name]), default=None)

    @property
    def peer_ratio(self) -> float | None:
        ours, peer = self.median(OURS), self._of_best_peer
        return ours / peer if ours is not None and peer else None

    @property
    def _of_best_peer(self) -> float | None:
        return None if self.best_peer is None else self.median(self.best_peer)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing to judge."""
        if self.goal is None or OURS not in (self.samples | self.failures):
            return None
        ours = self.median(OURS)
        if ours is None or OURS in self.failures:
            return False
        return self.goal.is_reached(ours, self.median(FLOOR), self._of_best_peer)

    def spread(self, contender: str) -> str:
        """The median and the range, and what it failed to do."""
        samples, failures = self.samples.get(contender), self.failures.get(contender, [])
        cells = []
        if samples:
            median, least, most = (
                _short(value) for value in (statistics.median(samples), min(samples), max(samples))
            )
            cells.append(median if len(samples) == 1 else f"{median} [{least}-{most}]")
        if failures:
            cells.append(f"FAILED {len(failures)} x: {failures[0].replace('|', '/')}")
        return ", ".join(cells) or "-"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def percentile(values: list[float], fraction: float) -> float:
    """The value that this fraction of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def table(figures: list[Figure]) -> str:
    """Figures as one Markdown table, a column per contender."""
    names = {name for figure in figures for name in (*figure.samples, *figure.failures)}
    known = [name for name in (FLOOR, OURS, *PEERS) if name in names]
    contenders = known + sorted(names - set(known))
    has_peers = not names.isdisjoint(PEERS)
    header = ["case", "figure", *contenders, "x floor", *(["x best peer"] * has_peers), "goal", "reached"]
    lines = [header, ["-" * len(title) for title in header]]
    for figure in figures:
        lines.append(
            [
                figure.case,
                f"{figure.what}, {figure.unit}" if figure.unit else figure.what,
                *(figure.spread(contender) for contender in contenders),
                _ratio(figure.ratio),
                *([_ratio(figure.peer_ratio)] * has_peers),
                "-" if figure.goal is None else str(figure.goal),
                {True: "yes", False: "NO", None: "-"}[figure.reached],
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
