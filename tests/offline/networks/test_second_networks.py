"""Second networks as they learn: what is compiled is what was learned, and training may stop after any epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.errors import ModelError
from guard.offline.networks.augmentation import varied
from guard.offline.networks.learner import Course, Learner, Lessons
from guard.offline.networks.one_vs_rest import many_steps, one_step, verifier_loss
from guard.offline.networks.residual import Design, folded
from tests.offline import tiny

pytestmark = pytest.mark.slow

DESIGNS = [Design((3, 30, 26), 5, 8), Design((1, 8, 8), 3, 4), Design((2, 40), 4, 4), Design((11,), 3, 8)]
CPU = torch.device("cpu")
SMALL = Design(tiny.SHAPE, tiny.CLASSES, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: "x".join(map(str, design.item_shape)))
def test_what_is_compiled_answers_as_what_was_learned_with(design: Design) -> None:
    """Also where the normalisation has learned something."""
    learned, items = design.build(normed=True), torch.rand(32, *design.item_shape, generator=seeded())
    for _ in range(3):
        learned(items)
    for parameter in learned.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=seeded(1))
    plain = design.build(normed=False).eval().requires_grad_(requires_grad=False)
    plain.load_state_dict(folded(learned))
    expected = learned.eval()(items).detach()
    torch.testing.assert_close(plain(items), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("wanted", [1.0, 12.3e6, 1e12])
def test_no_other_width_costs_nearer_to_what_is_wanted(wanted: float) -> None:
    found = Design((3, 32, 32), 10, 0).costing(wanted)
    beside = [replace(found, width=found.width + step) for step in (-4, 4) if 4 <= found.width + step <= 256]
    distances = [abs(np.log(one.multiply_adds / wanted)) for one in (found, *beside)]
    assert distances[0] == min(distances)
    if wanted == 12.3e6:  # counted by hand in the file's head
        assert (found.width, found.multiply_adds) == (32, 12_281_088)


def learner(course: Course, *, images: np.ndarray | None = None) -> Learner:
    unit, labels = tiny.data(200, seed=3)
    teacher = tiny.image_classifier()
    return Learner(SMALL, course, Lessons(unit if images is None else images, labels, teacher), CPU)


def test_training_that_stops_after_any_epoch_ends_as_if_it_had_not() -> None:
    """To the last bit, natural and robust, and nothing global is drawn from."""
    course, state = Course(2, 1, budget=0.05, mirror=True, batch_items=64), torch.get_rng_state()
    whole, pieces = learner(course), learner(course)
    for _ in range(course.epochs):
        whole.epoch()
        pieces.epoch()
        kept = pieces.state()
        pieces = learner(course)
        pieces.restore(kept)
    assert torch.equal(torch.get_rng_state(), state)
    expected, found = (folded(one.mean) for one in (whole, pieces))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert pieces.done_epochs == 3


def test_a_loss_that_is_no_number_is_refused() -> None:
    images = np.full((200, *tiny.SHAPE), np.inf, dtype=np.float32)
    with pytest.raises(ModelError, match=r"diverged in epoch 1 of 1: its loss is nan.*--second-data"):
        learner(Course(1, 0, wide=False), images=images).epoch()


def test_a_taught_network_learns_the_models_answers_and_no_label() -> None:
    unit, _ = tiny.data(400, seed=4)
    model = tiny.image_classifier()
    wrong = np.zeros(len(unit), dtype=np.int64)
    taught = Learner(SMALL, Course(12, 0, wide=False, taught=True, batch_items=32), Lessons(unit, wrong, model), CPU)
    for _ in range(12):
        taught.epoch()
    fresh = torch.from_numpy(tiny.data(200, seed=5)[0])
    assert float((taught.judged()(fresh).argmax(1) == model(fresh).argmax(1)).float().mean()) > 0.8


@pytest.mark.parametrize("attack", [one_step, lambda *given: many_steps(*given[:4], 8, given[4])])
def test_the_attack_on_a_verifier_stays_in_ball_and_box_and_reaches_a_linear_optimum(
    attack: Callable[..., Tensor],
) -> None:
    weights = torch.randn(3, 64, generator=seeded(2))
    items, labels = torch.rand(20, 64, generator=seeded(3)).round(decimals=1), torch.zeros(20, dtype=torch.int64)
    two = torch.stack([weights[0], weights[1], weights[1] - 100 * weights[1].sign()])  # class 2 is never the largest
    found = attack(lambda x: x @ two.T, items, labels, 0.1, seeded(4))
    assert float((found - items).abs().max()) <= 0.1 + 1e-6
    assert bool(((found >= 0) & (found <= 1)).all())
    best = (items + 0.1 * weights[1].sign()).clamp(0, 1)
    gains = [((end - items) @ weights[1]).mean() for end in (found, best)]
    assert float(gains[0] / gains[1]) > 0.85


def test_what_a_perturbed_item_is_is_left_free() -> None:
    """The true class's logit of a perturbed item has no gradient, every wrong one's is pushed down."""
    clean, perturbed = (torch.randn(4, 3, generator=seeded(seed)).requires_grad_() for seed in (0, 1))
    labels = torch.tensor([0, 1, 2, 0])
    verifier_loss(clean, perturbed, labels).backward()
    own = torch.nn.functional.one_hot(labels, 3).bool()
    assert bool((perturbed.grad[own] == 0).all())
    assert bool((perturbed.grad[~own] > 0).all())
    assert bool((clean.grad[own] < 0).all())
    assert bool((clean.grad[~own] > 0).all())


@pytest.mark.parametrize("wide", [False, True])
def test_augmented_images_stay_in_the_box_and_follow_from_the_generator(*, wide: bool) -> None:
    images = torch.rand(90, 3, 16, 12, generator=seeded())
    first, again = (varied(images, seeded(1), mirror=True, wide=wide) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert bool(((first >= 0) & (first <= 1)).all())
    assert float((first.flatten(1) != images.flatten(1)).any(dim=1).float().mean()) > 0.9
    vectors = torch.rand(5, 7)
    assert varied(vectors, seeded(), mirror=True, wide=wide) is vectors


def test_only_images_that_may_be_mirrored_are() -> None:
    """Of images that are dark on the left none is dark on the right."""
    images = torch.linspace(0, 1, 16).expand(200, 1, 16, 16).contiguous()
    sides = varied(images, seeded(), mirror=False, wide=False).mean(dim=(1, 2))
    assert bool((sides[:, 0] < sides[:, -1]).all())
    mirrored = varied(images, seeded(), mirror=True, wide=False).mean(dim=(1, 2))
    assert 0.3 < float((mirrored[:, 0] > mirrored[:, -1]).float().mean()) < 0.7
