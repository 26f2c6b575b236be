"""What is remembered between kernels: endpoints under names of one's own.

They lie in the user's file and in the nearest `.notebook_ext.toml` upward, which wins. A key is
never written into either; where keys come from is next door in `keys`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import ConfigurationError
from notebook_ext.keys import looks_like_key
from notebook_ext.providers import PROVIDERS, resolve

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["Config", "SavedEndpoint"]

VERSION = 1
USER_FILE = "endpoints.toml"
PROJECT_FILE = ".notebook_ext.toml"
FOLDER_VARIABLE = "NOTEBOOK_EXT_CONFIG"

_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_ENDPOINT_ID = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.~-]+")
# In one case only: a key in its place has both. What would be left is for `looks_like_key`.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*|[a-z_][a-z0-9_]*")

LOCK_PATIENCE = 2.0
"""Seconds to wait for another kernel that is saving just now."""
LOCK_STALE = 10.0
"""Seconds after which a lock is taken for one that a crash left behind."""


# ---------------------------------------------------------------------------------- endpoints


@dataclass(frozen=True, slots=True)
class SavedEndpoint:
    """An endpoint under a name of one's own.

    Args:
        name: Letters, digits, `_`, `.`, `-`; not beginning with a digit.
        endpoint_id: The provider's id for it.
        provider: A provider's name, or a base URL; the URL of a known one becomes its name.
        profile: How its input and its output are laid out.
        key_variable: The environment variable with its key; None means the provider's.
        rate: Dollars per second of running time; None where it is not known.

    Raises:
        ConfigurationError: One of them cannot be that; what may be a key is not repeated.
    """

    name: str
    endpoint_id: str
    provider: str
    profile: str = "raw"
    key_variable: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        texts = (self.name, self.endpoint_id, self.provider, self.profile, self.key_variable or "")
        if any(map(looks_like_key, texts)):
            raise ConfigurationError(
                "that looks like a key, and keys are never saved here; give the endpoint's id, "
                "and the key with `%endpoint login NAME`."
            )
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"'{self.name[:60]}' cannot name an endpoint: a letter or _, then letters, digits, . _ or -."
            )
        if not _ENDPOINT_ID.fullmatch(self.endpoint_id):
            raise ConfigurationError(
                f"'{self.endpoint_id[:60]}' is no endpoint id: letters, digits, '_', '.', '~', '-'."
            )
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            raise ConfigurationError(
                f"{self.name}: the key variable is the *name* of a variable, such as RUNPOD_API_KEY."
            )
        if self.rate is not None and not 0 <= self.rate < float("inf"):
            raise ConfigurationError(f"{self.name}: the rate is in dollars per second, 0 or more.")
        object.__setattr__(self, "provider", _known_name(self.provider))


def _known_name(text: str) -> str:
    """The name of a provider that is known by name; else its base URL."""
    provider = resolve(text)
    is_known = provider.name in PROVIDERS and resolve(provider.name) == provider
    return provider.name if is_known else provider.base_url


class Config:
    """The saved endpoints; both files are read afresh each time, so edits by hand are seen.

    Args:
        folder: The user's config folder; None means `NOTEBOOK_EXT_CONFIG`, else the platform's.
        start: Where the search for a project's file begins; None means the working directory.
        reserved: Words that cannot name an endpoint, since the magics read them as verbs.
    """

    def __init__(
        self, *, folder: Path | None = None, start: Path | None = None, reserved: Collection[str] = ()
    ) -> None:
        self._folder = folder
        self._start = start
        self._reserved = frozenset(reserved)

    @property
    def user_file(self) -> Path:
        """Where the user's endpoints lie, whether or not the file exists yet."""
        return (self._folder or _user_folder()) / USER_FILE

    @property
    def project_file(self) -> Path | None:
        """The nearest project file upward; None where there is none."""
        start = (self._start or Path.cwd()).resolve()
        return next(
            (path for folder in (start, *start.parents) if (path := folder / PROJECT_FILE).is_file()), None
        )

    @property
    def endpoints(self) -> dict[str, SavedEndpoint]:
        """All saved endpoints by name, the project's before the user's of the same name.

        Raises:
            ConfigurationError: A file is broken, or was written by a newer version.
        """
        return {
            name: saved for path in reversed(self._files()) for name, saved in _read_endpoints(path).items()
        }

    @property
    def default(self) -> str | None:
        """The endpoint that is meant where none is named; None where none is set, or it is gone."""
        endpoints = self.endpoints
        chosen = (_load(path).get("default") for path in self._files())
        return next((name for name in chosen if isinstance(name, str) and name in endpoints), None)

    def save(self, endpoint: SavedEndpoint, *, project: bool = False) -> Path:
        """Save an endpoint, and say in which file; one of the same name there is replaced.

        Raises:
            ConfigurationError: Its name is a verb, or the project's file would hide it.
        """
        if endpoint.name in self._reserved:
            raise ConfigurationError(
                f"'{endpoint.name}' is a verb of %endpoint, so it cannot name an endpoint."
            )
        found = self.project_file
        if project:
            path = found or (self._start or Path.cwd()) / PROJECT_FILE
            _refuse_lending(endpoint, path)
        else:
            path = self.user_file
            if found and endpoint.name in _table(_load(found)):
                raise ConfigurationError(
                    f"{found} has an endpoint '{endpoint.name}' too, and it would hide this one; "
                    f"save it there (--project), or forget that one first."
                )
        with _changing(path) as document:
            entry = {**_table(document).get(endpoint.name, {}), **_entry(endpoint)}
            kept = {key: value for key, value in entry.items() if value is not None}
            document["endpoints"] = {**_table(document), endpoint.name: kept}
        return path

    def forget(self, name: str) -> Path:
        """Forget the endpoint that this name stands for now, and say from which file.

        Raises:
            ConfigurationError: There is no such name.
        """
        path = self._file_of(name)
        with _changing(path) as document:
            _table(document).pop(name, None)  # another kernel may have been faster
            if document.get("default") == name:
                del document["default"]
        return path

    def use(self, name: str) -> Path:
        """Make it the default, and say in which file: where a default stands that would win, or where it is.

        Raises:
            ConfigurationError: There is no such name.
        """
        home = self._file_of(name)
        path = next((path for path in self._files() if path == home or "default" in _load(path)), home)
        with _changing(path) as document:
            document["default"] = name
        return path

    def _files(self) -> list[Path]:
        project = self.project_file
        return [project, self.user_file] if project else [self.user_file]

    def _file_of(self, name: str) -> Path:
        for path in self._files():
            if name in _table(_load(path)):
                return path
        known = [known for path in self._files() for known in _table(_load(path))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"saved are: {', '.join(known) or 'none yet'}."
        raise ConfigurationError(f"there is no saved endpoint '{name}'; {hint}")


def _user_folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    import platformdirs  # on the load path, and only needed here

    return Path(platformdirs.user_config_dir("notebook_ext", appauthor=False))


def _entry(endpoint: SavedEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.endpoint_id,
        "provider": endpoint.provider,
        "profile": endpoint.profile,
        "key_variable": endpoint.key_variable,
        "rate": endpoint.rate,
    }


# ---------------------------------------------------------------------------------- the file


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    document = _parse(path, raw)
    version = document.get("version", VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigurationError(f"{path}: 'version' must be a whole number, such as {VERSION}.")
    if version > VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer notebook_ext (file version {version}; this one reads up to "
            f"{VERSION}): upgrade, or name another folder with {FOLDER_VARIABLE}."
        )
    if not isinstance(document.get("endpoints", {}), dict):
        raise ConfigurationError(f"{path}: 'endpoints' must be a table, as in [endpoints.NAME].")
    return document


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    import tomllib  # on the load path, and only needed here

    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        line, column = _position(raw[: error.start].decode())
        problem = "not UTF-8"
    except tomllib.TOMLDecodeError as error:
        text = raw.decode()
        said = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)\Z", said)
        line, column = (int(at[1]), int(at[2])) if at else _position(text)
        problem = said.partition(" (at ")[0]
    raise ConfigurationError(f"{path}, line {line}, column {column}: {problem}; the file is TOML.")


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _table(document: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = document.get("endpoints", {})
    return table


def _read_endpoints(path: Path) -> dict[str, SavedEndpoint]:
    saved = {name: _read_endpoint(path, name, entry) for name, entry in _table(_load(path)).items()}
    if path.name == PROJECT_FILE:
        for endpoint in saved.values():
            _refuse_lending(endpoint, path)
    return saved


def _read_endpoint(path: Path, name: str, entry: Any) -> SavedEndpoint:
    kinds: dict[str, tuple[type, ...]] = {
        "id": (str,),
        "provider": (str,),
        "profile": (str,),
        "key_variable": (str,),
        "rate": (int, float),
    }
    where = f"{path}, endpoint '{'...' if looks_like_key(name) else name[:60]}'"
    if not isinstance(entry, dict) or "id" not in entry or "provider" not in entry:
        raise ConfigurationError(f"{where}: it needs an 'id' and a 'provider'.")
    for key, kind in kinds.items():
        if key in entry and (not isinstance(entry[key], kind) or isinstance(entry[key], bool)):
            raise ConfigurationError(f"{where}: '{key}' must be {'a number' if float in kind else 'text'}.")
    try:
        return SavedEndpoint(
            name,
            entry["id"],
            entry["provider"],
            entry.get("profile", "raw"),
            entry.get("key_variable"),
            entry.get("rate"),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _refuse_lending(endpoint: SavedEndpoint, path: Path) -> None:
    """A project's file can come from a stranger: it must not send a known provider's key elsewhere."""
    provider = resolve(endpoint.provider)
    owners = {known.key_variable for known in PROVIDERS.values()} - {provider.key_variable}
    if endpoint.key_variable in owners and not provider.loopback:
        raise ConfigurationError(
            f"{path}, endpoint '{endpoint.name}': {endpoint.key_variable} belongs to another provider, and a "
            f"project's file may not send it to {provider.base_url}; save the endpoint in your own file "
            "(without --project)."
        )


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """The file's document, to be changed; what is changed is stored, unless something raises."""
    with _locked(path):
        document = _load(path)
        yield document
        _store(path, document)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time from reading to writing; a file beside it is a lock that every file system has."""
    target = path.resolve()
    lock = target.with_name(f".{target.name}.lock")
    deadline = time.monotonic() + LOCK_PATIENCE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while not _taken(lock):
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{path} is being changed by another program; nothing was saved. Try again, or remove "
                    f"{lock} where there is none."
                )
            time.sleep(0.005)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; nothing was saved.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _taken(lock: Path) -> bool:
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # it has just been given back
            if time.time() - lock.stat().st_mtime > LOCK_STALE:
                lock.unlink()
        return False
    return True


def _store(path: Path, document: Mapping[str, Any]) -> None:
    """Write it whole or not at all; a link stays a link, and a file keeps its mode."""
    target = path.resolve()
    text = "# notebook_ext: saved endpoints, never keys. Comments in here are not kept.\n"
    text += _toml({"version": VERSION, **document})
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; nothing was saved.") from None


def _toml(table: Mapping[str, Any], parents: tuple[str, ...] = ()) -> str:
    lines = [
        f"{_toml_key(key)} = {_toml_value(value)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in table.items():
        if isinstance(value, dict):
            path = (*parents, key)
            body = _toml(value, path)
            if not value or any(not isinstance(item, dict) for item in value.values()):
                body = f"\n[{'.'.join(map(_toml_key, path))}]\n{body}"
            text += body
    return text


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{"".join(map(_toml_character, value))}"'
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml_key(key)} = {_toml_value(item)}' for key, item in value.items())}}}"
    return str(value.isoformat())  # what is left of TOML's types: dates and times


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\u{ord(character):04x}" if ord(character) < 0x20 or character == "\x7f" else character
