"""What do `import notebook_ext` and `%load_ext` cost a kernel, and a plain process beside the released SDKs?"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.bench.contenders import ROOT, environment, output, peer_environments
from tests.bench.figures import OURS, RUNPOD, RUNPOD_JS, Figure, Goal, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

QUESTION = "imports"
ROWS = "12"

# Runs in a fresh interpreter; what a kernel has imported anyway comes before the first mark.
SCRIPT = """
import json, pathlib, sys, threading, time
import IPython, ipykernel.ipkernel, ipykernel.zmqshell
if sys.argv[1]:
    __import__(sys.argv[1])
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
threads = set(threading.enumerate())

def mark():
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    except OSError:
        resident = None
    return time.thread_time(), time.process_time(), resident

marks = [mark()]
import notebook_ext
marks.append(mark())
shell.run_line_magic("load_ext", "notebook_ext")
marks.append(mark())
for thread in set(threading.enumerate()) - threads:
    thread.join(2)
marks.append(mark())
notebook_ext.extension._import_all(bool(sys.argv[1]))  # what a kernel does when it is idle after %load_ext
marks.append(mark())
print(json.dumps(marks))
"""

# Runs in a bare interpreter: all that a client needs before its first call.
IMPORT = """
import json, pathlib, time
wall, cpu = time.perf_counter(), time.process_time()
import {module}
{module}.Endpoint
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
try:
    most = int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
except OSError:
    most = None
print(json.dumps([wall, cpu, most]))
"""


def measure(settings: Settings) -> list[Figure]:
    return [*_in_a_kernel(settings), *_beside_peers(settings)]


def _beside_peers(settings: Settings) -> list[Figure]:
    case = "a bare process, with all that a client needs"
    wall = Figure(case, "import", "ms", Goal(peer=0.25) if settings.with_peers else None)
    cpu = Figure(case, "import", "ms CPU")
    most = Figure(case, "most memory", "MB")
    count = Figure("installed, with all that it needs", "distributions", "")
    size = Figure("installed, with all that it needs", "size", "MB")
    programs = {OURS: [sys.executable, "-c", IMPORT.format(module="notebook_ext")]}
    if settings.with_peers:
        programs[RUNPOD] = [peer_environments()[0], "-c", IMPORT.format(module="runpod")]
    with TemporaryDirectory() as compiled:
        for program in programs.values():
            _told(program, compiled)  # not counted: it compiles
        for _ in range(settings.repeats):
            for name, program in programs.items():
                seconds, spent, memory = _told(program, compiled)
                wall.add(name, seconds * 1000)
                cpu.add(name, spent * 1000)
                if memory is not None:
                    most.add(name, memory)
    for name, (packages, megabytes) in _sizes(settings).items():
        count.add(name, packages)
        size.add(name, megabytes)
    return [wall, cpu, most, count, size]


def _sizes(settings: Settings) -> dict[str, tuple[int, float]]:
    """Distributions and megabytes, by contender."""
    count, size = _needed("notebook_ext", sysconfig.get_path("purelib"))
    found = {
        OURS: (count, size + _megabytes((ROOT / "notebook_ext").rglob("*.py")))
    }  # from where it is edited
    if settings.with_peers:
        python, (_, folder) = peer_environments()
        library = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        found[RUNPOD] = _needed("runpod", library)
        modules = folder / "node_modules"
        packages = [one for one in modules.rglob("package.json") if one.parent.parent.name == "node_modules"]
        found[RUNPOD_JS] = len(packages), _megabytes(modules.rglob("*"))
    return found


def _needed(name: str, library: str) -> tuple[int, float]:
    """How many distributions a distribution needs, itself included, and the megabytes of their files."""
    there = {canonicalize_name(one.name): one for one in distributions(path=[library])}
    found: dict[str, Distribution] = {}
    asked, seen = {(canonicalize_name(name), "")}, set()
    while asked - seen:
        name, extra = (asked - seen).pop()
        seen.add((name, extra))
        found[name] = there[name]
        for need in map(Requirement, there[name].requires or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                asked |= {(canonicalize_name(need.name), one) for one in ("", *need.extras)}
    files = {Path(str(path.locate())) for one in found.values() for path in one.files or []}
    return len(found), _megabytes(files)


def _megabytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc") / 1e6


def _in_a_kernel(settings: Settings) -> list[Figure]:
    """Main-thread CPU apart from that of the threads that `%load_ext` starts, which block nobody."""
    case = "over IPython + ipykernel"
    package = Figure(case, "import notebook_ext, main thread", "ms CPU")
    both = Figure(case, "import + %load_ext, main thread", "ms CPU", Goal(absolute=20.0))
    others = Figure(case, "other threads of %load_ext", "ms CPU")
    idle = Figure(case, "what is imported when the kernel is idle", "ms CPU")
    memory = Figure("over ipykernel + ipywidgets", "added memory, all imported", "MB", Goal(absolute=20.0))
    with TemporaryDirectory() as compiled:
        for also in ("", "ipywidgets"):
            _run(also, compiled)  # not counted: it compiles, which installing does for users
        for _ in range(settings.repeats):
            start, imported, loaded, settled, ready = _run("", compiled)
            package.add(OURS, (imported[0] - start[0]) * 1000)
            both.add(OURS, (loaded[0] - start[0]) * 1000)
            main_thread = settled[0] - imported[0]
            others.add(OURS, max(0.0, settled[1] - imported[1] - main_thread) * 1000)
            idle.add(OURS, (ready[0] - settled[0]) * 1000)
            start, *_, ready = _run("ipywidgets", compiled)
            if start[2] is not None:  # only Linux tells
                memory.add(OURS, ready[2] - start[2])
    return [package, both, others, idle, memory]


def _run(also_imported: str, compiled: str) -> list[list[float]]:
    marks: list[list[float]] = _told([sys.executable, "-c", SCRIPT, also_imported], compiled)
    return marks


def _told(command: list[str], compiled: str) -> Any:
    """What a program prints last."""
    variables = environment(PYTHONPYCACHEPREFIX=compiled)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
