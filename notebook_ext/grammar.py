"""How a line of `%endpoint` is read, and the help about it.

Pure: no IPython, no I/O. `verbs` does what is read here.
"""

from __future__ import annotations

import difflib
import keyword
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from notebook_ext import prompts
from notebook_ext.errors import InputError
from notebook_ext.vocabulary import ALIASES, VERBS, Verb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

__all__ = [
    "Command",
    "find_verb",
    "help_text",
    "overview",
    "parse",
    "split_assignment",
    "split_prompt",
    "words",
]


@dataclass(frozen=True, slots=True)
class Command:
    """One line, read.

    Args:
        verb: What is to be done.
        arguments: Its options as they were typed; templates are not rendered yet.
        prompt: The text after ` -- `; None where there is none.
        assign: The name before `<<`; None where there is none.
        body: What stands under a cell magic, without `#|` lines; None for a line magic.
    """

    verb: Verb
    arguments: argparse.Namespace
    prompt: str | None = None
    assign: str | None = None
    body: str | None = field(default=None)


# ---------------------------------------------------------------------------------- reading a line

_ASSIGNMENT = re.compile(r"\s*(?P<name>[^\W\d]\w*)\s*<<(?=\s|$)(?P<rest>.*)", re.DOTALL)


def split_assignment(line: str) -> tuple[str | None, str]:
    """Part `NAME << rest` into its two parts; the name is None where there is none."""
    match = _ASSIGNMENT.match(line)
    return (match["name"], match["rest"]) if match else (None, line)


def parse(line: str, body: str | None = None, *, endpoints: Iterable[str] = ()) -> Command:
    """Read what stands behind `%endpoint` or `%%endpoint`.

    The first word is a verb, or a known endpoint (then the verb is `run`), or an option (then too).

    Args:
        line: As typed.
        body: What is under a cell magic; None for a line magic.
        endpoints: The known endpoints' names.

    Raises:
        InputError: It cannot be read; the sentence says what is near.
    """
    assign, line = split_assignment(line)
    head, prompt = split_prompt(line)
    body = body if body is not None and body.strip() else None  # nothing under it: the line form
    verb, tokens = find_verb(words(head), endpoints)
    if body is not None and verb.prompts:
        more, body = prompts.option_lines(body)
        tokens = [*tokens, *more]
    if any(token in ("-h", "--help") for token in tokens):
        topic = [] if tokens == words(head) and len(tokens) == 1 else [verb.name]
        return Command(VERBS["help"], VERBS["help"].parser.read(topic))
    _refuse_contradictions(verb, prompt, assign, body)
    arguments = verb.parser.read(tokens)
    for name in (assign, getattr(arguments, "out", None)):
        _refuse_bad_name(name)
    return Command(verb, arguments, prompt, assign, body)


def find_verb(tokens: list[str], endpoints: Iterable[str]) -> tuple[Verb, list[str]]:
    """The verb of a line, and the words that are left for it.

    Raises:
        InputError: The first word is neither a verb nor a known endpoint.
    """
    if not tokens or tokens[0].startswith("-"):
        return VERBS["run"], tokens
    word = ALIASES.get(tokens[0], tokens[0])
    if word in VERBS:
        return VERBS[word], tokens[1:]
    if word in set(endpoints) or "{{" in word:
        return VERBS["run"], tokens
    raise _unknown_word(word, endpoints)


def _refuse_contradictions(verb: Verb, prompt: str | None, assign: str | None, body: str | None) -> None:
    if body is not None and not verb.cell:
        raise InputError(f"%%endpoint {verb.name} has no cell form; write it on a line of its own: %endpoint")
    if prompt is not None and not verb.prompts:
        raise InputError(f"%endpoint {verb.name} takes no text after ' -- '")
    if prompt is not None and body is not None:
        raise InputError(
            "there is a prompt after ' -- ' and another one in the cell's body; give one of them"
        )
    if assign is not None and verb.name not in ("run", "runsync", "result"):
        raise InputError(f"{assign} << takes a result, and %endpoint {verb.name} gives none")


def _refuse_bad_name(name: str | None) -> None:
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise InputError(f"'{name[:40]}' cannot be a variable's name; nothing was sent")


def _unknown_word(word: str, endpoints: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(word, [*VERBS, *ALIASES, *endpoints], n=1)
    hint = (
        f"did you mean '{near[0]}'?"
        if near
        else "`%endpoint help` lists the verbs, `%endpoint list` the endpoints."
    )
    return InputError(f"'{word[:40]}' is neither a verb nor a known endpoint; {hint}")


_FREE_DASHES = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?P<dashes>(?<!\S)--(?=\s|$))""", re.DOTALL)


def split_prompt(line: str) -> tuple[str, str | None]:
    """Part the options from the prompt at the first ` -- ` that is in no quotes and no template."""
    masked = line
    for start, end in _templates(line):
        masked = masked[:start] + "_" * (end - start) + masked[end:]
    for match in _FREE_DASHES.finditer(masked):
        if match["dashes"]:
            return line[: match.start()], line[match.end() :].strip()
    return line, None


def words(text: str) -> list[str]:
    """Split as a POSIX shell does; each `{{ }}` is part of one word, whatever is in it."""
    holes: list[str] = []
    source, done = "", 0
    mark = "\ue000"
    while mark in text:
        mark += "\ue000"
    for start, end in _templates(text):
        source += text[done:start] + f"{mark}{len(holes)}\ue001"
        holes.append(text[start:end])
        done = end
    try:
        found = shlex.split(source + text[done:], posix=True)
    except ValueError as error:
        raise InputError(
            f"a quote or backslash on the line is not closed ({str(error).lower()}): "
            "close it, or put prompt text after ' -- ', where quotes mean nothing"
        ) from None
    return [re.sub(f"{mark}(\\d+)\ue001", lambda hole: holes[int(hole[1])], word) for word in found]


def _templates(text: str) -> list[tuple[int, int]]:
    try:
        return list(prompts.template_spans(text))
    except InputError:
        return []  # an open brace is an error only where the text is a template


# ---------------------------------------------------------------------------------- help


def overview() -> str:
    """What `%endpoint help` shows."""
    width = max(map(len, VERBS))
    rows = [f"  {verb.name:{width}}  {verb.summary}" for verb in VERBS.values()]
    return "\n".join(
        [
            "%endpoint VERB [TARGET] [options] [-- prompt]     on a line",
            "%%endpoint VERB [TARGET] [options]                over a body",
            "",
            *rows,
            "",
            "Without a verb: run. Without a target: the default endpoint, at first `demo`,",
            "which needs no account.",
            "`%endpoint help VERB`, or a verb with -h, shows one verb with an example.",
        ]
    )


def help_text(topic: str) -> str:
    """What `%endpoint help VERB` shows.

    Raises:
        InputError: There is no such verb.
    """
    verb = VERBS.get(ALIASES.get(topic, topic))
    if verb is None:
        raise _unknown_word(topic, ())
    usage: Any = verb.parser.format_help().replace("usage:", "Usage:", 1)
    cell = "\n(also over a body: %%endpoint)" if verb.cell else ""
    return f"{verb.summary}\n\n{usage.strip()}{cell}\n\nExample:\n\n{verb.example}"
