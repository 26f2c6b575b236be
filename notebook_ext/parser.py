"""How the words behind one verb are read: nothing ends the process, and a typo gets a hint."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from typing import TYPE_CHECKING, Any, NoReturn

from notebook_ext.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Parser"]

_MEANT = {"on": "auto"}
"""What a value stands for that people try, and whose letters are nearer to another one's."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process, and suggests near options."""

    def __init__(self, verb: str) -> None:
        # a width of its own: help is the same in every terminal and notebook
        formatter = functools.partial(argparse.HelpFormatter, width=100)
        super().__init__(
            prog=f"%endpoint {verb}", add_help=False, allow_abbrev=False, formatter_class=formatter
        )
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        raise InputError(
            f"%endpoint {self.verb}: {message}{end} `%endpoint help {self.verb}` shows what it takes"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        meant = _MEANT.get(value)
        near = [meant] if meant in action.choices else difflib.get_close_matches(value, action.choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(action.choices)}"
        self.error(f"{'/'.join(action.option_strings) or action.metavar} cannot be '{value[:40]}'; {hint}")

    def read(self, tokens: Sequence[str]) -> argparse.Namespace:
        """What the words say.

        Raises:
            InputError: They say nothing that this verb takes.
        """
        if any(re.fullmatch(r"(--?\w[\w-]*=)?--", token) for token in tokens):
            self.error("a value cannot be '--' alone")  # some versions of argparse lose it
        arguments, unknown = self.parse_known_intermixed_args(_with_dashes_joined(tokens))
        if unknown:
            self._refuse(unknown[0])
        return arguments

    def _refuse(self, word: str) -> NoReturn:
        flag = word.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        if not flag.startswith("-"):
            hint = f"did you mean --{flag}?" if f"--{flag}" in known else "prompt text comes after ' -- '"
            self.error(f"'{word[:40]}' is one word too many; {hint}")
        near = difflib.get_close_matches(flag, known, n=1)
        self.error(f"there is no option {flag[:40]}" + (f"; did you mean {near[0]}?" if near else ""))


def _with_dashes_joined(tokens: Sequence[str]) -> list[str]:
    """Make `--stop ---` one token: apart, argparse takes the dashes for an option."""
    joined: list[str] = []
    for token in tokens:
        if len(token) > 2 and not token.strip("-") and joined and joined[-1].startswith("-"):
            joined[-1] += f"={token}" if joined[-1].startswith("--") else token
        else:
            joined.append(token)
    return joined
