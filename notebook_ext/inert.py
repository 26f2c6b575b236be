"""Untrusted text made inert: Markdown from an endpoint, safe to show in a notebook.

JupyterLab does not sanitise the Markdown of a cell that has run, and every front end reads Markdown a
little differently: what one takes for code is live HTML to another (marked lets a ``~~`` strike through a
backtick; JupyterLab cuts formulas out before it looks for fences, and pastes them back into finished
attributes). So `inert` does not follow one parser. It leaves `<` alone only in code that all of them read as
code, and elsewhere takes the spark out of what could be a tag, changing nothing that is seen.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["inert"]

# A character without width: it parts `<` from a tag's name, shows nothing in text, code and formulas alike.
_NOTHING = "\u200b"
_SAFE_SCHEMES = frozenset({"http", "https", "mailto", "ftp"})
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<run>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)")
# A fence in a quote, after list markers, or of a shape that only some parsers close.
_FENCE_LIKE = re.compile(r"(?:[\s>*+\-\[\]xX]|\d{1,9}[.)])*[`~]{3}")
_INLINE_ON_A_LINE = re.compile(r" {0,3}`{3,}[^`]+`")
_QUOTED = re.compile(r" {0,3}>")
_TEX = re.compile(r"\$\$|\\\\[()\[\]]|\\(?:begin|end)\{")
_TAG = re.compile(
    r"(?P<link><(?:https?://[\w./?#=&%+:,;!*~-]+|(?:mailto:)?[\w.+-]+@\w[\w.-]*)>)"
    # At the start of a line mistune takes any of these for a block of HTML.
    r"|(?P<head>(?:^|(?<=\r))[ \t\v\f>*+\-\d.)\[\]xX]*)<(?=[A-Za-z])"
    r"|<(?=[!?/]"
    r"|[A-Za-z][\w:.+-]*(?:[\s\x00-\x20/>:\ufeff]|\Z)"
    r"|[\w.!#$%&'*+/=?^`{|}~-]+@)",
    re.MULTILINE,
)
_ODD_TEX = re.compile(r"\\\$\$|\$\$\$|\\\\\\[\[\]]")
_TEX_PAIRS = (("$$", "$$"), ("\\\\[", "\\\\]"), ("\\begin{", "\\end{"))
_DESTINATION = re.compile(r"\](?=\(\s*(?:<(?P<angle>[^>\n]{0,300})|(?P<bare>[^\s)]{0,300})))")
_UNDERLINE = re.compile(r"\s*(?:=+|-+)\s*")
_IMAGE = re.compile(r"!\[[^\[\]\"\r\n]*\]\([^\s()\"]*(?: \"[^\"\r\n]*\")?\)")
_DEFINITION = re.compile(
    r" {0,3}\[[\w .,/+#-]+\]: https?://[\w./?#=&%+~:,;!*-]+(?: \"[^\"\\$@`<]*\")?[ ]*[\r\n]*(?!.)"
)
_TITLE = re.compile(r"[ \t]*[\"'(]")
_LINKISH = re.compile(r"\]|://|www\.|`{3}|~{3}", re.IGNORECASE)
_ADDRESS = re.compile(r"://|www\.|@", re.IGNORECASE)
_TOKENS = re.compile(r"`[^`\r\n]*`|[\[\]()`]")


def inert(markdown: str) -> str:
    """Make text from an endpoint safe to show as Markdown in a notebook, however it was cut.

    Raw HTML shows as it was typed, links and pictures keep only http, https, mailto, ftp and relative
    addresses; code, formulas, tables and everything else stay as they are. Linear in the text's length.

    Args:
        markdown: Any text, also half of a document.
    """
    if not any(mark in markdown for mark in "<[$\\"):
        return markdown
    return "".join(text if code else _defuse(text, murky) for text, code, murky in _parts(markdown))


def _parts(markdown: str) -> Iterator[tuple[str, bool, bool]]:
    """Split into (text, is code to every parser, whether parsers may disagree on what is code here)."""
    lines = _LINES.findall(markdown)
    underlined = _underlined(lines)
    block: list[str] = []
    closed_formulas = True  # nbconvert follows a display formula over blank lines and fences to its end
    masked = True  # JupyterLab protects `$` in fences only while every fence so far was closed to the letter
    at = 0
    while at < len(lines):
        line = lines[at]
        fence = _FENCE.match(line.rstrip("\r\n"))
        if fence is None:
            if _FENCE_LIKE.match(line) and not (_INLINE_ON_A_LINE.match(line) or _QUOTED.match(line)):
                break
            block.append(line)
            at += 1
            if not line.strip():
                closed_formulas = closed_formulas and _closes_formulas(block)
                yield "".join(block), False, False
                block = []
            continue
        end, closed = _fence_end(lines, at, fence)
        exact = closed and lines[end - 1].rstrip("\r\n") == fence["run"]
        masked = masked and (exact or bool(fence["indent"])) and fence["run"][0] == "`"
        closed_formulas = closed_formulas and _closes_formulas(block)
        if not closed_formulas or (block and underlined[at]):  # marked 9 reads a heading with code in it
            break
        if not _is_plain(lines[at : end - closed], fence, dollars=masked and exact):
            break
        yield "".join(block), False, False
        block = []
        # Indented so far it may be a paragraph; and nbconvert pastes diagrams in as they are.
        doubtful = len(fence["indent"]) > 3 or fence["info"].strip().lower().startswith("mermaid")
        yield "".join(lines[at:end]), not doubtful, doubtful
        at = end
    else:
        yield "".join(block), False, False
        return
    yield from ((text, False, True) for text in _blocks([*block, *lines[at:]]))


def _blocks(lines: list[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        block.append(line)
        if not line.strip():
            yield "".join(block)
            block = []
    yield "".join(block)


def _underlined(lines: list[str]) -> list[bool]:
    """For each line, whether an underline as of a heading follows before the next blank line."""
    found = [False] * (len(lines) + 1)
    for at in range(len(lines) - 1, -1, -1):
        found[at] = bool(lines[at].strip()) and (found[at + 1] or _UNDERLINE.fullmatch(lines[at]) is not None)
    return found


def _closes_formulas(block: list[str]) -> bool:
    """Whether each display formula in a block ends in it: on its own line, or as the whole block."""
    text = "".join(block).strip()
    if not _TEX.search(text):
        return True
    if _ODD_TEX.search(text):
        return False
    if all(_balance(line) for line in block):
        return True
    return _balance(text) and any(
        text.startswith(opening) and text.count(opening) == (2 if opening == closing else 1)
        for opening, closing in _TEX_PAIRS
    )


def _balance(text: str) -> bool:
    return text.count("$$") % 2 == 0 and all(
        text.count(opening) == text.count(closing) for opening, closing in _TEX_PAIRS if opening != closing
    )


def _fence_end(lines: list[str], start: int, fence: re.Match[str]) -> tuple[int, bool]:
    """The line after the fence's closing line, and whether there is one; else the end of the text."""
    close = re.compile(re.escape(fence["indent"]) + re.escape(fence["run"]) + fence["run"][0] + "* *")
    for at in range(start + 1, len(lines)):
        if close.fullmatch(lines[at].rstrip("\r\n")):
            return at + 1, True
    return len(lines), False


