"""Untrusted text for a terminal."""

from __future__ import annotations

__all__ = ["visible"]

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_ESCAPES = (0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
_VISIBLE = _PICTURES | {code: f"\\u{code:04x}" for code in _ESCAPES}


def visible(text: str) -> str:
    """The same text with control and direction characters shown, so that no terminal obeys them."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)
