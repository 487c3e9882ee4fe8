"""Suites: what comes with the guard builds, and what a user writes is checked as a recipe is."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from guard.errors import ConfigError
from guard.offline.attacks.table import ATTACKS
from guard.offline.job.suite import Suite, load_suite, parse_suite, suites
from tests.side import reach

reach("zoo")  # some of the attacks listed are run by its packages


@pytest.mark.parametrize("name", suites())
def test_every_suite_that_comes_with_the_guard_builds(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.description.endswith(".")


def test_the_survey_suite_has_one_of_each_attack():
    assert {attack.name for attack in load_suite("survey").attacks} == set(ATTACKS)


def test_the_published_table_has_its_rows_in_order():
    text = files("guard.offline.job").joinpath("suites", "aldahdooh.toml").read_text("utf-8")
    entries = tomllib.loads(text)["attack"]
    assert [entry["name"] for entry in entries] == [
        *("fgsm", "fgsm", "bim", "pgd", "pgd", "pgd", "pgd", "pgd", "cw_linf", "apgd"),
        *("deepfool", "square", "hop_skip_jump", "spatial"),
    ]
    assert [entry["budget"] * 256 for entry in entries[:5]] == [8, 16, 8, 8, 16]


def test_a_file_of_ones_own(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text('description = "Mine."\n[[attack]]\nname = "fgsm"\nbudget = 0.1\n', encoding="utf-8")
    suite = load_suite(str(file))
    assert suite == Suite("mine", "Mine.", (ATTACKS["fgsm"](budget=0.1),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attack = [", "not valid TOML"),
        ("attack = " + "[" * 5000, "not valid TOML"),
        ("attack = " + "1" * 5000, "not valid TOML"),
        ("detector = 3", "unknown key 'detector'; known: attack, description"),
        ("attack = 3", r"attack is written as \[\[attack\]\]"),
        ('description = "None."', r"lists no \[\[attack\]\]"),
        ("[[attack]]\nbudget = 0.1", "needs a name"),
        ('[[attack]]\nname = "fsgm"', "did you mean 'fgsm'"),
        ('[[attack]]\nname = "fgsm"\nbudget = -1', "wanted a number above zero"),
        ('[[attack]]\nname = "deepfool"\n[[attack]]\nname = "deepfool"', "listed twice"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(text, message, tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        load_suite(str(file))
    assert "mine.toml" in str(error.value)


def test_what_is_not_there_is_said_so(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"unknown suite 'surveys'; there are: aldahdooh, survey"):
        load_suite("surveys")
    with pytest.raises(ConfigError, match=r"none.toml cannot be read"):
        load_suite(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="lists no"):
        parse_suite({}, "empty")
