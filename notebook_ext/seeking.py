"""Seeking a job whose submission was not answered in its provider's list of requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from notebook_ext.errors import EndpointError

if TYPE_CHECKING:
    from notebook_ext.client import Endpoint
    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal
    from notebook_ext.types import Job

__all__ = ["seek"]

LIST_PATIENCE = 10.0
"""Seconds to wait for a provider's list of requests."""


async def seek(handle: JobHandle, endpoint: Endpoint, journal: Journal) -> tuple[Job | None, str]:
    """The one job in the list that it must be; or, where there is none, what is known then, in words.

    Args:
        handle: The job.
        endpoint: Where it was submitted.
        journal: Tells which of the jobs in the list are known.
    """
    try:
        async with asyncio.timeout(LIST_PATIENCE):
            listed = await endpoint.requests()
    except (EndpointError, TimeoutError):  # not documented here, or not to be had now
        return None, "its provider could not be asked for a list of requests"
    strangers = [job for job in listed if job.id and not journal.find(job.id)]
    matches = [job for job in strangers if job.input is not None and job.input == handle.input]
    twins = [twin for twin in journal.open_twins(handle.body_hash) if not twin.job.id]
    if len(matches) != 1 or len(twins) > 1:  # whose it is could not be told
        return None, _told(strangers)
    return matches[0], ""


def _told(strangers: list[Job]) -> str:
    if not strangers:
        return (
            "the provider's list of requests has none that is not known here, so it was probably not queued"
        )
    ids = ", ".join(job.id for job in strangers[:3])
    more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
    return f"the provider's list has {ids}{more}, which this journal does not know"
