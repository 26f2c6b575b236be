"""The OpenAI route of an endpoint: one request, and its answer as it comes, as chunks and a final Job.

A job that is asked for so has no id: its open connection is all there is of it.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import httpx

from notebook_ext import transport
from notebook_ext.answers import excerpt, is_refusal, retry_after, without_key
from notebook_ext.clocks import CONNECT_TIMEOUT, REQUEST_TIMEOUT, SILENCE
from notebook_ext.completions import DONE, Completion, chat_request, error_in, models
from notebook_ext.errors import (
    AnswerLost,
    ConfigurationError,
    EndpointError,
    NotFoundError,
    ProtocolError,
    RequestTimeout,
    ServerError,
)
from notebook_ext.exchange import Exchange
from notebook_ext.failures import Failures
from notebook_ext.pacing import tell_pause
from notebook_ext.protocol import Operation, read_worker_error
from notebook_ext.sse import Event, Events
from notebook_ext.types import Job, JobStatus, StreamChunk, whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from notebook_ext.asking import Asking
    from notebook_ext.errors import TransportError
    from notebook_ext.limits import Limits
    from notebook_ext.providers import Provider

__all__ = ["OpenAIRoute"]

MAX_EVENT = 16 * 2**20
"""Characters of one event, above which an answer is refused."""

_WAY_AROUND = (
    "long streams of this route were seen to be cut at 60 s, and `run` without --route is the way around that"
)


class OpenAIRoute:
    """Asks the OpenAI route of one endpoint; the arguments are those of `Exchange`."""

    def __init__(
        self,
        endpoint: str,
        provider: Provider,
        api_key: str | Callable[[], str | None] | None,
        limits: Limits,
        name: str | None,
    ) -> None:
        self._endpoint, self._name = endpoint, name or endpoint
        self._exchange = _StreamingExchange(endpoint, provider, api_key, limits, name)
        self._model: str | None = None

    async def aclose(self) -> None:
        """Close its connections, and with them what is being answered."""
        await self._exchange.aclose()

    async def models(self) -> list[str]:
        """The models that it says it has, without the adapters on top of them."""
        async with await self._exchange.opened(Operation.MODELS) as answer:
            document = await answer.document()
        names = models(document)
        if names is None:
            raise ProtocolError(
                f"models on {self._name}: the answer is no list of models; is there an OpenAI route?"
            )
        return names

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[StreamChunk | Job]:
        """What `Endpoint.chat` does."""
        request = chat_request(body)
        if "model" not in request:
            request["model"] = await self._deployed_model()
        completion, index = Completion(), 0
        try:
            opened = await self._exchange.opened(Operation.OPENAI, request)
        except NotFoundError:
            self._model = None  # another one may have been deployed
            raise
        async with opened as answer:
            yield self._job(JobStatus.IN_PROGRESS)
            async with contextlib.aclosing(answer.documents()) as documents:
                async for document in documents:
                    completion.add(document)
                    yield StreamChunk(document, index)
                    index += 1
        if completion.error is None and completion.output is None:
            raise AnswerLost(f"openai on {self._name}: the answer was empty, and the job may have run")
        yield self._end_of(completion)
        if completion.error is None and not answer.is_whole:
            raise AnswerLost(_without_done(completion))

    async def _deployed_model(self) -> str:
        """The model to be asked where none is named: there must be one, and it is asked for once."""
        if self._model is None:
            names = await self._models_before_chat()
            if len(names) != 1:
                known = f"its models are {', '.join(names[:8])}" if names else "it tells no model"
                raise ConfigurationError(f"{self._name}: {known}; say which one with -m; nothing was sent")
            self._model = names[0]
        return self._model

    async def _models_before_chat(self) -> list[str]:
        """The models, whose lost answer leaves no doubt about the job: it has not been asked for yet."""
        try:
            return await self.models()
        except (AnswerLost, ServerError, ProtocolError) as error:
            told = str(error).rstrip(".")
            raise EndpointError(
                f"{told}. Nothing was submitted: no -m names the model, and its models could not be asked for"
            ) from error

    def _end_of(self, completion: Completion) -> Job:
        output = completion.output
        if completion.error is None:
            return self._job(JobStatus.COMPLETED, output=output, has_output=True)
        error = read_worker_error(completion.error)
        return self._job(JobStatus.FAILED, output=output, has_output=output is not None, error=error)

    def _job(self, status: JobStatus, **known: Any) -> Job:
        return Job(id="", endpoint=self._endpoint, status=status, seen_at=time.time(), **known)


def _without_done(completion: Completion) -> str:
    told = "the stream ended without [DONE]"
    if completion.is_finished:
        return f"{told}, behind the end of its text: its usage may not have been told"
    return f"{told}: text may be missing ({_WAY_AROUND})"


class _RouteFailures(Failures):
    """What else may go wrong on this route."""

    def unreached(self, asking: Asking, error: Exception, after: float) -> TransportError:
        if isinstance(error, httpx.ReadTimeout):
            return RequestTimeout(
                f"{self.what(asking)}: nothing came for {SILENCE:g} s (the silence timeout of "
                "this route). The job may run all the same; running it again may run it twice."
            )
        return super().unreached(asking, error, after)

    def refused(self, asking: Asking, response: httpx.Response, key: str | None) -> EndpointError:
        code = response.status_code
        if code not in (404, 405):
            return super().refused(asking, response, key)
        said = excerpt(response, key)
        tail = f": {said}" if said else ""
        why = (
            "it has no such model; -m names one as it was deployed"
            if "model" in said.lower()
            else "there is no OpenAI route here: its worker may not speak it, or the endpoint's id is wrong. "
            "`run` without --route asks any worker"
        )
        return NotFoundError(
            f"{self.what(asking)}: not found ({code}){tail}; {why}", status_code=code, body=said
        )


class _StreamingExchange(Exchange):
    """An exchange whose answers are read while they come; what is repeated, and when, is as in all others."""

    _failures_class = _RouteFailures

    async def opened(self, operation: Operation, body: Any = None) -> _Answer:
        """Ask, and return the answer when its head is there: a context, which has to be left.

        Args:
            operation: What is asked.
            body: JSON to send; None sends no body.
        """
        answer: _Answer = await self.call(operation, body=body, timeout=REQUEST_TIMEOUT)
        return answer

    def _make_client(self) -> httpx.AsyncClient:
        return transport.make_streaming_client(self.provider.base_url)

    async def _send(self, client: httpx.AsyncClient, asking: Asking, timeout: float) -> _Answer:
        self._refuse_long_pause(asking)
        key = await self._key()
        came = time.monotonic()
        if (pause := self._limits.paused(asking.operation)) > 0:
            tell_pause(pause)
        async with contextlib.AsyncExitStack() as stack:
            slot = await stack.enter_async_context(self._limits.slot(asking.operation))
            asking.held_back += slot.sent - came
            what = self._failures.what(asking)
            if client.is_closed:
                raise self._failures.closed(asking)
            clocks = httpx.Timeout(SILENCE, connect=CONNECT_TIMEOUT, write=timeout, pool=None)
            request = self._build_request(client, asking, key, clocks)
            try:
                response = await client.send(request, stream=True)
                stack.push_async_callback(response.aclose)
                if not _is_stream(response):
                    async with asyncio.timeout(SILENCE):
                        response = await transport.whole(response)
            except (httpx.TransportError, TimeoutError) as error:
                raise self._failures.unreached(asking, error, time.monotonic() - slot.sent) from error
            except httpx.DecodingError as error:
                raise ProtocolError(f"{what}: the answer is garbled: {error}") from error
            if is_refusal(response):
                slot.refuse(retry_after(response))
            if not (response.is_success or _is_told_failure(response)):
                self._answer(asking, response, key)
            return _Answer(what, response, key, stack.pop_all())
        raise AssertionError  # leaving the stack swallows nothing


class _Answer:
    """One answer: server-sent events, or a document that is there already.

    Args:
        what: What was asked, of whom.
        response: The answer; read already where it is a document.
        key: Blotted out wherever the server says it.
        stack: Holds the connection, and its place among the endpoint's limits.
    """

    def __init__(
        self, what: str, response: httpx.Response, key: str | None, stack: contextlib.AsyncExitStack
    ) -> None:
        self.is_whole = False
        """Whether its end has been told."""
        self._what, self._response, self._key, self._stack = what, response, key, stack
        self._began = time.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def documents(self) -> AsyncGenerator[dict[str, Any]]:
        """What it says, as it comes.

        Raises:
            AnswerLost: The connection broke.
            ProtocolError: It is no such answer.
        """
        if not _is_stream(self._response):
            yield await self.document()
            self.is_whole = True
            return
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                if event.data.strip() == DONE:
                    self.is_whole = True
                    return
                if event.data.strip():
                    yield self._read(event)

    async def document(self) -> dict[str, Any]:
        """It, where it is one document.

        Raises:
            ProtocolError: It is none of OpenAI's.
        """
        response = self._response
        kind = response.headers.get("content-type", "").partition(";")[0] or "no content type"
        told = "" if _is_stream(response) else excerpt(response, self._key)
        document = _json(without_key(response.content, self._key)) if told else None
        if isinstance(document, dict) and (
            {"choices", "data"} & document.keys() or error_in(document) is not None
        ):
            return document
        found = "neither events nor JSON" if document is None else "JSON, but none of OpenAI's"
        raise ProtocolError(
            f"{self._what}: the answer ({response.status_code}, {kind}) is {found}: {told or 'empty'}. "
            "Is there an OpenAI route? `run` without --route asks any worker"
        )

    async def _events(self) -> AsyncGenerator[Event]:
        text, events = codecs.getincrementaldecoder("utf-8-sig")("replace"), Events()
        try:
            async for part in self._response.aiter_bytes():
                for event in events.feed(text.decode(part)):
                    yield event
                if events.waiting > MAX_EVENT:
                    raise ProtocolError(f"{self._what}: an event is over {MAX_EVENT} characters")
        except httpx.TransportError as error:
            raise self._broken(error) from error
        for event in events.close():
            if event.data.strip() == DONE or _json(event.data.encode()) is not None:  # else it is cut
                yield event

    def _read(self, event: Event) -> dict[str, Any]:
        said = without_key(event.data.encode(), self._key)
        document = _json(said)
        if event.name == "error" and not (isinstance(document, dict) and document.get("error")):
            return {"error": document or said.decode()}
        if not isinstance(document, dict):
            shown = said[:100].decode(errors="replace")
            raise ProtocolError(
                f"{self._what}: an event is no JSON object: {shown!r}; text may be missing behind it"
            )
        return document

    def _broken(self, error: httpx.TransportError) -> AnswerLost:
        after = time.monotonic() - self._began
        if isinstance(error, httpx.TimeoutException):
            return RequestTimeout(
                f"{self._what}: nothing more came for {SILENCE:g} s (the silence timeout of this route): "
                "text may be missing, and the job may go on at its worker"
            )
        return AnswerLost(
            f"{self._what}: the connection broke {after:.1f} s into the answer "
            f"({error or type(error).__name__}): text may be missing, and the job may go on at its worker "
            f"({_WAY_AROUND})"
        )


def _is_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_packed = response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", "")
    return response.is_success and kind == "text/event-stream" and not is_packed


def _is_told_failure(response: httpx.Response) -> bool:
    """Whether the worker itself says that it failed: then its job has ended, unlike behind a proxy's 502."""
    if response.status_code < 500 or is_refusal(response):
        return False
    document = _json(response.content)
    return isinstance(document, dict) and isinstance(error_in(document), Mapping)


def _json(content: bytes) -> Any:
    """What it says; None where that is no JSON."""
    try:
        return whole(json.loads(content))
    except (ValueError, RecursionError):
        return None
