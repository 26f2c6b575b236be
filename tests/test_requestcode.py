"""A journaled request as a program: what runs is the same request, and no key and no quote gets out."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext import requestcode
from notebook_ext.connection import Submission
from notebook_ext.entry import Entry
from notebook_ext.errors import InputError
from notebook_ext.providers import TENSORONE_REST
from notebook_ext.types import ExecutionPolicy, Job, JobStatus

if TYPE_CHECKING:
    from notebook_ext.protocol import JobRequest
    from notebook_ext.session import Session

AWKWARD = {
    "prompt": 'it\'s "quoted"; $(touch pwned) `touch pwned` \\ ${HOME} %s {x}\nBODY\n\'\'\'\n"""\r\tend',
    "unicode": "ä 😀 \u2028 \u202e \x1b[31m \x7f \x85 \u0000",
    "values": [1, -2.5, 1e300, True, False, None, [], {}, {"a b": "-"}],
}


def entry(**more) -> Entry:
    job = Job(id="", endpoint="abc123", status=JobStatus.IN_QUEUE)
    return replace(
        Entry(number=7, endpoint="llama", endpoint_id="abc123", provider="runpod", submitted_at=1.0, job=job,
              base_url="https://api.runpod.ai/v2", key_variable="RUNPOD_API_KEY", input=AWKWARD),
        **more,
    )  # fmt: skip


@pytest.fixture
def shell(session, tmp_path, monkeypatch):
    """Runs a program or a command as a person would, and gives what it prints."""
    connection = session.serve("echo", "echo")
    monkeypatch.setenv("NOTEBOOK_EXT_API_KEY", connection.provider.key_source())

    def run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, input=text, cwd=tmp_path)

    return run


def submitted(session: Session, endpoint: str = "echo", **submission) -> Entry:
    handle = session.submit(session.connect(endpoint), Submission(**submission))
    handle.wait(10)
    return session.journal.get(handle.number)


def requests(session: Session, endpoint: str = "echo") -> list[JobRequest]:
    return [record.request for record in session.endpoints.queue(endpoint).records.values()]


# ---------------------------------------------------------------------------------- run for real


@pytest.mark.parametrize("sync", [False, True])
def test_the_python_program_makes_the_same_request(session, shell, sync):
    policy = ExecutionPolicy(execution_timeout=90.5, ttl=3600, low_priority=True)
    known = submitted(session, input=AWKWARD, sync=sync, policy=policy)
    ran = shell(sys.executable, "-", text=requestcode.python(known))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == AWKWARD
    first, second = requests(session)
    assert second == first
    ids = session.endpoints.queue("echo").records
    assert [name.startswith("sync-") for name in ids] == [sync, sync]


def test_a_streamed_text_is_printed_as_it_comes(session, shell):
    def words(job):
        yield "one "
        yield "two"

    session.serve("words", words)
    known = submitted(session, "words", input={})
    ran = shell(sys.executable, "-", text=requestcode.python(known))
    assert (ran.returncode, ran.stdout) == (0, "one two")


def test_a_failed_job_fails_the_program(session, shell):
    session.serve("bad", "fail")
    known = submitted(session, "bad", input={})
    ran = shell(sys.executable, "-", text=requestcode.python(known))
    assert ran.returncode == 1
    assert ran.stderr.startswith("FAILED: ")


@pytest.mark.parametrize("sync", [False, True])
def test_the_curl_command_makes_the_same_request(session, shell, sync, tmp_path):
    policy = ExecutionPolicy(execution_timeout=90.5, ttl=3600, low_priority=True)
    known = submitted(session, input=AWKWARD, sync=sync, policy=policy)
    ran = shell("sh", text=requestcode.curl(known))
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["status"] == ("COMPLETED" if sync else "IN_QUEUE")
    first, second = requests(session)
    assert second == first
    assert list(tmp_path.iterdir()) == []  # nothing of the prompt was executed


def test_a_body_may_be_longer_than_an_argument(session, shell):
    known = submitted(session, input={"prompt": "long " * 100_000})
    for ran in (
        shell("sh", text=requestcode.curl(known)),
        shell(sys.executable, "-", text=requestcode.python(known)),
    ):
        assert ran.returncode == 0, ran.stderr
    assert [request.input for request in requests(session)] == [known.input] * 3


def test_without_the_key_nothing_is_sent(session, shell, monkeypatch):
    known = submitted(session, input={})
    monkeypatch.delenv("NOTEBOOK_EXT_API_KEY")
    ran = shell("sh", text=requestcode.curl(known))
    assert ran.returncode != 0
    assert "NOTEBOOK_EXT_API_KEY" in ran.stderr
    ran = shell(sys.executable, "-", text=requestcode.python(known))
    assert "KeyError: 'NOTEBOOK_EXT_API_KEY'" in ran.stderr
    assert len(requests(session)) == 1


