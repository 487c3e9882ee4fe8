"""The attacker who knows everything: stays in bounds, never loses ground, and breaks what is known to be broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guard.offline.attacks.adaptive import METHODS, AdaptiveResult, Known, adaptive, better, class_margin, on_grid
from guard.offline.risk import DetectorExcess, Excess
from guard.offline.subject import Subject
from tests.offline import tiny

BUDGET = 0.25


def problem(items: int = 24) -> tuple[Tensor, Tensor]:
    images, labels = tiny.data(items, seed=61)
    return torch.from_numpy(images), torch.from_numpy(labels)


def bowl(images: Tensor) -> tuple[Tensor, Tensor]:
    """A model of two classes that looks at the mean, and a risk that grows with the spread of the pixels."""
    flat = images.flatten(1)
    mean = flat.mean(dim=1)
    return torch.stack([0.5 - mean, mean - 0.5], dim=1) * 20, flat.std(dim=1) - 0.16


def run(
    known: Known = bowl, *, grid: int | None = None, seed: int = 0, start: Tensor | None = None, steps: int = 12
) -> AdaptiveResult:
    inputs, labels = problem()
    generator = torch.Generator().manual_seed(seed)
    known_labels = labels if known is not bowl else (inputs.flatten(1).mean(dim=1) > 0.5).long()
    return adaptive(
        known, inputs, known_labels, budget=BUDGET, steps=steps, generator=generator, grid=grid, start=start
    )


@pytest.mark.parametrize("grid", [None, 16, 10])
def test_in_box_and_ball_and_on_the_grid(grid: int | None) -> None:
    inputs, _ = problem()
    found = run(grid=grid).images
    if grid == 10:
        inputs = on_grid(inputs, 10)  # the data of another grid
        generator = torch.Generator().manual_seed(0)
        labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
        found = adaptive(bowl, inputs, labels, budget=BUDGET, steps=12, generator=generator, grid=10).images
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float((found - inputs).abs().max()) <= BUDGET + 1e-6
    if grid is not None:
        torch.testing.assert_close(found * grid, (found * grid).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("up", [1.0, -1.0])
def test_in_the_box_where_the_way_leads_out_of_it(up: float) -> None:
    def stubborn(images: Tensor) -> tuple[Tensor, Tensor]:
        """Never fooled, and pulling ever further up, or down."""
        mean = up * images.flatten(1).mean(dim=1)
        return torch.stack([10 - mean, mean], dim=1), -mean

    inputs = torch.full((4, 1, 8, 8), 0.9 if up > 0 else 0.1)
    labels = torch.zeros(4, dtype=torch.long)
    found = adaptive(stubborn, inputs, labels, budget=BUDGET, steps=9, generator=torch.Generator(), grid=None)
    assert torch.equal(found.images, torch.full_like(inputs, 1.0 if up > 0 else 0.0))


def test_deterministic_and_changes_nothing() -> None:
    inputs, _ = problem()
    state = torch.random.get_rng_state()
    first, second, other = run(seed=1), run(seed=1), run(seed=2)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.excess, second.excess)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(inputs, problem()[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.images.requires_grad


def test_what_it_reports_is_what_the_images_give() -> None:
    found = run(grid=16)
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    logits, excess = bowl(found.images)
    torch.testing.assert_close(excess, found.excess)
    assert torch.equal(class_margin(logits, labels) < 0, found.fooled)
    assert torch.equal(found.success, found.fooled & (found.excess < 0))


def worse(result: AdaptiveResult, fooled: Tensor, excess: Tensor) -> Tensor:
    """[item] where the start beats the result."""
    return (fooled & ~result.fooled) | ((fooled == result.fooled) & (excess < result.excess - 1e-6))


@pytest.mark.parametrize("steps", [0, 1, 12])
def test_never_worse_than_its_start(steps: int) -> None:
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    shift = torch.where(labels.bool(), -BUDGET, BUDGET).reshape(-1, 1, 1, 1)
    for start in (inputs, (inputs + shift).clamp(0, 1)):
        logits, excess = bowl(start)
        assert not bool(worse(run(start=start, steps=steps), class_margin(logits, labels) < 0, excess).any())


def test_more_steps_are_never_worse_on_the_bowl() -> None:
    few, many = run(steps=1), run(steps=30)
    assert int(many.success.sum()) >= int(few.success.sum())
    assert float(many.excess[many.fooled].mean()) < float(few.excess[few.fooled].mean())


def test_it_finds_the_way_through_a_known_landscape() -> None:
    """Shifting every pixel alike changes the class and not the risk: whoever looks at both gradients finds it."""
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    near = (inputs.flatten(1).mean(dim=1) - 0.5).abs() < 0.15
    calm = bowl(inputs)[1] < -0.005
    found = run(steps=40)
    reachable = near & calm
    assert int(reachable.sum()) >= 3
    assert float(found.success[reachable].float().mean()) >= 0.9
    assert len(labels) == len(found.success)


def test_better_prefers_fooling_then_the_lower_risk() -> None:
    def result(fooled: list[bool], excess: list[float], value: float) -> AdaptiveResult:
        return AdaptiveResult(torch.full((4, 1, 2, 2), value), torch.tensor(fooled), torch.tensor(excess))

    a = result([True, False, True, False], [5.0, -5.0, 1.0, 1.0], 0.0)
    b = result([False, True, True, False], [-5.0, 5.0, 0.5, 2.0], 1.0)
    best = better(a, b)
    assert best.images[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert best.fooled.tolist() == [True, True, True, False]
    assert best.excess.tolist() == [5.0, 5.0, 0.5, 1.0]


def test_rounding_passes_the_gradient_straight_through() -> None:
    point = torch.full((1, 1, 2, 2), 0.3).requires_grad_()
    served = on_grid(point, 4)
    torch.testing.assert_close(served.detach(), torch.full((1, 1, 2, 2), 0.25))
    (slope,) = torch.autograd.grad(served.sum(), point)
    assert torch.equal(slope, torch.ones_like(slope))


def test_margin_is_the_true_class_over_the_best_other() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 4.0]])
    assert class_margin(logits, torch.tensor([1, 2])).tolist() == [1.0, -1.0]


def test_nothing_to_try_is_refused() -> None:
    inputs, labels = problem(2)
    with pytest.raises(ValueError, match="at least one method"):
        adaptive(bowl, inputs, labels, budget=0.1, steps=1, generator=torch.Generator(), grid=None, methods=())
    with pytest.raises(ValueError, match="not be negative"):
        adaptive(bowl, inputs, labels, budget=0.1, steps=-1, generator=torch.Generator(), grid=None)


@pytest.mark.parametrize("method", METHODS)
def test_it_breaks_kernel_density_alone(method: str, tiny_subject: Subject) -> None:
    """The detector known to be broken breaks: an attack that cannot do that proves nothing."""
    calibration = tiny_subject.runtime.calibration
    program = tiny_subject.alone("kernel_density")
    column = torch.from_numpy(calibration.clean_scores[:, calibration.detectors.index("kernel_density")])
    known = DetectorExcess(program, "kernel_density", column, 0.05)
    inputs, labels = problem()
    found = adaptive(
        known,
        inputs,
        labels,
        budget=0.3125,
        steps=40,
        generator=torch.Generator().manual_seed(0),
        grid=tiny.GRID,
        methods=tuple(m for m in METHODS if m == method),
    )
    assert float(found.success.float().mean()) >= 0.9


def test_it_runs_against_the_whole_guard(tiny_subject: Subject) -> None:
    inputs, labels = problem(8)
    known = Excess(tiny_subject.joint(), tiny_subject.runtime.calibration, 0.1)
    with torch.no_grad():
        before = known(inputs)[1]
    found = adaptive(
        known, inputs, labels, budget=BUDGET, steps=6, generator=torch.Generator().manual_seed(0), grid=tiny.GRID
    )
    assert bool(found.fooled.any())
    assert bool(found.excess.isfinite().all())
    assert before.shape == found.excess.shape
