"""Why a request came to nothing: the error for it, in words that say what became of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from notebook_ext.answers import excerpt, is_refusal, retry_after
from notebook_ext.errors import (
    AnswerLost,
    APIError,
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    InputError,
    NotFoundError,
    PermissionDenied,
    ProtocolError,
    RateLimitError,
    RequestTimeout,
    ServerError,
)
from notebook_ext.protocol import Operation

if TYPE_CHECKING:
    from notebook_ext.asking import Asking
    from notebook_ext.errors import EndpointError, TransportError
    from notebook_ext.providers import Provider

__all__ = ["NEVER_SENT", "Failures"]

NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)
"""What httpx raises before anything has left this machine."""
_PERHAPS_TAKEN = frozenset({302, 303})
"""Redirects that a server also answers with when it has done what a POST asked for."""
_FATES = {
    Operation.RETRY: "The job may have been queued again all the same; running it again may run it twice",
    Operation.CANCEL: "The job may have been cancelled all the same; it is safe to ask again",
    Operation.PURGE_QUEUE: "The queue may have been purged all the same; it is safe to ask again",
    **dict.fromkeys((Operation.HEALTH, Operation.REQUESTS), "It is safe to ask again"),
}
"""What became of the job whose request was not answered, where that is not what it usually is."""


class Failures:
    """Makes the errors of one endpoint's requests.

    Args:
        endpoint: The endpoint's id.
        provider: Where it is.
        saved_name: The name under which a person knows it, if there is one.
    """

    def __init__(self, endpoint: str, provider: Provider, saved_name: str | None) -> None:
        self._endpoint = endpoint
        self._provider = provider
        self._saved_name = saved_name
        self._name = saved_name or endpoint

    def what(self, asking: Asking) -> str:
        """What was asked, of whom."""
        job = f" of job {asking.job_id}" if asking.job_id else ""
        return f"{asking.operation}{job} on {self._name}"

    # ------------------------------------------------------------------ nothing was sent

    def no_id(self, operation: Operation, job_id: str) -> InputError:
        """What is given cannot be a job's id, or there is none."""
        if job_id:
            return InputError(f"{job_id!r} is not a job id")
        return InputError(
            f"{operation} on {self._name}: the job has no id to ask {self._provider.name} by; what its own "
            "answer told is all there is; nothing was sent"
        )

    def closed(self, asking: Asking) -> ConnectionFailed:
        """The endpoint was closed meanwhile."""
        return ConnectionFailed(
            f"{self.what(asking)}: the endpoint was closed; nothing was sent", job_id=asking.job_id or None
        )

    def paused(self, asking: Asking, pause: float) -> RateLimitError:
        """The server has said that it wants no request for longer than the caller waits."""
        return RateLimitError(
            f"{self.what(asking)}: the server had too many requests and "
            f"wants none for another {pause:.0f} s; nothing was sent",
            retry_after=pause,
            job_id=asking.job_id or None,
        )

    # ------------------------------------------------------------------ no whole answer

    def unreached(self, asking: Asking, error: Exception, after: float) -> TransportError:
        """There was no connection, or no whole answer over it.

        Args:
            asking: What was asked.
            error: What the transport raised.
            after: Seconds since it was sent.
        """
        what = self.what(asking)
        known = {"job_id": asking.job_id or None}
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            why = f"the connect timeout is {asking.connect_timeout:g} s"
        if isinstance(error, NEVER_SENT):
            return ConnectionFailed(
                f"{what}: no connection to {self._provider.base_url} after {after:.1f} s ({why}); nothing "
                "was sent. Is the network up, and the address right?",
                **known,
            )
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return RequestTimeout(
                f"{what}: no answer within {after:.1f} s ({_clock(asking)}). {_fate(asking)}.", **known
            )
        return AnswerLost(
            f"{what}: the connection broke after {after:.1f} s, before a whole answer came ({why}). "
            f"{_fate(asking)}.",
            **known,
        )

    def garbled(self, asking: Asking, error: httpx.DecodingError) -> ProtocolError:
        """The answer came, and could not be unpacked."""
        return ProtocolError(
            f"{self.what(asking)}: the answer is garbled: {error}{_perhaps_queued(asking)}",
            job_id=asking.job_id or None,
        )

    def not_json(self, asking: Asking, response: httpx.Response, key: str | None) -> ProtocolError:
        """The answer is good by its code, and is none by what is in it."""
        return ProtocolError(
            f"{self.what(asking)}: the answer ({response.status_code}) is not JSON: {excerpt(response, key)}"
            f"{_perhaps_queued(asking)}. Is {self._provider.base_url} the right address?",
            job_id=asking.job_id or None,
        )

    # ------------------------------------------------------------------ an answer that says no

    def refused(self, asking: Asking, response: httpx.Response, key: str | None) -> EndpointError:
        """What an answer says by its code.

        Args:
            asking: What was asked.
            response: The answer.
            key: What it was asked with; it is never repeated.
        """
        what, code, said = self.what(asking), response.status_code, excerpt(response, key)
        known: dict[str, Any] = {"status_code": code, "body": said, "job_id": asking.job_id or None}
        tail = f": {said}" if said else ""
        if 300 <= code < 400:
            return _redirected(asking, what, known)
        match code:
            case 401:
                why = "the key was refused" if key else "it wants a key, and none was sent"
                hint = self._key_hint(key)
                refused = AuthenticationError(f"{what}: {why} (401){tail}; {hint}", **known)
                refused.reason = f"{why}: {hint}"
                return refused
            case 402 | 403:
                return PermissionDenied(f"{what}: not allowed ({code}: credit or rights){tail}", **known)
            case 404 if asking.job_id:
                return NotFoundError(f"{what}: unknown (404){tail}", **known)
            case 404:
                return NotFoundError(
                    f"{what}: {self._provider.name} knows no endpoint {self._endpoint!r} (404){tail}; "
                    f"check its id{self._name_hint()}",
                    **known,
                )
            case 421:
                return APIError(
                    f"{what}: the server does not answer for {self._provider.base_url} (421){tail}; is it "
                    "reached through another host or port than its own? Start it with that port, or connect "
                    "to the address that it names",
                    **known,
                )
            case _ if is_refusal(response):
                pause = retry_after(response)
                when = f"try again in {pause:g} s" if pause else "try again in a moment"
                why = "too many requests, or the queue is full" if code == 429 else "it takes no request now"
                return RateLimitError(
                    f"{what}: {why} ({code}){tail}; nothing was queued: {when}",
                    retry_after=pause,
                    **known,
                )
            case _ if code == 408 or code >= 500:
                return ServerError(
                    f"{what}: the platform failed ({code}){tail}{_perhaps_queued(asking)}", **known
                )
            case _ if code in (400, 413, 422):
                return BadRequest(f"{what}: the server did not accept the request ({code}){tail}", **known)
        return APIError(f"{what}: the server answered {code}{tail}", **known)

    def _name_hint(self) -> str:
        """For whoever typed a name where an id is meant."""
        if self._saved_name is not None:
            return ""
        return (
            f", or take notebook_ext.connect({self._endpoint!r}) if that is a name which is saved or served"
        )

    def _key_hint(self, key: str | None) -> str:
        variable = self._provider.key_variable
        if not variable:
            return "check the key" if key else "give it one"
        return f"{'check' if key else 'set'} ${variable}, or `%endpoint login {self._saved_name or 'NAME'}`"


def _redirected(asking: Asking, what: str, known: dict[str, Any]) -> EndpointError:
    """It is the same the next time; only what a submission came to may be unknown."""
    told = (
        f"{what}: the server redirects ({known['status_code']}); it is not followed, so that the key goes to "
        "no other host"
    )
    if asking.submits and known["status_code"] in _PERHAPS_TAKEN:
        return ProtocolError(f"{told}{_perhaps_queued(asking)}. Correct the address", job_id=known["job_id"])
    return APIError(f"{told}. Correct the address", **known)


def _fate(asking: Asking) -> str:
    """What became of the job whose request was not answered."""
    usual = (
        "The job may have been queued all the same, its id is unknown; running it again may run it twice"
        if asking.submits
        else "The job goes on; it is safe to ask again"
    )
    return _FATES.get(asking.operation, usual)


def _perhaps_queued(asking: Asking) -> str:
    return "; the job may have been queued all the same" if asking.submits else ""


def _clock(asking: Asking) -> str:
    """Which clock has run out."""
    if asking.hold is not None:
        return f"the server may hold it for {asking.hold:g} s, and the hold timeout is {asking.timeout:g} s"
    kind = "submit" if asking.submits else "request"
    return f"the {kind} timeout is {asking.timeout:g} s"
