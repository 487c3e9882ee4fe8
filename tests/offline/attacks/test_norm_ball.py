"""The norm ball's laws, for vectors and images, in every norm."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from guard.offline.attacks.l1_step import sparse_step
from guard.offline.attacks.norm_ball import furthest, into_reach, per_item, project, room_of, sizes, steepest, uniform
from guard.offline.data.norms import Norm

every_norm = pytest.mark.parametrize("norm", get_args(Norm))
every_shape = pytest.mark.parametrize("shape", [(40, 7), (40, 2, 3, 4)], ids=["vectors", "images"])


def draw(shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(3))


@every_norm
@every_shape
def test_projection_lands_within_the_budget_and_uses_all_of_it(norm, shape):
    projected = sizes(project(draw(shape, 5.0), 0.3, norm), norm)
    assert (projected <= 0.3 * (1 + 1e-6)).all()
    torch.testing.assert_close(projected, torch.full_like(projected, 0.3))


@every_norm
@every_shape
def test_projection_is_idempotent_bit_for_bit(norm, shape):
    once = project(draw(shape, 5.0), 0.3, norm)
    assert torch.equal(project(once, 0.3, norm), once)


@every_norm
@every_shape
def test_projection_leaves_insiders_alone_and_only_them(norm, shape):
    inside = draw(shape)
    inside = 0.29 * inside / per_item(sizes(inside, norm), inside)
    mixed = torch.cat([inside, 10 * inside])
    projected = project(mixed, 0.3, norm)
    assert torch.equal(projected[: len(inside)], inside)
    assert not torch.equal(projected[len(inside) :], 10 * inside)


@every_shape
def test_l2_projection_keeps_direction(shape):
    outside = draw(shape, 5.0)
    projected = project(outside, 0.3, "l2")
    cosine = torch.nn.functional.cosine_similarity(outside.flatten(1), projected.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_linf_projection_is_the_nearest_point_of_the_ball():
    torch.testing.assert_close(
        project(torch.tensor([[0.5, -0.1, -2.0]]), 0.3, "linf"), torch.tensor([[0.3, -0.1, -0.3]])
    )


@every_shape
def test_l1_projection_is_the_nearest_point_of_the_ball(shape):
    outside = draw(shape)
    projected = project(outside, 0.7, "l1")
    generator = torch.Generator().manual_seed(9)
    for _ in range(200):  # no other point of the ball lies in a direction that comes nearer
        other = uniform(outside, 0.7, "l1", generator)
        assert (((outside - projected) * (other - projected)).flatten(1).sum(dim=1) <= 1e-5).all()


@every_norm
def test_zero_stays_zero(norm):
    assert torch.equal(project(torch.zeros(2, 5), 0.3, norm), torch.zeros(2, 5))
    assert torch.equal(steepest(torch.zeros(2, 5), norm), torch.zeros(2, 5))


@every_norm
@every_shape
@pytest.mark.parametrize("scale", [1.0, 1e-30], ids=["plain", "tiny"])
def test_steepest_step_has_size_one_and_gains_the_dual_norm(norm, shape, scale):
    gradient = draw(shape)
    step = steepest(gradient * scale, norm)
    torch.testing.assert_close(sizes(step, norm), torch.ones(shape[0]))
    gained = (step * gradient).flatten(1).sum(dim=1)
    torch.testing.assert_close(
        gained, torch.linalg.vector_norm(gradient.flatten(1), ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
    )


@every_norm
@every_shape
def test_random_perturbations_fill_the_ball(norm, shape):
    drawn = uniform(torch.zeros(400, *shape[1:]), 0.3, norm, torch.Generator().manual_seed(0))
    share = sizes(drawn, norm) / 0.3
    assert (share <= 1 + 1e-6).all()
    features = drawn[0].numel()  # uniform in the ball: size^features is uniform on [0, 1]
    assert abs((share**features).mean().item() - 0.5) < 0.06
    assert drawn.flatten(1).mean(dim=0).abs().max() < 0.06


@every_norm
@every_shape
def test_reach_is_box_and_ball(norm, shape):
    centres = torch.rand(shape, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    reached = into_reach(centres + draw(shape, 5.0), centres, 0.3, norm)
    assert reached.min() >= 0
    assert reached.max() <= 1
    assert (sizes(reached - centres, norm) <= 0.3 + 1e-6).all()


def near_the_edge(shape: tuple[int, ...]) -> torch.Tensor:
    """Centres of which many coordinates have no room on one side, or little."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.3).clamp(0, 1)


@every_shape
def test_l1_reach_is_the_nearest_point_of_ball_and_box(shape):
    centres = near_the_edge(shape)
    points = centres + draw(shape)
    reached = into_reach(points, centres, 0.7, "l1")
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(into_reach(reached, centres, 0.7 * (1 + 1e-5), "l1"), reached)
    for _ in range(200):  # no other point of ball and box lies in a direction that comes nearer
        other = (centres + uniform(centres, 0.7, "l1", generator)).clamp(0, 1)
        assert (((points - reached) * (other - reached)).flatten(1).sum(dim=1) <= 1e-4).all()


@every_shape
def test_what_the_box_cuts_off_is_spent_elsewhere(shape):
    centres = near_the_edge(shape)
    reached = into_reach(centres + draw(shape, 5.0), centres, 0.3, "l1")
    torch.testing.assert_close(sizes(reached - centres, "l1"), torch.full((shape[0],), 0.3), rtol=1e-4, atol=0)


@every_norm
@every_shape
def test_no_point_in_reach_is_further_along_the_gradient(norm, shape):
    centres = near_the_edge(shape) if norm != "l2" else torch.full(shape, 0.5)
    gradient = draw(shape)
    gained = ((furthest(centres, gradient, 0.4, norm) - centres) * gradient).flatten(1).sum(dim=1)
    generator = torch.Generator().manual_seed(9)
    others = [uniform(centres, 0.4, norm, generator) for _ in range(100)]
    for other in (*others, 0.4 * steepest(gradient, norm)):
        reached = (centres + other).clamp(0, 1)
        assert (((reached - centres) * gradient).flatten(1).sum(dim=1) <= gained + 1e-5).all()


@every_shape
def test_a_sparse_step_climbs_moves_few_and_rests_at_the_edge(shape):
    centres, gradient = near_the_edge(shape), draw(shape)
    blocked = room_of(centres, gradient) <= 0
    assert blocked.any()
    step = sparse_step(centres, gradient, 0.2, 1.0)
    assert not step[blocked].any()
    assert ((step * gradient).flatten(1).sum(dim=1) > 0).all()
    torch.testing.assert_close(sizes(step, "l1"), torch.full((shape[0],), 0.2))
    wide = torch.full((3, 1000), 0.5)
    moved = [(sparse_step(wide, draw((3, 1000)), 0.2, progress) != 0).sum(dim=1) for progress in (0.0, 0.5, 1.0)]
    assert [int(count[0]) for count in moved] == [50, 10, 2]
