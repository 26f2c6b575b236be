"""A handler of a notebook as a program that needs no notebook."""

from __future__ import annotations

import ast
import linecache
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from notebook_ext.errors import InputError
from notebook_ext.workercode import worker

# The worker's SDK, as far as a program calls it: it runs the handler once, and prints what came.
SDK = """
import json, sys

class serverless:
    @staticmethod
    def start(config):
        output = config["handler"]({"id": "1", "input": json.load(sys.stdin)})
        print(json.dumps([output if isinstance(output, str) else list(output), config["return_aggregate_stream"]]))
"""
PROGRESS = """
import sys

def progress_update(job, progress):
    print(progress, file=sys.stderr)

def start(config):
    print(config["handler"]({"id": "1", "input": {}}))
"""


def cell(namespace: dict[str, Any], source: str) -> dict[str, Any]:
    """Run a cell as IPython does, its source to be found later."""
    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)
    return namespace


@pytest.fixture
def namespace() -> dict[str, Any]:
    return {"__name__": "__main__"}


@pytest.fixture
def run(tmp_path):
    """Run a program where there is nothing but the worker's SDK."""
    package = tmp_path / "runpod"
    package.mkdir()
    (package / "__init__.py").write_text(SDK)

    def run_(program: str, input: str = "{}", **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "handler.py").write_text(program)
        return subprocess.run(
            [sys.executable, "handler.py"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )

    return run_


def test_a_cell_becomes_a_program(namespace, run):
    source = "import time\n\ndef handler(job):\n    yield job['input']['prompt'].upper()\n"
    cell(namespace, source)
    program = worker("shout", namespace["handler"], namespace, cell=source, aggregates=False)
    assert run(program, '{"prompt": "hi"}').stdout == '[["HI"], false]\n'
    assert program.startswith('"""The handler of the endpoint shout')


def test_what_the_notebook_has_comes_along(namespace, run):
    cell(namespace, "import json as j\nfrom os.path import join\nSTYLE = {'end': '!'}\nimport textwrap")
    cell(namespace, "class Voice:\n    def say(self, text):\n        return loud(text) + STYLE['end']\n")
    cell(namespace, "def loud(text):\n    return textwrap.dedent(text).upper()\n")
    source = "def handler(job):\n    return j.dumps([Voice().say(job['input']), join('a', 'b')])\n"
    cell(namespace, source)
    program = worker("shout", namespace["handler"], namespace, cell=source)
    done = run(program, '"hi"')
    assert done.returncode == 0, done.stderr
    assert '[\\"HI!\\", \\"a/b\\"]' in done.stdout


def test_a_function_of_the_notebook_alone(namespace, run):
    cell(namespace, "unused = object()\n\ndef twice(text):\n    return text * 2\n\nrepeat = twice\n")
    cell(namespace, "def handler(job):\n    return repeat(job['input'])\n")
    program = worker("shout", namespace["handler"], namespace)
    assert run(program, '"ab"').stdout == '["abab", true]\n'
    assert "unused" not in program


def test_decorators_and_functions_that_call_each_other(namespace, run):
    cell(
        namespace,
        "def even(n):\n    return n == 0 or odd(n - 1)\n\ndef odd(n):\n    return n != 0 and even(n - 1)\n",
    )
    cell(
        namespace,
        "import functools\n\ndef shouting(f):\n    return functools.wraps(f)(lambda job: f(job).upper())\n",
    )
    cell(namespace, "@shouting\ndef answer(job):\n    return f'{even(job[\"input\"])}'\n")
    source = "def handler(job):\n    return answer(job)\n"
    cell(namespace, source)
    assert (
        run(worker("shout", namespace["handler"], namespace, cell=source), "3").stdout == '["FALSE", true]\n'
    )


def test_progress_is_the_workers_own(namespace, run, tmp_path):
    source = (
        "from __future__ import annotations\nfrom notebook_ext import progress_update\n\n"
        "def handler(job):\n    progress_update(job, 'half')\n    return 'done'\n"
    )
    cell(namespace, source)
    program = worker("shout", namespace["handler"], namespace, cell=source)
    assert "notebook_ext" not in program
    (tmp_path / "runpod" / "__init__.py").write_text("import runpod.serverless\n")
    (tmp_path / "runpod" / "serverless.py").write_text(PROGRESS)
    done = run(program)
    assert (done.stdout, done.stderr) == ("done\n", "half\n")


def test_a_secret_is_not_written(namespace, run):
    cell(namespace, "API_KEY = 'sk-very-secret-1234567890'")
    source = "def handler(job):\n    return API_KEY[::-1]\n"
    cell(namespace, source)
    program = worker("shout", namespace["handler"], namespace, cell=source)
    assert "very-secret" not in program
    assert run(program, API_KEY="abc").stdout == '["cba", true]\n'


@pytest.mark.parametrize(
    "code",
    [
        "value = {'headers': {'Authorization': 'very-secret-1234'}}",
        "value = [{'api_key': 'very-secret-1234'}]",
        "value = ['x', 'sk-very-secret-1234567890']",
        "value = b'sk-very-secret-1234567890'",
        "value = ('Bearer very-secret-1234',)",
        "value = {'at': 'https://me:very-secret@somewhere'}",
    ],
)
def test_a_value_that_holds_a_secret_is_refused(namespace, code):
    cell(namespace, code)
    source = "def handler(job):\n    return value\n"
    cell(namespace, source)
    with pytest.raises(
        InputError, match=r"`value`, which holds what looks like a key.* os\.environ"
    ) as refused:
        worker("shout", namespace["handler"], namespace, cell=source)
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "code",
    [
        "HF_TOKEN_2 = AWS_KEY_ID = 'very-secret'",
        "HF_TOKEN_2 = 'hf_very-secret-1234'; AWS_KEY_ID = 'postgres://me:very-secret@db/x'",
    ],
)
def test_a_secret_is_known_by_its_looks_and_by_longer_names(namespace, run, code):
    cell(namespace, code)
    source = "def handler(job):\n    return HF_TOKEN_2 + AWS_KEY_ID\n"
    cell(namespace, source)
    program = worker("shout", namespace["handler"], namespace, cell=source)
    assert "very-secret" not in program
    assert program.count("import os") == 1
    assert run(program, HF_TOKEN_2="a", AWS_KEY_ID="b").stdout == '["ab", true]\n'


