"""From what was typed to a job's `input`: kinds of body, `{{ }}` templates, parameters, durations.

Only text that a person typed is a template. It is rendered per string after parsing, so a quote
in a variable cannot break JSON, and what comes out of a variable is never rendered again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import InputError
from notebook_ext.templates import (
    expand,
    position_of,
    render_text,
    template_end,
    template_spans,
    unknown_variable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "KINDS",
    "Body",
    "asked",
    "expand",
    "first_words",
    "option_lines",
    "parse_duration",
    "parse_parameters",
    "read_body",
    "read_parameters",
    "read_variable",
    "template_spans",
]

KINDS = ("auto", "text", "json", "yaml", "python")
REQUEST_KEYS = frozenset({"policy", "webhook", "webhookV2", "s3Config"})
"""What may stand beside `input` in a body that is a whole request."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a body means.

    Args:
        kind: How it was read: text, json, yaml or python; for messages and `--dry-run`.
        value: The text of a text body, else the value that it gives, templates rendered.
        request: What stood beside `input` where the body was a whole request; else None.
    """

    kind: str
    value: Any
    request: Mapping[str, Any] | None = None

    @property
    def is_text(self) -> bool:
        """Whether the value is a prompt, which the profile finds a place for."""
        return self.kind == "text"


def read_body(text: str, kind: str = "auto", *, namespace: Mapping[str, Any], verbatim: bool = False) -> Body:
    """Read a body.

    `auto` takes `{` for JSON that must parse, `[` for JSON if it parses, and all else, `{{` too,
    for text. A text body stays text, byte for byte outside its templates.

    Args:
        text: As typed.
        kind: One of `KINDS`.
        namespace: The user's variables.
        verbatim: Leave `{{ }}` as it is.

    Raises:
        InputError: It cannot be read as that, or a template has no value.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise InputError(
            f"there is no kind '{kind}' of body" + (f"; did you mean '{near[0]}'?" if near else ".")
        )
    if kind == "python":
        return _whole_request("python", _evaluate(text, namespace))
    if kind == "yaml":
        parsed = _parse_yaml(text)
        return _whole_request("yaml", parsed if verbatim else expand(parsed, namespace))
    start = text.lstrip()
    if kind == "json" or (kind == "auto" and start[:1] == "{" and start[:2] != "{{"):
        return _whole_request("json", _json_value(text, namespace, verbatim=verbatim))
    if kind == "auto" and start[:1] == "[":
        try:
            parsed, holes = _parse_json(text, verbatim=verbatim)
        except InputError:
            pass  # "[INST] ..." is how some prompts begin
        else:
            return Body("json", parsed if verbatim else _fill(parsed, holes, namespace))
    return Body("text", text if verbatim else render_text(text, namespace))


def _whole_request(kind: str, value: Any) -> Body:
    if isinstance(value, dict) and "input" in value and value.keys() - {"input"} <= REQUEST_KEYS:
        return Body(kind, value["input"], {key: item for key, item in value.items() if key != "input"})
    return Body(kind, value)


# ---------------------------------------------------------------------------------- JSON, YAML, Python


def _json_value(text: str, namespace: Mapping[str, Any], *, verbatim: bool) -> Any:
    parsed, holes = _parse_json(text, verbatim=verbatim)
    return parsed if verbatim else _fill(parsed, holes, namespace)


def _parse_json(text: str, *, verbatim: bool = False) -> tuple[Any, dict[str, str]]:
    """Parse JSON in which `{{ expr }}` may also stand in place of a value.

    Such a template becomes a string that nobody types; what it stands for is in the second part.
    """
    source, holes, moves = (text, {}, []) if verbatim else _plug(text)
    try:
        return json.loads(source, parse_constant=_no_constant), holes
    except json.JSONDecodeError as error:
        offset = error.pos
        for place, shift in reversed(moves):
            if error.pos > place:
                offset += shift
                break
        line, column = position_of(text, offset)
        raise InputError(
            f"the body is not JSON: {error.msg} at line {line}, column {column}; `--as text` sends text."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"the body is JSON that cannot be read: {error}.") from None


