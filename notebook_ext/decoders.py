"""Where the text is in what a worker sends back: one decoder per job, fed chunk by chunk.

A decoder never raises: whatever a worker sends is shown in some form, and kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from notebook_ext.completions import error_in
from notebook_ext.sse import Events
from notebook_ext.types import StreamChunk, whole, whole_text

__all__ = ["Decoder", "Final", "OpenAIDecoder"]


@dataclass(frozen=True, slots=True)
class Final:
    """What a finished job gave.

    Args:
        text: All that was shown, where the job's output is text; else None.
        value: What `NAME <<` binds: the text where all is text, else the output, or the chunks.
        tokens: Tokens that were made, where the worker counted them.
    """

    text: str | None
    value: Any
    tokens: int | None = None


class Decoder:
    """Reads one job's chunks as any generator yields them: strings are text, all else JSON lines.

    Args:
        joins: Whether a list of strings that was not seen streaming is one text, since such a
            worker streams text; without this a list stays a list.
    """

    tokens: int | None = None
    """Tokens made so far, where the worker counts them."""
    error: str | None = None
    """What an error inside a chunk said; the job's own status decides whether it failed."""

    def __init__(self, *, joins: bool = False) -> None:
        self._joins = joins
        self._chunks: list[Any] = []
        self._shown: list[str] = []
        self._has_text = False
        self._only_text = True
        self._is_in_line = False
        self._keeps = True

    def feed(self, chunk: StreamChunk) -> str:
        """The text that this chunk adds; empty where it adds none."""
        if not self._keeps:
            self._forget()
        self._chunks.append(chunk.output)
        return self._read(chunk.output)

    @property
    def has_text(self) -> bool:
        """Whether any text has come; without, what is shown are lines of JSON."""
        return self._has_text

    def forget(self) -> None:
        """Keep nothing of what has been fed, from now on: a long stream need not be in memory.

        `finish` then gives the text that no chunk has shown, and no value.
        """
        self._keeps = False
        self._forget()

    def _forget(self) -> None:
        self._chunks.clear()
        self._shown.clear()

    def finish(self, output: Any) -> Final:
        """What it all came to.

        Args:
            output: The finished job's `output`. A list of more chunks than were fed is taken for
                the whole stream, as another reader may have had some of them.
        """
        if not self._keeps:
            self._forget()
            self._read_rest()
            return Final("".join(self._shown), None, self.tokens)
        seen = len(self._chunks)
        if isinstance(output, list) and len(output) > seen and (seen or self._is_stream(output)):
            whole = type(self)(joins=self._joins)
            for index, value in enumerate(output):
                whole.feed(StreamChunk(value, index))
            final = whole.finish(None)
            self.tokens, self.error = whole.tokens, whole.error
            return final
        if not seen and (output is None or not self._is_readable(output)):
            return Final(None, output, self.tokens)
        if not seen:
            self._chunks.append(output)
            self._read(output)
        self._read_rest()
        shown = "".join(self._shown) if self._has_text or self._only_text else None
        if self._only_text:
            return Final(shown, self._answer(), self.tokens)
        known = output if output not in (None, []) else self._chunks
        return Final(shown, known, self.tokens)

    def _read(self, value: Any) -> str:
        return self._say(value) if isinstance(value, str) else self._json_line(value)

    def _read_rest(self) -> None:
        """Show what was held back for a chunk that did not come."""

    def _answer(self) -> str:
        return "".join(self._shown)

    def _is_stream(self, output: list[Any]) -> bool:
        """Whether a list that was not seen streaming is one all the same."""
        return self._joins and bool(output) and all(isinstance(item, str) for item in output)

    def _is_readable(self, output: Any) -> bool:
        """Whether a result that was not streamed has text in it."""
        return isinstance(output, str)

    def _say(self, text: str) -> str:
        self._has_text = True
        return self._emit(text)

    def _json_line(self, value: Any) -> str:
        self._only_text = False
        start = "\n" if self._is_in_line else ""
        return self._emit(f"{start}{_compact(value)}\n")

    def _emit(self, text: str) -> str:
        if text:
            self._shown.append(text)
            self._is_in_line = not text.endswith("\n")
        return text


