"""The words of `%endpoint`: its verbs, and the options of each, in groups that mean the same everywhere."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from notebook_ext import prompts
from notebook_ext.errors import InputError
from notebook_ext.render import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ALIASES", "FORMATS", "HANDLERS", "PANELS", "REPLAY_MODES", "ROUTES", "VERBS", "Verb"]

PANELS = ("prompt", "jobs", "health")
REPLAY_MODES = ("auto", "only", "off")
"""Answer from the journal what it has; nothing but what it has; nothing."""
ROUTES = ("openai",)
HANDLERS = ("echo", "chat", "image", "openai", "sleep", "fail")


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process, and suggests near options."""

    def __init__(self, verb: str) -> None:
        # a width of its own: help is the same in every terminal and notebook
        formatter = functools.partial(argparse.HelpFormatter, width=100)
        super().__init__(
            prog=f"%endpoint {verb}", add_help=False, allow_abbrev=False, formatter_class=formatter
        )
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        raise InputError(
            f"%endpoint {self.verb}: {message}{end} `%endpoint help {self.verb}` shows what it takes"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        near = difflib.get_close_matches(value, action.choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(action.choices)}"
        self.error(f"{'/'.join(action.option_strings) or action.metavar} cannot be '{value[:40]}'; {hint}")

    def read(self, tokens: Sequence[str]) -> argparse.Namespace:
        if any(re.fullmatch(r"(--?\w[\w-]*=)?--", token) for token in tokens):
            self.error("a value cannot be '--' alone")  # some versions of argparse lose it
        arguments, unknown = self.parse_known_intermixed_args(_with_dashes_joined(tokens))
        if unknown:
            self._refuse(unknown[0])
        return arguments

    def _refuse(self, word: str) -> NoReturn:
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"'{word[:40]}' is one word too many; prompt text comes after ' -- '")
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        self.error(f"there is no option {flag[:40]}" + (f"; did you mean {near[0]}?" if near else ""))


def _with_dashes_joined(tokens: Sequence[str]) -> list[str]:
    """Make `--stop ---` one token: apart, argparse takes the dashes for an option."""
    joined: list[str] = []
    for token in tokens:
        if len(token) > 2 and not token.strip("-") and joined and joined[-1].startswith("-"):
            joined[-1] += f"={token}" if joined[-1].startswith("--") else token
        else:
            joined.append(token)
    return joined


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
    def parser(self) -> _Parser:
        parser = _Parser(self.name)
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


# ---------------------------------------------------------------------------------- options, in groups


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", help="endpoint; the default one where it is left out")


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the endpoint")


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", default="@last", help="@last, @17, an id or its beginning, a variable"
    )


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="*", help="@last, @17, an id or its beginning, a variable")


