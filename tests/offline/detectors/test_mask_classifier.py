"""The mask as leaving parts out shows it, and the network that learns it."""

from __future__ import annotations

import pytest
import torch

from guard.errors import DataError
from guard.offline.detectors.mask_classifier import MaskClassifier, masks_of
from guard.offline.detectors.parts.answers import named_of
from guard.offline.evidence.kinds.left_out import Patches, PatchLogits
from guard.offline.evidence.kinds.plain import Logits
from tests.offline.detectors.fitting import fitted


def test_a_mask_is_what_each_part_takes_from_the_named_class() -> None:
    parts = Patches(4).parts((1, 4, 4))
    logits = torch.tensor([[5.0, 1.0]])
    without = torch.tensor([[[1.0, 9.0], [3.0, 0.0], [5.0, 1.0], [6.0, 1.0]]])  # parts take 4, 2, 0 and -1 of class 0
    mask = masks_of(logits, without, parts)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0, ::2, ::2].tolist() == [[1.0, 0.5], [0.0, 0.0]]
    assert masks_of(logits, without, Patches(4).parts((4,))).tolist() == [[1.0, 0.5, 0.0, 0.0]]


def test_a_masking_network_finds_the_places_that_leaving_out_shows() -> None:
    """Nearer to the masks of held-out items than their mean is: the pattern of a class is where its answer rests."""
    have = fitted("images")
    detector = have.detectors["mask_classifier"]
    assert isinstance(detector, MaskClassifier)
    assert detector.masker is not None
    parts, need = detector.patches.parts((1, 8, 8)), PatchLogits(detector.patches)
    logits, named = have.clean[Logits()], named_of(have.clean[Logits()]).float()
    masks = masks_of(logits, have.clean[need], parts)
    found = detector.masker(have.inputs, named)
    usual = masks.mean(dim=0, keepdim=True)
    assert float((found - masks).square().mean()) < 0.5 * float((usual - masks).square().mean())
    with pytest.raises(DataError, match="learn"):
        MaskClassifier().fit(have.examples)
