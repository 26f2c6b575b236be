"""Counters over time as small pictures: pure, and without IPython.

Bars are text: they read in a terminal, in text/plain, and in a saved notebook that nobody trusts,
where a front end drops SVG. The curve is for pages that are alive.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from notebook_ext.tables import in_order, noted

if TYPE_CHECKING:
    from notebook_ext.render import Bundle
    from notebook_ext.types import Health

__all__ = ["Series", "bars", "curve", "health", "span"]

Series = Mapping[tuple[str, str], Sequence[int | None]]
"""The values of each counter over the watched time, by group ("jobs", "workers") and name; None
where it was not told."""

_BARS = "▁▂▃▄▅▆▇█"
_GAP = " "
_GREY = "color:var(--jp-ui-font-color2, #666)"
_LEFT = "text-align:left;padding:2px 14px 2px 0"
_RIGHT = "text-align:right;padding:2px 14px 2px 0;font-variant-numeric:tabular-nums"


def bars(values: Sequence[int | None], width: int = 24) -> str:
    """The values as a line of Unicode bars, from zero to the highest of them.

    Args:
        values: In the order of time; a None is a gap.
        width: Characters at most; of more values, the highest in each stretch is shown.
    """
    shown = _stretched(values, width)
    top, highest = len(_BARS) - 1, _highest(shown)
    return "".join(_GAP if value is None else _BARS[round(top * value / highest)] for value in shown)


def curve(values: Sequence[int | None], *, width: int = 112, height: int = 22) -> str:
    """The values as an SVG line in the colour of the text around it, from zero to the highest of them.

    What stays as it is has the same line, however long that is.

    Args:
        values: In the order of time; a None is a gap.
        width: Pixels.
        height: Pixels.
    """
    shown = _stretched(values, width // 2)
    highest = _highest(shown)
    steps = max(1, len(shown) - 1)

    def point(at: int, value: int) -> str:
        return f"{width * at / steps:.1f},{height - 2 - (height - 4) * value / highest:.1f}"

    lines = []
    for run in _runs(shown):
        points = [point(at, value) for at, value in _corners(run)]
        if len(points) == 1:  # a line of no length is not drawn
            x, _, y = points[0].partition(",")
            points.append(f"{min(width, float(x) + 2):.1f},{y}")
        first, last = points[0].partition(",")[0], points[-1].partition(",")[0]
        lines.append(
            f'<polygon points="{first},{height} {" ".join(points)} {last},{height}" fill="currentColor" '
            f'opacity=".13"/><polyline points="{" ".join(points)}" fill="none" stroke="currentColor" '
            'stroke-width="1.5" stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" role="img" aria-label="{html.escape(span(values))}">'
        f"{''.join(lines)}</svg>"
    )


def span(values: Sequence[int | None]) -> str:
    """The range of the values in words: `0 to 12`, or `always 3`."""
    told = [value for value in values if value is not None] or [0]
    low, high = min(told), max(told)
    return f"{low} to {high}" if high > low else f"always {low}"


def health(health: Health, name: str, series: Series, note: str = "") -> Bundle:
    """An endpoint's counters with what they were while they were watched.

    Args:
        health: The counters as they were last.
        name: The endpoint's name.
        series: Each counter over the watched time.
        note: How it was watched, in words.
    """
    rows = [
        (group, key.replace("_", " "), str(count), bars(series.get((group, key), ())), span(seen))
        for group, counts in in_order(health).items()
        for key, count in counts.items()
        for seen in [series.get((group, key)) or (count,)]
    ]
    bundle = {"text/html": _table(name, rows), "text/plain": _plain(name, rows)}
    return noted(bundle, note) if note else bundle


def _table(name: str, rows: Sequence[tuple[str, ...]]) -> str:
    style = "border-collapse:collapse;color:var(--jp-ui-font-color1, inherit)"
    lines = []
    group = ""
    for row in rows:
        shown, group = (row[0] if row[0] != group else ""), row[0]
        cells = zip((shown, *row[1:]), (_LEFT, _LEFT, _RIGHT, _LEFT, f"{_LEFT};{_GREY}"), strict=True)
        lines.append(
            "<tr>" + "".join(f'<td style="{look}">{html.escape(text)}</td>' for text, look in cells) + "</tr>"
        )
    head = f'<tr><th style="{_LEFT}" colspan="5">{html.escape(name)}</th></tr>'
    return f'<table style="{style}"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'


def _plain(name: str, rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(5)]
    return "\n".join(
        [
            name,
            *(
                f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  "
                f"{row[3]:{widths[3]}}  {row[4]}"
                for row in rows
            ),
        ]
    )


def _highest(values: Sequence[int | None]) -> int:
    """The highest value, and 1 where all are 0: what they are divided by."""
    return max((value for value in values if value), default=1)


def _corners(run: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points of a line without those between two of the same height."""
    last = len(run) - 1

    def is_corner(at: int) -> bool:
        return at in (0, last) or not run[at - 1][1] == run[at][1] == run[at + 1][1]

    return [run[at] for at in range(len(run)) if is_corner(at)]


def _stretched(values: Sequence[int | None], most: int) -> list[int | None]:
    """At most so many values: of each stretch the highest, so that no peak is lost."""
    count = len(values)
    if count <= most:
        return list(values)
    cuts = [count * at // most for at in range(most + 1)]
    stretches = [values[cuts[at] : cuts[at + 1]] for at in range(most)]
    return [max((value for value in part if value is not None), default=None) for part in stretches]


def _runs(values: Sequence[int | None]) -> Iterator[list[tuple[int, int]]]:
    """The values between the gaps, with their places."""
    run: list[tuple[int, int]] = []
    for at, value in enumerate(values):
        if value is not None:
            run.append((at, value))
        elif run:
            yield run
            run = []
    if run:
        yield run
