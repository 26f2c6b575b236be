"""The error tree: what can be caught together, what each one knows, and its one line in a notebook."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from notebook_ext import errors
from notebook_ext.errors import EndpointError, job_error
from notebook_ext.types import Job, JobStatus, WorkerError


def make(kind: type[EndpointError]) -> EndpointError:
    if issubclass(kind, errors.JobError):
        return kind("it failed", Job(id="j", endpoint="e", status=JobStatus.FAILED))
    if issubclass(kind, errors.APIError):
        return kind("it failed", status_code=400)
    return kind("it failed")


KINDS = [value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_endpoint_errors_and_speak(kind) -> None:
    error = make(kind)
    assert isinstance(error, EndpointError)
    assert str(error) == "it failed"
    assert error._render_traceback_() == [f"{kind.__name__}: it failed"]
    error.show_traceback()
    assert not hasattr(error, "_render_traceback_")


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (errors.InputError, ValueError),
        (errors.RequestTimeout, (TimeoutError, errors.AnswerLost, errors.TransportError)),
        (errors.WaitTimeout, TimeoutError),
        (errors.JobTimedOut, (TimeoutError, errors.JobError)),
        (errors.ConnectionFailed, errors.TransportError),
        (errors.RateLimitError, errors.APIError),
        (errors.JobLost, errors.JobError),
    ],
)
def test_what_can_be_caught_together(kind, bases) -> None:
    for base in bases if isinstance(bases, tuple) else (bases,):
        assert issubclass(kind, base)


def test_what_was_never_sent_is_not_a_lost_answer() -> None:
    assert not issubclass(errors.ConnectionFailed, errors.AnswerLost)
    assert not issubclass(errors.JobLost, errors.NotFoundError)


def test_errors_keep_their_fields() -> None:
    error = errors.RateLimitError("slow down", body="x", job_id="j", retry_after=2.5)
    assert (error.status_code, error.body, error.job_id, error.retry_after) == (429, "x", "j", 2.5)
    job = Job(id="job-1", endpoint="e", status=JobStatus.FAILED)
    assert (errors.JobFailed("m", job).job, errors.JobFailed("m", job).job_id) == (job, "job-1")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        ("FAILED", errors.JobFailed, "job j on e failed after 2.5 s on a worker: ValueError: bad"),
        (
            "CANCELLED",
            errors.JobCancelled,
            "job j on e was cancelled after 2.5 s on a worker: ValueError: bad",
        ),
        ("TIMED_OUT", errors.JobTimedOut, "job j on e timed out after 2.5 s on a worker: ValueError: bad"),
        ("LOST", errors.JobLost, "job j on e is unknown to the server (404): it expired"),
    ],
)
def test_each_bad_end_has_its_error(status, kind, words) -> None:
    job = Job(
        id="j",
        endpoint="e",
        status=JobStatus(status),
        execution_time=2.5,
        error=WorkerError("bad", "ValueError"),
    )
    error = job_error(job)
    assert type(error) is kind
    assert str(error).startswith(words)
    assert error.job is job


def test_an_end_without_a_reason_says_that() -> None:
    failed = job_error(Job(id="j", endpoint="e", status=JobStatus.FAILED))
    assert str(failed) == "job j on e failed, and the worker gave no reason"
    timed_out = job_error(Job(id="j", endpoint="e", status=JobStatus.TIMED_OUT))
    assert "ran longer than its execution timeout, or waited longer than its ttl" in str(timed_out)


@pytest.mark.parametrize("word", ["COMPLETED", "IN_QUEUE", "IN_PROGRESS", "AMBIGUOUS", "WARMING_UP"])
def test_other_states_have_no_error(word: str) -> None:
    assert job_error(Job(id="j", endpoint="e", status=JobStatus(word))) is None


def test_the_workers_traceback_is_shown_on_request_only() -> None:
    job = Job(
        id="j", endpoint="e", status=JobStatus.FAILED,
        error=WorkerError("bad", traceback="Traceback: handler.py, line 7"),
    )  # fmt: skip
    error = job_error(job)
    assert "line 7" not in "".join(traceback.format_exception(error))
    error.show_traceback()
    assert "line 7" in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_a_process_boundary(kind) -> None:
    """Process pools and copies hand exceptions on by pickling them."""
    error = make(kind)
    error.add_note("a note")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == "it failed"
        assert vars(other) == vars(error)


def test_what_a_worker_says_cannot_command_a_terminal() -> None:
    job = Job(
        id="j",
        endpoint="e",
        status=JobStatus.FAILED,
        error=WorkerError("\x1b]52;c;eA==\x07", traceback="\x1b[2J"),
    )
    error = job_error(job)
    assert error._render_traceback_() == ["JobFailed: job j on e failed: ␛]52;c;eA==␇"]
    error.show_traceback()
    assert error.__notes__ == ["The worker's traceback:\n␛[2J"]
