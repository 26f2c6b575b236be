"""Stands between the server and one worker process, so that none is left behind, however the server ends.

Run as a file by a bare Python, in a process group of its own: `keeper.py GRACE PROGRAM [ARGUMENT ...]`.
Its standard input is a pipe that only the server holds. Once that is closed, the program is asked to
end, and after GRACE seconds it is killed, with all that it has started in the group. When the program
ends, its exit status is written to standard output. Nothing but the standard library is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Keep one program."""
    grace, *command = sys.argv[1:]
    # The first in its group, so that the group can be killed by this process's id.
    report = os.dup(1)
    os.dup2(2, 1)
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the user's own command
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        os.write(report, b"127\n")
        return
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    threading.Thread(target=_end_with_server, args=(program, float(grace)), daemon=True).start()
    status = program.wait()
    with contextlib.suppress(OSError):  # the server may be gone
        os.write(report, f"{status}\n".encode())
    _kill_group()


def _end_with_server(program: subprocess.Popen[bytes], grace: float) -> None:
    while os.read(0, 4096):
        pass
    program.terminate()
    try:
        program.wait(grace)
    except subprocess.TimeoutExpired:
        _kill_group()


def _kill_group() -> None:
    """End what the program has started, and this process."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