def test_what_only_sounds_like_a_secret_is_written(namespace, run):
    cell(
        namespace,
        "tokens = ['a longer word', 'another']; scale = {'key': 'C major', 'max_tokens': 100_000_000}",
    )
    source = "def handler(job):\n    return tokens[1] + scale['key']\n"
    cell(namespace, source)
    assert (
        run(worker("shout", namespace["handler"], namespace, cell=source)).stdout
        == '["anotherC major", true]\n'
    )


def test_what_stands_beside_an_import_stays(namespace, tmp_path, run):
    source = (
        "from __future__ import annotations; start = 'ä'\n"
        "def handler(job): from notebook_ext import progress_update; progress_update(job, start); return 'done'\n"
    )
    cell(namespace, source)
    program = worker("shout", namespace.pop("handler"), {}, cell=source)
    (tmp_path / "runpod" / "serverless.py").write_text(PROGRESS)
    (tmp_path / "runpod" / "__init__.py").write_text("from runpod import serverless")
    done = run(program)
    assert (done.stdout, done.stderr) == ("done\n", "ä\n")


def test_what_is_installed_is_named(namespace):
    source = "import httpx\nimport my_module\n\ndef handler(job):\n    return httpx.__version__\n"
    namespace["handler"] = lambda job: None
    namespace["handler"].__name__ = "handler"
    program = worker("shout", namespace["handler"], namespace, cell=source)
    import httpx

    assert f"# requirements: httpx=={httpx.__version__}" in program
    assert "beside this file: my_module" in program
    ast.parse(program)


