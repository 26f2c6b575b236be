"""Both of TensorOne's dialects, against a server written from its pages."""

from __future__ import annotations

import asyncio
import contextlib
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tensorone
from rude import elsewhere
from tensorone import ENDPOINT, KEY, TensorOne, limited, refusal

from notebook_ext import exchange, following
from notebook_ext.client import Endpoint
from notebook_ext.errors import (
    APIError,
    AuthenticationError,
    BadRequest,
    ConfigurationError,
    InputError,
    JobFailed,
    NotFoundError,
    PermissionDenied,
    RateLimitError,
    RequestTimeout,
)
from notebook_ext.session import Session
from notebook_ext.types import ExecutionPolicy, Job, JobStatus, Progress
from notebook_ext.widgets.job import StripView, line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from inshell import Notebook

GUIDE, REFERENCE = "tensorone", "tensorone-rest"
UNDOCUMENTED = "is not documented for this provider"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorOne]:
    """TensorOne's stand-in; both dialects are sent to it."""
    with elsewhere(tensorone.tensorone()) as it:
        monkeypatch.setenv("TENSORONE_BASE_URL", it.url)
        monkeypatch.setenv("TENSORONE_API_KEY", KEY)
        yield it


@pytest.fixture
def tensor(server: TensorOne, notebook: Notebook) -> Callable[[str], Notebook]:
    """A notebook that is connected to it in one of the dialects."""

    def connect(dialect: str) -> Notebook:
        notebook.run(f"%endpoint connect t {ENDPOINT} --provider {dialect}\n%endpoint use t")
        return notebook

    return connect


def asked(provider: str, ask: Callable[[Endpoint], Coroutine[Any, Any, Any]]) -> Any:
    async def scenario() -> Any:
        async with Endpoint(ENDPOINT, provider=provider) as endpoint:
            return await ask(endpoint)

    return asyncio.run(scenario())


# ---------------------------------------------------------------------------------- the stand-in


def test_the_stand_in_has_the_rest_of_the_reference(server) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert http.get(f"/endpoints/{ENDPOINT}").json()["status"] == "active"
        request = {"input": {"prompt": "x"}, "async": True, "priority": "high", "tags": {"a": "b"}}
        ids = [http.post(f"/endpoints/{ENDPOINT}/runasync", json=request).json()["jobId"] for _ in "12"]
        batch = http.post("/jobs/status/batch", json={"jobIds": [*ids, "other"], "include": ["logs"]}).json()
        assert [(job["jobId"], job["tags"], job["logs"]) for job in batch["jobs"]] == [
            (known, {"a": "b"}, []) for known in ids
        ]
        summary = http.get(f"/jobs/{ids[0]}/status", params={"format": "summary", "include": "logs"}).json()
        assert summary == {"jobId": ids[0], "status": "running", "progress": 50}
        assert http.post(f"/endpoints/{ENDPOINT}/runasync", json={"input": 1}).status_code == 422


# ---------------------------------------------------------------------------------- the client, by the reference


