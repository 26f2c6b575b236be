"""What the embedded server asks of others: webhooks, and OpenAI-compatible servers to proxy.

The only module of the server that imports httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from notebook_ext.errors import ConfigurationError, EndpointError, InputError
from notebook_ext.server.addresses import WebhookRules, is_loopback_host
from notebook_ext.server.gate import openai_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Mapping

__all__ = ["Upstream", "Webhooks", "check_url", "forward", "is_openai_route", "stream_chat"]

_log = logging.getLogger(__name__)

WEBHOOK_TRIES = 3
WEBHOOK_PAUSE = 10.0
"""Documented: expects 200, and up to 2 further tries, 10 s apart."""
WEBHOOK_TIMEOUT = 10.0
"""Seconds for one try, up to the status of the answer."""
WEBHOOKS_AT_ONCE = 20
"""A purge ends thousands of jobs in one moment; the system gives a process some hundred connections."""
UPSTREAM_TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Seconds. A local model may take minutes to be loaded before its first token."""
EXCERPT = 500


def check_url(url: str, what: str) -> str:
    """Return the URL if it is one that can be called.

    Raises:
        InputError: It is not http or https, has no host, or holds a user name or password.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{what} must be an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{what} must not hold a user name or password")
    return url


def _is_loopback(url: str) -> bool:
    return is_loopback_host(urlsplit(url).hostname or "")


def _client(url: str, timeout: httpx.Timeout | float, *, direct: bool = False) -> httpx.AsyncClient:
    local = _is_loopback(url)
    return httpx.AsyncClient(
        timeout=timeout,
        follow_redirects=False,
        trust_env=not (
            local or direct
        ),  # a proxy from the environment is for the world, not for this machine
        verify=_certificates() if not local or url.startswith("https:") else False,
    )


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Loaded once: it takes 30 ms, in which the event loop stands still."""
    return httpx.create_ssl_context()


