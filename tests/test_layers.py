"""Who may import whom: the architecture as data."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import notebook_ext

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(notebook_ext.__file__).parent
# What each room may import of the others, from the bottom up. `@late`: inside functions only, where it is heavy
# or comes from above; `@typing`: for annotations only.
OURS = {
    "types": "",
    "errors": "types@typing",
    # The wire
    "dialects": "",
    "protocol": "dialects types errors",
    "providers": "dialects types errors",
    "keys": "providers types errors",
    "config": "keys providers types errors",
    "clocks": "",
    "pacing": "",
    "mending": "",
    "limits": "pacing protocol providers types errors",
    "wire": "",
    "tls": "",
    "transport": "tls wire",
    "answers": "types",
    "sse": "",
    "completions": "errors",
    "exchange": "answers clocks pacing transport config limits protocol providers types errors",
    "openai_route": "answers clocks completions exchange pacing protocol sse transport types errors limits@typing providers@typing",
    "following": "mending pacing types errors",
    "client": "clocks pacing exchange openai_route following limits protocol providers types errors",
    "server": "protocol types errors",
    # Jobs that outlive a call
    "leases": "",
    "values": "errors",
    "schema": "errors",
    "journal_path": "leases errors",
    "entry": "journal_path types values@typing",
    "streams": "types values@typing",
    "journal": "completions journal_path entry leases schema streams values errors types@typing",
    "journal_file": "journal_path journal leases errors",
    "loop": "",
    "streamed": "errors types@typing",
    "run": "streamed types handle@typing",
    "handle": "protocol run streamed types errors journal@typing",
    "connection": "protocol types errors client@typing handle@typing providers@typing session@typing",
    "recovery": "calls following protocol handle types errors client@typing entry@typing journal@typing watcher@typing",
    "keeping": "streamed types errors handle@typing journal@typing",
    "stopping": "handle errors types@typing client@typing keeping@typing",
    "queueing": "handle types errors client@typing journal@typing keeping@typing",
    "calls": "handle types errors client@typing journal@typing keeping@typing queueing@typing",
    "watcher": "calls clocks mending pacing following keeping stopping queueing handle protocol types errors client@typing connection@typing "
    "entry@typing journal@typing",
    "directory": "connection config providers errors entry@typing session@typing client@late limits@late server@late",
    "session": "directory journal_path protocol recovery watcher loop connection handle journal journal_file entry config providers types errors "
    "client@late pacing@late transport@late server@late",
    "provenance": "keys handle@typing",
    "repeats": "vocabulary errors entry@typing handle@typing session@typing",
    # What a person types
    "templates": "errors",
    "prompts": "templates types errors",
    "decoders": "completions sse types",
    "profiles": "completions decoders types errors",
    "vocabulary": "prompts render errors",
    "grammar": "vocabulary prompts errors",
    "cellcode": "grammar vocabulary prompts errors",
    "requestcode": "completions connection@typing protocol providers types errors entry@typing",
    "arguments": "grammar@typing connection prompts profiles protocol types errors",
    # What a person sees
    "inert": "",
    "waiting": "types@typing",
    "excerpts": "",
    "render": "excerpts inert",
    "footer": "render types",
    "tables": "render waiting types@typing",
    "sparkline": "tables render@typing types@typing",
    "watching": "types errors",
    "widgets": "render sparkline tables types",
    "cell": "",
    "display": "render cell types",
    "kernel": "cell types errors",
    "view": "display excerpts streamed footer handle profiles render waiting errors types widgets@late",
    "desk": "arguments cellcode config display grammar profiles render view errors handle@typing kernel@typing "
    "session@typing widgets@late",
    "cells": "provenance display footer handle kernel profiles render session view types errors widgets@late",
    "pane": "errors kernel@typing render@typing session@typing widgets@late",
    "health_pane": "pane waiting watching render sparkline types connection@typing errors@typing kernel@typing session@typing "
    "widgets@late",
    "jobs_pane": "pane tables watching handle prompts protocol providers render errors types kernel@typing "
    "session@typing widgets@late",
    "panels": "desk pane health_pane jobs_pane watching client@typing connection@typing grammar@typing kernel@typing "
    "session@typing",
    # What is taken out of the journal
    "records": "profiles prompts render types entry@typing",
    "reports": "footer records render",
    "exports": "records reports errors",
    "memory": "exports records requestcode cellcode profiles prompts tables errors render@typing arguments@typing entry@typing "
    "grammar@typing handle@typing session@typing",
    # The ones that know everyone
    "workercode": "errors",
    "endpoint_verbs": "arguments@typing config dialects errors grammar@typing kernel@typing profiles providers session@typing types "
    "vocabulary workercode server@late",
    "doctor": "config dialects kernel waiting errors connection@typing journal@typing session@typing",
    "verbs": "doctor endpoint_verbs exports memory repeats requestcode entry panels jobs_pane arguments cell cells config connection grammar "
    "footer handle kernel profiles prompts render session tables types errors view",
    "suggestions": "completion grammar vocabulary profiles prompts providers errors entry@typing session@typing",
    # What %load_ext imports at once; the rest comes with the first use
    "completion": "grammar@late suggestions@late vocabulary@late",
    "magics": "errors journal_path@late config@late grammar@late kernel@late session@late verbs@late vocabulary@late",
    "extension": "completion kernel magics tls client@late verbs@late widgets@late",
    "__init__": "types@typing errors@typing client@typing connection@typing handle@typing kernel@typing "
    "providers@typing server@typing session@late extension@late",
}
# The libraries beside Python's own, where they are used; each has its reason in pyproject.toml.
LIBRARIES = {
    "wire": "httpx httptools",  # the connections under httpx's client, with its exceptions
    "tls": "certifi",  # whom httpx trusts; httpx brings it
    "transport": "httpx",
    "answers": "httpx@typing",
    "openai_route": "httpx",  # answers that are read while they come
    "exchange": "httpx tenacity",  # the client's interface; the pauses between attempts
    "server": "starlette uvicorn",
    "server.outbound": "httpx",  # webhooks and upstreams
    "server.attachment": "platformdirs@late",  # where the environment of worker processes lies
    "config": "platformdirs@late",
    "journal_path": "platformdirs@late",
    "keys": "keyring@late",
    "templates": "jinja2@late",
    "prompts": "yaml@late",
    "widgets": "ipywidgets",
    "kernel": "IPython@late ipykernel@late zmq@late nest_asyncio2@late",
    "magics": "IPython traitlets",  # traitlets: what %config sets
    "completion": "IPython",
    "extension": "IPython@late",
}
MODULES = sorted(".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, kind: str = "") -> Iterator[tuple[str, str]]:
    """Each imported module, and how: "" on import, "@late" in a function, "@typing" for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, kind) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            whole = node.module == "notebook_ext"
            yield from (
                (f"notebook_ext.{alias.name}" if whole else node.module, kind) for alias in node.names
            )
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.body, []), "@typing")
            yield from imports(ast.Module(node.orelse, []), kind)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, kind or "@late")
        else:
            yield from imports(node, kind)


