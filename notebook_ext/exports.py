"""Journaled jobs as files: tables, reports, and the raw output of one job.

| ending | what is in it |
|---|---|
| `.csv` `.parquet` | a row for each job, in the columns of `history -o` |
| `.json` `.jsonl` | all that is known of each job, its input and output as they are |
| `.md` `.html` | a report to read: prompt, output with its pictures, figures |
| `.txt`, and `.png` `.jpg` `.wav` `.mp4` and the like | the output of one job, as text or as bytes |

What an endpoint said is not trusted: it is escaped in reports, and in CSV an apostrophe stands
before what a spreadsheet would take for a formula.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from notebook_ext import reports
from notebook_ext.errors import EndpointError, InputError
from notebook_ext.records import COLUMNS, as_json, media

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from notebook_ext.records import Record

__all__ = ["Written", "frame", "place", "write", "write_text"]


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Args:
        paths: The files; several where one job made several pictures.
        size: Bytes.
    """

    paths: tuple[Path, ...]
    size: int


def write(records: Sequence[Record], path: Path, *, force: bool = False) -> Written:
    """Write jobs to a file; its ending says how. It is there whole, or not at all.

    Args:
        records: The jobs, at least one.
        path: The file.
        force: Replace a file that exists.

    Raises:
        InputError: The ending is not known, does not fit these jobs, or needs a library that is not there;
            or the file exists.
        EndpointError: It could not be written.
    """
    ending = path.suffix.lower()
    writer = _TABLES.get(ending)
    if writer is None and ending not in (".txt", *_MEDIA):
        raise InputError(
            f"the ending of '{path.name[-40:]}' says how a job is written, and is none of "
            f"{', '.join((*_TABLES, '.txt', *_MEDIA))}"
        )
    if path.exists() and not force:
        raise _exists(path)
    contents = [writer(records)] if writer is not None else _raw(records, ending)
    paths = [path] if len(contents) == 1 else list(_numbered(path, len(contents)))
    for each in paths:
        if each.exists() and not force:
            raise _exists(each)
    size = sum(place([content], each, force=force) for each, content in zip(paths, contents, strict=True))
    return Written(tuple(paths), size)


def write_text(pieces: Iterable[str], path: Path, *, force: bool = False) -> Written:
    """Write the text of one job, which need not be in memory as a whole; errors as of `write`.

    Args:
        pieces: The text.
        path: The file.
        force: Replace a file that exists.
    """
    if path.exists() and not force:
        raise _exists(path)
    return Written((path,), place(map(_encoded, pieces), path, force=force))


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame; a list of dicts where there is no pandas."""
    pandas = _library("pandas")
    return [dict(row) for row in rows] if pandas is None else pandas.DataFrame(rows, columns=COLUMNS)


# ---------------------------------------------------------------------------------- tables

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")


def _csv(records: Sequence[Record]) -> bytes:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    for record in records:
        row = record.row() | {"submitted_at": record.submitted_at.isoformat()}
        writer.writerow([_unformulated(cell) for cell in row.values()])
    return _encoded(lines.getvalue())


def _unformulated(cell: Any) -> Any:
    """A cell that no spreadsheet computes."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _jsonl(records: Sequence[Record]) -> bytes:
    lines = (json.dumps(record.document(), ensure_ascii=False) for record in records)
    # some readers end a line at these too
    return _encoded("".join(f"{_LINE_END.sub(_escaped, line)}\n" for line in lines))


_LINE_END = re.compile("[\x85\u2028\u2029]")


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def _json_file(records: Sequence[Record]) -> bytes:
    return _encoded(as_json([record.document() for record in records]) + "\n")


def _parquet(records: Sequence[Record]) -> bytes:
    rows = [record.row() for record in records]
    polars, pandas = _library("polars"), _library("pandas")
    file = io.BytesIO()
    if polars is not None:
        polars.DataFrame(rows, schema=_parquet_types(polars)).write_parquet(file)
        return file.getvalue()
    if pandas is not None:
        with contextlib.suppress(ImportError):  # it needs pyarrow or fastparquet for this
            pandas.DataFrame(rows, columns=COLUMNS).to_parquet(file, index=False)
            return file.getvalue()
    raise InputError(
        "a .parquet file is written by polars, or by pandas with pyarrow, and neither is installed here: "
        "`%pip install polars`, or export to .csv or .jsonl"
    )


def _parquet_types(polars: Any) -> dict[str, Any]:
    """Types of their own: a column may hold nothing but None."""
    others = {
        "number": polars.Int64,
        "submitted_at": polars.Datetime("us", "UTC"),
        **dict.fromkeys(("delay_time", "execution_time", "cost"), polars.Float64),
    }
    return {column: others.get(column, polars.String) for column in COLUMNS}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ---------------------------------------------------------------------------------- one job's output

_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".m4a": "audio/mp4",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}


def _raw(records: Sequence[Record], ending: str) -> list[bytes]:
    if len(records) != 1:
        raise InputError(
            f"a {ending} file takes the output of one job, and these are {len(records)}; "
            f"{', '.join(_TABLES)} take any number"
        )
    (record,) = records
    name = f"@{record.entry.number}"
    if record.text is None:
        raise InputError(f"{name} is {record.entry.job.status}, and has no output")
    if ending == ".txt":
        return [_encoded(record.text)]
    found = media(record.final.value)
    fitting = [medium.content for medium in found if medium.mime == _MEDIA[ending]]
    if not fitting:
        what = ", ".join(dict.fromkeys(medium.mime for medium in found)) or "no picture, sound or film"
        raise InputError(f"the output of {name} is {what}, and nothing for a {ending} file")
    return fitting


def _numbered(path: Path, count: int) -> Iterator[Path]:
    """`cat-1.png`, `cat-2.png` and so on."""
    for number in range(1, count + 1):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


# ---------------------------------------------------------------------------------- the file

_TABLES: Mapping[str, Callable[[Sequence[Record]], bytes]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json_file,
    ".parquet": _parquet,
    ".md": lambda records: _encoded(reports.markdown_report(records)),
    ".html": lambda records: _encoded(reports.html_report(records)),
}


def place(parts: Iterable[bytes], path: Path, *, force: bool) -> int:
    """Put a file where it belongs, in one step, so that nobody ever sees half of it.

    Args:
        parts: What is in it.
        path: Where it belongs.
        force: Replace what is there.

    Returns:
        Its bytes.

    Raises:
        InputError: There is one already, and it is not to be replaced.
        EndpointError: It could not be written.
    """
    path = path.resolve()  # a link stays one
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with unfinished.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            _move(unfinished, path, force=force)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise EndpointError(f"{path} could not be written: {error.strerror or error}") from error
    return size


def _move(unfinished: Path, path: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(unfinished, path)  # which refuses where there is a file by now
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError from None
        else:
            return
    unfinished.replace(path)


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists, and was not touched; --force replaces it")


def _encoded(text: str) -> bytes:
    # half a character, which no file can hold, becomes its escape: in JSON it is the same value then
    return text.encode("utf-8", "backslashreplace")
