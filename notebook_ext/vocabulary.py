"""The words of `%endpoint`: its verbs, and which options each of them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_ext import options
from notebook_ext.parser import Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

__all__ = ["ALIASES", "VERBS", "Verb"]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Args:
        name: The word.
        summary: One sentence.
        example: A cell that runs.
        add: Adds its arguments to a parser.
        takes: What its free word names, for completion: endpoint, job, verb, or nothing.
        cell: Whether it has a cell form.
        prompts: Whether text after ` -- ` is its prompt.
    """

    name: str
    summary: str
    example: str
    add: tuple[Callable[[argparse.ArgumentParser], None], ...] = ()
    takes: str = ""
    cell: bool = False
    prompts: bool = False

    @property
    def parser(self) -> Parser:
        parser = Parser(self.name)
        for add in self.add:
            add(parser)
        return parser

    @property
    def options(self) -> list[str]:
        """Its option strings, for completion."""
        return [option for action in self.actions for option in action.option_strings]

    @property
    def actions(self) -> list[argparse.Action]:
        """Its arguments as argparse keeps them: names, choices, how many words each takes."""
        return self.parser._actions


_RUN = (
    options.target,
    options.inputs,
    options.policy,
    options.waiting,
    options.result,
    options.background,
    options.repeat,
    options.dry_run,
    options.debug,
)
_FOLLOW = (options.wait_timeout, options.waiting, options.result, options.background, options.debug)

VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "run",
            "Submit a job with /run, stream what comes, and wait for its end.",
            "%%endpoint run demo --max-tokens 60 -o job\nExplain queues to {{ audience }}.",
            (*_RUN, options.route),
            takes="endpoint",
            cell=True,
            prompts=True,
        ),
        Verb(
            "runsync",
            "Submit with one /runsync round and wait for the result by status.",
            "%%endpoint answer << runsync demo -p max_tokens=20\nWhat is a queue?",
            _RUN,
            takes="endpoint",
            cell=True,
            prompts=True,
        ),
        Verb(
            "status",
            "Look once at how a job stands.",
            "%endpoint status @last",
            (options.job, options.debug),
            takes="job",
        ),
        Verb(
            "wait",
            "Wait until jobs have ended.",
            "%endpoint wait @1 @2 --timeout 5m",
            (options.jobs, options.wait_timeout, options.waiting, options.debug),
            takes="job",
        ),
        Verb(
            "result",
            "Give the output of a job, waiting for it where it runs.",
            "answer = %endpoint result @last",
            (options.job, options.wait_timeout, options.waiting, options.debug),
            takes="job",
        ),
        Verb(
            "show",
            "Draw a job again: its text so far, live where it still runs.",
            "%endpoint show @last",
            (options.job, options.result, options.debug),
            takes="job",
        ),
        Verb(
            "stream",
            "Follow a job in this cell until it has ended; also called attach.",
            "%endpoint stream @last",
            (options.job, options.left, *_FOLLOW),
            takes="job",
        ),
        Verb(
            "replay",
            "Answer runs from the journal: where it has the answer, only so, or never.",
            "%endpoint replay auto",
            (options.replay, options.debug),
        ),
        Verb(
            "cancel",
            "Stop remote jobs, and say what was confirmed.",
            "%endpoint cancel @last",
            (options.jobs, options.cancel, options.debug),
            takes="job",
        ),
        Verb(
            "retry",
            "Queue a failed or timed out job again, under the same id, and follow it.",
            "%endpoint retry @last",
            (options.job, *_FOLLOW),
            takes="job",
        ),
        Verb(
            "health",
            "Show an endpoint's counters of jobs and workers.",
            "%endpoint health demo --watch",
            (options.target, options.watch, options.pace, options.debug),
            takes="endpoint",
        ),
        Verb(
            "purge",
            "Remove the jobs that wait in an endpoint's queue; it asks first.",
            "%endpoint purge demo --yes",
            (options.target, options.purge, options.debug),
            takes="endpoint",
        ),
        Verb(
            "jobs",
            "List the journal's last 50 jobs, those of other notebooks among them.",
            "%endpoint jobs --active",
            (options.listing, options.debug),
        ),
        Verb(
            "panel",
            "Open a panel: prompts, jobs or an endpoint's health, by mouse.",
            "%endpoint panel jobs",
            (options.panel, options.target, options.pace, options.debug),
        ),
        Verb(
            "history",
            "List the journal's jobs, the newest first, or find some by their words, the best first.",
            '%endpoint history -q "queues fair" --since 7d -o df',
            (options.history, options.debug),
        ),
        Verb(
            "export",
            "Write jobs of the journal to a file, or what one of them gave.",
            "%endpoint export --all --since 7d jobs.csv",
            (options.export, options.debug),
            takes="job",
        ),
        Verb(
            "code",
            "Write the cell that does what a job did, or its request as a program; the key by its variable.",
            "%endpoint code @last --python",
            (options.job, options.code, options.debug),
            takes="job",
        ),
        Verb(
            "serve",
            "Serve a function on an embedded endpoint: the real protocol, on this machine.",
            "%%endpoint serve shout --workers 2\n"
            'def handler(job):\n    for word in job["input"]["prompt"].split():\n'
            '        yield word.upper() + " "',
            (options.serve, options.debug),
            takes="endpoint",
            cell=True,
        ),
        Verb(
            "connect",
            "Save an endpoint under a name of your own; never a key.",
            "%endpoint connect llama abc123 --provider runpod --profile vllm",
            (options.connect, options.debug),
        ),
        Verb(
            "use",
            "Make an endpoint the default one.",
            "%endpoint use demo",
            (options.name, options.debug),
            takes="endpoint",
        ),
        Verb("list", "List the endpoints that are known.", "%endpoint list", (options.debug,)),
        Verb(
            "forget",
            "Forget a saved endpoint.",
            "%endpoint forget llama",
            (options.name, options.debug),
            takes="endpoint",
        ),
        Verb(
            "login",
            "Type an endpoint's key, into the keyring where there is one, else into memory.",
            "%endpoint login llama",
            (options.name, options.debug),
            takes="endpoint",
        ),
        Verb(
            "doctor",
            "Check the kernel, the journal, the key, and whether an endpoint answers; submits nothing.",
            "%endpoint doctor demo",
            (options.target, options.debug),
            takes="endpoint",
        ),
        Verb("help", "Show the verbs, or one of them.", "%endpoint help run", (options.topic,), takes="verb"),
        Verb("version", "Show the version of this and of what it stands on.", "%endpoint version"),
    )
}
ALIASES = {"attach": "stream"}