class Webhooks:
    """Delivers the results of jobs, beside the queue: nobody waits for it.

    Args:
        rules: Where they may go.
        pause: Seconds between the tries.
        timeout: Seconds for one try.
    """

    def __init__(
        self,
        rules: WebhookRules | None = None,
        *,
        pause: float = WEBHOOK_PAUSE,
        timeout: float = WEBHOOK_TIMEOUT,
    ) -> None:
        self.rules = rules or WebhookRules()
        self._pause = pause
        self._timeout = timeout
        self._places = asyncio.Semaphore(WEBHOOKS_AT_ONCE)
        self._deliveries: set[asyncio.Task[None]] = set()

    def send(self, url: str, payload: Mapping[str, Any]) -> None:
        """Start to deliver one payload."""
        delivery = asyncio.get_running_loop().create_task(self._deliver(url, payload), context=Context())
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def close(self) -> None:
        """Give up what is not delivered yet."""
        deliveries = list(self._deliveries)
        for delivery in deliveries:
            delivery.cancel()
        await asyncio.gather(*deliveries, return_exceptions=True)

    async def _deliver(self, url: str, payload: Mapping[str, Any]) -> None:
        for attempt in range(WEBHOOK_TRIES):
            if attempt:
                await asyncio.sleep(self._pause)
            async with self._places:
                reason = await self._post(url, payload)
            if reason is None:
                return
        # The path of a webhook often is its secret: only the host is told.
        _log.warning("webhook of job %s to %s: %s", payload.get("id"), urlsplit(url).hostname, reason)

    async def _post(self, url: str, payload: Mapping[str, Any]) -> str | None:
        headers, extensions = {"Content-Type": "application/json"}, {}
        try:
            target = httpx.URL(url)
            address = await self.rules.resolve(url)
            if address is not None:
                headers["Host"] = target.netloc.decode("ascii")
                extensions = {"sni_hostname": target.raw_host.decode("ascii")}
                target = target.copy_with(host=address)
            async with (
                asyncio.timeout(self._timeout),
                _client(url, self._timeout, direct=address is not None) as client,
                client.stream(
                    "POST", target, content=json.dumps(payload), headers=headers, extensions=extensions
                ) as answer,  # the body is nobody's business, and may never end
            ):
                return None if answer.status_code == 200 else f"HTTP {answer.status_code}"
        except InputError as error:
            return str(error)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, RecursionError) as error:
            return type(error).__name__


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-compatible server: a local vLLM, llama.cpp, Ollama, or a remote one.

    Args:
        url: Its base URL, as OpenAI clients take it: usually ends in /v1.
        api_key: Called for each request; None where it needs no key.
    """

    url: str
    api_key: Callable[[], str | None] = field(default=lambda: None, repr=False)

    def __post_init__(self) -> None:
        try:
            check_url(self.url, "the upstream")
        except InputError as error:
            raise ConfigurationError(str(error)) from None

    def headers(self) -> dict[str, str]:
        key = self.api_key()
        if not key:
            return {}
        if urlsplit(self.url).scheme != "https" and not _is_loopback(self.url):
            raise ConfigurationError("the upstream's key goes only over https, or to this machine")
        return {"Authorization": f"Bearer {key}"}


class UpstreamError(EndpointError):
    """The upstream refused, failed, or answered something else."""


async def stream_chat(upstream: Upstream, body: Mapping[str, Any]) -> AsyncGenerator[str]:
    """Ask `/chat/completions` with `stream: true` and yield the text as it comes.

    Where the body names no model, the upstream's first one is taken: a local server mostly has one.

    Raises:
        UpstreamError: With the upstream's own words, but never with the key.
    """
    base = upstream.url.rstrip("/")
    url = f"{base}/chat/completions"
    headers = upstream.headers()
    try:
        async with _client(url, UPSTREAM_TIMEOUT) as client:
            asked = {**await _with_model(client, base, body, headers), "stream": True}
            async with client.stream("POST", url, json=asked, headers=headers) as answer:
                if answer.status_code != 200:
                    raise UpstreamError(await _refusal(answer, headers))
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    if text := _delta(data, headers):
                        yield text
    except httpx.HTTPError as error:
        raise _no_answer(url, error) from None


_ROUTE = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9._:@+-]*)+\Z")


def is_openai_route(route: Any) -> bool:
    """Whether it is a plain path below /v1, which leads nowhere else when it is put behind a URL."""
    return isinstance(route, str) and bool(_ROUTE.match(route))


async def forward(
    upstream: Upstream, route: str, body: Mapping[str, Any] | None
) -> AsyncGenerator[str | dict[str, Any]]:
    """Pass an OpenAI call on, and yield what comes back: text as it streams, or the one document.

    Where the body names no model, the upstream's first one is taken. Where the upstream refuses,
    the document is `{"error": ...}` with its words and its HTTP status.

    Args:
        upstream: Who is asked.
        route: Such as `/v1/chat/completions`.
        body: None for a GET.

    Raises:
        UpstreamError: It broke off or answered something else; never with the key.
    """
    base = upstream.url.rstrip("/")
    url = f"{base}{route.removeprefix('/v1')}"
    headers = upstream.headers()
    try:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(_client(url, UPSTREAM_TIMEOUT))
            method, asked = "GET", None
            if body is not None:
                method, asked = "POST", await _with_model(client, base, body, headers)
            answer = await stack.enter_async_context(client.stream(method, url, json=asked, headers=headers))
            if answer.status_code != 200:
                yield openai_error(await _refusal(answer, headers), _passed_on(answer.status_code))
            elif answer.headers.get("content-type", "").startswith("text/event-stream"):
                end = ""
                async for text in answer.aiter_text():
                    end = (end + text)[-EXCERPT:]
                    yield text
                if route.endswith("/completions") and "[DONE]" not in end:
                    raise UpstreamError("the upstream broke off before the end of its answer")
            else:
                yield _document(await answer.aread(), headers)
    except httpx.HTTPError as error:
        raise _no_answer(url, error) from None


def _passed_on(status: int) -> int:
    """A refused key is this server's, not the caller's."""
    return status if status >= 400 and status not in (401, 403) else 502


def _document(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        text = body[: 4 * EXCERPT].decode("utf-8", "replace")
        raise UpstreamError(
            _scrubbed(f"the upstream answered something that is no document: {text}", headers)
        )
    return document


def _no_answer(url: str, error: httpx.HTTPError) -> UpstreamError:
    return UpstreamError(f"the upstream {urlsplit(url).netloc} did not answer: {type(error).__name__}")


async def _with_model(
    client: httpx.AsyncClient, base: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> dict[str, Any]:
    model = body.get("model") or await _first_model(client, f"{base}/models", headers)
    return {**body, **({"model": model} if model else {})}


async def _first_model(client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> str | None:
    """None where it does not tell: then it has to say itself what is missing."""
    answer = await client.get(url, headers=headers)
    try:
        name = answer.json()["data"][0]["id"]
    except (ValueError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


async def _refusal(answer: httpx.Response, headers: Mapping[str, str]) -> str:
    text = ""
    async for piece in answer.aiter_text():
        text += piece
        if len(text) > EXCERPT:
            break
    host = answer.request.url.host
    return f"the upstream {host} answered HTTP {answer.status_code}: {_scrubbed(text, headers)}"


def _scrubbed(text: str, headers: Mapping[str, str]) -> str:
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    return (text.replace(key, "***") if key else text)[:EXCERPT]


def _delta(data: str, headers: Mapping[str, str]) -> str | None:
    try:
        event = json.loads(data)
        if event.get("error"):
            raise UpstreamError(_scrubbed(f"the upstream broke off: {json.dumps(event['error'])}", headers))
        choices = event.get("choices") or [{}]  # the last event may hold only the usage
        content = (choices[0].get("delta") or {}).get("content")
    except (ValueError, AttributeError, LookupError, TypeError):
        raise UpstreamError(
            _scrubbed(f"the upstream sent something that is no chat chunk: {data}", headers)
        ) from None
    return content if isinstance(content, str) else None
