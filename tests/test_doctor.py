"""`%endpoint doctor`: what is wrong is found by making it wrong."""

from __future__ import annotations

import pytest
from inshell import KEY

from notebook_ext import doctor


def found(text: str) -> dict[str, tuple[str, str]]:
    """Mark and words of each subject."""
    rows = [line.split(None, 2) for line in text.splitlines()]
    return {row[1]: (row[0], row[2]) for row in rows if row[0] in set(doctor.Mark)}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No proxy, and the usual certificates."""
    for variable in (*doctor._PROXIES, *map(str.lower, doctor._PROXIES), *doctor._CERTIFICATES):
        monkeypatch.delenv(variable, raising=False)


def test_without_an_account_all_is_well(notebook):
    said = found(notebook.run("%endpoint doctor").replace("front end", "front-end"))
    assert {mark for mark, _ in said.values()} == {"ok"}
    assert said["endpoint"][1].startswith("demo: served here, http://127.0.0.1:")
    assert said["key"][1].startswith("from ")
    assert "0 queued, 0 running" in said["workers"][1]
    assert "journal.db" in said["journal"][1]


def test_a_missing_key_is_found_before_anything_is_asked(notebook):
    notebook.run("%endpoint connect llama abc123 --provider runpod")
    said = found(notebook.run("%endpoint doctor llama"))
    assert said["key"] == ("BAD", "there is none: %endpoint login llama, or set RUNPOD_API_KEY")
    assert "answer" not in said


def test_a_refused_key_and_an_endpoint_that_is_not_there(connected, provider, monkeypatch):
    assert found(connected.run("%endpoint doctor llama"))["workers"][0] == "ok"
    monkeypatch.setenv("LLAMA_KEY", "rpa_ANOTHER0KEY0THAT0NOBODY0KNOWS0ABCDEFGHIJKLMNOP")
    said = found(connected.run("%endpoint doctor llama"))
    assert said["answer"][0] == "BAD"
    assert "401" in said["answer"][1]
    assert found(connected.run("%endpoint doctor lama"))["endpoint"][0] == "BAD"
    connected.run(f"%endpoint connect gone nobody-there --provider {provider.url} --key-env LLAMA_KEY")
    monkeypatch.setenv("LLAMA_KEY", KEY)
    assert "404" in found(connected.run("%endpoint doctor gone"))["answer"][1]


def test_no_key_is_in_what_it_says(connected, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:SECRET-OF-THE-PROXY@proxy.example:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/certificates.pem")
    said = connected.run("%endpoint doctor llama")
    assert KEY not in said
    assert "SECRET-OF-THE-PROXY" not in said
    assert "HTTPS_PROXY sends requests through proxy.example" in said
    assert found(said)["certificates"] == (
        "BAD", "SSL_CERT_FILE names /nowhere/certificates.pem, which is not there",
    )  # fmt: skip


def test_a_journal_in_memory_and_one_that_cannot_be_used_are_told(shell, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTEBOOK_EXT_JOURNAL", ":memory:")
    shell.run("%load_ext notebook_ext")
    assert found(shell.run("%endpoint doctor"))["journal"][0] == "note"
    shell.run("%unload_ext notebook_ext")
    (tmp_path / "a folder").mkdir()
    monkeypatch.setenv("NOTEBOOK_EXT_JOURNAL", str(tmp_path / "a folder"))
    shell.run("%load_ext notebook_ext")
    mark, said = found(shell.run("%endpoint doctor"))["journal"]
    assert mark == "BAD"
    assert "remembered only until this kernel ends" in said
    shell.run("%unload_ext notebook_ext")


@pytest.mark.parametrize(("version", "is_told"), [("7.3.0", True), ("7.4.0", False), ("6.29.5", False)])
def test_kernels_that_lose_a_request_are_told(monkeypatch, version, is_told):
    class Kernel:
        is_terminal, has_widgets, clicks_heard_while_busy = False, True, False

    monkeypatch.setattr(doctor, "_version", lambda name: version)
    subjects = [finding.subject for finding in doctor._kernel(Kernel())]
    assert ("ipykernel" in subjects) is is_told
