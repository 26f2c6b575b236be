"""How a line is read: tables of what is typed and what it means, or what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

from notebook_ext import grammar, vocabulary
from notebook_ext.errors import InputError

ENDPOINTS = ("demo", "llama")


def _read(line: str, body: str | None = None) -> grammar.Command:
    return grammar.parse(line, body, endpoints=ENDPOINTS)


# ---------------------------------------------------------------------------------- what is meant


@pytest.mark.parametrize(
    ("line", "verb", "target"),
    [
        ("", "run", None),
        ("run", "run", None),
        ("run demo", "run", "demo"),
        ("llama", "run", "llama"),
        ("llama -t 0.2", "run", "llama"),
        ("--bg llama", "run", "llama"),
        ("run -t 0.2 llama", "run", "llama"),
        ("-- hello", "run", None),
        ("{{ name }}", "run", "{{ name }}"),
        ("  run   demo  ", "run", "demo"),
        ("runsync demo", "runsync", "demo"),
        ("health", "health", None),
        ("purge llama --yes", "purge", "llama"),
    ],
)
def test_the_verb_and_its_target(line: str, verb: str, target: str | None) -> None:
    command = _read(line)
    assert command.verb is vocabulary.VERBS[verb]
    assert command.arguments.target == target


def test_attach_is_stream() -> None:
    assert _read("attach @3").verb is vocabulary.VERBS["stream"]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        # quotes, as a POSIX shell has them
        ('run -s "You are terse."', "system", "You are terse."),
        ("run -s 'You are terse.'", "system", "You are terse."),
        ('run -s "it\'s fine"', "system", "it's fine"),
        ("run -s 'say \"so\"'", "system", 'say "so"'),
        (r'run -s "say \"so\""', "system", 'say "so"'),
        (r"run -s two\ words", "system", "two words"),
        ('run -s ""', "system", ""),
        ('run -s "a -- b" demo', "system", "a -- b"),
        # so are dashes alone
        ("run --stop --- demo", "stop", ["---"]),
        ("run -s ---- demo", "system", "----"),
        ("run -s '- be terse' demo", "system", "- be terse"),
        # a template is one word, whatever is in it
        ("run -s {{ a }}", "system", "{{ a }}"),
        ("run -s {{ ' -- ' }}", "system", "{{ ' -- ' }}"),
        ("run -s {{ d['it''s'] + \"b\" }}", "system", "{{ d['it''s'] + \"b\" }}"),
        ("run -s {{ {'a': {'b': 1}}['a'] }}", "system", "{{ {'a': {'b': 1}}['a'] }}"),
        ('run -s "be {{ how }}, please"', "system", "be {{ how }}, please"),
        ("run -p x={{ a | tojson }} demo", "parameters", ["x={{ a | tojson }}"]),
        ("run -s \ue0000\ue001{{ a }}", "system", "\ue0000\ue001{{ a }}"),
        # negative numbers are values
        ("run -t -1", "temperature", "-1"),
        ("run -t -0.5 demo", "temperature", "-0.5"),
        ("run --seed -1", "seed", "-1"),
        ("run --seed=-1", "seed", "-1"),
        ("run -t=-1", "temperature", "-1"),
        # short and long, apart and together
        ("run -t 0.2", "temperature", "0.2"),
        ("run -t0.2", "temperature", "0.2"),
        ("run --max-tokens=200", "max_tokens", "200"),
        ("run --max-tokens 200", "max_tokens", "200"),
        ("run -p a=1 -p b.c=@file", "parameters", ["a=1", "b.c=@file"]),
        ("run -p 'a={\"b\": [1, 2]}'", "parameters", ['a={"b": [1, 2]}']),
        ("run -P extra", "params", "extra"),
        ("run --params extra", "params", "extra"),
        ("run -i text", "input", "text"),
        ("run --input text", "input", "text"),
        ("run --stop a --stop b", "stop", ["a", "b"]),
        ("run -m big", "model", "big"),
        ("run --top-p 0.9", "top_p", "0.9"),
        ("run --profile vllm", "profile", "vllm"),
        ("run", "kind", "auto"),
        ("run --as python", "kind", "python"),
        ("run --verbatim", "verbatim", True),
        ("run", "format", "auto"),
        ("run -f json", "format", "json"),
        ("run --format table", "format", "table"),
        ("run -o job", "out", "job"),
        ("run --out job", "out", "job"),
        ("run -q", "quiet", True),
        ("run --quiet", "quiet", True),
        ("run --bg", "bg", True),
        ("run", "bg", False),
        ("run --timeout 90s", "timeout", "90s"),
        ("run --exec-timeout 2m", "exec_timeout", "2m"),
        ("run --ttl 2h", "ttl", "2h"),
        ("run --low-priority", "low_priority", True),
        ("run --webhook https://a.example/b", "webhook", "https://a.example/b"),
        ("run", "on_interrupt", "cancel"),
        ("run --on-interrupt detach", "on_interrupt", "detach"),
        ("run --dry-run", "dry_run", True),
        ("run --debug", "debug", True),
        ("status", "job", "@last"),
        ("status @17", "job", "@17"),
        ("result abc-u1", "job", "abc-u1"),
        ("wait @1 @2 --timeout 5m", "job", ["@1", "@2"]),
        ("wait @1 --timeout 5m @2", "job", ["@1", "@2"]),
        ("cancel", "job", []),
        ("cancel --all", "all", True),
        ("jobs --active", "active", True),
        ("jobs --since 1d", "since", "1d"),
        ("serve shout --workers 2", "workers", "2"),
        ("serve shout --handler echo --cold-start 3s", "cold_start", "3s"),
        ("serve shout --stop", "stop", True),
        ("connect llama abc123 --provider runpod", "endpoint", "abc123"),
        ("connect llama https://h.example/v2/a --project", "project", True),
        ("connect llama abc --key-env MY_KEY", "key_env", "MY_KEY"),
        ("use llama", "name", "llama"),
        ("login llama", "name", "llama"),
        ("help run", "topic", "run"),
        ("help", "topic", None),
    ],
)
def test_an_option(line: str, name: str, value: Any) -> None:
    assert getattr(_read(line).arguments, name) == value


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("run demo", None),
        ("run demo -- hello", "hello"),
        ("-- hello", "hello"),
        ("run -- Write a haiku about queues", "Write a haiku about queues"),
        ("run demo -- it's raw: \"quotes, 'too", "it's raw: \"quotes, 'too"),
        (r"run demo -- a \ b", r"a \ b"),
        ("run demo -- one -- two --bg", "one -- two --bg"),
        ("run demo -- why?", "why?"),
        ("run demo --", ""),
        ("run demo --   hello  ", "hello"),
        ("run demo --\thello", "hello"),
        ("run -s 'a -- b' -- c", "c"),
        ("run -s it\\'s -- c", "c"),
        ("run -p x={{ ' -- ' }} -- c", "c"),
        ("run demo -- {{ book[:200_000] }}", "{{ book[:200_000] }}"),
        ("run demo -- {{ ' -- ' }}", "{{ ' -- ' }}"),
        ("run demo -- an open {{ brace", "an open {{ brace"),
        ("run demo -- f(x) { }", "f(x) { }"),
        ("run a--b", None),
    ],
)
def test_the_prompt_is_what_stands_after_the_first_free_dashes(line: str, prompt: str | None) -> None:
    assert _read(line).prompt == prompt


@pytest.mark.parametrize(
    ("line", "assign", "verb"),
    [
        ("answer << run demo", "answer", "run"),
        ("answer << demo", "answer", "run"),
        ("answer <<", "answer", "run"),
        ("answer << runsync demo", "answer", "runsync"),
        (" answer  <<  result @last", "answer", "result"),
        ("größe << run demo", "größe", "run"),
        ("run demo -- a << b", None, "run"),
        ("run demo", None, "run"),
    ],
)
def test_assignment(line: str, assign: str | None, verb: str) -> None:
    command = _read(line)
    assert (command.assign, command.verb.name) == (assign, verb)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("answer << run", ("answer", " run")),
        ("answer <<", ("answer", "")),
        ("answer <<run", (None, "answer <<run")),
        ("1st << run", (None, "1st << run")),
        ("a.b << run", (None, "a.b << run")),
        ("run -- a << b", (None, "run -- a << b")),
    ],
)
def test_an_assignment_begins_the_line(line: str, parts: tuple[str | None, str]) -> None:
    assert grammar.split_assignment(line) == parts


# ---------------------------------------------------------------------------------- the body


def test_option_lines_at_the_top_of_a_body_are_options() -> None:
    body = '#| max-tokens: 200\n#| t: -1\n#| s: "You are terse."\n#| bg\n#| quiet: false\nHi\n#| not: one\n'
    command = _read("run demo", body)
    arguments = command.arguments
    assert (arguments.max_tokens, arguments.temperature, arguments.system) == ("200", "-1", "You are terse.")
    assert (arguments.bg, arguments.quiet) == (True, False)
    assert command.body == "Hi\n#| not: one\n"


def test_option_lines_come_after_the_line() -> None:
    assert _read("run demo -t 1", "#| t: 2\nHi").arguments.temperature == "2"


def test_the_body_of_serve_is_python_and_has_no_option_lines() -> None:
    assert _read("serve shout", "#| a comment\ndef handler(job): ...").body == (
        "#| a comment\ndef handler(job): ..."
    )


@pytest.mark.parametrize("body", ["", "\n", "  \n\t\n", None])
def test_a_blank_body_is_the_line_form(body: str | None) -> None:
    command = _read("run -i x", body)
    assert (command.body, command.arguments.input) == (None, "x")


def test_a_blank_body_may_have_a_prompt_on_the_line() -> None:
    assert _read("run -- hello", "\n").prompt == "hello"


# ---------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("line", "body", "said"),
    [
        ("rum demo", None, "'rum' is neither a verb nor a known endpoint; did you mean 'run'?"),
        ("lama", None, "did you mean 'llama'?"),
        ("atach", None, "did you mean 'attach'?"),
        ("xyzzy", None, "`%endpoint help` lists the verbs, `%endpoint list` the endpoints."),
        ("run --max-token 5", None, "%endpoint run: there is no option --max-token; did you mean --max-tokens?"),
        ("run --max-token=5", None, "did you mean --max-tokens?"),
        ("run --max 5", None, "there is no option --max"),  # no abbreviations
        ("status --bg", None, "%endpoint status: there is no option --bg"),
        ("run --nonsense-of-mine", None, "`%endpoint help run` shows what it takes"),
        ("run -f jsn", None, "%endpoint run: -f/--format cannot be 'jsn'; did you mean json? `%endpoint help run` shows"),
        ("run --as yml", None, "did you mean yaml?"),
        ("run --on-interrupt wait", None, "--on-interrupt cannot be 'wait'; there are cancel, detach;"),
        ("run -t", None, "argument -t: expected one argument"),
        ("run --stop=--", None, "a value cannot be '--' alone"),
        ("run -s '--' demo", None, "a value cannot be '--' alone"),
        ("run -t --seed 1", None, "argument -t: expected one argument"),
        ("run --bg=1", None, "--bg"),
        ("code @last python", None, "'python' is one word too many; did you mean --python?"),
        ("replay on", None, "MODE cannot be 'on'; did you mean auto?"),
        ("run demo hello", None, "'hello' is one word too many; prompt text comes after ' -- '"),
        ("status @1 @2", None, "'@2' is one word too many"),
        ("connect llama", None, "the following arguments are required: URL-or-ID"),
        ("use", None, "the following arguments are required: name"),
        ("run -s 'open", None, "a quote or backslash on the line is not closed"),
        ("run it's", None, "put prompt text after ' -- ', where quotes mean nothing"),
        ("run demo\\", None, "not closed"),
        ("run demo -- a", "b", "there is a prompt after ' -- ' and another one in the cell's body"),
        ("status -- a", None, "%endpoint status takes no text after ' -- '"),
        ("serve x -- a", None, "%endpoint serve takes no text after ' -- '"),
        ("status @last", "text", "%%endpoint status has no cell form"),
        ("x << health demo", None, "x << takes a result, and %endpoint health gives none"),
        ("run demo", "#| no option line !\nHi", "is no option line"),
        ("run demo", "#| max-token: 5\nHi", "did you mean --max-tokens?"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_explained(line: str, body: str | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(line, body)
    assert said in str(caught.value)


def test_what_was_typed_is_not_repeated_at_length() -> None:
    for line in ("x" * 5000, f"run {'y' * 5000} {'z' * 5000}", f"run --{'o' * 5000}", f"run -f {'f' * 5000}"):
        with pytest.raises(InputError) as caught:
            _read(line)
        assert len(str(caught.value)) < 400


# ---------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", vocabulary.VERBS.values(), ids=lambda verb: verb.name)
def test_the_example_of_every_verb_can_be_read(verb: vocabulary.Verb) -> None:
    first, newline, body = verb.example.partition("\n")
    _, found, line = first.partition("%endpoint ")
    assert found
    assert verb.example.startswith("%%endpoint ") == bool(newline) == (first[:2] == "%%")
    assert _read(line, body if newline else None).verb is verb


@pytest.mark.parametrize("topic", [*vocabulary.VERBS, *vocabulary.ALIASES])
def test_the_help_of_every_verb(topic: str) -> None:
    verb = vocabulary.VERBS[vocabulary.ALIASES.get(topic, topic)]
    text = grammar.help_text(topic)
    assert text.startswith(verb.summary)
    assert f"Usage: %endpoint {verb.name}" in text
    assert text.endswith(f"Example:\n\n{verb.example}")
    for option in verb.options:
        assert option in text
    assert ("%%endpoint" in text.partition("Example:")[0]) == verb.cell


def test_the_help_of_an_unknown_verb_says_what_is_near() -> None:
    with pytest.raises(InputError, match="did you mean 'status'"):
        grammar.help_text("statis")


def test_the_overview_names_every_verb() -> None:
    lines = grammar.overview().splitlines()
    for verb in vocabulary.VERBS.values():
        assert any(line.split()[:1] == [verb.name] and verb.summary in line for line in lines)


def test_help_does_not_ask_the_terminal_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    narrow = grammar.help_text("run")
    monkeypatch.setenv("COLUMNS", "300")
    assert grammar.help_text("run") == narrow


def test_every_verb_offers_its_options() -> None:
    for verb in vocabulary.VERBS.values():
        assert len(verb.options) == len(set(verb.options))
        assert all(option.startswith("-") for option in verb.options)
    assert {"-p", "--max-tokens", "--on-interrupt"} <= set(vocabulary.VERBS["run"].options)
