"""What is told of one job in a line."""

from __future__ import annotations

from notebook_ext import footer, render
from notebook_ext.errors import JobFailed
from notebook_ext.render import NO_OUTPUT
from notebook_ext.types import Job, JobStatus, WorkerError


def test_footer():
    facts = footer.Facts(
        number=17,
        endpoint="demo",
        status=JobStatus.COMPLETED,
        queue=0.8,
        run=3.4,
        first_token=0.4,
        chunks_per_second=41.2,
        cost=0.0011,
        notes=("retried <once>",),
    )
    assert footer.footer(facts) == (
        "@17 · demo · COMPLETED · 0.8 s queue · 3.4 s run · first token 0.4 s · 41 chunks/s · >= $0.0011 · retried <once>"
    )
    assert "retried &lt;once&gt;" in footer.footer_bundle(facts)["text/html"]
    assert footer.footer(footer.Facts(endpoint="demo", status=JobStatus("ODD"))) == "demo · ODD"


def test_a_failed_job_tells_what_its_worker_said():
    failure = WorkerError("no <gpu>", type="RuntimeError", traceback="Traceback\n  line 1\n", worker_id="w1")
    job = Job(id="j1", endpoint="demo", status=JobStatus.FAILED, error=failure, delay_time=0.5)
    bundle = footer.job(job, 3)
    assert bundle["text/plain"] == (
        "@3 · demo · FAILED · 0.5 s queue · j1\nTraceback\n  line 1\nRuntimeError: no <gpu> (worker w1)"
    )
    assert "no &lt;gpu&gt;" in bundle["text/html"]
    shown = render.error(JobFailed("It <failed>.", job))
    assert shown["text/plain"] == "JobFailed: It <failed>."
    assert "It &lt;failed&gt;." in shown["text/html"]


def test_completed_without_output_says_so():
    assert NO_OUTPUT in footer.job(Job(id="j", endpoint="d", status=JobStatus.COMPLETED))["text/plain"]
    assert "10 MB run / 20 MB runsync" in render.no_output()["text/plain"]
    assert (
        NO_OUTPUT
        not in footer.job(Job(id="j", endpoint="d", status=JobStatus.COMPLETED, output=0, has_output=True))[
            "text/plain"
        ]
    )
