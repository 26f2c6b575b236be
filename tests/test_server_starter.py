"""Worker processes that the server starts: kept running, told about, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from serving import Api, serving, spin

from notebook_ext.errors import ConfigurationError
from notebook_ext.server import starter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from inshell import Notebook

PROGRAM = """
import json, os, signal, subprocess, sys, time, urllib.request

def ask(url, body=None):
    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or "null")

me = os.environ["RUNPOD_POD_ID"]
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("argv", sys.argv, "child", child.pid)
while True:
    job = ask(os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", me))
    if job is None:
        continue
    if job["input"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    output = {"pid": os.getpid(), "child": child.pid, "argv": sys.argv,
              "names": sorted(name for name in os.environ if name.startswith(("RUNPOD", "NOTEBOOK_EXT")))}
    ask(os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", me).replace("$ID", job["id"]), {"output": output})
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "worker program.py").write_text(PROGRAM)
    return f"python '{tmp_path}/worker program.py'"


@asynccontextmanager
async def started(command: str, **options: Any) -> AsyncIterator[Api]:
    async with serving() as api:
        api.server.serve("demo", None, start=command, **options)
        yield api


def is_running(pid: int) -> bool:
    """Whether a process does anything yet; one that nobody has waited for is over as well."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_processes_get_their_environment_and_end_with_their_endpoint(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOK_EXT_TOKEN", "the server's")

    async def scenario() -> None:
        async with started(f"{program} --flag", workers=2) as api:
            await api.server.starter("demo").settled(20)
            await spin(lambda: list(api.server.endpoints["demo"].workers.values()) == ["idle"] * 2)
            output = (await api.result("demo"))["output"]
            assert output["argv"][1:] == ["--flag"]
            assert not [name for name in output["names"] if name.startswith("NOTEBOOK_EXT")]
            assert {"RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "RUNPOD_WEBHOOK_PING"} < set(output["names"])
            token = api.server.attachment("demo").variables["RUNPOD_AI_API_KEY"].encode()
            for pid in (output["pid"], keeper_of(output["pid"])):
                assert token not in Path(f"/proc/{pid}/cmdline").read_bytes()
            log = api.server.starter("demo").log()
            assert log.read_text().startswith("argv ")
            assert log.stat().st_mode & 0o77 == 0
            api.server.remove("demo")
            await spin(lambda: not (is_running(output["pid"]) or is_running(output["child"])))

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["dies", "is killed", "loses its keeper"])
def test_a_process_that_ends_is_started_again(program: str, how: str) -> None:
    async def scenario() -> None:
        async with started(program) as api:
            before = (await api.result("demo"))["output"]
            if how == "dies":
                assert (await api.result("demo", "die"))["error"].endswith(
                    "after another one with the same job"
                )
            else:
                victim = before["pid"] if how == "is killed" else keeper_of(before["pid"])
                os.kill(victim, signal.SIGKILL)
                await spin(lambda: not is_running(before["pid"]))
                await spin(lambda: api.server.starter("demo").trouble)
                assert ("by SIGKILL" in api.server.starter("demo").trouble) == (how == "is killed")
            after = (await api.result("demo"))["output"]
            assert after["pid"] != before["pid"]
            await spin(lambda: not (is_running(before["pid"]) or is_running(before["child"])))

    asyncio.run(scenario())


def test_a_process_that_hears_no_sigterm_is_killed(program: str) -> None:
    async def scenario() -> None:
        async with started(f"{program} deaf") as api:
            output = (await api.result("demo"))["output"]
            await api.server.stop()
            await spin(lambda: not (is_running(output["pid"]) or is_running(output["child"])))

    asyncio.run(scenario())


def test_serving_again_starts_fresh_processes_and_another_number(program: str) -> None:
    async def scenario() -> None:
        async with started(program) as api:
            before = (await api.result("demo"))["output"]["pid"]
            shown = api.server.endpoints["demo"].workers
            old = set(shown)
            log = api.server.starter("demo").log().with_name("of-another-1-1.log")
            log.touch()
            os.utime(log, (0, 0))
            api.server.serve("demo", None, start=program, workers=2)
            await spin(lambda: not is_running(before))
            await spin(lambda: list(shown.values()) == ["idle"] * 2)
            assert not old & set(shown)
            api.server.serve("demo", None, start="python nowhere.py")
            with pytest.raises(ConfigurationError, match="can't open file"):
                await api.server.starter("demo").settled(20)
            api.server.serve("other", None)
            assert not log.exists()

    asyncio.run(scenario())


def test_of_what_has_died_nothing_is_left_once_another_command_is_served(program: str) -> None:
    async def scenario() -> None:
        async with started("python nowhere.py") as api:
            shown = api.server.endpoints["demo"].workers
            await spin(lambda: list(shown.values()) == ["unhealthy"])
            api.server.serve("demo", None, start=program)
            await spin(lambda: list(shown.values()) == ["idle"])

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_process_that_cannot_be_started_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)

    async def scenario() -> None:
        async with started("python") as api:
            gone.rmdir()
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await api.server.starter("demo").close()
            assert not api.server.endpoints["demo"].workers

    asyncio.run(scenario())


def test_files_of_servers_that_are_gone_are_removed_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def scenario() -> None:
        async with serving() as api:
            api.server.serve("demo", None)
            attachment = api.server.attachment("demo")
            folder = attachment.env_file.parent
            kept = [attachment.env_file, folder / "mine.log", folder / "mine.env", folder / f"new-{port}.env"]
            stale = [folder / name for name in ("a-1-1.log", f"a-{port}.env", f"a-b-{port}-outside.env")]
            for path in (*kept, *stale):
                path.touch()
                os.utime(path, None if path.name.startswith("new") else (0, 0))
            api.server.serve("other", None)
            assert [path.exists() for path in (*kept, *stale)] == [True] * 4 + [False] * 3

    asyncio.run(scenario())


def test_a_crash_loop_is_seen_and_told_with_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(starter, "FIRST_PAUSE", 0.05)
    count = tmp_path / "count"
    (tmp_path / "broken.py").write_text(
        f"import os\nopen({str(count)!r}, 'a').write('.')\nprint(*range(20), sep=chr(10))\n"
        "print(os.environ['RUNPOD_AI_API_KEY'])\n1 / 0\n"
    )

    async def scenario() -> None:
        async with started("python broken.py") as api:
            job = await api.run("demo")
            await spin(lambda: count.exists() and len(count.read_text()) >= 3)
            seen = set()
            await spin(
                lambda: (
                    seen.add(tuple(api.server.endpoints["demo"].workers.values())) or ("unhealthy",) in seen
                )
            )
            assert (await api.get(f"/demo/status/{job}"))["status"] == "IN_QUEUE"  # as on the platform
            told = api.server.starter("demo").trouble
            assert told.startswith("a worker process of demo ended after 0.")
            assert "before it asked for a job, with exit status 1; its log is " in told
            assert told.endswith("ZeroDivisionError: division by zero")
            assert len(told.splitlines()) == 9
            assert api.server.attachment("demo").variables["RUNPOD_AI_API_KEY"] not in told
            assert "***" in told

    with caplog.at_level(logging.WARNING, "notebook_ext"):
        asyncio.run(scenario())
    assert len(caplog.records) == 1  # not once a crash


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python -c pass", "exit status 0 .it is to end in runpod.serverless.start."),
        ("no-such-program", "no-such-program cannot be started: No such file"),
        ("python nowhere.py", "can't open file"),
        ('python -c \'print("a" + chr(27) + "[2J" + chr(0x202e) + "b")\'', "\na\u241b\\[2J\\\\u202eb$"),
        ("python -S -c 'import runpod'", "needs that package: pip install runpod"),
    ],
)
def test_what_never_asks_for_a_job_is_told_to_who_waits_for_it(command: str, words: str) -> None:
    async def scenario() -> None:
        async with started(command) as api:
            with pytest.raises(ConfigurationError, match=words):
                await api.server.starter("demo").settled(20)

    asyncio.run(scenario())


def test_a_key_that_the_sdk_would_send_instead_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text('[default]\napi_key = "rpa_secret"\n')

    async def scenario() -> None:
        async with serving() as api:
            with pytest.raises(
                ConfigurationError, match=r"config\.toml has a key, which the runpod package sends"
            ) as caught:
                api.server.serve("demo", None, start="python worker.py")
            assert "rpa_secret" not in str(caught.value)
            assert "demo" not in api.server.endpoints

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------- python -m notebook_ext.server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_by_a_server_however_it_ends(program: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "notebook_ext.server", "demo", "here=echo", "--start", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout
            told = json.loads(server.stdout.readline())
            assert told["workers"].keys() == {"demo"}
            assert told["workers"]["demo"].keys() == {"env_file", "log"}
            with httpx.Client(
                base_url=told["base_url"], headers={"Authorization": told["token"]}, trust_env=False
            ) as http:
                output = http.post("/demo/runsync", json={"input": 1}, timeout=20).json()["output"]
                assert http.post("/here/runsync", json={"input": 1}).json()["output"] == 1
            server.send_signal(number)
            server.wait(10)
            assert server.stderr
            assert server.stderr.read() == ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
    asyncio.run(spin(lambda: not (is_running(output["pid"]) or is_running(output["child"]))))
    assert Path(told["workers"]["demo"]["env_file"]).exists() == (number == signal.SIGKILL)


def test_the_program_tells_how_workers_attach_and_keeps_their_key_to_itself() -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "notebook_ext.server",
            "demo",
            "--bind",
            "127.0.0.1",
            "--allow-host",
            "worker.example",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stderr
        told = json.loads(server.stdout.readline())
        lines = Path(told["workers"]["demo"]["env_file"]).read_text().splitlines()
        token = dict(line.split("=", 1) for line in lines)["RUNPOD_AI_API_KEY"]
        server.terminate()
        server.wait(10)
        errors = server.stderr.read()
        assert errors.startswith("workers of demo:\n  sh -c '")
        assert "docker run --rm --network host --env-file" in errors
        assert token not in errors + json.dumps(told)


# ---------------------------------------------------------------------------------- in a notebook


def test_a_cell_opens_an_endpoint_for_workers_and_shows_no_key(notebook: Notebook) -> None:
    said = notebook.run("%endpoint serve demo2 --external --lost-after 5s --on-lost fail")
    attachment = notebook.session.endpoints.attachment("demo2")
    assert attachment.command() in said
    assert attachment.docker() in said
    assert attachment.variables["RUNPOD_AI_API_KEY"] not in said
    assert "by 1 worker" not in said
    assert "rehearses" not in said
    rules = notebook.session.endpoints._server._attached["demo2"].rules
    assert (rules.lost_after, rules.on_lost) == (5, "fail")
    said = notebook.run("%%endpoint serve both --external\ndef handler(job):\n    return 1")
    assert "by 1 worker." in said
    assert "docker run" in said
    notebook.run("%endpoint serve demo2 --stop")
    assert not attachment.env_file.exists()


def test_a_cell_starts_workers_and_unloading_ends_them(
    notebook: Notebook, program: str, tmp_path: Path
) -> None:
    said = notebook.run(f'%endpoint serve mine --start "{program}"')
    assert "1 worker process of its own: " in said
    assert str(notebook.session.endpoints.starter("mine").log()) in said
    notebook.run("%endpoint run mine -p a=1 -o job")
    output = notebook.names["job"].output()
    assert is_running(output["pid"])
    notebook.run(f'%endpoint serve other --start "{program}"')
    ended = "The workers that it had started were ended."
    assert ended in notebook.run("%endpoint serve other --external")
    assert ended not in notebook.run("%endpoint serve other --external")
    notebook.run("%unload_ext notebook_ext")
    asyncio.run(spin(lambda: not (is_running(output["pid"]) or is_running(output["child"]))))


def test_a_cell_whose_workers_die_at_once_says_why_and_serves_nothing(notebook: Notebook) -> None:
    error = notebook.try_('%endpoint serve mine --start "python nowhere.py"').text
    assert "can't open file" in error
    assert notebook.session.endpoints.queue("mine") is None
    assert "not served here" in notebook.error("%endpoint serve mine --stop")


@pytest.mark.parametrize("before", ["", " --external"])
def test_a_cell_whose_workers_die_at_once_leaves_what_was_served(notebook: Notebook, before: str) -> None:
    cell = f"%%endpoint serve mine{before}\ndef handler(job):\n    return job['input'] + 1"
    notebook.run(cell)
    job = notebook.session.connect("mine").submit(1)
    assert job.output(10) == 2
    error = notebook.try_('%endpoint serve mine --start "python nowhere.py"').text
    assert "mine is served as before, since a worker process of mine ended" in error
    assert "can't open file" in error
    assert job.id in notebook.session.endpoints.queue("mine").records
    assert notebook.session.connect("mine").run(2, timeout=10) == 3
    assert notebook.session.endpoints.starter("mine") is None
    assert (notebook.session.endpoints.attachment("mine") is None) == (not before)
    assert "cannot be read" in notebook.error('%endpoint serve mine --start "python \'x"')
    assert notebook.session.connect("mine").run(3, timeout=10) == 4


def test_a_cell_that_starts_others_keeps_those_that_run_until_they_are_there(
    notebook: Notebook, program: str
) -> None:
    notebook.run(f'%endpoint serve mine --start "{program}"')
    connection = notebook.session.connect("mine")
    first = connection.run(1, timeout=20)
    assert "served as before" in notebook.try_('%endpoint serve mine --start "python nowhere.py"').text
    assert connection.run(1, timeout=20)["pid"] == first["pid"]
    notebook.run(f'%endpoint serve mine --workers 2 --start "{program} again"')
    asyncio.run(spin(lambda: not is_running(first["pid"])))
    assert connection.run(1, timeout=20)["argv"][1:] == ["again"]


def interrupted(notebook: Notebook, is_awaited: Callable[[], object]) -> None:
    """Serve by a worker that never asks for a job, and stop the cell while it waits for that."""

    def interrupt() -> None:
        asyncio.run(spin(is_awaited))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    clicker = threading.Thread(target=interrupt)
    clicker.start()
    ran = notebook.try_('%endpoint serve mine --start "sleep 60"')
    clicker.join()
    assert not ran.success


def test_a_cell_that_is_interrupted_while_others_start_serves_as_before(notebook: Notebook) -> None:
    notebook.run("%endpoint serve mine --handler echo")
    externals = notebook.session.endpoints._server._externals
    interrupted(
        notebook, lambda: "mine" in externals and any(one._is_awaited for one in externals["mine"]._prepared)
    )
    assert not externals
    assert notebook.session.connect("mine").run(1, timeout=10) == 1


def test_a_cell_tells_what_became_of_its_function_and_still_writes_it(notebook: Notebook) -> None:
    notebook.run("%%endpoint serve mine\ndef handler(job):\n    return 'from the cell'")
    said = notebook.run("%endpoint serve mine --external")
    assert "Its function was set aside; serve the cell again to have it back." in said
    assert "`%endpoint code mine --worker --to handler.py` writes one from a cell" in said
    assert "from the cell" in notebook.run("%endpoint code mine --worker")
    assert "set aside" not in notebook.run("%endpoint serve mine --external")
    assert "a cell %%endpoint serve other that defines" in (
        notebook.run("%endpoint serve other --external") and notebook.error("%endpoint code other --worker")
    )
    notebook.run("%endpoint serve mine --stop")
    notebook.run("%endpoint serve mine --external")
    assert "has no function of this notebook" in notebook.error("%endpoint code mine --worker")


def test_a_number_of_workers_that_come_by_themselves_is_refused(notebook: Notebook) -> None:
    assert "decided where they are started" in notebook.error("%endpoint serve mine --external --workers 3")
    assert notebook.session.endpoints.queue("mine") is None


def test_a_cell_that_is_interrupted_while_it_waits_leaves_no_process(notebook: Notebook) -> None:
    starter = notebook.session.endpoints.starter
    interrupted(notebook, lambda: starter("mine") and starter("mine")._is_awaited)
    assert notebook.session.endpoints.queue("mine") is None


def test_the_first_endpoint_says_who_reaches_the_server(notebook: Notebook) -> None:
    said = notebook.run("%endpoint serve one --external --bind 0.0.0.0 --allow-host host.docker.internal")
    assert "--add-host host.docker.internal:host-gateway" in said
    assert "-outside.env" in said
    assert "open to other machines, without TLS" in said
    outside = notebook.session.endpoints.attachment("one").outside_file.read_text()
    assert "RUNPOD_WEBHOOK_PING=http://host.docker.internal:" in outside
    assert "the first one that is served says how" in notebook.error(
        "%endpoint serve two --handler echo --bind 0.0.0.1"
    )
    notebook.run("%endpoint serve two --handler echo --bind 0.0.0.0")
