"""Serverless inference endpoints from a Jupyter notebook.

`%load_ext notebook_ext` brings the `%endpoint` and `%%endpoint` magics; `Endpoint` is the async
client that they stand on, and `connect` its sync facade. Every name here is imported when it is
first used, so that loading the extension stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.client import Endpoint
    from notebook_ext.connection import Connection
    from notebook_ext.errors import (
        AnswerLost,
        APIError,
        AuthenticationError,
        BadRequest,
        ConfigurationError,
        ConnectionFailed,
        EndpointError,
        InputError,
        JobCancelled,
        JobError,
        JobFailed,
        JobLost,
        JobTimedOut,
        JournalError,
        NotFoundError,
        PermissionDenied,
        ProtocolError,
        RateLimitError,
        RequestTimeout,
        ServerError,
        TransportError,
        WaitTimeout,
    )
    from notebook_ext.handle import JobHandle
    from notebook_ext.kernel import allow_nested_loops
    from notebook_ext.providers import Provider
    from notebook_ext.server import progress_update
    from notebook_ext.session import Session
    from notebook_ext.types import ExecutionPolicy, Health, Job, JobStatus, Progress, StreamChunk

__version__ = "0.1.0"

_HOMES = {
    "APIError": "errors",
    "AnswerLost": "errors",
    "AuthenticationError": "errors",
    "BadRequest": "errors",
    "ConfigurationError": "errors",
    "Connection": "connection",
    "ConnectionFailed": "errors",
    "Endpoint": "client",
    "EndpointError": "errors",
    "ExecutionPolicy": "types",
    "Health": "types",
    "InputError": "errors",
    "Job": "types",
    "JobCancelled": "errors",
    "JobError": "errors",
    "JobFailed": "errors",
    "JobHandle": "handle",
    "JobLost": "errors",
    "JobStatus": "types",
    "JobTimedOut": "errors",
    "JournalError": "errors",
    "NotFoundError": "errors",
    "PermissionDenied": "errors",
    "Progress": "types",
    "ProtocolError": "errors",
    "Provider": "providers",
    "RateLimitError": "errors",
    "RequestTimeout": "errors",
    "ServerError": "errors",
    "Session": "session",
    "StreamChunk": "types",
    "TransportError": "errors",
    "WaitTimeout": "errors",
    "allow_nested_loops": "kernel",
    "progress_update": "server",
}

__all__ = [
    "APIError",
    "AnswerLost",
    "AuthenticationError",
    "BadRequest",
    "ConfigurationError",
    "Connection",
    "ConnectionFailed",
    "Endpoint",
    "EndpointError",
    "ExecutionPolicy",
    "Health",
    "InputError",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobHandle",
    "JobLost",
    "JobStatus",
    "JobTimedOut",
    "JournalError",
    "NotFoundError",
    "PermissionDenied",
    "Progress",
    "ProtocolError",
    "Provider",
    "RateLimitError",
    "RequestTimeout",
    "ServerError",
    "Session",
    "StreamChunk",
    "TransportError",
    "WaitTimeout",
    "allow_nested_loops",
    "connect",
    "progress_update",
    "serve",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'notebook_ext' has no attribute {name!r}")
    return getattr(import_module(f"notebook_ext.{home}"), name)


def __dir__() -> Sequence[str]:
    return sorted({*globals(), *__all__})


def connect(name: str, endpoint_id: str | None = None, **options: Any) -> Connection:
    """Find an endpoint by its name, or give a name to one, and return its sync facade.

    Args:
        name: A name that is served, connected or saved; `demo` needs no account.
        endpoint_id: The provider's id for a new name; None looks the name up.
        **options: `provider` ("runpod", "tensorone", "tensorone-rest", a base URL), `profile`,
            `key_variable`, `rate` ($ per second).

    Raises:
        ConfigurationError: No such name; the sentence names near ones.
    """
    from notebook_ext.session import default_session

    return default_session().connect(name, endpoint_id, **options)


def serve(name: str, handler: Any = None, **options: Any) -> Connection:
    """Serve a handler on an embedded endpoint in this process, and return its sync facade.

    Args:
        name: Its name; serving it again swaps the handler for new jobs.
        handler: A callable in the shape that Runpod's workers use, or a built-in one's name; None
            leaves the jobs to workers in other processes.
        **options: `workers`, `dials`, `return_aggregate_stream`, `upstream`, `external`, `start`,
            `on_lost`, `lost_after`; with the first one `port`, `bind`, `allow_hosts`, `private_webhooks`.
    """
    from notebook_ext.session import default_session

    return default_session().serve(name, handler, **options)


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext notebook_ext` calls."""
    from notebook_ext.extension import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What `%unload_ext notebook_ext` calls; leaves no thread, task, socket or magic behind."""
    from notebook_ext.extension import unload

    unload(shell)
