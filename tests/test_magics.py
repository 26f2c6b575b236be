"""The magics in a shell without a kernel, against endpoints that are really served.

What is shown in a notebook is for test_headless and the browser; here a cell's text is read as a terminal has it.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from inshell import KEY, TRACEBACK, Gate

from notebook_ext import JobHandle, verbs
from notebook_ext.errors import ConfigurationError, EndpointError
from notebook_ext.grammar import VERBS
from notebook_ext.types import Health, Job, JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from IPython.core.interactiveshell import InteractiveShell


def boom(job: dict[str, Any]) -> None:
    raise ValueError("no such luck")


# ---------------------------------------------------------------------------------- the cells of the grammar


def test_the_first_line_needs_no_account(notebook):
    text = notebook.run(
        "%endpoint run -p tokens_per_second=100 -p max_tokens=60 -- Write a haiku about queues"
    )
    assert "no model" in text
    assert re.search(
        r"^@1 · demo · COMPLETED · .* queue · .* run · first token .* chunks/s$", text, re.MULTILINE
    )


def test_a_cell_serves_its_handler(notebook):
    notebook.run("""%%endpoint serve shout --workers 2
import time
def handler(job):
    for word in job["input"]["prompt"].split():
        time.sleep(0.005)
        yield word.upper() + " "
""")
    assert "IT'S ALIVE? \n" in notebook.run("%endpoint shout -- it's alive?")
    assert notebook.value("%endpoint health shout").workers["idle"] == 2


def test_an_endpoint_is_connected_used_listed_and_forgotten(notebook, tmp_path):
    text = notebook.run(
        "%endpoint connect llama abc123 --provider runpod --profile vllm --key-env RUNPOD_API_KEY --rate 0.0002"
    )
    assert "llama is abc123 at runpod" in text
    assert "%endpoint login llama" in text
    saved = next((tmp_path / "config").iterdir()).read_text()
    assert "RUNPOD_API_KEY" in saved
    notebook.run("%endpoint use llama")
    assert "* llama  abc123 at runpod, profile vllm" in notebook.run("%endpoint list")
    notebook.run("%endpoint forget llama")
    assert "llama" not in notebook.run("%endpoint list")
    assert "* demo" in notebook.run("%endpoint list")


def test_a_project_keeps_its_endpoints_beside_its_notebooks(notebook, tmp_path):
    notebook.run("%endpoint connect llama abc123 --project")
    assert "abc123" in (tmp_path / ".notebook_ext.toml").read_text()


def test_a_dry_run_prints_the_exact_request_and_sends_nothing(connected, provider):
    connected.names["audience"] = "children"
    text = connected.run("""%%endpoint run llama -s "You are terse." -t 0.2 --max-tokens 200 --exec-timeout 2m --ttl 2h --low-priority --dry-run
