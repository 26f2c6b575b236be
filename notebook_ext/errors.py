"""What can go wrong, as a tree; each error stores its fields and speaks one sentence.

EndpointError
├── ConfigurationError          no key, no such endpoint, a provider that cannot do it
├── InputError (ValueError)     what was typed cannot be sent; nothing was sent
├── TransportError              the network
│   ├── ConnectionFailed        nothing was sent: calling again is safe
│   └── AnswerLost              it was sent, and no whole answer came back
│       └── RequestTimeout (TimeoutError)
├── APIError                    the server answered with an HTTP error
│   ├── BadRequest              400, 413, 422
│   ├── AuthenticationError     401
│   ├── PermissionDenied        402, 403: credit or rights
│   ├── NotFoundError           404
│   ├── RateLimitError          429
│   └── ServerError             5xx
├── ProtocolError               an answer that is not what the protocol says
├── JobError                    the job itself
│   ├── JobFailed
│   ├── JobCancelled
│   ├── JobTimedOut (TimeoutError)
│   └── JobLost                 expired: the server no longer knows it
├── WaitTimeout (TimeoutError)  we stopped waiting; says what became of the job
└── JournalError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from notebook_ext.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.types import ExecutionPolicy, Job

__all__ = [
    "APIError",
    "AnswerLost",
    "AuthenticationError",
    "BadRequest",
    "ConfigurationError",
    "ConnectionFailed",
    "EndpointError",
    "InputError",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobLost",
    "JobTimedOut",
    "JournalError",
    "NotFoundError",
    "PermissionDenied",
    "ProtocolError",
    "RateLimitError",
    "RequestTimeout",
    "ServerError",
    "TransportError",
    "WaitTimeout",
    "job_error",
]


class EndpointError(Exception):
    """Anything that this package raises on purpose.

    Args:
        message: One sentence: what failed, on what, after how long, what to do next.
        job_id: The job it is about, where one is known.
    """

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id
        self._has_traceback = False

    def __reduce__(self) -> tuple[Any, ...]:
        # the constructors take more than `args` has, which is what exceptions are pickled by
        return _restored, (type(self), self.args), vars(self)

    def show_traceback(self) -> None:
        """Let IPython draw the whole traceback of this error, the worker's too where it sent one."""
        self._has_traceback = True

    @property
    def _render_traceback_(self) -> Callable[[], list[str]]:
        """IPython asks this instead of drawing a traceback: one line in the notebook."""
        if self._has_traceback:
            raise AttributeError("_render_traceback_")
        return lambda: [visible(f"{type(self).__name__}: {self}")]


def _restored(kind: type[EndpointError], args: tuple[Any, ...]) -> EndpointError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigurationError(EndpointError):
    """Something about the set-up is missing or contradictory; the sentence says what to do."""


class InputError(EndpointError, ValueError):
    """What was given cannot be sent as it is; nothing was sent."""


class TransportError(EndpointError):
    """The network failed between us and the server."""


class ConnectionFailed(TransportError):
    """The connection was never made, so nothing was sent: calling again is safe."""


class AnswerLost(TransportError):
    """The request was sent, but no whole answer came back: after a submission, the job may exist."""


class RequestTimeout(AnswerLost, TimeoutError):
    """The answer to one request did not come in time; the job itself may go on."""


class APIError(EndpointError):
    """The server answered with an HTTP error.

    Args:
        message: One sentence.
        status_code: The HTTP status.
        body: The answer's text, cut to a few hundred characters.
        job_id: The job it is about, where one is known.
    """

    def __init__(self, message: str, *, status_code: int, body: str = "", job_id: str | None = None) -> None:
        super().__init__(message, job_id=job_id)
        self.status_code = status_code
        self.body = body


class BadRequest(APIError):
    """400, 413, 422: the server did not accept the request; sending it again will not help."""


class AuthenticationError(APIError):
    """401: the key is wrong, or missing."""

    reason = ""
    """Which of both, and where a key can be put."""


class PermissionDenied(APIError):
    """402, 403: the account has no credit, or the key no right to do this."""


