"""Detectors that together ask for every kind of pass, for tests and benchmarks: more than a preset pays for."""

from __future__ import annotations

from guard.offline.job.recipe import Recipe, load_recipe

SQUEEZERS = [{"name": "bit_depth", "bits": 4}, {"name": "median", "window": 2}]


def every_pass() -> Recipe:
    """Preset `standard` with a second denoised row, and a steered one."""
    recipe = load_recipe("standard")
    blocks = [{**block, "squeezers": SQUEEZERS} if "squeezers" in block else block for block in recipe.detectors]
    return recipe.having([*blocks, {"name": "attribute_steering", "program": "interpret"}])
