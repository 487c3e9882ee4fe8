"""Every number that a recipe may set in a detector or a denoiser: refused by its name, or it has a meaning."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from guard.errors import ConfigError
from guard.offline.data.setting_bounds import SEEDS
from guard.offline.denoisers.learned import Learned
from guard.offline.denoisers.table import DENOISERS, build_denoiser, denoisers
from guard.offline.detectors.table import DETECTORS, build_detector
from guard.offline.job.recipe import parse

TAPS = ["first", "second"]
VALUES: tuple[Any, ...] = (0, -1, 2.5, "x", True, math.nan, math.inf)


def numbers_of(make: Callable[..., Any]) -> list[str]:
    """The settings whose default is a number, or that may be one."""
    return [
        name
        for name, one in inspect.signature(make).parameters.items()
        if (isinstance(one.default, int | float) and not isinstance(one.default, bool))
        or "float | None" in str(one.annotation)
    ]


SETTINGS = [
    pytest.param(table, name, setting, value, id=f"{name}-{setting}-{value}")
    for table in (DETECTORS, DENOISERS)
    for name, make in table.items()
    for setting in numbers_of(make)
    for value in VALUES
]


def built(table: Mapping[str, Any], name: str, setting: str, value: Any) -> tuple[Any, str]:
    """The part and no words, or no part and the words that refuse it."""
    try:
        if table is DETECTORS:
            return build_detector(name, TAPS, {setting: value}), ""
        return build_denoiser({"name": name, setting: value}), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize(("table", "name", "setting", "value"), SETTINGS)
def test_a_number_has_a_meaning_or_is_refused_by_its_name(
    table: Mapping[str, Any], name: str, setting: str, value: Any
) -> None:
    part, refusal = built(table, name, setting, value)
    if part is None:
        assert setting in refusal
        assert repr(value) in refusal
        return
    assert isinstance(value, int | float)
    assert not isinstance(value, bool)
    assert math.isfinite(value)
    if table is DENOISERS and not isinstance(part, Learned):
        assert bool(part(torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))).isfinite().all())


@pytest.mark.parametrize("seed", [-1, SEEDS.stop, 1.0])
def test_a_seed_that_no_generator_takes_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed = "):
        build_detector("region_vote", TAPS, {"seed": seed})


def test_squeezers_that_are_none_or_unknown_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"squeezers = \[\]; wanted at least one denoiser"):
        denoisers([])
    with pytest.raises(ConfigError, match="unknown denoiser 'jpeg'; known: bit_depth"):
        build_detector("feature_squeezing", TAPS, {"squeezers": [{"name": "jpeg"}]})
    with pytest.raises(ConfigError, match="unknown denoiser None"):
        build_detector("feature_squeezing", TAPS, {"squeezers": [{"bits": 3}]})
    with pytest.raises(ConfigError, match="denoiser 'bit_depth': bits = 0; wanted a whole number from 1 to 16"):
        build_detector("feature_squeezing", TAPS, {"squeezers": [{"name": "bit_depth", "bits": 0}]})


def test_a_repair_without_a_meaning_is_refused_with_its_recipe() -> None:
    raw = {
        "description": "x",
        "detector": [{"name": "mahalanobis", "program": "screen"}],
        "repair": [{"name": "bit_depth", "bits": 0}],
    }
    with pytest.raises(ConfigError, match="recipe here: denoiser 'bit_depth': bits = 0"):
        parse(raw, "here")
