"""What a kind of worker wants in `input`, and where the text is in what it sends back.

| profile | prompt | system | sampling | reads |
|---|---|---|---|---|
| `raw` | `prompt` | no place | no place | strings as text, all else as JSON |
| `chat` | `prompt` | `system` | `temperature`, `max_tokens`, `seed` | as `raw`; the embedded demo |
| `vllm` | `prompt`, or `messages` | in `messages` | `sampling_params` | worker-vllm, old and new |
| `openai` | `openai_input.messages` | there | `openai_input` | OpenAI documents and SSE |
| `comfyui` | no place | no place | no place | as `raw` |

`raw` guesses nothing: where a worker of one's own reads a temperature is said with `-p`. An option
that a profile has no place for is an error, and never dropped.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from notebook_ext.errors import InputError
from notebook_ext.types import StreamChunk

__all__ = ["PROFILES", "Decoder", "Final", "OpenAIDecoder", "Options", "Profile", "get", "merge"]


@dataclass(frozen=True, slots=True)
class Options:
    """What `-s -t -m --max-tokens --top-p --seed --stop` ask for; None and empty mean not asked."""

    system: str | None = None
    temperature: float | None = None
    model: str | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """Those that were asked for, as JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["stop"] = list(self.stop) or None
        return {name: value for name, value in values.items() if value is not None}


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


# ---------------------------------------------------------------------------------- decoding


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
        self._only_text = True

    def feed(self, chunk: StreamChunk) -> str:
        """The text that this chunk adds; empty where it adds none."""
        self._chunks.append(chunk.output)
        return self._show(self._read(chunk.output))

    def finish(self, output: Any) -> Final:
        """What it all came to.

        Args:
            output: The finished job's `output`. A list of more chunks than were fed is taken for
                the whole stream, as another reader may have had some of them.
        """
        seen = len(self._chunks)
        if isinstance(output, list) and len(output) > seen and (seen or self._is_stream(output)):
            whole = self._fresh()
            for index, value in enumerate(output):
                whole.feed(StreamChunk(value, index))
            return self._adopt(whole, whole.finish(None))
        if not seen and output is not None:
            return self._adopt(self, self._finish_document(output))
        self._show(self._rest())
        if self._only_text and seen:
            return Final("".join(self._shown), self._text(), self.tokens)
        streamed = self._chunks if seen else None
        return Final(None, streamed if output in (None, []) and streamed else output, self.tokens)

    def _adopt(self, other: Decoder, final: Final) -> Final:
        self.tokens, self.error = other.tokens, other.error
        return final

    def _fresh(self) -> Decoder:
        return type(self)(joins=self._joins)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text

    def _read(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        return self._json_line(value)

    def _json_line(self, value: Any) -> str:
        self._only_text = False
        start = "\n" if self._shown and not self._shown[-1].endswith("\n") else ""
        return f"{start}{_compact(value)}\n"

    def _is_stream(self, output: list[Any]) -> bool:
        return self._joins and all(isinstance(item, str) for item in output)

    def _finish_document(self, output: Any) -> Final:
        if isinstance(output, str):
            return Final(output, output, self.tokens)
        return Final(None, output, self.tokens)

    def _rest(self) -> str:
        return ""

    def _text(self) -> str:
        return "".join(self._shown)


class OpenAIDecoder(Decoder):
    """Reads OpenAI documents: parsed, or as server-sent events in strings cut anywhere.

    Old worker-vllm's `{"choices": [{"tokens": [...]}]}` too, and plain strings. Reasoning is shown
    as a quotation before the answer and is no part of the value. Of several choices the first.
    """

    def __init__(self, *, joins: bool = True) -> None:
        super().__init__(joins=joins)
        self._answer: list[str] = []
        self._quoting = False
        self._events: _Events | None = None
        self._undecided = ""

    def _is_stream(self, output: list[Any]) -> bool:
        return super()._is_stream(output) or (bool(output) and all(map(_is_document, output)))

    def _finish_document(self, output: Any) -> Final:
        text = self._show(self._read(output)) + self._show(self._rest())
        if self._only_text:
            return Final(text, self._text(), self.tokens)
        return Final(None, output, self.tokens)

    def _text(self) -> str:
        return "".join(self._answer)

    def _read(self, value: Any) -> str:
        if isinstance(value, str):
            return self._read_text(value)
        if isinstance(value, list) and value and all(map(_is_document, value)):
            return "".join(map(self._document, value))
        return self._document(value) if _is_document(value) else self._json_line(value)

    def _read_text(self, text: str) -> str:
        if self._events is None and not self._answer:
            text = self._undecided + text
            if any(text.startswith(start) for start in _EVENT_STARTS):
                self._events = _Events()
            elif any(start.startswith(text) for start in _EVENT_STARTS):
                self._undecided = text  # the first letters of either
                return ""
            self._undecided = ""
        if self._events is None:
            return self._say(text)
        return "".join(map(self._event, self._events.feed(text)))

    def _rest(self) -> str:
        if self._events is not None:
            return "".join(map(self._event, self._events.close()))
        text, self._undecided = self._undecided, ""
        return self._say(text)

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
        if value.get("error"):
            self.error = _error_text(value["error"])
        text = ""
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, Mapping) and choice.get("index") in (0, None):
                text += self._choice(choice)
        return text

    def _choice(self, choice: Mapping[str, Any]) -> str:
        said = next((part for name in ("delta", "message") if isinstance(part := choice.get(name), Mapping)), {})
        if said.get("tool_calls"):
            self._only_text = False
        thought = next((said[name] for name in ("reasoning_content", "reasoning") if said.get(name)), None)
        spoken = next((part for part in (said.get("content"), choice.get("text"), choice.get("tokens")) if part), None)
        return self._think(_joined(thought)) + self._say(_joined(spoken))

    def _think(self, text: str) -> str:
        if not text:
            return ""
        start = "" if self._quoting else "> "
        self._quoting = True
        return start + text.replace("\n", "\n> ")

    def _say(self, text: str) -> str:
        if not text:
            return ""
        start = "\n\n" if self._quoting else ""
        self._quoting = False
        self._answer.append(text)
        return start + text

    def _count(self, usage: Any) -> None:
        if isinstance(usage, Mapping):
            counts = [usage.get("completion_tokens"), usage.get("output"), self.tokens]
            whole = [count for count in counts if isinstance(count, int) and not isinstance(count, bool)]
            self.tokens = max(whole, default=None)


