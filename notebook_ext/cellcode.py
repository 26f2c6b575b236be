"""A command as the text of a cell: reading that cell gives the same command again.

Pure, and the counterpart of `grammar`. What a cell cannot hold as it is, such as an option with
line breaks, is written as a template that renders to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from notebook_ext import prompts
from notebook_ext.errors import InputError
from notebook_ext.grammar import Command
from notebook_ext.vocabulary import VERBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["at", "cell", "compose", "from_input", "split"]

_MAGIC = "endpoint"
_NOT_TEMPLATES = frozenset({"format", "input", "kind", "on_interrupt", "out", "parameters", "params"})
"""Options that are taken as they are typed, so a template cannot stand in for them."""


def compose(endpoint: str, prompt: str, options: Mapping[str, Any]) -> Command:
    """The `run` of a prompt as a cell has it.

    Args:
        endpoint: Its name.
        prompt: The text of the body.
        options: Values by the names that the parser gives them, such as `max_tokens`; strings
            as they would be typed.
    """
    verb = VERBS["run"]
    arguments = argparse.Namespace(**{**vars(verb.parser.read([endpoint])), **options})
    return Command(verb, arguments, body=f"{prompt}\n")


def from_input(
    endpoint: str, value: Any, options: Mapping[str, Any] | None = None, *, verb: str = "run"
) -> Command:
    """The command that submits a value as it is: nothing in it is a template.

    Args:
        endpoint: Its name.
        value: The whole `input`, any JSON value.
        options: As in `compose`.
        verb: `run` or `runsync`.
    """
    document = json.dumps({"input": value}, indent=2, ensure_ascii=False)
    document = re.sub("[\x85\u2028\u2029]", _escaped, document)
    command = compose(endpoint, document, {"kind": "json", "verbatim": True, **(options or {})})
    return Command(VERBS[verb], command.arguments, body=command.body)


def at(endpoint: str, command: Command) -> Command:
    """The same command with its endpoint named, whichever the default one is by then."""
    arguments = argparse.Namespace(**{**vars(command.arguments), "target": endpoint})
    return dataclasses.replace(command, arguments=arguments)


def split(text: str) -> tuple[str, str | None]:
    """The line and the body that IPython hands over for such a cell; no body for a line."""
    first, newline, rest = text.partition("\n")
    line = first.lstrip("%").removeprefix(_MAGIC).strip()
    return line, (rest if rest.endswith("\n") else f"{rest}\n") if newline else None


def cell(command: Command) -> str:
    """The cell of a command; a line where there is nothing to stand under it.

    Raises:
        InputError: No cell can hold it.
    """
    typed = command.body if command.body is not None else command.prompt
    if typed is None or not typed.strip():
        prompt = "" if command.prompt is None else f" -- {command.prompt}"
        return f"%{_MAGIC} {_line(command)}{prompt}"
    as_text = command.body is None and command.arguments.kind == "auto" and typed.lstrip()[:1] in ("{", "[")
    text = _BLANK_LINE.sub("", typed if command.body is None else typed.removesuffix("\n"))
    end = "\n" if text.endswith("\n") else ""  # IPython adds one only where there is none
    return f"%%{_MAGIC} {_line(command, {'kind': 'text'} if as_text else {})}\n{_body(text, command)}{end}"


# ---------------------------------------------------------------------------------- the line


def _line(command: Command, changed: Mapping[str, Any] | None = None) -> str:
    arguments = {**vars(command.arguments), **(changed or {})}
    has_templates = not arguments.get("verbatim", False)
    words = [f"{command.assign} <<"] if command.assign else []
    words.append(command.verb.name)
    for action in sorted(command.verb.actions, key=lambda action: bool(action.option_strings)):
        value = arguments[action.dest]
        # two flags may stand for the two values of one option
        is_given = value == action.const if action.nargs == 0 else value != action.default
        if is_given:
            words += _words(action, value, has_templates and action.dest not in _NOT_TEMPLATES)
    return " ".join(words)


def _words(action: argparse.Action, value: Any, has_templates: bool) -> Iterator[str]:
    flag = next(iter(action.option_strings), "")
    if action.nargs == 0:
        yield flag
        return
    for item in value if isinstance(value, list) else [value]:
        word = _word(_in_one_line(str(item), flag, has_templates))
        # apart, what begins with a dash would be taken for another option
        yield f"{flag}={word}" if flag and str(item).startswith("-") else f"{flag} {word}".lstrip()


_BREAKS = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"  # where `str.splitlines`, and so IPython, ends a line
_LINE_BREAK = re.compile(f"[{_BREAKS}]")


def _in_one_line(text: str, flag: str, has_templates: bool) -> str:
    """An option's text, or a template that renders to it where a line cannot hold it as it is."""
    if not _LINE_BREAK.search(text) and text != "--":
        return text
    if not has_templates:
        reason = "has line breaks" if text != "--" else "is '--'"
        raise InputError(
            f"{flag or 'a word'} {reason}, which a cell can hold only as a template, and none is allowed here"
        )
    pieces = [
        _expression(piece, flag) if is_template else _string(piece) for piece, is_template in _parts(text)
    ]
    return f"{{{{ {' ~ '.join(pieces)} }}}}"


