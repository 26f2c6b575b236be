"""Completion and the `?` guard, through a real shell: what IPython offers, and what reaches the magic."""

from __future__ import annotations

import atexit
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core import completer
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from test_journal import queued
from traitlets.config import Config

from notebook_ext import completion, options, suggestions, vocabulary
from notebook_ext.errors import ConfigurationError
from notebook_ext.journal import Journal
from notebook_ext.profiles import PROFILES
from notebook_ext.providers import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Iterator


@magics_class
class Recorder(Magics):
    """Stands where EndpointMagics stands, and notes what reaches it."""

    def __init__(self, shell: InteractiveShell, session: Any) -> None:
        super().__init__(shell)
        self.session = session
        self.calls: list[tuple[str, str | None]] = []

    @no_var_expand
    @line_cell_magic
    def endpoint(self, line: str, cell: str | None = None) -> str:
        self.calls.append((line, cell))
        return "done"


def _handle(number: int, status: str, prompt: str) -> SimpleNamespace:
    return SimpleNamespace(
        number=number, id=f"{number}f3c-u1", endpoint="demo", status=status, input={"prompt": prompt}
    )


@pytest.fixture(scope="module")
def one_shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False  # a database that nobody closes
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    yield shell
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(one_shell: InteractiveShell) -> Iterator[InteractiveShell]:
    fresh = dict(one_shell.user_ns)
    yield one_shell
    one_shell.user_ns.clear()
    one_shell.user_ns.update(fresh)


@pytest.fixture
def magics(shell: InteractiveShell) -> Iterator[Recorder]:
    handles = {3: _handle(3, "COMPLETED", "Why are queues fair?"), 17: _handle(17, "IN_PROGRESS", "Hi")}
    endpoints = SimpleNamespace(names=lambda: ["demo", "llama"])
    journal = Journal()
    magics = Recorder(shell, SimpleNamespace(endpoints=endpoints, handles=handles, journal=journal))
    shell.register_magics(magics)
    completion.install(shell, magics)
    yield magics
    completion.uninstall(shell)
    journal.close()


@pytest.fixture
def offered(shell: InteractiveShell, magics: Recorder) -> Any:
    """What a front end shows for a cell with the cursor at `¦`, or at its end."""

    def offered(cell: str) -> list[str]:
        return [offer.text for offer in _completions(shell, cell)]

    return offered


def _completions(shell: InteractiveShell, cell: str) -> list[completer.Completion]:
    before, _, after = cell.partition("¦")
    with completer.provisionalcompleter():
        return list(shell.Completer.completions(before + after, len(before)))


# ---------------------------------------------------------------------------------- completion

VERBS = [*vocabulary.VERBS, *vocabulary.ALIASES]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%endpoint ", [*VERBS, "demo", "llama"]),
        ("%endpoint ru", ["run", "runsync"]),
        ("%endpoint l", ["list", "login", "llama"]),
        ("    %endpoint ru", ["run", "runsync"]),
        ("x = %endpoint ru", ["run", "runsync"]),
        ("x.y = %endpoint ru", ["run", "runsync"]),
        ("%%endpoint ru", ["run", "runsync"]),
        ("\n\n%%endpoint ru", ["run", "runsync"]),
        ("%%endpoint answer << ru", ["run", "runsync"]),
        ("%endpoint answer << ru", ["run", "runsync"]),
        ("%endpoint ru¦ demo -- hello", ["run", "runsync"]),
        ("%%endpoint ru¦\nExplain queues", ["run", "runsync"]),
        ("a = 1\n%endpoint ru¦\nb = 2", ["run", "runsync"]),
        ("%%time\n%endpoint ru", ["run", "runsync"]),
        ("%endpoint run \\\n  --max", ["--max-tokens"]),
        # options
        ("%endpoint run --max", ["--max-tokens"]),
        ("%endpoint --max", ["--max-tokens"]),
        ("%endpoint llama --max", ["--max-tokens"]),
        ("%endpoint status --", ["--debug"]),
        ("%endpoint cancel -", ["--all", "--debug"]),
        ("%endpoint list ", ["--debug"]),
        ('%endpoint run -s "two words" --se', ["--seed"]),
        ("%endpoint run {{ 'a b' }} --se", ["--seed"]),
        ("%endpoint run --seed 1 --se", []),
        ("%endpoint run --stop a --sto", ["--stop"]),
        # values of options
        ("%endpoint run -f ", list(options.FORMATS)),
        ("%endpoint run --format ta", ["table"]),
        ("%endpoint run --format=ta", ["table"]),
        ("%endpoint run --as j", ["json"]),
        ("%endpoint wait --on-interrupt ", ["cancel", "detach"]),
        ("%endpoint run --profile ", list(PROFILES)),
        ("%endpoint connect x y --provider ", list(PROVIDERS)),
        ("%endpoint serve shout --handler ec", ["echo"]),
        # what a verb takes
        ("%endpoint run ", ["demo", "llama"]),
        ("%endpoint run --bg l", ["llama"]),
        ("%endpoint run -t 0.2 l", ["llama"]),
        ("%endpoint use ", ["demo", "llama"]),
        ("%endpoint status ", ["@last", "@17", "@3"]),
        ("%endpoint status @1", ["@17"]),
        ("%endpoint attach @la", ["@last"]),
        ("%endpoint status 17f", ["17f3c-u1"]),
        ("%endpoint wait @17 @", ["@last", "@3"]),
        ("%endpoint help st", ["status", "stream"]),
        ("%endpoint help at", ["attach"]),
    ],
)
def test_offers(offered: Any, cell: str, expected: list[str]) -> None:
    assert [offer for offer in offered(cell) if offer in expected or offer.startswith(("-", "@"))] == expected
    if expected:
        assert offered(cell) == expected


