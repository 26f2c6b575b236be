"""What a benchmark returns, and how it is judged and printed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

FLOOR = "floor"
OURS = "notebook_ext"


@dataclass(frozen=True)
class Settings:
    """How thorough a run is.

    Args:
        repeats: How often each case is measured with each contender.
        quick: Fewer tokens and jobs per repeat: a look, not a measurement.
    """

    repeats: int = 5
    quick: bool = False


@dataclass(frozen=True)
class Goal:
    """What a figure should reach; any of the limits that are set is enough.

    Args:
        ratio: Ours over the floor's, of the medians.
        excess: Ours minus the floor's, in the figure's unit.
        absolute: Ours.
    """

    ratio: float | None = None
    excess: float | None = None
    absolute: float | None = None

    def __str__(self) -> str:
        limits = []
        if self.ratio is not None:
            limits.append(f"{self.ratio:g} x floor")
        if self.excess is not None:
            limits.append(f"floor + {self.excess:g}")
        if self.absolute is not None:
            limits.append(f"{self.absolute:g}")
        return "<= " + " or ".join(limits)

    def is_reached(self, ours: float, floor: float | None) -> bool:
        if self.absolute is not None and ours <= self.absolute:
            return True
        if floor is None:
            return False
        return (self.ratio is not None and ours <= self.ratio * floor) or (
            self.excess is not None and ours <= floor + self.excess
        )


@dataclass
class Figure:
    """One line of the table.

    Args:
        case: Under which conditions, with their units.
        what: What was measured.
        unit: Of the samples.
        goal: What ours should reach; None where the figure is only told.
        samples: By contender, one number per repeat.
    """

    case: str
    what: str
    unit: str
    goal: Goal | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, sample: float) -> None:
        self.samples.setdefault(contender, []).append(sample)

    def median(self, contender: str) -> float | None:
        samples = self.samples.get(contender)
        return statistics.median(samples) if samples else None

    @property
    def ratio(self) -> float | None:
        ours, floor = self.median(OURS), self.median(FLOOR)
        return ours / floor if ours is not None and floor else None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing to judge."""
        ours = self.median(OURS)
        return None if self.goal is None or ours is None else self.goal.is_reached(ours, self.median(FLOOR))

    def spread(self, contender: str) -> str:
        """The median and the range."""
        samples = self.samples.get(contender)
        if not samples:
            return "-"
        median, least, most = (
            _short(value) for value in (statistics.median(samples), min(samples), max(samples))
        )
        return median if len(samples) == 1 else f"{median} [{least}-{most}]"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def percentile(values: list[float], fraction: float) -> float:
    """The value that this fraction of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def table(rows: list[tuple[str, Figure]]) -> str:
    """All figures as one Markdown table, a column per contender."""
    contenders = [FLOOR, OURS]
    contenders += sorted({name for _, figure in rows for name in figure.samples} - set(contenders))
    header = ["question", "case", "figure", *contenders, "ratio", "goal", "reached"]
    lines = [header, ["-" * len(title) for title in header]]
    for question, figure in rows:
        lines.append(
            [
                question,
                figure.case,
                f"{figure.what}, {figure.unit}" if figure.unit else figure.what,
                *(figure.spread(contender) for contender in contenders),
                "-" if figure.ratio is None else f"{figure.ratio:.2f}",
                "-" if figure.goal is None else str(figure.goal),
                {True: "yes", False: "NO", None: "-"}[figure.reached],
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
