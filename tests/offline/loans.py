"""Generated loan applications: numbers, whole numbers, words, a one-hot group; and a model with embeddings.

The class follows from all columns but the last, with noise; the seed is fixed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

TRADES = ("baker", "clerk", "driver", "farmer", "nurse", "smith")
REGIONS = ("east", "north", "south", "west")
CHANNELS = ("by_branch", "by_phone", "by_web")
CLASSES = ("grant", "look", "refuse")
COLUMNS = ("age", "income", "debt", "hours", "trade", "region", "owner", *CHANNELS)
WORDS = {"trade": TRADES, "region": REGIONS, "owner": ("no", "yes")}
STATED = """
[[feature]]
name = "age"
immutable = true

[[feature]]
name = "income"
cost = 2.0

[[feature]]
name = "channel"
group = ["by_branch", "by_phone", "by_web"]
"""


def loans(items: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Wire values [item, feature], words as codes, and labels [item]."""
    draw = np.random.default_rng(seed)
    age = draw.integers(18, 80, items)
    trade, region, owner, channel = (draw.integers(0, size, items) for size in (len(TRADES), len(REGIONS), 2, 3))
    worth = np.random.default_rng(7).normal(0, 1, (2, 6))
    income = np.exp(draw.normal(7.6, 0.4, items)).clip(500, 9000).round(-1)
    debt = (draw.gamma(2.0, 3.0, items)).clip(0, 40).round(2)
    hours = draw.integers(5, 61, items)
    sure = (
        2.2 * (np.log(income) - 7.6)
        + 1.2 * worth[0][trade]
        + 0.8 * worth[1][region]
        + 0.9 * owner
        - 0.22 * (debt - 6)
        + 0.03 * (hours - 33)
        + 0.02 * (age - 49)
        + np.asarray([0.4, 0.0, -0.4])[channel]
    )
    labels = np.digitize(sure + draw.normal(0, 0.25, items), (-0.6, 0.9))
    table = [age, income, debt, hours, trade, region, owner, *np.eye(3)[channel].T]
    return np.stack(table, axis=1).astype(np.float32), 2 - labels.astype(np.int64)


class Applications(nn.Module):
    """Classifier of loans: numbers standardised inside, words through embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.trade, self.region = nn.Embedding(len(TRADES), 4), nn.Embedding(len(REGIONS), 3)
        self.register_buffer("middle", torch.tensor([49.0, 2200.0, 6.0, 33.0]))
        self.register_buffer("spread", torch.tensor([18.0, 900.0, 4.5, 16.0]))
        self.layers = nn.Sequential(
            nn.Linear(15, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, len(CLASSES))
        )

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        numbers = (table[:, :4] - self.middle) / self.spread
        words = [self.trade(table[:, 4].long()), self.region(table[:, 5].long())]
        found: torch.Tensor = self.layers(torch.cat([numbers, *words, table[:, 6:]], dim=1))
        return found


@cache
def model() -> Applications:
    """Return the classifier, trained on 4,000 applications of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Applications()
        values, labels = (torch.from_numpy(array) for array in loans(4000, seed=100))
        optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
        for _ in range(25):
            for index in torch.randperm(len(values)).split(128):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(values[index]), labels[index]).backward()
                optimiser.step()
    return network.eval().requires_grad_(False)


def write_model(file: Path) -> Path:
    """Export the classifier with a free batch axis."""
    torch.onnx.export(
        model(),
        (torch.from_numpy(loans(2)[0]),),
        file,
        input_names=["application"],
        output_names=["logits"],
        dynamic_axes={"application": {0: "item"}, "logits": {0: "item"}},
        dynamo=False,
    )
    return file


def rows(items: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return applications as a table holds them: numbers as numbers, words as words, the class by name."""
    values, labels = loans(items, seed)
    found = []
    for row, label in zip(values, labels, strict=True):
        cells: dict[str, Any] = {}
        for name, value in zip(COLUMNS, row, strict=True):
            exact = float(str(value))
            cells[name] = WORDS[name][int(value)] if name in WORDS else exact if name == "debt" else int(exact)
        found.append({**cells, "label": CLASSES[label]})
    return found


def write_csv(file: Path, items: int, seed: int = 0, order: tuple[str, ...] = (*COLUMNS, "label")) -> Path:
    """Write applications as text, their columns in an order."""
    lines = [",".join(order)]
    lines += [",".join(str(row[name]) for name in order) for row in rows(items, seed)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def write_features(file: Path) -> Path:
    """Write what is known of the columns."""
    file.write_text(STATED, encoding="utf-8")
    return file
