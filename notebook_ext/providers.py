"""Whose endpoints can be called, as data: where they are, how they speak, what they allow.

Providers differ in their record, never in code. What a record does not have is not documented
there, and asking for it is a `ConfigurationError`, not a guess.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from notebook_ext.dialects import (
    RUNPOD_DIALECT,
    RUNPOD_ROUTES,
    TENSORONE_DIALECT,
    TENSORONE_REST_DIALECT,
    TENSORONE_REST_ROUTES,
    TENSORONE_ROUTES,
    Dialect,
    Operation,
    Route,
)
from notebook_ext.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "PROVIDERS",
    "RUNPOD",
    "TENSORONE",
    "TENSORONE_REST",
    "Limit",
    "Provider",
    "local",
    "resolve",
    "split_endpoint_url",
]

KEY_VARIABLE = "NOTEBOOK_EXT_API_KEY"
"""Where the key of a provider that is only a base URL comes from."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How often one operation may be asked of one endpoint.

    Args:
        rate: Requests per window; 0 where none is kept to, and a 429 is all that tells.
        window: Seconds.
        concurrency: Requests in flight at once; None where none is documented.
        budget: Operations whose limits name the same budget are counted together; empty means
            that the operation is counted alone.
        longest_pause: Seconds for which one answer may silence the operation; None means the usual minute.
    """

    rate: int
    window: float = 10.0
    concurrency: int | None = None
    budget: str = ""
    longest_pause: float | None = None


@dataclass(frozen=True)
class Provider:
    """A service that hosts endpoints, as a record.

    Args:
        name: Short, for messages, and the keyring's user name for its key.
        base_url: Up to and with `/v2`, no trailing slash. https, or http on loopback.
        key_variable: The environment variable with its key; None where there is none.
        routes: Its documented operations.
        dialect: Its wording.
        limits: Its documented rate limits; an operation without one is not limited.
        max_payload: Bytes of an encoded request body, by operation; none where not documented.
        retention: Seconds that a finished job's result is kept, by the operation that made it.
        policy_ranges: Lowest and highest seconds of `execution_timeout` and `ttl`; None where
            the server's own answer decides.
        key_source: Gives the key of an endpoint that this process itself serves.

    Raises:
        ConfigurationError: A key would not be safe with this base URL, or it is none.
    """

    name: str
    base_url: str
    key_variable: str | None = None
    routes: Mapping[Operation, Route] = field(default_factory=lambda: RUNPOD_ROUTES, repr=False, hash=False)
    dialect: Dialect = field(default=RUNPOD_DIALECT, repr=False, hash=False)
    limits: Mapping[Operation, Limit] = field(default_factory=dict, repr=False, hash=False)
    max_payload: Mapping[Operation, int] = field(default_factory=dict, repr=False, hash=False)
    retention: Mapping[Operation, float] = field(default_factory=dict, repr=False, hash=False)
    policy_ranges: Mapping[str, tuple[float, float]] | None = field(default=None, repr=False, hash=False)
    key_source: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", _checked_base_url(self.base_url))

    @property
    def loopback(self) -> bool:
        """Whether it answers on this machine only."""
        return _is_loopback(urlsplit(self.base_url).hostname or "")

    def route(self, operation: Operation) -> Route:
        """The documented route of an operation.

        Raises:
            ConfigurationError: There is none; nothing was sent.
        """
        try:
            return self.routes[operation]
        except KeyError:
            known = ", ".join(self.routes)
            raise ConfigurationError(
                f"{operation} is not documented for this provider ({self.name}), so nothing was sent; "
                f"it has: {known}."
            ) from None


# ---------------------------------------------------------------------------------- base URLs

# Stricter than the standard: what two parsers could read differently must not decide where a key goes.
_PLAIN_URL = re.compile(r"[A-Za-z0-9:/._~\[\]-]+")


def _checked_base_url(url: str) -> str:
    """The base URL in its one spelling; no message repeats what may hold a password."""
    parts = _split(url.strip())
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError("a base URL begins with https:// and names a host, such as https://host/v2.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"a key goes only over https, and http://{host} would send it in the clear; "
            "use https://, or an address on this machine (127.0.0.1, localhost, [::1])."
        )
    path = parts.path.rstrip("/")
    base_url = f"{parts.scheme}://{parts.netloc.lower()}"
    if not path.endswith("/v2"):
        raise ConfigurationError(
            f"a base URL ends in /v2 (an endpoint's id comes apart from it): did you mean '{base_url}/v2'?"
        )
    return base_url + path


def _split(url: str) -> SplitResult:
    if "@" in url:
        raise ConfigurationError(
            "a base URL with a user name or password in it is refused; give the key by variable or by login."
        )
    if not _PLAIN_URL.fullmatch(url):
        raise ConfigurationError(
            "a base URL has no query, no fragment, and only letters, digits and . - _ ~ in its path."
        )
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here, since a port that is no number raises only when read
    except ValueError as error:
        raise ConfigurationError(f"the base URL cannot be read: {error}.") from None
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    import ipaddress  # on the load path, and needed for plain http only

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------------------------- the known ones

_DAY = 86_400.0
# The documentation says MB; read as MiB, so that nothing which fits is refused here.
_PAYLOAD = MappingProxyType({Operation.RUN: 10 * 2**20, Operation.RUNSYNC: 20 * 2**20})
_LOOKS = Limit(2000, concurrency=400, budget="status and stream")
_OPENAI = Limit(2000, concurrency=400, budget="openai")

RUNPOD = Provider(
    name="runpod",
    base_url="https://api.runpod.ai/v2",
    key_variable="RUNPOD_API_KEY",
    limits=MappingProxyType(
        {
            Operation.RUN: Limit(1000, concurrency=200),
            Operation.RUNSYNC: Limit(2000, concurrency=400),
            Operation.STATUS: _LOOKS,
            Operation.STATUS_SYNC: _LOOKS,
            Operation.STREAM: _LOOKS,
            Operation.CANCEL: Limit(100, concurrency=20),
            Operation.PURGE_QUEUE: Limit(2),
            Operation.REQUESTS: Limit(10, concurrency=2),
            Operation.OPENAI: _OPENAI,
            Operation.MODELS: _OPENAI,
        }
    ),
    max_payload=_PAYLOAD,
    retention=MappingProxyType({Operation.RUN: 1800.0, Operation.RUNSYNC: 60.0}),
    policy_ranges=MappingProxyType({"execution_timeout": (5.0, 7 * _DAY), "ttl": (10.0, 7 * _DAY)}),
)

# Its SDK guide has the layout of Runpod's; neither the guide nor this record was checked against the service.
# Its limits count by the hour: waiting one out here would look like a hang, so they are left to its 429,
# which may silence an operation for that long: whoever asks meanwhile is told at once.
_HOURLY = MappingProxyType({operation: Limit(0, longest_pause=3600.0) for operation in Operation})
TENSORONE = Provider(
    name="tensorone",
    base_url="https://api.tensorone.ai/v2",
    key_variable="TENSORONE_API_KEY",
    routes=TENSORONE_ROUTES,
    dialect=TENSORONE_DIALECT,
    limits=_HOURLY,
)
TENSORONE_REST = Provider(
    name="tensorone-rest",
    base_url=TENSORONE.base_url,
    key_variable=TENSORONE.key_variable,
    routes=TENSORONE_REST_ROUTES,
    dialect=TENSORONE_REST_DIALECT,
    limits=_HOURLY,
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {provider.name: provider for provider in (RUNPOD, TENSORONE, TENSORONE_REST)}
)
_BASE_URL_VARIABLES = {TENSORONE.name: "TENSORONE_BASE_URL", TENSORONE_REST.name: "TENSORONE_BASE_URL"}


def local(base_url: str, key_source: Callable[[], str | None]) -> Provider:
    """The embedded endpoint's provider.

    Args:
        base_url: Its address with `/v2`.
        key_source: Gives its token, which so stays out of the record.
    """
    return Provider(name="local", base_url=base_url, max_payload=_PAYLOAD, key_source=key_source)


def resolve(provider: str | Provider) -> Provider:
    """Find a provider by its name or its base URL; a record is given back as it is.

    A server that is known by its URL only is taken to speak Runpod's protocol; its key comes from
    `NOTEBOOK_EXT_API_KEY`. `TENSORONE_BASE_URL` moves TensorOne's two records.

    Raises:
        ConfigurationError: No such name, or a URL that a key must not go to.
    """
    if isinstance(provider, Provider):
        return provider
    text = provider.strip()
    if "://" in text:
        return _from_url(text)
    known = PROVIDERS.get(text.lower())
    if known is None:
        raise ConfigurationError(_unknown(text))
    variable = _BASE_URL_VARIABLES.get(known.name, "")
    moved = os.environ.get(variable)
    if not moved:
        return known
    try:
        return replace(known, base_url=moved)
    except ConfigurationError as error:
        raise ConfigurationError(f"the variable {variable}: {error}") from None


def split_endpoint_url(url: str) -> tuple[str, str | None]:
    """Part a URL that was copied from a console into its base URL and the endpoint's id.

    `https://api.runpod.ai/v2/abc123/run` gives `("https://api.runpod.ai/v2", "abc123")`; without
    an id, the second part is None.
    """
    match = re.fullmatch(r"(?P<base>\S+?://[^/?#]*/(?:[^?#]*?/)?v2)/+(?P<id>[^/?#]+)[^?#]*", url.strip())
    return (match["base"], match["id"]) if match else (url.strip(), None)


def _from_url(url: str) -> Provider:
    plain = Provider(name=urlsplit(_checked_base_url(url)).netloc, base_url=url, key_variable=KEY_VARIABLE)
    return next((known for known in PROVIDERS.values() if known.base_url == plain.base_url), plain)


def _unknown(text: str) -> str:
    shown = f"'{text}'" if len(text) <= 32 else "this long text"  # it could be a key in the wrong place
    if not text:
        return f"no provider was named; known are {', '.join(PROVIDERS)}, or a base URL ending in /v2."
    if "/" in text or ":" in text:
        return f"{shown} is no provider; a base URL begins with https:// and ends in /v2."
    near = difflib.get_close_matches(text.lower(), PROVIDERS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(PROVIDERS)}, or a base URL."
    return f"there is no provider {shown}; {hint}"
