"""Evidence of many items by ONNX Runtime: compiled in a few seconds, then several times as fast as torch.

Rule 1: a compiled program is used only where it gives what torch gives on real items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.agreement import length_apart, tolerated_latents
from guard.errors import ModelError
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Latent
from guard.offline.evidence.needs import Evidence, Need
from guard.offline.model.onnx_export.export import lower
from guard.session import Session

MIN_COMPILED_ITEMS = 1000  # items; torch finishes fewer before the program is written
CHECKED_ITEMS = 8  # items on which both must agree
EVIDENCE_TOLERANCE = 1e-3  # of each kind of evidence's length over those items; of a latent's spread over them
INPUT = "images"

Gathering = Callable[[NDArray[np.float32]], Evidence]  # one batch of unit-space images -> its evidence


def gathering(gather: Gather, images: NDArray[np.float32]) -> Gathering:
    """Choose the quicker way to gather evidence of these images [item, ...]: torch, or a compiled program."""

    def in_torch(batch: NDArray[np.float32]) -> Evidence:
        with torch.no_grad():
            found: Evidence = gather(torch.from_numpy(batch))
            return found

    if len(images) < MIN_COMPILED_ITEMS or not gather.compiles:
        return in_torch
    try:
        compiled = CompiledGather(gather, images[:CHECKED_ITEMS])
    except ModelError:
        return in_torch
    return compiled if compiled.agrees(in_torch(images[:CHECKED_ITEMS]), images[:CHECKED_ITEMS]) else in_torch


class CompiledGather:
    """`Gather` compiled into an ONNX program."""

    def __init__(self, gather: Gather, example: NDArray[np.float32]) -> None:
        self.needs = gather.needs
        self.names = tuple(f"evidence_{place}" for place in range(len(self.needs)))
        model = lower(Outputs(gather), torch.from_numpy(example), input_name=INPUT, output_names=self.names)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "gather.onnx"
            file.write_bytes(model.SerializeToString())
            self.session = Session(file, device="cpu", threads=None)

    def __call__(self, batch: NDArray[np.float32]) -> Evidence:
        found = self.session.run(self.names, batch)
        return dict(zip(self.needs, map(torch.from_numpy, found), strict=True))

    def agrees(self, expected: Mapping[Need, Tensor], images: NDArray[np.float32]) -> bool:
        found = self(images)
        return all(agree(need, found[need], expected[need]) for need in self.needs)


def agree(need: Need, found: Tensor, expected: Tensor) -> bool:
    """Tell whether two engines' evidence of the same items [item, ...] agrees."""
    away = length_apart(found.numpy(), expected.numpy())
    if isinstance(need, Latent):  # far from zero its length would hide what tells items apart
        return bool((away <= tolerated_latents(expected.numpy(), EVIDENCE_TOLERANCE)).all())
    return float(np.linalg.norm(away)) <= EVIDENCE_TOLERANCE * float(expected.norm()) + 1e-6


class Outputs(nn.Module):
    """Module that returns the evidence as a tuple, in the order of the needs."""

    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self.gather = gather

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        evidence = self.gather(images)
        return tuple(evidence[need] for need in self.gather.needs)
