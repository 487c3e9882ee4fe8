"""The fine structure of an image."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


def residual(images: Tensor) -> Tensor:
    """What each pixel adds to the mean of its 3 x 3 neighbourhood, borders repeated; vectors less one half."""
    if images.ndim != 4:
        return images - 0.5
    return images - avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
