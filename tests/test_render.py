"""What is shown: untrusted text stays text, and every shape of output gets a bundle."""

import base64
import html.parser
import io
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbconvert.filters import markdown2html
from PIL import Image
from xss_payloads import PAYLOADS

from notebook_ext import render
from notebook_ext.render import duration, inert, outputs

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
PARSER.validateLink = lambda url: True  # it must not do our work for us

BENIGN = {
    "comparison": "a < b && c > d, 1<2, x <- y, R&D, AT&T; &amp; &lt;\n",
    "formulas": "Let $a<b$ and $$x<y$$, \\(p\\) and \\[q\\] or\n\n$$\n\\frac{a}{b} < c\n$$\n\nthen \\\\(z<w\\\\).\n",
    "environment": "\\begin{align}\na &< b \\\\\nc &> d\n\\end{align}\n",
    "html in a fence": 'Text:\n```html\n<div onclick="f()">\n  <img src=x>\n</div>\n```\nmore <- text\n',
    "dollars in a fence": "Run\n\n```php\n<?php echo $a; ?> <b>$b</b>\n```\n\nfor $5 or $6.\n",
    "fence in a list": "1. First:\n   ```html\n   <div>\n   ```\n2. Second\n",
    "tilde fence": "~~~\n<b>\n~~~\n",
    "open fence": "```html\n<div>\n<p",
    "inline code": "Use `<div>` and `<br/>`, not `x`.\n",
    "deep list": "- a\n  - b\n    - c\n\n      more\n",
    "quotes": "> a\n> > b\n>\n> c < d\n",
    "table": "| a | b |\n|---|:-:|\n| 1 | `x` |\n| **b** | $c<d$ |\n",
    "links": '[a](https://x.test/p?q=1&r=2 "title") ![i](pic.png) <https://x.test> <me@x.test> [r][1] www.x.test\n\n[1]: https://x.test\n',
    "task list": "- [x] done\n- [ ] not: see arr[0]\n",
    "emphasis": "**bold** _it_ ~~gone~~ ***both*** \\*not\\*\n\n---\n\n# Head\n\nOther\n=====\n",
    "generics": "A `List<String>` and\n\n```cpp\n#include <vector>\nstd::vector<int> v;\n```\n",
    "carriage returns": "a\r\nb < c\r\n\r\n```\r\n<b>\r\n```\r\n",
}


class Live(html.parser.HTMLParser):
    """Collects whatever a rendered page has that Markdown alone cannot make."""

    TAGS = frozenset(
        "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong del s a img table thead tbody tr th td div span".split()  # noqa: SIM905 - a list of 29 would hide the page
    )

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in self.TAGS:
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.found.append((tag, name))
            if name in ("href", "src") and (value or "").strip().lower().startswith(
                ("javascript", "vbscript", "data")
            ):
                self.found.append((tag, value))

    def handle_comment(self, data):
        self.found.append(("comment", data))


def raw_html(text):
    tokens = PARSER.parse(text)
    tokens += [child for token in tokens for child in token.children or ()]
    return [token.content for token in tokens if token.type in ("html_block", "html_inline")]


@pytest.mark.parametrize("text", BENIGN.values(), ids=BENIGN)
def test_ordinary_text_is_left_as_it_is(text):
    assert inert(text) == text


def test_the_payloads_are_live_where_nothing_is_done():
    """Else the tests below would prove nothing."""
    alive = [name for name, text in PAYLOADS if raw_html(text) or Live(PARSER.render(text)).found]
    assert len(PAYLOADS) >= 60
    assert len(alive) >= 60


@pytest.mark.parametrize("text", [text for _, text in PAYLOADS], ids=[name for name, _ in PAYLOADS])
def test_every_prefix_of_a_payload_is_inert(text):
    for end in range(len(text) + 1):
        safe = inert(text[:end])
        assert raw_html(safe) == []
        assert Live(PARSER.render(safe)).found == []
        assert inert(safe) == safe


