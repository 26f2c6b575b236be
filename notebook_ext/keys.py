"""Where a provider's key comes from: the environment, the keyring, or this kernel's memory.

A key is bound to the address that it is for, and is in no repr, no error and no file of ours.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import ConfigurationError
from notebook_ext.providers import PROVIDERS, Provider

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Key",
    "doubt_keyring",
    "find_at_once",
    "find_key",
    "find_or_require",
    "forget_keys",
    "looks_like_key",
    "remember_key",
]

SERVICE = "notebook_ext"
KEYRING_PATIENCE = 5.0
"""Seconds that a keyring may take before it counts as absent; some wait for a dialog nobody sees."""

_memory: dict[str, str] = {}
_answers: dict[str, str | None] = {}  # what the keyring said, for `find_or_require`
_asking = threading.Lock()


@dataclass(frozen=True, slots=True)
class Key:
    """A key and where it was found; calling it gives the key, and printing it does not.

    Args:
        value: The key itself.
        source: In words, such as "the variable RUNPOD_API_KEY".
    """

    value: str = field(repr=False)
    source: str

    def __call__(self) -> str:
        return self.value


def find_key(provider: Provider, *, name: str | None = None, variable: str | None = None) -> Key | None:
    """Look for a key: this kernel's memory, the environment, the keyring.

    A provider that brings its own key (the embedded one) is asked for nothing else. What was
    remembered for the endpoint `name` comes before what was remembered for the whole provider, and
    both are bound to the provider's address: a saved name that now points elsewhere gets neither.

    Args:
        provider: Who is to receive it.
        name: The endpoint's saved name.
        variable: Its own environment variable, in place of the provider's.

    Raises:
        ConfigurationError: What was found cannot be sent in a header.
    """
    return _find(provider, name, variable, _from_keyring)


def find_or_require(
    provider: Provider, *, name: str | None = None, variable: str | None = None
) -> Key | None:
    """The key of the next request, as `find_key` finds it; None only where a server on this machine has none.

    Memory and environment are looked at each time. What the keyring answered is kept, because it is
    slow, until `remember_key`, `forget_keys` or `doubt_keyring`. It may still take seconds the first time.

    Raises:
        ConfigurationError: There is none, and the server is not on this machine; the next call looks anew.
    """
    key = _find(provider, name, variable, _from_keyring_once)
    if key is None and not provider.loopback:
        for account in _accounts(provider, name):
            _answers.pop(account, None)
        raise _missing(provider, name, variable)
    return key


def find_at_once(provider: Provider, *, name: str | None = None) -> Key | None:
    """What `find_or_require` would find, where that takes no time.

    Raises:
        LookupError: The keyring has to be asked first, or there is no key: `find_or_require` does that.
        ConfigurationError: What was found cannot be sent in a header.
    """
    key = _find(provider, name, None, _answers.__getitem__)
    if key is None and not provider.loopback:
        raise LookupError
    return key


def doubt_keyring() -> None:
    """Ask the keyring again before the next request: a key was refused. Never waits."""
    _answers.clear()


def remember_key(provider: Provider, key: str, *, name: str | None = None, keyring: bool = True) -> str:
    """Keep a key that a person typed, and say where it went: "keyring" or "memory".

    Args:
        provider: Whom it is for; it is never given to another address.
        key: The key.
        name: The one saved endpoint that it is for; None means all of the provider's.
        keyring: Try the keyring first; many servers have none, and then this kernel remembers it.

    Raises:
        ConfigurationError: It is empty, or no key.
    """
    key = _checked(key.strip(), "what was typed")
    account = _accounts(provider, name)[0]
    kept = keyring and _into_keyring(account, key)
    if kept:
        _memory.pop(account, None)
    else:
        _memory[account] = key
    with _asking:  # an older answer that is under way must not come after this
        doubt_keyring()
    return "keyring" if kept else "memory"


def forget_keys() -> None:
    """Forget what this kernel remembers; the keyring keeps its own."""
    _memory.clear()
    with _asking:
        doubt_keyring()


def _find(
    provider: Provider, name: str | None, variable: str | None, ask_keyring: Callable[[str], str | None]
) -> Key | None:
    if provider.key_source is not None:
        own = provider.key_source()
        return Key(own, "the embedded server") if own else None
    accounts = _accounts(provider, name)
    for account in accounts:
        if remembered := _memory.get(account):
            return Key(remembered, "this kernel's memory")
    variable = variable or provider.key_variable
    exported = os.environ.get(variable, "").strip() if variable else ""
    if exported:
        return Key(_checked(exported, f"the variable {variable}"), f"the variable {variable}")
    for account in accounts:
        kept = ask_keyring(account)
        if kept:
            return Key(_checked(kept, "the keyring"), "the keyring")
    return None


def _missing(provider: Provider, name: str | None, variable: str | None) -> ConfigurationError:
    whose = name or provider.name
    variable = variable or provider.key_variable
    export = f"`export {variable}=...` before Jupyter starts, or " if variable else ""
    return ConfigurationError(f"there is no key for {whose}: {export}`%endpoint login {whose}` here.")


def _accounts(provider: Provider, name: str | None) -> list[str]:
    known = PROVIDERS.get(provider.name)
    where = provider.name if known and known.base_url == provider.base_url else provider.base_url
    return [f"{name}@{where}", where] if name else [where]


def _checked(value: str, where: str) -> str:
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigurationError(f"{where} holds no key: keys are ASCII without blanks and line breaks.")
    return value


def _from_keyring(account: str) -> str | None:
    found = _ask_keyring(lambda keyring: keyring.get_password(SERVICE, account))
    return found if isinstance(found, str) and found else None


def _from_keyring_once(account: str) -> str | None:
    with _asking:  # many requests begin at once, and one question is enough
        answers = dict(_answers)  # it may be doubted meanwhile
        if account not in answers:
            answers[account] = _answers[account] = _from_keyring(account)
        return answers[account]


def _into_keyring(account: str, key: str) -> bool:
    _ask_keyring(lambda keyring: keyring.set_password(SERVICE, account, key))
    return _from_keyring(account) == key  # a null backend takes everything and keeps nothing


def _ask_keyring(question: Callable[[Any], Any]) -> Any:
    """Ask in a thread that may be left behind: a keyring that waits for a dialog must not hold a cell."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            import keyring  # slow to import, and a machine's backends are found by importing it

            answers.append(question(keyring))
        except Exception:  # noqa: BLE001 - backends raise what they like; all of it means "no key there"
            answers.append(None)

    thread = threading.Thread(target=ask, name="notebook_ext keyring", daemon=True)
    thread.start()
    thread.join(KEYRING_PATIENCE)
    return answers[0] if answers else None


_NO_KEY = re.compile(
    r"data:[\w.+/;=-]*,\S*"  # a data URL
    r"|[A-Za-z0-9+/=_-]{200,}"  # an encoded file
    r"|(?:sync-)?\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?:-\w+)?"  # a UUID, a job's id
)
_KNOWN_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:rpa|tpo|hf|gsk|r8|ghp|github_pat)_\w{16,}|(?:sk|xai|nvapi)-[\w-]{16,}|AKIA[A-Z0-9]{16})"
)
_LONG_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{32,128}(?![A-Za-z0-9])")
_SYLLABLE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


def looks_like_key(text: str) -> bool:
    """Whether a text holds what could be a key: a known prefix, or a long word that no person made up.

    UUIDs, job ids and data URLs are none; a bare checksum looks like one.
    """
    rest = _NO_KEY.sub(" ", text)
    return bool(_KNOWN_KEY.search(rest)) or any(_is_random(word) for word in _LONG_WORD.findall(rest))


def _is_random(word: str) -> bool:
    """Chance changes between letters, cases and digits every few characters; words do not."""
    mixed = any(map(str.isdigit, word)) and any(map(str.isalpha, word))
    return mixed and len(_SYLLABLE.findall(word)) >= len(word) / 4
