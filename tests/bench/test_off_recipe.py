"""The off-recipe table: which settings its cells have, how foolbox's attacks behave as ours, and what it sums up."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from guard.errors import ConfigError
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.findings.intervals import Promise, Rate
from tests.bench import off_recipe
from tests.bench.foolbox_attack import FoolboxAttack
from tests.bench.off_recipe import FINE_GRID, Row, Scale, Table, cells_in, usual_cells
from tests.offline import tiny


def test_every_setting_that_was_asked_for_occurs() -> None:
    words = [cell.words for cell in usual_cells(Scale(FINE_GRID))]
    assert len(words) == len(set(words)) >= 60
    for budget in ("L∞ 1/", "L∞ 1.5/", "L∞ 3/", "L∞ 4/", "L∞ 6/", "L∞ 12/", "L∞ 16/", "L2 0.25", "L2 0.4", "L2 0.75"):
        own = [one for one in words if f" {budget}" in one and not one.startswith("FGSM")]
        assert {int(steps) for one in own for steps in re.findall(r", (\d+) ", one)} == {5, 10, 25, 100}, budget
        assert {one.split()[-1] for one in own} == {"small", "steps", "large"}, budget
    for kind in ("PGD", "Adam", "momentum", "FGSM", "DDN", "FMN L2", "FMN L∞", "NewtonFool", "EAD"):
        assert any(one.startswith(kind) for one in words), kind


def test_a_cell_is_what_its_words_say() -> None:
    cells = {cell.words: cell.attack for cell in usual_cells(Scale(FINE_GRID))}
    small = next(words for words in cells if words.startswith("Adam L2 0.4, 25 small"))
    attack = cells[small]
    assert isinstance(attack, FoolboxAttack)
    assert (attack.method, attack.budget, attack.norm) == ("L2AdamPGD", 0.4, "l2")
    assert dict(attack.settings) == {"steps": 25, "abs_stepsize": pytest.approx(0.4 / 25)}


def test_the_aims_hold_from_three_levels_on() -> None:
    aimed = [cell.words for cell in usual_cells(Scale(FINE_GRID)) if Scale(FINE_GRID).aimed(cell.attack)]
    assert not any("L∞ 1/" in one or "L∞ 1.5/" in one or "L2 0.25" in one or "DDN" in one for one in aimed)
    assert sum("L∞ 3/" in one for one in aimed) == 7
    assert sum("L2 0.4" in one for one in aimed) == 6
    assert not Scale(FINE_GRID).aimed(Pgd(budget=[0.002, 0.06]))  # type: ignore[arg-type]
    assert Scale(FINE_GRID).aimed(Pgd(budget=[0.02, 0.06]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "block",
    [
        {"name": "foolbox.LinfPGD", "budget": 0.125, "steps": 5},
        {"name": "foolbox.L2AdamPGD", "budget": 1.0, "steps": 5},
        {"name": "foolbox.DDNAttack", "steps": 10},
        {"name": "foolbox.EADAttack", "binary_search_steps": 2, "steps": 10, "initial_const": 1.0},
    ],
    ids=lambda block: block["name"],
)
def test_an_attack_of_foolbox_keeps_the_rules_of_ours(block: dict[str, object]) -> None:
    """It stays in box and ball, follows from its generator alone, and leaves global randomness where it was."""
    attack, model = FoolboxAttack.of(block), TorchModel(tiny.image_classifier().graph)
    images, labels = map(torch.from_numpy, tiny.data(16, seed=5))
    kept, before = images.clone(), torch.get_rng_state()
    found = [attack(model, images, labels, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert bool(((found[0] >= 0) & (found[0] <= 1)).all())
    change = (found[0] - images).flatten(1)
    if attack.budget is not None:
        size = change.abs().amax(dim=1) if attack.norm == "linf" else change.norm(dim=1)
        assert bool((size <= attack.budget * (1 + 1e-5)).all())
    assert bool((change != 0).any())


def test_what_foolbox_failed_on_comes_back_clean() -> None:
    """EAD answers a black picture where it found nothing: with one step from a tiny constant it finds nothing."""
    attack = FoolboxAttack.of(
        {"name": "foolbox.EADAttack", "binary_search_steps": 1, "steps": 1, "initial_const": 1e-9}
    )
    images, labels = map(torch.from_numpy, tiny.data(8, seed=5))
    model = TorchModel(tiny.image_classifier().graph)
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    found = attack(model, images, labels, torch.Generator())
    assert torch.equal(found[right], images[right])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "foolbox.LinfPGD"}, "a budget is wanted"),
        ({"name": "foolbox.DDNAttack", "budget": 0.1}, "takes no budget"),
        ({"name": "foolbox.Pdg", "budget": 0.1}, "no attack 'Pdg'"),
        ({"name": "foolbox.DDNAttack", "stesp": 3}, "stesp"),
    ],
)
def test_a_wrong_block_is_refused(block: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FoolboxAttack.of(block)


def test_a_file_names_other_cells(tmp_path: Path) -> None:
    file = tmp_path / "cells.toml"
    file.write_text(
        '[[attack]]\nname = "pgd"\nbudget = 0.0196078431372549\nsteps = 7\noptimiser = "adam"\n'
        '[[attack]]\nname = "foolbox.DDNAttack"\nsteps = 30\n',
        encoding="utf-8",
    )
    first, second = cells_in(file, FINE_GRID)
    assert first.words == "pgd L∞ 5/255, steps 7, optimiser adam"
    assert first.attack == Pgd(budget=0.0196078431372549, steps=7, optimiser="adam")
    assert second.words == "DDNAttack L2, steps 30"
    assert second.attack == FoolboxAttack("DDNAttack", None, (("steps", 30),))
    file.write_text('[[attak]]\nname = "pgd"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="attak"):
        cells_in(file, FINE_GRID)


def row(words: str, one: int, five: int, *, aimed: bool = True, verified: int = 200, bounded: bool = True) -> Row:
    caught = {0.01: Rate.counted(one, verified), 0.05: Rate.counted(five, verified)}
    return Row(words, aimed, bounded, 256, verified, caught)


def test_the_table_begins_with_the_worst_and_sums_up() -> None:
    rows = [
        row("met", 120, 170),
        row("short at 1 %", 119, 180),
        row("short at 5 %", 150, 169),
        row("small", 10, 40, aimed=False),
        row("none", 0, 0, aimed=False, verified=0, bounded=False),
    ]
    promises = [Promise.of(rate, 500) for rate in off_recipe.RATES]
    alarms = {0.01: Rate.counted(9, 1000), 0.05: Rate.counted(52, 1000)}
    lines = list(Table(rows, alarms, promises, 200).lines())
    order = [line.split("  ")[0] for line in lines[2:7]]
    assert order == ["small", "short at 5 %", "met", "short at 1 %", "none"]
    assert [line.split()[-1] for line in lines[3:6]] == ["missed", "met", "missed"]
    assert "85% [79, 89]" in lines[4], "170 of 200, by Wilson"
    assert "from L∞ 3/255 or L2 0.3 on: 1 of 3 rows meet them;" in lines
    assert "  the worst, short at 5 %: 84% [79, 89] at 5%" in lines
    assert "rows of fewer than 200 items, since no more of the data's are fooled: 1" in lines
    assert "false alarms on 1000 clean items: 0.9% [0.5, 1.7] at 1%, 5.2% [4.0, 6.8] at 5%" in lines
    assert max(map(len, lines)) <= 80


def test_budgets_are_those_written_on_a_fine_grid_and_whole_steps_on_a_coarse_one() -> None:
    fine, coarse = Scale(255), Scale(16)
    assert fine.linf(1.5) == 1.5 / 255
    assert fine.linf_text(1.5) == "1.5/255"
    assert coarse.linf(1) == 1 / 16
    assert np.isclose(coarse.linf(8), 2 / 16), "preset digits has 2/16 for 8/255"
    assert coarse.linf_text(6) == "1.5/16"
