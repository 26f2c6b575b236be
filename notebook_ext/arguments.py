"""From the options of a command to values, and to what is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from notebook_ext import profiles, prompts
from notebook_ext.connection import Submission
from notebook_ext.errors import InputError
from notebook_ext.protocol import JobRequest
from notebook_ext.types import ExecutionPolicy

if TYPE_CHECKING:
    from notebook_ext.grammar import Command

__all__ = ["Arguments"]

N = TypeVar("N", int, float)


class Arguments:
    """The options of one command, with the templates in them rendered when they are read.

    Args:
        command: What was typed.
        namespace: The user's variables.
    """

    def __init__(self, command: Command, namespace: Mapping[str, Any]) -> None:
        self._command = command
        self._options = command.arguments
        self._namespace = namespace
        self._is_verbatim = getattr(self._options, "verbatim", False)

    @property
    def namespace(self) -> Mapping[str, Any]:
        """The variables that the command sees."""
        return self._namespace

    def text(self, name: str) -> str | None:
        """An option's text; None where it was not given."""
        text = getattr(self._options, name)
        return None if text is None else str(self._expanded(text))

    def integer(self, name: str) -> int | None:
        """An option's whole number.

        Raises:
            InputError: It is none.
        """
        return self._number(name, int)

    def number(self, name: str) -> float | None:
        """An option's number.

        Raises:
            InputError: It is none.
        """
        return self._number(name, float)

    def seconds(self, name: str) -> float | None:
        """An option's duration in seconds.

        Raises:
            InputError: It is none.
        """
        text = self.text(name)
        return None if text is None else prompts.parse_duration(text)

    def limit(self, name: str) -> float | None:
        """An option's duration in seconds, where none at all would make no sense.

        Raises:
            InputError: It is none, or zero.
        """
        seconds = self.seconds(name)
        if seconds is not None and seconds <= 0:
            raise InputError(f"{_flag(name)} is a time from now on, so it is more than 0; nothing was sent")
        return seconds

    def profile(self, usual: str) -> profiles.Profile:
        """Where prompt and options go in the input: the route says it, or `--profile`, or else what is usual.

        Raises:
            InputError: There is no such profile, or the route has another one.
        """
        asked = self.text("profile")
        if getattr(self._options, "route", None) is None:
            return profiles.get(asked or usual)
        if asked not in (None, profiles.OPENAI_ROUTE.name):
            raise InputError(
                f"--route openai has a body of its own, in which --profile {asked} has no place; leave it out"
            )
        return profiles.OPENAI_ROUTE

    def submission(
        self, profile: profiles.Profile, *, sync: bool, cell: str | None
    ) -> tuple[str, Submission]:
        """What is to be submitted, and how its body was read.

        Args:
            profile: Where prompt and options go in the input.
            sync: Whether it is submitted with `/runsync`.
            cell: The notebook cell's id, where known.

        Raises:
            InputError: There is nothing to send, or it cannot be sent so.
        """
        options, body = self._options, self._body()
        route = getattr(options, "route", None)
        parameters = self._parameters()
        if body.is_text:
            _refuse_two_prompts(profile, parameters)
        whole = JobRequest.from_json({"input": None, **(body.request or {})})
        return body.kind, Submission(
            input=profile.place(body.value, body.is_text, self._sampling(), parameters),
            sync=sync,
            route=route,
            policy=ExecutionPolicy(
                execution_timeout=self.limit("exec_timeout") or whole.policy.execution_timeout,
                ttl=self.limit("ttl") or whole.policy.ttl,
                low_priority=options.low_priority or whole.policy.low_priority,
            ),
            webhook=self.text("webhook") or whole.webhook,
            s3_config=whole.s3_config,
            cell=cell,
        )

    def _body(self) -> prompts.Body:
        command, options = self._command, self._options
        typed = command.body if command.body is not None else command.prompt
        if typed is not None and options.input:
            raise InputError("there is a prompt and an -i as well; give one of them")
        if typed is not None:
            # on a line the text after ' -- ' is a prompt; a body may be more
            kind = "text" if command.body is None and options.kind == "auto" else options.kind
            # the newline of a body's last line is nobody's intention
            text = typed.removesuffix("\n")
            return prompts.read_body(text, kind, namespace=self._namespace, verbatim=self._is_verbatim)
        if options.input:
            value = prompts.read_variable(options.input, self._namespace)
            return prompts.Body("text" if isinstance(value, str) else "python", value)
        if options.parameters or options.params:
            return prompts.Body("json", {})
        raise InputError(
            "there is nothing to send: give text after ' -- ', a body under %%endpoint, -i VARIABLE, "
            "or -p KEY=VALUE"
        )

    def _parameters(self) -> dict[str, Any]:
        options, verbatim = self._options, self._is_verbatim
        given = prompts.parse_parameters(options.parameters, self._namespace, verbatim=verbatim)
        if not options.params:
            return given
        return profiles.merge(
            prompts.read_parameters(options.params, self._namespace, verbatim=verbatim), given
        )

    def _sampling(self) -> profiles.Options:
        return profiles.Options(
            system=self.text("system"),
            temperature=self.number("temperature"),
            model=self.text("model"),
            max_tokens=self.integer("max_tokens"),
            top_p=self.number("top_p"),
            seed=self.integer("seed"),
            stop=tuple(str(self._expanded(text)) for text in self._options.stop),
        )

    def _expanded(self, text: str) -> Any:
        return text if self._is_verbatim else prompts.expand(text, self._namespace)

    def _number(self, name: str, kind: type[N]) -> N | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{_flag(name)} takes {what}, not '{text[:40]}'") from None


def _flag(name: str) -> str:
    return "-t" if name == "temperature" else "--" + name.replace("_", "-")


def _refuse_two_prompts(profile: profiles.Profile, parameters: Mapping[str, Any]) -> None:
    """Refuse a `-p` beside a text that says the same: one of the two would be lost without a word."""
    for place in filter(None, (profile.prompt, profile.messages)):
        *parents, name = place.split(".")
        given = parameters
        for parent in parents:
            nested = given.get(parent)
            given = nested if isinstance(nested, Mapping) else given  # a root may be left out
        if name in given:
            raise InputError(f"there is a text, and -p {name}=... as well; give one of them")
