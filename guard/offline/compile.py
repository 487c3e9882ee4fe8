"""Model + gather + heads -> one ONNX graph; parity.py holds it against torch before a bundle is written.

Rule 1: the programs of a bundle share one weights file; no graph carries a path or a stack trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.bundle import InputSpec, ProgramSpec, RepairSpec
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.detectors.detector import Head
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Evidence, Logits
from guard.offline.model.classifier import Classifier
from guard.offline.model.onnx_export.export import OPSET, lower
from guard.offline.model.unit_space import unit_of, wire_of

WEIGHTS = "weights.bin"
INLINE_BYTES = 1024  # smaller tensors stay in their graph


class Program(nn.Module):
    """Wire inputs [item, ...] -> (logits [item, class], scores [item, detector], the input gradient where formed)."""

    def __init__(self, classifier: Classifier, heads: Sequence[Head], *, smooth: bool = False) -> None:
        super().__init__()
        self.spec = classifier.spec.input
        detectors = [head.detector for head in heads]
        self.gather = Gather(classifier, [need for d in detectors for need in d.needs], smooth=smooth)
        self.heads = nn.ModuleList(heads)
        self.names = tuple(d.name for d in detectors)
        costs = [sum(need.backwards + need.rows_per_item for need in d.needs) for d in detectors]
        self.plain = tuple(column for column, cost in enumerate(costs) if cost == 0)  # scores of the plain pass alone

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits", "scores", "gradient") if self.gather.gradient else ("logits", "scores")

    def forward(self, wire: Tensor) -> tuple[Tensor, ...]:
        return self.read(self.evidence(unit_of(wire, self.spec.box)))

    def read(self, evidence: Evidence) -> tuple[Tensor, ...]:
        """The outputs, from the evidence."""
        scores = self.scores(evidence)
        logits = evidence[Logits()]
        return (logits, scores, evidence[self.gather.gradient]) if self.gather.gradient else (logits, scores)

    def evidence(self, images: Tensor) -> Evidence:
        """Of unit-space images."""
        found: Evidence = self.gather(images)
        return found

    def scores(self, evidence: Evidence) -> Tensor:
        return torch.stack([head(evidence) for head in self.heads], dim=1)


class Cleaner(nn.Module):
    """Wire inputs -> denoised wire inputs, for REPAIR."""

    def __init__(self, denoiser: Denoiser, spec: InputSpec) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.spec = spec

    def forward(self, wire: Tensor) -> tuple[Tensor]:
        return (wire_of(self.denoiser(unit_of(wire, self.spec.box)).clamp(0.0, 1.0), self.spec.box),)


@dataclass(frozen=True)
class Compiled:
    """The graphs of a bundle as files, and what they are."""

    programs: tuple[ProgramSpec, ...]
    repairs: tuple[RepairSpec, ...]
    files: Mapping[str, bytes]


def compile_programs(programs: Mapping[str, Program], cleaners: Mapping[str, Cleaner], wire: NDArray[Any]) -> Compiled:
    """Lower everything and pool the weights; `wire` are real inputs [item, ...].

    Raises:
        ModelError: something has no ONNX form.
    """
    pool = WeightsPool()
    files: dict[str, bytes] = {}
    specs: list[ProgramSpec] = []
    repairs: list[RepairSpec] = []
    example = torch.from_numpy(wire[:4])
    for name, program in programs.items():
        model = lower(program, example, input_name=program.spec.name, output_names=program.outputs, opset=OPSET)
        files[f"{name}.onnx"] = pool.take_from(model)
        specs.append(
            ProgramSpec(name, f"{name}.onnx", program.names, program.gather.rows, program.gather.backwards, OPSET)
        )
    for name, cleaner in cleaners.items():
        model = lower(cleaner, example, input_name=cleaner.spec.name, output_names=("cleaned",), opset=OPSET)
        files[f"repair-{name}.onnx"] = pool.take_from(model)
        repairs.append(RepairSpec(name, f"repair-{name}.onnx", repr(cleaner.denoiser)))
    files[WEIGHTS] = pool.content()
    return Compiled(tuple(specs), tuple(repairs), files)


class WeightsPool:
    """Large tensors of several graphs in one file, each content once."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self.places: dict[bytes, tuple[int, int]] = {}

    def take_from(self, model: onnx.ModelProto) -> bytes:
        """Move the model's large tensors here; the graph that is left, serialized."""
        for tensor in model.graph.initializer:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(content) < INLINE_BYTES:
                continue
            offset, length = self.place(content)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        return model.SerializeToString(deterministic=True)

    def place(self, content: bytes) -> tuple[int, int]:
        key = hashlib.sha256(content).digest()
        if key not in self.places:
            padding = -self.size % 64
            self.chunks.append(b"\0" * padding + content)
            self.places[key] = (self.size + padding, len(content))
            self.size += padding + len(content)
        return self.places[key]

    def content(self) -> bytes:
        return b"".join(self.chunks)