def test_a_job_by_the_reference(server) -> None:
    async def ask(endpoint: Endpoint) -> list[Any]:
        policy = ExecutionPolicy(low_priority=True)
        queued = await endpoint.run({"prompt": "hi"}, policy=policy, webhook="https://example.org/done")
        return [queued, *[event async for event in endpoint.follow(queued.id)]]

    jobs = asked(REFERENCE, ask)
    assert [job.status for job in jobs] == ["IN_QUEUE", "IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert {job.id for job in jobs} == {"job_1"}
    assert [job.progress for job in jobs] == [None, None, Progress(0.5, "Generating"), None]
    assert jobs[-1].output == {"text": "hi"}
    assert server.paths == [f"POST /v2/endpoints/{ENDPOINT}/runasync", *["GET /v2/jobs/job_1/status"] * 3]
    assert server.asked[0].body == {
        "input": {"prompt": "hi"},
        "async": True,
        "priority": "low",
        "callbackUrl": "https://example.org/done",
    }
    assert not any(one.query for one in server.asked)


def test_runsync_by_the_reference_is_final_and_has_no_id(server) -> None:
    job = asked(REFERENCE, lambda endpoint: endpoint.run_sync({"prompt": "hi"}, wait=1.0))
    assert (job.id, job.status, job.output) == ("", JobStatus.COMPLETED, {"text": "hi"})
    assert job.execution_time == 1.23  # seconds already
    assert server.asked[0].body == {"input": {"prompt": "hi"}}
    assert not server.asked[0].query  # nothing says that it takes a wait
    with pytest.raises(
        JobFailed, match=rf"the job on {ENDPOINT} failed.* EXECUTION_FAILED: too hot"
    ) as caught:
        asked(REFERENCE, lambda endpoint: endpoint.run_sync({"prompt": "hi", "error": "too hot"}))
    assert (caught.value.job.error.type, caught.value.job.execution_time) == ("EXECUTION_FAILED", 0.5)


def test_runsync_by_the_reference_is_waited_for_longer_than_a_held_answer(server, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "HOLD_MARGIN", -0.9)  # an answer that was held for 1 s is late after 0.1 s
    job = asked(REFERENCE, lambda endpoint: endpoint.run_sync({"prompt": "hi", "seconds": 0.3}, wait=1.0))
    assert job.status is JobStatus.COMPLETED
    with pytest.raises(RequestTimeout):
        asked(GUIDE, lambda endpoint: endpoint.run_sync({"prompt": "hi", "seconds": 0.3}, wait=1.0))


@pytest.mark.parametrize("ask", [Endpoint.status, Endpoint.status_sync])
def test_a_job_without_an_id_is_not_asked_about(server, ask) -> None:
    with pytest.raises(InputError, match=r"the job has no id to ask tensorone-rest by; .* nothing was sent"):
        asked(REFERENCE, lambda endpoint: ask(endpoint, ""))
    assert not server.asked


def test_a_failed_job_tells_message_and_code(server) -> None:
    async def ask(endpoint: Endpoint) -> Job:
        return await endpoint.status_sync((await endpoint.run({"error": "too hot", "looks": 0})).id)

    job = asked(REFERENCE, ask)
    assert (job.status, str(job.error)) == (JobStatus.FAILED, "EXECUTION_FAILED: too hot")


def test_an_unknown_word_is_kept_and_followed(server) -> None:
    async def ask(endpoint: Endpoint) -> list[Any]:
        queued = await endpoint.run({"prompt": "hi", "word": "warming-up"})
        return [event async for event in endpoint.follow(queued.id)]

    jobs = asked(REFERENCE, ask)
    assert [job.status for job in jobs] == ["IN_QUEUE", "warming-up", "COMPLETED"]
    assert jobs[1].progress == Progress(0.5, "Generating")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"policy": ExecutionPolicy(execution_timeout=60)},
            r"execution_timeout \(--exec-timeout\) is not documented",
        ),
        ({"policy": ExecutionPolicy(ttl=60)}, "ttl is not documented"),
        ({"s3_config": {"bucketName": "b"}}, "s3_config is not documented"),
        ({"webhook_v2": "https://example.org"}, "webhook_v2 is not documented"),
    ],
)
def test_an_option_that_the_reference_does_not_have_is_not_sent(server, options, part) -> None:
    for ask in (Endpoint.run, Endpoint.run_sync):
        with pytest.raises(InputError, match=f"{part} for tensorone-rest.*nothing was sent"):
            asked(REFERENCE, lambda endpoint, ask=ask: ask(endpoint, {}, **options))
    assert not server.asked


def test_runsync_by_the_reference_takes_the_input_alone(server) -> None:
    for options in ({"webhook": "https://example.org"}, {"policy": ExecutionPolicy(low_priority=True)}):
        with pytest.raises(InputError, match="is not documented for tensorone-rest's runsync"):
            asked(REFERENCE, lambda endpoint, options=options: endpoint.run_sync({}, **options))
    assert not server.asked


async def _all(chunks: Any) -> list[Any]:
    return [chunk.output async for chunk in chunks]


@pytest.mark.parametrize(
    ("provider", "operation", "ask"),
    [
        (REFERENCE, "stream", lambda endpoint: _all(endpoint.stream("job_1"))),
        (REFERENCE, "cancel", lambda endpoint: endpoint.cancel("job_1")),
        (REFERENCE, "health", Endpoint.health),
        (REFERENCE, "purge-queue", Endpoint.purge_queue),
        (REFERENCE, "retry", lambda endpoint: endpoint.retry("job_1")),
        (REFERENCE, "requests", Endpoint.requests),
        (GUIDE, "retry", lambda endpoint: endpoint.retry("job_1")),
        (GUIDE, "requests", Endpoint.requests),
    ],
)
def test_what_is_not_documented_is_said_before_a_key_is_looked_for(
    server, provider, operation, ask, monkeypatch
) -> None:
    monkeypatch.delenv("TENSORONE_API_KEY")
    with pytest.raises(ConfigurationError, match=rf"^{operation} {UNDOCUMENTED} \({provider}\)"):
        asked(provider, ask)
    assert not server.asked


