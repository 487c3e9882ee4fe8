"""A compiled forest gives scikit-learn's own shares, item by item, on the thresholds themselves too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from guard.offline.detectors.parts.forest import Forest, fitted_forest, forest_of, not_above
from guard.offline.model.onnx_export.export import lower
from guard.session import GraphInMemory, Session


def items(count: int, seed: int, grid: float | None = None) -> tuple[Tensor, Tensor]:
    """Numbers [item, 6], on a grid so coarse that they meet the thresholds if wanted, and whether they are attacked."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(count, 6))
    numbers = numbers if grid is None else np.rint(numbers / grid) * grid
    attacked = numbers[:, 0] * numbers[:, 1] + 0.3 * generator.normal(size=count) > 0.2
    return torch.from_numpy(numbers).float(), torch.from_numpy(attacked)


def fitted(numbers: Tensor, attacked: Tensor, depth: int) -> tuple[RandomForestClassifier, Forest]:
    own = fitted_forest(numbers, attacked, torch.rand(len(numbers)), trees=20, depth=depth, seed=1)
    return own, forest_of(own)


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("grid", [None, 0.1])
def test_every_item_has_scikit_learns_share(depth: int, grid: float | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, forest = fitted(*items(400, 0, grid), depth)
    for seed in (0, 1):
        numbers, _ = items(400, seed, grid)
        expected = own.predict_proba(numbers.numpy())[:, 1]
        np.testing.assert_allclose(forest(numbers).numpy(), expected, atol=1e-6)
    assert expected.std() > 0.03


def test_numbers_on_and_beside_each_threshold() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, forest = fitted(*items(300, 2), 4)
    numbers, _ = items(300, 3)
    rows = []
    for tree in own.estimators_:
        for feature, threshold in zip(tree.tree_.feature, tree.tree_.threshold, strict=True):
            if feature >= 0:
                near = np.float32(threshold)
                for value in (near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))):
                    row = numbers[len(rows) % len(numbers)].clone()
                    row[feature] = float(value)
                    rows.append(row)
    every = torch.stack(rows)
    np.testing.assert_allclose(forest(every).numpy(), own.predict_proba(every.numpy())[:, 1], atol=1e-6)


def test_a_threshold_is_rounded_down() -> None:
    exact = np.array([0.1, -0.1, 0.5, 1 / 3])
    found = not_above(exact)
    assert (found <= exact).all()
    assert (np.nextafter(found, np.float32(9)) > exact).all()


def test_a_tree_without_a_question_answers_alike() -> None:
    numbers, _ = items(30, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = RandomForestClassifier(3, max_depth=2, random_state=0, bootstrap=False, max_features=1)
    constant = torch.zeros(30, 6)
    own.fit(constant.numpy(), np.arange(30) < 12)
    np.testing.assert_allclose(forest_of(own)(numbers).numpy(), 0.4, atol=1e-6)


class Answer(nn.Module):
    def __init__(self, forest: Forest) -> None:
        super().__init__()
        self.forest = forest

    def forward(self, numbers: Tensor) -> tuple[Tensor]:
        return (self.forest(numbers),)


def test_the_compiled_forest_gives_the_same_shares() -> None:
    numbers, attacked = items(200, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, forest = fitted(numbers, attacked, 4)
    model = lower(Answer(forest), numbers[:3], input_name="numbers", output_names=("share",))
    session = Session(GraphInMemory("forest", model.SerializeToString(), {}), device="cpu", threads=1)
    (found,) = session.run(("share",), numbers.numpy())
    np.testing.assert_allclose(found, own.predict_proba(numbers.numpy())[:, 1], atol=1e-6)
