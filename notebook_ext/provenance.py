"""Where an output comes from, for its metadata in the saved notebook."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

from notebook_ext.keys import looks_like_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from notebook_ext.handle import JobHandle

__all__ = ["provenance"]

SHORT = 80
"""Characters up to which a word in the input counts as a parameter."""
_WORD = re.compile(f"[!-~]{{0,{SHORT}}}")  # ASCII: many a language writes a whole prompt without a blank
_PRIVATE = re.compile("key|token(?!s)|secret|passw|pwd?|bearer|auth|access|credential", re.IGNORECASE)
_PROMPTS = frozenset({"prompt", "system", "messages", "text", "content"})


def provenance(handle: JobHandle) -> dict[str, Any]:
    """An output's metadata: the job, its endpoint, its parameters, and the hash of what was asked.

    The prompt itself is not in it: it stands in the cell.
    """
    asked = dt.datetime.fromtimestamp(handle.submitted_at, dt.UTC)
    return {
        "notebook_ext": {
            "number": handle.number,
            "job_id": handle.id,
            "endpoint": handle.endpoint,
            "operation": handle.operation,
            "profile": handle.profile,
            "status": str(handle.status),
            "submitted_at": asked.isoformat(timespec="seconds"),
            "parameters": _parameters(handle.input) if isinstance(handle.input, dict) else {},
            "body_sha256": handle.body_hash,
        }
    }


def _parameters(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers, switches and single words of an input, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in _PROMPTS or _PRIVATE.search(str(name)):
            continue
        if isinstance(value, dict):
            found.update(_parameters(value, f"{prefix}{name}."))
        elif _is_short(value):
            found[f"{prefix}{name}"] = value
    return found


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None and not looks_like_key(value)
    return isinstance(value, (bool, int, float))
