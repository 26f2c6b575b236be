"""The benchmark itself: it runs, its stopwatch and contenders agree, and it judges rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_quick_run_prints_one_table_and_writes_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--quick", "--repeats", "1", "--only", "stream-end,token-delay", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "notebook_ext 0." in done.stdout
    assert done.stdout.count("| stream-end (5)") == 2
    figures = json.loads(file.read_text())["figures"]
    for figure in figures:
        assert set(figure["samples"]) == {"floor", "notebook_ext"}
        assert all(sample > 0 for samples in figure["samples"].values() for sample in samples)
    # a stream is one request per token, and one that finds the end, whoever asks
    requests = [figure["samples"] for figure in figures if figure["what"] == "requests per token"]
    assert all(samples["notebook_ext"][0] <= 1.1 for samples in requests)
    # nobody is faster than half a round trip
    slow = [
        figure
        for figure in figures
        if "r = 30 ms" in figure["case"] and figure["what"] == "delay per token p50"
    ]
    assert all(
        sample >= 15 for figure in slow for samples in figure["samples"].values() for sample in samples
    )


def test_what_following_costs_is_measured_in_a_real_kernel(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--quick", "--repeats", "1", "--only", "watching", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = {
        figure["what"].partition(" (")[0]: figure for figure in json.loads(file.read_text())["figures"]
    }
    assert all(set(figure["samples"]) == {"floor", "notebook_ext"} for figure in figures.values())
    for what in ("cancel() to POST at the server", "end of a job to its being known"):
        assert all(0 < sample < 90_000 for (sample,) in figures[what]["samples"].values()), what
    (asked,) = figures["requests per job and minute"]["samples"]["notebook_ext"]
    assert 0 < asked < 600  # the stopwatch holds what it is asked


def test_what_the_journal_costs_is_measured_against_one_that_keeps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--quick", "--repeats", "1", "--only", "journal", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())["figures"]
    samples = {(figure["case"], figure["what"]): figure["samples"] for figure in figures}
    assert all(sample > 0 for found in samples.values() for values in found.values() for sample in values)

    def of(what: str) -> dict[str, float]:
        (found,) = (one for (_, told), one in samples.items() if told == what)
        return {name: sample for name, (sample,) in found.items()}

    # a submit returns before its answer is there, and nothing is ever faster than the bare loop
    first_token, returned, known = (
        of(what) for what in ("time to first token", "submit() returns, p50", "submit() to its id, p50")
    )
    assert set(first_token) == {"floor", "notebook_ext", ":memory:", "keeps nothing"}
    assert all(first_token["floor"] < sample for name, sample in first_token.items() if name != "floor")
    assert all(returned[name] < known[name] for name in ("floor", "notebook_ext", ":memory:"))
    # what is on the disk is there: no text is smaller than itself
    sizes = [found["notebook_ext"][0] for (_, what), found in samples.items() if "on disk per MB" in what]
    assert len(sizes) == 5
    assert min(sizes) >= 1.0
    # and a search that finds fifty takes longer than one that finds none
    assert (
        of("search for a word that most jobs have")["notebook_ext"]
        > of("search for no such word")["notebook_ext"]
    )


@pytest.mark.browser
def test_clicks_are_measured_in_a_real_page(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--quick", "--repeats", "1", "--only", "clicks", "--json", str(file))
    assert done.returncode == 0, done.stderr
    posts, pages = (
        {
            figure["case"]: figure["samples"]
            for figure in json.loads(file.read_text())["figures"]
            if what in figure["what"]
        }
        for what in ("POST", "page")
    )
    assert len(posts) == 2
    for case, samples in posts.items():
        for contender, (sample,) in samples.items():
            assert 0 < sample < pages[case][contender][0], (case, contender)


@pytest.mark.browser
def test_updates_are_counted_in_a_real_page(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--quick", "--repeats", "1", "--only", "panels", "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = {figure["what"]: figure["samples"] for figure in json.loads(file.read_text())["figures"]}
    assert all(100 < sample < 20_000 for (sample,) in figures["bytes per update"].values())
    assert 60 <= figures["updates per minute"]["floor"][0] <= 180


def test_an_unknown_question_names_those_that_there_are() -> None:
    done = bench("--only", "nonsense")
    assert done.returncode == 2
    for name in (
        "clicks",
        "exchanges",
        "first-token",
        "imports",
        "journal",
        "panels",
        "stream-end",
        "token-delay",
        "watching",
    ):
        assert name in done.stderr