def _expression(template: str, flag: str) -> str:
    """What is in a template, in one line."""
    expression = template[2:-2].strip()
    if any(_LINE_BREAK.search(string) for string in _STRING.findall(expression)):
        raise InputError(f"a template of {flag} has a string with line breaks, which no cell can hold")
    return f"({_LINE_BREAK.sub(' ', expression)})"


def _string(text: str) -> str:
    """A string literal of the template language, in one line."""
    return _LINE_BREAK.sub(_escaped, json.dumps(text, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, each with whether it is a template."""
    done = 0
    try:
        spans = list(prompts.template_spans(text))
    except InputError:
        spans = []
    for start, end in spans:
        if start > done:
            yield text[done:start], False
        yield text[start:end], True
        done = end
    if done < len(text):
        yield text[done:], False


_STRING = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)


def _word(text: str) -> str:
    """One word as the line's reader splits them: quoted, its templates bare where they can be."""
    if not text:
        return "''"
    return "".join(
        piece if is_template and not _has_open_quote(piece) else _quoted(piece)
        for piece, is_template in _parts(text)
    )


def _has_open_quote(template: str) -> bool:
    """Whether a template has a quote that would reach into the words after it."""
    return bool(re.search("['\"]", _STRING.sub("", template)))


def _quoted(text: str) -> str:
    # braces that are no template must not look like the beginning of one
    return re.sub(r"\{(?=\{)", "{''", shlex.quote(text))


# ---------------------------------------------------------------------------------- the body

_BLANK_LINE = re.compile(r"^[ \t]+$", re.MULTILINE)  # IPython empties them, so no cell can hold them
_PROMPT_MARK = re.compile(
    rf"""
    (?: \A | (?<=[{_BREAKS}]) ) [^\S{_BREAKS}]* >>>  # IPython takes them off, wherever they stand
    | \A (?: \.\.\. (?=[ \n]|\Z)                # and these from the first line
         | (?: \[(?:nav|ins)\] )? [ ]? In[ ]\[\d+\]:
         | \s*\.{{3,}}:
         | \#\| )                               # an option line of our own
    """,
    re.VERBOSE,
)


def _body(text: str, command: Command) -> str:
    """A body that comes through IPython as it is: what would be read as a mark is put into a template."""
    if not _PROMPT_MARK.search(text):
        return text
    if command.arguments.verbatim or command.arguments.kind not in ("auto", "text"):
        raise InputError(
            "a line of the body begins like a prompt of Python, or the body with `#|`; without templates "
            "a cell cannot hold that: -i VARIABLE can"
        )
    return _PROMPT_MARK.sub(_as_template, text)


def _as_template(mark: re.Match[str]) -> str:
    text = mark[0].lstrip()
    return f"{mark[0].removesuffix(text)}{{{{ {_string(text)} }}}}"
