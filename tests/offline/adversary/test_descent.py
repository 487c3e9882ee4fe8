"""The attacker who knows everything: stays in bounds, never loses ground, and breaks what is known to be broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guard.offline.adversary.descent import (
    ALL_METHODS,
    AdaptiveResult,
    Known,
    adaptive,
    beats,
    better,
    class_margin,
    on_grid,
)
from guard.offline.adversary.directions import DIRECTIONS, RISK_MARGIN, Method, Sight, pursued
from guard.offline.adversary.excess import DetectorExcess, Excess
from guard.offline.adversary.guides import Guides
from guard.offline.attacks.norm_ball import steepest
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from tests.offline import tiny

BUDGET = 0.25
BLIND: tuple[Method, ...] = (
    "selective",
    "weighted",
    "orthogonal",
    "adapted",
    "several_targets",
)  # to evidence: the bowl has none


def problem(items: int = 24) -> tuple[Tensor, Tensor]:
    images, labels = tiny.data(items, seed=61)
    return torch.from_numpy(images), torch.from_numpy(labels)


def bowl(images: Tensor) -> tuple[Tensor, Tensor]:
    """A model of two classes that looks at the mean, and a risk that grows with the spread of the pixels."""
    flat = images.flatten(1)
    mean = flat.mean(dim=1)
    return torch.stack([0.5 - mean, mean - 0.5], dim=1) * 20, flat.std(dim=1, keepdim=True) - 0.16


def run(
    known: Known = bowl,
    *,
    grid: int | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    steps: int = 12,
    method: Method = "selective",
) -> AdaptiveResult:
    inputs, labels = problem()
    generator = torch.Generator().manual_seed(seed)
    known_labels = labels if known is not bowl else (inputs.flatten(1).mean(dim=1) > 0.5).long()
    return adaptive(
        known,
        inputs,
        known_labels,
        budget=BUDGET,
        steps=steps,
        generator=generator,
        grid=grid,
        start=start,
        method=method,
    )


@pytest.mark.parametrize("grid", [None, 16, 10])
def test_in_box_and_ball_and_on_the_grid(grid: int | None) -> None:
    inputs, _ = problem()
    found = run(grid=grid).images
    if grid == 10:
        inputs = on_grid(inputs, 10)  # the data of another grid
        generator = torch.Generator().manual_seed(0)
        labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
        found = adaptive(
            bowl, inputs, labels, budget=BUDGET, steps=12, generator=generator, grid=10, method="selective"
        ).images
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float((found - inputs).abs().max()) <= BUDGET + 1e-6
    if grid is not None:
        torch.testing.assert_close(found * grid, (found * grid).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("up", [1.0, -1.0])
def test_in_the_box_where_the_way_leads_out_of_it(up: float) -> None:
    def stubborn(images: Tensor) -> tuple[Tensor, Tensor]:
        """Never fooled, and pulling ever further up, or down."""
        mean = up * images.flatten(1).mean(dim=1)
        return torch.stack([10 - mean, mean], dim=1), -mean[:, None]

    inputs = torch.full((4, 1, 8, 8), 0.9 if up > 0 else 0.1)
    labels = torch.zeros(4, dtype=torch.long)
    generator = torch.Generator()
    found = adaptive(
        stubborn, inputs, labels, budget=BUDGET, steps=9, generator=generator, grid=None, method="weighted"
    )
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
    assert torch.equal(found.success, found.fooled & (found.excess[:, 0] < 0))


def worse(result: AdaptiveResult, fooled: Tensor, excess: Tensor) -> Tensor:
    """[item] where the start beats the result."""
    return (fooled & ~result.fooled) | ((fooled == result.fooled) & (excess < result.excess - 1e-6)[:, 0])


@pytest.mark.parametrize("method", BLIND)
@pytest.mark.parametrize("steps", [0, 1, 12])
def test_never_worse_than_its_start(steps: int, method: Method) -> None:
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    shift = torch.where(labels.bool(), -BUDGET, BUDGET).reshape(-1, 1, 1, 1)
    for start in (inputs, (inputs + shift).clamp(0, 1)):
        logits, excess = bowl(start)
        assert not bool(
            worse(run(start=start, steps=steps, method=method), class_margin(logits, labels) < 0, excess).any()
        )


def test_more_steps_are_never_worse_on_the_bowl() -> None:
    few, many = run(steps=1), run(steps=30)
    assert int(many.success.sum()) >= int(few.success.sum())
    assert float(many.excess[many.fooled].mean()) < float(few.excess[few.fooled].mean())


@pytest.mark.parametrize("method", BLIND)
def test_it_finds_the_way_through_a_known_landscape(method: Method) -> None:
    """Shifting every pixel alike changes the class and not the risk: whoever looks at both gradients finds it."""
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    near = (inputs.flatten(1).mean(dim=1) - 0.5).abs() < 0.15
    calm = bowl(inputs)[1][:, 0] < -0.005
    found = run(steps=40, method=method)
    reachable = near & calm
    assert int(reachable.sum()) >= 3
    assert float(found.success[reachable].float().mean()) >= 0.9
    assert len(labels) == len(found.success)


def test_better_prefers_fooling_then_the_lower_risk() -> None:
    def result(fooled: list[bool], excess: list[float], value: float) -> AdaptiveResult:
        return AdaptiveResult(torch.full((4, 1, 2, 2), value), torch.tensor(fooled), torch.tensor(excess)[:, None])

    a = result([True, False, True, False], [5.0, -5.0, 1.0, 1.0], 0.0)
    b = result([False, True, True, False], [-5.0, 5.0, 0.5, 2.0], 1.0)
    best = better(a, b)
    assert best.images[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert best.fooled.tolist() == [True, True, True, False]
    assert best.excess[:, 0].tolist() == [5.0, 5.0, 0.5, 1.0]


def test_rounding_passes_the_gradient_straight_through() -> None:
    point = torch.full((1, 1, 2, 2), 0.3).requires_grad_()
    served = on_grid(point, 4)
    torch.testing.assert_close(served.detach(), torch.full((1, 1, 2, 2), 0.25))
    (slope,) = torch.autograd.grad(served.sum(), point)
    assert torch.equal(slope, torch.ones_like(slope))


def test_margin_is_the_true_class_over_the_best_other() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 4.0]])
    assert class_margin(logits, torch.tensor([1, 2])).tolist() == [1.0, -1.0]


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(ValueError, match="not be negative"):
        run(steps=-1)
    with pytest.raises(ValueError, match="needs clean items as guides"):
        run(method="feature_matching")
    inputs, labels = problem(2)
    with pytest.raises(ValueError, match="at least one item"):
        adaptive(
            bowl, inputs[:0], labels[:0], budget=0.1, steps=1, generator=torch.Generator(), grid=None, method="weighted"
        )


def test_further_thresholds_are_pursued_in_turn() -> None:
    excess = torch.tensor([[0.5, 2.0], [-RISK_MARGIN / 2, 2.0], [-1.0, 2.0], [-3.0, -1.0]])
    torch.testing.assert_close(pursued(excess), torch.tensor([0.5, -RISK_MARGIN / 2, 2.0, -1.0]))
    fooled, images = torch.ones(4, dtype=torch.bool), torch.zeros(4, 1)
    before = AdaptiveResult(images, fooled, excess)
    now = torch.tensor([[0.6, 1.0], [0.1, 0.2], [-0.1, 1.0], [-0.1, -2.0]])
    assert beats(AdaptiveResult(images, fooled, now), before).tolist() == [False, False, True, True]
    assert before.settled.tolist() == [False, False, False, True]
    assert before.success.tolist() == [False, True, True, True]


def test_items_with_nothing_left_to_gain_leave() -> None:
    counted: list[int] = []

    def seen(images: Tensor) -> tuple[Tensor, Tensor]:
        counted.append(len(images))
        logits, excess = bowl(images)
        return logits, excess + 0.08  # some cannot get safely below

    heard: list[int] = []
    inputs, _ = problem()
    labels = (inputs.flatten(1).mean(dim=1) > 0.5).long()
    found = adaptive(
        seen,
        inputs,
        labels,
        budget=BUDGET,
        steps=40,
        generator=torch.Generator().manual_seed(0),
        grid=None,
        method="selective",
        heard=heard.append,
    )
    assert 0 < int(found.settled.sum()) < len(labels)
    assert counted[0] == len(labels) > counted[-1]
    assert counted == sorted(counted, reverse=True)
    assert heard == counted[: len(heard)]


def sight(margin: float, excess: float) -> Sight:
    """Two numbers an item: the margin rises along (1, 1), the excess along (0, 1)."""
    point = torch.tensor([[0.0, 0.0]]).requires_grad_()
    return Sight(point, point.sum(dim=1) + margin, point[:, 1:] + excess)


def test_each_method_walks_as_its_formula_says() -> None:
    half = 0.5**0.5
    torch.testing.assert_close(DIRECTIONS["selective"](sight(1.0, 1.0)), torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(DIRECTIONS["selective"](sight(-9.0, 1.0)), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(DIRECTIONS["weighted"](sight(1.0, -1.0)), torch.tensor([[1.2 * half, 1.2 * half + 0.2]]))
    torch.testing.assert_close(DIRECTIONS["orthogonal"](sight(1.0, 1.0)), torch.tensor([[half, 0.0]]))
    torch.testing.assert_close(DIRECTIONS["orthogonal"](sight(-9.0, 1.0)), torch.tensor([[-0.5, 0.5]]))


def test_adapted_weights_follow_what_each_item_is_missing() -> None:
    """Half a unit of log odds a step: towards the class, the risk, or nowhere, and each item for itself."""
    point = torch.zeros(3, 2).requires_grad_()
    margin, excess = torch.tensor([1.0, -9.0, -9.0]), torch.tensor([1.0, 1.0, -1.0])[:, None]
    seen = Sight(point, point[:, 0] + margin, point[:, 1:] + excess)
    torch.testing.assert_close(seen.next_log_odds, torch.tensor([0.5, -0.5, 0.0]))
    weight = torch.tensor([0.5, -0.5, 0.0]).sigmoid()
    torch.testing.assert_close(DIRECTIONS["adapted"](seen), torch.stack([weight, 1 - weight], dim=1))
    later = Sight(point, point[:, 0] + margin, point[:, 1:] + excess, log_odds=torch.tensor([4.0, 1.0, 1.0]))
    torch.testing.assert_close(later.next_log_odds, torch.tensor([4.0, 0.5, 1.0]))


def split(images: Tensor) -> tuple[Tensor, Tensor]:
    """Class 1 is nearest and never passes the guard; class 2, further off, does."""
    mean = images.flatten(1).mean(dim=1)
    logits = torch.stack([0 * mean + 2, 10 * (mean - 0.4), 9 * (0.5 - mean)], dim=1)
    return logits, (mean - 0.45)[:, None]


def test_several_targets_reach_the_class_that_passes_where_the_likeliest_does_not() -> None:
    """From 0.5 up to class 1, where the risk is high, or down to class 2, where it is low: one descends to either."""
    inputs, labels = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    found = {
        method: adaptive(
            split,
            inputs,
            labels,
            budget=0.3,
            steps=10,
            generator=torch.Generator().manual_seed(0),
            grid=None,
            method=method,
            start=inputs,
        )
        for method in ("selective", "several_targets")
    }
    assert bool(found["several_targets"].success.all())
    assert not bool(found["selective"].success.any())


@pytest.mark.parametrize("margin", [1.0, -9.0])
def test_orthogonal_steps_leave_the_other_goal_alone(margin: float) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn((2, 5, 7), generator=generator)
    point = torch.zeros(5, 7).requires_grad_()
    walked = DIRECTIONS["orthogonal"](
        Sight(point, (point * a).sum(dim=1) + margin, (point * b).sum(dim=1)[:, None] + 1)
    )
    other, own = (b, a) if margin > 0 else (a, b)
    torch.testing.assert_close((walked * other).sum(dim=1), torch.zeros(5), rtol=0, atol=1e-5)
    assert bool(((walked * own).sum(dim=1) > 0).all())


def test_tiny_gradients_have_a_direction() -> None:
    torch.testing.assert_close(
        steepest(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]), "l2"), torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    )


def guides(subject: OpenedGuard, known: DetectorExcess | Excess) -> Guides:
    images, labels = tiny.data(60, seed=62)
    right = read(subject.cascade, images).prediction == labels
    return Guides.of(known, torch.from_numpy(images[right]), torch.from_numpy(labels[right]))


def density(subject: OpenedGuard) -> DetectorExcess:
    calibration = subject.cascade.calibration
    column = torch.from_numpy(calibration.clean_scores[:, calibration.detectors.index("kernel_density")])
    return DetectorExcess(subject.alone("kernel_density"), "kernel_density", column, 0.05)


def test_a_guide_is_of_the_class_leaned_to_and_passes(tiny_subject: OpenedGuard) -> None:
    known = density(tiny_subject)
    found = guides(tiny_subject, known)
    inputs, labels = problem()
    with torch.no_grad():
        evidence = known.evidence(inputs)
        guide = found.choose(evidence, labels)
        own = torch.nn.functional.one_hot(labels, tiny.CLASSES).bool()
        leaning = evidence[Logits()].masked_fill(own, -torch.inf).argmax(dim=1)
    assert torch.equal(guide.reference[Logits()].argmax(dim=1), leaning)
    chosen = [int((found.evidence[Logits()] == row).all(dim=1).nonzero()[0, 0]) for row in guide.reference[Logits()]]
    assert bool(found.passing[chosen].all())
    assert float(guide.distance(guide.reference).max()) == 0.0
    with pytest.raises(ValueError, match="at least two clean items"):
        Guides.of(known, inputs[:1], labels[:1])


def test_feature_matching_comes_nearer_to_its_guide(tiny_subject: OpenedGuard) -> None:
    known = density(tiny_subject)
    found, (inputs, labels) = guides(tiny_subject, known), problem()
    with torch.no_grad():
        guide = found.choose(known.evidence(inputs), labels)
    point = inputs.clone().requires_grad_()
    before = guide.distance(known.evidence(point))
    ones = torch.ones(len(labels))
    walked = DIRECTIONS["feature_matching"](
        Sight(point, ones + 0 * before, ones[:, None] + 0 * before[:, None], before)
    )
    after = guide.distance(known.evidence(inputs - 2e-3 * walked.sign()))
    assert float((after < before).float().mean()) >= 0.95


def broken(known: DetectorExcess, method: Method, found: Guides) -> AdaptiveResult:
    inputs, labels = problem()
    return adaptive(
        known,
        inputs,
        labels,
        budget=0.3125,
        steps=40,
        generator=torch.Generator().manual_seed(0),
        grid=tiny.GRID,
        method=method,
        guides=found,
    )


@pytest.mark.parametrize("method", ALL_METHODS)
def test_it_breaks_kernel_density_alone(method: Method, tiny_subject: OpenedGuard) -> None:
    """The detector known to be broken breaks: an attack that cannot do that proves nothing."""
    known = density(tiny_subject)
    wanted = 0.7 if method == "orthogonal" else 0.9  # the sign of a projection is not orthogonal, on 16 levels least
    assert float(broken(known, method, guides(tiny_subject, known)).success.float().mean()) >= wanted


@pytest.mark.parametrize("method", ALL_METHODS)
def test_it_runs_against_the_whole_guard(method: Method, tiny_subject: OpenedGuard) -> None:
    inputs, labels = problem(8)
    known = Excess(tiny_subject.joint(), tiny_subject.cascade.calibration, 0.1, 0.5)
    found = adaptive(
        known,
        inputs,
        labels,
        budget=BUDGET,
        steps=6,
        generator=torch.Generator().manual_seed(0),
        grid=tiny.GRID,
        method=method,
        guides=guides(tiny_subject, known),
    )
    assert bool(found.fooled.any())
    assert bool(found.excess.isfinite().all())
    assert found.excess.shape == (8, 2)
