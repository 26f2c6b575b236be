"""Outputs, errors and remarks as mime bundles: pure, and without IPython.

Every bundle has text/plain. What an endpoint said passes through `inert` as Markdown, or is escaped as HTML;
HTML of ours needs no script, and takes its colours from the front end's own variables.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from notebook_ext import excerpts

__all__ = [
    "FORMATS",
    "NO_OUTPUT",
    "Bundle",
    "aligned",
    "duration",
    "error",
    "inert",
    "left_out",
    "lines",
    "markdown",
    "no_output",
    "note",
    "outputs",
]

Bundle = dict[str, Any]

FORMATS = (
    "auto",
    "markdown",
    "text",
    "json",
    "table",
    "code",
    "image",
    "audio",
    "video",
    "html",
    "raw",
    "none",
)
NO_OUTPUT = (
    "COMPLETED without output: the handler returned nothing, or the result was over the provider's size "
    "limit (10 MB run / 20 MB runsync) and was dropped"
)

_TABLE_ROWS = 100
_SAMPLE = 1_000
"""Items of a list by which all of it is judged: looking at each of a million takes seconds."""
_GREY = "color:var(--jp-ui-font-color2, #666);font-size:var(--jp-ui-font-size1, 13px)"
_DATA_URL = re.compile(r"data:(?:image|audio|video)/[\w.+-]+(?:;[\w=.-]+)*;base64,", re.IGNORECASE)
_LINK = re.compile(r"https?://[^\s<>\"'`$\\]+", re.IGNORECASE)
_MARKUP = re.compile(r"[\\`*_\[\]<>|$~&#@!:\"]")
_MAGIC = (
    ("image/png", rb"\x89PNG\r\n\x1a\n"),
    ("image/jpeg", rb"\xff\xd8\xff"),
    ("image/gif", rb"GIF8[79]a"),
    ("image/webp", rb"RIFF....WEBP"),
    ("audio/wav", rb"RIFF....WAVE"),
    ("audio/flac", rb"fLaC"),
    ("audio/ogg", rb"OggS"),
    ("audio/mp4", rb"....ftypM4A"),
    ("video/mp4", rb"....ftyp"),
    ("video/webm", rb"\x1aE\xdf\xa3"),
    ("audio/mpeg", rb"ID3|\xff[\xfb\xf3\xf2]"),
)
_HEAD = 1_000
"""Characters in which those stand that tell what base64 holds, whatever blanks are between them."""
_ENDINGS = {("audio", "mpeg"): "mp3", ("audio", "mp4"): "m4a"}


# Text and figures


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def inert(markdown: str) -> str:
    """Text from an endpoint, safe to show as Markdown; see `notebook_ext.inert`."""
    from notebook_ext import inert as module  # late: its patterns take milliseconds to compile

    return module.inert(markdown)


def markdown(text: str) -> Bundle:
    """Text from an endpoint as Markdown that cannot do anything but be read."""
    return {"text/markdown": inert(text), "text/plain": text}


def no_output() -> Bundle:
    """What to show for a COMPLETED job whose answer carried no output at all."""
    return note(NO_OUTPUT)


def note(text: str) -> Bundle:
    """A small grey line of ours."""
    return {"text/html": f'<div style="{_GREY}">{html.escape(text)}</div>', "text/plain": text}


def left_out(number: int, what: str, ending: str = "") -> Bundle:
    """What stands for the part of an output that is not shown.

    Args:
        number: The job's.
        what: How much it is, in words.
        ending: The last lines of the output.
    """
    text = f"… {what}: `%endpoint export @{number} output.txt` writes the whole"
    if not ending:
        return note(text)
    said = note(f"{text}. It ends:")
    last = lines(ending, "var(--jp-ui-font-color2, #666)")
    return {mime: f"{said[mime]}\n{last[mime]}" for mime in said}


def lines(text: str, color: str) -> Bundle:
    """Text of ours in one colour, its lines as they are."""
    style = f"white-space:pre-wrap;margin:0;color:{color}"
    return {"text/html": f'<pre style="{style}">{html.escape(text)}</pre>', "text/plain": text}


def error(error: Exception) -> Bundle:
    """What went wrong, where nothing is raised: for a job in the background, or one that is shown again."""
    return lines(f"{type(error).__name__}: {error}", "var(--jp-error-color1, #c62828)")


# Outputs


def outputs(value: Any, format: str = "auto", *, number: int | None = None) -> list[Bundle]:
    """Draw a job's output, several bundles where it holds several pictures.

    Args:
        value: Any JSON value.
        format: One of `FORMATS`. "auto" decides from the output's own shape, and never yields raw HTML;
            "html" shows the endpoint's HTML as it came, which the front end may run.
        number: The job's; with it, what is too large for a notebook is left out, and what stands there
            instead says how all of it is had. Pictures, sound, film and HTML that are asked for by
            name are shown whatever their size.

    Raises:
        ValueError: The value cannot be shown in this format, or there is no such format.
    """
    if format == "auto":
        return _auto(value, number)
    if format == "none":
        return []
    if format == "json":
        return _json(value, number)
    if format == "raw":
        return _text(repr(value), number, _plain)
    if format in ("image", "audio", "video"):
        return _media_only(value, format)
    if format == "table":
        if not _is_table(value):
            raise ValueError(f"-f table needs a list of flat objects; this output is {_what(value)}")
        return _table(value, number)
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}; there are {', '.join(FORMATS)}")
    if not isinstance(value, str):
        raise ValueError(f"-f {format} needs text; this output is {_what(value)}")  # noqa: TRY004 - see Raises
    return _text_as(value, format, number)


def _text_as(text: str, format: str, number: int | None) -> list[Bundle]:
    if format == "html":
        return [{"text/html": text, "text/plain": text}]
    return _text(text, number, {"markdown": markdown, "code": _code}.get(format, _plain))


def _text(text: str, number: int | None, draw: Callable[[str], Bundle]) -> list[Bundle]:
    """Text as a bundle; of a long one its beginning, and what stands for the rest."""
    if number is None:
        return [draw(text)]
    cut = excerpts.Beginning()
    shown = [draw(cut.take(text))]
    if cut.is_cut:
        shown.append(left_out(number, f"{excerpts.in_words(cut.left_out)} more", cut.ending))
    return shown


def _plain(text: str) -> Bundle:
    return {"text/plain": text}


def _code(text: str, language: str = "") -> Bundle:
    return {"text/markdown": inert(_fenced(text, language)), "text/plain": text}


def _auto(value: Any, number: int | None) -> list[Bundle]:
    media = list(_media(value)) if _may_have_media(value) else []
    if media:
        return [*_fitting(media, number), *_rest(value, number)]
    if isinstance(value, str):
        return _json_text(value, number) or _text(value, number, markdown)
    return _table(value, number) if _is_table(value) else _json(value, number)


def _json_text(text: str, number: int | None) -> list[Bundle] | None:
    """A string that is one JSON object or list, laid out; None where it is not."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return _json(json.loads(text), number)
    except (ValueError, RecursionError):
        return None


