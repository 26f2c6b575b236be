"""The wire without any I/O: what is sent, and that whatever comes is a value or a ProtocolError."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notebook_ext.errors import InputError, ProtocolError
from notebook_ext.protocol import (
    RUNPOD_DIALECT,
    RUNPOD_ROUTES,
    TENSORONE_REST_DIALECT,
    TENSORONE_REST_ROUTES,
    TENSORONE_ROUTES,
    JobRequest,
    Operation,
    chunks_to_json,
    health_to_json,
    job_to_json,
    read_health,
    read_job,
    read_purged,
    read_requests,
    read_stream,
    read_worker_error,
    worker_error_to_json,
)
from notebook_ext.types import Counts, ExecutionPolicy, Health, Job, JobStatus, StreamChunk, WorkerError

# ---------------------------------------------------------------------------------- requests


def test_every_operation_has_its_documented_route() -> None:
    filled = {operation: RUNPOD_ROUTES[operation].fill("ep", "job") for operation in Operation}
    assert filled[Operation.RUN] == "/ep/run"
    assert filled[Operation.STATUS] == "/ep/status/job"
    assert filled[Operation.PURGE_QUEUE] == "/ep/purge-queue"
    posts = {operation.value for operation in Operation if RUNPOD_ROUTES[operation].method == "POST"}
    assert posts == {"run", "runsync", "cancel", "retry", "purge-queue", "openai"}
    assert set(TENSORONE_ROUTES) == {"run", "runsync", "status", "stream", "cancel", "purge-queue", "health"}
    assert TENSORONE_REST_ROUTES[Operation.STATUS].fill("ep", "job") == "/jobs/job/status"
    assert TENSORONE_REST_ROUTES[Operation.RUN].fill("ep") == "/endpoints/ep/runasync"


def test_a_request_says_only_what_was_asked() -> None:
    assert JobRequest({"a": 1}).to_json() == {"input": {"a": 1}}
    policy = ExecutionPolicy(5.5, ttl=60, low_priority=True)
    assert JobRequest(1, policy).to_json() == {
        "input": 1,
        "policy": {"executionTimeout": 5500, "ttl": 60000, "lowPriority": True},
    }
    assert JobRequest(1, ExecutionPolicy(low_priority=False)).to_json() == {"input": 1}


def test_a_request_hides_the_bucket_credentials() -> None:
    assert "SECRET" not in repr(JobRequest(1, s3_config={"accessSecret": "SECRET"}))


def test_what_a_dialect_has_no_word_for_is_refused() -> None:
    policy = ExecutionPolicy(low_priority=True)
    asked = JobRequest(1, policy, webhook="https://x")
    assert asked.to_json(TENSORONE_REST_DIALECT) == {
        "input": 1, "async": True, "callbackUrl": "https://x", "priority": "low",
    }  # fmt: skip
    assert "async" not in JobRequest(1).to_json(TENSORONE_REST_DIALECT, queued=False)
    for request in (
        JobRequest(1, ExecutionPolicy(ttl=60)),
        JobRequest(1, ExecutionPolicy(60)),
        JobRequest(1, webhook_v2="https://x"),
        JobRequest(1, s3_config={"a": "b"}),
    ):
        with pytest.raises(InputError, match="is not documented for tensorone-rest; nothing was sent"):
            request.to_json(TENSORONE_REST_DIALECT)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "a JSON object with the key 'input'"),
        ({}, "no 'input'"),
        ({"input": 1, "policy": 7}, "'policy' must be an object"),
        ({"input": 1, "policy": {"ttl": "60"}}, "'policy.ttl' must be a positive number"),
        ({"input": 1, "policy": {"ttl": True}}, r"policy\.ttl"),
        ({"input": 1, "policy": {"ttl": -1}}, r"policy\.ttl"),
        ({"input": 1, "policy": {"executionTimeout": float("inf")}}, r"policy\.executionTimeout"),
        ({"input": 1, "policy": {"executionTimeout": 10**400}}, r"policy\.executionTimeout"),
        ({"input": 1, "webhook": 7}, "'webhook' must be a URL"),
        ({"input": 1, "s3Config": "x"}, "'s3Config' must be an object"),
    ],
)
def test_a_bad_request_body_is_explained(document, words) -> None:
    with pytest.raises(InputError, match=words):
        JobRequest.from_json(document)


milliseconds = st.none() | st.integers(1, 10**9).map(lambda number: number / 1000)


@given(
    st.builds(
        JobRequest,
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.text())
        | st.dictionaries(st.text(), st.integers()),
        st.builds(ExecutionPolicy, milliseconds, milliseconds, st.booleans()),
        st.none() | st.text(),
        st.none() | st.text(),
        st.none() | st.dictionaries(st.text(), st.text(), min_size=1),
    )
)
def test_client_and_server_read_each_other(request) -> None:
    assert JobRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


# ---------------------------------------------------------------------------------- job documents


def test_a_job_document_is_read_in_seconds() -> None:
    document = {
        "id": "a-u1", "status": "FAILED", "delayTime": 812, "executionTime": 3391.5, "workerId": "w",
        "output": None, "error": "bad", "retries": 2,
    }  # fmt: skip
    assert read_job(document, endpoint="ep", seen_at=7.0) == Job(
        id="a-u1", endpoint="ep", status=JobStatus.FAILED, delay_time=0.812, execution_time=3.3915, worker_id="w",
        output=None, has_output=True, error=WorkerError("bad", raw="bad"), retries=2, seen_at=7.0,
    )  # fmt: skip


def test_an_absent_output_is_not_a_null_one() -> None:
    assert not read_job({"status": "COMPLETED"}, endpoint="ep").has_output
    assert read_job({"status": "COMPLETED", "output": None}, endpoint="ep").has_output


def test_the_asked_id_stands_in_for_a_missing_one() -> None:
    assert read_job({"status": "COMPLETED"}, endpoint="ep", job_id="j").id == "j"
    assert read_job({"id": 7, "status": "COMPLETED"}, endpoint="ep", job_id="j").id == "j"
    assert read_job({"id": "k", "status": "COMPLETED"}, endpoint="ep", job_id="j").id == "k"


def test_tensorones_words_and_seconds() -> None:
    document = {"jobId": "j", "status": "completed", "result": [1], "executionTime": 1.23}
    job = read_job(document, endpoint="ep", dialect=TENSORONE_REST_DIALECT)
    assert (job.id, job.status, job.output, job.execution_time) == ("j", JobStatus.COMPLETED, [1], 1.23)
    assert (
        read_job({"status": "running"}, endpoint="ep", dialect=TENSORONE_REST_DIALECT).status == "IN_PROGRESS"
    )


@pytest.mark.parametrize(
    "document", [None, [], "x", 7, {}, {"status": None}, {"status": ""}, {"status": 200}]
)
def test_what_is_no_job_document(document) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_job(document, endpoint="ep", job_id="j")
    assert caught.value.job_id == "j"


@pytest.mark.parametrize(
    "job",
    [
        Job(id="j", endpoint="ep", status=JobStatus.IN_QUEUE),
        Job(id="j", endpoint="ep", status=JobStatus.COMPLETED, output=None, has_output=True),
        Job(id="j", endpoint="ep", status=JobStatus("WARMING_UP"), delay_time=0.5, execution_time=1.25),
        Job(
            id="j",
            endpoint="ep",
            status=JobStatus.FAILED,
            error=WorkerError("x", raw="x"),
            retries=1,
            worker_id="w",
        ),
    ],
)
def test_a_job_survives_the_wire(job) -> None:
    assert read_job(json.loads(json.dumps(job_to_json(job))), endpoint="ep", seen_at=0.0) == job


# ---------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("document", "status", "outputs"),
    [
        (
            {"status": "IN_PROGRESS", "stream": [{"output": "a"}, {"output": None}]},
            "IN_PROGRESS",
            ["a", None],
        ),
        ([{"output": "a"}, {"output": 0}], None, ["a", 0]),
        ({"status": "COMPLETED"}, "COMPLETED", []),
        ({"status": "COMPLETED", "stream": None}, "COMPLETED", []),
        ({"stream": [{"text": "x"}, "y", 7]}, None, [{"text": "x"}, "y", 7]),
        ({"status": 7, "stream": []}, None, []),
        ([], None, []),
    ],
)
def test_the_shapes_of_a_stream_answer(document, status, outputs) -> None:
    known, chunks = read_stream(document, first_index=3)
    assert known == status
    assert [chunk.output for chunk in chunks] == outputs
    assert [chunk.index for chunk in chunks] == list(range(3, 3 + len(outputs)))


def test_metrics_stay_with_their_chunk() -> None:
    _, chunks = read_stream([{"output": "a", "metrics": {"tokens": 3}}, {"output": "b", "metrics": 7}])
    assert [chunk.metrics for chunk in chunks] == [{"tokens": 3}, None]


@pytest.mark.parametrize(
    "document", ["x", 7, {}, {"stream": 7}, {"status": "COMPLETED", "stream": {"output": 1}}]
)
def test_what_is_no_stream_answer(document) -> None:
    with pytest.raises(ProtocolError):
        read_stream(document)


def test_a_stream_answer_survives_the_wire() -> None:
    chunks = [StreamChunk("a", 0), StreamChunk(None, 1)]
    assert read_stream(chunks_to_json(JobStatus.IN_PROGRESS, chunks)) == (JobStatus.IN_PROGRESS, chunks)


# ---------------------------------------------------------------------------------- health, purge, requests


def test_health_in_any_completeness() -> None:
    health = read_health({"jobs": {"inProgress": 2, "x": "y"}, "workers": None}, seen_at=1.0)
    assert health == Health(Counts(in_progress=2), Counts(), 1.0)
    assert health.workers["throttled"] == 0
    full = Health(Counts(in_queue=1, completed=5), Counts(unhealthy=2), 1.0)
    assert read_health(health_to_json(full), seen_at=1.0) == full


def test_purged_and_requests() -> None:
    assert read_purged({"removed": 3, "status": "completed"}) == 3
    for document in ({}, {"removed": "3"}, [3], None):
        with pytest.raises(ProtocolError):
            read_purged(document)
    row = {"id": "j", "status": "COMPLETED"}
    for document in ([row, "junk", {"id": "x"}], {"requests": [row]}, {"total": 1, "data": [row]}):
        assert [job.id for job in read_requests(document, endpoint="ep")] == ["j"]
    assert read_requests({"total": 0}, endpoint="ep") == []
    with pytest.raises(ProtocolError):
        read_requests("x", endpoint="ep")


# ---------------------------------------------------------------------------------- the shapes of `error`

PLAIN = json.dumps(
    {
        "error_type": "<class 'torch.cuda.OutOfMemoryError'>", "error_message": "no memory",
        "error_traceback": "Traceback ...\n", "hostname": "h", "worker_id": "w-1", "runpod_version": "1.12.0",
    }
)  # fmt: skip
GENERATOR = "handler: no memory \ntraceback: Traceback (most recent call last):\n  File x\ntorch.cuda.OutOfMemoryError: no memory\n"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (PLAIN, ("no memory", "OutOfMemoryError", "Traceback ...\n", "w-1")),
        ("no memory", ("no memory", None, None, None)),
        ({"message": "no memory", "type": "Oops"}, ("no memory", "Oops", None, None)),
        ({"error": {"message": "no memory", "type": "worker_error", "code": None}}, ("no memory", "worker_error", None, None)),
        (["no memory", {"message": "twice"}], ("no memory; twice", None, None, None)),
        ("{'message': 'no memory', 'code': 7}", ("no memory", None, None, None)),
        ({"code": 7}, ('{"code": 7}', None, None, None)),
        ("{'code': (1, 2)}", ('{"code": [1, 2]}', None, None, None)),
        ("{not json", ("{not json", None, None, None)),
        ("{[]: 1}", ("{[]: 1}", None, None, None)),
        ("  ", ("the worker gave an empty error", None, None, None)),
        ({"message": "  "}, ('{"message": "  "}', None, None, None)),
        (7, ("7", None, None, None)),
        ([], ("[]", None, None, None)),
        (None, ("null", None, None, None)),
    ],
)  # fmt: skip
def test_an_error_in_any_shape(told, expected) -> None:
    error = read_worker_error(told)
    assert (error.message, error.type, error.traceback, error.worker_id) == expected
    assert error.raw == told


def test_a_generators_error_is_taken_apart() -> None:
    error = read_worker_error(GENERATOR)
    assert (error.message, error.type) == ("no memory", "OutOfMemoryError")
    assert error.traceback.startswith("Traceback (most recent")
    assert error.raw == GENERATOR


def test_our_own_workers_error_is_read_as_it_was_meant() -> None:
    error = WorkerError("bad", "ValueError", "Traceback", "w")
    read = read_worker_error(worker_error_to_json(error))
    assert (read.message, read.type, read.traceback, read.worker_id) == (
        "bad",
        "ValueError",
        "Traceback",
        "w",
    )


# ---------------------------------------------------------------------------------- anything at all

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**308, 10**400)
    | st.floats()
    | st.text(max_size=12)
)
names = st.sampled_from(
    ["id", "status", "output", "error", "stream", "jobs", "workers", "delayTime", "executionTime", "retries", "workerId",
     "removed", "message", "error_message", "error_type", "traceback", "metrics", "jobId", "result", "idle"]
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)
documents = anything | st.dictionaries(names, anything, max_size=8)
READERS = [
    lambda value: read_job(value, endpoint="ep"),
    lambda value: read_job(value, endpoint="ep", dialect=TENSORONE_REST_DIALECT, job_id="j"),
    read_stream,
    read_health,
    read_purged,
    lambda value: read_requests(value, endpoint="ep"),
]


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=150, deadline=None)
@given(value=documents)
@example(value={"status": "x", "delayTime": 10**400})
@example(value={"status": "x", "executionTime": float("nan")})
@example(value={"jobs": {"idle": float("inf"), "running": float("nan")}, "workers": {"idle": 10**400}})
def test_any_json_gives_a_value_or_a_protocol_error(reader, value) -> None:
    try:
        read = reader(value)
    except ProtocolError as error:
        assert len(str(error)) < 400  # noqa: PT017 - either is right
    else:
        repr(read)


@settings(max_examples=300, deadline=None)
@example("{(1, 2): 3}")
@example("{'message': {(1,): 2}}")
@given(documents | documents.map(json.dumps) | documents.map(repr) | st.text(alphabet="{}[]'\":,(){1a\\ \n"))
def test_any_error_gives_a_sentence(value) -> None:
    error = read_worker_error(value)
    assert error.message.strip()
    assert str(error)
    assert error.raw is value


@pytest.mark.parametrize("opening", ["[", '{"message": ', '{"error": ', '["x", '])
def test_what_is_nested_too_deeply_is_not_read_and_breaks_nothing(opening: str) -> None:
    value = "deep"
    for _ in range(3000):
        value = [value] if opening[0] == "[" else {opening[2:-3]: value}
    assert read_worker_error(value).message
    closing = {"[": "]", "{": "}"}[opening[0]]
    text = f"{opening * 3000}1{closing * 3000}"
    assert read_worker_error(text).message
    for reader in READERS[2:]:
        try:
            reader({"status": "FAILED", "removed": value, "jobs": value, "stream": [value]})
        except ProtocolError as error:
            assert len(str(error)) < 400  # noqa: PT017 - either is right
    assert read_job({"status": "FAILED", "error": value}, endpoint="ep").error.message


def test_dialects_name_themselves() -> None:
    assert (RUNPOD_DIALECT.name, TENSORONE_REST_DIALECT.name) == ("runpod", "tensorone-rest")


# ---------------------------------------------------------------------------------- what nothing can store


def test_half_characters_end_at_the_door() -> None:
    half = "half \ud83d"
    document = {"id": half, "status": half, "workerId": half, "output": {half: [half]}, "error": {half: half}}
    job = read_job(document, endpoint="ep")
    status, chunks = read_stream(
        {"status": half, "stream": [{"output": {half: half}, "metrics": {half: half}}]}
    )
    health = read_health({"jobs": {half: 1}, "workers": {}})
    for value in (job, status, chunks, health):
        assert "\\ud83d" not in repr(value)
    assert job.output == {"half \ufffd": ["half \ufffd"]}


@pytest.mark.parametrize("shape", [json.dumps, repr, lambda error: error])
def test_half_characters_in_any_shape_of_error_are_mended(shape) -> None:
    error = read_worker_error(shape({"error_message": "half \ud83d", "error_type": "\ud83d"}))
    assert (error.message, error.type) == ("half \ufffd", "\ufffd")


def test_a_character_cut_between_two_chunks_is_in_the_later_one() -> None:
    rows = [{"output": "a\ud83d"}, {"output": "\ude00b"}, {"output": {}}, {"output": "\ud83d"}]
    for answer in (rows, {"status": "IN_PROGRESS", "stream": rows}, [row["output"] for row in rows]):
        _, chunks = read_stream(answer, first_index=3)
        assert [chunk.output for chunk in chunks] == ["a", "\U0001f600b", {}, "\ufffd"]
        assert [chunk.index for chunk in chunks] == [3, 4, 5, 6]


@pytest.mark.parametrize("number", [10**30, 10**400, float("inf"), float("nan"), 2**31, -(10**30)])
def test_numbers_that_no_job_can_have_are_left_out(number) -> None:
    huge = number * 1000 if number == 2**31 else number
    job = read_job(
        {"id": "j", "status": "x", "retries": number, "delayTime": huge, "executionTime": huge}, endpoint="ep"
    )
    assert job.retries is None
    if number != 2**31:
        assert (job.delay_time, job.execution_time) == (None, None)


def test_what_has_halves_and_is_too_deep_is_told() -> None:
    deep: list = ["\ud83d"]
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ProtocolError, match="nested too deeply"):
        read_job({"id": "j", "status": "COMPLETED", "output": deep}, endpoint="ep")