def _is_plain(lines: list[str], fence: re.Match[str], *, dollars: bool) -> bool:
    """Whether all parsers agree where this fence ends: nothing in it could end it early, or hide its end.

    Args:
        lines: The fence without its closing line.
        fence: Its opening.
        dollars: Whether JupyterLab takes no `$` in it for a formula.
    """
    body = "".join(lines)
    if "\t" in fence["indent"] or re.search(r"[$\\@\"<&|]", fence["info"]) or _TEX.search(body):
        return False
    if "$" in body and not dollars:
        return False
    inner = lines[1:]
    return all(
        not line.strip() or (line.startswith(fence["indent"]) and not _FENCE_LIKE.match(line))
        for line in inner
    )


def _defuse(block: str, murky: bool) -> str:
    """Take the spark out of one block: text between blank lines, outside trusted code."""
    block = block.replace("\\@", f"\\{_NOTHING}@")  # could become JupyterLab's mark for a formula, `@@0@@`
    formulas = block.count("$") > 1 or "\\" in block
    # A formula in an address is pasted into the attribute unescaped; marked 16 forgets to escape `alt`.
    if '"' in block and ((formulas and _LINKISH.search(block)) or "![" in _IMAGE.sub("", block)):
        block = block.replace('"', "”")
    if "]" in block:
        block = _part_links(block)
    if not any(found["link"] is None for found in _TAG.finditer(block)):
        return block
    if murky or formulas or re.search(r"(?m)^(?: {4}| *\t|\s*>)", block):
        return _TAG.sub(_part_tag, block)
    spans = [] if "`" not in block else _code_spans(block)
    if spans is None:
        return _TAG.sub(_part_tag, block)
    pieces, at = [], 0
    for start, end in [*spans, (len(block), len(block))]:
        pieces += [_TAG.sub(_escape_tag, block[at:start]), block[start:end]]
        at = end
    return "".join(pieces)


