"""Any setting that is given, anywhere and of any kind, is the one that serves, or is refused by file, key and value."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guard.config import MAX_SHOWN_CHARACTERS, MODELS, OF_A_MODEL, ServeConfig, load_config
from guard.errors import ConfigError
from guard.setting_ranges import MORE_THAN_ZERO
from guard.target import split_address

pytestmark = pytest.mark.slow

HINTS = {key: hint for key, hint in typing.get_type_hints(ServeConfig).items() if key != MODELS}  # those are tables
EXAMPLES = 150
WORDS = ("none", "", "true", "no", "1", "0x10", "1e3", "nan", "inf", "-0", "cpu", "enforce", "h:80", "h:٣", "a,b", "ⅷ")
HUGE = 10**400  # more than a float holds
LONGER = "0x" + "f" * 6000  # more than Python writes in decimal
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, HUGE, -HUGE])
    | st.floats()
    | TEXT
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
KEYS = st.sampled_from(sorted(HINTS)) | TEXT


def kind_of(key: str) -> tuple[Any, bool]:
    """The type of a setting, and whether it can be left out."""
    options = [option for option in get_args(HINTS[key]) if option is not type(None)]
    optional = type(None) in get_args(HINTS[key])
    return (options[0] if optional else HINTS[key]), optional


def valid(key: str) -> st.SearchStrategy[Any]:
    """Values that a setting can have; None where it is optional."""
    kind, optional = kind_of(key)
    lowest = 1 if key in (*MORE_THAN_ZERO, "drift_alarm_probability", "breaker_share", "sample") else 0
    found: st.SearchStrategy[Any]
    if get_origin(kind) is Literal:
        found = st.sampled_from(get_args(kind))
    elif get_origin(kind) is tuple:
        found = st.lists(st.from_regex(r"\A[A-Za-z][\w.]{0,9}\Z"), max_size=3).map(tuple)
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = st.integers(lowest, 2**63)
    elif kind is float:
        found = st.floats(0, 1, exclude_min=lowest == 1, exclude_max=True)
    elif key == "upstream" or key.endswith("listen"):
        found = st.builds("{}:{}".format, st.from_regex(r"\A[a-z.]{1,9}\Z"), st.integers(0, 65535))
    elif key in ("rest_upstream", "events_sink"):
        found = st.builds("http://{}:{}".format, st.from_regex(r"\A[a-z]{1,9}\Z"), st.integers(1, 65535))
    elif key == "model_name":
        found = st.from_regex(r"\A[a-z]{1,9}(:\d{1,3})?\Z", fullmatch=True)
    elif key == "upstream_authority":
        found = st.from_regex(r"\A[a-z.]{1,9}(:\d{1,4})?\Z", fullmatch=True)
    else:
        found = TEXT.filter(lambda text: text not in ("", "none") or not optional)
    return found | st.none() if optional else found


CONFIGS = st.fixed_dictionaries({}, optional={key: valid(key) for key in sorted(HINTS)})


def toml(value: Any) -> str:
    """A value as TOML writes it; None is the text that stands for it."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return '"none"'
        case int():
            return hex(value) if value > 2**63 else str(value)
        case float():
            return repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return "{" + ", ".join(f"{toml(key)} = {toml(inner)}" for key, inner in value.items()) + "}"