@pytest.mark.parametrize(
    ("before", "source", "said"),
    [
        ("", "!pip install x\ndef handler(job): pass\n", r"line 1 .*no magics and no shell commands"),
        (
            "model = object()",
            "def handler(job): return model\n",
            "`model`, an object that only this notebook",
        ),
        ("", "import notebook_ext\ndef handler(job): pass\n", "knows only `from notebook_ext import"),
        ("", "from notebook_ext import connect\ndef handler(job): pass\n", "knows only `from notebook_ext"),
        ("big = 'x' * 200_000", "def handler(job): return big\n", "`big`, a str that only this notebook"),
        ("items = [object()]", "def handler(job): return items\n", "`items`, a list"),
    ],
)
def test_what_no_worker_can_have(namespace, before, source, said):
    cell(namespace, before)
    namespace["handler"] = test_what_no_worker_can_have
    with pytest.raises(InputError, match=said):
        worker("shout", namespace["handler"], namespace, cell=source)


def test_a_module_of_ours_in_the_notebook(namespace):
    namespace["notebook_ext"] = ModuleType("notebook_ext")
    source = "def handler(job): notebook_ext.progress_update(job, 1)\n"
    cell(namespace, source)
    with pytest.raises(InputError, match="of which a worker knows only"):
        worker("shout", namespace["handler"], namespace, cell=source)


@pytest.mark.parametrize(
    ("defined", "used", "output"),
    [
        (
            "from dataclasses import dataclass, field\n\n@dataclass\nclass P:\n    x: int\n    y: int = 2\n"
            "    more: list = field(default_factory=list)",
            "str(P(1))",
            "P(x=1, y=2, more=[])",
        ),
        (
            "import dataclasses\n\n@dataclasses.dataclass(slots=True)\nclass P:\n    x: int = 1",
            "str(P())",
            "P(x=1)",
        ),
        ("class P(ValueError):\n    '''It is too long.'''", "str(P('long'))", "long"),
        ("class P(ValueError): pass", "str(P('long'))", "long"),
        (
            "from enum import Enum\n\nclass P(Enum):\n    _ignore_ = ['i']\n    A = 'a'\n    B = 'b'",
            "P.B.value",
            "b",
        ),
        ("from enum import IntEnum, auto\n\nclass P(IntEnum):\n    A = auto()", "str(P.A + 0)", "1"),
        ("import enum\n\nclass Flag(enum.Flag):\n    A = 1", "str(Flag.A.value)", "1"),
        ("class P:\n    a, b = '1', '2'\n    __c = 3\n    d: str = '4'", "P.a + P.b + P.d", "124"),
        ("from typing import NamedTuple\n\nclass P(NamedTuple):\n    x: str = 'a'", "P().x", "a"),
        (
            "from typing import TypedDict\n\nclass Q(TypedDict):\n    x: str\n\nclass P(Q):\n    y: str",
            "P(x='a', y='b')['y']",
            "b",
        ),
        ("class P:\n    text = property(lambda self: 'a')", "P().text", "a"),
        ("class P:\n    @staticmethod\n    def text(): return 'a'", "P.text()", "a"),
        ("class P:\n    f = str\nP.g = lambda self: 1", "P.f('a')", "a"),
    ],
)
def test_a_class_of_another_cell_comes_along(notebook, run, defined, used, output):
    notebook.run(defined)
    notebook.run(f"%%endpoint serve shout\ndef handler(job):\n    return {used}\n")
    done = run(notebook.run("%endpoint code shout --worker"))
    assert (done.stdout, done.stderr) == (f'["{output}", true]\n', "")


HANDLER = "%%endpoint serve shout\ndef handler(job):\n    return P.x\n"


