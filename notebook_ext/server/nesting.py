"""How deep a JSON document may go, so that whatever came in can be copied and written out again."""

from __future__ import annotations

from typing import Any

__all__ = ["DEPTH_LIMIT", "is_too_deep"]

DEPTH_LIMIT = 200
"""Levels of lists and objects. Python gives up at some hundreds: where, depends on what is on the stack."""


def is_too_deep(document: Any, brackets: int) -> bool:
    """Whether it has more levels than are allowed.

    Args:
        document: What was parsed.
        brackets: How many `[` and `{` its text has: most texts have too few to be looked into.
    """
    if brackets <= DEPTH_LIMIT:
        return False
    level = [document]
    for _ in range(DEPTH_LIMIT):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
