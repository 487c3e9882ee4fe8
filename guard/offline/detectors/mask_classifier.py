"""Mask classifier: a small network over the places that the answer rests on, as a masking network finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import DataError
from guard.offline.data.enough import check_clean
from guard.offline.data.kind_names import ALIKE, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Ask, Detector, Examples, Head
from guard.offline.detectors.parts.answers import named_of
from guard.offline.detectors.parts.kind_network import KindNetwork, Learning, fit_kinds, restored_kinds
from guard.offline.evidence.kinds.left_out import Patches, PatchLogits
from guard.offline.evidence.kinds.plain import Image, Logits
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.masker import Masker, train_masker
from guard.offline.networks.weights import under


@dataclass(frozen=True)
class MaskClassifier:
    """Detector that learns what the masked item, and the mask itself, look like where an item is attacked.

    The masking network learns on clean items which parts, left out, take most from the named class; then it needs one
    pass of its own an item, and none of the model.

    Source: Fong and Vedaldi 2017, arXiv:1704.03296, section 5.3 (a classifier on masks); Dabkowski and Gal 2017,
    arXiv:1705.07857 (a network that gives them at once); Schut and Gal 2019 (a classifier on the masked item). Theirs
    learn through the model; a detector here sees evidence alone, so ours learns from leave-one-out.
    """

    name: ClassVar[str] = "mask_classifier"
    kinds: ClassVar[Kinds] = ALIKE
    learns: ClassVar[bool] = True
    stand_ins: ClassVar[tuple[StandIn, ...]] = (StandIn("class that the model names", "this step's class, held"),)

    patches: Patches = field(default_factory=Patches)
    learning: Learning = field(default_factory=Learning)
    masker: Masker | None = field(default=None, repr=False, compare=False)  # trained by `learn`

    @property
    def needs(self) -> tuple[Image | Logits, ...]:
        return (Image(), Logits())

    def learn(self, ask: Ask) -> MaskClassifier:
        """Train the masking network on the clean items. Raises DataError for too few."""
        lost = PatchLogits(self.patches)
        examples = ask([Image(), Logits(), lost], clean_only=True)
        clean = examples.clean
        items, logits = clean[Image()], clean[Logits()]
        check_clean(self.name, len(items))
        parts = self.patches.parts(tuple(items.shape[1:]))
        masks = masks_of(logits, clean[lost], parts)
        masker = train_masker(
            items, named_of(logits).to(logits.dtype), masks, epochs=2 * self.learning.epochs, seed=examples.seed
        )
        return replace(self, masker=masker)

    def fit(self, examples: Examples) -> MaskClassifierHead:
        masker = learned(self)

        def read(evidence: Evidence) -> Tensor:
            return masked(masker, evidence)

        shape = tuple(examples.clean[Image()].shape[1:])
        return MaskClassifierHead(self, fit_kinds(self.name, examples, read, self.learning), shape)

    def restore(self, state: Mapping[str, Tensor]) -> MaskClassifierHead:
        own = under(state, "masker.")
        shape = tuple(int(size) for size in state["shape"])
        masker = Masker(shape, own["told.weight"].shape[1])
        masker.load_state_dict(own)
        restored = replace(self, masker=masker.eval().requires_grad_(False))
        return MaskClassifierHead(restored, restored_kinds(state, "network."), shape)


class MaskClassifierHead(Head):
    def __init__(self, detector: MaskClassifier, network: KindNetwork, shape: tuple[int, ...]) -> None:
        super().__init__(detector)
        self.masker, self.network = learned(detector), network
        self.register_buffer("shape", torch.tensor(shape))

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return self.network.odds(masked(self.masker, evidence))


def learned(detector: MaskClassifier) -> Masker:
    """Return the detector's masking network. Raises DataError where it has not learned one yet."""
    if detector.masker is None:
        raise DataError("mask_classifier has not trained its masking network yet; learn() comes before fit()")
    return detector.masker


def masked(masker: Masker, evidence: Evidence) -> Tensor:
    """Return the item where the mask leaves it, beside the mask [item, 2 x feature] or [item, channel + 1, ...]."""
    logits = evidence[Logits()]
    mask: Tensor = masker(evidence[Image()], named_of(logits).to(logits.dtype))
    return torch.cat([evidence[Image()] * mask, mask], dim=1)


def masks_of(logits: Tensor, without: Tensor, parts: Tensor) -> Tensor:
    """Return how much of the named class's logit each place carries [item, 1, *places]; of vectors [item, feature].

    `without` [item, part, class] are the logits without each part; `parts` which places each covers. The part that
    takes most counts 1, one that takes nothing 0.
    """
    named = named_of(logits).to(logits.dtype)
    lost = ((logits[:, None] - without) * named[:, None]).sum(dim=2).clamp_min(0.0)  # [item, part]
    shares = lost / lost.amax(dim=1, keepdim=True).clamp_min(1e-6)
    masks: Tensor = torch.tensordot(shares, parts[:, 0], dims=1)
    return masks


def mask_classifier(
    taps: Sequence[str], *, patches: int = 16, width: int = 16, epochs: int = 12, learning_rate: float = 3e-3
) -> Detector:
    """Build the detector. `patches` is how many parts are left out while the masking network learns."""
    del taps
    return MaskClassifier(Patches(patches), Learning(width, epochs, learning_rate))
