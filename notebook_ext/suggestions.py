"""What can stand at the cursor in a line of `%endpoint`, or inside `{{ }}` in the body under it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from notebook_ext import grammar, profiles, prompts, providers
from notebook_ext.completion import CELL, LINE
from notebook_ext.errors import EndpointError
from notebook_ext.options import HANDLERS
from notebook_ext.vocabulary import ALIASES, VERBS, Verb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from notebook_ext.entry import Entry
    from notebook_ext.session import Session

__all__ = ["Suggestions", "suggest"]

_HINT_LENGTH = 40  # characters; a front end shows a hint in one line
_EARLIER = 20  # jobs of earlier kernels that are offered


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
    cell = CELL.fullmatch(first)
    if cell is not None and newline:
        return _in_body(cell["rest"], body, session, namespace)
    line = cell or LINE.fullmatch(text.replace("\\\n", " ").rpartition("\n")[2])
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
    verb, _ = grammar.find_verb(words, session.endpoints.names())
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
        verb, given = grammar.find_verb(before, self._session.endpoints.names())
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
        for name in self._session.endpoints.names():
            yield name, "endpoint"

    def _targets(self, verb: Verb, words: Sequence[str], fragment: str) -> list[tuple[str, str]]:
        if verb.takes == "endpoint":
            return list(self._endpoints())
        if verb.takes == "verb":
            return list(_verbs())
        if verb.takes == "job":
            return [offer for offer in self._jobs(fragment) if offer[0] not in words]
        free = (action for action in verb.actions if not action.option_strings and action.choices is not None)
        return [(choice, action.dest) for action in free for choice in action.choices or ()]

    def _jobs(self, fragment: str) -> Iterator[tuple[str, str]]:
        handles = [self._session.handles[number] for number in sorted(self._session.handles, reverse=True)]
        entries = [
            entry
            for entry in reversed(self._session.journal.entries(limit=_EARLIER))
            if entry.number not in self._session.handles
        ]
        jobs = [(handle.number, handle.id, _hint(handle)) for handle in handles]
        jobs += [(entry.number, entry.job.id, _entry_hint(entry)) for entry in entries]
        for _, _, hint in jobs[:1]:
            yield "@last", hint
        for number, _, hint in jobs:
            yield f"@{number}", hint
        for name, value in self._namespace.items():
            if not name.startswith("_") and any(value is handle for handle in handles):
                yield name, _hint(value)
        for _, job_id, hint in jobs:
            if fragment and job_id:
                yield job_id, hint

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
                return [*((name, "built-in") for name in HANDLERS), *functions]
            case "out" | "input" | "params":
                return list(_variables(self._namespace))
        return []


def _verbs() -> Iterator[tuple[str, str]]:
    for name in (*VERBS, *ALIASES):
        yield name, "verb"


def _hint(handle: Any) -> str:
    return f"{handle.endpoint} {handle.status}: {prompts.first_words(handle.input, _HINT_LENGTH)}"


def _entry_hint(entry: Entry) -> str:
    prompt = "" if entry.input is None else prompts.first_words(entry.input, _HINT_LENGTH)
    return f"{entry.endpoint} {entry.job.status}: {prompt}"


def _unused(verb: Verb, given: Sequence[str]) -> list[tuple[str, str]]:
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


def _takes_more(verb: Verb, words: Sequence[str]) -> bool:
    places = [action for action in verb.actions if not action.option_strings]
    return len(words) < len(places) or any(action.nargs == "*" for action in places)
