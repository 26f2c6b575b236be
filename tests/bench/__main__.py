"""`python -m tests.bench`: measure, judge, print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import tests.bench
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


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def main() -> int:
    known = questions()
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Ratios against a bare asyncio loop, of one run and interleaved.",
    )
    parser.add_argument("--only", default=",".join(known), help=f"questions, by comma: {', '.join(known)}")
    parser.add_argument("--repeats", type=int, help="of each case with each contender (5; with --quick 3)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer tokens and jobs: a look, not a measurement"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    options = parser.parse_args()
    asked = [name for name in options.only.split(",") if name]
    if unknown := set(asked) - set(known):
        parser.error(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    settings = Settings(repeats=options.repeats or (3 if options.quick else 5), quick=options.quick)

    started = time.monotonic()
    rows: list[tuple[str, Figure]] = []
    failed: list[str] = []
    for name in asked:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += [(f"{name} ({known[name].ROWS})", figure) for figure in known[name].measure(settings)]
        except Exception:  # what the other questions found is printed all the same
            traceback.print_exc()
            failed.append(name)
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    print(
        f"{settings.repeats} repeats, interleaved; median [range]; {os.cpu_count()} cores, load at the end "
        f"{' '.join(f'{one:.1f}' for one in load)}; {time.monotonic() - started:.0f} s\n"
    )
    print(table(rows))
    if failed:
        print(f"\nnot measured: {', '.join(failed)}")
    if options.json:
        document = {
            "versions": versions(),
            "settings": asdict(settings),
            "figures": [{"question": question, **asdict(figure)} for question, figure in rows],
        }
        options.json.write_text(json.dumps(document, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
