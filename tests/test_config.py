"""Settings: unknown ones are errors, and the nearer source beats the farther."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from guard.config import ServeConfig, load_config
from guard.errors import ConfigError

FIELDS = [field.name for field in fields(ServeConfig)]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    file = tmp_path / "guard.toml"
    file.write_text('inspect_timeout_s = 1.5\nmode = "shadow"\nmax_rows = 8\n', "utf-8")
    return file


def test_nothing_given_is_the_defaults() -> None:
    assert load_config(None, {}, {}) == ServeConfig()


def test_it_cannot_be_changed() -> None:
    config = ServeConfig()
    with pytest.raises(FrozenInstanceError):
        config.mode = "off"  # type: ignore[misc]


def test_flag_beats_environment_beats_file_beats_default(toml: Path) -> None:
    environment = {"GUARD_MODE": "flag", "GUARD_MAX_ROWS": "16", "PATH": "/bin"}
    config = load_config(toml, environment, {"mode": "enforce", "max_rows": None})
    assert (config.mode, config.max_rows, config.inspect_timeout_s) == ("enforce", 16, 1.5)
    assert config.max_queue_rows == ServeConfig().max_queue_rows


@pytest.mark.parametrize(
    ("wrong", "near"), [("max_row", "max_rows"), ("reject_rates", "reject_rate"), ("onfailure", "on_failure")]
)
def test_an_unknown_key_names_file_key_and_nearest(tmp_path: Path, wrong: str, near: str) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(f"{wrong} = 1\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {}, {})
    assert all(repr(word) in str(caught.value) for word in (wrong, near))
    assert str(file) in str(caught.value)


def test_a_setting_of_an_earlier_version_names_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text("timeout_s = 30\n", "utf-8")
    for given in ((file, {}), (None, {"GUARD_TIMEOUT_S": "30"})):
        with pytest.raises(ConfigError, match=r"'timeout_s' is gone.*did you mean 'inspect_timeout_s'"):
            load_config(*given, {})


def test_a_key_like_no_other_lists_them_all(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text("zzzz = 1\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {}, {})
    assert all(name in str(caught.value) for name in FIELDS)


def test_an_unknown_variable_is_an_error_and_others_environment_is_not() -> None:
    assert load_config(None, {"GUARDIAN": "1", "guard_mode": "off"}, {}) == ServeConfig()
    with pytest.raises(ConfigError, match=r"GUARD_LISTN.*did you mean 'listen'"):
        load_config(None, {"GUARD_LISTN": "0.0.0.0:1"}, {})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("mode", "loud", "enforce, flag, shadow, off"),
        ("on_failure", "ajar", "closed, open"),
        ("max_rows", "many", "a whole number"),
        ("max_rows", True, "a number"),
        ("max_rows", 1.5, "a whole number"),
        ("inspect_timeout_s", "soon", "a number"),
        ("tell_flags", "perhaps", "true or false"),
        ("tell_flags", 2, "true or false"),
        ("listen", 8081, "text"),
        ("allow_methods", 3, "a list of names"),
        ("allow_methods", [1], "a list of names"),
        ("reject_rate", "x", "a number"),
        ("max_rows", 0, "more than zero"),
        ("inspect_timeout_s", -1, "more than zero"),
        ("inspect_timeout_s", float("nan"), "more than zero"),
        ("drain_s", -1, "zero or more"),
        ("listen", "8081", "HOST:PORT"),
        ("upstream", "model:http", "HOST:PORT, dns:///NAME:PORT"),
        ("upstream", "https://model:443", "unix:PATH"),
        ("upstream_authority", "a b", "HOST or HOST:PORT"),
        ("upstream_tls", "perhaps", "true or false"),
        ("threads", 0, "more than zero"),
    ],
)
def test_a_wrong_value_says_what_was_found_and_wanted(key: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {key: value})
    assert wanted in str(caught.value)
    assert key.replace("_", "-") in str(caught.value) or key in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("GUARD_ALLOW_METHODS", "ModelConfig, RepositoryIndex", ("ModelConfig", "RepositoryIndex")),
        ("GUARD_ALLOW_METHODS", "", ()),
        ("GUARD_REPAIR", "none", None),
        ("GUARD_REPAIR", "median", "median"),
        ("GUARD_THREADS", "2", 2),
        ("GUARD_REJECT_RATE", "0.02", 0.02),
        ("GUARD_TELL_FLAGS", "YES", True),
        ("GUARD_TELL_FLAGS", "0", False),
    ],
)
def test_text_of_the_environment_is_parsed(variable: str, text: str, value: Any) -> None:
    assert getattr(load_config(None, {variable: text}, {}), variable.removeprefix("GUARD_").lower()) == value


def test_a_file_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml", {}, {})
    file = tmp_path / "guard.toml"
    for content in (b"mode = ", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="not valid TOML"):
            load_config(file, {}, {})


def test_the_bundles_rates_hold_where_no_rate_is_set() -> None:
    (model,) = load_config(None, {}, {"flag_rate": 0.2}).model_configs()
    policy = model.policy(reject_rate=0.01, flag_rate=0.05)
    assert (policy.reject_rate, policy.flag_rate) == (0.01, 0.2)
    with pytest.raises(ConfigError, match=r"flag_rate = 0\.05 is below reject_rate = 0\.3"):
        replace(model, flag_rate=None, reject_rate=0.3).policy(reject_rate=0.01, flag_rate=0.05)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_documented(name: str) -> None:
    (line,) = [line for line in inspect.getsource(ServeConfig).splitlines() if re.match(rf"    {name}: ", line)]
    comment = line.partition("  # ")[2]
    assert len(comment) > 5


@pytest.mark.readme
@pytest.mark.parametrize("name", FIELDS)
def test_readme_lists_every_setting(name: str, root: Path) -> None:
    assert f"`{name}`" in (root / "README.md").read_text("utf-8")


TABLES = """
mode = "shadow"
[models.a]
bundle = "one"
max_queue_rows = 8
[models."b:2"]
bundle = "two"
mode = "enforce"
"""


def test_what_a_models_table_does_not_set_is_as_above_the_tables(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(TABLES, "utf-8")
    config = load_config(file, {"GUARD_ON_FAILURE": "open"}, {"reject_rate": 0.02})
    first, second = config.model_configs()
    assert (first.key, first.bundle, first.mode, first.max_queue_rows) == ("a", "one", "shadow", 8)
    assert (second.name, second.version, second.bundle, second.mode) == ("b", "2", "two", "enforce")
    assert second.max_queue_rows == config.max_queue_rows
    assert {(model.on_failure, model.reject_rate) for model in (first, second)} == {("open", 0.02)}


def test_without_tables_the_bundle_is_the_only_model() -> None:
    (model,) = ServeConfig(bundle="one", mode="flag").model_configs()
    assert (model.key, model.bundle, model.mode) == ("", "one", "flag")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[models.a]\nbundl = "x"\n', ("models.a: unknown setting 'bundl'", "did you mean 'bundle'")),
        ('[models.a]\nlisten = "x:1"\n', ("models.a: unknown setting 'listen'", "stands above all tables")),
        ('[models.a.b]\nbundle = "x"\n', ('[models."a.b"]',)),
        ("[models.a]\n", ("models.a names no bundle",)),
        ('[models.a]\nbundle = "x"\nmax_rows = 0\n', ("models.a.max_rows = 0", "more than zero")),
        ('[models."a:1"]\nbundle = "x"\nmode = "loud"\n', ("models.\"a:1\".mode = 'loud'", "enforce, flag")),
        ('[models."a:"]\nbundle = "x"\n', ("NAME:VERSION",)),
        ('[models."a:1:2"]\nbundle = "x"\n', ("NAME:VERSION",)),
        ("models = 3\n", ("models = 3", "wanted tables")),
        ("[models]\n", ("wanted tables",)),
        ("[models]\na = 1\n", ("models.a = 1", "wanted a table")),
        ('bundle = "x"\n[models.a]\nbundle = "y"\n', ("give either, not both",)),
        ('[model.a]\nbundle = "y"\n', ("did you mean 'models'",)),
    ],
)
def test_a_wrong_table_says_which_and_what_was_wanted(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "guard.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {}, {})
    assert all(word in str(caught.value) for word in (str(file), *words)), caught.value


def test_tables_cannot_be_given_by_a_variable_or_beside_a_flag_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GUARD_MODELS = 'a'; wanted tables in guard.toml"):
        load_config(None, {"GUARD_MODELS": "a"}, {})
    file = tmp_path / "guard.toml"
    file.write_text('[models.a]\nbundle = "x"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"--bundle = 'y'.*give either, not both"):
        load_config(file, {}, {"bundle": "y"})
