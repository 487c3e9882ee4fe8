"""Model + gather + heads -> one ONNX graph, written only if ONNX Runtime agrees with torch.

Rule 1: forward outputs agree within 1e-4, gradients within 1e-3 for 99 % of items, or nothing is written. Scores that
rest on gradients or on rounded rows may jump where those do: they agree within 1 % of their spread, for 99 % of items.
Rule 2: the programs of a bundle share one weights file; no graph carries a path or a stack trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.bundle import InputSpec, ProgramSpec, RepairSpec
from guard.errors import ParityError
from guard.offline.detectors.detector import Head
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.needs import Denoiser, Evidence, Logits
from guard.offline.lower import lower
from guard.offline.model.classifier import Classifier
from guard.runtime import Session

OPSET = 20
WEIGHTS = "weights.bin"
INLINE_BYTES = 1024  # smaller tensors stay in their graph
FORWARD_TOLERANCE = 1e-4  # relative L2 an item
GRADIENT_TOLERANCE = 1e-3
GRADIENT_SHARE = 0.99  # of the items; input gradients jump where a ReLU or a maximum ties
SCORE_TOLERANCE = 1e-2  # of a score's standard deviation, for the same share of the items
BATCHES = (1, 7)
PART = 16  # items that torch computes at once: a gradient keeps every activation, 60 MB an item at 224 x 224


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
        evidence = self.evidence(unit_of(wire, self.spec))
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
        return (wire_of(self.denoiser(unit_of(wire, self.spec)).clamp(0.0, 1.0), self.spec),)


def unit_of(wire: Tensor, spec: InputSpec) -> Tensor:
    """Wire inputs -> [0, 1] per channel, channel first."""
    if spec.dtype != np.float32:
        wire = wire.to(torch.float32)
    if spec.layout == "NHWC":
        wire = wire.permute(0, 3, 1, 2)
    if set(spec.low) == {0.0} and set(spec.high) == {1.0}:
        return wire
    low, high = box(spec)
    return (wire - low) / (high - low)


def wire_of(unit: Tensor, spec: InputSpec) -> Tensor:
    """[0, 1] per channel, channel first -> wire inputs."""
    wire = unit
    if set(spec.low) != {0.0} or set(spec.high) != {1.0}:
        low, high = box(spec)
        wire = low + unit * (high - low)
    if spec.layout == "NHWC":
        wire = wire.permute(0, 2, 3, 1)
    return wire if spec.dtype == np.float32 else torch.round(wire).to(torch.uint8)


def box(spec: InputSpec) -> tuple[Tensor, Tensor]:
    shape = (-1,) + (1,) * (len(spec.shape) - 1)
    return torch.tensor(spec.low).reshape(shape), torch.tensor(spec.high).reshape(shape)


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime and torch are apart on real inputs, the worst of the batch sizes tried."""

    forward: float  # largest relative L2 an item, logits and scores of the plain pass
    gradient: float  # the 99th percentile over items of the gradient's relative L2; 0 where none is formed
    outliers: tuple[int, ...]  # items beyond the gradient's tolerance
    score: float  # the 99th percentile over items of the largest difference of a score, in its standard deviations


@dataclass(frozen=True)
class Compiled:
    """The graphs of a bundle as files, and what they are."""

    programs: tuple[ProgramSpec, ...]
    repairs: tuple[RepairSpec, ...]
    files: Mapping[str, bytes]


def compile_programs(programs: Mapping[str, Program], cleaners: Mapping[str, Cleaner], wire: NDArray[Any]) -> Compiled:
    """Lower everything, pool the weights, and check each program against torch on real inputs [item, ...].

    Raises:
        ParityError: they disagree; it names the program, the output and the worst items.
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


def check_parity(name: str, program: Program, session: Session, wire: NDArray[Any]) -> Parity:
    """Compare one written program with torch on real inputs, in batches of two sizes.

    Raises:
        ParityError: beyond the tolerances of Rule 1.
    """
    expected = in_parts(program, wire)
    worst = Parity(0.0, 0.0, (), 0.0)
    for size in BATCHES:
        parts = [session.run(program.outputs, wire[i : i + size]) for i in range(0, len(wire), size)]
        found = [np.concatenate(column) for column in zip(*parts, strict=True)]
        worst = worse(worst, compare(found, expected, plain=program.plain))
    if not worst.forward <= FORWARD_TOLERANCE:  # NaN is not
        raise ParityError(
            f"program {name!r}: ONNX Runtime and torch differ by {worst.forward:.1e} (relative); "
            f"at most {FORWARD_TOLERANCE:g}"
        )
    if not worst.gradient <= GRADIENT_TOLERANCE:
        raise ParityError(
            f"program {name!r}: the input gradients of {len(worst.outliers)} of {len(wire)} items differ from torch's "
            f"by more than {GRADIENT_TOLERANCE:g}, e.g. items {list(worst.outliers[:5])}; "
            f"at most {1 - GRADIENT_SHARE:.0%} may"
        )
    if not worst.score <= SCORE_TOLERANCE:
        raise ParityError(
            f"program {name!r}: ONNX Runtime's and torch's scores differ by {worst.score:.1e} standard deviations; "
            f"at most {SCORE_TOLERANCE:g}"
        )
    return worst


def in_parts(program: Program, wire: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The program's outputs in torch, [item, ...] each."""
    with torch.no_grad():
        parts = [program(torch.from_numpy(wire[i : i + PART])) for i in range(0, len(wire), PART)]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


def compare(
    found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]], *, plain: Sequence[int]
) -> Parity:
    """Outputs of a program, [item, ...] each; `plain` are the columns of its scores that rest on the plain pass."""
    spread = np.maximum(expected[1].std(axis=0), 1e-6)
    columns = list(plain)
    strict = [relative(found[0], expected[0])]
    if columns:
        strict.append(relative((found[1] / spread)[:, columns], (expected[1] / spread)[:, columns]))
    score = np.abs((found[1].astype(np.float64) - expected[1]) / spread).max(axis=1)
    gradient = relative(found[2], expected[2]) if len(found) > 2 else np.zeros(len(score))
    return Parity(
        forward=float(np.max(strict)),
        gradient=most(gradient),
        outliers=tuple(int(i) for i in np.flatnonzero(~(gradient <= GRADIENT_TOLERANCE))),
        score=most(score),
    )


def most(errors: NDArray[np.float64]) -> float:
    """The largest error [item] when the share that may be beyond it is left out; NaN counts as the largest."""
    allowed = int((1 - GRADIENT_SHARE) * len(errors) + 1e-9)
    return float(np.sort(errors)[len(errors) - 1 - allowed])


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative L2 difference [item]."""
    a, b = found.reshape(len(found), -1).astype(np.float64), expected.reshape(len(found), -1).astype(np.float64)
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12))


def worse(a: Parity, b: Parity) -> Parity:
    """The larger of each error; NaN is larger than all."""
    return Parity(
        float(np.maximum(a.forward, b.forward)),
        float(np.maximum(a.gradient, b.gradient)),
        tuple(sorted({*a.outliers, *b.outliers})),
        float(np.maximum(a.score, b.score)),
    )
