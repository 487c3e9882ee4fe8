"""A guard's program in torch: model, evidence and heads as one module from wire inputs to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.learned import Learned
from guard.offline.detectors.detector import Head
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.second import SecondLogits, SecondNetwork
from guard.offline.evidence.kinds.variants import DenoisedLogits, SteeredLogits
from guard.offline.evidence.needs import Evidence
from guard.offline.model.classifier import Classifier
from guard.offline.model.unit_space import unit_of, untouched, wire_of
from guard.offline.programs.outputs import Output

OPINIONS = (DenoisedLogits, SteeredLogits, SecondLogits)  # needs that are logits [item, class] of a further answer


class Program(nn.Module):
    """A program: wire inputs [item, ...] -> (logits [item, class], scores [item, detector], what explains them).

    What explains them, where the detectors read it: the input gradient, and the opinions [item, opinion, class].
    """

    def __init__(self, classifier: Classifier, heads: Sequence[Head], *, smooth: bool = False) -> None:
        super().__init__()
        self.spec = classifier.spec.input
        detectors = [head.detector for head in heads]
        self.gather = Gather(classifier, [need for d in detectors for need in d.needs], smooth=smooth)
        self.heads = nn.ModuleList(heads)
        self.names = tuple(d.name for d in detectors)
        costs = {d.name: sum(need.backwards + need.rows_per_item for need in d.needs) for d in detectors}
        scores = tuple(Output(name, "score", forward=cost == 0) for name, cost in costs.items())
        slopes = (Output("the input gradient", "gradient", forward=False),) if self.gather.gradient else ()
        self.answers = tuple(need for need in self.gather.needs if isinstance(need, OPINIONS))
        self.compared: tuple[Output, ...] = (Output("the logits", "logits"), *scores, *slopes)

    @property
    def outputs(self) -> tuple[str, ...]:
        asked = ("gradient", self.gather.gradient is not None), ("opinions", bool(self.answers))
        return ("logits", "scores", *(name for name, there in asked if there))

    @property
    def opinions(self) -> tuple[str, ...]:
        """The names of the opinions: what was asked besides the model's plain answer."""
        return tuple(need.opinion for need in self.answers)

    def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
        return self.from_unit(unit_of(wire, self.spec.box))

    def from_unit(self, unit: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs from unit-space images."""
        return self.read(self.evidence(unit))

    def split(self, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs' values as those of `compared`: each detector's scores [item] by themselves.

        Opinions are left out: the scores that rest on them are compared.
        """
        logits, scores, *explaining = values
        return [logits, *scores.T, *(explaining[:1] if self.gather.gradient else [])]

    def read(self, evidence: Evidence) -> tuple[Tensor, ...]:
        """Return the outputs that follow from the evidence."""
        found = [evidence[Logits()], self.scores(evidence)]
        if self.gather.gradient:
            found.append(evidence[self.gather.gradient])
        if self.answers:
            found.append(torch.stack([evidence[need] for need in self.answers], dim=1))
        return tuple(found)

    def evidence(self, images: Tensor) -> Evidence:
        """Gather the evidence of unit-space images."""
        found: Evidence = self.gather(images)
        return found

    def scores(self, evidence: Evidence) -> Tensor:
        return torch.stack([head(evidence) for head in self.heads], dim=1)


class Cleaner(nn.Module):
    """A denoiser for REPAIR as a program: wire inputs -> (cleaned wire inputs, classes [item, opinion]).

    A repaired answer counts only where it is stable, as a squeezed answer counts as clean only where squeezing does not
    change it (Xu et al. 2018, arXiv:1704.01155). The opinions are the classes that the model names for what was cleaned
    once and for what was cleaned twice, in one batch, and that each second network names for what was cleaned once.
    """

    outputs = ("cleaned", "classes")

    def __init__(self, denoiser: Denoiser, classifier: Classifier, seconds: Sequence[SecondNetwork] = ()) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.spec = classifier.spec.input
        self.model = classifier.graph
        self.own = denoiser.network if isinstance(denoiser, Learned) else None  # so that it is seen as a part
        self.seconds = nn.ModuleList(second.network for second in seconds)
        self.opinions = ("cleaned once", "cleaned twice", *(f"{second.name}, cleaned once" for second in seconds))

    def forward(self, wire: Tensor) -> tuple[Tensor, Tensor]:
        cleaned = self.clean(wire)
        once, twice = (unit_of(one, self.spec.box) for one in (cleaned, self.clean(cleaned)))
        logits = self.model(torch.cat([once, twice])).unflatten(0, (2, -1))
        answers = [*logits, *(second(once) for second in self.seconds)]
        return cleaned, torch.stack([answer.argmax(dim=1) for answer in answers], dim=1)

    def clean(self, wire: Tensor) -> Tensor:
        """Clean wire inputs [item, ...]; what a table must keep is passed on as it came, bit for bit."""
        cleaned = wire_of(self.denoiser(unit_of(wire, self.spec.box)).clamp(0.0, 1.0), self.spec.box)
        if not self.spec.features:
            return cleaned
        return torch.where(untouched(wire, self.spec.features), wire, cleaned)
