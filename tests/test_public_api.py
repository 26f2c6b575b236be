"""What users may rely on: the names, their documentation, and that importing them costs and changes nothing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import notebook_ext
from notebook_ext import errors

README = Path(__file__).parents[1] / "README.md"
HEAVY = (
    "httpx",
    "jinja2",
    "yaml",
    "markdown_it",
    "ipywidgets",
    "starlette",
    "uvicorn",
    "nest_asyncio2",
    "keyring",
)


def test_the_public_names_are_sorted_and_listed():
    assert notebook_ext.__all__ == sorted(set(notebook_ext.__all__))
    assert set(notebook_ext.__all__) <= set(dir(notebook_ext))


@pytest.mark.parametrize("name", notebook_ext.__all__)
def test_a_public_name_exists_and_is_documented(name):
    thing = getattr(notebook_ext, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = notebook_ext.no_such_name


def test_every_error_is_drawn_public_and_explained_in_the_readme():
    names = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}
    drawn = set(re.findall(r"^[│├└─ ]*([A-Z]\w+)", errors.__doc__, re.MULTILINE)) - {"What"}
    assert drawn == names
    assert names <= set(notebook_ext.__all__)
    table = README.read_text().partition("## When it fails")[2].partition("\n## ")[0]
    explained = {
        name for row in re.findall(r"^\|([^|]*)", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert names <= explained, sorted(names - explained)


@pytest.mark.parametrize(
    "statement", ["import notebook_ext", "shell.run_line_magic('load_ext', 'notebook_ext')"]
)
def test_importing_and_loading_bring_no_heavy_library_and_patch_nothing(statement):
    script = f"""
import asyncio, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before, run = set(sys.modules), asyncio.run
{statement}
print(*sorted({set(HEAVY)} & (set(sys.modules) - before)))
print(asyncio.run is run and not hasattr(asyncio, "_nest_patched"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["", "True"], "")
