"""Journaled jobs as reports to read, in Markdown and HTML: static, and with their pictures in them.

What was asked and answered is not trusted: it is escaped, or made inert.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from notebook_ext import render
from notebook_ext.footer import Facts, error_text, footer
from notebook_ext.records import as_json, media, prompt_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from notebook_ext.records import Medium, Record

__all__ = ["html_report", "markdown_report"]


def markdown_report(records: Sequence[Record]) -> str:
    """A section for each job."""
    return "\n\n---\n\n".join("\n\n".join(_markdown_parts(record)) for record in records) + "\n"


def _markdown_parts(record: Record) -> Iterator[str]:
    yield f"## {_markdown_text(_title(record))}"
    yield _markdown_text(_figures(record))
    yield "**Prompt**"
    yield _fenced(prompt_text(record.entry.input))
    yield "**Output**"
    if record.entry.job.error is not None:
        yield _fenced(error_text(record.entry.job.error))
    shown = media(record.final.value)
    for medium in shown:
        yield f"![{medium.mime}]({medium.url})" if medium.tag == "img" else f"({medium})"
    if not shown and record.final.text is not None:
        yield render.inert(record.final.text)
    elif (rest := _rest(record, shown)) is not None:
        yield _fenced(rest)


def _fenced(text: str) -> str:
    return str(render.outputs(text, "code")[0]["text/markdown"])


def _markdown_text(text: str) -> str:
    return re.sub(r"[\\`*_\[\]<>|$~#!]", lambda mark: f"&#{ord(mark[0])};", text)


_STYLE = """
:root { color-scheme: light dark }
body { margin: 2rem auto; max-width: 56rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  background: Canvas; color: CanvasText }
article { border-top: 1px solid GrayText; padding: 0.5rem 0 1rem }
h2 { font-size: 1.1rem; margin: 0.5rem 0 }
h3 { font-size: 0.9rem; margin: 0.75rem 0 0.25rem }
p { margin: 0.25rem 0; opacity: 0.8 }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
img, video { max-width: 100% }
"""


def html_report(records: Sequence[Record]) -> str:
    """A page that needs nothing else, runs nothing, and follows the reader's light or dark colours."""
    jobs = "\n".join(f"<article>\n{''.join(_html_parts(record))}</article>" for record in records)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # should any escaping have a hole: nothing runs, and nothing is fetched
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "media-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_count(len(records))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_count(len(records))}</h1>\n{jobs}\n</body>\n</html>\n"
    )


def _html_parts(record: Record) -> Iterator[str]:
    yield f"<h2>{html.escape(_title(record))}</h2>\n<p>{html.escape(_figures(record))}</p>\n"
    yield f"<h3>Prompt</h3>\n{_pre(prompt_text(record.entry.input))}<h3>Output</h3>\n"
    if record.entry.job.error is not None:
        yield _pre(error_text(record.entry.job.error))
    shown = media(record.final.value)
    for medium in shown:
        controls = f' alt="{medium.mime}">' if medium.tag == "img" else f" controls></{medium.tag}>"
        yield f'<{medium.tag} src="{medium.url}"{controls}\n'
    if (rest := _rest(record, shown)) is not None:
        yield _pre(rest)


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>\n"


def _title(record: Record) -> str:
    entry = record.entry
    return f"@{entry.number} · {entry.endpoint} · {entry.job.status}"


def _figures(record: Record) -> str:
    entry, job = record.entry, record.entry.job
    facts = footer(
        Facts(
            endpoint=entry.provider,
            status=job.status,
            queue=job.delay_time,
            run=job.execution_time,
            cost=record.cost,
            notes=tuple(filter(None, (job.id, entry.notebook, *entry.notes))),
        )
    )
    return f"{record.submitted_at:%Y-%m-%d %H:%M:%S} UTC · {facts}"


def _rest(record: Record, shown: Sequence[Medium]) -> str | None:
    """The output beside its pictures, sound and film, as text."""
    if not shown:
        return record.text
    value = record.final.value
    return as_json(_without_media(value)) if isinstance(value, dict) else None


def _without_media(value: Any) -> Any:
    if isinstance(value, str):
        found = media(value)
        return str(found[0]) if found else value
    if isinstance(value, dict):
        return {key: _without_media(item) for key, item in value.items()}
    return [_without_media(item) for item in value] if isinstance(value, list) else value


def _count(jobs: int) -> str:
    return f"{jobs} job{'' if jobs == 1 else 's'}"
