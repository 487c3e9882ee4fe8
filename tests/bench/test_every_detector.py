"""The recipe of every detector, for the benchmark page."""

from __future__ import annotations

from pathlib import Path

from guard.offline.detectors.table import DETECTORS
from guard.offline.job.recipe import load_recipe
from guard.offline.job.second_settings import ASKING


def test_it_lists_each_detector_that_asks_no_second_network(root: Path) -> None:
    recipe = load_recipe("every_detector", root / "tests/bench/every_detector.toml")
    listed = [block["name"] for block in recipe.detectors]
    missing = sorted(set(DETECTORS) - set(ASKING) - set(listed))
    assert not missing, f"tests/bench/every_detector.toml wants a [[detector]] block for each of {missing}"
    assert sorted(listed) == sorted(set(DETECTORS) - set(ASKING))
