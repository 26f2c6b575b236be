from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.errors import InputError
from notebook_ext.templates import expand, render_text, template_spans


class Frame:
    """Speaks as a DataFrame does."""

    class text:
        @staticmethod
        def head(n):
            class Column:
                @staticmethod
                def tolist():
                    return list(range(n))

            return Column


NAMES = {
    "audience": "children",
    "n": 3,
    "d": {"k": [1, 2]},
    "book": "x" * 300_000,
    "df": Frame,
    "quoted": 'say "hi"\n\\',
    "template": "{{ n }} {{ missing }}",
    "result": 5,
    "_": "last",
    "none": None,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ n }}", 3),
        ("{{n}}", 3),
        ("{{\nn\n}}", 3),
        ("{{ none }}", None),
        ("{{ d }}", {"k": [1, 2]}),
        ("{{ d.k[1] }}", 2),
        ("{{ d['k'] }}", [1, 2]),
        ("{{ df.text.head(20).tolist() }}", list(range(20))),
        ("{{ book[:200_000] }}", "x" * 200_000),
        ("{{ {'a': {'b': n}} }}", {"a": {"b": 3}}),
        ("{{ '}}' }}", "}}"),
        ('{{ "{{" }}', "{{"),
        ("{{ n > 2 and audience == 'children' }}", True),
        ("{{ missing|default('x') }}", "x"),
        ("{{ len(d.k) + sum(d.k) }}", 5),
        ("{{ range(3)|list }}", [0, 1, 2]),
        ("{{ result }}", 5),
        ("{{ _ }}", "last"),
        ("{{ template }}", "{{ n }} {{ missing }}"),
        (" {{ n }}", " 3"),
        ("{{ n }}{{ n }}", "33"),
        ("for {{ audience|upper }}!", "for CHILDREN!"),
        ("{{ -n }}", -3),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_expand(text, value):
    given = expand(text, NAMES)
    assert given == value
    assert type(given) is type(value)


def test_expand_goes_into_lists_and_objects_and_leaves_keys_alone():
    value = {"{{ n }}": ["{{ n }}", {"a": "x{{ n }}"}], "b": 1.5, "c": None, "d": True}
    assert expand(value, NAMES) == {"{{ n }}": [3, {"a": "x3"}], "b": 1.5, "c": None, "d": True}


@pytest.mark.parametrize(
    "text",
    [
        "{% if n %}{# comment #}{{ n }}{% endif %}\n\n",
        'line one\r\nline two\r {{ n }} {"a": {"b": 1}}\t\n',
        "\\frac{a}{b} $x_{i}$ {{ n }} } }} { \n\n\n",
        "## title\n-- {{ n }}\n# comment\n",
        "{ {{ n }} }",
    ],
)
def test_only_braces_are_live_and_the_rest_is_byte_for_byte(text):
    assert render_text(text, NAMES) == text.replace("{{ n }}", "3")


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_templates_is_untouched(text):
    assert expand(text, {}) == text
    assert render_text(text, {}) == text


@given(
    st.text(), st.text().filter(lambda text: "{" not in text), st.text().filter(lambda text: "{" not in text)
)
def test_values_are_never_rendered_again(value, before, after):
    assert expand("{{ x }}", {"x": value}) == value
    assert render_text(f"{before}{{{{ x }}}}{after}", {"x": value}) == f"{before}{value}{after}"


@given(st.text(alphabet="{}'\"\\ax%#\n"))
def test_any_braces_give_a_text_or_our_error(text):
    with contextlib.suppress(InputError):
        assert isinstance(render_text(text, {"a": 1, "x": 2}), str)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{{ audiance }}", ["no variable 'audiance'", "did you mean 'audience'?"]),
        ("{{ zzz }}", ["no variable 'zzz'", "--verbatim"]),
        ("{{ zzz.y }}", ["no variable 'zzz'"]),
        ("{{ zzz() }}", ["no variable 'zzz'"]),
        ("x {{ zzz }} y", ["no variable 'zzz'"]),
        ("{{ d.missing }}", ["no attribute 'missing'"]),
        ("\\frac{{a}}{{b}}", ["no variable 'a'", "--verbatim"]),
        ("\\frac{{a+}}{{b}}", ["{{a+}} is not a template", "--verbatim"]),
        ("one\n {{ n", ["line 2, column 2", "--verbatim"]),
        ("{{ n } }", ["has no '}}'"]),
        ("v = {{1,2},{3,4}};", ["has no '}}'", "--verbatim"]),
        ("{{}}", ["an expression was expected"]),
        ("{{- n -}}", ["an expression was expected"]),
        ("{{ n n }}", ["is not a template"]),
        ("{{ n|nofilter }}", ["nofilter"]),
        ("{{ 1 / 0 }}", ["ZeroDivisionError: division by zero"]),
        ("{{ d['k'].index(9) }}", ["ValueError"]),
        ("{{ ''.__class__ }}", ["not allowed in a template"]),
        ("{{ d.__class__.__mro__ }}", ["not allowed in a template"]),
        ("{{ '{0.__class__}'.format(n) }}", ["not allowed in a template"]),
        ("{{ df.text.head.__globals__ }}", ["not allowed in a template"]),
        ("{{ lipsum }}", ["no variable 'lipsum'"]),
        ("{{ open('/etc/passwd') }}", ["no variable 'open'"]),
    ],
)
def test_what_cannot_be_rendered_is_explained(text, parts):
    with pytest.raises(InputError) as caught:
        expand(text, NAMES)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_long_expression_is_cut_in_the_message():
    with pytest.raises(InputError) as caught:
        expand("{{ " + "zzz + " * 100 + "1 }}", NAMES)
    assert len(str(caught.value)) < 200


def test_an_interrupt_in_an_expression_passes():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expand("{{ stop() }}", {"stop": stop})


def test_the_namespace_is_not_changed():
    names = {"items": [1]}
    expand("{{ items }} {{ items|length }}", names)
    assert names == {"items": [1]}


def test_spans():
    text = "a {{ x }} b {{ {'y': '}}'} }}"
    assert [text[start:end] for start, end in template_spans(text)] == ["{{ x }}", "{{ {'y': '}}'} }}"]