def _no_constant(name: str) -> Any:
    raise InputError(f"the body is not JSON: {name} is no JSON number; `null` or a string can stand for it.")


_JSON_STRING_OR_TEMPLATE = re.compile(r'"(?:\\.|[^"\\])*"|\{\{', re.DOTALL)


def _plug(text: str) -> tuple[str, dict[str, str], list[tuple[int, int]]]:
    """Put strings in place of templates outside strings; where, and by how much that moved what follows."""
    token = os.urandom(8).hex()
    source: list[str] = []
    holes: dict[str, str] = {}
    moves: list[tuple[int, int]] = []
    done = length = position = 0
    while match := _JSON_STRING_OR_TEMPLATE.search(text, position):
        position = match.end()
        if match[0] == "{{":
            position = template_end(text, match.start())
            name = f"{token}-{len(holes)}"
            holes[name] = text[match.start() : position]
            source += [text[done : match.start()], f'"{name}"']
            length += len(source[-2]) + len(source[-1])
            done = position
            moves.append((length - 1, position - length))
    source.append(text[done:])
    return "".join(source), holes, moves


def _fill(value: Any, holes: Mapping[str, str], namespace: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return expand(holes.get(value, value), namespace)
    if isinstance(value, dict):
        return {key: _fill(item, holes, namespace) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, holes, namespace) for item in value]
    return value