def allowed(table: dict[str, str], module: str, name: str, kind: str) -> bool:
    kinds = {"": {""}, "@late": {"", "@late"}, "@typing": {"", "@late", "@typing"}}[kind]
    entries = f"{table.get(module.partition('.')[0], '')} {table.get(module, '')}".split()
    return any(name + kind in entries for kind in kinds)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_below_it(module):
    room = module.partition(".")[0]
    assert room in OURS, f"{module} has no place in the table: give it one"
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    for name, kind in imports(tree):
        top, _, inside = name.partition(".")
        if top == "notebook_ext":
            target = inside.partition(".")[0] or "__init__"
            assert target == room or allowed(OURS, module, target, kind), f"{module} imports {name} {kind}"
        elif top not in sys.stdlib_module_names:
            assert allowed(LIBRARIES, module, top, kind), f"{module} imports {name} {kind}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import httpx", [("httpx", "")]),
        (
            "class A:\n    def f(self):\n        from notebook_ext import server",
            [("notebook_ext.server", "@late")],
        ),
        ("if TYPE_CHECKING:\n    from notebook_ext.types import Job", [("notebook_ext.types", "@typing")]),
        ("try:\n    import yaml\nexcept ImportError:\n    yaml = None", [("yaml", "")]),
    ],
)
def test_every_import_is_found_wherever_it_stands(source, found):
    assert list(imports(ast.parse(source))) == found
