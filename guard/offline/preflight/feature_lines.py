"""What `guard check` says of a table's features: what each was taken for, which never change, what looks odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from guard.columns import listed
from guard.feature_values import feature_text
from guard.features import KINDS, Feature, groups_of
from guard.offline.attacks.ranges import smallest
from guard.offline.data.dataset import Dataset
from guard.offline.data.feature_grid import FeatureGrid
from guard.offline.data.find_features import odd_features, perhaps_codes
from guard.offline.job.job import Job
from guard.offline.model.classifier import Classifier

MAX_SHOWN_ROWS = 40
AS_CODES = "stated with kind = 'categorical' in --features, and then others than these are refused"


def feature_lines(job: Job, classifier: Classifier, data: Dataset) -> list[tuple[str, str]]:
    """Describe the features of a table; nothing where they are nothing but names."""
    spec = classifier.spec.input
    grid = FeatureGrid.of(spec)
    if grid is None:
        return []
    shown = [("feature", feature_text(feature)) for feature in spec.features[:MAX_SHOWN_ROWS]]
    more = len(spec.features) - MAX_SHOWN_ROWS
    rest = [("feature", f"and {more} more; guard inspect lists all that a bundle has")] if more > 0 else []
    least = [smallest(attack.budget) for attack in job.recipe.attacks if attack.norm == "linf"]
    budgets = [budget for budget in least if budget is not None]
    codes = perhaps_codes(spec.features, data)
    said = f"few whole numbers, taken as they are ordered: {listed(codes)}; codes are {AS_CODES}"
    rest += [("features", said)] if codes else []
    odd = [*odd_features(spec.features, data), *stuck_features(grid, sorted({*budgets, *job.recipe.adaptive_budgets}))]
    return [("features", counts_text(spec.features)), *shown, *rest, *(("odd", text) for text in odd)]


def counts_text(features: Sequence[Feature]) -> str:
    """Return how many features there are of each kind, which are immutable, and the one-hot groups."""
    groups = groups_of(features)
    counts = Counter(feature.kind for feature in features if feature.group is None)
    parts = [f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]]
    parts += [f"one-hot group {name!r} of {len(places)} columns" for name, places in groups.items()]
    still = [feature.name for feature in features if feature.immutable]
    return f"{', '.join(parts)}; immutable: {listed(still) if still else 'none'}"


def stuck_features(grid: FeatureGrid, budgets: Sequence[float]) -> Iterator[str]:
    """Yield the budgets at which numbers cannot move by one step, so that no attack of that size changes them."""
    for budget in budgets:
        if still := grid.stuck(budget):
            yield f"at a budget of {budget:g} these cannot move by one step: {listed(still)}"
