from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.decoders import Decoder, Final, OpenAIDecoder
from notebook_ext.types import StreamChunk


def decode(decoder, chunks, output=None):
    shown = "".join(decoder.feed(StreamChunk(value, index)) for index, value in enumerate(chunks))
    return shown, decoder.finish(output)


def delta(**fields):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


def sse(*documents):
    return "".join(f"data: {json.dumps(document)}\n\n" for document in documents) + "data: [DONE]\n\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(["choices", "delta", "message", "content", "text", "tokens", "usage", "error", "tool_calls",
                         "reasoning_content", "completion_tokens", "output", "index"])  # fmt: skip
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("data: {}\n\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


# ------------------------------------------------------------------ plain generators


@pytest.mark.parametrize(
    ("chunks", "shown", "final"),
    [
        (["a", "b ", "c"], "ab c", Final("ab c", "ab c")),
        ([""], "", Final("", "")),
        ([{"n": 1}, {"n": 2}], '{"n": 1}\n{"n": 2}\n', Final(None, [{"n": 1}, {"n": 2}])),
        ([None, 0, False], "null\n0\nfalse\n", Final(None, [None, 0, False])),
        (["a", {"n": "é"}, "b"], 'a\n{"n": "é"}\nb', Final('a\n{"n": "é"}\nb', ["a", {"n": "é"}, "b"])),
        (["a\n", 1], "a\n1\n", Final("a\n1\n", ["a\n", 1])),
        (["data: {}\n\n"], "data: {}\n\n", Final("data: {}\n\n", "data: {}\n\n")),
    ],
)
def test_plain_chunks(chunks, shown, final):
    assert decode(Decoder(), chunks) == (shown, final)
    assert decode(Decoder(), chunks, []) == (shown, final)
    assert decode(Decoder(), chunks, chunks) == (shown, final)


@pytest.mark.parametrize(
    ("output", "final"),
    [
        (None, Final(None, None)),
        ("text", Final("text", "text")),
        ("", Final("", "")),
        ({"a": 1}, Final(None, {"a": 1})),
        ([], Final(None, [])),
        (0, Final(None, 0)),
        (["cat", "dog"], Final(None, ["cat", "dog"])),
        ({"choices": [{"text": "x"}]}, Final(None, {"choices": [{"text": "x"}]})),
    ],
)
def test_a_result_that_was_not_streamed(output, final):
    assert Decoder().finish(output) == final


def test_a_list_of_strings_is_one_text_where_the_worker_streams_text():
    assert Decoder(joins=True).finish(["a", "b"]) == Final("ab", "ab")
    assert Decoder(joins=True).finish([]) == Final(None, [])
    assert Decoder(joins=True).finish(["a", 1]) == Final(None, ["a", 1])


def test_what_another_reader_took_comes_back_with_the_aggregate():
    decoder = Decoder()
    decoder.feed(StreamChunk("b"))
    assert decoder.finish(["a", "b", "c"]) == Final("abc", "abc")


def test_a_big_string_is_cut_for_the_eye_only():
    value = {"image": "A" * 100_000}
    shown, final = decode(Decoder(), [value])
    assert len(shown) < 200
    assert "100000 characters" in shown
    assert final.value == [value]


def test_deep_nesting_is_shown_somehow():
    value: list = []
    for _ in range(900):
        value = [value]
    assert decode(Decoder(), [value])[0].startswith("[")


@given(st.lists(st.text()))
def test_plain_text_is_the_sum_of_its_chunks(chunks):
    shown, final = decode(Decoder(), chunks)
    assert shown == "".join(chunks)
    if chunks:
        assert final == Final(shown, shown)


# ------------------------------------------------------------------ OpenAI documents


@pytest.mark.parametrize(
    ("chunks", "shown", "value", "tokens"),
    [
        ([delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo")], "Hello", "Hello", None),
        ([{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"text": "b"}]}], "ab", "ab", None),
        ([{"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 3, "output": 2}},
          {"choices": [{"tokens": ["c"]}], "usage": {"input": 3, "output": 3}}], "abc", "abc", 3),
        ([delta(content="x"), {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 2}}], "x", "x", 7),
        ([delta(content=[{"type": "text", "text": "a"}, {"type": "image_url"}, "b"])], "ab", "ab", None),
        ([delta(content=None), delta(content="x")], "x", "x", None),
        ([{"choices": [{"index": 1, "text": "no"}, {"index": 0, "text": "yes"}]}], "yes", "yes", None),
        (["plain ", "text"], "plain text", "plain text", None),
        (["d", "at", "e"], "date", "date", None),
        (["data"], "", "data", None),
        ([""], "", "", None),
    ],
)  # fmt: skip
def test_openai_chunks(chunks, shown, value, tokens):
    decoder = OpenAIDecoder()
    given_shown, final = decode(decoder, chunks)
    assert given_shown == shown
    assert final == Final(value, value, tokens)
    assert decoder.tokens == tokens


def test_reasoning_is_a_quotation_and_no_part_of_the_value():
    chunks = [
        delta(reasoning_content="Let me\nsee"),
        delta(reasoning=" ..."),
        delta(content="42"),
        delta(content="!"),
    ]
    shown, final = decode(OpenAIDecoder(), chunks)
    assert shown == "> Let me\n> see ...\n\n42!"
    assert final == Final(shown, "42!")


def test_tool_calls_keep_the_documents():
    chunks = [delta(content="Looking"), delta(tool_calls=[{"function": {"name": "f"}}])]
    shown, final = decode(OpenAIDecoder(), chunks)
    assert shown == "Looking"
    assert final == Final("Looking", chunks)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "m", "type": "worker_error", "code": None}, "m"),
        ("text", "text"),
        ({"code": 3}, '{"code": 3}'),
    ],
)
def test_errors_inside_chunks_are_collected(error, said):
    decoder = OpenAIDecoder()
    shown, final = decode(decoder, [delta(content="half"), {"error": error}])
    assert (shown, decoder.error) == ("half", said)
    assert final.text == "half"
    assert final.value == [delta(content="half"), {"error": error}]
    decoder = OpenAIDecoder()
    assert decode(decoder, [sse({"error": error})])[1].text is None
    assert decoder.error == said


