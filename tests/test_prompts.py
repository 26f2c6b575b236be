from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.errors import InputError
from notebook_ext.prompts import (
    Body,
    first_words,
    option_lines,
    parse_duration,
    parse_parameters,
    read_body,
    read_parameters,
    read_variable,
)

NAMES = {
    "n": 3,
    "q": 'say "hi"\n',
    "docs": ["a", "b"],
    "wf": {"1": {"class_type": "X"}},
    "template": "{{ n }}",
}


def read(text, kind="auto", **options):
    return read_body(text, kind, namespace=NAMES, **options)


# ------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Hello", "text", "Hello"),
        ("Hello\n", "text", "Hello\n"),
        ("", "text", ""),
        ("{{ n }} left", "text", "3 left"),
        ("{{ n }}", "text", "3"),
        ("  {{ docs }}\n", "text", "  ['a', 'b']\n"),
        ('Explain {{ n }}: {"a": {"b": 1}}', "text", 'Explain 3: {"a": {"b": 1}}'),
        ("[INST] Hello [/INST]", "text", "[INST] Hello [/INST]"),
        ("[INST] {{ n }}", "text", "[INST] 3"),
        ("[1, 2", "text", "[1, 2"),
        ("[1, {{ docs }}]", "json", [1, ["a", "b"]]),
        ('["{{ n }}", "x{{ n }}"]', "json", [3, "x3"]),
        ('{"a": 1}', "json", {"a": 1}),
        ('\n  {"a": 1}\n', "json", {"a": 1}),
        ('{"q": "{{ q }}"}', "json", {"q": 'say "hi"\n'}),
        ('{"q": "<{{ q }}>"}', "json", {"q": '<say "hi"\n>'}),
        ('{"n": {{ n }}, "d": {{ docs }} }', "json", {"n": 3, "d": ["a", "b"]}),
        ('{"a":{"b":{{n}}}}', "json", {"a": {"b": 3}}),
        ('{"t": "{{ template }}", "u": {{ template }} }', "json", {"t": "{{ n }}", "u": "{{ n }}"}),
        ('{"{{ n }}": "\\"{{ n }}"}', "json", {"{{ n }}": '"3'}),
        ('{"input": 1, "other": 2}', "json", {"input": 1, "other": 2}),
        ("{}", "json", {}),
    ],
)
def test_auto(text, kind, value):
    assert read(text) == Body(kind, value)
    assert read(text).is_text is (kind == "text")


@pytest.mark.parametrize("text", ["{{ n", '{"a": "{{ zzz }}"}', "{{ zzz }}", "\\frac{{a}}{{b}}"])
def test_verbatim_sends_braces_as_they_are(text):
    with pytest.raises(InputError):
        read(text)
    body = read(text, verbatim=True)
    assert body.value == (json.loads(text) if text.startswith('{"') else text)


def test_the_kind_can_be_said():
    assert read('{"a": 1', "text").value == '{"a": 1'
    assert read('"words"', "json") == Body("json", "words")
    assert read("{{ n }}", "json") == Body("json", 3)
    assert read("[1]", "text") == Body("text", "[1]")
    with pytest.raises(InputError, match="did you mean 'json'"):
        read("x", "jsn")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1,}', "line 1, column "),
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ('{"a": {{ n }}, "b" 2}', "line 1, column 20"),
        ('{"a": {{\n n\n}},\n "c": {{ n }}, "b" 2}', "line 4, column 20"),
        ("{a: 1}", "line 1, column 2"),
        ('{"a": "never', "line 1, column 7"),
        ("{", "column"),
    ],
)
def test_broken_json_says_where_and_how_to_send_it_as_text(text, where):
    with pytest.raises(InputError) as caught:
        read(text)
    assert where in str(caught.value)
    assert "--as text" in str(caught.value)


@given(st.text(alphabet='{}[]":,1ax \n'), st.text(alphabet=" n\n", max_size=5))
def test_the_place_of_an_error_is_that_without_templates_before_it(tail, gap):
    """A template in front of an error moves it by its own length and nothing else."""
    plain = '{"a": 1,' + tail
    try:
        json.loads(plain)
    except json.JSONDecodeError as error:
        expected = error.pos
    else:
        return
    template = "{{ n" + gap + "}}"
    if "{{" in tail or "n" in gap:
        return
    text = plain.replace("1", template, 1)
    offset = expected + len(template) - 1
    line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
    with pytest.raises(InputError, match=rf"line {line}, column {column};"):
        read(text)


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}"]
)
def test_json_that_only_python_would_take(text):
    with pytest.raises(InputError, match="JSON"):
        read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_json_is_read_as_it_is(value):
    if "input" not in value:
        assert read_body(json.dumps(value), "json", namespace={}, verbatim=True) == Body("json", value)