class NotFoundError(APIError):
    """404: there is no such endpoint, or the job is unknown or has expired."""


class RateLimitError(APIError):
    """429, 425, or 503 with Retry-After: too many requests, or too full a queue; nothing was accepted.

    Args:
        retry_after: Seconds that the server asks to wait; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 429,
        body: str = "",
        job_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status_code=status_code, body=body, job_id=job_id)
        self.retry_after = retry_after


class ServerError(APIError):
    """5xx: the platform or a proxy before it failed; after a submission, the job may exist."""


class ProtocolError(EndpointError):
    """The server answered, but not in the protocol's shape: is the base URL right?"""


class JobError(EndpointError):
    """The job itself did not end well.

    Args:
        message: One sentence.
        job: Its last snapshot; `job.error` has what the worker said.
    """

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message, job_id=job.id)
        self.job = job

    def show_traceback(self) -> None:
        if self._has_traceback:
            return
        super().show_traceback()
        if self.job.error is not None and self.job.error.traceback:
            self.add_note(f"The worker's traceback:\n{visible(self.job.error.traceback)}")


class JobFailed(JobError):
    """FAILED: the handler raised, or returned an error."""


class JobCancelled(JobError):
    """CANCELLED: somebody stopped it."""


class JobTimedOut(JobError, TimeoutError):
    """TIMED_OUT: it ran longer than its execution timeout, or no worker took it before its ttl."""


class JobLost(JobError):
    """The server no longer knows the job (404): it expired, and its result is gone."""


class WaitTimeout(EndpointError, TimeoutError):
    """We stopped waiting; the sentence says what became of the job."""


class JournalError(EndpointError):
    """The journal could not be read or written."""


def job_error(
    job: Job, name: str | None = None, *, policy: ExecutionPolicy | None = None, age: float | None = None
) -> JobError | None:
    """The error of a job that did not end well; None for any other state.

    Args:
        job: Its last snapshot.
        name: What the sentence calls it; None means by its id.
        policy: The server's clocks that it was given, where they are known.
        age: Seconds from its submission to this snapshot, where they are known.
    """
    after = f" after {job.execution_time:.1f} s on a worker" if job.execution_time is not None else ""
    said = f": {job.error}" if job.error is not None else ""
    where = name or f"job {job.id} on {job.endpoint}"
    match job.status.value:
        case "FAILED":
            return JobFailed(f"{where} failed{after}{said or ', and the worker gave no reason'}", job)
        case "CANCELLED":
            return JobCancelled(f"{where} was cancelled{after}{said}", job)
        case "TIMED_OUT":
            clock = _clock_of(job, policy, age)
            why = f": {clock}" if clock else ""
            if not (clock or said):
                why = ": it ran longer than its execution timeout, or waited longer than its ttl"
            return JobTimedOut(f"{where} timed out{after}{why}{said}", job)
        case "LOST":
            ttl = policy.ttl if policy is not None else None
            why = "it expired with its result, or was never there"
            if ttl is not None and age is not None and age >= ttl:
                why = f"its ttl of {ttl:g} s was over, and it was deleted, running or not"
            return JobLost(
                f"{where} is unknown to the server (404): {why}. "
                "Results are kept for minutes only; run it again if you still need it.",
                job,
            )
    return None


_NEARLY = 0.95
"""Share of a limit from which on it is what ended a job: the server's own measure is a little shorter."""


def _clock_of(job: Job, policy: ExecutionPolicy | None, age: float | None) -> str:
    """Which of the server's clocks a job ran into, where its times tell; else nothing."""
    if policy is None:
        return ""
    ran, limit, ttl = job.execution_time, policy.execution_timeout, policy.ttl
    if limit is not None and ran is not None and ran >= _NEARLY * limit:
        return f"its execution timeout of {limit:g} s was over (`--exec-timeout` gives it more)"
    if ttl is not None and age is not None and age >= _NEARLY * ttl:
        taken = "while it ran" if ran is not None else "before a worker took it"
        return f"its ttl of {ttl:g} s was over {taken} (`--ttl` gives it more)"
    return ""
