from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.decoders import Decoder, OpenAIDecoder
from notebook_ext.errors import InputError
from notebook_ext.profiles import PROFILES, Options, get, merge

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Terse."}
ALL = Options("Terse.", 0.2, "m", 10, 0.9, 7, ("a", "b"))
SAMPLING = {"temperature": 0.2, "max_tokens": 10, "top_p": 0.9, "seed": 7, "stop": ["a", "b"]}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_get():
    assert get("vllm") is PROFILES["vllm"]
    with pytest.raises(InputError, match="did you mean 'openai'"):
        get("openia")
    with pytest.raises(InputError, match="there are raw, chat, vllm, openai, comfyui"):
        get("zzz")


def test_options_that_were_given():
    assert Options().given() == {}
    assert Options(temperature=0.0, seed=0, system="").given() == {
        "temperature": 0.0,
        "seed": 0,
        "system": "",
    }
    assert ALL.given()["stop"] == ["a", "b"]


@pytest.mark.parametrize(
    ("profile", "options", "placed"),
    [
        ("raw", Options(), {"prompt": "Hi"}),
        ("chat", Options(), {"prompt": "Hi"}),
        ("chat", ALL, {"prompt": "Hi", "system": "Terse.", "model": "m", **SAMPLING}),
        ("vllm", Options(), {"prompt": "Hi", "stream": True}),
        ("vllm", Options(temperature=0.0, stop=("x",)), {"prompt": "Hi", "sampling_params": {"temperature": 0.0, "stop": ["x"]}, "stream": True}),
        ("vllm", Options(system="Terse."), {"messages": [SYSTEM, USER], "stream": True}),
        ("openai", Options(), {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [USER], **STREAM}}),
        ("openai", ALL, {"openai_route": "/v1/chat/completions",
                         "openai_input": {"messages": [SYSTEM, USER], "model": "m", **SAMPLING, **STREAM}}),
    ],
)  # fmt: skip
def test_text(profile, options, placed):
    assert get(profile).place("Hi", True, options) == placed


def test_text_has_no_place_in_a_workflow():
    with pytest.raises(InputError, match="'comfyui' has no place for text"):
        get("comfyui").place("Hi", True)


@pytest.mark.parametrize(
    ("profile", "value", "options", "placed"),
    [
        ("raw", {"a": 1}, Options(), {"a": 1}),
        ("raw", {}, Options(), {}),
        ("chat", {"prompt": "Hi", "temperature": 1}, Options(temperature=0.0), {"prompt": "Hi", "temperature": 0.0}),
        ("vllm", {"prompt": "Hi", "stream": False}, Options(), {"prompt": "Hi", "stream": False}),
        ("vllm", {"prompt": "Hi", "sampling_params": {"top_k": 5, "seed": 1}}, Options(seed=2),
         {"prompt": "Hi", "sampling_params": {"top_k": 5, "seed": 2}, "stream": True}),
        ("vllm", {"messages": [USER]}, Options(system="Terse."), {"messages": [SYSTEM, USER], "stream": True}),
        ("vllm", {"messages": [{"role": "system", "content": "Old"}, USER]}, Options(system="Terse."),
         {"messages": [SYSTEM, USER], "stream": True}),
        ("vllm", {"prompt": "Hi"}, Options(system="Terse."), {"messages": [SYSTEM, USER], "stream": True}),
        ("openai", {"messages": [USER], "n": 2}, Options(model="m"),
         {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [USER], "n": 2, "model": "m", **STREAM}}),
        ("openai", {"prompt": "Hi"}, Options(),
         {"openai_route": "/v1/completions", "openai_input": {"prompt": "Hi", **STREAM}}),
        ("openai", {"openai_route": "/v1/models"}, Options(), {"openai_route": "/v1/models"}),
        ("openai", {"openai_route": "/v1/embeddings", "openai_input": {"input": "x"}}, Options(),
         {"openai_route": "/v1/embeddings", "openai_input": {"input": "x"}}),
        ("openai", {"messages": [USER], "stream": False}, Options(),
         {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [USER], "stream": False}}),
        ("comfyui", {"3": {"class_type": "KSampler"}}, Options(), {"workflow": {"3": {"class_type": "KSampler"}}}),
        ("comfyui", {"workflow": {}, "images": []}, Options(), {"workflow": {}, "images": []}),
    ],
)  # fmt: skip
def test_objects(profile, value, options, placed):
    before = copy.deepcopy(value)
    assert get(profile).place(value, False, options) == placed
    assert value == before


@pytest.mark.parametrize("value", [[1, 2], "text", 3, None, True])
def test_other_inputs_go_as_they_are(value):
    assert get("raw").place(value, False) == value
    with pytest.raises(InputError, match="not an object"):
        get("raw").place(value, False, None, {"a": 1})
    with pytest.raises(InputError, match="not an object"):
        get("chat").place(value, False, Options(seed=1))


