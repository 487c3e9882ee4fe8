"""Check that a second network is not the guarded model in another export, which would agree with it always.

Rule 1: two networks that name the same classes are one where their logits differ by no more than a mean of each item
and one scale for all, on noisy items as well.

How it works. A softmax does not see what is added to all logits of an item, and a temperature is one factor for all
items: both are taken out. One scale for each item would be too much: of two classes nothing but a sign were left.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from guard.offline.data.dataset import Dataset
from guard.offline.data.splits import Split
from guard.offline.model.classifier import Classifier

COMPARED_ITEMS = 64
NOISE_SHARE = 0.1  # of the range of values, up and down
MAX_SAME_SHARE = 1e-2  # of the logits' size: an export in half precision differs by less, another training by more


def is_same_model(network: nn.Module, classifier: Classifier, data: Dataset, seed: int) -> bool:
    """Return whether a network gives the model's own logits, up to what a softmax or a temperature makes of them."""
    clean = torch.from_numpy(np.asarray(data.part(Split.HEADS).take(slice(COMPARED_ITEMS)).images[:]))
    drawn = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
    items = torch.cat([clean, (clean + NOISE_SHARE * (2 * drawn - 1)).clamp(0, 1)])
    with torch.no_grad():
        ours, theirs = (centred(one(items)) for one in (classifier.graph, network))
    scale = (ours * theirs).sum() / ours.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return bool((theirs - scale * ours).norm() < MAX_SAME_SHARE * theirs.norm())


def centred(logits: Tensor) -> Tensor:
    """Return logits [item, class] without the mean of each item, in double precision."""
    exact = logits.double()
    return exact - exact.mean(dim=1, keepdim=True)
