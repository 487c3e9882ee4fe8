"""The tests' tiny models with dropout before their last layer: the same answers, as it drops nothing any more."""

from __future__ import annotations

from functools import cache

from torch import nn

from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from tests.offline import tiny

SHARE = 0.4


def with_dropout(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    return nn.Sequential(*model[:-1], nn.Dropout(SHARE), model[-1]).eval().requires_grad_(False)


def image_model() -> nn.Module:
    return with_dropout(tiny.image_model())


def series_model() -> nn.Module:
    return with_dropout(tiny.series_model())


def vector_model() -> nn.Module:
    return with_dropout(tiny.vector_model())


@cache
def image_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:image_model", tiny.SHAPE, grid=tiny.GRID))


@cache
def series_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:series_model", (tiny.CHANNELS, tiny.STEPS), grid=tiny.GRID))


@cache
def vector_classifier() -> Classifier:
    return open_model(Source(f"{__name__}:vector_model", (tiny.FEATURES,), grid=tiny.GRID))
