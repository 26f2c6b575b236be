"""A handler as a program: what a cell serves, or a function of the notebook, written as a Runpod worker.

A worker starts with nothing, so what the handler uses of the notebook is written before it: imports,
functions and classes with all that they use, and plain values. What cannot be written is an error.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import symtable
import sys
from importlib import metadata
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from notebook_ext.definitions import MAIN, source
from notebook_ext.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["worker"]

_LONGEST_VALUE = 100_000
"""Characters of a value that is written into the program."""
_SECRET = re.compile(
    r"(?:key|token|secret|password|passwd|credential|authorization)s?(?:_?(?:id|[0-9]+))?$", re.IGNORECASE
)
"""How names end under which secrets lie."""
_LOOKS_SECRET = re.compile(
    r"\b(?:sk-|rpa_|tpo_|hf_|gh[opsu]_|AKIA)[A-Za-z0-9_-]{12,}|\b(?:Bearer|Basic) \S{8,}|://[^/\s:@]+:[^/\s@]+@"
)
_SHORTEST_SECRET = 8
"""Characters; a shorter text is more likely some other kind of key or token."""
_OURS = "notebook_ext"


def worker(
    endpoint: str,
    handler: Callable[..., Any],
    namespace: Mapping[str, Any],
    *,
    cell: str | None = None,
    aggregates: bool = True,
) -> str:
    """The program that serves a handler as a Runpod worker does, to be saved as `handler.py`.

    Args:
        endpoint: The endpoint's name, for the first line.
        handler: What is served.
        namespace: The notebook's variables.
        cell: The code that defined the handler; None takes the function's own source.
        aggregates: Whether the output of a generator is the list of its chunks.

    Raises:
        InputError: It uses something that no other process has; the sentence names it.
    """
    if getattr(handler, "__module__", "").partition(".")[0] == _OURS:
        raise InputError(f"{endpoint} serves a built-in handler; write one of your own for a worker")
    name = getattr(handler, "__name__", None)
    if name is None:
        raise InputError(
            f"{endpoint} serves {_kind(handler)}; a worker takes a function: serve a `def handler(job)` that "
            "calls it"
        )
    program = _Program(namespace)
    if cell is None:
        program.need(name, handler)
    else:
        program.add(cell, f"the cell that serves {endpoint}")
    blocks = [
        f'"""The handler of the endpoint {endpoint}, as a worker: `python handler.py` takes its jobs."""',
        *program.future,
        "\n".join(_requirements(program.modules)),
        "\n".join(["import runpod", *dict.fromkeys(program.imports)]),
        *program.definitions,
        'if __name__ == "__main__":\n'
        f'    runpod.serverless.start({{"handler": {name}, "return_aggregate_stream": {aggregates}}})',
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


class _Program:
    """What the program needs, in the order in which it is needed."""

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self._namespace = namespace
        self._known: set[str] = set()
        self.future: list[str] = []
        self.imports: list[str] = []
        self.definitions: list[str] = []
        self.modules: set[str] = set()

    def add(self, source: str, where: str) -> None:
        """Take in code, after all that it uses."""
        tree = _parsed(source, where)
        source = self._with_imports_of_workers(source, tree, where)
        for name in sorted(_used(source)):
            if name in self._namespace:
                self.need(name, self._namespace[name])
        self.definitions.append(source.strip("\n"))

    def need(self, name: str, value: Any) -> None:
        """Take in a variable of the notebook."""
        if name in self._known or getattr(builtins, name, None) is value:
            return
        self._known.add(name)
        if isinstance(value, ModuleType):
            self._import_module(name, value)
        elif getattr(value, "__module__", None) == MAIN and isinstance(value, FunctionType | type):
            self._define(name, value)
        elif _is_importable(value):
            self._import_name(name, value)
        else:
            self._assign(name, value)

    def _import_module(self, name: str, module: ModuleType) -> None:
        if module.__name__.partition(".")[0] == _OURS:
            raise _foreign_import(f"`{name}`")
        self.modules.add(module.__name__.partition(".")[0])
        self.imports.append(f"import {module.__name__}{_alias(module.__name__, name)}")

    def _import_name(self, name: str, value: Any) -> None:
        if value.__module__.partition(".")[0] == _OURS:
            if value.__name__ != "progress_update":
                raise _foreign_import(f"`{name}`")
            module = "runpod.serverless"
        else:
            module = value.__module__
            self.modules.add(module.partition(".")[0])
        self.imports.append(f"from {module} import {value.__name__}{_alias(value.__name__, name)}")

    def _define(self, name: str, value: Any) -> None:
        self.add(source(inspect.unwrap(value), self._namespace), f"`{value.__name__}`")
        if name != value.__name__:
            self.definitions.append(f"{name} = {value.__name__}")

    def _assign(self, name: str, value: Any) -> None:
        if isinstance(value, str) and (_SECRET.search(name) or _LOOKS_SECRET.search(value)):
            self.imports.append("import os")
            self.definitions.append(f"{name} = os.environ[{name!r}]  # a secret: set it for the worker")
            return
        text = repr(value)
        if len(text) > _LONGEST_VALUE or not _is_literal(text, value):
            raise InputError(
                f"the handler uses `{name}`, {_kind(value)} that only this notebook has; make or load it "
                "in the cell that defines the handler, where a worker does it too"
            )
        if _holds_secret(value, name):
            raise InputError(
                f"the handler uses `{name}`, which holds what looks like a key or a password; read that from "
                "os.environ in the cell that defines the handler, where a worker does it too"
            )
        self.definitions.append(f"{name} = {text}")

    def _with_imports_of_workers(self, source: str, tree: ast.Module, where: str) -> str:
        """The code with the worker's imports for ours, and without those that must stand first."""
        replaced: list[tuple[ast.stmt, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                if any(alias.name.partition(".")[0] == _OURS for alias in node.names):
                    raise _foreign_import(where)
                self.modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                self.modules.add(node.module.partition(".")[0])
                if node.module == "__future__":
                    self.future.append(ast.unparse(node))
                    replaced.append((node, ""))
                elif node.module.partition(".")[0] == _OURS:
                    if {alias.name for alias in node.names} != {"progress_update"}:
                        raise _foreign_import(where)
                    node.module = "runpod.serverless"
                    replaced.append((node, ast.unparse(node)))
        lines = source.split("\n")
        for node, text in sorted(replaced, key=lambda one: (one[0].lineno, one[0].col_offset), reverse=True):
            _replace(lines, node, text)
        return "\n".join(lines)


def _parsed(source: str, where: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise InputError(
            f"line {error.lineno} of {where} is not plain Python ({line[:60]}): a worker knows no magics and "
            "no shell commands"
        ) from None


def _used(source: str) -> set[str]:
    """The names that code uses and does not bind at its top."""
    table = symtable.symtable(source, "<handler>", "exec")
    bound = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    return _global_names(table) - bound


def _global_names(table: symtable.SymbolTable) -> set[str]:
    is_top = table.get_type() == "module"
    names = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (is_top or symbol.is_global())
    }
    return names.union(*map(_global_names, table.get_children()))


def _is_importable(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    return (
        isinstance(module, str)
        and isinstance(name, str)
        and getattr(sys.modules.get(module), name, None) is value
    )


def _is_literal(text: str, value: Any) -> bool:
    try:
        return bool(ast.literal_eval(text) == value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def _holds_secret(value: Any, name: str = "") -> bool:
    """Whether a secret is somewhere in a value, by its looks or by the name under which it lies."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        is_named = len(value) >= _SHORTEST_SECRET and _SECRET.search(name)
        return bool(is_named or _LOOKS_SECRET.search(value))
    if isinstance(value, dict):
        return any(_holds_secret(item, str(key)) for key, item in value.items())
    return isinstance(value, list | tuple | set) and any(map(_holds_secret, value))


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _alias(real: str, name: str) -> str:
    return "" if real == name else f" as {name}"


def _replace(lines: list[str], node: ast.stmt, text: str) -> None:
    """Put other code in the place of a statement; what else stands on its lines stays."""
    assert node.end_lineno is not None
    before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
    after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    rest = "pass" if before.strip() or after.strip() else ""
    lines[node.lineno - 1] = before + (text or rest) + after
    for number in range(node.lineno, node.end_lineno):
        lines[number] = ""


def _requirements(modules: set[str]) -> list[str]:
    """What a worker image has to install beside runpod, with the versions that are installed here."""
    foreign = modules - sys.stdlib_module_names - {_OURS, "runpod"}
    if not foreign:
        return []
    known = metadata.packages_distributions()
    packages = {package for module in foreign for package in known.get(module, [])}
    missing = sorted(module for module in foreign if module not in known)
    found = [f"{package}=={metadata.version(package)}" for package in sorted(packages)]
    return [f"# requirements: {', '.join(found)}"] * bool(found) + [
        f"# and a module of your own, to be put beside this file: {module}" for module in missing
    ]


def _foreign_import(where: str) -> InputError:
    return InputError(
        f"{where} uses notebook_ext, of which a worker knows only `from notebook_ext import progress_update`"
    )
