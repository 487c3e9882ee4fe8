"""The JSON schema of guard.toml, against the code that reads it: what the schema lets pass, the code takes."""

from __future__ import annotations

import json
import re
import subprocess
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from guard import cli
from guard.config import MODELS, OF_A_MODEL, ServeConfig, convert, load_config
from guard.errors import ConfigError
from guard.setting_ranges import RANGES
from guard.settings_schema import comments, settings_schema

HINTS = {key: hint for key, hint in typing.get_type_hints(ServeConfig).items() if key != MODELS}
VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, -1, 2, 64, 0.5, 1.0, 1.5, -0.5, 1e9, 10**12),
    *(
        "none",
        "",
        "x",
        "host:80",
        ":80",
        "unix:/run/a",
        "http://h:1",
        "https://h:1/p",
        "dns:///h:1",
        "h",
        "m:2",
        "a:b:c",
    ),
    *([], ["a"], ["a", "b"], [1], {}, {"a": 1}),
)
JUDGE = """
import json, sys, jsonschema
schema, cases = json.load(sys.stdin)
jsonschema.Draft7Validator.check_schema(schema)
judge = jsonschema.Draft7Validator(schema)
print(json.dumps([judge.is_valid(case) for case in cases]))
"""


def candidates(key: str) -> list[Any]:
    """Values to try for a setting: those above, and each of its words."""
    options = [part for part in (HINTS[key], *get_args(HINTS[key])) if get_origin(part) is Literal]
    return [*VALUES, *(word for option in options for word in get_args(option))]


CASES = [(key, value) for key in HINTS for value in candidates(key)]


@pytest.fixture(scope="module")
def judged(side: Callable[[str], Path]) -> Callable[[list[dict[str, Any]]], list[bool]]:
    def judge(cases: list[dict[str, Any]]) -> list[bool]:
        given = json.dumps([settings_schema(), cases])
        command = [side("kubectl") / "python", "-c", JUDGE]
        done = subprocess.run(command, input=given, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr
        found: list[bool] = json.loads(done.stdout)
        return found

    return judge


def is_taken(key: str, value: Any) -> bool:
    """Whether the code takes a value of TOML for a setting."""
    try:
        converted = convert(value, HINTS[key], where=key)
    except ConfigError:
        return False
    return converted is None or key not in RANGES or RANGES[key].holds(converted)


def test_schema_and_code_judge_alike(judged: Callable[[list[dict[str, Any]]], list[bool]]) -> None:
    """What the schema lets pass the code takes, unless it looks closer at a text; what it refuses is no such type."""
    passed = judged([{key: value} for key, value in CASES])
    wrong = []
    for (key, value), by_schema in zip(CASES, passed, strict=True):
        by_code = is_taken(key, value)
        is_closer_look = isinstance(value, str) and key in RANGES
        is_other_form = isinstance(value, str) or HINTS[key] in (bool, bool | None)  # the code reads "5", and 1 as true
        if by_schema and not by_code and not is_closer_look:
            wrong.append(f"only the schema takes {key} = {value!r}")
        if by_code and not by_schema and not is_other_form:
            wrong.append(f"only the code takes {key} = {value!r}")
    assert wrong == []
    assert 300 < sum(passed) < len(passed) / 2


def test_patterns_let_every_right_text_pass(judged: Callable[[list[dict[str, Any]]], list[bool]]) -> None:
    texts = [
        "",
        "none",
        "h:80",
        "[::1]:80",
        "0.0.0.0:1",
        "unix:/a",
        "unix:///a",
        "http://h:1",
        "https://h:1/p",
        "m",
        "m:2",
    ]
    right = [(key, text) for key in RANGES for text in texts if HINTS[key] in (str, str | None) and is_taken(key, text)]
    assert len(right) > 30
    assert judged([{key: text} for key, text in right]) == [True] * len(right)


def test_defaults_and_tables_pass(judged: Callable[[list[dict[str, Any]]], list[bool]]) -> None:
    table = {"bundle": "/b", "mode": "shadow", "reject_rate": 0.01, "breaker_failures": "none"}
    defaults = {
        item.name: list(item.default) if isinstance(item.default, tuple) else item.default
        for item in fields(ServeConfig)
        if item.name in HINTS and item.default is not None
    }
    assert judged(
        [
            defaults,
            {MODELS: {"digits": table, "digits:2": table}},
            {MODELS: {"digits": {**table, "listen": "h:1"}}},
            {MODELS: {"digits": {"mode": "shadow"}}},
            {MODELS: {"a:b:c": table}},
            {MODELS: {}},
            {"mod": "shadow"},
        ]
    ) == [True, True, False, False, False, False, False]


def test_every_setting_is_described_with_its_default() -> None:
    properties = settings_schema()["properties"]
    assert list(properties) == [item.name for item in fields(ServeConfig)]
    assert set(properties[MODELS]["additionalProperties"]["properties"]) == set(OF_A_MODEL)
    for item in fields(ServeConfig):
        assert comments(ServeConfig)[item.name]
        described = properties[item.name]["description"]
        assert described
        assert not re.search(r"\bNone\b", described)  # which is Python's, not TOML's


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == settings_schema()


def test_what_it_says_of_none_is_so(tmp_path: Path) -> None:
    file = tmp_path / "guard.toml"
    file.write_text('threads = "none"\nmax_connection_age_s = "none"\n', "utf-8")
    config = load_config(file, {}, {})
    assert (config.threads, config.max_connection_age_s) == (None, None)
