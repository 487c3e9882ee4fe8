"""Detectors that together ask for every kind of pass, for tests and benchmarks: more than a preset pays for."""

from __future__ import annotations

from guard.offline.job.recipe import Recipe, load_recipe

PLAIN = ("mahalanobis", "lid", "second_entropy")
MORE = ("saliency_classifier", "attribute_steering")
SQUEEZERS = [{"name": "bit_depth", "bits": 4}, {"name": "median", "window": 2}]


def every_pass() -> Recipe:
    """Preset `standard` with a second denoised row, a steered one, and detectors that it does without."""
    recipe = load_recipe("standard")
    blocks = [{**block, "squeezers": SQUEEZERS} if "squeezers" in block else block for block in recipe.detectors]
    blocks = [{key: value for key, value in block.items() if key != "gradient"} for block in blocks]
    plain = [{"name": name, "program": "screen"} for name in PLAIN]
    return recipe.having([*plain, *blocks, *({"name": name, "program": "interpret"} for name in MORE)])
