"""Differentiable risk of the whole guard: the function that an attacker with full knowledge descends.

Rule 1: values equal the bundle's own (heads, fusion, thresholds); only derivatives are surrogates, and all of them are
named in `adversary/surrogates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from guard.calibration import Calibration
from guard.cascade import risk_limits
from guard.fusion import HINGE_DEVIATIONS, Floats, Fusion
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence
from guard.offline.programs.program import Program


class SmoothFusion(nn.Module):
    """Torch module that computes `Fusion.risk`: scores [item, detector] -> risk [item]."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion
        levels = torch.as_tensor(fusion.levels)
        for place, knots in enumerate(fusion.knots):
            self.register_buffer(f"knots_{place}", torch.unique(torch.as_tensor(knots)))
            self.register_buffer(f"levels_{place}", middle_levels(knots, levels))
        self.register_buffer("weights", torch.as_tensor(fusion.weights, dtype=torch.float64))
        self.register_buffer("hinges", torch.tensor(HINGE_DEVIATIONS, dtype=torch.float64))
        self.register_buffer("starts", torch.as_tensor(fusion.surprise.starts, dtype=torch.float64))
        self.register_buffer("slopes", torch.as_tensor(fusion.surprise.slopes, dtype=torch.float64))
        self.weights: Tensor
        self.hinges: Tensor
        self.starts: Tensor
        self.slopes: Tensor

    def forward(self, scores: Tensor) -> Tensor:
        exact = scores.double()
        surprise, fused = self.fusion.surprise, self.fused(exact)
        furthest = ((exact - self.starts) * self.slopes).amax(dim=1)
        return torch.where(furthest > 0, torch.maximum(fused, surprise.floor + surprise.pace * furthest), fused)

    def fused(self, scores: Tensor) -> Tensor:
        placed = [
            interpolate(column, self.get_buffer(f"knots_{place}"), self.get_buffer(f"levels_{place}"))
            for place, column in enumerate(scores.unbind(dim=1))
        ]
        z = torch.stack(placed, dim=1)
        tails = torch.asinh(torch.stack([z, -z], dim=2).clamp_min(0.0))
        features = (tails[..., None] - self.hinges).clamp_min(0.0)
        return torch.einsum("idth,dth->i", features, self.weights) + self.fusion.bias


def middle_levels(knots: object, levels: Tensor) -> Tensor:
    """Return each distinct knot's level: the middle one where several coincide, as in `guard.fusion.normal_scale`."""
    _, counts = torch.unique(torch.as_tensor(knots), return_counts=True)
    last = counts.cumsum(0)
    return (levels[last - counts] + levels[last - 1]) / 2


def interpolate(scores: Tensor, knots: Tensor, levels: Tensor) -> Tensor:
    """Interpolate linearly between the points (knots, levels), the outer pieces extended beyond them."""
    if len(knots) == 1:
        return levels[0] + (scores - knots[0]) / (1e-3 * max(abs(float(knots[0])), 1.0))
    piece = torch.searchsorted(knots, scores.detach().contiguous()).clamp(1, len(knots) - 1)
    slope = (levels[piece] - levels[piece - 1]) / (knots[piece] - knots[piece - 1])
    return levels[piece - 1] + (scores - knots[piece - 1]) * slope


class Excess(nn.Module):
    """Excess of an input's risk over what passes, at each promised rate: negative passes, positive is rejected.

    Unit-space images [item, ...] -> (logits [item, class], excess [item, rate]). `program` holds the detectors of all
    programs in their order, so that the plain pass is made once. The excess is the largest over all programs, since
    each of them may reject early.
    """

    def __init__(self, program: Program, calibration: Calibration, *rates: float) -> None:
        super().__init__()
        self.program = program
        self.fusions = nn.ModuleList(SmoothFusion(fusion) for fusion in calibration.fusions)
        self.ends = tuple(accumulate(calibration.programs))
        self.limits = tuple(risk_limits(calibration, rate) for rate in rates)  # of each rate, of each program

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.evidence(images))

    def evidence(self, images: Tensor) -> Evidence:
        """Gather the evidence of unit-space images [item, ...]."""
        return self.program.evidence(images)

    def judge(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        scores = self.program.scores(evidence)
        risks = [fusion(scores[:, :end]) for end, fusion in zip(self.ends, self.fusions, strict=True)]
        return evidence[Logits()], torch.stack([largest(risks, limit) for limit in self.limits], dim=1)


def largest(risks: Sequence[Tensor], limit: Sequence[float]) -> Tensor:
    """Return the excess [item] of the program furthest above its limit; one that rejects nothing is left out."""
    return torch.stack([risk - low for risk, low in zip(risks, limit, strict=True) if low != math.inf]).amax(dim=0)


def served_excess(calibration: Calibration, scores: Floats, rate: float) -> Floats:
    """Return the excess [item] as `Excess` does, but from the scores [item, detector] of the bundle's programs."""
    parts = zip(accumulate(calibration.programs), calibration.fusions, risk_limits(calibration, rate), strict=True)
    excess = [fusion.risk(scores[:, :end]) - low for end, fusion, low in parts if low != math.inf]
    return np.asarray(np.max(excess, axis=0), dtype=np.float64)


def without_gradient(program: Program, images: Tensor) -> tuple[str, ...]:
    """Return the detectors whose score has a zero or non-finite gradient on half or more of these unit-space images.

    Such a head hides its evidence from a gradient descent, and makes a guard look stronger than it is.
    """
    with torch.enable_grad():
        points = images.detach().requires_grad_(True)
        columns = program.scores(program.evidence(points)).unbind(dim=1)
        slopes = [
            torch.autograd.grad(column.sum(), points, retain_graph=True, materialize_grads=True)[0]
            for column in columns
        ]
    sizes = [slope.flatten(1).abs().amax(dim=1) for slope in slopes]
    good = [float(((size > 0) & size.isfinite()).float().mean()) for size in sizes]
    return tuple(name for name, share in zip(program.names, good, strict=True) if share <= 0.5)


class DetectorExcess(nn.Module):
    """Excess of one detector's score at one rate, larger scores being suspicious, in clean standard deviations.

    The attack proves its strength on detectors that are known to be broken.
    """

    def __init__(self, program: Program, detector: str, clean_scores: Tensor, rate: float) -> None:
        super().__init__()
        self.program = program
        self.column = program.names.index(detector)
        self.limit = float(clean_scores.quantile(1 - rate, interpolation="higher"))
        self.spread = float(clean_scores.std().clamp_min(1e-6))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.evidence(images))

    def evidence(self, images: Tensor) -> Evidence:
        """Gather the evidence of unit-space images [item, ...]."""
        return self.program.evidence(images)

    def judge(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        score = self.program.heads[self.column](evidence)
        return evidence[Logits()], ((score - self.limit) / self.spread)[:, None]
