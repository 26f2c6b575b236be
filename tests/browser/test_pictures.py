"""The pictures of the README, and the notebooks as their readers see them.

`pytest --pictures` writes them to notebooks/images; without it they are only looked at for being pictures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from browser.environments import ROOT
from browser.jobs import Jobs
from browser.lab import SHOTS, Lab

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = ROOT / "notebooks" / "images"
ANSWER = r"""### Why a busy queue grows

With **utilisation** $\rho = \lambda / \mu$ (arrivals over the rate of service), the mean number of jobs in a simple
queue is

$$L = \frac{\rho}{1 - \rho}$$

| busy | jobs in the system |
|---|---|
| 50 % | 1 |
| 90 % | 9 |
| 99 % | 99 |

so the last few per cent cost the most:

```python
time_in_system = service_time / (1 - busy)
```

Leave some"""
RECITE = f"""
%load_ext notebook_ext
import asyncio, os, pathlib, re
ANSWER = {ANSWER!r}
async def recite():
    for word in re.findall(r"\\S+\\s*", ANSWER):
        yield word
        await asyncio.sleep(0.02)
    while not (pathlib.Path(os.environ["GATE"]) / "go").exists():
        await asyncio.sleep(0.01)
"""
SERVE = """%%endpoint serve teacher
# A function of this notebook stands in for a model: it recites a prepared answer.
async def handler(job):
    async for words in recite():
        yield words"""
RUN = """%%endpoint run teacher
Why does a queue grow so fast when its workers are nearly busy?"""
# What only says which cell was clicked last.
BARE_PAGE = """.jp-cell-toolbar, .jp-Collapser { display: none }
.jp-Cell { border-color: transparent !important; outline: none !important; box-shadow: none !important }"""
NOTEBOOKS = ROOT / "notebooks"
# A function stands in for a model here, too; its last five jobs go on for as long as they are looked at.
WRITER = """
%load_ext notebook_ext
import asyncio, os, pathlib
import notebook_ext
TEXT = "A **queue** is a promise: whoever came first is served first, *however long it takes*. "
async def write(job):
    prompt = job["input"]["prompt"]
    if "empty" in prompt:
        raise ValueError("there is nothing to translate")
    for word in TEXT.split(" "):
        yield word + " "
        await asyncio.sleep(0.03)
    while "report" in prompt and not (pathlib.Path(os.environ["GATE"]) / "go").exists():
        await asyncio.sleep(0.01)
def connected(session):
    served = session.serve("prose", write, workers=3)
    return session.connect("writer", "prose", provider=served.provider, profile="chat")
from notebook_ext.session import Session, default_session
yesterday = Session(journal=os.environ["NOTEBOOK_EXT_JOURNAL"])
for prompt in ("Name the four seasons", "Write a line for a colleague's birthday"):
    connected(yesterday).submit({"prompt": prompt}).wait(30)
yesterday.close()
writer = connected(default_session())
"""
SUBMIT = """
for prompt in ("Translate the menu into Danish", "Translate the empty page", "Name six words for rain",
               "Write a title for the talk", "Turn this list into a table", "Shorten the abstract to 50 words",
               *(f"Summarise the report of {month}" for month in ("March", "April", "May", "June", "July"))):
    writer.submit({"prompt": prompt})
