"""Parity of a model alone, before anything is crafted or fitted: its logits, its layers and its input gradient.

Rule 1: what lies in the model is found on the first items, within the first minute; heads are compared once they are
fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.offline.detectors.detector import Detector
from guard.offline.evidence.gather import Gather, distinct
from guard.offline.evidence.kinds.gradients import InputGradient
from guard.offline.evidence.kinds.plain import Latent, Logits
from guard.offline.evidence.kinds.second import SecondLogits
from guard.offline.evidence.needs import Need
from guard.offline.model.classifier import Classifier
from guard.offline.model.onnx_export.export import OPSET_VERSION, lower
from guard.offline.model.unit_space import unit_of
from guard.offline.programs.outputs import Output
from guard.offline.programs.parity import Parity, check_parity
from guard.session import GraphInMemory, Session

MODEL_ITEMS = 32  # clean items that a model is compared on


class ModelProgram(nn.Module):
    """Program without heads: wire inputs [item, ...] -> logits, what is read of layers and networks, any gradient."""

    def __init__(self, classifier: Classifier, detectors: Sequence[Detector]) -> None:
        super().__init__()
        self.spec = classifier.spec.input
        self.needs: tuple[Need, ...] = (Logits(), *model_needs(need for d in detectors for need in d.needs))
        self.gather = Gather(classifier, self.needs)

    @property
    def compared(self) -> tuple[Output, ...]:
        """Outputs as they are compared."""
        return tuple(map(output_of, self.needs))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the ONNX outputs."""
        return tuple(f"output_{place}" for place in range(len(self.needs)))

    def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
        return self.from_unit(unit_of(wire, self.spec.box))

    def from_unit(self, unit: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs from unit-space images."""
        evidence = self.gather(unit)
        return tuple(evidence[need] for need in self.needs)

    def split(self, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs' values as they are compared."""
        return list(values)


def model_needs(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Return latents and second networks among these needs, and one input gradient where any is read."""
    found = list(needs)
    every = [need for one in found for need in (one, *one.brings)]
    latents = [need for need in every if isinstance(need, Latent)]
    gradients = [cast(Need, need) for need in every if isinstance(need, InputGradient)]
    seconds = [need for need in every if isinstance(need, SecondLogits)]
    return distinct([*latents, *seconds, *gradients[:1]])


def output_of(need: Need) -> Output:
    """Return how a need is compared."""
    if isinstance(need, Logits):
        return Output("the logits", "logits")
    if isinstance(need, Latent):
        return Output(f"the layer {need.tap!r}", "latent")
    if isinstance(need, SecondLogits):
        return Output(f"the second network {need.network.name!r}", "logits")
    return Output("the input gradient", "gradient", forward=False)


def check_model(classifier: Classifier, detectors: Sequence[Detector], unit: NDArray[np.float32]) -> Parity:
    """Compare a model in ONNX Runtime with torch on the first of these clean unit-space items [item, ...].

    Raises:
        ModelError: something of it has no ONNX form.
        ParityError: the two disagree in the logits, in a layer that a detector reads, or in the input gradient.
    """
    program = ModelProgram(classifier, detectors)
    wire = classifier.spec.input.box.from_unit(unit[:MODEL_ITEMS])
    names = {"input_name": program.spec.name, "output_names": program.outputs}
    model = lower(program, torch.from_numpy(wire[:4]), **names, opset=OPSET_VERSION)
    graph = GraphInMemory("model", model.SerializeToString(), {})
    session = Session(graph, device="cpu", threads=None)
    return check_parity("model", program, session, wire)