@given(JSON)
def test_a_value_in_a_template_is_the_value_in_the_input(value):
    body = read_body('{"a": {{ v }}, "b": "{{ v }}", "c": ["{{ v }}"]}', namespace={"v": value})
    assert body.value == {"a": value, "b": value, "c": [value]}


# ------------------------------------------------------------------ YAML, Python


def test_yaml():
    text = 'workflow: "{{ wf }}"\nimages: [{name: sketch.png}]\nday: 2024-01-01\nn: 3\nyes: true\n'
    assert read(text, "yaml").value == {
        "workflow": NAMES["wf"],
        "images": [{"name": "sketch.png"}],
        "day": "2024-01-01",
        "n": 3,
        True: True,
    }
    assert read("a: '{{ zzz }}'", "yaml", verbatim=True).value == {"a": "{{ zzz }}"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: [1,\n", "line 3, column 1"),
        ("a: 1\n b: 2\n", "line 2, column 3"),
        ("a: {{ n }}", 'a template stands in quotes: "{{ x }}"'),
        ("!!python/object/apply:os.system ['true']", "constructor"),
        ("a: 1\n---\nb: 2", "line 2, column 1"),
        ("", "empty YAML"),
        ("a: \x01", "not YAML"),
    ],
)
def test_broken_yaml(text, part):
    with pytest.raises(InputError) as caught:
        read(text, "yaml")
    assert part in str(caught.value)


def test_python():
    assert read('{"q": q, "d": docs[:1], "t": template}', "python").value == {
        "q": NAMES["q"],
        "d": ["a"],
        "t": "{{ n }}",
    }
    assert read("\n  [n,\n   n + 1]\n", "python") == Body("python", [3, 4])
    assert read("{'input': n, 'policy': {'ttl': 1}}", "python") == Body("python", 3, {"policy": {"ttl": 1}})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x = 1", "line 1, column 3"),
        ("{'a': 1,\n 'b' 2}", "line 2, column"),
        ("", "not one Python expression"),
        ("1\x00", "not one Python expression"),
        ("{'a': zzz}", "NameError: name 'zzz' is not defined"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_broken_python(text, part):
    with pytest.raises(InputError) as caught:
        read(text, "python")
    assert part in str(caught.value)


def test_python_leaves_the_namespace_as_it_was():
    names = dict(NAMES)
    read_body("(y := n)", "python", namespace=names)
    assert names == NAMES


# ------------------------------------------------------------------ whole requests


@pytest.mark.parametrize("kind", ["json", "yaml", "python"])
def test_whole_request(kind):
    beside = {
        "policy": {"ttl": 60000},
        "webhook": "https://h/x",
        "webhookV2": "https://h/y",
        "s3Config": {"accessId": "i"},
    }
    text = json.dumps({"input": {"a": 1}, **beside})
    assert read(text, kind) == Body(kind, {"a": 1}, beside)
    assert read('{"input": {"a": 1}}', kind) == Body(kind, {"a": 1}, {})
    assert read('{"input": 1, "prompt": "x"}', kind).request is None
    assert read('{"policy": {}}', kind).request is None
    assert read('[{"input": 1}]', kind).request is None


def test_templates_in_a_whole_request():
    assert read('{"input": {"n": {{ n }}}, "webhook": "https://h/{{ n }}"}') == Body(
        "json", {"n": 3}, {"webhook": "https://h/3"}
    )


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ([], {}),
        (["a=1"], {"a": 1}),
        (["a=text", "b=1.5", "c=true", "d=null", 'e="1"', "f="], {"a": "text", "b": 1.5, "c": True, "d": None, "e": "1", "f": ""}),
        (["a.b=1", "a.c.d=[1, 2]"], {"a": {"b": 1, "c": {"d": [1, 2]}}}),
        (["a=1", "a=2"], {"a": 2}),
        (["a.b=1", "a=2"], {"a": 2}),
        (['a={"x": 1}', "a.y=2"], {"a": {"x": 1, "y": 2}}),
        (["a=b=c"], {"a": "b=c"}),
        (["a={{ docs }}", "b=x{{n}}", 'c={"z": "{{ q }}", "w": {{ n }}}'], {"a": ["a", "b"], "b": "x3", "c": {"z": NAMES["q"], "w": 3}}),
        (["a={{ template }}"], {"a": "{{ n }}"}),
        (["a=NaN", "b=007", "c={not json"], {"a": "NaN", "b": "007", "c": "{not json"}),
    ],
)  # fmt: skip
def test_parameters(items, value):
    assert parse_parameters(items, NAMES) == value


def test_parameters_verbatim():
    assert parse_parameters(["a={{ zzz }}"], NAMES, verbatim=True) == {"a": "{{ zzz }}"}