def _parse_yaml(text: str) -> Any:
    import yaml  # on the load path, and only needed here

    class Loader(yaml.SafeLoader):
        """YAML without its dates, which JSON does not have: they stay the text that was typed."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own attribute
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        parsed = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        hint = (
            '; in YAML a template stands in quotes: "{{ x }}"' if re.search(r"[:\-,\[]\s*\{\{", text) else ""
        )
        raise InputError(f"the body is not YAML: {problem}{where}{hint}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is YAML that cannot be read: {error}.") from None
    if parsed is None:
        raise InputError("the body is empty YAML; an empty input is {}.")
    return parsed


def _evaluate(text: str, namespace: Mapping[str, Any]) -> Any:
    source = text.strip()
    try:
        code = compile(source, "<body>", "eval")
    except SyntaxError as error:
        where = f" at line {error.lineno}, column {error.offset}" if error.lineno else ""
        raise InputError(f"the body is not one Python expression: {error.msg}{where}.") from None
    except ValueError as error:
        raise InputError(f"the body is not one Python expression: {error}.") from None
    try:
        return eval(code, dict(namespace))  # noqa: S307 - the user's own code in the user's own kernel
    except Exception as error:
        raise InputError(f"the body raised {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------- the small parts of a line


def parse_parameters(
    items: Iterable[str], namespace: Mapping[str, Any], *, verbatim: bool = False
) -> dict[str, Any]:
    """Read `key=value` items into one object.

    A value is JSON if it parses, else text; `@file` is a file's text, or its value where the name
    ends in .json; `a.b=1` nests; the later of two wins.

    Raises:
        InputError: No `=`, a missing file, or a key inside a value that is no object.
    """
    parameters: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        *parents, leaf = path = key.strip().split(".")
        if not equals or not all(path):
            raise InputError(
                f"-p takes key=value, such as temperature=0.2 or options.steps=30; got '{item[:60]}'."
            )
        target = parameters
        for depth, parent in enumerate(parents, 1):
            inner = target.setdefault(parent, {})
            if not isinstance(inner, dict):
                held = ".".join(path[:depth])
                raise InputError(
                    f"-p {key}: '{held}' is {_short_json(inner)} already, so nothing can be put into it."
                )
            target = inner
        target[leaf] = _parameter(key, text, namespace, verbatim=verbatim)
    return parameters


def read_parameters(text: str, namespace: Mapping[str, Any], *, verbatim: bool = False) -> dict[str, Any]:
    """Read `-P`: the name of a variable that holds a dict, or a JSON object.

    Raises:
        InputError: It is neither.
    """
    if text.strip().startswith("{") and not text.strip().startswith("{{"):
        value = _json_value(text, namespace, verbatim=verbatim)
    else:
        value = read_variable(text, namespace, option="-P")
    if not isinstance(value, dict):
        raise InputError(f"-P takes a dict, or a JSON object; '{text[:40]}' is {type(value).__name__}.")
    return dict(value)


def read_variable(text: str, namespace: Mapping[str, Any], *, option: str = "-i") -> Any:
    """The value of a variable, or of one `{{ expr }}`, as it is: nothing in it is a template.

    Raises:
        InputError: There is none.
    """
    name = text.strip()
    if name.startswith("{{"):
        return expand(name, namespace)
    if name in namespace:
        return namespace[name]
    raise InputError(f"{option} takes a variable's name; {unknown_variable(name, namespace)}.")


def _parameter(key: str, text: str, namespace: Mapping[str, Any], *, verbatim: bool) -> Any:
    if text.startswith("@"):
        return _file(key, text[1:] if verbatim else render_text(text[1:], namespace))
    try:
        parsed, holes = _parse_json(text, verbatim=verbatim)
    except InputError:
        return text if verbatim else expand(text, namespace)
    return parsed if verbatim else _fill(parsed, holes, namespace)


def _file(key: str, name: str) -> Any:
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except OSError as error:
        raise InputError(f"-p {key}: '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"-p {key}: '{path}' is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"-p {key}: '{path}' is not JSON: {error.msg} at {where}.") from None


_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>ms|s|m|h|d|)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`, `500ms` or `1d`; a bare number is seconds.

    Raises:
        InputError: It is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"'{text[:40]}' is no duration; write 90, 90s, 10m, 2h, 1d or 500ms (a bare number is seconds)."
        )
    return float(match["number"]) * _UNITS[match["unit"]]


_OPTION_LINE = re.compile(r"#\|\s*(?P<key>[A-Za-z][\w-]*)\s*(?::(?P<value>.*))?")


def option_lines(body: str) -> tuple[list[str], str]:
    """Part `#| key: value` lines at the top of a body from the rest, as tokens for the parser.

    `#| max-tokens: 200` is `--max-tokens 200`, `#| t: 0.2` is `-t 0.2`, `#| bg` and `#| bg: true`
    are `--bg`, `#| bg: false` is nothing. A value is one token, with or without quotes.

    Raises:
        InputError: A line is none of these.
    """
    tokens: list[str] = []
    rest = body
    while rest.startswith("#|"):
        line, _, rest = rest.partition("\n")
        match = _OPTION_LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"'{line[:60]}' is no option line; write `#| key: value`, such as `#| max-tokens: 200`."
            )
        tokens += _option(match["key"].replace("_", "-"), (match["value"] or "true").strip(), line)
    return tokens, rest


def _option(key: str, value: str, line: str) -> list[str]:
    flag = f"-{key}" if len(key) == 1 else f"--{key}"
    if value == "true":
        return [flag]
    if value == "false":
        return []
    if value[:1] in ("'", '"'):
        try:
            words = shlex.split(value)
        except ValueError:
            raise InputError(f"'{line[:60]}' has a quote that is not closed.") from None
        if len(words) == 1:
            return [flag, words[0]]
    return [flag, value]


def first_words(value: Any, n: int = 60) -> str:
    """One line of at most `n` characters that tells one input from another in a listing."""
    found = asked(value)
    text = found if isinstance(found, str) else _short_json(found, length=2000)
    words = " ".join(text[: 8 * n].split())
    return words if len(words) <= n else words[: n - 1].rstrip() + "…"


def asked(value: Any) -> Any:
    """What was asked, wherever an input usually has it; the value itself where it is nowhere."""
    if isinstance(value, dict):
        for key in ("prompt", "text", "query", "question", "openai_input"):
            if value.get(key):
                return asked(value[key])
        messages = value.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            return asked(messages[-1].get("content"))
    return value


def _short_json(value: Any, length: int = 40) -> str:
    text = json.dumps(value, default=lambda item: f"<{type(item).__name__}>", ensure_ascii=False)
    return text if len(text) <= length else text[: length - 1] + "…"