def _part_tag(tag: re.Match[str]) -> str:
    return tag["link"] or f"{tag['head'] or ''}<{_NOTHING}"


def _escape_tag(tag: re.Match[str]) -> str:
    return tag["link"] or f"{tag['head'] or ''}&lt;"


def _part_links(block: str) -> str:
    """Make links to anything but safe addresses, and definitions that could hide text, plain text."""
    block = _DESTINATION.sub(
        lambda link: link[0] if _is_safe(link["angle"] or link["bare"] or "") else "]" + _NOTHING,
        block,
    )
    if "]:" not in block:
        return block
    lines = _LINES.findall(block)
    for at, line in enumerate(lines):
        title_follows = at + 1 < len(lines) and _TITLE.match(lines[at + 1])
        if "]:" in line and (title_follows or not _DEFINITION.fullmatch(line)):
            lines[at] = line.replace("]:", f"]{_NOTHING}:")
    return "".join(lines)


def _is_safe(address: str) -> bool:
    plain = unquote(html.unescape(html.unescape(address)))
    plain = re.sub(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060\ufeff\\]", "", plain)
    scheme = re.match(r"<?(?P<name>[^/?#:]*)(?P<end>.?)", plain.lower(), re.DOTALL)
    if scheme is None or scheme["end"] == "":
        return len(address) < 300
    return scheme["end"] != ":" or scheme["name"] in _SAFE_SCHEMES


def _has_code_in_address(block: str) -> bool:
    """Whether a bare address runs into a backtick, which then belongs to it and opens no code."""
    return any("`" in word and _ADDRESS.search(word) for word in block.split())


def _code_spans(block: str) -> list[tuple[int, int]] | None:
    """Where the inline code is, or None where parsers might not agree about it."""
    if "``" in block or "~" in block or "\\" in block or _has_code_in_address(block):
        return None
    spans: list[tuple[int, int]] = []
    brackets, destination, last = 0, False, ""
    for token in _TOKENS.finditer(block):
        mark = token[0]
        if len(mark) > 1:
            if brackets or destination or "|" in mark or "$" in mark:
                return None
            spans.append(token.span())
        elif mark == "`":
            return None
        elif mark == "[":
            brackets += 1
        elif mark == "]":
            brackets = max(0, brackets - 1)
        elif mark == "(":
            destination = destination or (last == "]" and block[token.start() - 1] == "]")
        else:
            destination = False
        last = mark
    return spans
