"""A request as text: before it is sent, or as a program, in Python or for curl; keys by variable name only.

Pure: the same URL, operation and body as were sent. What the journal does not keep cannot be in it:
bucket credentials, and the URL of a webhook.
"""

from __future__ import annotations

import ast
import json
import pprint
import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from notebook_ext import providers
from notebook_ext.completions import chat_request
from notebook_ext.errors import InputError
from notebook_ext.protocol import JobRequest, Operation
from notebook_ext.types import ExecutionPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from notebook_ext.connection import Connection, Submission
    from notebook_ext.entry import Entry

__all__ = ["curl", "dry_run", "python"]

_WIDTH = 100
_WEBHOOK = "# It had a webhook, of which the journal keeps no more than the host: add it."
_SERVED = "# A notebook served this endpoint: its address and its token are new with each kernel."


@dataclass(frozen=True, slots=True)
class _Request:
    """One job's request.

    Args:
        entry: The job.
        provider: Where it was sent, in that provider's wording.
        key: The environment variable with its key.
    """

    entry: Entry
    provider: providers.Provider
    key: str

    @property
    def is_sync(self) -> bool:
        return self.entry.operation == "runsync"

    @property
    def is_chat(self) -> bool:
        return self.entry.operation == Operation.OPENAI

    @property
    def policy(self) -> dict[str, Any]:
        return {name: value for name, value in self.entry.options.items() if name != "webhook"}

    @property
    def url(self) -> str:
        route = self.provider.route(Operation(self.entry.operation))
        return f"{self.provider.base_url}{route.fill(self.entry.endpoint_id)}"

    @property
    def body(self) -> dict[str, Any]:
        if self.is_chat:
            return chat_request(self.entry.input, self._model)
        request = JobRequest(self.entry.input, ExecutionPolicy(**self.policy))
        return request.to_json(self.provider.dialect, queued=not self.is_sync)

    @property
    def _model(self) -> str | None:
        """The one that was found where none was named, as the answer tells it."""
        output = self.entry.job.output
        model = output.get("model") if self.is_chat and isinstance(output, dict) else None
        return model if isinstance(model, str) else None

    @property
    def remarks(self) -> list[str]:
        return [_SERVED] * self.entry.served + [_WEBHOOK] * ("webhook" in self.entry.options)


def python(entry: Entry) -> str:
    """A Python program that makes the request of a job and prints what comes.

    Args:
        entry: The job; its key is read from the environment variable that it was submitted with.

    Raises:
        InputError: What the job was asked is not known, or no program can hold it.
    """
    request = _request(entry)
    arguments = ["INPUT"]
    names = ["Endpoint"]
    if request.policy:
        policy = ", ".join(f"{name}={value!r}" for name, value in request.policy.items())
        arguments.append(f"policy=ExecutionPolicy({policy})")
        names.append("ExecutionPolicy")
    if not request.is_sync:
        names.append("StreamChunk")
    asking, ending = _steps(request, ", ".join(arguments))
    before, place = _place(request)
    where = f"provider={place!r}, api_key=os.environ[{request.key!r}]"
    return "\n".join(
        [
            f'"""What @{entry.number} asked of the endpoint {entry.endpoint_id}, asked again."""',
            "",
            "import asyncio",
            *([] if request.is_chat else ["import json"]),
            "import os",
            *([] if request.is_sync else ["import sys"]),
            "",
            f"from notebook_ext import {', '.join(names)}",
            "",
            *request.remarks,
            *before,
            f"INPUT = {_literal(entry.input)}",
            "",
            "",
            "async def main():",
            f"    async with Endpoint({entry.endpoint_id!r}, {where}) as endpoint:",
            *(f"        {line}" for line in asking),
            *(f"    {line}" for line in ending),
            "",
            "",
            "asyncio.run(main())",
        ]
    )


def _steps(request: _Request, arguments: str) -> tuple[Sequence[str], Sequence[str]]:
    """What is done with the endpoint, and what then."""
    if request.is_chat:
        return (f"async for event in endpoint.chat({arguments}):", *_PRINT_WORDS), _FAIL
    if request.is_sync:
        return (f"job = await endpoint.run_sync({arguments})",), (_PRINT,)
    return (f"job = await endpoint.run({arguments})", *_FOLLOW), (*_FAIL, *_PRINT_UNSEEN)


