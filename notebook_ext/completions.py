"""A chat completion by the OpenAI route, without any I/O: its request, and one answer out of its chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from notebook_ext.errors import InputError

__all__ = ["DONE", "Completion", "chat_request", "error_in", "models", "said_in"]

DONE = "[DONE]"
"""The data of the event that ends a stream."""


def chat_request(body: Any, model: str | None = None) -> dict[str, Any]:
    """The request as it is sent: streamed, and with its usage told, unless the body says otherwise.

    Args:
        body: OpenAI's own: `messages`, and at the top whatever else is asked for.
        model: The model where the body names none.

    Raises:
        InputError: There are no messages in it.
    """
    body = body if isinstance(body, Mapping) else {}
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise InputError(
            "the OpenAI route takes a prompt, or an object with 'messages': "
            '{"messages": [{"role": "user", "content": "..."}]}; nothing was sent'
        )
    request = {**({} if model is None else {"model": model}), **body}
    if request.setdefault("stream", True) is True:
        request.setdefault("stream_options", {"include_usage": True})
    return request


def models(document: Any) -> list[str] | None:
    """The models that an endpoint says it has, without their adapters; None where it is no such list."""
    rows = document.get("data") if isinstance(document, Mapping) else None
    if not isinstance(rows, list):
        return None
    named = [row for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)]
    bases = [row for row in named if not row.get("parent")]
    return [row["id"] for row in bases or named]


class Completion:
    """Puts an answer together, as the route would have given it without a stream.

    Attributes:
        error: What an error in it said; None where there was none.
    """

    def __init__(self) -> None:
        self.error: Any = None
        self._about: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    @property
    def is_finished(self) -> bool:
        """Whether each of its choices has said why it ended."""
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    @property
    def output(self) -> dict[str, Any] | None:
        """All of it; None where nothing has come."""
        if not self._about and not self._choices:
            return None
        choices = [choice.to_json(index) for index, choice in sorted(self._choices.items())]
        return {**self._about, "object": "chat.completion", "choices": choices}

    def add(self, document: Mapping[str, Any]) -> None:
        """Take one document: a chunk, or a whole answer."""
        if (error := error_in(document)) is not None:
            self.error = error
            return
        self._about |= {name: value for name, value in document.items() if name != "choices" and value}
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping):
                index = choice.get("index")
                self._choices.setdefault(index if isinstance(index, int) else 0, _Choice()).add(choice)


def said_in(document: Any) -> list[str] | None:
    """The words of a chunk or a whole answer, as they stand there; None where it is neither."""
    choices = document.get("choices") if isinstance(document, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        return None
    spoken = [choice.get("delta") or choice.get("message") or choice for choice in choices]
    words = [
        part.get(name)
        for part in spoken
        if isinstance(part, Mapping)
        for name in ("content", "text", "tokens")
    ]
    return [
        word
        for part in words
        for word in (part if isinstance(part, list) else [part])
        if isinstance(word, str)
    ]


def error_in(document: Mapping[str, Any]) -> Any:
    """What went wrong, where a document is about that; older vLLM says it in the document itself."""
    return document if document.get("object") == "error" else document.get("error") or None


class _Choice:
    """One of the answers: its message grows."""

    def __init__(self) -> None:
        self.finish_reason: Any = None
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self._texts: dict[str, list[str]] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        said = choice.get("delta") or choice.get("message")
        for name, value in said.items() if isinstance(said, Mapping) else ():
            if name != "role" and isinstance(value, str):
                self._texts.setdefault(name, []).append(value)
            elif name == "tool_calls" and isinstance(value, list):
                _add_calls(self._message.setdefault(name, []), value)
            elif value is not None:
                self._message[name] = value

    def to_json(self, index: int) -> dict[str, Any]:
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        return {"index": index, "message": self._message | texts, "finish_reason": self.finish_reason}


def _add_calls(calls: list[dict[str, Any]], pieces: list[Any]) -> None:
    """Let tool calls grow: each piece names its call by `index`, or is a whole one."""
    for piece in pieces:
        if not isinstance(piece, Mapping):
            continue
        place = piece.get("index", len(calls))
        found = next((call for call in calls if call.get("index", object()) == place), None)
        if found is None:
            calls.append({**piece, "function": dict(_mapping(piece.get("function")))})
            continue
        function = found["function"]
        for name, value in _mapping(piece.get("function")).items():
            kept = function.get(name)
            is_text = isinstance(value, str) and isinstance(kept, str)
            function[name] = kept + value if is_text else value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