def test_a_class_is_what_was_executed_last(notebook, run):
    def output() -> str:
        return run(notebook.run("%endpoint code shout --worker")).stdout

    first, second = "class P:\n    x = 'first'", "class P:\n    x = 'second'"
    notebook.run(first)
    notebook.run(HANDLER)
    assert output() == '["first", true]\n'
    notebook.run(second)
    assert output() == '["second", true]\n'
    notebook.run(first)
    assert output() == '["first", true]\n'
    notebook.run(f"{first}\n{second}")
    assert output() == '["second", true]\n'
    notebook.try_("class P:\n    x = 'broken'\n    x =")
    notebook.try_("class P:\n    x = 'other'\n    y = 1 / 0")
    assert output() == '["second", true]\n'


def test_a_cell_that_a_kernel_executes_again_is_the_newest(notebook, run, monkeypatch):
    """A kernel names a cell's code by its text alone."""
    monkeypatch.setattr(
        type(notebook.shell.compile), "get_code_name", lambda self, raw, code, number: f"<{hash(raw)}>"
    )
    cells = ["class P:\n    x = 'a'.lower()", "class P:\n    x = 'b'.lower()"]
    for cell in [*cells, cells[0], HANDLER]:
        notebook.run(cell)
    assert run(notebook.run("%endpoint code shout --worker")).stdout == '["a", true]\n'


def test_a_class_that_was_changed_since_is_written_as_it_was_defined(notebook, run):
    notebook.run("class P:\n    x = 'a'")
    notebook.run("P.x = 'b'; P.y = 1")
    notebook.run(HANDLER)
    assert run(notebook.run("%endpoint code shout --worker")).stdout == '["a", true]\n'


def test_an_earlier_class_under_another_name_is_the_earlier_one(notebook, run):
    notebook.run("class P:\n    x = 'a'")
    notebook.run("Earlier = P")
    notebook.run("class P:\n    x = 'b'")
    notebook.run(HANDLER.replace("P.x", "Earlier.x"))
    assert run(notebook.run("%endpoint code shout --worker")).stdout == '["a", true]\n'


@pytest.mark.parametrize(
    "cells",
    [
        ["class P(ValueError):\n    x = 'a'.lower()", "Q = P", "class P(ValueError):\n    x = 'b'.lower()"],
        ["class P:\n    x = 'a'", "Q = P", "1 / 0\nclass P:\n    x = 'b'"],
    ],
)
def test_a_class_that_may_be_one_of_two_is_refused(notebook, cells):
    for cell in cells:
        notebook.try_(cell)
    notebook.run(HANDLER.replace("P.x", "P.x" if "1 / 0" in cells[-1] else "Q.x"))
    said = notebook.error("%endpoint code shout --worker")
    assert "`P`, which cells define in more than one way; run the cell that is meant once more" in said
    notebook.run(cells[0].replace("P", "Q"))
    if "1 / 0" in cells[-1]:
        notebook.run(cells[0])
    assert "handler" in notebook.run("%endpoint code shout --worker")


@pytest.mark.parametrize(
    "code", ["P = type('P', (), {})", "def make():\n    class P: pass\n    return P\n\nP = make()"]
)
def test_a_class_that_no_cell_defines_is_refused(notebook, code):
    notebook.run(code)
    notebook.run(HANDLER.replace("P.x", "P.__name__"))
    assert "`P`, whose source is not to be found" in notebook.error("%endpoint code shout --worker")


@pytest.mark.parametrize(
    "code",
    [
        "class Model:\n    def __call__(self, job): return 1\n\nmodel = Model()",
        "import functools\n\nmodel = functools.partial(lambda job, x: x, x=1)",
    ],
)
def test_a_handler_that_is_no_function_is_refused(notebook, code):
    notebook.run(code)
    notebook.run("%endpoint serve shout --handler model")
    assert "serve a `def handler(job)` that calls it" in notebook.error("%endpoint code shout --worker")
