"""Suites: what comes with the guard builds, and what a user writes is checked as a recipe is."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import pytest

from guard.errors import ConfigError
from guard.offline.attacks.attack import Traits
from guard.offline.attacks.table import ATTACKS, build_attack
from guard.offline.job.suite import NORMS, Suite, load_suite, parse_suite, suites
from tests.side import reach

reach("zoo")  # some of the attacks listed are run by its packages


@pytest.mark.parametrize("name", suites())
def test_every_suite_that_comes_with_the_guard_builds(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.description.endswith(".")


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_that_is_new_to_the_table_is_in_the_survey_without_a_word(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's file does not know the attack: what completes it is read from the table."""

    @dataclass(frozen=True)
    class Newcomer:
        name: ClassVar[str] = "newcomer"
        norm: ClassVar[str]
        traits: ClassVar[Traits] = Traits()
        budget: float

    Newcomer.norm = norm
    monkeypatch.setitem(ATTACKS, "newcomer", Newcomer)
    attacks = load_suite("survey").attacks
    budgets = {"linf": 8 / 255, "l2": 0.5, "l1": 5.0, "l0": 0.05}
    assert [attack.name for attack in attacks] == list(ATTACKS)
    assert attacks[-1] == Newcomer(budgets[norm])


def test_what_completes_a_suite_leaves_alone_what_it_names() -> None:
    raw = {
        "every_attack": {"linf": 0.03, "l0": 0.1},
        "attack": [{"name": "pgd", "budget": 0.2, "norm": "l2"}, {"name": "pgd", "budget": 0.1}],
    }
    attacks = parse_suite(raw, "mine").attacks
    assert [attack.name for attack in attacks] == [name for name in ATTACKS for _ in range(1 + (name == "pgd"))]
    assert [repr(attack) for attack in attacks if attack.name in ("fgsm", "pgd", "deepfool", "patch")] == [
        repr(attack)
        for attack in (
            build_attack("fgsm", {"budget": 0.03}),
            build_attack("pgd", {"budget": 0.2, "norm": "l2"}),
            build_attack("pgd", {"budget": 0.1}),
            build_attack("deepfool", {}),
            build_attack("patch", {"budget": 0.1}),
        )
    ]


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
        ("detector = 3", "unknown key 'detector'; known: attack, description, every_attack"),
        ("every_attack = true", r"every_attack = True; wanted a budget for each of the norms linf, l2, l1, l0"),
        ("every_attack = { l7 = 1.0 }", r"every_attack = {'l7': 1.0}; wanted a budget"),
        ("every_attack = { linf = true }", r"every_attack = {'linf': True}; wanted a budget"),
        ("every_attack = { linf = -1 }", r"attack 'fgsm': budget = -1.0; wanted a number above zero"),
        ("every_attack = { linf = 0.1 }", r"attack 'ig_deletion' needs a budget in l0; state l0 = ... in every_attack"),
        ("attack = " + "[" * 5000, "not valid TOML"),
        ("attack = " + "1" * 5000, "not valid TOML"),
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
