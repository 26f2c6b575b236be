"""The built-in handlers: to try things without an account, and to rehearse trouble."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import difflib
import functools
import hashlib
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

from notebook_ext.errors import ConfigurationError
from notebook_ext.server.gate import openai_error
from notebook_ext.server.handlers import progress_update
from notebook_ext.server.openai_documents import openai_documents
from notebook_ext.server.outbound import Upstream, forward, is_openai_route, stream_chat
from notebook_ext.server.salad import write_salad

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from notebook_ext.server.job import Handler

__all__ = ["BUILT_IN", "built_in"]

IMAGE_SIZE = 256
MAX_IMAGE_SIZE = 1024


def built_in(name: str, upstream: Upstream | None = None) -> Handler:
    """Look up a built-in handler.

    Raises:
        ConfigurationError: There is none of that name, or `openai` was given no upstream.
    """
    if name in _FREE_STANDING:
        return _FREE_STANDING[name]
    if name != "openai":
        close = difflib.get_close_matches(name, BUILT_IN, 1, cutoff=0.7)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BUILT_IN)}."
        raise ConfigurationError(f"there is no built-in handler {name!r}; {hint}")
    if upstream is None:
        raise ConfigurationError("the handler 'openai' needs the URL of an OpenAI-compatible server")
    return functools.partial(openai, upstream=upstream)


def echo(job: dict[str, Any]) -> Any:
    """Return the input."""
    return job["input"]


def fail(job: dict[str, Any]) -> None:
    """Raise, with the input's `message`."""
    settings = _settings(job)
    raise RuntimeError(str(settings.get("message") or settings.get("prompt") or "this handler always fails"))


async def sleep(job: dict[str, Any]) -> dict[str, float]:
    """Sleep for the input's `seconds` (1), telling the progress ten times on the way."""
    seconds = _number(_settings(job), "seconds", 1.0, 0.0, 7 * 24 * 3600.0)
    steps = 10
    for step in range(steps):
        progress_update(job, {"step": step, "of": steps})
        await asyncio.sleep(seconds / steps)
    return {"slept": seconds}


async def chat(job: dict[str, Any]) -> AsyncGenerator[Any]:
    """Stream word salad in Markdown; it is no model, and its first line says so.

    Input: `prompt` or `messages`, `max_tokens` (120 words), `tokens_per_second` (40), `seed` (else
    from the prompt), `temperature` (1; 0 takes the most usual word each time). Calls of the OpenAI
    route are answered in its documents, whatever model they name.
    """
    settings = _settings(job)
    said = _chat_by_openai(settings) if "openai_route" in settings else _say(**_salad(settings))
    async with contextlib.aclosing(said):
        async for piece in said:
            yield piece


async def _chat_by_openai(settings: dict[str, Any]) -> AsyncGenerator[Any]:
    body = settings.get("openai_input") or {}
    try:
        documents = openai_documents(settings["openai_route"], body)
        salad = _salad({**body, "max_tokens": body.get("max_completion_tokens", body.get("max_tokens"))})
        salad["length"] -= 1  # the headline is a token too
    except LookupError as error:
        yield openai_error(f"the demo has no {error}", 404)
    except (TypeError, ValueError) as error:
        yield openai_error(str(error), 400)
    else:
        if isinstance(documents, dict):
            yield documents
            return
        async with contextlib.aclosing(_say(**salad)) as words:
            async for piece in documents(words):
                yield piece


