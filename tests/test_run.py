"""What is known of a run's times from what was seen of it."""

from __future__ import annotations

import pytest

from notebook_ext.run import ONE_ANSWER, Run
from notebook_ext.streamed import Streamed
from notebook_ext.types import JobStatus, StreamChunk

CHUNK = StreamChunk("a", 0)


def test_the_first_token_does_not_count_the_time_in_the_queue():
    run = Run()
    run.saw_status(JobStatus.IN_QUEUE, 1.0)
    run.saw_status(JobStatus.IN_PROGRESS, 40.0)
    run.saw_status(JobStatus.IN_PROGRESS, 41.0)
    assert run.first_token(None) is None
    run.saw_chunk(CHUNK, 42.5)
    assert run.began == 40.0
    assert run.first_token(None) == 2.5
    assert run.first_token(39.0) == 3.5


@pytest.mark.parametrize("before", [None, JobStatus.IN_PROGRESS])
def test_what_came_in_one_answer_says_nothing_of_the_time_between(before):
    run = Run()
    if before is not None:
        run.saw_status(before, 40.0 - ONE_ANSWER / 2)
    run.saw_chunk(CHUNK, 40.0)
    assert run.began is not None
    assert run.first_token(None) is None
    assert run.first_token(38.0) == 2.0


def test_a_run_that_was_not_seen_in_the_queue_has_no_beginning_that_is_known():
    run = Run(is_queued=False)
    run.saw_status(JobStatus.IN_PROGRESS, 5.0)
    run.saw_chunk(CHUNK, 6.0)
    assert run.began is None
    assert run.first_token(None) is None
    run = Run(is_queued=False)
    run.saw_status(JobStatus.IN_QUEUE, 4.0)
    run.saw_status(JobStatus.IN_PROGRESS, 5.0)
    assert run.began == 5.0


def test_chunks_that_were_there_before_have_no_times():
    run = Run(Streamed(lambda first: [CHUNK], is_recalled=True), is_recalled=True)
    assert len(run.streamed) == 1
    run.saw_chunk(CHUNK, 6.0)
    run.saw_chunk(CHUNK, 8.0)
    assert run.first_token(1.0) is None
    assert run.chunk_rate is None  # a backlog comes all at once


def test_the_rate_counts_from_the_first_chunk():
    run = Run()
    run.saw_chunk(CHUNK, 6.0)
    assert run.chunk_rate is None
    run.saw_chunk(CHUNK, 6.5)
    run.saw_chunk(CHUNK, 7.0)
    assert run.chunk_rate == 2.0
