"""The risk that an attacker differentiates is the risk that is served, and every part of it has a slope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.calibration import Band, Calibration
from guard.cascade import risk_limits
from guard.fusion import HINGE_DEVIATIONS, Fusion, Surprise, clean_knots, unfitted
from guard.offline.adversary.excess import (
    DetectorExcess,
    Excess,
    SmoothFusion,
    served_excess,
    without_gradient,
)
from guard.offline.detectors.kernel_density import KernelDensityHead
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.needs import Evidence
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.program import Program
from guard.offline.programs.read import read
from tests.offline import tiny
from tests.offline.detectors.fitting import attack

RATES = (0.02, 0.05, 0.1, 0.3)


def fusion(seed: int = 0) -> Fusion:
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.normal(size=150), generator.integers(0, 3, 150), np.full(150, 2.0)], axis=1)
    knots, levels = clean_knots(scores.astype(np.float64))
    alone = Surprise(np.asarray([1.0, 1.5, 2.0]), generator.exponential(size=3), 20.0, 40.0)
    return Fusion(knots, levels, generator.exponential(size=(3, 2, len(HINGE_DEVIATIONS))), -1.0, alone)


def many(subject: OpenedGuard) -> Tensor:
    """Clean, noisy, attacked and absurd inputs: some of each verdict."""
    images, labels = (torch.from_numpy(part) for part in tiny.data(120, seed=51))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    attacked = attack(subject.classifier, images, labels)
    shares = torch.linspace(0, 1, 120).reshape(-1, 1, 1, 1)
    between = images + shares * (attacked - images)
    return torch.cat([images, (images + 0.2 * shares * noise).clamp(0, 1), between, noise.abs()])


def test_fusion_in_torch_is_fusion_in_numpy() -> None:
    for seed in range(3):
        plain = fusion(seed)
        scores = np.random.default_rng(9).normal(0, 3, (400, 3))
        scores[::7, 1] = 1.0
        found = SmoothFusion(plain)(torch.from_numpy(scores))
        assert 20 < (plain.surprise.risk(scores) > plain.fused(scores)).sum() < 380, "each of the two decides for some"
        np.testing.assert_allclose(found.numpy(), plain.risk(scores), rtol=0, atol=1e-9)


def test_a_surprise_can_be_descended() -> None:
    scores = torch.tensor([[0.0, 0.0, 30.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    plain = fusion()
    silent = replace(plain, weights=np.zeros_like(plain.weights))
    SmoothFusion(silent)(scores).sum().backward()
    assert scores.grad is not None
    expected = plain.surprise.pace * plain.surprise.slopes[2]
    np.testing.assert_allclose(scores.grad.numpy(), [[0, 0, expected], [0, 0, 0]], rtol=1e-6)


def test_fusion_at_and_beyond_its_knots() -> None:
    plain = fusion()
    ends = np.concatenate([plain.knots.T, plain.knots.T - 1e3, plain.knots.T + 1e3])
    np.testing.assert_allclose(SmoothFusion(plain)(torch.from_numpy(ends)).numpy(), plain.risk(ends), rtol=1e-9)


@pytest.mark.parametrize("rate", RATES)
def test_excess_is_the_served_decision(rate: float, tiny_subject: OpenedGuard) -> None:
    images = many(tiny_subject)
    logits, excesses = Excess(tiny_subject.joint(), tiny_subject.cascade.calibration, rate, 0.5)(images)
    excess, half = excesses.unbind(dim=1)
    assert bool((half >= excess).all()), "a lower threshold is further exceeded"
    served = read(tiny_subject.cascade, images.numpy())
    rejected = served.p_value <= rate
    clear = excess.detach().abs().numpy() > 1e-4  # nearer than that, float32 in two runtimes may differ
    assert clear.mean() > 0.97
    assert np.array_equal((excess.detach().numpy() > 0)[clear], rejected[clear])
    assert 20 < rejected.sum() < len(images) - 20, "both verdicts occur"
    assert np.array_equal(logits.argmax(dim=1).numpy(), served.prediction)


@pytest.mark.parametrize("rate", RATES)
def test_the_served_programs_exceed_by_as_much(rate: float, tiny_subject: OpenedGuard) -> None:
    images = many(tiny_subject)
    calibration = tiny_subject.cascade.calibration
    _, excess = Excess(tiny_subject.joint(), calibration, rate)(images)
    served = served_excess(calibration, read(tiny_subject.cascade, images.numpy()).scores, rate)
    np.testing.assert_allclose(served, excess.detach().numpy()[:, 0], rtol=1e-3, atol=1e-3)


class Saturated(KernelDensityHead):
    """Says the same as the head that it replaces, through a step."""

    def forward(self, evidence: Evidence) -> Tensor:
        return torch.round(super().forward(evidence))


def test_a_head_that_hides_its_gradient_is_named(tiny_subject: OpenedGuard) -> None:
    images = many(tiny_subject)[:8]
    assert without_gradient(tiny_subject.joint(), images) == ()
    program = tiny_subject.joint()
    head = program.heads[program.names.index("kernel_density")]
    assert isinstance(head, KernelDensityHead)
    head.__class__ = Saturated
    try:
        assert without_gradient(program, images) == ("kernel_density",)
    finally:
        head.__class__ = KernelDensityHead
    assert without_gradient(program, images) == ()


def cascade(threshold_level: int) -> tuple[Calibration, Band]:
    """Two programs of one detector each; so many clean items lie above the band that the threshold does too, or not."""
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(99, 2))
    fusions = (unfitted(scores[:, :1]), unfitted(scores))
    band = Band(high=0.5)
    from guard.cascade import cascade_risk

    first, both = fusions[0].risk(scores[:, :1]), fusions[1].risk(scores)
    if threshold_level == 1:
        band = Band(high=float(np.sort(first)[-2]))
    risks = np.where(first > band.high, cascade_risk(2, first), cascade_risk(1, both))
    return Calibration(("a", "b"), (1, 1), fusions, (band,), risks, scores), band


@pytest.mark.parametrize("level", [1, 2])
def test_limits_are_where_p_reaches_the_rate(level: int) -> None:
    from guard.cascade import cascade_risk

    calibration, band = cascade(level)
    threshold = calibration.threshold(0.05)
    assert int(threshold) == level
    first, last = risk_limits(calibration, 0.05)
    probe = np.linspace(-1, 40, 5001)
    early, late = calibration.p_value(cascade_risk(2, probe)), calibration.p_value(cascade_risk(1, probe))
    decided = probe > band.high
    assert np.array_equal((early <= 0.05)[decided], (probe > first)[decided])
    assert np.array_equal(late <= 0.05, probe > last)


def test_a_program_that_never_decides_early_has_no_limit() -> None:
    calibration, _ = cascade(1)
    never = replace(calibration, bands=(Band(),))
    assert risk_limits(never, 0.05)[0] == np.inf


@pytest.mark.parametrize("rate", RATES)
def test_the_threshold_is_the_rank_of_the_promise(rate: float) -> None:
    calibration, _ = cascade(1)
    threshold = calibration.threshold(rate)
    above, at = calibration.p_value(np.asarray([threshold + 1e-9, threshold]))
    assert above <= rate + 1e-12 < at


def programs_of(subject: OpenedGuard, *, smooth: bool) -> dict[str, Program]:
    return {
        name: Program(subject.classifier, [subject.heads[d.name] for d in detectors], smooth=smooth)
        for name, detectors in subject.programs.items()
    }


def slopes(program: Program, column: int, images: Tensor) -> NDArray[np.float64]:
    """Length [item] of the gradient of one head's score to the input."""
    points = images.clone().requires_grad_()
    score = program.heads[column](program.evidence(points))
    (slope,) = torch.autograd.grad(score.sum(), points)
    return np.asarray(slope.flatten(1).norm(dim=1).numpy(), dtype=np.float64)


