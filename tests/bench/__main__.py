"""`python -m tests.bench`: measure, judge, print the tables."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import tests.bench
from tests.bench.contenders import peer_versions, stopwatch_rate
from tests.bench.figures import Figure, Settings, table

DISTRIBUTIONS = ("notebook_ext", "httpx", "httptools", "ipython", "ipykernel", "ipywidgets")


def questions() -> dict[str, Any]:
    """The modules of this folder that answer a question, by its name."""
    modules = (
        importlib.import_module(f"tests.bench.{found.name}")
        for found in iter_modules(tests.bench.__path__)
        if found.name != "__main__"
    )
    return {module.QUESTION: module for module in modules if hasattr(module, "QUESTION")}


def versions(*, with_peers: bool) -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found | (peer_versions() if with_peers else {})


def main() -> int:
    known = questions()
    options = parsed(known)
    settings = Settings(
        repeats=options.repeats or (3 if options.quick else 5), quick=options.quick, with_peers=options.peers
    )
    run = measure(known, options.only, settings)
    found = versions(with_peers=options.peers)
    print(report(known, run, settings, found))
    if options.json:
        document = {
            "versions": found,
            "settings": asdict(settings),
            "figures": [
                {"question": name, "rows": known[name].ROWS, "reached": figure.reached, **asdict(figure)}
                for name, figures in run.figures.items()
                for figure in figures
            ],
        }
        options.json.write_text(json.dumps(document, indent=1))
    return 1 if run.failed else 0


def parsed(known: dict[str, Any]) -> argparse.Namespace:
    """What the command line asks for; `only` is a list of questions."""
    usual = [name for name, module in known.items() if not hasattr(module, "IS_APART")]
    apart = [name for name in known if name not in usual]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Ratios against a bare asyncio loop and the released SDKs, of one run and interleaved.",
    )
    parser.add_argument(
        "--only",
        default=",".join(usual),
        help=f"questions, by comma: {', '.join(usual)} (all of these); or, by name, {', '.join(apart)}",
    )
    parser.add_argument(
        "--peers", action="store_true", help="also the released SDKs; makes their environments on first use"
    )
    parser.add_argument("--repeats", type=int, help="of each case with each contender (5; with --quick 3)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer tokens and jobs: a look, not a measurement"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    if unknown := set(options.only) - set(known):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


@dataclass
class Run:
    """What was found, by question.

    Args:
        figures: Of the questions that were answered.
        seconds: That each took.
        failed: Those that broke.
    """

    figures: dict[str, list[Figure]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def measure(known: dict[str, Any], asked: list[str], settings: Settings) -> Run:
    run = Run()
    for name in asked:
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            run.figures[name] = known[name].measure(settings)
        except Exception:  # what the other questions found is printed all the same
            traceback.print_exc()
            run.failed.append(name)
        run.seconds[name] = time.monotonic() - started
    return run


def report(known: dict[str, Any], run: Run, settings: Settings, found: dict[str, str]) -> str:
    """The tables, under what was measured how, and above what did not reach its goal."""
    load = " ".join(f"{one:.1f}" for one in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    parts = [
        ", ".join(f"{name} {number}" for name, number in found.items()),
        f"{settings.repeats} repeats, interleaved; median [range]; {os.cpu_count()} cores, load at the end {load}; "
        f"{sum(run.seconds.values()):.0f} s; the stopwatch answers {stopwatch_rate():,.0f} requests/s",
    ]
    for name, figures in run.figures.items():
        parts.append(f"\n### {name} (row {known[name].ROWS}), {run.seconds[name]:.0f} s\n\n{table(figures)}")
    judged = [figure for figures in run.figures.values() for figure in figures if figure.reached is not None]
    missed = [f"- {figure.case}: {figure.what}" for figure in judged if not figure.reached]
    parts.append(f"\n{len(judged) - len(missed)} of {len(judged)} goals reached{'; not:' if missed else ''}")
    parts += missed
    if run.failed:
        parts.append(f"\nnot measured: {', '.join(run.failed)}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
