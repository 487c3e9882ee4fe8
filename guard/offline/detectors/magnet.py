"""MagNet: can an autoencoder of clean items rebuild this one, and does the model answer the rebuilt one alike?"""

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
from guard.offline.detectors.second_opinion import tail
from guard.offline.evidence.kinds.plain import Image, Logits, ModelSize
from guard.offline.evidence.kinds.reconstruction import ReconstructedLogits, Reconstruction
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.evidence.needs import Evidence
from guard.offline.networks.architectures import autoencoder
from guard.offline.networks.multiply_adds import multiply_adds
from guard.offline.networks.reconstruction import train_autoencoder
from guard.offline.networks.weights import Knowledge, digest_of, knowledge_of, recalled, under

TEMPERATURES_FACTORS = (10.0, 40.0)  # by which logits are divided before their distributions are compared


@dataclass(frozen=True)
class Magnet:
    """Detector that scores how badly an item is rebuilt, and how far the model's answer moves when it is.

    Three numbers: the mean absolute error, and the Jensen-Shannon divergence of the answers at two temperatures, all
    as logarithms. Each is measured from where its largest tenth of clean items begins, in units of their mean distance
    beyond; the most surprised counts. No attack is needed to fit it.

    Source: Meng and Chen 2017, arXiv:1705.09064, sections 4.2 and 5. They set a threshold for each detector; several
    autoencoders of which one is drawn are left out, and their reformer.
    """

    name: ClassVar[str] = "magnet"
    kinds: ClassVar[Kinds] = ALIKE
    learns: ClassVar[bool] = True
    stand_ins: ClassVar[tuple[StandIn, ...]] = ()

    noise: float = 0.1  # standard deviation in unit space, of what the autoencoder learns to take off
    epochs: int = 30
    network: SecondNetwork | None = field(default=None, repr=False)  # trained by `learn`

    @property
    def needs(self) -> tuple[Image | Logits | Reconstruction | ReconstructedLogits, ...]:
        if self.network is None:
            return (Image(), Logits())
        return (Image(), Logits(), Reconstruction(self.network), ReconstructedLogits(self.network))

    def learn(self, ask: Ask) -> Magnet:
        """Train the autoencoder on the clean items. Raises DataError for too few."""
        examples = ask([Image()], clean_only=True)
        items = examples.clean[Image()]
        check_clean(self.name, len(items))
        size = float(ask([ModelSize()], most=1, clean_only=True).clean[ModelSize()][0])
        network = train_autoencoder(items, noise=self.noise, epochs=self.epochs, seed=examples.seed)
        forwards = multiply_adds(network, items[:1]) / max(size, 1.0)
        return self.having(tuple(items.shape[1:]), knowledge_of(network), forwards)

    def having(self, shape: tuple[int, ...], knowledge: Knowledge, forwards: float) -> Magnet:
        """Return the detector with an autoencoder of these weights, which costs so many forwards of the model."""
        network = recalled(lambda: autoencoder(shape), knowledge, torch.zeros(()))
        return replace(self, network=SecondNetwork("autoencoder", digest_of(knowledge), forwards, network))

    def fit(self, examples: Examples) -> MagnetHead:
        surprises = surprises_of(self, examples.clean)
        tails = torch.stack([tail(column) for column in surprises.unbind(dim=1)])
        return MagnetHead(self, tails, tuple(examples.clean[Image()].shape[1:]))

    def restore(self, state: Mapping[str, Tensor]) -> MagnetHead:
        knowledge = under(state, "network.")
        shape = tuple(int(size) for size in state["shape"])
        return MagnetHead(self.having(shape, knowledge, float(state["forwards"])), state["tails"], shape)


class MagnetHead(Head):
    def __init__(self, detector: Magnet, tails: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(detector)
        self.asked, network = detector, learned(detector)
        self.network = network.network
        self.register_buffer("tails", tails)  # [number, (start, scale)]
        self.register_buffer("shape", torch.tensor(shape))
        self.register_buffer("forwards", torch.tensor(network.forwards, dtype=torch.float64))
        self.tails: Tensor

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the most surprising number [item] over its clean tail; larger is more suspicious."""
        return ((surprises_of(self.asked, evidence) - self.tails[:, 0]) / self.tails[:, 1]).amax(dim=1)


def learned(detector: Magnet) -> SecondNetwork:
    """Return the detector's autoencoder. Raises DataError where it has not learned one yet."""
    if detector.network is None:
        raise DataError("magnet has not trained its autoencoder yet; learn() comes before fit()")
    return detector.network


def surprises_of(detector: Magnet, evidence: Evidence) -> Tensor:
    """Return the logarithms of error and divergences [item, number]."""
    network = learned(detector)
    error = (evidence[Image()] - evidence[Reconstruction(network)]).abs().flatten(1).mean(dim=1)
    plain, rebuilt = evidence[Logits()], evidence[ReconstructedLogits(network)]
    moved = [divergence(plain / factor, rebuilt / factor) for factor in TEMPERATURES_FACTORS]
    return torch.stack([(error + 1e-6).log(), *((one + 1e-7).log() for one in moved)], dim=1)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence [item] of the distributions of two logits [item, class], 0 to log 2."""
    first, second = one.log_softmax(dim=1), other.log_softmax(dim=1)
    middle = torch.stack([first, second]).logsumexp(dim=0) - torch.log(torch.tensor(2.0))
    apart = [(logs.exp() * (logs - middle)).sum(dim=1) for logs in (first, second)]
    return (0.5 * (apart[0] + apart[1])).clamp_min(0.0)


def magnet(taps: Sequence[str], *, noise: float = 0.1, epochs: int = 30) -> Detector:
    del taps
    return Magnet(noise, epochs)