@pytest.mark.parametrize("text", [text for _, text in PAYLOADS], ids=[name for name, _ in PAYLOADS])
def test_payloads_are_inert_in_nbconvert(text):
    assert Live(markdown2html(inert(text))).found == []


def test_html_shows_as_it_was_typed():
    text = "write <b>bold</b> <!-- so -->"
    assert inert(text) == "write &lt;b>bold&lt;/b> &lt;!-- so -->"
    assert "&lt;b&gt;bold&lt;/b&gt; &lt;!-- so --&gt;" in PARSER.render(inert(text))


def test_where_code_is_doubtful_the_tag_is_parted_without_a_mark():
    assert inert("text\n    <b>x</b>\n") == "text\n    <\u200bb>x<\u200b/b>\n"


def test_a_formula_cannot_reach_into_an_attribute():
    """JupyterLab pastes formulas into the finished page, also into `src="..."`."""
    assert '"' not in inert('![a](http://x/$" onerror=alert(1) x="$)')


def test_a_link_to_a_script_becomes_text():
    assert "<a " not in PARSER.render(inert("[x](javascript:alert(1))"))
    assert '<a href="https://x.test">' in PARSER.render(inert("[x](https://x.test)"))


PIECES = st.sampled_from(
    [
        "<img src=x onerror=alert(1)>",
        "`",
        "``",
        "```",
        "~~~",
        "\n",
        "\n\n",
        " ",
        "    ",
        "- ",
        "> ",
        "1. ",
        "$",
        "$$",
        "\\",
        "\\\\[",
        "\\\\]",
        "\\begin{a}",
        "\\end{a}",
        "|",
        "[a]",
        "](",
        ")",
        "[a]: /x ",
        '"',
        "javascript:x",
        "<!--",
        "*",
        "@@0@@",
        *["a", "===", "\r", "\t", "<p", "http://x.y/", "~~", "<a@b.c>", "![", "mermaid", "&#106;"],
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
@example("- http://x.y/$$\n  ```\n`````<img src=x onerror=alert(1)>`")
@example("x\n```\n`<img src=x onerror=alert(1)>`\n-    \r")
@example("$\\\\[\t)\n```\n\n$|<img src=x onerror=alert(1)>\n```\n1. \\\\]")
def test_no_mixture_is_live(text):
    safe = inert(text)
    assert raw_html(safe) == []
    assert Live(PARSER.render(safe)).found == []
    assert Live(markdown2html(safe)).found == []
    assert inert(safe) == safe


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_raises(text):
    assert inert(inert(text)) == inert(text)


@pytest.mark.parametrize(
    "unit", ["<a", "](", "```\n", "\n", "x](java", "<x `a` ", ">\n", "a\n```\n```\n", "[a]: http://x\n"]
)
def test_time_grows_with_the_length_only(unit):
    def seconds(size):
        text = "<b>[" + unit * (size // len(unit))
        start = time.thread_time()
        inert(text)
        return time.thread_time() - start

    seconds(1000)
    short, long = (min(seconds(size) for _ in range(3)) for size in (10_000, 100_000))
    assert long < 60 * max(short, 1e-3)


# Bundles


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


PNG, JPEG = picture("PNG"), picture("JPEG")
WAV = base64.b64encode(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40)).decode()
MP4 = base64.b64encode(b"\x00\x00\x00\x18ftypmp42" + bytes(40)).decode()


@pytest.mark.parametrize(
    ("value", "mimes"),
    [
        ("**hi**", ["text/markdown"]),
        ('{"a": 1}', ["text/markdown"]),
        ({"a": {"b": 1}}, ["text/markdown"]),
        (3, ["text/markdown"]),
        ([{"a": 1}, {"b": None}], ["text/markdown"]),
        ({"image": PNG}, ["image/png"]),
        ({"images": [PNG, JPEG]}, ["image/png", "image/jpeg"]),
        ({"images": [{"filename": "a.png", "type": "base64", "data": PNG}]}, ["image/png"]),
        ({"images": [{"type": "base64", "data": PNG}], "errors": ["e"]}, ["image/png", "text/markdown"]),
        ({"images": [{"type": "s3_url", "data": "https://x.test/a.png"}]}, ["text/markdown"]),
        ({"image_url": "https://x.test/a.png"}, ["text/markdown"]),
        ([PNG, PNG], ["image/png", "image/png"]),
        (PNG, ["image/png"]),
        (picture("GIF"), ["image/gif"]),
        (picture("WEBP"), ["image/webp"]),
        ("data:image/jpeg;base64," + PNG, ["image/png"]),
        ({"audio": WAV}, ["text/html"]),
        ({"video_base64": MP4}, ["text/html"]),
        ("data:text/html;base64,PHNjcmlwdD4=", ["text/markdown"]),
        ("data:image/svg+xml;base64,PHN2Zz4=", ["text/markdown"]),
    ],
)
def test_auto_reads_the_shape(value, mimes):
    bundles = outputs(value)
    assert [next(iter(bundle)) for bundle in bundles] == mimes
    assert all(bundle["text/plain"] for bundle in bundles)


def test_pictures_are_the_bytes_that_came():
    (bundle,) = outputs({"image": "data:image/png;base64," + PNG[:20] + "\n" + PNG[20:]})
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size == (3, 2)
    assert bundle["text/plain"].startswith("image/png, ")


def test_sound_is_html_of_ours_around_checked_base64():
    (bundle,) = outputs(WAV, "audio")
    assert bundle["text/html"].startswith("<audio controls")
    with pytest.raises(ValueError, match="found no audio"):
        outputs(WAV[:-4] + '"><b', "audio")


@pytest.mark.parametrize("name", [name for name in render.FORMATS if name not in ("html", "none")])
@pytest.mark.parametrize(
    "value", ["<script>x</script>", {"a": "<script>x</script>"}, [{"a": "<img src=x onerror=f()>"}]]
)
def test_only_html_asked_for_by_name_is_html(name, value):
    try:
        bundles = outputs(value, name)
    except ValueError:
        bundles = []  # the sentences are tested below
    for bundle in bundles:
        assert "text/html" not in bundle
        assert Live(PARSER.render(bundle.get("text/markdown", ""))).found == []


def test_formats_by_name():
    assert outputs("<b>x</b>", "html") == [{"text/html": "<b>x</b>", "text/plain": "<b>x</b>"}]
    assert outputs("x", "none") == []
    assert outputs({"a": 1}, "raw") == [{"text/plain": "{'a': 1}"}]
    assert outputs("*x*", "text") == [{"text/plain": "*x*"}]
    (code,) = outputs("a ```` b", "code")
    assert code["text/markdown"] == "`````\na ```` b\n`````"
    (data,) = outputs({"a": "```"}, "json")
    assert json.loads(data["text/plain"]) == {"a": "```"}
    assert data["text/markdown"].startswith("````json\n")


@pytest.mark.parametrize(
    ("value", "name", "sentence"),
    [
        ({"a": 1}, "markdown", "-f markdown needs text; this output is an object with a"),
        ([1, 2], "table", "-f table needs a list of flat objects; this output is a list of 2"),
        ("hello", "image", "-f image found no image in this output, which is text of 5 characters"),
        (None, "code", "-f code needs text; this output is empty (null)"),
        ("x", "pdf", "There is no format 'pdf'"),
    ],
)
def test_a_format_that_does_not_fit_says_what_the_output_is(value, name, sentence):
    with pytest.raises(ValueError) as raised:
        outputs(value, name)
    assert str(raised.value).startswith(sentence)


def test_table_cells_are_literal_and_rows_are_counted():
    rows = [{"a|b": "x | *y*\nz", "n": n} for n in range(103)]
    (bundle,) = outputs(rows)
    page = PARSER.render(bundle["text/markdown"])
    assert "<th>a|b</th>" in page
    assert "<td>x | *y* z</td>" in page
    assert page.count("<tr>") == 101
    assert "3 more rows" in page
    assert bundle["text/plain"].splitlines()[1] == "x | *y* z  0"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (12, "12 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (-1, "0.0 s"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