def test_dashes_offer_all_options_of_the_verb(offered: Any) -> None:
    assert offered("%endpoint run -") == vocabulary.VERBS["run"].options
    assert offered("%endpoint run --") == [
        option for option in vocabulary.VERBS["run"].options if option.startswith("--")
    ]


def test_a_free_word_that_is_there_is_followed_by_options(offered: Any) -> None:
    assert offered("%endpoint purge demo ") == ["--yes", "--debug"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%endpoint run -- Hello {{ aud", ["audience", "audit"]),
        ("%endpoint run -- Hello {{aud", ["audience", "audit"]),
        ("%endpoint run -p a={{ audi", ["audience", "audit"]),
        ("x = %endpoint run -- {{ a }} {{ audie", ["audience"]),
        ("%%endpoint run demo\nHello {{ aud¦ience }}", ["audience", "audit"]),
        ("%%endpoint run demo\nHello {{\n  aud", ["audience", "audit"]),
        ("%%endpoint answer << llama\n{{ audie", ["audience"]),
        ("%endpoint run -o aud", ["audience", "audit"]),
        ("%endpoint run --out=aud", ["audience", "audit"]),
        ("%endpoint run -i audie", ["audience"]),
        ("%endpoint run -P audie", ["audience"]),
        ("%endpoint serve x --handler aud", ["audit"]),
    ],
)
def test_offers_the_users_names(
    shell: InteractiveShell, offered: Any, cell: str, expected: list[str]
) -> None:
    shell.user_ns.update(audience="me", audit=lambda job: job, _audience_of_mine=1)
    assert offered(cell) == expected


def test_names_of_ipython_are_not_offered(shell: InteractiveShell, offered: Any) -> None:
    shell.run_cell("mine = 1")
    assert offered("%endpoint run -- {{ ") == ["mine"]


def test_variables_that_hold_jobs_are_job_references(
    shell: InteractiveShell, magics: Recorder, offered: Any
) -> None:
    shell.user_ns["essay"] = magics.session.handles[3]
    assert offered("%endpoint result e") == ["essay"]


def test_jobs_have_a_hint(shell: InteractiveShell, magics: Recorder) -> None:
    hints = {offer.text: offer.type for offer in _completions(shell, "%endpoint status ")}
    assert hints["@3"] == "demo COMPLETED: Why are queues fair?"
    assert hints["@last"] == hints["@17"] == "demo IN_PROGRESS: Hi"


def test_jobs_of_earlier_kernels_are_offered_below_this_ones(
    shell: InteractiveShell, magics: Recorder
) -> None:
    journal = magics.session.journal
    number = journal.add(queued("earlier-u1", endpoint="llama", input={"prompt": "What was that?"}))
    hints = {offer.text: offer.type for offer in _completions(shell, "%endpoint show ")}
    assert list(hints) == ["@last", "@17", "@3", f"@{number}"]
    assert hints[f"@{number}"] == "llama IN_QUEUE: What was that?"
    assert [offer.text for offer in _completions(shell, "%endpoint show ear")] == ["earlier-u1"]
    magics.session.handles.clear()
    assert [offer.text for offer in _completions(shell, "%endpoint show ")] == ["@last", f"@{number}"]


def test_offers_replace_what_is_typed(shell: InteractiveShell, magics: Recorder) -> None:
    for cell, typed in (
        ("%endpoint status @l", "@l"),
        ("%endpoint run --max-t", "--max-t"),
        ("%endpoint ", ""),
    ):
        assert {cell[offer.start : offer.end] for offer in _completions(shell, cell)} == {typed}
        with pytest.warns(PendingDeprecationWarning):  # what kernels call that do not want types
            assert shell.complete("", cell, len(cell))[0] == typed


NOT_OURS = [
    "pri",
    "import o",
    "%end",
    "%endpoint",
    "%endpoints ru",
    "%time ru",
    "y = %time ru",
    "%%endpoint serve shout\ndef handler(job):\n    pri",
    "%%endpoint run demo\nExplain pri",
    "%%endpoint nonsense\nExplain {{ pri",
    "%%time\npri",
    "# %endpoint ru",
    "%endpoint run -- pri",
    "%endpoint run -- {{ audience.up",
    "%endpoint run -- {{ audience | up",
    '%endpoint run -s "pri',
    "%endpoint nonsense pri",
    "%endpoint run -p pri",
]


@pytest.mark.parametrize("cell", NOT_OURS)
def test_other_completions_are_as_they_were(shell: InteractiveShell, magics: Recorder, cell: str) -> None:
    shell.user_ns["audience"] = "me"
    ours = _texts(shell, cell)
    completion.uninstall(shell)
    assert ours == _texts(shell, cell)


def _texts(shell: InteractiveShell, cell: str) -> list[tuple[int, str]]:
    return [(offer.start, offer.text) for offer in _completions(shell, cell)]


def test_settings_that_cannot_be_read_offer_nothing(magics: Recorder) -> None:
    def names() -> list[str]:
        raise ConfigurationError("broken")

    session: Any = SimpleNamespace(endpoints=SimpleNamespace(names=names), handles={})
    assert suggestions.suggest("%endpoint ru", session, {}) == suggestions.Suggestions()


def test_without_the_matcher_api_nothing_raises(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(completer, "context_matcher")
    completion.install(shell, Recorder(shell, None))
    assert shell.Completer.custom_matchers == []
    completion.uninstall(shell)
    monkeypatch.setattr(shell, "Completer", None)
    completion.install(shell, Recorder(shell, None))
    completion.uninstall(shell)
    assert completion.guard not in shell.input_transformers_cleanup


def test_uninstall_leaves_the_shell_as_it_was(shell: InteractiveShell) -> None:
    def foreign(lines: list[str]) -> list[str]:
        return lines

    shell.input_transformers_cleanup.append(foreign)
    shell.Completer.custom_matchers.append(foreign)
    before = [*shell.input_transformers_cleanup], [*shell.Completer.custom_matchers]
    completion.install(shell, Recorder(shell, None))
    assert len(shell.input_transformers_cleanup) == len(before[0]) + 1
    assert len(shell.Completer.custom_matchers) == len(before[1]) + 1
    completion.uninstall(shell)
    assert (shell.input_transformers_cleanup, shell.Completer.custom_matchers) == before
    completion.uninstall(shell)
    assert (shell.input_transformers_cleanup, shell.Completer.custom_matchers) == before


# ---------------------------------------------------------------------------------- the `?` guard


@pytest.mark.parametrize(
    ("cell", "calls"),
    [
        ("%endpoint run demo -- why?", [("run demo -- why?", None)]),
        ("%endpoint run demo -- why??", [("run demo -- why??", None)]),
        ("%endpoint run demo -- why?   ", [("run demo -- why?", None)]),
        ("x = %endpoint run demo -- why?", [("run demo -- why?", None)]),
        ("x, *y = %endpoint run demo -- why?\n", [("run demo -- why?", None)]),
        ("if True:\n    %endpoint run demo -- why?", [("run demo -- why?", None)]),
        ("if True:\n    x = %endpoint run demo -- why?", [("run demo -- why?", None)]),
        ("    %endpoint run demo -- why?", [("run demo -- why?", None)]),
        ("%endpoint run demo -- what is that, \\\n  and why?", [("run demo -- what is that,    and why?", None)]),
        ("%endpoint run -- isn't it?\n%endpoint run -- why ( ?\n", [("run -- isn't it?", None), ("run -- why ( ?", None)]),
        ("%endpoint run -- a\ny = 1\nx = %endpoint run -- why?\n%endpoint jobs", [("run -- a", None), ("run -- why?", None), ("jobs", None)]),
        ("%endpoint run?", [("help run", None)]),
        ("%endpoint run??", [("help run", None)]),
        ("  %endpoint   attach?  ", [("help attach", None)]),
        ("if True:\n    %endpoint status?\n", [("help status", None)]),
        ("x = %endpoint run?", [("help run", None)]),
        ("%%endpoint run?", [("help run", None)]),
        ("%%endpoint run -i x", [("run -i x", None)]),
        ("\n%%endpoint run -i x\n\n  \n", [("run -i x", None)]),
        ("%%endpoint", [("", None)]),
        ("%%endpoint run -- why?", [("run -- why?", None)]),
        ("%%endpoint run\nIs it so?\nWhy?", [("run", "Is it so?\nWhy?\n")]),
        ("%%endpoint run\n%endpoint run -- why?", [("run", "%endpoint run -- why?\n")]),
        ("%%capture\n%endpoint run -- why?", [("run -- why?", None)]),
    ],
)  # fmt: skip
def test_what_reaches_the_magic(
    shell: InteractiveShell, magics: Recorder, cell: str, calls: list[tuple[str, str | None]]
) -> None:
    shell.run_cell(cell).raise_error()
    assert magics.calls == calls


def test_an_assigned_question_is_assigned(shell: InteractiveShell, magics: Recorder) -> None:
    shell.run_cell("x = %endpoint run demo -- why?").raise_error()
    assert shell.user_ns["x"] == "done"


UNTOUCHED = [
    "%endpoint?",
    "%endpoint??",
    "%%endpoint?",
    "endpoint?",
    "%endpoint run demo?",
    "%endpoint nonsense?",
    "%endpoint help run?",
    "print?",
    "%time run -- why?",
    "!ls -- why?",
    "x = 1",
    'text = """\n%endpoint run -- why?\n%endpoint run?\n"""',
    'text = """\n%endpoint run -- why?"""\nx = (1,\n%endpoint run -- why?\n)',
    "# %endpoint run -- why?",
    "# x = %endpoint run -- why?",
    "%%time\n%endpoint run -- why?",
    "%%writefile x\n%endpoint run?",
    "%%endpoint run\nwhy?",
    "%%endpoints run",
    "a = b if c else (\n%endpoint run -- why?",
    "",
    "\n",
]


@pytest.mark.parametrize("cell", UNTOUCHED)
def test_other_lines_stay_byte_for_byte(cell: str) -> None:
    lines = cell.splitlines(keepends=True)
    assert completion.guard([*lines]) == lines


def test_only_the_line_that_asks_is_changed() -> None:
    lines = [
        'text = """\n',
        "%endpoint run -- why?\n",
        '"""\n',
        "!echo don't ( [\n",
        "other?\n",
        "%endpoint run -- why?\r\n",
        "%endpoint run demo?\n",
        "%endpoint run?\n",
        "%endpoint run -- why?",
    ]
    assert completion.guard(lines) == [
        *lines[:5],
        "%endpoint run -- why? \r\n",
        lines[6],
        "%endpoint help run\n",
        "%endpoint run -- why? ",
    ]


def test_a_cell_magic_can_still_be_typed_in_a_terminal(shell: InteractiveShell, magics: Recorder) -> None:
    assert shell.check_complete("%%endpoint run demo")[0] == "incomplete"
    assert shell.check_complete("%endpoint run demo -- why?")[0] == "complete"
