from __future__ import annotations

import threading

import keyring
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.backends import fail, null

from notebook_ext import keys
from notebook_ext.errors import ConfigurationError
from notebook_ext.keys import (
    doubt_keyring,
    find_key,
    find_or_require,
    forget_keys,
    looks_like_key,
    remember_key,
)
from notebook_ext.providers import RUNPOD, Provider, local, resolve

KEY = "rpa_" + "Z9y8X7w6" * 5


class Backend(KeyringBackend):
    """A keyring in memory."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service, username):
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        self.kept[service, username] = password


class Raising(Backend):
    def get_password(self, service, username):
        raise RuntimeError("locked")

    set_password = get_password


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())
    forget_keys()
    yield
    forget_keys()
    keyring.set_keyring(before)


def test_nowhere_a_key():
    assert find_key(RUNPOD) is None
    with pytest.raises(ConfigurationError) as caught:
        find_or_require(RUNPOD, name="llama")
    said = str(caught.value)
    assert "export RUNPOD_API_KEY=..." in said
    assert "%endpoint login llama" in said
    with pytest.raises(ConfigurationError, match="%endpoint login runpod"):
        find_or_require(RUNPOD)


def test_environment(monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", f"  {KEY}\n")
    key = find_or_require(RUNPOD)
    assert (key(), key.value, key.source) == (KEY, KEY, "the variable RUNPOD_API_KEY")
    assert KEY not in repr(key)
    assert KEY not in str(key)


def test_a_variable_of_its_own_is_the_only_one(monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("TEAM_KEY", "team")
    assert find_or_require(RUNPOD, variable="TEAM_KEY")() == "team"
    monkeypatch.delenv("TEAM_KEY")
    with pytest.raises(ConfigurationError, match="export TEAM_KEY="):
        find_or_require(RUNPOD, variable="TEAM_KEY")


def test_an_empty_variable_is_no_key(monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", " ")
    assert find_key(RUNPOD) is None


@pytest.mark.parametrize("value", ["a b", "a\nb", "kéy", "a\x00b".replace("\x00", "\x01")])
def test_what_cannot_be_a_header_is_refused_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("RUNPOD_API_KEY", value)
    with pytest.raises(ConfigurationError, match="RUNPOD_API_KEY holds no key") as caught:
        find_key(RUNPOD)
    assert value not in str(caught.value)


def test_memory_comes_first_and_is_forgotten(monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "from-environment")
    assert remember_key(RUNPOD, f" {KEY} ") == "memory"
    assert find_or_require(RUNPOD).source == "this kernel's memory"
    assert find_or_require(RUNPOD, name="llama")() == KEY
    forget_keys()
    assert find_or_require(RUNPOD)() == "from-environment"


def test_a_key_of_one_endpoint_is_not_another_ones():
    remember_key(RUNPOD, KEY, name="llama")
    assert find_or_require(RUNPOD, name="llama")() == KEY
    assert find_key(RUNPOD, name="other") is None
    assert find_key(RUNPOD) is None


def test_a_name_that_points_elsewhere_gets_no_key():
    keyring.set_keyring(Backend())
    remember_key(RUNPOD, KEY, name="llama")
    remember_key(RUNPOD, KEY)
    remember_key(RUNPOD, KEY, name="llama", keyring=False)
    assert find_key(resolve("https://evil.example/v2"), name="llama") is None
    assert find_key(Provider("runpod", "https://runpod/v2"), name="llama") is None


@pytest.mark.parametrize("typed", ["", "  ", "a b"])
def test_what_is_typed_must_be_a_key(typed):
    with pytest.raises(ConfigurationError, match="what was typed holds no key"):
        remember_key(RUNPOD, typed)


def test_keyring():
    backend = Backend()
    keyring.set_keyring(backend)
    assert remember_key(RUNPOD, KEY) == "keyring"
    assert backend.kept == {("notebook_ext", "runpod"): KEY}
    assert find_or_require(RUNPOD).source == "the keyring"
    forget_keys()
    assert find_or_require(RUNPOD, name="llama")() == KEY


def test_the_environment_comes_before_the_keyring(monkeypatch):
    keyring.set_keyring(Backend())
    remember_key(RUNPOD, KEY)
    monkeypatch.setenv("RUNPOD_API_KEY", "from-environment")
    assert find_or_require(RUNPOD)() == "from-environment"


def test_a_new_key_in_the_keyring_is_not_hidden_by_an_old_one_in_memory():
    remember_key(RUNPOD, "old", keyring=False)
    keyring.set_keyring(Backend())
    remember_key(RUNPOD, KEY)
    assert find_or_require(RUNPOD)() == KEY


@pytest.mark.parametrize("backend", [fail.Keyring(), null.Keyring(), Raising()])
def test_a_keyring_that_keeps_nothing_is_none(backend, capsys):
    keyring.set_keyring(backend)
    assert find_key(RUNPOD) is None
    assert remember_key(RUNPOD, KEY) == "memory"
    assert find_or_require(RUNPOD)() == KEY
    assert capsys.readouterr() == ("", "")


def test_a_keyring_that_waits_for_a_dialog_holds_nothing_up(monkeypatch):
    released = threading.Event()

    class Waiting(Backend):
        def get_password(self, service, username):
            released.wait(60)

        set_password = get_password

    keyring.set_keyring(Waiting())
    monkeypatch.setattr(keys, "KEYRING_PATIENCE", 0.02)
    try:
        assert find_key(RUNPOD) is None
        assert remember_key(RUNPOD, KEY) == "memory"
    finally:
        released.set()


def test_the_embedded_server_brings_its_own_key(monkeypatch):
    keyring.set_keyring(Raising())
    tokens = ["first", None]
    provider = local("http://127.0.0.1:1/v2", lambda: tokens.pop(0))
    assert find_or_require(provider)() == "first"
    assert find_or_require(provider) is None


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f'api_key = "{KEY}"',
        f"Bearer {KEY}",
        "tpo_" + "a1B2c3D4" * 3,
        "sk-proj-" + "a1B2c3D4" * 4,
        "sk-" + "abcdefgh" * 3,
        "hf_" + "AbCdEfGhIjKlMnOp",
        "9f86d081884c7d659a2feaa0c55ad015",
        "K7SV2H0PQXZ41MND83RTY6WBAJ5GCE9FLU0OIK2H",
        'key="aB3xK9mQ2pL7vN4tR8wY1zC5dF6gH0jS"',
    ],
)
def test_what_looks_like_a_key(text):
    assert looks_like_key(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc123",
        "a1b2c3d4e5f6g7",
        "550e8400-e29b-41d4-a716-446655440000",
        "550e8400-e29b-41d4-a716-446655440000-u1",
        "sync-550e8400-e29b-41d4-a716-446655440000-e1",
        "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 4,
        "iVBORw0KGgoAAAANSUhEUgAABBCC" * 40,
        "Explain the difference between run and runsync in one paragraph, please.",
        "antidisestablishmentarianismWithCamelCaseVersion2",
        "a_very_long_snake_case_identifier_with_the_number_2024_in_it",
        "TheBloke/Mistral-7B-Instruct-v0.2-GPTQ-4bit-32g-actorder_True",
        "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8",
        "https://api.runpod.ai/v2/abc123/runsync?wait=90000",
        "=" * 64,
        "1234567890" * 5,
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "sk-learn and hf_hub are libraries; risk-averse-people-everywhere",
    ],
)
def test_what_does_not_look_like_a_key(text):
    assert not looks_like_key(text)


@given(st.uuids(), st.sampled_from(["", "-u1", "-e2"]))
def test_job_ids_never_look_like_keys(identity, suffix):
    assert not looks_like_key(f"{identity}{suffix}")


@given(st.text())
def test_any_text_can_be_looked_at(text):
    assert looks_like_key(text) in (True, False)


# ------------------------------------------------------------------ the key of the next request


class Counting(Backend):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def get_password(self, service, username):
        self.asked += 1
        return super().get_password(service, username)


def test_a_keyring_is_asked_once_until_a_key_changes_or_is_refused():
    backend = Counting()
    keyring.set_keyring(backend)
    backend.kept["notebook_ext", "runpod"] = "old"
    for _ in range(3):
        assert find_or_require(RUNPOD, name="llama")() == "old"
    assert backend.asked == 2  # for the name, and for the provider
    backend.kept["notebook_ext", "runpod"] = "new"
    assert find_or_require(RUNPOD, name="llama")() == "old"
    doubt_keyring()
    assert find_or_require(RUNPOD, name="llama")() == "new"
    remember_key(RUNPOD, KEY, name="llama")
    assert find_or_require(RUNPOD, name="llama")() == KEY


def test_memory_and_environment_are_looked_at_each_time(monkeypatch):
    assert find_or_require(local("http://127.0.0.1:1/v2", lambda: None)) is None
    monkeypatch.setenv("RUNPOD_API_KEY", "first")
    assert find_or_require(RUNPOD)() == "first"
    monkeypatch.setenv("RUNPOD_API_KEY", "second")
    assert find_or_require(RUNPOD)() == "second"
    remember_key(RUNPOD, "typed")
    assert find_or_require(RUNPOD)() == "typed"
    monkeypatch.setenv("OWN", "own")
    forget_keys()
    assert find_or_require(RUNPOD, variable="OWN")() == "own"


def test_a_server_on_this_machine_needs_none_and_its_absence_is_remembered():
    backend = Counting()
    keyring.set_keyring(backend)
    here = resolve("http://127.0.0.1:9/v2")
    for _ in range(3):
        assert find_or_require(here) is None
    assert backend.asked == 1


def test_a_missing_key_elsewhere_is_looked_for_anew():
    backend = Counting()
    keyring.set_keyring(backend)
    with pytest.raises(ConfigurationError, match="%endpoint login llama"):
        find_or_require(RUNPOD, name="llama")
    backend.kept["notebook_ext", "runpod"] = KEY  # typed in another kernel
    assert find_or_require(RUNPOD, name="llama")() == KEY