def _connect(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument(
        "endpoint", metavar="URL-or-ID", help="the provider's id, or the endpoint's whole URL"
    )
    parser.add_argument("--provider", help="runpod, tensorone, tensorone-rest, or a base URL ending in /v2")
    parser.add_argument("--profile", default="raw", help="where prompt and options go: raw, chat, vllm, ...")
    parser.add_argument("--key-env", metavar="VAR", help="environment variable with its key")
    parser.add_argument("--rate", metavar="$/s", help="price of a second of running time, for the footer")
    parser.add_argument("--use", action="store_true", help="make it the default endpoint")
    parser.add_argument("--project", action="store_true", help="save it in the project's .notebook_ext.toml")


def _serve(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("--handler", metavar="FUNC", help=f"a function, or a built-in: {', '.join(HANDLERS)}")
    parser.add_argument("--workers", metavar="N", default="1", help="jobs that run at the same time (1)")
    _serve_outside(parser)
    parser.add_argument(
        "--port", metavar="P", default="0", help="port of the first one served; 0 takes a free one"
    )
    parser.add_argument(
        "--no-aggregate", action="store_true", help="do not keep what was yielded, as Runpod's default"
    )
    parser.add_argument(
        "--upstream", metavar="URL", help="for openai: base URL of an OpenAI-compatible server"
    )
    parser.add_argument("--upstream-key-env", metavar="VAR", help="environment variable with its key")
    parser.add_argument("--cold-start", metavar="TIME", help="rehearse: a worker needs so long to start")
    parser.add_argument("--fail", metavar="P", help="rehearse: share of jobs that fail, 0 to 1")
    parser.add_argument(
        "--throttle", metavar="P", help="rehearse: share of takes at which a worker is throttled"
    )
    parser.add_argument("--latency", metavar="TIME", help="rehearse: delay of every answer")
    parser.add_argument("--expire", metavar="TIME", help="rehearse: results are gone so long after the end")
    parser.add_argument("--rate-limit", metavar="N", help="rehearse: 429 beyond N requests in 10 s")
    parser.add_argument("--stop", action="store_true", help="serve it no longer")


def _serve_outside(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "workers in processes of their own, as runpod.serverless.start has them"
    )
    group.add_argument("--external", action="store_true", help="let them attach, and say how")
    group.add_argument(
        "--start", metavar="CMD", help='keep so many of them running, such as "python handler.py"'
    )
    group.add_argument(
        "--on-lost",
        default="requeue",
        choices=("requeue", "fail"),
        help="the job of one that is lost is queued once more (requeue), or fails",
    )
    group.add_argument("--lost-after", metavar="TIME", help="silence after which one is lost (30s)")
    group.add_argument(
        "--bind", metavar="ADDRESS", help="also listen there, without TLS, for containers or other machines"
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to that name; repeatable; workers outside are given the first",
    )


def _input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the input: JSON if it parses, else text; a.b=1 nests; key=@file reads a file",
    )
    group.add_argument("-P", "--params", metavar="VAR", help="a dict, or JSON; -p goes over it")
    group.add_argument(
        "-i", "--input", metavar="VAR", help="a variable as the input, in place of a prompt or body"
    )
    group.add_argument(
        "--as",
        dest="kind",
        default="auto",
        choices=prompts.KINDS,
        metavar="KIND",
        help=f"how the body is read: {', '.join(prompts.KINDS)}",
    )
    group.add_argument("--verbatim", action="store_true", help="leave {{ }} as it is")
    group.add_argument("--profile", help="where prompt and options go in the input")
    sampling = parser.add_argument_group("sampling, placed by the profile")
    sampling.add_argument("-s", dest="system", metavar="TEXT", help="system prompt")
    sampling.add_argument("-t", dest="temperature", metavar="X", help="temperature")
    sampling.add_argument("-m", dest="model", metavar="NAME", help="model")
    sampling.add_argument("--max-tokens", metavar="N", help="most tokens of the answer")
    sampling.add_argument("--top-p", metavar="X", help="nucleus sampling")
    sampling.add_argument("--seed", metavar="N", help="seed")
    sampling.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop text; repeatable")


def _route(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--route",
        choices=ROUTES,
        metavar="ROUTE",
        help="openai: ask /openai/v1/chat/completions, with server-sent events, whatever the profile; "
        "where no -m names the model as it was deployed, the endpoint is asked once for its only one",
    )


def _policy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clocks (90, 90s, 10m, 2h, 500ms; a bare number is seconds)")
    group.add_argument("--timeout", metavar="TIME", help="stop waiting then; the job is cancelled")
    group.add_argument("--exec-timeout", metavar="TIME", help="most time on a worker, kept by the server")
    group.add_argument("--ttl", metavar="TIME", help="most time in all; then the server deletes the job")
    group.add_argument("--low-priority", action="store_true", help="start no worker for it")
    group.add_argument("--webhook", metavar="URL", help="the server posts the result there")


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-interrupt",
        default="cancel",
        choices=("cancel", "detach"),
        help="what the stop button and --timeout do to the remote job (cancel)",
    )


