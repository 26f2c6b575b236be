"""What IPython is taught about the lines of `%endpoint`: their completion, and the `?` at their end.

`guard` keeps IPython from reading a prompt's question mark as a help lookup; `suggest` says what can
stand at the cursor. Both read a line the way `grammar` does.
"""

from __future__ import annotations

import re
import tokenize
from typing import TYPE_CHECKING, Any, NamedTuple

from IPython.core.inputtransformer2 import find_end_of_continued_line, make_tokens_by_line

from notebook_ext import grammar, profiles, prompts, providers
from notebook_ext.errors import EndpointError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from notebook_ext.session import Session

__all__ = ["Suggestions", "guard", "install", "suggest", "uninstall"]

_MATCHER = "notebook_ext.endpoint"
_HINT_LENGTH = 40  # characters; a front end shows a hint in one line
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

_LINE = re.compile(r"(?P<indent>[ \t]*)(?:[^#%=\n]+=[ \t]*)?%endpoint(?P<rest>(?:\s.*)?)", re.DOTALL)
_CELL = re.compile(r"[ \t]*%%endpoint(?P<rest>(?:\s.*)?)", re.DOTALL)
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
    is_alone = bool(lines) and bool(_CELL.fullmatch(lines[0])) and not "".join(lines[1:]).strip()
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
    line = _LINE.fullmatch(text)
    if line is None or not text.endswith("?"):
        return statement
    help_ = _VERB_HELP.fullmatch(line["rest"])
    if help_ is not None and (help_["verb"] in grammar.VERBS or help_["verb"] in grammar.ALIASES):
        return [f"{line['indent']}%endpoint help {help_['verb']}\n", *["\n"] * len(continued)]
    if grammar.split_prompt(line["rest"])[1] is None:
        return statement
    # IPython looks for the `?` at the very end of the line; the space is taken off again with the newline
    return [*continued, last.rstrip() + " " + last[len(last.rstrip()) :]]


# ---------------------------------------------------------------------------------- completion


class Suggestions(NamedTuple):
    """What can stand at the cursor.

    Attributes:
        fragment: What is typed of it already.
        offers: Each with a hint that front ends show beside it.
    """

    fragment: str = ""
    offers: Sequence[tuple[str, str]] = ()


def suggest(text: str, session: Session, namespace: Mapping[str, Any]) -> Suggestions:
    """What can stand at the end of a text, if that is in an `%endpoint` line or `%%endpoint` cell.

    Args:
        text: The cell up to the cursor.
        session: Knows the endpoints and the jobs.
        namespace: The user's variables.
    """
    try:
        return _suggest(text, session, namespace)
    except EndpointError:  # such as an open quote, or settings that cannot be read: nothing to offer
        return Suggestions()


def _suggest(text: str, session: Session, namespace: Mapping[str, Any]) -> Suggestions:
    text = text.lstrip()
    first, newline, body = text.partition("\n")
    cell = _CELL.fullmatch(first)
    if cell is not None and newline:
        return _in_body(cell["rest"], body, session, namespace)
    line = cell or _LINE.fullmatch(text.replace("\\\n", " ").rpartition("\n")[2])
    if line is None or not line["rest"]:
        return Suggestions()
    if _is_in_template(line["rest"]):
        return _in_template(line["rest"], namespace)
    head = grammar.split_assignment(line["rest"])[1]
    fragment = re.split(r"\s", head)[-1]
    head = head.removesuffix(fragment)
    _, prompt = grammar.split_prompt(head)
    return _Line(session, namespace).after(head, fragment) if prompt is None else Suggestions()


def _in_body(line: str, body: str, session: Session, namespace: Mapping[str, Any]) -> Suggestions:
    words = grammar.words(grammar.split_assignment(line)[1])
    verb, _ = grammar.find_verb(words, session.names())
    if verb.prompts and _is_in_template(body):
        return _in_template(body, namespace)
    return Suggestions()


def _is_in_template(text: str) -> bool:
    return text.rfind("{{") > text.rfind("}}")


def _in_template(text: str, namespace: Mapping[str, Any]) -> Suggestions:
    name = re.split(r"\W", text)[-1]
    if text.removesuffix(name).rstrip().endswith((".", "|")):
        return Suggestions()  # an attribute or a filter: not ours to know
    return _matching(name, _variables(namespace))


