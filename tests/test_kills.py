"""kill -9 at any moment: every job that the server took is accounted for, and none was submitted twice.

`python -m pytest tests/test_kills.py --kills 200` is the long run; it prints a table.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager
from killing import ENDPOINTS, MISSING, TOKEN, Proxy, Served, Victim, eventually, job, proxy, server, words

from notebook_ext.session import Session
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from notebook_ext.handle import JobHandle

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(3000)]

KILLS, SEED = 20, 4
MOMENTS = ("before the POST", "POST unanswered", "mid-stream", "finishing", "any time")
COLUMNS = (
    "kills", "jobs", "accepted", "finished", "with a note", "found again", "running", "ambiguous",
    "doubled", "missing",
)  # fmt: skip
EVERY_KERNEL, EVERY_NEW_KERNEL = 4, 7
"""Each so many kills, a whole kernel is killed; each so many, another whole kernel recovers."""
LONG = {"words": 60, "pause": 0.1}
PATIENCE = 20.0


class Kernel:
    """A real kernel with the extension loaded, in the place of a `Victim`."""

    def __init__(self, journal: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NOTEBOOK_EXT_JOURNAL", str(journal))
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel()
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        connects = [f"notebook_ext.connect({name!r}, {name!r}, provider={url!r})" for name in ENDPOINTS]
        self.run("\n".join(["%load_ext notebook_ext", "import notebook_ext", *connects, "None"]))

    def submit(self, journal: Path, url: str, jobs: list[dict[str, Any]]) -> None:
        for planned in jobs:
            self._client.execute(
                f"%%endpoint run {planned['endpoint']} --bg --as json\n{json.dumps(planned['input'])}"
            )

    def run(self, code: str) -> str:
        """What a cell prints."""
        printed = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            assert message["msg_type"] != "error", content
            printed.append(content.get("text", ""))

        self._client.execute_interactive(code, timeout=60, output_hook=hear)
        return "".join(printed)

    def kill(self) -> None:
        self._client.stop_channels()
        self._manager.signal_kernel(9)
        self._manager.shutdown_kernel(now=True)


class Round:
    """One kill, and what becomes of its jobs."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.moment = MOMENTS[number % len(MOMENTS)]
        self.random = random.Random(f"{seed} {number}")
        self.is_kernel = number % EVERY_KERNEL == EVERY_KERNEL - 1
        self.by_kernel = number % EVERY_NEW_KERNEL == EVERY_NEW_KERNEL - 1
        self.jobs = [self._job(index) for index in range(self.random.randint(3, 6))]
        if self.moment == "POST unanswered" and self.random.random() < 0.5:
            self.jobs.append(
                self.jobs[-1]
            )  # the same input twice: which of the two is which, nobody can tell

    def _job(self, index: int) -> dict[str, Any]:
        endpoint = self.random.choice(ENDPOINTS)
        size = {"words": self.random.randint(5, 30), "pause": 0.5 / self.random.randint(5, 30)}
        if self.moment != "finishing" and self.random.random() < 0.15:
            size = LONG
        if self.moment == "finishing":
            size = {"words": 20, "pause": 0.02}
        sync = endpoint in ("slow", "echo") and not self.is_kernel and self.random.random() < 0.5
        return job(endpoint, f"{self.number}.{index}", sync=sync, **size)

    def is_ours(self, input: Any) -> bool:
        return input["tag"].startswith(f"{self.number}.")

    def strike(self, victim: Victim | Kernel, journal: Path, way: Proxy, served: Served) -> None:
        """Let the jobs be submitted, and kill who does that."""
        way.held.clear()
        way.posts, way.spared = 0, self.random.randrange(len(self.jobs))
        way.hold = {"before the POST": "request", "POST unanswered": "answer"}.get(self.moment)
        victim.submit(journal, way.url, self.jobs)
        if way.hold:
            assert way.held.wait(PATIENCE)
            time.sleep(self.random.uniform(0, 0.1))
        elif self.moment == "any time":
            time.sleep(self.random.uniform(0, 0.6))
        else:
            eventually(lambda: len(self.accepted(served)) == len(self.jobs), "all were accepted")
            lengths = {"mid-stream": (0, 0.4), "finishing": (0.35, 0.55)}
            time.sleep(self.random.uniform(*lengths[self.moment]))
        victim.kill()
        way.hold = None

    def accepted(self, served: Served) -> list[tuple[str, str, dict[str, Any]]]:
        return [row for row in served.accepted() if self.is_ours(row[2])]

    def account(self, session: Session, served: Served) -> tuple[Counter, list[str]]:
        """What became of each job, and what is wrong with that."""
        handles = [session.recall(entry) for entry in session.journal.entries() if self.is_ours(entry.input)]
        accepted = self.accepted(served)
        fates = [self._fate(session, handle) for handle in handles]
        count = Counter(name for fate in fates for name in fate)
        known = {handle.id for handle in handles}
        doubtful = [handle.input for handle in handles if handle.status is JobStatus.AMBIGUOUS]
        for _, job_id, asked in accepted:
            if job_id not in known:
                if asked in doubtful:
                    doubtful.remove(asked)
                else:
                    count["missing"] += 1
        planned = Counter(json.dumps(planned["input"]) for planned in self.jobs)
        taken = Counter(json.dumps(asked) for _, _, asked in accepted)
        count["doubled"] = (taken - planned).total()
        count.update(kills=1, jobs=len(handles), accepted=len(accepted))
        wrong = [name for name in count if name not in COLUMNS]
        return count, wrong + [name for name in ("missing", "doubled") if count[name]]

    def _fate(self, session: Session, handle: JobHandle) -> Iterator[str]:
        told = f"{handle!r} {handle.notes} {handle.value!r:.2000} {handle.error}"
        if handle.status is JobStatus.AMBIGUOUS:
            yield "ambiguous"
        elif not handle.status.is_final:
            is_there = handle.id and not session.look(handle).status.is_final
            # a long one may have ended since the journal was read; in the end none may still run
            goes_on = is_there or handle.input["words"] == LONG["words"]
            yield "running" if goes_on else f"neither running nor ended: {told}"
        elif handle.value == "".join(words(handle.input)):
            yield "finished"
        elif MISSING in handle.notes and handle.endpoint == "forgetful" and is_part(handle):
            yield "with a note"
        else:
            yield f"ended otherwise: {told}"
        if any("a job of the same input was found" in note for note in handle.notes):
            yield "found again"


