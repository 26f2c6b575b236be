"""The pictures of the README, and the quickstart as its reader sees it.

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
QUICKSTART = ROOT / "notebooks" / "01_quickstart.ipynb"


def picture_of(lab: Lab, name: str, cells: tuple[int, int]) -> Path:
    """A picture from the top of one cell to the bottom of another."""
    first, last = (lab.page.locator(".jp-Notebook .jp-Cell").nth(cell).bounding_box() for cell in cells)
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


def test_a_streaming_cell_in_both_themes(sharp, tmp_path, request):
    jobs = Jobs(sharp, tmp_path, SERVE, RUN, first=RECITE)
    sharp.page.add_style_tag(content=BARE_PAGE)
    sharp.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    sharp.run(1)
    sharp.start(2)
    sharp.wait_text(2, "Leave some")
    sharp.wait("i => lab.output(i).querySelectorAll('mjx-container').length === 2", 2)
    for theme in ("dark", "light"):
        sharp.set_theme(theme)
        picture = picture_of(sharp, f"streaming-{theme}", cells=(1, 2))
        with Image.open(picture) as image:
            image.load()
            colours = image.convert("RGB").getcolors(1 << 24)
        assert image.width > 1800
        assert len(colours) > 50  # text, code, a button: not a blank page
        assert picture.stat().st_size < 200_000
        assert jobs.prompt(2) == "[*]:"  # it is live
        if request.config.getoption("pictures"):
            IMAGES.mkdir(exist_ok=True)
            (IMAGES / picture.name).write_bytes(picture.read_bytes())
    jobs.let_go()
    sharp.wait_idle()


def test_the_quickstart_runs_from_its_first_cell_to_its_last(sharp):
    sharp.open(QUICKSTART)
    sharp.run_all()
    sharp.screenshot("quickstart")
    cells = sharp.save()["cells"]
    assert [cell["cell_type"] for cell in json.loads(QUICKSTART.read_text())["cells"]] == [
        cell["cell_type"] for cell in cells
    ]
    for number, cell in enumerate(cells):
        outputs = cell.get("outputs", [])
        assert not [output for output in outputs if output["output_type"] == "error"], sharp.text(number)
    assert sharp.evaluate(
        "() => lab.cells().every(cell => cell.model.type !== 'code' || cell.model.executionCount)"
    )
    assert sharp.errors == []