def _json(value: Any, number: int | None) -> list[Bundle]:
    text = _laid_out(value, None if number is None else excerpts.TEXT)
    shown = text if number is None else excerpts.beginning(text)
    bundle = _code(shown, "json")
    if number is None or shown is text:
        return [bundle]
    return [bundle, left_out(number, f"and more, {excerpts.in_words(_json_size(value))} of JSON in all")]


def _laid_out(value: Any, most: int | None) -> str:
    """A value as JSON over several lines; where `most` is given, no more than some characters beyond it."""
    found: list[str] = []
    length = 0
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
            found.append(part)
            length += len(part)
            if most is not None and length > most:
                break
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return "".join(found)


def _json_size(value: Any) -> int:
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return len(repr(value))


def _fenced(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _what(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, Mapping):
        return "an object with " + (", ".join(str(key)[:40] for key in list(value)[:6]) or "nothing in it")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]}"


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(row, Mapping)
            and row
            and not any(isinstance(cell, (Mapping, list)) for cell in row.values())
            for row in value[:_SAMPLE]
        )
    )


def _table(rows: Sequence[Mapping[str, Any]], number: int | None) -> list[Bundle]:
    columns = list(dict.fromkeys(str(key) for row in rows[:_SAMPLE] for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows[:_TABLE_ROWS]]
    lines = [columns, *cells]
    if number is not None and sum(len(cell) for line in lines for cell in line) > excerpts.TEXT:
        return _json(rows, number)
    marked = ["| " + " | ".join(_literal(cell) for cell in line) + " |" for line in lines]
    marked.insert(1, "|" + " --- |" * len(columns))
    more = f"{len(rows) - _TABLE_ROWS} more rows" if len(rows) > _TABLE_ROWS else ""
    if more and number is not None:
        return [*_table(rows[:_TABLE_ROWS], number), left_out(number, more)]
    return [
        {
            "text/markdown": inert("\n".join(marked) + (f"\n\n… {more}" if more else "")),
            "text/plain": aligned(lines) + (f"\n… {more}" if more else ""),
        }
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, default=repr)


def _literal(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKUP.sub(lambda mark: f"&#{ord(mark[0])};", text)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, as text."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


# Pictures, sound, film


def _media_only(value: Any, kind: str) -> list[Bundle]:
    found = list(_media(value, kind))
    if not found:
        raise ValueError(f"-f {kind} found no {kind} in this output, which is {_what(value)}")
    return found


def _may_have_media(value: Any) -> bool:
    return not isinstance(value, list) or any(True for _ in _media(value[:_SAMPLE]))


def _media(value: Any, kind: str | None = None) -> Iterator[Bundle]:
    """Bundles for the pictures, sound and film of the usual worker shapes; links for addresses."""
    if isinstance(value, str):
        bundle = _medium(value, kind or ("" if _DATA_URL.match(value) else "image"))
        if bundle:
            yield bundle
        return
    if isinstance(value, list) and all(isinstance(item, (str, Mapping)) for item in value):
        for item in value:
            yield from _media(item, kind)
        return
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        words = str(key).lower().rstrip("s").split("_")
        named = next((name for name in ("image", "audio", "video") if name in words), None)
        if named is None and key == "data" and value.get("type") in ("base64", "s3_url"):
            named = "image"
        if isinstance(item, str) and (named or key == "s3_url") and _LINK.fullmatch(item):
            yield _link(str(value.get("filename") or key), item)
        elif named and kind in (None, named):
            yield from _named(item, named)


def _named(item: Any, kind: str) -> Iterator[Bundle]:
    if isinstance(item, str):
        bundle = _medium(item, kind)
        if bundle:
            yield bundle
    elif isinstance(item, (list, Mapping)):
        for part in item if isinstance(item, list) else [item]:
            yield from _named(part, kind) if isinstance(part, str) else _media(part, kind)


def _medium(text: str, kind: str) -> Bundle | None:
    """A bundle for base64 (with or without `data:...,` before it) whose first bytes are of this kind."""
    prefix = _DATA_URL.match(text)
    start = prefix.end() if prefix else 0
    mime = _mime("".join(text[start : start + _HEAD].split()))
    if mime is None or not mime.startswith(kind):
        return None
    data = "".join(text[start:].split())
    if re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", data) is None:
        return None
    plain = f"{mime}, {excerpts.in_words(len(data) * 3 // 4)}"
    if mime.startswith("image/"):
        return {mime: data, "text/plain": plain}
    tag = mime.partition("/")[0]
    return {
        "text/html": f'<{tag} controls style="max-width:100%" src="data:{mime};base64,{data}"></{tag}>',
        "text/plain": plain,
    }


def _mime(data: str) -> str | None:
    """What base64 holds, by its first bytes."""
    try:
        head = base64.b64decode(data[:32], validate=True)
    except (binascii.Error, ValueError):
        return None
    return next((mime for mime, magic in _MAGIC if re.match(magic, head, re.DOTALL)), None)


def _fitting(bundles: Iterable[Bundle], number: int | None) -> Iterator[Bundle]:
    """Pictures, sound and film, as many as a notebook should hold; of the others, how they are had."""
    room = excerpts.MEDIA
    for bundle in bundles:
        taken = sum(map(len, bundle.values()))
        if number is None or taken <= room:
            room -= taken
            yield bundle
        else:
            kind, _, subtype = bundle["text/plain"].partition(",")[0].partition("/")
            yield note(
                f"{bundle['text/plain']}, is not put into the notebook: `%endpoint export @{number} "
                f"output.{_ENDINGS.get((kind, subtype), subtype)}` writes it to a file, "
                f"`%endpoint show @{number} -f {kind}` shows it here"
            )


def _link(name: str, address: str) -> Bundle:
    return {"text/markdown": inert(f"{_literal(name)}: <{address}>"), "text/plain": f"{name}: {address}"}


def _rest(value: Any, number: int | None) -> list[Bundle]:
    """What stood beside the pictures, as worker-comfyui's `errors`."""
    if not isinstance(value, Mapping):
        return []
    rest = {key: item for key, item in value.items() if key not in ("filename", "type")}
    kind = value.get("type")
    rest = {key: item for key, item in rest.items() if not list(_media({key: item, "type": kind}))}
    return _json(rest, number) if rest else []
