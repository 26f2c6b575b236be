"""`{{ expr }}` in what a person types: sandboxed, strict, and never rendered twice.

Only `{{ }}` is live. The text around it is not given to the template engine at all, so JSON,
LaTeX, `{% %}`, `{# #}` and line ends stay byte for byte as they were typed.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jinja2.sandbox import SandboxedEnvironment

__all__ = ["expand", "position_of", "render_text", "template_end", "template_spans", "unknown_variable"]

_VERBATIM = "--verbatim sends braces as they are"


def expand(value: Any, namespace: Mapping[str, Any]) -> Any:
    """Render the templates in every string of a parsed value.

    A string that is exactly one `{{ expr }}` gives the expression's own value and type; in any
    other string, its text. Keys are left alone.

    Raises:
        InputError: A name is unknown, an expression is broken, or it raised.
    """
    if isinstance(value, str):
        if "{{" not in value:
            return value
        spans = list(template_spans(value))
        if spans == [(0, len(value))]:
            return _value(value, namespace)
        return render_text(value, namespace)
    if isinstance(value, dict):
        return {key: expand(item, namespace) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, namespace) for item in value]
    return value


def template_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each `{{ expr }}` begins and ends; braces and quotes inside an expression are its own.

    Raises:
        InputError: One is not closed.
    """
    position = 0
    while (start := text.find("{{", position)) >= 0:
        position = template_end(text, start)
        yield start, position


_STRING_OR_BRACE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[{}]""", re.DOTALL)


def template_end(text: str, start: int) -> int:
    """Where the template that begins at `start` ends.

    Raises:
        InputError: It does not.
    """
    depth = 0
    for match in _STRING_OR_BRACE.finditer(text, start + 2):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}" and depth:
            depth -= 1
        elif match[0] == "}":
            if text.startswith("}}", match.start()):
                return match.start() + 2
            break
    line, column = position_of(text, start)
    raise InputError(f"the '{{{{' at line {line}, column {column} has no '}}}}' of its own; {_VERBATIM}.")


def render_text(text: str, namespace: Mapping[str, Any]) -> str:
    """Render a text to a text, byte for byte outside its templates.

    Raises:
        InputError: As in `expand`.
    """
    pieces: list[str] = []
    done = 0
    for start, end in template_spans(text):
        pieces += [text[done:start], str(_value(text[start:end], namespace))]
        done = end
    return "".join([*pieces, text[done:]])


def _value(template: str, namespace: Mapping[str, Any]) -> Any:
    from jinja2 import TemplateSyntaxError, Undefined, UndefinedError  # on the load path, and slow to import
    from jinja2.exceptions import SecurityError

    shown = template if len(template) <= 60 else f"{template[:54]}...}}}}"
    expression = template[2:-2].strip()
    try:
        if not expression or template.startswith(("{{-", "{{+")):
            raise TemplateSyntaxError("an expression was expected", 1)
        value = _environment().compile_expression(expression, undefined_to_none=False)(dict(namespace))
        if isinstance(value, Undefined):
            str(value)  # which raises, and says what is not defined
        return value
    except TemplateSyntaxError as error:
        raise InputError(f"{shown} is not a template: {error.message}; {_VERBATIM}.") from None
    except UndefinedError as error:
        raise InputError(_undefined(shown, error.message or "it is undefined", namespace)) from None
    except SecurityError as error:
        raise InputError(f"{shown} is not allowed in a template: {error}") from None
    except Exception as error:
        raise InputError(f"{shown} raised {type(error).__name__}: {error}") from error


def _undefined(shown: str, message: str, namespace: Mapping[str, Any]) -> str:
    name = re.fullmatch(r"'(\w+)' is undefined", message)
    if name is None:
        return f"{shown}: {message}."
    return f"{shown}: {unknown_variable(name[1], namespace)}; {_VERBATIM}."


def unknown_variable(name: str, namespace: Mapping[str, Any]) -> str:
    """Words for a variable that is not there, with the one that was probably meant."""
    near = difflib.get_close_matches(name, [known for known in namespace if not known.startswith("_")], n=1)
    return f"there is no variable '{name[:40]}'" + (f" (did you mean '{near[0]}'?)" if near else "")


@functools.cache
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(undefined=StrictUndefined)
    names = (abs, bool, dict, float, int, len, list, max, min, round, sorted, sum)
    environment.globals = {
        "range": environment.globals["range"],
        **{known.__name__: known for known in names},
    }
    return environment


def position_of(text: str, offset: int) -> tuple[int, int]:
    """Line and column of an offset, both from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
