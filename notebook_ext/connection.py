"""One endpoint by its name, for code that does not await; and what is submitted to it."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from notebook_ext import keys
from notebook_ext.entry import Entry
from notebook_ext.errors import InputError
from notebook_ext.protocol import Operation
from notebook_ext.types import ExecutionPolicy, Job, JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notebook_ext.client import Endpoint
    from notebook_ext.handle import JobHandle
    from notebook_ext.providers import Provider
    from notebook_ext.session import Session
    from notebook_ext.types import Health

__all__ = ["Connection", "Submission"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One job as it is to be submitted.

    Args:
        input: What the worker receives: any JSON value.
        sync: Submit with `/runsync` and go on by status, instead of `/run` and the stream.
        route: "openai" asks the OpenAI route: `input` is its body, and there is no id and no policy.
        policy: The server's clocks for it.
        webhook: http(s) URL that gets the result.
        s3_config: Bucket credentials for the worker; never journaled.
        cell: The notebook cell's id, where known.
        detached: Leave the remote job alone when the kernel or the interpreter ends; else it is cancelled.

    Raises:
        InputError: The route has no place for something that was asked.
    """

    input: Any
    sync: bool = False
    route: Literal["openai"] | None = None
    policy: ExecutionPolicy = field(default_factory=ExecutionPolicy)
    webhook: str | None = None
    s3_config: Mapping[str, Any] | None = field(default=None, repr=False)
    cell: str | None = None
    detached: bool = False

    def __post_init__(self) -> None:
        if self.route is None:
            return
        asked = {"runsync": self.sync, **self.options(), "s3Config": self.s3_config}
        homeless = next((name.replace("_", " ") for name, value in asked.items() if value), None)
        if homeless is not None:
            raise InputError(
                f"{homeless} has no place on the OpenAI route, which takes nothing but OpenAI's own body; "
                "nothing was sent"
            )

    @property
    def operation(self) -> Operation:
        """What is asked of the endpoint."""
        if self.route is not None:
            return Operation.OPENAI
        return Operation.RUNSYNC if self.sync else Operation.RUN

    def options(self) -> dict[str, Any]:
        """What the journal keeps of it beside the input."""
        asked = {
            "execution_timeout": self.policy.execution_timeout,
            "ttl": self.policy.ttl,
            "low_priority": self.policy.low_priority or None,
            "webhook": None if self.webhook is None else _without_secrets(self.webhook),
        }
        return {name: value for name, value in asked.items() if value is not None}


_HASHED = re.compile(r"/sha256-[0-9a-f]{12}\?")


def _without_secrets(url: str) -> str:
    """A URL's scheme and host; a short hash stands for its path and query, where tokens are."""
    parts = urlsplit(url)
    host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    rest = f"{parts.path}?{parts.query}"
    if rest in ("?", "/?") or _HASHED.fullmatch(rest):  # one from the journal stays as it is
        return host + parts.path
    return f"{host}/sha256-{hashlib.sha256(rest.encode()).hexdigest()[:12]}"


class Connection:
    """One endpoint by its name, for code that does not await: the sync facade of `Endpoint`.

    Attributes:
        name: Its name here.
        endpoint: The async client; it belongs to the session's loop.
        profile: How input is laid out and output read.
        rate: Dollars per second of running time; None where it is not known.
        served: Whether this session serves it.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        endpoint: Endpoint,
        *,
        profile: str = "raw",
        rate: float | None = None,
        served: bool = False,
    ) -> None:
        self._session = session
        self.name = name
        self.endpoint = endpoint
        self.profile = profile
        self.rate = rate
        self.served = served

    def __repr__(self) -> str:
        return f"<Connection {self.name}: {self.endpoint.id} at {self.endpoint.provider.name}>"

    @property
    def provider(self) -> Provider:
        """Where it is; `Endpoint(connection.endpoint.id, connection.provider)` calls it from any loop."""
        return self.endpoint.provider

    @property
    def key(self) -> keys.Key | None:
        """What its callers send as their API key: its repr hides it, `connection.key()` gives it.

        For an endpoint that is served here, that is the token by which other programs call it too, as
        long as this kernel lives. None where a server on this machine has no key. The keyring may take
        seconds to answer.

        Raises:
            ConfigurationError: There is none.
        """
        return keys.find_or_require(self.provider, name=self.name)

    def entry(self, submission: Submission, *, profile: str | None, notebook: str | None) -> Entry:
        """A submission to it as the journal will know it.

        Args:
            submission: What is to be done.
            profile: How its output is read; None means as here.
            notebook: The notebook's path, where it is known.
        """
        now = time.time()
        return Entry(
            endpoint=self.name,
            endpoint_id=self.endpoint.id,
            provider=self.provider.name,
            base_url=self.provider.base_url,
            key_variable=self.provider.key_variable,
            served=self.served,
            detached=submission.detached,
            operation=submission.operation,
            profile=submission.route or profile or self.profile,
            rate=self.rate,
            input=submission.input,
            options=submission.options(),
            notebook=notebook,
            cell=submission.cell,
            submitted_at=now,
            job=Job(id="", endpoint=self.endpoint.id, status=JobStatus.IN_QUEUE, seen_at=now),
        )

    def submit(self, input: Any, **options: Any) -> JobHandle:
        """Submit one job and return its handle at once; `options` are those of `Submission`."""
        return self._session.submit(self, Submission(input=input, **options))

    def run(self, input: Any, *, timeout: float | None = None, **options: Any) -> Any:
        """Submit one job, wait for its result and return it.

        Args:
            input: What the worker receives: any JSON value.
            timeout: Seconds to wait; the job goes on when they are over.
            **options: Those of `Submission`.
        """
        return self.submit(input, **options).output(timeout)

    def health(self) -> Health:
        """The endpoint's counters of jobs and workers."""
        return self._session.ask(self.endpoint.health())

    def purge_queue(self) -> int:
        """Remove every queued job, whoever submitted it, and return how many."""
        return self._session.ask(self.endpoint.purge_queue())

    def requests(self) -> list[Job]:
        """The provider's list of recent requests."""
        return self._session.ask(self.endpoint.requests())
