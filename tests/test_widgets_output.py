"""A cell's output inside widgets: the same calls as to a real cell, and nothing left of it."""

from __future__ import annotations

import pytest
from ipywidgets.widgets import widget as registry

from notebook_ext.widgets.output import WidgetCell


class RealCell:
    def __init__(self):
        self.shown = []

    def show(self, bundle):
        self.shown.append(bundle)


@pytest.fixture
def cell():
    cell = WidgetCell(RealCell())
    yield cell
    cell.close()


def texts(cell) -> list[str]:
    return [output["data"].get("text/plain") for widget in cell.box.children for output in widget.outputs]


def test_its_box_is_shown_in_the_real_cell_once():
    real = RealCell()
    cell = WidgetCell(real)
    cell.show({"text/plain": "one"})
    (bundle,) = real.shown
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == cell.box.model_id
    cell.close()


def test_what_is_shown_can_be_updated_where_it_stands(cell):
    cell.show({"text/plain": "one"}, display_id="a")
    cell.show({"text/plain": "two"})
    cell.show({"text/plain": "ONE"}, display_id="a", update=True)
    cell.show({"text/plain": "unknown"}, display_id="b", update=True)
    assert texts(cell) == ["ONE", "two"]


def test_clearing_waits_for_the_next_output_and_closes_what_was_there(cell):
    cell.show({"text/plain": "one"})
    models = len(registry._instances)
    cell.clear()
    assert texts(cell) == ["one"]
    cell.show({"text/plain": "two"})
    cell.show({"text/plain": "three"})
    assert texts(cell) == ["two", "three"]
    assert len(registry._instances) == models + 2  # an Output and its layout


def test_a_job_can_be_drawn_in_it(cell):
    from test_display import FOOTER, Strip, VirtualLoop, hard_text

    from notebook_ext.display import job_display

    display = job_display(cell, VirtualLoop(), strip=Strip(), owns_cell=True)
    display.add(hard_text(3_000))
    assert texts(cell)[0] == "demo: running"
    display.finish([], FOOTER)
    assert texts(cell) == [hard_text(3_000), "done"]


def test_closing_removes_every_model():
    before = set(registry._instances)
    cell = WidgetCell(RealCell())
    cell.show({"text/plain": "one"})
    cell.close()
    assert set(registry._instances) == before
