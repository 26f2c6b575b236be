"""The benchmark itself: it runs, its stopwatch and contenders agree, and it judges rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_an_unknown_question_names_those_that_there_are() -> None:
    done = bench("--only", "nonsense")
    assert done.returncode == 2
    for name in ("exchanges", "first-token", "imports", "stream-end", "token-delay"):
        assert name in done.stderr