class OpenAIDecoder(Decoder):
    """Reads OpenAI documents: parsed, or as server-sent events in strings cut anywhere.

    Old worker-vllm's `{"choices": [{"tokens": [...]}]}` too, and plain strings. Reasoning is shown
    as a quotation before the answer and is no part of the value. Of several choices the first.
    """

    def __init__(self, *, joins: bool = True) -> None:
        super().__init__(joins=joins)
        self._said: list[str] = []
        self._quoting = False
        self._events: Events | None = None
        self._undecided = ""
        self._half = ""

    def _forget(self) -> None:
        super()._forget()
        self._said.clear()

    def _read(self, value: Any) -> str:
        if isinstance(value, str):
            return self._read_text(value)
        documents = value if isinstance(value, list) and value else [value]
        if all(map(_is_document, documents)):
            return "".join(map(self._document, documents))
        return self._json_line(value)

    def _read_text(self, text: str) -> str:
        if self._events is None and not self._has_text:
            text, self._undecided = self._undecided + text, ""
            if text.startswith(_EVENT_STARTS):
                self._events = Events()
            elif any(start.startswith(text) for start in _EVENT_STARTS):
                self._undecided = text  # the first letters of an event, or of a plain text
                return ""
        if self._events is None:
            return self._say(text)
        return "".join(self._event(event.data) for event in self._events.feed(text))

    def _read_rest(self) -> None:
        for event in self._events.close() if self._events else ():
            self._event(event.data)
        self._say(whole_text(self._half) + self._undecided)

    def _answer(self) -> str:
        return "".join(self._said)

    def _is_stream(self, output: list[Any]) -> bool:
        return super()._is_stream(output) or (bool(output) and all(map(_is_document, output)))

    def _is_readable(self, output: Any) -> bool:
        return isinstance(output, str) or _is_document(output)

    def _event(self, data: str) -> str:
        if data.strip() == "[DONE]":
            return ""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return self._say(data)
        return self._document(value) if _is_document(value) else self._json_line(value)

    def _document(self, value: Mapping[str, Any]) -> str:
        self._count(value.get("usage"))
        if (error := error_in(value)) is not None:
            self.error = _error_text(error)
            self._only_text = False
        choices = value.get("choices")
        mine = [
            choice
            for choice in (choices if isinstance(choices, list) else [])
            if isinstance(choice, Mapping) and choice.get("index") in (0, None)
        ]
        return "".join(map(self._choice, mine))

    def _choice(self, choice: Mapping[str, Any]) -> str:
        said = next(
            (part for name in ("delta", "message") if isinstance(part := choice.get(name), Mapping)), {}
        )
        if said.get("tool_calls"):
            self._only_text = False
        thought = said.get("reasoning_content") or said.get("reasoning")
        spoken = said.get("content") or choice.get("text") or choice.get("tokens")
        return self._think(self._rejoined(_joined(thought))) + self._say(self._rejoined(_joined(spoken)))

    def _rejoined(self, text: str) -> str:
        """The text with its characters whole; half a one at its end waits for the other half."""
        if not text:
            return ""
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return whole_text(text.removesuffix(self._half))

    def _think(self, text: str) -> str:
        if not text:
            return ""
        start = "" if self._quoting else "> "
        self._quoting = True
        return self._emit(start + text.replace("\n", "\n> "))

    def _say(self, text: str) -> str:
        if not text:
            return ""
        start = "\n\n" if self._quoting else ""
        self._quoting = False
        self._said.append(text)
        return super()._say(start + text)

    def _count(self, usage: Any) -> None:
        if isinstance(usage, Mapping):  # each document tells the sum so far
            counts = [usage.get("completion_tokens"), usage.get("output"), self.tokens]
            whole = [count for count in counts if isinstance(count, int) and not isinstance(count, bool)]
            self.tokens = max(whole, default=None)


_EVENT_STARTS = ("data:", "event:", ": ")


def _is_document(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        isinstance(value.get("choices"), list) or error_in(value) is not None
    )


def _joined(value: Any) -> str:
    """Text as `content` and `tokens` hold it: a string, or a list of strings or of typed parts."""
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _error_text(error: Any) -> str:
    if isinstance(error, Mapping) and error.get("message"):
        error = error["message"]
    return whole_text(error) if isinstance(error, str) else _compact(error)


def _compact(value: Any) -> str:
    try:
        return json.dumps(_shortened(whole(value)), ensure_ascii=False, default=str)
    except RecursionError:
        return "[...]"


def _shortened(value: Any) -> Any:
    """For the eye: nobody reads an encoded picture in a line of JSON."""
    if isinstance(value, str) and len(value) > 2000:
        return f"{value[:60]}… ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {str(key): _shortened(item) for key, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value
