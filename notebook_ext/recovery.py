"""Jobs that an earlier or another session submitted, as this one finds them in the journal."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from notebook_ext.calls import CUT_SHORT, cut_short
from notebook_ext.errors import AuthenticationError, ConfigurationError, EndpointError
from notebook_ext.events import Ended
from notebook_ext.following import differs
from notebook_ext.protocol import Operation
from notebook_ext.types import JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_ext.client import Endpoint
    from notebook_ext.entry import Entry
    from notebook_ext.handle import JobHandle
    from notebook_ext.journal import Journal
    from notebook_ext.watcher import Watcher

__all__ = ["Recovered", "Recovery"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a session found of jobs whose own session is gone.

    Args:
        handles: Those that are followed now, or looked for.
        ended: Those that ended with the kernel, which served their endpoint, or read their only answer.
    """

    handles: list[JobHandle]
    ended: list[JobHandle]

    def __str__(self) -> str:
        """One line, empty where nothing was left."""
        finished = [handle for handle in self.handles if handle.status.is_final]
        expired = [handle for handle in finished if handle.status is JobStatus.LOST]
        kept = len(finished) - len(expired)
        unknown = [handle for handle in self.handles if not handle.id]
        # Such as one whose key this kernel has not been given.
        mute = [handle for handle in self.handles if handle.id and handle.done and handle not in finished]
        running = len(self.handles) - len(finished) - len(unknown) - len(mute)
        calls = [handle for handle in self.ended if handle.is_call and not handle.status.is_final]
        parts = [
            f"{running} still run{'s' if running == 1 else ''}" if running else "",
            f"{len(mute)} could not be asked ({_why(mute[0].error)})" if mute else "",
            f"{kept} ended since, and what came of it is kept" if kept else "",
            f"{len(expired)} expired before it could be fetched" if expired else "",
            f"{len(unknown)} may or may not have been queued" if unknown else "",
            f"{len(self.ended) - len(calls)} ended with it, as it served the endpoint"
            if len(self.ended) > len(calls)
            else "",
            f"{len(calls)} ended with it, as it read the answer" if calls else "",
        ]
        count = len(self.handles) + len(self.ended)
        jobs = f"{count} job{'' if count == 1 else 's'}"
        found = ", ".join(filter(None, parts))
        return (
            f"An earlier kernel left {jobs}: {found}. `%endpoint attach --all` shows them." if count else ""
        )


def _why(error: EndpointError | None) -> str:
    if isinstance(error, ConfigurationError):
        return str(error).rstrip(".")
    return (isinstance(error, AuthenticationError) and error.reason) or type(error).__name__


class Recovery:
    """Finds, follows and takes over what the journal knows of jobs that others submitted.

    Args:
        journal: Where they are.
        watcher: Follows them.
        make: Makes the handle of an entry.
        endpoint: Finds where a handle's job is.
    """

    def __init__(
        self,
        journal: Journal,
        watcher: Watcher,
        make: Callable[[Entry], JobHandle],
        endpoint: Callable[[JobHandle], Endpoint],
    ) -> None:
        self._journal = journal
        self._watcher = watcher
        self._make = make
        self._endpoint = endpoint
        # Whoever looks through a long list does not keep it: the journal does.
        self._handles: WeakValueDictionary[int, JobHandle] = WeakValueDictionary()

    def recall(self, entry: Entry) -> JobHandle:
        """The handle of an entry, with all that was kept of it; the same one each time.

        One that had not ended is not followed: `resume` does that.
        """
        known = self._handles.get(entry.number)
        if known is not None and not self._is_behind(known, entry):
            return known
        handle = known or self._make(entry)
        handle.job, handle.notes = entry.job, list(entry.notes)
        name, job = f"@{entry.number} on {entry.endpoint}", entry.job
        error = handle.failure() if job.status.is_final else _left(name, job.status)
        if handle.is_call and handle.is_settled:
            error = cut_short(name, entry.notes)
        handle.recall(Ended(error), age=time.time() - entry.submitted_at)
        self._handles[entry.number] = handle
        return handle

    def _is_behind(self, handle: JobHandle, entry: Entry) -> bool:
        """Whether another session has seen more of a job than a handle that nobody follows here."""
        is_left = handle.done and not handle.status.is_final and entry.owner != self._journal.owner
        return is_left and differs(handle.job, entry.job)

    def resume(self, handle: JobHandle) -> bool:
        """Follow a job that was recalled, or look for it where its id never came.

        Returns:
            Whether there was anything to do.
        """
        entry = self._journal.get(handle.number)
        if entry is None or entry.owner == self._journal.owner or not handle.done or handle.is_settled:
            return False
        if self._journal.is_alive(entry.owner) or not self._journal.claim(entry.number, entry.owner):
            handle.go_on()
            self._watcher.follow_journal(handle, self._endpoint(handle))
        elif handle.is_call:
            self._cut(entry)
            return False
        else:
            self._follow(handle, entry)
        return True

    def take_over(self) -> Recovered:
        """Become the one that follows the open jobs whose session is gone, so that no result is lost."""
        recovered = Recovered([], [])
        for entry in self._journal.open_entries():
            try:
                self._take(entry, recovered)
            except EndpointError as error:  # one that cannot be followed now must not hide the others
                _log.warning("@%s on %s cannot be taken over: %s", entry.number, entry.endpoint, error)
        return recovered

    def _take(self, entry: Entry, recovered: Recovered) -> None:
        is_call = entry.operation == Operation.OPENAI
        if (entry.is_given_up and not is_call) or self._journal.is_alive(entry.owner):
            return
        if not self._journal.claim(entry.number, entry.owner):
            return  # another session was faster
        if entry.served:
            recovered.ended.append(self._end(entry))
            return
        if is_call:
            recovered.ended.append(self._cut(entry))
            return
        handle = self.recall(entry)
        recovered.handles.append(handle)
        self._follow(handle, entry)

    def _follow(self, handle: JobHandle, entry: Entry) -> None:
        handle.go_on()
        if not entry.job.id:
            self._watcher.look_for(handle, self._endpoint(handle))
            return
        # A killed session may have read chunks that it had no time to write down.
        has_gap = entry.owner is not None and entry.operation == "run"
        self._watcher.follow(handle, self._endpoint(handle), has_gap=has_gap)

    def _cut(self, entry: Entry) -> JobHandle:
        """A job that was no more than a connection of its session."""
        cut = replace(entry.job, status=JobStatus.AMBIGUOUS, seen_at=time.time())
        notes = entry.notes or (CUT_SHORT,)
        self._journal.finish(entry.number, cut, notes, packs=False)
        return self.recall(replace(entry, job=cut, notes=notes))

    def _end(self, entry: Entry) -> JobHandle:
        lost = replace(entry.job, status=JobStatus.LOST, seen_at=time.time())
        note = "its endpoint was served by a kernel that has ended"
        self._journal.finish(entry.number, lost, [*entry.notes, note], packs=False)
        return self.recall(replace(entry, job=lost, notes=(*entry.notes, note)))


def _left(name: str, status: JobStatus) -> EndpointError:
    return EndpointError(f"{name} was {status} when its session was left; `%endpoint attach` follows it")
