"""What a person calls a job by: @last, @17, an id or its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notebook_ext.errors import InputError, JobLost

if TYPE_CHECKING:
    from notebook_ext.handle import JobHandle
    from notebook_ext.session import Session

__all__ = ["find"]


def find(session: Session, reference: str) -> JobHandle:
    """What `Session.find` does."""
    if reference == "@last":
        return _last(session)
    if reference.startswith("@"):
        return _numbered(session, reference)
    return _by_id(session, reference)


def _last(session: Session) -> JobHandle:
    if session.handles:
        return session.handles[max(session.handles)]
    entry = session.journal.last()
    if entry is None:
        raise InputError("there is no job yet: `%endpoint run -- PROMPT` makes one")
    return session.recall(entry)


def _numbered(session: Session, reference: str) -> JobHandle:
    number = int(reference[1:]) if reference[1:].isdecimal() else 0
    if (handle := session.handles.get(number)) is not None:
        return handle
    if (entry := session.journal.get(number)) is not None:
        return session.recall(entry)
    last = session.journal.last()
    hint = f"; the last one is @{last.number}" if last else ""
    raise InputError(f"there is no job {reference}{hint}")


def _by_id(session: Session, beginning: str) -> JobHandle:
    found = {entry.job.id: entry for entry in session.journal.find(beginning)}
    if len(found) > 1:
        raise InputError(f"{beginning} is the beginning of {len(found)} ids; give more of it")
    for entry in found.values():
        return session.recall(entry)
    default = session.endpoints.default_name()
    try:
        return session.adopt(session.connect(default), beginning)
    except JobLost as error:
        raise InputError(f"there is no job {beginning}: not in the journal, and not at {default}") from error
