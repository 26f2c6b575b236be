"""What an OpenAI-compatible server says around the words: the demo's own answers."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

__all__ = ["DEMO_MODEL", "openai_documents"]

DEMO_MODEL = "word-salad"


def openai_documents(
    route: str, body: dict[str, Any]
) -> dict[str, Any] | Callable[[AsyncIterator[str]], AsyncGenerator[Any]]:
    """The answer to a call: a document, or what makes the documents from the words.

    With `stream: true` those are server-sent events as strings, as worker-vllm yields them.

    Raises:
        LookupError: There is no such route, or no such model.
        TypeError: The body is no object.
        ValueError: It lacks what the route needs.
    """
    if not isinstance(body, dict):
        raise TypeError(f"'openai_input' must be an object, not {type(body).__name__}")
    if route == "/v1/models":
        return {"object": "list", "data": [_model()]}
    if route == f"/v1/models/{DEMO_MODEL}":
        return _model()
    if route not in _NEEDED:
        raise LookupError(f"route {route!r}")
    needed = _NEEDED[route]
    if not body.get(needed) or not isinstance(body[needed], (str, list)):
        raise ValueError(f"{needed!r} is missing, or empty, or no {needed}")
    answer = _Answer(body, asked=body[needed], is_chat=needed == "messages")
    return answer.stream if body.get("stream") else answer.whole


_NEEDED = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}


def _model() -> dict[str, Any]:
    return {"id": DEMO_MODEL, "object": "model", "created": 0, "owned_by": "notebook_ext"}


class _Answer:
    """The documents of one completion.

    Args:
        body: The call's.
        asked: Its messages, or its prompt.
        is_chat: Whether it came by chat/completions.
    """

    def __init__(self, body: dict[str, Any], *, asked: str | list[Any], is_chat: bool) -> None:
        options = body.get("stream_options")
        self._usage_asked = isinstance(options, dict) and bool(options.get("include_usage"))
        has_limit = {"max_tokens", "max_completion_tokens"} & body.keys()
        self._finish_reason = "length" if has_limit else "stop"
        self._is_chat = is_chat
        self._asked = len(json.dumps(asked).split())
        self._frame = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.get("model") or DEMO_MODEL,
        }

    async def whole(self, words: AsyncIterator[str]) -> AsyncGenerator[dict[str, Any]]:
        said = [word async for word in words]
        text = "".join(said)
        spoken = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        yield {
            **self._frame,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [_choice(spoken, self._finish_reason)],
            "usage": self._usage(len(said)),
        }

    async def stream(self, words: AsyncIterator[str]) -> AsyncGenerator[str]:
        chunk = self._chunk
        if self._is_chat:
            yield chunk([_choice({"delta": {"role": "assistant", "content": ""}})])
        count = 0
        async for word in words:
            count += 1
            yield chunk([_choice({"delta": {"content": word}} if self._is_chat else {"text": word})])
        yield chunk([_choice({"delta": {}} if self._is_chat else {"text": ""}, self._finish_reason)])
        if self._usage_asked:
            yield chunk([], usage=self._usage(count))
        yield "data: [DONE]\n\n"

    def _chunk(self, choices: list[Any], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return f"data: {json.dumps({**self._frame, 'object': kind, 'choices': choices, **more})}\n\n"

    def _usage(self, said: int) -> dict[str, int]:
        """Words, which is what this demo has for tokens."""
        return {
            "prompt_tokens": self._asked,
            "completion_tokens": said,
            "total_tokens": self._asked + said,
        }


def _choice(spoken: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, **spoken, "logprobs": None, "finish_reason": finish_reason}