def written(settings_: Mapping[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in settings_.items())


def as_text(value: Any) -> str:
    """A value as an environment variable holds it."""
    if value is None:
        return "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def stands_for(found: Any, value: Any, key: str) -> bool:
    """Whether a setting is what was given: itself, or what its text says."""
    kind, optional = kind_of(key)
    if found is None:
        return optional and value in ("", "none")
    if kind is bool:
        return found is (str(value).lower() in ("true", "1", "yes"))
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return list(found) == [part.strip() if isinstance(value, str) else part for part in parts if part.strip()]
    if kind in (int, float):
        numeric = not isinstance(value, bool) and type(found) is kind
        same = kind(value) == found or (math.isnan(found) and math.isnan(float(value)))
        return numeric and same and (isinstance(value, str) or kind is float or found == value)
    return type(found) is str and found == value


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "guard.toml"


@settings(max_examples=EXAMPLES)
@given(config=CONFIGS, share=st.randoms(note_method_calls=False, use_true_random=False))
def test_what_is_valid_is_kept_from_wherever_it_comes(file: Path, config: dict[str, Any], share: Any) -> None:
    wanted = ServeConfig(**config)
    file.write_text(written(config), "utf-8")
    assert load_config(file, {}, {}) == wanted
    sources: tuple[dict[str, Any], ...] = ({}, {}, {})
    for key, value in config.items():
        share.choice(sources if value is not None else sources[:2])[key] = value
    given_file, given_environment, given_flags = sources
    file.write_text(written(given_file), "utf-8")
    environment = {f"GUARD_{key.upper()}": as_text(value) for key, value in given_environment.items()}
    assert load_config(file, environment, given_flags) == wanted


@settings(max_examples=EXAMPLES)
@given(config=CONFIGS, nearer=CONFIGS)
def test_the_nearer_source_beats_the_farther(file: Path, config: dict[str, Any], nearer: dict[str, Any]) -> None:
    file.write_text(written(config), "utf-8")
    environment = {f"GUARD_{key.upper()}": as_text(value) for key, value in nearer.items()}
    assert load_config(file, environment, {}) == ServeConfig(**{**config, **nearer})
    flags = {key: value for key, value in nearer.items() if value is not None}
    assert load_config(file, {}, flags) == ServeConfig(**{**config, **flags})


@settings(max_examples=2 * EXAMPLES)
@given(key=KEYS, value=VALUES)
@example("inspect_timeout_s", HUGE)
@example("listen", "h:" + "1" * 5000)
@example("drain_s", math.inf)
@example("max_rows", "1" * 5000)
def test_any_value_of_any_key_is_what_was_given_or_is_refused_by_name(file: Path, key: str, value: Any) -> None:
    file.write_text(written({key: value}), "utf-8")
    sources: list[tuple[str, Path | None, dict[str, str], dict[str, Any]]] = [(str(file), file, {}, {})]
    sources.append((f"--{key.replace('_', '-')}", None, {}, {key: value}))
    if isinstance(value, str) and key in HINTS:
        sources.append((f"GUARD_{key.upper()}", None, {f"GUARD_{key.upper()}": value}, {}))
    for place, *given_to in sources:
        error = refusal(given_to, key, value)
        if error is None:
            continue
        assert place in error
        assert key in error.lower().replace("-", "_") or repr(key) in error
        assert re.search("wanted|did you mean|known settings", error)
        assert len(error) < len(str(file)) + 2 * MAX_SHOWN_CHARACTERS + len(", ".join(HINTS))


def refusal(given_to: list[Any], key: str, value: Any) -> str | None:
    """The error's text, or None where the setting is what was given and all others have their defaults."""
    try:
        config = load_config(*given_to)
    except ConfigError as error:
        return str(error)
    assert key in HINTS
    assert stands_for(getattr(config, key), value, key), (getattr(config, key), value)
    defaults = ServeConfig()
    assert all(getattr(config, f.name) == getattr(defaults, f.name) for f in fields(config) if f.name != key)
    return None


@pytest.mark.parametrize("key", sorted(key for key in HINTS if kind_of(key)[0] in (int, float)))
def test_a_truth_is_no_number_and_a_number_is_no_text(key: str, file: Path) -> None:
    for value in (True, False, [], {}, [1], "one"):
        file.write_text(written({key: value}), "utf-8")
        with pytest.raises(ConfigError, match=re.escape(f"{file}: {key} = {value!r}; wanted a ")):
            load_config(file, {}, {})


@pytest.mark.parametrize("key", ["listen", "inspect_timeout_s", "mode", "tell_flags", "allow_methods", "repair"])
def test_a_number_that_cannot_be_written_is_refused_by_name(key: str, file: Path) -> None:
    for value in (LONGER, f"[{LONGER}]", "1" * 5000):
        file.write_text(f"{key} = {value}\n", "utf-8")
        with pytest.raises(ConfigError, match=re.escape(str(file))):
            load_config(file, {}, {})


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*sorted(HINTS), *"=[]{}'\"\n.#-_ ,1e", "true"])).map("".join))
@example("[" * 5000)
@example("max_rows = " + "1" * 5000)
@example("a" + ".a" * 5000 + " = 1")
def test_any_text_is_a_config_or_is_refused_by_file(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(file, {}, {})
    except ConfigError as error:
        refused = str(error)
    else:
        assert isinstance(config, ServeConfig)
        return
    assert str(file) in refused


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=20) | st.builds("{}:{}".format, st.text(max_size=6), st.integers(-2, 70_000)))
@example("a:" + "1" * 5000)
def test_an_address_is_taken_apart_or_is_none(text: str) -> None:
    found = split_address(text)
    if found is None:
        return
    host, port = found
    assert text.startswith(f"{host}:")
    assert host
    assert 0 <= port < 65536
    assert int(text.removeprefix(f"{host}:")) == port


NAMES = st.from_regex(r"\A[A-Za-z0-9._-]{1,9}(:[0-9]{1,3})?\Z")
TABLES = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"bundle": TEXT.filter(bool)}, optional={key: valid(key) for key in OF_A_MODEL if key != "bundle"}
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=EXAMPLES)
@given(config=CONFIGS, tables=TABLES)
def test_a_models_setting_is_its_tables_or_the_one_above(
    file: Path, config: dict[str, Any], tables: dict[str, dict[str, Any]]
) -> None:
    above = {key: value for key, value in config.items() if key not in ("bundle", "model_name")}  # the tables have both
    file.write_text(written({**above, MODELS: tables}), "utf-8")
    models = load_config(file, {}, {}).model_configs()
    defaults = ServeConfig(**above)
    for model, (key, table) in zip(models, tables.items(), strict=True):
        assert f"{model.name}:{model.version}".removesuffix(":") == key == model.key
        for setting in OF_A_MODEL:
            assert getattr(model, setting) == table.get(setting, getattr(defaults, setting))


@settings(max_examples=2 * EXAMPLES)
@given(tables=VALUES | st.dictionaries(NAMES | TEXT, st.dictionaries(st.sampled_from(OF_A_MODEL) | TEXT, VALUES)))
def test_any_tables_are_kept_or_refused_in_one_line(file: Path, tables: Any) -> None:
    file.write_text(written({MODELS: tables}), "utf-8")
    try:
        models = load_config(file, {}, {}).models
    except ConfigError as error:
        refused = str(error)
    else:
        assert [model.key for model in models] == list(tables)
        return
    assert str(file) in refused
    assert "\n" not in refused
    assert len(refused) < 2000
