"""Shifts and turns: where a pixel is read is known in closed form, what comes in at the border, and foolbox's forms."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.adapter import foolbox
from guard.offline.attacks.attack import Model
from guard.offline.attacks.methods.pgd import rank
from guard.offline.attacks.methods.spatial import Border, Moves, Spatial, grid, moved
from tests.offline.attacks.learning import seeded
from tests.offline.attacks.trained import fooled, trained
from tests.side import reach

reach("zoo")  # foolbox, to compare with

BORDERS: tuple[Border, ...] = get_args(Border)
every_border = pytest.mark.parametrize("border", BORDERS)


def by(turn: float = 0.0, right: float = 0.0, down: float = 0.0) -> Moves:
    return Moves(*torch.tensor([[turn], [right], [down]]))


def looking_at(row: int, column: int) -> Model:
    """A model that answers 1 where this pixel is brighter than a half."""

    def model(points: Tensor) -> Tensor:
        light = points[:, :, row, column].mean(dim=1) - 0.5
        return torch.stack([-light, light], dim=1)

    return model


def ramp(rows: int, columns: int) -> Tensor:
    """An image [1, 1, row, column] that brightens evenly from left to right."""
    return torch.linspace(0.2, 0.7, columns).expand(1, 1, rows, columns).clone()


@pytest.mark.parametrize("attack", [Spatial(40.0, 0.2, 9, 3), Spatial(40.0, 0.2, samples=4000)], ids=repr)
def test_the_worst_shift_and_turn_are_those_of_the_closed_form(attack: Spatial) -> None:
    """Brightness is linear in the column, so that what a pixel below the middle reads is known for every move."""
    inputs = ramp(11, 11)
    attacked = attack(looking_at(8, 5), inputs, torch.tensor([0]), seeded())
    further = 3 * math.sin(math.radians(40)) + 0.2 * 10  # in columns: three rows below the middle, and the shift
    best = 0.45 + 0.05 * further
    assert attacked[0, 0, 8, 5].item() == pytest.approx(best, abs=1e-5 if attack.samples is None else 0.02)
    assert attacked[0, 0, 8, 5].item() <= best + 1e-5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("row", "column"), [(0, 4), (4, 4), (2, 4), (2, 2), (1, 4)])
def test_a_turn_is_rigid_on_an_image_that_is_not_square(row: int, column: int, channels: int) -> None:
    """Light two pixels beside the middle comes to lie two above or below it, though the image is 5 by 9."""
    inputs, labels = torch.zeros(1, channels, 5, 9), torch.tensor([0])
    inputs[:, :, 2, 6] = 1.0
    attack = Spatial(rotation=90, translation=0.1, rotations=3, translations=1)
    model = looking_at(row, column)
    reached = fooled(model, attack(model, inputs, labels, seeded()), labels)
    assert reached == ((row, column) in [(0, 4), (4, 4)])


@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (5, 9), (9, 5)])
def test_a_shift_is_a_share_of_each_side(rows: int, columns: int) -> None:
    """A quarter of the way along each side is whole pixels: the whole image is known."""
    image = torch.rand(1, 2, rows, columns, generator=seeded())
    down, right = (rows - 1) // 4, (columns - 1) // 4
    expected = torch.zeros_like(image)
    expected[:, :, : rows - down, : columns - right] = image[:, :, down:, right:]
    torch.testing.assert_close(moved(image, by(right=0.25, down=0.25), "zeros"), expected)


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("edge", "edge"), ("reflection", "symmetric")])
def test_what_comes_in_at_the_border_is_numpys(border: Border, mode: str) -> None:
    image = torch.rand(1, 1, 9, 9, generator=seeded())
    beside = np.pad(image[0, 0].numpy(), 2, mode=mode)  # type: ignore[call-overload]
    for right, down in product((-2, 0, 2), repeat=2):
        expected = torch.from_numpy(beside[2 + down : 11 + down, 2 + right : 11 + right])
        torch.testing.assert_close(moved(image, by(right=right / 8, down=down / 8), border)[0, 0], expected)


@every_border
def test_corners_are_black_where_that_was_asked_for_and_nowhere_else(border: Border) -> None:
    white = torch.ones(1, 3, 12, 20)
    for move in (by(turn=30), by(right=0.1), by(turn=-20, right=-0.1, down=0.2)):
        assert (moved(white, move, border).min() < 0.01) == (border == "zeros")


@every_border
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 6), (1, 3, 7, 4), (3, 1, 8, 8)])
def test_any_image_stays_in_the_box_and_as_it_was(shape: tuple[int, ...], border: Border) -> None:
    inputs = torch.rand(shape, generator=seeded())
    kept, labels = inputs.clone(), torch.zeros(len(inputs), dtype=torch.long)
    for attack in (Spatial(border=border), Spatial(samples=5, border=border)):
        attacked = attack(looking_at(0, 0), inputs, labels, seeded())
        assert torch.equal(inputs, kept)
        assert attacked.shape == inputs.shape
        assert ((attacked >= 0) & (attacked <= 1)).all()
        assert torch.equal(attack(looking_at(0, 0), inputs, labels, seeded()), attacked)


@every_border
def test_it_returns_the_worst_of_all_forms(border: Border) -> None:
    given = trained()
    attack = Spatial(20, 0.2, rotations=3, translations=3, border=border)
    attacked = attack(given.model, given.inputs, given.labels, seeded())
    forms = torch.stack([moved(given.inputs, one, border) for one in grid(20, 0.2, 3, 3)])
    with torch.no_grad():
        ranks = torch.stack([rank(given.model(form), given.labels, None) for form in forms])
    assert len(forms) == 27
    assert torch.equal(attacked, forms[ranks.argmax(dim=0), torch.arange(len(attacked))])
    assert fooled(given.model, attacked, given.labels) > 0.2


def test_more_samples_are_never_worse_and_each_image_has_its_own() -> None:
    given = trained()

    def ranks(samples: int) -> Tensor:
        found = Spatial(samples=samples)(given.model, given.inputs, given.labels, seeded())
        with torch.no_grad():
            return rank(given.model(found), given.labels, None)

    few, more = ranks(3), ranks(30)
    assert (more >= few).all()
    assert more.mean() > few.mean()
    alike = given.inputs[:1].repeat(4, 1, 1, 1)
    attacked = Spatial(samples=1)(given.model, alike, given.labels[:1].repeat(4), seeded())
    assert len(attacked.flatten(1).unique(dim=0)) == 4


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_the_forms_of_square_images_and_what_they_fool_are_foolboxs() -> None:
    given, package = trained(), foolbox()
    side = given.inputs.shape[2]
    theirs = package.attacks.SpatialAttack(
        max_translation=0.1 * side, max_rotation=10, num_translations=3, num_rotations=5
    )
    asked = package.PyTorchModel(given.model.module, bounds=(0, 1), device="cpu")
    with torch.no_grad():
        found = theirs.run(asked, given.inputs, package.Misclassification(given.labels))
    forms = torch.stack([moved(given.inputs, one, "zeros") for one in grid(10, 0.1, 5, 3)])
    away = (forms - found).flatten(2).abs().amax(dim=2).amin(dim=0)
    ours = Spatial(10, 0.1, rotations=5, translations=3)(given.model, given.inputs, given.labels, seeded())
    with torch.no_grad():
        fooled_by = [given.model(points).argmax(dim=1) != given.labels for points in (found, ours)]
    assert torch.equal(*fooled_by)
    assert 0 < fooled_by[0].sum() < len(found)
    assert away[fooled_by[0]].max() < 1e-5


def test_vectors_are_refused_and_so_is_an_unknown_border() -> None:
    with pytest.raises(ValueError, match=r"\[item, channel, height, width\]; got \(6, 9\)"):
        Spatial()(looking_at(0, 0), torch.rand(6, 9), torch.zeros(6, dtype=torch.long), seeded())
    with pytest.raises(ConfigError, match="border = 'mirror'; wanted one of zeros, edge, reflection"):
        Spatial(border="mirror")  # type: ignore[arg-type]
