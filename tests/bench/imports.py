"""What do `import notebook_ext` and `%load_ext` cost a kernel that has its own imports already?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from tests.bench.contenders import ROOT
from tests.bench.figures import OURS, Figure, Goal, Settings

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


def measure(settings: Settings) -> list[Figure]:
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
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, also_imported],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    marks: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return marks
