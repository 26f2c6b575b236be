"""A command as a cell, and back: through IPython's own reading of the cell, and through ours."""

from __future__ import annotations

import ast
import json
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from notebook_ext import cellcode, grammar, profiles
from notebook_ext.arguments import Arguments
from notebook_ext.errors import InputError
from notebook_ext.vocabulary import VERBS

NAMES = {"audience": "children", "n": 3, "d": {"a b": "it's"}, "text": "{{ audience }} -- 'x'"}
TEMPLATES = ("{{ audience }}", "{{ d['a b'] }}", '{{ d["a b"] }}', "{{ n + 1 }}", "{{text}}", "{{ '}}' }}")
# All that means something to a shell, to IPython, to the template language, or to the parser of options.
PIECES = (
    *TEMPLATES,
    *(
        "'",
        '"',
        "\\",
        " ",
        "  ",
        "\t",
        "\n",
        "\r",
        "--",
        " -- ",
        "-",
        "=",
        "#|",
        "#| t: 1",
        "<<",
        "x << ",
        "?",
        "%",
    ),
    *(
        "{",
        "}",
        "{%",
        "%}",
        "}}",
        "$",
        "!",
        "`",
        ">>> ",
        "... ",
        "...: ",
        "In [3]: ",
        "[",
        "{{ '",
        "😀",
        "\u2028",
        "\x0b",
    ),
    *("word", "two words", "über"),
)
text = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=6).map("".join)
# surrogates cannot be sent at all, and no file holds them
# and IPython empties lines that are only white space
clean = text.filter(lambda value: not any("\ud800" <= char <= "\udfff" for char in value)).map(
    lambda value: re.sub(r"(?m)^[ \t]+$", "", value)
)
live = clean.filter(lambda value: is_rendered(value))


def is_rendered(value: str) -> bool:
    """Whether its templates have a value; only then it can be submitted at all."""
    try:
        grammar.prompts.expand(value, NAMES)
    except InputError:
        return False
    return True


def through_ipython(cell: str) -> tuple[str, str | None]:
    """What IPython hands to the magic for a cell."""
    (statement,) = ast.parse(TransformerManager().transform_cell(cell)).body
    call = statement.value
    name, *arguments = [ast.literal_eval(argument) for argument in call.args]
    if call.func.attr == "run_line_magic":
        (line,) = arguments
        return line, None
    assert (call.func.attr, name) == ("run_cell_magic", "endpoint")
    line, body = arguments
    return line, body


def read(cell: str) -> grammar.Command:
    line, body = through_ipython(cell)
    assert cellcode.split(cell) == (line, body)
    return grammar.parse(line, body, endpoints=["demo"])


def submitted(command: grammar.Command):
    return Arguments(command, NAMES).submission(profiles.get("chat"), sync=False, cell=None)[1]


def given_options(**options):
    return {name: value for name, value in options.items() if value}


@given(
    prompt=live.filter(lambda value: value.strip() and value.lstrip()[:1] not in ("{", "[")),
    system=live,
    model=live,
    stop=st.lists(live.filter(bool), max_size=3),
)
@example(prompt="#| t: 1\nx", system="two\nlines for {{ audience }}", model="-x", stop=["--", "---", "\n"])
@example(prompt=">>> 1\n... 2\n", system="It's {{ d['a b'] }}'s", model="", stop=["'"])
@example(prompt="a\n\n", system="{", model="{{ '{{' }}", stop=[])
def test_what_is_submitted_by_a_cell_is_what_was_meant(prompt, system, model, stop):
    command = cellcode.compose("demo", prompt, given_options(system=system, model=model, stop=stop))
    assume(
        not any(
            re.search(r"{{[^}]*['\"]", option) and len(option.splitlines()) > 1
            for option in [system, model, *stop]
        )
    )
    assert submitted(read(cellcode.cell(command))) == submitted(command)


in_a_line = clean.filter(lambda value: value.splitlines() in ([], [value]) and value != "--")


