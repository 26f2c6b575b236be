"""Where the cells of a notebook define its functions and classes."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from enum import Enum
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias, is_typeddict

from notebook_ext.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["MAIN", "source"]

MAIN = "__main__"
"""The module of what a notebook defines."""
_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def source(value: FunctionType | type, namespace: Mapping[str, Any]) -> str:
    """The source of a function or class that a cell has defined."""
    if isinstance(value, type):
        return _source_of_class(value, namespace)
    code = value.__code__
    for node, text in _definitions(code.co_filename, value.__name__):
        if _first_line(node) == code.co_firstlineno:
            return text
    raise _not_found(value)


def _source_of_class(value: type, namespace: Mapping[str, Any]) -> str:
    """The source of a class, which tells by itself where it stands only if it has functions of its own.

    Else what its name means is what was executed last, unless it looks as if it were not.
    """
    codes = _own_codes(value)
    files = dict.fromkeys(code.co_filename for code in codes) or _cells(namespace)
    found = [
        (node, text)
        for file in files
        for node, text in _definitions(file, value.__qualname__)
        if isinstance(node, ast.ClassDef) and _fits(value, node, codes)
    ]
    if not found:
        raise _not_found(value)
    alike = [text for node, text in found if _is_as_written(value, node)] or [text for _, text in found]
    is_meant = namespace.get(value.__name__) is value
    if (is_meant and alike[0] == found[0][1]) or (not is_meant and len(set(alike)) == 1):
        return alike[0]
    raise InputError(
        f"the handler uses `{value.__name__}`, which cells define in more than one way; run the cell that is "
        "meant once more, or define it in the cell that defines the handler"
    )


def _cells(namespace: Mapping[str, Any]) -> list[str]:
    """The names under which the code of cells is kept, the one that was executed last first."""
    # Code that was never in a file has no time of change.
    kept = [file for file, entry in linecache.cache.copy().items() if len(entry) > 1 and entry[1] is None]
    kept.reverse()
    if "get_ipython" not in namespace:
        return kept
    # A kernel keeps a cell that is executed again in its old place, under a new number.
    label = namespace["get_ipython"]().compile.format_code_name
    numbers = {file: re.search(r"[0-9]+", said[1]) for file in kept if (said := label(file)) is not None}
    return sorted(numbers, key=lambda file: int(found[0]) if (found := numbers[file]) else 0, reverse=True)


def _definitions(file: str, name: str) -> Iterator[tuple[_Definition, str]]:
    """What a file defines under a name, the last first, each with its source."""
    text = "".join(linecache.getlines(file))
    if name not in text:
        return
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):  # a cell that was never executed
        return
    for node in reversed(body):
        if isinstance(node, _Definition) and node.name == name:
            yield node, "\n".join(text.split("\n")[_first_line(node) - 1 : node.end_lineno])


def _first_line(node: _Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _own_codes(value: type) -> list[CodeType]:
    """The code of the functions that stand in a class; others were made for it, or put there later."""
    codes = []
    for item in vars(value).values():
        function = item.__func__ if isinstance(item, staticmethod | classmethod) else item
        function = function.fget if isinstance(function, property) else function
        if isinstance(function, FunctionType) and function.__module__ == MAIN:
            codes.append(inspect.unwrap(function).__code__)
    return [code for code in codes if code.co_qualname.startswith(f"{value.__qualname__}.")]


def _fits(value: type, node: ast.ClassDef, codes: list[CodeType]) -> bool:
    """Whether a class may be what a definition has made, by lines or by names."""
    first = _first_line(node)
    if codes:
        return all(first <= code.co_firstlineno <= (node.end_lineno or first) for code in codes)
    if vars(value).get("__firstlineno__", first) != first:  # Python 3.13 knows it
        return False
    assigned, annotated = _names(node)
    annotations = _public(vars(value).get("__annotations__", {}))
    return assigned <= _attributes(value).keys() and (
        annotated <= annotations if is_typeddict(value) else annotated == annotations
    )


def _is_as_written(value: type, node: ast.ClassDef) -> bool:
    """Whether a class still has the bases, the attributes and the plain values of its definition."""
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    if bases != [base.__name__ for base in value.__bases__ if base is not object]:
        return False
    attributes = _attributes(value)
    if not _public(attributes) <= set.union(*_names(node)):
        return False
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(target, ast.Name) and isinstance(getattr(item, "value", None), ast.Constant):
            written, has = item.value.value, attributes.get(target.id)  # type: ignore[attr-defined]
            if target.id in attributes and (type(has) is not type(written) or has != written):
                return False
    return True


def _names(node: ast.ClassDef) -> tuple[set[str], set[str]]:
    """The public names that the body of a class gives a value, and those that it annotates."""
    assigned, annotated = set(), set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotated.add(item.target.id)
        elif isinstance(item, ast.Assign):
            assigned |= {
                name.id
                for target in item.targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
        elif isinstance(item, _Definition):
            assigned.add(item.name)
    return _public(assigned), _public(annotated)


def _attributes(value: type) -> dict[str, Any]:
    """What a class has by itself; the values of an enumeration in the place of its members."""
    members = getattr(value, "__members__", {}) if issubclass(value, Enum) else {}
    return {**vars(value), **{name: member.value for name, member in members.items()}}


def _public(names: Iterable[str]) -> set[str]:
    """Without those that Python uses, renames or removes."""
    return {name for name in names if not name.startswith("_")}


def _not_found(value: FunctionType | type) -> InputError:
    return InputError(
        f"the handler uses `{value.__name__}`, whose source is not to be found; define it in the cell that "
        "defines the handler"
    )
