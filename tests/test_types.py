"""The values: frozen, and honest about what is not known."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.types import (
    Counts,
    ExecutionPolicy,
    Health,
    Job,
    JobStatus,
    Progress,
    StreamChunk,
    WorkerError,
    whole,
    whole_text,
)


@pytest.mark.parametrize("word", ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST"])
def test_final_words(word: str) -> None:
    assert JobStatus(word).is_final


@pytest.mark.parametrize(
    "word", ["IN_QUEUE", "IN_PROGRESS", "RUNNING", "AMBIGUOUS", "WARMING_UP", "completed", ""]
)
def test_words_that_are_not_final(word: str) -> None:
    assert not JobStatus(word).is_final


def test_running_is_in_progress_and_an_unknown_word_stays_itself() -> None:
    assert JobStatus("RUNNING") is JobStatus.IN_PROGRESS
    unknown = JobStatus("WARMING_UP")
    assert str(unknown) == unknown == unknown.value == "WARMING_UP"
    assert unknown == JobStatus("WARMING_UP")
    assert hash(unknown) == hash(JobStatus("WARMING_UP"))
    assert unknown not in list(JobStatus)


@pytest.mark.parametrize("word", ["COMPLETED", "WARMING_UP"])
def test_a_status_survives_a_copy(word: str) -> None:
    status = JobStatus(word)
    assert copy.deepcopy(status) == pickle.loads(pickle.dumps(status)) == status


@pytest.mark.parametrize(
    ("told", "fraction", "text"),
    [
        (0, 0.0, "0"),
        (0.25, 0.25, "0.25"),
        (1, 1.0, "1"),
        (40, 0.4, "40"),
        (250, 1.0, "250"),
        (-3, 0.0, "-3"),
        ({"step": 2, "of": 5}, 0.4, "2/5"),
        ({"step": 2, "total": 5}, 0.4, "2/5"),
        ({"current": 1, "total": 4}, 0.25, "1/4"),
        ({"n": 9, "total": 3}, 1.0, "9/3"),
        ({"step": 1, "of": 0, "note": "odd"}, None, "odd"),
        ({"progress": 0.5}, 0.5, "0.5"),
        ({"progress": 50}, 0.5, "50"),
        ({"percent": 1}, 0.01, "1 %"),
        ({"fraction": 1}, 1.0, "1"),
        ({"message": "loading"}, None, "loading"),
        ("loading weights", None, "loading weights"),
        ("step 3: 40% done", 0.4, "step 3: 40% done"),
        ("100% \r\n", 1.0, "100%"),
        ("first\nsecond", None, "second"),
        ("much% of it", None, "much% of it"),
        ("40 %", 0.4, "40 %"),
        ("v1.5% better than 3/4/5", None, "v1.5% better than 3/4/5"),
        ("Update 1/3", 1 / 3, "Update 1/3"),
        ("loading shard 2 of 5", 0.4, "loading shard 2 of 5"),
        ("epoch 1/3, step 40/100", None, "epoch 1/3, step 40/100"),
        ("on 11/22/2026", None, "on 11/22/2026"),
        ("9/3", None, "9/3"),
        ("0/0", None, "0/0"),
        ("40%|####      | 4/10 [00:01<00:02,  3.2it/s]", 0.4, "4/10 [00:01<00:02,  3.2it/s]"),
        ("\rload:   0%|  | 0/4\rload:  25%|█▌  | 1/4 [00:01<?, ?it/s]", 0.25, "load: 1/4 [00:01<?, ?it/s]"),
        ("100%|##########|", 1.0, "100%"),
        ("12it [00:03,  3.9it/s]", None, "12it [00:03,  3.9it/s]"),
        ({"step": 2, "of": 5, "stage": "denoising"}, 0.4, "2/5 denoising"),
        ({"progress": 40, "message": "denoising"}, 0.4, "denoising"),
        ({"loss": 0.25, "epoch": 3, "deep": {}, "on": True}, None, "loss 0.25 · epoch 3"),
        ("x" * 900, None, "x" * 200),
    ],
)
def test_progress_in_its_usual_shapes(told, fraction, text) -> None:
    assert Progress.read(told) == Progress(fraction, text)


@pytest.mark.parametrize(
    "told", [None, True, False, "", "  \n", [], [1], {}, {"a": None}, {"a": [1]}, {"step": True, "of": False}]
)
def test_what_is_no_progress(told) -> None:
    assert Progress.read(told) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
keyed = st.dictionaries(
    st.sampled_from(["step", "of", "total", "current", "n", "progress", "percent", "fraction", "text"]),
    json_values,
)


@given(json_values | keyed | st.integers(10**300, 10**400))
def test_progress_reads_anything(value) -> None:
    progress = Progress.read(value)
    if progress is not None:
        assert progress.fraction is None or 0.0 <= progress.fraction <= 1.0
        assert progress.text
        assert len(progress.text.splitlines()) == 1


def test_progress_is_of_running_jobs_only() -> None:
    running = Job(id="j", endpoint="e", status=JobStatus.IN_PROGRESS, output=0.5)
    assert running.progress == Progress(0.5, "0.5")
    assert Job(id="j", endpoint="e", status=JobStatus.COMPLETED, output=0.5).progress is None


def test_values_are_frozen() -> None:
    for value, name in (
        (Job(id="j", endpoint="e", status=JobStatus.IN_QUEUE), "status"),
        (StreamChunk("a"), "output"),
        (Health(), "jobs"),
        (ExecutionPolicy(), "ttl"),
        (WorkerError("m"), "message"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_a_counter_that_is_not_told_is_zero_and_stays_untold() -> None:
    counts = Counts(idle=2)
    assert (counts["idle"], counts["throttled"]) == (2, 0)
    assert counts == {"idle": 2}
    assert Health().workers["running"] == 0


def test_policies_take_seconds_or_a_timedelta() -> None:
    policy = ExecutionPolicy(timedelta(minutes=2), ttl=90)
    assert (policy.execution_timeout, policy.ttl, policy.low_priority) == (120.0, 90, False)
    assert policy == ExecutionPolicy(120, 90)
    assert ExecutionPolicy() == ExecutionPolicy(None, None)


def test_a_worker_error_reads_as_one_sentence() -> None:
    assert str(WorkerError("bad weights", "ValueError")) == "ValueError: bad weights"
    assert str(WorkerError("bad weights")) == "bad weights"


# ---------------------------------------------------------------------------------- whole characters


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain \U0001f600 é", "plain \U0001f600 é"),
        ("half \ud83d", "half \ufffd"),
        ("\ude00 half", "\ufffd half"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        ({"k\ud83d": [{"\ude00": "\ud83d"}]}, {"k\ufffd": [{"\ufffd": "\ufffd"}]}),
        (
            ["a\ud83d", "\ude00b\ud83d", "\ude00", 1, "\ud83d", "x"],
            ["a", "\U0001f600b", "\U0001f600", 1, "\ufffd", "x"],
        ),
        (["\ud83d", 1, "\ude00"], ["\ufffd", 1, "\ufffd"]),
    ],
)
def test_half_characters_are_mended(value, expected) -> None:
    assert whole(value) == expected


@given(st.text(st.characters(categories=["Cs", "Lu", "So"])))
def test_a_whole_text_can_be_encoded_and_stays(text) -> None:
    mended = whole_text(text)
    mended.encode()
    assert whole_text(mended) is mended
    assert whole([text, {text: text}]) == [mended, {mended: mended}]


def test_what_is_clean_is_given_back_however_deep() -> None:
    value = deep = []
    for _ in range(5000):
        deep.append([])
        deep = deep[0]
    assert whole(value) is value
    deep.append("\ud83d")
    with pytest.raises(RecursionError):
        whole(value)
