"""What an output's metadata says of its job, and what it leaves out."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from notebook_ext.connection import Submission
from notebook_ext.provenance import provenance


def parameters(given: object) -> object:
    handle = SimpleNamespace(
        number=1, id="a", endpoint="e", operation="run", profile="raw", status="COMPLETED", submitted_at=0.0,
        input=given, body_hash="0",
    )  # fmt: skip
    return provenance(handle)["notebook_ext"]["parameters"]


def test_parameters_are_numbers_switches_and_words() -> None:
    given = {"steps": 20, "sampler": {"name": "euler-a", "karras": True}, "messages": [1], 7: 0.5}
    assert parameters(given) == {"steps": 20, "sampler.name": "euler-a", "sampler.karras": True, "7": 0.5}
    assert parameters("a text") == {}


@pytest.mark.parametrize(
    "given",
    [
        {"credentials": {"user": "bob", "id": "hunter2"}},
        {"auth": {"value": "hunter2"}},
        {"pw": "hunter2", "db_pwd": "hunter2", "bearer": "hunter2"},
        {"nested": {"s3": {"accessId": "hunter2"}}},
        {"prompt": {"first": "hunter2"}},
        {"question": "what is hunter2?", "frage": "schl\u00fcssel", "long": "x" * 81, "line": "one\n"},
    ],
)
def test_private_names_and_texts_are_none(given) -> None:
    assert parameters(given) == {}


@pytest.mark.parametrize(
    ("webhook", "kept"),
    [
        ("https://hooks.example/services/T0/B0/SECRET", r"https://hooks\.example/sha256-[0-9a-f]{12}"),
        ("https://bob:SECRET@h.example:81/?token=SECRET", r"https://h\.example:81/sha256-[0-9a-f]{12}"),
        ("https://bob:SECRET@h.example", r"https://h\.example"),
        ("https://h.example/", r"https://h\.example/"),
    ],
)
def test_of_a_webhook_the_host_is_kept_and_a_hash(webhook, kept) -> None:
    options = Submission(input=1, webhook=webhook).options()
    assert re.fullmatch(kept, options["webhook"])
    assert Submission(input=1, webhook=options["webhook"]).options() == options
    other = Submission(input=1, webhook=f"{webhook}/other").options()
    assert other != options