def is_part(handle: JobHandle) -> bool:
    """Whether a text lacks something of what was said, and is right otherwise."""
    rest = iter(words(handle.input))
    return all(chunk.output in rest for chunk in handle.chunks())


def settled(handle: JobHandle) -> bool:
    return handle.done or handle.input["words"] == LONG["words"]


def recover(session: Session, is_awaited: Callable[[JobHandle], bool]) -> None:
    handles = session.recover().handles
    eventually(lambda: all(map(is_awaited, handles)), f"{handles} are settled", patience=PATIENCE)


RECOVER = f"""
import time
from notebook_ext.session import default_session
handles = default_session().recover().handles
end = time.monotonic() + {PATIENCE}
while not all(handle.done or handle.input["words"] == {LONG["words"]} for handle in handles):
    assert time.monotonic() < end, handles
    time.sleep(0.01)
print("recovered")
"""


def test_no_kill_loses_a_job_or_doubles_one(tmp_path, monkeypatch, request, capsys) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", TOKEN)
    kills, journal = request.config.getoption("--kills"), tmp_path / "killed.db"
    table, wrong = {moment: Counter() for moment in MOMENTS}, []
    victims = [Victim(), Victim()]
    with server(tmp_path) as served, proxy(served.url) as way:
        for number in range(kills or KILLS):
            it = Round(number, SEED)
            if it.is_kernel:
                it.strike(Kernel(journal, way.url, monkeypatch), journal, way, served)
            else:
                victim = victims.pop(0)
                victims.append(Victim())
                victim.wait_until_ready()
                it.strike(victim, journal, way, served)
            if it.by_kernel:
                kernel = Kernel(journal, way.url, monkeypatch)
                assert kernel.run(RECOVER).endswith("recovered\n")
                kernel.kill()
            session = Session(journal=str(journal))
            recover(session, settled)
            count, faults = it.account(session, served)
            session.close()
            table[it.moment].update(count)
            wrong += [f"kill {number}, {it.moment}, seed {SEED}: {fault}" for fault in faults]
        session = Session(journal=str(journal))
        recover(session, lambda handle: handle.done)
        session.close()
        session = Session(journal=str(journal))  # one that knows no more than what is in the file
        for number in range(kills or KILLS):
            count, faults = Round(number, SEED).account(session, served)
            wrong += [f"in the end, kill {number}: {fault}" for fault in faults]
            wrong += [f"in the end, kill {number}: {count['running']} still run"] * bool(count["running"])
            table.setdefault("in the end", Counter()).update(count)
        session.close()
    for victim in victims:
        victim.wait_until_ready()
        victim.kill()
    lines = [" | ".join(["moment".ljust(15), *COLUMNS])]
    lines += [
        " | ".join([moment.ljust(15), *(str(count[name]).rjust(len(name)) for name in COLUMNS)])
        for moment, count in table.items()
    ]
    if kills:
        with capsys.disabled():
            print("", *lines, sep="\n")
    assert not wrong, "\n".join([*wrong, *lines])
