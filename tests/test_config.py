from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_ext.config import PROJECT_FILE, Config, SavedEndpoint, _parse, _toml
from notebook_ext.errors import ConfigurationError

LLAMA = SavedEndpoint("llama", "abc123", "runpod", "vllm", "RUNPOD_API_KEY", 0.00044)
OTHER = SavedEndpoint("other", "xyz789", "https://example.com/v2")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(folder=tmp_path / "user", reserved={"run", "status"})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ saving and finding


def test_what_is_saved_is_found_by_another_kernel(config, tmp_path):
    assert config.endpoints == {}
    assert config.save(LLAMA) == config.user_file
    assert config.save(OTHER) == config.user_file
    assert Config(folder=tmp_path / "user").endpoints == {"llama": LLAMA, "other": OTHER}


def test_the_variable_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_EXT_CONFIG", str(tmp_path / "elsewhere"))
    Config().save(LLAMA)
    assert (tmp_path / "elsewhere" / "endpoints.toml").is_file()


def test_without_the_variable_it_is_the_platforms_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTEBOOK_EXT_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert Config().user_file.parts[-2:] == ("notebook_ext", "endpoints.toml")


def test_the_file_has_a_version_and_no_temporary_files_beside_it(config):
    config.save(LLAMA)
    document = tomllib.loads(config.user_file.read_text())
    assert document == {
        "version": 1,
        "endpoints": {
            "llama": {
                "id": "abc123",
                "provider": "runpod",
                "profile": "vllm",
                "key_variable": "RUNPOD_API_KEY",
                "rate": 0.00044,
            }
        },
    }
    assert [path.name for path in config.user_file.parent.iterdir()] == ["endpoints.toml"]


def test_saving_again_replaces_and_drops_what_is_no_longer_said(config):
    config.save(LLAMA)
    config.save(SavedEndpoint("llama", "new", "tensorone"))
    assert config.endpoints["llama"] == SavedEndpoint("llama", "new", "tensorone")
    assert "rate" not in config.user_file.read_text()


def test_unknown_keys_are_kept(config):
    write(
        config.user_file,
        'theme = "dark"\n[endpoints.llama]\nid = "a"\nprovider = "runpod"\nnote = "mine"\n'
        "[endpoints.llama.nested]\nx = [1, {y = 2}]\nwhen = 2024-01-01T10:00:00Z\n[future]\nx.y = true\n",
    )
    config.save(OTHER)
    config.save(LLAMA)
    document = tomllib.loads(config.user_file.read_text())
    assert document["theme"] == "dark"
    assert document["future"] == {"x": {"y": True}}
    entry = document["endpoints"]["llama"]
    assert (entry["note"], entry["id"]) == ("mine", "abc123")
    assert entry["nested"]["x"] == [1, {"y": 2}]
    assert entry["nested"]["when"].year == 2024


def test_a_link_stays_a_link_and_a_mode_a_mode(config, tmp_path):
    real = write(tmp_path / "dotfiles" / "e.toml", "version = 1\n")
    real.chmod(0o600)
    config.user_file.parent.mkdir(parents=True)
    config.user_file.symlink_to(real)
    config.save(LLAMA)
    assert config.user_file.is_symlink()
    assert "abc123" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    write(tmp_path / "file", "")
    with pytest.raises(ConfigurationError, match="nothing was saved"):
        Config(folder=tmp_path / "file").save(LLAMA)


# ------------------------------------------------------------------ projects


def test_the_projects_file_wins_and_is_found_upward(config, tmp_path, monkeypatch):
    config.save(LLAMA)
    project = write(tmp_path / "work" / PROJECT_FILE, '[endpoints.llama]\nid = "team"\nprovider = "runpod"\n')
    deep = tmp_path / "work" / "a" / "b"
    deep.mkdir(parents=True)
    assert config.endpoints["llama"].endpoint_id == "abc123"
    monkeypatch.chdir(deep)
    assert config.project_file == project
    assert config.endpoints["llama"].endpoint_id == "team"