def _salad(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `_say`."""
    seed = settings.get("seed")
    return {
        "pace": _number(settings, "tokens_per_second", 40.0, 0.01, 1e6),
        "seed": str(_prompt(settings) if seed is None else seed),
        "length": int(_number(settings, "max_tokens", 120, 0, 100_000)),
        "temperature": _number(settings, "temperature", 1.0, 0.0, 100.0),
    }


async def _say(*, pace: float, **salad: Any) -> AsyncGenerator[str]:
    loop = asyncio.get_running_loop()
    due = loop.time()
    for word in write_salad(**salad):
        yield word
        due += 1 / pace
        await asyncio.sleep(due - loop.time())


async def openai(job: dict[str, Any], *, upstream: Upstream) -> AsyncGenerator[Any]:
    """Stream what an OpenAI-compatible server answers; the input goes there as it is.

    Input: `messages`, or `prompt` and perhaps `system`; `model`, `temperature`, `max_tokens` ...
    Calls of the OpenAI route are passed on, whatever they ask.
    """
    body = dict(_settings(job))
    said = _forwarded(upstream, body) if "openai_route" in body else stream_chat(upstream, _asked(body))
    async with contextlib.aclosing(said):
        async for piece in said:
            yield piece


def _forwarded(upstream: Upstream, settings: dict[str, Any]) -> AsyncGenerator[Any]:
    route, body = settings["openai_route"], settings.get("openai_input")
    if not is_openai_route(route):
        raise ValueError("'openai_route' must be a path like /v1/chat/completions")
    if not isinstance(body, dict | None):
        raise TypeError(f"'openai_input' must be an object, not {type(body).__name__}")
    return forward(upstream, route, body)


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    prompt, system = body.pop("prompt", None), body.pop("system", None)
    if "messages" not in body:
        if prompt is None:
            raise ValueError("the input needs 'messages' or 'prompt'")
        roles = [{"role": "system", "content": system}] if system else []
        body["messages"] = [*roles, {"role": "user", "content": prompt}]
    return body


def image(job: dict[str, Any]) -> dict[str, Any]:
    """Draw a pattern that the prompt's hash decides, in the shape that worker-comfyui returns.

    Input: `prompt`, `seed`, `width` and `height` (256 pixels).
    """
    settings = _settings(job)
    width = int(_number(settings, "width", IMAGE_SIZE, 1, MAX_IMAGE_SIZE))
    height = int(_number(settings, "height", IMAGE_SIZE, 1, MAX_IMAGE_SIZE))
    digest = hashlib.sha256(f"{_prompt(settings)}\n{settings.get('seed', '')}".encode()).digest()
    data = base64.b64encode(_png(width, height, _pattern(width, height, digest), _palette(digest))).decode()
    return {"images": [{"filename": "demo.png", "type": "base64", "data": data}]}


def _pattern(width: int, height: int, digest: bytes) -> list[bytes]:
    """Rows of palette indices: a sum of waves along x, y and the diagonal."""

    def wave(length: int, size: int, turns: int, phase: int) -> list[int]:
        return [
            round(42 * (1 + math.sin(2 * math.pi * (turns * i / size + phase / 256)))) for i in range(length)
        ]

    across = wave(width, width, 1 + digest[0] % 3, digest[1])
    down = wave(height, height, 1 + digest[2] % 3, digest[3])
    diagonal = wave(width + height, max(width, height), 1 + digest[4] % 4, digest[5])
    return [bytes(across[x] + down[y] + diagonal[x + y] for x in range(width)) for y in range(height)]


def _palette(digest: bytes) -> bytes:
    """256 colours on a closed curve, so that neighbouring indices look alike."""
    phases = digest[6:9]
    return bytes(
        round(127.5 + 115 * math.cos(2 * math.pi * (index + phase) / 256))
        for index in range(256)
        for phase in phases
    )


def _png(width: int, height: int, rows: list[bytes], palette: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, indexed colour
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette),
            chunk(b"IDAT", pixels),
            chunk(b"IEND", b""),
        )
    )


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    settings = job["input"]
    if isinstance(settings, str):
        return {"prompt": settings}
    if not isinstance(settings, dict):
        raise TypeError(f"the input must be an object, not {type(settings).__name__}")
    return settings


def _prompt(settings: dict[str, Any]) -> str:
    return str(settings.get("prompt") or settings.get("messages") or "")


def _number(settings: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name!r} must be a number from {low:g} to {high:g}")
    return value


_FREE_STANDING: dict[str, Handler] = {
    "chat": chat,
    "echo": echo,
    "fail": fail,
    "image": image,
    "sleep": sleep,
}
BUILT_IN = tuple(sorted([*_FREE_STANDING, "openai"]))
"""The names of the built-in handlers."""
