"""Real workers of the released SDK, unmodified, attached to embedded endpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from peers import runpod_python
from serving import FINAL

from notebook_ext.loop import LoopThread
from notebook_ext.protocol import read_worker_error
from notebook_ext.server import EmbeddedServer, attached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.workers

PROGRAM = Path(__file__).with_name("worker_program.py")
SHARED = ("plain", "blocking", "generator", "aggregate", "agenerator", "together", "refreshed")


class Site:
    """A server in a thread, asked as any client asks it."""

    def __init__(self) -> None:
        self.loop = LoopThread("notebook_ext tests")
        self.server = EmbeddedServer()
        self.loop.submit(self.server.start()).result(10)
        headers = {"Authorization": self.server.token}
        self.http = httpx.Client(base_url=self.server.base_url, headers=headers, trust_env=False, timeout=30)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        async def on_loop() -> Any:
            return function(*arguments, **options)

        return self.loop.submit(on_loop()).result(10)

    def start(self, name: str, kind: str, **options: Any) -> None:
        self.call(self.server.serve, name, None, start=[str(runpod_python()), str(PROGRAM), kind], **options)

    def ready(self, name: str) -> None:
        self.loop.submit(self.server.starter(name).settled(60)).result(60)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **document: Any) -> Any:
        answer = self.http.post(path, json=document)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, name: str, input: Any, **more: Any) -> str:
        return self.post(f"/{name}/run", input=input, **more)["id"]

    def end(self, name: str, job: str) -> Any:
        document = self.get(f"/{name}/status-sync/{job}")
        assert document["status"] in FINAL
        return document

    def result(self, name: str, input: Any, **more: Any) -> Any:
        return self.end(name, self.run(name, input, **more))

    def chunks(self, name: str, job: str) -> list[Any]:
        found: list[Any] = []
        while True:
            answer = self.get(f"/{name}/stream/{job}")
            found += [chunk["output"] for chunk in answer["stream"]]
            if answer["status"] in FINAL:
                return found

    def health(self, name: str) -> Any:
        return self.get(f"/{name}/health")

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)

    def close(self) -> None:
        self.http.close()
        self.loop.submit(self.server.stop()).result(10)
        self.loop.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEBOOK_EXT_WORKERS", str(tmp_path_factory.mktemp("workers")))
        it = Site()
        for kind in SHARED:
            it.start(kind, kind)
        it.start("fragile", "plain", on_lost="fail")
        for kind in (*SHARED, "fragile"):
            it.ready(kind)
        yield it
        it.close()


def test_a_job_comes_back_from_its_worker(site: Site) -> None:
    document = site.result("plain", {"do": "echo", "text": "ä ☃"})
    assert document["status"] == "COMPLETED"
    assert document["output"]["got"] == {"do": "echo", "text": "ä ☃"}
    assert document["workerId"].startswith("plain-process-")
    assert document["executionTime"] >= 0
    assert "output" not in site.result("plain", {"do": "none"})


def test_what_a_handler_raises_or_returns_as_an_error_fails_its_job(site: Site) -> None:
    document = site.result("plain", {"do": "raise"})
    error = read_worker_error(document["error"])
    assert (document["status"], error.message) == ("FAILED", "it broke")
    assert error.type == "RuntimeError"
    assert error.worker_id == document["workerId"]
    document = site.result("plain", {"do": "error"})
    assert (document["status"], document["error"], document["output"]) == ("FAILED", "no good", {"more": 1})


@pytest.mark.parametrize(
    ("name", "chunks", "output"),
    [
        ("generator", ["a", "b", None], []),
        ("aggregate", ["a", "b", None], ["a", "b", None]),
        ("agenerator", [{"word": "a"}, {"word": "b"}], [{"word": "a"}, {"word": "b"}]),
    ],
)
def test_generators_stream_and_the_worker_says_what_their_output_is(
    site: Site, name: str, chunks: list[Any], output: list[Any]
) -> None:
    words = [chunk["word"] if isinstance(chunk, dict) else chunk for chunk in chunks]
    job = site.run(name, {"words": words})
    assert site.chunks(name, job) == chunks
    document = site.end(name, job)
    assert (document["status"], document["output"]) == ("COMPLETED", output)


def test_a_generator_that_raises_keeps_what_it_has_streamed(site: Site) -> None:
    job = site.run("generator", {"words": ["a", "!", "b"]})
    assert site.chunks("generator", job) == ["a"]
    document = site.end("generator", job)
    assert document["status"] == "FAILED"
    assert read_worker_error(document["error"]).message.startswith("it broke")


def test_progress_is_the_output_until_the_end(site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = site.run("plain", {"do": "progress", "go": str(go)})
    site.until(lambda: site.get(f"/plain/status/{job}").get("output") == {"step": 1})
    assert site.get(f"/plain/status/{job}")["status"] == "IN_PROGRESS"
    go.touch()
    assert site.end("plain", job)["output"] == "done"


def test_a_worker_takes_as_many_jobs_as_it_runs_at_once(site: Site) -> None:
    jobs = [site.run("together", 3) for _ in range(3)]
    assert sorted(site.end("together", job)["output"] for job in jobs) == [3, 3, 3]
    assert len({site.end("together", job)["workerId"] for job in jobs}) == 1


def test_a_worker_that_asks_for_it_is_replaced_by_a_fresh_process(site: Site) -> None:
    pids = {site.result("refreshed", {"do": "echo"})["output"]["pid"] for _ in range(2)}
    assert len(pids) == 2
    first = site.result("plain", {"do": "refresh"})["output"]["pid"]
    assert site.result("plain", {"do": "echo"})["output"]["pid"] != first


def test_a_cancel_reaches_the_handler_and_its_worker_goes_on(site: Site, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job = site.run("plain", {"do": "wait", "mark": str(mark)})
    site.until(lambda: site.get(f"/plain/status/{job}")["status"] == "IN_PROGRESS")
    document = site.post(f"/plain/cancel/{job}")  # within 0.1 s of the take, where the SDK drops a stop
    assert document["status"] == "CANCELLED"
    site.until(mark.exists)
    site.until(lambda: site.health("plain")["workers"]["running"] == 0)
    assert site.result("plain", {"do": "echo"})["workerId"] == document["workerId"]


def test_a_result_that_cannot_be_sent_ends_with_the_execution_timeout(site: Site) -> None:
    document = site.result("plain", {"do": "object"}, policy={"executionTimeout": 400})
    assert document["status"] == "TIMED_OUT"
    assert site.result("plain", {"do": "echo"})["status"] == "COMPLETED"


@pytest.mark.parametrize(("what", "words"), [("nan", "is not JSON: NaN"), ("large", "more than 20 MB")])
def test_a_result_that_is_no_answer_fails_its_job_with_the_reason(site: Site, what: str, words: str) -> None:
    document = site.result("plain", {"do": what})
    assert document["status"] == "FAILED"
    assert words in document["error"]


def test_a_late_result_changes_nothing_and_its_worker_is_busy_until_then(site: Site) -> None:
    before = site.health("blocking")["jobs"]
    document = site.result("blocking", 1.0, policy={"executionTimeout": 200})
    assert document["status"] == "TIMED_OUT"
    assert site.health("blocking")["workers"]["running"] == 1
    site.until(lambda: site.health("blocking")["workers"]["idle"] == 1)
    assert site.get(f"/blocking/status/{document['id']}") == document
    after = site.health("blocking")["jobs"]
    assert (after["failed"] - before["failed"], after["completed"] - before["completed"]) == (1, 0)


def test_a_job_whose_worker_is_killed_is_run_once_more(site: Site, tmp_path: Path) -> None:
    document = site.result("plain", {"do": "die", "mark": str(tmp_path / "mark"), "always": False})
    assert document["status"] == "COMPLETED"
    assert document["retries"] == 1
    retried = site.health("plain")["jobs"]["retried"]
    document = site.result("plain", {"do": "die", "mark": str(tmp_path / "mark"), "always": True})
    assert document["status"] == "FAILED"
    assert "was lost while it ran the job, after another one" in document["error"]
    assert site.health("plain")["jobs"]["retried"] == retried + 1


def test_or_it_fails_at_once(site: Site, tmp_path: Path) -> None:
    document = site.result("fragile", {"do": "die", "mark": str(tmp_path / "mark"), "always": True})
    assert document["status"] == "FAILED"
    assert document["error"].endswith("was lost while it ran the job")
    assert site.health("fragile")["jobs"]["retried"] == 0


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def test_a_worker_that_others_start_attaches_by_the_command_that_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "TAKE_HOLD", 0.5)  # so long it takes to end
    site.call(site.server.serve, "outside", "echo", external=True, lost_after=1)
    attachment = site.server.attachment("outside")
    command = attachment.command(f"{runpod_python()} {PROGRAM} plain")
    assert attachment.variables["RUNPOD_AI_API_KEY"] not in command
    workers = site.server.endpoints["outside"].workers
    with subprocess.Popen(
        f"exec {command}",
        shell=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            site.until(lambda: sorted(workers.values()) == ["idle", "idle"])
            assert [name for name in workers if name.startswith("attached outside-")]
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert attachment.variables["RUNPOD_AI_API_KEY"].encode() not in shown
            process.terminate()
            assert process.wait(20) == 0
        finally:
            _kill_group(process.pid)
    site.until(lambda: list(workers.values()) == ["idle"])
    site.call(site.server.remove, "outside")
    assert not attachment.env_file.exists()