@given(
    prompt=clean.filter(
        lambda value: value.strip() and not any(mark in value for mark in ("#|", ">>>", "...", "In ["))
    ),
    system=in_a_line.filter(bool),
    stop=st.lists(in_a_line, max_size=3),
    verbatim=st.booleans(),
)
@example(prompt="x", system="{{ d' }} {{ it's", stop=["", "-", "{{{"], verbatim=False)
def test_a_command_that_a_cell_can_hold_is_read_back_the_same(prompt, system, stop, verbatim):
    command = cellcode.compose("demo", prompt, given_options(system=system, stop=stop, verbatim=verbatim))
    assert read(cellcode.cell(command)) == command


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | clean,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(clean, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@example({"input": {"prompt": "x"}, "policy": {}})
@example("{{ audience }}")
@example({"\u2028>>> ": "\x85"})
def test_an_input_from_python_is_submitted_as_it_is(value):
    command = cellcode.from_input("demo", value, {"profile": "raw"})
    sent = Arguments(read(cellcode.cell(command)), NAMES).submission(
        profiles.get("raw"), sync=False, cell=None
    )[1]
    assert json.dumps(sent.input) == json.dumps(value)


@pytest.mark.parametrize(
    ("line", "body", "cell"),
    [
        ("", "Hello.\n", "%%endpoint run\nHello."),
        (
            'demo -s "You are terse." -t 0.2 --max-tokens 200 -o job',
            "Explain.\n",
            "%%endpoint run demo -s 'You are terse.' -t 0.2 --max-tokens 200 -o job\nExplain.",
        ),
        ("demo -- What is {{ n }}?", None, "%%endpoint run demo\nWhat is {{ n }}?"),
        ('demo -- {"a": 1}', None, '%%endpoint run demo --as text\n{"a": 1}'),
        ("demo -i text --bg", None, "%endpoint run demo -i text --bg"),
        ("demo -p a.b=1 -p c=x", None, "%endpoint run demo -p a.b=1 -p c=x"),
        ("demo -p size=3", "#| t: 0.5\nHi\n", "%%endpoint run demo -p size=3 -t 0.5\nHi"),
        ("answer << runsync demo", "Hi\n", "%%endpoint answer << runsync demo\nHi"),
        ("demo -s {{ d['a b'] }}", "Hi\n", "%%endpoint run demo -s {{ d['a b'] }}\nHi"),
        ("demo -t -1", "Hi\n", "%%endpoint run demo -t=-1\nHi"),
    ],
)
def test_what_was_typed_becomes_a_cell_that_looks_like_it(line, body, cell):
    command = grammar.parse(line, body, endpoints=["demo"])
    assert cellcode.cell(command) == cell
    again = grammar.parse(*cellcode.split(cell), endpoints=["demo"])
    assert submitted(again) == submitted(command)


def test_line_breaks_of_an_option_become_a_template():
    command = cellcode.compose("demo", "Hi", {"system": 'For {{ audience }}:\n\tbe "terse".'})
    assert cellcode.cell(command) == (
        '%%endpoint run demo -s {{ "For " ~ (audience) ~ ":\\n\\tbe \\"terse\\"." }}\nHi'
    )


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Hi", {"system": "two\nlines", "verbatim": True}),
        ("Hi", {"stop": ["--"], "verbatim": True}),
        ("Hi", {"parameters": ["a=1\n2"]}),
        ("Hi", {"system": "{{ 'a\nb' }}"}),
        ("#| x", {"verbatim": True}),
        (">>> x", {"kind": "json"}),
    ],
)
def test_what_no_cell_can_hold_is_said(prompt, options):
    with pytest.raises(InputError, match="cell can"):
        cellcode.cell(cellcode.compose("demo", prompt, options))


def test_lines_of_white_space_are_empty_as_ipython_makes_them():
    cell = cellcode.cell(cellcode.compose("demo", "for:\n    a\n    \n    b\n  ", {}))
    assert cell == "%%endpoint run demo\nfor:\n    a\n\n    b\n\n"
    assert read(cell).body == "for:\n    a\n\n    b\n\n"


def test_a_command_can_name_its_endpoint():
    command = grammar.parse("-t 1", "Hi\n")
    assert cellcode.cell(cellcode.at("demo", command)) == "%%endpoint run demo -t 1\nHi"
    assert command.arguments.target is None


@pytest.mark.parametrize("verb", ["run", "runsync"])
def test_an_input_from_python_keeps_its_verb(verb):
    assert cellcode.cell(cellcode.from_input("demo", {"a": 1}, verb=verb)) == (
        f'%%endpoint {verb} demo --as json --verbatim\n{{\n  "input": {{\n    "a": 1\n  }}\n}}'
    )
    assert verb in VERBS
