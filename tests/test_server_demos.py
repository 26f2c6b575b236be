"""The built-in handlers, as anybody gets them: through the endpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
import sys

import pytest
from PIL import Image
from serving import serving, spin

from notebook_ext.errors import ConfigurationError
from notebook_ext.protocol import read_worker_error
from notebook_ext.server.salad import HEADER, write_salad


def text_of(input) -> str:
    async def scenario() -> str:
        async with serving(demo="chat") as api:
            return "".join(await api.chunks("demo", await api.run("demo", input)))

    return asyncio.run(scenario())


def test_chat_says_what_it_is_streams_words_and_repeats_itself_for_a_seed() -> None:
    fast = {"tokens_per_second": 1e6}
    text = text_of({"prompt": "hello", **fast})
    assert text.startswith("*A demo: ")
    assert "no model" in text.splitlines()[0]
    assert text == text_of({"prompt": "hello", **fast})
    assert text == text_of({"seed": "hello", "prompt": "other", **fast})
    assert text != text_of({"prompt": "other", **fast})
    assert text != text_of({"messages": [{"role": "user", "content": "hello"}], **fast})


@pytest.mark.parametrize("temperature", [0, 0.01, 1, 100])
def test_salad_has_the_length_that_was_asked_and_markdown_in_it(temperature: float) -> None:
    pieces = list(write_salad(seed="x", length=3000, temperature=temperature))
    assert pieces[0] == HEADER
    assert len(pieces) == 3001
    assert all(piece.strip() and (piece[-1].isspace() or piece.endswith("(")) for piece in pieces)
    text = "".join(pieces)
    assert text.count("```") >= 2
    assert "\n- " in text
    assert text.count("\n\n") > 20
    assert list(write_salad(seed="x", length=0)) == [HEADER]


def test_salad_is_the_same_in_another_process() -> None:
    program = "from notebook_ext.server.salad import write_salad; print(''.join(write_salad(seed='x', length=300)), end='')"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout == "".join(write_salad(seed="x", length=300))


def test_salad_without_docstrings_still_makes_sense() -> None:
    program = "from notebook_ext.server.salad import write_salad; print(''.join(write_salad(seed='x', length=30)), end='')"
    stripped = subprocess.run(
        [sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True
    )
    assert stripped.stdout.startswith(HEADER)
    assert len(stripped.stdout.removeprefix(HEADER).split()) >= 25


def test_chat_keeps_its_pace() -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api:
            document = await api.result("demo", {"prompt": "x", "max_tokens": 20, "tokens_per_second": 100})
            assert len(document["output"]) == 21
            assert 200 <= document["executionTime"] < 1500

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "input",
    [{"max_tokens": "many"}, {"tokens_per_second": 0}, {"temperature": -1}, {"max_tokens": True}, [1]],
)
def test_wrong_settings_fail_with_a_reason(input) -> None:
    async def scenario() -> None:
        async with serving(demo="chat") as api:
            document = await api.result("demo", input)
            assert document["status"] == "FAILED"
            assert " must be " in read_worker_error(document["error"]).message

    asyncio.run(scenario())


def test_image_is_a_png_that_depends_on_the_prompt() -> None:
    async def scenario() -> None:
        async with serving(demo="image") as api:
            pictures = []
            for asked in ({"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "seed": 2}):
                output = (await api.result("demo", {"width": 40, "height": 30, **asked}))["output"]
                (picture,) = output["images"]
                assert picture.keys() == {"filename", "type", "data"}
                assert picture["type"] == "base64"
                pictures.append(base64.b64decode(picture["data"], validate=True))
            assert pictures[0] == pictures[1]
            assert len(set(pictures)) == 3
            opened = Image.open(io.BytesIO(pictures[0]))
            opened.load()
            assert (opened.format, opened.size) == ("PNG", (40, 30))
            assert len(opened.convert("RGB").getcolors(2000)) > 40

    asyncio.run(scenario())


def test_fail_echo_and_sleep() -> None:
    async def scenario() -> None:
        async with serving(fail="fail", echo="echo", sleep="sleep") as api:
            error = read_worker_error((await api.result("fail", {"message": "on purpose"}))["error"])
            assert (error.type, error.message) == ("RuntimeError", "on purpose")
            assert (await api.result("echo", [1, {"a": None}]))["output"] == [1, {"a": None}]
            assert (await api.result("sleep", {"seconds": 0.05}))["output"] == {"slept": 0.05}
            job = await api.run("sleep", {"seconds": 60})
            await api.until("sleep", job, lambda record: record.output == {"step": 0, "of": 10})
            await api.post(f"/sleep/cancel/{job}")
            await spin(lambda: api.server.endpoints["sleep"].workers == {"sleep-1": "idle"})

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "words"), [("ecco", "did you mean 'echo'"), ("zzz", "chat"), ("openai", "URL")]
)
def test_built_in_handlers_that_are_not_there(name: str, words: str) -> None:
    async def scenario() -> None:
        async with serving() as api:
            with pytest.raises(ConfigurationError, match=words):
                api.server.serve("demo", name)
            assert api.server.endpoints == {}

    asyncio.run(scenario())
