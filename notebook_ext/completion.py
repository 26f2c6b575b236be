"""What IPython is taught about the lines of `%endpoint`: their completion, and the `?` at their end.

The hooks only; what reads the lines is imported when one of them is met.
"""

from __future__ import annotations

import re
import tokenize
from typing import TYPE_CHECKING, Any

from IPython.core.inputtransformer2 import find_end_of_continued_line, make_tokens_by_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CELL", "LINE", "guard", "install", "uninstall"]

_MATCHER = "notebook_ext.endpoint"
_BEFORE_IPYTHON = 1000.0  # our lines are not Python: nobody else needs to look at them


def install(shell: Any, magics: Any) -> None:
    """Teach a shell the lines of `%endpoint`.

    Args:
        shell: The `InteractiveShell`.
        magics: The shell's `EndpointMagics`, whose session knows the endpoints and jobs.
    """
    shell.input_transformers_cleanup.append(guard)
    matchers = _custom_matchers(shell)
    matcher = _matcher(magics)
    if matchers is not None and matcher is not None:
        matchers.append(matcher)


def uninstall(shell: Any) -> None:
    """Undo `install`."""
    if guard in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(guard)
    matchers = _custom_matchers(shell)
    if matchers is not None:
        matchers[:] = [one for one in matchers if getattr(one, "matcher_identifier", None) != _MATCHER]


def _custom_matchers(shell: Any) -> list[Any] | None:
    return getattr(getattr(shell, "Completer", None), "custom_matchers", None)


def _matcher(magics: Any) -> Callable[[Any], Any] | None:
    try:
        from IPython.core.completer import SimpleCompletion, context_matcher
    except ImportError:  # the matcher API is provisional
        return None

    @context_matcher(identifier=_MATCHER, priority=_BEFORE_IPYTHON)  # type: ignore[untyped-decorator, unused-ignore]
    def complete_endpoint_line(context: Any) -> dict[str, Any]:
        from notebook_ext.suggestions import suggest

        lines = context.full_text.split("\n")[: context.cursor_line + 1]
        lines[-1] = lines[-1][: context.cursor_position]
        found = suggest("\n".join(lines), magics.session, _own_variables(magics.shell))
        return {
            "completions": [SimpleCompletion(text, type=kind) for text, kind in found.offers],
            "matched_fragment": found.fragment if found.offers else context.token,
            "ordered": True,
            "suppress": bool(found.offers),
        }

    return complete_endpoint_line  # type: ignore[no-any-return, unused-ignore]


def _own_variables(shell: Any) -> dict[str, Any]:
    """What the user has defined, without what IPython put there."""
    hidden, unlike = shell.user_ns_hidden, object()
    return {name: value for name, value in shell.user_ns.items() if value is not hidden.get(name, unlike)}


# ---------------------------------------------------------------------------------- the `?` guard

LINE = re.compile(r"(?P<indent>[ \t]*)(?:[^#%=\n]+=[ \t]*)?%endpoint(?P<rest>(?:\s.*)?)", re.DOTALL)
CELL = re.compile(r"[ \t]*%%endpoint(?P<rest>(?:\s.*)?)", re.DOTALL)
_QUESTION = re.compile(r"\?[ \t]*$", re.MULTILINE)
_VERB_HELP = re.compile(r"\s+(?P<verb>\w+)\?\??\s*")
_NOT_PYTHON = re.compile(r"[ \t]*(?:[^#%!=\n]+=[ \t]*)?[%!?/,;]")  # how lines begin that IPython rewrites


def guard(lines: list[str]) -> list[str]:
    """Keep IPython from taking a prompt that ends in `?` for a help lookup.

    An input transformer: `%endpoint VERB?` becomes `%endpoint help VERB`, and a cell magic with
    nothing under it, which IPython refuses, becomes the line magic. All other lines stay as they are.
    """
    lines = _line_form(lines)
    text = "".join(lines)
    if "%endpoint" not in text or text.startswith("%%") or not _QUESTION.search(text):
        return lines
    guarded: list[str] = []
    python: list[str] = []  # the same lines, but what no tokenizer understands is replaced
    while len(guarded) < len(lines):
        start = len(guarded)
        if not (_NOT_PYTHON.match(lines[start]) and _begins_statement(python)):
            guarded.append(lines[start])
            python.append(lines[start])
            continue
        end = min(find_end_of_continued_line(lines, start), len(lines) - 1)
        guarded += _without_lookup(lines[start : end + 1])
        indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
        python += [f"{indent}pass\n", *["\n"] * (end - start)]
    return guarded


# IPython leaves such transformers out where it asks whether a cell is complete: in a terminal,
# `%%endpoint run` must go on to its body, and not be the line form at once.
guard.has_side_effects = True  # type: ignore[attr-defined]


def _line_form(lines: list[str]) -> list[str]:
    is_alone = bool(lines) and bool(CELL.fullmatch(lines[0])) and not "".join(lines[1:]).strip()
    return [lines[0].lstrip()[1:], *lines[1:]] if is_alone else lines


def _begins_statement(before: Sequence[str]) -> bool:
    """Whether a new statement begins after these lines: no string or bracket is open."""
    try:
        statements = make_tokens_by_line([*before, "pass\n"])
    except (SyntaxError, tokenize.TokenError):
        return False
    return any(tokens[0].start[0] == len(before) + 1 for tokens in statements)


def _without_lookup(statement: list[str]) -> list[str]:
    """One statement, over several lines where they end in backslashes, so that its `?` is only text."""
    *continued, last = statement
    text = "".join(line.rstrip()[:-1] + " " for line in continued) + last.rstrip()
    line = LINE.fullmatch(text)
    if line is None or not text.endswith("?"):
        return statement
    from notebook_ext import grammar
    from notebook_ext.vocabulary import ALIASES, VERBS

    help_ = _VERB_HELP.fullmatch(line["rest"])
    if help_ is not None and (help_["verb"] in VERBS or help_["verb"] in ALIASES):
        return [f"{line['indent']}%endpoint help {help_['verb']}\n", *["\n"] * len(continued)]
    if grammar.split_prompt(line["rest"])[1] is None:
        return statement
    # IPython looks for the `?` at the very end of the line; the space is taken off again with the newline
    return [*continued, last.rstrip() + " " + last[len(last.rstrip()) :]]
