"""Every step of the SDK guides with the released `runpod` package; the line printed is what each step gave."""

import json
import os
import signal
import time

import runpod

runpod.api_key = os.environ["RUNPOD_API_KEY"]
echo = runpod.Endpoint("echo")
words = runpod.Endpoint("words")
failing = runpod.Endpoint("failing")

HELLO = {"prompt": "Hello, World!"}
SLOW = {"prompt": "Hello, World!", "pause": 0.6}
ENDLESS = {"prompt": "never", "pause": 600}
kept = {}


def run_sync():
    return echo.run_sync({"input": HELLO})


def run():
    return echo.run({"input": HELLO}).job_id


def poll():
    job = words.run({"input": HELLO})
    while job.status() not in ("COMPLETED", "FAILED"):
        time.sleep(0.2)
    return {"status": job.status(), "output": job.output()}


def output_waits():
    job = words.run({"input": SLOW})
    return {"id": job.job_id, "at_once": job.output(), "later": job.output(timeout=10)}


def a_job_that_fails():
    job = failing.run({"input": {"message": "no luck"}})
    return {"output": job.output(timeout=10), "status": job.status()}


def stream():
    started = time.monotonic()
    job = words.run({"input": {"prompt": "a b c", "pause": 0.1}})
    chunks = [(chunk, time.monotonic() - started) for chunk in job.stream()]
    return {
        "id": job.job_id,
        "chunks": [chunk for chunk, _ in chunks],
        "first": chunks[0][1],
        "end": time.monotonic() - started,
    }


def status():
    kept["running"] = job = words.run({"input": ENDLESS})
    while job.status() == "IN_QUEUE":
        time.sleep(0.02)
    return job.status()


def health():
    kept["queued"] = [words.run({"input": HELLO}), words.run({"input": HELLO})]
    return words.health()


def purge_queue():
    result = words.purge_queue()
    return {
        "result": result,
        "purged": [job.status() for job in kept["queued"]],
        "running": kept["running"].status(),
    }


def cancel():
    return {"cancel": kept["running"].cancel(), "status": kept["running"].status()}


def stream_of_a_cancelled_job():
    """It never ends by itself, so an alarm ends it."""

    def give_up(*_):
        raise TimeoutError("still polling")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 2.5)
    try:
        return list(kept["running"].stream())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def timeout():
    job = words.run({"input": ENDLESS})
    try:
        return job.output(timeout=1)
    except TimeoutError as error:
        return {"said": str(error), "status": job.status(), "cancel": job.cancel()["status"]}


def policy():
    job = words.run({"input": HELLO, "policy": {"executionTimeout": 5000}})
    return job.output(timeout=10)


def policy_that_ends_a_job():
    job = words.run(
        {"input": ENDLESS, "policy": {"executionTimeout": 300, "ttl": 60000, "lowPriority": True}}
    )
    return {"id": job.job_id, "output": job.output(timeout=10), "status": job.status()}


def run_sync_holds():
    return words.run_sync({"input": SLOW})


def an_empty_input():
    return echo.run_sync({"input": {}})


def a_wrong_key():
    return runpod.Endpoint("echo", api_key="another").run({"input": HELLO})


def an_unknown_job():
    job = echo.run({"input": HELLO})
    job.job_id = "no-such-job"
    return job.status()


STEPS = (
    run_sync,
    run,
    poll,
    output_waits,
    a_job_that_fails,
    stream,
    status,
    health,
    purge_queue,
    cancel,
    stream_of_a_cancelled_job,
    timeout,
    policy,
    policy_that_ends_a_job,
    run_sync_holds,
    an_empty_input,
    a_wrong_key,
    an_unknown_job,
)

found = {}
for step in STEPS:
    try:
        found[step.__name__] = step()
    except Exception as error:
        found[step.__name__] = {"raised": type(error).__name__, "said": str(error)}
print(json.dumps(found))
