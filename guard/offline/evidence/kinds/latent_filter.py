"""Evidence from smoothing the model's feature maps on their way: its answer with each stage's maps filtered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from guard.errors import ConfigError
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.evidence.kinds.dropout import shape_at
from guard.offline.evidence.kinds.variants import OwnPass, RowNeed
from guard.offline.model.classifier import Classifier
from guard.offline.model.taps import Tap

MEDIAN = Median(3)
MIN_MAP_POINTS = 2  # along each axis of a feature map: less has no neighbour to be smoothed with


@dataclass(frozen=True)
class FilteredLogits(RowNeed):
    """Logits of the model [item, class] where the feature maps of every stage are smoothed, one stage after the other.

    A map becomes `share` of what the filter makes of it and the rest of itself, as a block of the paper adds what it
    filters to what it was given. The row begins at the first stage, so that it costs less than a forward.

    Source: Xie et al. 2019, arXiv:1812.03411, section 4, with their mean and median. What their networks learn around a
    filter, 1 x 1 convolutions and adversarial training, is left out, and with it non-local means, whose embeddings are
    learned: a model that is guarded keeps its weights.
    """

    filter: Median | MovingAverage = MEDIAN
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"filtered logits: share = {self.share!r}; wanted a number above 0, at most 1")

    @property
    def stand_ins(self) -> tuple[StandIn, ...]:
        return self.filter.stand_ins

    def lacks(self, classifier: Classifier) -> str | None:
        return None if map_taps(classifier) else "the model has no feature maps with neighbours to smooth"

    def own_pass(self, classifier: Classifier) -> OwnPass:
        return FilterPass(classifier, self)


class FilterPass(OwnPass):
    """Pass of one row an item, its feature maps smoothed, from the first stage to the logits."""

    def __init__(self, classifier: Classifier, need: FilteredLogits) -> None:
        super().__init__()
        if (lacking := need.lacks(classifier)) is not None:
            raise ConfigError(f"{need!r} cannot be asked: {lacking}")
        first, *later = map_taps(classifier)
        self.joins = first.name
        self.smooth = Smooth(need.filter, need.share)
        self.after = classifier.after(first.name, {tap.name: self.smooth for tap in later})

    def forward(self, images: Tensor, begun: Mapping[str, Tensor]) -> Tensor:
        """Return the logits [item, class] of unit-space images [item, ...]."""
        layer = begun[self.joins or ""]
        logits: Tensor = self.after(self.smooth(layer, layer), images)
        return logits


class Smooth(nn.Module):
    """Module that mixes a layer [item, channel, ...] with what a filter makes of it."""

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        super().__init__()
        self.denoiser, self.share = denoiser, share

    def forward(self, layer: Tensor, companion: Tensor) -> Tensor:
        del companion
        return (1 - self.share) * layer + self.share * self.denoiser(layer)


def map_taps(classifier: Classifier) -> list[Tap]:
    """Return the taps whose layer is a map [channel, time] or [channel, height, width] of more than one place."""
    shapes = {tap: shape_at(classifier, tap.node) for tap in classifier.taps}
    axes = len(classifier.item_shape)
    return [
        tap for tap, shape in shapes.items() if axes > 1 and len(shape) == axes and min(shape[1:]) >= MIN_MAP_POINTS
    ]