# ---------------------------------------------------------------------------------- the client, by the guide


def test_every_step_of_the_guide(server) -> None:
    async def ask(endpoint: Endpoint) -> None:
        done = await endpoint.run_sync({"prompt": "a"})
        assert (done.output, done.delay_time, done.execution_time) == ({"text": "a"}, 0.25, 1.5)  # from ms
        queued = await endpoint.run({"prompt": "a b c"}, policy=ExecutionPolicy(execution_timeout=5))
        assert server.asked[-1].body["policy"] == {"executionTimeout": 5000}
        assert (await endpoint.health()).jobs["in_queue"] == 1
        assert await _all(endpoint.stream(queued.id)) == ["a", "b", "c"]
        assert (await endpoint.status(queued.id)).output == {"text": "a b c"}
        other = await endpoint.run({"prompt": "d"})
        assert (await endpoint.cancel(other.id)).status is JobStatus.CANCELLED
        assert (await endpoint.status_sync(other.id)).status is JobStatus.CANCELLED
        await endpoint.run({"prompt": "e"})
        assert await endpoint.purge_queue() == 1

    asked(GUIDE, ask)
    assert all(path.split()[1].startswith(f"/v2/{ENDPOINT}/") for path in server.paths)


def test_the_guides_layout_reads_the_words_of_the_reference_too(server) -> None:
    server.refuse = [
        tensorone.answer({"id": "j", "status": word}) for word in ("queued", "running", "completed")
    ]
    server.refuse.append(tensorone.answer({"status": "completed", "stream": [{"output": 1}]}))

    async def ask(endpoint: Endpoint) -> list[Any]:
        looks = [(await endpoint.status("j")).status for _ in range(3)]
        return [*looks, *await _all(endpoint.stream("j"))]

    assert asked(GUIDE, ask) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", 1]


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("provider", [GUIDE, REFERENCE])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, AuthenticationError),
        (403, PermissionDenied),
        (404, NotFoundError),
        (409, APIError),
        (422, BadRequest),
    ],
)
def test_an_error_has_its_code_and_message(server, provider, status, kind) -> None:
    server.refuse = [refusal(status, "Because of a reason")]
    with pytest.raises(kind, match=rf"{tensorone.ERRORS[status]}: Because of a reason") as caught:
        asked(provider, lambda endpoint: endpoint.run({}))
    assert caught.value.status_code == status
    assert len(server.asked) == 1


def test_a_wrong_key_is_named_by_its_variable_and_not_shown(server, monkeypatch) -> None:
    monkeypatch.setenv("TENSORONE_API_KEY", "tpo_another0key0that0is0planted")
    with pytest.raises(AuthenticationError, match=r"check \$TENSORONE_API_KEY") as caught:
        asked(REFERENCE, lambda endpoint: endpoint.run({}))
    assert "tpo_" not in str(caught.value)


@pytest.mark.parametrize("provider", [GUIDE, REFERENCE])
def test_an_hourly_limit_is_told_at_once_and_kept_to(server, provider) -> None:
    server.refuse = [limited(1800)]

    async def ask(endpoint: Endpoint) -> None:
        with pytest.raises(RateLimitError, match="RATE_LIMIT_EXCEEDED: Hourly limit reached") as first:
            await endpoint.run({})
        assert (first.value.retry_after, first.value.status_code) == (1800, 429)
        with pytest.raises(RateLimitError, match="nothing was sent") as second:
            await endpoint.run({})
        assert 1700 < second.value.retry_after <= 1800  # not only for the minute that others may ask for
        assert len(server.asked) == 1
        assert (await endpoint.run_sync({"prompt": "x"})).output == {"text": "x"}  # another operation is free

    asked(provider, ask)


# ---------------------------------------------------------------------------------- following


