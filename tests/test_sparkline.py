"""Small pictures of counters: what they say of a row of numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext import sparkline
from notebook_ext.types import Counts, Health

VALUES = st.lists(st.none() | st.integers(0, 10**9))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0], "▁"),
        ([0, 0], "▁▁"),
        ([3, 3, 3], "███"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([500, 1000], "▅█"),
        ([7, None, 0], "█ ▁"),
        ([None, None], "  "),
    ],
)
def test_bars_go_from_zero_to_the_highest(values, line):
    assert sparkline.bars(values) == line


def test_a_peak_is_seen_however_long_the_line_is():
    values = [0] * 1000
    values[777] = 5
    line = sparkline.bars(values, width=20)
    assert len(line) == 20
    assert line.count("█") == 1


@given(VALUES, st.integers(1, 50))
def test_bars_are_never_too_long_and_have_a_bar_for_each_value(values, width):
    line = sparkline.bars(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set("▁▂▃▄▅▆▇█ ")


@given(VALUES)
def test_a_curve_is_a_picture_that_stays_inside_its_frame(values):
    picture = ET.fromstring(sparkline.curve(values, width=100, height=20))
    for line in picture:
        for x, y in (point.split(",") for point in line.attrib["points"].split()):
            assert 0 <= float(x) <= 100
            assert 0 <= float(y) <= 20
    assert picture.attrib["aria-label"] == sparkline.span(values)


def heights(values) -> set[float]:
    (line,) = ET.fromstring(sparkline.curve(values, height=22)).findall("polyline")
    return {float(point.split(",")[1]) for point in line.attrib["points"].split()}


def test_what_is_always_three_does_not_look_like_what_is_always_zero():
    assert heights([3, 3, 3]) == {2.0}
    assert heights([0, 0, 0]) == {20.0}


def test_what_stays_as_it_is_has_the_same_curve_however_long_it_is():
    assert sparkline.curve([3] * 200) == sparkline.curve([3, 3])


def test_a_curve_has_its_corners_and_no_more():
    (line,) = ET.fromstring(sparkline.curve([0, 0, 0, 4, 4, 4], width=100, height=20)).findall("polyline")
    assert line.attrib["points"] == "0.0,18.0 40.0,18.0 60.0,2.0 100.0,2.0"


def test_a_curve_is_broken_where_nothing_was_told():
    assert sparkline.curve([1, 2, 3]).count("<polyline") == 1
    assert sparkline.curve([1, None, 3, 4]).count("<polyline") == 2
    assert "<polyline" not in sparkline.curve([None])


@pytest.mark.parametrize(
    ("values", "words"), [([3], "always 3"), ([0, 12, None], "0 to 12"), ([], "always 0")]
)
def test_the_range_in_words(values, words):
    assert sparkline.span(values) == words


HEALTH = Health(jobs=Counts(in_queue=4, odd_one=1), workers=Counts(idle=0))
SERIES = {("jobs", "in_queue"): [0, 4], ("jobs", "odd_one"): [None, 1], ("workers", "idle"): [0, 0]}


def test_what_is_saved_has_every_counter_with_its_line():
    bundle = sparkline.health(HEALTH, "demo", SERIES, "watched for a while")
    assert bundle["text/plain"].splitlines() == [
        "demo",
        "jobs     in queue  4  ▁█  0 to 4",
        "jobs     odd one   1   █  always 1",
        "workers  idle      0  ▁▁  always 0",
        "watched for a while",
    ]
    words = re.sub(r"<[^>]+>", "|", bundle["text/html"])
    assert "▁█" in words
    assert "odd one" in words
    assert "watched for a while" in words
    assert not re.search(r"<(svg|img|script|style)", bundle["text/html"])


def test_names_from_elsewhere_are_escaped():
    health = Health(jobs=Counts({"<script>": 1}))
    bundle = sparkline.health(health, "<b>", {}, "<i>")
    assert not re.search(r"<(script|b|i)>", bundle["text/html"])
