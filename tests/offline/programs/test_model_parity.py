"""A model that ONNX Runtime computes otherwise is found before anything is crafted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from guard.errors import ParityError
from guard.offline import train as stages_of_training
from guard.offline.detectors.table import DETECTORS
from guard.offline.model.onnx_export.export import lower
from guard.offline.programs import model_parity
from guard.offline.programs.model_parity import MODEL_ITEMS, check_model
from guard.offline.train import train
from guard.offline.work.progress import Stages
from tests.offline import tiny

UNIT = tiny.data(MODEL_ITEMS + 20, seed=61)[0]


def detectors(*names: str) -> list[Any]:
    taps = [tap.name for tap in tiny.image_classifier().taps]
    return [DETECTORS[name](taps) for name in names]


def spoilt(module: nn.Module, *arguments: Any, **settings: Any) -> onnx.ModelProto:
    """What is written where the exporter gets a weight of the first layer wrong by 1 %."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        first = next(t for t in (*other.parameters(), *other.buffers()) if len(t.shape) == 4)
        first.view(-1)[first.abs().argmax()] *= 1.01
    return lower(other, *arguments, **settings)


def test_a_model_agrees_in_all_that_detectors_read() -> None:
    parity = check_model(tiny.image_classifier(), detectors(*DETECTORS), UNIT)
    taps = {f"the layer {tap.name!r}" for tap in tiny.image_classifier().taps}
    assert set(parity.errors) == {"the logits", "the input gradient", *taps}
    assert max(parity.errors.values()) < 1


def test_vectors_and_a_guard_without_gradients() -> None:
    classifier = tiny.vector_classifier()
    lid = DETECTORS["lid"]([tap.name for tap in classifier.taps])
    parity = check_model(classifier, [lid], tiny.vectors(40, seed=62)[0])
    assert "the input gradient" not in parity.errors
    assert len(parity.errors) == 1 + len(classifier.taps)


def test_a_weight_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_parity, "lower", spoilt)
    with pytest.raises(ParityError, match=r"'model': the l.*export it anew in float32"):
        check_model(tiny.image_classifier(), detectors("mahalanobis"), UNIT)


def test_training_refuses_before_it_crafts(tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_parity, "lower", spoilt)
    monkeypatch.setattr(stages_of_training, "craft_all", lambda *_: pytest.fail("attacks were crafted"))
    with pytest.raises(ParityError, match="program 'model'"):
        train(tiny.job(tmp_path), stages)
