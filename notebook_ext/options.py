"""The options of the verbs, in groups that mean the same everywhere; each adds its own to a parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notebook_ext import prompts
from notebook_ext.render import FORMATS

if TYPE_CHECKING:
    import argparse

PANELS = ("prompt", "jobs", "health")
REPLAY_MODES = ("auto", "only", "off")
"""Answer from the journal what it has; nothing but what it has; nothing."""
ROUTES = ("openai",)
HANDLERS = ("echo", "chat", "image", "openai", "sleep", "fail")


def target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", help="endpoint; the default one where it is left out")


def name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the endpoint")


def job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", default="@last", help="@last, @17, an id or its beginning, a variable"
    )


def jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="*", help="@last, @17, an id or its beginning, a variable")


def connect(parser: argparse.ArgumentParser) -> None:
    name(parser)
    parser.add_argument(
        "endpoint", metavar="URL-or-ID", help="the provider's id, or the endpoint's whole URL"
    )
    parser.add_argument("--provider", help="runpod, tensorone, tensorone-rest, or a base URL ending in /v2")
    parser.add_argument("--profile", default="raw", help="where prompt and options go: raw, chat, vllm, ...")
    parser.add_argument("--key-env", metavar="VAR", help="environment variable with its key")
    parser.add_argument("--rate", metavar="$/s", help="price of a second of running time, for the footer")
    parser.add_argument("--use", action="store_true", help="make it the default endpoint")
    parser.add_argument("--project", action="store_true", help="save it in the project's .notebook_ext.toml")


def serve(parser: argparse.ArgumentParser) -> None:
    name(parser)
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


def inputs(parser: argparse.ArgumentParser) -> None:
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


def route(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--route",
        choices=ROUTES,
        metavar="ROUTE",
        help="openai: ask /openai/v1/chat/completions, with server-sent events, whatever the profile; "
        "where no -m names the model as it was deployed, the endpoint is asked once for its only one",
    )


def policy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clocks (90, 90s, 10m, 2h, 500ms; a bare number is seconds)")
    group.add_argument("--timeout", metavar="TIME", help="stop waiting then; the job is cancelled")
    group.add_argument("--exec-timeout", metavar="TIME", help="most time on a worker, kept by the server")
    group.add_argument("--ttl", metavar="TIME", help="most time in all; then the server deletes the job")
    group.add_argument("--low-priority", action="store_true", help="start no worker for it")
    group.add_argument("--webhook", metavar="URL", help="the server posts the result there")


def waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-interrupt",
        default="cancel",
        choices=("cancel", "detach"),
        help="what the stop button and --timeout do to the remote job (cancel)",
    )


def wait_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", metavar="TIME", help="stop waiting then")


def result(parser: argparse.ArgumentParser) -> None:
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


def background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bg", action="store_true", help="return at once; the cell's output goes on")


def repeat(parser: argparse.ArgumentParser) -> None:
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


def left(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all that an earlier kernel left behind")


def replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mode", nargs="?", choices=REPLAY_MODES, metavar="MODE", help=", ".join(REPLAY_MODES))


def dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show the exact request, send nothing")


def debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def purge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")


def cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all of this notebook's jobs that have not ended")


def listing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--active", action="store_true", help="only those that have not ended")
    parser.add_argument("--since", metavar="TIME", help="only those submitted within that time, such as 1d")


def watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="keep watching, with a line for each counter")


def pace(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("while it is watched")
    group.add_argument("--every", metavar="TIME", help="how often the endpoint is asked (5s)")
    group.add_argument("--forever", action="store_true", help="until it is stopped; else for ten minutes")


def panel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", nargs="?", default="prompt", choices=PANELS, metavar="PANEL", help=", ".join(PANELS)
    )


def history(parser: argparse.ArgumentParser) -> None:
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


def export(parser: argparse.ArgumentParser) -> None:
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


def code(parser: argparse.ArgumentParser) -> None:
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


def topic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="verb")