@pytest.mark.parametrize(
    ("profile", "options", "flag"),
    [
        ("raw", Options(system="x"), "-s"),
        ("raw", Options(temperature=0.0), "-t"),
        ("raw", Options(max_tokens=1), "--max-tokens"),
        ("raw", Options(stop=("x",)), "--stop"),
        ("vllm", Options(model="x"), "-m"),
        ("comfyui", Options(seed=0), "--seed"),
        ("comfyui", Options(top_p=0.1), "--top-p"),
    ],
)
def test_an_option_without_a_place_is_an_error(profile, options, flag):
    for value, is_text in (("Hi", True), ({"prompt": "Hi"}, False)):
        with pytest.raises(InputError, match=f"^{flag} has no place in the profile '{profile}'"):
            get(profile).place(value, is_text, options)


@pytest.mark.parametrize(
    ("profile", "value", "options", "part"),
    [
        ("vllm", {"documents": []}, Options(system="x"), "-s stands before a prompt"),
        ("vllm", {"messages": "x"}, Options(system="x"), "-s stands before a prompt"),
        ("openai", {"prompt": "x"}, Options(system="x"), "-s stands before a prompt"),
        ("vllm", {"sampling_params": 3}, Options(seed=1), "'sampling_params' in the input is no object"),
        ("openai", {"openai_input": [1]}, Options(seed=1), "'openai_input' in the input is no object"),
    ],
)
def test_an_input_that_an_option_does_not_fit(profile, value, options, part):
    with pytest.raises(InputError) as caught:
        get(profile).place(value, False, options)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("profile", "value", "is_text", "parameters", "placed"),
    [
        ("raw", "Hi", True, {"temperature": 0.2}, {"prompt": "Hi", "temperature": 0.2}),
        ("raw", {"a": {"b": 1, "c": 2}}, False, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ("chat", "Hi", True, {"prompt": "Other"}, {"prompt": "Other"}),
        ("vllm", "Hi", True, {"stream": False, "sampling_params": {"top_k": 1}},
         {"prompt": "Hi", "stream": False, "sampling_params": {"top_k": 1}}),
        ("openai", "Hi", True, {"n": 2, "stream": False},
         {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [USER], "n": 2, "stream": False}}),
        ("openai", "Hi", True, {"openai_route": "/v1/responses"},
         {"openai_route": "/v1/responses", "openai_input": {"messages": [USER]}}),
        ("comfyui", {"3": {"inputs": {"seed": 1, "cfg": 8}}}, False, {"3": {"inputs": {"seed": 2}}},
         {"workflow": {"3": {"inputs": {"seed": 2, "cfg": 8}}}}),
        ("comfyui", {"workflow": {}, "images": [{"name": "a"}, {"name": "b"}]}, False, {"images": {"1": {"image": "x"}}},
         {"workflow": {}, "images": [{"name": "a"}, {"name": "b", "image": "x"}]}),
    ],
)  # fmt: skip
def test_parameters_are_merged_last(profile, value, is_text, parameters, placed):
    before = copy.deepcopy(value)
    assert get(profile).place(value, is_text, Options(), parameters) == placed
    assert value == before


def test_each_job_has_a_decoder_of_its_own():
    kinds = {name: type(profile.decoder()) for name, profile in PROFILES.items()}
    assert kinds == {
        "raw": Decoder,
        "chat": Decoder,
        "vllm": OpenAIDecoder,
        "openai": OpenAIDecoder,
        "comfyui": Decoder,
    }
    assert get("vllm").decoder() is not get("vllm").decoder()
    assert get("chat").decoder().finish(["a", "b"]).text == "ab"
    assert get("raw").decoder().finish(["a", "b"]).text is None


# ------------------------------------------------------------------ merging


@pytest.mark.parametrize(
    ("base", "patch", "merged"),
    [
        ({}, {}, {}),
        ({"a": None}, {}, {"a": None}),
        ({"a": 1}, {"a": {}}, {"a": {}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1, {"b": 2}]}, {"a": {"1": {"c": 3}}}, {"a": [1, {"b": 2, "c": 3}]}),
        ({"a": [1]}, {"a": {"1": 3}}, {"a": {"1": 3}}),
        ({"a": [1]}, {"a": {"x": 3}}, {"a": {"x": 3}}),
        ({}, {"a": {"0": 3}}, {"a": {"0": 3}}),
    ],
)
def test_merge(base, patch, merged):
    before = copy.deepcopy((base, patch))
    assert merge(base, patch) == merged
    assert (base, patch) == before


OBJECTS = st.recursive(
    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "0"]), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


@given(OBJECTS, OBJECTS)
def test_merging_is_done_once(base, patch):
    merged = merge(base, patch)
    assert merge(merged, patch) == merged
    assert merge({}, base) == merge(base, {}) == base