"""
PANELS = {
    "health": "%endpoint health writer --watch --every 1s",
    "jobs": "%endpoint panel jobs",
    "prompt": "%endpoint panel prompt writer",
}


# How high the rows of the jobs panel stand: their texts and times, and their buttons.
TOPS = """() => ['.nbx-row:not(.nbx-names)', '.nbx-buttons > *'].map(rows =>
  [...lab.output(2).querySelectorAll('.nbx-table ' + rows)].map(row => row.getBoundingClientRect().top))"""


def picture_of(lab: Lab, name: str, cells: tuple[int, int]) -> Path:
    """A picture from the top of one cell to the bottom of another."""
    top, bottom = (lab.page.locator(".jp-Notebook .jp-Cell").nth(cell) for cell in cells)
    top.evaluate("cell => cell.scrollIntoView()")
    first, last = top.bounding_box(), bottom.bounding_box()
    file = SHOTS / f"{name}.png"
    height = last["y"] + last["height"] - first["y"]
    lab.page.screenshot(path=file, clip={**first, "height": height})
    return file


@pytest.fixture(scope="module")
def sharp(server, lab):
    """JupyterLab as wide as a page of text, with two pixels for one."""
    sharp = Lab(server, lab.page.context.browser, size=(1120, 1300), scale=2)
    yield sharp
    sharp.close()


@pytest.fixture
def keep(sharp, request):
    """Takes a picture of cells in each theme, and keeps it where pictures are made."""

    def keep(name: str, cells: tuple[int, int]) -> None:
        for theme in ("dark", "light"):
            sharp.set_theme(theme)
            picture = picture_of(sharp, f"{name}-{theme}", cells)
            with Image.open(picture) as shot:
                image = shot.convert("RGB")
            image.quantize(dither=Image.Dither.NONE).save(picture, optimize=True)  # a third of its size
            assert image.width > 1800
            assert len(image.getcolors(1 << 24)) > 50  # text, code, a button: not a blank page
            assert picture.stat().st_size < 150_000
            if request.config.getoption("pictures"):
                IMAGES.mkdir(exist_ok=True)
                (IMAGES / picture.name).write_bytes(picture.read_bytes())

    return keep


def opened(lab: Lab, gate: Path, *cells: str, first: str) -> Jobs:
    jobs = Jobs(lab, gate, *cells, first=first)
    lab.page.add_style_tag(content=BARE_PAGE)
    left = "application:toggle-left-area"
    if lab.evaluate("left => window.jupyterapp.commands.isToggled(left)", left):
        lab.evaluate("left => window.jupyterapp.commands.execute(left)", left)
    return jobs


def test_a_streaming_cell_in_both_themes(sharp, tmp_path, keep):
    jobs = opened(sharp, tmp_path, SERVE, RUN, first=RECITE)
    sharp.run(1)
    sharp.start(2)
    sharp.wait_text(2, "Leave some")
    sharp.wait("i => lab.output(i).querySelectorAll('mjx-container').length === 2", 2)
    keep("streaming", (1, 2))
    assert jobs.prompt(2) == "[*]:"  # it was live
    jobs.let_go()
    sharp.wait_idle()


def test_the_panels_in_both_themes(sharp, tmp_path, keep):
    jobs = opened(sharp, tmp_path, *PANELS.values(), SUBMIT, first=WRITER)
    for cell in (1, 2, 3, 4):
        sharp.run(cell)
    prompt = sharp.output(3)
    prompt.get_by_label("System").fill("You are terse.")
    prompt.get_by_label("Max tokens").fill("60")
    prompt.get_by_label("Prompt", exact=True).fill("What is a queue?")
    sharp.wait("() => /in queue\\s+2\\s+in progress\\s+3/.test(lab.text(1))")
    sharp.wait_text(2, "5 completed")
    sharp.output(2).locator('button[title="Show @3"]').click()
    sharp.wait_text(2, "The result of @3")
    texts, buttons = sharp.evaluate(TOPS)
    assert texts == [*buttons, *buttons]  # of the times, too
    assert len(buttons) == 13
    sharp.page.mouse.click(0, 0)  # away from the button, which would be ringed
    keep("health", (1, 1))
    keep("jobs", (2, 2))
    jobs.let_go()
    sharp.click(3, "Run")
    sharp.wait_text(3, "completed")
    sharp.click(3, "Show cell")
    sharp.wait_text(3, "%%endpoint run writer")
    keep("prompt", (3, 3))


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_from_its_first_cell_to_its_last(sharp, name):
    sharp.open(NOTEBOOKS / name)
    sharp.run_all()
    sharp.screenshot(name.removesuffix(".ipynb"))
    cells = sharp.save()["cells"]
    assert [cell["cell_type"] for cell in json.loads((NOTEBOOKS / name).read_text())["cells"]] == [
        cell["cell_type"] for cell in cells
    ]
    for number, cell in enumerate(cells):
        outputs = cell.get("outputs", [])
        assert not [output for output in outputs if output["output_type"] == "error"], sharp.text(number)
    assert sharp.evaluate(
        "() => lab.cells().every(cell => cell.model.type !== 'code' || cell.model.executionCount)"
    )
    assert sharp.errors == []
