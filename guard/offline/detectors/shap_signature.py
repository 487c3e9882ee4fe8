"""SHAP signature: which neurons of the last layer speak for which class, as a network tells attacked items by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.stand_in import StandIn
from guard.offline.detectors.detector import Detector, Examples, Head
from guard.offline.detectors.parts.kind_network import KindNetwork, Learning, fit_kinds, restored_kinds
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.needs import Evidence

MAX_SIGNATURE_CLASSES = 10  # of a model with more, those with the largest logits, in that order


@dataclass(frozen=True)
class ShapSignature:
    """Detector that learns from the Shapley value of every neuron of the last layer for every class.

    Of a linear layer behind the last tap these are known: weight times the neuron less its clean mean. The weights are
    the least squares of logits on neurons over clean and noisy items, which are the model's own where its last layer is
    linear and items outnumber neurons. Fewer items leave directions in which they do not differ: there the weights are
    zero, and the values are not the Shapley values. Behind any other last tap they are those of the nearest linear
    layer.

    Source: Fidel et al. 2020, arXiv:1909.03418. They take Deep SHAP's approximation, many passes an item.
    """

    name: ClassVar[str] = "shap_signature"
    kinds: ClassVar[Kinds] = EVERY_KIND
    learns: ClassVar[bool] = False
    stand_ins: ClassVar[tuple[StandIn, ...]] = (
        StandIn("classes with the largest logits, of more than ten", "this step's classes, held"),
    )

    latent: Latent
    learning: Learning = field(default_factory=lambda: Learning(epochs=30))

    @property
    def needs(self) -> tuple[Latent | Logits, ...]:
        return (self.latent, Logits())

    def fit(self, examples: Examples) -> ShapSignatureHead:
        signature = fit_signature(examples.negatives(self.latent), examples.negatives(Logits()))
        signature.mean.copy_(examples.clean[self.latent].mean(dim=0))

        def read(evidence: Evidence) -> Tensor:
            values: Tensor = signature(evidence[self.latent], evidence[Logits()])
            return values

        return ShapSignatureHead(self, signature, fit_kinds(self.name, examples, read, self.learning))

    def restore(self, state: Mapping[str, Tensor]) -> ShapSignatureHead:
        signature = Signature(state["signature.weight"], state["signature.mean"])
        return ShapSignatureHead(self, signature, restored_kinds(state, "network."))


class Signature(nn.Module):
    """Module that maps neurons [item, feature] and logits [item, class] to Shapley values [item, class x feature]."""

    def __init__(self, weight: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # [class, feature]
        self.register_buffer("mean", mean)  # [feature]
        self.weight: Tensor
        self.mean: Tensor

    def forward(self, neurons: Tensor, logits: Tensor) -> Tensor:
        away = (neurons - self.mean)[:, None]
        if len(self.weight) <= MAX_SIGNATURE_CLASSES:
            return (away * self.weight).flatten(1)
        likeliest = logits.topk(MAX_SIGNATURE_CLASSES, dim=1).indices
        return (away * embedding(likeliest, self.weight)).flatten(1)


class ShapSignatureHead(Head):
    def __init__(self, detector: ShapSignature, signature: Signature, network: KindNetwork) -> None:
        super().__init__(detector)
        self.latent, self.signature, self.network = detector.latent, signature, network

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the log-odds of "attacked" [item]; larger is more suspicious."""
        return self.network.odds(self.signature(evidence[self.latent], evidence[Logits()]))


def fit_signature(neurons: Tensor, logits: Tensor) -> Signature:
    """Return the Shapley values of the linear layer nearest to what maps neurons [item, feature] to logits."""
    exact, answers = neurons.double(), logits.double()
    mean = exact.mean(dim=0)
    weight = torch.linalg.lstsq(exact - mean, answers - answers.mean(dim=0), driver="gelsd").solution
    return Signature(weight.T.float().contiguous(), mean.float())


def shap_signature(taps: Sequence[str], *, width: int = 16, epochs: int = 30, learning_rate: float = 3e-3) -> Detector:
    return ShapSignature(Latent(taps[-1]), Learning(width, epochs, learning_rate))