def test_saving_for_the_project_makes_a_file_here_or_uses_the_nearest(tmp_path):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    here = Config(folder=tmp_path / "user", start=tmp_path / "work")
    assert here.save(OTHER, project=True) == tmp_path / "work" / PROJECT_FILE
    deep = Config(folder=tmp_path / "user", start=tmp_path / "work" / "deep")
    assert deep.save(LLAMA, project=True) == tmp_path / "work" / PROJECT_FILE
    assert set(deep.endpoints) == {"llama", "other"}
    assert not deep.user_file.exists()


def test_saving_what_the_project_would_hide_is_refused(tmp_path):
    config = Config(folder=tmp_path / "user", start=tmp_path)
    config.save(LLAMA, project=True)
    with pytest.raises(ConfigurationError, match="would hide this one"):
        config.save(LLAMA)


def test_a_strangers_project_cannot_borrow_a_known_providers_key(tmp_path):
    config = Config(folder=tmp_path / "user", start=tmp_path)
    lent = 'key_variable = "RUNPOD_API_KEY"\n'
    project = tmp_path / PROJECT_FILE
    write(project, '[endpoints.llama]\nid = "a"\nprovider = "https://evil.example/v2"\n' + lent)
    with pytest.raises(ConfigurationError, match="RUNPOD_API_KEY belongs to another provider"):
        _ = config.endpoints
    for provider in ("runpod", "http://127.0.0.1:8000/v2"):
        write(project, f'[endpoints.llama]\nid = "a"\nprovider = "{provider}"\n{lent}')
        assert config.endpoints["llama"].key_variable == "RUNPOD_API_KEY"
    project.unlink()
    mine = SavedEndpoint("proxy", "a", "https://proxy.example/v2", key_variable="RUNPOD_API_KEY")
    assert config.save(mine) == config.user_file
    assert config.endpoints == {"proxy": mine}
    with pytest.raises(ConfigurationError, match="belongs to another provider"):
        config.save(mine, project=True)


# ------------------------------------------------------------------ forget, use


def test_forget(config):
    config.save(LLAMA)
    config.save(OTHER)
    config.use("llama")
    assert config.forget("llama") == config.user_file
    assert config.endpoints == {"other": OTHER}
    assert config.default is None
    with pytest.raises(ConfigurationError, match="did you mean 'other'"):
        config.forget("othr")


def test_forgetting_takes_the_one_that_is_seen(tmp_path):
    config = Config(folder=tmp_path / "user", start=tmp_path)
    config.save(LLAMA)
    write(tmp_path / PROJECT_FILE, '[endpoints.llama]\nid = "team"\nprovider = "runpod"\n')
    assert config.forget("llama") == tmp_path / PROJECT_FILE
    assert config.endpoints == {"llama": LLAMA}


def test_use(config):
    assert config.default is None
    config.save(LLAMA)
    assert config.use("llama") == config.user_file
    assert config.default == "llama"
    with pytest.raises(ConfigurationError, match="there is no saved endpoint 'nope'; saved are: llama"):
        config.use("nope")


def test_use_sets_the_default_that_counts(tmp_path):
    config = Config(folder=tmp_path / "user", start=tmp_path)
    config.save(LLAMA)
    config.save(OTHER, project=True)
    assert config.use("llama") == config.user_file
    assert config.use("other") == tmp_path / PROJECT_FILE
    assert config.default == "other"
    config.use("llama")
    assert config.default == "llama"


@pytest.mark.parametrize("default", ['"gone"', "3", '["llama"]'])
def test_a_default_that_is_gone_is_none(config, default):
    config.save(LLAMA)
    write(config.user_file, f"default = {default}\n" + config.user_file.read_text())
    assert config.default is None


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["run", "status"])
def test_verbs_are_no_names(config, name):
    with pytest.raises(ConfigurationError, match="is a verb"):
        config.save(SavedEndpoint(name, "abc", "runpod"))


@pytest.mark.parametrize("name", ["", "1a", "-a", "a b", "a/b", "é", "a\n", "@last"])
def test_bad_names(name):
    with pytest.raises(ConfigurationError, match="cannot name an endpoint"):
        SavedEndpoint(name, "abc", "runpod")


@pytest.mark.parametrize("name", ["a", "_x", "llama-3.1", "A_b"])
def test_good_names(config, name):
    config.save(SavedEndpoint(name, "abc", "runpod"))
    assert name in config.endpoints


