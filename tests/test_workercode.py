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
