from __future__ import annotations

import dataclasses

import pytest

from notebook_ext.errors import ConfigurationError
from notebook_ext.protocol import Operation
from notebook_ext.providers import (
    PROVIDERS,
    RUNPOD,
    TENSORONE,
    TENSORONE_REST,
    Provider,
    local,
    resolve,
    split_endpoint_url,
)


@pytest.fixture(autouse=True)
def _no_moved_provider(monkeypatch):
    monkeypatch.delenv("TENSORONE_BASE_URL", raising=False)


@pytest.mark.parametrize("name", ["runpod", "tensorone", "tensorone-rest"])
def test_known_names(name):
    assert resolve(name) is PROVIDERS[name]
    assert resolve(f" {name.upper()} ") is PROVIDERS[name]
    assert resolve(PROVIDERS[name]) is PROVIDERS[name]


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("runpd", "did you mean 'runpod'?"),
        ("tensor-one", "did you mean 'tensorone'?"),
        ("zzz", "known are runpod, tensorone, tensorone-rest"),
        ("", "no provider was named"),
        ("api.runpod.ai/v2", "begins with https://"),
        ("localhost:8000", "begins with https://"),
    ],
)
def test_unknown_name_says_what_was_meant(typed, part):
    with pytest.raises(ConfigurationError) as caught:
        resolve(typed)
    assert part in str(caught.value)


def test_a_key_in_the_providers_place_is_not_repeated():
    key = "rpa_" + "A1b2C3d4" * 5
    with pytest.raises(ConfigurationError) as caught:
        resolve(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base_url", "name", "loopback"),
    [
        ("https://example.com/v2", "https://example.com/v2", "example.com", False),
        ("https://Example.com/v2///", "https://example.com/v2", "example.com", False),
        (
            "https://example.com:8443/proxy/v2/",
            "https://example.com:8443/proxy/v2",
            "example.com:8443",
            False,
        ),
        ("http://127.0.0.1:8000/v2", "http://127.0.0.1:8000/v2", "127.0.0.1:8000", True),
        ("http://127.8.9.10/v2", "http://127.8.9.10/v2", "127.8.9.10", True),
        ("http://localhost:1/v2", "http://localhost:1/v2", "localhost:1", True),
        ("http://[::1]:5/v2", "http://[::1]:5/v2", "[::1]:5", True),
        ("HTTP://LOCALHOST/v2", "http://localhost/v2", "localhost", True),
    ],
)
def test_base_urls(url, base_url, name, loopback):
    provider = resolve(url)
    assert (provider.base_url, provider.name) == (base_url, name)
    assert provider.loopback is loopback
    assert provider.key_variable == "NOTEBOOK_EXT_API_KEY"
    assert provider.limits == {}
    assert provider.policy_ranges is None


def test_the_url_of_a_known_provider_is_that_provider():
    assert resolve("https://api.runpod.ai/v2/") is RUNPOD
    assert resolve("https://api.tensorone.ai/v2") is TENSORONE


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://example.com/v2", "only over https"),
        ("http://10.0.0.1/v2", "only over https"),
        ("http://0.0.0.0:80/v2", "only over https"),
        ("http://localhost.example.com/v2", "only over https"),
        ("http://127.1/v2", "only over https"),
        ("http://[::2]/v2", "only over https"),
        ("ftp://example.com/v2", "begins with https://"),
        ("https:///v2", "begins with https://"),
        ("https://example.com", "did you mean 'https://example.com/v2'?"),
        ("https://api.runpod.ai/v2/abc123", "ends in /v2"),
        ("https://example.com:x/v2", "cannot be read"),
        ("https://[::1/v2", "cannot be read"),
        ("https://example.com:99999/v2", "cannot be read"),
    ],
)
def test_refused_urls(url, part):
    with pytest.raises(ConfigurationError) as caught:
        resolve(url)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cret@example.com/v2",
        "https://s3cret@example.com/v2",
        "http://127.0.0.1\\@s3cret.example/v2",
        "https://example.com/v2?key=s3cret",
        "https://example.com/v2#s3cret",
        "http://localhost\t.s3cret.example/v2",
        "https://exämple-s3cret.com/v2",
    ],
)
def test_what_may_hold_a_secret_or_fool_a_parser_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigurationError) as caught:
        resolve(url)
    assert "s3cret" not in str(caught.value)