@pytest.mark.parametrize("endpoint_id", ["", "a/b", "a b", "..", "a?b", "a#b", "a\n", "../x", "%2e"])
def test_ids_that_would_change_the_address(endpoint_id):
    with pytest.raises(ConfigurationError, match="is no endpoint id"):
        SavedEndpoint("a", endpoint_id, "runpod")


def test_a_key_is_never_saved_nor_repeated():
    key = "rpa_" + "X7Yz09Qw" * 5
    for fields in ((("a", key)), (("k" + key, "abc"))):
        with pytest.raises(ConfigurationError, match="keys are never saved") as caught:
            SavedEndpoint(*fields, "runpod")
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"provider": "runpd"}, "did you mean 'runpod'"),
        ({"provider": "http://example.com/v2"}, "only over https"),
        ({"key_variable": "RUNPOD-KEY"}, "*name* of a variable"),
        ({"rate": -1}, "dollars per second"),
        ({"rate": float("nan")}, "dollars per second"),
        ({"rate": float("inf")}, "dollars per second"),
    ],
)
def test_other_refusals(change, part):
    with pytest.raises(ConfigurationError) as caught:
        SavedEndpoint(**{"name": "a", "endpoint_id": "b", "provider": "runpod", **change})
    assert part in str(caught.value)


# ------------------------------------------------------------------ broken files


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("version = 1\nx ==\n", "line 2, column 4"),
        ("a = 1\na = 2\n", "line 2, column "),
        ('[endpoints.a]\nid = "never closed', "line 2, column "),
        ("version = 99", "newer notebook_ext (file version 99; this one reads up to 1)"),
        ("version = '1'", "'version' must be a whole number"),
        ("version = true", "'version' must be a whole number"),
        ("endpoints = 3", "'endpoints' must be a table"),
        ("[endpoints]\na = 3", "endpoint 'a': it needs an 'id' and a 'provider'"),
        ("[endpoints.a]\nid = 'x'", "endpoint 'a': it needs an 'id' and a 'provider'"),
        ("[endpoints.a]\nid = 3\nprovider = 'runpod'", "endpoint 'a': 'id' must be text"),
        ("[endpoints.a]\nid = 'x'\nprovider = 'runpod'\nrate = 'x'", "endpoint 'a': 'rate' must be a number"),
        (
            "[endpoints.a]\nid = 'x'\nprovider = 'runpod'\nrate = true",
            "endpoint 'a': 'rate' must be a number",
        ),
        ("[endpoints.a]\nid = 'x'\nprovider = 'runpd'", "endpoint 'a': there is no provider 'runpd'"),
        ("[endpoints.'1 a']\nid = 'x'\nprovider = 'runpod'", "endpoint '1 a': '1 a' cannot name an endpoint"),
    ],
)
def test_a_broken_file_says_where(config, text, where):
    write(config.user_file, text)
    with pytest.raises(ConfigurationError) as caught:
        _ = config.endpoints
    assert str(config.user_file) in str(caught.value)
    assert where in str(caught.value)


def test_a_file_that_is_not_utf8_says_where(config):
    config.user_file.parent.mkdir(parents=True)
    config.user_file.write_bytes(b"version = 1\nx = '\xff'\n")
    with pytest.raises(ConfigurationError, match="line 2, column 6: not UTF-8"):
        _ = config.endpoints


def test_a_broken_file_is_not_overwritten(config):
    write(config.user_file, "x ==\n")
    with pytest.raises(ConfigurationError):
        config.save(LLAMA)
    assert config.user_file.read_text() == "x ==\n"


def test_a_broken_entry_can_be_forgotten(config):
    write(config.user_file, "[endpoints.a]\nid = 3\n")
    config.forget("a")
    assert config.endpoints == {}


def test_an_unreadable_file_is_explained(config):
    config.user_file.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        _ = config.endpoints


# ------------------------------------------------------------------ the writer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.dates()
    | st.datetimes()
    | st.times()
)


def tables(values):
    return st.dictionaries(TEXT, values, max_size=4)


VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | tables(inner), max_leaves=8)


@given(tables(VALUES))
def test_what_is_written_is_read_back(document):
    assert _parse(Path("x"), _toml(document).encode()) == document


