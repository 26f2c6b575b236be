"""Text that looks like an answer and is none: a word-level Markov chain over Python's own docs.

For demos and tests. The same seed gives the same text on the same Python version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import random
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["write_salad"]

HEADER = "*A demo: word salad from the standard library's documentation, no model.*\n\n"

# Prose-rich, quick to import, free of side effects, and there in every supported Python.
# fmt: off
_SOURCES = (
    "argparse", "ast", "asyncio.queues", "asyncio.streams", "asyncio.tasks", "bisect", "calendar",
    "codecs", "collections", "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime",
    "difflib", "enum", "fractions", "functools", "heapq", "inspect", "io", "ipaddress", "json",
    "logging", "operator", "os", "pathlib", "pickle", "random", "re", "shutil", "socket",
    "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "tokenize",
    "traceback", "types", "urllib.parse", "uuid", "warnings", "weakref", "zipfile",
)
# fmt: on

_NO_DOCUMENTATION = "This Python was started without its documentation, so there is nothing to mix."
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[.,;:!?]?\Z")
_ENDS = (".", "!", "?")
_PARAGRAPH = 35
"""Words after which the next full stop ends a paragraph."""

Pair = tuple[str, str]
Chain = dict[Pair, Counter[str]]


def write_salad(*, seed: str, length: int, temperature: float = 1.0) -> Iterator[str]:
    """Yield a headline that tells what this is, then `length` words with the space behind them.

    Args:
        seed: What decides the text.
        length: Number of words.
        temperature: 0 takes the most usual successor each time, 1 follows the text's own
            frequencies, more is wilder.
    """
    yield HEADER
    dice = random.Random(hashlib.sha256(seed.encode("utf-8", "replace")).digest())  # noqa: S311 - no secret
    written = 0
    while written < length:
        for piece in _block(dice, temperature, first=written == 0):
            yield piece
            written += 1
            if written == length:
                return


def _block(dice: random.Random, temperature: float, *, first: bool) -> Iterator[str]:
    """One paragraph, list or line of code, as words; the last one brings the blank line with it."""
    kind = "paragraph" if first else dice.choices(["paragraph", "list", "code"], [6, 2, 1])[0]
    if kind == "code":
        name, argument = dice.choice(_names()), dice.choice(_names())
        yield from ("```python\n", f"{name}(", f"{argument})\n", "```\n\n")
    elif kind == "list":
        for item in range(3):
            *words, last = _sentence(dice, temperature)
            yield from (("- " if not index else "") + f"{word} " for index, word in enumerate(words))
            yield f"{last}\n" + ("\n" if item == 2 else "")
    else:
        words = _sentence(dice, temperature)
        while len(words) < _PARAGRAPH:
            words += _sentence(dice, temperature)
        *words, last = words
        yield from (f"{word} " for word in words)
        yield f"{last}\n\n"


def _sentence(dice: random.Random, temperature: float) -> list[str]:
    chain, starts = _model()
    pair = dice.choice(starts)
    words = list(pair)
    while not words[-1].endswith(_ENDS) and pair in chain:
        word = _pick(chain[pair], dice, temperature)
        words.append(word)
        pair = (pair[1], word)
        if len(words) > _PARAGRAPH:  # the most usual words can go round in a circle
            words[-1] = words[-1].rstrip(",;:") + "."
    if not words[-1].endswith(_ENDS):
        words[-1] = words[-1].rstrip(",;:") + "."
    return words


def _pick(successors: Counter[str], dice: random.Random, temperature: float) -> str:
    if temperature == 0:
        return max(sorted(successors), key=successors.__getitem__)
    weights = [(count / successors.total()) ** (1 / max(temperature, 0.05)) for count in successors.values()]
    return dice.choices(list(successors), weights)[0]


@functools.cache
def _model() -> tuple[Chain, list[Pair]]:
    """The chain of order 2, and the pairs that begin sentences."""
    chain: defaultdict[Pair, Counter[str]] = defaultdict(Counter)
    starts: list[Pair] = []
    for sentence in _sentences():
        first, second, *_ = sentence
        starts.append((first, second))
        for before, word, after in zip(sentence, sentence[1:], sentence[2:], strict=False):
            chain[before, word][after] += 1
    return dict(chain), starts


def _sentences() -> Iterator[list[str]]:
    found = 0
    for text in _docstrings():
        for raw in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", text):
            words = raw.split()
            if len(words) >= 5 and raw[:1].isupper() and all(map(_WORD.match, words)):
                found += 1
                yield words
    if not found:  # python -OO strips all docstrings
        yield _NO_DOCUMENTATION.split()


def _docstrings() -> Iterator[str]:
    seen = set()
    for source in _SOURCES:
        module = importlib.import_module(source)
        holders = [module, *(vars(module)[name] for name in sorted(vars(module)) if not name.startswith("_"))]
        for holder in filter(_has_docs_of_its_own, holders):
            members = [holder]
            if inspect.isclass(holder):
                members += [vars(holder)[name] for name in sorted(vars(holder)) if not name.startswith("__")]
            for member in members:
                text = getattr(member, "__doc__", None)
                if isinstance(text, str) and text not in seen:
                    seen.add(text)
                    yield inspect.cleandoc(text)


def _has_docs_of_its_own(holder: object) -> bool:
    return inspect.ismodule(holder) or inspect.isclass(holder) or inspect.isroutine(holder)


@functools.cache
def _names() -> list[str]:
    return [source.replace(".", "_") for source in _SOURCES]
