"""Patch and frame: what they cover and never more; far better than random content on items they have not seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack, learns
from guard.offline.attacks.informed import Informed
from guard.offline.attacks.methods.frame import Frame, UniversalFrame, border
from guard.offline.attacks.methods.patch import Patch, Spots, put, throw
from guard.offline.attacks.objective import log_odds
from guard.offline.attacks.shared_perturbation import MAX_LOG_ODDS
from tests.offline.attacks.learning import Problem, learned, problem, seeded
from tests.offline.attacks.trained import fooled

MARGIN = 0.2  # of held-out items: what learning must be ahead of random content at least
every_kind = pytest.mark.parametrize("kind", ["images", "vectors"])


def run(attack: Attack, given: Problem) -> Tensor:
    model, _, (inputs, labels) = given
    ready = learned(attack, given) if learns(attack) else attack
    return ready(model, inputs, labels, seeded())


def content(attack: Attack, inputs: Tensor, seed: int) -> Attack:
    """The same attack with random content."""
    if isinstance(attack, Patch):
        return Informed(attack, {"patch": attack.blank(inputs, seeded(seed))})
    whole = UniversalFrame(attack.budget or 0.0)
    return Informed(whole, {"content": torch.rand(inputs[:1].shape, generator=seeded(seed))})


@every_kind
@pytest.mark.parametrize("attack", [Patch(0.25), UniversalFrame(0.4), Frame(0.3)], ids=repr)
def test_it_beats_random_content_on_items_it_has_not_seen(attack: Attack, kind: str) -> None:
    given = problem(kind)
    model, _, (inputs, labels) = given
    chance = [
        fooled(model, content(attack, inputs, seed)(model, inputs, labels, seeded(seed)), labels) for seed in range(20)
    ]
    assert fooled(model, run(attack, given), labels) >= sum(chance) / len(chance) + MARGIN


@every_kind
@pytest.mark.parametrize("budget", [0.1, 0.25, 0.437, 1.0])
@pytest.mark.parametrize("make", [Patch, UniversalFrame, Frame], ids=lambda make: make.__name__)
def test_it_covers_what_its_budget_says_and_no_more(make: type[Frame], budget: float, kind: str) -> None:
    _, _, (inputs, labels) = given = problem(kind)
    attack = make(budget)
    changed = (run(attack, given) != inputs).flatten(2).any(dim=1) if kind == "images" else run(attack, given) != inputs
    share = changed.flatten(1).double().mean(dim=1)
    assert (share <= budget).all()
    if not isinstance(attack, Patch):
        assert share.max() >= budget - 1 / changed[0].numel()
    assert len(labels) == len(share)


def test_a_patch_of_full_size_that_is_not_turned_covers_its_square_exactly() -> None:
    inputs = torch.zeros(3, 2, 9, 12)
    for side in (2, 3, 5):
        half = torch.full((3,), side / 2)
        spots = Spots(torch.tensor([side / 2, 4.5 + side % 2 / 2 - 0.5, 9 - side / 2]), half.clone(), half, half * 0)
        found = put(torch.ones(1, 2, side, side), inputs, spots, side**2)
        assert (found.sum(dim=(2, 3)) == side**2).all()
        assert torch.equal(found[0, 0, :side, :side], torch.ones(side, side))


def test_content_is_turned_and_scaled_with_the_patch() -> None:
    """Half black, half white: the white half points where the turn says."""
    patch = torch.zeros(1, 1, 8, 8)
    patch[..., 4:] = 1  # white to the right
    inputs = torch.full((4, 1, 33, 33), 0.5)
    middle = torch.full((4,), 16.5)
    turns = torch.tensor([0.0, math.pi / 2, math.pi, -math.pi / 2])
    found = put(patch, inputs, Spots(middle, middle, torch.full((4,), 8.0), turns), 33**2)[:, 0]
    lit = [found[0, 16, 21], found[1, 21, 16], found[2, 16, 11], found[3, 11, 16]]
    dark = [found[0, 16, 11], found[1, 11, 16], found[2, 16, 21], found[3, 21, 16]]
    assert [float(value) for value in lit] == [1.0] * 4
    assert [float(value) for value in dark] == [0.0] * 4


@pytest.mark.parametrize("rotation", [1.0, 45.0, 180.0])
def test_it_lies_inside_the_image_and_everywhere_in_it(rotation: float) -> None:
    inputs = torch.zeros(4000, 1, 20, 30)
    spots = throw(inputs, 36, 0.5, rotation, seeded())
    reach = spots.half * (spots.turn.cos().abs() + spots.turn.sin().abs())
    for centre, size in ((spots.row, 20), (spots.column, 30)):
        assert (centre - reach >= -1e-4).all()
        assert (centre + reach <= size + 1e-4).all()
    assert (spots.half >= 1.5).all()
    assert (spots.half <= 3).all()
    covered = (put(torch.ones(1, 1, 6, 6), inputs, spots, 36) > 0).double().mean(dim=0)[0]
    assert (covered > 0).double().mean() > 0.97  # a corner is out of reach of a turned square
    assert (put(torch.ones(1, 1, 6, 6), inputs, spots, 36).flatten(1).sum(dim=1) <= 36).all()


def test_a_frame_leaves_the_middle_alone() -> None:
    inputs = torch.zeros(1, 3, 6, 7)
    taken = border(inputs, 22 / 42, None)[0, 0]  # one whole ring
    assert taken.sum() == 22
    assert not taken[1:-1, 1:-1].any()
    assert border(inputs, 23 / 42, None)[0, 0, 1:-1, 1:-1].sum() == 1  # and the next one begins
    assert border(torch.zeros(1, 6), 0.67, None).tolist() == [[True, True, False, False, True, True]]


@every_kind
@pytest.mark.parametrize("make", [Patch, UniversalFrame], ids=lambda make: make.__name__)
def test_learning_raises_the_objective(make: type[Patch], kind: str) -> None:
    given = problem(kind)
    model, (inputs, labels), _ = given

    def objective(attack: Attack) -> float:
        with torch.no_grad():
            found = attack(model, inputs, labels, seeded(3))
            return float(log_odds(model(found), labels).clamp_max(MAX_LOG_ODDS).mean())

    random = [objective(content(make(0.4), inputs, seed)) for seed in range(10)]
    assert objective(learned(make(0.4), given)) > max(random)


def test_more_steps_never_make_a_frame_worse() -> None:
    model, _, (inputs, labels) = problem()

    def objective(steps: int) -> float:
        with torch.no_grad():
            return float(log_odds(model(Frame(0.3, steps=steps)(model, inputs, labels, seeded())), labels).mean())

    assert objective(1) < objective(20)


def test_towards_a_class_it_ends_there() -> None:
    given = problem()
    model, _, (_, labels) = given
    for attack in (Frame(0.45, target=1), UniversalFrame(0.6, target=1), Patch(0.5, target=1)):
        others = labels != 1
        with torch.no_grad():
            answers = model(run(attack, given)[others]).argmax(dim=1)
        assert (answers == 1).float().mean() >= 0.6, attack


def test_a_patch_lies_elsewhere_for_another_generator() -> None:
    model, _, (inputs, labels) = given = problem()
    ready = learned(Patch(0.25), given)
    one, other = (ready(model, inputs, labels, seeded(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("attack", [Patch(0.01), Frame(0.01)], ids=repr)
def test_a_budget_of_not_one_place_is_refused(attack: Attack) -> None:
    with pytest.raises(ConfigError, match=r"0\.01 of 64 places is not one"):
        run(attack, problem())


@pytest.mark.parametrize("make", [Patch, Frame, UniversalFrame], ids=lambda make: make.__name__)
def test_more_than_the_whole_is_refused(make: type[Frame]) -> None:
    with pytest.raises(ConfigError, match=r"budget = 1\.1; wanted a share"):
        make(1.1)