def test_the_temporary_file_goes_when_replacing_fails(config):
    config.user_file.mkdir(parents=True)
    write(config.user_file / "in the way", "")
    from notebook_ext.config import _store

    with pytest.raises(ConfigurationError, match="cannot be written"):
        _store(config.user_file, {})
    assert [path.name for path in config.user_file.parent.iterdir()] == ["endpoints.toml"]


# ------------------------------------------------------------------ several kernels at once

SAVING = """
import sys
from notebook_ext.config import Config, SavedEndpoint
sys.stdin.readline()
for number in range(20):
    Config().save(SavedEndpoint(f"{sys.argv[1]}{number}", "x", "runpod"))
"""


def test_two_processes_that_save_at_once_lose_nothing():
    kernels = [
        subprocess.Popen([sys.executable, "-c", SAVING, name], stdin=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for kernel in kernels:
        kernel.stdin.write("go\n")
        kernel.stdin.close()
    assert [kernel.wait(30) for kernel in kernels] == [0, 0]
    assert len(Config().endpoints) == 40
    assert [path.name for path in Config().user_file.parent.iterdir()] == ["endpoints.toml"]


def test_a_lock_is_waited_for_and_a_crashs_lock_is_taken_over(config, monkeypatch):
    monkeypatch.setattr("notebook_ext.config.LOCK_PATIENCE", 0.02)
    lock = write(config.user_file.with_name(".endpoints.toml.lock"), "")
    with pytest.raises(ConfigurationError, match="being changed by another program; nothing was saved"):
        config.save(LLAMA)
    assert lock.exists()
    old = lock.stat().st_mtime - 11
    os.utime(lock, (old, old))
    config.save(LLAMA)
    assert config.endpoints == {"llama": LLAMA}
    assert not lock.exists()


# ------------------------------------------------------------------ what else is refused or put right


@pytest.mark.parametrize("field", ["name", "endpoint_id", "provider", "profile", "key_variable"])
@pytest.mark.parametrize("key", ["rpa_" + "X7YZ09QW" * 5, "9f86d081884c7d659a2feaa0c55ad015"])
def test_no_field_takes_a_key(field, key):
    value = f"https://example.com/{key}/v2" if field == "provider" else key
    with pytest.raises(ConfigurationError, match="keys are never saved") as caught:
        SavedEndpoint(**{"name": "a", "endpoint_id": "b", "provider": "runpod", field: value})
    assert key not in str(caught.value)


def test_a_key_in_a_file_is_not_repeated(config):
    key = "rpa_" + "X7YZ09QW" * 5
    write(config.user_file, f"[endpoints.{key}]\nid = 'x'\nprovider = 'runpod'\n")
    with pytest.raises(ConfigurationError) as caught:
        _ = config.endpoints
    assert key not in str(caught.value)


@pytest.mark.parametrize("variable", ["rpa_ABC123", "AbC", "", "1A", "A B", "A-B", "A\n"])
def test_what_is_no_variables_name(variable):
    with pytest.raises(ConfigurationError, match=r"\*name\* of a variable"):
        SavedEndpoint("a", "b", "runpod", key_variable=variable)


@pytest.mark.parametrize("variable", ["RUNPOD_API_KEY", "_K2", "team_key"])
def test_names_of_variables(variable):
    assert SavedEndpoint("a", "b", "runpod", key_variable=variable).key_variable == variable


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.runpod.ai/v2", "runpod"),
        ("https://API.runpod.ai/v2/", "runpod"),
        ("RunPod", "runpod"),
        ("https://api.tensorone.ai/v2", "tensorone"),
        ("tensorone-rest", "tensorone-rest"),
        ("https://example.com/v2/", "https://example.com/v2"),
    ],
)
def test_a_known_providers_url_becomes_its_name(given, kept):
    assert SavedEndpoint("a", "b", given).provider == kept


def test_a_url_stays_where_the_name_stands_for_another(monkeypatch):
    monkeypatch.setenv("TENSORONE_BASE_URL", "https://moved.example/v2")
    url = "https://api.tensorone.ai/v2"
    assert SavedEndpoint("a", "b", url).provider == url
    assert SavedEndpoint("a", "b", "tensorone").provider == "tensorone"