def test_parameters_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("1 {{ n }}\n", encoding="utf-8")
    (tmp_path / "3.json").write_text('{"x": [1]}', encoding="utf-8")
    items = [f"a=@{tmp_path}/a.txt", f"b.c=@{tmp_path}/{{{{ n }}}}.json"]
    assert parse_parameters(items, NAMES) == {"a": "1 {{ n }}\n", "b": {"c": {"x": [1]}}}


@pytest.mark.parametrize(
    ("content", "name", "part"),
    [
        (None, "no.txt", "cannot be read: No such file"),
        (b"\xff", "a.txt", "not UTF-8"),
        (b"{\n", "a.json", "not JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, name, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        parse_parameters([f"f=@{tmp_path}/{name}"], NAMES)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("items", "part"),
    [
        (["temperature"], "key=value"),
        (["=1"], "key=value"),
        (["a..b=1"], "key=value"),
        ([".a=1"], "key=value"),
        (["a=1", "a.b=2"], "-p a.b: 'a' is 1 already"),
        (["a.b=text", "a.b.c=2"], "-p a.b.c: 'a.b' is \"text\" already"),
        (["a={{ zzz }}"], "no variable 'zzz'"),
    ],
)
def test_bad_parameters(items, part):
    with pytest.raises(InputError) as caught:
        parse_parameters(items, NAMES)
    assert part in str(caught.value)


def test_params_option():
    assert read_parameters("wf", NAMES) == NAMES["wf"]
    assert read_parameters(' {"a": {{ n }}, "b": "{{ q }}"}', NAMES) == {"a": 3, "b": NAMES["q"]}
    assert read_parameters("{{ wf }}", NAMES) == NAMES["wf"]
    for text, part in [
        ("n", "is int"),
        ("nn", "did you mean 'n'"),
        ("[1]", "variable's name"),
        ("{", "JSON"),
    ]:
        with pytest.raises(InputError) as caught:
            read_parameters(text, NAMES)
        assert part in str(caught.value)


def test_variable():
    assert read_variable(" docs ", NAMES) is NAMES["docs"]
    assert read_variable("template", NAMES) == "{{ n }}"
    assert read_variable("{{ docs[0] }}", NAMES) == "a"
    with pytest.raises(InputError, match=r"-i takes a variable's name; .*did you mean 'docs'"):
        read_variable("dcs", NAMES)


# ------------------------------------------------------------------ durations, option lines, listings


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("500ms", 0.5), ("1d", 86_400), ("1.5h", 5400), (" 0 ", 0), (".5", 0.5), ("2 h", 7200)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "1h30m", "ten", "1e3", "inf", "nan", "1 2", "१s"])
def test_bad_durations(text):
    with pytest.raises(InputError, match="10m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("body", "tokens", "rest"),
    [
        ("Hello\n", [], "Hello\n"),
        ("", [], ""),
        ("#| max-tokens: 200\nHello\n", ["--max-tokens", "200"], "Hello\n"),
        ("#| max_tokens: 200\n", ["--max-tokens", "200"], ""),
        ("#| t: 0.2\n#| s: You are terse.\n\nHi", ["-t", "0.2", "-s", "You are terse."], "\nHi"),
        (
            "#|s: 'a \"b\"'\n#| p: x=1\n#| p: y={{ a b }}\n",
            ["-s", 'a "b"', "-p", "x=1", "-p", "y={{ a b }}"],
            "",
        ),
        ("#| bg\n#| quiet: true\n#| verbatim: false\nx", ["--bg", "--quiet"], "x"),
        ("#| webhook: https://h/x\r\nx\r\n", ["--webhook", "https://h/x"], "x\r\n"),
        ("#| s: 'one' and 'two'\n", ["-s", "'one' and 'two'"], ""),
        ("Hello\n#| t: 1\n", [], "Hello\n#| t: 1\n"),
    ],
)
def test_option_lines(body, tokens, rest):
    assert option_lines(body) == (tokens, rest)


@pytest.mark.parametrize(
    ("body", "part"), [("#| : x\n", "key: value"), ("#|\n", "key: value"), ("#| s: 'x\n", "not closed")]
)
def test_bad_option_lines(body, part):
    with pytest.raises(InputError) as caught:
        option_lines(body)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("  Hello\n world ", "Hello world"),
        ({"prompt": "Hi", "max_tokens": 3}, "Hi"),
        ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Ask"}]}, "Ask"),
        ({"openai_route": "/v1", "openai_input": {"messages": [{"role": "user", "content": "Ask"}]}}, "Ask"),
        ({"n": 1}, '{"n": 1}'),
        ([1, 2], "[1, 2]"),
        (None, "null"),
        ({"x": object()}, '{"x": "<object>"}'),
    ],
)
def test_first_words(value, words):
    assert first_words(value) == words


@given(JSON, st.integers(5, 80))
def test_first_words_fit_on_a_line(value, n):
    words = first_words(value, n)
    assert len(words) <= n
    assert len(words.splitlines()) <= 1
