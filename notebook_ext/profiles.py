"""What a kind of worker wants in `input`, and where the text is in what it sends back.

| profile | prompt | system | sampling | reads |
|---|---|---|---|---|
| `raw` | `prompt` | no place | no place | strings as text, all else as JSON |
| `chat` | `prompt` | `system` | at the top too, and `model` | as `raw`, and a list of strings as one text |
| `vllm` | `prompt`, or `messages` | in `messages` | `sampling_params` | worker-vllm, old and new |
| `openai` | `openai_input.messages` | there | `openai_input` | OpenAI documents and SSE |
| `comfyui` | no place | no place | no place | as `raw` |

`chat` is how the embedded handlers `chat` and `openai` are spoken to. `raw` guesses nothing: where
a worker of one's own reads a temperature is said with `-p`. An option that a profile has no place
for is an error, and never dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from notebook_ext.completions import chat_request
from notebook_ext.decoders import Decoder, Final, OpenAIDecoder
from notebook_ext.errors import InputError

__all__ = ["OPENAI_ROUTE", "PROFILES", "Decoder", "Final", "Options", "Profile", "get", "merge"]


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


def _as_it_is(document: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of worker is spoken to.

    Args:
        name: As `--profile` names it.
        summary: One line.
        decoder: Makes the decoder of one job.
        prompt: Where a text goes, dotted; None where it goes into messages, or nowhere.
        messages: Where a conversation goes, dotted, for workers that take one: `system` becomes
            its first message.
        options: Where each other option goes, dotted; one that is not named has no place.
        root: The key of `input` that an object goes under which has none of `keys`.
        keys: What `input` itself has in such a profile.
        complete: Fills in what the worker needs and nobody said.
    """

    name: str
    summary: str
    decoder: Callable[[], Decoder] = Decoder
    prompt: str | None = "prompt"
    messages: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    keys: frozenset[str] = frozenset()
    complete: Callable[[dict[str, Any]], None] = _as_it_is

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
            document = self._from_text(value)
        elif isinstance(value, Mapping):
            document = merge({}, self._rooted(value))
        elif given or parameters:
            kind = type(value).__name__
            raise InputError(f"the input is {kind}, not an object, so options and -p have no place in it.")
        else:
            return value
        if "system" in given and "system" not in self.options:
            self._add_system(document, given.pop("system"))
        for name, item in given.items():
            _put(document, self.options[name], item)
        document = merge(document, self._rooted(parameters or {}))
        self.complete(document)
        return document

    @property
    def places(self) -> frozenset[str]:
        """The fields of `Options` that it has a place for."""
        return frozenset({*self.options, "system"} if self.messages else self.options)

    def _refuse_homeless(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.places:
                raise InputError(
                    f"{_FLAGS[name]} has no place in the profile '{self.name}'; say where it goes with -p, "
                    f"such as -p {name}=..., or choose another profile with --profile."
                )

    def _from_text(self, text: str) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if self.prompt:
            _put(document, self.prompt, text)
        elif self.messages:
            _put(document, self.messages, [{"role": "user", "content": text}])
        else:
            raise InputError(
                f"the profile '{self.name}' has no place for text; give the input as JSON, or by -i."
            )
        return document

    def _rooted(self, value: Mapping[str, Any]) -> dict[str, Any]:
        if self.root is None or not value or self.keys & value.keys():
            return dict(value)
        return {self.root: dict(value)}

    def _add_system(self, document: dict[str, Any], system: str) -> None:
        messages = _take(document, self.messages)
        prompt = None if messages is not None else _take(document, self.prompt)
        if isinstance(prompt, str):
            messages = [{"role": "user", "content": prompt}]
        if not isinstance(messages, list):
            raise InputError(
                "-s stands before a prompt, or before a list of messages; the input has neither."
            )
        others = [message for message in messages if not _is_system(message)]
        _put(document, str(self.messages), [{"role": "system", "content": system}, *others])


_FLAGS = {
    "system": "-s",
    "temperature": "-t",
    "model": "-m",
    "max_tokens": "--max-tokens",
    "top_p": "--top-p",
    "seed": "--seed",
    "stop": "--stop",
}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A new object: `base` with `patch` laid over it, object by object.

    An object whose keys are places of a list (`images.0.name=...`) is laid over that list.
    """
    merged = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    return merged | {key: _laid(base.get(key), value) for key, value in patch.items()}


def _laid(base: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    if isinstance(base, list) and patch and all(_is_place(key, base) for key in patch):
        places = {int(key): value for key, value in patch.items()}
        return [_laid(item, places[place]) if place in places else item for place, item in enumerate(base)]
    return merge(base if isinstance(base, Mapping) else {}, patch)


def _is_place(key: Any, values: list[Any]) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdecimal() and int(key) < len(values)


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise InputError(f"'{parent}' in the input is no object, so '{path}' cannot be put into it.")
    document[leaf] = value


def _take(document: dict[str, Any], path: str | None) -> Any:
    if path is None:
        return None
    *parents, leaf = path.split(".")
    for parent in parents:
        inner = document.get(parent)
        if not isinstance(inner, dict):
            return None
        document = inner
    return document.pop(leaf, None)


def _is_system(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "system"


# ---------------------------------------------------------------------------------- the profiles

_CHAT_ROUTE, _COMPLETIONS_ROUTE = "/v1/chat/completions", "/v1/completions"


def _streaming(document: dict[str, Any]) -> None:
    document.setdefault("stream", True)


def _routed(document: dict[str, Any]) -> None:
    body = document.get("openai_input")
    if not isinstance(body, dict):
        return  # a route that is asked without one, such as /v1/models
    chat = "messages" in body or "prompt" not in body
    route = document.setdefault("openai_route", _CHAT_ROUTE if chat else _COMPLETIONS_ROUTE)
    if route in (_CHAT_ROUTE, _COMPLETIONS_ROUTE) and body.setdefault("stream", True):
        body.setdefault("stream_options", {"include_usage": True})


_SAMPLING = ("temperature", "max_tokens", "top_p", "seed", "stop")

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile("raw", "text goes to input.prompt, everything else is said with -p"),
            Profile(
                "chat",
                "prompt, system, model and sampling at the top of input, as the embedded chat has them",
                decoder=lambda: Decoder(joins=True),
                options={name: name for name in ("system", "model", *_SAMPLING)},
            ),
            Profile(
                "vllm",
                "worker-vllm: a prompt, or messages with a system prompt, and sampling_params",
                decoder=OpenAIDecoder,
                messages="messages",
                options={name: f"sampling_params.{name}" for name in _SAMPLING},
                complete=_streaming,
            ),
            Profile(
                "openai",
                "an OpenAI request inside input: openai_route and openai_input",
                decoder=OpenAIDecoder,
                prompt=None,
                messages="openai_input.messages",
                options={name: f"openai_input.{name}" for name in ("model", *_SAMPLING)},
                root="openai_input",
                keys=frozenset({"openai_route", "openai_input"}),
                complete=_routed,
            ),
            Profile(
                "comfyui",
                "worker-comfyui: a workflow, given as JSON, and images",
                prompt=None,
                root="workflow",
                keys=frozenset({"workflow", "images"}),
            ),
        )
    }
)


OPENAI_ROUTE = Profile(
    "openai",
    "the body of an OpenAI request, as its own route takes it",
    decoder=OpenAIDecoder,
    prompt=None,
    messages="messages",
    options={name: name for name in ("model", *_SAMPLING)},
    complete=lambda document: document.update(chat_request(document)),
)
"""How `--route openai` lays out its body; what comes back is read as the profile `openai` reads it."""


def get(name: str) -> Profile:
    """The profile of that name.

    Raises:
        InputError: There is none.
    """
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(PROFILES)}."
    raise InputError(f"there is no profile '{name[:40]}'; {hint}")
