"""A probability of one class is known by its sigmoid, however that is written, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from guard.offline.model.output_rows import bare
from guard.offline.model.several_outputs import single_path
from guard.offline.model.sigmoids import log_odds
from tests.onnx_files import write_onnx

ITEMS = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) * 3


class Ends(nn.Module):
    """A linear layer, and whatever a model ends in."""

    def __init__(self, ending: Callable[[Tensor], Tensor], outputs: int = 1) -> None:
        super().__init__()
        self.ending = ending
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(4, outputs)

    def forward(self, items: Tensor) -> Tensor:
        return self.ending(self.linear(items * 0.5))  # the scaled items are a layer that detectors may read


def graph_of(model: nn.Module) -> fx.GraphModule:
    shapes = ({0: torch.export.Dim("item")},)
    return single_path(torch.export.export(model.eval(), (ITEMS[:2],), dynamic_shapes=shapes, strict=False))


ONE_SIGMOID: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "in place": lambda z: z.clone().sigmoid_(),
    "squeezed": lambda z: torch.sigmoid(z).squeeze(1),
    "squeezed before": lambda z: torch.sigmoid(z.squeeze(-1)),
    "flattened": lambda z: torch.sigmoid(z).flatten(),
    "indexed": lambda z: torch.sigmoid(z)[:, 0],
    "double": lambda z: torch.sigmoid(z).double(),
    "double before": lambda z: torch.sigmoid(z.double()),
    "reciprocal": lambda z: 1 / (1 + torch.exp(-z)),
    "quotient": lambda z: torch.exp(z) / (torch.exp(z) + 1.0),
    "tangent": lambda z: 0.5 * (torch.tanh(z / 2) + 1),
    "tangent, added last": lambda z: torch.tanh(z * 0.5) / 2 + 0.5,
    "logarithm": lambda z: nn.functional.logsigmoid(z).exp(),
    "of the other class": lambda z: 1 - torch.sigmoid(-z),
    "of a map": lambda z: torch.sigmoid(z[:, :, None, None]).flatten(1),
}
SOFTMAX_COLUMN: dict[str, Callable[[Tensor], Tensor]] = {
    "second column": lambda z: z.softmax(1)[:, 1],
    "second column, kept": lambda z: z.softmax(-1)[:, 1:2],
    "all but the first": lambda z: 1 - z.softmax(1)[:, 0],
    "first column": lambda z: z.softmax(1)[:, 0],
    "second column, of maps": lambda z: z[:, :, None, None].softmax(1).flatten(1)[:, 1],
    "second map": lambda z: z[:, :, None, None].softmax(1)[:, 1],
    "second column, written out": lambda z: (z.exp() / z.exp().sum(1, keepdim=True))[:, 1],
}
NO_PROBABILITY: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda z: z,
    "doubled": lambda z: 2 * torch.sigmoid(z),
    "shifted": lambda z: torch.sigmoid(z) - 0.5,
    "tangent": torch.tanh,
    "clipped": lambda z: torch.sigmoid(z).clamp(0.01, 0.99),
    "another quotient": lambda z: torch.exp(z) / (torch.exp(2 * z) + 1.0),
    "another reciprocal": lambda z: 1 / (2 + torch.exp(-z)),
    "exponential": lambda z: torch.exp(-nn.functional.softplus(z, beta=2)),
}


def found_in(model: nn.Module) -> Tensor | None:
    """Log-odds [item] as the found node gives them; None where there is none."""
    graph = graph_of(model)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    found = log_odds(graph, bare(output.args[0]))
    if found is None:
        return None
    output.args = (found.node,)
    graph.recompile()
    values: Tensor = graph(ITEMS) * found.scale
    return (values[:, 1] - values[:, 0]).reshape(-1) if found.two_classes else values.reshape(-1)


@pytest.mark.parametrize("name", ONE_SIGMOID)
def test_every_spelling_of_a_sigmoid_has_its_log_odds(name: str) -> None:
    model = Ends(ONE_SIGMOID[name])
    odds = found_in(model)
    assert odds is not None
    torch.testing.assert_close(odds.sigmoid().float(), model(ITEMS).reshape(-1).float())


@pytest.mark.parametrize("name", SOFTMAX_COLUMN)
def test_one_column_of_two_has_the_log_odds_of_both(name: str) -> None:
    model = Ends(SOFTMAX_COLUMN[name], outputs=2)
    odds = found_in(model)
    assert odds is not None
    torch.testing.assert_close(odds.sigmoid(), model(ITEMS).reshape(-1))


@pytest.mark.parametrize("name", NO_PROBABILITY)
def test_what_is_no_probability_is_not_taken_for_one(name: str) -> None:
    assert found_in(Ends(NO_PROBABILITY[name])) is None


@pytest.mark.parametrize("exporter", ["default", "legacy"])
@pytest.mark.parametrize("name", ["sigmoid", "squeezed", "reciprocal", "quotient", "tangent", "of the other class"])
def test_a_file_spells_it_with_constants_of_its_own(name: str, exporter: str, tmp_path: Path) -> None:
    from guard.offline.model.onnx_import.importer import import_onnx

    file = write_onnx(Ends(ONE_SIGMOID[name]), tmp_path / "m.onnx", (4,), exporter=exporter)
    graph = single_path(import_onnx(file, (4,)).program)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    assert log_odds(graph, bare(output.args[0])) is not None