def _wait_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", metavar="TIME", help="stop waiting then")


def _result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument(
        "-f",
        "--format",
        default="auto",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"how the output is shown: {', '.join(FORMATS)}",
    )
    group.add_argument("-o", "--out", metavar="NAME", help="variable for the job's handle")
    group.add_argument("-q", "--quiet", action="store_true", help="show nothing but errors")


def _background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bg", action="store_true", help="return at once; the cell's output goes on")


def _repeat(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what was asked before")
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache", action="store_true", default=None, help="answer from the journal where it has the answer"
    )
    cache.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        default=None,
        help="send it, whatever `replay` says",
    )
    group.add_argument(
        "--again", action="store_true", help="submit it although the same request of this cell still runs"
    )


def _left(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all that an earlier kernel left behind")


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mode", nargs="?", choices=REPLAY_MODES, metavar="MODE", help=", ".join(REPLAY_MODES))


def _dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show the exact request, send nothing")


def _debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _purge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all of this notebook's jobs that have not ended")


def _list_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--active", action="store_true", help="only those that have not ended")
    parser.add_argument("--since", metavar="TIME", help="only those submitted within that time, such as 1d")


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="keep watching, with a line for each counter")


def _pace(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("while it is watched")
    group.add_argument("--every", metavar="TIME", help="how often the endpoint is asked (5s)")
    group.add_argument("--forever", action="store_true", help="until it is stopped; else for ten minutes")


def _panel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", default="prompt", choices=PANELS, metavar="PANEL", help=", ".join(PANELS)
    )


def _history(parser: argparse.ArgumentParser) -> None:
    _search(parser)
    parser.add_argument("--limit", metavar="N", default="20", help="how many at most (20)")
    parser.add_argument(
        "-o",
        "--out",
        metavar="NAME",
        help="variable for the table: a pandas DataFrame, or a list of dicts where there is no pandas",
    )


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-q", "--query", metavar="TEXT", help="only those with these words in the prompt or the answer"
    )
    parser.add_argument("--since", metavar="TIME", help="only those submitted within that time, such as 7d")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="*", help="@17, an id or its beginning, a variable; where none is named, @last alone"
    )
    parser.add_argument(
        "file",
        help="tables: .csv (an apostrophe before what a spreadsheet would compute) .parquet; all that is "
        "known: .json .jsonl; to read: .md .html; the output of one job: .txt .png .jpg .wav .mp4 ...",
    )
    parser.add_argument("--all", action="store_true", help="every job of the journal")
    _search(parser)
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def _code(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--cell", action="store_true", help="insert it as the next cell")
    group.add_argument("--python", action="store_true", help="a Python program that makes the same request")
    group.add_argument("--curl", action="store_true", help="a curl command that makes the same request")
    group.add_argument(
        "--worker",
        action="store_true",
        help="of an endpoint that is served here: its handler as the program of a Runpod worker",
    )
    parser.add_argument("--to", metavar="FILE", help="write it to a file")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def _topic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="verb")


_RUN = (_target, _input, _policy, _waiting, _result, _background, _repeat, _dry_run, _debug)

VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "run",
            "Submit a job with /run, stream what comes, and wait for its end.",
            "%%endpoint run demo --max-tokens 60 -o job\nExplain queues to {{ audience }}.",
            (*_RUN, _route),
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
            "status", "Look once at how a job stands.", "%endpoint status @last", (_job, _debug), takes="job"
        ),
        Verb(
            "wait",
            "Wait until jobs have ended.",
            "%endpoint wait @1 @2 --timeout 5m",
            (_jobs, _wait_timeout, _waiting, _debug),
            takes="job",
        ),
        Verb(
            "result",
            "Give the output of a job, waiting for it where it runs.",
            "answer = %endpoint result @last",
            (_job, _wait_timeout, _waiting, _debug),
            takes="job",
        ),
        Verb(
            "show",
            "Draw a job again: its text so far, live where it still runs.",
            "%endpoint show @last",
            (_job, _result, _debug),
            takes="job",
        ),
        Verb(
            "stream",
            "Follow a job in this cell until it has ended; also called attach.",
            "%endpoint stream @last",
            (_job, _left, _wait_timeout, _waiting, _result, _background, _debug),
            takes="job",
        ),
        Verb(
            "replay",
            "Answer runs from the journal: where it has the answer, only so, or never.",
            "%endpoint replay auto",
            (_replay, _debug),
        ),
        Verb(
            "cancel",
            "Stop remote jobs, and say what was confirmed.",
            "%endpoint cancel @last",
            (_jobs, _cancel, _debug),
            takes="job",
        ),
        Verb(
            "retry",
            "Queue a failed or timed out job again, under the same id, and follow it.",
            "%endpoint retry @last",
            (_job, _wait_timeout, _waiting, _result, _background, _debug),
            takes="job",
        ),
        Verb(
            "health",
            "Show an endpoint's counters of jobs and workers.",
            "%endpoint health demo --watch",
            (_target, _watch, _pace, _debug),
            takes="endpoint",
        ),
        Verb(
            "purge",
            "Remove the jobs that wait in an endpoint's queue; it asks first.",
            "%endpoint purge demo --yes",
            (_target, _purge, _debug),
            takes="endpoint",
        ),
        Verb("jobs", "List this notebook's jobs.", "%endpoint jobs --active", (_list_jobs, _debug)),
        Verb(
            "panel",
            "Open a panel: prompts, jobs or an endpoint's health, by mouse.",
            "%endpoint panel jobs",
            (_panel, _target, _pace, _debug),
        ),
        Verb(
            "history",
            "List the journal's jobs, the newest first, or find some by their words, the best first.",
            '%endpoint history -q "queues fair" --since 7d -o df',
            (_history, _debug),
        ),
        Verb(
            "export",
            "Write jobs of the journal to a file, or what one of them gave.",
            "%endpoint export --all --since 7d jobs.csv",
            (_export, _debug),
            takes="job",
        ),
        Verb(
            "code",
            "Write the cell that does what a job did, or its request as a program; the key by its variable.",
            "%endpoint code @last --python",
            (_job, _code, _debug),
            takes="job",
        ),
        Verb(
            "serve",
            "Serve a function on an embedded endpoint: the real protocol, on this machine.",
            "%%endpoint serve shout --workers 2\n"
            'def handler(job):\n    for word in job["input"]["prompt"].split():\n'
            '        yield word.upper() + " "',
            (_serve, _debug),
            takes="endpoint",
            cell=True,
        ),
        Verb(
            "connect",
            "Save an endpoint under a name of your own; never a key.",
            "%endpoint connect llama abc123 --provider runpod --profile vllm",
            (_connect, _debug),
        ),
        Verb(
            "use",
            "Make an endpoint the default one.",
            "%endpoint use demo",
            (_name, _debug),
            takes="endpoint",
        ),
        Verb("list", "List the endpoints that are known.", "%endpoint list", (_debug,)),
        Verb(
            "forget", "Forget a saved endpoint.", "%endpoint forget llama", (_name, _debug), takes="endpoint"
        ),
        Verb(
            "login",
            "Type an endpoint's key, into the keyring where there is one, else into memory.",
            "%endpoint login llama",
            (_name, _debug),
            takes="endpoint",
        ),
        Verb(
            "doctor",
            "Check the kernel, the journal, the key, and whether an endpoint answers; submits nothing.",
            "%endpoint doctor demo",
            (_target, _debug),
            takes="endpoint",
        ),
        Verb("help", "Show the verbs, or one of them.", "%endpoint help run", (_topic,), takes="verb"),
        Verb("version", "Show the version of this and of what it stands on.", "%endpoint version"),
    )
}
ALIASES = {"attach": "stream"}
