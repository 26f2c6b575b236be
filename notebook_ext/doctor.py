"""What `%endpoint doctor` looks at: the kernel, the journal, a key, and whether an endpoint answers."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from notebook_ext import keys
from notebook_ext.dialects import Operation
from notebook_ext.errors import EndpointError
from notebook_ext.kernel import nest_asyncio_conflict
from notebook_ext.waiting import wait_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notebook_ext.connection import Connection
    from notebook_ext.journal import Journal
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["Finding", "Mark", "examine", "report", "versions"]

SLOW = 2.0
"""Seconds from which on an answer of an endpoint counts as slow."""
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Mark(StrEnum):
    """How serious a finding is."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        mark: Whether something is to be done about it.
        subject: What it is.
        said: What was found, and what to do, in words; never a key.
    """

    mark: Mark
    subject: str
    said: str


def report(findings: list[Finding]) -> str:
    """The findings as lines of text."""
    width = max(len(finding.subject) for finding in findings)
    return "\n".join(f"{finding.mark:4}  {finding.subject:{width}}  {finding.said}" for finding in findings)


def examine(session: Session, front_end: FrontEnd, name: str) -> list[Finding]:
    """Look at everything that can be wrong, and ask one endpoint how it is.

    Args:
        session: Whose journal and endpoints these are.
        front_end: Where its cells run.
        name: The endpoint; nothing is submitted to it.
    """
    return [
        *_kernel(front_end),
        *_network(),
        _journal(session.journal),
        *_endpoint(session, name),
    ]


def _kernel(front_end: FrontEnd) -> Iterator[Finding]:
    python = sys.version.split()[0]
    ipython, ipykernel, ipywidgets = map(_version, ("ipython", "ipykernel", "ipywidgets"))
    yield Finding(Mark.GOOD, "versions", f"Python {python}, IPython {ipython}, ipykernel {ipykernel}")
    if ipykernel is not None and (7, 0) <= _numbers(ipykernel) < (7, 4) and not front_end.is_terminal:
        yield Finding(
            Mark.NOTE,
            "ipykernel",
            "7.0 to 7.3 now and then do not read a request, so that a cell seems to hang (its issue 1554): "
            "pip install 'ipykernel>=7.4'",
        )
    if front_end.is_terminal:
        yield Finding(Mark.GOOD, "front end", "a terminal: text instead of widgets, Ctrl-C stops a job")
        return
    if not front_end.has_widgets:
        yield Finding(Mark.BAD, "widgets", "no Cancel button and no panels: pip install ipywidgets")
    else:
        yield Finding(Mark.GOOD, "widgets", f"ipywidgets {ipywidgets}")
    yield _clicks(front_end)
    conflict = nest_asyncio_conflict()
    if conflict is not None:
        yield Finding(Mark.BAD, "nest_asyncio", conflict)


def _clicks(front_end: FrontEnd) -> Finding:
    heard = front_end.clicks_heard_while_busy
    if heard:
        return Finding(Mark.GOOD, "clicks", "are heard while another cell is busy")
    if heard is None:
        return Finding(
            Mark.GOOD, "clicks", "are heard while their own cell waits; while another is busy, perhaps"
        )
    said = "are heard while their own cell waits; while another one is busy, when it has ended (ipykernel 6)"
    return Finding(Mark.NOTE, "clicks", said)


def _network() -> Iterator[Finding]:
    for variable in _PROXIES:
        proxy = os.environ.get(variable) or os.environ.get(variable.lower())
        if proxy:
            host = urlsplit(proxy).hostname or "something that is no URL"
            yield Finding(Mark.NOTE, "proxy", f"{variable} sends requests through {host}")
    for variable in _CERTIFICATES:
        where = os.environ.get(variable)
        if where and not os.path.exists(where):  # noqa: PTH110 - a path that somebody else wrote, as it is
            yield Finding(Mark.BAD, "certificates", f"{variable} names {where}, which is not there")
        elif where:
            yield Finding(Mark.NOTE, "certificates", f"{variable} says whom to trust: {where}")


def _journal(journal: Journal) -> Finding:
    if journal.warning:
        return Finding(Mark.BAD, "journal", journal.warning)
    if not journal.is_kept:
        return Finding(Mark.NOTE, "journal", "in memory: jobs are forgotten with this kernel")
    try:
        size = journal.size()
    except EndpointError as error:
        return Finding(Mark.BAD, "journal", str(error))
    return Finding(Mark.GOOD, "journal", f"{journal.path}, {size / 1e6:.1f} MB")


def _endpoint(session: Session, name: str) -> Iterator[Finding]:
    try:
        connection = session.connect(name)
    except EndpointError as error:
        yield Finding(Mark.BAD, "endpoint", str(error))
        return
    yield Finding(Mark.GOOD, "endpoint", f"{name}: {session.endpoints.describe(name)}")
    key = _key(connection)
    yield key
    if key.mark is not Mark.BAD:
        yield from _answer(connection)


def _key(connection: Connection) -> Finding:
    provider = connection.provider
    try:
        found = keys.find_key(provider, name=connection.name)
    except EndpointError as error:
        return Finding(Mark.BAD, "key", str(error))
    if found is not None:
        return Finding(Mark.GOOD, "key", f"from {found.source}")
    if provider.loopback:
        return Finding(Mark.NOTE, "key", "none; a server on this machine may want none")
    variable = f", or set {provider.key_variable}" if provider.key_variable else ""
    return Finding(Mark.BAD, "key", f"there is none: %endpoint login {connection.name}{variable}")


def _answer(connection: Connection) -> Iterator[Finding]:
    provider = connection.provider
    if Operation.HEALTH not in provider.routes:
        yield Finding(Mark.NOTE, "answer", f"health is not documented for {provider.name}: a job will tell")
        return
    asked = time.monotonic()
    try:
        health = connection.health()
    except EndpointError as error:
        yield Finding(Mark.BAD, "answer", str(error))
        return
    took = time.monotonic() - asked
    mark = Mark.NOTE if took >= SLOW else Mark.GOOD
    yield Finding(mark, "answer", f"health in {took * 1000:.0f} ms, connecting included")
    reason = wait_reason(health)
    jobs = f"{health.jobs['in_queue']} queued, {health.jobs['in_progress']} running"
    yield Finding(Mark.NOTE if reason else Mark.GOOD, "workers", f"{jobs}; {reason or 'ready'}")


def versions() -> str:
    """The versions of this and of what it stands on, in one line."""
    names = ("notebook_ext", "ipython", "ipykernel", "ipywidgets", "httpx")
    found = [f"{name} {version}" if (version := _version(name)) else f"no {name}" for name in names]
    return f"{', '.join(found)}, Python {sys.version.split()[0]}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