@pytest.mark.parametrize("name", ["mahalanobis", "kernel_density", "saliency_classifier", "feature_squeezing"])
def test_every_head_has_a_gradient_to_the_input(name: str, tiny_subject: OpenedGuard) -> None:
    assert name in {d for spec in tiny_subject.cascade.programs for d in spec.detectors}
    program = tiny_subject.joint()
    found = slopes(program, program.names.index(name), many(tiny_subject))
    assert np.isfinite(found).all()
    assert (found > 0).mean() > 0.95


def test_every_head_of_the_bundle_was_looked_at(tiny_subject: OpenedGuard) -> None:
    looked_at = {"mahalanobis", "kernel_density", "saliency_classifier", "feature_squeezing"}
    assert set(tiny_subject.cascade.calibration.detectors) == looked_at


def test_the_excess_has_a_gradient_to_the_input(tiny_subject: OpenedGuard) -> None:
    points = many(tiny_subject).requires_grad_()
    _, excess = Excess(tiny_subject.joint(), tiny_subject.cascade.calibration, 0.1)(points)
    (slope,) = torch.autograd.grad(excess.sum(), points)
    assert bool(slope.isfinite().all())
    assert float((slope.flatten(1).abs().amax(dim=1) > 0).float().mean()) > 0.95


def test_surrogates_change_no_value(tiny_subject: OpenedGuard) -> None:
    images = many(tiny_subject)
    plain, smooth = programs_of(tiny_subject, smooth=False), programs_of(tiny_subject, smooth=True)
    for name, program in plain.items():
        with torch.no_grad():
            expected = program.scores(program.evidence(images))
        points = images.clone().requires_grad_()
        found = smooth[name].scores(smooth[name].evidence(points)).detach()
        spread = expected.std(dim=0)
        torch.testing.assert_close(found / spread, expected / spread, rtol=1e-4, atol=1e-4)


def test_one_detector_alone(tiny_subject: OpenedGuard) -> None:
    images = many(tiny_subject)
    program = tiny_subject.alone("kernel_density")
    clean = torch.linspace(0, 1, 101, dtype=torch.float64)
    alone = DetectorExcess(program, "kernel_density", clean, 0.1)
    assert alone.limit == pytest.approx(0.9)
    logits, excess = alone(images)
    evidence = program.evidence(images)
    score = program.heads[0](evidence)
    assert torch.equal(logits, evidence[Logits()])
    torch.testing.assert_close(excess, ((score - 0.9) / float(clean.std()))[:, None], rtol=1e-4, atol=1e-4)
