"""The binary classifier looks at the item alone, and at its fine structure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guard.calibration import auroc
from guard.offline.data.attacked import Attacked
from guard.offline.detectors.binary_classifier import BinaryClassifier
from guard.offline.detectors.detector import Examples
from guard.offline.evidence.kinds.plain import Image

FAINT = 0.02  # beside images whose values spread by about 0.2


def test_a_binary_classifier_never_asks_the_model() -> None:
    assert BinaryClassifier().needs == (Image(),)


def test_a_binary_classifier_finds_what_is_faint_beside_the_image() -> None:
    clean, noisy, attacked = faint(200, seed=0)
    examples = Examples(
        {Image(): clean},
        torch.zeros(200, dtype=torch.long),
        {Image(): noisy},
        Attacked({Image(): attacked}, ("stripes",) * 200),
        0,
    )
    head = BinaryClassifier().fit(examples)
    with torch.no_grad():
        found = [head({Image(): images}).double().numpy() for images in faint(200, seed=1)]
    assert auroc(np.concatenate(found[:2]), found[2]) > 0.9


def faint(items: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return smooth images, the same with noise, and the same with stripes of the noise's size."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(items, 3, 3, 3, generator=draw)
    clean = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic", align_corners=True).clamp(0, 1)
    signs = torch.randint(0, 2, clean.shape, generator=draw) * 2 - 1
    stripes = signs[:, :, :1, :1] * (1 - 2 * (torch.arange(16) % 2))
    return clean, clean + FAINT * signs, clean + FAINT * stripes
