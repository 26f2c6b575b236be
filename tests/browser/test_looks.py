"""The panels in narrow windows, in high contrast, and by keyboard."""

from __future__ import annotations

import pytest

from browser.jobs import Jobs

PANELS = ("%endpoint health held --watch --every 1s", "%endpoint panel jobs", "%endpoint panel prompt held")
SUBMIT = """
import notebook_ext
held = notebook_ext.connect('held')
for at in range(3): held.submit({'prompt': f'a prompt of several words, number {at}'})
"""
CUT_OFF = """i => [...lab.output(i).querySelectorAll('button, textarea, input, select, svg, .nbx-row > *')]
  .filter(node => node.checkVisibility())
  .filter(node => node.getBoundingClientRect().right > lab.output(i).getBoundingClientRect().right + 1)
  .map(node => node.outerHTML)"""
RINGED = """() => {
  const look = getComputedStyle(document.activeElement);
  return [look.outlineStyle, look.outlineColor !== look.backgroundColor, parseFloat(look.outlineWidth) >= 2];
}"""


@pytest.fixture
def panels(notebook7, tmp_path):
    """The three panels in cells 1 to 3, with jobs that run, in a page without a side bar."""
    lab = notebook7
    Jobs(lab, tmp_path, *PANELS, SUBMIT)
    for cell in (1, 2, 3, 4):
        lab.run(cell)
    lab.wait_text(2, "3 running")
    lab.wait_text(1, "in progress")
    size = lab.page.viewport_size
    yield lab
    lab.page.emulate_media(forced_colors="none")
    lab.page.set_viewport_size(size)


def test_a_narrow_window_cuts_nothing_off(panels):
    panels.page.set_viewport_size({"width": 420, "height": 1500})
    panels.wait("() => lab.output(2).getBoundingClientRect().width < 420")
    for cell in (1, 2, 3):
        assert panels.evaluate(CUT_OFF, cell) == [], cell
    prompt = panels.output(2).locator(".nbx-row span[title*='a prompt of']").first
    assert prompt.bounding_box()["width"] > 90  # room for some words


def test_in_high_contrast_buttons_have_edges_and_states_have_dots(panels):
    panels.page.emulate_media(forced_colors="active")
    for cell, label in ((1, "Purge queue"), (2, "Cancel"), (3, "Run")):
        button = panels.output(cell).locator("button:visible", has_text=label).first
        assert button.evaluate("node => getComputedStyle(node).borderTopWidth") == "1px", label
    dot = panels.output(2).locator(".nbx-dot").first
    background = "node => getComputedStyle(node.closest('.nbx-panel')).backgroundColor"
    assert dot.evaluate("node => getComputedStyle(node).borderTopColor") != dot.evaluate(background)
    assert dot.bounding_box()["width"] >= 8


def test_the_keyboard_shows_where_it_is(panels):
    for theme in ("dark", "light"):
        panels.set_theme(theme)
        for cell, label in ((1, "Stop watching"), (2, "Close"), (3, "Run"), (3, "Show cell")):
            panels.output(cell).locator("button:visible", has_text=label).focus()
            panels.page.keyboard.press("Shift+Tab")
            panels.page.keyboard.press("Tab")
            assert panels.evaluate("() => document.activeElement.innerText.trim()") == label
            assert panels.evaluate(RINGED) == ["solid", True, True], (theme, label)
