"""Feature denoising: does the model's answer change when its feature maps are smoothed on their way?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from guard.errors import ConfigError
from guard.offline.data.kind_names import IN_PLACES, Kinds
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.evidence.kinds.latent_filter import FilteredLogits
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence

FILTERS: Mapping[str, type[Median] | type[MovingAverage]] = {"median": Median, "mean": MovingAverage}


@dataclass(frozen=True)
class FeatureDenoising:
    """Detector that scores how far the probabilities move when every stage's feature maps are smoothed.

    Perturbations that are small in the item are large and noisy in its feature maps, where smoothing takes them off. A
    model without feature maps is not asked; `guard check` says so.

    Source: the filters of Xie et al. 2019, arXiv:1812.03411, between the layers of a model that was trained without
    them; the comparison of Xu et al. 2018, arXiv:1704.01155, eq. 5. Not a repair: what goes to the model server is an
    item, not its feature maps.
    """

    name: ClassVar[str] = "feature_denoising"
    kinds: ClassVar[Kinds] = IN_PLACES
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    filtered: FilteredLogits = field(default_factory=FilteredLogits)

    @property
    def needs(self) -> tuple[Logits | FilteredLogits, ...]:
        return (Logits(), self.filtered)

    def fit(self, examples: Examples) -> FeatureDenoisingHead:
        del examples  # nothing is learned; the threshold comes from calibration
        return FeatureDenoisingHead(self)

    def restore(self, state: Mapping[str, Tensor]) -> FeatureDenoisingHead:
        del state
        return FeatureDenoisingHead(self)


class FeatureDenoisingHead(Head):
    def __init__(self, detector: FeatureDenoising) -> None:
        super().__init__(detector)
        self.filtered = detector.filtered

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the L1 distance [item] between probabilities, 0 to 2; larger is more suspicious."""
        plain, filtered = evidence[Logits()].softmax(dim=1), evidence[self.filtered].softmax(dim=1)
        return (filtered - plain).abs().sum(dim=1)


def feature_denoising(
    taps: Sequence[str], *, filter: Literal["median", "mean"] = "median", window: int = 3, share: float = 0.5
) -> Detector:
    """Build the detector. Raises ConfigError for a filter that there is not."""
    del taps
    if filter not in FILTERS:
        raise ConfigError(f"detector 'feature_denoising': filter = {filter!r}; wanted one of {', '.join(FILTERS)}")
    return FeatureDenoising(FilteredLogits(FILTERS[filter](window), share))
