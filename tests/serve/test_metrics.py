"""Histograms that are filled by hand agree with the library's, and labels stay bounded."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from guard.serve.metrics import BUCKET_P_VALUES, Metrics, PValues


def test_p_values_are_binned_as_the_library_bins_them() -> None:
    registry = CollectorRegistry()
    theirs = Histogram("theirs", "x", ["detector"], registry=registry, buckets=BUCKET_P_VALUES)
    ours = PValues("ours", "x", "detector", ["a", "b"])
    registry.register(ours)
    generator = np.random.default_rng(0)
    for size in (1, 7, 200):
        values = generator.uniform(0, 1, (size, 2))
        values[0] = [0.001, 1.0]  # on the edges
        values[generator.uniform(size=values.shape) < 0.2] = np.nan
        ours.observe(values)
        for column, name in enumerate("ab"):
            for value in values[:, column]:
                if not np.isnan(value):
                    theirs.labels(name).observe(value)
    found: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], float]] = {"ours": {}, "theirs": {}}
    for family in registry.collect():
        for sample in family.samples:
            suffix = sample.name.removeprefix(family.name)
            if suffix != "_created":
                found[family.name][suffix, frozenset(sample.labels.items())] = sample.value
    assert found["ours"].keys() == found["theirs"].keys()
    assert len(found["ours"]) == 2 * (len(BUCKET_P_VALUES) + 3)
    for key, value in found["ours"].items():
        assert value == pytest.approx(found["theirs"][key])


def test_unknown_models_and_methods_share_one_label() -> None:
    metrics = Metrics(CollectorRegistry(), guarded="m", models=["m", "n"], detectors=["d"], methods=["ServerLive"])
    assert [metrics.model(name) for name in ("m", "n", "x", "")] == ["m", "n", "other", "other"]
    assert [metrics.method(name) for name in ("ServerLive", "Made.Up")] == ["ServerLive", "other"]


def test_disagreement_counts_items() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, guarded="m", models=["m"], detectors=["d"], methods=[])
    assert metrics.predictions("m", np.asarray([1, 2, 3]), np.asarray([1, 0, 0])) == 2
    assert registry.get_sample_value("guard_upstream_compared_items_total", {"model": "m"}) == 3
    assert registry.get_sample_value("guard_upstream_disagreement_items_total", {"model": "m"}) == 2
