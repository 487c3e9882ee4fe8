"""Evidence from backwards by other rules than the gradient's: guided backpropagation and layer-wise relevance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from guard.offline.evidence.kinds.gradients import Objective, RuledNeed
from guard.offline.model.gradient.backward_rules import guided, lrp_epsilon
from guard.offline.model.gradient.input_gradient import Adjoints


@dataclass(frozen=True)
class GuidedGradient(RuledNeed):
    """Guided backpropagation [shape of the input]: the gradient, of which rectifiers send back what raises the answer.

    In a model without ReLU it is the input gradient.
    """

    of: Objective = "logit"

    def table(self, adjoints: Adjoints) -> Adjoints:
        return guided(adjoints)


@dataclass(frozen=True)
class Relevance(RuledNeed):
    """Layer-wise relevance [shape of the input] of the objective, by the epsilon rule at every layer.

    With epsilon near 0 it is the gradient times the input in a network of ReLUs; a larger one takes from what rests on
    sums that nearly cancel out. A batch normalisation that is folded belongs to its layer, any other adds up nothing.
    """

    epsilon: float = 0.25
    of: Objective = "logit"

    def table(self, adjoints: Adjoints) -> Adjoints:
        return lrp_epsilon(adjoints, self.epsilon)

    def read(self, images: Tensor, sent: Tensor) -> Tensor:
        return images * sent
