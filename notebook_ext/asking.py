"""One request as it is asked, once or again: what, about which job, and by which clocks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from notebook_ext.clocks import CONNECT_TIMEOUT
from notebook_ext.protocol import Operation

__all__ = ["SUBMITS", "Asking"]

SUBMITS = frozenset({Operation.RUN, Operation.RUNSYNC, Operation.RETRY, Operation.OPENAI})
"""What queues a job: asked twice, it may run twice."""


@dataclass
class Asking:
    """One thing that is asked, once or again.

    Attributes:
        operation: What is asked.
        job_id: Of which job; empty where it is about none.
        content: What is sent with it.
        hold: Seconds that the server may hold the answer; None where it answers at once.
        timeout: Seconds that the caller gives it.
        held_back: Seconds for which our own limits have held it back: no clock runs in them.
    """

    operation: Operation
    job_id: str
    content: bytes | None
    hold: float | None
    timeout: float
    held_back: float = 0.0

    @property
    def submits(self) -> bool:
        """Whether it queues a job."""
        return self.operation in SUBMITS

    @property
    def connect_timeout(self) -> float:
        """Seconds until there must be a connection."""
        return min(CONNECT_TIMEOUT, self.timeout)

    def spent(self, since: float) -> float:
        """Seconds of its own clock since a moment of the monotonic one."""
        return time.monotonic() - since - self.held_back