def test_no_key_and_no_bucket_credential_is_in_the_code(session):
    key = session.serve("echo", "echo").provider.key_source()
    known = submitted(
        session,
        input={"a": 1},
        webhook="http://127.0.0.1:9/hook?token=SECRET",
        s3_config={"accessSecret": "BUCKET"},
    )
    for code in (requestcode.python(known), requestcode.curl(known)):
        assert not [secret for secret in (key, "SECRET", "BUCKET", "s3") if secret in code]
        assert "127.0.0.1:9" not in code
        assert "# It had a webhook" in code
        assert "# A notebook served this endpoint" in code


# ---------------------------------------------------------------------------------- what it says


def curl_body(command: str) -> dict:
    lines = command.splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("<<'BODY'"))
    assert lines[-1] == "BODY"
    assert "BODY" not in lines[start + 1 : -1]
    return json.loads("\n".join(lines[start + 1 : -1]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES.filter(lambda value: value is not None))
def test_any_input_comes_through_exactly_and_can_be_seen(value):
    known = entry(input=value)
    program = requestcode.python(known)
    (assigned,) = [
        node.value
        for node in ast.parse(program).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "INPUT"
    ]
    assert json.dumps(ast.literal_eval(assigned)) == json.dumps(value)
    command = requestcode.curl(known)
    assert json.dumps(curl_body(command)["input"]) == json.dumps(value)
    assert all(char == "\n" or char.isprintable() for char in program + command)


def test_the_place_the_operation_and_the_variable_are_those_of_the_job():
    program = requestcode.python(entry(operation="runsync", key_variable="LLAMA_KEY"))
    assert "Endpoint('abc123', provider='runpod', api_key=os.environ['LLAMA_KEY'])" in program
    assert "endpoint.run_sync(INPUT)" in program
    command = shlex.split(requestcode.curl(entry(operation="runsync", key_variable="LLAMA_KEY")))
    assert command[:5] == [
        "curl", "--silent", "--show-error", "--fail-with-body", "https://api.runpod.ai/v2/abc123/runsync",
    ]  # fmt: skip
    assert "Authorization: Bearer ${LLAMA_KEY:?}" in command


def test_a_base_url_is_its_own_provider():
    known = entry(provider="host.example", base_url="https://host.example/v2", key_variable=None)
    assert "provider='https://host.example/v2'" in requestcode.python(known)
    assert "os.environ['NOTEBOOK_EXT_API_KEY']" in requestcode.python(known)


def test_another_dialect_has_its_own_route_and_fields():
    known = entry(
        provider="tensorone-rest",
        base_url=TENSORONE_REST.base_url,
        key_variable="TENSORONE_API_KEY",
        input={"a": 1},
        options={"low_priority": True, "webhook": "https://hook.example/x"},
    )
    command = requestcode.curl(known)
    assert f"{TENSORONE_REST.base_url}/endpoints/abc123/runasync" in command
    assert curl_body(command) == {
        "input": {"a": 1}, "async": True, "priority": "low",
    }  # fmt: skip
    assert curl_body(requestcode.curl(replace(known, operation="runsync", options={}))).get("async") is None
    program = requestcode.python(known)
    assert "provider='tensorone-rest'" in program
    assert "policy=ExecutionPolicy(low_priority=True)" in program
    assert "hook.example" not in program
    assert "TENSORONE_BASE_URL" not in program


def test_a_provider_that_was_moved_is_where_it_was(monkeypatch):
    known = entry(provider="tensorone-rest", base_url="http://127.0.0.1:8000/v2")
    assert "http://127.0.0.1:8000/v2/endpoints/abc123/runasync" in requestcode.curl(known)
    program = requestcode.python(known)
    assert "os.environ[\"TENSORONE_BASE_URL\"] = 'http://127.0.0.1:8000/v2'" in program
    assert "provider='tensorone-rest'" in program
    known = entry(provider="tensorone", base_url="http://127.0.0.1:8000/v2")
    assert "provider='http://127.0.0.1:8000/v2'" in requestcode.python(known)


@pytest.mark.parametrize("write", [requestcode.python, requestcode.curl])
def test_what_was_not_asked_from_here_has_no_code(write):
    with pytest.raises(InputError, match="@7 was not submitted from here"):
        write(entry(input=None))


@pytest.mark.parametrize("write", [requestcode.python, requestcode.curl])
@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_what_no_program_can_hold_is_said(write, value):
    with pytest.raises(InputError, match="cannot be written as a program"):
        write(entry(input=value))


def test_brackets_beyond_what_python_reads_are_said():
    deep = json.loads("[" * 300 + "]" * 300)
    with pytest.raises(InputError, match="cannot be written as a program"):
        requestcode.python(entry(input=deep))
    assert curl_body(requestcode.curl(entry(input=deep)))["input"] == deep


def test_a_variable_that_no_shell_knows_is_refused():
    known = entry(key_variable="X}; touch pwned; ${Y")
    with pytest.raises(InputError, match="--python takes it"):
        requestcode.curl(known)
    program = requestcode.python(known)
    assert f"os.environ[{known.key_variable!r}]" in program
    assert compile(program, "program", "exec")
    assert os.environ.get(known.key_variable) is None
