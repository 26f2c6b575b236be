"""What came of a stream against what the server has kept of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.mending import Mended, Received

JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(min_size=1, max_size=3),
    st.lists(st.integers(), max_size=2),
)


def ended(shown: list, later: list, kept: list, *, is_suspect: bool = True) -> Mended:
    received = Received()
    for output in shown:
        received.add(output)
    assert len(received) == len(shown)
    return received.mended(later, kept, is_suspect=is_suspect)


@pytest.mark.parametrize(
    ("shown", "later", "kept", "rest", "note"),
    [
        (["a", "b"], [], ["a", "b"], [], ""),
        (["a"], ["b"], ["a", "b"], ["b"], ""),  # nothing was lost after all
        (["a"], ["d"], ["a", "b", "c", "d"], ["b", "c", "d"], "repaired: 2 chunks were lost on the wire"),
        ([], [], ["a"], ["a"], "repaired: 1 chunk was lost on the wire"),
        (["a"], ["b", "b"], ["a", "b"], ["b"], "repaired: 1 chunk was sent twice"),
        (["a"], ["c", "b"], ["a", "b", "c"], ["b", "c"], "repaired: chunks came out of their order"),
        ([1, {"x": 2}], [None], [1, {"x": 2}, 0, None], [0, None], "repaired: 1 chunk was lost on the wire"),
        ([1], [1.0], [1, 1.0], [1.0], ""),
        # cut at other places, and the same text
        (["ab", "cd"], [], ["a", "bcd"], [], ""),
        (["ab"], ["cd"], ["a", "bcd"], ["cd"], ""),
        (["ab"], ["f"], ["a", "bcdef"], ["cdef"], "repaired: text was lost on the wire"),
    ],
)  # fmt: skip
def test_what_the_server_kept_repairs_what_was_lost(shown, later, kept, rest, note) -> None:
    assert ended(shown, later, kept) == Mended(rest, note)


@pytest.mark.parametrize(
    ("shown", "kept", "told"),
    [
        (["a", "b", "b", "c"], ["a", "b", "c"], "1 chunk was sent twice"),
        (["a", "c"], ["a", "b", "c"], "1 chunk was lost on the wire"),
        (["a", "c", "c"], ["a", "b", "c"], "1 chunk was lost on the wire, 1 chunk was sent twice"),
        (["b", "a", "c"], ["a", "b", "c"], "chunks came out of their order"),
    ],
)
def test_what_is_shown_stays_and_is_told_to_differ(shown, kept, told) -> None:
    found = ended(shown, [], kept, is_suspect=False)
    assert list(found.rest) == []
    assert (
        found.note
        == f"what is shown differs from the result: {told}; `.output()` has it as the server kept it"
    )
    assert not found.is_whole


@pytest.mark.parametrize("kept", [["x"], [["a", "b", "c"]], ["total: 3"], [1, 2, 3]])
def test_a_result_that_is_no_copy_of_the_stream_is_not_held_against_it(kept) -> None:
    assert ended(["a", "b", "c"], [], kept, is_suspect=False) == Mended([])


def test_a_stream_is_taken_up_where_somebody_else_left_it() -> None:
    received = Received(["a", "b"])
    received.add("c")
    assert received.mended(["e"], ["a", "b", "c", "d", "e"], is_suspect=True).rest == ["d", "e"]


@given(st.lists(JSON, max_size=12), st.data())
def test_whatever_is_lost_after_what_was_shown_comes_back_in_its_order(kept, data) -> None:
    begin = data.draw(st.integers(0, len(kept)))
    later = [output for output in kept[begin:] if data.draw(st.booleans())]
    found = ended(kept[:begin], later, kept)
    assert [*map(repr, kept[:begin]), *map(repr, found.rest)] == [*map(repr, kept)]
    assert bool(found.note) == (len(later) < len(kept) - begin)


@given(st.lists(st.text(max_size=4), max_size=12), st.data())
def test_text_that_is_cut_elsewhere_is_the_same_text(pieces, data) -> None:
    text = "".join(pieces)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    kept = [text[at:to] for at, to in zip([0, *places], [*places, len(text)], strict=True)]
    found = ended(pieces, [], kept, is_suspect=False)
    assert ("".join(found.rest), found.note) == ("", "")
