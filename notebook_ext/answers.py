"""What an HTTP answer says beside its document: that it was turned away, for how long, in which words."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from notebook_ext.types import whole_text

if TYPE_CHECKING:
    import httpx

__all__ = ["excerpt", "is_refusal", "retry_after", "without_key"]

LONGEST_RETRY_AFTER, LONGEST_BY_OUR_CLOCK = 3600.0, 60.0
"""Seconds that an answer may ask to wait; and those that a date may, where the server does not tell its
own clock: ours may be wrong."""
SHORTEST_SECRET = 16
"""Characters: a shorter key is a local server's "test" or "none", and is part of many a text."""

_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def is_refusal(response: httpx.Response) -> bool:
    """Whether the server says that it has not done what it was asked, and can be asked again.

    A 503 means that only where it says when: a proxy gives plain ones for answers that it has lost.
    """
    code = response.status_code
    return code in (425, 429) or (code == 503 and "retry-after" in response.headers)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that it asks to wait, from either form of the header; None where there are none.

    A date counts from the server's own clock, where it tells that.
    """
    said = response.headers.get("retry-after", "")
    longest = LONGEST_RETRY_AFTER
    try:
        seconds = float(said)
    except ValueError:
        ends, now = _date(said), _date(response.headers.get("date", ""))
        if ends is None:
            return None
        if now is None:
            now, longest = time.time(), LONGEST_BY_OUR_CLOCK
        seconds = ends - now
    return min(seconds, longest) if seconds > 0 else None


def _date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def without_key(content: bytes, key: str | None) -> bytes:
    """An answer in which the server's echo of the key is blotted out: outputs are saved in notebooks.

    JSON has more than one spelling of a text, so that a key with a `/` or a `+` may come escaped.
    """
    if key is None or len(key) < SHORTEST_SECRET:
        return content
    content = content.replace(key.encode(), b"[key]")
    escaped = _escapes(key)
    if b"\\" not in content or not escaped.search(content):
        return content
    plain = escaped.sub(_plain, content)
    spelled = json.dumps(key)[1:-1].encode()
    return plain.replace(spelled, b"[key]") if spelled in plain else content


def _escapes(key: str) -> re.Pattern[bytes]:
    """The other ways in which JSON may spell the characters of a key."""
    codes = "|".join(sorted({f"{ord(character):02x}" for character in key}))
    slash = "/|" if "/" in key else ""
    return re.compile(rf"\\(?:{slash}\\|u00({codes}))".encode(), re.IGNORECASE)


def _plain(match: re.Match[bytes]) -> bytes:
    """One escape as the character that it stands for, where that may stand in JSON as it is."""
    if match[1] is None:
        return b"/" if match[0] == b"\\/" else match[0]
    return json.dumps(chr(int(match[1], 16)))[1:-1].encode()


def excerpt(response: httpx.Response, key: str | None, length: int = 200) -> str:
    """What an error's body says, as one short line: JSON's own message, or a page's text, never the key."""
    text = without_key(response.content, key).decode(errors="replace")  # whatever charset it claims
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
        if isinstance(document, Mapping):
            told = (document.get(name) for name in ("error", "message", "detail"))
            text = ": ".join(_message(part) for part in told if part) or text
    if key:
        text = text.replace(key, "[key]")
    text = text[:4_000]  # a page's text comes early, and cleaning a huge one would hold everything up
    if "<" in text:
        text = _TAGS.sub(" ", text)
    text = " ".join(whole_text(text).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _message(error: Any) -> str:
    """OpenAI's errors are objects, with their words in one of the fields."""
    return str(error.get("message") or dict(error) if isinstance(error, Mapping) else error)