def test_an_hour_of_following_stays_below_the_hourly_limit(monkeypatch) -> None:
    now, looks = 1000.0, 0

    class Running:
        id = ENDPOINT

        async def status(self, job_id: str) -> Job:
            nonlocal looks
            looks += 1
            status = JobStatus.COMPLETED if now >= 4600 else JobStatus.IN_PROGRESS
            return Job(id=job_id, endpoint=ENDPOINT, status=status)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(following, "asyncio", SimpleNamespace(sleep=sleep))

    async def scenario() -> list[str]:
        return [job.status async for job in following.looks(Running(), "j")]

    assert asyncio.run(scenario()) == ["IN_PROGRESS", "COMPLETED"]
    assert 300 < looks < 500
    assert now < 4620


def test_a_hiccup_does_not_end_the_following(server) -> None:
    async def ask(endpoint: Endpoint) -> list[Any]:
        queued = await endpoint.run({"prompt": "hi", "looks": 1})
        server.refuse = [tensorone.answer(text="<h1>Bad Gateway</h1>", status=502), limited(0.01)]
        return [event.status async for event in endpoint.follow(queued.id)]

    assert asked(REFERENCE, ask) == ["IN_QUEUE", "COMPLETED"]


# ---------------------------------------------------------------------------------- the magics


@pytest.mark.parametrize("dialect", [GUIDE, REFERENCE])
def test_run_and_runsync_in_a_notebook(server, tensor, dialect) -> None:
    notebook = tensor(dialect)
    notebook.run("%endpoint run t -o job -p prompt=hi")
    job = notebook.names["job"]
    assert (job.status, job.id) == (JobStatus.COMPLETED, "job_1")
    assert "hi" in str(job.output())
    assert notebook.value("%endpoint status @1").status is JobStatus.COMPLETED
    notebook.run("%endpoint runsync t -o job -p prompt='at once'")
    assert notebook.names["job"].output() == {"text": "at once"}