_PRINT_WORDS = (
    "    if not isinstance(event, StreamChunk):",
    "        job = event",
    "        continue",
    '    for choice in event.output.get("choices", []):',
    '        said = choice.get("delta") or choice.get("message") or {}',
    '        print(said.get("content") or "", end="", flush=True)',
)
_PRINT = "print(json.dumps(job.output, indent=2, ensure_ascii=False))"
_FOLLOW = (
    "is_streamed = False",
    "async for event in endpoint.follow(job.id):",
    "    if isinstance(event, StreamChunk):",
    '        print(event.output, end="", flush=True)',
    "        is_streamed = True",
    "    else:",
    "        job = event",
)
_FAIL = ('if job.status != "COMPLETED":', '    sys.exit(f"{job.status}: {job.error}")')
_PRINT_UNSEEN = ("if not is_streamed:", f"    {_PRINT}")


def curl(entry: Entry) -> str:
    """A command line that makes the request of a job with curl, for a POSIX shell.

    Args:
        entry: The job; its key is read from the environment variable that it was submitted with.

    Raises:
        InputError: What the job was asked is not known, or no command can hold it.
    """
    request = _request(entry)
    if not re.fullmatch(r"[A-Za-z_]\w*", request.key, re.ASCII):
        raise InputError("the name of the key's variable is none that a shell knows; --python takes it")
    # The body is the command's input, since an argument has at most 128 KiB. Each line of it begins with
    # a brace or a blank, so that none can end it early.
    return "\n".join(
        [
            *request.remarks,
            f"curl --silent --show-error --fail-with-body {shlex.quote(request.url)} \\",
            f'  --header "Authorization: Bearer ${{{request.key}:?}}" \\',
            "  --header 'Content-Type: application/json' \\",
            "  --data-binary @- <<'BODY'",
            _json(request.body),
            "BODY",
        ]
    )


# ---------------------------------------------------------------------------------- where


def _request(entry: Entry) -> _Request:
    if entry.input is None:
        raise InputError(f"@{entry.number} was not submitted from here, so what it was asked is not known")
    named = providers.PROVIDERS.get(entry.provider)
    if named is not None:
        provider = replace(named, base_url=entry.base_url)
    else:
        provider = providers.resolve(entry.base_url)
    return _Request(entry, provider, entry.key_variable or provider.key_variable or providers.KEY_VARIABLE)


def _place(request: _Request) -> tuple[list[str], str]:
    """What `Endpoint` takes as the provider, and the lines that must come before."""
    provider = request.provider
    known = providers.PROVIDERS.get(provider.name)
    if known is None:
        return [], provider.base_url
    if known.base_url == provider.base_url:
        return [], known.name
    if known.dialect is providers.TENSORONE_REST.dialect:  # no base URL says that it is spoken there
        return [f'os.environ["TENSORONE_BASE_URL"] = {provider.base_url!r}'], known.name
    return [], provider.base_url


# ---------------------------------------------------------------------------------- what


def _literal(value: Any) -> str:
    """A JSON value as Python writes it."""
    try:
        text = pprint.pformat(value, width=_WIDTH, sort_dicts=False)
        ast.literal_eval(text)  # Python reads no more than so many brackets
    except (RecursionError, SyntaxError, ValueError, MemoryError) as error:
        raise _unwritable() from error
    return text


def _json(value: Any) -> str:
    """A JSON value as text in which every character can be seen, so that none gets lost on its way."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (RecursionError, ValueError) as error:
        raise _unwritable() from error
    return re.sub(r"[^\n -~]", _seen, text)


def _seen(character: re.Match[str]) -> str:
    return character[0] if character[0].isprintable() else json.dumps(character[0])[1:-1]


def _unwritable() -> InputError:
    return InputError(
        "what the job was asked cannot be written as a program: it is nested too deeply, or no JSON"
    )


def dry_run(connection: Connection, submission: Submission, kind: str, profile: str) -> str:
    """The exact request, without its secrets."""
    provider = connection.provider
    route, unnamed = provider.route(submission.operation), ""
    hidden = {"[not shown]": ""} if submission.s3_config else None
    request = JobRequest(submission.input, submission.policy, submission.webhook, None, hidden)
    if submission.route is None:
        document = request.to_json(provider.dialect, queued=not submission.sync)
    else:
        document = chat_request(submission.input)
        if "model" not in document:
            models = provider.route(Operation.MODELS)
            place = f"{provider.base_url}{models.fill(connection.endpoint.id)}"
            unnamed = f"its model will be the one that {models.method} {place} tells; "
    try:
        body = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the input is not JSON: {error}; nothing was sent") from error
    return (
        f"{route.method} {provider.base_url}{route.fill(connection.endpoint.id)}\n"
        "Authorization: Bearer [key]\nContent-Type: application/json\n\n"
        f"{body}\n\n(body read as {kind}, profile {profile}; {unnamed}nothing was sent)"
    )