def _matching(fragment: str, offers: Iterable[tuple[str, str]]) -> Suggestions:
    return Suggestions(fragment, [offer for offer in offers if offer[0].startswith(fragment)])


def _variables(namespace: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in namespace.items():
        if not name.startswith("_"):
            yield name, type(value).__name__


class _Line:
    """The completion of one line, option by option."""

    def __init__(self, session: Session, namespace: Mapping[str, Any]) -> None:
        self._session = session
        self._namespace = namespace

    def after(self, head: str, fragment: str) -> Suggestions:
        """What a fragment can become that stands after `head`."""
        before = grammar.words(head)
        if not before and not fragment.startswith("-"):
            return _matching(fragment, [*_verbs(), *self._endpoints()])
        verb, given = grammar.find_verb(before, self._session.names())
        options = {option: action for action in verb.actions for option in action.option_strings}
        pending, words = _read(given, options)
        if pending is not None:
            return _matching(fragment, self._values(pending))
        option, equals, value = fragment.partition("=")
        if equals and option in options:
            return _matching(value, self._values(options[option]))
        if fragment.startswith("-"):
            return _matching(fragment, _unused(verb, given))
        if not _takes_more(verb, words):
            return _matching(fragment, () if fragment else _unused(verb, given))
        return _matching(fragment, self._targets(verb, words, fragment))

    def _endpoints(self) -> Iterator[tuple[str, str]]:
        for name in self._session.names():
            yield name, "endpoint"

    def _targets(self, verb: grammar.Verb, words: Sequence[str], fragment: str) -> list[tuple[str, str]]:
        if verb.takes == "endpoint":
            return list(self._endpoints())
        if verb.takes == "verb":
            return list(_verbs())
        if verb.takes == "job":
            return [offer for offer in self._jobs(fragment) if offer[0] not in words]
        return []

    def _jobs(self, fragment: str) -> Iterator[tuple[str, str]]:
        handles = [self._session.handles[number] for number in sorted(self._session.handles, reverse=True)]
        for handle in handles[:1]:
            yield "@last", _hint(handle)
        for handle in handles:
            yield f"@{handle.number}", _hint(handle)
        for name, value in self._namespace.items():
            if not name.startswith("_") and any(value is handle for handle in handles):
                yield name, _hint(value)
        for handle in handles:
            if fragment and handle.id:
                yield handle.id, _hint(handle)

    def _values(self, action: argparse.Action) -> list[tuple[str, str]]:
        """What can stand after an option."""
        if action.choices is not None:
            return [(choice, action.dest) for choice in action.choices]
        match action.dest:
            case "profile":
                return [(name, "profile") for name in profiles.PROFILES]
            case "provider":
                return [(name, "provider") for name in providers.PROVIDERS]
            case "handler":
                functions = _variables({k: v for k, v in self._namespace.items() if callable(v)})
                return [*((name, "built-in") for name in grammar.HANDLERS), *functions]
            case "out" | "input" | "params":
                return list(_variables(self._namespace))
        return []


def _verbs() -> Iterator[tuple[str, str]]:
    for name in (*grammar.VERBS, *grammar.ALIASES):
        yield name, "verb"


def _hint(handle: Any) -> str:
    return f"{handle.endpoint} {handle.status}: {prompts.first_words(handle.input, _HINT_LENGTH)}"


def _unused(verb: grammar.Verb, given: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a verb, without those that are there already and cannot be repeated."""
    return [
        (option, prompts.first_words(action.help or "option", _HINT_LENGTH))
        for action in verb.actions
        for option in action.option_strings
        if isinstance(action.default, list) or not set(given).intersection(action.option_strings)
    ]


def _read(
    given: Iterable[str], options: Mapping[str, argparse.Action]
) -> tuple[argparse.Action | None, list[str]]:
    """The option that still waits for its value, and the words that belong to no option."""
    pending: argparse.Action | None = None
    words: list[str] = []
    for word in given:
        if pending is not None:
            pending = None
        elif word in options:
            pending = options[word] if options[word].nargs is None else None
        elif not word.startswith("-"):
            words.append(word)
    return pending, words


def _takes_more(verb: grammar.Verb, words: Sequence[str]) -> bool:
    places = [action for action in verb.actions if not action.option_strings]
    return len(words) < len(places) or any(action.nargs == "*" for action in places)