def test_a_record_made_by_hand_is_checked_too():
    with pytest.raises(ConfigurationError, match="only over https"):
        Provider("mine", "http://example.com/v2")
    assert Provider("mine", "https://example.com/v2/").base_url == "https://example.com/v2"
    with pytest.raises(ConfigurationError, match="only over https"):
        dataclasses.replace(RUNPOD, base_url="http://example.com/v2")


def test_tensorone_can_be_moved(monkeypatch):
    monkeypatch.setenv("TENSORONE_BASE_URL", "https://eu.example.com/v2/")
    for name in ("tensorone", "tensorone-rest"):
        assert resolve(name).base_url == "https://eu.example.com/v2"
        assert resolve(name).key_variable == "TENSORONE_API_KEY"
    assert resolve("runpod") is RUNPOD
    monkeypatch.setenv("TENSORONE_BASE_URL", "http://eu.example.com/v2")
    with pytest.raises(
        ConfigurationError, match="the variable TENSORONE_BASE_URL: a key goes only over https"
    ):
        resolve("tensorone")


def test_routes_are_documented_or_refused():
    assert RUNPOD.route(Operation.RUN).fill("abc") == "/abc/run"
    assert all(RUNPOD.route(operation) for operation in Operation)
    assert TENSORONE_REST.route(Operation.STATUS).fill("abc", "j1") == "/jobs/j1/status"
    with pytest.raises(
        ConfigurationError, match=r"cancel is not documented for this provider \(tensorone-rest\)"
    ):
        TENSORONE_REST.route(Operation.CANCEL)


def test_documented_limits_of_runpod():
    rates = {operation: (limit.rate, limit.concurrency) for operation, limit in RUNPOD.limits.items()}
    assert rates[Operation.RUN] == (1000, 200)
    assert rates[Operation.RUNSYNC] == (2000, 400)
    assert rates[Operation.CANCEL] == (100, 20)
    assert rates[Operation.PURGE_QUEUE] == (2, None)
    assert rates[Operation.REQUESTS] == (10, 2)
    budgets = {operation: limit.budget for operation, limit in RUNPOD.limits.items() if limit.budget}
    looks, openai = "status and stream", "openai"
    assert budgets == {
        Operation.STATUS: looks,
        Operation.STATUS_SYNC: looks,
        Operation.STREAM: looks,
        Operation.OPENAI: openai,
        Operation.MODELS: openai,
    }
    assert all(limit.window == 10.0 for limit in RUNPOD.limits.values())
    assert RUNPOD.max_payload[Operation.RUN] >= 10_000_000
    assert RUNPOD.max_payload[Operation.RUNSYNC] >= 20_000_000
    assert RUNPOD.retention == {Operation.RUN: 1800.0, Operation.RUNSYNC: 60.0}
    assert RUNPOD.policy_ranges == {"execution_timeout": (5.0, 604_800.0), "ttl": (10.0, 604_800.0)}


def test_the_embedded_provider_keeps_its_token_to_itself():
    provider = local("http://127.0.0.1:1/v2", lambda: "t0ken")
    assert provider.key_source is not None
    assert provider.key_source() == "t0ken"
    assert "key_source" not in repr(provider)
    assert provider == local("http://127.0.0.1:1/v2", lambda: "other")
    assert provider.policy_ranges is None
    assert provider.key_variable is None


def test_records_can_be_keys_and_cannot_be_changed():
    assert len({RUNPOD, TENSORONE, TENSORONE_REST, resolve("https://a.example/v2")}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUNPOD.name = "other"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://api.runpod.ai/v2/abc123", ("https://api.runpod.ai/v2", "abc123")),
        ("https://api.runpod.ai/v2/abc123/", ("https://api.runpod.ai/v2", "abc123")),
        (" https://api.runpod.ai/v2/abc123/runsync ", ("https://api.runpod.ai/v2", "abc123")),
        ("https://host/a/v2/x/status/j?wait=1", ("https://host/a/v2/x/status/j?wait=1", None)),
        ("https://host/a/v2/x/status/j", ("https://host/a/v2", "x")),
        ("https://api.runpod.ai/v2", ("https://api.runpod.ai/v2", None)),
        ("https://api.runpod.ai/v2/", ("https://api.runpod.ai/v2/", None)),
        ("abc123", ("abc123", None)),
    ],
)
def test_an_endpoints_url_is_parted(url, parts):
    assert split_endpoint_url(url) == parts