@pytest.mark.parametrize(
    ("output", "final"),
    [
        ({"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": 2}}, Final("Hi", "Hi", 2)),
        ({"choices": [{"text": "Hi"}]}, Final("Hi", "Hi")),
        ([{"choices": [{"tokens": ["a", "b"]}], "usage": {"input": 1, "output": 2}}], Final("ab", "ab", 2)),
        (["data: " + json.dumps(delta(content="a")), "\n\ndata: [DONE]\n\n"], Final("a", "a")),
        ("plain", Final("plain", "plain")),
        ({"data": [{"embedding": [1]}]}, Final(None, {"data": [{"embedding": [1]}]})),
        ([], Final(None, [])),
        ([1], Final(None, [1])),
        (None, Final(None, None)),
        (5, Final(None, 5)),
        ({"choices": [{"message": {"content": "x", "tool_calls": [1]}}]},
         Final("x", {"choices": [{"message": {"content": "x", "tool_calls": [1]}}]})),
    ],
)  # fmt: skip
def test_openai_results_that_were_not_streamed(output, final):
    assert OpenAIDecoder().finish(output) == final


def test_the_aggregate_repairs_a_stream_that_others_read_too():
    chunks = [delta(content=text) for text in "abc"] + [{"choices": [], "usage": {"completion_tokens": 3}}]
    decoder = OpenAIDecoder()
    decoder.feed(StreamChunk(chunks[1]))
    assert decoder.finish(chunks) == Final("abc", "abc", 3)
    assert decoder.tokens == 3


# ------------------------------------------------------------------ server-sent events

EVENTS = [
    sse(delta(role="assistant"), delta(content="Hé\n"), delta(content="data: x\n\n"), {"choices": [], "usage": {"completion_tokens": 4}}),
    sse(delta(reasoning_content="a\n\nb"), delta(content="c")),
    sse({"other": 1}, delta(content="x"), {"other": [2]}, {"error": {"message": "m"}}),
    ": ping\n\nevent: message\nid: 1\ndata: {\"choices\":\ndata: [{\"text\": \"x\"}]}\n\n",
    sse(delta(content="crlf")).replace("\n", "\r\n"),
    "data: not json\n\ndata:" + json.dumps(delta(content="no blank")),
    "plain text with data: in it\n\n",
    "dat",
]  # fmt: skip


@pytest.mark.parametrize("text", EVENTS)
def test_events_cut_at_every_place_are_the_same(text):
    whole = decode(OpenAIDecoder(), [text])
    shown, final = decode(OpenAIDecoder(), list(text))
    assert final.text == whole[1].text
    assert shown == whole[0]
    for cut in range(1, len(text)):
        decoder = OpenAIDecoder()
        assert decode(decoder, [text[:cut], text[cut:]])[0] == whole[0]


SAID = ["Hé\ndata: x\n\n", "c", None, "x", "crlf", "not jsonno blank", EVENTS[6], "dat"]


@pytest.mark.parametrize(("text", "value"), list(zip(EVENTS, SAID, strict=True)))
def test_what_events_say(text, value):
    final = OpenAIDecoder().finish(text)
    assert final.value == (text if value is None else value)


@given(st.lists(st.text(), min_size=1), st.data())
def test_events_cut_anywhere(texts, data):
    stream = sse(*(delta(content=text) for text in texts))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    shown, final = decode(OpenAIDecoder(), pieces)
    assert shown == final.text == final.value == "".join(texts)


# ------------------------------------------------------------------ whatever comes


@pytest.mark.parametrize("make", [Decoder, lambda: Decoder(joins=True), OpenAIDecoder])
@given(chunks=st.lists(JSON | DOCUMENTS, max_size=5), output=JSON | DOCUMENTS)
def test_no_value_makes_a_decoder_raise(make, chunks, output):
    decoder = make()
    shown, final = decode(decoder, chunks, output)
    assert isinstance(shown, str)
    assert final.text is None or isinstance(final.text, str)
    assert decoder.error is None or isinstance(decoder.error, str)
    assert final.tokens is None or isinstance(final.tokens, int)
    unstreamed = make().finish(output)
    assert unstreamed.text is None or isinstance(unstreamed.text, str)


# ------------------------------------------------------------------ half characters in events


def test_a_character_cut_between_two_events_is_whole():
    said = sse(delta(content="a\ud83d"), delta(content=""), delta(content="\ude00b"), delta(content="\ud83d"))
    shown, final = decode(OpenAIDecoder(), [said[:40], said[40:]])
    assert shown == "a\U0001f600b"
    assert final == Final("a\U0001f600b\ufffd", "a\U0001f600b\ufffd")


def test_half_characters_in_other_documents_are_replaced():
    decoder = OpenAIDecoder()
    shown, final = decode(decoder, [sse({"half": "\ud83d"}, {"error": {"message": "\ud83d"}})])
    assert decoder.error == "\ufffd"
    (shown + str(final)).encode()
