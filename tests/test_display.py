"""Live text in a cell, drawn on a clock that only the tests move; and how a job's place ends."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from notebook_ext.blocks import MarkdownBlocks
from notebook_ext.cell import TerminalCell
from notebook_ext.display import (
    LONG_TEXT,
    NOTHING,
    JobDisplay,
    LiveMarkdown,
    TerminalDisplay,
    job_display,
)

ENVELOPE = 700  # bytes of a message before its content: header, parent, signature

# What a hard answer looks like: in 620 characters a heading, a list, code, and four formulas.
PART = """## Part {n}: the queue

The waiting time is $W_q = \\frac{{\\rho}}{{\\mu - \\lambda}}$ when arrivals are *random* and one worker
takes them in order; with $c$ workers it is shorter, as one would hope.

$$\\sum_{{k=0}}^{{\\infty}} \\rho^k = \\frac{{1}}{{1 - \\rho}}$$

- the first point, with `code` and a [link](https://example.org)
- the second point, where $\\rho < 1$ must hold

```python
def wait(rho, mu):
    # the blank line below belongs to the code

    return rho / (mu * (1 - rho))
```

Some words at the end of it all.

"""


def hard_text(length: int) -> str:
    text = "".join(PART.format(n=n) for n in range(length // 500 + 1))
    return text[:length]


class VirtualLoop:
    """A loop whose time goes on only when it is told to."""

    def __init__(self):
        self.now, self._due, self._number = 0.0, [], itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when, callback, *args):
        timer = VirtualTimer()
        heapq.heappush(self._due, (when, next(self._number), timer, callback, args))
        return timer

    def go_to(self, when: float) -> None:
        while self._due and self._due[0][0] <= when:
            self.now, _, timer, callback, args = heapq.heappop(self._due)
            if not timer.cancelled:
                callback(*args)
        self.now = when

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer, _, _ in self._due)


class VirtualTimer:
    cancelled = False

    def cancel(self):
        self.cancelled = True


class Screen:
    """A cell as a front end keeps it: messages in, outputs by display id, all of it counted."""

    is_terminal = False

    def __init__(self, loop=None):
        self.loop = loop or VirtualLoop()
        self.outputs: list[tuple[str | None, dict]] = []
        self.log: list[tuple[float, dict, bool]] = []
        self.bytes = self.most_outputs = 0
        self._clears = False

    def show(self, bundle, *, display_id=None, update=False, metadata=None):
        self.log.append((self.loop.time(), dict(bundle), update))
        self.bytes += ENVELOPE + len(json.dumps(bundle, ensure_ascii=False).encode())
        if update:
            assert display_id in [known for known, _ in self.outputs], (
                "an update of what is not there is lost"
            )
            self.outputs = [(known, bundle if known == display_id else old) for known, old in self.outputs]
            return
        if self._clears:
            self.outputs, self._clears = [], False
        self.outputs.append((display_id, bundle))
        self.most_outputs = max(self.most_outputs, len(self.outputs))

    def clear(self):
        self.bytes += ENVELOPE
        self._clears = True

    @property
    def bundles(self) -> list[dict]:
        return [bundle for _, bundle in self.outputs]

    @property
    def text(self) -> str:
        return "".join(bundle.get("text/markdown", "") for bundle in self.bundles)


class Strip:
    closed = False

    def _repr_mimebundle_(self):
        return {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "demo: running"}

    def close(self):
        self.closed = True


FOOTER = {"text/html": "<small>done</small>", "text/plain": "done"}


def streamed(text: str, chunks: int = 4_000, seconds: float = 20.0, **options) -> tuple[Screen, JobDisplay]:
    """Play a text to a job's display, and stop just before its end."""
    screen = Screen()
    display = JobDisplay(screen, screen.loop, **options)
    for n in range(chunks):
        screen.loop.go_to(n * seconds / chunks)
        display.add(text[n * len(text) // chunks : (n + 1) * len(text) // chunks])
    return screen, display


# ---------------------------------------------------------------------------------- where to cut


def blocks_of(text: str, pieces, least: float = 1) -> tuple[list[str], str]:
    blocks, found = MarkdownBlocks(), []
    for piece in pieces:
        blocks.add(piece)
        found.append(blocks.settle(least))
    return [block for block in found if block], blocks.tail


def in_pieces(text: str, cuts) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


LINES = st.sampled_from([
    "", "", "", "text", "# heading", "```", "```python", "````", "~~~", "~~~~ x", "    ```", "   ```", "  ~~~", "\t```",
    "- item", "- ```", "  code", "1. one", "   ```js", "  - nested", "    ```", "> quote", "> ```", "> - ```", ">", ">   ```",
    "* * *", "---", "a `` ` `` b", "``` not `a` fence", "| a | b |", "      deep", "10. ten", "    code", "+ ~~~", "-", "lazy",
])  # fmt: skip
DOCUMENTS = st.lists(LINES, max_size=30).map("\n".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@given(st.one_of(DOCUMENTS, st.text(), st.text("`~$ \n->a1.")), CUTS, st.integers(1, 50))
def test_blocks_and_tail_are_the_text(text, cuts, least):
    blocks, tail = blocks_of(text, in_pieces(text, cuts), least)
    assert "".join(blocks) + tail == text
    assert all(len(block) >= least for block in blocks)


@given(DOCUMENTS, CUTS)
def test_no_cut_is_inside_a_code_fence(text, cuts):
    blocks, _ = blocks_of(text, in_pieces(text, cuts))
    cut_lines, line = [], 0
    for block in blocks:
        line += block.count("\n")
        cut_lines.append(line)
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            first, end = token.map
            # The blank lines after a fence that its list or quote has ended count as its own.
            while end > first and not text.split("\n")[end - 1].strip():
                end -= 1
            assert not [cut for cut in cut_lines if first < cut < end], (text, blocks)


@given(
    st.lists(st.sampled_from(["words", "", "", "$$", "x $$y$$", "\\alpha", "`$$`", "\\$$"]), max_size=20).map(
        "\n".join
    )
)
def test_no_cut_is_inside_a_formula(text):
    blocks, _ = blocks_of(text, text)
    assert all(block.replace("`$$`", "").replace("\\$$", "").count("$$") % 2 == 0 for block in blocks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo\n\nthree", ["one\n\n", "two\n\n"]),
        ("one\n\n", []),  # what follows may belong to it
        ("- item\n\n  still the item\n\nout", ["- item\n\n  still the item\n\n"]),
        ("```\na\n\nb\n```\n\nout", ["```\na\n\nb\n```\n\n"]),
        ("````\na\n\n```\n\nb\n````\n\nout", ["````\na\n\n```\n\nb\n````\n\n"]),
        ("~~~\na\n\n```\n\nb\n~~~\n\nout", ["~~~\na\n\n```\n\nb\n~~~\n\n"]),
        ("- x\n  ```\n  a\n\n  b\n  ```\n\nout", ["- x\n  ```\n  a\n\n  b\n  ```\n\n"]),
        ("- ```\n  a\n\nout\n\nmore", ["- ```\n  a\n\n", "out\n\n"]),  # the item's end is the fence's
        ("> ```\n> a\n\nout\n\nmore", ["> ```\n> a\n\n", "out\n\n"]),
        ("$$\na\n\nb\n$$\n\nout", ["$$\na\n\nb\n$$\n\n"]),
        ("it costs `$$`\n\nout", ["it costs `$$`\n\n"]),
        ("    ```\n\nout\n\nmore", ["    ```\n\n", "out\n\n"]),  # indented code, not a fence
    ],
)
def test_text_is_cut_before_an_unindented_line_after_a_blank_one(text, expected):
    blocks, tail = blocks_of(text, text)
    assert (blocks, "".join(blocks) + tail) == (expected, text)


def test_an_open_formula_that_never_ends_is_money():
    text = "it costs $$\n\n" + "words and more words\n\n" * 400
    blocks, tail = blocks_of(text, [text, "out"])
    assert blocks
    assert tail == "out"


# ---------------------------------------------------------------------------------- live text


def test_the_first_piece_is_drawn_at_once():
    screen = Screen()
    LiveMarkdown(screen, screen.loop).add("H")
    assert screen.bundles == [{"text/markdown": "H"}]


def test_what_is_pending_is_drawn_although_nothing_more_comes():
    screen = Screen()
    live = LiveMarkdown(screen, screen.loop)
    live.add("Hello")
    live.add(", wor")
    live.add("ld")
    assert screen.text == "Hello"
    screen.loop.go_to(0.15)
    assert screen.text == "Hello, world"
    assert screen.loop.pending == 0
    assert len(screen.outputs) == 1


def test_it_runs_on_an_asyncio_loop():
    async def draw() -> Screen:
        loop = asyncio.get_running_loop()
        screen = Screen(loop)
        live = LiveMarkdown(screen, loop)
        live.add("a")
        live.add("b")
        drawn = asyncio.Event()
        show = screen.show
        screen.show = lambda *args, **kwargs: (show(*args, **kwargs), drawn.set())
        await asyncio.wait_for(drawn.wait(), 10)
        return screen

    assert asyncio.run(draw()).text == "ab"


WORDS = st.lists(
    st.sampled_from(["words", "\n", "\n\n", "\n\nA line", " ", "- item\n", "```\n", "$$"]), max_size=60
)


@given(WORDS, st.lists(st.sampled_from([0.0, 0.05, 0.2, 3.0]), min_size=60, max_size=60), st.booleans())
def test_the_screen_shows_a_beginning_of_the_text_at_any_time_and_all_of_it_at_last(words, pauses, slow):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notebook_ext.display.BLOCK", 8)
        patch.setattr("notebook_ext.display.SMALL_BLOCKS", 2)
        patch.setattr("notebook_ext.display.GROWTH", 2.0)
        patch.setattr("notebook_ext.display.COST_PER_SECOND", 20 if slow else 10_000)
        screen, text = Screen(), ""
        live = LiveMarkdown(screen, screen.loop)
        for word, pause in zip(words, pauses, strict=False):
            text += word
            live.add(word)
            assert text.startswith(screen.text)
            screen.loop.go_to(screen.loop.now + pause)
            assert text.startswith(screen.text)
        live.finish()
        assert screen.text.strip() == text.strip()
        assert screen.loop.pending == 0
        assert all("text/plain" in bundle for bundle in screen.bundles)


@pytest.mark.parametrize(("length", "most"), [(20_000, 350_000), (200_000, 800_000)])
def test_bytes_of_a_hard_text_over_twenty_seconds(length, most):
    screen, display = streamed(hard_text(length), strip=Strip())
    display.finish(footer=FOOTER)
    assert screen.bytes <= most
    assert screen.most_outputs <= 45


@pytest.mark.parametrize("length", [20_000, 200_000, 1_000_000])
@pytest.mark.parametrize("seconds", [20, 4_000])  # a slow one is cut as often as the policy allows
@pytest.mark.parametrize("owns_cell", [True, False])
def test_a_cell_never_passes_45_outputs(length, seconds, owns_cell):
    screen, display = streamed(hard_text(length), seconds=seconds, strip=Strip(), owns_cell=owns_cell)
    display.finish([{"image/png": ""}], footer=FOOTER)
    assert screen.most_outputs <= 45
    assert screen.text == hard_text(length)


def test_a_cell_never_passes_45_outputs_whatever_the_paragraphs():
    text = "".join(f"{'word ' * (n % 60)}end\n\n" for n in range(40_000))[:3_000_000]
    screen, display = streamed(text, seconds=9_000, strip=Strip(), owns_cell=True)
    display.finish(footer=FOOTER)
    assert screen.most_outputs <= 45


def test_no_more_than_ten_drawings_and_twenty_thousand_characters_a_second():
    screen, _ = streamed(hard_text(200_000))
    tails = [(at, len(bundle["text/markdown"])) for at, bundle, _ in screen.log if "text/plain" not in bundle]
    for second in range(20):
        assert len([at for at, _ in tails if second <= at < second + 1]) <= 10
    # The rest comes after a drawing: the last one of the tail and of the open block are not paid for yet.
    paid = [
        sum(cost for _, cost in tails[:n]) - 2 * max(cost for _, cost in tails[: n + 1])
        for n in range(len(tails))
    ]
    assert all(cost <= 20_000 * at for cost, (at, _) in zip(paid, tails, strict=True))


def test_a_long_slow_text_is_drawn_often_and_its_large_block_rarely():
    screen, _ = streamed(hard_text(200_000), seconds=500)
    tails = [(at, len(bundle["text/markdown"])) for at, bundle, _ in screen.log if "text/plain" not in bundle]
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(tails)) <= 1.0
    assert sum(length for _, length in tails) <= 20 * 200_000


def test_the_text_on_the_screen_is_never_far_behind():
    screen, _ = streamed(hard_text(20_000))
    drawn = [at for at, _, _ in screen.log]
    assert max(b - a for a, b in itertools.pairwise(drawn)) <= 0.2


def test_the_live_tail_has_no_copy_and_settled_blocks_have_one():
    screen, _ = streamed(hard_text(5_000))
    assert all("text/plain" in bundle for bundle in screen.bundles[:-1])
    assert "text/plain" not in screen.bundles[-1]


def test_what_does_not_change_is_not_drawn_again():
    screen = Screen()
    live = LiveMarkdown(screen, screen.loop)
    live.add("  \n")
    assert screen.log == []
    live.add("x")
    screen.loop.go_to(1)
    drawn = len(screen.log)
    live.add("")
    screen.loop.go_to(2)
    assert len(screen.log) == drawn == 1


def test_everything_drawn_is_inert():
    payload = "text <script>alert(1)</script> and <img src=x onerror=alert(1)>\n\n"
    screen, display = streamed(payload * 60, chunks=900, seconds=5)
    live = [bundle for _, bundle, _ in screen.log]
    display.finish(footer=FOOTER)
    owned, other = streamed(payload * 60, chunks=900, seconds=5, owns_cell=True)
    other.finish(footer=FOOTER)
    for bundle in [*live, *screen.bundles, *owned.bundles]:
        assert "<script" not in bundle.get("text/markdown", "")
        assert "<img" not in bundle.get("text/markdown", "")


# ---------------------------------------------------------------------------------- the ends


def test_a_cell_of_its_own_ends_as_text_in_one_piece_bundles_and_footer():
    strip, picture = Strip(), {"image/png": "", "text/plain": "a picture"}
    screen, display = streamed(hard_text(5_000), strip=strip, owns_cell=True)
    assert screen.bundles[0]["text/plain"] == "demo: running"
    display.finish([picture], FOOTER)
    text, *others = screen.bundles
    assert text["text/plain"] == hard_text(5_000)
    assert others == [picture, FOOTER]
    assert strip.closed
    assert screen.loop.pending == 0


def test_a_shared_cell_is_never_cleared():
    screen, loop = Screen(), None
    screen.show({"text/plain": "printed before"})
    display = JobDisplay(screen, screen.loop, strip=Strip())
    display.add(hard_text(3_000))
    screen.loop.go_to(1)
    display.add("the end")
    display.finish([], FOOTER)
    before, first, *texts, last = screen.bundles
    assert before == {"text/plain": "printed before"}
    assert first == NOTHING  # where the strip was
    assert last == FOOTER
    assert "".join(bundle["text/plain"] for bundle in texts) == hard_text(3_000) + "the end"
    assert loop is None


def test_a_shared_cell_without_a_strip_gets_its_footer_last():
    screen = Screen()
    display = JobDisplay(screen, screen.loop)
    display.add("text")
    display.finish([], FOOTER)
    assert [bundle["text/plain"] for bundle in screen.bundles] == ["text", "done"]


def side_by_side(**options) -> tuple[Screen, list[JobDisplay]]:
    screen = Screen()
    return screen, [
        JobDisplay(screen, screen.loop, strip=Strip(), keeps_place=True, **options) for _ in range(3)
    ]


def test_jobs_in_one_cell_keep_their_texts_apart_and_each_its_footer_below_it():
    screen, displays = side_by_side()
    named = dict(zip("abc", displays, strict=True))
    for minutes, name in enumerate("cabbac", 1):
        named[name].add(f"{name}: {hard_text(2_000)}\n\n")
        screen.loop.go_to(60 * minutes)
    live = [bundle.get("text/markdown", "")[:2] for bundle in screen.bundles]
    assert live == ["", "a:", "", "", "b:", "", "", "c:", ""]
    for name in "bca":
        named[name].finish([], {"text/plain": f"{name} is done"})
    shown = [bundle["text/plain"] for bundle in screen.bundles]
    assert [text if "done" in text else text[:2] for text in shown] == [
        *("", "a:", "a is done"),
        *("", "b:", "b is done"),
        *("", "c:", "c is done"),
    ]


@pytest.mark.parametrize("pictures", [0, 1, 2, 3])
def test_what_a_job_among_others_came_to_stays_in_one_piece(pictures):
    screen, (first, second, _) = side_by_side()
    first.add("text")
    second.add("another text")
    shown = [{"image/png": "", "text/plain": f"picture {number}"} for number in range(pictures)]
    first.finish(shown, FOOTER)
    texts = [bundle["text/plain"] for bundle in screen.bundles if "text/plain" in bundle]
    start = texts.index("text")
    assert texts[start : start + pictures + 2] == ["text", *(f"picture {n}" for n in range(pictures)), "done"]
    assert len(screen.bundles) == (9 if pictures <= 1 else 9 + pictures + 2)


def test_a_long_text_among_others_stays_in_its_blocks():
    text = hard_text(LONG_TEXT + 5_000)
    screen, display = streamed(text, strip=Strip(), keeps_place=True)
    display.finish([], FOOTER)
    assert screen.bundles[0] == screen.bundles[-1] == FOOTER
    assert screen.text == text


def test_a_long_text_stays_in_its_blocks_with_the_footer_above_and_below():
    text = hard_text(LONG_TEXT + 1_000)
    screen, display = streamed(text, strip=Strip(), owns_cell=True)
    blocks = len(screen.outputs) - 2  # without the strip and the tail
    display.finish([], FOOTER)
    assert screen.bundles[0] == screen.bundles[-1] == FOOTER
    assert len(screen.outputs) in {blocks + 3, blocks + 2}
    assert screen.text == text
    assert all("text/plain" in bundle for bundle in screen.bundles)


def test_what_cannot_be_shown_does_not_hide_the_end_of_the_job():
    for owns_cell in (True, False):
        screen, strip = Screen(), Strip()
        display = JobDisplay(screen, screen.loop, strip=strip, owns_cell=owns_cell)
        show = screen.show

        def picky(bundle, show=show, **options):
            if "half" in str(bundle):
                raise UnicodeEncodeError("utf-8", "half", 0, 1, "surrogates not allowed")
            show(bundle, **options)

        screen.show = picky
        with pytest.raises(UnicodeEncodeError):
            display.add("half of a pair")
        with pytest.raises(UnicodeEncodeError):
            display.finish([], FOOTER)
        assert screen.bundles[-1] == FOOTER
        assert strip.closed


def test_a_headless_cell_gets_only_what_is_final():
    strip = Strip()
    screen, display = streamed("text " * 100, strip=strip, owns_cell=True, is_live=False)
    assert screen.log == []
    display.finish([], FOOTER)
    assert [bundle["text/plain"] for bundle in screen.bundles] == ["text " * 100, "done"]
    assert strip.closed


def test_nothing_is_shown_after_the_end():
    screen, display = streamed("text", chunks=4, owns_cell=True)
    display.finish([], FOOTER)
    shown = len(screen.log)
    display.add("late")
    display.finish([], FOOTER)
    screen.loop.go_to(60)
    assert len(screen.log) == shown


def test_a_job_without_text_ends_as_its_footer():
    screen = Screen()
    JobDisplay(screen, screen.loop, strip=Strip(), owns_cell=True).finish([], FOOTER)
    assert screen.bundles == [FOOTER]


def test_the_cell_is_cleared_even_if_nothing_is_left_to_show():
    screen = Screen()
    JobDisplay(screen, screen.loop, strip=Strip(), owns_cell=True).finish()
    assert [bundle for bundle in screen.bundles if bundle.get("text/plain")] == []


def test_a_terminal_prints_the_pieces_and_the_footer(capsys):
    display = job_display(TerminalCell(), VirtualLoop(), strip=Strip(), owns_cell=True)
    assert isinstance(display, TerminalDisplay)
    display.add("Hello, ")
    assert capsys.readouterr().out == "Hello, "
    display.add("\x1b[31mworld")
    display.finish([{"text/plain": "a picture", "image/png": ""}], FOOTER)
    display.add("late")
    display.finish([], FOOTER)
    assert capsys.readouterr().out == "␛[31mworld\na picture\ndone\n"


def test_a_terminal_adds_no_empty_line(capsys):
    display = TerminalDisplay(TerminalCell())
    display.add("a line\n")
    display.finish([], FOOTER)
    assert capsys.readouterr().out == "a line\ndone\n"