def test_a_job_without_an_id_is_known_by_its_number(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    notebook.run("%endpoint runsync t -o job -p prompt=hi")
    before = len(server.asked)
    assert (notebook.names["job"].id, notebook.names["job"].job.execution_time) == ("", 1.23)
    assert "no id" in repr(notebook.names["job"])
    told = notebook.run("job = %endpoint status @1")
    assert "COMPLETED" in told
    assert "t gave it no id to ask by" in told
    assert notebook.value("%endpoint result @1") == {"text": "hi"}
    assert notebook.value("%endpoint attach @last").id == ""
    assert "already COMPLETED" in notebook.run("%endpoint cancel @1")
    assert "only a FAILED or TIMED_OUT job" in notebook.error("%endpoint retry @1")
    assert "@1" in notebook.run("%endpoint jobs\nNone")
    assert notebook.session.journal.get(1).job.output == {"text": "hi"}
    assert len(server.asked) == before  # nothing of that needs the server


def test_jobs_without_an_id_are_told_apart_and_kept(server, tensor, tmp_path) -> None:
    notebook = tensor(REFERENCE)
    for prompt in ("a", "b"):
        notebook.run(f"%endpoint runsync t -p prompt={prompt}")
    with contextlib.closing(Session(journal=tmp_path / "journal.db")) as later:
        assert [later.find(f"@{number}").output() for number in (1, 2)] == [{"text": "a"}, {"text": "b"}]
        assert later.look(later.find("@1")).status is JobStatus.COMPLETED
    assert len(server.asked) == 2


def test_a_runsync_that_answers_unfinished_is_gone_on_with_by_its_id(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    server.jobs["job_9"] = tensorone.Job("job_9", {"prompt": "hi"}, looked=1)
    server.refuse = [tensorone.answer({"jobId": "job_9", "status": "running"})]
    notebook.run("%endpoint runsync t -o job -p prompt=hi")
    assert (notebook.names["job"].id, notebook.names["job"].output()) == ("job_9", {"text": "hi"})
    assert server.paths[1:] == ["GET /v2/jobs/job_9/status"] * (len(server.paths) - 1)


def test_a_submission_whose_answer_is_lost_may_have_run(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    server.refuse = [tensorone.answer(text="<h1>Bad Gateway</h1>", status=502)]
    assert "may have been queued" in notebook.error("%endpoint run t -o job -p prompt=hi")
    assert notebook.session.find("@1").status is JobStatus.AMBIGUOUS
    assert len(server.asked) == 1  # it is not sent again, and there is no list to look in


def test_an_undocumented_option_leaves_no_job_behind(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    told = notebook.error("%endpoint run t --exec-timeout 60s -p prompt=hi")
    assert "execution_timeout (--exec-timeout) is not documented for tensorone-rest; nothing was sent" in told
    assert notebook.session.journal.get(1) is None
    assert "priority" in notebook.run("%endpoint run t --low-priority --dry-run -p prompt=hi")
    assert not server.asked


def test_progress_is_shown_while_a_job_runs(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    seen = []
    submit = notebook.session.connect("t").submit({"prompt": "hi", "looks": 4})
    submit.subscribe(lambda event: seen.append(event.progress) if isinstance(event, Job) else None)
    submit.output(10)
    fractions = [progress.fraction for progress in seen if progress is not None]
    assert fractions
    assert fractions[-1] == 0.75
    strip = line(StripView(JobStatus.IN_PROGRESS, progress=seen[-2]))
    assert "75 %" in strip
    assert "Generating" in strip


@pytest.mark.parametrize(
    ("dialect", "verb", "operation"),
    [
        (REFERENCE, "%endpoint health t", "health"),
        (REFERENCE, "%endpoint purge t", "purge-queue"),
        (REFERENCE, "%endpoint purge t --yes", "purge-queue"),
        (REFERENCE, "%endpoint retry @1", "retry"),
        (GUIDE, "%endpoint retry @1", "retry"),
    ],
)
def test_a_verb_that_is_not_documented_says_so(server, tensor, dialect, verb, operation) -> None:
    notebook = tensor(dialect)
    assert "too hot" in notebook.error("""%endpoint run t -p error='too hot' -p prompt=x""")
    before = len(server.asked)
    assert f"{operation} {UNDOCUMENTED} ({dialect})" in notebook.error(verb)
    assert len(server.asked) == before
    assert notebook.session.find("@1").status is JobStatus.FAILED


def test_a_cancel_that_is_not_documented_is_said_and_the_job_goes_on(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    notebook.run("%endpoint run t -o job --bg -p prompt=hi -p looks=1000000")
    job = notebook.names["job"]
    asyncio.run(job.id_known())
    told = notebook.run("%endpoint cancel @1")
    assert f"@1 could not be confirmed as stopped: cancel {UNDOCUMENTED}" in told
    assert not any("cancel" in path for path in server.paths)
    server.jobs[job.id].input["looks"] = 0
    assert job.output(20) == {"text": "hi"}


def test_the_rest_of_the_guide_in_a_notebook(server, tensor) -> None:
    notebook = tensor(GUIDE)
    assert notebook.value("%endpoint health t").workers["idle"] == 1
    server.jobs["waits"] = tensorone.Job("waits", {"prompt": "x"})
    assert "1" in notebook.run("%endpoint purge t --yes")
    assert not server.jobs
    notebook.run("%endpoint run t -o job -p prompt='a b c'")
    assert [chunk.output for chunk in notebook.names["job"].streamed()] == ["a", "b", "c"]
    before = len(server.asked)
    notebook.run("%endpoint stream @1")
    assert len(server.asked) == before  # all of it is kept
    server.jobs["other"] = tensorone.Job("other", {"prompt": "d"})
    adopted = notebook.value("%endpoint attach other")
    assert (adopted.status, adopted.output()) == (JobStatus.COMPLETED, "d")


def test_a_look_tells_the_progress(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    server.refuse = [tensorone.answer({"jobId": "j", "status": "queued"})]
    server.refuse += [tensorone.answer({"jobId": "j", "status": "running", "progress": 1})] * 2
    server.jobs["j"] = tensorone.Job("j", {"prompt": "hi", "looks": 1_000}, looked=500)
    notebook.run("%endpoint run t -o job --bg -p prompt=hi")
    asyncio.run(notebook.names["job"].id_known())
    assert re.search(r"IN_PROGRESS · j · (1 %|50 % · Generating)", notebook.run("%endpoint status @1"))
    server.jobs["j"].looked = 1_000
    assert notebook.names["job"].output(10) == {"text": "hi"}


def test_the_doctor_does_not_call_it_ill_that_health_is_not_documented(server, tensor) -> None:
    told = tensor(REFERENCE).run("%endpoint doctor t")
    assert "note  answer        health is not documented for tensorone-rest" in told
    assert not server.asked


def test_nothing_shows_the_key(server, tensor) -> None:
    notebook = tensor(REFERENCE)
    shown = notebook.run("%endpoint run t -p prompt=hi\n%endpoint list\n%endpoint code @1")
    assert "tensorone-rest" in shown
    assert KEY not in shown
