"""Recipes: the presets work, and what is wrong with one is named."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack
from guard.offline.attacks.ranges import Amount, largest, ranged, smallest
from guard.offline.detectors.table import DETECTORS
from guard.offline.evidence.forwards import floor_of
from guard.offline.job.recipe import PROGRAMS, load_recipe, parse, presets
from tests.offline import tiny
from tests.offline.evidence import dropped

TAPS = ["first", "second", "penultimate"]
UNCERTAINTY = "bayesian_uncertainty"
GOOD = """
description = "mine"
[[detector]]
name = "mahalanobis"
program = "screen"
shrinkage = 0.1
[[attack]]
name = "fgsm"
budget = 0.1
[[repair]]
name = "bit_depth"
bits = 3
[adaptive]
budgets = [0.1, 0.2]
"""


@pytest.mark.parametrize("name", presets())
def test_every_preset_builds(name: str) -> None:
    recipe = load_recipe(name)
    programs = replace(recipe, cascade=True).programs(TAPS)
    assert list(programs) == [program for program in PROGRAMS if program in programs]
    every = [detector for detectors in programs.values() for detector in detectors]
    assert recipe.programs(TAPS) == {list(programs)[-1]: every}, "no forward twice: one program has them all"
    assert recipe.name == name
    assert recipe.description
    assert recipe.attacks
    assert recipe.left_out
    assert recipe.adaptive_budgets, "no report without the adaptive row"
    assert {repr(attack) for attack in recipe.attacks}.isdisjoint(repr(attack) for attack in recipe.left_out)
    assert {d.name for detectors in programs.values() for d in detectors} <= set(DETECTORS)
    assert all(need.backwards == need.rows_per_item == 0 for d in programs["screen"] for need in d.needs)


def test_a_detector_that_reads_what_the_model_does_not_have_is_left_out_and_said() -> None:
    raw = {**tiny.RECIPE, "detector": [*tiny.RECIPE["detector"], {"name": UNCERTAINTY, "program": "interpret"}]}
    recipe = parse(raw, "mine")
    for classifier, asked in ((tiny.image_classifier(), False), (dropped.image_classifier(), True)):
        found = recipe.fitting(classifier.kind, [tap.name for tap in classifier.taps], classifier)
        assert (UNCERTAINTY in [entry["name"] for entry in found.detectors]) == asked
        said = [text for text in found.skipped if "the model has no dropout" in text]
        assert len(said) == (not asked)
        assert all(text.startswith("detector BayesianUncertainty(") for text in said)


@pytest.mark.parametrize("name", [name for name in presets() if load_recipe(name).cost is not None])
def test_a_preset_stays_within_the_forwards_that_it_names(name: str) -> None:
    recipe = load_recipe(name)
    (detectors,) = recipe.programs(TAPS).values()
    second = recipe.second.forwards if recipe.asks_second else 0.0
    assert recipe.cost is not None
    assert floor_of(need for detector in detectors for need in detector.needs) + second <= recipe.cost


@pytest.mark.parametrize("cascade", [False, True])
def test_there_is_one_program_unless_a_cascade_is_wanted(*, cascade: bool) -> None:
    blocks = [("mahalanobis", "screen"), ("feature_squeezing", "interpret"), ("kernel_density", "screen")]
    raw = {"cascade": cascade, "detector": [{"name": name, "program": program} for name, program in blocks]}
    found = parse(raw, "mine").programs(TAPS)
    names = {program: [detector.name for detector in detectors] for program, detectors in found.items()}
    first, second = ["mahalanobis", "kernel_density"], ["feature_squeezing"]
    assert names == ({"screen": first, "interpret": second} if cascade else {"interpret": [*first, *second]})


def test_presets_are_the_files_there_are() -> None:
    there = {f.name for f in files("guard.offline.job").joinpath("presets").iterdir() if f.name.endswith(".toml")}
    assert {f"{name}.toml" for name in presets()} == there >= {"digits.toml", "standard.toml"}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD, "utf-8")
    recipe = load_recipe("standard", tmp_path / "mine.toml")
    assert (recipe.name, recipe.description, recipe.adaptive_budgets) == ("mine", "mine", (0.1, 0.2))
    assert repr(recipe.repairs[0]) == "BitDepth(bits=3)"
    assert repr(recipe.programs(TAPS)["screen"][0]).endswith("shrinkage=0.1, centre='predicted')")
    assert list(recipe.programs(TAPS)) == ["screen"], "a program without detectors is left out"
    assert recipe.raw == tomllib.loads(GOOD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("description =", "descripton ="), ("descripton", "description")),
        (('name = "mahalanobis"', 'name = "mahalanobi"'), ("mahalanobi", "mahalanobis")),
        (("shrinkage", "shrinkege"), ("shrinkege",)),
        (('"screen"', '"scren"'), ("'screen' or 'interpret'", "scren")),
        (('program = "screen"', ""), ("'screen' or 'interpret'",)),
        (('name = "fgsm"', 'name = "fgms"'), ("fgms", "fgsm")),
        (('name = "fgsm"', ""), ("[[attack]] needs a name",)),
        (("budget = 0.1", "budgte = 0.1"), ("budgte", "budget")),
        (("budget = 0.1", "budget = -1"), ("-1", "above zero")),
        (('name = "bit_depth"', 'name = "bitdepth"'), ("bitdepth", "bit_depth", "median")),
        (('name = "bit_depth"', ""), ("denoiser", "bit_depth")),
        (("bits = 3", "bitz = 3"), ("bit_depth", "bitz")),
        (("budgets = [0.1, 0.2]", "budgets = ['x']"), ("adaptive", "budgets")),
        (("budgets = [0.1, 0.2]", "budgts = [0.1]"), ("adaptive", "budgts")),
        (("[adaptive]\nbudgets", "adaptive"), ("adaptive",)),
        (("[[attack]]", "[attack]"), ("attack",)),
        (("[[detector]]", "[detector]"), ("detector",)),
        (("[[repair]]", "[repair]"), ("repair",)),
        (('name = "mahalanobis"', "name = 3"), ("3",)),
        (('"mine"', '"mine'), ("not valid TOML",)),
        (('"mine"', '"mine"\ncost = 0.5'), ("cost = 0.5", "1 or more")),
        (('"mine"', '"mine"\ncost = "low"'), ("'low'", "1 or more")),
        (('"mine"', '"mine"\ncascade = 1'), ("cascade = 1", "true", "false")),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], words: tuple[str, ...]) -> None:
    assert change[0] in GOOD
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(*change), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe("standard", file).programs(TAPS)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_recipe_without_detectors() -> None:
    with pytest.raises(ConfigError, match="lists no"):
        parse({"description": "x"}, "mine")


def test_a_detector_listed_twice() -> None:
    twice = {"detector": [{"name": "mahalanobis", "program": program} for program in PROGRAMS]}
    with pytest.raises(ConfigError, match=r"mahalanobis.*twice"):
        parse(twice, "mine")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'fats'; there are: .*standard"):
        load_recipe("fats")
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_recipe("standard", tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        load_recipe("standard", tmp_path / "binary.toml")


@pytest.mark.parametrize("name", presets())
def test_presets_draw_from_ranges(name: str) -> None:
    """A guard that is fitted on one setting learns the setting."""
    recipe = load_recipe(name)
    for attack in recipe.attacks:
        drawn = ranged(attack)
        assert "budget" in drawn or "budget" not in attack.traits.ranges, attack
        if attack.name == "pgd":
            assert {"budget", "steps", "step_factor", "optimiser", "random_start"} <= set(drawn), attack


@pytest.mark.parametrize("name", presets())
def test_what_a_preset_never_trains_on_is_in_no_range_that_it_trains_on(name: str) -> None:
    recipe = load_recipe(name)
    for other in recipe.left_out:
        for attack in recipe.attacks:
            assert not (alike(attack, other) and overlap(attack.budget, other.budget)), (attack, other)


def alike(one: Attack, other: Attack) -> bool:
    return (one.name, one.norm) == (other.name, other.norm)


def overlap(trained: Amount | None, left_out: Amount | None) -> bool:
    """Return whether a range of budgets meets another; what has no budget meets nothing."""
    low, high = smallest(trained), largest(trained)
    least, most = smallest(left_out), largest(left_out)
    if low is None or high is None or least is None or most is None:
        return False
    return low <= most and least <= high
