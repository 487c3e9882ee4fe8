"""Network that a detector trains to tell kinds of items apart: a few convolutions over maps, a perceptron over numbers.

Rule 1: what it is trained on is all that it sees: inputs are measured in their own spread, and cut where none was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.offline.data.deviation import spread_of
from guard.offline.data.enough import check_attacked
from guard.offline.detectors.detector import Examples
from guard.offline.detectors.parts.supervision import item_kinds, item_weights, kind_loss, odds_of_attack
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.architectures import feature_network
from guard.offline.networks.training import Schedule, train
from guard.offline.networks.weights import under

MAX_DEVIATIONS = 6.0  # of an input from its mean; what lies beyond counts as if it lay there


@dataclass(frozen=True)
class Learning:
    """Settings by which a network of a detector learns."""

    width: int = 16  # of its first layer; its last has four times as many
    epochs: int = 12
    learning_rate: float = 3e-3

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.epochs, 64, self.learning_rate, weight_decay=1e-3, falls="each epoch")


class KindNetwork(nn.Module):
    """Network from inputs [item, channel, ...] or [item, feature] to unnormalised log-probabilities [item, kind]."""

    def __init__(self, shape: tuple[int, ...], width: int, kinds: int) -> None:
        super().__init__()
        self.body = feature_network(shape, 1, width)
        self.last = nn.Linear(4 * width, kinds)
        each = (shape[0], *[1] * (len(shape) - 1))
        self.register_buffer("centre", torch.zeros(each))
        self.register_buffer("spread", torch.ones(each))
        self.centre: Tensor
        self.spread: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = ((inputs - self.centre) / self.spread).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        answers: Tensor = self.last(self.body(scaled))
        return answers

    def odds(self, inputs: Tensor) -> Tensor:
        """Return the log-odds [item] of any kind but the first."""
        return odds_of_attack(self(inputs))

    def measure(self, inputs: Tensor) -> None:
        """Take each channel's mean and spread from inputs [item, ...]."""
        flat = inputs.transpose(0, 1).flatten(1).T
        self.centre.copy_(flat.mean(dim=0).reshape(self.centre.shape))
        self.spread.copy_(spread_of(flat).reshape(self.spread.shape))


def fit_kinds(
    name: str, examples: Examples, inputs_of: Callable[[Evidence], Tensor], learning: Learning
) -> KindNetwork:
    """Train a network to tell clean and noisy items from those of each attack. Raises DataError for too few attacked.

    `inputs_of` reads its inputs [item, ...] from evidence.
    """
    check_attacked(name, examples.count_attacked())
    parts = [inputs_of(evidence) for evidence in (examples.clean, examples.noisy, examples.attacked.items)]
    kinds = item_kinds(len(parts[0]) + len(parts[1]), examples.attacked)
    weights = item_weights(len(parts[0]), len(parts[1]), examples.attacked)
    return fit_targets(torch.cat(parts), kinds, weights, learning, examples.seed)


def fit_targets(inputs: Tensor, targets: Tensor, weights: Tensor, learning: Learning, seed: int) -> KindNetwork:
    """Train a network to name the targets [item] of inputs [item, ...], each item weighed [item]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = KindNetwork(tuple(inputs.shape[1:]), learning.width, int(targets.max()) + 1)
        network.measure(inputs)
        train(
            network,
            len(targets),
            lambda index: kind_loss(network(inputs[index]), targets[index], weights[index]),
            learning.schedule,
        )
    return network.eval().requires_grad_(False)


def restored_kinds(state: Mapping[str, Tensor], prefix: str) -> KindNetwork:
    """Return the network whose weights stand in a head's state under a prefix."""
    own = under(state, prefix)
    first, last = own["body.0.weight"], own["last.weight"]
    network = KindNetwork((first.shape[1], *[1] * (first.ndim - 2)), last.shape[1] // 4, len(last))
    network.load_state_dict(own)
    return network.eval().requires_grad_(False)
