"""Every timeout by its name: who waits for what, for how long, and what becomes of the job then.

| clock | waits for | when it is over |
|---|---|---|
| connect | a connection | nothing was sent |
| submit | the answer to `run` and `retry` | the job may have been queued: AMBIGUOUS until it is found |
| request | the answer to a look, a cancel, a list | the job goes on; safe to ask again |
| silence | the next byte of the OpenAI route's answer | the job may go on, and its text is gone: AMBIGUOUS |
| hold | an answer that the server was asked to hold | the job goes on; chunks in the answer may be lost |
| waiting | `--timeout`, `timeout=`: the result | the job goes on, or is cancelled, as asked |
| execution | `--exec-timeout`: the worker, on the server's own clock | TIMED_OUT |
| ttl | `--ttl`: queue and run together, on the server's own clock | the job is deleted, even while it runs |

The last three are a caller's; where none is given, one waits for ever, and the server's own apply.
"""

from __future__ import annotations

__all__ = [
    "ANSWER_MARGIN",
    "CONNECT_TIMEOUT",
    "HOLD_MARGIN",
    "LONGEST_HOLD",
    "REQUEST_TIMEOUT",
    "RUNSYNC_HOLD",
    "SHORTEST_HOLD",
    "SILENCE",
    "STREAM_HOLD",
    "SUBMIT_TIMEOUT",
    "SYNC_HOLD",
]

CONNECT_TIMEOUT = 10.0
"""Seconds until there is a connection."""
SUBMIT_TIMEOUT = REQUEST_TIMEOUT = 30.0
"""Seconds until the answer to a submission, and to any other request that is not held, however often it is
repeated."""
SILENCE = 600.0
"""Seconds without a byte of an answer by the OpenAI route, which is silent while the job waits for a worker,
and while that starts; Runpod lets a job run for so long unless it is told otherwise."""
HOLD_MARGIN = 15.0
"""Seconds beyond a hold after which its answer is given up."""
ANSWER_MARGIN = 2.0
"""Seconds beyond a caller's own timeout that an answer may take: it names the job, or its end."""
STREAM_HOLD = 10.0
"""Seconds that the server may hold one `/stream`: its documented default (Runpod)."""
SYNC_HOLD = 30.0
"""Seconds that the server may hold one `/status-sync`; below the 60 s at which proxies cut."""
RUNSYNC_HOLD = 5.0
"""Seconds that one `/runsync` may be held while a cell waits, so that an id to cancel is known soon."""
SHORTEST_HOLD, LONGEST_HOLD = 1.0, 300.0
"""Seconds: the documented range of `wait` (Runpod)."""