Explain to {{ audience }} what this returns: {"a": {"b": 1}}
""")
    head, _, rest = text.strip().partition("\n\n")
    assert head.splitlines() == [
        f"POST {provider.url}/abc123/run",
        "Authorization: Bearer [key]",
        "Content-Type: application/json",
    ]
    body, _, note = rest.rpartition("\n\n")
    request = json.loads(body)
    assert request["policy"] == {"executionTimeout": 120_000, "ttl": 7_200_000, "lowPriority": True}
    assert request["input"]["messages"] == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": 'Explain to children what this returns: {"a": {"b": 1}}'},
    ]
    assert request["input"]["sampling_params"] == {"temperature": 0.2, "max_tokens": 200}
    assert "read as text, profile vllm; nothing was sent" in note
    assert provider.sent() == 0
    assert "@last" not in connected.names
    assert connected.session.handles == {}


def test_what_a_dry_run_prints_is_what_is_sent(connected, provider):
    cell = '%%endpoint run llama -s "You are terse." -p extra.depth=2 {}\nHello'
    request = json.loads(connected.run(cell.format("--dry-run")).split("\n\n")[1])
    connected.run(cell.format("-o job"))
    assert connected.names["job"].output() == request["input"]


def test_a_value_is_assigned_from_a_python_body(notebook):
    notebook.handlers(rerank=lambda job: sorted(job["input"]["documents"], reverse=True))
    notebook.names.update(q="x", documents=["a", "b"])
    notebook.run("""%%endpoint scores << runsync rerank --as python --timeout 30s
{"query": q, "documents": documents}
""")
    assert notebook.names["scores"] == ["b", "a"]
    notebook.run("%endpoint again << result @last")
    assert notebook.names["again"] == ["b", "a"]
    notebook.run("%endpoint line << run rerank -p documents=[1,2]")
    assert notebook.names["line"] == [2, 1]


def test_a_background_job_is_looked_at_and_cancelled_at_its_handler(notebook, gate):
    notebook.names["book"] = "word " * 1000
    assert "runs in the background" in notebook.run(
        "%endpoint run gate --bg -o j --ttl 2h -- Summarise {{ book[:200_000] }}"
    )
    assert gate.begun.wait(10)
    assert notebook.value("%endpoint status @last").status is JobStatus.IN_PROGRESS
    assert re.search(
        r"^@1 CANCELLED after [\d.]+ s of execution$", notebook.run("%endpoint cancel @last"), re.MULTILINE
    )
    assert gate.ended.wait(10)
    assert not gate.go.is_set()
    assert notebook.names["j"].status is JobStatus.CANCELLED


def test_the_same_from_python(echo):
    assert echo.value(
        "from notebook_ext import connect\nconnect('echo').submit({'prompt': 'hi'}).output(timeout=60)"
    ) == {"prompt": "hi"}


# ---------------------------------------------------------------------------------- prompts and inputs


@pytest.mark.parametrize(
    "typed",
    [
        "it's \"quoted\" and isn't closed: '",
        "is it {x} or $x or !ls or %time?",
        "what is this?",
        "what is this??",
        "a -- b --max-tokens 3",
        r"a backslash \n and \frac{a}{b}",
    ],
)
def test_the_text_after_two_dashes_arrives_as_it_was_typed(echo, typed):
    echo.names["x"] = "EXPANDED"
    assert echo.input(f"%endpoint run -o job -- {typed}") == {"prompt": typed}
    echo.run(f"x = %endpoint run -- {typed}")
    assert echo.names["x"].output() == {"prompt": typed}
    assert echo.input(f"if True:\n    %endpoint run -o job -- {typed}") == {"prompt": typed}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (
            "%%endpoint run -o job\nHello {{ who }},\n\n  {x} $x {% if %} {# #}",
            "Hello world,\n\n  {x} $x {% if %} {# #}",
        ),
        ("%%endpoint run -o job --verbatim\n\\frac{{a}}{{b}}", "\\frac{{a}}{{b}}"),
        ("%%endpoint run -o job\n{{ tricky }}", '{{ who }} "quoted"'),
        ("%%endpoint run -o job\n[INST] hi [/INST]", "[INST] hi [/INST]"),
        ('%%endpoint run -o job --as text\n{"a": 1}', '{"a": 1}'),
        ("%endpoint run -o job -i who", "world"),
        ("%endpoint run -o job -p prompt='two words'", "two words"),
        ('%%endpoint run -o job\n#| as: text\n{"a": 1}', '{"a": 1}'),
    ],
)
def test_text_goes_to_the_prompt(echo, cell, expected):
    echo.names.update(who="world", tricky='{{ who }} "quoted"', x=1)
    assert echo.input(cell) == {"prompt": expected}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (
            '%%endpoint run -o job\n{"a": "{{ tricky }}", "n": "{{ number }}", "m": {{ number }}}',
            {"a": 'say "hi"', "n": 7, "m": 7},
        ),
        ("%%endpoint run -o job\n[1, 2]", [1, 2]),
        ('%%endpoint run -o job --as yaml\na: [1, two]\nb: "{{ number }}"', {"a": [1, "two"], "b": 7}),
        ("%%endpoint run -o job --as python\n{'n': number + 1}", {"n": 8}),
        ('%%endpoint run -o job\n{"input": {"a": 1}, "policy": {"ttl": 20000}}', {"a": 1}),
        (
            "%endpoint run -o job -p a.b=1 -p a.c=text -p d={{number}} -p e='{\"f\": null}'",
            {"a": {"b": 1, "c": "text"}, "d": 7, "e": {"f": None}},
        ),
        ("%endpoint run -o job -P settings -p steps=9", {"steps": 9, "size": {"w": 1}}),
        ("%endpoint run -o job -P '{\"steps\": 1}'", {"steps": 1}),
        ("%endpoint run -o job -i settings", {"steps": 1, "size": {"w": 1}}),
        ("%%endpoint run -o job -i settings\n", {"steps": 1, "size": {"w": 1}}),
        (
            "%endpoint run -o job -p text=@prompt.txt -p more=@more.json",
            {"text": "from a file {{ number }}", "more": {"x": 1}},
        ),
        ("%%endpoint run -o job\n#| p: a=1\n#| s: be brief\nHi", None),
    ],
)
def test_values_go_to_the_input(echo, cell, expected, tmp_path):
    (tmp_path / "prompt.txt").write_text("from a file {{ number }}")
    (tmp_path / "more.json").write_text('{"x": 1}')
    echo.names.update(tricky='say "hi"', number=7, settings={"steps": 1, "size": {"w": 1}})
    if expected is None:
        assert "-s" in echo.error(cell)
    else:
        assert echo.input(cell) == expected


def test_option_lines_are_options(connected):
    connected.run("%%endpoint run llama -o job\n#| max-tokens: 5\n#| s: be brief\n#| quiet\nHi")
    received = connected.names["job"].output()
    assert received["sampling_params"] == {"max_tokens": 5}
    assert [message["content"] for message in received["messages"]] == ["be brief", "Hi"]


def test_a_template_sees_the_variables_of_its_function(echo):
    echo.names["place"] = "notebook"
    echo.run(
        "def ask(question):\n    job = %endpoint run -q -p q={{ question }} -- {{ question }} in a {{ place }}\n    return job.output()"
    )
    assert echo.value("ask('who')") == {"q": "who", "prompt": "who in a notebook"}


def test_a_template_names_the_endpoint_and_the_option(echo):
    echo.names.update(where="echo", n=3)
    assert echo.input("%endpoint run {{ where }} -o job -p n={{ n }}") == {"n": 3}


@pytest.mark.parametrize(
    ("typed", "milliseconds"),
    [("90", 90_000), ("90s", 90_000), ("10m", 600_000), ("2h", 7_200_000), ("30500ms", 30_500)],
)
def test_a_bare_number_is_seconds_and_the_wire_has_milliseconds(echo, typed, milliseconds):
    request = json.loads(echo.run(f"%endpoint run --exec-timeout {typed} --dry-run -- hi").split("\n\n")[1])
    assert request["policy"]["executionTimeout"] == milliseconds


# ---------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("output", "format", "shown"),
    [
        ({"a": [1]}, "auto", '"a"'),
        ([{"n": 1, "s": "x"}], "table", "n  s\n1  x"),
        ("a *b*", "text", "a *b*"),
        ("a *b*", "markdown", "a *b*"),
        ("print(1)", "code", "print(1)"),
        ("<b>x</b>", "html", "<b>x</b>"),
        ({"a": 1}, "json", '"a": 1'),
        ({"a": 1}, "raw", "{'a': 1}"),
    ],
)
def test_a_format_says_how_it_is_shown(notebook, output, format, shown):
    notebook.handlers(fixed=lambda job: output)
    assert shown in notebook.run(f"%endpoint run fixed -f {format} -- x")


def test_none_shows_the_footer_and_quiet_not_even_that(echo):
    assert echo.run("x = %endpoint run -f none -- x").startswith("@1 · echo · COMPLETED")
    assert echo.run("x = %endpoint run -q -- x") == ""


def test_a_format_that_does_not_fit_says_so_and_loses_nothing(echo):
    text = echo.run("%endpoint run -f image -o job -- x")
    assert text.startswith("InputError: -f image found no image in this output")
    assert '"prompt": "x"' in text
    assert "· COMPLETED ·" in text
    assert '"prompt": "x"' in echo.run("%endpoint show job -f table")


def test_each_verb_returns_what_python_needs(echo):
    echo.run("x = %endpoint run -- hi")
    echo.run(
        "job = %endpoint status\nhealth = %endpoint health\njobs = %endpoint jobs\nresult = %endpoint result\nshown = %endpoint show"
    )
    x = echo.names["x"]
    assert isinstance(x, JobHandle)
    assert isinstance(echo.names["job"], Job)
    assert isinstance(echo.names["health"], Health)
    assert list(echo.names["jobs"]) == [x]
    assert echo.names["result"] == {"prompt": "hi"}
    assert echo.names["shown"] is x
    assert echo.value("%endpoint wait") is x


def test_a_handle_draws_nothing_where_its_job_is_shown_and_its_result_elsewhere(echo):
    assert echo.run("x = %endpoint run -- hi\nx").count('"prompt"') == 1
    assert echo.run("x").count('"prompt"') == 1
    assert "COMPLETED" in echo.run("x")
    assert echo.run("a = %endpoint run -- hi\nb = %endpoint run -- ho\na").count("· COMPLETED ·") == 2


def test_a_job_is_meant_by_number_id_beginning_variable_or_as_the_last(echo):
    echo.run("%endpoint run -o first -- 1\n%endpoint run -o second -- 2")
    first, second = echo.names["first"], echo.names["second"]
    echo.names["snapshot"] = first.job
    for reference, handle in {
        "@1": first,
        "@2": second,
        "@last": second,
        "": second,
        "first": first,
        "snapshot": first,
        first.id: first,
        first.id[:13]: first,
        "{{ first.id }}": first,
    }.items():
        assert echo.value(f"%endpoint show {reference}") is handle, reference
    assert "no job @9; the last one is @2" in echo.error("%endpoint status @9")
    assert "no job nothing-like-this" in echo.error("%endpoint status nothing-like-this")


def test_a_failed_job_fails_its_cell_and_its_handle_is_kept(notebook):
    notebook.handlers(boom=boom)
    notebook.names["answer"] = "old"
    assert re.match(
        r"JobFailed: @\d+ on boom failed after .*: ValueError: no such luck",
        notebook.error("%endpoint run boom -o job -- hi"),
    )
    assert notebook.names["job"].status is JobStatus.FAILED
    notebook.error("%endpoint answer << run boom -- hi")
    assert notebook.names["answer"] == "old"
    assert "-o answer keeps the job's handle instead" in notebook.error(
        "%endpoint answer << run boom --bg -- hi"
    )
    assert notebook.sent() == 2
    assert notebook.names["answer"] == "old"
    notebook.error("%endpoint wait")
    notebook.error("%endpoint result")


def test_a_job_that_could_not_be_submitted_is_no_job(notebook, monkeypatch):
    notebook.run("%endpoint connect llama abc123 --provider http://127.0.0.1:9/v2 --key-env LLAMA_KEY")
    monkeypatch.setenv("LLAMA_KEY", KEY)
    ran = notebook.try_("%endpoint run llama -o job -- hi")
    assert not ran.success
    assert ran.text.startswith("ConnectionFailed: ")
    assert "IN_QUEUE" not in ran.text
    assert notebook.names["job"].never_submitted
    assert notebook.value("%endpoint jobs") == []
    assert "@1 was never submitted" in notebook.run("%endpoint cancel job")
    assert "@1 was never submitted" in notebook.run("%endpoint show job")
    assert "@1 was never submitted" in notebook.error("%endpoint export job job.txt")


def test_a_failed_job_is_retried_under_its_id(notebook):
    tries: list[int] = []

    def second_time_lucky(job: dict[str, Any]) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
        return "at last"

    notebook.handlers(lucky=second_time_lucky)
    notebook.error("%endpoint run lucky -o job -- hi")
    before = notebook.names["job"].id
    assert "at last" in notebook.run("%endpoint retry @last")
    assert notebook.names["job"].id == before
    assert "only a FAILED or TIMED_OUT job" in notebook.error("%endpoint retry @last")


def test_several_jobs_are_waited_for_and_all_are_cancelled(notebook, gate):
    notebook.run("%endpoint serve gate --handler gate_handler --workers 3")
    notebook.run("%endpoint run gate --bg -- 1\n%endpoint run gate --bg -- 2")
    assert [handle.number for handle in notebook.value("%endpoint jobs --active")] == [1, 2]
    gate.go.set()
    text = notebook.run("%endpoint wait @1 @2 --timeout 10s")
    assert text.count("COMPLETED") == 2
    gate.go.clear()
    notebook.run("%endpoint run gate --bg -- 3\n%endpoint run gate --bg -- 4")
    assert notebook.run("%endpoint cancel --all").count("CANCELLED") >= 2
    assert notebook.value("%endpoint jobs --active") == []
    assert "nothing is running" in notebook.run("%endpoint cancel --all")


def test_cancel_all_lets_none_begin_that_was_in_the_queue(notebook):
    begun: list[str] = []
    running = threading.Event()

    def hold(job: dict[str, Any]) -> Iterator[str]:
        begun.append(job["input"]["prompt"])
        running.set()
        while True:
            time.sleep(0.005)
            yield ""

    notebook.names["hold"] = hold
    notebook.run("%endpoint serve hold --handler hold --workers 1")
    for prompt in ("first", "second", "third"):
        notebook.run(f"%endpoint run hold --bg -- {prompt}")
    assert running.wait(10)
    assert notebook.run("%endpoint cancel --all").count("CANCELLED") == 3
    assert begun == ["first"]


def test_more_jobs_than_are_listed_are_told_of(notebook, monkeypatch):
    monkeypatch.setattr(verbs, "LISTED", 2)
    for prompt in ("one", "two"):
        notebook.run(f"%endpoint run demo -q -- {prompt}")
    assert "and more" not in notebook.run("%endpoint jobs")
    notebook.run("%endpoint run demo -q -- three")
    said = notebook.run("%endpoint jobs")
    assert "and more: `%endpoint history --limit 10` shows further ones" in said
    assert "@1" not in said
    assert "@1" in notebook.run("%endpoint jobs --since 1h")


def test_a_stream_is_followed_again_from_its_beginning(notebook, gate):
    notebook.run("%endpoint run gate --bg -o j -- hi")
    assert gate.begun.wait(10)
    gate.go.set()
    for verb in ("stream", "attach", "show"):
        assert "begun done\n@1 · gate · COMPLETED" in notebook.run(f"%endpoint {verb} @1")


def test_what_had_arrived_is_shown_again_whatever_came_after_it(notebook, gate):
    def half(job: dict[str, Any]) -> Iterator[str]:
        yield "so far"
        raise ValueError("no such luck")

    notebook.handlers(half=half)
    notebook.error("%endpoint run half -- hi")
    lines = notebook.run("x = %endpoint show").splitlines()
    assert lines[0] == "so far"
    assert lines[1].startswith("JobFailed: ")
    assert lines[2].startswith("@1 · half · FAILED")
    notebook.run("%endpoint run gate --bg -o j -- hi")
    next(iter(notebook.names["j"].chunks()))
    assert "begun \n@2 · gate · IN_PROGRESS" in notebook.run("j")
    gate.go.set()


def test_a_timeout_cancels_the_job_and_says_so(notebook, gate):
    line = notebook.error("%endpoint run gate --timeout 300ms -o j -- hi")
    assert re.match(r"WaitTimeout: not ended within --timeout 0.3 s: @1 CANCELLED after", line)
    assert gate.ended.wait(10)


def test_a_timeout_may_leave_the_job_running(notebook, gate):
    assert "@1 goes on" in notebook.error(
        "%endpoint run gate --timeout 300ms --on-interrupt detach -o j -- hi"
    )
    assert not gate.ended.is_set()
    gate.go.set()
    assert notebook.names["j"].output(10) == "begun done"


# ---------------------------------------------------------------------------------- what bad input gets


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%endpoint statsu", "did you mean 'status'?"),
        ("%endpoint frobnicate", "neither a verb nor a known endpoint"),
        ("%endpoint run ecko -- hi", "did you mean 'echo'?"),
        ("%endpoint run -- hi {{ audiense }}", "did you mean 'audience'?"),
        ("%endpoint run --max-tokns 3 -- hi", "did you mean --max-tokens?"),
        ("%endpoint run --dry-rnu -- hi", "did you mean --dry-run?"),
        ("%endpoint run -f picture -- hi", "there are auto, markdown"),
        ("%endpoint run --profile vlm -- hi", "did you mean 'vllm'?"),
        ("%endpoint run -t warm -- hi", "-t"),
        ("%endpoint run -t 0.5 -- hi", "-t"),
        ("%endpoint run --timeout soon -- hi", "no duration"),
        ("%endpoint run real --exec-timeout 1s -- hi", "5 s"),
        ("%endpoint run -p novalue -- hi", "key=value"),
        ("%endpoint run -p a=1 -p a.b=2", "nothing can be put into it"),
        ("%endpoint run -p a=@missing.txt", "missing.txt"),
        ("%endpoint run -i nobody", "-i takes a variable's name"),
        ("%endpoint run -P nobody", "-P"),
        ("%endpoint run", "nothing to send"),
        ("%endpoint run -s 'abc -- hi", "quote"),
        ("%endpoint run hello world", "one word too many"),
        ("%%endpoint run -- hi\nho", "prompt after ' -- '"),
        ("%%endpoint run -i audience\nho", "-i"),
        ('%%endpoint run\n{"a": 1,\n "b": }', "line 2, column 7"),
        ('%%endpoint run\n{"a": 1,\n "b": }', "--as text"),
        ("%%endpoint run --as yaml\na: 1\nb: [", "line 2"),
        ("%%endpoint run --as python\n1 +", "line 1"),
        ("%%endpoint run --as python\nnobody['x']", "NameError"),
        ("%%endpoint run --as toml\na = 1", "toml"),
        ("%%endpoint run\n#| max tokens\nhi", "#| key: value"),
        ("%%endpoint status\nhi", "has no cell form"),
        ("%%endpoint run --as python\n{'a': {1, 2}}", "not JSON"),
        ("%%endpoint run --as python\n{'a': float('nan')}", "not JSON"),
        ("%endpoint status @last", "no job yet"),
        ("%endpoint status -- hi", "takes no text"),
        ("%endpoint x << health", "gives none"),
        ("%endpoint connect run abc", "verb"),
        ("%endpoint connect llama https://example.org/nothing", "/v2/"),
        ("%endpoint connect llama http://example.org/v2/abc", "https"),
        ("%endpoint connect llama abc --rate cheap", "--rate takes a number"),
        ("%endpoint serve status --handler echo", "verb"),
        ("%endpoint serve x --handler ehco", "ehco"),
        ("%endpoint serve x", "what is to be served?"),
        ("%endpoint serve x --handler echo --workers many", "--workers takes a whole number"),
        ("%endpoint serve x --handler echo --fail 2", "from 0 to 1"),
        ("%endpoint serve x --handler openai", "URL"),
        ("%endpoint serve x --stop", "not served here"),
        ("%endpoint forget echo", "--stop"),
        ("%endpoint serve x --handler eccho", "did you mean 'echo'?"),
        ("%endpoint run --timeout 0 -- hi", "--timeout is a time from now on"),
        ("%endpoint run --ttl 0s -- hi", "--ttl is a time from now on"),
        ("%endpoint run -o 2x -- hi", "'2x' cannot be a variable's name"),
        ("%endpoint run -o a.b -- hi", "'a.b' cannot be a variable's name"),
        ("%endpoint class << run -- hi", "'class' cannot be a variable's name"),
        ("%%endpoint run echo -p prompt=x\nhi", "there is a text, and -p prompt=... as well"),
        (
            "%%endpoint run echo --profile vllm -p messages=x\nhi",
            "there is a text, and -p messages=... as well",
        ),
        ("%endpoint status audience", "'audience' is no job: the variable is of type str"),
        ("%endpoint use nobody", "no endpoint 'nobody'"),
        ("%endpoint help stauts", "did you mean 'status'?"),
    ],
)
def test_bad_input_is_one_line_and_sends_nothing(echo, cell, said, monkeypatch):
    monkeypatch.setenv("REAL_KEY", KEY)
    echo.run("%endpoint connect real abc123 --key-env REAL_KEY")
    echo.names["audience"] = "children"
    ran = echo.try_(cell)
    assert not ran.success, ran.text
    assert len(ran.text.strip().splitlines()) == 1, ran.text
    assert re.match(r"(InputError|ConfigurationError): ", ran.text), ran.text
    assert said in ran.text
    assert echo.sent() == 0


def test_the_braces_of_latex_are_explained(echo):
    assert "--verbatim" in echo.error("%endpoint run -- \\frac{{a}}{{b}}")


def test_debug_shows_both_tracebacks_once_and_only_when_asked(notebook):
    notebook.handlers(boom=boom)
    ran = notebook.try_("%endpoint run boom --debug -- hi")
    assert not ran.success
    assert TRACEBACK in ran.text
    assert "in boom" in ran.text
    assert notebook.try_("%endpoint result --debug").text.count("The worker's traceback") == 1
    assert TRACEBACK in notebook.try_("%%endpoint run boom\n#| debug\nhi").text
    notebook.error("%endpoint run boom -- why does --debug not work")
    assert TRACEBACK in notebook.try_("%endpoint frobnicate --debug").text


class Canned(http.server.BaseHTTPRequestHandler):
    """What proxies and broken servers answer."""

    status, body = 200, b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (401, b"", "AuthenticationError", "check $LLAMA_KEY"),
        (402, b"", "PermissionDenied", ""),
        (404, b'{"error": "endpoint not found"}', "NotFoundError", ""),
        (400, b'{"error": "input is required"}', "BadRequest", "input is required"),
        (502, b"<html><body><h1>Bad gateway</h1></body></html>", "ServerError", "502"),
        (200, b"<html>a login page</html>", "ProtocolError", ""),
        (200, b'{"status": ', "ProtocolError", ""),
    ],
)
def test_an_answer_that_is_no_job_has_its_own_line(notebook, monkeypatch, status, body, error, said):
    monkeypatch.setenv("LLAMA_KEY", KEY)
    monkeypatch.setattr(Canned, "status", status)
    monkeypatch.setattr(Canned, "body", body)
    with http.server.HTTPServer(("127.0.0.1", 0), Canned) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            notebook.run(
                f"%endpoint connect llama abc --provider http://127.0.0.1:{server.server_port}/v2 --key-env LLAMA_KEY"
            )
            line = notebook.error("%endpoint run llama -- hi")
        finally:
            server.shutdown()
            thread.join()
    assert line.startswith(f"{error}: ")
    assert said in line
    assert "<" not in line
    assert KEY not in line


def test_a_wrong_key_is_told_without_the_key(connected, provider, monkeypatch):
    monkeypatch.setenv("LLAMA_KEY", wrong := KEY[::-1])
    line = connected.error("%endpoint run llama -- hi")
    assert line.startswith("AuthenticationError: ")
    assert "check $LLAMA_KEY" in line
    assert wrong not in line
    assert provider.sent() == 0


def test_an_expired_job_is_lost_in_its_own_words(notebook):
    notebook.run("%endpoint serve short --handler echo --expire 50ms")
    job = notebook.session.connect("short").submit({"a": 1})
    job.wait(10)
    queue = notebook.session.endpoints.queue("short")
    while queue.records:
        time.sleep(0.01)
    assert (
        notebook.value(f"%endpoint status {job.id}").status is JobStatus.COMPLETED
    )  # we have seen how it ended
    notebook.run("%endpoint use short")
    notebook.session.handles.clear()
    assert notebook.value(f"%endpoint status {job.id}").output == {"a": 1}  # the journal has it still
    notebook.session.journal.discard(job.number)
    assert "no job" in notebook.error(f"%endpoint status {job.id}")


# ---------------------------------------------------------------------------------- serving


def test_a_served_body_sees_and_extends_the_notebook(notebook):
    notebook.names["model"] = str.upper
    notebook.run(
        "%%endpoint serve up\nimport string\nLETTERS = string.ascii_letters\ndef handler(job):\n    return model(job['input']['prompt'])"
    )
    assert notebook.names["LETTERS"].startswith("abc")
    notebook.run("%endpoint answer << run up -- hi")
    assert notebook.names["answer"] == "HI"
    notebook.run("model = str.title")
    notebook.run("%endpoint answer << run up -- hi")
    assert notebook.names["answer"] == "Hi"


def test_a_served_body_may_use_magics_and_another_name(notebook):
    notebook.run("%%endpoint serve up --handler shout\nplace = %pwd\ndef shout(job):\n    return place")
    notebook.run("%endpoint answer << run up -- hi")
    assert notebook.names["answer"] == notebook.value("%pwd")


def test_a_broken_body_fails_with_its_own_traceback_and_serves_nothing(notebook):
    ran = notebook.try_("%%endpoint serve up\ndef handler(job):\n    return 1\n1 / 0")
    assert not ran.success
    assert "ZeroDivisionError" in ran.text
    assert "----> 4 1 / 0" in ran.text  # the line in the whole cell
    assert f"Cell In[{len(notebook.names['In']) - 1}], line 4" in ran.text
    assert "verbs.py" not in ran.text
    assert "interactiveshell" not in ran.text
    plain = notebook.try_("pass\ndef handler(job)").text
    assert "up" not in notebook.session.endpoints.names()
    ran = notebook.try_("%%endpoint serve up\ndef handler(job)")
    assert not ran.success
    assert re.sub(r"In\[\d+\]", "", ran.text) == re.sub(r"In\[\d+\]", "", plain)
    assert "defines no function 'handler'" in notebook.error("%%endpoint serve up\nx = 1")


def test_a_cell_without_a_handler_does_not_serve_the_last_one_again(notebook):
    notebook.run("%%endpoint serve one\ndef handler(job):\n    return 1")
    assert "defines no function 'handler'" in notebook.error("%%endpoint serve two\nx = 1")
    assert callable(notebook.names["handler"])


def test_running_the_cell_again_swaps_the_handler(notebook):
    for answer in ("1", "2"):
        notebook.run(f"%%endpoint serve one\ndef handler(job):\n    return {answer}")
        notebook.run("%endpoint answer << run one -- hi")
        assert notebook.names["answer"] == int(answer)


def test_what_a_handler_prints_is_not_in_the_cell(notebook):
    notebook.run("%%endpoint serve talk\ndef handler(job):\n    print('PRINTED')\n    return 'returned'")
    text = notebook.run("%endpoint run talk -o job -- hi\nprint('mine')")
    assert "PRINTED" not in text
    assert "returned" in text
    assert text.rstrip().endswith("mine")
    assert notebook.session.endpoints.queue("talk").records[notebook.names["job"].id].log.text == "PRINTED\n"


def test_an_endpoint_is_served_no_longer(echo):
    echo.run("%endpoint serve echo --stop")
    assert "no endpoint 'echo'" in echo.error("%endpoint run echo -- hi")


# ---------------------------------------------------------------------------------- keys


def test_a_key_is_nowhere(connected, tmp_path):
    for cell in (
        "%endpoint run llama -o job -- hi",
        "%endpoint run llama --dry-run -- hi",
        "%endpoint list",
        "%endpoint jobs",
        "%endpoint health llama",
        "import notebook_ext\nc = notebook_ext.connect('llama')\nprint(c, c.endpoint, c.provider, job, vars(c), vars(job))",
        "%endpoint run llama --debug -f image -- hi",
        "%config EndpointMagics",
    ):
        assert KEY not in connected.try_(cell).text, cell
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_a_key_in_a_cell_gets_one_warning(echo):
    echo.names["key"] = KEY
    for cell in (
        f"%endpoint run -p api_key={KEY}",
        f"%endpoint run -- Use {KEY}",
        f"%%endpoint run\nUse {KEY} and {KEY}",
    ):
        assert echo.run(cell).count("seems to hold a key") == 1
    assert "seems to hold a key" not in echo.run("%endpoint run -p api_key={{ key }}")


def test_login_keeps_a_key_until_the_kernel_ends(notebook, provider, monkeypatch):
    notebook.run(f"%endpoint connect llama {provider.url}/abc123")
    assert "`%endpoint login " in notebook.error("%endpoint run llama -- hi")
    monkeypatch.setattr("getpass.getpass", lambda prompt: KEY)
    text = notebook.run("%endpoint login llama")
    assert text == "the key of llama is remembered until this kernel ends\n"
    assert "COMPLETED" in notebook.run("%endpoint run llama -- hi")


# ---------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(("typed", "removed"), [("y", True), ("", False), (None, False)])
def test_purge_asks(notebook, gate, monkeypatch, typed, removed):
    def answer(prompt: str) -> str:
        asked.append(prompt)
        if typed is None:
            raise EOFError
        return typed

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", answer)
    notebook.run("%endpoint run gate --bg -o running -- 1")
    next(iter(notebook.names["running"].chunks()))
    notebook.run("%endpoint run gate --bg -o waiting -- 2")
    while not notebook.names["waiting"].id:
        time.sleep(0.01)
    text = notebook.try_("%endpoint purge gate").text
    assert asked == ["Remove 1 queued job of gate (1 from this notebook)? [y/N] "]
    assert ("1 queued job of gate removed" in text) is removed
    assert TRACEBACK not in text
    notebook.run("%endpoint cancel --all")


def test_purge_of_an_empty_queue_asks_nothing(echo, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert echo.run("%endpoint purge echo") == "nothing is queued on echo\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_any_line_shows_its_verbs_help(notebook, flag):
    assert notebook.run(f"%endpoint status {flag}") == notebook.run("%endpoint help status")
    assert notebook.run(f"%endpoint run demo {flag} -- not sent") == notebook.run("%endpoint help run")
    assert notebook.run(f"%%endpoint runsync {flag}\nnot sent") == notebook.run("%endpoint help runsync")
    assert notebook.run(f"%endpoint {flag}") == notebook.run("%endpoint help")
    assert notebook.session.handles == {}


def test_a_job_in_a_variable_of_a_function_is_found(echo):
    cell = "def f():\n    mine = %endpoint run -q -- hi\n    return get_ipython().run_line_magic('endpoint', 'result mine')\nf()"
    assert echo.value(cell) == {"prompt": "hi"}


def test_a_rate_is_told_only_where_enough_came_in_enough_time(notebook):
    def slow(job: dict[str, Any]) -> Iterator[str]:
        for _ in range(4):
            yield "x"
            time.sleep(0.06)

    notebook.handlers(slow=slow, quick=lambda job: (letter for letter in "abcdefgh"))
    assert "chunks/s" in notebook.run("%endpoint run slow -- hi")
    assert "chunks/s" not in notebook.run("%endpoint run quick -- hi")


def test_purge_does_not_ask_twice(echo):
    assert "0 queued jobs of echo removed" in echo.run("%endpoint purge echo --yes")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(notebook, verb):
    text = notebook.run(f"%endpoint help {verb}")
    assert f"Usage: %endpoint {verb}" in text
    assert "Example:" in text
    assert text == notebook.run(f"%endpoint {verb}?")


@pytest.mark.parametrize(
    "line", ["health echo --watch", "panel health echo", "health echo --watch --forever"]
)
def test_without_a_notebook_watching_is_one_look(echo, line):
    ran = echo.try_(f"%endpoint {line}")
    assert ran.success, ran.text
    assert "in queue" in ran.text
    assert isinstance(ran.value, Health)


def test_without_a_notebook_the_jobs_panel_is_a_table(echo):
    echo.run("%endpoint run -- Say this")
    echo.run("%endpoint connect gone http://127.0.0.1:9/v2/gone")
    assert "nothing was sent" in echo.error("%endpoint run gone -- Never sent")
    ran = echo.try_("%endpoint panel jobs")
    assert ran.success, ran.text
    assert re.search(r"@1 +echo .* COMPLETED +Say this", ran.text)
    assert "Never sent" not in ran.text


def test_a_panel_that_there_is_not_is_refused_with_what_there_is(notebook):
    assert "PANEL cannot be 'helth'; did you mean health?" in notebook.error("%endpoint panel helth")


def test_a_bare_endpoint_prints_the_overview(notebook):
    text = notebook.run("%endpoint")
    assert all(f"  {verb} " in text for verb in VERBS)
    assert text == notebook.run("%endpoint help")
    assert "VERB [TARGET]" in notebook.run("%endpoint?")
    assert "sweep" not in text  # help lists only what works
    assert "notebook_ext " in notebook.run("%endpoint version")


def test_the_settings_are_traits(notebook):
    assert "nested_loops" in notebook.run("%config EndpointMagics")


# ---------------------------------------------------------------------------------- loading and unloading


def surroundings(shell: InteractiveShell) -> dict[str, Any]:
    """Everything of a shell that an extension could leave something in."""
    return {
        "magics": {kind: set(table) for kind, table in shell.magics_manager.magics.items()},
        "registry": set(shell.magics_manager.registry),
        "configurables": [type(item).__name__ for item in shell.configurables],
        "events": {name: list(calls) for name, calls in shell.events.callbacks.items()},
        "input": [
            *shell.input_transformer_manager.cleanup_transforms,
            *shell.input_transformer_manager.line_transforms,
        ],
        "input after": list(shell.input_transformers_post),
        "ast": list(shell.ast_transformers),
        "formatters": {
            name: set(formatter.type_printers)
            for name, formatter in shell.display_formatter.formatters.items()
        },
        "displays": set(shell.display_formatter.ipython_display_formatter.type_printers),
        "matchers": list(shell.Completer.custom_matchers),
        "hooks": {
            name: list(getattr(hook, "chain", []))
            for name, hook in shell.hooks.items()
            if name != "complete_command"
        },
        "names": {name for name in shell.user_ns if not name.startswith("_")} - {"In", "Out"},
        "attributes": set(vars(shell)),
    }


def test_unloading_undoes_loading(shell):
    shell.run("%unload_ext notebook_ext")  # IPython itself makes what does it when it is first used
    before = surroundings(shell.shell)
    threads = set(threading.enumerate())
    shell.run("%load_ext notebook_ext")
    assert surroundings(shell.shell) != before
    shell.run("%endpoint run -p max_tokens=2 -p tokens_per_second=2000 -- hi")
    shell.run("%unload_ext notebook_ext")
    assert surroundings(shell.shell) == before
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) == threads
    assert not shell.try_("%endpoint list").success


def test_loading_again_and_reloading_keep_a_running_job(notebook, gate):
    notebook.run("%endpoint run gate --bg -o j -- hi")
    assert gate.begun.wait(10)
    session = notebook.session
    notebook.run("%load_ext notebook_ext")
    notebook.run("%reload_ext notebook_ext")
    assert notebook.session is session
    assert [handle.number for handle in notebook.value("%endpoint jobs --active")] == [1]
    gate.go.set()
    assert notebook.value("%endpoint result @1") == "begun done"


def test_reloading_leaves_one_of_everything(shell):
    shell.run("%load_ext notebook_ext")
    once = surroundings(shell.shell)
    shell.run("%reload_ext notebook_ext\n%reload_ext notebook_ext")
    again = surroundings(shell.shell)
    assert {key: len(value) for key, value in again.items()} == {
        key: len(value) for key, value in once.items()
    }
    assert {name: len(calls) for name, calls in again["events"].items()} == {
        name: len(calls) for name, calls in once["events"].items()
    }
    shell.run("%unload_ext notebook_ext")


def test_a_handle_outlives_the_extension_as_a_memory(shell):
    shell.run("%load_ext notebook_ext\n%endpoint serve echo --handler echo\n%endpoint run echo -o done -- hi")
    gate = Gate()
    shell.handlers(gate=gate)
    shell.run("%endpoint run gate --bg -o running -- hi")
    assert gate.begun.wait(10)
    shell.run("%unload_ext notebook_ext")
    done, running = shell.names["done"], shell.names["running"]
    assert done.output() == {"prompt": "hi"}
    assert "COMPLETED" in repr(done)
    for ask in (running.cancel, running.output, done.retry):
        with pytest.raises(EndpointError):
            ask()
    with pytest.raises(ConfigurationError, match="session of @2 is closed"):
        running.cancel()


def test_code_worker_writes_the_served_handler(notebook, tmp_path):
    notebook.run(
        "%%endpoint serve shout --no-aggregate\n"
        "def handler(job):\n"
        "    for word in job['input']['prompt'].split():\n"
        "        yield word.upper()\n"
    )
    said = notebook.run("%endpoint code shout --worker --to handler.py")
    program = (tmp_path / "handler.py").read_text()
    assert "handler.py is written" in said
    assert 'runpod.serverless.start({"handler": handler, "return_aggregate_stream": False})' in program
    assert "yield word.upper()" in program
    assert "exists, and was not touched" in notebook.error("%endpoint code shout --worker --to handler.py")
    assert "def handler" in notebook.run("%endpoint code shout --worker")


def test_code_worker_of_what_is_not_served(notebook):
    assert "'llama' is not served here" in notebook.error("%endpoint code llama --worker")
    notebook.run("%endpoint serve e --handler echo")
    assert "a built-in handler" in notebook.error("%endpoint code e --worker")


def test_the_built_in_handlers_of_models_take_a_prompt_and_its_settings(notebook):
    notebook.run("%endpoint serve llm --handler openai --upstream http://127.0.0.1:9/v1")
    shown = notebook.run("%endpoint run llm -s Terse. -t 0.2 --max-tokens 5 --dry-run -- hi")
    for field in ('"prompt": "hi"', '"system": "Terse."', '"temperature": 0.2', '"max_tokens": 5'):
        assert field in shown, field
