"""A worker that streams, as its guide has it."""

import runpod


def handler(job):
    for word in job["input"]["prompt"].split():
        if word == "fail":
            raise RuntimeError("no luck")
        yield word


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