_EVENT_STARTS = ("data:", "event:", ": ")


class _Events:
    """Server-sent events out of text that is cut anywhere."""

    def __init__(self) -> None:
        self._line = ""
        self._data: list[str] = []

    def feed(self, text: str) -> list[str]:
        *lines, self._line = (self._line + text).split("\n")
        events = [self._take(line.removesuffix("\r")) for line in lines]
        return [event for event in events if event is not None]

    def close(self) -> list[str]:
        """What was left without the blank line that ends an event."""
        return self.feed("\n\n")

    def _take(self, line: str) -> str | None:
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        if line or not self._data:
            return None
        event = "\n".join(self._data)
        self._data = []
        return event


def _is_document(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(value.get("choices"), list) or value.get(key) for key in ("error", "usage")
    )


def _joined(value: Any) -> str:
    """Text as `content` and `tokens` hold it: a string, or a list of strings or of typed parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_joined(item.get("text") if isinstance(item, Mapping) else item) for item in value)
    return ""


def _error_text(error: Any) -> str:
    if isinstance(error, Mapping) and error.get("message"):
        return str(error["message"])
    return error if isinstance(error, str) else _compact(error)


def _compact(value: Any) -> str:
    return json.dumps(_shortened(value), ensure_ascii=False, separators=(", ", ": "), default=str)


def _shortened(value: Any) -> Any:
    """For the eye: an encoded picture is not read in a line of JSON."""
    if isinstance(value, str) and len(value) > 2000:
        return f"{value[:60]}… ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {str(key): _shortened(item) for key, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------- placing


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of worker is spoken to.

    Args:
        name: As `--profile` names it.
        summary: One line.
        decoder: Makes the decoder of one job.
        prompt: Where a text body goes, dotted; None where there is no place.
        options: Where each option goes, dotted; what is not named has no place.
        messages: Where a conversation goes, dotted, for workers that take one; with a place for
            it, `system` becomes its first message.
        chats: Whether a text body is always a conversation, not only with a system prompt.
        root: Where the body's object and parameters go; empty is `input` itself.
        defaults: What is in every `input` unless it says otherwise.
    """

    name: str
    summary: str
    decoder: Callable[[], Decoder] = Decoder
    prompt: str | None = "prompt"
    options: Mapping[str, str] = field(default_factory=dict)
    messages: str | None = None
    chats: bool = False
    root: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def place(
        self,
        value: Any,
        is_text: bool,
        options: Options | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make a job's `input`.

        Args:
            value: The text of a text body, else the input as it was given; never changed.
            is_text: Which of the two it is.
            options: They win over what the given input has there.
            parameters: Merged last, and deeply.

        Raises:
            InputError: Something that was asked for has no place.
        """
        given = (options or Options()).given()
        self._refuse_homeless(given)
        if is_text:
            document = self._from_text(str(value))
        elif isinstance(value, Mapping):
            document = self._from_object(value)
        elif given or parameters:
            raise InputError(
                f"the input is {type(value).__name__}, not an object, so options and -p have no place in it."
            )
        else:
            return value
        system = given.pop("system", None) if self.messages else None
        if system is not None:
            self._add_system(document, system)
        for name, item in given.items():
            _put(document, self.options[name], item)
        extra = self._from_object(parameters) if parameters else {}
        return merge(merge(_defaults(self.defaults, document), document), extra)

    def _refuse_homeless(self, given: Mapping[str, Any]) -> None:
        homeless = [name for name in given if name not in self.options and not (name == "system" and self.messages)]
        if homeless:
            name = homeless[0]
            flag = {"system": "-s", "temperature": "-t", "model": "-m"}.get(name, "--" + name.replace("_", "-"))
            raise InputError(
                f"{flag} has no place in the profile '{self.name}'; say where it goes with -p, such as "
                f"-p {name}=..., or choose another profile with --profile."
            )

    def _from_text(self, text: str) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if self.chats and self.messages:
            _put(document, self.messages, [{"role": "user", "content": text}])
        elif self.prompt is not None:
            _put(document, self.prompt, text)
        else:
            raise InputError(
                f"the profile '{self.name}' has no place for a text; give the input as JSON or with -i."
            )
        return document

    def _from_object(self, value: Mapping[str, Any]) -> dict[str, Any]:
        plain = copy.deepcopy(dict(value))
        own = {path.partition(".")[0] for path in (self.root, *self.defaults) if path}
        return plain if not self.root or own & plain.keys() else {self.root: plain}

    def _add_system(self, document: dict[str, Any], system: str) -> None:
        assert self.messages is not None  # noqa: S101 - the caller's condition, told to the type checker
        messages = _take(document, self.messages)
        prompt = _take(document, self.prompt) if self.prompt and messages is None else None
        if prompt is not None:
            messages = [{"role": "user", "content": prompt}]
        if not isinstance(messages, list):
            raise InputError("-s needs a prompt, or a list of messages, to stand before.")
        others = [m for m in messages if not (isinstance(m, Mapping) and m.get("role") == "system")]
        _put(document, self.messages, [{"role": "system", "content": system}, *others])
