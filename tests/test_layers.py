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
    "visible": "",
    "errors": "visible types@typing",
    # The wire
    "dialects": "",
    "protocol": "dialects types errors",
    "providers": "dialects errors",
    "keys": "providers errors",
    "config": "keys providers errors",
    "clocks": "",
    "pacing": "",
    "mending": "",
    "limits": "pacing protocol providers",
    "wire": "",
    "tls": "",
    "transport": "tls wire",
    "answers": "types",
    "sse": "",
    "completions": "errors",
    "asking": "clocks protocol",
    "failures": "answers protocol errors asking@typing providers@typing",
    "exchange": "answers asking clocks failures keys pacing transport protocol errors limits@typing "
    "providers@typing",
    "openai_route": "answers clocks completions exchange failures pacing protocol sse transport types "
    "errors asking@typing limits@typing providers@typing",
    "patience": "pacing errors",
    "following": "mending pacing patience types errors",
    "client": "clocks pacing exchange openai_route following limits protocol providers types errors",
    "server": "protocol types errors visible",
    # Jobs that outlive a call
    "leases": "",
    "values": "errors",
    "schema": "errors",
    "journal_path": "leases errors",
    "entry": "journal_path types values@typing",
    "streams": "types values@typing",
    "database": "schema errors",
    "search": "completions database@typing entry@typing types@typing",
    "pruning": "journal_path database@typing values@typing",
    "journal": "database journal_path entry leases pruning search streams values errors types@typing",
    "journal_file": "journal_path journal leases errors",
    "loop": "",
    "streamed": "errors types@typing",
    "events": "types errors@typing handle@typing",
    "run": "streamed types events@typing",
    "handle": "events protocol run streamed types errors entry@typing journal@typing patience@typing",
    "connection": "entry protocol types keys errors client@typing handle@typing providers@typing session@typing",
    "recovery": "calls events following protocol types errors handle@typing client@typing entry@typing "
    "journal@typing watcher@typing",
    "keeping": "streamed types errors handle@typing journal@typing",
    "stopping": "events errors types client@typing handle@typing keeping@typing",
    "queueing": "events types errors client@typing handle@typing journal@typing keeping@typing",
    "calls": "events types errors client@typing handle@typing journal@typing keeping@typing queueing@typing",
    "seeking": "errors types@typing client@typing handle@typing journal@typing",
    "watcher": "calls clocks events mending pacing patience following keeping seeking stopping queueing "
    "protocol types errors handle@typing client@typing connection@typing entry@typing journal@typing",
    "directory": "connection config providers errors client@late limits@late server@late entry@typing "
    "session@typing",
    "references": "errors handle@typing session@typing",
    "session": "directory references journal_path protocol recovery stopping watcher loop connection events handle "
    "journal journal_file providers errors pacing@late pruning@typing entry@typing config@typing "
    "types@typing client@typing",
    "provenance": "keys handle@typing",
    # What a person types
    "templates": "errors",
    "prompts": "templates errors",
    "decoders": "completions sse types",
    "profiles": "completions decoders errors",
    "parser": "errors",
    "options": "prompts render",
    "vocabulary": "options parser",
    "grammar": "vocabulary prompts errors",
    "cellcode": "grammar vocabulary prompts errors",
    "requestcode": "completions connection@typing protocol providers types errors entry@typing",
    "arguments": "grammar@typing connection prompts profiles protocol types errors",
    # What a person sees
    "inert": "",
    "waiting": "types@typing",
    "excerpts": "",
    "render": "excerpts inert@late",
    "footer": "render types",
    "tables": "render waiting types@typing",
    "sparkline": "tables render@typing types@typing",
    "watching": "types errors",
    "widgets": "render sparkline tables types",
    "cell": "visible",
    "blocks": "",
    "display": "blocks render",
    "kernel": "cell errors",
    "view": "events excerpts streamed footer render waiting errors types widgets@late profiles@typing "
    "handle@typing",
    "desk": "arguments cellcode keys display grammar profiles render view errors widgets@late events@typing "
    "handle@typing kernel@typing session@typing",
    "cells": "provenance display footer profiles render view errors widgets@late handle@typing "
    "events@typing kernel@typing session@typing",
    "pane": "errors kernel@typing render@typing session@typing widgets@late",
    "health_pane": "pane waiting watching render sparkline types widgets@late connection@typing "
    "errors@typing kernel@typing session@typing",
    "jobs_pane": "pane tables watching events prompts protocol providers render errors types widgets@late "
    "handle@typing kernel@typing session@typing",
    "panels": "desk pane health_pane jobs_pane watching client@typing connection@typing grammar@typing "
    "kernel@typing session@typing",
    # What is taken out of the journal
    "records": "profiles prompts render types entry@typing",
    "reports": "footer records render",
    "exports": "records reports errors",
    "memory": "exports records requestcode cellcode profiles prompts tables errors render@typing "
    "arguments@typing entry@typing grammar@typing handle@typing session@typing",
    # The ones that know everyone
    "definitions": "errors",
    "workercode": "definitions errors",
    "repeats": "visible options render errors entry@typing handle@typing session@typing",
    "endpoint_verbs": "config keys dialects errors profiles providers types options vocabulary workercode "
    "server@late arguments@typing grammar@typing kernel@typing session@typing",
    "results": "footer handle jobs_pane tables types cells@typing grammar@typing kernel@typing memory@typing",
    "doctor": "keys dialects kernel waiting errors connection@typing journal@typing session@typing",
    "verbs": "doctor results endpoint_verbs exports keys memory repeats requestcode panels jobs_pane "
    "arguments cells grammar footer handle prompts tables types errors view visible entry@typing "
    "connection@typing kernel@typing session@typing",
    "suggestions": "completion grammar options vocabulary profiles prompts providers errors entry@typing "
    "session@typing",
    # What %load_ext imports at once; the rest comes with the first use
    "completion": "grammar@late suggestions@late vocabulary@late",
    "magics": "errors journal_path@late config@late grammar@late kernel@late session@late verbs@late "
    "vocabulary@late",
    "extension": "completion kernel magics tls client@late verbs@late widgets@late",
    "__init__": "session@late extension@late types@typing errors@typing client@typing connection@typing "
    "handle@typing kernel@typing providers@typing server@typing",
}
# The libraries beside Python's own, where they are used; each has its reason in pyproject.toml.
LIBRARIES = {
    "wire": "httpx httptools",  # the connections under httpx's client, with its exceptions
    "tls": "certifi",  # whom httpx trusts; httpx brings it
    "transport": "httpx",
    "answers": "httpx@typing",
    "openai_route": "httpx",  # answers that are read while they come
    "failures": "httpx",  # its exceptions
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


def imports_of(module: str) -> Iterator[tuple[str, str]]:
    file = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return imports(ast.parse(file.read_text()))


def allowed(table: dict[str, str], module: str, name: str, kind: str) -> bool:
    kinds = {"": {""}, "@late": {"", "@late"}, "@typing": {"", "@late", "@typing"}}[kind]
    entries = f"{table.get(module.partition('.')[0], '')} {table.get(module, '')}".split()
    return any(name + kind in entries for kind in kinds)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_below_it(module):
    room = module.partition(".")[0]
    assert room in OURS, f"{module} has no place in the table: give it one"
    for name, kind in imports_of(module):
        top, _, inside = name.partition(".")
        if top == "notebook_ext":
            target = inside.partition(".")[0] or "__init__"
            assert target == room or allowed(OURS, module, target, kind), f"{module} imports {name} {kind}"
        elif top not in sys.stdlib_module_names:
            assert allowed(LIBRARIES, module, top, kind), f"{module} imports {name} {kind}"


def test_the_table_says_no_more_than_what_is_so():
    found = {room: set() for room in OURS}
    for module in MODULES:
        for name, kind in imports_of(module):
            top, _, inside = name.partition(".")
            if top == "notebook_ext":
                found[module.partition(".")[0]].add((inside.partition(".")[0] or "__init__") + kind)
    assert {room: set(said.split()) - found[room] for room, said in OURS.items()} == {
        room: set() for room in OURS
    }


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
