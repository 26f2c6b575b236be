"""A plain worker, as its guide has it: `python worker.py --rp_serve_api` serves it on this machine."""

import runpod


def handler(job):
    if job["input"].get("fail"):
        raise RuntimeError("no luck")
    return {"said": job["input"]}


runpod.serverless.start({"handler": handler})
